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
#endif
