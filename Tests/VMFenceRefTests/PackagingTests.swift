#if Daemon
import Foundation
import NetworkTestSupport
import Testing

/// The units' files, as systemd reads them. What they do under a systemd that runs is tried in a real Dom0 (Tests/Rig, `units`).
@Suite(
  "The units",
  .enabled(if: FileManager.default.isExecutableFile(atPath: "/usr/bin/systemd-analyze"), "needs systemd-analyze"))
struct PackagingTests {
  /// Each under the name that an instance has, and the exposure that `systemd-analyze security` may find, of 100. A unit that gets worse has lost
  /// something that it forbade itself.
  private static let units = [
    ("vmfence.service", "vmfence.service", 40), ("vmfence-guest.service", "vmfence-guest.service", 30),
    ("vmfence-disk@.service", "vmfence-disk@web.service", 50),
  ]

  /// The unit with programs that are here, since systemd asks whether they are.
  private func copy(_ file: String, as name: String, in folder: TemporaryFolder) throws -> String {
    var text = try String(contentsOf: Program.root.appending(path: "packaging/\(file)"), encoding: .utf8)
    for program in [
      "/usr/bin/vmfence-ref", "/usr/sbin/vmfence-guest", "/usr/lib/vmfence/disk-path", "/sbin/modprobe",
    ] { text = text.replacingOccurrences(of: program, with: "/bin/true") }
    return try folder.write(name, text)
  }

  @Test("systemd finds no fault in them", arguments: units)
  func verify(file: String, name: String, exposure: Int) throws {
    let folder = try TemporaryFolder()
    let path = try copy(file, as: name, in: folder)
    let output = try NetworkNamespace.shell("systemd-analyze verify '\(path)' 2>&1")
    #expect(!output.contains(name), "\(output)")
  }

  @Test("they forbid themselves what they do not need", arguments: units)
  func security(file: String, name: String, exposure: Int) throws {
    let folder = try TemporaryFolder()
    let path = try copy(file, as: name, in: folder)
    _ = try NetworkNamespace.shell(
      "systemd-analyze security --no-pager --offline=yes --threshold=\(exposure) '\(path)' >'\(folder.path("said"))' 2>&1 "
        + "|| { cat '\(folder.path("said"))'; exit 1; }")
  }

  @Test("the daemon comes after xenstored and before guests, and the disks' units are none of its own")
  func order() throws {
    let daemon = try String(contentsOf: Program.root.appending(path: "packaging/vmfence.service"), encoding: .utf8)
    func values(_ key: String, _ text: String) -> Set<Substring> {
      Set(
        text.split(separator: "\n").filter { $0.hasPrefix(key + "=") }.flatMap {
          $0.dropFirst(key.count + 1).split(separator: " ")
        })
    }
    #expect(values("After", daemon).isSuperset(of: ["xenstored.service", "xen.service"]))
    #expect(values("KillMode", daemon) == ["mixed"], "detectors are to say what they remember")
    #expect(values("Before", daemon).isSuperset(of: ["xendomains.service"]))
    // A condition would skip it without a word, and the start would be called a success.
    #expect(values("AssertPathExists", daemon) == ["/proc/xen/capabilities"])
    #expect(!daemon.contains("\nCondition"))
    let disk = try String(contentsOf: Program.root.appending(path: "packaging/vmfence-disk@.service"), encoding: .utf8)
    for key in ["PartOf", "BindsTo", "Requires"] { #expect(!values(key, disk).contains("vmfence.service")) }
    #expect(values("Slice", disk) == ["vmfence-disk.slice"])
  }
}

/// What the packages' own scripts do.
@Suite("The packages", .enabled(if: NetworkNamespace.isPossible, Comment(rawValue: NetworkNamespace.reason)))
struct PackageTests {
  private func text(_ path: String) throws -> String {
    try String(contentsOf: Program.root.appending(path: path), encoding: .utf8)
  }

