#if Daemon
import Foundation
import Testing

/// What `check --live` finds of what a host's configuration names: programs, folders, sockets, guests.
@Suite("Programs, folders, sockets and names in the configuration of a host")
struct WrongPathTests {
  private let folder: TemporaryFolder

  init() throws {
    folder = try TemporaryFolder()
    _ = try folder.write("a.rules", "alert tcp any any -> any any (msg:\"m\"; content:\"x\"; sid:1;)\n")
    _ = try folder.write(
      "inventory.yaml",
      """
      version: 1
      domains:
        - {name: web, uuid: 6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0001, domid: 1, ports: []}

      """)
    _ = try folder.write("plain", "")
    try FileManager.default.createDirectory(atPath: folder.path("folder"), withIntermediateDirectories: false)
  }

  private static let host = """
    version: 1
    inventory: inventory.yaml
    rules: {dialect: snort2, common: a.rules}

    """

  private func check(_ text: String, host: String = Self.host) throws -> Program.Result {
    let before = try FileManager.default.subpathsOfDirectory(atPath: folder.url.path).sorted()
    let path = try folder.write("host.yaml", host + text)
    let result = try Program.run("check", "--live", path)
    let after = try FileManager.default.subpathsOfDirectory(atPath: folder.url.path).sorted()
    #expect(Set(after).subtracting(before).isSubset(of: ["host.yaml"]), "nothing is made: \(after)")
    return result
  }

  /// What is written, what is said and at which severity.
  @Test(
    "what is missing or cannot be written is named with its place and what to do",
    arguments: [
      (
        "control: {pause: [/usr/bin/virhs, suspend]}",
        "4:18: error: control.pause: the program `/usr/bin/virhs` cannot be started: No such file", "absolute path"
      ),
      (
        "control:\n  shut-down: [FOLDER/plain, x]",
        "5:14: error: control.shut-down: the program `FOLDER/plain` cannot be started: Permission denied", "chmod +x"
      ),
      ("control: {resume: [FOLDER/folder]}", "error: control.resume: `FOLDER/folder` is no program", "installed"),
      (
        "state-directory: plain", "4:18: error: state-directory: `FOLDER/plain`: it cannot be written: the folder",
        "Not a directory (name another)"
      ),
      (
        "state-directory: plain/state", "error: state-directory: `FOLDER/plain/state`: it cannot be made",
        "Not a directory"
      ),
      (
        "control-socket: gone/control", "4:17: error: control-socket: `FOLDER/gone/control`: its socket cannot be made",
        "`FOLDER/gone` cannot be written: No such file or directory (make it, or name another)"
      ),
      (
        "notifications: [{eve-file: gone/eve.json}]",
        "4:28: error: notifications[0].eve-file: `FOLDER/gone/eve.json`: it cannot be made", "make it, or name another"
      ),
      (
        "notifications: [{fast-file: folder}]",
        "error: notifications[0].fast-file: `FOLDER/folder`: it cannot be written: Is a directory", "name a file in it"
      ),
      (
        "notifications: [{syslog: local}, {eve-socket: gone/socket}]",
        "4:47: warning: notifications[1].eve-socket: nobody can listen on `FOLDER/gone/socket` yet", "check the path"
      ),
      (
        "disks: [{name: web, control: gone/web.control}]",
        "4:30: warning: disks[0].control: nobody can listen on `FOLDER/gone/web.control` yet", "check the path"
      ),
      (
        "firewall: {anti-spoofing-exceptions: {wbe: [dhcp]}}",
        "4:39: warning: firewall.anti-spoofing-exceptions: no guest here is called `wbe`", "did you mean `web`?"
      ),
      (
        "firewall: {anti-spoofing-exceptions: {\"other\\e[m\": none}}",
        "warning: firewall.anti-spoofing-exceptions: no guest here is called `other\\u{1b}[m`", "that comes later"
      ),
    ])
  func mistake(text: String, says: String, remedy: String) throws {
    let result = try check(text.replacing("FOLDER", with: folder.url.path) + "\n")
    #expect(result.status == (says.contains("error: ") ? 65 : 0), "\(result)")
    let line = result.output.split(separator: "\n").first.map(String.init) ?? ""
    #expect(line.hasPrefix("\(folder.path("host.yaml")):"), "\(result)")
    for part in [says, remedy] {
      #expect(line.contains(part.replacing("FOLDER", with: folder.url.path)), "\(part): \(line)")
    }
  }

