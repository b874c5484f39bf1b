#if Daemon
import Foundation
import TestSupport
import Testing

/// A served disk that this machine's kernel has mounted, as a guest would: server → nbdfuse → loop device → the kernel's
/// ext4 driver (which does ext2 and ext3, too).
final class LiveDisk: ServedDisk {
  static let isPossible =
    geteuid() == 0 && FileManager.default.fileExists(atPath: "/dev/fuse")
    && FileManager.default.fileExists(atPath: "/dev/loop-control")

  var mount: String { "\(folder)/mnt" }
  private var fuse: Process?
  private var loop: String?

  init(format: String, mountOptions: String = "rw", arguments: [String]) throws {
    try super.init(format: format, arguments: arguments)
    try shell("mkdir \(mount) \(folder)/fuse && touch \(folder)/fuse/disk")
    try connect(mountOptions)
  }

  private func connect(_ mountOptions: String) throws {
    let process = Process()
    process.executableURL = URL(filePath: "/usr/bin/nbdfuse")
    process.arguments = ["\(folder)/fuse/disk", "nbd+unix:///?socket=\(socket)"]
    process.standardInput = FileHandle.nullDevice
    try process.run()
    fuse = process
    try eventually("nbdfuse shows the disk") {
      try shell("stat -c %s \(folder)/fuse/disk", allowFailure: true).output.hasPrefix("67108864")
    }
    loop = try shell("losetup --direct-io=on --find --show \(folder)/fuse/disk").output
      .trimmingCharacters(in: .whitespacesAndNewlines)
    try shell("mount -t ext4 -o \(mountOptions) \(loop ?? "") \(mount)")
  }

  /// Takes the mount away, whatever state the server is in.
  func disconnect() {
    _ = try? shell("umount \(mount) || umount -l \(mount)", allowFailure: true)
    if let loop { _ = try? shell("losetup -d \(loop)", allowFailure: true) }
    loop = nil
    _ = try? shell("umount \(folder)/fuse/disk || umount -l \(folder)/fuse/disk", allowFailure: true)
    if fuse?.isRunning == true { fuse?.terminate() }
    fuse?.waitUntilExit()
    fuse = nil
  }

  /// How many fast commits the kernel has made.
  func fastCommits() throws -> Int {
    let device = URL(filePath: loop ?? "").lastPathComponent
    let said = try shell("awk '$2 == \"commits\" {print $1}' /proc/fs/ext4/\(device)/fc_info").output
    return Int(said.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0
  }

  deinit { disconnect() }
}
#endif
