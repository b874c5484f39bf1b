import Testing
import VMFenceCore
import VMFenceDetection

/// Captures of `pcre` that go to variables, and the options that ask for them.
@Suite("Captured values") struct CaptureTests {
  private static func rule(_ sid: Int, _ options: String) -> String {
    "alert udp any any -> any any (\(options) sid:\(sid);)"
  }

  private static let user = rule(1, "pcre:\"/user=(\\w+) from=(\\w+)/\", flow:name, pkt:place;")

  /// Compiled as rule files are: those that ask come after those that capture.
  private func fired(_ rules: [String], _ frames: [[UInt8]]) throws -> [[UInt32]] {
    let source = RuleSource(file: "f", text: Array(rules.joined(separator: "\n").utf8), dialect: .suricata)
    let request = RuleCompilationRequest(sources: [source], onBadRule: .fail)
    var engine = try EngineUnderTest(try SnortRuleEngine().compile(request).rules)
    return engine.inspect(frames)
  }

  @Test("a flow's value is there for its later packets, both ways, and for no other flow")
  func flowValues() throws {
    let frames = [
      Frame().carrying("ask").udp, Frame().carrying("user=root from=here").udp, Frame().carrying("ask").udp,
      Frame().reply.carrying("ask").udp, Frame(sourcePort: 7).carrying("ask").udp,
      Frame().carrying("user=guest from=here").udp, Frame().carrying("ask").udp,
    ]
    let asks = Self.rule(2, "content:\"ask\"; flowvar:name,\"root\";")
    #expect(try fired([Self.user, asks], frames) == [[], [1], [2], [2], [], [1], []])
    // Of a part of it, in bytes; and what is not so. Without a value neither is true.
    let part = Self.rule(2, "content:\"ask\"; flowvar:name,\"|6f 6f|\";")
    #expect(try fired([Self.user, part], frames) == [[], [1], [2], [2], [], [1], []])
    let other = Self.rule(2, "content:\"ask\"; flowvar:name,!\"root\";")
    #expect(try fired([Self.user, other], frames) == [[], [1], [], [], [], [1], [2]])
  }

  @Test("a packet's value is there for its other rules only, in whatever order they stand")
  func packetValues() throws {
    let asks = Self.rule(2, "content:\"user\"; pktvar:place,\"here\";")
    let frames = [
      Frame().carrying("user=a from=here").udp, Frame().carrying("user").udp,
      Frame().carrying("user=a from=there!").udp,
    ]
    #expect(try fired([asks, Self.user], frames).map { Set($0) } == [[1, 2], [], [1, 2]])
    #expect(try fired([Self.user, asks], Array(frames.prefix(2))).map { Set($0) } == [[1, 2], []])
  }

  @Test("groups may name their variables themselves")
  func named() throws {
    let user = Self.rule(1, "pcre:\"/user=(?P<flow_name>\\w+)(?: from=(?P<pkt_place>\\w+))?/\";")
    let asks = Self.rule(2, "flowvar:name,\"root\"; pktvar:place,\"home\";")
    let frames = [Frame().carrying("user=root").udp, Frame().carrying("user=root from=home").udp]
    #expect(try fired([user, asks], frames).map { Set($0) } == [[1], [1, 2]])
  }

  /// What the first alert of a packet has captured, as NAME=VALUE.
  private func told(_ rule: String, _ payload: String) throws -> [String] {
    let source = RuleSource(file: "f", text: Array(rule.utf8), dialect: .suricata)
    var engine = try EngineUnderTest(
      try SnortRuleEngine().compile(RuleCompilationRequest(sources: [source], onBadRule: .fail)).rules)
    #expect(engine.inspect(Frame().carrying(payload).udp).first == 1)
    let captures = engine.output[0].captures(engine.rules.metadata(at: 0).captures)
    return captures.map { "\($0.name)=\(String(decoding: $0.value, as: UTF8.self))" }
  }

  @Test("what is captured for the alert goes with it, by name, with the captures of other kinds beside")
  func alertValues() throws {
    let three = "pcre:\"/user=(\\w+) from=(\\w+) as=(\\w+)/\", flow:name, alert:place, alert:role;"
    #expect(try told(Self.rule(1, three), "user=root from=here as=admin") == ["place=here", "role=admin"])
    let named = "pcre:\"/as=(?P<alert_role>\\w+)/\"; pcre:\"/user=(?P<alert_user>\\w+)/\";"
    #expect(try told(Self.rule(1, named), "user=root as=admin") == ["role=admin", "user=root"])
    // A rule without such captures has none, though another one of the packet does.
    #expect(try told(Self.rule(1, "content:\"user\";") + "\n" + Self.rule(2, named), "user=a as=b") == [])
    // 63 bytes in all: two and the value's own for each; what does not fit is cut, or left out.
    let long = String(repeating: "x", count: 50)
    let two = "pcre:\"/a=(\\w+) b=(\\w+) c=(\\w+)/\", alert:a, alert:b, alert:c;"
    #expect(try told(Self.rule(1, two), "a=\(long) b=\(long) c=y") == ["a=\(long)", "b=xxxxxxxxx"])
  }

