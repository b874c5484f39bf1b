import Foundation
import Testing

/// The Swift that the documents show is Swift that compiles, against the modules as they were built.
@Suite("The code in the documents compiles")
struct DocumentCodeTests {
  private static let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()

  /// What a piece of code stands in, by the words that it begins with: what is imported, and what its text takes for granted. Whole programs need nothing.
  private static let surroundings: [(begins: String, imports: [String], given: String)] = [
    (
      "try PacketSourceConformance()", ["VMFenceCore", "VMFenceConformance", "VMFenceTestKit", "Testing"],
      "text: String, start: Timestamp, texts: RuleEngineConformance.Texts"
    ),
    (
      "let (log, recovery)", ["VMFenceCore"],
      "policy: Policy, directory: DomainDirectory, now: Timestamp, firewall: any FirewallSink, sink: any EventSink"
    ),
    (
      "let opener = try PacketSocketOpener", ["VMFenceCore", "VMFenceCapture", "VMFenceProcess"],
      "port: PortID, openWhatIsMissing: () -> Void"
    ),
    ("let sink = try ProcessFirewallSink", ["VMFenceCore", "VMFenceNftables", "VMFenceProcess"], ""),
    ("let probe = try XenProbe.open(clock: SteadyClock())", ["VMFenceCore", "VMFenceXen"], ""),
    ("let xen = try XenTransport.process", ["VMFenceCore", "VMFenceXen", "VMFenceProcess"], ""),
  ]

  /// Documents with what they show, and comments of sources likewise.
  private static func pieces() throws -> [(place: String, code: String)] {
    var found: [(String, String)] = []
    for folder in ["README.md", "Docs", "Sources"] {
      let base = root.appending(path: folder)
      let below =
        FileManager.default.enumerator(at: base, includingPropertiesForKeys: nil)?.compactMap { $0 as? URL } ?? []
      for url in below.isEmpty ? [base] : below.sorted(by: { $0.path < $1.path }) {
        guard ["md", "swift"].contains(url.pathExtension) else { continue }
        var text = try String(contentsOf: url, encoding: .utf8)
        guard text.contains("```swift") else { continue }
        if url.pathExtension == "swift" {
          let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
          text = lines.map { line in
            let comment = line.drop { $0 == " " }
            return comment.hasPrefix("///") ? comment.dropFirst(comment.hasPrefix("/// ") ? 4 : 3) : ""
          }.joined(separator: "\n")
        }
        let path = String(url.path.dropFirst(root.path.count + 1))
        for block in Document(path: path, text: text).blocks where block.language == "swift" {
          found.append(("\(path):\(block.number)", block.text))
        }
      }
    }
    return found
  }

