public import VMFenceCore

/// What was stopped, as the kernel counted it.
public struct TrafficCounts: Hashable, Sendable {
  /// By each block that stands, since it stands unchanged.
  public var measures: [FirewallMeasure.Key: TrafficCount] = [:]
  /// By all quarantines, since the table was made.
  public var quarantined = TrafficCount()
  /// By all rate limits, since the table was made.
  public var limited = TrafficCount()
  /// What guests sent under another name, by kind, since the table was made.
  public var spoofed: [SpoofingKind: TrafficCount] = [:]

  public init() {}
}

extension NftablesSink {
  /// Reads the kernel's counters.
  public func trafficCounts() async throws(FirewallError) -> TrafficCounts {
    try locked { contents throws(FirewallError) in try contents.readCounts() }
  }
}