  @Test("of the values for the alert a rule has four at the most")
  func tooManyAlertValues() {
    let options = (1...5).map { "pcre:\"/a(b)/\", alert:n\($0);" }.joined(separator: " ")
    let result = RuleFileParser.parse(
      RuleSource(file: "f", text: Array(Self.rule(1, options).utf8), dialect: .suricata), variables: [:])
    #expect(result.diagnostics.contains { $0.severity == .error && $0.message.contains("for the alert of one rule") })
  }

  @Test("nothing is captured by a rule that does not match in the end, and none of it reaches another rule")
  func unmatched() throws {
    let user = Self.rule(1, "pcre:\"/user=(\\w+)/\", flow:name; content:\"never\";")
    let other = Self.rule(3, "content:\"user\";")
    let asks = Self.rule(2, "flowvar:name,\"root\";")
    #expect(
      try fired([user, other, asks], [Frame().carrying("user=root").udp, Frame().carrying("x").udp]) == [[3], []])
  }

  @Test("what matched last counts, where a later test made the expression go on")
  func backtracking() throws {
    let user = Self.rule(1, "pcre:\"/user=(\\w+)/\", flow:name; content:\"!\"; distance:0; within:1;")
    let asks = Self.rule(2, "content:\"ask\"; flowvar:name,\"second\";")
    let frames = [Frame().carrying("user=first user=second! user=third").udp, Frame().carrying("ask").udp]
    #expect(try fired([user, asks], frames) == [[1], [2]])
  }

  @Test("a stream's value outlives a change of rules")
  func newRules() throws {
    let text = "alert tcp any any -> any any (flow:established; pcre:\"/user=(\\w+) /\", flow:name; sid:1;)"
    let asks = "alert tcp any any -> any any (flow:established; content:\"ask\"; flowvar:name,\"root\"; sid:2;)"
    var engine = try EngineUnderTest(text, dialect: .suricata)
    var connection = Connection()
    _ = engine.inspect(connection.handshake())
    var found = engine.inspect([
      connection.fromClient("user=ro"), connection.fromClient("ot and "), connection.fromServer("yes"),
    ])
    #expect(found.flatMap { $0 } == [1])
    let rules = try compiled(text + "\n" + asks, dialect: .suricata)
    try engine.inspector.replaceRules(with: rules)
    engine.rules = rules
    found = engine.inspect([connection.fromClient("ask"), connection.fromServer("yes")])
    #expect(found.flatMap { $0 } == [2])
  }

  @Test("long values are cut, and floods of them are counted")
  func limits() throws {
    let long = Self.rule(1, "pcre:\"/user=(\\w+)/\", flow:name;")
    let asks = Self.rule(2, "content:\"ask\"; flowvar:name,\"aab\";")
    var engine = try EngineUnderTest(long + "\n" + asks, dialect: .suricata)
    let letters = String(repeating: "a", count: 127)
    _ = engine.inspect(Frame().carrying("user=\(letters)b").udp)
    #expect(engine.inspect(Frame().carrying("ask").udp) == [2])
    _ = engine.inspect(Frame().carrying("user=a\(letters)b").udp)
    #expect(engine.inspect(Frame().carrying("ask").udp) == [])
    for port in 1...9000 { _ = engine.inspect(Frame(sourcePort: UInt16(port)).carrying("user=x").udp) }
    #expect((engine.statistic("captures_evicted") ?? 0) > 5000)
  }

  @Test(
    "mistakes name what was expected",
    arguments: [
      ("pcre:\"/(a)/\", host:x;", "is no variable"), ("pcre:\"/(a)/\", flow;", "is no variable"),
      ("pcre:\"/(a)(b)(c)(d)(e)/\", flow:a, flow:b, flow:c, flow:d, flow:e;", "more than 4"),
      ("flowvar:name;", "is not NAME"), ("flowvar:name,root;", "not in quotation marks"),
      ("pktvar:name,\"\";", "is empty"), ("flowvar:a|b,\"x\";", "is no name"),
    ])
  func mistakes(_ options: String, _ message: String) {
    let source = RuleSource(file: "f", text: Array(Self.rule(1, options).utf8), dialect: .suricata)
    let parsed = RuleFileParser.parse(source, variables: [:])
    #expect(parsed.rejected == 1 && parsed.unsupported.isEmpty)
    #expect(parsed.diagnostics.first?.message.contains(message) == true, "\(parsed.diagnostics)")
  }
}
