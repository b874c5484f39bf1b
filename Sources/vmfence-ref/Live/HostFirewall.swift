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
            quarantineExceptions: .init(networks: choice.quarantineExceptions, allowsDHCP: choice.quarantineAllowsDHCP),
            protectsHost: choice.protectsHost)))
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

  /// Says which ports each domain has.
  func update(_ domains: [DomainDescription]) async throws(FirewallError) {
    guard case .nftables(let sink) = self else { return }
    var ports: [DomainUUID: [NetworkPort]] = [:]
    for domain in domains where !domain.runState.isFinal && domain.migration != .migratedAway {
      ports[domain.incarnation.uuid, default: []] += domain.ports
    }
    try await sink.update(ports: ports)
  }
}
#endif
