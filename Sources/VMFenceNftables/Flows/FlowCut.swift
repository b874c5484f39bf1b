public import VMFenceCore
import VMFencePackets

/// A flow of a domain that is to be cut for a short time: its two ends, in any order.
public struct FlowCut: Hashable, Sendable {
  public var domain: DomainUUID
  public var source: IPAddress
  public var destination: IPAddress
  /// 0 for protocols without ports.
  public var sourcePort: UInt16
  public var destinationPort: UInt16
  public var ipProtocol: UInt8
  /// A few words for whoever lists the flows: `sid 1:1000001`.
  public var comment: String

  /// Both addresses are of one family.
  public init(
    domain: DomainUUID, source: IPAddress, destination: IPAddress, sourcePort: UInt16, destinationPort: UInt16,
    ipProtocol: UInt8, comment: String = ""
  ) {
    self.domain = domain
    self.source = source
    self.destination = destination
    self.sourcePort = sourcePort
    self.destinationPort = destinationPort
    self.ipProtocol = ipProtocol
    self.comment = comment
  }

  /// The flow of a packet that a rule refused; nil when the packet has no flow that could be told from its outermost headers.
  public init?(_ packet: RefusedPacket) {
    let decoded = packet.head.withRawSpan {
      DecodedPacket.decode($0, linkType: packet.frame.linkType, strippedVLAN: packet.frame.strippedVLAN)
    }
    guard decoded.network == .ipv4 || decoded.network == .ipv6, decoded.source.family == decoded.destination.family
    else {
      return nil
    }
    let hasPorts = FlowRules.withPorts.contains(decoded.ipProtocol) && decoded.transport != .none
    // A later fragment does not say whose it is.
    guard hasPorts || !FlowRules.withPorts.contains(decoded.ipProtocol) else { return nil }
    self.init(
      domain: packet.incarnation.uuid, source: decoded.source, destination: decoded.destination,
      sourcePort: hasPorts ? decoded.sourcePort : 0, destinationPort: hasPorts ? decoded.destinationPort : 0,
      ipProtocol: decoded.ipProtocol, comment: "sid \(packet.rule.gid):\(packet.rule.sid)")
  }

  /// The keys of its elements: which end is the guest's is not known, so both are tried.
  func elements(in interfaces: [String]) -> [ElementKey] {
    interfaces.flatMap { interface in
      [false, true].map { isSwapped in
        var key = ElementKey()
        key.append(interface: interface)
        key.append(isSwapped ? destination : source)
        key.append(isSwapped ? source : destination)
        if FlowRules.withPorts.contains(ipProtocol) {
          key.append(transportPort: isSwapped ? destinationPort : sourcePort)
          key.append(transportPort: isSwapped ? sourcePort : destinationPort)
        } else {
          key.append(transportPort: UInt16(ipProtocol) << 8)
          key.append(transportPort: 0)
        }
        return key
      }
    }
  }

  /// The same for both directions.
  var identity: FlowCut {
    var flow = self
    flow.comment = ""
    guard (destination, destinationPort) < (source, sourcePort) else { return flow }
    swap(&flow.source, &flow.destination)
    swap(&flow.sourcePort, &flow.destinationPort)
    return flow
  }
}

extension NftablesSink {
  /// How many flows can be cut at a time, and how many of one domain: who floods a guest with flows uses up that guest's share.
  public static let flowCapacity = 65_536
  public static let flowShare = 8_192

  /// What came of cutting some flows.
  public struct CutOutcome: Hashable, Sendable {
    /// How many were cut anew or for longer.
    public var cut = 0
    /// Those for which there was no room.
    public var left: [FlowCut] = []
  }

  /// Cuts flows for a short time, all of them in one transaction. A flow that is cut already is left alone until half of its time is over, so a flood
  /// of packets of one flow costs one change.
  ///
  /// - Throws: when the kernel does not take the change; then none of these is cut.
  @discardableResult
  public func cut(_ flows: [FlowCut], for duration: Duration = .seconds(60)) async throws(FirewallError) -> CutOutcome {
    try locked { contents throws(FirewallError) in try contents.cut(flows, for: duration) }
  }
}

extension SinkContents {
  mutating func cut(_ flows: [FlowCut], for duration: Duration) throws(FirewallError) -> NftablesSink.CutOutcome {
    let now = Self.now
    var outcome = NftablesSink.CutOutcome()
    let length = UInt64(max(1, min(duration, Self.longestTimeout).wholeNanoseconds))
    var new: [FlowCut: FlowCut] = [:]
    for flow in flows where flow.source.family == flow.destination.family {
      let identity = flow.identity
      if let deadline = cutFlows[identity], deadline > now + length / 2 { continue }
      new[identity] = flow
    }
    outcome.left = cutFlows.takeExcess(from: &new, at: now)
    guard !new.isEmpty else { return outcome }
    batch.begin(.bridge, table: configuration.table, sequence: socket.takeSequence(Self.sequenceNumbers))
    let newGroups = write(missing: Set(new.values.map { RuleGroup.flows($0.source.family) }))
    for family in [IPAddress.Family.v4, .v6] {
      let cuts = new.values.filter { $0.source.family == family }
      guard !cuts.isEmpty else { continue }
      // What stands gets a new end; what has just ended cannot be deleted, unless it is added first.
      for step in 0..<3 {
        batch.beginElements(of: FlowRules.set(family), deletes: step == 1)
        for flow in cuts where step == 2 || cutFlows[flow.identity] != nil {
          let data = step == 2 ? ElementTag.comment(flow.comment) : []
          for key in flow.elements(in: interfaces(of: flow.domain)) {
            batch.element(key, timeout: step == 2 ? max(1, length / 1_000_000) : 0, userData: data)
          }
        }
        batch.endElements()
      }
    }
    do throws(NetlinkError) {
      try commit()
    } catch {
      throw failed(error, during: "cut flows")
    }
    groups += newGroups
    for identity in new.keys { cutFlows.set(identity, until: now + length) }
    outcome.cut = new.count
    return outcome
  }
}
