import Foundation
import Testing

/// What the documents name is there, and what is there they name.
@Suite("The documents and the house agree")
struct DocumentTests {
  private static let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()

  private static func text(_ path: String) throws -> String {
    try String(contentsOf: root.appending(path: path), encoding: .utf8)
  }

  private static func documents() throws -> [Document] {
    var paths = ["README.md"]
    for folder in ["Docs", "Examples", "Tests", "Benchmarks", "Fuzz", "packaging"] {
      let found = FileManager.default.enumerator(
        at: root.appending(path: folder), includingPropertiesForKeys: nil, options: [.skipsHiddenFiles])
      paths += (found?.compactMap { $0 as? URL } ?? []).filter { $0.pathExtension == "md" }
        .map { String($0.path.dropFirst(root.path.count + 1)) }
    }
    return try paths.sorted().map { Document(path: $0, text: try text($0)) }
  }

  private static func exists(_ path: String) -> Bool {
    FileManager.default.fileExists(atPath: root.appending(path: path).path)
  }

  /// The text of the sources of a folder, one after another.
  private static func sources(_ folder: String) throws -> String {
    let base = root.appending(path: folder)
    let found = try #require(FileManager.default.enumerator(at: base, includingPropertiesForKeys: nil))
    return try found.compactMap { $0 as? URL }.filter { $0.pathExtension == "swift" }
      .map { try String(contentsOf: $0, encoding: .utf8) }.joined(separator: "\n")
  }

  private static func operating() throws -> Document {
    Document(path: "Docs/Operating.md", text: try text("Docs/Operating.md"))
  }

  /// The first part of the operator's guide that begins with `start` and ends before `end`.
  private func part(from start: String, to end: String) throws -> String {
    let text = try Self.operating().text
    let begin = try #require(text.range(of: start), "\(start) is not there any more")
    let rest = text[begin.upperBound...]
    return String(rest[..<(rest.range(of: end)?.lowerBound ?? rest.endIndex)])
  }

