#if Daemon
import Foundation
import Testing

@Suite("vmfence-ref inspect")
struct InspectTests {
  private let capture = Program.quickstart.appending(path: "captures/vif1.0.pcapng").path
  private let rules = Program.quickstart.appending(path: "rules/http.rules").path

  private func events(_ arguments: String...) throws -> [[String: Any]] {
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

  @Test("settings are checked", arguments: ["no-such=1", "stream.checksum-validation=perhaps", "novalue"])
  func settings(text: String) throws {
    let result = try Program.run("inspect", "--capture", capture, "--rules", rules, "--set", text)
    #expect(result.status == 64, "\(result.errors)")
    #expect(result.errors.contains(text.prefix { $0 != "=" }))
  }
}
#endif
