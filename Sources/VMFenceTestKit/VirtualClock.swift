public import VMFenceCore
internal import Synchronization

/// A clock that stands still until it is told the time: for replay and tests. Safe to use from any thread.
public final class VirtualClock: TimeSource {
  private let nanoseconds: Atomic<Int64>

  public init(_ start: Timestamp = .zero) { nanoseconds = Atomic(start.nanoseconds) }

  public var now: Timestamp { Timestamp(nanoseconds: nanoseconds.load(ordering: .acquiring)) }

  /// Sets the clock to `time`. It never goes back: an earlier time changes nothing.
  public func advance(to time: Timestamp) {
    nanoseconds.max(time.nanoseconds, ordering: .acquiringAndReleasing)
  }

  /// Moves the clock on. It never goes back: a negative duration changes nothing.
  public func advance(by duration: Duration) { advance(to: now + duration) }
}
