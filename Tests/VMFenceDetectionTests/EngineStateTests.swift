import Testing
import VMFenceCore
import VMFenceDetection

/// What rules remember of flows and hosts.
@Suite("State options") struct EngineStateTests {
  private func engine(
    _ text: String, dialect: RuleDialect = .suricata, isInline: Bool = false, settings: [String: String] = [:]
  ) throws -> EngineUnderTest {
    let source = RuleSource(file: "test.rules", text: Array(text.utf8), dialect: dialect)
    let result = try SnortRuleEngine().compile(RuleCompilationRequest(sources: [source], onBadRule: .fail))
    return try EngineUnderTest(result.rules, isInline: isInline, settings: settings)
  }

  private func rule(_ sid: Int, _ options: String) -> String {
    "alert udp any any -> any any (msg:\"\(sid)\"; \(options) sid:\(sid);)"
  }

  // MARK: Flow bits

  @Test("A bit is the flow's, in both directions; noalert sets it in silence", arguments: RuleDialect.allCases)
  func flowBits(_ dialect: RuleDialect) throws {
    let rules = [
      rule(1, "content:\"login\"; flowbits:set,in; flowbits:noalert;"), rule(2, "content:\"x\"; flowbits:isset,in;"),
      rule(3, "content:\"x\"; flowbits:isnotset,in;"), rule(4, "content:\"out\"; flowbits:unset,in;"),
    ]
    var engine = try engine(rules.joined(separator: "\n"), dialect: dialect)
    let frame = Frame()
    #expect(engine.inspect(frame.carrying("x").udp) == [3])
    #expect(engine.inspect(frame.carrying("login").udp) == [])
    #expect(engine.inspect(frame.carrying("x").udp) == [2])
    #expect(engine.inspect(frame.reply.carrying("x").udp) == [2])
    #expect(engine.inspect(Frame(sourcePort: 9).carrying("x").udp) == [3])
    #expect(engine.inspect(frame.carrying("out").udp) == [4])
    #expect(engine.inspect(frame.carrying("x").udp) == [3])
  }

  @Test("Within one packet, what sets a bit comes before what asks for it")
  func order() throws {
    for dialect in RuleDialect.allCases {
      var engine = try engine(
        [
          rule(1, "content:\"b\"; flowbits:isset,two;"),
          rule(2, "content:\"b\"; flowbits:isset,one; flowbits:set,two;"),
          rule(3, "content:\"a\"; flowbits:set,one;"),
        ].joined(separator: "\n"), dialect: dialect)
      #expect(Set(engine.inspect(Frame().carrying("a b").udp)) == [1, 2, 3])
    }
  }

  @Test("A rule that does not match as a whole sets nothing")
  func whole() throws {
    var engine = try engine(
      [rule(1, "flowbits:set,a; content:\"no\";"), rule(2, "content:\"x\"; flowbits:isset,a;")].joined(separator: "\n"))
    #expect(engine.inspect(Frame().carrying("x").udp) == [])
    #expect(engine.inspect(Frame().carrying("x").udp) == [])
  }

  @Test(
    "Several bits: any and all, and what their negation is",
    arguments: [
      // With none, one, both set.
      (RuleDialect.suricata, "isset,a|b", [false, true, true]), (.suricata, "isnotset,a|b", [true, true, false]),
      (.snort2, "isset,a|b", [false, true, true]), (.snort2, "isset,a&b", [false, false, true]),
      (.snort2, "isnotset,a|b", [true, false, false]), (.snort2, "isnotset,a&b", [true, true, false]),
      (.snort3, "isset,a&b", [false, false, true]), (.snort2, "isset,any,g", [false, true, true]),
      (.snort2, "isset,all,g", [false, false, true]),
    ] as [(RuleDialect, String, [Bool])])
  func several(_ dialect: RuleDialect, _ test: String, _ expected: [Bool]) throws {
    let group = dialect == .snort2 ? ",g" : ""
    var engine = try engine(
      [
        rule(1, "content:\"1\"; flowbits:set,a\(group); flowbits:noalert;"),
        rule(2, "content:\"2\"; flowbits:set,b\(group); flowbits:noalert;"),
        rule(3, "content:\"x\"; flowbits:\(test);"),
      ].joined(separator: "\n"), dialect: dialect)
    let fired = ["x", "1", "x", "2", "x"].map { !engine.inspect(Frame().carrying($0).udp).isEmpty }
    #expect([fired[0], fired[2], fired[4]] == expected)
  }

