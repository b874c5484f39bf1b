import VMFenceCore

/// Protocols between the link and the network layer: each takes its header, and says what comes next.
extension DecodedPacket {
  /// Whether an EtherType is one that is decoded.
  static func isKnown(_ type: UInt16) -> Bool {
    switch type {
    case EtherType.ipv4, EtherType.ipv6, EtherType.arp, EtherType.vlan, EtherType.providerBridging, EtherType.oldQinQ,
      EtherType.backboneBridging, EtherType.pppoeDiscovery, EtherType.pppoeSession, EtherType.mpls,
      EtherType.mplsMulticast, EtherType.fabricPath, EtherType.vnTag, EtherType.serviceHeader:
      true
    default: false
    }
  }

  /// Nil: nothing that is decoded follows, and `etherType` and the payload say what is left.
  mutating func carrier(_ bytes: RawSpan, _ step: LinkStep) -> LinkStep? {
    etherType = step.type
    networkOffset = Int32(truncatingIfNeeded: step.start)
    networkEnd = Int32(truncatingIfNeeded: step.end)
    setPayload(from: step.start, to: step.end)
    switch step.type {
    case EtherType.backboneBridging: return backboneTag(bytes, step)
    case EtherType.vnTag: return vnTag(bytes, step)
    case EtherType.mpls, EtherType.mplsMulticast: return labels(bytes, step)
    case EtherType.serviceHeader: return serviceHeader(bytes, step)
    case EtherType.fabricPath:
      guard step.end - step.start >= 2 else {
        flag(.truncatedLink, .fabricPathTooSmall)
        return nil
      }
      return LinkStep(type: EtherType.bridging, start: step.start + 2, end: step.end)
    case EtherType.pppoeSession: return sessionHeader(bytes, step)
    case EtherType.pppoeDiscovery:
      readDiscovery(bytes, step)
      return nil
    case EtherType.ppp: return pointToPoint(bytes, step)
    case EtherType.erspan: return mirrorHeader(bytes, step, version: 1, length: 8)
    case EtherType.erspan3: return mirrorHeader(bytes, step, version: 2, length: 12)
    default:
      events.insert(.ethernetUnknownType)
      return nil
    }
  }

  /// IEEE 802.1ah I-TAG: flags and service identifier, the customer's addresses, the EtherType.
  private mutating func backboneTag(_ bytes: RawSpan, _ step: LinkStep) -> LinkStep? {
    guard step.end - step.start >= 18 else {
      flag(.truncatedLink, .backboneTooSmall)
      return nil
    }
    destinationMAC = bytes.macAddress(step.start + 4)
    sourceMAC = bytes.macAddress(step.start + 10)
    return LinkStep(type: bytes.u16(step.start + 16), start: step.start + 18, end: step.end)
  }

  /// Direction, pointer and interfaces (4), EtherType.
  private mutating func vnTag(_ bytes: RawSpan, _ step: LinkStep) -> LinkStep? {
    guard step.end - step.start >= 6 else {
      flag(.truncatedLink, .vnTagTooSmall)
      return nil
    }
    let type = bytes.u16(step.start + 4)
    if type >= EtherType.first, !Self.isKnown(type) { events.insert(.vnTagUnknownType) }
    return LinkStep(type: type, start: step.start + 6, end: step.end)
  }

