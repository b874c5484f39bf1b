import NetworkTestSupport
import TestSupport
import Testing
import VMFenceCore

@testable import VMFenceNftables

/// What others do to our table, and what we do when it is not ours.
@Suite("Others at the packet filter", .enabled(if: NetworkNamespace.isPossible, "\(NetworkNamespace.reason)"))
struct OthersTests {
  private let network: NetworkNamespace
  init() throws { network = try NetworkNamespace("others") }

  private func open(_ configuration: NftablesSink.Configuration) throws -> NftablesSink {
    try network.inside { try NftablesSink.open(configuration) }
  }

  @Test(
    "what somebody else does is told, with who did it, and mended by reconciling",
    arguments: [
      ("nft flush ruleset", ForeignChange.Kind.tableDeleted), ("nft delete table bridge vmfence", .tableDeleted),
      ("nft flush table bridge vmfence", .changed), ("nft flush set bridge vmfence block4", .changed),
      ("nft delete element bridge vmfence block4 '{ \"vif1.0\" . 10.77.0.99 }'", .changed),
      ("nft insert rule bridge vmfence forward accept", .changed),
    ])
  func drift(command: String, kind: ForeignChange.Kind) async throws {
    let sink = try open(.init(holdsTable: false))
    try await sink.update(ports: bridgePorts)
    let measures = [
      block("10.77.0.99", for: vm1), block("fd77::/64", seconds: nil, decision: 2),
      block("10.77.0.99", for: vm2, decision: 3),
    ]
    try await sink.change(add: measures)
    let stream = sink.changesByOthers()
    try network.run(command)
    var seen = stream.makeAsyncIterator()
    let change = try #require(await seen.next())
    #expect(change.kind == kind)
    #expect(change.process == "nft" && change.processID > 0)
    #expect(change.description == "nft (process \(change.processID)) \(kind.rawValue)")
    // The coordinator's own reconciling: read back, compare, mend, say so.
    let before = try await sink.readBack(at: start)
    #expect(before.measures.count < 3, "nothing is missed")
    let missing = measures.filter { measure in !before.measures.contains { $0.key == measure.key } }
    _ = try await sink.apply(FirewallChange(from: before.generation, time: start, add: missing))
    #expect(Set(try await sink.readBack(at: start).measures.map(\.key)) == Set(measures.map(\.key)))
    #expect(try network.run("nft list table bridge vmfence").contains("10.77.0.99"))
  }

