import Foundation

/// A file of the project.
struct SourceFile {
  /// From the root of the project: `Sources/VMFenceCore/…`.
  var path: String
  var lines: [String]

  init(path: String, text: String) {
    self.path = path
    lines = text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
  }

  /// The target whose folder it lies in; nil outside `Sources`.
  var target: String? {
    let parts = path.split(separator: "/")
    return parts.count > 2 && parts[0] == "Sources" ? String(parts[1]) : nil
  }
}

/// A rule of the house that a line breaks.
struct Violation: Equatable, CustomStringConvertible {
  var path: String
  /// From 1; 0 for the whole file.
  var line: Int
  var message: String
  var description: String { line == 0 ? "\(path): \(message)" : "\(path):\(line): \(message)" }
}

/// The rules that make the walls of the house; each is a function of texts, so that it can be tried on broken ones.
enum House {
  static let standardLibraries: Set<String> = ["Glibc", "Synchronization"]
  private static let rooms: Set<String> = ["VMFenceCore", "VMFencePackets", "VMFenceIntegrity"]

  /// What each target may import besides the standard libraries. Core imports nothing of ours; Packets and Integrity import
  /// Core; adapters import those three, never each other; only the daemon knows all of them.
  static let allowedImports: [String: Set<String>] = [
    "VMFenceCore": [],
    "VMFencePackets": ["VMFenceCore"],
    "VMFenceIntegrity": ["VMFenceCore"],
    "VMFenceDetection": rooms.union(["CVectorscan", "CPcre2", "CZlib", "CPublicSuffix", "CMaxMindDB"]),
    "VMFenceCapture": rooms.union(["CPcap", "CLinux"]),
    "VMFenceBlock": rooms.union(["CLinux"]),
    "VMFenceNftables": rooms.union(["CNftables", "CLinux"]),
    "VMFenceChannel": rooms,
    "VMFenceGuest": rooms,
    "VMFenceXen": rooms.union(["CXen"]),
    "VMFenceProcess": rooms.union(["CLinux"]),
    "VMFenceConfiguration": rooms.union(["CYaml", "Yams", "Foundation"]),
    "VMFenceControl": rooms.union(["Foundation"]),
    "VMFenceNotification": rooms.union(["Foundation", "CCurl"]),
    "VMFenceTestKit": rooms,
    "VMFenceConformance": rooms.union(["VMFenceTestKit", "Testing"]),
    "VMFenceStore": rooms.union(["CSQLite"]),
    "vmfence-detector": rooms.union(["VMFenceDetection", "VMFenceProcess"]),
    "vmfence-channel": rooms.union(["VMFenceChannel", "VMFenceProcess", "VMFenceXen"]),
    "vmfence-hypervisor": rooms.union(["VMFenceProcess", "VMFenceXen"]),
    "vmfence-firewall": rooms.union(["VMFenceProcess", "VMFenceNftables"]),
    "vmfence-capture": rooms.union(["VMFenceProcess", "VMFenceCapture"]),
    "vmfence-guest": rooms.union(["VMFenceGuest", "VMFenceChannel"]),
    "vmfence-disk": rooms.union([
      "VMFenceBlock", "VMFenceDetection", "VMFenceProcess", "VMFenceControl", "CLinux", "ArgumentParser", "Foundation",
    ]),
    "vmfence-ref": rooms.union([
      "VMFenceDetection", "VMFenceCapture", "VMFenceBlock", "VMFenceProcess", "VMFenceNftables", "VMFenceXen",
      "VMFenceChannel", "VMFenceTestKit",
      "VMFenceConfiguration", "VMFenceControl", "VMFenceNotification", "VMFenceStore", "ArgumentParser", "Foundation",
      "Logging",
    ]),
  ]

  static let lineLimit = 500

  // MARK: Walls

  static func imports(_ file: SourceFile) -> [Violation] {
    guard let target = file.target, file.path.hasSuffix(".swift") else { return [] }
    guard let allowed = allowedImports[target] else {
      return [Violation(path: file.path, line: 0, message: "target \(target) is not in the table of allowed imports")]
    }
    var found: [Violation] = []
    for (index, line) in file.lines.enumerated() {
      guard let statement = ImportStatement(line) else { continue }
      let (module, access) = (statement.module, statement.access)
      if !allowed.contains(module), !standardLibraries.contains(module) {
        found.append(Violation(path: file.path, line: index + 1, message: "\(target) must not import \(module)"))
      }
      let isC = module == "Glibc" || module.first == "C" && module.dropFirst().first?.isUppercase == true
      if isC, access != "internal" {
        found.append(
          Violation(path: file.path, line: index + 1, message: "import the C module \(module) with `internal import`"))
      }
    }
    return found
  }

  private struct ImportStatement {
    var access: String
    var module: String

