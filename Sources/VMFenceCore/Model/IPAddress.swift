/// An IPv4 or IPv6 address. IPv4 lies in the low 32 bits of `low`; the family keeps it apart from its mapped form.
public struct IPAddress: Hashable, Comparable, Sendable, BitwiseCopyable, CustomStringConvertible {
  public enum Family: UInt8, Sendable, BitwiseCopyable, CaseIterable {
    case v4 = 4
    case v6 = 6

    /// The length of an address in bits.
    @inlinable
    public var bitWidth: Int { self == .v4 ? 32 : 128 }
  }

  public var high: UInt64
  public var low: UInt64
  public var family: Family

  @inlinable
  public init(v4: UInt32) {
    high = 0
    low = UInt64(v4)
    family = .v4
  }

  @inlinable
  public init(v6High: UInt64, low: UInt64) {
    high = v6High
    self.low = low
    family = .v6
  }

  @inlinable public static var anyV4: IPAddress { IPAddress(v4: 0) }

  /// The address with all bits after the first `prefix` set to zero; `prefix` is clamped to the family's width.
  public func masked(prefix: Int) -> IPAddress {
    let bits = Swift.min(Swift.max(prefix, 0), family.bitWidth)
    var result = self
    if family == .v4 {
      result.low = bits == 0 ? 0 : low & (0xFFFF_FFFF << UInt64(32 - bits)) & 0xFFFF_FFFF
    } else if bits <= 64 {
      result.high = bits == 0 ? 0 : high & (UInt64.max << UInt64(64 - bits))
      result.low = 0
    } else {
      result.low = low & (UInt64.max << UInt64(128 - bits))
    }
    return result
  }

  /// 224.0.0.0/4 or ff00::/8.
  public var isMulticast: Bool { family == .v4 ? low >> 28 == 0xE : high >> 56 == 0xFF }

  /// fe80::/10 (RFC 4291 §2.5.6): an address that every interface gives itself, and nobody assigns.
  package var isV6LinkLocal: Bool { family == .v6 && high >> 54 == 0x3FA }

  public static func < (a: IPAddress, b: IPAddress) -> Bool {
    (a.family.rawValue, a.high, a.low) < (b.family.rawValue, b.high, b.low)
  }

  /// Dotted decimal, or the canonical text of RFC 5952.
  public var description: String {
    if family == .v4 {
      return "\(low >> 24 & 0xFF).\(low >> 16 & 0xFF).\(low >> 8 & 0xFF).\(low & 0xFF)"
    }
    let groups = (0..<8).map { UInt16(truncatingIfNeeded: ($0 < 4 ? high : low) >> UInt64(48 - $0 % 4 * 16)) }
    var best = 0..<0
    var start = 0
    while start < 8 {
      var end = start
      while end < 8, groups[end] == 0 { end += 1 }
      if end - start > best.count, end - start > 1 { best = start..<end }
      start = Swift.max(end, start + 1)
    }
    let head = groups[..<best.lowerBound].map { String($0, radix: 16) }.joined(separator: ":")
    if best.isEmpty { return groups.map { String($0, radix: 16) }.joined(separator: ":") }
    let tail = groups[best.upperBound...].map { String($0, radix: 16) }.joined(separator: ":")
    return head + "::" + tail
  }

  /// Parses dotted decimal (exactly four numbers without leading zeros) or any form of RFC 4291 §2.2; nil for
  /// anything else, zone identifiers included.
  public init?(_ text: some StringProtocol) {
    let bytes = Array(text.utf8)
    guard bytes.count <= 45 else { return nil }
    if bytes.contains(UInt8(ascii: ":")) {
      guard let (high, low) = IPAddress.parseV6(bytes[...]) else { return nil }
      self.init(v6High: high, low: low)
    } else {
      guard let v4 = IPAddress.parseV4(bytes[...]) else { return nil }
      self.init(v4: v4)
    }
  }

