import NetworkTestSupport
import TestSupport
import Testing
import VMFenceCore

@testable import VMFenceNftables

/// Frames to the bridge's own group addresses, which no hook of the bridge family sees in time.
@Suite("The bridge itself is not spoken to", .enabled(if: NetworkNamespace.isPossible, "\(NetworkNamespace.reason)"))
struct PortChainTests {
  private static let lldp: [UInt8] = [0x01, 0x80, 0xC2, 0x00, 0x00, 0x0E]

  /// A frame of vm1's port that says it is vm2's.
  private func forge(_ network: BridgeNetwork) throws {
    let sender = try PacketEndpoint(network.vm1)
    let source = Frames.bytes(Frames.vm2MAC)
    try sender.send(Self.lldp + source + [0x88, 0xCC] + [UInt8](repeating: 0, count: 46))
  }

  /// The port that the bridge takes vm2 to be at.
  private func place(_ network: BridgeNetwork) throws -> String {
    let table = try network.host.run("bridge fdb show br xenbr0")
    let line = table.split(separator: "\n").first { $0.hasPrefix("02:77:00:00:00:02 ") && !$0.contains("permanent") }
    let words = line?.split(separator: " ") ?? []
    return words.firstIndex(of: "dev").map { String(words[$0 + 1]) } ?? ""
  }

  /// Whether a forged frame moves vm2 to vm1's port. It is sent at each look: what vm2's kernel sends of itself
  /// (router solicitations, reports of groups) moves it back.
  private func takesOver(_ network: BridgeNetwork) async throws -> Bool {
    try await comesTrueSuspending {
      try forge(network)
      return try place(network) == "vif1.0"
    }
  }

  private func chains(_ network: BridgeNetwork) throws -> [String] {
    let tables = try network.host.run("nft list ruleset netdev 2>/dev/null || nft list ruleset")
    return tables.split(separator: "\n").filter { $0.contains("hook ingress") }.compactMap { line in
      line.split(separator: "\"").dropFirst().first.map(String.init)
    }.sorted()
  }

  /// What is told of what was stopped at ports, from the beginning: frames by interface.
  private func told(by sink: NftablesSink) async throws -> [String: UInt64] {
    var alerts = SpoofingAlerts()
    var told: [String: UInt64] = [:]
    let counts = try await sink.trafficCounts(ofMeasures: false)
    let domains = bridgePorts.reduce(into: [String: DomainDescription]()) { domains, ports in
      let incarnation = Incarnation(uuid: ports.key, domainID: DomainID(1))
      for port in ports.value {
        domains[port.interface] = DomainDescription(incarnation: incarnation, name: "vm", ports: ports.value)
      }
    }
    for alert in alerts.alerts(counts, domains, at: start) where alert.kind == .spoofingStopped {
      let place = domains.first { $0.value.incarnation == alert.incarnation && alert.message.contains("(mac)") }
      told[place?.key ?? "nobody", default: 0] += alert.count
    }
    return told
  }

  @Test("a guest does not take over another's address by a frame to the bridge, and it is counted")
  func takeover() async throws {
    let network = try BridgeNetwork("port-takeover")
    #expect(network.reaches(from: network.vm2, "10.77.0.99"))
    #expect(try place(network) == "vif2.0")
    #expect(try await takesOver(network), "nothing is wrong without anti-spoofing")
    #expect(network.reaches(from: network.vm2, "10.77.0.99"))
    let sink = try network.host.inside { try NftablesSink.open() }
    #expect(sink.features.hasIngressHook)
    try await sink.update(ports: bridgePorts, antiSpoofing: AntiSpoofing())
    try forge(network)
    #expect(try await comesTrueSuspending { try await sink.trafficCounts().spoofed[.mac]?.packets == 1 })
    #expect(try place(network) == "vif2.0")
    #expect(try await told(by: sink) == ["vif1.0": 1])
    for _ in 0..<2 { try forge(network) }
    #expect(try await comesTrueSuspending { try await sink.trafficCounts().spoofed[.mac]?.packets == 3 })
    #expect(try await told(by: sink) == ["vif1.0": 3])
    #expect(network.reaches(from: network.outside, "10.77.0.2") && network.reaches(from: network.vm1, "10.77.0.2"))
    try await sink.update(ports: bridgePorts, antiSpoofing: AntiSpoofing(exceptions: [vm1: [.mac]]))
    #expect(try await takesOver(network), "an exception for the domain opens nothing")
  }

