#if Daemon
import Foundation
import NetworkTestSupport
import TestSupport
import Testing

/// The daemon on a live link. Needs root: it makes network namespaces of its own and sends only between them.
@Suite("A live run over veth", .enabled(if: getuid() == 0, "needs root, to make network namespaces"), .serialized)
struct LiveRunTests {
  static func sh(_ command: String) throws {
    let process = Process()
    process.executableURL = URL(filePath: "/bin/sh")
    process.arguments = ["-ec", command]
    process.standardOutput = FileHandle.nullDevice
    try process.run()
    process.waitUntilExit()
    try #require(process.terminationStatus == 0, "\(command)")
  }

  private static let uuid = "6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0001"

  /// Makes the two namespaces, one the host with the other's vif in it, and the inventory that knows this guest.
  private func makeGuest(_ guest: String, of host: String, _ folder: TemporaryFolder) throws {
    try Self.sh(
      """
      ip netns add \(host); ip netns add \(guest)
      ip -n \(host) link add vif1.0 type veth peer name eth0 netns \(guest)
      ip -n \(guest) link set eth0 address 00:16:3e:00:00:01
      ip -n \(host) addr add 10.9.9.1/24 dev vif1.0; ip -n \(guest) addr add 10.9.9.2/24 dev eth0
      ip -n \(host) link set vif1.0 up; ip -n \(guest) link set eth0 up
      """)
    _ = try folder.write(
      "inventory.yaml",
      """
      version: 1
      domains:
        - name: guest
          uuid: \(Self.uuid)
          domid: 1
          ports: [{interface: vif1.0, mac: "00:16:3e:00:00:01", addresses: [10.9.9.2]}]
      """)
  }

  @Test("kill -9 of a detector in the middle costs no packet, is told, and another takes over")
  func killed() throws {
    let id = String(UUID().uuidString.prefix(6)).lowercased()
    let (host, guest) = ("vfh\(id)", "vfg\(id)")
    defer { try? Self.sh("ip netns del \(host); ip netns del \(guest)") }
    let folder = try TemporaryFolder()
    try makeGuest(guest, of: host, folder)
    _ = try folder.write(
      "live.rules", "alert icmp any any -> any any (msg:\"ping\"; itype:8; content:\"|DE AD BE EF|\"; sid:1000001;)\n")
    let config = try folder.write(
      "live.yaml", "version: 1\nrules: {dialect: snort2, common: live.rules}\ninventory: inventory.yaml\n")
    let errors = Pipe()
    let daemon = try Program.start(
      ["run", "--config", config, "--eve", folder.path("eve.json")], in: host, errors: errors, output: Pipe())
    defer { if daemon.isRunning { daemon.terminate() } }
    try eventually("the first event") { (try? EVELine.read(folder.path("eve.json")))?.isEmpty == false }

    func alerts() throws -> Int {
      try EVELine.read(folder.path("eve.json")).count { $0.alert?.signatureID == 1_000_001 }
    }
    try Self.sh("ip netns exec \(guest) ping -q -c 200 -i 0.005 -p deadbeef 10.9.9.1")
    try eventually("200 alerts") { try alerts() >= 200 }
    let detectors = try Program.children(of: daemon.processIdentifier, named: "vmfence-detecto")
    try #require(detectors.count == 1)
    // Stopped first, so that packets are waiting in its ring when it dies.
    kill(detectors[0], SIGSTOP)
    try Self.sh("ip netns exec \(guest) ping -q -c 100 -i 0.005 -p deadbeef 10.9.9.1")
    kill(detectors[0], SIGKILL)
    try Self.sh("ip netns exec \(guest) ping -q -c 100 -i 0.005 -p deadbeef 10.9.9.1")
    try eventually("400 alerts") { try alerts() >= 400 }
    kill(daemon.processIdentifier, SIGTERM)
    daemon.waitUntilExit()
    #expect(daemon.terminationStatus == 0)

    let lines = try EVELine.read(folder.path("eve.json"))
    let kinds = lines.compactMap(\.vmfence?.platform?.kind)
    #expect(kinds.filter { $0 == "detector-died" }.count == 1)
    #expect(kinds.filter { $0 == "detector-restarted" }.count == 1)
    #expect(lines.count { $0.alert?.signatureID == 1_000_001 } == 400)
    let said = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    let summary = try #require(said.split(separator: "\n").first { $0.contains("guest: ") }, "\(said)")
    #expect(summary.contains("1 detector restarts"))
    #expect(!summary.contains("not inspected"), "\(summary)")
  }

