#if Daemon
import Foundation
import NetworkTestSupport
import TestSupport
import Testing

/// What whoever runs the daemon meets besides the daemon's work: outputs that nobody reads, small terminals, starts that fail.
@Suite("At the terminal", .enabled(if: NetworkNamespace.isPossible, "\(NetworkNamespace.reason)"), .serialized)
struct OperatorTests {
  private static let uuid = "6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0001"
  private let folder: TemporaryFolder
  private let host: NetworkNamespace
  private let guest: NetworkNamespace

  /// A guest whose tenant has a name that acts on terminals.
  init() throws {
    folder = try TemporaryFolder()
    (host, guest) = (try NetworkNamespace("ohost"), try NetworkNamespace("oguest"))
    try NetworkNamespace.shell(
      """
      ip -n \(host.name) link add vif1.0 type veth peer name eth0 netns \(guest.name)
      ip -n \(guest.name) link set eth0 address 00:16:3e:00:00:01
      ip -n \(host.name) addr add 10.9.9.1/24 dev vif1.0; ip -n \(guest.name) addr add 10.9.9.2/24 dev eth0
      ip -n \(host.name) link set vif1.0 up; ip -n \(guest.name) link set eth0 up
      """)
    _ = try folder.write(
      "inventory.yaml",
      """
      version: 1
      domains:
        - {name: web, uuid: \(Self.uuid), domid: 1, tenant: "a\\u009B31m\\u202Eb", ports: [{interface: vif1.0, mac: "00:16:3e:00:00:01"}]}
      """)
    _ = try folder.write("live.rules", "alert icmp any any -> any any (msg:\"ping\"; itype:8; sid:1000001;)\n")
  }

  private func configuration(_ more: String = "firewall: {kind: none}") throws -> String {
    try folder.write(
      "live.yaml",
      """
      version: 1
      rules: {dialect: snort2, common: live.rules}
      inventory: inventory.yaml
      state-directory: state
      control-socket: control.sock
      \(more)
      """)
  }

  private func cli(_ arguments: String...) throws -> Program.Result {
    try Program.run(arguments + ["--socket", folder.path("control.sock")])
  }

  /// A shell's line with the program as `$V`, and the socket.
  private func shell(_ line: String) throws -> String {
    try NetworkNamespace.shell(
      "export VMFENCE_SOCKET='\(folder.path("control.sock"))' V='\(Program.path("vmfence-ref"))'; \(line)")
  }

  private func withDaemon(_ body: () throws -> Void) throws {
    let daemon = try Program.start(
      ["run", "--config", try configuration(), "--eve", folder.path("eve.json")], in: host.name, errors: Pipe(),
      output: Pipe())
    defer { if daemon.isRunning { daemon.terminate() } }
    try eventually("the daemon") {
      try #require(daemon.isRunning)
      return (try? cli("domains").output.contains("inspecting")) == true
    }
    try body()
    kill(daemon.processIdentifier, SIGTERM)
    daemon.waitUntilExit()
    #expect(daemon.terminationStatus == 0)
  }

  @Test("alerts as JSON are the events as they were written, and go by the UUID of a guest that is gone")
  func alerts() throws {
    func alerts(_ text: String) throws -> [NSDictionary] {
      try text.split(separator: "\n").compactMap {
        try JSONSerialization.jsonObject(with: Data($0.utf8)) as? NSDictionary
      }.filter { $0["event_type"] as? String == "alert" }
    }
    try withDaemon {
      try guest.run("ping -q -c 3 -i 0.1 10.9.9.1")
      try eventually("three alerts") { try alerts(cli("alerts", "--json").output).count == 3 }
      let written = try alerts(wholeLines(of: folder.path("eve.json")).joined(separator: "\n"))
      #expect(try alerts(cli("alerts", "--json").output) == written)
      #expect(try cli("alerts", "--domain", Self.uuid).output.components(separatedBy: "ping").count == 4)
      let unknown = "6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0009"
      let gone = try cli("alerts", "--domain", unknown)
      #expect(gone.status == 0 && gone.errors == "no alerts\n", "\(gone)")
      #expect(try cli("alerts", "--domain", "gone").status == 65)
    }
  }

