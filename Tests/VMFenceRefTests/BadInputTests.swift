#if Daemon
import Foundation
import Testing

@Suite("What is wrong is said with its place and a remedy, and nothing is done")
struct BadInputTests {
  struct Case: CustomTestStringConvertible, Sendable {
    var what: String
    var replace: String
    var with: String
    var says: [String]
    var testDescription: String { what }
  }

  /// A scenario that is right, with one thing in it changed.
  static let base = """
    version: 1
    name: small
    rules:
      dialect: snort2
      common: small.rules
    domains:
      - name: one
        uuid: 6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0001
        domid: 1
        ports:
          - {interface: vif1.0, mac: "00:16:3e:00:00:01"}
        lifecycle:
          - {at: 0s, event: created}
      - name: two
        uuid: 6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0002
        domid: 2
        ports:
          - {interface: vif2.0, mac: "00:16:3e:00:00:02"}
    policy:
      rules:
        - name: all
          when: {all-alerts: true}
          count: {per: source, at-least: 2, within: 10s}
          ladder: [{block: 1m}]
    """

  static let cases: [Case] = [
    Case(
      what: "YAML that is none", replace: "name: small", with: "name: [small",
      says: ["scenario.yaml:", "not valid YAML"]),
    Case(
      what: "an unknown key", replace: "name: small", with: "nmae: small",
      says: [":2:1: error: unknown key `nmae`", "did you mean `name`?"]),
    Case(what: "a key twice", replace: "name: small", with: "name: small\nname: big", says: ["twice"]),
    Case(
      what: "a duration without a unit", replace: "within: 10s", with: "within: 10",
      says: ["`10` is not a duration with its unit"]),
    Case(
      what: "overlapping MACs", replace: "00:16:3e:00:00:02", with: "00:16:3e:00:00:01",
      says: ["00:16:3e:00:00:01 belongs to two domains: `two` and `one`"]),
    Case(
      what: "two domains with one UUID", replace: "5a0c7a1f0002", with: "5a0c7a1f0001",
      says: ["two domains have the UUID", "migrated-in"]),
    Case(what: "a domid twice", replace: "domid: 2", with: "domid: 1", says: ["the domid 1 is used twice"]),
    Case(
      what: "no UUID", replace: "6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0002", with: "six",
      says: [":15:11: error:", "`six` is not a UUID"]),
    Case(
      what: "a MAC that is none", replace: "\"00:16:3e:00:00:02\"", with: "\"00:16:3e\"", says: ["is not a MAC address"]
    ),
    Case(
      what: "an unknown event", replace: "event: created", with: "event: born", says: ["`born` is not one of created"]),
    Case(
      what: "a rule file that is not there", replace: "small.rules", with: "big.rules",
      says: ["big.rules` cannot be read"]),
    Case(
      what: "a capture of an unknown interface", replace: "policy:",
      with: "captures:\n  - {file: small.rules, interface: vif9.0}\npolicy:",
      says: ["no domain has the interface `vif9.0`", "vif1.0, vif2.0"]),
    Case(
      what: "a capture that is none", replace: "policy:",
      with: "captures:\n  - {file: small.rules, interface: vif1.0}\npolicy:", says: ["small.rules"]),
    Case(
      what: "a disk that is not ext2", replace: "    domid: 2",
      with: "    domid: 2\n    disk: {image: small.rules}\n    protect: [/etc/passwd]",
      says: ["small.rules"]),
    Case(
      what: "a policy that blocks nothing nameable", replace: "per: source", with: "per: planet",
      says: ["`planet` is not one of domain, host, source"]),
    Case(
      what: "two measures in one step", replace: "{block: 1m}", with: "{block: 1m, pause: true}",
      says: ["must name exactly one measure"]),
    Case(
      what: "a policy with a class that no rule has", replace: "all-alerts: true", with: "classes: [no-such-class]",
      says: ["there is no class 'no-such-class'"]),
    Case(
      what: "an alias for a value", replace: "name: small", with: "name: &name small\nx: *name",
      says: [":3:4: error: an alias", "write out what it stands for"]),
    Case(
      what: "a pattern that is an alias without quotes", replace: "name: small", with: "name: *all", says: [":2:7: "]),
    Case(what: "an empty file", replace: base, with: "", says: ["the file is empty"]),
  ]

