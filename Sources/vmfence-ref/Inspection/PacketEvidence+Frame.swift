#if Daemon
import VMFenceCore
import VMFencePackets

/// What of a packet is to be shown with its alerts, besides what costs nothing.
struct EvidenceWanted: OptionSet {
  var rawValue: Int
  /// The packet's bytes.
  static let packet = EvidenceWanted(rawValue: 1)
  /// What was inspected.
  static let payload = EvidenceWanted(rawValue: 2)

  /// Bytes kept for the alerts of one packet: several reassembled streams.
  static let capacity = 16 << 20

  init(rawValue: Int) { self.rawValue = rawValue }

  init(packet: Bool, payload: Bool) {
    self = []
    if packet { insert(.packet) }
    if payload { insert(.payload) }
  }
}

extension PacketEvidence {
  /// Decodes the frame once more: only what alerts is looked at so closely.
  init(_ frame: FrameMetadata, _ bytes: RawSpan, layer: Int, _ wanted: EvidenceWanted) {
    self.init(linkType: frame.linkType)
    let packet = DecodedPacket.decode(bytes, linkType: frame.linkType, strippedVLAN: frame.strippedVLAN)
    if frame.linkType == .ethernet, bytes.byteCount >= 14 {
      sourceMAC = packet.sourceMAC
      destinationMAC = packet.destinationMAC
    }
    vlans = [packet.outerVLAN, packet.innerVLAN].prefix(Int(packet.vlanCount)).map { $0 & 0xFFF }
    if packet.transport == .icmp || packet.transport == .icmpv6 { icmp = (packet.icmpType, packet.icmpCode) }
    communityID = packet.communityID
    if wanted.contains(.packet) { self.packet = Array(copying: bytes, 0..<bytes.byteCount) }
    if wanted.contains(.payload) {
      let start = Int(packet.payloadOffset)
      payload = Array(copying: bytes, start..<start + Int(packet.payloadLength))
    }
  }
}

extension DecodedPacket {
  var communityID: String? {
    guard network == .ipv4 || network == .ipv6 else { return nil }
    let hasPorts = transport != .none && transport != .other && !isFragment
    return CommunityID.v1(
      source: source, sourcePort: hasPorts ? sourcePort : 0, destination: destination,
      destinationPort: hasPorts ? destinationPort : 0, ipProtocol: ipProtocol)
  }
}

extension DroppedPacket {
  init(
    _ frame: FrameMetadata, _ bytes: RawSpan, packetID: UInt64, reason: DropReason, rule: RuleMetadata?,
    verdict: Verdict
  ) {
    let packet = DecodedPacket.decode(bytes, linkType: frame.linkType, strippedVLAN: frame.strippedVLAN)
    self.init(
      time: frame.timestamp, incarnation: .none, packetID: packetID, source: packet.source,
      destination: packet.destination, sourcePort: packet.sourcePort, destinationPort: packet.destinationPort,
      ipProtocol: packet.ipProtocol, reason: reason, rule: rule, verdict: verdict)
    evidence = PacketEvidence(frame, bytes, layer: 0, [])
  }
}

extension [UInt8] {
  init(copying bytes: RawSpan, _ range: Range<Int>) { self = range.map { bytes.u8($0) } }
}
#endif
