#if Daemon
internal import CLinux
import Foundation
import VMFenceCore

/// Where the events go, opened before the sandbox closes: a file that is appended to, a unix stream socket that somebody
/// listens on, or standard output. A guest waits while an event is written, so a socket that is not read from loses
/// events instead; what is lost is counted, and told as soon as there is room again. So it is with a file that has grown to its limit, for a guest can make
/// as many events as it likes: it has room again when it was cut (`copytruncate`).
final class EventOutput {
  /// What else there is to tell is written up to so many bytes beyond the limit of a file, so that it is told that there is no room.
  private static let reserve: UInt64 = 1 << 20

  private let descriptor: Int32
  private let encoder: EVEEncoder
  private let incarnation: Incarnation
  /// Of a file, in bytes; nil for what is none.
  private let limit: UInt64?
  /// It was told that events find no room in the file.
  private var isFull = false
  private var isInsideLine = false
  private(set) var lost: UInt64 = 0
  private var untold: UInt64 = 0
  /// How far the system's clock is ahead of the times that come in.
  var offset = Duration.zero

  enum Place {
    case file(String)
    case socket(String)
    case standardOutput

    init(_ text: String) {
      self = text == "-" ? .standardOutput : text.hasPrefix("unix:") ? .socket(String(text.dropFirst(5))) : .file(text)
    }
  }

  /// - `limit`: how large a file may become, in bytes.
  /// - Throws: what went wrong, as text.
  init(_ place: Place, limit: UInt64, encoder: EVEEncoder, incarnation: Incarnation) throws(OutputFailure) {
    self.encoder = encoder
    self.incarnation = incarnation
    let path: String
    switch place {
    case .standardOutput: (path, descriptor) = ("standard output", 1)
    case .file(let name):
      path = name
      // SAFETY: Swift hands over the path as a C string that is valid for the call.
      descriptor = unsafe open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0o640)
    case .socket(let name):
      path = name
      // SAFETY: as above.
      descriptor = unsafe vmfence_unix_connect(name)
      if descriptor >= 0 { _ = fcntl(descriptor, F_SETFL, O_NONBLOCK) }
    }
    guard descriptor >= 0 else {
      // SAFETY: strerror gives a terminated text that is copied at once; no other thread runs yet.
      let reason = unsafe String(cString: strerror(errno))
      let remedy =
        if case .socket = place {
          "start what listens there first"
        } else { "name a file in a folder that may be written" }
      throw OutputFailure(
        text: "error: cannot write events to \(path.escapedForDisplay): \(reason) (\(remedy))")
    }
    var status = stat()
    // SAFETY: fstat(2) writes one structure.
    let isFile = unsafe fstat(descriptor, &status) == 0 && status.st_mode & S_IFMT == S_IFREG
    self.limit = isFile ? limit : nil
  }

  struct OutputFailure: Error { var text: String }

  func write(_ events: [FileEvent], at time: Timestamp) {
    guard !events.isEmpty else { return }
    var room = room()
    if untold > 0, !isFull {
      let alert = PlatformAlert(
        time: time, incarnation: incarnation, kind: .integrityGap,
        message: "\(untold) file events could not be written", severity: 1, count: untold)
      if write(beside: encoder.encode(Event.platform(alert).shifted(by: offset))) { untold = 0 }
    }
    for event in events {
      if !isFull {
        let line = encoder.encode(Event.file(event).shifted(by: offset))
        if UInt64(line.count) >= room {
          tellFull(at: time)
        } else if write(line: line) {
          room -= UInt64(line.count) + 1
          continue
        }
      }
      lost += 1
      untold += 1
    }
  }

  func write(_ statistics: EVEStatistics) {
    var statistics = statistics
    statistics.time = statistics.time + offset
    _ = write(beside: encoder.encode(statistics))
  }

  func write(_ alert: PlatformAlert) {
    _ = write(beside: encoder.encode(Event.platform(alert).shifted(by: offset)))
  }

  // MARK: Room

  /// What file events may still take, in bytes. A file that was full is so until it was cut, and not only until a shorter line comes.
  private func room() -> UInt64 {
    guard let limit else { return .max }
    let size = size
    if isFull, size > limit - limit / 16 { return 0 }
    isFull = false
    return limit - min(size, limit)
  }

  /// Of the file, whoever else writes to it or cuts it.
  private var size: UInt64 { UInt64(max(0, lseek(descriptor, 0, Int32(SEEK_END)))) }

  private func tellFull(at time: Timestamp) {
    isFull = true
    let message =
      "the file of events has grown to its limit of \((limit ?? 0) >> 20) MiB: file events are counted and not written until it is cut"
    VMFenceDisk.log(message)
    write(PlatformAlert(time: time, incarnation: incarnation, kind: .integrityGap, message: message, severity: 1))
  }

  /// Writes what is no file event.
  private func write(beside line: [UInt8]) -> Bool {
    if let limit, size + UInt64(line.count) > limit + Self.reserve { return false }
    return write(line: line)
  }

  private func write(line: [UInt8]) -> Bool {
    let bytes = (isInsideLine ? [0x0A] : []) + line + [0x0A]
    var written = 0
    while written < bytes.count {
      // SAFETY: the rest of the array, for reading.
      let result = unsafe bytes[written...].withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress, $0.count) }
      if result < 0, errno == EINTR { continue }
      guard result > 0 else { break }
      written += result
    }
    if written > 0 { isInsideLine = written < bytes.count }
    return written == bytes.count
  }
}
#endif
