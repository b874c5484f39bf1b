import VMFenceCore

/// The key of an element: its parts one after another, each padded to a multiple of four bytes, as the kernel's registers are.
struct ElementKey: Sendable {
  static let capacity = 64

  private(set) var bytes = InlineArray<64, UInt8>(repeating: 0)
  private(set) var count = 0

  /// - Precondition: it fits; the longest key we use has 60 bytes.
  mutating func append(_ byte: UInt8) {
    bytes[count] = byte
    count += 1
  }

  private mutating func pad() { count = (count + 3) & ~3 }

  /// An interface's name, in 16 bytes with zeros behind it.
  mutating func append(interface: String) {
    let end = count + 16
    for byte in interface.utf8.prefix(15) { append(byte) }
    count = end
  }

  mutating func append(_ address: IPAddress) {
    if address.family == .v6 { append(big: address.high, bytes: 8) }
    append(big: address.low, bytes: address.family == .v4 ? 4 : 8)
  }

  mutating func append(_ mac: MACAddress) {
    append(big: mac.rawValue, bytes: 6)
    pad()
  }

  mutating func append(transportPort: UInt16) {
    append(big: UInt64(transportPort), bytes: 2)
    pad()
  }

  private mutating func append(big value: UInt64, bytes: Int) {
    for index in (0..<bytes).reversed() { append(UInt8(truncatingIfNeeded: value >> UInt64(8 * index))) }
  }
}

/// What stands in for the port of a domain that has none at the moment: the measures of a domain stay in the kernel while it
/// reboots. No interface can have a name with a slash.
enum PlaceholderPort {
  static func name(of domain: DomainUUID) -> String {
    // 14 characters of 6 bits each: of the 122 random bits of a UUID, 84 tell them apart.
    let alphabet = Array("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_".unicodeScalars)
    var bits = domain.high ^ domain.low << 17 ^ domain.low >> 47
    var more = domain.low
    var name = "/"
    for index in 0..<14 {
      let value = index < 10 ? bits & 63 : more & 63
      name.unicodeScalars.append(alphabet[Int(value)])
      if index < 10 { bits >>= 6 } else { more >>= 6 }
    }
    return name
  }

  static func isOne(_ name: String) -> Bool { name.utf8.first == UInt8(ascii: "/") }
}

extension ElementKey {
  /// A key that was read; what is too long is cut off.
  init(_ bytes: [UInt8]) {
    for byte in bytes.prefix(Self.capacity) { append(byte) }
  }
}
