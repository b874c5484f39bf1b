import Testing
import VMFenceCore
import VMFenceDetection

/// What a rule says about itself: which engine it is for, and which side an attack is against.
@Suite struct RequirementTests {
  private func parse(_ text: String, _ dialect: RuleDialect = .suricata) -> ParsedRules {
    RuleFileParser.parse(
      RuleSource(file: "test.rules", text: Array(text.utf8), dialect: dialect), variables: [:])
  }

  static let requirements: [(String, Bool)] = [
    ("version >= 8", true), ("version >= 7.0.4 < 8", false), ("version >= 7.0.4 < 8 | >= 8.0.3", true),
    ("version > 9", false), ("version <= 9.0.0-dev", true), ("version < 9.0", false), ("version >= 10.1", false),
    ("keyword content", true), ("keyword prefilter, version >= 7", true), ("keyword no.such", false),
    // Known, and not evaluated: the rule could not be used anyway.
    ("keyword http.uri", false), ("keyword lua", false), ("feature geoip", false), ("planet earth", false),
    ("version >= 8, feature geoip", false),
  ]

  @Test(arguments: requirements)
  func `a rule is used when what it requires is there, and passed over with a note when not`(
    requirement: String, isMet: Bool
  ) {
    let parsed = parse("alert tcp any any -> any any (content:\"a\"; requires:\(requirement); sid:3;)")
    #expect(parsed.rules.count == (isMet ? 1 : 0) && parsed.skipped == (isMet ? 0 : 1) && parsed.rejected == 0)
    #expect(parsed.unsupported.isEmpty && parsed.diagnostics.allSatisfy { $0.severity == .note })
    #expect(isMet || parsed.diagnostics.first?.message.contains("rule 3 is passed over") == true)
  }

  @Test func `whatever else a rule for another engine holds is no mistake`() {
    let parsed = parse(
      """
      alert tcp any any -> any any (no.such.option:7; content:"a\\;b"; requires: version >= 10; sid:1;)
      alert nosuch any any -> any any (requires:keyword no.such; sid:2;)
      alert http any any -> any any (http.uri; content:"a"; sid:4; requires:feature x;)
      alert tcp any any -> any any (no.such.option:7; requires: version >= 8; sid:5;)
      alert tcp any any -> any any (content:"a"; sid:6;)
      """)
    #expect(parsed.skipped == 3 && parsed.rejected == 1 && parsed.rules.map(\.metadata.sid) == [6])
    #expect(parsed.diagnostics.filter { $0.severity == .error }.map(\.place?.line) == [4])
  }

  @Test(arguments: ["version", "version 8", "version >= x", "version >= 8, version < 9", "version >= 1.2.3.4", ""])
  func `a requirement that cannot be read is a mistake`(text: String) {
    let parsed = parse("alert tcp any any -> any any (requires:\(text); sid:3;)")
    #expect(parsed.rejected == 1 && parsed.skipped == 0, "\(text)")
    #expect(parsed.diagnostics.first?.message.contains("requires") == true)
  }

  @Test func `a set of rules that are all for another engine says so`() throws {
    let source = RuleSource(
      file: "x.rules", text: Array("alert tcp any any -> any any (requires:version > 99; sid:3;)".utf8),
      dialect: .suricata)
    let error = #expect(throws: RuleCompilationError.self) {
      try SnortRuleEngine().compile(RuleCompilationRequest(sources: [source]))
    }
    #expect(error?.message == "all of 1 rules require another engine")
  }

  @Test(arguments: [
    (RuleDialect.suricata, "dest_ip", RuleMetadata.Target?.some(.destination)), (.suricata, "src_ip", .source),
    (.suricata, "dst_ip", nil), (.snort3, "dst_ip", .destination), (.snort3, "dest_ip", nil),
  ])
  func `the target survives compiling, in each dialect's words`(
    dialect: RuleDialect, word: String, target: RuleMetadata.Target?
  ) throws {
    let parsed = parse("alert tcp any any -> any any (content:\"a\"; target:\(word); sid:3;)", dialect)
    #expect(parsed.rejected == (target == nil ? 1 : 0))
    guard target != nil else { return }
    #expect(try SnortRules(compiling: parsed.rules).metadata(at: 0).target == target)
  }
}
