import Testing
import VMFenceCore
import VMFenceDetection

/// What happens once a rule matched: order, verdicts, rates, activation.
@Suite struct EngineActionTests {
  /// Rules as the engine's front compiles them, in their order of resolution.
  private func engine(
    _ text: String, dialect: RuleDialect = .snort2, isInline: Bool = false
  ) throws -> EngineUnderTest {
    let source = RuleSource(file: "test.rules", text: Array(text.utf8), dialect: dialect)
    let result = try SnortRuleEngine().compile(RuleCompilationRequest(sources: [source], onBadRule: .fail))
    return try EngineUnderTest(result.rules, isInline: isInline)
  }

  @Test("pass silences all other rules for the packet, wherever it stands in the file")
  func pass() throws {
    var engine = try engine(
      """
      alert tcp any any -> any any (content:"bad"; sid:1;)
      drop tcp any any -> any any (content:"bad"; sid:2;)
      pass tcp 192.0.2.1 any -> any any (content:"scanner"; sid:3;)
      """)
    #expect(engine.inspect(Frame().carrying("bad").tcp) == [2, 1])
    #expect(engine.output.verdict == .drop)
    #expect(engine.inspect(Frame().carrying("bad scanner").tcp) == [])
    #expect(engine.output.verdict == .pass)
    #expect(engine.inspect(Frame().carrying("bad").tcp) == [2, 1], "Snort passes the packet, not the flow")
    #expect(engine.inspect(Frame(source: "192.0.2.2").carrying("bad scanner").tcp) == [2, 1])
  }

  @Test("in Suricata a rule about addresses alone passes the rest of the flow, one about packets the packet")
  func passFlow() throws {
    var engine = try engine(
      """
      alert udp any any -> any any (msg:"a"; content:"bad"; sid:1;)
      pass udp any any -> any 99 (msg:"p"; sid:3;)
      pass udp any any -> any any (msg:"q"; dsize:9; sid:4;)
      """, dialect: .suricata)
    let other = Frame(destinationPort: 99)
    #expect(engine.inspect(Frame().carrying("bad").udp) == [1])
    #expect(engine.inspect(other.carrying("quiet").udp) == [])
    #expect(engine.inspect(other.reply.carrying("bad").udp) == [])
    #expect(engine.statistic("packets_passed") == 2)
    #expect(engine.inspect(Frame().carrying("bad, long").udp) == [])
    #expect(engine.inspect(Frame().carrying("bad").udp) == [1])
  }

  @Test("Suricata compares a rule about addresses alone once in each direction of a flow")
  func addressOnly() throws {
    var engine = try engine(
      """
      alert udp any any -> any any (msg:"a"; sid:1;)
      alert udp any any -> ![10.0.0.1] any (msg:"b"; sid:2;)
      alert udp any any -> any any (msg:"c"; flow:to_server; sid:3;)
      """, dialect: .suricata)
    let frame = Frame()
    #expect(engine.inspect(frame.udp).sorted() == [1, 2, 3])
    #expect(engine.inspect(frame.udp).sorted() == [2, 3])
    #expect(engine.inspect(frame.reply.udp).sorted() == [1, 2])
    #expect(engine.inspect(frame.reply.udp).sorted() == [2])
    #expect(engine.inspect(Frame(sourcePort: 7).udp).sorted() == [1, 2, 3])
  }

