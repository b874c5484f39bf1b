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
  private static let bits: [(UInt32, XenStateTable.Flags)] = [
    (1 << 0, .dying), (1 << 2, .shutdown), (1 << 3, .paused), (1 << 4, .blocked), (1 << 5, .running),
  ]
  private static let hardwareBit: UInt32 = 1 << 1
  /// The reason of a shutdown: eight bits from here on.
  private static let reasonShift: UInt32 = 16

  /// - `xenFlags`: as the hypervisor gives them.
  /// - `cpuTime`: nanoseconds.
  init(_ incarnation: Incarnation, xenFlags: UInt32, cpuTime: UInt64) {
    self.incarnation = incarnation
    flags = []
    for (bit, flag) in Self.bits where xenFlags & bit != 0 { flags.insert(flag) }
    isHardwareVirtualised = xenFlags & Self.hardwareBit != 0
    // What a guest may have put there itself, and is not known, says nothing.
    let reason = UInt8(xenFlags >> Self.reasonShift & 0xFF)
    self.reason = flags.contains(.shutdown) ? .init(rawValue: reason) ?? .none : .none
    self.cpuTime = .nanoseconds(Int64(clamping: cpuTime))
  }

  /// The same as the hypervisor gives them, of what is known.
  var xenFlags: UInt32 {
    Self.bits.reduce(isHardwareVirtualised ? Self.hardwareBit : 0) { $0 | (flags.contains($1.1) ? $1.0 : 0) }
      | UInt32(reason.rawValue) << Self.reasonShift
  }

  init(_ domain: vmfence_xen_domain) {
    self.init(domain.incarnation, xenFlags: domain.flags, cpuTime: domain.cpu_time)
  }
}

extension vmfence_xen_domain {
  fileprivate var incarnation: Incarnation {
    let uuid = uuid
    // SAFETY: 16 bytes, which are copied.
    let (high, low) = unsafe withUnsafeBytes(of: uuid) {
      unsafe (
        UInt64(bigEndian: $0.loadUnaligned(as: UInt64.self)),
        UInt64(bigEndian: $0.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
      )
    }
    return Incarnation(uuid: DomainUUID(high: high, low: low), domainID: DomainID(domid))
  }
}

/// The verbs of the hypervisor that VMFence uses, and no other. Implementations are safe to use from any thread.
///
/// A verb names number and UUID, for numbers are given again: where the number is another's, nothing is done, and ESRCH is thrown.
package protocol XenHypervisor: Sendable {
  /// Domains from number `first` on, by rising numbers; `limit` at the most, and fewer only when there are no more.
  ///
  /// - `limit`: up to `XenDomain.listLimit`.
  func domains(from first: DomainID, limit: Int) throws(SystemFailure) -> [XenDomain]
  func pause(_ domain: Incarnation) throws(SystemFailure)
  func unpause(_ domain: Incarnation) throws(SystemFailure)
  /// Stops it at once, as if it had powered itself off.
  func powerOff(_ domain: Incarnation) throws(SystemFailure)
  func destroy(_ domain: Incarnation) throws(SystemFailure)
}

extension XenDomain {
  /// Domains of one list.
  package static let listLimit = 1024
  /// More domains than Xen can number are not taken (DOMID_FIRST_RESERVED of xen/include/public/xen.h).
  package static let numberLimit: UInt32 = 0x7FF0
}

extension XenHypervisor {
  /// All domains besides Dom0, by rising numbers.
  package func domains() throws(SystemFailure) -> [XenDomain] {
    var found: [XenDomain] = []
    var next: UInt32 = 1
    while next < XenDomain.numberLimit {
      let part = try domains(from: DomainID(next), limit: XenDomain.listLimit)
      if found.isEmpty { found = part } else { found += part }
      guard part.count == XenDomain.listLimit, let last = part.last else { break }
      next = last.incarnation.domainID.rawValue + 1
    }
    return found
  }

