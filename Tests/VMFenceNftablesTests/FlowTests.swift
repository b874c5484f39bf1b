import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceCore
import VMFenceNftables

@Suite("Flows are cut and reset", .enabled(if: NetworkNamespace.isPossible, "\(NetworkNamespace.reason)"))
struct FlowTests {
  /// Two ends of a TCP connection between the outside and vm1, that write down what becomes of it.
  private final class Connection {
    private let folder: URL
    private let server: Process
    private let client: Process
    private let port: Int

    /// - `requests`: how many the client makes, twenty in a second.
    init(_ network: BridgeNetwork, port: Int, guest: String, source: String, requests: Int = 10_000) async throws {
      self.port = port
      folder = FileManager.default.temporaryDirectory.appending(path: "vmfence-flow-\(UUID().uuidString)")
      try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
      let ends =
        "sub finish { my $e=\"$!\"; open(F,\">\",$_[0]); print F $e; close F; exit } "
        + "sub talk { my ($s,$f,$n)=@_; while(1){ defined sysread($s,$b,100) or finish($f); length $b or finish($f); "
        + "open(N,\">>\",$n); print N $b; close N; } } "
      let server = folder.appending(path: "server").path
      let client = folder.appending(path: "client").path
      self.server = try network.vm1.start(
        "perl -MIO::Socket::IP -e '\(ends) $l=IO::Socket::IP->new(LocalHost=>\"\(guest)\",LocalPort=>\(port),Listen=>1,"
          + "ReuseAddr=>1) or die; $s=$l->accept; talk($s,\"\(server)\",\"\(server).data\")'")
      #expect(await comesTrueSuspending { network.vm1.succeeds("ss -tln | grep -q :\(port)") })
      self.client = try network.outside.start(
        "perl -MIO::Socket::IP -e '\(ends) $s=IO::Socket::IP->new(PeerHost=>\"\(guest)\",PeerPort=>\(port),"
          + "LocalHost=>\"\(source)\") or die; if(fork){talk($s,\"\(client)\",\"\(client).data\")} "
          + "for(1..\(requests)){syswrite($s,\"GET /\(port) \") or exit; select(undef,undef,undef,0.05)}'")
      #expect(await comesTrueSuspending { self.received > 20 }, "the connection works")
    }

    /// How many bytes the server got.
    var received: Int { (try? Data(contentsOf: folder.appending(path: "server.data")).count) ?? 0 }
    /// The error that an end's connection ended with.
    func error(of end: String) -> String? { try? String(contentsOf: folder.appending(path: end), encoding: .utf8) }

    deinit {
      server.terminate()
      client.terminate()
      try? FileManager.default.removeItem(at: folder)
    }
  }

  private func refused(
    _ frame: [UInt8], _ verdict: Verdict = .reject, _ direction: FrameDirection = .toGuest
  ) -> RefusedPacket {
    let incarnation = Incarnation(uuid: vm1, domainID: DomainID(1))
    let metadata = FrameMetadata(
      timestamp: start, port: PortID(0), direction: direction, checksums: .unknown, linkType: .ethernet,
      strippedVLAN: 0, originalLength: UInt32(frame.count))
    return RefusedPacket(
      incarnation: incarnation, verdict: verdict, rule: RuleMetadata(sid: 1_000_001, action: .reject), frame: metadata,
      head: Array(frame.prefix(RefusedPacket.headBytes)))
  }

  private func contains(_ text: String) -> ([UInt8]) -> Bool {
    { String(decoding: $0, as: UTF8.self).contains(text) }
  }

  @Test(
    "a flow is cut in both directions at once, others between the same ends are not, and it ends on time",
    arguments: [("10.77.0.1", "10.77.0.99"), ("fd77::1", "fd77::99")])
  func cut(guest: String, source: String) async throws {
    let network = try BridgeNetwork("flow")
    let sink = try network.host.inside { try NftablesSink.open() }
    try await sink.update(ports: bridgePorts)
    let tap = try PacketEndpoint(network.vm1)
    let first = try await Connection(network, port: 7_001, guest: guest, source: source)
    let second = try await Connection(network, port: 7_002, guest: guest, source: source)
    func flow(_ port: Int) throws -> FlowCut {
      var seen: [UInt8] = []
      let isSeen = tap.receives(within: 60_000) { frame in
        seen = frame
        return contains("GET /\(port)")(frame)
      }
      return try #require(isSeen ? FlowCut(refused(seen, .drop)) : nil)
    }
    let (long, short) = try (flow(7_001), flow(7_002))
    #expect(try await sink.cut([long, long], for: .seconds(600)).cut == 1)
    #expect(try await sink.cut([long], for: .seconds(600)).cut == 0, "a flow that is cut is cut again")
    #expect(try network.host.run("nft list table bridge vmfence").contains(source), "nft(8) can list it")
    let hasStopped = await comesTrueSuspending {
      // While the other one makes ten requests more. What its end has yet to read may come late.
      let (before, other) = (first.received, second.received)
      return await comesTrueSuspending { second.received >= other + 100 } && first.received == before
    }
    #expect(hasStopped, "the flow goes on, or another one is cut with it")
    #expect(first.error(of: "server") == nil && first.error(of: "client") == nil, "nobody said reset")
    #expect(try await sink.cut([short], for: .seconds(4)).cut == 1)
    func isListed() throws -> Bool { try network.host.run("nft list table bridge vmfence").contains(/\b7002\b/) }
    #expect(try await comesTrueSuspending { try !isListed() }, "the cut does not end")
    let cut = second.received
    #expect(await comesTrueSuspending { second.received > cut }, "the flow does not go on")
    #expect(try await sink.readBack(at: start).measures.isEmpty, "a flow is no measure")
  }

