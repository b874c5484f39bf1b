import VMFenceCore

/// IP protocol numbers (IANA) that decoding follows.
enum IPProtocol {
  static let hopByHop: UInt8 = 0
  static let icmp: UInt8 = 1
  static let igmp: UInt8 = 2
  static let ipv4: UInt8 = 4
  static let tcp: UInt8 = 6
  static let udp: UInt8 = 17
  static let ipv6: UInt8 = 41
  static let routing: UInt8 = 43
  static let fragment: UInt8 = 44
  static let gre: UInt8 = 47
  static let encryption: UInt8 = 50
  static let authentication: UInt8 = 51
  static let icmpv6: UInt8 = 58
  /// Nothing follows.
  static let none: UInt8 = 59
  static let destinationOptions: UInt8 = 60
  static let sctp: UInt8 = 132
  static let mobility: UInt8 = 135
  static let hostIdentity: UInt8 = 139
  static let shim6: UInt8 = 140
}

/// The network layer. `end` is the end of the frame as captured; an end *declared* by a length field may lie beyond it.
extension DecodedPacket {
  /// RFC 826, for Ethernet and IPv4, the only pair that is in use.
  mutating func decodeARP(_ bytes: RawSpan, at start: Int, end: Int) {
    guard end - start >= 8 else {
      flag(.truncatedNetwork, .arpTooSmall)
      return
    }
    // Hardware type 1 (Ethernet), protocol 0x0800, address lengths 6 and 4.
    guard bytes.u16(start) == 1 else {
      flag(.badARP, .arpHardware)
      return
    }
    guard bytes.u16(start + 2) == EtherType.ipv4 else {
      flag(.badARP, .arpProtocol)
      return
    }
    guard bytes.u8(start + 4) == 6 else {
      flag(.badARP, .arpHardwareSize)
      return
    }
    guard bytes.u8(start + 5) == 4 else {
      flag(.badARP, .arpProtocolSize)
      return
    }
    guard end - start >= 28 else {
      flag(.truncatedNetwork, .arpInvalid)
      return
    }
    // Request and reply, and those of reverse ARP.
    if !(1...4).contains(bytes.u16(start + 6)) { flag(.badARP, .arpOperation) }
    network = .arp
    networkEnd = Int32(truncatingIfNeeded: start + 28)
    source = IPAddress(v4: bytes.u32(start + 14))
    destination = IPAddress(v4: bytes.u32(start + 24))
    setPayload(from: start + 28, to: start + 28)
  }

  /// RFC 791 §3.1.
  mutating func decodeIPv4(_ bytes: RawSpan, at start: Int, end: Int) {
    guard end - start >= 20 else {
      flag(.truncatedNetwork, .ipv4PacketTooSmall)
      return
    }
    let first = bytes.u8(start)
    guard first >> 4 == 4 else {
      flag(.wrongIPVersion, .ipv4WrongVersion)
      return
    }
    let headerLength = Int(first & 0x0F) * 4
    guard headerLength >= 20 else {
      flag(.badHeaderLength, .ipv4HeaderTooSmall)
      return
    }
    guard headerLength <= end - start else {
      flag(.truncatedNetwork, .ipv4Truncated)
      return
    }
    let totalLength = Int(bytes.u16(start + 2))
    guard totalLength == 0 || totalLength >= headerLength else {
      flag(.badDatagramLength, .ipv4LengthBelowHeader)
      return
    }
    let declaredEnd = totalLength == 0 ? end : start + totalLength
    if totalLength == 0 { flag(.zeroLengthField, .ipv4LengthBelowHeader) }
    if declaredEnd > end { flag(.badDatagramLength, .ipv4Truncated) }
    let datagramEnd = Swift.min(declaredEnd, end)

    network = .ipv4
    networkEnd = Int32(truncatingIfNeeded: datagramEnd)
    fragmentID = UInt32(bytes.u16(start + 4))
    let fragment = bytes.u16(start + 6)
    moreFragments = fragment & 0x2000 != 0
    fragmentOffset = (fragment & 0x1FFF) * 8
    timeToLive = bytes.u8(start + 8)
    ipProtocol = bytes.u8(start + 9)
    source = IPAddress(v4: bytes.u32(start + 12))
    destination = IPAddress(v4: bytes.u32(start + 16))
    if headerLength > 20 { checkIPv4Options(bytes, from: start + 20, to: start + headerLength) }

    let payload = start + headerLength
    setPayload(from: payload, to: datagramEnd)
    // The reassembled datagram, header included, has at most 65,535 bytes.
    if isFragment, headerLength + Int(fragmentOffset) + (declaredEnd - payload) > 0xFFFF {
      flag(.badFragment, .ipv4FragmentsTooLarge)
    }
    guard fragmentOffset == 0 else { return }
    var next = Layer(ipProtocol: ipProtocol, offset: payload, end: datagramEnd, declaredEnd: declaredEnd)
    if next.ipProtocol == IPProtocol.authentication, !skipExtensionHeaders(bytes, &next, inIPv6: false) { return }
    decodeTransport(bytes, next)
  }

