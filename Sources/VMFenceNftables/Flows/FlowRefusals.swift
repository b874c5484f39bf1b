public import VMFenceCore

/// Acts on packets that rules refused, by `DetectorPool.takeRefusedPackets()`: cuts their flows, and resets the TCP connections of those that were
/// rejected at both of their ends. For a detector beside the path: the refused packet has passed, what follows it does not.
///
/// An end takes a reset only with the very sequence number that it expects. Between the rejected packet and the cut the connection may have gone on, so
/// the packets that came behind it are followed for a second, and resets are made from each of them. A reset that is not exact is ignored.
public struct FlowRefusals: Sendable {
  /// What came of one call.
  public struct Outcome: Hashable, Sendable {
    /// Flows that were cut anew or for longer.
    public var cut = 0
    /// Connections that were sent resets; each counts once.
    public var reset = 0
    /// Connections that should have been: no bridge is known for the domain, or it took no frame, or the packet is not one that the domain may send or
    /// is sent. A reset carries addresses of its packet; made from a forged one, it would forge in the host's name what guests are kept from.
    public var notReset = 0
    /// Refused packets that say of no flow that could be cut: later fragments, what is not IP.
    public var withoutFlow = 0
    /// Flows that were not cut, since so many are already (`NftablesSink.flowShare`).
    public var notCut = 0
    /// The refused packets whose flows are cut now.
    public var packets: Set<RefusedPacket.Name> = []
  }

  /// Connections that are followed at a time; more get only the resets made from the rejected packets themselves.
  static let followed = 256
  static let followingTime = Duration.seconds(1)

  private let firewall: any FlowFirewall
  private let duration: Duration
  /// Rejected connections with the times of the packets that were rejected last.
  private var rejected: [FlowCut: Timestamp] = [:]

  /// - `resets`: nil sends none.
  /// - `duration`: how long a flow is cut.
  public init(_ sink: NftablesSink, resets: ResetSender?, for duration: Duration = .seconds(60)) {
    firewall = SinkWithResets(sink: sink, resets: resets)
    self.duration = duration
  }

  /// The process that holds the packet filter sends the resets, too, if it can.
  ///
  /// - `duration`: how long a flow is cut.
  public init(_ sink: ProcessFirewallSink, for duration: Duration = .seconds(60)) {
    firewall = sink
    self.duration = duration
  }

  /// All flows for which there is room are cut in one transaction of the kernel; then resets are sent.
  ///
  /// - Throws: what cutting them throws; then no flow of these is cut, and nothing was sent.
  public mutating func act(on packets: [RefusedPacket]) async throws(FirewallError) -> Outcome {
    var outcome = Outcome()
    var cuts: [FlowCut: FlowCut] = [:]
    var names: [FlowCut: [RefusedPacket.Name]] = [:]
    // In the order of their packets: what came last knows best what the ends expect.
    var connections: [(flow: FlowCut, packet: RefusedPacket)] = []
    var new: Set<FlowCut> = []
    for packet in packets {
      guard let flow = FlowCut(packet) else {
        if packet.verdict != .pass { outcome.withoutFlow += 1 }
        continue
      }
      let identity = flow.identity
      if packet.verdict != .pass {
        cuts[identity] = flow
        names[identity, default: []].append(packet.name)
      }
      let isKnown = isFollowed(identity, at: packet.frame.timestamp)
      if packet.verdict == .reject {
        if !isKnown { new.insert(identity) }
        follow(identity, from: packet.frame.timestamp)
      }
      if isKnown || packet.verdict == .reject { connections.append((identity, packet)) }
    }
    let done = try await firewall.cut(Array(cuts.values), for: duration)
    outcome.cut = done.cut
    outcome.notCut = done.left.count
    for flow in done.left { names[flow.identity] = nil }
    outcome.packets = Set(names.values.joined())
    await send(connections, new, &outcome)
    return outcome
  }

  private func isFollowed(_ flow: FlowCut, at time: Timestamp) -> Bool {
    guard let since = rejected[flow] else { return false }
    return since <= time && time - since <= Self.followingTime
  }

  private mutating func follow(_ flow: FlowCut, from time: Timestamp) {
    if rejected.count >= Self.followed, rejected[flow] == nil {
      rejected = rejected.filter { time - $0.value <= Self.followingTime }
      guard rejected.count < Self.followed else { return }
    }
    rejected[flow] = time
  }

  private func send(
    _ connections: [(flow: FlowCut, packet: RefusedPacket)], _ new: Set<FlowCut>, _ outcome: inout Outcome
  ) async {
    var flows: [FlowCut] = []
    var resets: [AddressedReset] = []
    for (flow, packet) in connections {
      guard let reset = TCPReset(packet) else { continue }
      flows.append(flow)
      resets.append(
        AddressedReset(domain: packet.incarnation.uuid, direction: packet.frame.direction, reset: reset))
    }
    guard !resets.isEmpty, let results = await firewall.send(resets) else { return }
    var sent: Set<FlowCut> = []
    var failed: Set<FlowCut> = []
    for (flow, isSent) in zip(flows, results) {
      if isSent { sent.insert(flow) } else { failed.insert(flow) }
    }
    outcome.reset = sent.intersection(new).count
    outcome.notReset = failed.subtracting(sent).intersection(new).count
  }
}

/// What cuts flows and resets connections: in this process, or through another.
protocol FlowFirewall: Sendable {
  func cut(_ flows: [FlowCut], for duration: Duration) async throws(FirewallError) -> NftablesSink.CutOutcome
  /// - Returns: for each whether it was sent; nil where none are.
  func send(_ resets: [AddressedReset]) async -> [Bool]?
}

struct SinkWithResets: FlowFirewall {
  let sink: NftablesSink
  let resets: ResetSender?

  func cut(_ flows: [FlowCut], for duration: Duration) async throws(FirewallError) -> NftablesSink.CutOutcome {
    try await sink.cut(flows, for: duration)
  }

  func send(_ resets: [AddressedReset]) -> [Bool]? {
    guard let sender = self.resets else { return nil }
    return resets.map { reset in
      guard sink.isOwn(reset) else { return false }
      do throws(FirewallError) {
        try sender.send(reset.reset, bridge: sink.bridge(of: reset.domain) ?? "")
        return true
      } catch { return false }
    }
  }
}

extension NftablesSink {
  /// The bridge that a domain's ports are plugged into, as far as it was told.
  func bridge(of domain: DomainUUID) -> String? {
    contents.withLock { $0.described[domain]?.lazy.compactMap(\.bridge).first }
  }

  /// Whether the packet that a reset was made from was the domain's, by all that is known of its ports: sent by it with addresses of its own, or sent to
  /// these.
  func isOwn(_ addressed: AddressedReset) -> Bool {
    let ports = contents.withLock { $0.described[addressed.domain] ?? [] }
    let reset = addressed.reset
    let (isSent, isReceived) = (ports.contains { $0.has(reset.source) }, ports.contains { $0.has(reset.destination) })
    return switch addressed.direction {
    case .fromGuest: isSent
    case .toGuest: isReceived
    case .unknown: isSent || isReceived
    }
  }
}

extension NetworkPort {
  fileprivate func has(_ station: TCPReset.Station) -> Bool {
    guard station.mac == mac else { return false }
    let known = SpoofingRules.addresses(of: self).filter { $0.family == station.address.family }
    return known.isEmpty || station.address.isV6LinkLocal || known.contains(station.address)
  }
}
