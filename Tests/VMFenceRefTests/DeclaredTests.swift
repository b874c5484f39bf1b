#if Daemon
import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceControl

/// What a guest declared is what is kept of it: the daemon has no channel here.
@Suite(
  "What a guest declared, and taking it back", .enabled(if: NetworkNamespace.isPossible, "\(NetworkNamespace.reason)"))
struct DeclaredTests {
  private static let uuid = "6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0001"
  private static let absent = "6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0009"

  private struct Kept: Decodable, Equatable {
    var service: String?
    var paths: [String]
    var refused: [String]?
    var takesNothing: Bool?
  }

  private let folder: TemporaryFolder
  private let host: NetworkNamespace

  init() throws {
    folder = try TemporaryFolder()
    host = try NetworkNamespace("dhost")
    _ = try folder.write(
      "inventory.yaml",
      """
      version: 1
      domains:
        - {name: web, uuid: \(Self.uuid), domid: 1, ports: [{interface: vif1.0, mac: "00:16:3e:00:00:01"}]}
      """)
    _ = try folder.write("live.rules", "alert udp any any -> any 9 (msg:\"m\"; content:\"x\"; sid:1;)\n")
    _ = try folder.write(
      "live.yaml",
      """
      version: 1
      rules: {dialect: snort2, common: live.rules}
      inventory: inventory.yaml
      firewall: {kind: none}
      state-directory: state
      control-socket: control.sock
      """)
    try FileManager.default.createDirectory(atPath: folder.path("state"), withIntermediateDirectories: true)
    // As it was written before anything could be taken back.
    _ = try folder.write(
      "state/declarations.json",
      """
      {"\(Self.uuid)": {"service": "http", "paths": ["/etc/**", "/tmp/**", "/srv"]}, "\(Self.absent)": {"paths": ["/a"]}}
      """)
  }

  private func kept(_ uuid: String = Self.uuid) throws -> Kept? {
    let data = try Data(contentsOf: URL(filePath: folder.path("state/declarations.json")))
    return try JSONDecoder().decode([String: Kept].self, from: data)[uuid]
  }

  private func ask(_ arguments: String...) throws -> Program.Result {
    try Program.run(["declared"] + arguments + ["--socket", folder.path("control.sock")])
  }

  private func withDaemon(_ body: () throws -> Void) throws {
    let daemon = try Program.start(
      ["run", "--config", folder.path("live.yaml")], in: host.name, errors: Pipe(), output: Pipe())
    defer { if daemon.isRunning { daemon.terminate() } }
    try eventually("the daemon") {
      try #require(daemon.isRunning)
      return (try? ask("web").status) == 0
    }
    try body()
    kill(daemon.processIdentifier, SIGTERM)
    daemon.waitUntilExit()
    #expect(daemon.terminationStatus == 0)
  }

  @Test("one path, all of it, and to take it again; each outlives a restart")
  func takingBack() throws {
    try withDaemon {
      let shown = try ask("web")
      #expect(shown.output.contains("web declared 3 paths, and that it serves http\n  /etc/**\n  /tmp/**\n  /srv"))
      #expect(try kept()?.refused == nil, "asking writes nothing")
      let forgotten = try ask("web", "--forget", "/tmp/**", "--forget", "/srv")
      #expect(forgotten.status == 0 && forgotten.output.contains("not taken: /srv\nnot taken: /tmp/**"))
      #expect(
        try kept() == Kept(service: "http", paths: ["/etc/**"], refused: ["/srv", "/tmp/**"], takesNothing: false))
      let unknown = try ask("web", "--forget", "/nowhere")
      #expect(unknown.status == 65 && unknown.errors.contains("`/nowhere` is nothing that web declared"))
      #expect(try ask("nobody").status == 65)
      #expect(try ask("web", "--all", "--allow").status == 64)
      // One that is not there now.
      #expect(try ask(Self.absent, "--forget", "/a").status == 0)
      #expect(try kept(Self.absent)?.paths == [])
    }
    try withDaemon {
      let client = try ControlClient(path: folder.path("control.sock"))
      let status = try client.ask(ControlRequest(.declared, domain: "web"), DeclaredStatus.self)
      #expect(status.paths == ["/etc/**"] && status.refused == ["/srv", "/tmp/**"] && !status.takesNothing)
      #expect(try ask("web", "--all").output.contains("nothing is taken of it"))
      #expect(try kept() == Kept(service: nil, paths: [], refused: ["/srv", "/tmp/**"], takesNothing: true))
    }
    try withDaemon {
      #expect(try ask("web").output.contains("nothing is taken of it"))
      let allowed = try ask("web", "--allow", "--json")
      let status = try JSONDecoder().decode(DeclaredStatus.self, from: Data(allowed.output.utf8))
      #expect(status.paths == [] && status.refused == [] && !status.takesNothing && status.service == nil)
      #expect(try kept() == Kept(service: nil, paths: [], refused: nil, takesNothing: nil))
    }
  }

  @Test("what cannot be kept is not done")
  func unwritable() throws {
    try withDaemon {
      let file = folder.path("state/declarations.json")
      try FileManager.default.removeItem(atPath: file)
      // A folder cannot be replaced by a file.
      try FileManager.default.createDirectory(atPath: file + "/x", withIntermediateDirectories: true)
      let result = try ask("web", "--all")
      #expect(result.status == 65 && result.errors.contains("nothing was changed"), "\(result)")
      #expect(try ask("web").output.contains("3 paths"))
    }
  }
}
#endif
