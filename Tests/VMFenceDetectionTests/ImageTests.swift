import Testing
import VMFenceCore
import VMFenceDetection

@Suite struct ImageTests {
  static let text = """
    alert tcp !10.0.0.0/8 any -> [192.168.0.0/16,!192.168.5.0/24,2001:db8::/32] [80,443] (msg:"web"; flow:to_server; \
    content:"GET"; depth:3; content:"/etc/passwd"; nocase; distance:1; within:50; classtype:attempted-user; \
    reference:cve,2001-1; metadata:a b, c d; sid:1; rev:7;)
    pass udp any any <> any 53 (msg:"dns"; dsize:>10; content:!"x"; sid:2;)
    alert icmp any any -> any any (msg:"echo"; itype:8; icode:0; sid:3;)
    drop tcp any 25 -> any any (msg:"limited"; flags:S; threshold:type limit, track by_src, count 1, seconds 60; \
    sid:4;)
    """

  private func bytes(of rules: SnortRules) -> [UInt8] { rules.image.withBytes { $0.copiedBytes() } }

  private func load(_ bytes: [UInt8]) throws -> SnortRules {
    try SnortRules(image: bytes.withRawSpan { RuleImage(copying: $0) })
  }

  @Test("an image carries everything that rules say about themselves")
  func roundTrip() throws {
    let rules = try parsed(Self.text)
    let first = try SnortRules(compiling: rules)
    let second = try load(bytes(of: first))
    #expect(second.ruleCount == 4)
    for index in 0..<4 { #expect(second.metadata(at: index) == rules[index].metadata) }
  }

  @Test("equal rules give equal bytes")
  func deterministic() throws {
    let text = Self.text + "\n" + manyRules(200).replacing("sid:", with: "sid:10")
    #expect(bytes(of: try compiled(text)) == bytes(of: try compiled(text)))
  }

  @Test("no rules make an image too")
  func empty() throws {
    let rules = try SnortRules(compiling: [])
    #expect(rules.ruleCount == 0)
    #expect(try load(bytes(of: rules)).ruleCount == 0)
    _ = try SnortInspector.make(rules: rules, configuration: InspectorConfiguration())
  }

  @Test("a changed byte is noticed, wherever it is")
  func anyChangedByte() throws {
    let original = bytes(of: try compiled("alert tcp any any -> any 80 (content:\"abc\"; sid:1;)"))
    for index in original.indices {
      var changed = original
      changed[index] ^= 1 << UInt8(index % 8)
      #expect(throws: RuleCompilationError.self, "byte \(index)") { try load(changed) }
    }
  }

  @Test("rules that would take more memory than they may are refused, with the figures")
  func tooLarge() throws {
    let text = manyRules(500)
    var engine = SnortRuleEngine()
    let request = RuleCompilationRequest(sources: [
      RuleSource(file: "many.rules", text: Array(text.utf8), dialect: .snort2)
    ])
    let size = try engine.compile(request).rules.image.byteCount
    engine.imageLimit = size - 1
    let error = #expect(throws: RuleCompilationError.self) { try engine.compile(request) }
    #expect(error?.code == .tooLarge)
    let figure = size < 1 << 20 ? "\((size + 1023) >> 10) KiB" : "\((size + 1 << 20 - 1) >> 20) MiB"
    #expect(error?.message.contains("would take \(figure), more than") == true, "\(error?.message ?? "")")
    engine.imageLimit = 4096
    #expect(throws: RuleCompilationError.self) { try engine.compile(request) }
    engine.imageLimit = size
    #expect(try engine.compile(request).loaded == 500)
  }

  @Test("an image cut anywhere is refused")
  func truncated() throws {
    let original = bytes(of: try compiled("alert tcp any any -> any 80 (content:\"abc\"; sid:1;)"))
    for count in original.indices {
      let error = #expect(throws: RuleCompilationError.self) { try load(Array(original[..<count])) }
      #expect(error?.code == .badImage)
    }
    #expect(throws: RuleCompilationError.self) { try load(original + [0]) }
  }

  @Test("whatever its records say, an image with a right checksum is refused or evaluated without a trap")
  func mutatedRecords() throws {
    let original = bytes(of: try compiled(Self.text))
    // The databases are the matcher's; the checksum is what protects them.
    let entry = ImageLayout.sectionTable + ImageSection.databases.rawValue * ImageLayout.sectionEntry
    let databases = original.withRawSpan { Int($0.u64le(entry)) }
    let frames = EngineFrames.sample
    var random = SeededGenerator(seed: 2)
    var refused = 0
    var accepted = 0
    for _ in 0..<4000 {
      var changed = original
      for _ in 0..<Int.random(in: 1...3, using: &random) {
        let index = Int.random(in: 24..<databases, using: &random)
        changed[index] = Bool.random(using: &random) ? UInt8.random(in: 0...255, using: &random) : 0xFF
      }
      let checksum = changed.withRawSpan { ImageLayout.checksum($0) }
      for index in 0..<8 {
        changed[ImageLayout.checksumOffset + index] = UInt8(truncatingIfNeeded: checksum >> UInt64(8 * index))
      }
      do {
        let rules = try load(changed)
        accepted += 1
        for index in 0..<rules.ruleCount { _ = rules.metadata(at: index) }
        var engine = try EngineUnderTest(rules)
        for frame in frames { _ = engine.inspect(frame) }
      } catch is RuleCompilationError {
        refused += 1
      }
    }
    #expect(refused > 500)
    #expect(accepted > 500)
  }

  @Test("an image of another version or machine is refused with the remedy")
  func foreign() throws {
    let original = bytes(of: try compiled(Self.text))
    for (offset, word) in [(8, "format"), (32, "processor")] {
      var changed = original
      changed[offset] ^= 0xFF
      let checksum = changed.withRawSpan { ImageLayout.checksum($0) }
      for index in 0..<8 {
        changed[ImageLayout.checksumOffset + index] = UInt8(truncatingIfNeeded: checksum >> UInt64(8 * index))
      }
      let error = #expect(throws: RuleCompilationError.self) { try load(changed) }
      #expect(error?.code == .badImage)
      #expect(error?.message.contains(word) == true)
      #expect(error?.remedy.contains("compile the rules again") == true)
    }
  }
}
