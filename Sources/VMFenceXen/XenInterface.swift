internal import CXen
internal import Glibc
internal import Synchronization
package import VMFenceCore

/// What the hypervisor says of one domain.
package struct XenDomain: Hashable, Sendable {
  package var incarnation: Incarnation
  package var flags: XenStateTable.Flags
  package var reason: XenStateTable.ShutdownReason
  /// Whether it has an emulated machine around it, or could have one (HVM and PVH).
  package var isHardwareVirtualised: Bool
  package var cpuTime: Duration

  package var runState: RunState { XenStateTable.runState(flags, reason) }

  package init(
    _ incarnation: Incarnation, flags: XenStateTable.Flags = .running, reason: XenStateTable.ShutdownReason = .none,
    isHardwareVirtualised: Bool = false, cpuTime: Duration = .zero
  ) {
    self.incarnation = incarnation
    self.flags = flags
    self.reason = reason
    self.isHardwareVirtualised = isHardwareVirtualised
    self.cpuTime = cpuTime
  }

  /// `XEN_DOMINF_*` of xen/include/public/domctl.h.
  init(_ domain: vmfence_xen_domain) {
    let bits: [(UInt32, XenStateTable.Flags)] = [
      (1 << 0, .dying), (1 << 2, .shutdown), (1 << 3, .paused), (1 << 4, .blocked), (1 << 5, .running),
    ]
    flags = []
    for (bit, flag) in bits where domain.flags & bit != 0 { flags.insert(flag) }
    isHardwareVirtualised = domain.flags & 1 << 1 != 0
    // What a guest may have put there itself, and is not known, says nothing.
    reason = flags.contains(.shutdown) ? .init(rawValue: UInt8(domain.flags >> 16 & 0xFF)) ?? .none : .none
    cpuTime = .nanoseconds(Int64(clamping: domain.cpu_time))
    let uuid = domain.uuid
    // SAFETY: 16 bytes, which are copied.
    let (high, low) = unsafe withUnsafeBytes(of: uuid) {
      unsafe (
        UInt64(bigEndian: $0.loadUnaligned(as: UInt64.self)),
        UInt64(bigEndian: $0.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
      )
    }
    incarnation = Incarnation(uuid: DomainUUID(high: high, low: low), domainID: DomainID(domain.domid))
  }
}

/// The verbs of the hypervisor that VMFence uses, and no other. Implementations are safe to use from any thread.
package protocol XenHypervisor: Sendable {
  /// All domains besides Dom0, by rising numbers.
  func domains() throws(SystemFailure) -> [XenDomain]
  /// The domain with this number; nil when there is none.
  func domain(_ number: DomainID) throws(SystemFailure) -> XenDomain?
  func pause(_ number: DomainID) throws(SystemFailure)
  func unpause(_ number: DomainID) throws(SystemFailure)
  /// Stops it at once, as if it had powered itself off.
  func powerOff(_ number: DomainID) throws(SystemFailure)
  func destroy(_ number: DomainID) throws(SystemFailure)
}

/// The real one, by libxenctrl.
@safe package final class XenInterface: XenHypervisor {
  /// More domains than Xen can number are not taken.
  private static let domainLimit = 0x7FF0
  private static let chunk = 1024

  @safe private struct Handle: @unchecked Sendable {
    // SAFETY: used by one thread at a time, under the lock below.
    let xen: OpaquePointer
  }
  private let handle: Mutex<Handle>

  private init(_ handle: Handle) { self.handle = Mutex(handle) }

  deinit {
    // SAFETY: opened by `open`, and nobody else has it any more.
    handle.withLock { unsafe vmfence_xen_close($0.xen) }
  }

  /// - Throws: `unavailable` and `permissionDenied`, with what is missing.
  package static func open(on host: XenHost) throws(ProbeError) -> XenInterface {
    let opening = unsafe vmfence_xen_open(host.major, host.minor)
    // SAFETY: a field of fixed length that ends in zero.
    let library = unsafe withUnsafeBytes(of: opening.library) { bytes in
      unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    }
    // SAFETY: checked for nil; the handle is ours.
    if let xen = unsafe opening.xen { return unsafe XenInterface(Handle(xen: xen)) }
    switch unsafe opening.problem {
    case VMFENCE_XEN_UNKNOWN_RELEASE: throw unsafe XenHost.unknownRelease(opening.major, opening.minor)
    case VMFENCE_XEN_NO_LIBRARY:
      throw ProbeError(
        .unavailable, "\(library) cannot be opened", remedy: "install the Xen utilities of this host's Xen release")
    default:
      let number = unsafe opening.error
      if number == EACCES || number == EPERM {
        throw ProbeError(
          .permissionDenied, "the hypervisor cannot be reached: \(describeError(number)) (/dev/xen/privcmd)",
          remedy: "run it as root, or give it access to /dev/xen/privcmd")
      }
      throw ProbeError(
        .unavailable, "the hypervisor cannot be reached: \(describeError(number))",
        remedy: "load the kernel module xen-privcmd")
    }
  }

  package func domains() throws(SystemFailure) -> [XenDomain] {
    var found: [XenDomain] = []
    var next: UInt32 = 1
    while found.count < Self.domainLimit {
      let part = try list(from: next, capacity: Self.chunk)
      found += part
      guard part.count == Self.chunk, let last = part.last else { break }
      next = last.incarnation.domainID.rawValue + 1
    }
    return found
  }

  package func domain(_ number: DomainID) throws(SystemFailure) -> XenDomain? {
    try list(from: number.rawValue, capacity: 1).first { $0.incarnation.domainID == number }
  }

  private func list(from first: UInt32, capacity: Int) throws(SystemFailure) -> [XenDomain] {
    var buffer = [vmfence_xen_domain](repeating: vmfence_xen_domain(), count: capacity)
    // SAFETY: the handle is open; at most `capacity` elements are written.
    let count = handle.withLock { unsafe vmfence_xen_list($0.xen, first, &buffer, UInt32(capacity)) }
    guard count >= 0 else { throw SystemFailure(call: "list the domains", number: -count) }
    return buffer.prefix(Int(count)).map(XenDomain.init)
  }

  // SAFETY (all four): the handle is open, and the functions take numbers only.
  package func pause(_ number: DomainID) throws(SystemFailure) {
    try check(handle.withLock { unsafe vmfence_xen_pause($0.xen, number.rawValue) }, "pause a domain")
  }
  package func unpause(_ number: DomainID) throws(SystemFailure) {
    try check(handle.withLock { unsafe vmfence_xen_unpause($0.xen, number.rawValue) }, "resume a domain")
  }
  package func powerOff(_ number: DomainID) throws(SystemFailure) {
    try check(handle.withLock { unsafe vmfence_xen_power_off($0.xen, number.rawValue) }, "power a domain off")
  }
  package func destroy(_ number: DomainID) throws(SystemFailure) {
    try check(handle.withLock { unsafe vmfence_xen_destroy($0.xen, number.rawValue) }, "destroy a domain")
  }

  private func check(_ result: CInt, _ call: String) throws(SystemFailure) {
    if result < 0 { throw SystemFailure(call: call, number: -result) }
  }
}
