internal import CNftables
internal import Glibc
import VMFenceCore

extension FirewallError {
  /// In the words of whoever has to mend it.
  init(_ error: NetlinkError, during action: String, table: String) {
    let family: TableFamily = if case .held(_, let family) = error { family } else { .bridge }
    let place = "table \(family.name) \(table)"
    switch error {
    case .refused(EPERM, _), .socket(EPERM, _), .socket(EACCES, _): self = Self.notPermitted(action, place)
    case .held(let port, _):
      let holder = NetlinkHolder.describe(port: port) ?? "a process that cannot be seen from here, netlink port \(port)"
      self.init(
        .inUse, "cannot \(action): another process owns \(place): \(holder)",
        remedy:
          "stop it (a second vmfence-ref, or whoever made the table with `flags owner`), or give one of the two another table: "
          + "two processes cannot hold one")
    case .socket(EPROTONOSUPPORT, _), .socket(EAFNOSUPPORT, _):
      self.init(
        .unsupported, "cannot \(action): this kernel has no netfilter to speak with over netlink",
        remedy: "use a kernel with CONFIG_NETFILTER_NETLINK, CONFIG_NF_TABLES and CONFIG_NF_TABLES_BRIDGE")
    case .refused(EOPNOTSUPP, _), .refused(EPROTONOSUPPORT, _), .refused(EAFNOSUPPORT, _):
      self.init(
        .unsupported, "cannot \(action): this kernel has no nftables for bridges",
        remedy: "use a kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_BRIDGE")
    case .refused(ENOMEM, _), .refused(ENOBUFS, _), .refused(ENFILE, _), .refused(ENOSPC, _), .socket(ENOBUFS, _),
      .socket(ENOMEM, _), .socket(EMSGSIZE, _):
      self.init(
        .full, "cannot \(action): the kernel has no room for it (\(Self.words(error)))",
        remedy: "block networks instead of single addresses")
    case .interrupted:
      self.init(
        .failed, "cannot \(action): others keep changing the packet filter meanwhile", remedy: "it is tried again")
    default:
      self.init(.failed, "cannot \(action): \(Self.words(error))", remedy: "look at it with: nft list \(place)")
    }
  }

  private static func notPermitted(_ action: String, _ place: String) -> FirewallError {
    if vmfence_nft_may_administer() == 1 {
      return FirewallError(
        .permissionDenied,
        "cannot \(action): another process owns \(place), or the network namespace belongs to a user namespace in "
          + "which this process has no power",
        remedy: "see who owns the table with: nft list tables; start the process in the namespace's own user namespace")
    }
    return FirewallError(
      .permissionDenied, "cannot \(action): this process lacks the capability CAP_NET_ADMIN",
      remedy: "run it as root, or give it the capability (systemd: AmbientCapabilities=CAP_NET_ADMIN)")
  }

  static func words(_ error: NetlinkError) -> String {
    switch error {
    case .malformed(let what): "the kernel's answer has \(what)"
    case .refused(let number, let words):
      describeError(number) + (words.isEmpty ? "" : ": \(words.escapedForDisplay)")
    case .socket(let number, let what): "\(what): \(describeError(number))"
    case .held(let port, let family): "its table of family \(family.name) is owned by netlink port \(port)"
    case .interrupted: "interrupted"
    }
  }
}
