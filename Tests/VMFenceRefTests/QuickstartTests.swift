#if Daemon
import Foundation
import Testing

@Suite("The main job: the quickstart")
struct QuickstartTests {
  let scenario = Program.quickstart.appending(path: "scenario.yaml").path

  @Test("process and thread detectors give the same bytes, every time")
  func sameBytes() throws {
    let folder = try TemporaryFolder()
    let runs = [("a", "process"), ("b", "process"), ("c", "thread")]
    for (name, detectors) in runs {
      let result = try Program.run("replay", scenario, "--detectors", detectors, "--eve", folder.path(name))
      #expect(result.status == 0, "\(result.errors)")
    }
    let files = try runs.map { try Data(contentsOf: URL(filePath: folder.path($0.0))) }
    #expect(files[0].count > 10_000)
    #expect(files[0] == files[1])
    #expect(files[0] == files[2])
  }

  @Test("each guest's attack is found, blocked and told; the files' changes too; the migration is followed")
  func story() throws {
    let folder = try TemporaryFolder()
    let result = try Program.run("replay", scenario, "--eve", folder.path("eve.json"))
    #expect(result.status == 0, "\(result.errors)")
    let lines = try EVELine.read(folder.path("eve.json"))
    var found: [String: Set<Int>] = [:]
    for line in lines {
      if let sid = line.alert?.signatureID { found[line.vmfence?.vm?.name ?? "?", default: []].insert(sid) }
    }
    #expect(found["web"] == [1_000_001, 1_000_002, 1_000_003, 1_000_004])
    #expect(found["ftp"] == [1_000_101, 1_000_102])
    #expect(found["ssh"] == [1_000_201, 1_000_202, 1_000_203])
    #expect(lines.filter { $0.eventType == "vmfence_file" }.count == 3)
    #expect(lines.last?.eventType == "stats")

    for text in [
      "append /etc/passwd", "write /var/www/index.html", "replace /etc/ssh/sshd_config",
      "block 10.77.0.66, enforced, until +42.", "kept 16 packets away", "withheld",
      "the administrator is asked to configure rules", "spoofed-source",
      "-goneWhileInspecting +54.000s-> orphaned -detectorKilled +54.000s-> ended",
      "start -configured +54.100s-> inspecting", "-halted +40.000s-> suspended -running +50.000s-> inspecting",
    ] { #expect(result.output.contains(text), "missing: \(text)") }
    #expect(!result.output.contains("not inspected"))
  }

  @Test("inspect finds on the captures what the rules are for, with the same records")
  func inspect() throws {
    let folder = try TemporaryFolder()
    let captures = ["vif1.0", "vif2.0", "vif3.0", "vif7.0"].map {
      Program.quickstart.appending(path: "captures/\($0).pcapng").path
    }
    let rules = ["http", "ftp", "ssh"].map { Program.quickstart.appending(path: "rules/\($0).rules").path }
    let arguments =
      ["inspect", "--capture"] + captures + ["--rules"] + rules
      + ["--dialect", "snort2", "--eve", folder.path("eve.json")]
    let process = Process()
    process.executableURL = URL(filePath: try Program.path("vmfence-ref"))
    process.arguments = arguments
    process.standardOutput = FileHandle.nullDevice
    process.standardError = FileHandle.nullDevice
    try process.run()
    process.waitUntilExit()
    #expect(process.terminationStatus == 0)
    let sids = try EVELine.read(folder.path("eve.json")).compactMap(\.alert?.signatureID)
    // As captures/README.md counts them; one inspector sees the guesses on both hosts, within one minute, as one.
    let expected = [
      1_000_001: 3, 1_000_002: 1, 1_000_003: 1, 1_000_004: 2, 1_000_005: 1, 1_000_101: 1, 1_000_102: 1, 1_000_103: 1,
      1_000_104: 1, 1_000_201: 1, 1_000_202: 1, 1_000_203: 1,
    ]
    #expect(Dictionary(grouping: sids, by: \.self).mapValues(\.count) == expected)
  }

  @Test("check finds nothing wrong with it")
  func check() throws {
    let result = try Program.run("check", scenario)
    #expect(result.status == 0, "\(result.output)")
    #expect(result.output.contains("nothing is wrong"))
  }

  @Test("dfa prints what Docs shows", arguments: ["table", "mermaid", "dot"])
  func lifecycle(format: String) throws {
    let result = try Program.run("dfa", "--format", format)
    #expect(result.status == 0)
    let docs = try String(contentsOf: Program.root.appending(path: "Docs/Lifecycle.md"), encoding: .utf8)
    #expect(docs.contains(result.output.trimmingCharacters(in: .newlines)))
  }
}
#endif
