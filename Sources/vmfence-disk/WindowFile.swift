#if Daemon
import Foundation
import VMFenceControl
import VMFenceCore

/// Where announced windows of changes outlive the process: a file that is opened before the sandbox closes and has room for two copies,
/// of which the older one is overwritten, so that one of them is whole whenever the process or the host dies. What has passed of a window
/// is measured by the clock that counts since the host's start; after a restart of the host, by the system's.
final class WindowFile {
  /// Of a copy, in bytes: what windows take as JSON, and 24 for what stands before it.
  static let slotBytes = 64 << 10
  private static let headerBytes = 24
  private static let magic: UInt64 = 0x564D_4657_494E_4431  // "VMFWIND1"

  private struct Contents: Codable {
    /// Of the host's start, and how long after it this was written.
    var boot: String
    var sinceBoot: Int64
    /// The system's time, in nanoseconds.
    var time: Int64
    var windows: [DiskControlStatus.Window]
  }

  let path: String
  private let descriptor: Int32
  private let boot: String
  private var sequence: UInt64 = 0
  private var stored: Contents?

  /// Opens or makes the file, mode 0600. A file that has no whole copy counts as empty.
  ///
  /// - Throws: the error number of the system.
  init(path: String) throws(SystemFailure) {
    self.path = path
    boot = (try? String(contentsOfFile: "/proc/sys/kernel/random/boot_id", encoding: .utf8)) ?? ""
    // SAFETY: Swift hands over the path as a C string that is valid for the call.
    let file = unsafe open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY, 0o600)
    guard file >= 0 else { throw SystemFailure(call: "open \(path.escapedForDisplay)", number: errno) }
    descriptor = file
    // So that no disk that is full stands in the way later.
    let error = posix_fallocate(file, 0, off_t(2 * Self.slotBytes))
    guard error == 0 else { throw SystemFailure(call: "make room in \(path.escapedForDisplay)", number: error) }
    for slot in 0..<2 {
      guard let (number, contents) = read(slot), number >= sequence else { continue }
      (sequence, stored) = (number, contents)
    }
  }

  deinit { close(descriptor) }

  /// The windows that were open when the file was written, with what remains of them now.
  func remaining(at time: Timestamp) -> [(paths: [String], remaining: Duration)] {
    guard let stored else { return [] }
    let passed =
      stored.boot == boot && !boot.isEmpty ? Self.sinceBoot - stored.sinceBoot : time.nanoseconds - stored.time
    return stored.windows.compactMap { window in
      let rest = window.remaining - Double(max(0, passed)) / 1e9
      guard rest > 0, rest <= DiskControlRequest.durationLimit else { return nil }
      return (window.paths, .milliseconds(Int64(rest * 1000)))
    }
  }

  /// Whether windows are few enough to be kept, and to be told in one answer.
  static func fits(_ windows: [DiskControlStatus.Window]) -> Bool {
    (try? JSONEncoder().encode(windows)).map { $0.count <= slotBytes - headerBytes - 1024 } ?? false
  }

  /// Writes down what is open from now on. Durable when it returns.
  ///
  /// - Returns: false when it could not be written: then what was written before is still there.
  func write(_ windows: [DiskControlStatus.Window], at time: Timestamp) -> Bool {
    let contents = Contents(boot: boot, sinceBoot: Self.sinceBoot, time: time.nanoseconds, windows: windows)
    guard let text = try? JSONEncoder().encode(contents), text.count <= Self.slotBytes - Self.headerBytes else {
      return false
    }
    var crc = CRC32C()
    [UInt8](text).withRawSpan { crc.update($0) }
    var bytes: [UInt8] = []
    for value in [Self.magic, sequence + 1, UInt64(text.count) << 32 | UInt64(crc.state)] {
      bytes += (0..<8).map { UInt8(truncatingIfNeeded: value >> UInt64(56 - 8 * $0)) }
    }
    bytes += text
    let place = Int((sequence + 1) % 2) * Self.slotBytes
    guard (try? FileBytes.write(bytes, descriptor, at: place)) != nil, fdatasync(descriptor) == 0 else { return false }
    sequence += 1
    return true
  }

  private func read(_ slot: Int) -> (UInt64, Contents)? {
    guard let bytes = try? FileBytes.read(descriptor, count: Self.slotBytes, at: slot * Self.slotBytes) else {
      return nil
    }
    return bytes.withRawSpan { span in
      let length = Int(span.u32(16))
      guard span.u64(0) == Self.magic, length <= Self.slotBytes - Self.headerBytes else { return nil }
      let text = span.extracting(Self.headerBytes..<Self.headerBytes + length)
      var crc = CRC32C()
      crc.update(text)
      guard crc.state == span.u32(20),
        let contents = try? JSONDecoder().decode(Contents.self, from: Data(text.copiedBytes()))
      else { return nil }
      return (span.u64(8), contents)
    }
  }

  private static var sinceBoot: Int64 {
    var time = timespec()
    // SAFETY: clock_gettime(2) writes one timespec.
    unsafe clock_gettime(CLOCK_BOOTTIME, &time)
    return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
  }
}
#endif