    init?(_ line: String) {
      var words = line.split(whereSeparator: { $0 == " " || $0 == "\t" })[...]
      while words.first?.hasPrefix("@") == true { words = words.dropFirst() }
      access = ""
      if let first = words.first, ["public", "package", "internal", "fileprivate", "private"].contains(first) {
        access = String(first)
        words = words.dropFirst()
      }
      guard words.first == "import" else { return nil }
      words = words.dropFirst()
      if let kind = words.first,
        ["struct", "class", "enum", "func", "protocol", "typealias", "let", "var"].contains(kind)
      {
        words = words.dropFirst()
      }
      guard let name = words.first?.split(separator: ".").first else { return nil }
      module = String(name)
    }
  }

  /// A package with unsafe flags cannot be imported by version.
  static func manifest(_ file: SourceFile) -> [Violation] {
    file.lines.enumerated().compactMap { index, line in
      Code.withoutCommentsAndStrings(line).contains("unsafeFlags")
        ? Violation(path: file.path, line: index + 1, message: "no unsafeFlags: they forbid importing by version") : nil
    }
  }

  // MARK: Style that protects

  /// How many lines before an `unsafe` its reason may stand, and how far one reason carries from one to the next.
  static let reasonDistance = 8
  static let reasonCarry = 4

  /// Every `unsafe` outside `Bytes/` has a comment `// SAFETY:` before it.
  static func safetyReasons(_ file: SourceFile) -> [Violation] {
    guard file.target != nil, file.path.hasSuffix(".swift"), !file.path.contains("/VMFenceCore/Bytes/") else {
      return []
    }
    var found: [Violation] = []
    var lastReason = Int.min / 2
    var lastCovered = Int.min / 2
    for (index, line) in file.lines.enumerated() {
      if line.contains("// SAFETY:") { lastReason = index }
      guard Code.usesUnsafe(line) else { continue }
      if index - lastReason <= reasonDistance || index - lastCovered <= reasonCarry {
        lastCovered = index
      } else {
        found.append(Violation(path: file.path, line: index + 1, message: "`unsafe` without `// SAFETY:` before it"))
      }
    }
    return found
  }

  static func length(_ file: SourceFile) -> [Violation] {
    guard file.path.hasSuffix(".swift") else { return [] }
    let count = file.lines.last?.isEmpty == true ? file.lines.count - 1 : file.lines.count
    return count <= lineLimit
      ? [] : [Violation(path: file.path, line: 0, message: "\(count) lines, and \(lineLimit) are enough")]
  }

  /// No paths of the machine it was written on, and no promises instead of work.
  static func leftovers(_ file: SourceFile) -> [Violation] {
    // Written in pieces, so that this file does not find itself.
    let words = ["TO" + "DO", "FIX" + "ME", "/ro" + "ot/", "/wo" + "rk/", "/tmp/" + "wt/"]
    return file.lines.enumerated().flatMap { index, line in
      words.filter { Code.contains(line, word: $0) }
        .map { Violation(path: file.path, line: index + 1, message: "'\($0)' has no place here") }
    }
  }
}

/// What little has to be known of Swift's syntax.
enum Code {
  /// Whether the line has the expression or statement keyword `unsafe`; attributes, comments and texts do not count.
  static func usesUnsafe(_ line: String) -> Bool {
    let code = withoutCommentsAndStrings(line)
    var rest = code[...]
    while let range = rest.range(of: "unsafe") {
      let before = range.lowerBound > code.startIndex ? code[code.index(before: range.lowerBound)] : " "
      let after = range.upperBound < code.endIndex ? code[range.upperBound] : " "
      if !isPartOfName(before), before != "@", before != ".", !isPartOfName(after), after != ":" { return true }
      rest = rest[range.upperBound...]
    }
    return false
  }

  /// Whether `word` stands in the line; at its letters' ends begins no other name.
  static func contains(_ line: String, word: String) -> Bool {
    guard let range = line.range(of: word) else { return false }
    guard word.first?.isLetter == true else { return true }
    let before = range.lowerBound > line.startIndex ? line[line.index(before: range.lowerBound)] : " "
    let after = range.upperBound < line.endIndex ? line[range.upperBound] : " "
    return !isPartOfName(before) && !isPartOfName(after)
  }

  private static func isPartOfName(_ character: Character) -> Bool {
    character.isLetter || character.isNumber || character == "_"
  }

  static func withoutCommentsAndStrings(_ line: String) -> String {
    var result = ""
    var isInString = false
    var previous: Character = " "
    for character in line {
      if character == "\"", previous != "\\" { isInString.toggle() }
      if !isInString, character == "/", previous == "/" {
        result.removeLast()
        break
      }
      if !isInString { result.append(character) }
      previous = previous == "\\" && character == "\\" ? " " : character
    }
    return result
  }
}
