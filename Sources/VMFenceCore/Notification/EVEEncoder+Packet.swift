// What EVE says of the packet itself: where it came from, what it held, why it was dropped.

/// A packet that was dropped, or would have been: what a `drop` event tells.
public struct DroppedPacket: Sendable, Hashable {
  public var time: Timestamp
  public var incarnation: Incarnation
  /// The packet's number in its domain's ring, from 0.
  public var packetID: UInt64
  public var flowID: UInt64
  public var source: IPAddress
  public var destination: IPAddress
  public var sourcePort: UInt16
  public var destinationPort: UInt16
  public var ipProtocol: UInt8
  /// nil when it belongs to no flow.
  public var direction: Alert.FlowDirection?
  public var reason: DropReason
  /// The rule that caused it, and whether the ends are told; nil when no rule did.
  public var rule: RuleMetadata?
  public var verdict: Verdict
  /// The action of the rule that tells the ends, when it is not `rule`.
  public var rejectAction: RuleAction?
  public var evidence: PacketEvidence?
  public var origin = PacketOrigin.wire

  public init(
    time: Timestamp, incarnation: Incarnation, packetID: UInt64, flowID: UInt64 = 0, source: IPAddress,
    destination: IPAddress, sourcePort: UInt16, destinationPort: UInt16, ipProtocol: UInt8,
    direction: Alert.FlowDirection? = nil, reason: DropReason, rule: RuleMetadata? = nil, verdict: Verdict
  ) {
    self.time = time
    self.incarnation = incarnation
    self.packetID = packetID
    self.flowID = flowID
    self.source = source
    self.destination = destination
    self.sourcePort = sourcePort
    self.destinationPort = destinationPort
    self.ipProtocol = ipProtocol
    self.direction = direction
    self.reason = reason
    self.rule = rule
    self.verdict = verdict
  }

  /// The drop that goes beside an alert.
  public init(_ alert: Alert, reason: DropReason = .rules) {
    self.init(
      time: alert.time, incarnation: alert.incarnation, packetID: alert.packetID, flowID: alert.flowID,
      source: alert.source, destination: alert.destination, sourcePort: alert.sourcePort,
      destinationPort: alert.destinationPort, ipProtocol: alert.ipProtocol, direction: alert.direction,
      reason: reason, rule: alert.rule, verdict: alert.verdict)
    evidence = alert.evidence
    origin = alert.origin
  }
}

/// The members that tell an event's flow.
struct EVEFlow {
  var flowID: UInt64
  var vlans: [UInt16]
  var source: IPAddress
  var sourcePort: UInt16
  var destination: IPAddress
  var destinationPort: UInt16
  var ipProtocol: UInt8
  var direction: Alert.FlowDirection?
  var evidence: PacketEvidence?

  init(_ alert: Alert) {
    flowID = alert.flowID
    vlans = alert.evidence?.vlans ?? (alert.vlan == 0 ? [] : [alert.vlan])
    source = alert.source
    sourcePort = alert.sourcePort
    destination = alert.destination
    destinationPort = alert.destinationPort
    ipProtocol = alert.ipProtocol
    direction = alert.direction
    evidence = alert.evidence
  }

  init(_ drop: DroppedPacket) {
    flowID = drop.flowID
    vlans = drop.evidence?.vlans ?? []
    source = drop.source
    sourcePort = drop.sourcePort
    destination = drop.destination
    destinationPort = drop.destinationPort
    ipProtocol = drop.ipProtocol
    direction = drop.direction
    evidence = drop.evidence
  }

  /// Whether the protocol has ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
  var hasPorts: Bool { [6, 17, 33, 132, 136].contains(ipProtocol) }

  func encode(into json: inout JSONLine) {
    json.member("pcap_cnt", evidence?.captureNumber)
    json.member("pcap_filename", evidence?.captureFile)
    if !vlans.isEmpty { json.array("vlan", vlans) { $0.element($1) } }
    if evidence?.hasAddresses != false {
      json.member("src_ip", source.eveDescription)
      if hasPorts { json.member("src_port", sourcePort) }
      json.member("dest_ip", destination.eveDescription)
      if hasPorts { json.member("dest_port", destinationPort) }
      json.member("proto", ipProtocol.eveProtocolName)
      json.member("ip_v", source.family.rawValue)
    }
    if let icmp = evidence?.icmp {
      json.member("icmp_type", icmp.type)
      json.member("icmp_code", icmp.code)
    }
    json.member("direction", direction?.rawValue)
    json.member("community_id", evidence?.communityID)
    if let source = evidence?.sourceMAC, let destination = evidence?.destinationMAC {
      json.object("ether") { json in
        json.member("src_mac", source.description)
        json.member("dest_mac", destination.description)
      }
    }
  }
}

extension JSONLine {
  mutating func tunnel(_ tunnel: PacketEvidence.Tunnel) {
    object("tunnel") { json in
      json.member("src_ip", tunnel.source.eveDescription)
      if tunnel.sourcePort != 0 { json.member("src_port", tunnel.sourcePort) }
      json.member("dest_ip", tunnel.destination.eveDescription)
      if tunnel.destinationPort != 0 { json.member("dest_port", tunnel.destinationPort) }
      json.member("proto", tunnel.ipProtocol.eveProtocolName)
      json.member("depth", tunnel.depth)
    }
  }