  private static func parseV4(_ bytes: ArraySlice<UInt8>) -> UInt32? {
    let parts = bytes.split(separator: UInt8(ascii: "."), omittingEmptySubsequences: false)
    guard parts.count == 4 else { return nil }
    var value: UInt32 = 0
    for part in parts {
      guard (1...3).contains(part.count), part.count == 1 || part.first != UInt8(ascii: "0") else { return nil }
      var number: UInt32 = 0
      for byte in part {
        guard (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) else { return nil }
        number = number * 10 + UInt32(byte - UInt8(ascii: "0"))
      }
      guard number <= 255 else { return nil }
      value = value << 8 | number
    }
    return value
  }

  private static func parseV6(_ bytes: ArraySlice<UInt8>) -> (UInt64, UInt64)? {
    var head: [UInt16] = []
    var tail: [UInt16] = []
    var compressed = false
    var rest = bytes
    if rest.starts(with: "::".utf8) {
      compressed = true
      rest = rest.dropFirst(2)
    } else if rest.first == UInt8(ascii: ":") {
      return nil
    }
    while !rest.isEmpty {
      guard head.count + tail.count < 8 else { return nil }
      let part = rest.prefix { $0 != UInt8(ascii: ":") }
      var groups: [UInt16] = []
      if part.contains(UInt8(ascii: ".")) {
        guard part.count == rest.count, let v4 = parseV4(part) else { return nil }
        groups = [UInt16(v4 >> 16), UInt16(v4 & 0xFFFF)]
      } else {
        guard (1...4).contains(part.count) else { return nil }
        var value: UInt16 = 0
        for byte in part {
          guard let digit = byte.hexadecimalDigitValue else { return nil }
          value = value << 4 | UInt16(digit)
        }
        groups = [value]
      }
      if compressed { tail += groups } else { head += groups }
      rest = rest.dropFirst(part.count)
      if rest.isEmpty { break }
      rest = rest.dropFirst()
      if rest.first == UInt8(ascii: ":") {
        guard !compressed else { return nil }
        compressed = true
        rest = rest.dropFirst()
      } else if rest.isEmpty {
        return nil
      }
    }
    let count = head.count + tail.count
    guard compressed ? count <= 7 : count == 8 else { return nil }
    let groups = head + Array(repeating: 0, count: 8 - count) + tail
    let high = groups[..<4].reduce(UInt64(0)) { $0 << 16 | UInt64($1) }
    let low = groups[4...].reduce(UInt64(0)) { $0 << 16 | UInt64($1) }
    return (high, low)
  }
}

/// A network in CIDR form. The bits after the prefix are always zero.
public struct IPNetwork: Hashable, Sendable, BitwiseCopyable, CustomStringConvertible {
  public var base: IPAddress
  /// The number of leading bits that count: 0...32 or 0...128.
  public var prefix: UInt8

  /// `prefix` is clamped to the address family's width.
  public init(_ address: IPAddress, prefix: Int) {
    let clamped = Swift.min(Swift.max(prefix, 0), address.family.bitWidth)
    base = address.masked(prefix: clamped)
    self.prefix = UInt8(clamped)
  }

  public init(_ address: IPAddress) { self.init(address, prefix: address.family.bitWidth) }

  /// Parses `ADDRESS` or `ADDRESS/PREFIX`; nil for anything else.
  public init?(_ text: some StringProtocol) {
    let parts = text.split(separator: "/", omittingEmptySubsequences: false)
    guard let first = parts.first, parts.count <= 2, let address = IPAddress(first) else { return nil }
    guard parts.count == 2 else {
      self.init(address)
      return
    }
    guard let prefix = Int(parts[1]), (0...address.family.bitWidth).contains(prefix) else { return nil }
    self.init(address, prefix: prefix)
  }

  public var isSingleAddress: Bool { Int(prefix) == base.family.bitWidth }

  public func contains(_ address: IPAddress) -> Bool {
    address.family == base.family && address.masked(prefix: Int(prefix)) == base
  }

  public var description: String { isSingleAddress ? base.description : "\(base)/\(prefix)" }
}
