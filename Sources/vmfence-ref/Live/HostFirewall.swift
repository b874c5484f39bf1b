#if Daemon
import VMFenceCore
import VMFenceNftables
import VMFenceTestKit

/// What carries measures out on this host.
enum HostFirewall: Sendable {
  case nftables(NftablesSink)
  /// Measures are recorded, and nothing is changed.
  case recorder(RecordingFirewallSink)

  static func open(_ choice: HostConfiguration.Firewall) throws(FirewallError) -> HostFirewall {
    switch choice.kind {
    case .none: return .recorder(RecordingFirewallSink())
    case .nftables:
      return .nftables(
        try NftablesSink.open(
          .init(
            table: choice.table,
            quarantineExceptions: choice.exceptionsFromQuarantine,
            protectsHost: choice.protectsHost, holdsTable: choice.ownsTable)))
    }
  }

  var sink: any FirewallSink {
    switch self {
    case .nftables(let sink): sink
    case .recorder(let sink): sink
    }
  }

  /// In a few words.
  var name: String {
    switch self {
    case .nftables(let sink): "nftables table \(sink.configuration.table)"
    case .recorder: "nothing (measures are recorded only)"
    }
  }

  /// Says which ports each domain has, and what it may not pretend there: to be this host or one of its gateways, for one.
  func update(
    _ domains: [DomainDescription], _ choice: HostConfiguration.Firewall, _ host: HostAddresses
  ) async throws(FirewallError) {
    guard case .nftables(let sink) = self else { return }
    var ports: [DomainUUID: [NetworkPort]] = [:]
    let reserved = host.own.union(host.gateways).filter(\.isV6LinkLocal).union(choice.routers)
    var antiSpoofing = AntiSpoofing(choice.antiSpoofing, reserved: reserved)
    for domain in domains where !domain.runState.isFinal && domain.migration != .migratedAway {
      ports[domain.incarnation.uuid, default: []] += domain.ports
      antiSpoofing.exceptions[domain.incarnation.uuid] = choice.antiSpoofingExceptions[domain.name]
    }
    try await sink.update(ports: ports, antiSpoofing: antiSpoofing)
  }

  /// What the kernel has stopped, without single measures; nil where nothing is carried out.
  func trafficCounts() async throws(FirewallError) -> TrafficCounts? {
    guard case .nftables(let sink) = self else { return nil }
    return try await sink.trafficCounts(ofMeasures: false)
  }

  /// Calls `body` for each change that somebody else makes to what is ours, with a sentence about it.
  func watch(_ body: @escaping @Sendable (String) -> Void) {
    guard case .nftables(let sink) = self else { return }
    let changes = sink.changesByOthers()
    Task { for await change in changes { body(change.description) } }
  }
}
#endif
