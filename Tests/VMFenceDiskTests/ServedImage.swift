#if Daemon
import Foundation

/// A served disk to which clients of others write: no kernel of a guest, so no root is needed.
final class ServedImage: ServedDisk {
  static let isPossible = ["mke2fs", "debugfs", "e2fsck", "qemu-io", "nbdinfo", "nbdcopy", "python3"].allSatisfy {
    name in
    ["/usr/sbin/", "/sbin/", "/usr/bin/"].contains { FileManager.default.isExecutableFile(atPath: $0 + name) }
  }

  var control: String { "\(folder)/control.sock" }
  var kept: String { "\(folder)/kept" }

  init(_ options: String = "-t ext4 -b 1024") throws { try super.init(format: options) }

  /// With a control socket.
  func begin(_ arguments: [String]) throws { try start(["--control", control] + arguments) }

  func end() throws {
    let status = try stop()
    guard status == 0 else { throw Failure("the server ended with \(status)") }
  }

  private func command(_ commands: [String]) -> String {
    "qemu-io -f raw -t writeback nbd:unix:\(socket) " + commands.map { "-c '\($0)'" }.joined(separator: " ")
  }

  /// What QEMU's NBD client says of commands of qemu-io.
  func io(_ commands: String...) throws -> String { try io(commands: commands) }
  func io(commands: [String]) throws -> String { try shell(command(commands), allowFailure: true).output }

  /// The same while the test goes on.
  func beginIO(_ commands: String...) throws -> (process: Process, output: Pipe) {
    let process = Process()
    process.executableURL = URL(filePath: "/bin/sh")
    process.arguments = ["-c", "exec 2>&1; " + command(commands)]
    let pipe = Pipe()
    process.standardOutput = pipe
    process.standardInput = FileHandle.nullDevice
    try process.run()
    return (process, pipe)
  }

  /// `vmfence-ref integrity …`
  func integrity(_ arguments: String...) throws -> (status: Int32, output: String) {
    let words = [try programPath("vmfence-ref"), "integrity"] + arguments
    return try shell(words.map { "'\($0)'" }.joined(separator: " "), allowFailure: true)
  }

  /// Where the first block of a file lies, in bytes.
  func place(of path: String) throws -> Int {
    let output = try shell("debugfs -R 'blocks \(path)' \(image) 2>/dev/null").output
    let size = try shell("dumpe2fs -h \(image) 2>/dev/null | awk '/^Block size/ {print $3}'").output
    guard let block = output.split(separator: " ").first.flatMap({ Int($0) }),
      let bytes = Int(size.trimmingCharacters(in: .whitespacesAndNewlines))
    else { throw Failure("no blocks of \(path): \(output)") }
    return block * bytes
  }

  func contents(of path: String) throws -> Data {
    try shell("debugfs -R 'dump \(path) \(folder)/out' \(image)")
    return try Data(contentsOf: URL(filePath: "\(folder)/out"))
  }

  func verdicts() throws -> [String] { try events().map { "\($0.operation) \($0.path) \($0.verdict)" } }

  /// A transaction that debugfs writes into the journal of a copy, as the writes that a guest would send: what differs, the commit
  /// block last. It makes /etc/passwd 0666.
  func transaction(checksums: String) throws -> [String] {
    try shell(
      """
      cd \(folder) && cp disk.img changed.img && cp disk.img journal.img
      debugfs -w -R 'sif /etc/passwd mode 0100666' changed.img
      block=$(debugfs -R 'imap /etc/passwd' disk.img | sed -n 's/.*located at block \\([0-9]*\\),.*/\\1/p')
      dd if=changed.img of=block bs=1024 skip=$block count=1 status=none
      printf 'jo %s\\njw -b %s block\\njc\\n' '\(checksums)' $block | debugfs -w -f - journal.img
      """)
    let before = try Data(contentsOf: URL(filePath: image))
    let after = try Data(contentsOf: URL(filePath: "\(folder)/journal.img"))
    var commands: [String] = []
    for block in 0..<before.count / 1024 {
      let new = after[block * 1024..<(block + 1) * 1024]
      guard new != before[block * 1024..<(block + 1) * 1024] else { continue }
      try new.write(to: URL(filePath: "\(folder)/write\(block)"))
      commands.append("write -s \(folder)/write\(block) \(block * 1024) 1024")
    }
    guard commands.count >= 5 else { throw Failure("debugfs wrote no transaction") }
    return commands
  }
}
#endif
