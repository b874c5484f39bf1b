import VMFenceCore

/// Tunnels: where a packet carries another one. The carried packet is decoded by `enterTunnel`, not before: who walks the packets of
/// a frame does so outermost first.
extension DecodedPacket {
  /// Packets in each other in one frame, the outermost not counted.
  public static let tunnelDepthLimit: UInt8 = 8

  /// Makes this packet the one that its tunnel carries: same frame, other offsets, VLAN tags kept. False, with nothing changed, when it
  /// carries none, or is too deep already.
  ///
  /// `bytes`: the frame that this packet was decoded from.
  public mutating func enterTunnel(_ bytes: RawSpan, settings: DecodeSettings = DecodeSettings()) -> Bool {
    guard tunnelType != 0, tunnelDepth < Self.tunnelDepthLimit, Int(tunnelEnd) <= bytes.byteCount else { return false }
    var inner = DecodedPacket()
    inner.headerCount = headerCount
    inner.tunnelDepth = tunnelDepth + 1
    inner.origin = tunnelOrigin
    (inner.outerVLAN, inner.innerVLAN, inner.thirdVLAN) = (outerVLAN, innerVLAN, thirdVLAN)
    inner.vlanCount = vlanCount
    inner.setPayload(from: Int(tunnelOffset), to: Int(tunnelEnd))
    inner.decodeTyped(bytes, LinkStep(type: tunnelType, start: Int(tunnelOffset), end: Int(tunnelEnd)))
    if inner.transport == .udp { inner.findTunnel(inUDP: bytes, settings) }
    self = inner
    return true
  }

  /// What a tunnel carries, and where: enough to read it again from bytes that were put together anew.
  public struct Carried: Sendable, BitwiseCopyable {
    fileprivate let type: UInt16
    /// Where in the frame it begins.
    public let offset: Int
  }

  /// What this packet's tunnel carries; nil when it is no tunnel.
  public var carried: Carried? { isTunnel ? Carried(type: tunnelType, offset: Int(tunnelOffset)) : nil }

  /// The datagram whose fragments a tunnel carried. `bytes`: from the beginning of what was carried on (a link header, if there was one),
  /// with the whole datagram; `fragment`: one of its fragments, from which is known what lies around.
  public init(rebuilt bytes: RawSpan, carried: Carried, fragment: DecodedPacket, settings: DecodeSettings) {
    self.init()
    tunnelDepth = fragment.tunnelDepth - 1
    (outerVLAN, innerVLAN, thirdVLAN) = (fragment.outerVLAN, fragment.innerVLAN, fragment.thirdVLAN)
    vlanCount = fragment.vlanCount
    setTunnel(carried.type, from: 0, to: bytes.byteCount, fragment.origin)
    _ = enterTunnel(bytes, settings: settings)
    (sourceMAC, destinationMAC) = (fragment.sourceMAC, fragment.destinationMAC)
  }

  private mutating func setTunnel(_ type: UInt16, from start: Int, to end: Int, _ origin: PacketOrigin) {
    // What fragments carry is whole only when they are.
    guard !isFragment, start < end else { return }
    tunnelType = type
    tunnelOffset = Int32(truncatingIfNeeded: start)
    tunnelEnd = Int32(truncatingIfNeeded: end)
    tunnelOrigin = origin
  }

  /// A datagram in a datagram: RFC 2003 (IPv4 in IPv4), RFC 4213 (IPv6 in IPv4), RFC 2473 (either in IPv6).
  mutating func findTunnel(inIP bytes: RawSpan, _ layer: Layer) {
    let isV4 = layer.ipProtocol == IPProtocol.ipv4
    guard network == .ipv6 else {
      setTunnel(isV4 ? EtherType.ipv4 : EtherType.ipv6, from: layer.offset, to: layer.end, .ipv4Tunnel)
      return
    }
    guard layer.end - layer.offset >= (isV4 ? 20 : 40) else {
      flag(.truncatedTransport, isV4 ? .ipv4InIPv6TooSmall : .ipv6InIPv6TooSmall)
      return
    }
    guard bytes.u8(layer.offset) >> 4 == (isV4 ? 4 : 6) else {
      flag(.wrongIPVersion, isV4 ? .ipv4InIPv6WrongVersion : .ipv6InIPv6WrongVersion)
      return
    }
    setTunnel(isV4 ? EtherType.ipv4 : EtherType.ipv6, from: layer.offset, to: layer.end, .ipv6Tunnel)
  }

  // MARK: GRE