  @Test("in Suricata a drop is for the packet, that of a rule about addresses alone for the flow")
  func suricataScope() throws {
    for (options, holds) in [("content:\"bad\";", false), ("dsize:3;", false), ("", true)] {
      var engine = try engine(
        "drop udp any any -> any any (msg:\"d\"; \(options) sid:1;)", dialect: .suricata, isInline: true)
      #expect(engine.inspect(Frame().carrying("bad").udp) == [1])
      #expect(engine.output.verdict == .drop)
      #expect(engine.output.dropReason == .rules)
      #expect(engine.inspect(Frame().carrying("other").udp) == [])
      #expect(engine.output.verdict == (holds ? .drop : .pass))
      if holds { #expect(engine.output.dropReason == .flowDrop) }
    }
  }

  @Test("what a SYN carries does not cut the connection; what the stream does after the handshake cuts it")
  func dropInStream() throws {
    let text = "drop tcp any any -> any any (msg:\"d\"; content:\"bad\"; sid:1;)"
    var forged = try engine(text, dialect: .suricata, isInline: true)
    #expect(forged.inspect(Frame(flags: Frame.syn).carrying("bad").tcp) == [1])
    #expect(forged.output.verdict == .drop)
    _ = forged.inspect(Frame(flags: Frame.syn).tcp)
    #expect(forged.output.verdict == .pass)

    var cut = try engine(text, dialect: .suricata, isInline: true)
    var connection = Connection()
    _ = cut.inspect(connection.handshake())
    #expect(cut.inspect(connection.fromClient("bad")) == [1])
    #expect(cut.inspect(connection.fromServer("good")) == [])
    #expect(cut.output.dropReason == .flowDrop)
  }

  @Test("noalert silences a rule that drops all the same; alert makes a pass rule tell, once it passed")
  func telling() throws {
    var engine = try engine(
      """
      pass udp any any -> any 99 (msg:"p"; alert; sid:1;)
      drop udp any any -> any any (msg:"d"; noalert; sid:2;)
      alert udp any any -> any any (msg:"a"; content:"x"; sid:3;)
      """, dialect: .suricata, isInline: true)
    #expect(engine.inspect(Frame(destinationPort: 99).carrying("x").udp) == [1])
    #expect(engine.output.verdict == .pass)
    #expect(engine.inspect(Frame().carrying("x").udp) == [3])
    #expect(engine.output.verdict == .drop)
    #expect(engine.output[0].flags.isDisjoint(with: [.drops, .rejects]))
  }

  @Test("bypass ends the inspection of its flow")
  func bypass() throws {
    var engine = try engine(
      """
      alert udp any any -> any any (msg:"b"; content:"bulk"; bypass; sid:1;)
      alert udp any any -> any any (msg:"a"; content:"bad"; sid:2;)
      """, dialect: .suricata)
    #expect(engine.inspect(Frame().carrying("bad bulk").udp) == [1, 2])
    #expect(engine.inspect(Frame().carrying("bad").udp) == [])
    #expect(engine.inspect(Frame(sourcePort: 7).carrying("bad").udp) == [2])
    #expect(engine.statistic("packets_bypassed") == 1)
  }

  @Test("inline, a drop holds for the flow; passive, the flow goes on and is inspected")
  func dropFlow() throws {
    let text = """
      drop tcp any any -> any any (content:"bad"; sid:1;)
      alert tcp any any -> any any (content:"worse"; sid:2;)
      """
    var inline = try engine(text, isInline: true)
    #expect(inline.inspect(Frame().carrying("bad").tcp) == [1])
    #expect(inline.output.verdict == .drop)
    #expect(inline.output.verdictRule == 0)
    #expect(inline.inspect(Frame().carrying("worse").tcp) == [])
    #expect(inline.output.verdict == .drop)
    #expect(inline.output.verdictRule == 0)
    #expect(inline.inspect(Frame().reply.carrying("worse").tcp) == [])
    #expect(inline.output.verdict == .drop)
    #expect(inline.inspect(Frame(sourcePort: 9).carrying("worse").tcp) == [2])
    #expect(inline.output.verdict == .pass)
    #expect(inline.statistic("packets_dropped") == 3)

    var passive = try engine(text)
    #expect(passive.inspect(Frame().carrying("bad").tcp) == [1])
    #expect(passive.output.verdict == .drop)
    #expect(passive.inspect(Frame().carrying("worse").tcp) == [2])
    #expect(passive.output.verdict == .pass)
  }

  @Test("in Snort 3 drop is for the packet, block for the flow")
  func snort3Scope() throws {
    for (action, holds) in [("drop", false), ("block", true)] {
      var engine = try engine(
        "\(action) tcp any any -> any any (content:\"bad\"; sid:1;)", dialect: .snort3, isInline: true)
      _ = engine.inspect(Frame().carrying("bad").tcp)
      #expect(engine.output.verdict == .drop)
      _ = engine.inspect(Frame().carrying("good").tcp)
      #expect(engine.output.verdict == (holds ? .drop : .pass))
    }
  }

  @Test("reject is a verdict of its own; sdrop says nothing; the first rule decides")
  func otherVerdicts() throws {
    var reject = try engine("reject tcp any any -> any any (content:\"bad\"; sid:1;)")
    #expect(reject.inspect(Frame().carrying("bad").tcp) == [1])
    #expect(reject.output.verdict == .reject)
    var silent = try engine("sdrop tcp any any -> any any (content:\"bad\"; sid:1;)")
    #expect(silent.inspect(Frame().carrying("bad").tcp) == [])
    #expect(silent.output.verdict == .drop)
    var both = try engine(
      """
      reject tcp any any -> any any (content:"bad"; sid:1;)
      drop tcp any any -> any any (content:"bad"; sid:2;)
      """)
    #expect(both.inspect(Frame().carrying("bad").tcp) == [2, 1])
    #expect(both.output.verdict == .reject, "dropped, and the ends are told")
    #expect(both.output.verdictRule == 0)
    #expect(both.output.rejectRule == 1)
    #expect(both.output[0].flags.contains(.drops))
    #expect(both.output[1].flags.contains(.rejects))
  }

  @Test("what tells the ends is one verdict, whatever the dialect calls it; passive, the packet goes on")
  func tellingTheEnds() throws {
    for (text, dialect, action) in [
      ("react tcp any any -> any any (content:\"bad\"; sid:1;)", .snort3, .react),
      ("alert tcp any any -> any any (content:\"bad\"; react:block, msg; sid:1;)", .snort2, .react),
      ("alert tcp any any -> any any (content:\"bad\"; resp:rst_all; sid:1;)", .snort2, .rejectBoth),
      ("log tcp any any -> any any (content:\"bad\"; resp:rst_snd,icmp_port; sid:1;)", .snort2, .rejectSource),
      ("drop tcp any any -> any any (content:\"bad\"; resp:reset_dest; sid:1;)", .snort2, .rejectDestination),
    ] as [(String, RuleDialect, RuleAction)] {
      for isInline in [true, false] {
        var engine = try EngineUnderTest(
          text, dialect: dialect, isInline: isInline, settings: EngineUnderTest.immediate)
        #expect(engine.rules.metadata(at: 0).action == action, "\(text)")
        #expect(engine.inspect(Frame().carrying("bad").tcp) == [1])
        #expect(engine.output.verdict == .reject && engine.output.rejectRule == 0)
        #expect(engine.output[0].flags.contains(.rejects))
        // Inline, the flow is over.
        _ = engine.inspect(Frame(sequence: 1003).carrying("good").tcp)
        #expect(engine.output.verdict == (isInline ? .drop : .pass), "\(text)")
      }
    }
  }

  @Test("a rule of Snort 3 that says so is off")
  func enable() throws {
    let result = RuleFileParser.parse(
      RuleSource(
        file: "a.rules",
        text: Array(
          "alert tcp any any -> any any ( enable:no; sid:1; )\nalert tcp any any -> any any ( enable:inherit; sid:2; )"
            .utf8), dialect: .snort3), variables: [:])
    #expect(result.rules.map(\.metadata.sid) == [2] && result.disabled == 1 && result.rejected == 0)
  }

  @Test("each rule alerts once for a packet, in the order of resolution")
  func order() throws {
    var engine = try engine(
      """
      log tcp any any -> any 80 (content:"a"; sid:4;)
      alert ip any any -> any any (content:"a"; sid:3;)
      alert tcp any any -> any 80 (content:"a"; sid:1;)
      alert tcp any 40000 -> any any (content:"aaa"; sid:2;)
      """)
    #expect(engine.inspect(Frame().carrying("aaaa aaaa").tcp) == [1, 2, 3, 4])
  }

  @Test("activate turns on its dynamic rules for their number of packets, from the next packet on")
  func activation() throws {
    var engine = try engine(
      """
      activate tcp any any -> any 143 (content:"exploit"; activates:1; sid:1;)
      dynamic tcp any any -> any 143 (activated_by:1; count:3; sid:2;)
      dynamic tcp any any -> any 144 (activated_by:2; count:3; sid:3;)
      """)
    let frame = Frame(destinationPort: 143)
    #expect(engine.inspect(frame.carrying("quiet").tcp) == [])
    #expect(engine.inspect(frame.carrying("exploit").tcp) == [1])
    #expect(engine.inspect(Frame().carrying("elsewhere").tcp) == [])
    for _ in 0..<3 { #expect(engine.inspect(frame.carrying("after").tcp) == [2]) }
    #expect(engine.inspect(frame.carrying("after").tcp) == [])
    #expect(engine.inspect(frame.carrying("exploit").tcp) == [1])
    #expect(engine.inspect(frame.carrying("exploit").tcp) == [1, 2])
    #expect(engine.inspect(frame.with { $0.destinationPort = 144 }.carrying("after").tcp) == [])
  }

  // MARK: Rates

  /// How often a rule fires for `count` packets a second apart.
  private func fired(_ rate: String, packets: Int, every: Duration = .seconds(1), seed: [String] = ["192.0.2.1"]) throws
    -> [[Int]]
  {
    var engine = try engine("alert tcp any any -> any any (content:\"x\"; \(rate) sid:1;)")
    return (0..<packets).map { _ in
      seed.map { source in
        let frame = Frame(source: source).carrying("x").tcp
        return engine.inspect(frame, after: source == seed.first ? every : .zero).count
      }
    }
  }

  @Test("limit: the first of each window")
  func limit() throws {
    let rate = "threshold:type limit, track by_src, count 2, seconds 5;"
    #expect(try fired(rate, packets: 8).flatMap { $0 } == [1, 1, 0, 0, 0, 1, 1, 0])
  }

  @Test("threshold: every n-th")
  func threshold() throws {
    let rate = "threshold:type threshold, track by_src, count 3, seconds 60;"
    #expect(try fired(rate, packets: 7).flatMap { $0 } == [0, 0, 1, 0, 0, 1, 0])
    // Too slow: the window is over before the third.
    #expect(try fired(rate, packets: 7, every: .seconds(31)).flatMap { $0 } == [0, 0, 0, 0, 0, 0, 0])
  }

  @Test("both: once in a window, at the n-th")
  func both() throws {
    let rate = "threshold:type both, track by_dst, count 2, seconds 5;"
    #expect(try fired(rate, packets: 8).flatMap { $0 } == [0, 1, 0, 0, 0, 0, 1, 0])
  }

  @Test("detection_filter: silent for n, then all")
  func detectionFilter() throws {
    let rate = "detection_filter:track by_src, count 3, seconds 60;"
    #expect(try fired(rate, packets: 6).flatMap { $0 } == [0, 0, 0, 1, 1, 1])
  }

  @Test("Snort's windows are whole seconds of the clock, Suricata's begin with the first match")
  func wholeSeconds() throws {
    let text = """
      alert tcp any any -> any any (msg:"m"; content:"x"; detection_filter:track by_src, count 3, seconds 1; sid:1;)
      """
    for (dialect, expected) in [(RuleDialect.snort2, [0, 0, 0, 0, 0, 1, 1]), (.suricata, [0, 0, 0, 1, 1, 1, 0])] {
      var engine = try engine(text, dialect: dialect)
      let frame = Frame().carrying("x").tcp
      // At 0.6, 0.8, 1.0, 1.2, 1.4, 1.6 and 1.8 seconds; Suricata's window has its end in it.
      _ = engine.inspect([], after: .milliseconds(400))
      let fired = (0..<7).map { _ in engine.inspect(frame, after: .milliseconds(200)).count }
      #expect(fired == expected)
    }
  }

  @Test("what is counted by source is counted for each source")
  func track() throws {
    let sources = ["192.0.2.1", "192.0.2.2"]
    let bySource = "threshold:type limit, track by_src, count 1, seconds 60;"
    #expect(try fired(bySource, packets: 2, seed: sources) == [[1, 1], [0, 0]])
    let byDestination = "threshold:type limit, track by_dst, count 1, seconds 60;"
    #expect(try fired(byDestination, packets: 2, seed: sources) == [[1, 0], [0, 0]])
  }

  @Test("a threshold limits alerts, never a verdict")
  func thresholdAndVerdict() throws {
    var engine = try engine(
      "drop tcp any any -> any any (content:\"x\"; threshold:type limit, track by_src, count 1, seconds 60; sid:1;)")
    #expect(engine.inspect(Frame().carrying("x").tcp) == [1])
    #expect(engine.inspect(Frame().carrying("x").tcp) == [])
    #expect(engine.output.verdict == .drop)
  }

  @Test("counts outlive a reload of the same rules")
  func ratesOutliveReload() throws {
    let text =
      "alert tcp any any -> any any (content:\"x\"; threshold:type limit, track by_src, count 1, seconds 60; sid:1;)"
    var engine = try engine(text)
    #expect(engine.inspect(Frame().carrying("x").tcp) == [1])
    let next = try compiled("alert udp any any -> any any (sid:9;)\n" + text)
    try engine.inspector.replaceRules(with: next)
    engine.rules = next
    #expect(engine.inspect(Frame().carrying("x").tcp) == [])
  }

  @Test("the table of counts is bounded; what gives way is counted")
  func rateCapacity() throws {
    var engine = try engine(
      "alert udp any any -> any any (threshold:type limit, track by_src, count 1, seconds 60; sid:1;)")
    for number in 0..<30_000 {
      let source = "10.\(number >> 16 & 0xFF).\(number >> 8 & 0xFF).\(number & 0xFF)"
      _ = engine.inspect(Frame(source: source).udp, after: .microseconds(1))
    }
    #expect(engine.statistic("rates_evicted").map { $0 >= 30_000 - 16_384 } == true)
  }

  // MARK: The engine's front

  @Test("a bad rule is listed and the rest load, or the load fails, as asked")
  func badRule() throws {
    let text = "alert tcp any any -> any any (content:\"x\"; sid:1;)\nalert tcp any any -> any (sid:2;)\n"
    let source = RuleSource(file: "some.rules", text: Array(text.utf8), dialect: .snort2)
    let result = try SnortRuleEngine().compile(RuleCompilationRequest(sources: [source]))
    #expect(result.loaded == 1)
    #expect(result.rejected == 1)
    #expect(result.rules.ruleCount == 1)
    #expect(result.diagnostics.contains { $0.severity == .error && $0.place?.line == 2 })
    let error = #expect(throws: RuleCompilationError.self) {
      try SnortRuleEngine().compile(RuleCompilationRequest(sources: [source], onBadRule: .fail))
    }
    #expect(error?.code == .badRule)
    #expect(error?.place?.line == 2)
  }

  @Test("an empty rule set is refused by the front; the engine itself follows flows and says nothing")
  func noRules() throws {
    let error = #expect(throws: RuleCompilationError.self) {
      try SnortRuleEngine().compile(RuleCompilationRequest(sources: []))
    }
    #expect(error?.code == .noRules)
    var engine = try EngineUnderTest(try SnortRules(compiling: []))
    for frame in EngineFrames.sample { #expect(engine.inspect(frame) == []) }
    #expect(engine.statistic("flows").map { $0 > 0 } == true)
  }
}