  @Test("what is there, or is made when it is needed, is right")
  func right() throws {
    let result = try check(
      """
      state-directory: state/of/this
      control-socket: "@control"
      control: {pause: [/bin/sh, "{name}"], resume: [/bin/sh]}
      notifications: [{eve-file: plain}, {fast-file: folder/fast.log}, {eve-socket: folder/socket}]
      firewall: {anti-spoofing-exceptions: {web: [dhcp]}}

      """)
    #expect(result.status == 0 && result.output.contains("nothing is wrong (0 warnings)"), "\(result)")
    // What the unit makes before the daemon starts is not missed.
    let units = try check("control-socket: /run/vmfence/a\nnotifications: [{fast-file: /var/log/vmfence/a}]\n")
    #expect(units.status == 0 && units.output.contains("nothing is wrong (0 warnings)"), "\(units)")
    let unit = try String(
      contentsOf: Program.root.appending(path: "packaging/vmfence.service"), encoding: .utf8)
    #expect(unit.contains("RuntimeDirectory=vmfence\n") && unit.contains("LogsDirectory=vmfence\n"))
  }

  @Test("where a hypervisor knows the guests, names are compared with those that the configuration has otherwise")
  func hypervisors() throws {
    let host = "version: 1\nhypervisor: xen\nrules: {common: a.rules}\n"
    let exceptions = "firewall: {anti-spoofing-exceptions: {wbe: [dhcp]}}\n"
    let none = try check(exceptions, host: host)
    #expect(none.status == 0 && !none.output.contains("wbe"), "\(none)")
    let named = try check("guests: [{name: web, service: http}]\n" + exceptions, host: host)
    #expect(
      named.status == 0 && named.output.contains("no guest here is called `wbe` (did you mean `web`?)"), "\(named)")
  }

  @Test(
    "a header that would be another, or none, is refused by its place, without its value",
    arguments: [
      ("X Y: secret", "`X Y` is no name of a header"), ("\"X:Y\": secret", "`X:Y` is no name of a header"),
      ("é: secret", "is no name of a header"), ("\"\": secret", "`` is no name of a header"),
      ("X: \"secret\\r\\nY: z\"", "the value of `X` has a line break"),
      ("X: \"secret\\0\"", "or another control character"), ("Content-Length: secret", "says of its length"),
      ("X-A: secret, x-a: b", "`x-a` stands twice"),
    ])
  func headers(text: String, says: String) throws {
    let result = try check("notifications: [{webhook: \"https://example.org/\", headers: {\(text)}}]\n")
    #expect(result.status == 65 && result.output.contains("host.yaml:4:"), "\(result)")
    #expect(result.output.contains("notifications[0].headers") && result.output.contains(says), "\(result)")
    #expect(!result.output.contains("secret"), "\(result)")
    let run = try Program.run("run", "--config", folder.path("host.yaml"))
    #expect(run.status == 65 && run.errors.contains(says), "\(run)")
    let right = try check(
      "notifications: [{webhook: \"https://example.org/\", headers: {X-A.b~c: \"a\\tö \", Authorization: Bearer x}}]\n")
    #expect(right.status == 0, "\(right)")
  }

  @Test("a list of rules' options that cannot be read was named on the command line, so it has that status")
  func lists() throws {
    for (option, name, reason) in [
      ("--definitions", "gone", "No such file or directory"), ("--disable-list", "folder", "Is a directory"),
      ("--country-database", "/dev/zero", "it is no regular file"),
    ] {
      let result = try Program.run(
        "check", folder.path("a.rules"), option, name.hasPrefix("/") ? name : folder.path(name))
      #expect(result.status == 66 && result.output.contains("\(name)` cannot be read: \(reason)"), "\(result)")
    }
    let scenario = try folder.write("scenario.yaml", "version: 1\nrules: {common: folder}\n")
    let result = try Program.run("check", scenario)
    #expect(
      result.output.contains("scenario.yaml:2:17: error: the file `\(folder.path("folder"))` cannot be read: Is a dir"))
  }
}
#endif
