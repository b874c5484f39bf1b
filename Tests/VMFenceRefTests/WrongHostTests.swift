#if Daemon
import Foundation
import Testing

/// What people do wrong in a host's configuration, and in the files that it names.
@Suite("Mistakes in the configuration of a host")
struct WrongHostTests {
  private let folder: TemporaryFolder

  init() throws {
    folder = try TemporaryFolder()
    _ = try folder.write("a.rules", "alert tcp any any -> any any (msg:\"m\"; content:\"x\"; sid:1;)\n")
    _ = try folder.write("policy.yaml", "rules: []\n")
    _ = try folder.write("inventory.yaml", "version: 1\ndomains: []\n")
    try FileManager.default.createDirectory(atPath: folder.path("folder"), withIntermediateDirectories: false)
  }

  private static let host = """
    version: 1
    inventory: inventory.yaml
    rules: {dialect: snort2, common: a.rules}
    firewall: {kind: nftables, table: vmfence}
    metrics: {port: 9477}
    policy: policy.yaml

    """

  private func check(_ bytes: some Sequence<UInt8>) throws -> Program.Result {
    let path = folder.path("host.yaml")
    try Data(bytes).write(to: URL(filePath: path))
    return try Program.run("check", "--live", path)
  }

  /// What is replaced, by what, and what is said.
  @Test(
    "each is named with its place and what to do",
    arguments: [
      (
        "{port: 9477}", "\n  port: 9477\n   address: ::1", "7:11: error: not valid YAML: mapping values",
        "one indentation"
      ),
      ("{port: 9477}", "\n   port: 9477\n  address: ::1", "7:3: error: not valid YAML: ", "one indentation"),
      ("{port: 9477}", "\n\tport: 9477", "6:1: error: not valid YAML: ", "there is a tab: indent with spaces only"),
      ("{port: 9477}", "\n  port:9477", "6:3: error: metrics must be a mapping", "a space behind the colon"),
      (
        "{port: 9477}", "{port: 9477", "6:7: error: not valid YAML: while parsing a flow mapping at 5:10: ",
        "are closed"
      ),
      ("vmfence}", "\"vmfence}", ": error: not valid YAML: while scanning a quoted scalar at 4:35: ", "are closed"),
      ("metrics", "node: a: b\nmetrics", "5:8: error: not valid YAML: ", "stands in quotes"),
      ("metrics", "control-socket: @abc\nmetrics", "5:17: error: not valid YAML: ", "begins with `@` stands in quotes"),
      ("a.rules", "*.rules", "3:35: error: not valid YAML: ", "begins with `*` stands in quotes"),
      ("metrics: {port: 9477}", "---\nversion: 1", "5:1: error: not valid YAML: expected a single document", "("),
      (
        "metrics", "node: d\u{1B}m\nmetrics", "5:8: error: not valid YAML: control characters are not allowed (U+001B)",
        "take it out"
      ),
      ("metrics: {", "metrics: {port: 1}\nmetrics: {", ": error: a key stands twice: metrics", "keep one"),
      ("9477", "[9477]", "5:17: error: metrics.port must be a text", "no list and no mapping"),
      ("metrics:", "captures: vif1.0\nmetrics:", "5:11: error: captures must be a list", "begin with `- `"),
      (
        "table: vmfence", "routers: [[fe80::1]]", "4:38: error: firewall.routers must be a list of texts",
        "each of them one value"
      ),
      ("version: 1", "version: 2", "1:10: error: version: `2` is not 1", ""),
      ("port: 9477", "port: -1", "5:17: error: metrics.port: `-1` is not a whole number from 1 to 65535", ""),
      (
        "port: 9477", "port: 99999999999999999999", "5:17: error: metrics.port: `99999999999999999999` is not a whole",
        ""
      ),
      (
        "port: 9477", "address: 300.1.1.1", "5:20: error: metrics.address: `300.1.1.1` is not an IP address",
        "127.0.0.1"
      ),
      ("metrics", "metriks", "5:1: error: unknown key `metriks`", "did you mean `metrics`?"),
      (
        "inventory.yaml", "inventry.yaml",
        "2:12: error: the inventory `FOLDER/inventry.yaml` cannot be read: No such file", "relative to the folder"
      ),
      (
        "policy.yaml", "../p.yaml", "6:9: error: the policy `FOLDER/../p.yaml` cannot be read: No such file",
        "relative to the folder"
      ),
      (
        "a.rules", "folder", "3:34: error: the file `FOLDER/folder` cannot be read: Is a directory",
        "relative to the folder"
      ),
      (
        "policy.yaml", "folder", "6:9: error: the policy `FOLDER/folder` cannot be read: Is a directory",
        "relative to the folder"
      ),
      (
        "metrics", "notifications: [{syslog: \"udp://192.0.2.1:0\"}]\nmetrics",
        "5:26: error: notifications[0].syslog: ", ""
      ),
      (
        "metrics", "notifications: [{syslog: \"tcp://300.1.1.1\"}]\nmetrics", "5:26: error: notifications[0].syslog: ",
        ""
      ),
      ("metrics", "notifications: [{syslog: \"local:\"}]\nmetrics", "5:26: error: notifications[0].syslog: ", ""),
      (
        "metrics", "control-socket: \(String(repeating: "a", count: 108))\nmetrics",
        "5:17: error: control-socket: `aaaa", "107 bytes at the most"
      ),
    ])
  func mistake(replace: String, with: String, says: String, remedy: String) throws {
    let result = try check(Self.host.replacing(replace, with: with, maxReplacements: 1).utf8)
    #expect(result.status == 65, "\(result)")
    let line = result.output.split(separator: "\n").first.map(String.init) ?? ""
    #expect(line.hasPrefix("\(folder.path("host.yaml")):"), "\(result.output)")
    #expect(line.contains("host.yaml:") && line.contains(says.replacing("FOLDER", with: folder.url.path)), "\(line)")
    #expect(remedy.isEmpty || line.contains(remedy), "\(line)")
  }

