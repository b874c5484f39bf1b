import VMFenceCore

/// Kinds of header tests: 64 ... 127.
enum HeaderKind: UInt8 {
  /// Mode (small 1), flags (small 2), ignored flags (word 0).
  case tcpFlags = 64
  /// A number (`NumberRecord`).
  case payloadSize = 65
  /// `HeaderField` (small 1) and a number (`NumberRecord`). Small 2 is 1: a packet that carries another has none.
  case field = 66
  /// Mode (small 1), bits (small 2).
  case fragmentBits = 67
  /// The option's kind (small 1); small 2 is 1 for any.
  case ipOption = 68
  case sameAddress = 69
  /// `ChecksummedHeader` (small 1); `OptionRecord.isNegated`: it is wrong.
  case checksum = 70
  /// 4 or 6 (small 1).
  case network = 71
  /// Which tag (small 1): its number as a signed byte, `anyTag` or `allTags`; and a number (`NumberRecord`).
  case vlan = 72
  /// `DecodeEvent` (small 1).
  case decodeEvent = 73

  static let anyTag: UInt8 = 0x40
  static let allTags: UInt8 = 0x41
}

/// How a `NumberTest` lies in an option's record: low, high and mask (words 0 ... 5, each two), and `OptionRecord.isNegated`.
enum NumberRecord {
  @inline(__always)
  static func matches(_ option: Int, _ value: UInt64, _ image: RawSpan) -> Bool {
    let word = OptionRecord.word(option, 0)
    let masked = value & image.u64le(word + 16)
    let isInside = image.u64le(word) <= masked && masked <= image.u64le(word + 8)
    return isInside != (image.u8(option + OptionRecord.flags) & OptionRecord.isNegated != 0)
  }
}

extension NumberTest {
  func draft(_ kind: UInt8, small1: UInt8 = 0, small2: UInt8 = 0) -> OptionDraft {
    let words = [low, high, mask].flatMap { [UInt32(truncatingIfNeeded: $0), UInt32(truncatingIfNeeded: $0 >> 32)] }
    return OptionDraft(
      kind: kind, flags: isNegated ? OptionRecord.isNegated : 0, small1: small1, small2: small2, words: words)
  }
}

extension ImageBuilder {
  mutating func draft(_ test: HeaderTest, _ dialect: RuleDialect) -> OptionDraft {
    switch test {
    case .tcpFlags(let flags):
      OptionDraft(
        kind: HeaderKind.tcpFlags.rawValue, small1: flags.mode.rawValue, small2: flags.flags,
        words: [UInt32(flags.ignored)])
    case .payloadSize(let number): number.draft(HeaderKind.payloadSize.rawValue)
    case .field(let field, let number):
      number.draft(
        HeaderKind.field.rawValue, small1: field.rawValue, small2: field == .ipProtocol && dialect == .snort3 ? 1 : 0)
    case .fragmentBits(let bits):
      OptionDraft(kind: HeaderKind.fragmentBits.rawValue, small1: bits.mode.rawValue, small2: bits.bits)
    case .ipOption(let kind):
      OptionDraft(kind: HeaderKind.ipOption.rawValue, small1: kind ?? 0, small2: kind == nil ? 1 : 0)
    case .sameAddress: OptionDraft(kind: HeaderKind.sameAddress.rawValue)
    case .checksum(let header, let isValid):
      OptionDraft(
        kind: HeaderKind.checksum.rawValue, flags: isValid ? 0 : OptionRecord.isNegated, small1: header.rawValue)
    case .vlan(.any, let number): number.draft(HeaderKind.vlan.rawValue, small1: HeaderKind.anyTag)
    case .vlan(.all, let number): number.draft(HeaderKind.vlan.rawValue, small1: HeaderKind.allTags)
    case .vlan(.tag(let tag), let number): number.draft(HeaderKind.vlan.rawValue, small1: UInt8(bitPattern: tag))
    case .network(let isIPv6): OptionDraft(kind: HeaderKind.network.rawValue, small1: isIPv6 ? 6 : 4)
    case .decodeEvent(let events):
      OptionDraft(kind: HeaderKind.decodeEvent.rawValue, alternatives: events.map(\.rawValue))
    }
  }
}
