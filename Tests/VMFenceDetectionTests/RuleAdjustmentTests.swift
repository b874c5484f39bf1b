import Testing
import VMFenceCore
import VMFenceDetection

/// What an operator changes about rules without touching their files.
@Suite("Rule adjustments") struct RuleAdjustmentTests {
  private func source(_ text: String, _ file: String = "some.rules", _ dialect: RuleDialect? = .suricata) -> RuleSource
  {
    RuleSource(file: file, text: Array(text.utf8), dialect: dialect)
  }

  private func compile(
    _ text: String, _ adjustments: RuleAdjustments, dialect: RuleDialect = .suricata, variables: [String: String] = [:]
  ) throws -> RuleCompilation<SnortRules> {
    try SnortRuleEngine(adjustments: adjustments).compile(
      RuleCompilationRequest(sources: [source(text, "some.rules", dialect)], variables: variables))
  }

  private func engine(
    _ text: String, _ adjustments: RuleAdjustments, dialect: RuleDialect = .suricata, isInline: Bool = false,
    variables: [String: String] = [:]
  ) throws -> EngineUnderTest {
    let result = try compile(text, adjustments, dialect: dialect, variables: variables)
    #expect(result.diagnostics.isEmpty)
    return try EngineUnderTest(result.rules, isInline: isInline)
  }

  private let x = Frame().carrying("x").udp
  private let rule = "alert udp any any -> any any (msg:\"m\"; content:\"x\"; sid:1;)"

  // MARK: Filters

  @Test("suppress silences a rule for hosts, or for all; it still drops")
  func suppress() throws {
    for (filter, expected) in [
      ("suppress gen_id 1, sig_id 1", [false, false]), ("suppress gen_id 1, sig_id 0", [false, false]),
      ("suppress gen_id 1, sig_id 1, track by_src, ip 192.0.2.1", [false, true]),
      ("suppress gen_id 1, sig_id 1, track by_dst, ip 192.0.2.0/24", [true, false]),
      ("suppress gen_id 1, sig_id 1, track by_either, ip [$HOSTS,!192.0.2.9]", [false, false]),
      ("suppress gen_id 1, sig_id 1, track by_src, ip 10.0.0.0/8", [true, true]),
    ] {
      var engine = try engine(
        rule.replacing("alert", with: "drop"), RuleAdjustments(filters: [source(filter)]), isInline: true,
        variables: ["HOSTS": "[192.0.2.0/24]"])
      for (frame, isTold) in zip([Frame(), Frame().reply], expected) {
        #expect(engine.inspect(frame.carrying("x").udp) == (isTold ? [1] : []), "\(filter)")
        #expect(engine.output.verdict == .drop)
      }
    }
  }

  @Test("a threshold for one rule goes over the rule's own, one for all does not")
  func threshold() throws {
    let own = rule.replacing("content", with: "threshold:type limit, track by_src, count 3, seconds 60; content")
    let line = "threshold gen_id 1, sig_id SID, type limit, track by_rule, count 1, seconds 60"
    for (sid, count) in [("1", 1), ("0", 3)] {
      var engine = try engine(own, RuleAdjustments(filters: [source(line.replacing("SID", with: sid))]))
      #expect((0..<5).reduce(0) { sum, _ in sum + engine.inspect(x).count } == count)
    }
    var plain = try engine(
      rule,
      RuleAdjustments(filters: [source(line.replacing("SID", with: "0").replacing("threshold", with: "event_filter"))]))
    #expect((0..<5).reduce(0) { sum, _ in sum + plain.inspect(x).count } == 1)
  }

