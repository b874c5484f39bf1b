import VMFenceCore

/// Kinds of header tests: 64 ... 127.
enum HeaderKind: UInt8 {
  /// Mode (small 1), flags (small 2), ignored flags (word 0).
  case tcpFlags = 64
  /// A range (words 0, 1), which `OptionRecord.isNegated` turns round.
  case payloadSize = 65
  case icmpType = 66
  case icmpCode = 67
}

extension ImageBuilder {
  mutating func draft(_ test: HeaderTest, _ dialect: RuleDialect) -> OptionDraft {
    switch test {
    case .tcpFlags(let flags):
      OptionDraft(
        kind: HeaderKind.tcpFlags.rawValue, small1: flags.mode.rawValue, small2: flags.flags,
        words: [UInt32(flags.ignored)])
    case .payloadSize(let number): Self.draft(number, .payloadSize)
    case .icmpType(let number): Self.draft(number, .icmpType)
    case .icmpCode(let number): Self.draft(number, .icmpCode)
    }
  }

  private static func draft(_ test: NumberTest, _ kind: HeaderKind) -> OptionDraft {
    OptionDraft(
      kind: kind.rawValue, flags: test.isNegated ? OptionRecord.isNegated : 0, words: [test.low, test.high])
  }
}
