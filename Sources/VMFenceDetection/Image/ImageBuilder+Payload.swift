import VMFenceCore

/// Kinds of payload tests: 1 ... 63.
enum PayloadKind: UInt8 {
  /// Pattern (words 0, 1: offset in `patterns`, length), offset, depth, distance, within (words 2 ... 5, signed).
  case content = 1
}

/// Flags of `content`, besides `OptionRecord.isNegated`.
enum ContentFlags {
  static let ignoresCase: UInt8 = 2
  static let isRelative: UInt8 = 4
  static let hasDepth: UInt8 = 8
  static let hasWithin: UInt8 = 16
  static let endsBuffer: UInt8 = 32
  static let known: UInt8 = 63
}

extension ImageBuilder {
  mutating func drafts(_ tests: [PayloadTest], _ rule: Rule) throws(RuleCompilationError) -> [OptionDraft] {
    guard tests.count <= OptionRecord.payloadLimit else {
      throw RuleCompilationError(
        .badRule, "a rule with \(tests.count) tests of bytes; \(OptionRecord.payloadLimit) are possible",
        at: rule.metadata.place, remedy: "split the rule")
    }
    var result: [OptionDraft] = []
    for test in tests {
      switch test.check {
      case .content(let content): result.append(try draft(content))
      }
    }
    return result
  }

  private mutating func draft(_ content: ContentTest) throws(RuleCompilationError) -> OptionDraft {
    if content.pattern.isEmpty {
      throw RuleCompilationError(.badRule, "an empty content", at: content.place, remedy: "give the bytes to look for")
    }
    var flags: UInt8 = 0
    if content.isNegated { flags |= OptionRecord.isNegated }
    if content.ignoresCase { flags |= ContentFlags.ignoresCase }
    if content.isRelative { flags |= ContentFlags.isRelative }
    if content.depth != nil { flags |= ContentFlags.hasDepth }
    if content.within != nil { flags |= ContentFlags.hasWithin }
    if content.endsBuffer { flags |= ContentFlags.endsBuffer }
    let bytes = content.ignoresCase ? content.pattern.map(\.lowercasedASCII) : content.pattern
    let positions = [content.offset, content.depth, content.distance, content.within]
    return OptionDraft(
      kind: PayloadKind.content.rawValue, flags: flags,
      words: [offset(ofPattern: bytes), UInt32(bytes.count)] + positions.map { UInt32(bitPattern: $0 ?? 0) })
  }
}

extension Rule {
  /// What a rule is compared with: `wantsPackets` and `wantsStreams` of its record.
  struct Inspects: OptionSet {
    var rawValue: UInt8
    static let packets = Inspects(rawValue: RuleRecord.wantsPackets)
    static let streams = Inspects(rawValue: RuleRecord.wantsStreams)
  }

  /// Rules about payload that may be TCP's look at streams, others at packets. In Suricata a test of a packet's header (`dsize`,
  /// `flags`, `ttl` …) makes the rule one for packets, and a content with a fixed place is looked for in both.
  var inspects: Inspects {
    if view == .packets { return .packets }
    if view == .streams || flow?.contains(.onlyStream) == true, tests.contains(where: \.isOfStreamPayload) {
      return .streams
    }
    guard ipProtocol == .tcp || ipProtocol == .ip, tests.contains(where: \.isOfStreamPayload),
      flow?.contains(.notStream) != true
    else { return .packets }
    guard dialect == .suricata else { return .streams }
    if tests.contains(where: { if case .header = $0 { true } else { false } }) { return .packets }
    return tests.contains(where: \.hasFixedPlace) ? [.packets, .streams] : .streams
  }
}

extension RuleTest {
  fileprivate var isOfStreamPayload: Bool {
    if case .payload(let test) = self { test.buffer.source == .payload } else { false }
  }

  fileprivate var hasFixedPlace: Bool {
    guard case .payload(let test) = self, case .content(let content) = test.check else { return false }
    return content.offset != nil || content.depth != nil
  }
}