  @Test("rate_filter gives another action once a rate is exceeded, for a time")
  func rateFilter() throws {
    let line = "rate_filter gen_id 1, sig_id 1, track by_src, count 2, seconds 10, new_action drop, timeout 5"
    var engine = try engine(rule, RuleAdjustments(filters: [source(line)]), isInline: true)
    var verdicts: [Verdict] = []
    for _ in 0..<9 {
      #expect(engine.inspect(x, after: .seconds(1)) == [1])
      verdicts.append(engine.output.verdict)
      if verdicts.last == .drop { #expect(engine.output.dropReason == .rulesThreshold) }
    }
    // From the third on, for five seconds; what ends it is not counted itself.
    #expect(verdicts == [.pass, .pass, .drop, .drop, .drop, .drop, .drop, .drop, .pass])
  }

  @Test("rate_filter may let a rule pass, or make one that drops alert")
  func rateFilterActions() throws {
    let line = "rate_filter gen_id 1, sig_id 1, track by_rule, count 1, seconds 60, new_action NEW, timeout 60"
    var passing = try engine(rule, RuleAdjustments(filters: [source(line.replacing("NEW", with: "pass"))]))
    #expect([passing.inspect(x), passing.inspect(x)] == [[1], []])
    var alerting = try engine(
      rule.replacing("alert", with: "drop"), RuleAdjustments(filters: [source(line.replacing("NEW", with: "alert"))]),
      isInline: true)
    #expect(alerting.inspect(x) == [1])
    #expect(alerting.output.verdict == .drop)
    #expect(alerting.inspect(x) == [1])
    #expect(alerting.output.verdict == .pass)
  }

  @Test("filter lines stand in rule files, too, over several lines, before or behind their rules")
  func inRuleFiles() throws {
    let text = """
      event_filter \\
        gen_id 1, sig_id 1, \\
        type both, track by_dst, count 2, seconds 60
      \(rule)
      suppress gen_id 1, sig_id 2
      alert udp any any -> any any (msg:"m"; content:"x"; sid:2;)
      """
    var engine = try engine(text, RuleAdjustments(), dialect: .snort2)
    #expect([engine.inspect(x), engine.inspect(x), engine.inspect(x)] == [[], [1], []])
  }

  @Test("a filter for a rule that is not there is told")
  func noSuchRule() throws {
    let result = try compile(
      rule, RuleAdjustments(filters: [source("\nsuppress gen_id 1, sig_id 9", "threshold.config")]))
    #expect(result.diagnostics.map(\.severity) == [.warning])
    #expect(result.diagnostics.first?.place == SourcePlace(file: "threshold.config", line: 2, column: 1))
    #expect(result.diagnostics.first?.message == "there is no rule 1:9 to filter")
  }

  @Test(
    "mistakes in filter lines name their place, and reject no rule",
    arguments: [
      ("suppress gen_id 1", 10, "lacks sig_id"), ("suppress gen_id x, sig_id 1", 17, "`x` is no number"),
      ("suppress gen_id 1, sig_id 1, track by_src", 10, "lacks ip"),
      ("suppress gen_id 1, sig_id 1, track by_src, ip 1.2.3", 47, "`1.2.3` is not an address"),
      ("suppress gen_id 1, sig_id 1, track sideways, ip any", 36, "`sideways` is not known"),
      ("threshold gen_id 1, sig_id 1, type some, track by_src, count 1, seconds 1", 36, "`some` is not known"),
      ("threshold gen_id 1, sig_id 1, type limit, track by_src, count 1", 11, "lacks seconds"),
      ("threshold gen_id 1, gen_id 1", 21, "a second `gen_id`"),
      ("suppress gen_id 1, sig_id 1, foo 2", 34, "`foo` is not known"),
      (
        "rate_filter gen_id 1, sig_id 1, track by_src, count 1, seconds 1, new_action explode, timeout 1", 78,
        "`explode`"
      ),
    ])
  func mistakes(_ line: String, _ column: Int, _ message: String) throws {
    let result = try compile(rule, RuleAdjustments(filters: [source(line, "threshold.config")]))
    #expect(result.loaded == 1 && result.rejected == 0)
    #expect(result.diagnostics.count == 1 && result.diagnostics[0].severity == .error)
    #expect(result.diagnostics.first?.message.contains(message) == true, "\(result.diagnostics)")
    #expect(result.diagnostics.first?.place == SourcePlace(file: "threshold.config", line: 1, column: column))
  }

  // MARK: Lists

  private let several = """
    alert udp any any -> any any (msg:"Heartbleed attempt"; content:"x"; sid:1;)
    # alert udp any any -> any any (msg:"off"; content:"x"; sid:2;)
    #alert udp any any -> any any (msg:"off, too"; content:"x"; gid:3; sid:3;)
    # only words about sid:2; no rule
    alert udp any any -> any any (msg:"setter"; content:"x"; flowbits:set,a; noalert; sid:4;)
    alert udp any any -> any any (msg:"last"; content:"x"; sid:5;)
    """

  @Test(
    "rules are turned off and on by id, by file and by expression",
    arguments: [
      ("", "", [1, 5]), ("1:2", "", [1, 2, 5]), ("3:3, 2", "", [1, 2, 3, 5]), ("# none\n2 # one", "1", [2, 5]),
      ("", "re:heart.*attempt", [5]), ("re:off, t", "group:other", [1, 3, 5]), ("group:some.rules", "", [1, 2, 3, 5]),
      ("2", "group:some\n", []), ("", "group:so*.rules", []),
    ] as [(String, String, Set<UInt32>)])
  func lists(_ enabled: String, _ disabled: String, _ expected: Set<UInt32>) throws {
    let adjustments = RuleAdjustments(enabled: [source(enabled)], disabled: [source(disabled)])
    let text =
      several + "\n" + rule.replacing("sid:1", with: "sid:99").replacing("content:\"x\"", with: "content:\"y\"")
    let request = RuleCompilationRequest(
      sources: [source(several), source(text.split(separator: "\n").last.map(String.init) ?? "", "else.rules")])
    let result = try SnortRuleEngine(adjustments: adjustments).compile(request)
    #expect(result.diagnostics.isEmpty && result.rejected == 0, "\(result.diagnostics)")
    var engine = try EngineUnderTest(result.rules)
    #expect(Set(engine.inspect(x)) == expected)
  }

  @Test("rules of the drop list drop; those that say nothing are left as they are")
  func dropList() throws {
    var engine = try engine(several, RuleAdjustments(dropping: [source("re:last\n4")]), isInline: true)
    #expect(Set(engine.inspect(x)) == [1, 5])
    #expect(engine.output.verdict == .drop)
    #expect(engine.rules.metadata(at: Int(engine.output.verdictRule)).sid == 5)
  }

  @Test("mistakes in lists name their place")
  func listMistakes() throws {
    let result = try compile(rule, RuleAdjustments(disabled: [source("1:2\n  one:2\nre:(\n1:2:3", "disable.conf")]))
    #expect(result.diagnostics.map(\.place?.line) == [2, 3, 4])
    #expect(result.diagnostics.map(\.place?.column) == [3, 1, 1])
    #expect(result.diagnostics.allSatisfy { $0.severity == .error })
  }

  // MARK: Definitions and order

  @Test("classes and reference systems may stand in a file of their own")
  func definitions() throws {
    let text =
      "alert udp any any -> any any (msg:\"m\"; classtype:mine; reference:cve,2014-6271; reference:url,a.b/c; sid:1;)"
    let definitions = """
      # classes
      config classification: mine,My own,7
      config reference: cve https://cve.example/CVE-
      """
    let result = try compile(text, RuleAdjustments(definitions: [source(definitions)]))
    #expect(result.diagnostics.isEmpty)
    let metadata = result.rules.metadata(at: 0)
    #expect(metadata.priority == 7 && metadata.classificationText == "My own")
    #expect(metadata.references == ["https://cve.example/CVE-2014-6271", "url,a.b/c"])
    let bad = try compile(text, RuleAdjustments(definitions: [source("config reference: cve", "reference.config")]))
    #expect(bad.diagnostics.contains { $0.severity == .error && $0.place?.file == "reference.config" })
  }

  @Test("the order of actions decides what a pass rule silences")
  func actionOrder() throws {
    let text = """
      alert udp any any -> any any (msg:"a"; content:"x"; sid:1;)
      pass udp any any -> any any (msg:"p"; content:"x"; sid:2;)
      drop udp any any -> any any (msg:"d"; content:"x"; sid:3;)
      """
    for (order, sids, verdict) in [
      ("pass,drop,reject,alert", [], Verdict.pass), ("drop,pass,reject,alert", [3], .drop),
      ("drop alert reject pass", [3, 1], .drop), ("alert,pass,drop,reject", [1], .pass),
    ] as [(String, [UInt32], Verdict)] {
      var engine = try engine(text, RuleAdjustments(actionOrder: RuleActionOrder(order)), isInline: true)
      #expect(engine.inspect(x) == sids, "\(order)")
      #expect(engine.output.verdict == verdict)
    }
    #expect(RuleActionOrder("pass,drop,alert") == nil)
    #expect(RuleActionOrder("pass,pass,drop,alert") == nil)
    #expect(RuleActionOrder("pass,drop,reject,shout") == nil)
  }
}