  @Test(arguments: cases)
  func scenario(_ wrong: Case) throws {
    let folder = try TemporaryFolder()
    _ = try folder.write("small.rules", "alert tcp any any -> any any (msg:\"x\"; content:\"x\"; sid:1000001;)\n")
    #expect(Self.base.contains(wrong.replace), "the case changes nothing")
    let path = try folder.write("scenario.yaml", Self.base.replacingOccurrences(of: wrong.replace, with: wrong.with))
    let replay = try Program.run("replay", path, "--eve", folder.path("eve.json"))
    #expect(replay.status == 65, "\(replay.errors)")
    for text in wrong.says { #expect(replay.errors.contains(text), "missing: \(text)\nin: \(replay.errors)") }
    let check = try Program.run("check", path)
    #expect(check.status == 65)
  }

  @Test("a few lines of aliases that stand for more than any memory holds, in a key, are refused at once")
  func aliasBomb() throws {
    let folder = try TemporaryFolder()
    var bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    for level in 1...11 {
      bomb += "a\(level): &a\(level) [\([String](repeating: "*a\(level - 1)", count: 9).joined(separator: ", "))]\n"
    }
    let path = try folder.write("host.yaml", bomb + "? *a11\n: x\n")
    let process = Process()
    process.executableURL = URL(filePath: "/usr/bin/timeout")
    process.arguments = ["100", try Program.path("vmfence-ref"), "check", "--live", path]
    let pipe = Pipe()
    (process.standardOutput, process.standardError) = (pipe, pipe)
    try process.run()
    let said = String(decoding: try pipe.fileHandleForReading.readToEnd() ?? Data(), as: UTF8.self)
    process.waitUntilExit()
    #expect(process.terminationStatus == 65 && said.contains("host.yaml:2:10: error: an alias"), "\(said)")
  }

  @Test("the base is right")
  func base() throws {
    let folder = try TemporaryFolder()
    _ = try folder.write("small.rules", "alert tcp any any -> any any (msg:\"x\"; content:\"x\"; sid:1000001;)\n")
    let result = try Program.run("replay", try folder.write("scenario.yaml", Self.base))
    #expect(result.status == 0, "\(result.errors)")
  }

  @Test("a rule that is wrong is named by file, line and column; the rest loads, or nothing, as asked")
  func rules() throws {
    let folder = try TemporaryFolder()
    let rules = try folder.write(
      "bad.rules",
      """
      alert tcp any any -> any any (msg:"good"; content:"x"; sid:1000001;)
      alert tcp any any -> any any (msg:"bad"; contnet:"x"; sid:1000002;)
      """)
    let capture = Program.quickstart.appending(path: "captures/vif1.0.pcapng").path
    let lenient = try Program.run("inspect", "--capture", capture, "--rules", rules, "--dialect", "snort2")
    #expect(lenient.status == 0)
    #expect(lenient.errors.contains("bad.rules:2:42: error:"), "\(lenient.errors)")
    #expect(lenient.errors.contains("did you mean `content`?"))
    #expect(lenient.errors.contains("rules: 1 loaded, 1 rejected"))
    let strict = try Program.run("inspect", "--capture", capture, "--rules", rules, "--dialect", "snort2", "--strict")
    #expect(strict.status == 65)
    #expect(strict.output.isEmpty)
  }

  @Test("a capture that is cut off is inspected to the cut, and the cut is named")
  func truncated() throws {
    let folder = try TemporaryFolder()
    let whole = try Data(contentsOf: Program.quickstart.appending(path: "captures/vif1.0.pcapng"))
    let cut = folder.path("cut.pcapng")
    try whole.prefix(whole.count - 7).write(to: URL(filePath: cut))
    let rules = Program.quickstart.appending(path: "rules/http.rules").path
    let result = try Program.run("inspect", "--capture", cut, "--rules", rules)
    #expect(result.status == 65)
    #expect(result.output.contains("1:1000001"))
    #expect(result.errors.contains("cut.pcapng"))
  }

  @Test("files that are not there have an exit code of their own")
  func missing() throws {
    #expect(try Program.run("replay", "no-such.yaml").status == 66)
    #expect(try Program.run("inspect", "--capture", "no-such.pcap", "--rules", "no-such.rules").status == 66)
  }

  @Test("an output that cannot be written is said before anything is done")
  func output() throws {
    let scenario = Program.quickstart.appending(path: "scenario.yaml").path
    let result = try Program.run("replay", scenario, "--eve", "/proc/no/such/file")
    #expect(result.status == 73)
    #expect(result.errors.contains("cannot be written"))
  }
}
#endif
