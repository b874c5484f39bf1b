import VMFenceCore

extension DecodedPacket {
  /// Decodes one frame as far as it is sound.
  ///
  /// Never throws and never traps, whatever the bytes are and however few: what is wrong is in `anomalies`, and decoding
  /// stops there with what was read so far. Costs a bounded number of steps: at most 8 VLAN tags and 16 extension headers.
  ///
  /// - `bytes`: the frame as captured.
  /// - `strippedVLAN`: the tag (TCI) that the kernel took out of the frame, which counts as the outermost; 0 for none.
  @inlinable @inline(__always)
  public static func decode(_ bytes: RawSpan, linkType: LinkType, strippedVLAN: UInt16) -> DecodedPacket {
    // Filled in place, in the caller's own variable: a function that returned it would copy it twice.
    var packet = DecodedPacket()
    packet.decodeFrame(bytes, linkType: linkType, strippedVLAN: strippedVLAN)
    return packet
  }

  /// `self` is new.
  @usableFromInline
  mutating func decodeFrame(_ bytes: RawSpan, linkType: LinkType, strippedVLAN: UInt16) {
    if linkType == .ethernet, strippedVLAN == 0, decodeCommonFrame(bytes) { return }
    decodeAnyFrame(bytes, linkType: linkType, strippedVLAN: strippedVLAN)
  }

  /// The way of nearly every frame: untagged Ethernet, IPv4 without options, whole and unfragmented, TCP or UDP with
  /// sound headers. Returns false, with nothing changed, for everything else. What it gives is what `decodeAnyFrame` gives
  /// (a property that the tests check).
  @inline(__always)
  private mutating func decodeCommonFrame(_ bytes: RawSpan) -> Bool {
    let count = bytes.byteCount
    guard count >= 42, count <= 0x4000_0000 else { return false }
    // EtherType 0x0800, version 4, header length 5.
    guard bytes.u16(12) == 0x0800, bytes.u8(14) == 0x45 else { return false }
    let end = 14 + Int(bytes.u16(16))
    // No fragment: offset and the more-fragments flag are 0.
    guard end <= count, bytes.u16(20) & 0x3FFF == 0 else { return false }
    let proto = bytes.u8(23)
    let payload: Int
    if proto == 6 {
      guard end >= 54 else { return false }
      let control = bytes.u16(46)
      let headerLength = Int(control >> 12) * 4
      payload = 34 + headerLength
      guard headerLength >= 20, payload <= end else { return false }
      transport = .tcp
      tcpSequence = bytes.u32(38)
      tcpAcknowledgement = bytes.u32(42)
      tcpFlags = TCPFlags(rawValue: UInt8(truncatingIfNeeded: control))
      tcpWindow = bytes.u16(48)
    } else if proto == 17 {
      guard end >= 42, 34 + Int(bytes.u16(38)) == end else { return false }
      transport = .udp
      payload = 42
    } else {
      return false
    }
    payloadOffset = Int32(truncatingIfNeeded: payload)
    payloadLength = Int32(truncatingIfNeeded: end &- payload)
    destinationMAC = bytes.macAddress(0)
    sourceMAC = bytes.macAddress(6)
    etherType = 0x0800
    network = .ipv4
    networkOffset = 14
    networkEnd = Int32(truncatingIfNeeded: end)
    let addresses = bytes.u64(26)
    source = IPAddress(v4: UInt32(truncatingIfNeeded: addresses >> 32))
    destination = IPAddress(v4: UInt32(truncatingIfNeeded: addresses))
    ipProtocol = proto
    timeToLive = bytes.u8(22)
    fragmentID = UInt32(bytes.u16(18))
    transportOffset = 34
    let ports = bytes.u32(34)
    sourcePort = UInt16(truncatingIfNeeded: ports >> 16)
    destinationPort = UInt16(truncatingIfNeeded: ports)
    return true
  }

  /// Everything that is not the common frame. `self` is new.
  package mutating func decodeAnyFrame(_ bytes: RawSpan, linkType: LinkType, strippedVLAN: UInt16) {
    // Positions are 32-bit; what lies beyond is not looked at.
    let end = Swift.min(bytes.byteCount, 0x4000_0000)
    if strippedVLAN != 0 { addVLANTag(strippedVLAN) }
    setPayload(from: 0, to: end)
    decodeLink(bytes, linkType: linkType, end: end)
  }

  /// Says that `start ..< end` is what is left undecoded. Both are positions in the frame.
  mutating func setPayload(from start: Int, to end: Int) {
    payloadOffset = Int32(truncatingIfNeeded: start)
    payloadLength = Int32(truncatingIfNeeded: Swift.max(0, end - start))
  }

  mutating func addVLANTag(_ tag: UInt16) {
    if vlanCount == 0 { outerVLAN = tag } else if vlanCount == 1 { innerVLAN = tag }
    vlanCount += 1
  }
}
