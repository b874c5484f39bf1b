import Testing
import VMFenceCore

@Suite("What a policy may say and hardly anybody means")
struct PolicyWarningTests {
  private func warnings(_ rules: PolicyRule..., change: (inout Policy) -> Void = { _ in }) -> [Diagnostic] {
    var policy = Policy(rules: rules)
    change(&policy)
    return policy.validate().filter { $0.severity == .warning }
  }

  private static let class1: [EventSelector] = [.classification("attempted-user")]
  private static let quarantine = [LadderStep(.quarantine, for: .seconds(60))]

  private static let prefixes: [(v4: Int, v6: Int, says: [String])] = [
    (8, 48, ["3 alerts are enough to block all of an IPv4 network of /8"]), (15, 32, ["IPv4 network of /15"]),
    (16, 32, []), (24, 31, ["IPv6 network of /31"]), (24, 16, ["IPv6 network of /16"]),
    (8, 16, ["IPv4 network of /8", "IPv6 network of /16"]),
  ]

  @Test("a block of a network that strangers share is warned of, from the first prefix that is", arguments: prefixes)
  func wide(v4: Int, v6: Int, says: [String]) {
    let found = warnings(rule("wide", Self.class1, per: .sourceNetwork(v4Prefix: v4, v6Prefix: v6)))
    #expect(found.count == says.count)
    for (warning, text) in zip(found, says) {
      #expect(warning.message.hasPrefix("rule 'wide': ") && warning.message.contains(text))
      #expect(warning.remedy.contains("longer prefix"))
    }
  }

  @Test("such a network that is not blocked is none of it, and a prefix that no block may have is an error alone")
  func notWide() {
    let telling = rule(per: .sourceNetwork(v4Prefix: 8, v6Prefix: 16), ladder: [LadderStep(.notify)])
    #expect(warnings(telling).isEmpty)
    #expect(warnings(rule(per: .sourceNetwork(v4Prefix: 0, v6Prefix: 0))).isEmpty)
  }

  @Test("one alert of any kind for a whole network is said in full")
  func widest() {
    let found = warnings(rule(per: .sourceNetwork(v4Prefix: 8, v6Prefix: 48), count: 1))
    #expect(found.count == 2)
    #expect(found.first?.message.contains("one alert of any kind is enough to block all of an IPv4 network") == true)
    #expect(found.last?.message.contains("one false alert of the lowest priority") == true)
  }

  @Test("IPv6 sources by a prefix that many share are warned of where sources are blocked")
  func wideSources() {
    #expect(
      warnings(rule(), change: { $0.ipv6SourcePrefix = 31 }).first?.message.contains("IPv6 sources by /31") == true)
    #expect(warnings(rule(), change: { $0.ipv6SourcePrefix = 32 }).isEmpty)
    #expect(warnings(rule(ladder: [LadderStep(.notify)]), change: { $0.ipv6SourcePrefix = 16 }).isEmpty)
    let networks = rule(per: .sourceNetwork(v4Prefix: 24, v6Prefix: 48))
    #expect(warnings(networks, change: { $0.ipv6SourcePrefix = 16 }).isEmpty)
  }

  private static let singles: [(rule: PolicyRule, act: String?)] = [
    (rule(count: 1), "block its sender for the domain"), (rule("r", [.priority(atMost: 4)], count: 1), "block"),
    (rule("r", class1 + [.priority(atMost: 255)], count: 1), "block"),
    (
      rule(per: .sourceOnHost, count: 1, ladder: [LadderStep(.blockOnHost, for: .seconds(1))]),
      "block its sender for all domains of the host"
    ),
    (rule(per: .domain, count: 1, ladder: quarantine), "quarantine the domain"),
    (rule(count: 2), nil), (rule("r", [.priority(atMost: 3)], count: 1), nil), (rule("r", class1, count: 1), nil),
    (rule(count: 1, ladder: [LadderStep(.notify), LadderStep(.block, for: .seconds(1))]), nil),
    (rule(per: .domain, count: 1, ladder: [LadderStep(.pause)]), nil),
    (rule(per: .domain, count: 1, ladder: [LadderStep(.rateLimit(packetsPerSecond: 1), for: .seconds(1))]), nil),
  ]

  @Test("one alert of the lowest priority that cuts somebody off at once is warned of", arguments: singles)
  func oneAlert(rule: PolicyRule, act: String?) {
    let found = warnings(rule)
    #expect(found.count == (act == nil ? 0 : 1))
    if let act { #expect(found.first?.message.contains("enough to \(act)") == true, "\(found)") }
  }

  @Test("pausing at once is warned of where nobody is asked")
  func pauses() {
    for (action, act) in [(LadderStep.Action.pause, "pause the domain"), (.shutDown, "shut the domain down")] {
      let found = warnings(rule(per: .domain, count: 1, ladder: [LadderStep(action)])) {
        $0.destructiveMeasures = .allowed
      }
      #expect(found.count == 1 && found.first?.message.hasSuffix(act) == true)
    }
  }

  private func placed(_ rule: PolicyRule, line: Int) -> PolicyRule {
    var rule = rule
    rule.place = SourcePlace(file: "policy.yaml", line: line, column: 5)
    return rule
  }

  @Test("two rules that count the same and act otherwise are named, the second with the first and its place")
  func contradiction() {
    let a = placed(rule("a", Self.class1 + [.priority(atMost: 1)]), line: 2)
    let others = [
      rule("b", [.priority(atMost: 1)] + Self.class1, ladder: [LadderStep(.block, for: .seconds(9))]),
      rule("b", a.selectors, evidence: .any), rule("b", a.selectors, escalation: Escalation(factor: 3)),
    ]
    for b in others {
      let found = warnings(a, placed(b, line: 6))
      #expect(found.map(\.place?.line) == [6])
      #expect(found.first?.message.contains("rule 'b': it counts the same as rule 'a' (policy.yaml:2:5)") == true)
      #expect(found.first?.message.contains("does something else") == true)
    }
  }

  @Test("two rules that say the same are one too many")
  func repetition() {
    let found = warnings(rule("a", Self.class1), rule("b", Self.class1))
    #expect(found.count == 1 && found.first?.message.contains("does the same") == true)
    #expect(found.first?.remedy == "remove one of the two")
  }

  @Test("rules that differ in what they count, and one that only tells beside one that acts, contradict nobody")
  func noContradiction() {
    let a = rule("a", Self.class1)
    #expect(warnings(a, rule("b", Self.class1, count: 4)).isEmpty)
    #expect(warnings(a, rule("b", Self.class1, within: .seconds(61))).isEmpty)
    #expect(warnings(a, rule("b", Self.class1, ladder: [LadderStep(.notify)])).isEmpty)
    var http = rule("b", Self.class1, evidence: .any)
    http.services = ["http"]
    #expect(warnings(a, http).isEmpty)
  }
}
