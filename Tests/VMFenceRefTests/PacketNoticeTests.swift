#if Daemon
import Foundation
import NetworkTestSupport
import TestSupport
import Testing

/// What the daemon tells of packets that no rule is about.
@Suite("Packets without alerts, over veth", .enabled(if: NetworkNamespace.isPossible, "\(NetworkNamespace.reason)"))
struct PacketNoticeTests {
  private struct Line: Decodable {
    struct Anomaly: Decodable, Equatable {
      var type: String
      var event: String
    }
    struct Statistics: Decodable {
      var counters: [String: Int]?
    }
    var type: String
    var anomaly: Anomaly?
    var packet: Data?
    var source: String?
    var vmfence: Statistics?

    enum CodingKeys: String, CodingKey {
      case anomaly, packet, vmfence
      case type = "event_type"
      case source = "src_ip"
    }

    static func read(_ path: String) throws -> [Line] {
      try wholeLines(of: path).compactMap {
        // Other events have other members under the same names.
        try? JSONDecoder().decode(Line.self, from: Data($0.utf8))
      }
    }
  }

  @Test(
    "anomalies and tagged packets come to the outputs that name them, so many a second, to a tenant those of its guests"
  )
  func told() throws {
    let (host, guest) = (try NetworkNamespace("host"), try NetworkNamespace("guest"))
    try host.run("ip link add vif1.0 type veth peer name eth0 netns \(guest.name)")
    try guest.run("ip link set eth0 address 00:16:3e:00:00:01; ip addr add 10.9.9.2/24 dev eth0; ip link set eth0 up")
    try host.run("ip addr add 10.9.9.1/24 dev vif1.0; ip link set vif1.0 up")
    let folder = try TemporaryFolder()
    _ = try folder.write(
      "inventory.yaml",
      """
      version: 1
      domains:
        - name: guest
          uuid: 6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0001
          domid: 1
          tenant: acme
          ports: [{interface: vif1.0, mac: "00:16:3e:00:00:01", addresses: [10.9.9.2]}]
      """)
    _ = try folder.write(
      "live.rules",
      "alert icmp any any -> any any (msg:\"ping\"; itype:8; icmp_seq:1; tag:host,2,packets,src; sid:1;)\n")
    let config = try folder.write(
      "live.yaml",
      """
      version: 1
      rules: {dialect: snort2, common: live.rules}
      inventory: inventory.yaml
      inspection: {anomalies: yes, packet-events-per-second: 20}
      statistics-every: 1s
      notifications:
        - {eve-file: usual.json}
        - {eve-file: acme.json, events: [anomaly, packet], tenant: acme}
        - {eve-file: globex.json, events: [anomaly, packet], tenant: globex}
      """)
    let eve = folder.path("eve.json")
    let daemon = try Program.start(
      ["run", "--config", config, "--eve", eve], in: host.name, errors: Pipe(), output: Pipe())
    defer { if daemon.isRunning { daemon.terminate() } }
    try eventually("the first event") { (try? EVELine.read(eve))?.isEmpty == false }

    // The first ping is alerted, the two packets of its host behind it are tagged: a ping, or the neighbour's question.
    try guest.run("ping -q -c 4 -i 0.05 10.9.9.1")
    try eventually("two tagged packets") { try Line.read(eve).count { $0.type == "packet" } == 2 }
    // An IPv4 header of which not even that is there.
    let endpoint = try PacketEndpoint(guest)
    let broken: [UInt8] =
      [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x00, 0x16, 0x3E, 0x00, 0x00, 0x01, 0x08, 0x00, 0x45]
      + Array(repeating: 0, count: 9)
    for _ in 0..<200 { try endpoint.send(broken) }
    func lost() throws -> Int {
      try Line.read(eve).compactMap { $0.vmfence?.counters?["packet_events_lost"] }.max() ?? 0
    }
    func anomalies() throws -> [Line] { try Line.read(eve).filter { $0.type == "anomaly" } }
    // A packet with several anomalies is one of so many a second.
    try eventually("the anomalies") {
      let events = try anomalies().compactMap(\.anomaly)
      let most = Dictionary(grouping: events, by: \.event).map(\.value.count).max() ?? 0
      return try most > 0 && most + lost() >= 200
    }
    let all = try Line.read(eve)
    let lostInAll = try lost()
    #expect(lostInAll > 100)
    let found = all.compactMap(\.anomaly)
    #expect(found.contains { $0.type == "decode" && $0.event.hasPrefix("decoder.ipv4.") })
    let tagged = all.filter { $0.type == "packet" }
    #expect(tagged.allSatisfy { ($0.packet?.count ?? 0) >= 42 && $0.source != nil })

    kill(daemon.processIdentifier, SIGTERM)
    daemon.waitUntilExit()
    #expect(daemon.terminationStatus == 0)
    let kinds = try Set(Line.read(folder.path("acme.json")).map(\.type))
    #expect(kinds == ["anomaly", "packet"])
    let usual = try Line.read(folder.path("usual.json"))
    #expect(usual.allSatisfy { !["anomaly", "packet"].contains($0.type) })
    let other = (try? String(contentsOfFile: folder.path("globex.json"), encoding: .utf8)) ?? ""
    #expect(other.isEmpty)
  }
}
#endif
