#if Daemon
import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceControl

/// A guest that makes more alerts than can be told, beside one that makes a few.
@Suite(
  "A flood of one guest's alerts, over veth", .enabled(if: NetworkNamespace.isPossible, "\(NetworkNamespace.reason)"))
struct FloodTests {
  private static func frame(from number: UInt8, port: UInt16 = 1000) -> [UInt8] {
    [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x00, 0x16, 0x3E, 0x00, 0x00, number, 0x08, 0x00]
      + [0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, number, 2, 10, 9, number, 1]
      + [UInt8(port >> 8), UInt8(port & 0xFF), 0x00, 0x09, 0x00, 0x09, 0x00, 0x00, 0x78]
  }

  /// Each guest at a port of the host, and a rule that its frames match.
  ///
  /// - Returns: the path of the configuration.
  private static func configure(
    _ folder: TemporaryFolder, _ host: NetworkNamespace, _ guests: [NetworkNamespace], _ more: String
  ) throws -> String {
    var domains = ""
    for (index, guest) in guests.enumerated() {
      let number = index + 1
      try host.run(
        "ip link add vif\(number).0 type veth peer name eth0 netns \(guest.name); ip link set vif\(number).0 up")
      try guest.run("ip link set eth0 address 00:16:3e:00:00:0\(number); ip link set eth0 up")
      domains += """

          - name: guest\(number)
            uuid: 6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f000\(number)
            domid: \(number)
            ports: [{interface: vif\(number).0, mac: "00:16:3e:00:00:0\(number)"}]
        """
    }
    _ = try folder.write("inventory.yaml", "version: 1\ndomains:" + domains)
    _ = try folder.write(
      "live.rules", "alert udp any any -> any 9 (msg:\"m\"; content:\"x\"; classtype:misc-attack; sid:1;)\n")
    return try folder.write(
      "live.yaml",
      """
      version: 1
      rules: {dialect: snort2, common: live.rules}
      inventory: inventory.yaml
      inspection: {verify-checksums: no}
      firewall: {kind: none}
      \(more)
      """)
  }

  @Test("a place where nobody is keeps all that is told of the other guest, and what is lost is counted by guest")
  func shared() throws {
    let host = try NetworkNamespace("host")
    let guests = try (1...2).map { try NetworkNamespace("guest\($0)") }
    try host.run("ip link set lo up")
    let folder = try TemporaryFolder()
    let config = try Self.configure(
      folder, host, guests,
      "control-socket: control.sock\nmetrics: {}\nnotifications: [{eve-socket: nobody.sock, queue: 200}]\n")
    let eve = folder.path("eve.json")
    let daemon = try Program.start(
      ["run", "--config", config, "--eve", eve], in: host.name, errors: Pipe(), output: Pipe())
    defer { if daemon.isRunning { daemon.terminate() } }
    try eventually("the first event") { (try? EVELine.read(eve))?.isEmpty == false }

    func alerts(_ name: String) throws -> UInt64 {
      try ControlClient(path: folder.path("control.sock")).ask(ControlRequest(.domains), [DomainStatus].self)
        .first { $0.name == name }?.alerts ?? 0
    }
    let (noisy, quiet) = (try PacketEndpoint(guests[0]), try PacketEndpoint(guests[1]))
    for _ in 0..<2000 { try noisy.send(Self.frame(from: 1)) }
    try eventually("the flood is seen") { try alerts("guest1") >= 1000 }
    for _ in 0..<50 { try quiet.send(Self.frame(from: 2)) }
    try eventually("the other guest's alerts") { try alerts("guest2") == 50 }

    func metric(_ name: String, of guest: Int, _ label: String) throws -> Int? {
      let text = try host.run("curl -s http://127.0.0.1:9477/metrics")
      let uuid = "6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f000\(guest)"
      let lines = text.split(separator: "\n").filter {
        $0.hasPrefix("vmfence_\(name)_total{vm=\"guest\(guest)\",uuid=\"\(uuid)\",\(label)} ")
      }
      #expect(lines.count < 2)
      return lines.first?.split(separator: " ").last.flatMap { Int($0) }
    }
    func lost(_ guest: Int) throws -> Int? { try metric("vm_events_lost", of: guest, "queue=\"places\"") }
    // They are made once a second: those of a moment ago may not know of the other guest's alerts.
    try eventually("the metrics say what was lost, and what was found") {
      try lost(1) ?? 0 >= 500 && metric("alerts", of: 2, "classtype=\"misc-attack\"") == 50
    }
    #expect(try lost(2) == 0)
    #expect(try metric("capture_packets", of: 2, "vif=\"vif2.0\"") ?? 0 >= 50)
    #expect(try metric("capture_bytes", of: 2, "vif=\"vif2.0\"") ?? 0 >= 50 * 43)
    #expect(try metric("capture_packets", of: 2, "vif=\"vif1.0\"") == nil)
    kill(daemon.processIdentifier, SIGTERM)
    daemon.waitUntilExit()
    #expect(daemon.terminationStatus == 0)
    #expect(try EVELine.read(eve).count { $0.alert != nil && $0.vmfence?.vm?.name == "guest2" } == 50)
  }

