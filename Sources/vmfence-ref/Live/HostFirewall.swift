#if Daemon
import VMFenceCore
import VMFenceNftables
import VMFenceProcess
import VMFenceTestKit

/// What carries measures out on this host.
enum HostFirewall: Sendable {
  case nftables(ProcessFirewallSink)
  /// Measures are recorded, and nothing is changed.
  case recorder(RecordingFirewallSink)

  static func open(_ choice: HostConfiguration.Firewall) throws(FirewallError) -> HostFirewall {
    switch choice.kind {
    case .none: return .recorder(RecordingFirewallSink())
    case .nftables:
      return .nftables(
        try ProcessFirewallSink.open(
          .init(
            table: choice.table,
            quarantineExceptions: choice.exceptionsFromQuarantine,
            protectsHost: choice.protectsHost, holdsTable: choice.ownsTable)
        ) { () throws(DetectorError) in try HelperProcess("vmfence-firewall") })
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
    let reserved = host.own.union(host.gateways).filter(\.isV6LinkLocal).union(choice.routers)
    var antiSpoofing = AntiSpoofing(choice.antiSpoofing, reserved: reserved)
    for domain in domains where domain.hasPorts {
      antiSpoofing.exceptions[domain.incarnation.uuid] = choice.antiSpoofingExceptions[domain.name]
    }
    try await sink.update(ports: Self.ports(domains), antiSpoofing: antiSpoofing)
  }

  private static func ports(_ domains: [DomainDescription]) -> [DomainUUID: [NetworkPort]] {
    domains.lazy.filter(\.hasPorts).reduce(into: [:]) { $0[$1.incarnation.uuid, default: []] += $1.ports }
  }

  /// How many elements the packet filter is to have for so many measures, with the ports of these domains; see `TrafficCounts.elements`.
  static func elements(of counts: MeasureCounts, _ domains: [DomainDescription]) -> Int {
    let ports = ports(domains).mapValues { list in
      Set(list.lazy.map(\.interface).filter(NetworkPort.isInterfaceName)).count
    }
    return counts.scopes.reduce(0) { sum, scope in
      guard case .domain(let uuid) = scope.key else { return sum + scope.value.all }
      // Those of a domain without a port lie under a name of its own.
      return sum + scope.value.all * max(1, ports[uuid] ?? 0)
    }
  }

  /// What the kernel has stopped, without single measures; nil where nothing is carried out.
  func trafficCounts() async throws(FirewallError) -> TrafficCounts? {
    guard case .nftables(let sink) = self else { return nil }
    return try await sink.trafficCounts()
  }

  /// Why nothing can be changed now; nil when it can.
  var problem: String? {
    guard case .nftables(let sink) = self else { return nil }
    return sink.problem.map {
      "the packet filter cannot be changed: vmfence-firewall is gone (\($0)) and is started again; what stands stays in force"
    }
  }

  /// Calls `body` for each thing that happens to what carries measures out.
  func watch(_ body: @escaping @Sendable (ProcessFirewallSink.News) -> Void) {
    guard case .nftables(let sink) = self else { return }
    let news = sink.news()
    Task { for await item in news { body(item) } }
  }
}

extension DomainDescription {
  /// Whether its ports are its own: not if it is over, or on another host now.
  fileprivate var hasPorts: Bool { !runState.isFinal && migration != .migratedAway }
}
#endif
