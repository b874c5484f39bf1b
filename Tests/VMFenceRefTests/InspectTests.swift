#if Daemon
import Foundation
import Testing

@Suite("vmfence-ref inspect")
struct InspectTests {
  private let capture = Program.quickstart.appending(path: "captures/vif1.0.pcapng").path
  private let rules = Program.quickstart.appending(path: "rules/http.rules").path

  private func events(_ arguments: String...) throws -> [[String: Any]] { try events(arguments) }

  private func events(_ arguments: [String]) throws -> [[String: Any]] {
    let folder = try TemporaryFolder()
    let result = try Program.run(
      ["inspect"] + arguments + ["--rules", rules, "--dialect", "snort2", "--eve", folder.path("eve.json")])
    #expect(result.status == 0, "\(result.errors)")
    return try String(contentsOfFile: folder.path("eve.json"), encoding: .utf8).split(separator: "\n").compactMap {
      try JSONSerialization.jsonObject(with: Data($0.utf8)) as? [String: Any]
    }
  }

  @Test("an alert names its packet, and holds it and its payload when asked")
  func evidence() throws {
    let found = try events("--capture", capture, "--packet", "--payload")
    let alert = try #require(found.first { $0["event_type"] as? String == "alert" })
    #expect(alert["pcap_filename"] as? String == capture)
    #expect(try #require(alert["pcap_cnt"] as? Int) > 0)
    #expect(try #require(alert["community_id"] as? String).hasPrefix("1:"))
    #expect((alert["ether"] as? [String: String])?.count == 2)
    #expect(alert["stream"] as? Int == 1, "found in what the server had acknowledged")
    let packet = try #require(Data(base64Encoded: alert["packet"] as? String ?? "-"))
    let payload = try #require(Data(base64Encoded: alert["payload"] as? String ?? "-"))
    #expect(!packet.isEmpty && !payload.isEmpty)
    let without = try events("--capture", capture)
    let plain = try #require(without.first { $0["event_type"] as? String == "alert" })
    #expect(plain["packet"] == nil && plain["payload"] == nil && plain["payload_printable"] != nil)
  }

  @Test("a pipe that is named for a file is written to, and not replaced", arguments: ["--eve", "--save-state"])
  func pipes(option: String) throws {
    let folder = try TemporaryFolder()
    let pipe = folder.path("pipe")
    try #require(unsafe mkfifo(pipe, 0o600) == 0)
    let reader = Process()
    let output = Pipe()
    reader.executableURL = URL(filePath: "/bin/cat")
    reader.arguments = [pipe]
    reader.standardOutput = output
    try reader.run()
    defer { reader.terminate() }
    let result = try Program.run(
      ["inspect", "--capture", capture, "--rules", rules, "--dialect", "snort2", option, pipe])
    #expect(result.status == 0, "\(result.errors)")
    let type = try FileManager.default.attributesOfItem(atPath: pipe)[.type] as? FileAttributeType
    try #require(type == .typeUnknown || type == nil, "a pipe is no kind of file that Foundation knows")
    #expect(try output.fileHandleForReading.readToEnd()?.isEmpty == false)
  }

  @Test("what is wrong with packets is told when asked, whatever the rules")
  func anomalies() throws {
    let folder = try TemporaryFolder()
    let (head, packets) = try blocks(capture)
    let part = folder.path("part.pcapng")
    // A connection's beginning is missing.
    try (head + packets.suffix(packets.count / 2).joined()).write(to: URL(filePath: part))
    let found = try events("--capture", part, "--anomalies").filter { $0["event_type"] as? String == "anomaly" }
    let first = try #require(found.first)
    #expect((first["anomaly"] as? [String: String])?["type"] == "stream")
    #expect(found.contains { ($0["anomaly"] as? [String: String])?["event"] == "stream.3whs_not_seen" })
    #expect(first["src_ip"] != nil && first["flow_id"] != nil && first["pcap_cnt"] != nil)
    #expect(try events("--capture", part).allSatisfy { $0["event_type"] as? String != "anomaly" })
  }

  @Test("captures one by one: each begins with an engine that knows nothing, and numbers its own packets")
  func separate() throws {
    let once = try events("--capture", capture).filter { $0["event_type"] as? String == "alert" }
    let twice = try events("--separate", "--capture", capture, capture).filter {
      $0["event_type"] as? String == "alert"
    }
    let numbers = once.compactMap { $0["pcap_cnt"] as? Int }
    #expect(!numbers.isEmpty)
    #expect(twice.compactMap { $0["pcap_cnt"] as? Int } == numbers + numbers)
  }

  /// The blocks of a pcapng file: those before the packets, and a packet each.
  private func blocks(_ path: String) throws -> (head: Data, packets: [Data]) {
    var rest = try Data(contentsOf: URL(filePath: path))[...]
    var (head, packets) = (Data(), [Data]())
    while rest.count >= 12 {
      func number(_ offset: Int) -> Int {
        (0..<4).reduce(0) { $0 | Int(rest[rest.startIndex + offset + $1]) << (8 * $1) }
      }
      let block = rest.prefix(number(4))
      if number(0) == 6 { packets.append(Data(block)) } else if packets.isEmpty { head.append(block) }
      rest = rest.dropFirst(max(12, number(4)))
    }
    return (head, packets)
  }