  @Test("Groups: setx leaves one bit of its group, reset none; toggle turns")
  func groups() throws {
    var engine = try engine(
      [
        rule(1, "content:\"1\"; flowbits:setx,a,g; flowbits:noalert;"),
        rule(2, "content:\"2\"; flowbits:setx,b,g; flowbits:noalert;"),
        rule(3, "content:\"3\"; flowbits:reset,g; flowbits:noalert;"),
        rule(4, "content:\"4\"; flowbits:toggle,c; flowbits:noalert;"), rule(5, "content:\"x\"; flowbits:isset,a;"),
        rule(6, "content:\"x\"; flowbits:isset,b;"), rule(7, "content:\"x\"; flowbits:isset,c;"),
      ].joined(separator: "\n"), dialect: .snort2)
    var seen: [[UInt32]] = []
    for step in ["1", "2", "4", "3", "4"] {
      _ = engine.inspect(Frame().carrying(step).udp)
      seen.append(engine.inspect(Frame().carrying("x").udp))
    }
    #expect(seen == [[5], [6], [6, 7], [7], []])
  }

  @Test("A new connection between the same ends has no bits; nor has another flow at the same place")
  func newFlow() throws {
    var engine = try engine(
      """
      alert tcp any any -> any any (msg:"1"; content:"set"; flowbits:set,a; sid:1;)
      alert tcp any any -> any any (msg:"2"; content:"x"; flowbits:isset,a; sid:2;)
      """, settings: EngineUnderTest.immediate)
    var connection = Connection()
    _ = engine.inspect(connection.handshake())
    #expect(engine.inspect(connection.fromClient("set")) == [1])
    #expect(engine.inspect(connection.fromClient("x")) == [2])
    _ = engine.inspect(connection.fromClient("", flags: Frame.rst | Frame.ack))
    var next = Connection()
    (next.clientNext, next.serverNext) = (90_000, 80_000)
    _ = engine.inspect(next.handshake())
    #expect(engine.inspect(next.fromClient("x")) == [])
  }

  @Test("Bits and integers are found again by their names after the rules were replaced")
  func replaced() throws {
    var engine = try engine(
      [rule(1, "content:\"set\"; flowbits:set,kept; flowint:n,=,5;")].joined(separator: "\n"))
    #expect(engine.inspect(Frame().carrying("set").udp) == [1])
    let next = try compiled(
      [
        rule(2, "content:\"never\"; flowbits:set,other; flowint:m,=,1;"),
        rule(3, "content:\"x\"; flowbits:isset,kept;"),
        rule(4, "content:\"x\"; flowbits:isset,other;"), rule(5, "content:\"x\"; flowint:n,==,5;"),
        rule(6, "content:\"x\"; flowint:m,isset;"),
      ].joined(separator: "\n"), dialect: .suricata)
    try engine.inspector.replaceRules(with: next)
    engine.rules = next
    #expect(engine.inspect(Frame().carrying("x").udp) == [3, 5])
  }

