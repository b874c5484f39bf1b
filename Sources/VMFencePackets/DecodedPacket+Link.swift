import VMFenceCore

/// EtherType values (IEEE 802 numbers, IANA) that decoding follows.
enum EtherType {
  static let ipv4: UInt16 = 0x0800
  static let arp: UInt16 = 0x0806
  static let vlan: UInt16 = 0x8100
  static let ipv6: UInt16 = 0x86DD
  /// IEEE 802.1ad provider bridging (QinQ), and what was used for it before.
  static let providerBridging: UInt16 = 0x88A8
  static let oldQinQ: UInt16 = 0x9100
  /// Smaller values in the place of an EtherType are the length of an 802.3 frame.
  static let first: UInt16 = 0x0600
}

/// The link layer: every step ends in `decodeNetwork`, or stops with the rest as payload.
extension DecodedPacket {
  /// VLAN tags followed at the most, the stripped one included: what the Linux kernel nests.
  static let vlanTagLimit: UInt8 = 8

  mutating func decodeLink(_ bytes: RawSpan, linkType: LinkType, end: Int) {
    switch linkType {
    case .ethernet: decodeEthernet(bytes, end: end)
    case .null, .loop: decodeLoopback(bytes, end: end)
    case .raw, .rawBSD, .rawOpenBSD: decodeRawIP(bytes, end: end)
    case .ipv4: decodeNetwork(bytes, etherType: EtherType.ipv4, at: 0, end: end)
    case .ipv6: decodeNetwork(bytes, etherType: EtherType.ipv6, at: 0, end: end)
    case .linuxSLL: decodeLinuxCooked(bytes, end: end)
    case .linuxSLL2: decodeLinuxCooked2(bytes, end: end)
    case .ppp: decodePPP(bytes, end: end)
    case .ciscoHDLC: decodeCiscoHDLC(bytes, end: end)
    default: anomalies.insert(.unknownLinkType)
    }
  }

  private mutating func decodeEthernet(_ bytes: RawSpan, end: Int) {
    guard end >= 14 else {
      anomalies.insert(.truncatedLink)
      return
    }
    destinationMAC = bytes.macAddress(0)
    sourceMAC = bytes.macAddress(6)
    decodeTyped(bytes, type: bytes.u16(12), at: 14, end: end)
  }

  /// Follows VLAN tags, then an 802.3 length or an EtherType; `start` is the position after the type field.
  private mutating func decodeTyped(_ bytes: RawSpan, type firstType: UInt16, at start: Int, end: Int) {
    var type = firstType
    var offset = start
    while type == EtherType.vlan || type == EtherType.providerBridging || type == EtherType.oldQinQ {
      etherType = type
      setPayload(from: offset, to: end)
      guard vlanCount < Self.vlanTagLimit else {
        anomalies.insert(.tooManyVLANTags)
        return
      }
      guard end - offset >= 4 else {
        anomalies.insert(.truncatedLink)
        return
      }
      addVLANTag(bytes.u16(offset))
      type = bytes.u16(offset + 2)
      offset += 4
    }
    if type >= EtherType.first {
      decodeNetwork(bytes, etherType: type, at: offset, end: end)
    } else {
      // The rest of the frame beyond the length is padding.
      if Int(type) > end - offset { anomalies.insert(.truncatedLink) }
      decodeLLC(bytes, at: offset, end: Swift.min(end, offset + Int(type)))
    }
  }

  /// IEEE 802.2 LLC, of which only SNAP with an EtherType (RFC 1042; 802.1H's OUI too) carries what we decode.
  private mutating func decodeLLC(_ bytes: RawSpan, at start: Int, end: Int) {
    etherType = 0
    setPayload(from: start, to: end)
    guard end - start >= 3 else {
      anomalies.insert(.truncatedLink)
      return
    }
    guard bytes.u16(start) == 0xAAAA, bytes.u8(start + 2) == 0x03 else { return }
    guard end - start >= 8 else {
      anomalies.insert(.truncatedLink)
      return
    }
    let organisation = UInt32(bytes.u8(start + 3)) << 16 | UInt32(bytes.u16(start + 4))
    guard organisation == 0 || organisation == 0x0000F8 else { return }
    let type = bytes.u16(start + 6)
    setPayload(from: start + 8, to: end)
    // A length here would be a frame within a frame: not followed.
    guard type >= EtherType.first else { return }
    decodeNetwork(bytes, etherType: type, at: start + 8, end: end)
  }