  @Test("what a flow has been, a detector of the next daemon knows; a damaged file is named and changes nothing")
  func stateOfDetectors() throws {
    let id = String(UUID().uuidString.prefix(6)).lowercased()
    let (host, guest) = ("vfs\(id)", "vft\(id)")
    defer { try? Self.sh("ip netns del \(host); ip netns del \(guest)") }
    let folder = try TemporaryFolder()
    try makeGuest(guest, of: host, folder)
    // The first ping marks the flow of all pings between these two; later ones are told of by the other rule.
    _ = try folder.write(
      "live.rules",
      """
      alert icmp any any -> any any (msg:"again"; itype:8; flowbits:isset,pinged; sid:2;)
      alert icmp any any -> any any (msg:"first"; itype:8; flowbits:isnotset,pinged; flowbits:set,pinged; sid:1;)

      """)
    let config = try folder.write(
      "live.yaml",
      "version: 1\nrules: {dialect: snort2, common: live.rules}\ninventory: inventory.yaml\nstate-directory: state\n")
    let state = folder.path("state/detectors/\(Self.uuid).state")

    /// The alerts of a daemon over one ping, and what it said.
    func runOnce(_ number: Int) throws -> (sids: [Int], said: String) {
      let eve = folder.path("eve\(number).json")
      let errors = Pipe()
      let daemon = try Program.start(
        ["run", "--config", config, "--eve", eve], in: host, errors: errors, output: Pipe())
      defer { if daemon.isRunning { daemon.terminate() } }
      try eventually("the first event") { (try? EVELine.read(eve))?.isEmpty == false }
      func sids() throws -> [Int] { try EVELine.read(eve).compactMap { $0.alert?.signatureID } }
      try eventually("an alert") {
        try Self.sh("ip netns exec \(guest) ping -q -c 1 10.9.9.1")
        return try !sids().isEmpty
      }
      kill(daemon.processIdentifier, SIGTERM)
      daemon.waitUntilExit()
      #expect(daemon.terminationStatus == 0)
      let said = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
      return (try sids(), said)
    }
    let first = try runOnce(1)
    #expect(first.sids.first == 1, "\(first)")
    #expect(FileManager.default.fileExists(atPath: state), "\(first)")
    let second = try runOnce(2)
    #expect(second.sids.allSatisfy { $0 == 2 }, "\(second)")
    #expect(second.said.contains("goes on with"), "\(second)")
    var bytes = try Data(contentsOf: URL(filePath: state))
    bytes[bytes.count - 1] ^= 1
    try bytes.write(to: URL(filePath: state))
    let third = try runOnce(3)
    #expect(third.sids.first == 1, "\(third)")
    #expect(third.said.contains("\(Self.uuid).state is damaged: the checksum"), "\(third)")
  }

  @Test(
    "what a server has read is told of although neither end says more",
    .enabled(
      if: FileManager.default.isExecutableFile(atPath: "/usr/bin/busybox"), "needs busybox (scripts/setup tests)"))
  func silentConnection() throws {
    let id = String(UUID().uuidString.prefix(6)).lowercased()
    let (host, guest) = ("vfq\(id)", "vfr\(id)")
    defer {
      // What the two shells started goes with them.
      for name in [host, guest] { try? Self.sh("ip netns pids \(name) | xargs -r kill -9; ip netns del \(name)") }
    }
    let folder = try TemporaryFolder()
    try makeGuest(guest, of: host, folder)
    _ = try folder.write(
      "live.rules",
      "alert tcp any any -> any 9000 (msg:\"read\"; flow:to_server,established; content:\"the needle\"; sid:1;)\n")
    let config = try folder.write(
      "live.yaml", "version: 1\nrules: {dialect: snort2, common: live.rules}\ninventory: inventory.yaml\n")
    let eve = folder.path("eve.json")
    let daemon = try Program.start(
      ["run", "--config", config, "--eve", eve], in: host, errors: Pipe(), output: Pipe())
    defer { if daemon.isRunning { daemon.terminate() } }
    try eventually("the first event") { (try? EVELine.read(eve))?.isEmpty == false }
    // A server that reads and never answers, and a client that says one thing and stays.
    let ends = [
      ("sleep 600 | nc -l -p 9000 >/dev/null", host), ("{ printf 'the needle'; sleep 600; } | nc 10.9.9.1 9000", guest),
    ]
    var started: [Process] = []
    defer { for process in started where process.isRunning { kill(process.processIdentifier, SIGTERM) } }
    for (command, place) in ends {
      let process = Process()
      process.executableURL = URL(filePath: "/bin/sh")
      process.arguments = ["-c", "exec ip netns exec \(place) busybox sh -c \"\(command)\""]
      process.standardOutput = FileHandle.nullDevice
      try process.run()
      started.append(process)
      try eventually("an end of the connection") {
        (try? NetworkNamespace.shell("ip netns exec \(place) ss -Htan | grep -E ':9000( |$)'")) != nil
      }
    }
    try eventually("the alert") { try EVELine.read(eve).contains { $0.alert?.signatureID == 1 } }
    let stands = started.allSatisfy { $0.isRunning }
    #expect(stands)
    kill(daemon.processIdentifier, SIGTERM)
    daemon.waitUntilExit()
    #expect(daemon.terminationStatus == 0)
    let alerts = try EVELine.read(eve).count { $0.alert?.signatureID == 1 }
    #expect(alerts == 1)
  }
}
#endif
