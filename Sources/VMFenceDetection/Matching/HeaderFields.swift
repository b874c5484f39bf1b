import VMFenceCore
import VMFencePackets

/// Reads the headers that only some rules look at. `frame`: what `packet` was decoded from, whose positions are inside of it.
extension PacketMatch {
  /// nil: the packet has no such number.
  func value(of field: HeaderField, in frame: RawSpan) -> UInt64? {
    switch field {
    case .timeToLive: return isIP ? UInt64(packet.timeToLive) : nil
    case .typeOfService: return typeOfService(frame).map(UInt64.init)
    case .identification: return packet.network == .ipv4 ? UInt64(packet.fragmentID) : nil
    case .fragmentOffset: return isIP ? UInt64(packet.fragmentOffset / 8) : nil
    case .ipProtocol: return isIP ? UInt64(packet.ipProtocol) : nil
    case .tcpSequence: return isTCP ? UInt64(packet.tcpSequence) : nil
    case .tcpAcknowledgement: return isTCP ? UInt64(packet.tcpAcknowledgement) : nil
    case .tcpWindow: return isTCP ? UInt64(packet.tcpWindow) : nil
    case .urgentPointer: return isTCP ? UInt64(frame.u16(Int(packet.transportOffset) + 18)) : nil
    case .segmentSize:
      return tcpOption(2, length: 2, frame).map { UInt64(frame.u16(Int($0.offset))) }
    case .windowScale:
      return tcpOption(3, length: 1, frame).map { UInt64(frame.u8(Int($0.offset))) }
    case .icmpType: return isICMP ? UInt64(packet.icmpType) : nil
    case .icmpCode: return isICMP ? UInt64(packet.icmpCode) : nil
    case .icmpID: return hasQueryID ? UInt64(frame.u16(Int(packet.transportOffset) + 4)) : nil
    case .icmpSequence: return hasQueryID ? UInt64(frame.u16(Int(packet.transportOffset) + 6)) : nil
    case .icmpv6MTU:
      // RFC 4443 §3.2: packet too big.
      return isICMP && packet.transport == .icmpv6 && packet.icmpType == 2
        ? UInt64(frame.u32(Int(packet.transportOffset) + 4)) : nil
    case .igmpType:
      return hasHeader(of: 2, length: 1) ? UInt64(frame.u8(Int(packet.transportOffset))) : nil
    case .vlanCount: return UInt64(packet.vlanCount)
    case .sctpTag: return isSCTP ? UInt64(frame.u32(Int(packet.transportOffset) + 4)) : nil
    case .sctpChunkCount:
      guard isSCTP else { return nil }
      var chunks = SCTPChunks(packet)
      var count: UInt64 = 0
      while chunks.next(in: frame) != nil { count += 1 }
      return count
    case .vxlanNetwork: return packet.vxlanNetwork(in: frame).map(UInt64.init)
    case .sctpChunkType, .packetNumber: return nil
    }
  }

  private var isIP: Bool { packet.network == .ipv4 || packet.network == .ipv6 }
  var isTCP: Bool { hasTransport && packet.transport == .tcp }
  var isSCTP: Bool { hasTransport && packet.transport == .sctp }
  var isICMP: Bool { hasTransport && (packet.transport == .icmp || packet.transport == .icmpv6) }

  /// Messages with an identifier and a sequence number: echo, timestamp, information and address mask (RFC 792, RFC 950), echo of
  /// ICMPv6 (RFC 4443 §4).
  private var hasQueryID: Bool {
    guard isICMP else { return false }
    return switch (packet.transport, packet.icmpType) {
    case (.icmp, 0), (.icmp, 8), (.icmp, 13...18), (.icmpv6, 128), (.icmpv6, 129): true
    default: false
    }
  }

  /// Whether the datagram carries a protocol that decoding leaves alone, with `length` bytes of it at least.
  func hasHeader(of ipProtocol: UInt8, length: Int) -> Bool {
    packet.network == .ipv4 && packet.ipProtocol == ipProtocol && hasTransport
      && Int(packet.networkEnd) - Int(packet.transportOffset) >= length
  }

  private func typeOfService(_ frame: RawSpan) -> UInt8? {
    let start = Int(packet.networkOffset)
    return switch packet.network {
    case .ipv4: frame.u8(start + 1)
    case .ipv6: UInt8(truncatingIfNeeded: frame.u16(start) >> 4)
    case .none, .arp: nil
    }
  }

