import VMFenceCore

/// What an element says of the measure that it belongs to, in its user data: a comment that nft(8) shows, and a record of ours.
///
/// The record (30 bytes, numbers big-endian): version 1 · kind (0 block on the host, 1 block for a domain, 2 quarantine, 3 rate
/// limit) · decision, 8 bytes · domain's UUID, 16 bytes · packets a second, 4 bytes. User data is a list of type, length, value, one
/// byte each for the first two (libnftnl's udata.h); nft(8) skips types that it does not know.
struct ElementTag: Equatable {
  private enum Part {
    static let comment: UInt8 = 0
    static let record: UInt8 = 0x76
    static let recordBytes = 30
    static let version: UInt8 = 1
  }
  /// nft(8) takes 128 at most.
  static let commentLimit = 100

  enum Kind: UInt8 {
    case hostBlock = 0
    case domainBlock, quarantine, rateLimit
  }

  var kind: Kind
  var decision: UInt64
  var domain: DomainUUID
  var packetsPerSecond: UInt32
  var comment: String

  init(_ measure: FirewallMeasure) {
    decision = measure.decision
    comment = measure.comment
    packetsPerSecond = 0
    switch measure.key.scope {
    case .domain(let uuid): domain = uuid
    case .host: domain = DomainUUID(high: 0, low: 0)
    }
    switch measure.key.kind {
    case .block: kind = measure.key.scope == .host ? .hostBlock : .domainBlock
    case .quarantine: kind = .quarantine
    case .rateLimit(let rate):
      kind = .rateLimit
      packetsPerSecond = rate
    }
  }

  func write(to bytes: inout [UInt8]) {
    bytes.removeAll(keepingCapacity: true)
    bytes.append(Part.comment)
    // The length comes when it is known.
    bytes.append(0)
    Self.append(plain: comment, to: &bytes)
    if bytes.count > 2 { bytes.append(UInt8(ascii: " ")) }
    for byte in "decision ".utf8 { bytes.append(byte) }
    append(decimal: decision, to: &bytes)
    bytes.append(0)
    bytes[1] = UInt8(bytes.count - 2)
    bytes.append(Part.record)
    bytes.append(UInt8(Part.recordBytes))
    bytes.append(Part.version)
    bytes.append(kind.rawValue)
    append(decision, 8, to: &bytes)
    append(domain.high, 8, to: &bytes)
    append(domain.low, 8, to: &bytes)
    append(UInt64(packetsPerSecond), 4, to: &bytes)
  }

  /// A text without what would end it in nft's listing, or act on a terminal.
  private static func append(plain text: String, to bytes: inout [UInt8]) {
    for byte in text.utf8.prefix(commentLimit) {
      let isPlain = (0x20..<0x7F).contains(byte) && byte != UInt8(ascii: "\"") && byte != UInt8(ascii: "\\")
      bytes.append(isPlain ? byte : UInt8(ascii: "?"))
    }
  }

  /// User data with a comment only, for elements that are parts of no measure.
  static func comment(_ text: String) -> [UInt8] {
    var bytes: [UInt8] = [Part.comment, 0]
    append(plain: text, to: &bytes)
    bytes.append(0)
    bytes[1] = UInt8(bytes.count - 2)
    return bytes
  }

  private func append(decimal value: UInt64, to bytes: inout [UInt8]) {
    let start = bytes.count
    var rest = value
    repeat {
      bytes.append(UInt8(ascii: "0") + UInt8(rest % 10))
      rest /= 10
    } while rest != 0
    bytes[start...].reverse()
  }

  private func append(_ value: UInt64, _ count: Int, to bytes: inout [UInt8]) {
    for index in (0..<count).reversed() { bytes.append(UInt8(truncatingIfNeeded: value >> UInt64(8 * index))) }
  }

  /// nil when the bytes are not ours, or damaged.
  init?(_ bytes: RawSpan, _ range: Range<Int>) {
    var offset = range.lowerBound
    var record: Int?
    var text = ""
    while range.upperBound - offset >= 2 {
      let type = bytes.u8(offset)
      let length = Int(bytes.u8(offset + 1))
      guard length <= range.upperBound - offset - 2 else { return nil }
      if type == Part.comment {
        text = NetlinkAttribute(type: 0, value: offset + 2..<offset + 2 + length).text(bytes)
      } else if type == Part.record, length == Part.recordBytes {
        record = offset + 2
      }
      offset += 2 + length
    }
    guard let record, bytes.u8(record) == Part.version, let kind = Kind(rawValue: bytes.u8(record + 1)) else {
      return nil
    }
    self.kind = kind
    decision = bytes.u64(record + 2)
    domain = DomainUUID(high: bytes.u64(record + 10), low: bytes.u64(record + 18))
    packetsPerSecond = bytes.u32(record + 26)
    let suffix = "decision \(decision)"
    comment = text.hasSuffix(suffix) ? String(text.dropLast(suffix.count)) : text
    if comment.hasSuffix(" ") { comment.removeLast() }
  }
}