  /// Bits of the first two bytes of a GRE header.
  private enum GREBits {
    static let checksum: UInt16 = 0x8000
    static let routing: UInt16 = 0x4000
    static let key: UInt16 = 0x2000
    static let sequence: UInt16 = 0x1000
    static let strictRoute: UInt16 = 0x0800
    static let recursion: UInt16 = 0x0700
    /// Version 1: an acknowledgement.
    static let acknowledgement: UInt16 = 0x0080
    static let version: UInt16 = 0x0007
  }

  /// RFC 2784 and 1701 (version 0), RFC 2637 (version 1, PPTP).
  mutating func findTunnel(inGRE bytes: RawSpan, _ layer: Layer) {
    guard layer.end - layer.offset >= 4 else {
      flag(.truncatedTransport, .greTooSmall)
      return
    }
    let flags = bytes.u16(layer.offset)
    let type = bytes.u16(layer.offset + 2)
    switch flags & GREBits.version {
    case 0:
      guard let start = plainGREEnd(bytes, layer, flags) else { return }
      // The type that ERSPAN I and II share: the first has neither a sequence number nor a header of its own.
      let isBare = type == EtherType.erspan && flags & GREBits.sequence == 0
      switch type {
      case EtherType.erspan where isBare: setTunnel(EtherType.bridging, from: start, to: layer.end, .gre)
      case EtherType.ipv4, EtherType.ipv6, EtherType.vlan, EtherType.erspan, EtherType.erspan3, EtherType.bridging,
        EtherType.arp, EtherType.ppp, EtherType.mpls, EtherType.serviceHeader:
        setTunnel(type, from: start, to: layer.end, .gre)
      default: break
      }
    case 1:
      guard type == EtherType.ppp else { return flag(.badCarrier, .gre1WrongProtocol) }
      guard let start = enhancedGREEnd(layer, flags) else { return }
      // Without payload it acknowledges.
      if bytes.u16(layer.offset + 4) > 0 { setTunnel(type, from: start, to: layer.end, .gre) }
    default: flag(.badCarrier, .greWrongVersion)
    }
  }

  /// Where the header of version 0 ends; nil when it is malformed.
  private mutating func plainGREEnd(_ bytes: RawSpan, _ layer: Layer, _ flags: UInt16) -> Int? {
    if flags & GREBits.recursion != 0 { return refuse(.gre0Recursion) }
    // The reserved bits after it.
    if flags & 0x00F8 != 0 { return refuse(.gre0Flags) }
    var end = layer.offset + 4
    if flags & (GREBits.checksum | GREBits.routing) != 0 { end += 4 }
    if flags & GREBits.key != 0 { end += 4 }
    if flags & GREBits.sequence != 0 { end += 4 }
    guard end <= layer.end else { return refuse(.gre0HeaderTooBig) }
    guard flags & GREBits.routing != 0 else { return end }
    // Source route entries, ended by one of family and length 0 (RFC 1701).
    while true {
      guard layer.end - end >= 4 else { return refuse(.gre0SourceRoute) }
      let isLast = bytes.u16(end) == 0 && bytes.u8(end + 3) == 0
      end += 4 + (isLast ? 0 : Int(bytes.u8(end + 3)))
      guard end <= layer.end else { return refuse(.gre0SourceRoute) }
      if isLast { return end }
    }
  }

  private mutating func enhancedGREEnd(_ layer: Layer, _ flags: UInt16) -> Int? {
    if flags & GREBits.checksum != 0 { return refuse(.gre1Checksum) }
    if flags & GREBits.routing != 0 { return refuse(.gre1Route) }
    if flags & GREBits.strictRoute != 0 { return refuse(.gre1StrictRoute) }
    if flags & GREBits.recursion != 0 { return refuse(.gre1Recursion) }
    if flags & 0x0078 != 0 { return refuse(.gre1Flags) }
    guard flags & GREBits.key != 0 else { return refuse(.gre1NoKey) }
    var end = layer.offset + 8
    if flags & GREBits.sequence != 0 { end += 4 }
    if flags & GREBits.acknowledgement != 0 { end += 4 }
    return end <= layer.end ? end : refuse(.gre1HeaderTooBig)
  }

  private mutating func refuse(_ event: DecodeEvent) -> Int? {
    flag(.badCarrier, event)
    return nil
  }

  // MARK: In UDP

  /// Looks for a tunnel at the ports that tunnels have. What has not its form is left alone: a port alone proves nothing.
  @inline(__always)
  mutating func findTunnel(inUDP bytes: RawSpan, _ settings: borrowing DecodeSettings) {
    guard let kind = settings.tunnel(sourcePort, destinationPort) else { return }
    findTunnel(kind, bytes)
  }

