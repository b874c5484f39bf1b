public import VMFenceCore

/// Tells of what anti-spoofing stops, by the kernel's counters: for each port and kind at once when something was stopped there, and then as long as
/// more is, with a count, at a pace.
///
/// A port that is not among the counters any more is forgotten. Not safe to use from several threads at once.
public struct SpoofingAlerts: Sendable {
  /// From one alert of a port and kind to the next.
  public static let pace: Duration = .seconds(60)
  /// In one answer; what finds no room comes with a later one.
  public static let limit = 16

  private struct Place: Hashable {
    var interface: String
    var kind: SpoofingKind
  }

  private struct Told {
    var packets: UInt64 = 0
    var time: Timestamp?
  }

  private var told: [Place: Told] = [:]

  public init() {}

  /// Compares what is counted now with what was told.
  ///
  /// - `domains`: who has which interface.
  public mutating func alerts(
    _ counts: TrafficCounts, _ domains: [String: DomainDescription], at time: Timestamp
  ) -> [PlatformAlert] {
    told = told.filter { counts.spoofedAtPorts[$0.key.interface] != nil }
    var alerts: [PlatformAlert] = []
    for (interface, kinds) in counts.spoofedAtPorts.sorted(by: { $0.key < $1.key }) {
      for kind in SpoofingKind.allCases {
        let packets = kinds[kind]?.packets ?? 0
        let place = Place(interface: interface, kind: kind)
        var last = told[place] ?? Told()
        // It was counted anew.
        if packets < last.packets { last.packets = 0 }
        let isEarly = last.time.map { time >= $0 && time - $0 < Self.pace } ?? false
        if packets > last.packets, !isEarly, alerts.count < Self.limit {
          alerts.append(Self.alert(place, packets - last.packets, domains[interface], at: time))
          last = Told(packets: packets, time: time)
        }
        if last.time != nil { told[place] = last }
      }
    }
    return alerts
  }

  private static func alert(
    _ place: Place, _ count: UInt64, _ domain: DomainDescription?, at time: Timestamp
  ) -> PlatformAlert {
    let name = domain.map { "\($0.name.escapedForDisplay) " } ?? ""
    return PlatformAlert(
      time: time, incarnation: domain?.incarnation, kind: .spoofingStopped,
      message:
        "\(name)(\(place.interface.escapedForDisplay)): anti-spoofing stopped what is not its own to send "
        + "(\(place.kind.rawValue))",
      count: count)
  }
}
