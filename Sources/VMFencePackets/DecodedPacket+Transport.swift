import VMFenceCore

/// The transport layer. A header that is not sound leaves `transport` at `.none`, so that nobody takes its fields for true.
extension DecodedPacket {
  mutating func decodeTransport(_ bytes: RawSpan, _ layer: Layer) {
    ipProtocol = layer.ipProtocol
    transportOffset = Int32(truncatingIfNeeded: layer.offset)
    setPayload(from: layer.offset, to: layer.end)
    switch (layer.ipProtocol, network) {
    case (IPProtocol.tcp, _): decodeTCP(bytes, layer)
    case (IPProtocol.udp, _): decodeUDP(bytes, layer)
    case (IPProtocol.icmp, .ipv4): decodeICMP(bytes, layer, as: .icmp)
    case (IPProtocol.icmpv6, .ipv6): decodeICMP(bytes, layer, as: .icmpv6)
    case (IPProtocol.sctp, _): decodeSCTP(bytes, layer)
    default: transport = .other
    }
  }

  /// RFC 9293 §3.1.
  private mutating func decodeTCP(_ bytes: RawSpan, _ layer: Layer) {
    let start = layer.offset
    guard layer.end - start >= 20 else {
      anomalies.insert(.truncatedTransport)
      return
    }
    let control = bytes.u16(start + 12)
    let headerLength = Int(control >> 12) * 4
    guard headerLength >= 20, headerLength <= layer.declaredEnd - start else {
      anomalies.insert(.badTransportLength)
      return
    }
    guard headerLength <= layer.end - start else {
      anomalies.insert(.truncatedTransport)
      return
    }
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
      anomalies.insert(.truncatedTransport)
      return
    }
    let length = Int(bytes.u16(start + 4))
    let available = layer.declaredEnd - start
    // The first fragment carries the length of the whole.
    guard length == 0 || length >= 8 && (length <= available || moreFragments) else {
      anomalies.insert(.badTransportLength)
      return
    }
    if length == 0 { anomalies.insert(.zeroLengthField) }
    transport = .udp
    setPorts(bytes, at: start)
    setPayload(from: start + 8, to: length == 0 ? layer.end : Swift.min(layer.end, start + length))
  }

  /// RFC 792 and RFC 4443: type, code, checksum, and four bytes whose meaning is the type's.
  private mutating func decodeICMP(_ bytes: RawSpan, _ layer: Layer, as kind: TransportLayer) {
    let start = layer.offset
    guard layer.end - start >= 8 else {
      anomalies.insert(.truncatedTransport)
      return
    }
    transport = kind
    sourcePort = UInt16(bytes.u8(start))
    destinationPort = UInt16(bytes.u8(start + 1))
    setPayload(from: start + 8, to: layer.end)
  }

  /// The common header of RFC 9260 §3.1; the chunks are payload.
  private mutating func decodeSCTP(_ bytes: RawSpan, _ layer: Layer) {
    guard layer.end - layer.offset >= 12 else {
      anomalies.insert(.truncatedTransport)
      return
    }
    transport = .sctp
    setPorts(bytes, at: layer.offset)
    setPayload(from: layer.offset + 12, to: layer.end)
  }

  private mutating func setPorts(_ bytes: RawSpan, at start: Int) {
    sourcePort = bytes.u16(start)
    destinationPort = bytes.u16(start + 2)
  }
}
