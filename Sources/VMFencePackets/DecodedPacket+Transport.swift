import VMFenceCore

/// The transport layer. A header that is not sound leaves `transport` at `.none`, so that nobody takes its fields for true.
extension DecodedPacket {
  mutating func decodeTransport(_ bytes: RawSpan, _ layer: Layer) {
    ipProtocol = layer.ipProtocol
    transportOffset = Int32(truncatingIfNeeded: layer.offset)
    setPayload(from: layer.offset, to: layer.end)
    guard enterHeader() else { return }
    switch (layer.ipProtocol, network) {
    case (IPProtocol.tcp, _): decodeTCP(bytes, layer)
    case (IPProtocol.udp, _): decodeUDP(bytes, layer)
    case (IPProtocol.icmp, .ipv4): decodeICMP(bytes, layer)
    case (IPProtocol.icmpv6, .ipv6): decodeICMPv6(bytes, layer)
    case (IPProtocol.sctp, _): decodeSCTP(bytes, layer)
    default: decodeOther(bytes, layer)
    }
  }

  /// Whatever has no ports: `transport` is `.other` where there is nothing wrong with its header.
  private mutating func decodeOther(_ bytes: RawSpan, _ layer: Layer) {
    switch layer.ipProtocol {
    case IPProtocol.ipv4, IPProtocol.ipv6: findTunnel(inIP: bytes, layer)
    case IPProtocol.gre: findTunnel(inGRE: bytes, layer)
    case IPProtocol.igmp where network == .ipv4:
      guard checkGroupMessage(bytes, layer) else { return }
    case IPProtocol.encryption:
      // The security parameters index and the sequence number are in clear.
      guard layer.end - layer.offset >= 8 else {
        flag(.truncatedTransport, .espTooSmall)
        return
      }
      setPayload(from: layer.offset + 8, to: layer.end)
    case IPProtocol.icmpv6 where network == .ipv4: events.insert(.ipv4WithICMPv6)
    case IPProtocol.icmp where network == .ipv6: events.insert(.ipv6WithICMP)
    case IPProtocol.none: break
    default: events.insert(network == .ipv4 ? .ipv4UnknownProtocol : .ipv6UnknownNextHeader)
    }
    transport = .other
  }

  /// RFC 9293 §3.1.
  private mutating func decodeTCP(_ bytes: RawSpan, _ layer: Layer) {
    let start = layer.offset
    guard layer.end - start >= 20 else {
      flag(.truncatedTransport, .tcpPacketTooSmall)
      return
    }
    let control = bytes.u16(start + 12)
    let headerLength = Int(control >> 12) * 4
    guard headerLength >= 20 else {
      flag(.badTransportLength, .tcpHeaderTooSmall)
      return
    }
    guard headerLength <= layer.end - start else {
      flag(
        headerLength <= layer.declaredEnd - start ? .truncatedTransport : .badTransportLength, .tcpHeaderBeyondPacket)
      return
    }
    if headerLength > 20 { checkTCPOptions(bytes, from: start + 20, to: start + headerLength) }
    transport = .tcp
    setPorts(bytes, at: start)
    tcpSequence = bytes.u32(start + 4)
    tcpAcknowledgement = bytes.u32(start + 8)
    tcpFlags = TCPFlags(rawValue: UInt8(truncatingIfNeeded: control))
    tcpWindow = bytes.u16(start + 14)
    setPayload(from: start + headerLength, to: layer.end)
  }

  /// RFC 768; a length of 0 stands for "to the end" in jumbograms (RFC 2675 §4) and under segmentation offload.
  private mutating func decodeUDP(_ bytes: RawSpan, _ layer: Layer) {
    let start = layer.offset
    guard layer.end - start >= 8 else {
      flag(.truncatedTransport, .udpPacketTooSmall)
      return
    }
    let length = Int(bytes.u16(start + 4))
    let available = layer.declaredEnd - start
    guard length == 0 || length >= 8 else {
      flag(.badTransportLength, .udpLengthInvalid)
      return
    }
    // The first fragment carries the length of the whole.
    guard length <= available || moreFragments else {
      flag(.badTransportLength, .udpLengthBeyondPacket)
      return
    }
    if length == 0 {
      flag(.zeroLengthField, .udpLengthInvalid)
    } else if length < available {
      events.insert(.udpLengthBelowPacket)
    }
    transport = .udp
    setPorts(bytes, at: start)
    setPayload(from: start + 8, to: length == 0 ? layer.end : Swift.min(layer.end, start + length))
  }

  /// RFC 9260 §3.1; the chunks are payload.
  private mutating func decodeSCTP(_ bytes: RawSpan, _ layer: Layer) {
    guard layer.end - layer.offset >= 12 else {
      flag(.truncatedTransport, .sctpTooSmall)
      return
    }
    // The chunks of a fragmented packet lie in other fragments too.
    guard isFragment || checkChunks(bytes, layer) else { return }
    transport = .sctp
    setPorts(bytes, at: layer.offset)
    setPayload(from: layer.offset + 12, to: layer.end)
  }

  /// The chunks after the common header; false when they are malformed.
  private mutating func checkChunks(_ bytes: RawSpan, _ layer: Layer) -> Bool {
    let tag = bytes.u32(layer.offset + 4)
    var cursor = SCTPChunkCursor(offset: layer.offset + 12, end: layer.end)
    var count = 0
    var hasInit = false
    while let chunk = cursor.next(in: bytes) {
      count += 1
      switch chunk.type {
      case 0: if tag == 0 { events.insert(.sctpDataTag) }
      case 1:
        hasInit = true
        if tag != 0 { events.insert(.sctpInitTag) }
      case 2: hasInit = true
      default: break
      }
    }
    if hasInit, count > 1 { events.insert(.sctpInitNotAlone) }
    if let problem = cursor.problem {
      flag(.badTransportLength, problem)
      return false
    }
    return true
  }

  private mutating func setPorts(_ bytes: RawSpan, at start: Int) {
    sourcePort = bytes.u16(start)
    destinationPort = bytes.u16(start + 2)
  }
}

/// Walks the chunks of an SCTP packet (RFC 9260 §3.2): type, flags, a length that counts these four bytes, padding to four.
public struct SCTPChunkCursor: Hashable, Sendable, BitwiseCopyable {
  private var offset: Int
  private let end: Int
  /// What ended the walk before the end of the packet.
  public private(set) var problem: DecodeEvent?

  init(offset: Int, end: Int) {
    self.offset = offset
    self.end = end
  }

  /// The chunks of a packet whose transport is SCTP; none for others.
  public init(_ packet: borrowing DecodedPacket) {
    let start = Int(packet.payloadOffset)
    self.init(offset: start, end: packet.transport == .sctp ? start + Int(packet.payloadLength) : start)
  }

  /// The next chunk: its type and flags, and where its value lies in the frame.
  public mutating func next(in bytes: RawSpan) -> (type: UInt8, flags: UInt8, offset: Int, length: Int)? {
    guard offset < end, problem == nil else { return nil }
    guard end - offset >= 4 else {
      problem = .sctpChunkTooSmall
      return nil
    }
    let length = Int(bytes.u16(offset + 2))
    guard length >= 4, length <= end - offset else {
      problem = .sctpChunkLength
      return nil
    }
    defer { offset += (length + 3) & ~3 }
    return (bytes.u8(offset), bytes.u8(offset + 1), offset + 4, length - 4)
  }
}
