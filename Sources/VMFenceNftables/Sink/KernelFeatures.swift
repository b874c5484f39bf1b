internal import Glibc
import VMFenceCore

/// What this kernel's nftables can. All of it is found out by transactions that the kernel checks and does not carry out.
/// The sets and drops that measures need always work where there is a table; these are what may come on top.
public struct KernelFeatures: Hashable, Sendable {
  /// A table can be owned and stays when its owner ends (`owner` with `persist`, Linux 6.9). Alone, `owner` is never used: the table would
  /// vanish with the process.
  public var canOwnTables: Bool
  /// `reject` in the bridge family (NFT_BRIDGE_REJECT).
  public var canRejectInBridge: Bool
  /// `meta ibrname` in the bridge family (NFT_BRIDGE_META).
  public var knowsBridgeNames: Bool
  /// `reject` in the netdev family (NFT_REJECT_NETDEV).
  public var canRejectInNetdev: Bool
  /// Chains at an interface's ingress (NETFILTER_INGRESS). Without them, a guest's frames to the bridge's own group addresses are not stopped
  /// (`SpoofingKind.mac`).
  public var hasIngressHook: Bool

  /// What is not stopped at guests' ports, and what helps; nil when all of it is.
  public var portProblem: String? {
    if hasIngressHook { return nil }
    return "this kernel has no ingress hook for interfaces: guests' frames to their bridge's own addresses are not "
      + "stopped (`ip link set BRIDGE type bridge no_linklocal_learn 1` keeps a guest from taking over another's "
      + "address by them)"
  }

  private static let table = "vmfence-probe"
  private static let ownerAndPersist: UInt32 = 6

  /// - Throws: when not even a table with a chain and a set can be made: without the permission, or without nftables.
  static func probe(
    _ socket: inout NetlinkSocket, _ batch: inout Batch
  ) throws(NetlinkError) -> KernelFeatures {
    do throws(NetlinkError) {
      try check(&socket, &batch, .bridge, flags: 0, nil)
    } catch .refused(ENOENT, _) {
      // What nf_tables says when it has no chains of this family.
      throw .refused(EOPNOTSUPP, "")
    }
    let reset = RuleSpecification("probe", "", tcp + [.reset])
    let bridge = RuleSpecification("probe", "", [.meta(.bridge, Register(0))])
    return KernelFeatures(
      canOwnTables: can(&socket, &batch, .bridge, flags: ownerAndPersist, nil),
      canRejectInBridge: can(&socket, &batch, .bridge, flags: 0, reset),
      knowsBridgeNames: can(&socket, &batch, .bridge, flags: 0, bridge),
      canRejectInNetdev: can(&socket, &batch, .netdev, flags: 0, reset),
      // Every network namespace has this interface.
      hasIngressHook: can(&socket, &batch, .netdev, flags: 0, PortRules.rule(in: "probe"), device: "lo"))
  }

  private static var tcp: [Expression] { [.meta(.transportProtocol, Register(0)), .equal(Register(0), [6])] }

  private static func can(
    _ socket: inout NetlinkSocket, _ batch: inout Batch, _ family: TableFamily, flags: UInt32,
    _ rule: RuleSpecification?,
    device: String? = nil
  ) -> Bool {
    do throws(NetlinkError) {
      try check(&socket, &batch, family, flags: flags, rule, device: device)
      return true
    } catch {
      return false
    }
  }

  private static func check(
    _ socket: inout NetlinkSocket, _ batch: inout Batch, _ family: TableFamily, flags: UInt32,
    _ rule: RuleSpecification?,
    device: String? = nil
  ) throws(NetlinkError) {
    batch.begin(family, table: table, sequence: socket.takeSequence(16))
    batch.addTable(flags: flags, comment: "")
    let base = device.map { _ in PortRules.base }
    batch.add(ChainSpecification(name: "probe", base: base), device: device)
    if let rule {
      batch.add(rule)
    } else if family == .bridge {
      batch.add(ChainSpecification(name: "forward", base: .init(hook: .forward, priority: Skeleton.priority)))
      batch.add(SetSpecification(name: "probe", kind: .counted, fields: [.interface, .v6], hasTimeouts: true))
    }
    try socket.send(batch, commits: false)
  }
}