  @Test(
    "a reset from the refused packet ends the connection at both of its ends",
    arguments: [("10.77.0.1", "10.77.0.99"), ("fd77::1", "fd77::99")])
  func reset(guest: String, source: String) async throws {
    let network = try BridgeNetwork("reset")
    let sink = try network.host.inside { try NftablesSink.open() }
    let sender = try network.host.inside { try ResetSender.open() }
    try await sink.update(ports: bridgePorts)
    let tap = try PacketEndpoint(network.vm1)
    // Its last packet: one before says nothing of what the ends expect by now.
    let connection = try await Connection(network, port: 7_003, guest: guest, source: source, requests: 3)
    #expect(await comesTrueSuspending { connection.received == 30 })
    var seen: [UInt8] = []
    func number(_ frame: [UInt8]) -> UInt32 {
      let header = guest.contains(":") ? 54 : 34
      return frame[header + 4..<header + 8].reduce(0) { $0 << 8 | UInt32($1) }
    }
    while tap.receives(
      within: 500,
      { frame in
        guard contains("GET /7003")(frame) else { return false }
        if seen.isEmpty || Int32(bitPattern: number(frame) &- number(seen)) > 0 { seen = frame }
        return true
      })
    {}
    let packet = refused(seen)
    var refusals = FlowRefusals(sink, resets: sender)
    let outcome = try await refusals.act(on: [packet, packet])
    #expect(outcome.cut == 1 && outcome.reset == 1 && outcome.notReset == 0 && outcome.packets == [packet.name])
    #expect(
      await comesTrueSuspending { connection.error(of: "client") == "Connection reset by peer" }, "the client goes on")
    #expect(
      await comesTrueSuspending { connection.error(of: "server") == "Connection reset by peer" }, "the server goes on")
    #expect(throws: FirewallError.self) { try sender.send(try #require(TCPReset(packet)), bridge: "nobridge") }
  }

  @Test("a flow without ports is told by its protocol")
  func withoutPorts() async throws {
    let network = try BridgeNetwork("flow-icmp")
    let sink = try network.host.inside { try NftablesSink.open() }
    try await sink.update(ports: bridgePorts)
    for (guest, source, number) in [("10.77.0.1", "10.77.0.99", UInt8(1)), ("fd77::1", "fd77::99", 58)] {
      let flow = FlowCut(
        domain: vm1, source: IPAddress(source)!, destination: IPAddress(guest)!, sourcePort: 0, destinationPort: 0,
        ipProtocol: number)
      #expect(network.reaches(from: network.outside, guest, as: source))
      try await sink.cut([flow])
      #expect(!network.pings(from: network.outside, guest, as: source))
      #expect(network.reaches(from: network.vm2, guest))
    }
  }

  @Test("no reset is made of a packet that is not the guest's own: it would forge addresses in the host's name")
  func forged() async throws {
    let network = try BridgeNetwork("reset-forged")
    let sink = try network.host.inside { try NftablesSink.open() }
    let sender = try network.host.inside { try ResetSender.open() }
    try await sink.update(ports: bridgePorts)
    let tap = try PacketEndpoint(network.outside)
    func outcome(
      from source: String, to destination: String, mac: MACAddress, _ direction: FrameDirection
    ) async throws -> FlowRefusals.Outcome {
      let segment =
        Frames.big(7_000, 2) + Frames.big(80, 2) + Frames.big(1_000, 4) + Frames.big(2_000, 4) + [
          0x50, 0x18, 1, 0, 0, 0, 0, 0,
        ]
      let frame = Frames.ethernet(0x0800, from: mac, Frames.ipv4(source, destination, 6, segment))
      var refusals = FlowRefusals(sink, resets: sender)
      return try await refusals.act(on: [refused(frame, .reject, direction)])
    }
    let mac = try await outcome(from: "10.77.0.1", to: "10.77.0.99", mac: MACAddress("02:77:00:00:00:55")!, .fromGuest)
    #expect(mac.cut == 1 && mac.reset == 0 && mac.notReset == 1)
    let address = try await outcome(from: "10.77.0.55", to: "10.77.0.99", mac: Frames.vm1MAC, .fromGuest)
    #expect(address.cut == 1 && address.reset == 0 && address.notReset == 1)
    let other = try await outcome(from: "10.77.0.1", to: "10.77.0.98", mac: Frames.vm1MAC, .toGuest)
    #expect(other.reset == 0 && other.notReset == 1, "sent to the guest with the guest's own address")
    func isReset(_ frame: [UInt8]) -> Bool { frame.count >= 54 && frame[12...13] == [8, 0] && frame[23] == 6 }
    #expect(!tap.receives(within: 200, isReset))
    #expect(try await outcome(from: "10.77.0.1", to: "10.77.0.97", mac: Frames.vm1MAC, .fromGuest).reset == 1)
    #expect(tap.receives(within: 60_000, isReset))
  }

  @Test("of one guest only so many flows are cut at a time; others have room left")
  func bounds() async throws {
    let network = try NetworkNamespace("flow-bounds")
    let sink = try network.inside { try NftablesSink.open() }
    func flows(_ count: Int, from first: Int, of domain: DomainUUID = vm1) -> [FlowCut] {
      (first..<first + count).map {
        FlowCut(
          domain: domain, source: IPAddress(v4: 0x0A00_0000 + UInt32($0)), destination: IPAddress("10.77.0.1")!,
          sourcePort: 1,
          destinationPort: 80, ipProtocol: 6)
      }
    }
    // What has ended makes room: here nothing does.
    func cut(_ flows: [FlowCut]) async throws -> NftablesSink.CutOutcome {
      try await sink.cut(flows, for: .seconds(600))
    }
    let share = NftablesSink.flowShare
    let outcome = try await cut(flows(share + 10, from: 0))
    #expect(outcome.cut == share && outcome.left.count == 10)
    let late = try await cut(flows(1, from: share + 10))
    #expect(late.cut == 0 && late.left == flows(1, from: share + 10))
    #expect(try await cut(flows(3, from: 0, of: vm2)).cut == 3)
    var inAll = share + 3
    for number in 0..<UInt64(NftablesSink.flowCapacity / share) {
      let domain = DomainUUID(high: 0x3333_3333_3333_4333, low: 0x8333_3333_3333_0000 | number)
      inAll += try await cut(flows(share, from: 0, of: domain)).cut
    }
    #expect(inAll == NftablesSink.flowCapacity, "as many as fit in all")
  }

  @Test("packets that are no TCP, cut off or resets make no reset; damaged anywhere they make one or none")
  func robustness() throws {
    let segment =
      Frames.big(7_000, 2) + Frames.big(80, 2) + Frames.big(1_000, 4) + Frames.big(2_000, 4) + [
        0x50, 0x18, 1, 0, 0, 0, 0, 0,
      ]
    let frame = Frames.ethernet(0x0800, Frames.ipv4("10.77.0.1", "10.77.0.99", 6, segment + [1, 2, 3]))
    let whole = try #require(TCPReset(refused(frame)))
    // Behind three bytes of data; and what the packet acknowledged.
    #expect(Array(whole.toDestination[38..<42]) == Frames.big(1_003, 4))
    #expect(Array(whole.toSource[38..<42]) == Frames.big(2_000, 4))
    #expect(Array(whole.toSource[0..<12]) == Frames.bytes(Frames.vm1MAC) + Frames.bytes(Frames.outsideMAC))
    for made in [whole.toDestination, whole.toSource] {
      let pseudo = Array(made[26..<34]) + [0, 6, 0, 20]
      #expect(
        Frames.checksum(Array(made[14..<34])) == 0 && Frames.checksum(pseudo + Array(made[34..<54])) == 0, "\(made)")
    }
    var reset = frame
    reset[14 + 20 + 13] = 0x04
    #expect(TCPReset(refused(reset)) == nil)
    #expect(
      TCPReset(refused(Frames.ethernet(0x0800, Frames.ipv4("10.77.0.1", "10.77.0.99", 17, Frames.udp(1, 2, [])))))
        == nil)
    #expect(
      FlowCut(
        refused(Frames.ethernet(0x0806, Frames.arp(1, sender: (Frames.vm1MAC, "10.77.0.1"), target: "10.77.0.2"))))
        == nil)
    for length in 0..<frame.count - 3 { #expect((TCPReset(refused(Array(frame[..<length]))) == nil) == (length < 54)) }
    for index in frame.indices {
      for value in [0, 1, 0x7F, 0x80, 0xFF] as [UInt8] {
        var damaged = frame
        damaged[index] = value
        _ = TCPReset(refused(damaged))
        _ = FlowCut(refused(damaged))
      }
    }
  }
}
