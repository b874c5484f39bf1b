import Foundation
import Testing

@Suite("The house")
struct HouseTests {
  private static let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()

  /// The files of a folder of the project that people wrote.
  private static func files(in folder: String) throws -> [SourceFile] {
    let base = root.appending(path: folder)
    guard FileManager.default.fileExists(atPath: base.path) else { return [] }
    let found = try #require(
      FileManager.default.enumerator(
        at: base, includingPropertiesForKeys: [.isRegularFileKey], options: [.skipsHiddenFiles]))
    let texts = ["swift", "h", "c", "md", "yaml", "yml", "modulemap", "rules", "sh", "py", ""]
    return found.compactMap { $0 as? URL }
      .filter { texts.contains($0.pathExtension) && !$0.path.contains("/.build") }
      .sorted { $0.path < $1.path }
      .compactMap { url in
        guard let text = try? String(contentsOf: url, encoding: .utf8) else { return nil }
        return SourceFile(path: String(url.path.dropFirst(root.path.count + 1)), text: text)
      }
  }

  private static func manifest() throws -> SourceFile {
    SourceFile(
      path: "Package.swift", text: try String(contentsOf: root.appending(path: "Package.swift"), encoding: .utf8))
  }

  private func expectNone(_ violations: [Violation], sourceLocation: SourceLocation = #_sourceLocation) {
    for violation in violations { Issue.record("\(violation)", sourceLocation: sourceLocation) }
  }

  @Test("the walls between the rooms stand")
  func walls() throws {
    let files = try Self.files(in: "Sources")
    #expect(files.contains { $0.path.hasPrefix("Sources/VMFenceCore/") }, "the sources were not found")
    expectNone(files.flatMap(House.imports))
  }

  @Test("every room is in the table, and the table has no room that is not there")
  func table() throws {
    let targets = Set(
      try Self.files(in: "Sources").filter { $0.path.hasSuffix(".swift") }.compactMap(\.target))
    #expect(targets == Set(House.allowedImports.keys))
  }

  @Test("the package has no unsafe flags")
  func flags() throws { expectNone(House.manifest(try Self.manifest())) }

  @Test("every program of the package is in the host's Debian package; the one of guests is in theirs")
  func packed() throws {
    let products = try Self.manifest().lines.compactMap { line in
      line.firstMatch(of: /\.executable\(name: "([^"]+)"/).map { String($0.1) }
    }
    let script = try String(contentsOf: Self.root.appending(path: "scripts/build-deb"), encoding: .utf8)
    let packed = try #require(script.firstMatch(of: /\nprograms=\(([^)]*)\)/)).1.split(separator: " ").map(String.init)
    #expect(products.count > 5 && Set(products) == Set(packed).union(["vmfence-guest"]))
  }

  @Test("every unsafe has its reason")
  func reasons() throws { expectNone(try Self.files(in: "Sources").flatMap(House.safetyReasons)) }

  @Test("no file is longer than people read")
  func lengths() throws { expectNone(try (Self.files(in: "Sources") + Self.files(in: "Tests")).flatMap(House.length)) }

  @Test("no path of a machine and no promise is left")
  func leftovers() throws {
    let folders = ["Sources", "Tests", "Docs", "Examples", "Benchmarks", "Fuzz", "scripts", ".ci"]
    expectNone(try (folders.flatMap { try Self.files(in: $0) } + [Self.manifest()]).flatMap(House.leftovers))
  }
}

@Suite("The house's rules find what breaks them")
struct HouseRulesTests {
  private func imports(_ text: String, in target: String) -> [String] {
    House.imports(SourceFile(path: "Sources/\(target)/File.swift", text: text)).map(\.message)
  }