  @Test("nothing that is printed acts on a terminal, and JSON says the same all the same")
  func escapes() throws {
    try withDaemon {
      for arguments in [["domains", "--json"], ["top", "--json", "-n", "1"], ["domains"]] {
        let result = try Program.run(arguments + ["--socket", folder.path("control.sock")])
        #expect(
          result.status == 0
            && !result.output.unicodeScalars.contains { (0x7F...0x9F).contains($0.value) || $0.value == 0x202E })
        guard arguments.contains("--json") else { continue }
        #expect(result.output.contains("a\\u009b31m\\u202eb"), "\(result.output)")
        _ = try JSONSerialization.jsonObject(with: Data(result.output.utf8))
      }
    }
  }

  @Test(
    "an output that is full is an error; a reader that has gone away ends what goes on and on, also where SIGPIPE is ignored"
  )
  func outputs() throws {
    try withDaemon {
      #expect(try shell("$V domains >/dev/full 2>\(folder.path("said")) || echo $?") == "73\n")
      #expect(
        try String(contentsOfFile: folder.path("said"), encoding: .utf8).contains("standard output cannot be written"))
      func lines(_ text: String) -> [Substring] { text.split(separator: "\n").sorted() }
      let top = try shell(
        "trap '' PIPE; { timeout 100 $V top --interval 0.2 2>&1 || echo $? >&2; } | head -n 1 | wc -l")
      #expect(lines(top) == ["1", "73"])
      // Alerts go on coming.
      let pings = try guest.start("ping -q -i 0.2 10.9.9.1")
      defer { pings.terminate() }
      let followed = try shell(
        "trap '' PIPE; { timeout 100 $V alerts --follow --limit 1 || echo $? >&2; } | head -n 1 | grep -c ping")
      #expect(lines(followed) == ["1", "73"])
    }
  }

  @Test(
    "what is shown again and again keeps within its terminal",
    .enabled(if: FileManager.default.isExecutableFile(atPath: "/usr/bin/script"), "needs script(1)"))
  func small() throws {
    try withDaemon {
      let shown = try shell("script -qec 'stty rows 4 cols 30; $V top -n 1' /dev/null </dev/null")
      let rows = shown.replacing(/\u{1B}\[[0-9;]*[A-Za-z]/, with: "").split(whereSeparator: \.isNewline)
      #expect(rows.count <= 3 && rows.allSatisfy { $0.count <= 30 }, "\(rows)")
      #expect(rows.contains { $0.contains("…") }, "\(rows)")
    }
  }

  @Test("a daemon that cannot begin leaves no guard in the packet filter, and keeps what detectors remembered")
  func failedStart() throws {
    let state = folder.path("state/detectors/\(Self.uuid).state")
    try withDaemon { try guest.run("ping -q -c 1 10.9.9.1") }
    #expect(FileManager.default.fileExists(atPath: state))
    // No address of this host.
    let config = try configuration("metrics: {address: 192.0.2.1}")
    let failure = #expect(throws: NetworkNamespace.CommandFailed.self) {
      try host.run("timeout 100 \(Program.path("vmfence-ref")) run --config \(config) 2>&1")
    }
    #expect(
      failure?.status == 73 && failure?.output.contains("metrics cannot be served") == true,
      "\(String(describing: failure))")
    #expect(try !host.run("nft list ruleset").contains("vif1.0"))
    #expect(FileManager.default.fileExists(atPath: state))
  }

  @Test("a daemon that compiles rules yet is not ended by who asks it to read them again")
  func reloadWhileStarting() throws {
    let rules = (0..<3_000).map {
      "alert tcp any any -> any any (msg:\"m\"; content:\"needle number \($0) of many\"; pcre:\"/a\($0)b+c/\"; sid:\($0 + 1);)\n"
    }
    _ = try folder.write("live.rules", rules.joined())
    let log = folder.path("log")
    _ = FileManager.default.createFile(atPath: log, contents: nil)
    let process = Process()
    process.executableURL = URL(filePath: "/bin/sh")
    process.arguments = [
      "-c",
      "exec ip netns exec \(host.name) \(try Program.path("vmfence-ref")) run --config \(try configuration()) 2>\(log)",
    ]
    process.standardInput = FileHandle.nullDevice
    try process.run()
    defer { if process.isRunning { process.terminate() } }
    func said() throws -> String { try String(contentsOfFile: log, encoding: .utf8) }
    // SIGHUP is bit 0 of the signals that are caught (proc(5)).
    try eventually("it hears of reloads") {
      let status = (try? String(contentsOfFile: "/proc/\(process.processIdentifier)/status", encoding: .utf8)) ?? ""
      let caught = status.firstMatch(of: /SigCgt:\s*([0-9a-f]+)/).flatMap { UInt64($0.1, radix: 16) } ?? 0
      return caught & 1 == 1
    }
    #expect(
      try !said().contains("measures are carried out"), "it does not hear of reloads before its rules are compiled")
    kill(process.processIdentifier, SIGHUP)
    try eventually("it runs, and has read all again") {
      let log = try said()
      try #require(process.isRunning, "\(log)")
      return try said().contains("running") && said().contains("reloaded")
    }
    process.terminate()
    process.waitUntilExit()
    #expect(process.terminationStatus == 0)
  }

  @Test(
    "command lines that mean nothing are refused before anything is done",
    arguments: [
      ["run", "--config", "x", "--eve", "-"], ["bans", "list", "--limit", "0"], ["bans", "list", "--limit", "-1"],
      ["bans", "add", "192.0.2.1", "--for", "0"], ["barrier", "vif1.0", "--timeout", "2m"],
      ["barrier", "vif1.0", "--timeout", "x"],
    ])
  func commandLines(arguments: [String]) throws {
    let result = try Program.run(arguments)
    #expect(result.status == 64 && result.output.isEmpty, "\(result)")
    #expect(
      result.errors.contains(
        "--\(arguments.last == "-" ? "eve" : String(arguments[arguments.count - 2].dropFirst(2)))"), "\(result)")
  }

  @Test(
    "a verb that was mistyped is guessed, and nothing where none is near",
    arguments: [
      ("chek host.yaml", "'check'"), ("stauts --json", "'status'"), ("integrity lst disk.img", "'list'"),
      ("bans ad 192.0.2.1", "'add'"), ("frobnicate", nil), ("chek --help", nil), ("domains x", nil),
      ("check --liev host.yaml", "'--live'"), ("status --jsn", "'--json'"),
    ] as [(String, String?)])
  func guesses(line: String, meant: String?) throws {
    let result = try Program.run(line.split(separator: " ").map(String.init))
    #expect(result.status == (line.hasSuffix("--help") ? 0 : 64), "\(result)")
    let guess = result.errors.firstMatch(of: /Did you mean ('[a-z-]+')\?/)
    #expect(guess.map { String($0.1) } == meant, "\(result)")
  }

  @Test("files that cannot be read, and those that cannot be written, have codes of their own")
  func files() throws {
    #expect(try Program.run("check", folder.path("nowhere.yaml")).status == 66)
    #expect(try Program.run("check", "--live", folder.path("nowhere.yaml")).status == 66)
    #expect(try Program.run("check", folder.path("nowhere.rules")).status == 66)
    let inspect = [
      "inspect", "--capture", Program.quickstart.appending(path: "captures/vif1.0.pcapng").path, "--rules",
      folder.path("live.rules"),
    ]
    for more in [
      ["--inline", "--write", "/nowhere/x.pcap"], ["--profile-json", "/nowhere/x.json"],
      ["--profile-json", "/dev/full"],
      ["--save-state", "/nowhere/x"], ["--eve", "/nowhere/x"],
    ] {
      let result = try Program.run(inspect + more)
      #expect(result.status == 73 && result.errors.contains("error:"), "\(more): \(result)")
    }
  }

  @Test("a byte order mark costs no rule")
  func byteOrderMark() throws {
    let rules = try folder.write(
      "mark.rules", "\u{FEFF}alert icmp any any -> any any (msg:\"ping\"; itype:8; sid:1;)\r\n")
    let result = try Program.run("check", rules, "--dialect", "snort2")
    #expect(result.status == 0, "\(result)")
  }
}
#endif