  @Test("More bits than a flow has room for are refused, with the figure")
  func tooMany() {
    let rules = (1...4200).map { rule($0, "flowbits:set,bit\($0);") }
    let source = RuleSource(file: "f", text: Array(rules.joined(separator: "\n").utf8), dialect: .suricata)
    let error = #expect(throws: RuleCompilationError.self) {
      try SnortRuleEngine().compile(RuleCompilationRequest(sources: [source]))
    }
    #expect(error?.code == .tooLarge)
    #expect(error?.message.contains("4096 flowbits") == true)
    #expect(error?.place?.line == 4097)
  }

  // MARK: Flow integers

  @Test("flowint counts, compares, and does not run over")
  func flowIntegers() throws {
    var engine = try engine(
      [
        rule(1, "content:\"a\"; flowint:n,+,1; noalert;"), rule(2, "content:\"x\"; flowint:n,>,2;"),
        rule(3, "content:\"x\"; flowint:n,isnotset;"), rule(4, "content:\"big\"; flowint:n,=,4294967295; noalert;"),
        rule(5, "content:\"x\"; flowint:n,==,4294967295;"), rule(6, "content:\"copy\"; flowint:m,=,n; noalert;"),
        rule(7, "content:\"x\"; flowint:m,==,n;"), rule(8, "content:\"x\"; flowint:unset,<,9;"),
        rule(9, "content:\"down\"; flowint:n,-,4294967294; noalert;"),
      ].joined(separator: "\n"))
    func x(_ engine: inout EngineUnderTest) -> [UInt32] { engine.inspect(Frame().carrying("x").udp).sorted() }
    #expect(x(&engine) == [3])
    for _ in 0..<2 { _ = engine.inspect(Frame().carrying("a").udp) }
    #expect(x(&engine) == [])
    _ = engine.inspect(Frame().carrying("a").udp)
    #expect(x(&engine) == [2])
    _ = engine.inspect(Frame().carrying("big").udp)
    _ = engine.inspect(Frame().carrying("a").udp)
    #expect(x(&engine) == [2, 5])
    _ = engine.inspect(Frame().carrying("copy").udp)
    #expect(x(&engine) == [2, 5, 7])
    _ = engine.inspect(Frame().carrying("down").udp)
    #expect(x(&engine) == [])
  }

  // MARK: Host bits

  @Test("xbits are the host's or the pair's, in every flow, until they expire")
  func xbits() throws {
    var engine = try engine(
      [
        rule(1, "content:\"mark\"; xbits:set,bad,track ip_src,expire 10; noalert;"),
        rule(2, "content:\"x\"; xbits:isset,bad,track ip_src;"),
        rule(3, "content:\"x\"; xbits:isset,bad,track ip_dst;"),
        rule(4, "content:\"two\"; xbits:set,pair,track ip_pair; noalert;"),
        rule(5, "content:\"x\"; xbits:isset,pair,track ip_pair;"),
        rule(6, "content:\"clear\"; xbits:unset,bad,track ip_src; noalert;"),
      ].joined(separator: "\n"))
    let frame = Frame()
    _ = engine.inspect(frame.carrying("mark").udp)
    #expect(engine.inspect(Frame(destination: "203.0.113.9", sourcePort: 7).carrying("x").udp) == [2])
    #expect(engine.inspect(frame.reply.carrying("x").udp) == [3])
    _ = engine.inspect(frame.carrying("two").udp)
    #expect(engine.inspect(frame.reply.carrying("x").udp) == [3, 5])
    #expect(engine.inspect(frame.carrying("x").udp, after: .seconds(11)) == [5])
    #expect(engine.inspect(frame.carrying("x").udp, after: .seconds(20)) == [])
    _ = engine.inspect(frame.carrying("mark").udp)
    _ = engine.inspect(frame.carrying("clear").udp)
    #expect(engine.inspect(frame.carrying("x").udp) == [])
  }

  @Test("hostbits of either host, or both")
  func hostbits() throws {
    var engine = try engine(
      [
        rule(1, "content:\"mark\"; hostbits:set,b,dst; noalert;"), rule(2, "content:\"x\"; hostbits:isset,b;"),
        rule(3, "content:\"x\"; hostbits:isnotset,b,dst;"), rule(4, "content:\"all\"; hostbits:set,b,both; noalert;"),
        rule(5, "content:\"x\"; hostbits:isset,b,both;"), rule(6, "content:\"turn\"; hostbits:toggle,b,src; noalert;"),
      ].joined(separator: "\n"))
    _ = engine.inspect(Frame().carrying("mark").udp)
    #expect(engine.inspect(Frame().reply.carrying("x").udp).sorted() == [2, 3])
    _ = engine.inspect(Frame().carrying("all").udp)
    #expect(engine.inspect(Frame().carrying("x").udp).sorted() == [2, 5])
    _ = engine.inspect(Frame().carrying("turn").udp)
    #expect(engine.inspect(Frame().carrying("x").udp) == [])
  }

  @Test("The table of host bits is bounded; what gives way is counted")
  func hostBitCapacity() throws {
    var engine = try engine(rule(1, "xbits:set,b,track ip_src; noalert;"))
    for number in 0..<60_000 {
      let source = "10.\(number >> 16 & 0xFF).\(number >> 8 & 0xFF).\(number & 0xFF)"
      _ = engine.inspect(Frame(source: source).udp, after: .microseconds(1))
    }
    #expect(engine.statistic("host_bits_evicted").map { $0 >= 60_000 - 32_768 } == true)
  }

  // MARK: Counters

  @Test("Packets, bytes and age of a flow have this packet in them")
  func counters() throws {
    var engine = try engine(
      [
        rule(1, "flow.pkts:toserver,=2;"), rule(2, "flow.pkts_toclient:1;"), rule(3, "flow.bytes_toserver:>100;"),
        rule(4, "flow.bytes:either,>60;"), rule(5, "flow.bytes:both,>60;"), rule(6, "flow.age:>2;"),
      ].joined(separator: "\n"))
    let frame = Frame().carrying(String(repeating: "a", count: 12))
    #expect(engine.inspect(frame.udp) == [])
    #expect(engine.inspect(frame.udp) == [1, 3, 4])
    #expect(engine.inspect(frame.reply.carrying(String(repeating: "b", count: 30)).udp).sorted() == [1, 2, 3, 4, 5])
    #expect(engine.inspect(Frame(sourcePort: 9).udp) == [])
    #expect(engine.inspect(Frame(sourcePort: 9).reply.udp, after: .seconds(3)) == [2, 6])
  }

  @Test("stream_size counts sequence numbers, SYN and FIN as one", arguments: RuleDialect.allCases)
  func streamSize(_ dialect: RuleDialect) throws {
    let options =
      dialect == .snort3
      ? ["stream_size:=6,to_server;", "stream_size:<2,to_client;"]
      : ["stream_size:client,=,6;", "stream_size:server,<,2;"]
    var engine = try engine(
      options.enumerated().map {
        "alert tcp any any -> any any (msg:\"\($0.offset)\"; content:\"hello\"; \($0.element) sid:\($0.offset + 1);)"
      }.joined(separator: "\n"), dialect: dialect, settings: EngineUnderTest.immediate)
    var connection = Connection()
    _ = engine.inspect(connection.handshake())
    #expect(engine.inspect(connection.fromClient("hello")) == [1, 2])
    _ = engine.inspect(connection.fromServer("an answer"))
    #expect(engine.inspect(connection.fromClient("hello")) == [])
  }

  // MARK: Rates

  private func fired(_ rate: String, _ frames: [[UInt8]], every: Duration = .seconds(1)) throws -> [Int] {
    var engine = try engine(rule(1, "content:\"x\"; \(rate)"))
    return frames.map { engine.inspect($0, after: every).count }
  }

  @Test("backoff: at the count, and then at each multiple")
  func backoff() throws {
    let frames = Array(repeating: Frame().carrying("x").udp, count: 20)
    let fired = try fired("threshold:type backoff, track by_flow, count 2, multiplier 3;", frames)
    #expect(fired.indices.filter { fired[$0] == 1 }.map { $0 + 1 } == [2, 6, 18])
  }

  @Test("by_flow counts each flow for itself")
  func byFlow() throws {
    let frames = [1, 1, 2, 2].map { Frame(sourcePort: $0).carrying("x").udp }
    #expect(try fired("threshold:type limit, track by_flow, count 1, seconds 60;", frames) == [1, 0, 1, 0])
  }

  @Test("unique_on counts distinct ports only")
  func unique() throws {
    let frames = [1, 1, 2, 3, 3].map { Frame(destinationPort: $0).carrying("x").udp }
    let rate = "detection_filter:track by_src, count 2, seconds 60, unique_on dst_port;"
    #expect(try fired(rate, frames) == [0, 0, 0, 1, 1])
  }

  @Test(
    "Mistakes name what was expected",
    arguments: [
      (RuleDialect.suricata, "flowbits:set;", "needs the name"), (.suricata, "flowbits:put,a;", "`put` is not known"),
      (.suricata, "flowbits:set,a b|;", "is no name"), (.snort2, "flowbits:setx,a;", "needs a group"),
      (.snort2, "flowbits:isset,a&b|c;", "both"), (.snort2, "flowbits:set,a|b;", "joined by `&`"),
      (.suricata, "flowbits:isset,a,g;", "too much"), (.suricata, "flowint:a,?,1;", "no operator"),
      (.suricata, "flowint:a;", "NAME,OPERATOR,VALUE"), (.suricata, "xbits:set,a;", "lacks parts"),
      (.suricata, "xbits:set,a,track ip_any;", "nothing is tracked"),
      (.suricata, "xbits:set,a,track ip_src,expire x;", "expire"),
      (.suricata, "hostbits:set,a,left;", "OPERATION,NAME,SIDE"), (.suricata, "flow.pkts:up,1;", "DIRECTION,NUMBER"),
      (.suricata, "stream_size:client,~,1;", "SIDE,OPERATOR,NUMBER"),
      (.snort3, "stream_size:>1,up;", "NUMBER,DIRECTION"),
      (.suricata, "threshold:type backoff, track by_src, count 1, multiplier 2;", "counts by flow"),
      (.suricata, "threshold:type backoff, track by_flow, count 1;", "lacks multiplier"),
      (.suricata, "tag:everything;", "not known here"),
      (.suricata, "flow:only_stream,no_stream;", "exclude each other"),
    ] as [(RuleDialect, String, String)])
  func mistakes(_ dialect: RuleDialect, _ options: String, _ message: String) {
    let source = RuleSource(file: "f", text: Array(rule(1, options).utf8), dialect: dialect)
    let parsed = RuleFileParser.parse(source, variables: [:])
    #expect(parsed.rejected == 1 && parsed.unsupported.isEmpty)
    #expect(parsed.diagnostics.first?.message.contains(message) == true, "\(parsed.diagnostics)")
  }
}