  @Test("a change made when the table is gone is refused as out of date, and the table is there again")
  func changeWithoutTable() async throws {
    let sink = try open(.init(holdsTable: false))
    let generation = try await sink.change(add: [block("10.77.0.1")])
    try network.run("nft flush ruleset")
    await #expect("a change to a table that is gone") {
      _ = try await sink.apply(FirewallChange(from: generation, time: start, add: [block("10.77.0.2")]))
    } throws: { ($0 as? FirewallError)?.code == .conflict }
    try await sink.change(add: [block("10.77.0.2")])
    #expect(try await sink.readBack(at: start).measures.map(\.key) == [block("10.77.0.2").key])
  }

  @Test("elements that others put into our sets are taken out; what is outside the table is not touched")
  func strays() async throws {
    try network.run("nft add table bridge other; nft add table inet vmfence; nft add chain bridge other mine")
    let sink = try open(.init(holdsTable: false))
    try await sink.change(add: [block("10.77.0.1")])
    try network.run("nft add element bridge vmfence hostblock4 '{ 10.77.0.254 }'")
    #expect(try await sink.readBack(at: start).measures.map(\.key) == [block("10.77.0.1").key])
    #expect(try !network.run("nft list set bridge vmfence hostblock4").contains("10.77.0.254"))
    _ = try await sink.replace(with: [], at: start)
    let tables = try network.run("nft list tables")
    #expect(tables.contains("table bridge other") && tables.contains("table inet vmfence"))
    #expect(try network.run("nft list table bridge other").contains("chain mine"))
  }

  @Test("a listing is whole whether the kernel says how many elements there are, says nothing, or counts others, too")
  func listings() async throws {
    let sink = try open(.init(holdsTable: false))
    try await sink.update(ports: bridgePorts)
    let measures =
      (0..<500).map { block("10.78.\($0 / 250).\($0 % 250)", for: vm1, decision: $0 + 1) }
      + (0..<100).map { block("fd78:0:0:\($0)::/64", seconds: nil, decision: $0 + 600) }
    try await sink.change(add: measures)
    try network.inside {
      let features = KernelFeatures(
        canOwnTables: false, canRejectInBridge: false, knowsBridgeNames: false, canRejectInNetdev: false,
        hasIngressHook: false)
      var contents = try SinkContents(
        .init(holdsTable: false), socket: NetlinkSocket.open(), batch: Batch.make(), features)
      var image = try #require(try contents.readTable())
      let counts = image.elementCounts
      #expect(counts.isEmpty || counts["block4"] == 500 && counts["hostnet6-64"] == 100)
      for said in [counts, [:], counts.mapValues { $0 + 1 }] {
        image.elementCounts = said
        let elements = try contents.readElements(of: image)
        #expect(elements.count == 600 && Set(elements.compactMap(\.measureKey)) == Set(measures.map(\.key)))
      }
    }
  }

  @Test(
    "elements are counted without being read: as the kernel counts them, or, where it does not, as they were written if nobody else has changed anything"
  )
  func counts() async throws {
    let sink = try open(.init(holdsTable: false))
    try await sink.update(ports: [vm1: [port("vif1.0", 1), port("vif1.1", 2)]])
    let measures = [
      block("10.77.0.99", for: vm1), block("fd77::/64", for: vm2, seconds: nil), block("10.78.0.0/16"),
      FirewallMeasure(scope: .domain(vm1), kind: .quarantine, expires: nil, decision: 2),
      FirewallMeasure(scope: .domain(vm1), kind: .rateLimit(packetsPerSecond: 9), expires: nil, decision: 3),
    ]
    try await sink.change(add: measures)
    /// What a kernel that counts nothing lets one know.
    func written() throws -> Int? {
      try sink.contents.withLock { contents throws(NetlinkError) in
        guard var image = try contents.readTable() else { return nil }
        image.elementCounts = [:]
        return try contents.countElements(of: image)
      }
    }
    func counted() async throws -> Int? { try await sink.trafficCounts(ofMeasures: false).elements }
    // Two at the ports of the first guest each; one each for the host, and for the guest that has no port.
    #expect(try written() == 8)
    #expect(try await counted() == 8)
    try network.run("nft delete element bridge vmfence block4 '{ \"vif1.0\" . 10.77.0.99 }'")
    #expect(try written() == nil, "what others changed is not known")
    let without = try await counted()
    #expect(without == 7 || without == nil, "\(String(describing: without))")
    try await sink.change(add: [measures[0]])
    #expect(try await counted() == 8)
    // A measure of which a part was missing is believed once it was read.
    _ = try await sink.readBack(at: start)
    #expect(try written() == 8)
    _ = try await sink.replace(with: [], at: start)
    #expect(try written() == 0)
    #expect(try await counted() == 0)
  }

  @Test("an owned table cannot be flushed by others, outlives its owner, and is taken over with its measures")
  func ownership() async throws {
    var sink: NftablesSink? = try open(.init())
    guard try #require(sink).features.canOwnTables else { return }
    try await sink?.update(ports: bridgePorts)
    let measures = [
      block("10.77.0.99", for: vm1), block("10.0.0.0/8", for: vm2, decision: 2),
      block("10.1.0.0/16", for: vm2, decision: 3),
      block("fd77::99", decision: 4),
      FirewallMeasure(scope: .domain(vm1), kind: .quarantine, expires: nil, decision: 5, comment: "sid 1:2"),
      FirewallMeasure(
        scope: .domain(vm1), kind: .rateLimit(packetsPerSecond: 7), expires: start + .seconds(60), decision: 6),
      FirewallMeasure(
        scope: .domain(vm1), kind: .rateLimit(packetsPerSecond: 9), expires: start + .seconds(60), decision: 7),
    ]
    try await sink?.change(add: measures)
    try network.run("nft flush ruleset")
    #expect(try await sink?.readBack(at: start).measures.count == 7, "the owned table was flushed")
    #expect("a second owner of the table") {
      _ = try open(.init())
    } throws: { error in
      let error = error as? FirewallError
      return error?.code == .inUse && error?.message.contains("another process owns") == true
    }
    sink = nil
    let again = try open(.init())
    #expect(again.adoptedMeasures == 7)
    let state = try await again.readBack(at: start)
    #expect(state.measures.map(\.key) == measures.map(\.key))
    #expect(state.measures.map(\.decision) == [1, 2, 3, 4, 5, 6, 7])
    #expect(state.measures[0].comment == "sid 1:1000001")
    #expect(try #require(state.measures[5].expires) > start + .seconds(50))
    let text = try network.run("nft list table bridge vmfence")
    #expect(text.contains("\"vif1.0\" comment \"sid 1:2 decision 5\" : jump quarantine"), "nft shows:\n\(text)")
    #expect(text.contains("\"vif2.0\" . 10.1.0.0 counter packets 0"))
    #expect(text.contains("fd77::99 counter packets 0"), "nft shows:\n\(text)")
  }

  @Test("a hook is entered only from the first measure that needs it, and a table that is right is not made anew")
  func hooksOnDemand() async throws {
    var sink: NftablesSink? = try open(.init(holdsTable: false))
    func hooks() throws -> Set<String> {
      let text = try network.run("nft list chains bridge")
      return Set(
        text.matches(of: /hook ([a-z]+) priority -100|hook ([a-z]+) priority filter - 100/).map {
          String($0.1 ?? $0.2 ?? "")
        })
    }
    #expect(try hooks() == [], "frames enter chains without rules")
    try await sink?.change(add: [block("fd77::99", for: vm1)])
    #expect(try hooks() == ["forward"])
    #expect(try !network.run("nft list chain bridge vmfence forward").contains("jump block4"))
    try await sink?.change(add: [block("10.77.0.99", for: vm1)])
    #expect(try network.run("nft list chain bridge vmfence forward").contains("jump block4"))
    try await sink?.change(add: [
      FirewallMeasure(
        scope: .domain(vm1), kind: .rateLimit(packetsPerSecond: 7), expires: nil, decision: 6, comment: "")
    ])
    #expect(try hooks() == ["forward", "prerouting"])
    try await sink?.change(add: [
      FirewallMeasure(scope: .domain(vm1), kind: .quarantine, expires: nil, decision: 5, comment: "")
    ])
    #expect(try hooks() == ["forward", "prerouting", "input", "output"])
    let before = try network.run("nft -a list chain bridge vmfence forward")
    sink = nil
    let again = try open(.init(holdsTable: false))
    #expect(again.adoptedMeasures == 4)
    #expect(try network.run("nft -a list chain bridge vmfence forward") == before, "the rules were written again")
  }

  @Test("a table of another version is made anew with the measures of the old one")
  func otherVersion() async throws {
    var sink: NftablesSink? = try open(.init(holdsTable: false))
    try await sink?.change(add: [block("10.77.0.99", for: vm1), block("fd77::/64")])
    sink = nil
    try network.run("nft flush chain bridge vmfence forward")
    let again = try open(.init(holdsTable: false))
    #expect(again.adoptedMeasures == 2)
    #expect(try await again.readBack(at: start).measures.count == 2)
    #expect(try network.run("nft list chain bridge vmfence forward").contains("jump block4"))
  }

  private func expectHeld(_ error: FirewallError?, _ family: String) throws {
    #expect(error?.code == .inUse)
    let message = error?.message ?? ""
    let named = try #require(message.firstMatch(of: /another process owns table ([a-z]+) vmfence: nft \(process \d+\)/))
    #expect(named.1 == family, "\(message)")
    #expect(error?.remedy.contains("another table") == true)
  }

  @Test("a process that holds one of the tables is named, and which table", arguments: ["bridge", "netdev"])
  func holder(family: String) async throws {
    defer { _ = try? NetworkNamespace.shell("ip netns pids \(network.name) | xargs -r kill -9") }
    try network.ownTable(family)
    try expectHeld(#expect(throws: FirewallError.self) { try open(.init()) }, family)
  }

  @Test("a process that made itself the table of the ports since the start is named when that is needed")
  func laterHolder() async throws {
    let sink = try open(.init())
    guard sink.features.hasIngressHook, sink.features.canOwnTables else { return }
    defer { _ = try? NetworkNamespace.shell("ip netns pids \(network.name) | xargs -r kill -9") }
    try network.ownTable("netdev")
    try network.run("ip link add vif1.0 type veth peer name eth0")
    let error = await #expect(throws: FirewallError.self) {
      try await sink.update(ports: bridgePorts, antiSpoofing: AntiSpoofing())
    }
    // Whoever asks is in another namespace here, so the process cannot be found.
    #expect(error?.code == .inUse && error?.message.contains("another process owns table netdev vmfence: ") == true)
  }

  @Test(
    "a kernel without nftables, or without netfilter, is called that",
    arguments: [
      (SystemCallRefusal.netlinkSocket, 93, "no netfilter"), (.netlinkSocket, 97, "no netfilter"),
      (.netlinkSocket, 1, "cannot open the packet filter"), (.netlinkSocket, 12, "no room"),
    ] as [(SystemCallRefusal, Int32, String)])
  func otherKernel(refusal: SystemCallRefusal, number: Int32, words: String) throws {
    // A filter for one thread's system calls (seccomp(2)) stands for the other kernel.
    let error = try onThread(refusing: refusal, with: number) { () -> FirewallError? in
      do throws(FirewallError) {
        _ = try NftablesSink.open()
        return nil
      } catch { return error }
    }
    #expect(error?.message.contains(words) == true, "\(String(describing: error))")
    #expect(error?.remedy.isEmpty == false)
    #expect(number != 93 || error?.code == .unsupported)
  }

  @Test("what the kernel says of families that it has not is called that")
  func withoutBridgeFamily() {
    for number in [95, 93, 97] as [Int32] {
      let error = FirewallError(.refused(number, ""), during: "open the packet filter", table: "vmfence")
      #expect(error.code == .unsupported && error.message.contains("no nftables for bridges"))
      #expect(error.remedy.contains("CONFIG_NF_TABLES_BRIDGE"))
    }
  }

  @Test("without the permission the capability is named")
  func permission() throws {
    // The network namespace belongs to the first user namespace; a process in another one has no power over it.
    let error = #expect(throws: FirewallError.self) {
      try network.inside { try withoutNetworkAdministration { try NftablesSink.open() } }
    }
    #expect(error?.code == .permissionDenied)
    #expect(error?.message.contains("lacks the capability CAP_NET_ADMIN") == true)
    #expect(error?.remedy.contains("AmbientCapabilities") == true)
  }

  @Test("every comment is printable, whatever it was")
  func comments() async throws {
    let sink = try open(.init())
    var measure = block("10.77.0.1")
    measure.comment = "a\"b\\c\u{1b}[31m\n" + String(repeating: "x", count: 300)
    try await sink.change(add: [measure])
    let text = try network.run("nft list set bridge vmfence hostblock4")
    #expect(text.contains("comment \"a?b?c?[31m?x"))
    #expect(text.contains("decision 1"))
    #expect(try await sink.readBack(at: start).measures.first?.decision == 1)
  }
}
