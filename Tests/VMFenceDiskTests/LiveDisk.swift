#if Daemon
import Foundation
import Testing

struct Failure: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

/// Runs a shell command to its end.
@discardableResult
func shell(_ command: String, allowFailure: Bool = false) throws -> (status: Int32, output: String) {
  let process = Process()
  process.executableURL = URL(filePath: "/bin/sh")
  process.arguments = ["-c", "PATH=/usr/sbin:/sbin:$PATH; exec 2>&1; \(command)"]
  let pipe = Pipe()
  process.standardOutput = pipe
  process.standardInput = FileHandle.nullDevice
  try process.run()
  let data = try pipe.fileHandleForReading.readToEnd() ?? Data()
  process.waitUntilExit()
  let output = String(decoding: data, as: UTF8.self)
  guard allowFailure || process.terminationStatus == 0 else { throw Failure("\(command): \(output)") }
  return (process.terminationStatus, output)
}

/// The built vmfence-disk, beside the test runner or the bundle that it was given.
func programPath(_ name: String) throws -> String {
  let beside = URL(filePath: "/proc/self/exe").resolvingSymlinksInPath().deletingLastPathComponent()
  let bundles = CommandLine.arguments.filter { $0.hasSuffix(".xctest") }
    .map { URL(filePath: $0).deletingLastPathComponent() }
  for folder in [beside] + bundles {
    let path = folder.appending(path: name).path
    if FileManager.default.isExecutableFile(atPath: path) { return path }
  }
  throw Failure("\(name) was not built")
}

/// Waits for something that another process does; gives up after ten seconds.
func eventually(_ what: String, _ condition: () throws -> Bool) throws {
  for _ in 0..<1000 {
    if try condition() { return }
    usleep(10_000)
  }
  throw Failure("in vain: \(what)")
}

/// A disk image that vmfence-disk serves and this machine's kernel has mounted, as a guest would: server → nbdfuse → loop
/// device → the kernel's ext4 driver (which does ext2 and ext3, too).
final class LiveDisk {
  static let isPossible =
    geteuid() == 0 && FileManager.default.fileExists(atPath: "/dev/fuse")
    && FileManager.default.fileExists(atPath: "/dev/loop-control")

  let folder: String
  var image: String { "\(folder)/disk.img" }
  var socket: String { "\(folder)/nbd.sock" }
  var mount: String { "\(folder)/mnt" }
  var eve: String { "\(folder)/eve.json" }
  private(set) var server: Process?
  private var fuse: Process?
  private var loop: String?

  /// Makes the image, with files of known content, and everything that stands between it and the mount point.
  init(fileSystem: String, arguments: [String]) throws {
    folder = try shell("mktemp -d /tmp/vmfence-live.XXXXXX").output.trimmingCharacters(in: .whitespacesAndNewlines)
    try shell(
      """
      cd \(folder) && mkdir mnt fuse && mkdir -p seed/etc seed/boot && truncate -s 64M disk.img
      echo 'root:x:0:0' > seed/etc/passwd && chmod 644 seed/etc/passwd
      dd if=/dev/zero bs=64k count=4 status=none | tr '\\0' K > seed/boot/kernel
      touch fuse/disk
      mke2fs -q -F -t \(fileSystem) -d seed disk.img
      """)
    try start(arguments)
    try connect()
  }

  func start(_ arguments: [String]) throws {
    let process = Process()
    process.executableURL = URL(filePath: try programPath("vmfence-disk"))
    process.arguments = ["--disk", image, "--socket", socket, "--eve", eve, "--node", "test"] + arguments
    process.standardInput = FileHandle.nullDevice
    try process.run()
    server = process
    try eventually("the server listens") {
      guard process.isRunning else { throw Failure("the server ended: \(process.terminationStatus)") }
      return try shell("nbdinfo --size 'nbd+unix:///?socket=\(socket)'", allowFailure: true).status == 0
    }
  }

  func connect() throws {
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
    try shell("mount -t ext4 \(loop ?? "") \(mount)")
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

  /// Ends the server with SIGTERM.
  func stop() throws -> Int32 {
    guard let server else { throw Failure("no server") }
    server.terminate()
    try eventually("SIGTERM ends it") { !server.isRunning }
    self.server = nil
    return server.terminationStatus
  }

  func kill() {
    guard let server else { return }
    Foundation.kill(server.processIdentifier, SIGKILL)
    server.waitUntilExit()
    self.server = nil
  }

  deinit {
    disconnect()
    kill()
    _ = try? shell("rm -rf --one-file-system \(folder)", allowFailure: true)
  }

  struct FileEventLine {
    var operation: String
    var path: String
    var verdict: String
  }

  /// The file events told so far.
  func events() throws -> [FileEventLine] {
    try String(contentsOfFile: eve, encoding: .utf8).split(separator: "\n").compactMap { line in
      let object = try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
      guard let file = (object?["vmfence"] as? [String: Any])?["file"] as? [String: Any] else { return nil }
      return FileEventLine(
        operation: file["operation"] as? String ?? "", path: file["path"] as? String ?? "",
        verdict: file["verdict"] as? String ?? "")
    }
  }
}
#endif
