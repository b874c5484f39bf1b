import VMFenceCore

/// IP protocol numbers (IANA) that decoding follows.
enum IPProtocol {
  static let hopByHop: UInt8 = 0
  static let icmp: UInt8 = 1
  static let tcp: UInt8 = 6
  static let udp: UInt8 = 17
  static let routing: UInt8 = 43
  static let fragment: UInt8 = 44
  static let authentication: UInt8 = 51
  static let icmpv6: UInt8 = 58
  static let destinationOptions: UInt8 = 60
  static let sctp: UInt8 = 132
  static let mobility: UInt8 = 135
  static let hostIdentity: UInt8 = 139
  static let shim6: UInt8 = 140
}

/// The network layer. `end` is the end of the frame as captured; an end *declared* by a length field may lie beyond it.
extension DecodedPacket {
  /// Extension headers followed at the most. RFC 8200 §4.1 has reason for 7.
  static let extensionHeaderLimit = 16

  /// RFC 826, for Ethernet and IPv4, the only pair that is in use.
  mutating func decodeARP(_ bytes: RawSpan, at start: Int, end: Int) {
    guard end - start >= 8 else {
      anomalies.insert(.truncatedNetwork)
      return
    }
    // Hardware type 1 (Ethernet), protocol 0x0800, address lengths 6 and 4.
    guard bytes.u32(start) == 0x0001_0800, bytes.u16(start + 4) == 0x0604 else {
      anomalies.insert(.badARP)
      return
    }
    guard end - start >= 28 else {
      anomalies.insert(.truncatedNetwork)
      return
    }
    network = .arp
    networkEnd = Int32(truncatingIfNeeded: start + 28)
    source = IPAddress(v4: bytes.u32(start + 14))
    destination = IPAddress(v4: bytes.u32(start + 24))
    setPayload(from: start + 28, to: start + 28)
  }

  /// RFC 791 §3.1.
  mutating func decodeIPv4(_ bytes: RawSpan, at start: Int, end: Int) {
    guard end - start >= 20 else {
      anomalies.insert(.truncatedNetwork)
      return
    }
    let first = bytes.u8(start)
    guard first >> 4 == 4 else {
      anomalies.insert(.wrongIPVersion)
      return
    }
    let headerLength = Int(first & 0x0F) * 4
    guard headerLength >= 20 else {
      anomalies.insert(.badHeaderLength)
      return
    }
    guard headerLength <= end - start else {
      anomalies.insert(.truncatedNetwork)
      return
    }
    let totalLength = Int(bytes.u16(start + 2))
    guard totalLength == 0 || totalLength >= headerLength else {
      anomalies.insert(.badDatagramLength)
      return
    }
    let declaredEnd = totalLength == 0 ? end : start + totalLength
    if totalLength == 0 { anomalies.insert(.zeroLengthField) }
    if declaredEnd > end { anomalies.insert(.badDatagramLength) }
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

    let payload = start + headerLength
    setPayload(from: payload, to: datagramEnd)
    // The reassembled datagram, header included, has at most 65,535 bytes.
    if isFragment, headerLength + Int(fragmentOffset) + (declaredEnd - payload) > 0xFFFF {
      anomalies.insert(.badFragment)
    }
    guard fragmentOffset == 0 else { return }
    var next = Layer(ipProtocol: ipProtocol, offset: payload, end: datagramEnd, declaredEnd: declaredEnd)
    if next.ipProtocol == IPProtocol.authentication, !skipExtensionHeaders(bytes, &next, inIPv6: false) { return }
    decodeTransport(bytes, next)
  }

  /// RFC 8200 §3.
  mutating func decodeIPv6(_ bytes: RawSpan, at start: Int, end: Int) {
    guard end - start >= 40 else {
      // A version that is wrong is told even so.
      anomalies.insert(end > start && bytes.u8(start) >> 4 != 6 ? .wrongIPVersion : .truncatedNetwork)
      return
    }
    guard bytes.u8(start) >> 4 == 6 else {
      anomalies.insert(.wrongIPVersion)
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
    // 59 is "no next header": there a length of 0 is the rule.
    if length == 0, ipProtocol != 59 {
      anomalies.insert(.zeroLengthField)
      length = end - start - 40
    }
    let declaredEnd = start + 40 + length
    if declaredEnd > end { anomalies.insert(.badDatagramLength) }
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

  /// Passes over extension headers (RFC 8200 §4, and the later ones of RFC 6275, 7401, 5533); in IPv4 only the authentication header
  /// (RFC 4302). Returns whether decoding can go on at `layer`. ESP is not looked into: its content is encrypted.
  private mutating func skipExtensionHeaders(_ bytes: RawSpan, _ layer: inout Layer, inIPv6: Bool) -> Bool {
    var count = 0
    while true {
      let length: Int
      switch layer.ipProtocol {
      case IPProtocol.authentication: length = authenticationHeaderLength(bytes, layer)
      case IPProtocol.fragment where inIPv6: length = 8
      case IPProtocol.hopByHop where inIPv6 && count > 0:
        // RFC 8200 §4.1: directly after the IPv6 header only.
        anomalies.insert(.badExtensionHeader)
        return false
      case IPProtocol.hopByHop where inIPv6, IPProtocol.routing where inIPv6,
        IPProtocol.destinationOptions where inIPv6, IPProtocol.mobility where inIPv6,
        IPProtocol.hostIdentity where inIPv6, IPProtocol.shim6 where inIPv6:
        length = layer.end - layer.offset < 2 ? 8 : (Int(bytes.u8(layer.offset + 1)) + 1) * 8
      default:
        return true
      }
      guard count < Self.extensionHeaderLimit else {
        anomalies.insert(.tooManyExtensionHeaders)
        return false
      }
      guard length <= layer.end - layer.offset else {
        anomalies.insert(.badExtensionHeader)
        return false
      }
      count += 1
      let header = layer.ipProtocol
      let start = layer.offset
      layer.ipProtocol = bytes.u8(start)
      layer.offset += length
      ipProtocol = layer.ipProtocol
      setPayload(from: layer.offset, to: layer.end)
      if header == IPProtocol.routing, bytes.u8(start + 3) != 0 { anomalies.insert(.sourceRouted) }
      if header == IPProtocol.fragment, !decodeFragmentHeader(bytes, at: start, layer) { return false }
    }
  }

  /// In units of 4 bytes, less 2; at least its fixed part of 12 bytes.
  private func authenticationHeaderLength(_ bytes: RawSpan, _ layer: Layer) -> Int {
    guard layer.end - layer.offset >= 2 else { return 12 }
    return Swift.max(12, (Int(bytes.u8(layer.offset + 1)) + 2) * 4)
  }

  /// RFC 8200 §4.5. Returns whether what follows is the beginning of the datagram.
  private mutating func decodeFragmentHeader(_ bytes: RawSpan, at start: Int, _ layer: Layer) -> Bool {
    guard !isFragment else {
      anomalies.insert(.badExtensionHeader)
      return false
    }
    let field = bytes.u16(start + 2)
    fragmentOffset = field & 0xFFF8
    moreFragments = field & 1 != 0
    fragmentID = bytes.u32(start + 4)
    let length = layer.declaredEnd - layer.offset
    if Int(fragmentOffset) + length > 0xFFFF || moreFragments && length % 8 != 0 { anomalies.insert(.badFragment) }
    return fragmentOffset == 0
  }
}