  private mutating func findTunnel(_ kind: DecodeSettings.Tunnel, _ bytes: RawSpan) {
    let start = Int(payloadOffset)
    let end = start + Int(payloadLength)
    switch kind {
    case .vxlan: findFrame(inVXLAN: bytes, from: start, to: end)
    case .geneve: findFrame(inGeneve: bytes, from: start, to: end)
    case .teredo: findDatagram(inTeredo: bytes, from: start, to: end)
    case .gtp: findDatagram(inGTP: bytes, from: start, to: end)
    }
  }

  /// RFC 7348 §5: flags of which one says that the network identifier is valid, the identifier, a reserved byte; an Ethernet frame.
  private mutating func findFrame(inVXLAN bytes: RawSpan, from start: Int, to end: Int) {
    guard end - start >= 8 + 14, bytes.u8(start) & 0x08 != 0, bytes.u8(start + 7) == 0 else { return }
    if !Self.isKnown(bytes.u16(start + 8 + 12)) { events.insert(.vxlanUnknownPayload) }
    setTunnel(EtherType.bridging, from: start + 8, to: end, .vxlan)
  }

  /// Of a datagram that carries a frame in VXLAN, the network that the frame belongs to: 24 bits (RFC 7348 §5). nil for all other packets,
  /// and for the carried ones.
  ///
  /// `bytes`: the frame that this packet was decoded from.
  public func vxlanNetwork(in bytes: RawSpan) -> UInt32? {
    guard isTunnel, tunnelOrigin == .vxlan, Int(tunnelOffset) <= bytes.byteCount else { return nil }
    return bytes.u32(Int(tunnelOffset) - 4) >> 8
  }

  /// RFC 8926 §3.4: version and length of the options in words, flags, EtherType, identifier, a reserved byte, options.
  private mutating func findFrame(inGeneve bytes: RawSpan, from start: Int, to end: Int) {
    guard end - start >= 8, bytes.u8(start) >> 6 == 0, bytes.u8(start + 7) == 0 else { return }
    let inner = start + 8 + Int(bytes.u8(start) & 0x3F) * 4
    guard inner <= end else { return }
    let type = bytes.u16(start + 2)
    guard type == EtherType.bridging || Self.isKnown(type) else {
      events.insert(.geneveUnknownPayload)
      return
    }
    setTunnel(type, from: inner, to: end, .geneve)
  }

  /// RFC 4380 §5.1.1: an IPv6 datagram, before which authentication and origin indications may stand. It must fill the rest exactly.
  private mutating func findDatagram(inTeredo bytes: RawSpan, from start: Int, to end: Int) {
    var offset = start
    // At most one of each.
    for _ in 0..<2 {
      guard end - offset >= 4, bytes.u8(offset) == 0 else { break }
      switch bytes.u8(offset + 1) {
      case 0: offset += 8
      case 1: offset += 13 + Int(bytes.u8(offset + 2)) + Int(bytes.u8(offset + 3))
      default: return
      }
    }
    guard end - offset >= 40, bytes.u8(offset) >> 4 == 6, offset + 40 + Int(bytes.u16(offset + 4)) == end else {
      return
    }
    setTunnel(EtherType.ipv6, from: offset, to: end, .teredo)
  }

  /// A user's datagram: 3GPP TS 29.281 §5.1 (version 1: 8 bytes; with any of three flags 4 more, and extension headers when the last of
  /// those says so), GSM 09.60 §6 (version 0: 20 bytes). It must fill the rest exactly.
  private mutating func findDatagram(inGTP bytes: RawSpan, from start: Int, to end: Int) {
    guard end - start >= 8, bytes.u8(start + 1) == 0xFF else { return }
    let flags = bytes.u8(start)
    var offset: Int
    switch flags & 0xF0 {
    case 0x10: offset = start + 20
    case 0x30: offset = start + 8
    default: return
    }
    guard offset + Int(bytes.u16(start + 2)) == end else { return }
    if flags & 0xF0 == 0x30, flags & 0x07 != 0 {
      guard end - offset >= 4 else { return }
      var next = flags & 0x04 != 0 ? bytes.u8(offset + 3) : 0
      offset += 4
      // Each is 4 bytes long at least, so this ends.
      while next != 0 {
        guard end - offset >= 4, bytes.u8(offset) > 0 else { return }
        offset += Int(bytes.u8(offset)) * 4
        guard offset <= end else { return }
        next = bytes.u8(offset - 1)
      }
    }
    guard end - offset >= 20 else { return }
    switch bytes.u8(offset) >> 4 {
    case 4: setTunnel(EtherType.ipv4, from: offset, to: end, .gtp)
    case 6: setTunnel(EtherType.ipv6, from: offset, to: end, .gtp)
    default: return
    }
  }
}
