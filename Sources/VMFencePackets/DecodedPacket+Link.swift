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
  /// IEEE 802.1ah backbone bridging: the service tag, behind which the customer's frame lies.
  static let backboneBridging: UInt16 = 0x88E7
  /// Transparent Ethernet bridging: a whole Ethernet frame (RFC 1701, RFC 8926).
  static let bridging: UInt16 = 0x6558
  static let pppoeDiscovery: UInt16 = 0x8863
  static let pppoeSession: UInt16 = 0x8864
  static let mpls: UInt16 = 0x8847
  static let mplsMulticast: UInt16 = 0x8848
  /// Cisco FabricPath: two more bytes, and an Ethernet frame.
  static let fabricPath: UInt16 = 0x8903
  /// IEEE 802.1BR's E-tag as VMware and Cisco write it.
  static let vnTag: UInt16 = 0x8926
  /// Network service header (RFC 8300).
  static let serviceHeader: UInt16 = 0x894F
  /// PPP in a GRE of version 1 (RFC 2637).
  static let ppp: UInt16 = 0x880B
  static let erspan: UInt16 = 0x88BE
  static let erspan3: UInt16 = 0x22EB
  /// Smaller values in the place of an EtherType are the length of an 802.3 frame.
  static let first: UInt16 = 0x0600
}

/// What comes next in a frame, by its EtherType: `start ..< end`, after the type field.
struct LinkStep {
  var type: UInt16
  var start: Int
  var end: Int
}

/// The link layer: every step ends in `decodeNetwork`, or stops with the rest as payload.
extension DecodedPacket {
  /// VLAN tags followed at the most, the stripped one included: what the Linux kernel nests.
  static let vlanTagLimit: UInt8 = 8

  mutating func decodeLink(_ bytes: RawSpan, linkType: LinkType, end: Int) {
    switch linkType {
    case .ethernet: decodeTyped(bytes, LinkStep(type: EtherType.bridging, start: 0, end: end))
    case .null, .loop: decodeLoopback(bytes, end: end)
    case .raw, .rawBSD, .rawOpenBSD: decodeRawIP(bytes, end: end)
    case .ipv4: decodeTyped(bytes, LinkStep(type: EtherType.ipv4, start: 0, end: end))
    case .ipv6: decodeTyped(bytes, LinkStep(type: EtherType.ipv6, start: 0, end: end))
    case .linuxSLL: decodeLinuxCooked(bytes, end: end)
    case .linuxSLL2: decodeLinuxCooked2(bytes, end: end)
    case .ppp: decodePPP(bytes, at: 0, end: end)
    case .ciscoHDLC: decodeCiscoHDLC(bytes, end: end)
    default: anomalies.insert(.unknownLinkType)
    }
  }

  /// Follows what is between the link and the network layer, header by header.
  mutating func decodeTyped(_ bytes: RawSpan, _ first: LinkStep) {
    var step = first
    while enterHeader() {
      switch step.type {
      case EtherType.ipv4, EtherType.ipv6, EtherType.arp:
        decodeNetwork(bytes, step)
        return
      case EtherType.bridging:
        guard let next = ethernetHeader(bytes, step) else { return }
        step = next
      case EtherType.vlan, EtherType.providerBridging, EtherType.oldQinQ:
        guard let next = vlanTag(bytes, step) else { return }
        step = next
      default:
        guard let next = step.type < EtherType.first ? logicalLink(bytes, step) : carrier(bytes, step) else { return }
        step = next
      }
    }
  }

  private mutating func ethernetHeader(_ bytes: RawSpan, _ step: LinkStep) -> LinkStep? {
    let start = step.start
    guard step.end - start >= 14 else {
      flag(.truncatedLink, .ethernetTooSmall)
      return nil
    }
    destinationMAC = bytes.macAddress(start)
    sourceMAC = bytes.macAddress(start + 6)
    return LinkStep(type: bytes.u16(start + 12), start: start + 14, end: step.end)
  }

  private mutating func vlanTag(_ bytes: RawSpan, _ step: LinkStep) -> LinkStep? {
    etherType = step.type
    setPayload(from: step.start, to: step.end)
    guard vlanCount < Self.vlanTagLimit else {
      flag(.tooManyVLANTags, .vlanTooMany)
      return nil
    }
    guard step.end - step.start >= 4 else {
      flag(.truncatedLink, .vlanTooSmall)
      return nil
    }
    addVLANTag(bytes.u16(step.start))
    let type = bytes.u16(step.start + 2)
    if type >= EtherType.first, !Self.isKnown(type) { events.insert(.vlanUnknownType) }
    return LinkStep(type: type, start: step.start + 4, end: step.end)
  }

  /// IEEE 802.2 LLC after an 802.3 length, of which only SNAP with an EtherType (RFC 1042; 802.1H's OUI too) carries what we decode.
  private mutating func logicalLink(_ bytes: RawSpan, _ step: LinkStep) -> LinkStep? {
    // The rest of the frame beyond the length is padding.
    if Int(step.type) > step.end - step.start { anomalies.insert(.truncatedLink) }
    return decodeLLC(bytes, at: step.start, end: Swift.min(step.end, step.start + Int(step.type)))
  }