  /// What was inspected. `excerpt`: its beginning, where there is no more.
  mutating func contents(_ evidence: PacketEvidence?, excerpt: [UInt8], isInStream: Bool) {
    let payload = evidence?.payload ?? excerpt
    if let payload = evidence?.payload { member("payload", base64: payload) }
    if !payload.isEmpty { member("payload_printable", payload.printableText) }
    guard let evidence else { return }
    if evidence.payload != nil { member("stream", isInStream ? 1 : 0) }
    if let packet = evidence.packet {
      member("packet", base64: packet)
      object("packet_info") { json in
        json.member("linktype", evidence.linkType.rawValue)
        json.member("linktype_name", evidence.linkType.eveName)
      }
    }
  }

  /// What there is to say of the rule.
  mutating func alert(_ rule: RuleMetadata, isBlocked: Bool) {
    member("action", isBlocked ? "blocked" : "allowed")
    member("gid", rule.gid)
    member("signature_id", rule.sid)
    member("rev", rule.revision)
    member("signature", rule.message)
    member("category", rule.classificationText.isEmpty ? rule.classification : rule.classificationText)
    member("severity", rule.priority)
    if !rule.metadata.isEmpty {
      object("metadata") { json in
        for (key, values) in rule.metadata.sorted(by: { $0.key < $1.key }) {
          json.array(key, values) { $0.element($1) }
        }
      }
    }
    if !rule.references.isEmpty { array("references", rule.references) { $0.element($1) } }
  }

  /// What the rule's expressions captured for the alert.
  mutating func captures(_ captures: [AlertCapture]) {
    guard !captures.isEmpty else { return }
    object("context") { json in
      for capture in captures { json.member(capture.name, capture.value.printableText) }
    }
  }

  /// Who attacks whom, where the rule says which side that is.
  mutating func sides(_ alert: Alert) {
    guard let target = alert.rule.target else { return }
    let hasPorts = EVEFlow(alert).hasPorts
    for (name, isSource) in [("source", target == .destination), ("target", target == .source)] {
      object(name) { json in
        json.member("ip", (isSource ? alert.source : alert.destination).eveDescription)
        if hasPorts { json.member("port", isSource ? alert.sourcePort : alert.destinationPort) }
      }
    }
  }

  /// Which end is told that its packet was dropped, and how.
  mutating func reject(_ action: RuleAction?, _ ipProtocol: UInt8) {
    let target =
      switch action {
      case .rejectDestination: "to_server"
      case .rejectBoth, .react: "both"
      default: "to_client"
      }
    member("reject_target", target)
    array("reject", [ipProtocol == 6 ? "tcp-reset" : "icmp-prohib"]) { $0.element($1) }
  }
}

extension IPAddress {
  /// As EVE writes addresses: those of IPv6 with all their digits.
  var eveDescription: String {
    guard family == .v6 else { return description }
    return (0..<8).map { group in
      let half = group < 4 ? high : low
      return UInt16(truncatingIfNeeded: half >> UInt64(48 - group % 4 * 16)).hexadecimal(width: 4)
    }.joined(separator: ":")
  }
}

extension DropReason {
  /// The words of EVE (`drop.reason`).
  public var eveName: String {
    switch self {
    case .rules: "rules"
    case .rulesThreshold: "threshold detection_filter"
    case .flowDrop: "flow drop"
    case .streamMidstream: "stream midstream"
    case .streamError: "stream error"
    case .streamMemory: "stream memcap"
    case .streamReassembly: "stream reassembly"
    case .streamUrgent: "stream urgent"
    case .flowMemory: "flow memcap"
    case .defragmentMemory: "defrag memcap"
    case .decodeError: "decode error"
    case .defragmentError: "defrag error"
    case .applicationError: "applayer error"
    case .innerPacket: "tunnel packet drop"
    }
  }
}

extension PacketOrigin {
  /// The words of EVE (`pkt_src`).
  public var eveName: String {
    switch self {
    case .wire: "wire/pcap"
    case .gre: "gre tunnel"
    case .ipv4Tunnel: "ipv4 tunnel"
    case .ipv6Tunnel: "ipv6 tunnel"
    case .teredo: "teredo tunnel"
    case .vxlan: "vxlan encapsulation"
    case .geneve: "geneve encapsulation"
    case .defragmented: "defrag"
    case .flowTimeout: "stream (flow timeout)"
    case .gtp: "gtp tunnel"
    }
  }
}

extension LinkType {
  /// The name that libpcap has for it (`pcap_datalink_val_to_name`); nil for those that VMFence does not decode.
  var eveName: String? {
    switch self {
    case .null: "NULL"
    case .ethernet: "EN10MB"
    case .ppp: "PPP"
    case .raw, .rawBSD, .rawOpenBSD: "RAW"
    case .ciscoHDLC: "C_HDLC"
    case .loop: "LOOP"
    case .linuxSLL: "LINUX_SLL"
    case .linuxSLL2: "LINUX_SLL2"
    case .ipv4: "IPv4"
    case .ipv6: "IPv6"
    default: nil
    }
  }
}