  @Test("a capture cut in two gives the same alerts, when the second half goes on with the state after the first")
  func cutInTwo() throws {
    let folder = try TemporaryFolder()
    let (head, packets) = try blocks(capture)
    let (first, second, state) = (folder.path("1.pcapng"), folder.path("2.pcapng"), folder.path("state"))
    func sids(_ arguments: String...) throws -> [Int] {
      try events(arguments).compactMap { ($0["alert"] as? [String: Any])?["signature_id"] as? Int }
    }
    let whole = try sids("--capture", capture)
    #expect(whole.count > 2)
    for cut in stride(from: 1, to: packets.count, by: max(1, packets.count / 12)) {
      try (head + packets[..<cut].joined()).write(to: URL(filePath: first))
      try (head + packets[cut...].joined()).write(to: URL(filePath: second))
      let before = try sids("--capture", first, "--save-state", state)
      let after = try sids("--capture", second, "--load-state", state)
      #expect(before + after == whole, "after \(cut) packets")
    }
    try Data("VMFSTATE but no more".utf8).write(to: URL(filePath: state))
    let damaged = try Program.run("inspect", "--capture", second, "--rules", rules, "--load-state", state)
    #expect(damaged.status == 65, "\(damaged.errors)")
    let missing = try Program.run("inspect", "--capture", second, "--rules", rules, "--load-state", state + "x")
    #expect(missing.status == 66, "\(missing.errors)")
  }

  @Test("a capture can come through standard input")
  func standardInput() throws {
    let folder = try TemporaryFolder()
    let process = Process()
    process.executableURL = URL(filePath: try Program.path("vmfence-ref"))
    process.arguments = [
      "inspect", "--capture", "-", "--rules", rules, "--dialect", "snort2", "--eve", folder.path("eve.json"),
    ]
    process.standardInput = try FileHandle(forReadingFrom: URL(filePath: capture))
    process.standardOutput = FileHandle.nullDevice
    process.standardError = FileHandle.nullDevice
    try process.run()
    process.waitUntilExit()
    #expect(process.terminationStatus == 0)
    let lines = try String(contentsOfFile: folder.path("eve.json"), encoding: .utf8).split(separator: "\n")
    let direct = try events("--capture", capture)
    #expect(lines.count { $0.contains(#""event_type":"alert""#) } > 0 && lines.count == direct.count)
  }

  @Test("what goes on is written as it goes on, without what was dropped")
  func write() throws {
    let folder = try TemporaryFolder()
    let replacing = try folder.write(
      "a.rules", "rewrite tcp any any -> any any (content:\"GET\",depth 3; replace:\"PUT\"; sid:1;)")
    let finding = try folder.write("b.rules", "alert tcp any any -> any any (content:\"PUT /\",depth 5; sid:2;)")
    let first = try Program.run(
      "inspect", "--capture", capture, "--rules", replacing, "--dialect", "snort3", "--inline", "--write",
      folder.path("out.pcap"))
    #expect(first.status == 0, "\(first.errors)")
    // With its checksums verified, it is found again.
    let again = try Program.run(
      "inspect", "--capture", folder.path("out.pcap"), "--rules", finding, "--dialect", "snort3")
    #expect(again.status == 0 && again.output.contains("[1:2:0]"), "\(again.errors)")
    let refused = try Program.run("inspect", "--capture", capture, "--rules", rules, "--write", folder.path("x"))
    #expect(refused.status == 64 && refused.errors.contains("--inline"))
  }

  @Test("what each rule cost is told as a table and as JSON")
  func profile() throws {
    let folder = try TemporaryFolder()
    let result = try Program.run(
      "inspect", "--capture", capture, "--rules", rules, "--dialect", "snort2", "--profile-rules", "--profile-json",
      folder.path("profile.json"))
    #expect(result.status == 0 && result.output.contains("avg/non-match"), "\(result.errors)")
    let data = try Data(contentsOf: URL(filePath: folder.path("profile.json")))
    let document = try #require(try JSONSerialization.jsonObject(with: data) as? [String: Any])
    let found = try #require(document["rules"] as? [[String: Any]])
    #expect(found.contains { ($0["matches"] as? Int ?? 0) > 0 })
    #expect(found.allSatisfy { ($0["checks"] as? Int ?? 0) > 0 && $0["sid"] != nil && $0["time_ns"] != nil })
  }

  @Test("settings are checked", arguments: ["no-such=1", "stream.checksum-validation=perhaps", "novalue"])
  func settings(text: String) throws {
    let result = try Program.run("inspect", "--capture", capture, "--rules", rules, "--set", text)
    #expect(result.status == 64, "\(result.errors)")
    #expect(result.errors.contains(text.prefix { $0 != "=" }))
  }
}
#endif
