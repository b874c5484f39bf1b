#if Daemon
internal import CLinux
import Foundation
import VMFenceCore

/// Where the events go, opened before the sandbox closes: a file that is appended to, a unix stream socket that somebody
/// listens on, or standard output. A guest waits while an event is written, so a socket that is not read from loses
/// events instead; what is lost is counted, and told as soon as there is room again.
final class EventOutput {
  private let descriptor: Int32
  private let encoder: EVEEncoder
  private let incarnation: Incarnation
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

  /// - Throws: what went wrong, as text.
  init(_ place: Place, encoder: EVEEncoder, incarnation: Incarnation) throws(OutputFailure) {
    self.encoder = encoder
    self.incarnation = incarnation
    let path: String
    switch place {
    case .standardOutput:
      descriptor = 1
      return
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
      throw OutputFailure(text: "cannot write events to \(path.escapedForDisplay): \(reason)")
    }
  }

  struct OutputFailure: Error { var text: String }

  func write(_ events: [FileEvent], at time: Timestamp) {
    if untold > 0, !events.isEmpty {
      let alert = PlatformAlert(
        time: time, incarnation: incarnation, kind: .integrityGap,
        message: "\(untold) file events could not be written", severity: 1, count: untold)
      if write(line: encoder.encode(Event.platform(alert).shifted(by: offset))) { untold = 0 }
    }
    for event in events where !write(line: encoder.encode(Event.file(event).shifted(by: offset))) {
      lost += 1
      untold += 1
    }
  }

  func write(_ statistics: EVEStatistics) {
    var statistics = statistics
    statistics.time = statistics.time + offset
    _ = write(line: encoder.encode(statistics))
  }

  func write(_ alert: PlatformAlert) {
    _ = write(line: encoder.encode(Event.platform(alert).shifted(by: offset)))
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
