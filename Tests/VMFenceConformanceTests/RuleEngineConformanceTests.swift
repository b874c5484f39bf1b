import Testing
import VMFenceConformance
import VMFenceCore
import VMFenceDetection

private enum NoFault: WordFault { static var kind: WordFaultKind { .none } }
private enum OtherBytes: WordFault { static var kind: WordFaultKind { .otherBytesEachTime } }
private enum CutImages: WordFault { static var kind: WordFaultKind { .takesCutImages } }
private enum Silent: WordFault { static var kind: WordFaultKind { .skipsSilently } }
private enum IgnoresFail: WordFault { static var kind: WordFaultKind { .ignoresFail } }
private enum NoPlace: WordFault { static var kind: WordFaultKind { .forgetsPlace } }
private enum Everything: WordFault { static var kind: WordFaultKind { .firesOnEverything } }
private enum OldRules: WordFault { static var kind: WordFaultKind { .keepsOldRules } }
private enum AbsentRule: WordFault { static var kind: WordFaultKind { .firesAbsentRule } }
private enum NoMetadata: WordFault { static var kind: WordFaultKind { .losesMetadata } }
private enum Past: WordFault { static var kind: WordFaultKind { .dependsOnPast } }

@Suite("RuleEngine conformance")
struct RuleEngineConformanceTests {
  private func check<Fault: WordFault>(_ fault: Fault.Type) throws {
    let texts = RuleEngineConformance.Texts(
      matching: "1000001 3 conformance conformance-attack", other: "1000002 1 other another-attack", bad: "not a rule")
    try RuleEngineConformance(texts: texts, dialect: nil, effort: 200).check(
      WordEngine<Fault>(), inspector: WordInspector<Fault>.self)
  }

  @Test("a small engine with a language of its own conforms")
  func sound() throws { try check(NoFault.self) }

  @Test("an engine with a fault is found out")
  func faults() {
    let faults: [any WordFault.Type] = [
      OtherBytes.self, CutImages.self, Silent.self, IgnoresFail.self, NoPlace.self, Everything.self, OldRules.self,
      AbsentRule.self, NoMetadata.self, Past.self,
    ]
    #expect(faults.count == WordFaultKind.allCases.count - 1)
    for fault in faults {
      withKnownIssue("\(fault.kind)") { try check(fault) }
    }
  }
}

@Suite("RuleEngine conformance of the Snort engine")
struct SnortRuleEngineConformanceTests {
  @Test("it conforms", arguments: [RuleDialect.snort2, .suricata])
  func conforms(dialect: RuleDialect) throws {
    try RuleEngineConformance(dialect: dialect, effort: 4_000).check(
      SnortRuleEngine(), inspector: SnortInspector.self)
  }

  @Test("and with other hostile input", arguments: 2...5)
  func seeds(seed: Int) throws {
    try RuleEngineConformance(effort: 2_000, seed: UInt64(seed) << 32).check(
      SnortRuleEngine(), inspector: SnortInspector.self)
  }
}