  @Test(
    "a forbidden import is found",
    arguments: [
      ("import VMFencePackets", "VMFenceCore"), ("import Foundation", "VMFenceCore"),
      ("public import VMFenceIntegrity", "VMFencePackets"), ("import struct Foundation.URL", "VMFenceDetection"),
      ("@preconcurrency import VMFenceProcess", "VMFenceDetection"), ("  import VMFenceCapture", "VMFenceBlock"),
      ("import XCTest", "VMFenceTestKit"), ("internal import Testing", "VMFenceTestKit"),
      ("import FoundationEssentials", "VMFenceCore"), ("internal import CLinux", "VMFenceCore"),
    ])
  func forbidden(text: String, target: String) {
    #expect(imports("// a comment\n\(text)\n", in: target).contains { $0.contains("must not import") })
  }

  @Test("what is allowed is not found")
  func allowed() {
    #expect(
      imports("public import VMFenceCore\ninternal import Glibc\nimport Synchronization", in: "VMFencePackets").isEmpty)
    #expect(imports("// import Foundation\nlet important = 1", in: "VMFenceCore").isEmpty)
  }

  @Test(
    "C modules must be imported internally", arguments: ["import CPcap", "public import CPcap", "package import CPcap"])
  func cModules(text: String) {
    #expect(imports(text, in: "VMFenceCapture") == ["import the C module CPcap with `internal import`"])
    #expect(imports("internal import CPcap", in: "VMFenceCapture").isEmpty)
    #expect(imports("import Glibc", in: "VMFenceCore").count == 1)
  }

  @Test("a target that nobody entered into the table is found")
  func unknownTarget() { #expect(imports("", in: "VMFenceNew").count == 1) }

  @Test("unsafe flags are found")
  func flags() {
    let text = "let settings: [SwiftSetting] = [.unsafeFlags([\"-Ounchecked\"])]"
    #expect(House.manifest(SourceFile(path: "Package.swift", text: text)).count == 1)
    #expect(House.manifest(SourceFile(path: "Package.swift", text: "// none of them `unsafeFlags`")).isEmpty)
  }

  private func reasons(_ text: String, _ path: String = "Sources/VMFenceRing/File.swift") -> [Int] {
    House.safetyReasons(SourceFile(path: path, text: text)).map(\.line)
  }

  @Test("an unsafe without a reason is found")
  func reasons() {
    #expect(reasons("let a = unsafe pointer.pointee") == [1])
    #expect(reasons("// because\nunsafe f()") == [2])
    #expect(reasons("// SAFETY: one\n" + String(repeating: "\n", count: 8) + "unsafe f()") == [10])
    #expect(reasons("// SAFETY: one\nunsafe f()\n\n\n\nunsafe g()\n\n\n\nunsafe h()") == [])
    #expect(
      reasons("// SAFETY: one\nunsafe f()" + String(repeating: "\n", count: 9) + "unsafe h()") == [11])
  }

  @Test("an unsafe with a reason, and what only looks like one, is not found")
  func noUnsafe() {
    let text = """
      // SAFETY: it lives
      let a = unsafe pointer.pointee
      """
    #expect(reasons(text).isEmpty)
    for text in ["@unsafe struct A {}", "// this is unsafe", "let x = \"unsafe\"", "unsafeLoad(1)", "notunsafe()"] {
      #expect(reasons(text).isEmpty, "\(text)")
    }
    #expect(reasons("unsafe f()", "Sources/VMFenceCore/Bytes/Load.swift").isEmpty)
  }

  @Test("a file that is too long is found")
  func lengths() {
    func file(_ lines: Int) -> SourceFile {
      SourceFile(path: "Sources/A/B.swift", text: String(repeating: "x\n", count: lines))
    }
    #expect(House.length(file(500)).isEmpty)
    #expect(House.length(file(501)).count == 1)
  }

  @Test(
    "leftovers are found", arguments: ["// TO" + "DO: later", "FIX" + "ME", "cd /ro" + "ot/x", "\"/wo" + "rk/a\""])
  func leftovers(text: String) {
    #expect(House.leftovers(SourceFile(path: "Docs/A.md", text: text)).count == 1)
    #expect(House.leftovers(SourceFile(path: "Docs/A.md", text: "AUTO" + "DOC mastodon")).isEmpty)
  }
}
