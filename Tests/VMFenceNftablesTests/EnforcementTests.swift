import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceCore
import VMFenceNftables

/// Measures on a real bridge, with real traffic.
@Suite("What measures do to traffic", .enabled(if: NetworkNamespace.isPossible, "\(NetworkNamespace.reason)"))
struct EnforcementTests {
  private func open(
    _ label: String, _ configuration: NftablesSink.Configuration = .init()
  ) async throws -> (BridgeNetwork, NftablesSink) {
    let network = try BridgeNetwork(label)
    let sink = try network.host.inside { try NftablesSink.open(configuration) }
    try await sink.update(ports: bridgePorts)
    return (network, sink)
  }

  @Test(
    "a block cuts one source from one guest, and nobody else",
    arguments: [
      ("10.77.0.99", "10.77.0.98", "10.77.0.1", "10.77.0.2"), ("fd77::99", "fd77::98", "fd77::1", "fd77::2"),
      ("10.77.0.99/32", "10.77.0.98", "10.77.0.1", "10.77.0.2"), ("fd77::99/127", "fd77::97", "fd77::1", "fd77::2"),
      ("10.77.0.99/31", "10.77.0.97", "10.77.0.1", "10.77.0.2"),
    ])
  func blocksOneSource(blocked: String, other: String, guest: String, neighbour: String) async throws {
    let (network, sink) = try await open("block")
    let source = String(blocked.split(separator: "/")[0])
    let length = source.contains(":") ? "64 dev eth0 nodad" : "24 dev eth0"
    if other.hasSuffix("97") { try network.outside.run("ip addr add \(other)/\(length)") }
    #expect(network.reaches(from: network.outside, guest, as: source), "the network of the test works")
    try await sink.change(add: [block(blocked, for: vm1)])
    #expect(!network.pings(from: network.outside, guest, as: source), "the blocked source still reaches the guest")
    #expect(!network.pings(from: network.vm1, source), "the guest still reaches the blocked source")
    #expect(network.reaches(from: network.outside, neighbour, as: source), "another guest is cut off")
    #expect(network.reaches(from: network.outside, guest, as: other), "another source is cut off")
    #expect(
      network.reaches(from: network.outside, guest.contains(":") ? "fd77::fe" : "10.77.0.254", as: source),
      "the host is cut off")
    let counts = try await sink.trafficCounts()
    #expect((counts.measures[block(blocked, for: vm1).key]?.packets ?? 0) >= 2, "the stopped packets are not counted")
    try await sink.change(remove: [block(blocked, for: vm1).key])
    #expect(network.reaches(from: network.outside, guest, as: source), "the block outlives its removal")
  }

  @Test(
    "a block stops address resolution between the source and the guest too, and between nobody else",
    arguments: ["10.77.0.99", "10.77.0.98/31"])
  func blocksARP(blocked: String) async throws {
    let (network, sink) = try await open("arp")
    /// Whether `address` is found by ARP alone, within some seconds.
    func resolves(_ address: String, from namespace: NetworkNamespace, as own: String, seconds: Int = 60) -> Bool {
      namespace.succeeds(
        "ip neigh flush dev eth0; busybox arping -q -f -c \(seconds) -w \(seconds) -I eth0 -s \(own) \(address)")
    }
    func isHidden(_ address: String, from namespace: NetworkNamespace, as own: String) -> Bool {
      !resolves(address, from: namespace, as: own, seconds: 2)
    }
    #expect(resolves("10.77.0.1", from: network.outside, as: "10.77.0.99"), "the network of the test works")
    try await sink.change(add: [block(blocked, for: vm1)])
    #expect(isHidden("10.77.0.1", from: network.outside, as: "10.77.0.99"), "the source still finds the guest")
    #expect(isHidden("10.77.0.99", from: network.vm1, as: "10.77.0.1"), "the guest still finds the source")
    #expect(resolves("10.77.0.2", from: network.outside, as: "10.77.0.99"), "another guest is not found")
    #expect(resolves("10.77.0.2", from: network.vm1, as: "10.77.0.1"), "the guest does not find another")
    try await sink.change(remove: [block(blocked, for: vm1).key])
    try await sink.change(add: [block(blocked)])
    #expect(isHidden("10.77.0.2", from: network.outside, as: "10.77.0.99"), "a block on the host does not stop it")
    try await sink.change(remove: [block(blocked).key])
    #expect(resolves("10.77.0.1", from: network.outside, as: "10.77.0.99"), "it outlives the block")
  }

  @Test("a block on the host concerns all guests, and not the host itself unless that is wished")
  func blocksOnHost() async throws {
    let (network, sink) = try await open("host")
    try await sink.change(add: [block("10.77.0.99"), block("fd77::/64")])
    for guest in ["10.77.0.1", "10.77.0.2", "fd77::1", "fd77::2"] {
      #expect(!network.pings(from: network.outside, guest, as: guest.contains(":") ? "fd77::99" : "10.77.0.99"))
    }
    #expect(network.reaches(from: network.outside, "10.77.0.254", as: "10.77.0.99"))
    #expect(network.reaches(from: network.outside, "10.77.0.1", as: "10.77.0.98"))
    let strict = try network.host.inside {
      try NftablesSink.open(.init(table: "strict", protectsHost: true, holdsTable: false))
    }
    try await strict.change(add: [block("10.77.0.98")])
    #expect(!network.pings(from: network.outside, "10.77.0.254", as: "10.77.0.98"))
  }

  @Test("an open connection is cut at once, and a block ends by itself")
  func cutsConnections() async throws {
    let (network, sink) = try await open("tcp")
    // The guest sends a byte every 20 ms; the outside counts them in a file.
    let count = FileManager.default.temporaryDirectory.appending(
      path: "vmfence-\(ProcessInfo.processInfo.processIdentifier)-tcp")
    defer { try? FileManager.default.removeItem(at: count) }
    let server = try network.vm1.start(
      "perl -MIO::Socket::INET -e '$s=IO::Socket::INET->new(LocalPort=>7000,Listen=>1,ReuseAddr=>1) or die; $c=$s->accept; "
        + "while(1){syswrite($c,\"x\");select(undef,undef,undef,0.02)}'")
    defer { server.terminate() }
    #expect(await comesTrueSuspending { network.vm1.succeeds("ss -tln | grep -q :7000") })
    let client = try network.outside.start(
      "perl -MIO::Socket::INET -e '$c=IO::Socket::INET->new(PeerAddr=>\"10.77.0.1\",PeerPort=>7000) or die; "
        + "open(F,\">\",\"\(count.path)\"); while(sysread($c,$b,1)){syswrite(F,$b)}'")
    defer { client.terminate() }
    func received() -> Int { (try? Data(contentsOf: count).count) ?? 0 }
    #expect(await comesTrueSuspending { received() > 5 }, "the connection works")
    try await sink.change(add: [block("10.77.0.99", for: vm1)])
    #expect(try await stops(received), "the connection goes on")
    let atCut = received()
    try await sink.change(add: [block("10.77.0.99", for: vm1, seconds: 4)])
    #expect(await comesTrueSuspending { received() > atCut }, "the block does not end by itself")
  }

  @Test("what stands is read whole, each once, while the kernel collects thousands that have run out")
  func readsWhileCollecting() async throws {
    let (network, sink) = try await open("collect")
    let lasting = (0..<2_000).map { block("10.1.\($0 >> 8).\($0 & 255)", for: vm1) }
    let short = (0..<40_000).map { block("10.2.\($0 >> 8).\($0 & 255)", for: vm1, seconds: 2) }
    try await sink.change(add: lasting + short)
    let keys = Set(lasting.map(\.key))
    // The set's table shrinks in steps: what is listed meanwhile has gaps.
    let isCollected = try await comesTrueSuspending {
      let found = try await sink.trafficCounts().measures
      #expect(keys.allSatisfy { found[$0] != nil }, "measures that stand are not read")
      return found.count == lasting.count
    }
    #expect(isCollected)
    try network.host.run("nft add table bridge another")
    #expect(try await Set(sink.readBack(at: start).measures.map(\.key)) == keys)
  }

  @Test("a guest in quarantine speaks to nobody but what is excepted")
  func quarantines() async throws {
    let exceptions = QuarantineExceptions(networks: [IPNetwork("10.77.0.98")!, IPNetwork("fd77::98")!])
    let (network, sink) = try await open("quarantine", .init(quarantineExceptions: exceptions))
    let measure = FirewallMeasure(
      scope: .domain(vm1), kind: .quarantine, expires: start + .seconds(600), decision: 3, comment: "quarantine")
    try await sink.change(add: [measure])
    for address in ["10.77.0.99", "10.77.0.2", "10.77.0.254", "fd77::99", "fd77::2", "fd77::fe"] {
      #expect(!network.pings(from: network.vm1, address), "reaches \(address)")
    }
    #expect(!network.pings(from: network.host, "10.77.0.1"))
    #expect(network.reaches(from: network.vm1, "10.77.0.98"))
    #expect(network.reaches(from: network.vm1, "fd77::98"))
    #expect(network.reaches(from: network.vm2, "10.77.0.99"))
    #expect(try await sink.trafficCounts().quarantined.packets > 0)
    try await sink.change(remove: [measure.key])
    #expect(network.reaches(from: network.vm1, "10.77.0.2"))
  }

  @Test("a rate limit lets that many packets through")
  func limits() async throws {
    let (network, sink) = try await open("limit")
    let measure = FirewallMeasure(
      scope: .domain(vm1), kind: .rateLimit(packetsPerSecond: 10), expires: nil, decision: 4, comment: "")
    // Else packets that wait for the neighbour's address may be lost before the limit sees them.
    #expect(network.reaches(from: network.vm1, "10.77.0.99"), "the network of the test works")
    try await sink.change(add: [measure])
    let begun = ContinuousClock.now
    let text = try network.vm1.run("ping -n -q -f -c 200 -W 1 10.77.0.99 || true")
    let seconds = Int((ContinuousClock.now - begun).components.seconds) + 1
    let received = try #require(text.firstMatch(of: /(\d+) received/).flatMap { Int($0.1) })
    #expect(received > 0 && received <= 20 + 10 * seconds, "\(received) of 200 in a flood of \(seconds) s")
    #expect(network.pings(from: network.vm2, "10.77.0.99", count: 20), "another guest is limited")
    #expect(Int(try await sink.trafficCounts().limited.packets) >= 200 - received - 10)
  }

  @Test("measures move with their domain to a new port, and wait while it has none")
  func moves() async throws {
    let (network, sink) = try await open("move")
    try await sink.change(add: [
      block("10.77.0.99", for: vm1, seconds: 600), block("fd77::/64", for: vm1, seconds: nil),
    ])
    try network.host.run("ip link del vif1.0")
    try await sink.update(ports: [vm2: [port("vif2.0", 2)]])
    #expect(try await sink.readBack(at: start).measures.count == 2, "they are lost without a port")
    try network.attach(network.vm1, port: "vif7.0", number: 1)
    #expect(network.reaches(from: network.outside, "10.77.0.1", as: "10.77.0.99"), "the network of the test works")
    try await sink.update(ports: [vm1: [port("vif7.0", 1)], vm2: [port("vif2.0", 2)]])
    #expect(!network.pings(from: network.outside, "10.77.0.1", as: "10.77.0.99"), "the block did not move")
    #expect(!network.pings(from: network.outside, "fd77::1"), "the network's block did not move")
    let state = try await sink.readBack(at: start)
    #expect(state.measures.map(\.key) == [block("10.77.0.99", for: vm1).key, block("fd77::/64", for: vm1).key])
    let left = try #require(state.measures[0].expires) - start
    #expect(left > .seconds(400) && left <= .seconds(600), "\(left) is left of 600 s")
    #expect(state.measures[1].expires == nil)
  }
}
