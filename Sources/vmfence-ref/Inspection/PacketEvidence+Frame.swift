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
  ///
  /// - `layer`: which of the packets in the frame is meant, 0 for the outermost.
  init(_ frame: FrameMetadata, _ bytes: RawSpan, layer: Int, _ wanted: EvidenceWanted, _ settings: DecodeSettings) {
    self.init(linkType: frame.linkType)
    var packet = DecodedPacket.decode(
      bytes, linkType: frame.linkType, strippedVLAN: frame.strippedVLAN, settings: settings)
    if frame.linkType == .ethernet, bytes.byteCount >= 14 {
      sourceMAC = packet.sourceMAC
      destinationMAC = packet.destinationMAC
    }
    var first = 0
    for depth in 0..<layer {
      let outer = packet
      guard packet.enterTunnel(bytes, settings: settings) else { break }
      tunnel = Tunnel(
        source: outer.source, destination: outer.destination, sourcePort: outer.sourcePort,
        destinationPort: outer.destinationPort, ipProtocol: outer.ipProtocol, depth: depth + 1)
      // What is in a tunnel has no link header to show.
      first = Int(packet.networkOffset)
      linkType = .rawBSD
    }
    vlans = [packet.outerVLAN, packet.innerVLAN, packet.thirdVLAN].prefix(Int(packet.vlanCount)).map { $0 & 0xFFF }
    if packet.transport == .icmp || packet.transport == .icmpv6 { icmp = (packet.icmpType, packet.icmpCode) }
    communityID = packet.communityID
    // A datagram that was cut off is told as its receiver sees it: as none.
    hasAddresses = packet.network != .none && !packet.anomalies.contains(.badDatagramLength) || bytes.byteCount == 0
    if wanted.contains(.packet) { self.packet = Array(copying: bytes, first..<bytes.byteCount) }
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
    verdict: Verdict, _ settings: DecodeSettings, layer: Int = 0, _ wanted: EvidenceWanted = []
  ) {
    var packet = DecodedPacket.decode(
      bytes, linkType: frame.linkType, strippedVLAN: frame.strippedVLAN, settings: settings)
    for _ in 0..<layer { if !packet.enterTunnel(bytes, settings: settings) { break } }
    self.init(
      time: frame.timestamp, incarnation: .none, packetID: packetID, source: packet.source,
      destination: packet.destination, sourcePort: packet.sourcePort, destinationPort: packet.destinationPort,
      ipProtocol: packet.ipProtocol, reason: reason, rule: rule, verdict: verdict)
    evidence = PacketEvidence(frame, bytes, layer: layer, wanted, settings)
  }
}

extension [UInt8] {
  init(copying bytes: RawSpan, _ range: Range<Int>) { self = range.map { bytes.u8($0) } }
}
#endif
