import VMFenceCore
import VMFencePackets

/// Builds frames from the inside out, with right lengths and checksums, by code that shares nothing with the code under test.
enum Frame {
  static let guestMAC: [UInt8] = [0x00, 0x16, 0x3E, 0x01, 0x02, 0x03]
  static let peerMAC: [UInt8] = [0x00, 0x16, 0x3E, 0x0A, 0x0B, 0x0C]
  static let v4Source: [UInt8] = [192, 0, 2, 1]
  static let v4Destination: [UInt8] = [198, 51, 100, 2]
  static let v6Source: [UInt8] = [0x20, 0x01, 0x0D, 0xB8] + Array(repeating: 0, count: 11) + [1]
  static let v6Destination: [UInt8] = [0x20, 0x01, 0x0D, 0xB8] + Array(repeating: 0, count: 11) + [2]

  static func be16(_ value: Int) -> [UInt8] { [UInt8(value >> 8 & 0xFF), UInt8(value & 0xFF)] }
  static func be32(_ value: Int) -> [UInt8] { be16(value >> 16 & 0xFFFF) + be16(value & 0xFFFF) }

  /// The one's-complement checksum of RFC 1071, one 16-bit word at a time.
  static func checksum(_ bytes: [UInt8]) -> Int {
    var sum = 0
    for index in stride(from: 0, to: bytes.count, by: 2) {
      sum += Int(bytes[index]) << 8 | (index + 1 < bytes.count ? Int(bytes[index + 1]) : 0)
    }
    while sum > 0xFFFF { sum = (sum & 0xFFFF) + sum >> 16 }
    return ~sum & 0xFFFF
  }

  static func ethernet(_ type: Int, _ payload: [UInt8], vlans: [(type: Int, tag: Int)] = []) -> [UInt8] {
    guestMAC + peerMAC + vlans.flatMap { be16($0.type) + be16($0.tag) } + be16(type) + payload
  }

  static func ipv4(
    _ ipProtocol: Int, _ payload: [UInt8], options: [UInt8] = [], id: Int = 0x1234, fragment: Int = 0x4000,
    totalLength: Int? = nil
  ) -> [UInt8] {
    let headerLength = 20 + options.count
    var header = [UInt8(0x40 | headerLength / 4), 0] + be16(totalLength ?? headerLength + payload.count)
    header += be16(id) + be16(fragment) + [64, UInt8(ipProtocol), 0, 0] + v4Source + v4Destination + options
    header.replaceSubrange(10..<12, with: be16(checksum(header)))
    return header + payload
  }

  static func ipv6(_ next: Int, _ payload: [UInt8], payloadLength: Int? = nil) -> [UInt8] {
    [0x60, 0, 0, 0] + be16(payloadLength ?? payload.count) + [UInt8(next), 64] + v6Source + v6Destination + payload
  }

  static func pseudoHeader(_ ipProtocol: Int, _ length: Int, v6: Bool) -> [UInt8] {
    v6
      ? v6Source + v6Destination + be32(length) + [0, 0, 0, UInt8(ipProtocol)]
      : v4Source + v4Destination + [0, UInt8(ipProtocol)] + be16(length)
  }

  private static func withChecksum(_ segment: [UInt8], at: Int, _ ipProtocol: Int, v6: Bool) -> [UInt8] {
    var segment = segment
    var sum = checksum(pseudoHeader(ipProtocol, segment.count, v6: v6) + segment)
    if ipProtocol == 17, sum == 0 { sum = 0xFFFF }
    segment.replaceSubrange(at..<at + 2, with: be16(sum))
    return segment
  }

  static func tcp(
    _ payload: [UInt8], source: Int = 40_000, destination: Int = 80, flags: Int = 0x18, options: [UInt8] = [],
    v6: Bool = false
  ) -> [UInt8] {
    let header =
      be16(source) + be16(destination) + be32(0x0102_0304) + be32(0x0506_0708)
      + be16(((20 + options.count) / 4) << 12 | flags) + be16(0x2000) + [0, 0, 0, 0] + options
    return withChecksum(header + payload, at: 16, 6, v6: v6)
  }

  static func udp(
    _ payload: [UInt8], source: Int = 5353, destination: Int = 53, length: Int? = nil, v6: Bool = false
  ) -> [UInt8] {
    withChecksum(
      be16(source) + be16(destination) + be16(length ?? 8 + payload.count) + [0, 0] + payload, at: 6, 17, v6: v6)
  }

  static func icmp(_ type: Int, _ code: Int, _ rest: [UInt8]) -> [UInt8] {
    var message = [UInt8(type), UInt8(code), 0, 0] + rest
    message.replaceSubrange(2..<4, with: be16(checksum(message)))
    return message
  }

  static func icmpv6(_ type: Int, _ code: Int, _ rest: [UInt8]) -> [UInt8] {
    withChecksum([UInt8(type), UInt8(code), 0, 0] + rest, at: 2, 58, v6: true)
  }

  /// The checksum is none: it is not verified.
  static func sctp(_ chunks: [[UInt8]], tag: Int = 7) -> [UInt8] {
    be16(1000) + be16(2000) + be32(tag) + be32(2) + chunks.joined()
  }

  /// A chunk, padded to four bytes.
  static func chunk(_ type: UInt8, _ value: [UInt8], length: Int? = nil) -> [UInt8] {
    let bytes = [type, 0] + be16(length ?? 4 + value.count) + value
    return bytes + [UInt8](repeating: 0, count: (4 - bytes.count % 4) % 4)
  }

