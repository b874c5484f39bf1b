internal import Glibc
internal import VMFenceCore

/// One end of a connection over which lines go. Owns its descriptor, which does not block. Used by one thread at a time.
final class ControlConnection: @unchecked Sendable {
  enum Line {
    case line([UInt8])
    case tooLong
  }

  private let descriptor: Int32
  private var buffer: [UInt8] = []

  init(descriptor: Int32) { self.descriptor = descriptor }

  deinit { close(descriptor) }

  /// The next line without its end, in which there are at most `limit` bytes; nil when the other side hung up, said nothing for `patience`, or `goesOn` says no.
  func readLine(limit: Int, patience: Duration, while goesOn: () -> Bool) -> Line? {
    var searched = 0
    let deadline = ContinuousClock.now + patience
    while true {
      if let end = buffer[searched...].firstIndex(of: 0x0A) {
        guard end <= limit else { return .tooLong }
        let line = Array(buffer[..<end])
        buffer.removeFirst(end + 1)
        return .line(line)
      }
      searched = buffer.count
      guard buffer.count <= limit else { return .tooLong }
      guard wait(for: Int16(POLLIN), until: deadline, while: goesOn) else { return nil }
      var chunk = [UInt8](repeating: 0, count: 16 << 10)
      // SAFETY: the buffer is valid for its count during the call.
      let count = unsafe chunk.withUnsafeMutableBytes { unsafe read(descriptor, $0.baseAddress, $0.count) }
      if count < 0, errno == EINTR || errno == EAGAIN { continue }
      guard count > 0 else { return nil }
      buffer += chunk[..<count]
    }
  }

  /// - Returns: false when the other side hung up, did not take all of it for `patience`, or `goesOn` says no.
  func write(_ bytes: [UInt8], patience: Duration, while goesOn: () -> Bool) -> Bool {
    var written = 0
    let deadline = ContinuousClock.now + patience
    while written < bytes.count {
      // SAFETY: the buffer is valid for its count during the call, which only reads it.
      let count = unsafe bytes[written...].withUnsafeBytes {
        unsafe send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
      }
      if count > 0 {
        written += count
        continue
      }
      guard errno == EINTR || errno == EAGAIN, wait(for: Int16(POLLOUT), until: deadline, while: goesOn) else {
        return false
      }
    }
    return true
  }

  /// Waits until `other` is readable, at the most so long.
  ///
  /// - Returns: false when the other side hung up, or said anything more.
  func waitForNews(_ other: Int32, milliseconds: Int32) -> Bool {
    var waited = [
      pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0),
      pollfd(fd: other, events: Int16(POLLIN), revents: 0),
    ]
    // SAFETY: two structures, as is said.
    _ = unsafe poll(&waited, 2, milliseconds)
    return waited[0].revents == 0
  }

  private func wait(for events: Int16, until deadline: ContinuousClock.Instant, while goesOn: () -> Bool) -> Bool {
    while goesOn() {
      let left = ContinuousClock.now.duration(to: deadline)
      guard left > .zero else { return false }
      var waited = pollfd(fd: descriptor, events: events, revents: 0)
      let milliseconds = Int32(clamping: min(500, left.wholeNanoseconds / 1_000_000 + 1))
      // SAFETY: one structure, as is said.
      if unsafe poll(&waited, 1, milliseconds) > 0 { return true }
    }
    return false
  }
}
