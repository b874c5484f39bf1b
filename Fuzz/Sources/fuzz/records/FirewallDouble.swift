import Synchronization

@testable import VMFenceCore
@testable import VMFenceNftables

/// A packet filter that keeps what it is told, and nothing else. What it was told last can be looked at.
final class DoubleFirewall: KeptFirewall, Sendable {
  struct Contents {
    var generation: UInt64 = 1
    var measures: [FirewallMeasure.Key: FirewallMeasure] = [:]
    var flows: [FlowCut] = []
    var resets: [AddressedReset] = []
    var ports: [DomainUUID: [NetworkPort]] = [:]
    var antiSpoofing = AntiSpoofing.off
  }
  private let state = Mutex(Contents())
  let configuration: NftablesSink.Configuration
  let heard: @Sendable (ForeignChange) -> Void
  let adoptedMeasures = 3
  let portProblem: String? = "nothing \u{1b}[31m is stopped"

  init(_ configuration: NftablesSink.Configuration, _ heard: @escaping @Sendable (ForeignChange) -> Void) {
    (self.configuration, self.heard) = (configuration, heard)
  }

  var contents: Contents { state.withLock { $0 } }
  var generation: UInt64 { state.withLock { $0.generation } }

  func apply(_ change: FirewallChange) throws(FirewallError) {
    try state.withLock { state throws(FirewallError) in
      guard change.from == state.generation else { throw FirewallError(.conflict, "another generation") }
      var measures = state.measures
      for key in change.remove { measures[key] = nil }
      try put(change.add, into: measures, &state)
    }
  }

  private func put(
    _ added: [FirewallMeasure], into standing: [FirewallMeasure.Key: FirewallMeasure], _ state: inout Contents
  ) throws(FirewallError) {
    var measures = standing
    for measure in added { measures[measure.key] = measure }
    guard measures.count <= configuration.capacity else { throw FirewallError(.full, "full\u{1b}", remedy: "\u{7f}") }
    state.measures = measures
    state.generation += 1
  }

  func replace(with measures: [FirewallMeasure], at time: Timestamp) throws(FirewallError) {
    try state.withLock { state throws(FirewallError) in try put(measures, into: [:], &state) }
  }

  func measures(at time: Timestamp) throws(FirewallError) -> [FirewallMeasure] {
    Array(state.withLock { $0.measures.values })
  }

  func update(_ ports: [DomainUUID: [NetworkPort]], _ antiSpoofing: AntiSpoofing) throws(FirewallError) {
    for list in ports.values {
      precondition(list.allSatisfy { NetworkPort.isInterfaceName($0.interface) }, "a name that none can have")
    }
    state.withLock { ($0.ports, $0.antiSpoofing) = (ports, antiSpoofing) }
  }

  func cut(_ flows: [FlowCut], for duration: Duration) throws(FirewallError) -> NftablesSink.CutOutcome {
    state.withLock { state in
      state.flows = flows
      return NftablesSink.CutOutcome(cut: flows.count / 2, left: Array(flows.suffix(flows.count - flows.count / 2)))
    }
  }

  func send(_ resets: [AddressedReset]) -> [Bool]? {
    state.withLock { $0.resets = resets }
    return resets.map { $0.reset.next % 2 == 0 }
  }

  func counts() throws(FirewallError) -> TrafficCounts {
    var counts = TrafficCounts()
    counts.blocked = TrafficCount(packets: generation, bytes: 7)
    counts.spoofed[.mac] = TrafficCount(packets: 1)
    counts.spoofedAtPorts["vif1.0"] = [.mac: TrafficCount(packets: 1, bytes: 1)]
    return counts
  }
}

/// The packet filters that were opened, one after the other.
final class DoubleFirewalls: Sendable {
  private let opened = Mutex<[DoubleFirewall]>([])

  var all: [DoubleFirewall] { opened.withLock { $0 } }
  var last: DoubleFirewall? { all.last }

  /// - `refuses`: nothing can be opened.
  func server(refuses: Bool) -> FirewallServer {
    FirewallServer(senderProblem: refuses ? FirewallError(.failed, "no resets") : nil) {
      (configuration, heard) throws(NetlinkError) in
      if refuses { throw NetlinkError.refused(1, "\u{1b}") }
      let firewall = DoubleFirewall(configuration, heard)
      self.opened.withLock { $0.append(firewall) }
      return firewall
    }
  }
}

/// What a record may have in it, whoever wrote it.
func checkRecord(_ record: FirewallRecord) {
  switch record {
  case .measure(let measure):
    check(measure.key)
    checkLength(measure.comment, FirewallRecord.commentLimit)
  case .removed(let key): check(key)
  case .port(_, let port):
    precondition(NetworkPort.isInterfaceName(port.interface), "a name that none can have")
    precondition(port.bridge.map(NetworkPort.isInterfaceName) ?? true, "a bridge's name that none can have")
    precondition(port.mac.rawValue >> 48 == 0 && port.addresses.count <= FirewallRecord.addressLimit, "no port")
  case .exception(_, let kinds): precondition(kinds.count <= SpoofingKind.allCases.count)
  case .flow(let flow):
    precondition(flow.source.family == flow.destination.family, "a flow between families")
    checkLength(flow.comment, FirewallRecord.commentLimit)
    _ = (flow.identity, flow.elements(in: ["vif1.0"]))
  case .reset(let addressed):
    let reset = addressed.reset
    let length = 14 + (reset.vlan == nil ? 0 : 4) + (reset.source.address.family == .v4 ? 20 : 40) + 20
    precondition(reset.toSource.count == length && reset.toDestination.count == length, "no frame of a reset")
  case .isSent: break
  case .change(let change): checkText(change.description)
  case .network(let network): check(network)
  case .count(let count):
    precondition(count.interface.isEmpty || NetworkPort.isInterfaceName(count.interface), "a name that none can have")
    var counts = TrafficCounts()
    count.add(to: &counts)
    precondition(counts.spoofedAtPorts.count <= 1)
  case .text(let text): checkLength(text, FirewallRecord.textLimit)
  }
}

private func check(_ key: FirewallMeasure.Key) { if case .block(let network) = key.kind { check(network) } }

private func check(_ network: IPNetwork) {
  precondition(Int(network.prefix) <= network.base.family.bitWidth, "a prefix longer than an address")
  precondition(network.base.masked(prefix: Int(network.prefix)) == network.base, "a network with a host's address")
}

/// What is no UTF-8 becomes three bytes each.
private func checkLength(_ text: String, _ limit: Int) { precondition(text.utf8.count <= 3 * limit, "a long text") }

extension FirewallRecord {
  /// Whether it is written as it was read: what is no UTF-8, and what is escaped, is not.
  var isExact: Bool {
    func isExact(_ text: String) -> Bool { !text.unicodeScalars.contains("\u{FFFD}") }
    return switch self {
    case .measure(let measure): isExact(measure.comment)
    case .port(_, let port): isExact(port.interface) && isExact(port.bridge ?? "")
    case .flow(let flow): isExact(flow.comment)
    case .change(let change): isExact(change.process) && !change.process.contains("\\")
    case .count(let count): isExact(count.interface)
    case .text(let text): isExact(text)
    default: true
    }
  }
}