  @Test(
    "one guest's alerts fill its share of the event file and no more; the other's are there; after a rename a new file takes them, without a signal"
  )
  func eventFile() throws {
    let host = try NetworkNamespace("ehost")
    let guests = try (1...2).map { try NetworkNamespace("eguest\($0)") }
    try host.run("ip link set lo up")
    let folder = try TemporaryFolder()
    let config = try Self.configure(
      folder, host, guests, "control-socket: control.sock\nnotifications: [{fast-file: fast.log, limit: 1}]\n")
    let eve = folder.path("eve.json")
    let daemon = try Program.start(
      ["run", "--config", config, "--eve", eve, "--eve-limit", "2"], in: host.name, errors: Pipe(), output: Pipe())
    defer { if daemon.isRunning { daemon.terminate() } }
    try eventually("the first event") { (try? EVELine.read(eve))?.isEmpty == false }
    func status() throws -> DaemonStatus {
      try ControlClient(path: folder.path("control.sock")).ask(ControlRequest(.status), DaemonStatus.self)
    }
    let (noisy, quiet) = (try PacketEndpoint(guests[0]), try PacketEndpoint(guests[1]))
    func alerts(_ file: String, of name: String) throws -> Int {
      try EVELine.read(file).count { $0.alert != nil && $0.vmfence?.vm?.name == name }
    }
    let begun = ContinuousClock.now
    var sent = 0
    try eventually("the file is full for this guest") {
      for _ in 0..<500 { try noisy.send(Self.frame(from: 1)) }
      sent += 500
      usleep(100_000)
      return try status().eventsLostByDomain["guest1"] ?? 0 > 1000
    }
    try eventually("all of it is inspected") {
      try ControlClient(path: folder.path("control.sock")).ask(ControlRequest(.domains), [DomainStatus].self)
        .allSatisfy { $0.waiting == 0 }
    }
    let told = try alerts(eve, of: "guest1")
    #expect(told > 50 && told < sent - 1000)
    let size = try #require(try FileManager.default.attributesOfItem(atPath: eve)[.size] as? Int)
    // A quarter of it is for alerts, and half of that for one guest alone; and what else there is to tell.
    #expect(size < 400_000 && size > 200_000, "\(size)")
    for _ in 0..<50 { try quiet.send(Self.frame(from: 2)) }
    try eventually("the other guest's alerts") { try alerts(eve, of: "guest2") == 50 }
    try eventually("the loss is told, as this guest's") {
      try EVELine.read(eve).contains { $0.vmfence?.platform?.kind == "events-lost" && $0.vmfence?.vm?.name == "guest1" }
    }
    // Once a minute, and not at each look.
    usleep(2_500_000)
    let losses = try EVELine.read(eve).count {
      $0.vmfence?.platform?.kind == "events-lost" && $0.vmfence?.platform?.message.contains("eve.json") == true
    }
    #expect(losses >= 1 && losses <= 1 + Int((ContinuousClock.now - begun).components.seconds / 60))
    let problems = try status().problems
    #expect(problems.contains { $0.contains("eve.json may become 2 MiB large") }, "\(problems)")
    #expect(try alerts(eve, of: "guest1") == told)
    try FileManager.default.moveItem(atPath: eve, toPath: eve + ".1")
    for _ in 0..<50 { try noisy.send(Self.frame(from: 1, port: 2000)) }
    try eventually("its alerts in the new file") {
      (try? EVELine.read(eve).count { $0.alert != nil && $0.sourcePort == 2000 }) == 50
    }
    #expect(try alerts(eve + ".1", of: "guest1") == told)
    kill(daemon.processIdentifier, SIGTERM)
    daemon.waitUntilExit()
    #expect(daemon.terminationStatus == 0)
  }
}
#endif
