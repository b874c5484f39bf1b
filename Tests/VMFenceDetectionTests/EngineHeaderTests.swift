import Testing
import VMFenceCore
import VMFenceDetection

/// Options about headers, each in the dialects that have it.
@Suite("Header options") struct EngineHeaderTests {
  /// Whether a rule with these options fires for a frame.
  private func fires(
    _ dialect: RuleDialect, _ options: String, _ frame: [UInt8], transport: String = "ip", verifies: Bool = false
  ) throws -> Bool {
    let rules = try compiled("alert \(transport) any any -> any any (msg:\"m\"; \(options) sid:1;)", dialect: dialect)
    var engine = try EngineUnderTest(rules, verifiesChecksums: verifies)
    return engine.inspect(frame) == [1]
  }

  /// A TCP frame with bytes of its IPv4 header changed (offsets from its start).
  private func frame(_ changes: [Int: UInt8], _ base: [UInt8] = Frame().carrying("hello").tcp) -> [UInt8] {
    var frame = base
    for (offset, byte) in changes { frame[14 + offset] = byte }
    return frame
  }

  @Test(
    "Ranges have their ends in them or not, by dialect",
    arguments: [
      (RuleDialect.snort2, "ttl:3-5;", [3, 4, 5] as Set<UInt8>), (.snort2, "ttl:-3;", [1, 2, 3]),
      (.snort2, "ttl:5-;", [5, 6]), (.snort2, "ttl:<=3;", [1, 2, 3]), (.snort3, "ttl:3<>5;", [4]),
      (.snort3, "ttl:3<=>5;", [3, 4, 5]), (.snort3, "ttl:!4;", [1, 2, 3, 5, 6]), (.suricata, "ttl:3-5;", [4]),
      (.suricata, "ttl:!3-5;", [1, 2, 3, 5, 6]), (.suricata, "ttl:>=5;", [5, 6]), (.suricata, "ttl:0x4;", [4]),
      (.suricata, "ttl:&0x3=1;", [1, 5]), (.suricata, "ttl:&0x3!=1;", [2, 3, 4, 6]),
    ] as [(RuleDialect, String, Set<UInt8>)])
  func ranges(_ dialect: RuleDialect, _ options: String, _ expected: Set<UInt8>) throws {
    for ttl in 1...6 as ClosedRange<UInt8> {
      #expect(try fires(dialect, options, frame([8: ttl])) == expected.contains(ttl), "ttl \(ttl)")
    }
  }

  @Test("The hop limit is IPv6's time to live")
  func hopLimit() throws {
    let frame = Frame(source: "2001:db8::1", destination: "2001:db8::2").tcp
    #expect(try fires(.suricata, "ttl:64;", frame))
    #expect(try !fires(.suricata, "ttl:63;", frame))
    #expect(try fires(.suricata, "l3_proto:ipv6;", frame))
    #expect(try !fires(.suricata, "l3_proto:ipv4;", frame))
  }

  @Test(
    "Flag tests differ where two bits are named",
    arguments: [
      // DF and MF set; DF alone; none.
      (RuleDialect.snort2, "fragbits:MD;", [true, false, false]), (.snort2, "fragbits:!MD;", [false, false, true]),
      (.suricata, "fragbits:!MD;", [false, true, true]), (.snort3, "fragbits:!MD;", [false, false, true]),
      (.snort2, "fragbits:+MD;", [true, false, false]), (.suricata, "fragbits:+MD;", [true, false, false]),
      (.snort3, "fragbits:+MD;", [true, true, false]), (.snort2, "fragbits:*MD;", [true, true, false]),
      (.suricata, "fragbits:D+;", [true, true, false]),
    ] as [(RuleDialect, String, [Bool])])
  func fragmentBits(_ dialect: RuleDialect, _ options: String, _ expected: [Bool]) throws {
    let fired = try [0x60, 0x40, 0].map { try fires(dialect, options, frame([6: $0])) }
    #expect(fired == expected)
  }

