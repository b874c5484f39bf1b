internal import Glibc

/// When a socket that listens is asked for a connection again. Without a free descriptor, or memory, a client goes on waiting: `poll` would say so again at
/// once, and whoever asks each time would do nothing else (accept(2): EMFILE, ENFILE, ENOBUFS, ENOMEM).
package struct AcceptPause: Sendable {
  package static let length = Duration.milliseconds(100)

  private var end: ContinuousClock.Instant?

  package init() {}

  /// Notes why accept(2) gave no connection.
  ///
  /// - Returns: whether that begins a pause.
  package mutating func begins(after error: Int32, at now: ContinuousClock.Instant = .now) -> Bool {
    guard [EMFILE, ENFILE, ENOBUFS, ENOMEM].contains(error) else { return false }
    end = now + Self.length
    return true
  }

  /// How long nobody is to ask yet; nil when the socket may be asked.
  package mutating func rest(at now: ContinuousClock.Instant = .now) -> Duration? {
    guard let end else { return nil }
    let rest = now.duration(to: end)
    if rest > .zero { return rest }
    self.end = nil
    return nil
  }
}
