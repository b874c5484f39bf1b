public import VMFenceCore

/// So many at once, and so many a second.
public struct TokenBucket: Sendable {
  private let capacity: Int64
  /// The time in which one more comes, in nanoseconds.
  private let interval: Int64
  private var tokens: Int64
  private var last: Timestamp

  public init(capacity: Int, every interval: Duration, at now: Timestamp) {
    self.capacity = Int64(capacity)
    self.interval = max(1, interval.wholeNanoseconds)
    tokens = Int64(capacity)
    last = now
  }

  /// Whether there is one to take.
  public mutating func hasToken(at now: Timestamp) -> Bool {
    // A clock that was set back begins anew.
    last = min(last, now)
    let more = (now - last).wholeNanoseconds / interval
    if more >= capacity - tokens {
      (tokens, last) = (capacity, now)
    } else {
      tokens += more
      last = last + .nanoseconds(more * interval)
    }
    return tokens > 0
  }

  /// - Precondition: there is one.
  public mutating func take() { tokens -= 1 }
}
