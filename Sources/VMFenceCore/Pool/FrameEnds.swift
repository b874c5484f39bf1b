/// Who a frame's outermost packet is from and to, as far as the supervisor looks itself: what a detector says of a packet is compared with it. Every
/// length is checked before it is used, and each step goes forward, so that a hostile frame costs its own length at most.
package struct FrameEnds: Hashable {
  package var source: IPAddress
  package var destination: IPAddress
  package var ipProtocol: UInt8
  /// 0 for protocols without ports.
  package var sourcePort: UInt16 = 0
  package var destinationPort: UInt16 = 0
  /// A part of a datagram: its ports are in another, or not trusted.
  package var isFragment = false

  /// nil for what is no IPv4 or IPv6 packet, directly behind the link header and VLAN tags.
  package init?(_ bytes: RawSpan, _ linkType: LinkType) {
    guard let start = Self.network(bytes, linkType), start < bytes.byteCount else { return nil }
    switch bytes.u8(start) >> 4 {
    case 4: self.init(v4: bytes, at: start)
    case 6: self.init(v6: bytes, at: start)
    default: return nil
    }
  }

  /// Where the network layer begins.
  private static func network(_ bytes: RawSpan, _ linkType: LinkType) -> Int? {
    var typeOffset: Int
    switch linkType {
    case .ethernet: typeOffset = 12
    case .linuxSLL: typeOffset = 14
    case .linuxSLL2: return bytes.byteCount >= 20 && isIP(bytes.u16(0)) ? 20 : nil
    case .raw, .rawBSD, .rawOpenBSD, .ipv4, .ipv6: return 0
    default: return nil
    }
    while typeOffset + 2 <= bytes.byteCount {
      let type = bytes.u16(typeOffset)
      if isIP(type) { return typeOffset + 2 }
      // VLAN tags (IEEE 802.1Q, 802.1ad, and what was used before that).
      guard type == 0x8100 || type == 0x88A8 || type == 0x9100 else { return nil }
      typeOffset += 4
    }
    return nil
  }

  private static func isIP(_ type: UInt16) -> Bool { type == 0x0800 || type == 0x86DD }

  /// RFC 791, section 3.1.
  private init?(v4 bytes: RawSpan, at start: Int) {
    guard bytes.byteCount - start >= 20 else { return nil }
    let headerLength = Int(bytes.u8(start) & 0x0F) * 4
    guard headerLength >= 20, bytes.byteCount - start >= headerLength else { return nil }
    source = IPAddress(v4: bytes.u32(start + 12))
    destination = IPAddress(v4: bytes.u32(start + 16))
    ipProtocol = bytes.u8(start + 9)
    isFragment = bytes.u16(start + 6) & 0x3FFF != 0
    takePorts(bytes, at: start + headerLength)
  }

  /// RFC 8200, sections 3 and 4.
  private init?(v6 bytes: RawSpan, at start: Int) {
    guard bytes.byteCount - start >= 40 else { return nil }
    source = IPAddress(v6High: bytes.u64(start + 8), low: bytes.u64(start + 16))
    destination = IPAddress(v6High: bytes.u64(start + 24), low: bytes.u64(start + 32))
    ipProtocol = bytes.u8(start + 6)
    var offset = start + 40
    while bytes.byteCount - offset >= 8 {
      let length: Int
      switch ipProtocol {
      // Hop-by-hop options, routing, destination options, mobility, HIP, Shim6 (IANA's list of extension headers).
      case 0, 43, 60, 135, 139, 140: length = (Int(bytes.u8(offset + 1)) + 1) * 8
      case 51: length = (Int(bytes.u8(offset + 1)) + 2) * 4
      case 44:
        // One that is the whole datagram (an atomic fragment, RFC 6946) is no part.
        isFragment = bytes.u16(offset + 2) & 0xFFF9 != 0
        length = 8
      default:
        takePorts(bytes, at: offset)
        return
      }
      let next = bytes.u8(offset)
      offset += length
      ipProtocol = next
      if isFragment || offset >= bytes.byteCount { return }
    }
  }

  private mutating func takePorts(_ bytes: RawSpan, at offset: Int) {
    guard ipProtocol == 6 || ipProtocol == 17 || ipProtocol == 132, !isFragment, bytes.byteCount - offset >= 4 else {
      return
    }
    sourcePort = bytes.u16(offset)
    destinationPort = bytes.u16(offset + 2)
  }

  enum Relation {
    case same
    /// The packet goes the other way: its acknowledgement made the alert's stream ready.
    case answer
  }

  /// How the packet goes with an alert; nil: it has other ends.
  func relation(to alert: AlertRecord) -> Relation? {
    guard ipProtocol == alert.ipProtocol else { return nil }
    if source == alert.source, destination == alert.destination,
      isFragment || sourcePort == alert.sourcePort && destinationPort == alert.destinationPort
    {
      return .same
    }
    if source == alert.destination, destination == alert.source,
      isFragment || sourcePort == alert.destinationPort && destinationPort == alert.sourcePort
    {
      return .answer
    }
    return nil
  }
}
