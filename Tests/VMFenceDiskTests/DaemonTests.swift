#if Daemon
import Foundation
import TestSupport
import Testing
import VMFenceCore

/// The daemon beside the process of a disk.
@Suite(.enabled(if: ServedImage.isPossible, "needs e2fsprogs, qemu-utils, libnbd-bin and python3"))
struct DaemonTests {
  /// The daemon, and what it did to domains, as the programs wrote it down that stand for the hypervisor.
  private final class Daemon {
    let disk: ServedImage
    private var process: Process?
    private let port: Int
    var eve: String { "\(disk.folder)/daemon.json" }

    init(_ disk: ServedImage, policy: String = "{}") throws {
      self.disk = disk
      port = try Self.freePort()
      let act = "echo $0 {name} >> \(disk.folder)/acts"
      try """
      version: 1
      inventory: inventory.yaml
      state-directory: state
      firewall: {kind: none}
      detectors: thread
      policy: \(policy)
      metrics: {port: \(port)}
      control:
        pause: [/bin/sh, -c, "\(act)", pause]
        resume: [/bin/sh, -c, "\(act)", resume]
      disks:
        - {name: web, control: control.sock}
      """.write(toFile: "\(disk.folder)/host.yaml", atomically: true, encoding: .utf8)
      try """
      version: 1
      domains: [{name: web, uuid: 6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0001, domid: 1}]
      """.write(toFile: "\(disk.folder)/inventory.yaml", atomically: true, encoding: .utf8)
      try start()
    }

    /// One that nobody listens on, below those that the kernel gives out.
    private static func freePort() throws -> Int {
      var port = 0
      try eventually("a port is free") {
        port = .random(in: 20_000..<30_000)
        let listener = try? NetworkSocket.listen(address: "127.0.0.1", port: UInt16(port)).descriptor
        if let listener { close(listener) }
        return listener != nil
      }
      return port
    }

    func start() throws {
      let process = Process()
      process.executableURL = URL(filePath: try programPath("vmfence-ref"))
      process.arguments = ["run", "--config", "\(disk.folder)/host.yaml", "--eve", eve]
      process.standardInput = FileHandle.nullDevice
      try process.run()
      self.process = process
    }

    func kill() {
      guard let process else { return }
      Foundation.kill(process.processIdentifier, SIGKILL)
      process.waitUntilExit()
      self.process = nil
    }

    func acts() -> String { (try? String(contentsOfFile: "\(disk.folder)/acts", encoding: .utf8)) ?? "" }

    /// The measures that the policy took, as its rule and what is done. A line that is being written is none yet.
    func measures() throws -> [String] {
      let text = (try? String(contentsOfFile: eve, encoding: .utf8)) ?? ""
      let lines = text[..<(text.lastIndex(of: "\n") ?? text.startIndex)].split(separator: "\n")
      return try lines.compactMap { line in
        let object = try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
        let decision = (object?["vmfence"] as? [String: Any])?["decision"] as? [String: Any]
        return decision.map { decision in
          ["policy", "measure", "trigger", "status"].map { decision[$0] as? String ?? "" }.joined(separator: " ")
        }
      }
    }

    /// A metric of the guest.
    func metric(_ name: String) throws -> Int? {
      let (process, pipe) = (Process(), Pipe())
      process.executableURL = URL(filePath: "/usr/bin/curl")
      process.arguments = ["-s", "-m", "60", "http://127.0.0.1:\(port)/metrics"]
      process.standardOutput = pipe
      try process.run()
      let text = String(decoding: try pipe.fileHandleForReading.readToEnd() ?? Data(), as: UTF8.self)
      process.waitUntilExit()
      let line = text.split(separator: "\n").first { $0.hasPrefix("\(name){vm=\"web\"") }
      return line?.split(separator: " ").last.flatMap { Int($0) }
    }

    func says(_ text: String) -> Bool { (try? String(contentsOfFile: eve, encoding: .utf8))?.contains(text) == true }

    deinit { kill() }
  }

  @Test func theGuestIsPausedUntilSomebodyDecides() throws {
    let disk = try ServedImage()
    let place = try disk.place(of: "/boot/kernel")
    let daemon = try Daemon(disk)
    // The process comes after the daemon.
    try disk.begin(["--freeze", "/boot/**"])
    let (writer, pipe) = try disk.beginIO("write -P 0x41 \(place) 4k", "flush")
    try eventually("the guest is paused") { daemon.acts() == "pause web\n" && daemon.says("domain-frozen") }
    try eventually("it is told why") { daemon.says("/boot/kernel") }
    #expect(writer.isRunning)
    // Who paused it, a daemon that is started anew knows.
    daemon.kill()
    try daemon.start()
    let (_, json) = try disk.integrity("held", "web", "--control", disk.control, "--json")
    let status = try JSONSerialization.jsonObject(with: Data(json.utf8)) as? [String: Any]
    let request = try #require((status?["held"] as? [String: Any])?["request"] as? Int)
    #expect(try disk.integrity("decide", "web", "\(request)", "deny", "--control", disk.control).status == 0)
    _ = try pipe.fileHandleForReading.readToEnd()
    writer.waitUntilExit()
    try eventually("the guest runs again") {
      daemon.acts() == "pause web\nresume web\n" && daemon.says("domain-thawed")
    }
    // A process that dies while it holds a request: the next one shows it again, or nobody does.
    try disk.end()
    #expect(try disk.verdicts() == ["write /boot/kernel hold", "write /boot/kernel deny"])
  }

  @Test(
    "A change to a protected file counts for the policy, of which a daemon learns that was not there: it tells of the first, and pauses the guest at the next"
  )
  func changesOfFilesLeadToMeasures() throws {
    let disk = try ServedImage()
    let place = try disk.place(of: "/boot/kernel")
    let daemon = try Daemon(
      disk,
      policy: """
        {destructive: allowed, rules: [{name: kernel, when: {files: [write]}, count: {per: domain, at-least: 1}, \
        ladder: [{notify: true}, {pause: true}]}]}
        """)
    daemon.kill()
    try disk.begin(["--protect", "/boot/**", "--domain", "6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0001"])
    func write(_ value: Int) throws {
      let before = try disk.verdicts().count
      _ = try disk.io("write -P \(value) \(place) 4k", "flush")
      try eventually("the disk's process tells of it") { try disk.verdicts().count == before + 1 }
    }
    try write(1)
    try daemon.start()
    try eventually("the first is told") { try daemon.measures().count == 1 }
    daemon.kill()
    try write(2)
    // It was told of the first already.
    try daemon.start()
    try eventually("the guest is paused, and that is told") {
      try daemon.acts().hasPrefix("pause web\n") && daemon.measures().count == 2
    }
    #expect(
      try daemon.measures() == [
        "kernel notify file write /boot/kernel enforced", "kernel pause file write /boot/kernel enforced",
      ])
    #expect(daemon.says("vmfence_file") && daemon.says("\"name\":\"web\""))
    try eventually("the metrics count it") { try daemon.metric("vmfence_file_events_total") == 1 }
    try disk.end()
  }
}
#endif
