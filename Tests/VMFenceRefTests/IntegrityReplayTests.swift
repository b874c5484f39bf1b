#if Daemon
import Foundation
import Testing

/// `integrity replay` over the quickstart's disk.
@Suite struct IntegrityReplayTests {
  private static let disk = Program.quickstart.appending(path: "disk")

  private func replay(_ trace: String, _ more: [String]) throws -> Program.Result {
    try Program.run(
      ["integrity", "replay", "--image", Self.disk.appending(path: "web.img").path, "--trace", trace, "--protect"]
        + ["/etc/**", "/var/www/**", "--eve", "-"] + more)
  }

  private func operations(_ output: String) throws -> [String] {
    try output.split(separator: "\n").compactMap { line in
      let object = try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
      let file = (object?["vmfence"] as? [String: Any])?["file"] as? [String: Any]
      return file.map { "\($0["operation"] ?? "") \($0["path"] ?? "")" }
    }
  }

  @Test func whatIsWrittenIsComparedWithRules() throws {
    let folder = try TemporaryFolder()
    let rules = """
      alert tcp any 80 -> any any (msg:"a user without a password"; content:"toor::0:0:"; sid:1; priority:1;)
      alert tcp any any -> any any (msg:"nothing"; content:"this is written nowhere"; sid:2;)
      """
    try rules.write(toFile: folder.path("files.rules"), atomically: true, encoding: .utf8)
    let result = try replay(
      Self.disk.appending(path: "web.jsonl").path, ["--rules", folder.path("files.rules"), "--dialect", "suricata"])
    #expect(result.status == 0, "\(result.errors)")
    #expect(
      try operations(result.output) == [
        "append /etc/passwd", "match /etc/passwd", "write /var/www/index.html", "replace /etc/ssh/sshd_config",
      ])
    #expect(result.output.contains("1:1:0 a user without a password"))
  }

  @Test func aRecordingThatIsCutIsFollowedToTheCut() throws {
    let folder = try TemporaryFolder()
    let text = try String(contentsOf: Self.disk.appending(path: "web.jsonl"), encoding: .utf8)
    let data = try Data(contentsOf: Self.disk.appending(path: "web.bin"))
    try String(text.prefix(text.count * 9 / 10)).write(
      toFile: folder.path("cut.jsonl"), atomically: true, encoding: .utf8)
    try data.write(to: URL(filePath: folder.path("cut.bin")))
    let result = try replay(folder.path("cut.jsonl"), [])
    #expect(result.status == 65 && result.errors.contains("cut.jsonl:") && result.errors.contains("within a line"))
    #expect(try operations(result.output).first == "append /etc/passwd", "what came before is told")
    // Lines whose data are missing.
    try text.write(toFile: folder.path("cut.jsonl"), atomically: true, encoding: .utf8)
    try data.prefix(data.count / 2).write(to: URL(filePath: folder.path("cut.bin")))
    let short = try replay(folder.path("cut.jsonl"), [])
    #expect(short.status == 65 && short.errors.contains("are not in the .bin file"), "\(short.errors)")
  }

  /// The quickstart with its disk in a partition that begins at 1 MiB.
  @Test func aScenarioWatchesPartitions() throws {
    let folder = try TemporaryFolder()
    let copy = folder.path("quickstart")
    try FileManager.default.copyItem(atPath: Program.quickstart.path, toPath: copy)
    let start = 1 << 20
    let image = try Data(contentsOf: Self.disk.appending(path: "web.img"))
    var table = [UInt8](repeating: 0, count: start)
    func put(_ value: Int, at offset: Int) {
      for index in 0..<4 { table[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index)) }
    }
    table[450] = 0x83
    put(start / 512, at: 454)
    put(image.count / 512, at: 458)
    (table[510], table[511]) = (0x55, 0xAA)
    try (Data(table) + image).write(to: URL(filePath: copy + "/disk/web.img"))
    let lines = try String(contentsOf: Self.disk.appending(path: "web.jsonl"), encoding: .utf8).split(separator: "\n")
    let shifted = try lines.map { line in
      var object = try #require(try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any])
      if let offset = object["off"] as? Int { object["off"] = offset + start }
      return String(decoding: try JSONSerialization.data(withJSONObject: object), as: UTF8.self) + "\n"
    }
    try shifted.joined().write(toFile: copy + "/disk/web.jsonl", atomically: true, encoding: .utf8)
    let result = try Program.run("replay", copy + "/scenario.yaml", "--eve", folder.path("eve.json"))
    #expect(result.status == 0, "\(result.errors)")
    let text = try String(contentsOfFile: folder.path("eve.json"), encoding: .utf8)
    #expect(
      try operations(text) == ["append /etc/passwd", "write /var/www/index.html", "replace /etc/ssh/sshd_config"])
    #expect(text.contains("\"disk\":\"xvda1\""))
  }
}
#endif