  private mutating func decodeLLC(_ bytes: RawSpan, at start: Int, end: Int) -> LinkStep? {
    etherType = 0
    setPayload(from: start, to: end)
    guard end - start >= 3 else {
      anomalies.insert(.truncatedLink)
      return nil
    }
    guard bytes.u16(start) == 0xAAAA, bytes.u8(start + 2) == 0x03 else { return nil }
    guard end - start >= 8 else {
      anomalies.insert(.truncatedLink)
      return nil
    }
    let organisation = UInt32(bytes.u8(start + 3)) << 16 | UInt32(bytes.u16(start + 4))
    guard organisation == 0 || organisation == 0x0000F8 else { return nil }
    let type = bytes.u16(start + 6)
    setPayload(from: start + 8, to: end)
    // A length here would be a frame within a frame: not followed.
    return type >= EtherType.first ? LinkStep(type: type, start: start + 8, end: end) : nil
  }

  /// A protocol family in four bytes, in the byte order of the host that captured (NULL) or the network's (LOOP); both are
  /// taken in both orders. IPv6 has a number of its own on each system.
  private mutating func decodeLoopback(_ bytes: RawSpan, end: Int) {
    guard end >= 4 else {
      flag(.truncatedLink, .loopbackTooSmall)
      return
    }
    setPayload(from: 4, to: end)
    let value = bytes.u32(0)
    switch value <= 0xFFFF ? value : value.byteSwapped {
    case 2: decodeTyped(bytes, LinkStep(type: EtherType.ipv4, start: 4, end: end))
    case 10, 23, 24, 28, 30: decodeTyped(bytes, LinkStep(type: EtherType.ipv6, start: 4, end: end))
    default: events.insert(.loopbackUnsupported)
    }
  }

  private mutating func decodeRawIP(_ bytes: RawSpan, end: Int) {
    guard end >= 1 else {
      flag(.truncatedNetwork, .ipv4PacketTooSmall)
      return
    }
    switch bytes.u8(0) >> 4 {
    case 4: decodeTyped(bytes, LinkStep(type: EtherType.ipv4, start: 0, end: end))
    case 6: decodeTyped(bytes, LinkStep(type: EtherType.ipv6, start: 0, end: end))
    default: flag(.wrongIPVersion, .rawWrongVersion)
    }
  }

  /// LINKTYPE_LINUX_SLL: packet type, ARPHRD type, address length, address (8), protocol.
  private mutating func decodeLinuxCooked(_ bytes: RawSpan, end: Int) {
    guard end >= 16 else {
      flag(.truncatedLink, .cookedTooSmall)
      return
    }
    if bytes.u16(4) == 6 { sourceMAC = bytes.macAddress(6) }
    decodeCookedProtocol(bytes, hardware: bytes.u16(2), LinkStep(type: bytes.u16(14), start: 16, end: end))
  }

  /// LINKTYPE_LINUX_SLL2: protocol, reserved, interface index (4), ARPHRD type, packet type (1), address length (1), address (8).
  private mutating func decodeLinuxCooked2(_ bytes: RawSpan, end: Int) {
    guard end >= 20 else {
      flag(.truncatedLink, .cooked2TooSmall)
      return
    }
    if bytes.u8(11) == 6 { sourceMAC = bytes.macAddress(12) }
    decodeCookedProtocol(bytes, hardware: bytes.u16(8), LinkStep(type: bytes.u16(0), start: 20, end: end))
  }

  private mutating func decodeCookedProtocol(_ bytes: RawSpan, hardware: UInt16, _ step: LinkStep) {
    setPayload(from: step.start, to: step.end)
    // ARPHRD_NETLINK, and the radio and GRE tunnels, whose protocol field is not an EtherType.
    guard hardware != 824, hardware != 803 else { return }
    if step.type == 0x0004 {
      if let next = decodeLLC(bytes, at: step.start, end: step.end) { decodeTyped(bytes, next) }
    } else if step.type >= EtherType.first {
      decodeTyped(bytes, step)
    }
  }

  /// Address (0x0F unicast, 0x8F broadcast), control, EtherType.
  private mutating func decodeCiscoHDLC(_ bytes: RawSpan, end: Int) {
    guard end >= 4 else {
      flag(.truncatedLink, .hdlcTooSmall)
      return
    }
    setPayload(from: 4, to: end)
    guard bytes.u16(2) >= EtherType.first else { return }
    decodeTyped(bytes, LinkStep(type: bytes.u16(2), start: 4, end: end))
  }

  /// Goes on with what the EtherType names.
  private mutating func decodeNetwork(_ bytes: RawSpan, _ step: LinkStep) {
    etherType = step.type
    networkOffset = Int32(truncatingIfNeeded: step.start)
    networkEnd = Int32(truncatingIfNeeded: step.end)
    setPayload(from: step.start, to: step.end)
    switch step.type {
    case EtherType.ipv4: decodeIPv4(bytes, at: step.start, end: step.end)
    case EtherType.ipv6: decodeIPv6(bytes, at: step.start, end: step.end)
    default: decodeARP(bytes, at: step.start, end: step.end)
    }
  }
}
