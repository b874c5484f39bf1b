#if Daemon
import Foundation
import TestSupport
import Testing
import VMFenceCore

/// A disk's process that has no descriptor left for who comes.
@Suite(.enabled(if: ServedImage.isPossible, "needs e2fsprogs, qemu-utils, libnbd-bin and python3"))
struct DescriptorTests {
  /// What a process has used of the processors, in hundredths of a second (proc(5), `utime` and `stime`).
  private static func processorTime(_ process: Int32) throws -> Int {
    let text = try String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8)
    let fields = text[(text.lastIndex(of: ")") ?? text.startIndex)...].split(separator: " ")
    return try #require(Int(fields[12])) + #require(Int(fields[13]))
  }

  @Test("waits, and does nothing else meanwhile; who has waited is served when there is one again")
  func waits() throws {
    let disk = try ServedImage()
    try disk.begin([])
    let needed = try #require(disk.server).processIdentifier
    let open = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(needed)/fd").count
    _ = try disk.stop()
    try disk.start(["--control", disk.control], openFiles: open + 2)
    let process = try #require(disk.server).processIdentifier
    var clients = try (0..<4).map { _ in try LocalSocket.connect(to: disk.socket, .stream) }
    clients += try (0..<2).map { _ in try LocalSocket.connect(to: disk.control, .stream) }
    defer { clients.forEach { close($0) } }
    usleep(200_000)
    let before = try Self.processorTime(process)
    sleep(2)
    #expect(try Self.processorTime(process) - before < 50, "of 200")
    clients.forEach { close($0) }
    clients.removeAll()
    try eventually("somebody is served again") {
      try shell("nbdinfo --size 'nbd+unix:///?socket=\(disk.socket)'", allowFailure: true).status == 0
    }
    try disk.end()
  }
}

/// A disk's process that is told to end.
@Suite(.enabled(if: ServedImage.isPossible, "needs e2fsprogs, qemu-utils, libnbd-bin and python3"))
struct EndTests {
  @Test("while it starts, which it listens before it has done: it ends then, and nobody has to say it again")
  func whileItStarts() throws {
    let disk = try ServedImage()
    let rules = "\(disk.folder)/files.rules"
    try (1...3000).map {
      "alert tcp any any -> any any (msg:\"m\"; content:\"text\($0)\"; pcre:\"/text\($0)[a-f]+/\"; sid:\($0);)\n"
    }.joined().write(toFile: rules, atomically: true, encoding: .utf8)
    let process = Process()
    process.executableURL = URL(filePath: try programPath("vmfence-disk"))
    process.arguments = [
      "--disk", disk.image, "--socket", disk.socket, "--eve", disk.eve, "--protect", "/boot/**", "--rules", rules,
    ]
    process.standardInput = FileHandle.nullDevice
    try process.run()
    defer { kill(process.processIdentifier, SIGKILL) }
    let deadline = ContinuousClock.now + waitLimit
    while !FileManager.default.fileExists(atPath: disk.socket), ContinuousClock.now < deadline { usleep(100) }
    process.terminate()
    try eventually("SIGTERM ends it") { !process.isRunning }
    #expect(process.terminationReason == .exit && process.terminationStatus == 0)
  }
}
#endif
