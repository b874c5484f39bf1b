#if Daemon
import Foundation
import TestSupport
import Testing

/// A small Linux of its own under QEMU, emulated, so that no hardware support is needed: Debian's kernel with busybox, which
/// runs a workload on virtio disks and ends.
final class Guest {
  enum Disk {
    /// Over its server's socket. `reconnects`: QEMU holds requests back, for as long as 300 s, while nobody answers there.
    case served(ServedDisk, reconnects: Bool)
    /// A raw image by itself.
    case image(String)
  }

  private static let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()
  private static let kernel = root.appending(path: ".build/guest-kernel").path

  /// Under CI a test that cannot run fails, instead of being skipped.
  static let isWanted = isPossible || ProcessInfo.processInfo.environment["CI"] != nil
  static let isPossible =
    FileManager.default.fileExists(atPath: kernel + "/base.cpio")
    && ["qemu-system-x86_64", "mke2fs", "cpio", "nbdinfo"].allSatisfy { name in
      ["/usr/bin/", "/usr/sbin/", "/bin/", "/sbin/"].contains {
        FileManager.default.isExecutableFile(atPath: $0 + name)
      }
    }
  static let needs: Comment =
    "needs qemu-system-x86, cpio, libnbd-bin, and scripts/guest-kernel run (scripts/setup tests)"

  private let process = Process()
  private let folder: String
  private var consolePath: String { "\(folder)/console" }

  /// `workload`: a shell script; the disks are /dev/vda, /dev/vdb and so on. `tree`: a folder whose content is added to the guest's root.
  init(_ disks: [Disk], workload: String, tree: String? = nil) throws {
    guard Self.isPossible else { throw Failure("no guest can be booted here: \(Self.needs)") }
    folder = try shell("mktemp -d /tmp/vmfence-guest.XXXXXX").output.trimmingCharacters(in: .whitespacesAndNewlines)
    try (Self.prologue + workload).write(toFile: "\(folder)/workload", atomically: false, encoding: .utf8)
    try shell(
      """
      cd \(folder) && echo workload | cpio -o -H newc --quiet > workload.cpio
      cat '\(Self.kernel)/base.cpio' workload.cpio > initramfs
      """)
    if let tree { try shell("cd \(tree) && find . | cpio -o -H newc --quiet -R 0:0 >> \(folder)/initramfs") }
    process.executableURL = URL(filePath: "/usr/bin/qemu-system-x86_64")
    process.arguments =
      [
        "-accel", "tcg", "-cpu", "max", "-m", tree == nil ? "192" : "768", "-nodefaults", "-no-user-config",
        "-no-reboot", "-display", "none",
        "-serial", "file:\(consolePath)", "-kernel", "\(Self.kernel)/vmlinuz", "-initrd", "\(folder)/initramfs",
        // The kernel looks for some milliseconds whether the timer ticks. On a busy host an emulated one may not, and without it nothing goes on.
        "-append", "console=ttyS0 loglevel=1 mitigations=off no_timer_check",
      ] + disks.enumerated().flatMap { Self.arguments($0.offset, $0.element) }
    process.standardInput = FileHandle.nullDevice
    try process.run()
  }

  private static func arguments(_ number: Int, _ disk: Disk) -> [String] {
    let back =
      switch disk {
      case .served(let disk, let reconnects):
        "driver=nbd,server.type=unix,server.path=\(disk.socket),reconnect-delay=\(reconnects ? 300 : 0)"
      // The host does not go down in a test: its disk, which others may keep busy, need not be waited for.
      case .image(let path): "driver=raw,cache.no-flush=on,file.driver=file,file.filename=\(path)"
      }
    return ["-blockdev", "\(back),node-name=disk\(number)", "-device", "virtio-blk-pci,drive=disk\(number)"]
  }

  /// What a workload says its results with: `try NAME COMMAND` tells the status, `tell NAME` tells what comes in, line by
  /// line. The kernel's own words are not on the console (`loglevel=1`), so they break no line.
  private static let prologue = """
    try() { name=$1; shift; sh -c "$*" >/tmp.out 2>&1; echo "result $name: $?"; }
    tell() { while read -r line; do echo "result $1: $line"; done; }
    attach() { mkdir -p /mnt/$1; mount -t $2 -o $3 /dev/$1 /mnt/$1; }

    """

  deinit {
    if process.isRunning {
      Foundation.kill(process.processIdentifier, SIGKILL)
      process.waitUntilExit()
    }
    _ = try? shell("rm -rf \(folder)")
  }

  var console: String { (try? String(decoding: Data(contentsOf: URL(filePath: consolePath)), as: UTF8.self)) ?? "" }

  /// Waits until the workload has said it.
  func waitFor(_ mark: String, sourceLocation: SourceLocation = #_sourceLocation) throws {
    // An emulated machine on a busy host: the longest workload takes two minutes on a host that has little else to do.
    try eventually(
      "the guest says \(mark)", within: .seconds(900), saying: { "its console: \(console)" },
      sourceLocation: sourceLocation
    ) {
      let isRunning = process.isRunning
      guard !console.contains(mark) else { return true }
      guard isRunning else { throw Failure("the guest ended without \(mark); its console: \(console)") }
      return false
    }
  }

  /// Waits for its end.
  ///
  /// - Returns: what was told, by name.
  func finish() throws -> [String: [String]] {
    try waitFor("guest: the workload ended")
    try eventually("the guest is off") { !process.isRunning }
    var results: [String: [String]] = [:]
    for line in console.split(whereSeparator: \.isNewline) {
      guard line.hasPrefix("result "), let colon = line.range(of: ": ") else { continue }
      results[String(line[..<colon.lowerBound].dropFirst(7)), default: []].append(String(line[colon.upperBound...]))
    }
    return results
  }
}
#endif
