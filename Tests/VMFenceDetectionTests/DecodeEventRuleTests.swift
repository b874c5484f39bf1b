import Testing
import VMFenceCore
import VMFenceDetection

/// Rules about what decoding found, and the packets in tunnels.
@Suite struct DecodeEventRuleTests {
  private func sids(_ rules: String, _ frames: [[UInt8]]) throws -> [[UInt32]] {
    var engine = try EngineUnderTest(rules, dialect: .suricata, settings: EngineUnderTest.immediate)
    return engine.inspect(frames)
  }

  private let tcp = Frame(payload: Array("x".utf8)).tcp

  @Test func `a rule about an event sees packets that are not even IP`() throws {
    let rules = """
      alert pkthdr any any -> any any (decode-event:ethernet.unknown_ethertype; sid:1;)
      alert pkthdr any any -> any any (decode-event:decoder.ipv4.pkt_too_small; sid:2;)
      alert tcp any any -> any any (engine-event:tcp.pkt_too_small; sid:3;)
      alert tcp any any -> any any (sid:4;)
      alert ether any any -> any any (sid:5;)
      """
    let header = Array(tcp[..<12])
    var short = Array(tcp[..<40])
    short.replaceSubrange(16..<18, with: [0, 26])
    let found = try sids(rules, [header + [0x12, 0x34, 1, 2], header + [8, 0, 0x45], short, tcp])
    #expect(found[0] == [1, 5] && found[1] == [2, 5] && found[3] == [4, 5], "\(found)")
  }

  @Test func `Snort's rules about fragments fire on those that overlap and that reach too far`() throws {
    var engine = try EngineUnderTest("alert ( gid:123; sid:7; )\nalert ( gid:123; sid:8; )", dialect: .snort3)
    func piece(_ offset: Int, more: Bool, id: UInt16) -> [UInt8] {
      Frame().with { $0.payload = Array(repeating: 0x41, count: 16) }.piece(17, offset: offset / 8, more: more, id: id)
    }
    #expect(engine.inspect([piece(0, more: true, id: 1), piece(16, more: true, id: 1)]) == [[], []])
    #expect(engine.inspect(piece(8, more: true, id: 1)) == [8])
    #expect(engine.inspect([piece(0, more: true, id: 2), piece(65_528, more: false, id: 2)]) == [[], [7]])
    let other = RuleFileParser.parse(
      RuleSource(file: "a.rules", text: Array("alert ( gid:123; sid:13; )".utf8), dialect: .snort3), variables: [:])
    #expect(other.unsupported.map(\.features) == [["built-in rule 123:13"]])
  }

  @Test func `a datagram that ends too early is seen by rules about that alone`() throws {
    let rules = """
      alert pkthdr any any -> any any (decode-event:ipv4.trunc_pkt; sid:1;)
      alert tcp any any -> any any (content:"x"; sid:2;)
      alert ip any any -> any any (sid:3;)
      """
    var long = tcp
    long.replaceSubrange(16..<18, with: [9, 0])
    #expect(try sids(rules, [long]) == [[1]])
    #expect(try sids(rules, [tcp]) == [[2, 3]])
  }

  @Test func `packets in tunnels are inspected after what carries them, with flows of their own`() throws {
    // IPv4 in IPv4, its checksum not looked at.
    let inner = Array(tcp[14...])
    let outer: [UInt8] =
      [0x45, 0, 0, UInt8(20 + inner.count), 0, 1, 0, 0, 64, 4, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2] + inner
    let rules = """
      alert ip 10.0.0.1 any -> 10.0.0.2 any (sid:1;)
      alert tcp any any -> any 80 (content:"x"; sid:2;)
      """
    #expect(try sids(rules, [Array(tcp[..<14]) + outer]) == [[1, 2]])
    var engine = try EngineUnderTest(rules, dialect: .suricata, settings: EngineUnderTest.immediate)
    _ = engine.inspect(Array(tcp[..<14]) + outer)
    #expect(engine.statistic("flows") == 2)
    #expect(engine.output[1].origin == .ipv4Tunnel && engine.output[1].layer == 1)
  }

  @Test func `in Snort 3 the protocol of a packet that carries another is that one's`() throws {
    let inner = Array(tcp[14...])
    let outer: [UInt8] =
      [0x45, 0, 0, UInt8(20 + inner.count), 0, 1, 0, 0, 64, 4, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2] + inner
    for dialect in RuleDialect.allCases {
      let rules = "alert ip any any -> any any (ip_proto:4; sid:1;)\nalert ip any any -> any any (ip_proto:6; sid:2;)"
      var engine = try EngineUnderTest(rules, dialect: dialect, settings: EngineUnderTest.immediate)
      #expect(engine.inspect(Array(tcp[..<14]) + outer) == (dialect == .snort3 ? [2] : [1, 2]), "\(dialect)")
    }
  }

  @Test func `a datagram put together in a tunnel keeps the link header that it had there`() throws {
    // GRE with PPP in it, whose header is one byte long (RFC 1661 §2, RFC 1701).
    func carried(_ datagram: ArraySlice<UInt8>) -> [UInt8] {
      let gre: [UInt8] = [0, 0, 0x88, 0x0B, 0x21] + datagram
      return Array(tcp[..<14])
        + [0x45, 0, 0, UInt8(20 + gre.count), 0, 1, 0, 0, 64, 47, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2] + gre
    }
    let udp: [UInt8] = [0x9C, 0x40, 0, 80, 0, 24, 0, 0] + Array("sixteen bytes ok".utf8)
    let first = Frame(payload: Array(udp[..<16])).piece(17, offset: 0, more: true, id: 9)
    let second = Frame(payload: Array(udp[16...])).piece(17, offset: 2, more: false, id: 9)
    var engine = try EngineUnderTest(
      "alert udp any any -> any 80 (content:\"sixteen bytes ok\"; sid:1;)", dialect: .suricata,
      settings: EngineUnderTest.immediate)
    engine.output = InspectionOutput(evidenceCapacity: 4096)
    #expect(engine.inspect([carried(first[14...]), carried(second[14...])]) == [[], [1]])
    #expect(engine.output[0].layer == 1 && engine.output[0].origin == .gre)
    let kept = engine.output.evidence(engine.output[0].packet)
    let packet = try #require(kept)
    #expect(packet.count == 1 + 20 + 24 && packet[0] == 0x21 && packet[1] == 0x45)
  }

  @Test func `ports of tunnels are settings`() throws {
    let inner = tcp
    let payload: [UInt8] = [8, 0, 0, 0, 0, 0, 9, 0] + inner
    let frame = Frame(destinationPort: 8472, payload: payload).udp
    let rules = "alert tcp any any -> any 80 (content:\"x\"; sid:2;)"
    var settings = EngineUnderTest.immediate
    var plain = try EngineUnderTest(rules, dialect: .suricata, settings: settings)
    #expect(plain.inspect(frame) == [])
    settings["decoder.vxlan.ports"] = "[4789, 8472]"
    var set = try EngineUnderTest(rules, dialect: .suricata, settings: settings)
    #expect(set.inspect(frame) == [2])
    settings["decoder.vxlan.enabled"] = "no"
    var disabled = try EngineUnderTest(rules, dialect: .suricata, settings: settings)
    #expect(disabled.inspect(frame) == [])
    for wrong in ["0", "1,2,3,4,5", "x"] {
      settings["decoder.vxlan.ports"] = wrong
      #expect(throws: RuleCompilationError.self) {
        _ = try EngineUnderTest(rules, dialect: .suricata, settings: settings)
      }
    }
  }
}