  private func tcpOption(_ kind: UInt8, length: Int32, _ frame: RawSpan) -> HeaderOption? {
    guard isTCP, let header = try? TCPHeader(frame, at: Int(packet.transportOffset)) else { return nil }
    var options = header.options
    while let option = options.next(in: frame) {
      if option.kind == kind { return option.length == length ? option : nil }
    }
    return nil
  }

  /// The bits before the fragment offset: 4 reserved, 2 don't fragment, 1 more fragments; nil without an IPv4 header.
  func fragmentBits(_ frame: RawSpan) -> UInt8? {
    packet.network == .ipv4 ? frame.u8(Int(packet.networkOffset) + 6) >> 5 : nil
  }

  /// Whether the IPv4 header has an option of this kind, or any at all.
  func hasIPOption(_ kind: UInt8?, _ frame: RawSpan) -> Bool {
    guard packet.network == .ipv4 else { return false }
    let start = Int(packet.networkOffset)
    var offset = start + 20
    let end = start + Int(frame.u8(start) & 0x0F) * 4
    guard let kind else { return offset < end }
    while offset < end {
      let found = frame.u8(offset)
      if found == kind { return true }
      if found == 0 { return false }
      if found == 1 {
        offset += 1
        continue
      }
      guard end - offset >= 2, frame.u8(offset + 1) >= 2 else { return false }
      offset += Int(frame.u8(offset + 1))
    }
    return false
  }

  /// The identifier of one of the VLAN tags.
  func vlan(_ tag: Int) -> UInt64? {
    let count = Int(min(packet.vlanCount, 2))
    let index = tag < 0 ? count + tag : tag
    guard (0..<count).contains(index) else { return nil }
    return UInt64((index == 0 ? packet.outerVLAN : packet.innerVLAN) & 0xFFF)
  }

  /// Whether the header's checksum is right; nil when the packet has no such header, or it cannot be told.
  func checksumIsValid(_ header: ChecksummedHeader, _ frame: RawSpan) -> Bool? {
    let isIPv4 = packet.network == .ipv4
    let isIPv6 = packet.network == .ipv6
    let isPresent =
      switch header {
      case .ipv4: isIPv4
      case .tcpv4: isIPv4 && isTCP
      case .tcpv6: isIPv6 && isTCP
      case .udpv4: isIPv4 && hasTransport && packet.transport == .udp
      case .udpv6: isIPv6 && hasTransport && packet.transport == .udp
      case .icmpv4: isICMP && packet.transport == .icmp
      case .icmpv6: isICMP && packet.transport == .icmpv6
      case .igmp: hasHeader(of: 2, length: 8)
      }
    guard isPresent else { return nil }
    if header == .ipv4 {
      let start = Int(packet.networkOffset)
      return Checksum.internet(frame, from: start, count: Int(frame.u8(start) & 0x0F) * 4) == 0
    }
    let start = Int(packet.transportOffset)
    if header == .igmp { return Checksum.internet(frame, from: start, count: Int(packet.networkEnd) - start) == 0 }
    // A sender over IPv4 may leave UDP's out.
    if header == .udpv4, frame.u16(start + 6) == 0 { return nil }
    return switch packet.verifyChecksums(in: frame) {
    case .correct: true
    case .badTransport: false
    // The IPv4 header's is wrong: that says nothing about what follows.
    case .badNetwork, .unverifiable: nil
    }
  }
}

/// Walks the chunks of an SCTP packet (RFC 9260 §3.2).
struct SCTPChunks {
  private var offset: Int
  private let end: Int

  struct Chunk {
    var type: UInt8
    var value: Range<Int>

    /// What a DATA chunk carries: it follows the transmission number, the stream's identifier and number, and the protocol's (RFC 9260
    /// §3.3.1). nil for other chunks.
    var userData: Range<Int>? {
      type == 0 && value.count >= 12 ? value.lowerBound + 12..<value.upperBound : nil
    }
  }

  /// A packet whose transport is SCTP.
  init(_ packet: DecodedPacket) {
    offset = Int(packet.payloadOffset)
    end = offset + Int(packet.payloadLength)
  }

  /// The next chunk's type and value; nil at the end, or when a length is wrong.
  mutating func next(in frame: RawSpan) -> Chunk? {
    guard end - offset >= 4 else { return nil }
    let length = Int(frame.u16(offset + 2))
    guard length >= 4, length <= end - offset else { return nil }
    let chunk = Chunk(type: frame.u8(offset), value: offset + 4..<offset + length)
    // Chunks are padded to 4 bytes.
    offset += (length + 3) & ~3
    return chunk
  }
}