  /// RFC 3032: labels up to the bottom of the stack. What follows has no type: its first four bits tell (RFC 4928).
  private mutating func labels(_ bytes: RawSpan, _ step: LinkStep) -> LinkStep? {
    var offset = step.start
    var entry: UInt32 = 0
    repeat {
      guard step.end - offset >= 4 else {
        flag(.truncatedLink, .mplsTooSmall)
        return nil
      }
      entry = bytes.u32(offset)
      offset += 4
    } while entry & 0x100 == 0
    setPayload(from: offset, to: step.end)
    switch entry >> 12 {
    case 0: return LinkStep(type: EtherType.ipv4, start: offset, end: step.end)
    case 2: return LinkStep(type: EtherType.ipv6, start: offset, end: step.end)
    case 1: return refuse(.mplsRouterAlert)
    case 3: return refuse(.mplsImplicitNull)
    case 4...15: return refuse(.mplsReserved)
    default: break
    }
    guard offset < step.end else { return refuse(.mplsPacketTooSmall) }
    switch bytes.u8(offset) >> 4 {
    case 4: return LinkStep(type: EtherType.ipv4, start: offset, end: step.end)
    case 6: return LinkStep(type: EtherType.ipv6, start: offset, end: step.end)
    // A pseudowire's control word (RFC 4385), then Ethernet.
    case 0 where step.end - offset >= 4:
      return LinkStep(type: EtherType.bridging, start: offset + 4, end: step.end)
    default: return refuse(.mplsUnknownPayload)
    }
  }

  private mutating func refuse(_ event: DecodeEvent) -> LinkStep? {
    flag(.badCarrier, event)
    return nil
  }

  /// RFC 8300 §2.
  private mutating func serviceHeader(_ bytes: RawSpan, _ step: LinkStep) -> LinkStep? {
    guard step.end - step.start >= 8 else {
      flag(.truncatedLink, .nshTooSmall)
      return nil
    }
    let first = bytes.u16(step.start)
    guard first >> 14 == 0 else { return refuse(.nshVersion) }
    let length = Int(first & 0x3F) * 4
    guard length >= 8, length < step.end - step.start else { return refuse(.nshLength) }
    switch bytes.u8(step.start + 2) & 0x0F {
    case 0, 15: return refuse(.nshReservedType)
    case 1 where length != 24: return refuse(.nshLength)
    case 1, 2: break
    default: return refuse(.nshUnsupportedType)
    }
    let type: UInt16
    switch bytes.u8(step.start + 3) {
    case 1: type = EtherType.ipv4
    case 2: type = EtherType.ipv6
    case 3: type = EtherType.bridging
    case 5: type = EtherType.mpls
    default: return refuse(.nshUnknownPayload)
    }
    return LinkStep(type: type, start: step.start + length, end: step.end)
  }

  /// A frame mirrored by a switch (draft-foschiano-erspan): its VLAN is in the header, and the frame follows. Version 2 may have a
  /// subheader of its platform.
  private mutating func mirrorHeader(
    _ bytes: RawSpan, _ step: LinkStep, version: UInt16, length: Int
  ) -> LinkStep? {
    guard step.end - step.start >= length else {
      flag(.truncatedLink, .erspanTooSmall)
      return nil
    }
    let first = bytes.u16(step.start)
    guard first >> 12 == version else { return refuse(.erspanVersion) }
    var offset = step.start + length
    if version == 2, bytes.u8(step.start + 11) & 1 != 0 { offset += 8 }
    guard offset <= step.end else {
      flag(.truncatedLink, .erspanTooSmall)
      return nil
    }
    if first & 0xFFF != 0 {
      if vlanCount >= 3 { events.insert(.erspanTooManyTags) }
      if vlanCount < Self.vlanTagLimit { addVLANTag(first & 0xFFF) }
    }
    return LinkStep(type: EtherType.bridging, start: offset, end: step.end)
  }

  // MARK: PPP

  /// PPP in HDLC-like framing (RFC 1662).
  mutating func decodePPP(_ bytes: RawSpan, at start: Int, end: Int) {
    guard enterHeader() else { return }
    setPayload(from: start, to: end)
    let step = LinkStep(type: EtherType.ppp, start: start, end: end)
    if let next = pointToPoint(bytes, step) { decodeTyped(bytes, next) }
  }