  @Test("Numbers of the IP header")
  func ipNumbers() throws {
    let odd = frame([1: 0x88, 4: 0x30, 5: 0x39])
    #expect(try fires(.suricata, "tos:x88;", odd))
    #expect(try fires(.snort2, "tos:136;", odd))
    #expect(try !fires(.snort2, "tos:!136;", odd))
    for dialect in RuleDialect.allCases { #expect(try fires(dialect, "id:12345;", odd)) }
    let fragment = Frame().carrying("a part of something").fragment(offset: 3, more: true)
    #expect(try fires(.snort2, "fragoffset:3;", fragment))
    #expect(try fires(.snort3, "fragoffset:>2;", fragment))
    #expect(try !fires(.snort2, "fragoffset:0;", fragment))
    #expect(try fires(.snort2, "ip_proto:tcp;", odd))
    #expect(try fires(.suricata, "ip_proto:!17;", odd))
    #expect(try fires(.snort3, "ip_proto:>5; ip_proto:<7;", odd))
    #expect(try !fires(.suricata, "ip_proto:17;", odd))
    let same = Frame(destination: "192.0.2.1").tcp
    #expect(try fires(.suricata, "sameip;", same))
    #expect(try !fires(.snort2, "sameip;", odd))
  }

  @Test("IPv4 options are found among others, and not behind the end of the list")
  func ipOptions() throws {
    // nop, record route with room for one address, end, and a timestamp that does not count.
    let options: [UInt8] = [1, 7, 7, 4, 0, 0, 0, 0, 0, 68, 4, 5]
    var bytes = Frame().carrying("x").udp
    bytes.insert(contentsOf: options, at: 34)
    bytes[14] = 0x48
    bytes[17] += 12
    #expect(try fires(.snort2, "ipopts:rr;", bytes))
    #expect(try fires(.suricata, "ipopts:nop;", bytes))
    #expect(try fires(.suricata, "ipopts:eol;", bytes))
    #expect(try fires(.snort3, "ipopts:any;", bytes))
    #expect(try !fires(.suricata, "ipopts:ts;", bytes))
    #expect(try !fires(.suricata, "ipopts:rr;", Frame().udp))
    // A length of 0 ends the walk.
    bytes[36] = 0
    #expect(try !fires(.suricata, "ipopts:eol;", bytes))
  }

  @Test("Numbers of the TCP header and its options")
  func tcpNumbers() throws {
    let frame = Frame().tcp
    #expect(try fires(.suricata, "tcp.seq:1000; tcp.ack:5000; tcp.window:8192;", frame, transport: "tcp"))
    #expect(try fires(.snort3, "seq:999<>1001; ack:>4999; window:!1;", frame, transport: "tcp"))
    #expect(try fires(.snort2, "seq:1000; ack:5000; window:8192;", frame, transport: "tcp"))
    #expect(try !fires(.snort2, "ack:0;", frame, transport: "tcp"))
    #expect(try fires(.snort3, "urg:0;", frame, transport: "tcp"))
    var withOptions = frame
    withOptions.insert(contentsOf: [2, 4, 5, 0xB4, 1, 3, 3, 7], at: 54)
    withOptions[46] = 0x70
    withOptions[17] += 8
    #expect(try fires(.suricata, "tcp.mss:1460; tcp.wscale:7;", withOptions, transport: "tcp"))
    #expect(try fires(.snort3, "mss:>1400; wscale:7;", withOptions, transport: "tcp"))
    #expect(try !fires(.suricata, "tcp.mss:!1460;", frame, transport: "tcp"), "no option, no match")
  }

  @Test("ICMP: type, code, identifier and sequence, the latter of queries only")
  func icmp() throws {
    let echo = Frame().icmp(type: 8)
    for dialect in RuleDialect.allCases {
      #expect(try fires(dialect, "itype:8; icode:0; icmp_id:1; icmp_seq:1;", echo, transport: "icmp"))
      #expect(try fires(dialect, "itype:7<>9;", echo, transport: "icmp"))
      #expect(try !fires(dialect, "itype:8<>10;", echo, transport: "icmp"))
    }
    #expect(try !fires(.suricata, "icmp_id:1;", Frame().icmp(type: 3), transport: "icmp"))
  }

  @Test("A rule about checksums sees packets whose checksum is wrong; no other does")
  func checksums() throws {
    let right = Frame().carrying("abc").tcp
    var wrong = right
    wrong[50] ^= 1
    let options = "tcpv4-csum:invalid; content:\"abc\";"
    #expect(try fires(.suricata, options, wrong, transport: "tcp", verifies: true))
    #expect(try !fires(.suricata, options, right, transport: "tcp", verifies: true))
    #expect(try fires(.suricata, "tcpv4-csum:valid;", right, transport: "tcp", verifies: true))
    #expect(try !fires(.suricata, "content:\"abc\";", wrong, transport: "tcp", verifies: true))
    #expect(try !fires(.suricata, options, wrong, transport: "tcp"), "what nobody verifies counts as right")
    var header = right
    header[24] ^= 1
    #expect(try fires(.suricata, "ipv4-csum:invalid;", header, verifies: true))
    #expect(try !fires(.suricata, "udpv4-csum:invalid;", wrong, verifies: true))
  }

  @Test("VLAN identifiers by layer")
  func vlan() throws {
    var tagged = Frame().carrying("x").udp
    tagged.insert(contentsOf: [0x81, 0, 0, 100, 0x81, 0, 0, 200], at: 12)
    for (options, expected) in [
      ("vlan.id:100;", true), ("vlan.id:200;", true), ("vlan.id:100,0;", true), ("vlan.id:200,0;", false),
      ("vlan.id:200,-1;", true), ("vlan.id:>99,all;", true), ("vlan.id:200,all;", false), ("vlan.id:100,2;", false),
      ("vlan.layers:2;", true), ("vlan.layers:<2;", false),
    ] {
      #expect(try fires(.suricata, options, tagged) == expected, "\(options)")
    }
    #expect(try !fires(.suricata, "vlan.id:!5;", Frame().udp), "no tag, no match")
  }

  @Test("the network that a VXLAN datagram is for, of the datagram and not of what it carries")
  func vxlan() throws {
    let inner = Frame(source: "10.1.1.1", destination: "10.1.1.2").carrying("inside").udp
    let outer = Frame(destinationPort: 4789).with { $0.payload = [8, 0, 0, 0, 0, 0x10, 0, 0] + inner }.udp
    #expect(try fires(.suricata, "vxlan_vni:4096;", outer, transport: "udp"))
    #expect(try fires(.suricata, "vxlan_vni:4000-5000;", outer, transport: "udp"))
    #expect(try !fires(.suricata, "vxlan_vni:4097;", outer, transport: "udp"))
    #expect(try !fires(.suricata, "vxlan_vni:!4097;", inner, transport: "udp"), "no tunnel, no match")
    var engine = try EngineUnderTest(
      "alert ip any any -> any any (vxlan_vni:>0; sid:1;)", dialect: .suricata)
    #expect(engine.inspect(outer) == [1])
    // A datagram that says nothing of its network is none.
    var silent = outer
    silent[42] = 0
    #expect(engine.inspect(silent) == [])
  }

  @Test("the header of ICMP is longer for some messages")
  func icmpHeader() throws {
    // RFC 1256 §3.1: one address and its preference, two words.
    var message = Frame().carrying("routeone").icmp(type: 9)
    message.replaceSubrange(38..<40, with: [1, 2])
    #expect(try fires(.suricata, "icmpv4.hdr; content:\"routeone\"; endswith;", message, transport: "icmp"))
    message[38] = 200
    #expect(try fires(.suricata, "icmpv4.hdr; content:\"routeone\"; endswith;", message, transport: "icmp"))
    let echo = Frame().carrying("routeone").icmp(type: 8)
    #expect(try !fires(.suricata, "icmpv4.hdr; content:\"route\";", echo, transport: "icmp"))
    let stamp = Frame().carrying("aaaabbbbccccd").icmp(type: 13)
    #expect(try fires(.suricata, "icmpv4.hdr; content:\"cccc\"; endswith;", stamp, transport: "icmp"))
  }

  @Test("SCTP: verification tag and chunks")
  func sctp() throws {
    var bytes = Frame().carrying("").udp
    bytes[23] = 132
    let sctp: [UInt8] = [0, 1, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0] + [1, 0, 0, 6, 1, 2, 0, 0] + [10, 0, 0, 4]
    bytes.replaceSubrange(34..., with: sctp)
    bytes[17] = UInt8(20 + sctp.count)
    #expect(
      try fires(.suricata, "sctp.vtag:9; sctp.chunk_cnt:2; sctp.chunk_type:cookie_echo;", bytes, transport: "sctp"))
    #expect(try fires(.suricata, "sctp.chunk_type:1;", bytes, transport: "sctp"))
    #expect(try !fires(.suricata, "sctp.chunk_type:3;", bytes, transport: "sctp"))
    #expect(try fires(.suricata, "sctp.hdr; content:\"|0A 00 00 04|\"; endswith;", bytes, transport: "sctp"))
    #expect(try fires(.suricata, "sctp.chunk_data; absent;", bytes, transport: "sctp"))
    // Two DATA chunks: 12 bytes of their own before what they carry.
    func data(_ text: String) -> [UInt8] {
      [0, 3, 0, UInt8(16 + text.utf8.count)] + Array(repeating: 0, count: 12) + Array(text.utf8)
    }
    bytes.replaceSubrange(46..., with: data("abcd") + data("wxyz"))
    bytes[17] = UInt8(bytes.count - 14)
    for (options, expected) in [
      ("sctp.chunk_data; content:\"wxyz\"; startswith; endswith;", true),
      ("sctp.chunk_data; content:\"abcd\"; content:\"w\";", false), ("sctp.chunk_data; absent;", false),
      ("sctp.chunk_data; to_uppercase; content:\"WXYZ\"; bsize:4;", true),
      // The payload is what the first of them carries.
      ("content:\"abcd\"; depth:4; endswith;", true), ("content:\"wxyz\";", false),
    ] {
      #expect(try fires(.suricata, options, bytes, transport: "sctp") == expected, "\(options)")
    }
    #expect(try fires(.snort2, "content:\"wxyz\";", bytes, transport: "ip"))
    #expect(try !fires(.suricata, "sctp.vtag:9;", Frame().udp, transport: "ip"))
  }