@Suite struct TCPSessionTests {
  @Test func `how far a connection is can be asked`() throws {
    let rules = ["setup", "established", "closing"].enumerated().map {
      "alert tcp any any -> any any (tcp.session:\($1); sid:\($0 + 1);)"
    }.joined(separator: "\n")
    var engine = try EngineUnderTest(rules, dialect: .suricata)
    var connection = Connection()
    var frames = connection.handshake()
    frames += [connection.fromClient("a"), connection.fromClient("", flags: Frame.fin | Frame.ack)]
    #expect(engine.inspect(frames) == [[1], [1], [2], [2], [3]])
    #expect(engine.inspect(Frame().carrying("a").udp) == [])
  }

  @Test("a side is an elephant once it sent much in a short time, and stays one")
  func elephants() throws {
    let rules = ["toserver", "toclient", "either", "both"].enumerated().map {
      "alert udp any any -> any any (content:\"ask\"; flow.elephant:\($1); sid:\($0 + 1);)"
    }.joined(separator: "\n")
    let ask = Frame().carrying("ask").udp
    let much = Frame().carrying(String(repeating: "x", count: 958)).udp
    func asked(_ settings: [String: String], _ frames: [([UInt8], Duration)]) throws -> [UInt32] {
      var engine = try EngineUnderTest(rules, dialect: .suricata, settings: settings)
      for (frame, delay) in frames { _ = engine.inspect(frame, after: delay) }
      return engine.inspect(ask)
    }
    let settings = ["flow.rate-tracking.bytes": "4000", "flow.rate-tracking.interval": "2"]
    // Each is 1,000 bytes on the wire.
    let quick = Array(repeating: (much, Duration.milliseconds(10)), count: 4)
    #expect(try asked(settings, quick) == [1, 3])
    #expect(try asked(settings, quick + [(ask, .seconds(20))]) == [1, 3], "it stays one")
    #expect(try asked(settings, Array(quick.prefix(3))) == [])
    #expect(try asked(settings, Array(repeating: (much, .seconds(1)), count: 30)) == [], "never so much at a time")
    #expect(try asked([:], quick) == [], "nothing is much unless it is set")
    let answers = Array(
      repeating: (Frame().reply.carrying(String(repeating: "x", count: 958)).udp, Duration.zero), count: 4)
    #expect(try asked(settings, [(ask, .zero)] + answers) == [2, 3])
    #expect(try asked(settings, quick + answers) == [1, 2, 3, 4])
    #expect(try asked(settings, quick + [(Frame(sourcePort: 9).carrying("ask").udp, .zero)]) == [1, 3])
    var other = try EngineUnderTest(rules, dialect: .suricata, settings: settings)
    for (frame, _) in quick { _ = other.inspect(frame) }
    #expect(other.inspect(Frame(sourcePort: 9).carrying("ask").udp) == [], "another flow")
  }

