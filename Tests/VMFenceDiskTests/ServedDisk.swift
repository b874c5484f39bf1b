#if Daemon
import Foundation
import TestSupport
import Testing

/// A disk image with files of known content, and the vmfence-disk that serves it.
class ServedDisk {
  let folder: String
  var image: String { "\(folder)/disk.img" }
  var socket: String { "\(folder)/nbd.sock" }
  var eve: String { "\(folder)/eve.json" }
  private(set) var server: Process?

  /// `format`: what mke2fs is told. `arguments`: of the server; without them it is started later.
  init(format: String, arguments: [String]? = nil) throws {
    folder = try shell("mktemp -d /tmp/vmfence-live.XXXXXX").output.trimmingCharacters(in: .whitespacesAndNewlines)
    try shell(
      """
      cd \(folder) && mkdir -p seed/etc seed/boot && truncate -s 64M disk.img
      echo 'root:x:0:0' > seed/etc/passwd && chmod 644 seed/etc/passwd
      dd if=/dev/zero bs=64k count=4 status=none | tr '\\0' K > seed/boot/kernel
      mke2fs -q -F \(format) -d seed disk.img
      """)
    if let arguments { try start(arguments) }
  }

  /// - `openFiles`: how many descriptors it may have.
  func start(_ arguments: [String], openFiles: Int? = nil) throws {
    let process = Process()
    let program = try programPath("vmfence-disk")
    let all = ["--disk", image, "--socket", socket, "--eve", eve, "--node", "test"] + arguments
    if let openFiles {
      process.executableURL = URL(filePath: "/bin/sh")
      process.arguments = ["-c", "ulimit -n \(openFiles); exec \"$0\" \"$@\"", program] + all
    } else {
      process.executableURL = URL(filePath: program)
      process.arguments = all
    }
    process.standardInput = FileHandle.nullDevice
    try process.run()
    server = process
    try eventually("the server listens") {
      guard process.isRunning else { throw Failure("the server ended: \(process.terminationStatus)") }
      return try shell("nbdinfo --size 'nbd+unix:///?socket=\(socket)'", allowFailure: true).status == 0
    }
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
    kill()
    _ = try? shell("rm -rf --one-file-system \(folder)", allowFailure: true)
  }

  /// What e2fsck finds wrong, without mending it; empty when nothing is. A journal that was not replayed counts as nothing.
  func inconsistencies() throws -> String {
    let (status, output) = try shell("e2fsck -fn \(image)", allowFailure: true)
    return status == 0 ? "" : output
  }

  struct FileEventLine: CustomStringConvertible {
    var operation: String
    var path: String
    var oldPath: String?
    var verdict: String
    var isAnnounced: Bool
    var description: String { "\(operation) \(path)" }
  }

  /// The file events told so far, but for one that only completes the one before it: contents that a guest made durable a
  /// commit after the name are told as a second event (ext4's delayed allocation, at the whim of the guest's kernel).
  ///
  /// - `hasJournal`: without, nothing but the time between says what belongs together, and a busy machine takes longer between an inode and its data, in either order, than the
  ///   monitor waits: then an append is a longer size and a write, and new times come by themselves.
  func told(hasJournal: Bool = true) throws -> [String] {
    let events = try events()
    let all = zip(events, [nil] + events.dropLast().map(Optional.some)).compactMap { event, before in
      let completes =
        ["write", "append"].contains(event.operation) && before?.path == event.path
        && ["create", "replace"].contains(before?.operation)
      return completes ? nil : event
    }
    guard !hasJournal else { return all.map(\.description) }
    let changing = ["write", "append", "create", "replace"]
    func isChanged(_ path: String, at index: Int) -> Bool {
      all.indices.contains(index) && all[index].path == path && changing.contains(all[index].operation)
    }
    var told: [FileEventLine] = []
    for (index, event) in all.enumerated() {
      if event.operation == "times", isChanged(event.path, at: index - 1) || isChanged(event.path, at: index + 1) {
        continue
      }
      if event.operation == "write", let last = told.last, last.path == event.path, last.operation == "truncate" {
        told[told.count - 1].operation = "append"
      } else {
        told.append(event)
      }
    }
    return told.map(\.description)
  }

  /// The file events told so far. A line that is being written is none yet.
  func events() throws -> [FileEventLine] {
    let text = try String(contentsOfFile: eve, encoding: .utf8)
    return try text[..<(text.lastIndex(of: "\n") ?? text.startIndex)].split(separator: "\n").compactMap { line in
      let object = try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
      guard let file = (object?["vmfence"] as? [String: Any])?["file"] as? [String: Any] else { return nil }
      return FileEventLine(
        operation: file["operation"] as? String ?? "", path: file["path"] as? String ?? "",
        oldPath: file["old_path"] as? String, verdict: file["verdict"] as? String ?? "",
        isAnnounced: file["announced"] as? Bool ?? false)
    }
  }
}

/// What a guest does in these tests, and what must be told of it.
enum Workload {
  static let watched = ["--protect", "/etc/**", "--deny", "/boot/**"]

  /// Each is done in the root of the file system and followed by a sync.
  static let steps: [(command: String, told: [String])] = [
    ("echo attacker:x:0:0 >> etc/passwd", ["append /etc/passwd"]),
    ("chmod 666 etc/passwd", ["chmod /etc/passwd"]),
    ("chown 7:8 etc/passwd", ["chown /etc/passwd"]),
    ("printf R | dd of=etc/passwd bs=1 seek=3 conv=notrunc 2>/dev/null", ["write /etc/passwd"]),
    ("echo x > etc/new", ["create /etc/new"]),
    ("mv etc/new etc/newer", ["rename /etc/newer"]),
    ("mkdir etc/dir", ["create /etc/dir"]),
    ("rm etc/newer", ["unlink /etc/newer"]),
    ("ln etc/passwd etc/second", ["link /etc/second"]),
    ("rm etc/second", ["unlink /etc/second"]),
    ("echo y > other && mv other etc/passwd", ["replace /etc/passwd"]),
    ("ln -s passwd etc/link", ["create /etc/link"]),
    ("rmdir etc/dir", ["rmdir /etc/dir"]),
    (": > etc/passwd", ["truncate /etc/passwd"]),
    ("dd if=/dev/zero of=unwatched bs=64k count=20 2>/dev/null", []),
  ]

  static var told: [String] { steps.flatMap(\.told) }
}
#endif