  @Test("pkt_num counts what was inspected")
  func packetNumber() throws {
    var engine = try EngineUnderTest("alert udp any any -> any any (pkt_num:2; sid:1;)", dialect: .snort3)
    #expect(engine.inspect([Frame().udp, Frame().udp, Frame().udp]) == [[], [1], []])
  }

  @Test("In Suricata ports ask for a protocol that has some")
  func ports() throws {
    let rule = "alert ip any any -> any 80 (msg:\"m\"; sid:1;)"
    for (dialect, expected) in [(RuleDialect.suricata, [] as [UInt32]), (.snort2, [1])] {
      var engine = try EngineUnderTest(rule, dialect: dialect)
      #expect(engine.inspect(Frame().icmp(type: 8)) == expected)
      #expect(engine.inspect(Frame().udp) == [1])
    }
  }

  @Test(
    "Mistakes name what was expected",
    arguments: [
      (RuleDialect.snort2, "ttl:x;", "0 to 255"), (.snort3, "ttl:300;", "0 to 255"),
      (.suricata, "ttl:5-6;", "no number"),
      (.suricata, "tos:&1;", "bit mask"), (.snort2, "fragbits:X;", "`X` is no bit"), (.snort2, "fragbits:+;", "no bit"),
      (.suricata, "ipopts:foo;", "no IP option"), (.suricata, "sameip:1;", "takes no value"),
      (.suricata, "tcpv4-csum:maybe;", "not known"), (.suricata, "vlan.id:1,9;", "no such layer"),
      (.suricata, "vlan.id:5000;", "0 to 4095"), (.suricata, "sctp.chunk_type:nothing;", "0 to 255"),
      (.suricata, "l3_proto:ipx;", "not known"), (.snort2, "ip_proto:nonsense;", "0 to 255"),
      (.snort3, "window:<0;", "no number"), (.snort2, "fragoffset:9000;", "0 to 8191"),
    ] as [(RuleDialect, String, String)])
  func mistakes(_ dialect: RuleDialect, _ options: String, _ message: String) {
    let text = "alert ip any any -> any any (msg:\"m\"; \(options) sid:1;)"
    let source = RuleSource(file: "f", text: Array(text.utf8), dialect: dialect)
    let parsed = RuleFileParser.parse(source, variables: [:])
    #expect(parsed.rejected == 1 && parsed.unsupported.isEmpty)
    #expect(parsed.diagnostics.first?.message.contains(message) == true, "\(parsed.diagnostics)")
  }
}
