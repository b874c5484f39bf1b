import VMFenceCore

extension DecodedPacket {
  /// Headers followed at the most, in a frame with all its tunnels.
  static let headerLimit: UInt8 = 16

  /// Decodes one frame as far as it is sound.
  ///
  /// Never throws and never traps, whatever the bytes are and however few: what is wrong is in `anomalies` and `events`, and decoding
  /// stops there with what was read so far. Costs a bounded number of steps: at most 16 headers, 8 of them VLAN tags, besides the
  /// extension headers of IPv6 datagrams, each of which has 8 bytes at least.
  ///
  /// - `bytes`: the frame as captured.
  /// - `strippedVLAN`: the tag (TCI) that the kernel took out of the frame, which counts as the outermost; 0 for none.
  @inlinable @inline(__always)
  public static func decode(
    _ bytes: RawSpan, linkType: LinkType, strippedVLAN: UInt16, settings: DecodeSettings = DecodeSettings()
  ) -> DecodedPacket {
    // Filled in place, in the caller's own variable: a function that returned it would copy it twice.
    var packet = DecodedPacket()
    packet.decodeFrame(bytes, linkType: linkType, strippedVLAN: strippedVLAN, settings)
    return packet
  }

  /// `self` is new.
  @usableFromInline
  mutating func decodeFrame(
    _ bytes: RawSpan, linkType: LinkType, strippedVLAN: UInt16, _ settings: borrowing DecodeSettings
  ) {
    if linkType == .ethernet, strippedVLAN == 0, decodeCommonFrame(bytes, settings) { return }
    decodeAnyFrame(bytes, linkType: linkType, strippedVLAN: strippedVLAN, settings)
  }

  /// The way of nearly every frame: untagged Ethernet, IPv4 without options, whole and unfragmented, TCP or UDP with
  /// sound headers. Returns false, with nothing changed, for everything else. What it gives is what `decodeAnyFrame` gives
  /// (a property that the tests check).
  @inline(__always)
  private mutating func decodeCommonFrame(_ bytes: RawSpan, _ settings: borrowing DecodeSettings) -> Bool {
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
      // Options, but for the time stamps that nearly every segment has, are looked at.
      if headerLength > 20, headerLength != 32 || bytes.u32(54) != 0x0101_080A { return false }
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
    headerCount = 3
    if proto == 17 { findTunnel(inUDP: bytes, settings) }
    return true
  }

  /// Everything that is not the common frame. `self` is new.
  package mutating func decodeAnyFrame(
    _ bytes: RawSpan, linkType: LinkType, strippedVLAN: UInt16, _ settings: borrowing DecodeSettings = DecodeSettings()
  ) {
    // Positions are 32-bit; what lies beyond is not looked at.
    let end = Swift.min(bytes.byteCount, 0x4000_0000)
    if strippedVLAN != 0 { addVLANTag(strippedVLAN) }
    setPayload(from: 0, to: end)
    decodeLink(bytes, linkType: linkType, end: end)
    if transport == .udp { findTunnel(inUDP: bytes, settings) }
  }

  /// Says that `start ..< end` is what is left undecoded. Both are positions in the frame.
  mutating func setPayload(from start: Int, to end: Int) {
    payloadOffset = Int32(truncatingIfNeeded: start)
    payloadLength = Int32(truncatingIfNeeded: Swift.max(0, end - start))
  }

  mutating func addVLANTag(_ tag: UInt16) {
    switch vlanCount {
    case 0: outerVLAN = tag
    case 1: innerVLAN = tag
    case 2: thirdVLAN = tag
    // More than three are more than anybody nests on purpose.
    default: events.insert(.vlanTooMany)
    }
    vlanCount += 1
  }

  /// Counts a header; false, and told, when there are too many.
  mutating func enterHeader() -> Bool {
    guard headerCount < Self.headerLimit else {
      anomalies.insert(.tooManyHeaders)
      events.insert(.tooManyLayers)
      return false
    }
    headerCount += 1
    return true
  }

  mutating func flag(_ anomaly: DecodeAnomalies, _ event: DecodeEvent) {
    anomalies.insert(anomaly)
    events.insert(event)
  }
}
