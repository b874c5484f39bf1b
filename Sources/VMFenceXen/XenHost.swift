internal import CXen
internal import Glibc
package import VMFenceCore

/// What this host says of its hypervisor, before anything of it is opened.
package struct XenHost: Hashable, Sendable {
  package var major: UInt32
  package var minor: UInt32

  /// Reads `/sys/hypervisor` and `/proc/xen/capabilities` (Documentation/ABI/stable/sysfs-hypervisor-xen of the kernel).
  ///
  /// - `root`: stands before both paths.
  /// - Throws: `unavailable` when there is no Xen, this is not the domain that controls it, or its release is not known.
  package static func find(root: String = "") throws(ProbeError) -> XenHost {
    guard let type = text(root + "/sys/hypervisor/type"), type == "xen" else {
      throw ProbeError(
        .unavailable, "there is no Xen here: /sys/hypervisor/type does not say `xen`",
        remedy: "run it in Dom0, or name an inventory file instead of Xen")
    }
    guard let capabilities = text(root + "/proc/xen/capabilities") else {
      throw ProbeError(
        .unavailable, "/proc/xen/capabilities cannot be read", remedy: "mount it: mount -t xenfs xenfs /proc/xen")
    }
    guard capabilities.split(separator: " ").contains("control_d") else {
      throw ProbeError(
        .unavailable, "this is a guest of Xen, and not the domain that controls it",
        remedy: "run it in Dom0; in a guest, vmfence-guest is the program to run")
    }
    guard let major = text(root + "/sys/hypervisor/version/major").flatMap({ UInt32($0) }),
      let minor = text(root + "/sys/hypervisor/version/minor").flatMap({ UInt32($0) })
    else {
      throw ProbeError(
        .unavailable, "Xen does not tell its release in /sys/hypervisor/version",
        remedy: "use a kernel with CONFIG_XEN_SYS_HYPERVISOR")
    }
    guard vmfence_xen_knows(major, minor) != 0 else { throw unknownRelease(major, minor) }
    return XenHost(major: major, minor: minor)
  }

  static func unknownRelease(_ major: UInt32, _ minor: UInt32) -> ProbeError {
    // SAFETY: a constant string that ends in zero.
    let known = unsafe String(cString: vmfence_xen_known_releases())
    return ProbeError(
      .unavailable, "this is Xen \(major).\(minor), whose interface is not known (known: \(known))",
      remedy: "use a release of VMFence that knows it, or one of the Xen releases that are known")
  }

  /// The first 256 bytes of a file without the space around them; nil when it cannot be read.
  private static func text(_ path: String) -> String? {
    // SAFETY: the path is handed over as a string that ends in zero and lives during the call.
    let file = unsafe open(path, O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { return nil }
    defer { close(file) }
    var buffer = [UInt8](repeating: 0, count: 256)
    // SAFETY: the buffer is valid for its count during the call.
    let count = unsafe buffer.withUnsafeMutableBytes { unsafe Glibc.read(file, $0.baseAddress, $0.count) }
    guard count >= 0 else { return nil }
    let text = String(decoding: buffer[..<count], as: UTF8.self)
    return text.split(whereSeparator: \.isWhitespace).joined(separator: " ")
  }
}
