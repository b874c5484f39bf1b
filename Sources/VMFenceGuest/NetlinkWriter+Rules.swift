import VMFenceCore

/// Expressions of a rule, as the kernel's machine knows them. All of them work on one register, which holds up to 16 bytes.
extension NetlinkWriter {
  enum Verdict {
    case drop, `return`
    case jump(String)

    /// NF_DROP, and enum nft_verdicts.
    var code: Int32 {
      switch self {
      case .drop: 0
      case .return: -5
      case .jump: -3
      }
    }
  }

  enum MetaKey: UInt32 {
    case inputInterface = 6
    case outputInterface = 7
    /// The address family of a packet: 2 or 10, one byte.
    case family = 15
    case transportProtocol = 16
  }

  enum Base: UInt32 {
    case network = 1
    case transport = 2
  }

  private static let register: UInt32 = 1

  /// A rule at the end of a chain, with a comment that nft(8) shows and user data of our own.
  mutating func rule(
    table: String, chain: String, comment: String, record: [UInt8] = [], _ body: (inout NetlinkWriter) -> Void
  ) {
    message(.newRule, flags: Flag.create | Flag.append) { writer in
      writer.attribute(1, table)
      writer.attribute(2, chain)
      writer.nest(4) { body(&$0) }
      writer.attribute(7, UserData.encode(comment: comment, record: record))
    }
  }

  private mutating func expression(_ name: String, _ body: (inout NetlinkWriter) -> Void) {
    nest(1) { writer in
      writer.attribute(1, name)
      writer.nest(2) { body(&$0) }
    }
  }

  mutating func meta(_ key: MetaKey) {
    expression("meta") { writer in
      writer.attribute(1, Self.register)
      writer.attribute(2, key.rawValue)
    }
  }

  mutating func payload(_ base: Base, offset: UInt32, length: UInt32) {
    expression("payload") { writer in
      writer.attribute(1, Self.register)
      writer.attribute(2, base.rawValue)
      writer.attribute(3, offset)
      writer.attribute(4, length)
    }
  }

  mutating func mask(_ mask: [UInt8]) {
    expression("bitwise") { writer in
      writer.attribute(1, Self.register)
      writer.attribute(2, Self.register)
      writer.attribute(3, UInt32(mask.count))
      writer.nest(4) { $0.attribute(1, mask) }
      writer.nest(5) { $0.attribute(1, [UInt8](repeating: 0, count: mask.count)) }
    }
  }

  /// Goes on when the register has these bytes.
  mutating func equal(_ value: [UInt8]) {
    expression("cmp") { writer in
      writer.attribute(1, Self.register)
      writer.attribute(2, UInt32(0))
      writer.nest(3) { $0.attribute(1, value) }
    }
  }

  /// Goes on when the set has the register.
  mutating func lookup(_ set: String) {
    expression("lookup") { writer in
      writer.attribute(1, set)
      writer.attribute(2, Self.register)
    }
  }

  /// Goes on for what exceeds so many packets a second.
  mutating func exceeds(packetsPerSecond: UInt32) {
    expression("limit") { writer in
      writer.attribute(1, UInt64(packetsPerSecond))
      writer.attribute(2, UInt64(1))
      writer.attribute(3, max(5, packetsPerSecond))
      writer.attribute(4, UInt32(0))
      writer.attribute(5, UInt32(1))
    }
  }

  mutating func counter() { expression("counter") { _ in } }

  mutating func verdict(_ verdict: Verdict) {
    expression("immediate") { writer in
      writer.attribute(1, UInt32(0))
      writer.nest(2) { data in
        data.nest(2) { parts in
          parts.attribute(1, verdict.code)
          if case .jump(let chain) = verdict { parts.attribute(2, chain) }
        }
      }
    }
  }
}

/// User data: a list of type, length and value, one byte each for the first two (libnftnl's udata.h). Type 0 is a comment; nft(8)
/// passes over types that it does not know.
enum UserData {
  private static let comment: UInt8 = 0
  private static let record: UInt8 = 0x76

  /// - Precondition: both together are shorter than 250 bytes.
  static func encode(comment text: String, record: [UInt8]) -> [UInt8] {
    var bytes = [comment, UInt8(text.utf8.count + 1)] + Array(text.utf8) + [0]
    if !record.isEmpty { bytes += [self.record, UInt8(record.count)] + record }
    return bytes
  }

  /// What `encode` wrote; the record is empty when there is none.
  static func decode(_ bytes: RawSpan, _ range: Range<Int>) -> (comment: String, record: [UInt8]) {
    var result = (comment: "", record: [UInt8]())
    var offset = range.lowerBound
    while range.upperBound - offset >= 2 {
      let length = Int(bytes.u8(offset + 1))
      guard length <= range.upperBound - offset - 2 else { break }
      let value = NetlinkAttribute(type: 0, value: offset + 2..<offset + 2 + length)
      if bytes.u8(offset) == comment { result.comment = value.text(bytes) }
      if bytes.u8(offset) == record { result.record = value.copiedBytes(bytes) }
      offset += 2 + length
    }
    return result
  }
}