  @Test("whoever removes the daemon's package has the packet filter as it was; an upgrade leaves all in force")
  func removal() throws {
    let host = try NetworkNamespace("prerm")
    let script = Program.root.appending(path: "packaging/vmfence.prerm").path
    try host.run(
      "nft add table bridge other; nft add table bridge vmfence; nft add set bridge vmfence guarded '{ type ifname; }'")
    try host.run("sh '\(script)' upgrade 0.2.0")
    #expect(try host.run("nft list tables") == "table bridge other\ntable bridge vmfence\n")
    try host.run("sh '\(script)' remove")
    #expect(try host.run("nft list tables") == "table bridge other\n")
    // Where there is none.
    #expect(try host.run("sh '\(script)' remove") == "")
  }

  @Test("a purge removes what was written, a removal or an upgrade nothing, and neither what an administrator wrote")
  func purge() throws {
    let folder = try TemporaryFolder()
    let kept = ["etc/vmfence/rules/mine.rules", "var/lib/vmfence-other/file", "var/log/other"]
    let written = [
      "var/lib/vmfence/decisions.log", "var/lib/vmfence/spool/1", "var/lib/vmfence-disk/web.windows",
      "var/log/vmfence/eve.json", "var/log/vmfence/eve.json.2.gz",
    ]
    for path in kept + written {
      try FileManager.default.createDirectory(
        atPath: (folder.path(path) as NSString).deletingLastPathComponent, withIntermediateDirectories: true)
      _ = try folder.write(path, "x")
    }
    let text = try text("packaging/vmfence.postrm")
    #expect(text.contains(" /var/"))
    let script = try folder.write("postrm", text.replacingOccurrences(of: " /var/", with: " \(folder.path("var"))/"))
    func exist(_ paths: [String]) -> [String] {
      paths.filter { FileManager.default.fileExists(atPath: folder.path($0)) }
    }
    for act in ["remove", "upgrade 0.2.0", "disappear"] { _ = try NetworkNamespace.shell("sh '\(script)' \(act)") }
    #expect(exist(kept + written) == kept + written)
    _ = try NetworkNamespace.shell("sh '\(script)' purge")
    #expect(exist(kept + written) == kept)
    #expect(exist(["var/lib/vmfence", "var/lib/vmfence-disk", "var/log/vmfence"]).isEmpty)
    // Where nothing was written.
    _ = try NetworkNamespace.shell("sh '\(script)' purge")
    // What it removes is what the units have systemd make.
    for unit in ["vmfence.service", "vmfence-disk@.service"] {
      for line in try self.text("packaging/\(unit)").split(separator: "\n") {
        for (key, place) in [("StateDirectory=", "/var/lib/"), ("LogsDirectory=", "/var/log/")]
        where line.hasPrefix(key) { #expect(text.contains("\(place)\(line.dropFirst(key.count)) "), "\(line)") }
      }
    }
  }

  @Test("the folder of logs has one mode, whichever unit starts last")
  func logs() throws {
    let modes = try ["vmfence.service", "vmfence-disk@.service"].map { unit in
      try text("packaging/\(unit)").split(separator: "\n").filter { $0.hasPrefix("LogsDirectory") }
    }
    #expect(modes == Array(repeating: ["LogsDirectory=vmfence", "LogsDirectoryMode=0750"], count: 2))
  }

  @Test("what Xen's scripts call comes with what the package depends on")
  func dependencies() throws {
    let line = try #require(
      try text("scripts/build-deb").split(separator: "\n").first { $0.hasPrefix("pack vmfence ") })
    let depends = line.split(whereSeparator: { " ,\"".contains($0) })
    // Packages that are on every Debian are not named.
    let packages = ["nft": "nftables", "dmsetup": "dmsetup", "python3": "python3"]
    let scripts = try ["vif-vmfence", "block-vmfence"].map { try text("packaging/xen-scripts/\($0)") }.joined()
    for (program, package) in packages {
      #expect(scripts.contains("\(program) ") && depends.contains(Substring(package)), "\(program)")
    }
  }
}
#endif