  @Test("of bytes that are no UTF-8 the first is named")
  func encodings() throws {
    let latin = try check(Array(Self.host.utf8) + Array("node: d".utf8) + [0xF6] + Array("m\n".utf8))
    #expect(
      latin.status == 65
        && latin.output.contains("host.yaml:7:8: error: the file is not UTF-8 text (save it as UTF-8)"), "\(latin)")
    let wide = try check([0xFF, 0xFE] + Self.host.utf16.flatMap { [UInt8(truncatingIfNeeded: $0), 0] })
    #expect(wide.status == 65 && wide.output.contains("host.yaml:1:1: error: the file is not UTF-8 text"), "\(wide)")
  }

  @Test("line ends of other systems and a byte order mark are no mistakes")
  func lineEnds() throws {
    for text in [
      Self.host.replacing("\n", with: "\r\n"), Self.host.replacing("\n", with: "\r"), "\u{FEFF}" + Self.host,
    ] {
      let result = try check(text.utf8)
      #expect(result.status == 0, "\(result)")
    }
  }

  @Test(
    "what is named on the command line and is no file has the status of what cannot be read", .timeLimit(.minutes(5)))
  func noFiles() throws {
    let pipe = folder.path("pipe")
    // SAFETY: the path is read up to its NUL.
    #expect(unsafe mkfifo(pipe, 0o600) == 0)
    for (path, reason) in [
      (folder.path("gone"), "No such file or directory"), (folder.path("folder"), "Is a directory"),
      (pipe, "it is no regular file"), ("/dev/zero", "it is no regular file"),
    ] {
      for live in [["--live"], []] {
        let result = try Program.run(["check"] + live + [path])
        #expect(result.status == 66, "\(result)")
        #expect(
          result.output.contains("\(path): error: the file cannot be read: \(reason) (check the path"), "\(result)")
      }
    }
    let empty = try check([])
    #expect(empty.status == 65 && empty.output.contains("host.yaml: error: the file is empty (see the examples"))
    let large = try check(repeatElement(UInt8(ascii: "#"), count: 4 << 20 + 1))
    #expect(large.status == 65, "\(large)")
  }
}
#endif