  /// The domain with this number; nil when there is none.
  package func domain(_ number: DomainID) throws(SystemFailure) -> XenDomain? {
    try domains(from: number, limit: 1).first { $0.incarnation.domainID == number }
  }
}

/// Why libxenctrl cannot be used.
package struct XenOpeningFailure: Error, Hashable {
  /// VMFENCE_XEN_*.
  package var problem: UInt32
  /// An errno value, or 0.
  package var number: CInt
  /// The release of the hypervisor that was found.
  package var major: UInt32
  package var minor: UInt32

  package init(problem: UInt32, number: CInt, major: UInt32, minor: UInt32) {
    self.problem = problem
    self.number = number
    self.major = major
    self.minor = minor
  }

  package var probeError: ProbeError {
    switch problem {
    case VMFENCE_XEN_UNKNOWN_RELEASE.rawValue: return XenHost.unknownRelease(major, minor)
    case VMFENCE_XEN_NO_LIBRARY.rawValue:
      return ProbeError(
        .unavailable, "libxenctrl.so.\(major).\(minor) cannot be opened",
        remedy: "install the Xen utilities of this host's Xen release")
    default:
      if number == EACCES || number == EPERM {
        return ProbeError(
          .permissionDenied, "the hypervisor cannot be reached: \(describeError(number)) (/dev/xen/privcmd)",
          remedy: "run it as root, or give it access to /dev/xen/privcmd")
      }
      return ProbeError(
        .unavailable, "the hypervisor cannot be reached: \(describeError(number))",
        remedy: "load the kernel module xen-privcmd")
    }
  }
}

/// The real one, by libxenctrl in this process.
@safe package final class XenInterface: XenHypervisor {
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
    do throws(XenOpeningFailure) { return try opening(on: host) } catch { throw error.probeError }
  }

  package static func opening(on host: XenHost) throws(XenOpeningFailure) -> XenInterface {
    // SAFETY: numbers go in; the handle that comes of it is checked for nil, and ours.
    let opening = unsafe vmfence_xen_open(host.major, host.minor)
    if let xen = unsafe opening.xen { return unsafe XenInterface(Handle(xen: xen)) }
    throw unsafe XenOpeningFailure(
      problem: opening.problem.rawValue, number: opening.error, major: opening.major, minor: opening.minor)
  }

  package func domains(from first: DomainID, limit: Int) throws(SystemFailure) -> [XenDomain] {
    let capacity = min(max(limit, 0), XenDomain.listLimit)
    var buffer = [vmfence_xen_domain](repeating: vmfence_xen_domain(), count: capacity)
    // SAFETY: the handle is open; at most `capacity` elements are written.
    let count = handle.withLock { unsafe vmfence_xen_list($0.xen, first.rawValue, &buffer, UInt32(capacity)) }
    guard count >= 0 else { throw SystemFailure(call: "list the domains", number: -count) }
    return buffer.prefix(Int(count)).map { XenDomain($0) }
  }

  // SAFETY (all four): the handle is open, and the functions take numbers only.
  package func pause(_ domain: Incarnation) throws(SystemFailure) {
    try act(domain, "pause a domain") { unsafe vmfence_xen_pause($0.xen, $1) }
  }
  package func unpause(_ domain: Incarnation) throws(SystemFailure) {
    try act(domain, "resume a domain") { unsafe vmfence_xen_unpause($0.xen, $1) }
  }
  package func powerOff(_ domain: Incarnation) throws(SystemFailure) {
    try act(domain, "power a domain off") { unsafe vmfence_xen_power_off($0.xen, $1) }
  }
  package func destroy(_ domain: Incarnation) throws(SystemFailure) {
    try act(domain, "destroy a domain") { unsafe vmfence_xen_destroy($0.xen, $1) }
  }

  private func act(
    _ domain: Incarnation, _ call: String, _ body: (Handle, UInt32) -> CInt
  ) throws(SystemFailure) {
    let result = handle.withLock { handle -> CInt in
      guard domain.domainID != .dom0 else { return -ESRCH }
      var found = vmfence_xen_domain()
      // SAFETY: the handle is open; one element is written.
      let count = unsafe vmfence_xen_list(handle.xen, domain.domainID.rawValue, &found, 1)
      guard count >= 0 else { return count }
      return count == 1 && found.incarnation == domain ? body(handle, domain.domainID.rawValue) : -ESRCH
    }
    if result < 0 { throw SystemFailure(call: call, number: -result) }
  }
}
