internal import Glibc
import VMFenceCore

/// Which process has a netlink socket, for an error that names it. Looked for only when something failed: it reads every process's descriptors.
enum NetlinkHolder {
  /// NETLINK_NETFILTER of linux/netlink.h.
  private static let netfilter = "12"
  private static let processLimit = 1 << 16
  private static let descriptorLimit = 4_096

  /// `vmfence-firewall (process 1234)`, escaped for display; nil when it is not found, in another container, say. `probably`, where nobody may look what the process of this number
  /// has open: such a process is one that nobody may trace.
  static func describe(port: UInt32) -> String? {
    guard let inode = inode(ofPort: port) else { return nil }
    let link = "socket:[\(inode)]"
    // Most have their process's number.
    if let process = has(port, link) ? port : processes().first(where: { has($0, link) }) { return name(of: process) }
    return canLook(into: port) ? nil : name(of: port).map { "probably \($0)" }
  }

  private static func name(of process: UInt32) -> String? {
    let name = read("/proc/\(process)/comm").split(separator: "\n").first
    return name.map { "\(String($0).escapedForDisplay) (process \(process))" }
  }

  private static func canLook(into process: UInt32) -> Bool {
    let folder = "/proc/\(process)/fd"
    return names(in: folder, limit: descriptorLimit).contains { target(of: "\(folder)/\($0)") != nil }
  }

  /// Fields of /proc/net/netlink: address, protocol, port, …, inode last.
  private static func inode(ofPort port: UInt32) -> Substring? {
    for line in read("/proc/thread-self/net/netlink").split(separator: "\n").dropFirst() {
      let fields = line.split(separator: " ")
      guard fields.count >= 10, fields[1] == netfilter, fields[2] == "\(port)" else { continue }
      return fields[fields.count - 1]
    }
    return nil
  }

  private static func has(_ process: UInt32, _ link: String) -> Bool {
    let folder = "/proc/\(process)/fd"
    return names(in: folder, limit: descriptorLimit).contains { target(of: "\(folder)/\($0)") == link }
  }

  private static func processes() -> [UInt32] { names(in: "/proc", limit: processLimit).compactMap { UInt32($0) } }

  private static func names(in folder: String, limit: Int) -> [String] {
    // SAFETY: opendir(3) reads the path up to its NUL; null is checked.
    guard let directory = unsafe opendir(folder) else { return [] }
    // SAFETY: opened above, closed once.
    defer { unsafe closedir(directory) }
    var names: [String] = []
    // SAFETY: the entry is valid until the next readdir(3), and its name ends in NUL.
    while names.count < limit, let entry = unsafe readdir(directory) {
      // SAFETY: as above; `d_name` has 256 bytes.
      let name = unsafe withUnsafeBytes(of: entry.pointee.d_name) { bytes in
        unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
      }
      names.append(name)
    }
    return names
  }

  private static func target(of path: String) -> String? {
    var buffer = [UInt8](repeating: 0, count: 64)
    let room = buffer.count
    // SAFETY: readlink(2) reads the path up to its NUL and writes at most `room` bytes, which the array has.
    let count = unsafe buffer.withUnsafeMutableBytes { bytes in
      unsafe readlink(path, bytes.baseAddress!.assumingMemoryBound(to: CChar.self), room)
    }
    return count > 0 ? String(decoding: buffer[..<count], as: UTF8.self) : nil
  }

  /// Up to 1 MiB of a file of proc(5); empty when it cannot be read.
  static func read(_ path: String) -> String {
    // SAFETY: open(2) reads the path up to its NUL.
    let descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return "" }
    defer { _ = close(descriptor) }
    var text: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 16 << 10)
    let room = buffer.count
    while text.count < 1 << 20 {
      // SAFETY: read(2) writes at most `room` bytes, which the array has.
      let count = unsafe buffer.withUnsafeMutableBytes { unsafe Glibc.read(descriptor, $0.baseAddress, room) }
      guard count > 0 else { break }
      text += buffer[..<count]
    }
    return String(decoding: text, as: UTF8.self)
  }
}