  /// A protocol family in four bytes, in the byte order of the host that captured (NULL) or the network's (LOOP); both are
  /// taken in both orders. IPv6 has a number of its own on each system.
  private mutating func decodeLoopback(_ bytes: RawSpan, end: Int) {
    guard end >= 4 else {
      anomalies.insert(.truncatedLink)
      return
    }
    setPayload(from: 4, to: end)
    let value = bytes.u32(0)
    switch value <= 0xFFFF ? value : value.byteSwapped {
    case 2: decodeNetwork(bytes, etherType: EtherType.ipv4, at: 4, end: end)
    case 10, 23, 24, 28, 30: decodeNetwork(bytes, etherType: EtherType.ipv6, at: 4, end: end)
    default: break
    }
  }

  private mutating func decodeRawIP(_ bytes: RawSpan, end: Int) {
    guard end >= 1 else {
      anomalies.insert(.truncatedNetwork)
      return
    }
    switch bytes.u8(0) >> 4 {
    case 4: decodeNetwork(bytes, etherType: EtherType.ipv4, at: 0, end: end)
    case 6: decodeNetwork(bytes, etherType: EtherType.ipv6, at: 0, end: end)
    default: anomalies.insert(.wrongIPVersion)
    }
  }

  /// LINKTYPE_LINUX_SLL: packet type, ARPHRD type, address length, address (8), protocol.
  private mutating func decodeLinuxCooked(_ bytes: RawSpan, end: Int) {
    guard end >= 16 else {
      anomalies.insert(.truncatedLink)
      return
    }
    if bytes.u16(4) == 6 { sourceMAC = bytes.macAddress(6) }
    decodeCookedProtocol(bytes, hardware: bytes.u16(2), type: bytes.u16(14), at: 16, end: end)
  }

  /// LINKTYPE_LINUX_SLL2: protocol, reserved, interface index (4), ARPHRD type, packet type (1), address length (1), address (8).
  private mutating func decodeLinuxCooked2(_ bytes: RawSpan, end: Int) {
    guard end >= 20 else {
      anomalies.insert(.truncatedLink)
      return
    }
    if bytes.u8(11) == 6 { sourceMAC = bytes.macAddress(12) }
    decodeCookedProtocol(bytes, hardware: bytes.u16(8), type: bytes.u16(0), at: 20, end: end)
  }

  private mutating func decodeCookedProtocol(
    _ bytes: RawSpan, hardware: UInt16, type: UInt16, at start: Int, end: Int
  ) {
    setPayload(from: start, to: end)
    // ARPHRD_NETLINK, and the radio and GRE tunnels, whose protocol field is not an EtherType.
    guard hardware != 824, hardware != 803 else { return }
    if type == 0x0004 {
      decodeLLC(bytes, at: start, end: end)
    } else if type >= EtherType.first {
      decodeTyped(bytes, type: type, at: start, end: end)
    }
  }

  /// PPP in HDLC-like framing (RFC 1662): the address and control bytes may be left out, and the protocol field may be
  /// compressed to one byte (RFC 1661 §6.5: the last byte of a protocol number is odd, the others even).
  private mutating func decodePPP(_ bytes: RawSpan, end: Int) {
    var offset = 0
    if end >= 2, bytes.u16(0) == 0xFF03 { offset = 2 }
    guard end - offset >= 1 else {
      anomalies.insert(.truncatedLink)
      return
    }
    var number = UInt16(bytes.u8(offset))
    offset += 1
    if number & 1 == 0 {
      guard end - offset >= 1 else {
        anomalies.insert(.truncatedLink)
        return
      }
      number = number << 8 | UInt16(bytes.u8(offset))
      offset += 1
    }
    setPayload(from: offset, to: end)
    switch number {
    case 0x0021: decodeNetwork(bytes, etherType: EtherType.ipv4, at: offset, end: end)
    case 0x0057: decodeNetwork(bytes, etherType: EtherType.ipv6, at: offset, end: end)
    default: break
    }
  }

  /// Address (0x0F unicast, 0x8F broadcast), control, EtherType.
  private mutating func decodeCiscoHDLC(_ bytes: RawSpan, end: Int) {
    guard end >= 4 else {
      anomalies.insert(.truncatedLink)
      return
    }
    setPayload(from: 4, to: end)
    guard bytes.u16(2) >= EtherType.first else { return }
    decodeTyped(bytes, type: bytes.u16(2), at: 4, end: end)
  }

  /// Goes on with what the EtherType names.
  private mutating func decodeNetwork(_ bytes: RawSpan, etherType type: UInt16, at start: Int, end: Int) {
    etherType = type
    networkOffset = Int32(truncatingIfNeeded: start)
    networkEnd = Int32(truncatingIfNeeded: end)
    setPayload(from: start, to: end)
    switch type {
    case EtherType.ipv4: decodeIPv4(bytes, at: start, end: end)
    case EtherType.ipv6: decodeIPv6(bytes, at: start, end: end)
    case EtherType.arp: decodeARP(bytes, at: start, end: end)
    default: break
    }
  }
}
