import Testing
import VMFenceCore
import VMFenceNftables

@Suite("What anti-spoofing stops is told")
struct SpoofingAlertsTests {
  private func counts(_ ports: [String: [SpoofingKind: UInt64]]) -> TrafficCounts {
    var counts = TrafficCounts()
    counts.spoofedAtPorts = ports.mapValues { kinds in
      kinds.mapValues { packets in
        var count = TrafficCount()
        count.packets = packets
        return count
      }
    }
    return counts
  }

  private let web = DomainDescription(
    incarnation: Incarnation(uuid: vm1, domainID: DomainID(1)), name: "web\u{7}",
    ports: [port("vif1.0", 1)])

  @Test("at once, then at a pace while more is stopped, each packet counted once")
  func paced() {
    var alerts = SpoofingAlerts()
    func told(_ ports: [String: [SpoofingKind: UInt64]], _ seconds: Int64) -> [PlatformAlert] {
      alerts.alerts(counts(ports), ["vif1.0": web], at: start + .seconds(seconds))
    }
    #expect(told([:], 0).isEmpty)
    let first = told(["vif1.0": [.dhcp: 3]], 10)
    #expect(first.count == 1 && first[0].count == 3 && first[0].kind == .spoofingStopped)
    #expect(first[0].incarnation == web.incarnation)
    #expect(first[0].message.contains("web\\u{7} (vif1.0)") && first[0].message.contains("(dhcp)"))
    // Another kind does not wait for the first one.
    let second = told(["vif1.0": [.dhcp: 5, .router: 1]], 20)
    #expect(second.map(\.count) == [1] && second[0].message.contains("(router)"))
    #expect(told(["vif1.0": [.dhcp: 9, .router: 1]], 69).isEmpty)
    #expect(told(["vif1.0": [.dhcp: 9, .router: 1]], 70).map(\.count) == [6])
    #expect(told(["vif1.0": [.dhcp: 9, .router: 1]], 1_000).isEmpty, "nothing more was stopped")
    // The port was guarded anew.
    #expect(told(["vif1.0": [.dhcp: 2]], 2_000).map(\.count) == [2])
    #expect(told([:], 2_010).isEmpty)
    #expect(told(["vif1.0": [.dhcp: 1]], 2_020).map(\.count) == [1])
    // Whose port it is may not be known any more.
    let unknown = told(["vif9.0": [.mac: 1]], 2_030)
    #expect(unknown.map(\.incarnation) == [nil] && unknown[0].message.contains("(vif9.0)"))
  }

  @Test("so many at a time, and nobody is left out")
  func bounded() {
    var alerts = SpoofingAlerts()
    let ports = Dictionary(
      uniqueKeysWithValues: (0..<40).map { ("vif\($0).0", [SpoofingKind.arp: UInt64($0 + 1)]) })
    var told: [PlatformAlert] = []
    for turn in 0..<3 as Range<Int64> {
      let now = alerts.alerts(counts(ports), [:], at: start + .seconds(10 * turn))
      #expect(now.count == (turn < 2 ? SpoofingAlerts.limit : 8))
      told += now
    }
    #expect(told.reduce(0) { $0 + $1.count } == (1...40).reduce(0, +))
    #expect(Set(told.map(\.message)).count == 40)
  }
}
