import Testing
import VMFenceCore
import VMFenceDetection

@Suite struct RuleProfileTests {
  private static let rules = """
    alert tcp any any -> any any (msg:"hit"; content:"abc"; sid:1;)
    alert tcp any any -> any any (msg:"near"; content:"abc"; content:"x"; distance:0; sid:2;)
    alert tcp any any -> any 81 (msg:"other port"; content:"abc"; sid:3;)
    """

  @Test func `each rule's checks and matches are counted when that is asked for`() throws {
    var engine = try EngineUnderTest(
      Self.rules, settings: EngineUnderTest.immediate.merging(["profiling.rules.enabled": "yes"]) { $1 })
    var connection = Connection()
    for frame in connection.handshake() { #expect(engine.inspect(frame) == []) }
    #expect(engine.inspect(connection.fromClient("-abc-")) == [1])
    let costs = engine.inspector.ruleCosts
    let bySid = Dictionary(uniqueKeysWithValues: costs.map { (engine.rules.metadata(at: $0.ruleIndex).sid, $0) })
    #expect(Set(bySid.keys) == [1, 2])
    #expect(bySid[1]?.checks == 1 && bySid[1]?.matches == 1 && bySid[2]?.matches == 0)
    #expect(costs.allSatisfy { $0.longest <= $0.time && $0.timeOfMatches <= $0.time })
    #expect(costs.map(\.time) == costs.map(\.time).sorted(by: >))
  }

  @Test func `nothing is counted otherwise, and a new set of rules begins at zero`() throws {
    var engine = try EngineUnderTest(Self.rules, settings: EngineUnderTest.immediate)
    _ = engine.inspect(Frame().carrying("abc").tcp)
    #expect(engine.inspector.ruleCosts.isEmpty)
    var profiled = try EngineUnderTest(Self.rules, settings: ["profiling.rules.enabled": "yes"])
    _ = profiled.inspect(Frame().carrying("abc").udp)
    _ = profiled.inspect(Frame().carrying("abc").tcp)
    #expect(!profiled.inspector.ruleCosts.isEmpty)
    try profiled.inspector.replaceRules(with: profiled.rules)
    #expect(profiled.inspector.ruleCosts.isEmpty)
  }
}
