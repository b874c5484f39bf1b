internal import Glibc
internal import Synchronization

/// The time of a program that runs for long: the system's clock as it was at the start, and from there on at the pace of
/// CLOCK_MONOTONIC. It never jumps, whoever sets the system's clock, so whatever waits for a time waits as long as it should.
///
/// What is shown to people, or kept beyond the program's end, has the system's time: add `offset` to it on the way out, and take it away
/// from what comes in. Safe to use from any thread.
public final class SteadyClock: TimeSource {
  /// The system's clock and the monotonic one may differ by so much before it is called a jump: reading both takes a moment.
  public static let tolerance = Duration.milliseconds(100)

  private let system: @Sendable () -> Timestamp
  private let monotonic: @Sendable () -> Int64
  private let start: Timestamp
  private let startMonotonic: Int64
  private let offsetNanoseconds = Atomic<Int64>(0)

  public convenience init() {
    self.init(
      system: { SystemClock().now },
      monotonic: {
        let time = readClock(CLOCK_MONOTONIC)
        return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
      })
  }

  /// `monotonic`: in nanoseconds from anywhere.
  public init(system: @escaping @Sendable () -> Timestamp, monotonic: @escaping @Sendable () -> Int64) {
    self.system = system
    self.monotonic = monotonic
    start = system()
    startMonotonic = monotonic()
  }

  public var now: Timestamp { start + .nanoseconds(monotonic() - startMonotonic) }

  /// How far the system's clock is ahead, as of the last `look`.
  public var offset: Duration { .nanoseconds(offsetNanoseconds.load(ordering: .relaxed)) }

  /// How long reading both clocks may take to be believed: whoever is put to sleep in between would see a jump that there was not.
  private static let readingTime: Int64 = 10_000_000

  /// Compares with the system's clock.
  ///
  /// - Returns: by how much it was set since the last time; nil when it was not, or the clocks could not be read at one moment.
  public func look() -> Duration? {
    let before = monotonic()
    let systemTime = system()
    let after = monotonic()
    guard after - before <= Self.readingTime else { return nil }
    return note(systemTime - (start + .nanoseconds(after - startMonotonic)))
  }

  private func note(_ difference: Duration) -> Duration? {
    let ahead = difference.wholeNanoseconds
    let before = offsetNanoseconds.load(ordering: .relaxed)
    let jump = Duration.nanoseconds(ahead &- before)
    guard jump > Self.tolerance || jump < .zero - Self.tolerance else { return nil }
    offsetNanoseconds.store(ahead, ordering: .relaxed)
    return jump
  }
}

/// The system's clock.
public struct SystemClock: TimeSource {
  public init() {}

  public var now: Timestamp {
    let time = readClock(CLOCK_REALTIME)
    return Timestamp(seconds: Int64(time.tv_sec), nanoseconds: Int64(time.tv_nsec))
  }
}

private func readClock(_ clock: clockid_t) -> timespec {
  var time = timespec()
  // SAFETY: clock_gettime(2) writes one timespec.
  unsafe clock_gettime(clock, &time)
  return time
}

extension Event {
  /// The same with all its times moved.
  public func shifted(by offset: Duration) -> Event {
    if offset == .zero { return self }
    switch self {
    case .alert(var alert):
      alert.time = alert.time + offset
      return .alert(alert)
    case .file(var event):
      event.time = event.time + offset
      return .file(event)
    case .decision(let decision): return .decision(decision.shifted(by: offset))
    case .lifecycle(var report):
      report.time = report.time + offset
      return .lifecycle(report)
    case .platform(var alert):
      alert.time = alert.time + offset
      return .platform(alert)
    case .packet(var notice):
      notice.packet.time = notice.packet.time + offset
      return .packet(notice)
    }
  }
}

extension Decision {
  /// The same with all its times moved.
  public func shifted(by offset: Duration) -> Decision {
    var decision = self
    decision.time = decision.time + offset
    decision.expires = decision.expires.map { $0 + offset }
    return decision
  }
}
