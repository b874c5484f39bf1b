#if Daemon
import Foundation
import VMFenceChannel
import VMFenceCore
import VMFenceProcess
import VMFenceXen

/// Xen's: pages that guests granted, offered in xenstore, each mapped by a process of its own. A guest is rung by an entry that it may only read.
struct XenGuestPages: GuestPages {
  /// Bytes of a report of a channel's process; a longer one is none.
  private static let reportLimit = 2048

  private let hypervisor: any XenHypervisor
  private let connect: XenStoreFollower.Connect
  private let executable: String
  /// nil: this host has none; guests are looked at again and again then.
  private let events: XenEvents?
  private var store: (any XenStoreAccess)?
  private var rings: UInt64 = 0

  /// - `executable`: `vmfence-channel`.
  /// - Throws: when pages cannot be mapped here.
  init(
    hypervisor: any XenHypervisor, connect: @escaping XenStoreFollower.Connect, executable: String
  ) throws(ProbeError) {
    self.hypervisor = hypervisor
    self.connect = connect
    // SAFETY: a path that ends in zero.
    guard unsafe access(executable, X_OK) == 0 else {
      throw ProbeError(
        .unavailable, "\(executable.escapedForDisplay) cannot be run", remedy: "install it beside this program")
    }
    self.executable = executable
    // Nothing is mapped here: what keeps others from mapping is said now.
    _ = try XenGrants.open()
    events = try? XenEvents.open()
  }

  var descriptor: Int32 { events?.descriptor ?? -1 }

  mutating func offer(of domain: Incarnation) throws(ProbeError) -> XenChannelOffer? {
    try withStore { store throws(SystemFailure) in try XenChannelOffer.read(of: domain.domainID, from: store) }
  }

  func open(
    _ offer: XenChannelOffer, of domain: Incarnation, epoch: UInt64, at now: Timestamp
  ) throws(ChannelViolation) -> GuestPage<ProcessSession<HelperProcess>> {
    let hypervisor = hypervisor
    // Numbers are given again: whose page is it, and whose port? Asked before and, of the page, when it is mapped.
    let isRightGuest = { @Sendable in (try? hypervisor.domain(domain.domainID)?.incarnation == domain) ?? false }
    guard isRightGuest() else { throw ChannelViolation(.page, "the guest is gone") }
    var port: UInt32?
    if let theirs = offer.port, let events {
      do throws(SystemFailure) { port = try events.bind(theirs, of: domain.domainID) } catch {
        throw ChannelViolation(.page, "its event channel cannot be used: \(error.description)")
      }
    }
    let process: HelperProcess
    do throws(DetectorError) {
      process = try HelperProcess(executable: executable, messageLimit: Self.reportLimit)
    } catch {
      if let port { events?.unbind(port) }
      throw ChannelViolation(.page, error.message)
    }
    let session = ProcessSession(
      process, page: .init(domain: domain.domainID.rawValue, reference: offer.reference), epoch: epoch,
      looks: port == nil, at: now, isRightGuest: isRightGuest)
    return GuestPage(session: session, port: port)
  }

  func close(_ page: GuestPage<ProcessSession<HelperProcess>>) {
    if let port = page.port { events?.unbind(port) }
  }

  mutating func ring(_ page: GuestPage<ProcessSession<HelperProcess>>, of domain: Incarnation) {
    if let port = page.port {
      events?.notify(port)
      return
    }
    rings += 1
    // Nobody waits for a ring: the guest looks now and then by itself.
    _ = try? withStore { [rings] store throws(SystemFailure) in
      try store.tell(domain.domainID, "vmfence/ring", String(rings))
    }
  }

  func takeRings() -> [UInt32] { events?.take() ?? [] }
  func unmask(_ port: UInt32) { events?.unmask(port) }

  /// A connection that is broken is made anew the next time.
  private mutating func withStore<Result>(
    _ body: (any XenStoreAccess) throws(SystemFailure) -> Result
  ) throws(ProbeError) -> Result {
    let connection: any XenStoreAccess
    if let store { connection = store } else { connection = try connect() }
    store = connection
    do throws(SystemFailure) { return try body(connection) } catch {
      // What is not permitted or not there says nothing of the connection.
      if !error.isPermission, error.number != ENOENT { store = nil }
      throw Self.failed(error)
    }
  }

  private static func failed(_ error: SystemFailure) -> ProbeError {
    ProbeError(.failed, error.description, remedy: "see whether `xenstore-ls` works on this host")
  }
}

extension HelperProcess: SessionProcess {
  package func next() -> SessionMessage {
    switch receive(within: .zero) {
    case .message(let bytes): .message(bytes)
    case .nothing: .nothing
    case .ended: .ended
    }
  }
}
#endif
