import Testing
import VMFenceCore

@Suite("Policy validation")
struct PolicyValidationTests {
  private func errors(_ policy: Policy, classes: Set<String>? = nil) -> [String] {
    policy.validate(knownClasses: classes).filter { $0.severity == .error }.map(\.message)
  }

  @Test("a sound policy has nothing to be said about")
  func sound() {
    #expect(Policy(rules: [rule()]).validate().isEmpty)
  }

  @Test(
    "a rule that cannot work is an error with its name and a remedy",
    arguments: [
      (rule(""), "it has no name"), (rule("r", []), "it selects no event"), (rule(count: 0), "a count of 0"),
      (rule(count: 65_537), "a count of 65537"), (rule(within: .zero), "a window of no length"),
      (rule(within: .seconds(-1)), "a window of no length"), (rule(ladder: []), "it leads to no measure"),
      (rule(ladder: [LadderStep(.block)]), "step 1 has no duration"),
      (rule(ladder: [LadderStep(.block, for: .zero)]), "step 1 has no duration"),
      (rule(ladder: [LadderStep(.notify, for: .seconds(1))]), "step 1 has a duration"),
      (rule(ladder: [LadderStep(.block, for: .seconds(1), times: 0)]), "step 1 is taken 0 times"),
      (rule(ladder: [LadderStep(.block, for: .seconds(1)), LadderStep(.notify)]), "step 2 is milder"),
      (
        rule(ladder: [LadderStep(.block, for: .seconds(2)), LadderStep(.block, for: .seconds(1))]), "step 2 is shorter"
      ),
      (rule(ladder: [LadderStep(.rateLimit(packetsPerSecond: 0), for: .seconds(1))]), "limits to no packet"),
      (rule(per: .domain), "sources are not what is counted"), (rule(per: .host), "sources are not what is counted"),
      (rule(per: .sourceOnHost), "what is counted for all"),
      (rule(per: .host, ladder: [LadderStep(.quarantine, for: .seconds(1))]), "domains are not counted apart"),
      (rule(per: .sourceNetwork(v4Prefix: 0, v6Prefix: 48)), "a network of /0 is everybody"),
      (rule(per: .sourceNetwork(v4Prefix: 24, v6Prefix: 0)), "a network of /0 is everybody"),
      (rule(per: .sourceNetwork(v4Prefix: 7, v6Prefix: 48)), "IPv4 networks by /7"),
      (rule(per: .sourceNetwork(v4Prefix: 33, v6Prefix: 48)), "IPv4 networks by /33"),
      (rule("r", [.files([])]), "a change to a file has no source"), (rule("r", [.priority(atMost: 0)]), "priority 0"),
      (rule(escalation: Escalation(factor: 0.5)), "a factor of 0.5"),
      (rule(escalation: Escalation(factor: .nan)), "a factor of nan"),
      (rule(escalation: Escalation(maximum: .seconds(1))), "longer than the longest"),
      (rule(escalation: Escalation(decay: .zero)), "decays at once"),
    ])
  func badRule(rule: PolicyRule, message: String) {
    let found = Policy(rules: [rule]).validate().filter { $0.severity == .error }
    #expect(found.contains { $0.message.contains(message) }, "\(found)")
    #expect(found.allSatisfy { !$0.remedy.isEmpty })
    #expect(throws: PolicyError.self) { try PolicyUpdater(policy: Policy(rules: [rule]), directory: DomainDirectory()) }
  }

  @Test("contradictions of the whole are errors")
  func wholes() {
    var policy = Policy(rules: [rule(), rule()])
    #expect(errors(policy) == ["two rules are called 'brute'"])
    policy = Policy(rules: [rule()], neverBlock: [network("0.0.0.0/0")])
    #expect(errors(policy).first?.contains("contradict") == true)
    policy = Policy(rules: [rule()], measuresPerMinute: 0)
    #expect(errors(policy).count == 1)
    policy = Policy(rules: [rule()], hostBlockTenants: 0)
    #expect(errors(policy) == ["a block on the host by 0 tenants"])
    policy = Policy(rules: [rule()], ipv6SourcePrefix: 0)
    #expect(errors(policy).count == 1)
    policy = Policy(rules: [rule()], capacities: .init(countersPerRule: 0))
    #expect(errors(policy).count == 1)
  }

  @Test("unknown classes are errors when the classes are known")
  func classes() {
    let policy = Policy(rules: [rule("r", [.classification("trojan\u{1B}")])])
    #expect(errors(policy).isEmpty)
    #expect(errors(policy, classes: ["x"]) == ["rule 'r': there is no class 'trojan\\u{1b}'"])
  }

  @Test("what is dangerous but possible is a warning")
  func warnings() {
    let policy = Policy(rules: [
      rule(
        "r", [.priority(atMost: 1)], per: .domain, count: 1, evidence: .any,
        ladder: [LadderStep(.quarantine, for: .seconds(1))])
    ])
    #expect(policy.validate().map(\.severity) == [.warning])
  }
}