  /// The address and control bytes may be left out, and the protocol field may be compressed to one byte (RFC 1661 §6.5: the last byte
  /// of a protocol number is odd, the others even).
  private mutating func pointToPoint(_ bytes: RawSpan, _ step: LinkStep) -> LinkStep? {
    var offset = step.start
    if step.end - offset >= 2, bytes.u16(offset) == 0xFF03 { offset += 2 }
    guard step.end - offset >= 1 else {
      flag(.truncatedLink, .pppTooSmall)
      return nil
    }
    var number = UInt16(bytes.u8(offset))
    offset += 1
    if number & 1 == 0 {
      guard step.end - offset >= 1 else {
        flag(.truncatedLink, .pppTooSmall)
        return nil
      }
      number = number << 8 | UInt16(bytes.u8(offset))
      offset += 1
    }
    return pointToPoint(protocol: number, at: offset, end: step.end)
  }

  private mutating func pointToPoint(protocol number: UInt16, at offset: Int, end: Int) -> LinkStep? {
    setPayload(from: offset, to: end)
    switch number {
    case 0x0021:
      guard end - offset >= 20 else { return short(.pppIPv4TooSmall) }
      return LinkStep(type: EtherType.ipv4, start: offset, end: end)
    case 0x0057:
      guard end - offset >= 40 else { return short(.pppIPv6TooSmall) }
      return LinkStep(type: EtherType.ipv6, start: offset, end: end)
    case 0x002F:
      // Van Jacobson's scheme, uncompressed (RFC 1144): a whole datagram whose protocol field is a slot number. Not followed.
      if end - offset < 20 { return short(.pppCompressedTooSmall) }
      return nil
    // Network protocols, control protocols and authentication that are assigned (IANA) and not decoded.
    case 0x0023...0x002D, 0x0031, 0x0033, 0x0035, 0x004B, 0x0231, 0x0281, 0x0283, 0x8021...0x8035, 0x8057, 0x80FD,
      0x8281, 0xC021, 0xC023, 0xC025, 0xC223:
      events.insert(.pppUnsupported)
      return nil
    default:
      return refuse(.pppWrongType)
    }
  }

  private mutating func short(_ event: DecodeEvent) -> LinkStep? {
    flag(.truncatedNetwork, event)
    return nil
  }

  /// RFC 2516 §4: version and type, code, session, length; then a PPP protocol.
  private mutating func sessionHeader(_ bytes: RawSpan, _ step: LinkStep) -> LinkStep? {
    guard step.end - step.start >= 8 else {
      flag(.truncatedLink, .pppoeTooSmall)
      return nil
    }
    let length = Int(bytes.u16(step.start + 4))
    guard length >= 2 else { return nil }
    let end = Swift.min(step.end, step.start + 6 + length)
    let number = bytes.u16(step.start + 6)
    // Control protocols are how a session begins, nothing unusual.
    if number >= 0x8000 {
      setPayload(from: step.start + 8, to: end)
      return nil
    }
    return pointToPoint(protocol: number, at: step.start + 8, end: end)
  }

  /// RFC 2516 §5: the code, and tags of type and length.
  private mutating func readDiscovery(_ bytes: RawSpan, _ step: LinkStep) {
    guard step.end - step.start >= 6 else {
      flag(.truncatedLink, .pppoeTooSmall)
      return
    }
    switch bytes.u8(step.start + 1) {
    // PADO, PADI, PADR, PADS, PADT.
    case 0x07, 0x09, 0x19, 0x65, 0xA7: break
    default:
      flag(.badCarrier, .pppoeWrongCode)
      return
    }
    var left = Int(bytes.u16(step.start + 4))
    var offset = step.start + 6
    guard left <= step.end - offset else {
      flag(.badCarrier, .pppoeMalformedTags)
      return
    }
    while left >= 4 {
      let length = 4 + Int(bytes.u16(offset + 2))
      guard length <= left else {
        flag(.badCarrier, .pppoeMalformedTags)
        return
      }
      offset += length
      left -= length
    }
  }
}