  /// RFC 8200 §3.
  mutating func decodeIPv6(_ bytes: RawSpan, at start: Int, end: Int) {
    // A version that is wrong is told even when the header is short.
    guard end == start || bytes.u8(start) >> 4 == 6 else {
      flag(.wrongIPVersion, .ipv6WrongVersion)
      return
    }
    guard end - start >= 40 else {
      flag(.truncatedNetwork, .ipv6PacketTooSmall)
      return
    }
    network = .ipv6
    ipProtocol = bytes.u8(start + 6)
    timeToLive = bytes.u8(start + 7)
    source = IPAddress(v6High: bytes.u64(start + 8), low: bytes.u64(start + 16))
    destination = IPAddress(v6High: bytes.u64(start + 24), low: bytes.u64(start + 32))

    var length = Int(bytes.u16(start + 4))
    if length == 0, ipProtocol == IPProtocol.hopByHop {
      length = jumboPayloadLength(bytes, at: start + 40, end: end)
    }
    if length == 0, ipProtocol != IPProtocol.none {
      anomalies.insert(.zeroLengthField)
      length = end - start - 40
    }
    let declaredEnd = start + 40 + length
    if declaredEnd > end { flag(.badDatagramLength, .ipv6Truncated) }
    let datagramEnd = Swift.min(declaredEnd, end)
    networkEnd = Int32(truncatingIfNeeded: datagramEnd)
    setPayload(from: start + 40, to: datagramEnd)

    var next = Layer(ipProtocol: ipProtocol, offset: start + 40, end: datagramEnd, declaredEnd: declaredEnd)
    guard skipExtensionHeaders(bytes, &next, inIPv6: true) else { return }
    decodeTransport(bytes, next)
  }

  /// The length that a jumbo payload option gives (RFC 2675 §2), or 0. `start` is that of the hop-by-hop header.
  private func jumboPayloadLength(_ bytes: RawSpan, at start: Int, end: Int) -> Int {
    guard end - start >= 8 else { return 0 }
    let headerEnd = Swift.min(end, start + (Int(bytes.u8(start + 1)) + 1) * 8)
    var offset = start + 2
    while offset < headerEnd {
      let type = bytes.u8(offset)
      if type == 0 {
        offset += 1
        continue
      }
      guard headerEnd - offset >= 2 else { return 0 }
      let length = Int(bytes.u8(offset + 1))
      guard headerEnd - offset >= 2 + length else { return 0 }
      if type == 0xC2, length == 4 {
        let jumbo = Int(bytes.u32(offset + 2))
        return jumbo > 0xFFFF ? jumbo : 0
      }
      offset += 2 + length
    }
    return 0
  }

  /// What comes next in a datagram: its protocol, where it begins, where the captured datagram ends, and where it ends by its own
  /// account.
  struct Layer {
    var ipProtocol: UInt8
    var offset: Int
    var end: Int
    var declaredEnd: Int
  }
}
