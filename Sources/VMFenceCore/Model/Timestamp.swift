/// A point in time: nanoseconds since the Unix epoch, UTC, as a capture file or a clock gave it.
///
/// Time is a value everywhere in VMFence: nothing below the daemon reads a clock by itself, so a replay runs on the
/// times of its captures and gives the same output every time. The range is that of `Int64`: 1677 to 2262.
public struct Timestamp: Hashable, Comparable, Sendable, BitwiseCopyable {
  public var nanoseconds: Int64

  @inlinable
  public init(nanoseconds: Int64) { self.nanoseconds = nanoseconds }

  /// Seconds and nanoseconds since the epoch; saturates at the ends of the range instead of trapping, because both
  /// numbers may come from a hostile file.
  @inlinable
  public init(seconds: Int64, nanoseconds: Int64 = 0) {
    let (product, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
    let (sum, overflow2) = product.addingReportingOverflow(nanoseconds)
    self.nanoseconds = overflow || overflow2 ? (seconds < 0 ? Int64.min : Int64.max) : sum
  }

  public static let zero = Timestamp(nanoseconds: 0)

  @inlinable
  public static func < (a: Timestamp, b: Timestamp) -> Bool { a.nanoseconds < b.nanoseconds }

  /// Saturating: a time taken from hostile input plus a duration never traps.
  @inlinable
  public static func + (time: Timestamp, duration: Duration) -> Timestamp {
    let (sum, overflow) = time.nanoseconds.addingReportingOverflow(duration.wholeNanoseconds)
    return Timestamp(nanoseconds: overflow ? (duration < .zero ? .min : .max) : sum)
  }

  /// Saturating difference.
  @inlinable
  public static func - (a: Timestamp, b: Timestamp) -> Duration {
    let (difference, overflow) = a.nanoseconds.subtractingReportingOverflow(b.nanoseconds)
    return .nanoseconds(overflow ? (a.nanoseconds < 0 ? Int64.min : Int64.max) : difference)
  }
}

extension Duration {
  /// This duration in nanoseconds, saturating at the range of `Int64`.
  @inlinable
  public var wholeNanoseconds: Int64 {
    let (seconds, attoseconds) = components
    let (product, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
    let (sum, overflow2) = product.addingReportingOverflow(attoseconds / 1_000_000_000)
    return overflow || overflow2 ? (seconds < 0 ? Int64.min : Int64.max) : sum
  }
}

/// Where control paths take the time from: the system's clock in the daemon, a virtual clock in replay and tests.
public protocol TimeSource: Sendable {
  var now: Timestamp { get }
}
