internal import CLinux
internal import Glibc
package import VMFenceCore

/// What a process gives up before it looks at the first byte that another wrote: the steps that all of ours take, with what differs. Irrevocable; the process has
/// one thread until it has taken them.
///
/// - Root, if it had it: it becomes another user, and with that loses every capability but those that are said; no program it might start could give one back.
/// - Its parent's death is its own, unless it is to outlive it. Nobody traces it, and it leaves no core.
/// - Open files and memory: bounded where that is said.
/// - Files by name and TCP ports: all, by Landlock, where the kernel has it.
/// - System calls: all that its filter does not let through.
struct Sandbox {
  static let nobody: UInt32 = 65534

  /// Whom it becomes if it is root.
  var user = nobody
  var group = nobody
  var endsWithParent = true
  /// What it keeps of root's power.
  var capabilities: Set<Capability> = []
  /// Descriptors, and bytes of private memory and of address space, that it may have at the most; nil: what it could before.
  var openFiles: UInt64?
  var memory: UInt64?
  var addressSpace: UInt64?

  /// Everything but system calls.
  ///
  /// - Returns: why Landlock is not in force; nil when it is. A filter that forbids opening files does all the same.
  /// - Throws: `failed`: a sandbox that is not there must not look like one that is.
  func giveUp() throws(DetectorError) -> String? {
    let kept = Capability.mask(of: capabilities)
    if geteuid() == 0 { try Self.need("give up root", vmfence_become(user, group, kept == 0 ? 0 : 1)) }
    try Self.need("give up capabilities", vmfence_hold_capabilities(kept))
    // A change of user clears this, so it comes after.
    if endsWithParent { try Self.need("end with its parent", vmfence_die_with_parent()) }
    try Self.need("forbid tracing", vmfence_not_dumpable())
    try Self.need("forbid core dumps", vmfence_limit(VMFENCE_LIMIT_CORE, 0))
    if let openFiles { try Self.need("bound its open files", vmfence_limit(VMFENCE_LIMIT_OPEN_FILES, openFiles)) }
    if let memory { try Self.need("bound its memory", vmfence_limit(VMFENCE_LIMIT_DATA, memory)) }
    if let addressSpace {
      try Self.need("bound its address space", vmfence_limit(VMFENCE_LIMIT_ADDRESS_SPACE, addressSpace))
    }
    try Self.need("renounce new privileges", vmfence_no_new_privileges())
    return vmfence_landlock_nothing() < 0 ? ErrorText.last() : nil
  }

  /// Everything.
  ///
  /// - `filter`: puts the system call filter in force; 0, or -1 with `errno`.
  func enter(_ filter: () -> Int32) throws(DetectorError) -> String? {
    let missing = try giveUp()
    try Self.need("filter system calls", filter())
    return missing
  }

  static func need(_ what: String, _ result: Int32) throws(DetectorError) {
    guard result < 0 else { return }
    throw DetectorError(
      .failed, "cannot \(what): \(ErrorText.last())", remedy: "a kernel with seccomp filters is needed, 5.4 or later")
  }
}

/// What the process of a policy channel gives up when the page is mapped, before it looks at its first word. What is left are its memory, its owner's socket, and
/// time.
package enum ChannelSandbox {
  /// - Throws: `failed`: without these nothing must be served.
  package static func enter() throws(DetectorError) {
    // Where the kernel has no Landlock, the filter forbids opening files all the same.
    _ = try Sandbox(openFiles: 16, memory: 64 << 20).enter { vmfence_seccomp_channel() }
  }
}

/// What the process that holds the hypervisor's handle gives up once it has opened it. What is left are its memory, its owner's socket, time, and hypercalls.
package enum HypervisorSandbox {
  /// - Throws: `failed`: without these nothing must be served.
  package static func enter() throws(DetectorError) {
    _ = try Sandbox(openFiles: 16, memory: 64 << 20).giveUp()
    // What libxenctrl would write there is for nobody.
    try Sandbox.need("leave standard error", vmfence_replace_descriptor(0, 2))
    try Sandbox.need("filter system calls", vmfence_seccomp_hypervisor())
  }
}

/// What the process that holds the packet filter gives up, in three steps, because the kernel asks for the capability at each change, and for another one when it opens the
/// socket by which resets are sent. What is left are its memory, its owner's socket, time, and the sockets to nf_tables and for resets.
package enum FirewallSandbox {
  /// Before it opens anything, while it has one thread.
  ///
  /// - Throws: `failed`: without these nothing must be served. So do the others.
  package static func giveUp() throws(DetectorError) {
    // As many measures as fit are read at once when the table is taken over.
    let sandbox = Sandbox(
      capabilities: [.administersNetwork, .opensPacketSockets], openFiles: 16, memory: 4 << 30)
    _ = try sandbox.giveUp()
  }

  /// When the socket for resets is open, while it has one thread.
  package static func keepPacketFilter() throws(DetectorError) { try Capability.keep(only: [.administersNetwork]) }

  /// When everything is open, for all threads.
  package static func filterSystemCalls() throws(DetectorError) {
    try Sandbox.need("leave standard error", vmfence_replace_descriptor(0, 2))
    try Sandbox.need("filter system calls", vmfence_seccomp_firewall())
  }
}

/// What the process that opens packet sockets gives up at its start. What is left are its memory, its owner's socket, time, and sockets of that kind, which receive nothing: it cannot
/// bind one, and reads from none but its owner's.
package enum CaptureSandbox {
  /// - Throws: `failed`: without these nothing must be served.
  package static func enter() throws(DetectorError) {
    _ = try Sandbox(capabilities: [.opensPacketSockets], openFiles: 16, memory: 64 << 20).enter {
      vmfence_seccomp_capture(HelperProcessEnd.socket)
    }
  }
}
