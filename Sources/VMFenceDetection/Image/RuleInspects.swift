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
    if tests.contains(where: \.isOfPackets) { return .packets }
    return tests.contains(where: \.hasFixedPlace) ? [.packets, .streams] : .streams
  }
}

extension RuleTest {
  fileprivate var isOfStreamPayload: Bool {
    if case .payload(let test) = self { test.buffer.source == .payload } else { false }
  }

  var hasFixedPlace: Bool {
    guard case .payload(let test) = self, case .content(let content) = test.check else { return false }
    return content.offset != nil || content.depth != nil
  }

  /// Suricata: it makes a rule one for packets.
  fileprivate var isOfPackets: Bool {
    switch self {
    case .header, .state(.country): true
    case .payload, .state: false
    }
  }

  var hasDepth: Bool { content?.depth != nil }
}
