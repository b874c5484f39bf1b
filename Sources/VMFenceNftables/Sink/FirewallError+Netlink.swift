internal import Glibc
import VMFenceCore

extension FirewallError {
  /// In the words of whoever has to mend it.
  init(_ error: NetlinkError, during action: String, table: String) {
    let place = "table bridge \(table)"
    switch error {
    case .refused(EPERM, _):
      self.init(
        .permissionDenied, "cannot \(action): this process lacks CAP_NET_ADMIN, or another process owns \(place)",
        remedy: "run as root or with the capability; see who owns the table with: nft list tables")
    case .held(let port):
      self.init(
        .permissionDenied,
        "cannot \(action): another process owns \(place) (netlink port \(port), mostly its process number)",
        remedy: "stop it: two processes cannot hold one table")
    case .refused(EOPNOTSUPP, _), .refused(EPROTONOSUPPORT, _), .socket(EPROTONOSUPPORT, _), .refused(EAFNOSUPPORT, _),
      .socket(EAFNOSUPPORT, _):
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

  static func words(_ error: NetlinkError) -> String {
    switch error {
    case .malformed(let what): "the kernel's answer has \(what)"
    case .refused(let number, let words):
      describeError(number) + (words.isEmpty ? "" : ": \(words.escapedForDisplay)")
    case .socket(let number, let what): "\(what): \(describeError(number))"
    case .held(let port): "owned by netlink port \(port)"
    case .interrupted: "interrupted"
    }
  }
}
