import Testing
import VMFenceCore
import VMFenceDetection

/// The matcher against a reference that tries every combination of positions, and against frames nobody would send.
@Suite struct EngineDifferentialTests {
  /// All contents from `level` on, by trying everything.
  private func reference(
    _ tests: [RuleTest], _ payload: [UInt8], _ dialect: RuleDialect, level: Int = 0, cursor: Int = 0
  ) -> Bool {
    if payload.isEmpty, dialect == .suricata { return false }
    guard level < tests.count else { return true }
    guard let content = tests[level].content else {
      return reference(tests, payload, dialect, level: level + 1, cursor: cursor)
    }
    var low = max(0, content.offset?.constant ?? 0)
    var high = content.depth?.constant.map { low + $0 } ?? payload.count
    if content.isRelative {
      let base = cursor + (content.distance?.constant ?? 0)
      low = max(low, base)
      if let within = content.within?.constant { high = min(high, base + within) }
    }
    high = min(high, payload.count)
    func fold(_ byte: UInt8) -> UInt8 { content.ignoresCase && (65...90).contains(byte) ? byte + 32 : byte }
    let positions = payload.indices.filter { position in
      let end = position + content.pattern.count
      return position >= low && end <= high && (!content.endsBuffer || end == payload.count)
        && (0..<content.pattern.count).allSatisfy { fold(payload[position + $0]) == fold(content.pattern[$0]) }
    }
    if content.isNegated {
      return positions.isEmpty
        && reference(tests, payload, dialect, level: level + 1, cursor: cursor)
    }
    return positions.contains {
      reference(tests, payload, dialect, level: level + 1, cursor: $0 + content.pattern.count)
    }
  }

  private func randomContent(isFirst: Bool, _ dialect: RuleDialect, _ random: inout SeededGenerator) -> String {
    let letters = ["a", "b", "A", "B", "c"]
    let length = Int.random(in: 1...3, using: &random)
    let pattern = (0..<length).map { _ in letters.randomElement(using: &random) ?? "a" }.joined()
    var text = "content:\(Int.random(in: 0..<5, using: &random) == 0 ? "!" : "")\"\(pattern)\";"
    if Bool.random(using: &random) { text += " nocase;" }
    switch Int.random(in: 0..<6, using: &random) {
    case 0:
      text += " offset:\(Int.random(in: 0...8, using: &random));"
    case 1:
      text += " offset:\(Int.random(in: 0...8, using: &random));"
      text += " depth:\(Int.random(in: length...length + 8, using: &random));"
    case 2 where !isFirst:
      text += " distance:\(Int.random(in: -4...4, using: &random));"
    case 3 where !isFirst:
      text += " within:\(Int.random(in: length...length + 5, using: &random));"
    case 4 where !isFirst:
      text += " distance:\(Int.random(in: -4...4, using: &random));"
      text += " within:\(Int.random(in: length...length + 5, using: &random));"
    case 5 where dialect == .suricata && !text.contains("!"):
      text += Bool.random(using: &random) ? " endswith;" : " startswith;"
    default: break
    }
    return text
  }

  @Test("the matcher and the reference agree", arguments: [1, 2, 3, 4, 5, 6, 7, 8])
  func agree(seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    let dialect: RuleDialect = seed % 2 == 0 ? .suricata : .snort2
    var text = ""
    for sid in 1...150 {
      let count = Int.random(in: 1...4, using: &random)
      let contents = (0..<count).map { randomContent(isFirst: $0 == 0, dialect, &random) }
      text += "alert tcp any any -> any any (msg:\"m\"; \(contents.joined(separator: " ")) sid:\(sid);)\n"
    }
    let source = RuleSource(file: "random.rules", text: Array(text.utf8), dialect: dialect)
    // The parser may refuse some combinations; there have to be enough left.
    let rules = RuleFileParser.parse(source, variables: [:]).rules
    try #require(rules.count > 100)
    var engine = try EngineUnderTest(try SnortRules(compiling: rules))
    var matches = 0
    for _ in 0..<150 {
      let length = Int.random(in: 0...24, using: &random)
      let payload = (0..<length).map { _ in "aabbABcx".utf8.randomElement(using: &random) ?? 97 }
      let expected = rules.filter { reference($0.tests, payload, dialect) }.map(\.metadata.sid)
      let frame = Frame().with { $0.payload = payload }.tcp
      let found = engine.inspect(frame)
      matches += expected.count
      let kept = Array(expected.prefix(InspectionOutput.capacity))
      #expect(found == kept, "on \(String(decoding: payload, as: UTF8.self))")
    }
    #expect(matches > 1000)
  }

  @Test("a chain over a payload made to stall it takes linear work")
  func hostileChain() throws {
    // Trying all combinations would take n to the power of 7 steps.
    let chain = (0..<6).map { _ in "content:\"aa\"; within:1000;" }.joined(separator: " ")
    var engine = try EngineUnderTest(
      "alert tcp any any -> any any (content:\"aa\"; \(chain) content:\"b\"; within:1000; sid:1;)")
    let payload = String(repeating: "a", count: 30_000)
    #expect(engine.inspect(Frame().carrying(payload).tcp) == [])
    #expect(engine.inspect(Frame().carrying(payload + "b").tcp) == [1])
    #expect(engine.statistic("work_limit_hits") == 0)
  }

  @Test("no frame traps the engine", arguments: [1, 2, 3])
  func noTrap(seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    var engine = try EngineUnderTest(
      try compiled(ImageTests.text + "\n" + FlowTests.rules.replacing("sid:", with: "sid:10")),
      flowCapacity: 64, verifiesChecksums: seed == 2)
    let samples = EngineFrames.sample
    for _ in 0..<6000 {
      var frame = samples.randomElement(using: &random) ?? []
      for _ in 0..<Int.random(in: 0...6, using: &random) where !frame.isEmpty {
        frame[Int.random(in: 0..<frame.count, using: &random)] = UInt8.random(in: 0...255, using: &random)
      }
      if Int.random(in: 0..<4, using: &random) == 0 {
        frame = Array(frame.prefix(Int.random(in: 0...frame.count, using: &random)))
      }
      let jump = Duration.milliseconds(Int.random(in: -100_000...100_000, using: &random))
      _ = engine.inspect(frame, after: jump)
    }
    #expect(engine.statistic("packets") == 6000)
    #expect(engine.statistic("flows_now").map { $0 <= 64 } == true)
  }
}
