import NetworkTestSupport
import Testing
import VMFenceCore

@testable import VMFenceNftables

/// Rate limits are objects of the table, one for all ports of a domain.
@Suite("Rate limits", .enabled(if: NetworkNamespace.isPossible, "\(NetworkNamespace.reason)"))
struct LimitTests {
  private func limit(_ rate: UInt32, for domain: DomainUUID = vm1, seconds: Int64? = nil) -> FirewallMeasure {
    FirewallMeasure(
      scope: .domain(domain), kind: .rateLimit(packetsPerSecond: rate), expires: seconds.map { start + .seconds($0) },
      decision: UInt64(rate))
  }

  private func received(_ network: BridgeNetwork, _ guest: NetworkNamespace, _ target: String) throws -> Int {
    let text = try guest.run("ping -n -q -f -c 200 -W 1 \(target) || true")
    return try #require(text.firstMatch(of: /(\d+) received/).flatMap { Int($0.1) })
  }

  @Test("two ports of a domain share one limit: together they send no more than that")
  func shared() async throws {
    let network = try BridgeNetwork("limits")
    let sink = try network.host.inside { try NftablesSink.open(.init(holdsTable: false)) }
    // Both guests of the network are one domain with two ports here.
    try await sink.update(ports: [vm1: [port("vif1.0", 1), port("vif2.0", 2)]])
    try await sink.change(add: [limit(3)])
    #expect(try network.host.run("nft list limits").contains("rate over 3/second"), "a port has a share of it only")
    let begin = ContinuousClock.now
    let received = try received(network, network.vm1, "10.77.0.99") + received(network, network.vm2, "10.77.0.99")
    let seconds = Double((ContinuousClock.now - begin).components.seconds + 1)
    // A full bucket has five, and three come in each second, however long this took. With a limit each, there would be two buckets.
    #expect(Double(received) <= 6 + 3 * seconds, "\(received) in \(seconds) s")
    #expect(received > 0)
    #expect(try await sink.trafficCounts().limited.packets > 0)
  }

  @Test("limits outlive a restart, the lowest one counts, and limits that nobody names any more are taken out")
  func lifecycle() async throws {
    let network = try NetworkNamespace("limits")
    func open() throws -> NftablesSink { try network.inside { try NftablesSink.open(.init(holdsTable: false)) } }
    func names() throws -> [String] {
      try network.run("nft list limits").matches(of: /limit limit-\S*-(\d+)\s/).map { String($0.1) }.sorted()
    }
    var sink: NftablesSink? = try open()
    try await sink?.update(ports: bridgePorts)
    try await sink?.change(add: [limit(10), limit(20, seconds: 600), limit(30), limit(40), limit(7, for: vm2)])
    #expect(try names() == ["10", "20", "30", "40", "7"])
    await #expect("a fifth limit") {
      try await sink?.change(add: [limit(50)])
    } throws: { ($0 as? FirewallError)?.code == .full }
    sink = nil
    let again = try open()
    #expect(again.adoptedMeasures == 5)
    #expect(Set(try await again.readBack(at: start).measures.map(\.decision)) == [10, 20, 30, 40, 7])
    try await again.update(ports: [vm1: [port("vif8.0", 8)]])
    #expect(try network.run("nft list map bridge vmfence limits0").contains("\"vif8.0\""))
    try await again.change(remove: [limit(20).key, limit(7, for: vm2).key])
    try await again.change(add: [limit(50)])
    _ = try await again.readBack(at: start)
    #expect(try names() == ["10", "30", "40", "50"])
    _ = try await again.replace(with: [], at: start)
    #expect(try await again.readBack(at: start).measures.isEmpty)
    #expect(try names().isEmpty)
  }

  @Test("a limit of another's hand is taken out of our maps")
  func strays() async throws {
    let network = try NetworkNamespace("limits")
    let sink = try network.inside { try NftablesSink.open(.init(holdsTable: false)) }
    try await sink.update(ports: bridgePorts)
    try await sink.change(add: [limit(10)])
    try network.run(
      """
      nft add limit bridge vmfence mine '{ rate over 1/second }'
      nft add element bridge vmfence limits1 '{ "vif1.0" : "mine" }'
      """)
    #expect(try await sink.readBack(at: start).measures.map(\.decision) == [10])
    #expect(try !network.run("nft list map bridge vmfence limits1").contains("mine"))
    #expect(try !network.run("nft list limits").contains("mine"))
  }
}
