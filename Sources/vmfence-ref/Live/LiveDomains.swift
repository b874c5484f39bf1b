#if Daemon
import Synchronization
import VMFenceConfiguration
import VMFenceCore
import VMFenceXen

/// The domains of this host, from where the configuration says, with what it says of them.
final class LiveDomains: Sendable {
  private enum Source: Sendable {
    case inventory(StaticInventory)
    case xen(XenProbe)
  }

  private let source: Source
  private let guests: Mutex<GuestSettings>

  /// - Throws: what the adapter throws: a mistake in the inventory, no hypervisor here, no permission.
  init(_ configuration: HostConfiguration, clock: any TimeSource) throws(ProbeError) {
    switch configuration.domains {
    case .inventory(let path): source = .inventory(try StaticInventory.open(path: path, clock: clock))
    case .xen: source = .xen(try XenProbe.open(clock: clock))
    }
    guests = Mutex(configuration.guests)
  }

  /// What pauses, resumes and shuts domains down; nil when nothing does.
  static func control(_ configuration: HostConfiguration, _ directory: DomainDirectory) throws(ProbeError) -> (
    any HypervisorControl
  )? {
    if !configuration.control.isEmpty { return CommandControl(configuration.control, directory: directory) }
    return configuration.domains == .xen ? try XenControl.open() : nil
  }

  func snapshot() async throws(ProbeError) -> InventorySnapshot {
    var snapshot: InventorySnapshot
    switch source {
    case .inventory(let inventory): snapshot = try await inventory.snapshot()
    case .xen(let probe): snapshot = try await probe.snapshot()
    }
    let guests = guests.withLock { $0 }
    snapshot.domains = snapshot.domains.map(guests.applied)
    return snapshot
  }

  /// Each says that it is time for another snapshot.
  func hints() async -> AsyncStream<InventoryChange> {
    switch source {
    case .inventory(let inventory): await inventory.changes()
    case .xen(let probe): await probe.changes()
    }
  }

  var problems: [Diagnostic] {
    switch source {
    case .inventory(let inventory): inventory.problems
    case .xen(let probe): probe.problems
    }
  }

  /// Takes over what a reloaded configuration says of guests.
  func use(_ settings: GuestSettings) { guests.withLock { $0 = settings } }

  func close() {
    switch source {
    case .inventory(let inventory): inventory.close()
    case .xen(let probe): probe.close()
    }
  }
}
#endif
