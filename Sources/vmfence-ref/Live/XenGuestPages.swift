#if Daemon
import Foundation
import VMFenceChannel
import VMFenceCore
import VMFenceXen

/// Xen's: pages that guests granted, offered in xenstore. A guest is rung by an entry that it may only read.
struct XenGuestPages: GuestPages {
  private let hypervisor: any XenHypervisor
  private let connect: XenStoreFollower.Connect
  private let grants: XenGrants
  /// nil: this host has none; guests are looked at again and again then.
  private let events: XenEvents?
  private var store: (any XenStoreAccess)?
  private var rings: UInt64 = 0

  /// - Throws: when pages cannot be mapped here.
  init(hypervisor: any XenHypervisor, connect: @escaping XenStoreFollower.Connect) throws(ProbeError) {
    self.hypervisor = hypervisor
    self.connect = connect
    grants = try XenGrants.open()
    events = try? XenEvents.open()
  }

  var descriptor: Int32 { events?.descriptor ?? -1 }

  mutating func offer(of domain: Incarnation) throws(ProbeError) -> XenChannelOffer? {
    try withStore { store throws(SystemFailure) in try XenChannelOffer.read(of: domain.domainID, from: store) }
  }

  func map(_ offer: XenChannelOffer, of domain: Incarnation) throws(ProbeError) -> GuestPage {
    do throws(SystemFailure) {
      let page = SharedPage(try grants.map(offer.reference, of: domain.domainID))
      // Numbers are given again: whose page is it?
      guard try hypervisor.domain(domain.domainID)?.incarnation == domain else {
        throw SystemFailure(call: "find domain \(domain)", number: ESRCH)
      }
      guard let theirs = offer.port, let events else { return GuestPage(page: page, port: nil) }
      return GuestPage(page: page, port: try events.bind(theirs, of: domain.domainID))
    } catch { throw Self.failed(error) }
  }

  func close(_ page: GuestPage) {
    if let port = page.port { events?.unbind(port) }
  }

  mutating func ring(_ page: GuestPage, of domain: Incarnation) {
    if let port = page.port {
      events?.notify(port)
      return
    }
    rings += 1
    let (path, text) = ("/local/domain/\(domain.domainID)/vmfence/ring", String(rings))
    // Nobody waits for a ring: the guest looks now and then by itself.
    try? withStore { store throws(SystemFailure) in
      try store.write(path, text)
      try store.letRead(path, domain.domainID)
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
#endif