  static func arp(_ operation: Int = 1) -> [UInt8] {
    [0, 1, 8, 0, 6, 4] + be16(operation) + peerMAC + v4Source + [0, 0, 0, 0, 0, 0] + v4Destination
  }

  static let hello = Array("hello, world".utf8)

  /// One of everything that is decoded, whole and sound, by name.
  static let samples: [(name: String, linkType: LinkType, bytes: [UInt8])] = {
    let tcp4 = ipv4(6, tcp(hello))
    let tcp6 = ipv6(6, tcp(hello, v6: true))
    let fragmentHeader: [UInt8] = [17, 0] + be16(0) + be32(0xABCD)
    return [
      ("tcp", .ethernet, ethernet(0x0800, tcp4)),
      ("tcp with options", .ethernet, ethernet(0x0800, ipv4(6, tcp(hello, options: [2, 4, 5, 0xB4, 1, 3, 3, 7])))),
      ("tcp, padded frame", .ethernet, ethernet(0x0800, ipv4(6, tcp([])) + [0, 0, 0, 0, 0, 0])),
      ("udp", .ethernet, ethernet(0x0800, ipv4(17, udp(hello)))),
      ("udp, ip options", .ethernet, ethernet(0x0800, ipv4(17, udp(hello), options: [0x94, 4, 0, 0]))),
      ("icmp", .ethernet, ethernet(0x0800, ipv4(1, icmp(8, 0, be16(7) + be16(1) + hello)))),
      ("sctp", .ethernet, ethernet(0x0800, ipv4(132, sctp([chunk(0, hello)])))),
      ("fragment", .ethernet, ethernet(0x0800, ipv4(17, hello, fragment: 0x2001))),
      ("ah in ipv4", .ethernet, ethernet(0x0800, ipv4(51, [6, 4, 0, 0] + be32(1) + be32(1) + hello + tcp(hello)))),
      ("arp", .ethernet, ethernet(0x0806, arp())),
      ("vlan", .ethernet, ethernet(0x0800, tcp4, vlans: [(0x8100, 0x6064)])),
      ("qinq", .ethernet, ethernet(0x86DD, tcp6, vlans: [(0x88A8, 0x0011), (0x8100, 0x0022)])),
      ("802.3 snap", .ethernet, ethernet(8 + tcp4.count, [0xAA, 0xAA, 3, 0, 0, 0, 8, 0] + tcp4)),
      ("tcp over ipv6", .ethernet, ethernet(0x86DD, tcp6)),
      ("udp over ipv6", .ethernet, ethernet(0x86DD, ipv6(17, udp(hello, v6: true)))),
      ("icmpv6", .ethernet, ethernet(0x86DD, ipv6(58, icmpv6(128, 0, be16(7) + be16(1) + hello)))),
      (
        "extension headers", .ethernet,
        ethernet(
          0x86DD,
          ipv6(
            0,
            [60, 0, 1, 4, 0, 0, 0, 0] + [43, 0, 1, 4, 0, 0, 0, 0] + [44, 0, 4, 0, 0, 0, 0, 0] + fragmentHeader
              + udp(hello, v6: true)))
      ),
      ("null", .null, [2, 0, 0, 0] + tcp4),
      ("null, big-endian", .null, [0, 0, 0, 30] + tcp6),
      ("loop", .loop, [0, 0, 0, 2] + tcp4),
      ("raw", .raw, tcp4),
      ("raw ipv6", .rawBSD, tcp6),
      ("raw openbsd", .rawOpenBSD, tcp4),
      ("ipv4", .ipv4, tcp4),
      ("ipv6", .ipv6, tcp6),
      ("sll", .linuxSLL, be16(0) + be16(1) + be16(6) + peerMAC + [0, 0] + be16(0x0800) + tcp4),
      (
        "sll2", .linuxSLL2,
        be16(0x86DD) + be16(0) + be32(3) + be16(1) + [0, 6] + peerMAC + [0, 0] + tcp6
      ),
      ("ppp", .ppp, [0xFF, 0x03, 0x00, 0x21] + tcp4),
      ("ppp, no address", .ppp, [0x00, 0x57] + tcp6),
      ("ppp, compressed", .ppp, [0x21] + tcp4),
      ("ppp, address and compressed", .ppp, [0xFF, 0x03, 0x57] + tcp6),
      ("cisco hdlc", .ciscoHDLC, [0x0F, 0x00, 0x08, 0x00] + tcp4),
    ]
  }()
}

extension DecodedPacket {
  static func decode(_ bytes: [UInt8], _ linkType: LinkType = .ethernet, vlan: UInt16 = 0) -> DecodedPacket {
    bytes.withRawSpan { DecodedPacket.decode($0, linkType: linkType, strippedVLAN: vlan) }
  }

  /// All fields as text, to compare two packets whole.
  var allFields: String { "\(self)" }

  func payload(of bytes: [UInt8]) -> [UInt8] { Array(bytes[Int(payloadOffset)..<Int(payloadOffset + payloadLength)]) }
}

/// A small deterministic generator (SplitMix64): tests that use randomness name their seed.
struct SeededGenerator: RandomNumberGenerator {
  var state: UInt64
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
    return z ^ z >> 31
  }
}
