internal import CXen
internal import Glibc
internal import Synchronization
package import VMFenceCore

/// What a guest's frontend wrote in xenstore: where its page is. Hostile: any number may be wrong, or another's.
package struct XenChannelOffer: Hashable, Sendable {
  /// Below a guest's own subtree, which it writes itself.
  package static let path = "data/vmfence/offer"
  private static let limit = 32

  /// The grant reference of the page.
  package var reference: UInt32
  /// The guest's end of an event channel, if it has one.
  package var port: UInt32?

  package init(reference: UInt32, port: UInt32? = nil) {
    self.reference = reference
    self.port = port
  }

  /// One or two decimal numbers with a space between them; nil for anything else.
  package init?(_ bytes: [UInt8]) {
    guard (1...Self.limit).contains(bytes.count) else { return nil }
    var numbers: [UInt32] = []
    for word in bytes.split(separator: UInt8(ascii: " "), omittingEmptySubsequences: false) {
      guard numbers.count < 2, !word.isEmpty, word.allSatisfy({ (0x30...0x39).contains($0) }),
        let number = UInt32(String(decoding: word, as: UTF8.self))
      else { return nil }
      numbers.append(number)
    }
    guard let first = numbers.first else { return nil }
    self.init(reference: first, port: numbers.count == 2 ? numbers[1] : nil)
  }

  /// The offer of a domain; nil when it made none, or what stands there is none.
  package static func read(of domain: DomainID, from store: any XenStoreAccess) throws(SystemFailure) -> Self? {
    // One byte more than is taken, so that what is longer is seen to be.
    try store.read("/local/domain/\(domain)/\(path)", limit: limit + 1).flatMap { XenChannelOffer($0) }
  }
}

/// Pages that guests granted, by libxengnttab (xengnttab.h). Safe to use from any thread.
@safe package final class XenGrants: Sendable {
  @safe private struct Handle: @unchecked Sendable {
    // SAFETY: used by one thread at a time, under the lock below.
    let grants: OpaquePointer
  }
  private let handle: Mutex<Handle>

  private init(_ handle: Handle) { self.handle = Mutex(handle) }

  deinit {
    // SAFETY: opened by `open`, and every region that was mapped has kept this object.
    handle.withLock { unsafe vmfence_grants_close($0.grants) }
  }

  /// - Throws: `unavailable` and `permissionDenied`.
  package static func open() throws(ProbeError) -> XenGrants {
    var number: CInt = 0
    // SAFETY: one number is written; the handle is ours.
    guard let grants = unsafe vmfence_grants_open(&number) else {
      throw .opening("libxengnttab.so.1", "/dev/xen/gntdev", number, module: "xen-gntdev")
    }
    return unsafe XenGrants(Handle(grants: grants))
  }

  /// Maps a page until nobody refers to the region any more. As long as it is mapped, the domain cannot end.
  package func map(_ reference: UInt32, of domain: DomainID) throws(SystemFailure) -> SharedRegion {
    var page: UnsafeMutableRawPointer?
    // SAFETY: the handle is open; one pointer is written.
    let result = handle.withLock { unsafe vmfence_grants_map($0.grants, domain.rawValue, reference, &page) }
    guard result == 0, let base = unsafe page else {
      throw SystemFailure(call: "map the page of domain \(domain)", number: -result)
    }
    let address = UInt(bitPattern: base)
    // SAFETY: a page that stays mapped until it is unmapped here, once.
    return unsafe SharedRegion(adopting: base, byteCount: 4096) { [self] in
      handle.withLock { unsafe _ = vmfence_grants_unmap($0.grants, UnsafeMutableRawPointer(bitPattern: address)!) }
    }
  }
}

/// Event channels, by libxenevtchn (xenevtchn.h). Safe to use from any thread.
@safe package final class XenEvents: Sendable {
  /// Rings that one look takes.
  private static let lookLimit = 1024

  @safe private struct Handle: @unchecked Sendable {
    // SAFETY: used by one thread at a time, under the lock below.
    let events: OpaquePointer
  }
  private let handle: Mutex<Handle>
  /// Readable when a port was rung.
  package let descriptor: CInt

  private init(_ handle: Handle) {
    // SAFETY: open.
    descriptor = unsafe vmfence_events_descriptor(handle.events)
    self.handle = Mutex(handle)
  }

  deinit {
    // SAFETY: opened by `open`, and nobody else has it any more.
    handle.withLock { unsafe vmfence_events_close($0.events) }
  }

  /// - Throws: `unavailable` and `permissionDenied`.
  package static func open() throws(ProbeError) -> XenEvents {
    var number: CInt = 0
    // SAFETY: one number is written; the handle is ours.
    guard let events = unsafe vmfence_events_open(&number) else {
      throw .opening("libxenevtchn.so.1", "/dev/xen/evtchn", number, module: "xen-evtchn")
    }
    return unsafe XenEvents(Handle(events: events))
  }

  /// - Returns: this side's port.
  package func bind(_ port: UInt32, of domain: DomainID) throws(SystemFailure) -> UInt32 {
    // SAFETY: the handle is open, and the function takes numbers only.
    let result = handle.withLock { unsafe vmfence_events_bind($0.events, domain.rawValue, port) }
    guard result >= 0 else {
      throw SystemFailure(call: "bind the event channel of domain \(domain)", number: -result)
    }
    return UInt32(result)
  }

  // SAFETY: (all three) the handle is open, and the functions take numbers only.
  package func unbind(_ port: UInt32) { _ = handle.withLock { unsafe vmfence_events_unbind($0.events, port) } }
  package func notify(_ port: UInt32) { _ = handle.withLock { unsafe vmfence_events_notify($0.events, port) } }

  /// Lets a port ring again. Until then the kernel keeps it silent, however often the guest rings.
  package func unmask(_ port: UInt32) { _ = handle.withLock { unsafe vmfence_events_unmask($0.events, port) } }

  /// Ports that were rung, each once; never waits.
  package func take() -> [UInt32] {
    var ports: [UInt32] = []
    for _ in 0..<Self.lookLimit {
      var waiting = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
      // SAFETY: one structure, as is said.
      guard unsafe poll(&waiting, 1, 0) == 1, waiting.revents & Int16(POLLIN) != 0 else { break }
      // SAFETY: the handle is open; a number comes back.
      let port = handle.withLock { unsafe vmfence_events_take($0.events) }
      guard port >= 0 else { break }
      ports.append(UInt32(port))
    }
    return ports
  }
}

extension ProbeError {
  /// Why one of Xen's devices cannot be used.
  fileprivate static func opening(_ library: String, _ device: String, _ number: CInt, module: String) -> ProbeError {
    switch number {
    case ELIBACC: ProbeError(.unavailable, "\(library) cannot be opened", remedy: "install the Xen utilities")
    case EACCES, EPERM:
      ProbeError(.permissionDenied, "\(device) cannot be opened: \(describeError(number))", remedy: "run it as root")
    default:
      ProbeError(
        .unavailable, "\(device) cannot be opened: \(describeError(number))",
        remedy: "load the kernel module \(module)")
    }
  }
}
