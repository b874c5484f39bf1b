import VMFenceCore

/// A set of values that rules look buffers up in (`dataset`, `datarep`), by its name: what a rule file says of it, and what its file holds.
package final class DataSet: Hashable, Sendable {
  package enum Kind: UInt8, Hashable, Sendable, CaseIterable {
    case string = 0
    case md5, sha256, ipv4, ip

    /// Whether a buffer of this length can be a value.
    func takes(_ length: Int) -> Bool {
      switch self {
      case .string: (1...DataSet.valueMaximum).contains(length)
      case .md5: length == 16
      case .sha256: length == 32
      case .ipv4: length == 4
      case .ip: length == 4 || length == 16
      }
    }
  }

  package struct Entry: Hashable, Sendable {
    package var value: [UInt8]
    package var reputation: UInt16
  }

  /// Sets of one rule set, bytes of a value, values of a set, and bytes of all sets, at the most.
  static let setMaximum = 256
  static let valueMaximum = 65_535
  static let entryMaximum = 2_000_000
  static let memoryMaximum = 256 << 20
  /// For what rules change in a set, when none says how much it may take.
  static let memoryDefault = 4 << 20

  package let name: String
  package let kind: Kind
  /// What its file gives, by length, then by value; each value once.
  package let entries: [Entry]
  /// Bytes for these values and what finds them.
  let memory: Int
  /// `memcap`: bytes for all its values.
  let limit: Int?
  /// Where its values were read from.
  let source: RuleDataFile?
  /// Where it is kept beyond the end of a run.
  package let stateFile: String?

  init(name: String, kind: Kind, entries: [Entry], limit: Int?, source: RuleDataFile?, stateFile: String?) {
    self.name = name
    self.kind = kind
    // Of a value that is given twice, the first line counts.
    let order = entries.indices.sorted {
      let (a, b) = (entries[$0].value, entries[$1].value)
      if a.count != b.count { return a.count < b.count }
      return a == b ? $0 < $1 : a.lexicographicallyPrecedes(b)
    }
    self.entries = order.enumerated().filter { position, index in
      position == 0 || entries[order[position - 1]].value != entries[index].value
    }.map { entries[$1] }
    memory = self.entries.reduce(0) { $0 + DataSetStore.memory(of: $1.value.count) }
    self.limit = limit
    self.source = source
    self.stateFile = stateFile
  }

  /// Bytes for what rules add and take out.
  var changeMemory: Int { limit.map { max(0, $0 - memory) } ?? Self.memoryDefault }

  package static func == (a: DataSet, b: DataSet) -> Bool { a === b }
  package func hash(into hasher: inout Hasher) { hasher.combine(ObjectIdentifier(self)) }
}

/// What a rule asks of a set for a buffer, or does to it.
package struct DataSetTest: Hashable, Sendable {
  package enum Operation: UInt8, Hashable, Sendable, CaseIterable {
    case isSet = 0
    case isNotSet
    /// Adds the value; holds when it was not there.
    case set
    /// Takes the value out; holds when it was there.
    case unset
    /// Compares the value's reputation; what has none does not hold.
    case reputation

    var changesSet: Bool { self == .set || self == .unset }
  }
  package var set: DataSet
  package var operation: Operation
  package var comparison = ByteTest.Comparison.equal
  package var isNegated = false
  package var reputation: UInt16 = 0
}

/// A file that a rule names.
public enum RuleDataFile: Hashable, Sendable {
  /// `load`: by its path, beside the rule file unless it is absolute.
  case values(path: String)
  /// `state`: by its name in the folder of what is kept between runs.
  case state(name: String)
}

/// One line of a set's file: strings in base64, digests in hexadecimal, addresses as they are written; a reputation after a comma.
enum DataSetLine {
  static func parse(_ line: ArraySlice<UInt8>, _ kind: DataSet.Kind, hasReputation: Bool) -> DataSet.Entry? {
    let parts = line.split(at: UInt8(ascii: ","))
    guard parts.count == (hasReputation ? 2 : 1) else { return nil }
    var reputation: UInt16 = 0
    if hasReputation {
      guard let number = UInt16(parts[1].trimmed.text) else { return nil }
      reputation = number
    }
    guard let value = value(parts[0].trimmed, kind), kind.takes(value.count) else { return nil }
    return DataSet.Entry(value: value, reputation: reputation)
  }

  private static func value(_ text: ArraySlice<UInt8>, _ kind: DataSet.Kind) -> [UInt8]? {
    switch kind {
    case .string: return base64(text)
    case .md5, .sha256: return RuleOptionParser.hexadecimal(text)
    case .ipv4, .ip:
      guard let address = IPAddress(text.text) else { return nil }
      return bytes(of: address)
    }
  }

  /// In network order; an IPv4 address in an IPv6 one (RFC 4291 §2.5.5.2) as itself.
  private static func bytes(of address: IPAddress) -> [UInt8] {
    let low = (0..<8).map { UInt8(truncatingIfNeeded: address.low >> UInt64(56 - 8 * $0)) }
    let isMapped = address.family == .v6 && address.high == 0 && address.low >> 32 == 0xFFFF
    if address.family == .v4 || isMapped { return Array(low[4...]) }
    return (0..<8).map { UInt8(truncatingIfNeeded: address.high >> UInt64(56 - 8 * $0)) } + low
  }

  private static func base64(_ text: ArraySlice<UInt8>) -> [UInt8]? {
    guard !text.isEmpty, text.count <= DataSet.valueMaximum * 4 / 3 + 4 else { return nil }
    var scratch = Scratch()
    let isWhole = Array(text).withRawSpan { Base64Decoder.decode($0, .strict, to: &scratch) }
    // SAFETY: copied before the scratch goes.
    return isWhole ? unsafe Array(scratch.bytes) : nil
  }

  static func render(_ value: [UInt8], _ kind: DataSet.Kind) -> [UInt8] {
    switch kind {
    case .string: return Base64.encode(value)
    case .md5, .sha256: return value.flatMap { [hexadecimalDigit($0 >> 4), hexadecimalDigit($0 & 15)] }
    case .ipv4, .ip:
      let words = value.reduce(into: (high: UInt64(0), low: UInt64(0))) { words, byte in
        words.high = words.high << 8 | words.low >> 56
        words.low = words.low << 8 | UInt64(byte)
      }
      let address =
        value.count == 4
        ? IPAddress(v4: UInt32(truncatingIfNeeded: words.low)) : IPAddress(v6High: words.high, low: words.low)
      return Array(address.description.utf8)
    }
  }

  private static func hexadecimalDigit(_ value: UInt8) -> UInt8 {
    value < 10 ? UInt8(ascii: "0") + value : UInt8(ascii: "a") + value - 10
  }
}
