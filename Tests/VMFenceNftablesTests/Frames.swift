import VMFenceCore

/// Frames for the tests, by hand.
enum Frames {
  static let vm1MAC = MACAddress("02:77:00:00:00:01")!
  static let vm2MAC = MACAddress("02:77:00:00:00:02")!
  static let outsideMAC = MACAddress("02:77:00:00:00:63")!

  static func bytes(_ mac: MACAddress) -> [UInt8] { big(mac.rawValue, 6) }

  static func bytes(_ text: String) -> [UInt8] {
    let address = IPAddress(text)!
    return address.family == .v4 ? big(address.low, 4) : big(address.high, 8) + big(address.low, 8)
  }

  static func big(_ value: UInt64, _ count: Int) -> [UInt8] {
    (0..<count).reversed().map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
  }

  static func ethernet(
    _ type: UInt16, from source: MACAddress = vm1MAC, to destination: MACAddress = outsideMAC, _ payload: [UInt8]
  ) -> [UInt8] { bytes(destination) + bytes(source) + big(UInt64(type), 2) + payload }

  /// - `offset`: of a fragment, in units of 8 bytes.
  static func ipv4(
    _ source: String, _ destination: String, _ number: UInt8, offset: UInt64 = 0, _ payload: [UInt8]
  ) -> [UInt8] {
    var header: [UInt8] =
      [0x45, 0] + big(UInt64(20 + payload.count), 2) + [0, 1] + big(offset, 2) + [64, number, 0, 0]
    header += bytes(source) + bytes(destination)
    header.replaceSubrange(10..<12, with: big(UInt64(checksum(header)), 2))
    return header + payload
  }

  static func ipv6(_ source: String, _ destination: String, _ number: UInt8, _ payload: [UInt8]) -> [UInt8] {
    [0x60, 0, 0, 0] + big(UInt64(payload.count), 2) + [number, 255] + bytes(source) + bytes(destination) + payload
  }

  /// RFC 8200 section 4.5.
  ///
  /// - `offset`: in units of 8 bytes.
  static func fragmentHeader(_ number: UInt8, offset: UInt64, hasMore: Bool) -> [UInt8] {
    [number, 0] + big(offset << 3 | (hasMore ? 1 : 0), 2) + [0, 0, 0x12, 0x34]
  }

  static func fragment6(
    _ source: String, _ destination: String, _ number: UInt8, offset: UInt64, hasMore: Bool, _ payload: [UInt8]
  ) -> [UInt8] {
    ipv6(source, destination, 44, fragmentHeader(number, offset: offset, hasMore: hasMore) + payload)
  }

  static func udp(_ source: UInt16, _ destination: UInt16, _ payload: [UInt8]) -> [UInt8] {
    big(UInt64(source), 2) + big(UInt64(destination), 2) + big(UInt64(8 + payload.count), 2) + [0, 0] + payload
  }

  /// An acknowledgement, without its checksum.
  static func tcp(_ source: UInt16, _ destination: UInt16, _ payload: [UInt8]) -> [UInt8] {
    let ports = big(UInt64(source), 2) + big(UInt64(destination), 2)
    return ports + big(1, 4) + big(1, 4) + [0x50, 0x10, 1, 0, 0, 0, 0, 0] + payload
  }

  static func arp(_ operation: UInt8, sender: (MACAddress, String), target: String) -> [UInt8] {
    [0, 1, 8, 0, 6, 4, 0, operation] + bytes(sender.0) + bytes(sender.1) + [0, 0, 0, 0, 0, 0] + bytes(target)
  }

  /// An ICMPv6 message with its checksum.
  static func icmpv6(_ source: String, _ destination: String, _ type: UInt8, _ body: [UInt8]) -> [UInt8] {
    var message: [UInt8] = [type, 0, 0, 0] + body
    let pseudo = bytes(source) + bytes(destination) + big(UInt64(message.count), 4) + [0, 0, 0, 58]
    message.replaceSubrange(2..<4, with: big(UInt64(checksum(pseudo + message)), 2))
    return ipv6(source, destination, 58, message)
  }

  /// RFC 1071.
  static func checksum(_ bytes: [UInt8]) -> UInt16 {
    var sum: UInt32 = 0
    for (index, byte) in bytes.enumerated() { sum += index % 2 == 0 ? UInt32(byte) << 8 : UInt32(byte) }
    while sum > 0xFFFF { sum = sum & 0xFFFF + sum >> 16 }
    return ~UInt16(sum)
  }
}