  @Test("a guest in quarantine reaches neither the bridge's memory nor the host, whatever it may pretend")
  func quarantine() async throws {
    let network = try BridgeNetwork("port-quarantine")
    let sink = try network.host.inside { try NftablesSink.open() }
    try await sink.update(ports: bridgePorts)
    #expect(try chains(network) == [])
    let measure = FirewallMeasure(
      scope: .domain(vm1), kind: .quarantine, expires: nil, decision: 1, comment: "")
    try await sink.change(add: [measure])
    #expect(try chains(network) == ["vif1.0"])
    #expect(network.reaches(from: network.vm2, "10.77.0.99"))
    let host = try PacketEndpoint(network.host, "vif1.0")
    try forge(network)
    // It is seen at the port, where guests' packets are captured.
    #expect(host.receives(within: 60_000) { Array($0.prefix(6)) == Self.lldp })
    #expect(try await comesTrueSuspending { try await sink.trafficCounts().spoofed[.mac]?.packets == 1 })
    #expect(try place(network) == "vif2.0")
    #expect(try await told(by: sink) == [:], "it may speak to the bridge, but for the quarantine")
    try await sink.change(remove: [measure.key])
    try await sink.update(ports: bridgePorts)
    #expect(try chains(network) == [])
  }

  @Test("interfaces that are not there yet, are made anew, or go are followed")
  func interfaces() async throws {
    let network = try BridgeNetwork("port-interfaces")
    let sink = try network.host.inside { try NftablesSink.open() }
    let guest = try NetworkNamespace("port-interfaces-vm3")
    let vm3 = DomainUUID(high: 3, low: 3)
    let ports = bridgePorts.merging([vm3: [port("vif3.0", 3)]]) { $1 }
    try await sink.update(ports: ports, antiSpoofing: AntiSpoofing())
    #expect(try chains(network) == ["vif1.0", "vif2.0"])
    for _ in 0..<2 {
      try network.attach(guest, port: "vif3.0", number: 3)
      try await sink.update(ports: ports, antiSpoofing: AntiSpoofing())
      #expect(try chains(network) == ["vif1.0", "vif2.0", "vif3.0"])
      let number = try network.host.run("cat /sys/class/net/vif3.0/ifindex").split(separator: "\n")[0]
      #expect(try network.host.run("nft list table netdev vmfence").contains("chain port-\(number)-vif3.0 {"))
      try network.host.run("ip link del vif3.0")
    }
    try await sink.update(ports: ports, antiSpoofing: AntiSpoofing())
    #expect(try !network.host.run("nft list table netdev vmfence").contains("vif3.0"))
    #expect(try chains(network) == ["vif1.0", "vif2.0"])
    // A guard is no measure: a block goes its way as ever.
    try await sink.change(add: [block("10.77.0.99", for: vm1)])
    #expect(!network.pings(from: network.vm1, "10.77.0.99") && network.reaches(from: network.vm2, "10.77.0.99"))
  }

  @Test("chains stay when the sink ends, and one that comes after it goes on with them")
  func adoption() async throws {
    let network = try BridgeNetwork("port-adoption")
    do {
      let sink = try network.host.inside { try NftablesSink.open() }
      try await sink.update(ports: bridgePorts, antiSpoofing: AntiSpoofing())
    }
    #expect(try chains(network) == ["vif1.0", "vif2.0"])
    let sink = try network.host.inside { try NftablesSink.open() }
    #expect(try chains(network) == ["vif1.0", "vif2.0"])
    let before = sink.transactions
    try await sink.update(ports: [vm2: [port("vif2.0", 2)]], antiSpoofing: AntiSpoofing())
    #expect(try chains(network) == ["vif2.0"])
    #expect(sink.transactions == before + 2, "chains that are right already are written again")
  }

  @Test("chains that somebody deletes come back with the next reading, and it is told")
  func mended() async throws {
    let network = try BridgeNetwork("port-mended")
    let sink = try network.host.inside { try NftablesSink.open(.init(holdsTable: false)) }
    try await sink.update(ports: bridgePorts, antiSpoofing: AntiSpoofing())
    for command in ["nft delete table netdev vmfence", "nft flush ruleset"] {
      var changes = sink.changesByOthers().makeAsyncIterator()
      try network.host.run(command)
      #expect(try chains(network) == [])
      #expect(await changes.next()?.kind == .tableDeleted)
      _ = try await sink.readBack(at: start)
      #expect(try chains(network) == ["vif1.0", "vif2.0"])
    }
  }
}
