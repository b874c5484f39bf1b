import VMFenceCore

/// Frames for the checks, made from nothing.
struct ConformanceFrame {
  static let source = IPAddress(v4: 0xCB00_7107)
  static let destination = IPAddress(v4: 0xC000_0201)

  var metadata: FrameMetadata
  var bytes: [UInt8]

  /// A UDP datagram over IPv4 and Ethernet, without a UDP checksum (RFC 768 allows that).
  static func udp(payload: String, port: UInt16 = 9_999) -> ConformanceFrame {
    let data = Array(payload.utf8)
    var bytes: [UInt8] = [0x00, 0x16, 0x3E, 0, 0, 1, 0x00, 0x16, 0x3E, 0, 0, 2, 0x08, 0x00]
    var header: [UInt8] = [0x45, 0]
    header += big(UInt16(28 + data.count))
    header += [0, 1, 0x40, 0, 64, 17, 0, 0]
    header += big(UInt32(source.low)) + big(UInt32(destination.low))
    let sum = checksum(header)
    header[10] = UInt8(sum >> 8)
    header[11] = UInt8(sum & 0xFF)
    bytes += header
    bytes += big(UInt16(40_000)) + big(port) + big(UInt16(8 + data.count)) + [0, 0]
    bytes += data
    return ConformanceFrame(bytes: bytes, number: 0)
  }

  /// Noise, a good frame that was cut, or one with some bytes changed.
  static func hostile(_ number: Int, _ random: inout ConformanceRandom) -> ConformanceFrame {
    var bytes: [UInt8]
    switch number % 4 {
    case 0:
      bytes = (0..<Int(random.next() % 256)).map { _ in UInt8(truncatingIfNeeded: random.next()) }
    case 1:
      bytes = udp(payload: "conformance-attack").bytes
      bytes.removeLast(Int(random.next() % UInt64(bytes.count + 1)))
    default:
      bytes = udp(payload: "conformance-attack").bytes
      for _ in 0...Int(random.next() % 4) {
        bytes[Int(random.next() % UInt64(bytes.count))] = UInt8(truncatingIfNeeded: random.next())
      }
    }
    var frame = ConformanceFrame(bytes: bytes, number: number)
    let links: [LinkType] = [.ethernet, .ethernet, .raw, .linuxSLL, .null, .ppp, LinkType(rawValue: 60_000)]
    frame.metadata.linkType = links[Int(random.next() % UInt64(links.count))]
    frame.metadata.originalLength = UInt32(bytes.count) + UInt32(random.next() % 3)
    return frame
  }

  private init(bytes: [UInt8], number: Int) {
    self.bytes = bytes
    metadata = FrameMetadata(
      timestamp: Timestamp(seconds: 1_800_000_000 + Int64(number)), port: PortID(1), direction: .toGuest,
      originalLength: UInt32(bytes.count))
  }

  private static func big(_ number: some FixedWidthInteger) -> [UInt8] {
    stride(from: number.bitWidth - 8, through: 0, by: -8).map { UInt8(truncatingIfNeeded: number >> $0) }
  }

  /// The Internet checksum (RFC 1071) of an even number of bytes.
  private static func checksum(_ bytes: [UInt8]) -> UInt16 {
    var sum: UInt32 = 0
    for index in stride(from: 0, to: bytes.count, by: 2) {
      sum += UInt32(bytes[index]) << 8 | UInt32(bytes[index + 1])
    }
    while sum > 0xFFFF { sum = sum >> 16 + sum & 0xFFFF }
    return ~UInt16(sum)
  }
}

/// SplitMix64: the same seed gives the same numbers, on every machine.
struct ConformanceRandom {
  private var state: UInt64

  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var value = state
    value = (value ^ value >> 30) &* 0xBF58_476D_1CE4_E5B9
    value = (value ^ value >> 27) &* 0x94D0_49BB_1331_11EB
    return value ^ value >> 31
  }
}
