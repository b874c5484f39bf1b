import VMFenceCore

/// Writes a transaction of nf_tables, message by message, without a library. Numbers in headers are in the machine's own order,
/// those in attributes big-endian (linux/netlink.h, linux/netfilter/nfnetlink.h).
struct NetlinkWriter {
  /// Message numbers of linux/netfilter/nf_tables.h.
  enum Message: UInt16 {
    case newTable = 0
    case getTable, deleteTable, newChain, getChain, deleteChain, newRule, getRule, deleteRule
    case newSet, getSet, deleteSet, newElements, getElements
    case getGeneration = 16
  }

  enum Flag {
    static let request: UInt16 = 1
    static let acknowledge: UInt16 = 4
    /// NLM_F_ROOT | NLM_F_MATCH.
    static let dump: UInt16 = 0x300
    static let create: UInt16 = 0x400
    static let append: UInt16 = 0x800
  }

  private enum Frame: UInt16 {
    case begin = 0x10
    case end = 0x11
  }

  private static let nested: UInt16 = 0x8000
  private static let subsystem: UInt16 = 10
  /// The address families of linux/netfilter.h: the one of our table, and none.
  private static let inet: UInt8 = 1

  private(set) var bytes: [UInt8] = []
  /// The number of the message that was written last.
  private(set) var sequence: UInt32
  private var lastMessage = 0

  /// - `sequence`: the number of the first message.
  init(sequence: UInt32) { self.sequence = sequence &- 1 }

  // MARK: Transactions

  /// Begins a transaction that takes effect only if the ruleset still has this generation (NFNL_BATCH_GENID).
  mutating func begin(generation: UInt32) {
    frame(.begin) { $0.attribute(1, generation) }
  }

  /// Ends it: the last message is to be acknowledged.
  ///
  /// - Returns: the number of the acknowledgement.
  mutating func end() -> UInt32 {
    let last = sequence
    let flags = hostU16(lastMessage + 6) | Flag.acknowledge
    setHost(flags, at: lastMessage + 6)
    frame(.end) { _ in }
    return last
  }

  private mutating func frame(_ kind: Frame, _ body: (inout NetlinkWriter) -> Void) {
    write(type: kind.rawValue, flags: 0, family: 0, resource: Self.subsystem, body)
  }

  mutating func message(_ kind: Message, flags: UInt16 = 0, _ body: (inout NetlinkWriter) -> Void) {
    lastMessage = bytes.count
    write(type: Self.subsystem << 8 | kind.rawValue, flags: flags, family: Self.inet, resource: 0, body)
  }

  private mutating func write(
    type: UInt16, flags: UInt16, family: UInt8, resource: UInt16, _ body: (inout NetlinkWriter) -> Void
  ) {
    let start = bytes.count
    sequence &+= 1
    bytes += [0, 0, 0, 0]
    bytes.append(host: type)
    bytes.append(host: Flag.request | flags)
    bytes.append(host: sequence)
    bytes.append(host: UInt32(0))
    bytes += [family, 0]
    bytes.append(big: resource)
    body(&self)
    setHost(UInt32(bytes.count - start), at: start)
  }

  // MARK: Attributes

  mutating func attribute(_ type: UInt16, _ value: [UInt8]) {
    bytes.append(host: UInt16(4 + value.count))
    bytes.append(host: type)
    bytes += value
    while bytes.count % 4 != 0 { bytes.append(0) }
  }

  /// A text with its zero.
  mutating func attribute(_ type: UInt16, _ text: String) { attribute(type, Array(text.utf8) + [0]) }

  /// A number in network order.
  mutating func attribute(_ type: UInt16, _ number: some FixedWidthInteger) {
    var value: [UInt8] = []
    value.append(big: number)
    attribute(type, value)
  }

  /// - Precondition: what `body` writes is shorter than 64 KiB; the limits of a policy see to that.
  mutating func nest(_ type: UInt16, _ body: (inout NetlinkWriter) -> Void) {
    let start = bytes.count
    bytes += [0, 0]
    bytes.append(host: type | Self.nested)
    body(&self)
    setHost(UInt16(bytes.count - start), at: start)
  }

  // MARK: Numbers in the machine's own order

  private mutating func setHost(_ value: some FixedWidthInteger, at offset: Int) {
    var number: [UInt8] = []
    number.append(host: value)
    bytes.replaceSubrange(offset..<offset + number.count, with: number)
  }

  private func hostU16(_ offset: Int) -> UInt16 { bytes.withRawSpan { $0.hostU16(offset) } }
}
