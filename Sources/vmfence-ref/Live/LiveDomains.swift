#if Daemon
import Synchronization
import VMFenceConfiguration
import VMFenceCore
import VMFenceProcess
import VMFenceXen

/// The domains of this host, from where the configuration says, with what it says of them.
final class LiveDomains: Sendable {
  private enum Source: Sendable {
    case inventory(StaticInventory)
    case xen(XenProbe, XenTransport)
  }

  private let source: Source
  private let guests: Mutex<GuestSettings>
  /// Services that guests declared themselves, for those of which the configuration says none.
  private let declared = Mutex<[DomainUUID: String]>([:])

  /// - Throws: what the adapter throws: a mistake in the inventory, no hypervisor here, no permission.
  init(_ configuration: HostConfiguration, clock: any TimeSource) throws(ProbeError) {
    switch configuration.domains {
    case .inventory(let path): source = .inventory(try StaticInventory.open(path: path, clock: clock))
    case .xen:
      // This process reads what guests write (their offers, the heads of their frames), so the handle is another's.
      let xen = try XenTransport.process { () throws(DetectorError) in try HelperProcess("vmfence-hypervisor") }
      source = .xen(try XenProbe.open(clock: clock, over: xen), xen)
    }
    guests = Mutex(configuration.guests)
  }

  /// What pauses, resumes and shuts domains down; nil when nothing does.
  func control(_ configuration: HostConfiguration, _ directory: DomainDirectory) -> (any HypervisorControl)? {
    if !configuration.control.isEmpty { return CommandControl(configuration.control, directory: directory) }
    return if case .xen(_, let xen) = source { XenControl.open(over: xen) } else { nil }
  }

  /// What carries the pages of guests' policy channels; nil when this host's domains are not Xen's.
  func pages() throws(ProbeError) -> XenGuestPages? {
    guard case .xen(_, let xen) = source else { return nil }
    let executable: String
    do throws(DetectorError) { executable = try besideThisProgram("vmfence-channel") } catch {
      throw ProbeError(.unavailable, error.message, remedy: error.remedy)
    }
    return try XenGuestPages(
      hypervisor: xen.hypervisor, connect: XenStoreConnection.connect, executable: executable)
  }

  /// What is known of the domains. Waits neither for the hypervisor nor for xenstored: `hints` has what they say later.
  func snapshot() async throws(ProbeError) -> InventorySnapshot {
    var snapshot: InventorySnapshot
    switch source {
    case .inventory(let inventory): snapshot = try await inventory.snapshot()
    case .xen(let probe, _): snapshot = try probe.latestSnapshot()
    }
    let (guests, declared) = (guests.withLock { $0 }, declared.withLock { $0 })
    snapshot.domains = snapshot.domains.map { domain in
      var domain = guests.applied(to: domain)
      if domain.serviceType == nil { domain.serviceType = declared[domain.incarnation.uuid] }
      return domain
    }
    return snapshot
  }

  /// Each says that it is time for another snapshot.
  func hints() async -> AsyncStream<InventoryChange> {
    switch source {
    case .inventory(let inventory): await inventory.changes()
    case .xen(let probe, _): await probe.changes()
    }
  }

  /// Has whoever knows of the domains asked again, and waits for nobody.
  func lookSoon() { if case .xen(let probe, _) = source { probe.lookSoon() } }

  var problems: [Diagnostic] {
    switch source {
    case .inventory(let inventory): inventory.problems
    case .xen(let probe, _): probe.problems
    }
  }

  /// Takes over what guests declare that they serve.
  func use(declared services: [DomainUUID: String]) { declared.withLock { $0 = services } }

  /// Takes over what a reloaded configuration says of guests.
  func use(_ settings: GuestSettings) { guests.withLock { $0 = settings } }

  func close() {
    switch source {
    case .inventory(let inventory): inventory.close()
    case .xen(let probe, _): probe.close()
    }
  }
}
#endif
