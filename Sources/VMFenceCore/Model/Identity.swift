/// The UUID of a virtual machine: what survives reboot and migration, and what configuration is kept by.
public struct DomainUUID: Hashable, Comparable, Sendable, BitwiseCopyable, CustomStringConvertible {
  /// The first and last eight bytes, as big-endian numbers.
  public var high: UInt64
  public var low: UInt64

  public init(high: UInt64, low: UInt64) {
    self.high = high
    self.low = low
  }

  /// Parses the usual form of 8-4-4-4-12 hexadecimal digits (RFC 9562), upper or lower case; nil for anything else.
  public init?(_ text: some StringProtocol) {
    var high: UInt64 = 0
    var low: UInt64 = 0
    var digits = 0
    var position = 0
    for byte in text.utf8 {
      if position == 8 || position == 13 || position == 18 || position == 23 {
        guard byte == UInt8(ascii: "-") else { return nil }
      } else {
        guard digits < 32, let value = byte.hexadecimalDigitValue else { return nil }
        if digits < 16 { high = high << 4 | UInt64(value) } else { low = low << 4 | UInt64(value) }
        digits += 1
      }
      position += 1
    }
    guard position == 36 else { return nil }
    self.init(high: high, low: low)
  }

  public var description: String {
    var text: [UInt8] = []
    text.reserveCapacity(36)
    for index in 0..<32 {
      if index == 8 || index == 12 || index == 16 || index == 20 { text.append(UInt8(ascii: "-")) }
      text.append(UInt8(hexadecimalDigit: (index < 16 ? high : low) >> UInt64(60 - index % 16 * 4)))
    }
    return String(decoding: text, as: UTF8.self)
  }

  public static func < (a: DomainUUID, b: DomainUUID) -> Bool { (a.high, a.low) < (b.high, b.low) }
}

/// The number that the hypervisor gives a domain while it exists on this host. Numbers are reused.
public struct DomainID: Hashable, Comparable, Sendable, BitwiseCopyable, CustomStringConvertible {
  public var rawValue: UInt32

  public init(_ rawValue: UInt32) { self.rawValue = rawValue }

  /// Dom0, the privileged domain that VMFence itself runs in.
  public static let dom0 = DomainID(0)

  public var description: String { String(rawValue) }
  public static func < (a: DomainID, b: DomainID) -> Bool { a.rawValue < b.rawValue }
}

/// One life of a domain on this host. A migration to the same host shows one UUID under two domain numbers for a
/// while: that is two incarnations, and each has an automaton of its own.
public struct Incarnation: Hashable, Comparable, Sendable, BitwiseCopyable, CustomStringConvertible {
  public var uuid: DomainUUID
  public var domainID: DomainID

  public init(uuid: DomainUUID, domainID: DomainID) {
    self.uuid = uuid
    self.domainID = domainID
  }

  public var description: String { "\(uuid)/\(domainID)" }
  public static func < (a: Incarnation, b: Incarnation) -> Bool { (a.uuid, a.domainID) < (b.uuid, b.domainID) }
}

/// The owner of guests, as the provider names them.
public struct TenantID: Hashable, Comparable, Sendable, CustomStringConvertible {
  public var name: String
  public init(_ name: String) { self.name = name }
  public var description: String { name }
  public static func < (a: TenantID, b: TenantID) -> Bool { a.name < b.name }
}

/// A 48-bit Ethernet address (IEEE 802), kept in the low bits of a number, first byte highest.
public struct MACAddress: Hashable, Comparable, Sendable, BitwiseCopyable, CustomStringConvertible {
  public var rawValue: UInt64

  @inlinable
  public init(rawValue: UInt64) { self.rawValue = rawValue & 0xFFFF_FFFF_FFFF }

  /// Parses six pairs of hexadecimal digits between colons or hyphens; nil for anything else.
  public init?(_ text: some StringProtocol) {
    var value: UInt64 = 0
    var position = 0
    for byte in text.utf8 {
      if position % 3 == 2 {
        guard byte == UInt8(ascii: ":") || byte == UInt8(ascii: "-") else { return nil }
      } else {
        guard position < 17, let digit = byte.hexadecimalDigitValue else { return nil }
        value = value << 4 | UInt64(digit)
      }
      position += 1
    }
    guard position == 17 else { return nil }
    self.init(rawValue: value)
  }

  public static let broadcast = MACAddress(rawValue: 0xFFFF_FFFF_FFFF)

  /// Whether the group bit is set: multicast, and so broadcast too.
  @inlinable
  public var isMulticast: Bool { rawValue & 0x0100_0000_0000 != 0 }

  public var description: String {
    var text: [UInt8] = []
    text.reserveCapacity(17)
    for index in 0..<12 {
      if index > 0, index % 2 == 0 { text.append(UInt8(ascii: ":")) }
      text.append(UInt8(hexadecimalDigit: rawValue >> UInt64(44 - index * 4)))
    }
    return String(decoding: text, as: UTF8.self)
  }

  public static func < (a: MACAddress, b: MACAddress) -> Bool { a.rawValue < b.rawValue }
}

extension UInt8 {
  /// The ASCII digit for the lowest four bits.
  fileprivate init(hexadecimalDigit number: UInt64) {
    let value = UInt8(truncatingIfNeeded: number & 0xF)
    self = value < 10 ? UInt8(ascii: "0") + value : UInt8(ascii: "a") + value - 10
  }

  /// The value of this ASCII byte as a hexadecimal digit, or nil.
  @inlinable
  public var hexadecimalDigitValue: UInt8? {
    switch self {
    case UInt8(ascii: "0")...UInt8(ascii: "9"): self - UInt8(ascii: "0")
    case UInt8(ascii: "a")...UInt8(ascii: "f"): self - UInt8(ascii: "a") + 10
    case UInt8(ascii: "A")...UInt8(ascii: "F"): self - UInt8(ascii: "A") + 10
    default: nil
    }
  }
}

extension FixedWidthInteger {
  /// Lower-case hexadecimal, padded with zeros to `width` digits.
  public func hexadecimal(width: Int) -> String {
    let digits = String(self, radix: 16)
    return String(repeating: "0", count: Swift.max(0, width - digits.count)) + digits
  }
}
