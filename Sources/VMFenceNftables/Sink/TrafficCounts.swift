public import VMFenceCore

/// What was stopped, as the kernel counted it.
public struct TrafficCounts: Hashable, Sendable {
  /// By each block that stands, since it stands unchanged.
  public var measures: [FirewallMeasure.Key: TrafficCount] = [:]
  /// By all blocks, since the table was made.
  public var blocked = TrafficCount()
  /// Of flows that were cut, since the table was made.
  public var cut = TrafficCount()
  /// By all quarantines, since the table was made.
  public var quarantined = TrafficCount()
  /// By all rate limits, since the table was made.
  public var limited = TrafficCount()
  /// What guests sent under another name, by kind, since the table was made.
  public var spoofed: [SpoofingKind: TrafficCount] = [:]
  /// The same by interface, since the kind is stopped there without a break; without those where nothing was. With what was stopped before the bridge saw it (`SpoofingKind.mac`).
  public var spoofedAtPorts: [String: [SpoofingKind: TrafficCount]] = [:]
  /// How many elements measures have in the kernel's sets: of a measure of the host one, of a domain's one at each of its ports. Counted by the kernel (6.16 and later), with those that
  /// have ended and were not collected yet; an earlier kernel says that its ruleset is the one that this sink wrote or read last, and then what was written or read is
  /// counted. nil: it was changed by others, and not read back yet.
  public var elements: Int?

  public init() {}

  /// All but measures and ports, each under a short name: `block`, `flow`, `quarantine`, `rate_limit` and `spoofed_` with a kind's name. In this order, kinds as `allCases` has them.
  public var byReason: [(name: String, count: TrafficCount)] {
    [("block", blocked), ("flow", cut), ("quarantine", quarantined), ("rate_limit", limited)]
      + SpoofingKind.allCases.map { ("spoofed_\($0.rawValue)", spoofed[$0] ?? TrafficCount()) }
  }
}

extension NftablesSink {
  /// Reads the kernel's counters.
  ///
  /// - `ofMeasures`: those of single measures, too, for which all elements are read: a second's work with 100,000 measures. Without them it is
  ///   some hundred rules, and the ports.
  public func trafficCounts(ofMeasures: Bool = true) async throws(FirewallError) -> TrafficCounts {
    try locked { contents throws(FirewallError) in try contents.readCounts(ofMeasures: ofMeasures) }
  }
}

extension SinkContents {
  /// What was counted at single ports, by the elements of the sets that say where a kind is stopped.
  mutating func readPortCounts() throws(NetlinkError) -> [String: [SpoofingKind: TrafficCount]] {
    for _ in 0..<Self.readAttempts {
      do throws(NetlinkError) {
        var counts: [String: [SpoofingKind: TrafficCount]] = [:]
        for (set, kind) in SpoofingRules.countingSets {
          try socket.ask(.elements, family: .bridge, table: configuration.table, set: set) {
            (message, bytes) throws(NetlinkError) in
            try ReadElement.forEachCount(in: message, bytes) { interface, count in
              if count.packets > 0 {
                counts[interface, default: [:]][kind, default: TrafficCount()] += count
              }
            }
          }
        }
        return counts
      } catch .interrupted {
        continue
      }
    }
    throw .interrupted
  }
}
