import Foundation

/// A document in Markdown, and what can be looked up in it.
struct Document {
  /// From the root of the project.
  var path: String
  var text: String

  /// Lines outside of blocks of code, with their numbers from 1.
  var prose: [(number: Int, line: String)] { split().prose }

  /// Blocks of code: the language that is named, the number of the first line, the text.
  var blocks: [(language: String, number: Int, text: String)] { split().blocks }

  private func split() -> (prose: [(Int, String)], blocks: [(String, Int, String)]) {
    var prose: [(Int, String)] = []
    var blocks: [(String, Int, String)] = []
    var open: (language: String, indentation: Int, number: Int, lines: [String])?
    for (index, raw) in text.split(separator: "\n", omittingEmptySubsequences: false).enumerated() {
      let line = String(raw)
      let indentation = line.prefix { $0 == " " }.count
      let isFence = line.dropFirst(indentation).hasPrefix("```")
      if var block = open {
        if isFence {
          blocks.append((block.language, block.number, block.lines.joined(separator: "\n")))
          open = nil
        } else {
          block.lines.append(String(line.dropFirst(min(indentation, block.indentation))))
          open = block
        }
      } else if isFence {
        open = (String(line.dropFirst(indentation + 3)), indentation, index + 2, [])
      } else {
        prose.append((index + 1, line))
      }
    }
    return (prose, blocks)
  }

  /// What the headings are called in links, as GitHub makes it.
  var anchors: Set<String> {
    Set(
      prose.map(\.line).filter { $0.hasPrefix("#") }.map { line in
        let title = line.drop { $0 == "#" }.trimmingCharacters(in: .whitespaces).lowercased()
        return String(
          title.unicodeScalars.filter {
            CharacterSet.alphanumerics.contains($0) || $0 == "-" || $0 == "_" || $0 == " "
          }.map { $0 == " " ? "-" : Character($0) })
      })
  }

  /// What stands in backquotes in one line, and in blocks of code.
  var code: String {
    let spans = prose.flatMap { $0.line.matches(of: /`([^`]+)`/).map { String($0.1) } }
    return (spans + blocks.map(\.text)).joined(separator: "\n")
  }

  /// The words of `code`: letters, digits, hyphens, underscores.
  var words: Set<String> { Set(code.matches(of: /[A-Za-z0-9_][A-Za-z0-9_-]*/).map { String($0.0) }) }
}

extension House {
  /// Links to files and headings that are not there. `exists` is asked for paths from the root of the project.
  static func links(_ document: Document, anchors: [String: Set<String>], exists: (String) -> Bool) -> [Violation] {
    let folder = (document.path as NSString).deletingLastPathComponent
    return document.prose.flatMap { number, line in
      line.matches(of: /\]\(([^)\s]+)\)/).compactMap { match -> Violation? in
        let link = String(match.1)
        guard !link.contains("://"), !link.hasPrefix("doc:") else { return nil }
        let parts = link.split(separator: "#", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
        let path =
          parts[0].isEmpty
          ? document.path : ((folder as NSString).appendingPathComponent(parts[0]) as NSString).standardizingPath
        if !exists(path) { return Violation(path: document.path, line: number, message: "there is no \(link)") }
        guard parts.count == 2, let known = anchors[path], !known.contains(parts[1]) else { return nil }
        return Violation(path: document.path, line: number, message: "there is no heading \(link)")
      }
    }
  }

  /// Paths of this project in backquotes that are not there. A path in which something stands for a name (`NAME`, `*`, `…`, `<`) is none.
  static func paths(_ document: Document, exists: (String) -> Bool) -> [Violation] {
    let roots = ["Sources/", "Docs/", "Tests/", "Examples/", "Benchmarks/", "Fuzz/", "scripts/", "packaging/"]
    return document.prose.flatMap { number, line in
      line.matches(of: /`([^`\s]+)`/).map { String($0.1) }.compactMap { path -> Violation? in
        guard let root = roots.first(where: path.hasPrefix), !path.contains(/[*…<|]|[A-Z]{4}/) else { return nil }
        // A walk through one of the examples names files as they lie in it.
        let places = [path, "Examples/embedding/" + path]
        _ = root
        return places.contains(where: exists)
          ? nil : Violation(path: document.path, line: number, message: "there is no \(path)")
      }
    }
  }

  /// What is in one of two sets and not in the other, in words.
  static func difference(_ documented: Set<String>, _ real: Set<String>, of what: String) -> [String] {
    real.subtracting(documented).sorted().map { "\(what) `\($0)` is not documented" }
      + documented.subtracting(real).sorted().map { "\(what) `\($0)` is documented and not there" }
  }
}
