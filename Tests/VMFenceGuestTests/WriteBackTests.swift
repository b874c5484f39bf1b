import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceChannel

/// `vmfence-guest run --write-back`, in a guest whose kernel settings and /run are files.
@Suite("The kernel's write-back", .enabled(if: NetworkNamespace.isPossible, "\(NetworkNamespace.reason)"))
final class WriteBackTests {
  private let network: GuestNetwork
  /// Kernel settings, by name; and what stands for /run.
  private let settings: [String: String]
  private let runFolder: String
  private let said: String
  private let script: String
  private var agent: Process?

  init() throws {
    network = try GuestNetwork()
    let page = try network.file("page", [UInt8](repeating: 0, count: SharedPage.byteCount))
    settings = [
      "dirty_expire_centisecs": try network.file("expire", Array("3000\n".utf8)),
      "dirty_writeback_centisecs": try network.file("writeback", Array("500\n".utf8)),
    ]
    said = try network.file("said", [])
    runFolder = URL(filePath: said).deletingLastPathComponent().appending(path: "run").path
    try FileManager.default.createDirectory(atPath: runFolder, withIntermediateDirectories: true)
    var lines = settings.map { name, file in "mount --bind '\(file)' /proc/sys/vm/\(name)" }
    lines += [
      "mount --bind '\(runFolder)' /run",
      "exec \(try programPath()) run --page \(page) --config /dev/null --uuid \(guestUUID) \"$@\" 2>'\(said)'",
    ]
    script = try network.file("run.sh", Array(("set -e\n" + lines.joined(separator: "\n") + "\n").utf8))
  }

  deinit { agent?.terminate() }

  private var folder: String { runFolder + "/vmfence-guest" }
  private var record: String { folder + "/write-back" }

  private func value(_ name: String) throws -> String {
    let text = try String(contentsOfFile: try #require(settings[name]), encoding: .utf8)
    return String(text.prefix { $0 != "\n" })
  }

  /// Expiry and interval.
  private var values: [String] {
    get throws { [try value("dirty_expire_centisecs"), try value("dirty_writeback_centisecs")] }
  }

  private func set(_ name: String, to text: String) throws {
    try Data((text + "\n").utf8).write(to: URL(filePath: try #require(settings[name])), options: [])
  }

  /// Until it works: what it does about write-back comes before that. What one before it has said is gone.
  private func start(_ options: String = "") throws {
    try Data().write(to: URL(filePath: said))
    agent = try network.guest.start("sh \(script) \(options)")
    #expect(try comesTrue { try message.contains("waiting for the host") })
  }

  private var message: String { get throws { try String(contentsOfFile: said, encoding: .utf8) } }

  private func end(_ signal: Int32) throws {
    let ended = try #require(agent)
    kill(ended.processIdentifier, signal)
    ended.waitUntilExit()
  }

  @Test("is shortened as long as the program runs, and nothing is left of it")
  func plain() throws {
    try start("--write-back 1")
    #expect(try values == ["100", "100"])
    let attributes = try FileManager.default.attributesOfItem(atPath: folder)
    #expect(attributes[.posixPermissions] as? Int == 0o700)
    try end(SIGTERM)
    #expect(try values == ["3000", "500"])
    #expect(try FileManager.default.contentsOfDirectory(atPath: folder).isEmpty)
  }

  @Test(
    "comes back with the clean end after a kill, whatever the option is then",
    arguments: ["--write-back 1", "--write-back 20", ""])
  func killed(options: String) throws {
    for _ in 0..<2 {
      try start("--write-back 1")
      try end(SIGKILL)
      #expect(try values == ["100", "100"])
    }
    try start(options)
    let expected = ["--write-back 1": ["100", "100"], "--write-back 20": ["2000", "500"]]
    #expect(try values == expected[options] ?? ["3000", "500"])
    try end(SIGTERM)
    #expect(try values == ["3000", "500"])
  }

  @Test("is what the administrator set meanwhile, while the program runs, and after it was killed")
  func others() throws {
    try start("--write-back 1")
    try set("dirty_expire_centisecs", to: "1500")
    try end(SIGTERM)
    #expect(try values == ["1500", "500"])
    try start("--write-back 1")
    try end(SIGKILL)
    try set("dirty_expire_centisecs", to: "700")
    try start("--write-back 1")
    #expect(try values == ["100", "100"])
    try end(SIGTERM)
    #expect(try values == ["700", "500"])
  }

  @Test("a record of another boot, or with anything else in it, sets nothing")
  func hostileRecords() throws {
    try start("--write-back 1")
    let good = try String(contentsOfFile: record, encoding: .utf8)
    try end(SIGTERM)
    let lines = good.split(separator: "\n").map(String.init)
    #expect(lines.count == 4 && lines[2] == "dirty_expire_centisecs 3000 100")
    func with(_ third: String) -> String { "\(lines[0])\n\(lines[1])\n\(third)\n" }
    let texts = [
      good.replacing(lines[1], with: "boot 11111111-1111-4111-8111-111111111111"),
      "", String(good.dropLast()), good + "\n", good + good, String(repeating: good, count: 100),
      with("dirty_expire_centisecs 9 3000 1"), with("dirty_expire_centisecs -9 3000"),
      with("dirty_expire_centisecs 9999999999 3000"), with("dirty_expire_centisecs  3000"),
      with("../../kernel/core_pattern 9 3000"), with("dirty_expire_centisecs 9 3000\ndirty_expire_centisecs 8 3000"),
    ]
    for text in texts {
      try Data(text.utf8).write(to: URL(filePath: record))
      try start()
      #expect(try values == ["3000", "500"], "\(text)")
      try end(SIGTERM)
    }
    // This one is as good as the program's own.
    try Data(with("dirty_expire_centisecs 9 3000").utf8).write(to: URL(filePath: record))
    try start()
    #expect(try values == ["9", "500"])
  }

  @Test("where others may write nothing is read or kept, which is said, and it is shortened all the same")
  func othersFolder() throws {
    try start("--write-back 1")
    let good = try Data(contentsOf: URL(filePath: record)).replacing(Data("3000 100".utf8), with: Data("9 3000".utf8))
    try end(SIGTERM)
    func look() throws {
      try start("--write-back 1")
      #expect(try values == ["100", "100"])
      #expect(try message.contains("/run/vmfence-guest"))
      try end(SIGTERM)
      #expect(try values == ["3000", "500"])
    }
    // A folder that others may write, a record that they may, one that is a link, and another's folder.
    try good.write(to: URL(filePath: record))
    try network.guest.run("chmod 777 '\(folder)'")
    try look()
    try network.guest.run("chmod 755 '\(folder)'; chmod 666 '\(record)'")
    try look()
    try good.write(to: URL(filePath: runFolder + "/elsewhere"))
    try network.guest.run("rm -f '\(record)'; ln -s ../elsewhere '\(record)'")
    try look()
    try network.guest.run("rm -rf '\(folder)'; ln -s . '\(folder)'")
    try look()
    try network.guest.run("rm '\(folder)'; mkdir -m 755 '\(folder)'; chown 65534 '\(folder)'")
    try look()
  }

  @Test("a second program beside does not put back what the first one has shortened")
  func second() throws {
    try start("--write-back 1")
    let first = try #require(agent)
    defer { first.terminate() }
    try start()
    #expect(try values == ["100", "100"])
    try end(SIGTERM)
    #expect(try values == ["100", "100"])
    agent = first
    try end(SIGTERM)
    #expect(try values == ["3000", "500"])
  }
}
