#if Daemon
import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceCore

@Suite(
  "A daemon that starts after measures ran out",
  .enabled(if: NetworkNamespace.isPossible, Comment(rawValue: NetworkNamespace.reason)))
struct LiftedMeanwhileRunTests {
  private struct Line: Decodable {
    struct Ours: Decodable { var decision: Said? }
    struct Said: Decodable { var id: UInt64?, measure, status: String? }
    var vmfence: Ours?
  }

  /// The numbers of the lifts in a file of events, in its order; none while there is no file.
  private static func lifts(in path: String) throws -> [UInt64] {
    guard FileManager.default.fileExists(atPath: path) else { return [] }
    return try wholeLines(of: path).compactMap { line in
      guard line.contains("\"lift\"") else { return nil }
      return try JSONDecoder().decode(Line.self, from: Data(line.utf8)).vmfence?.decision?.id
    }
  }

  @Test("tells of each in events, decision log and history, and the next one not again")
  func told() throws {
    let folder = try TemporaryFolder()
    let namespace = try NetworkNamespace("lifted")
    _ = try folder.write("inventory.yaml", "version: 1\ndomains: []\n")
    let state = folder.path("state")
    try FileManager.default.createDirectory(atPath: state, withIntermediateDirectories: true)
    let path = state + "/decisions.log"
    // More than are told at once.
    let count = 5_000
    try {
      var updater = try PolicyUpdater(policy: Policy(rules: []), directory: DomainDirectory())
      let (log, _) = try FileDecisionLog.open(path: path)
      let hourAgo = SystemClock().now + .seconds(-3_600)
      for index in 0..<count {
        let source = try #require(IPNetwork("198.18.\(index / 256).\(index % 256)"))
        try log.append(
          try updater.block(source, for: nil, duration: .seconds(60), reason: "by hand", at: hourAgo))
      }
      let stands = try updater.block(
        try #require(IPNetwork("203.0.113.7")), for: nil, duration: .seconds(86_400), reason: "by hand", at: hourAgo)
      try log.append(stands)
    }()
    let config = try folder.write(
      "host.yaml",
      """
      version: 1
      inventory: inventory.yaml
      state-directory: state
      control-socket: control.sock
      firewall: {kind: none}
      notifications: [{eve-file: told.json, events: [decision]}]

      """)

    func run(_ eve: String, _ look: () throws -> Void) throws -> String {
      // A line for each: more than a pipe holds that nobody reads.
      let daemon = try namespace.start(
        "sh -c \"exec '\(Program.path("vmfence-ref"))' run --config '\(config)' --eve '\(folder.path(eve))' "
          + "2>'\(folder.path("said"))'\"")
      defer { if daemon.isRunning { daemon.terminate() } }
      try eventually("its socket") { FileManager.default.fileExists(atPath: folder.path("control.sock")) }
      try look()
      daemon.terminate()
      daemon.waitUntilExit()
      #expect(daemon.terminationStatus == 0)
      return try String(contentsOfFile: folder.path("said"), encoding: .utf8)
    }
    func lifts(_ name: String) throws -> [UInt64] { try Self.lifts(in: folder.path(name)) }
    let said = try run("eve.json") {
      try eventually("all are told") {
        try lifts("eve.json").count >= count && lifts("told.json").count >= count
      }
      try eventually("all are in the history") {
        let past = try Program.run(
          "bans", "list", "--past", "--limit", "\(2 * count)", "--socket", folder.path("control.sock"))
        return past.output.split(separator: "\n").count { $0.contains("lift") } == count
      }
    }
    #expect(said.contains("\(count) measures ran out while this did not run"), "\(said.suffix(2_000))")
    let expected = (1...count).map { UInt64(count + 1 + $0) }
    #expect(try lifts("eve.json") == expected)
    #expect(try lifts("told.json") == expected)
    let logged = try FileDecisionLog.open(path: path).recovery.decisions
    #expect(logged.filter { $0.measure.name == "lift" }.map(\.id) == expected)

    _ = try run("again.json") { usleep(1_500_000) }
    #expect(try lifts("again.json").isEmpty)
  }

  @Test("what runs out until the moment in which it stops is told before it has stopped")
  func lastMoment() throws {
    let folder = try TemporaryFolder()
    let namespace = try NetworkNamespace("moment")
    _ = try folder.write("inventory.yaml", "version: 1\ndomains: []\n")
    try FileManager.default.createDirectory(atPath: folder.path("state"), withIntermediateDirectories: true)
    let path = folder.path("state/decisions.log")
    try {
      var updater = try PolicyUpdater(policy: Policy(rules: []), directory: DomainDirectory())
      let (log, _) = try FileDecisionLog.open(path: path)
      let now = SystemClock().now
      // One every eight milliseconds, for longer than a start takes.
      for index in 0..<20_000 {
        let source = try #require(IPNetwork("198.\(18 + index / 65_536).\(index / 256 % 256).\(index % 256)"))
        try log.append(
          try updater.block(
            source, for: nil, duration: .milliseconds(2_000 + 8 * index), reason: "by hand", at: now))
      }
    }()
    let config = try folder.write(
      "host.yaml",
      """
      version: 1
      inventory: inventory.yaml
      state-directory: state
      control-socket: control.sock
      firewall: {kind: none}

      """)
    let daemon = try namespace.start(
      "'\(Program.path("vmfence-ref"))' run --config '\(config)' --eve '\(folder.path("eve.json"))'")
    defer { if daemon.isRunning { daemon.terminate() } }
    func told() throws -> [UInt64] { try Self.lifts(in: folder.path("eve.json")) }
    try eventually("its socket") { FileManager.default.fileExists(atPath: folder.path("control.sock")) }
    try eventually("some ran out") { try told().count > 200 }
    // Between two looks at what has run out.
    usleep(500_000)
    daemon.terminate()
    daemon.waitUntilExit()
    #expect(daemon.terminationStatus == 0)
    let logged = try FileDecisionLog.open(path: path).recovery.decisions.filter { $0.measure.name == "lift" }.map(\.id)
    #expect(logged.count < 20_000)
    #expect(try told() == logged)
  }
}
#endif