  @Test("stream_reassemble turns a side's stream off and on", arguments: [RuleDialect.snort2, .snort3])
  func reassembly(_ dialect: RuleDialect) throws {
    func option(_ action: String, _ side: String, _ more: String = "") -> String {
      dialect == .snort2
        ? "stream_reassemble:\(action),\(side)\(more);" : "stream_reassemble:action \(action),direction \(side)\(more);"
    }
    for (side, expected) in [("client", false), ("server", true), ("both", false)] {
      var engine = try EngineUnderTest(
        """
        alert tcp any any -> any any (content:"stop"; \(option("disable", side, ",noalert")) sid:1;)
        alert tcp any any -> any any (content:"begin"; \(option("enable", "client")) sid:2;)
        alert tcp any any -> any any (content:"over two segments"; sid:3;)
        alert tcp any any -> any any (content:"again in two parts"; sid:4;)
        """, dialect: dialect)
      var connection = Connection()
      var found: [UInt32] = []
      for frame in connection.handshake() { found += engine.inspect(frame) }
      for text in ["stop", "over two ", "segments"] {
        found += engine.inspect(connection.fromClient(text))
        found += engine.inspect(connection.fromServer("answer"))
      }
      #expect(found.contains(3) == expected, "\(side)")
      #expect(!found.contains(1))
      #expect(engine.statistic("stream_gaps") == 0)
      found = []
      for text in ["begin", "again in ", "two parts"] {
        found += engine.inspect(connection.fromClient(text))
        found += engine.inspect(connection.fromServer("answer"))
      }
      #expect(Set(found) == [2, 4], "\(side)")
    }
  }
}