  /// Where the modules lie: beside the test runner, or beside the bundle that it was given.
  private static func modules() throws -> URL {
    let beside = URL(filePath: "/proc/self/exe").resolvingSymlinksInPath().deletingLastPathComponent()
    let bundles = CommandLine.arguments.filter { $0.hasSuffix(".xctest") }.map {
      URL(filePath: $0).deletingLastPathComponent()
    }
    return try #require(
      ([beside] + bundles).map { $0.appending(path: "Modules") }.first {
        FileManager.default.fileExists(atPath: $0.appending(path: "VMFenceCore.swiftmodule").path)
      }, "no built modules lie beside the tests")
  }

  /// - Returns: what the compiler says against it; nil when nothing.
  private static func compile(_ code: String, with others: [String] = []) throws -> String? {
    let folder = FileManager.default.temporaryDirectory.appending(path: "vmfence-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    let (main, log) = (folder.appending(path: "main.swift"), folder.appending(path: "log"))
    try Data(code.utf8).write(to: main)
    _ = FileManager.default.createFile(atPath: log.path, contents: nil)
    let process = Process()
    process.executableURL = URL(filePath: "/usr/bin/env")
    // A module of ours may have to load those of C that it imports for itself alone.
    let built = try modules().deletingLastPathComponent()
    let maps = try FileManager.default.contentsOfDirectory(atPath: root.appending(path: "Sources").path).sorted()
      .filter { $0.hasPrefix("C") }.flatMap { name in
        [
          root.appending(path: "Sources/\(name)/module.modulemap"),
          built.appending(path: "\(name).build/module.modulemap"),
        ]
      }.map(\.path).filter(FileManager.default.fileExists).map { "-fmodule-map-file=" + $0 }
    process.arguments =
      ["swiftc", "-typecheck", "-swift-version", "6", "-module-name", "document", "-I", try modules().path]
      + maps.flatMap { ["-Xcc", $0] } + [main.path] + others.map { root.appending(path: $0).path }
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = FileHandle(forWritingAtPath: log.path)
    process.standardError = FileHandle(forWritingAtPath: log.path)
    try process.run()
    process.waitUntilExit()
    let said = try String(contentsOf: log, encoding: .utf8)
    return process.terminationStatus == 0 ? nil : said
  }

  @Test("each piece is a program, or stands in what is said of it here, and compiles")
  func compiles() throws {
    let pieces = try Self.pieces()
    #expect(pieces.count > 8)
    for (place, code) in pieces where !code.hasPrefix(".package(") {
      var (text, others): (String, [String]) = (code, [])
      if !code.contains("import ") {
        guard let known = Self.surroundings.first(where: { code.hasPrefix($0.begins) }) else {
          Issue.record("\(place): nobody says what this stands in: add it to the table of this test")
          continue
        }
        text =
          known.imports.map { "import \($0)\n" }.joined() + "func example(\(known.given)) async throws {\n\(code)\n}\n"
        if known.imports.contains("VMFenceConformance") {
          text += "typealias MySink = RecordingFirewallSink\n"
          let folder = "Examples/embedding/Sources/Adapters"
          others = try FileManager.default.contentsOfDirectory(atPath: Self.root.appending(path: folder).path)
            .filter { $0.hasSuffix(".swift") }.map { folder + "/" + $0 }
        }
      }
      if let said = try Self.compile(text, with: others) { Issue.record("\(place) does not compile:\n\(said)") }
    }
  }

  @Test("code that is wrong is found")
  func broken() throws {
    #expect(try Self.compile("import VMFenceCore\nlet a = PortID(1)\nprint(a)\n") == nil)
    #expect(try Self.compile("import VMFenceCore\nlet a = PortNumber(1)\n")?.contains("PortNumber") == true)
  }

  @Test("the manifest's lines name products that there are, and the guide says what each needs")
  func products() throws {
    let manifest = try String(contentsOf: Self.root.appending(path: "Package.swift"), encoding: .utf8)
    let guide = try String(contentsOf: Self.root.appending(path: "Docs/Embedding.md"), encoding: .utf8)
    let libraries = Set(manifest.matches(of: /\.library\(name: "([^"]+)"/).map { String($0.1) })
    let named = Set(guide.matches(of: /\.product\(name: "([^"]+)", package: "vmfence"\)/).map { String($0.1) })
    #expect(!named.isEmpty && named.isSubset(of: libraries))
    // The rows of the table of products: what they are, and what they need.
    let rows = guide.split(separator: "\n").filter { $0.hasPrefix("| `VMFence") }.map { $0.split(separator: "|") }
    #expect(libraries.subtracting(rows.flatMap { $0[0].matches(of: /`(VMFence\w+)`/).map { String($0.1) } }) == [])
    let places = manifest.matches(of: /\.systemLibrary\(name: "(\w+)", pkgConfig: "([^"]+)"/)
    let names = Dictionary(uniqueKeysWithValues: places.map { (String($0.1), String($0.2)) })
    #expect(names.count > 5)
    for match in manifest.matches(of: /\.target\(\s*name: "(VMFence\w+)",\s*dependencies: \[([^\]]*)\]/) {
      let needs =
        names.filter { match.2.contains("\"\($0.key)\"") }.map(\.value)
        + (match.2.contains("CNftables") ? ["libnftnl", "libmnl"] : [])
      let row = rows.first { $0[0].contains("`\(match.1)`") }
      for library in needs { #expect(row?[1].contains(library) == true, "\(match.1) needs \(library)") }
    }
  }
}
