import Testing
import ToyEngine
import VMFenceCore
import VMFenceTestKit

@Suite("A domain's counts in parts")
struct DomainSharesTests {
  private let web = DomainDescription.numbered(1)

  @Test("traffic is counted by port, 64 of them and the others as one, and all of it is there")
  func ports() {
    var traffic = TrafficByPort()
    for round in 1...3 {
      for number in 0..<100 { traffic.add(PortID(UInt32(number)), bytes: round) }
    }
    traffic.add(PortID(5), bytes: 10)
    #expect(traffic.ports.count == 65)
    #expect(traffic.ports.map(\.port) == (0..<64).map { PortID($0) } + [nil])
    #expect(traffic.ports[4].packets == 3 && traffic.ports[4].bytes == 6)
    #expect(traffic.ports[5].packets == 4 && traffic.ports[5].bytes == 16)
    #expect(traffic.ports[64].packets == 3 * 36 && traffic.ports[64].bytes == 6 * 36)
    var again = TrafficByPort(traffic.ports)
    again.add(PortID(99), bytes: 1)
    again.add(PortID(63), bytes: 1)
    #expect(again.ports.count == 65 && again.ports[64].packets == 109 && again.ports[63].packets == 4)
  }

  @Test("alerts are counted by class, 64 of them and the others as one, and so are those with names that are too long")
  func classes() {
    var alerts = AlertsByClass()
    alerts.add("")
    alerts.add("")
    let long = String(repeating: "a", count: AlertsByClass.nameLimit)
    alerts.add(long)
    alerts.add(long + "a")
    #expect(alerts.counts == ["none": 2, long: 1, "other": 1])
    for number in 0..<100 { alerts.add("class-\(number)") }
    alerts.add("class-0")
    alerts.add("class-99")
    #expect(alerts.counts.count <= AlertsByClass.limit + 1)
    #expect(alerts.counts["class-0"] == 2 && alerts.counts["class-99"] == nil)
    #expect(alerts.counts.values.reduce(0, +) == 106)
  }

  @Test("a domain's report has the parts, also once it has ended, and they go on when it is present after all")
  func reports() throws {
    let rig = PoolRig([1: ToyRules([(.alert, 7)])])
    try rig.happen(.create(web), at: 0)
    func send(_ port: UInt32, _ bytes: [UInt8], at seconds: Double) {
      rig.at(seconds)
      bytes.withRawSpan {
        rig.pool.deliver(
          to: rig.slot(web) ?? -1,
          FrameMetadata(timestamp: .at(seconds), port: PortID(port), originalLength: UInt32(bytes.count)), $0)
      }
    }
    func told() -> [[UInt64]] {
      rig.report(web)?.ports.map { [UInt64($0.port?.rawValue ?? .max), $0.packets, $0.bytes] } ?? []
    }
    send(3, [7, 1], at: 1)
    send(4, [1, 1, 1], at: 1)
    send(3, [7], at: 1)
    rig.drain()
    #expect(told() == [[3, 2, 3], [4, 1, 3]] && rig.report(web)?.alertsByClass == ["none": 2])
    #expect(rig.counters(web).packets == 3 && rig.counters(web).alerts == 2)
    try rig.happen(.destroy(web.incarnation), at: 2)
    rig.drain()
    #expect(rig.state(web) == .ended && told() == [[3, 2, 3], [4, 1, 3]])
    try rig.happen(.create(web), at: 3)
    send(4, [7], at: 3)
    rig.drain()
    #expect(told() == [[3, 2, 3], [4, 2, 4]] && rig.report(web)?.alertsByClass == ["none": 3])
    rig.pool.close(at: .at(4))
  }
}