  private func spans(_ text: String) -> Set<String> { Set(text.matches(of: /`([^`\n]+)`/).map { String($0.1) }) }

  @Test("links lead to files and headings that are there, and so do names of files")
  func links() throws {
    let documents = try Self.documents()
    #expect(documents.count > 15)
    let anchors = Dictionary(uniqueKeysWithValues: documents.map { ($0.path, $0.anchors) })
    for document in documents {
      for violation in House.links(document, anchors: anchors, exists: Self.exists) { Issue.record("\(violation)") }
      for violation in House.paths(document, exists: Self.exists) { Issue.record("\(violation)") }
    }
  }

  @Test("every metric is in the operator's guide, and none that there is not")
  func metrics() throws {
    let source = try Self.sources("Sources/vmfence-ref/Live")
    let exported = Set(source.matches(of: /"(vmfence_[a-z_]+)"/).map { String($0.1) })
    // By name, those of the engine are in what `inspect` prints.
    let documented = Set(
      try Self.operating().code.matches(of: /vmfence_[a-z_]+/).map { String($0.0) }.filter {
        !$0.hasPrefix("vmfence_engine_") && !$0.hasSuffix("_")
      })
    #expect(exported.count > 30)
    // What is an event's type, or a table of the guest's.
    let others: Set<String> = [
      "vmfence_file", "vmfence_decision", "vmfence_lifecycle", "vmfence_platform", "vmfence_guest",
    ]
    #expect(House.difference(documented.subtracting(others), exported, of: "the metric") == [])
    let levels = Set(
      try Self.sources("Sources/VMFenceDetection").matches(of: /InspectorCounter\(\s*"([a-z_]+)",\s*\.level/).map {
        String($0.1)
      })
    let engine = Set(
      try Self.operating().code.matches(of: /vmfence_engine_([a-z_]*[a-z])/).map { String($0.1) })
    #expect(levels.count > 2)
    #expect(House.difference(engine, levels, of: "the engine's level") == [])
  }

  @Test("every label of a metric is in the operator's guide")
  func labels() throws {
    let source = try Self.text("Sources/vmfence-ref/Live/LiveRun+Metrics.swift")
    let labels = Set(source.matches(of: /\("([a-z]+)",\s/).map { String($0.1) })
    #expect(labels.count > 7)
    #expect(labels.subtracting(spans(try part(from: "### Metrics", to: "\n### "))).sorted() == [])
  }

  @Test("every reason by which errors of channels are counted is in the operator's guide, and none that there is not")
  func channelErrors() throws {
    let source = try Self.text("Sources/VMFenceChannel/ChannelError.swift")
    var reasons: Set<String> = []
    for match in source.matches(of: /\n  case (.+)/) {
      for name in match.1.split(separator: ",") {
        reasons.insert(name.split(separator: "=").last.map { $0.trimmingCharacters(in: ["\"", " "]) } ?? "")
      }
    }
    #expect(reasons.count > 8)
    let documented = spans(try part(from: "guest. Reasons: ", to: "A guest that never")).subtracting(["VMFenceChannel"])
    #expect(House.difference(documented, reasons, of: "the reason") == [])
  }

  @Test("every kind of platform event is in the operator's guide, and none that there is not")
  func platformKinds() throws {
    let source = try Self.text("Sources/VMFenceCore/Model/Event.swift")
    let kinds = Set(source.matches(of: /= Kind\("([a-z-]+)"\)/).map { String($0.1) })
    #expect(kinds.count > 20)
    #expect(House.difference(spans(try part(from: "Platform kinds:", to: "\n\n")), kinds, of: "the kind") == [])
  }

  @Test("every verb of the control socket is in the operator's guide, and none that there is not")
  func controlVerbs() throws {
    let source = try Self.text("Sources/VMFenceControl/ControlMessages.swift")
    let start = try #require(source.range(of: "enum Verb"))
    let body = source[start.upperBound...].prefix { $0 != "}" }
    var verbs: Set<String> = []
    for line in body.split(separator: "\n") where line.contains("case ") {
      let names = line.replacing("case ", with: "").split(separator: ",")
      for name in names {
        let parts = name.split(separator: "=").map { $0.trimmingCharacters(in: .whitespaces) }
        verbs.insert((parts.last ?? "").trimmingCharacters(in: CharacterSet(charactersIn: "\"")))
      }
    }
    #expect(verbs.count > 10)
    let documented = spans(try part(from: "Fields of a request: `verb` (", to: ")"))
    #expect(House.difference(documented, verbs, of: "the verb") == [])
  }

  @Test("every exit code is in the operator's guide, and none that there is not")
  func exitCodes() throws {
    let source = try Self.text("Sources/vmfence-ref/Commands/VMFenceRef.swift")
    // Success, and the argument parser's own.
    let codes = Set(
      try Self.sources("Sources/vmfence-ref").matches(of: /ExitCode\((\d+)\)/).map { String($0.1) }
    ).union(["0", "64"])
    let documented = Set(
      try part(from: "### Exit codes", to: "\n###").matches(of: /\n\| (\d+) \|/).map { String($0.1) })
    #expect(codes.count > 6)
    #expect(House.difference(documented, codes, of: "the exit code") == [])
    let help = Set(source.matches(of: /\n {8}(\d+) +[a-z]/).map { String($0.1) })
    #expect(House.difference(help, codes, of: "in --help the exit code") == [])
  }

  @Test("every key of a configuration is in the operator's guide")
  func keys() throws {
    let source =
      try Self.sources("Sources/vmfence-ref/Configuration") + Self.sources("Sources/vmfence-ref/Scenario")
      + Self.sources("Sources/VMFenceConfiguration")
    let pattern =
      /\.(?:string|label|requiredString|value|requiredValue|bool|integer|number|duration|choice|child|list|children|strings|values|raw|has)\(\s*"([a-z][a-z0-9-]*)"/
    let keys = Set(source.matches(of: pattern).map { String($0.1) })
    #expect(keys.count > 80)
    #expect(keys.subtracting(try Self.operating().words).sorted() == [])
  }

  @Test("whoever builds by the operator's guide has every program and every library")
  func building() throws {
    let section = try part(from: "## Building", to: "\n### ")
    let manifest = try Self.text("Package.swift")
    for match in manifest.matches(of: /\.executable\(name: "([^"]+)"/) where match.1 != "vmfence-guest" {
      #expect(section.contains("--product \(match.1)\n"), "\(match.1)")
    }
    let setup = try Self.text("scripts/setup")
    let packages = try #require(setup.firstMatch(of: /\npackages=\(([^)]*)\)/)).1.split(separator: " ")
    for package in packages { #expect(section.contains(package), "\(package)") }
  }

  @Test("what is not there is found")
  func broken() {
    let text = """
      # A Title, with `code`
      [a](#a-title-with-code) [b](#b) [c](Other.md#x) [d](Nowhere.md) [e](https://example.org/#f)
      `Sources/No.swift`, `Sources/NAME/x`, `scripts/yes`
      ```sh
      [no](link)
      ```
      """
    let document = Document(path: "Docs/A.md", text: text)
    let anchors = ["Docs/A.md": document.anchors, "Docs/Other.md": ["y"]]
    let found = House.links(document, anchors: anchors) { $0 == "Docs/Other.md" || $0 == "Docs/A.md" }
    #expect(
      found.map(\.message) == ["there is no heading #b", "there is no heading Other.md#x", "there is no Nowhere.md"])
    #expect(House.paths(document) { $0 == "scripts/yes" }.map(\.message) == ["there is no Sources/No.swift"])
    #expect(document.blocks.map(\.text) == ["[no](link)"] && document.blocks.map(\.number) == [5])
    #expect(
      House.difference(["a", "b"], ["b", "c"], of: "x") == [
        "x `c` is not documented", "x `a` is documented and not there",
      ])
  }
}
