#if Daemon
package import Foundation
package import VMFenceCore
package import Yams

/// Reads YAML that a person wrote: every value is fetched by key and kind, and everything that is wrong, unknown keys
/// included, is collected with its place instead of stopping at the first.
package final class YAMLReader {
  /// A file larger than this is refused: configuration is written by hand.
  package static let byteCountMaximum = 4 << 20

  package let file: String
  package private(set) var diagnostics: [Diagnostic] = []

  package init(file: String) { self.file = file }

  package var hasErrors: Bool { errorCount > 0 }
  package var errorCount: Int { diagnostics.count { $0.severity == .error } }

  package func report(_ severity: Diagnostic.Severity = .error, at node: Node?, _ message: String, remedy: String = "")
  {
    diagnostics.append(Diagnostic(severity, at: place(of: node), message, remedy: remedy))
  }

  package func report(_ diagnostic: Diagnostic) { diagnostics.append(diagnostic) }

  package func place(of node: Node?) -> SourcePlace {
    guard let mark = node?.mark else { return SourcePlace(file: file) }
    return SourcePlace(file: file, line: mark.line, column: mark.column)
  }

  /// The document as a mapping; nil after a diagnostic when there is none.
  package func loadMapping() -> YAMLMapping? {
    do throws(UnreadableFile) {
      return mapping(fromText: Data(try WholeFile.read(file, atMost: Self.byteCountMaximum)))
    } catch {
      report(at: nil, "the file cannot be read: \(error.reason)", remedy: "check the path and its permissions")
      return nil
    }
  }

  /// Whether a file that is named here can be opened; says so here when not, where whoever mistyped its name looks.
  package func canRead(_ path: String, named node: Node?, _ what: String) -> Bool {
    guard let problem = WholeFile.problem(path) else { return true }
    report(
      at: node, "\(what) `\(path.escapedForDisplay)` cannot be read: \(problem.reason)",
      remedy: "paths are relative to the folder of this file")
    return false
  }

  package func mapping(fromText data: Data) -> YAMLMapping? {
    guard data.count <= Self.byteCountMaximum else {
      report(
        at: nil, "the file has \(data.count) bytes; at most \(Self.byteCountMaximum) are read",
        remedy: "check that it is the right one")
      return nil
    }
    guard let text = String(data: data, encoding: .utf8) else {
      let place = YAMLMistakes.placeOfFirstInvalid(in: data)
      diagnostics.append(
        Diagnostic(
          at: SourcePlace(file: file, line: place.line, column: place.column), "the file is not UTF-8 text",
          remedy: "save it as UTF-8"))
      return nil
    }
    if let alias = YAMLAliases.first(in: text) {
      diagnostics.append(
        Diagnostic(
          at: SourcePlace(file: file, line: alias.line, column: alias.column), "an alias (`*name`) is not read",
          remedy: "write out what it stands for; a text that begins with * stands in quotes"))
      return nil
    }
    do {
      guard let node = try Yams.compose(yaml: text) else {
        report(at: nil, "the file is empty", remedy: "see the examples in Examples/")
        return nil
      }
      return mapping(of: node, path: "")
    } catch let error as YamlError {
      diagnostics += YAMLMistakes.diagnostics(of: error, in: text, file: file)
    } catch {
      report(at: nil, "\(error)".escapedForDisplay)
    }
    return nil
  }

  package func mapping(of node: Node, path: String) -> YAMLMapping? {
    guard case .mapping(let mapping) = node else {
      report(
        at: node, "\(path.isEmpty ? "the document" : path) must be a mapping",
        remedy: "KEY: VALUE lines, with a space behind the colon")
      return nil
    }
    return YAMLMapping(reader: self, node: node, mapping: mapping, path: path)
  }
}

/// One mapping of a document, with typed access by key. Call `finish()` when all keys have been asked for: what was not
/// asked for is an unknown key.
package final class YAMLMapping {
  package let reader: YAMLReader
  package let node: Node
  package let path: String
  private let mapping: Node.Mapping
  private var known: Set<String> = []

  package init(reader: YAMLReader, node: Node, mapping: Node.Mapping, path: String) {
    self.reader = reader
    self.node = node
    self.mapping = mapping
    self.path = path
  }

  package func has(_ key: String) -> Bool { mapping[Node(key)] != nil }

  package func raw(_ key: String) -> Node? {
    known.insert(key)
    return mapping[Node(key)]
  }

  /// The key itself, for what is wrong with its being there.
  package func keyNode(_ key: String) -> Node? { mapping.first { $0.key == Node(key) }?.key }

  package func name(_ key: String) -> String { path.isEmpty ? key : "\(path).\(key)" }

  private func required(_ key: String, _ example: String) -> Node? {
    if let value = raw(key) { return value }
    reader.report(at: node, "\(name(key)) is missing", remedy: "for example `\(key): \(example)`")
    return nil
  }

  package func string(_ key: String) -> String? {
    guard let value = raw(key) else { return nil }
    guard case .scalar(let scalar) = value else {
      reader.report(at: value, "\(name(key)) must be a text", remedy: "one value, no list and no mapping")
      return nil
    }
    guard !scalar.string.isEmpty else {
      reader.report(at: value, "\(name(key)) is empty", remedy: "give it a value, or leave it out")
      return nil
    }
    return scalar.string
  }

  /// A text that says as much when it is empty as when it is left out, as templates fill it in.
  package func label(_ key: String) -> String? {
    if case .scalar(let scalar)? = raw(key), scalar.string.isEmpty { return nil }
    return string(key)
  }

  package func requiredString(_ key: String, example: String) -> String? {
    required(key, example) == nil ? nil : string(key)
  }

  /// A value parsed from its text; `expected` says what it should look like.
  package func value<Value>(_ key: String, expected: String, _ parse: (String) -> Value?) -> Value? {
    guard let text = string(key) else { return nil }
    if let value = parse(text) { return value }
    reader.report(
      at: mapping[Node(key)], "\(name(key)): `\(text.escapedForDisplay)` is not \(expected)")
    return nil
  }

  package func requiredValue<Value>(_ key: String, example: String, expected: String, _ parse: (String) -> Value?)
    -> Value?
  {
    required(key, example) == nil ? nil : value(key, expected: expected, parse)
  }

  package func bool(_ key: String) -> Bool? {
    value(key, expected: "true or false") { ["true": true, "false": false, "yes": true, "no": false][$0.lowercased()] }
  }

  package func integer(_ key: String, in range: ClosedRange<Int>) -> Int? {
    let isOne = range.lowerBound == range.upperBound
    let expected = isOne ? "\(range.lowerBound)" : "a whole number from \(range.lowerBound) to \(range.upperBound)"
    return value(key, expected: expected) {
      Int($0).flatMap { range.contains($0) ? $0 : nil }
    }
  }

  package func number(_ key: String, in range: ClosedRange<Double>) -> Double? {
    value(key, expected: "a number from \(range.lowerBound) to \(range.upperBound)") {
      Double($0).flatMap { range.contains($0) ? $0 : nil }
    }
  }

  package func duration(_ key: String, atLeast least: Duration = .zero) -> Duration? {
    let bound = least > .zero ? ", \(least.display) at the least" : ""
    return value(key, expected: "a duration with its unit, such as 500ms, 10s, 5m, 4h or 1d\(bound)") { text in
      Duration(configuration: text).flatMap { $0 >= least ? $0 : nil }
    }
  }

  package func choice<Choice: RawRepresentable & CaseIterable>(_ key: String, _ type: Choice.Type) -> Choice?
  where Choice.RawValue == String {
    let names = Choice.allCases.map(\.rawValue)
    return value(key, expected: "one of \(names.joined(separator: ", "))") { Choice(rawValue: $0) }
  }

  package func child(_ key: String) -> YAMLMapping? {
    raw(key).flatMap { reader.mapping(of: $0, path: name(key)) }
  }

  package func list(_ key: String) -> [Node] {
    guard let value = raw(key) else { return [] }
    guard case .sequence(let sequence) = value else {
      reader.report(
        at: value, "\(name(key)) must be a list", remedy: "lines that begin with `- `, or [A, B]")
      return []
    }
    return Array(sequence)
  }

  package func children(_ key: String) -> [YAMLMapping] {
    list(key).enumerated().compactMap { reader.mapping(of: $0.element, path: "\(name(key))[\($0.offset)]") }
  }

  /// A list of texts; a single text counts as a list of one.
  package func strings(_ key: String) -> [(text: String, node: Node)] {
    guard let value = raw(key) else { return [] }
    if case .scalar(let scalar) = value { return [(scalar.string, value)] }
    return list(key).compactMap { item in
      guard case .scalar(let scalar) = item else {
        reader.report(
          at: item, "\(name(key)) must be a list of texts", remedy: "each of them one value, no list and no mapping")
        return nil
      }
      return (scalar.string, item)
    }
  }

  package func values<Value>(_ key: String, expected: String, _ parse: (String) -> Value?) -> [Value] {
    strings(key).compactMap { text, node in
      if let value = parse(text) { return value }
      reader.report(at: node, "\(name(key)): `\(text.escapedForDisplay)` is not \(expected)")
      return nil
    }
  }

  /// All keys in order, for mappings whose keys are names the user chose.
  package var entries: [(key: String, value: Node)] {
    mapping.compactMap { key, value in
      guard case .scalar(let scalar) = key else {
        reader.report(at: key, "a key of \(path) must be a text")
        return nil
      }
      known.insert(scalar.string)
      return (scalar.string, value)
    }
  }

  package func finish() {
    for (key, _) in mapping {
      guard case .scalar(let scalar) = key else {
        reader.report(at: key, "a key\(path.isEmpty ? "" : " of \(path)") must be a text")
        continue
      }
      if known.contains(scalar.string) { continue }
      let guess = known.nearest(to: scalar.string, within: 3).map { "did you mean `\($0)`?" }
      let keys = known.sorted().joined(separator: ", ")
      reader.report(
        at: key, "unknown key `\(scalar.string.escapedForDisplay)`\(path.isEmpty ? "" : " in \(path)")",
        remedy: guess ?? "the keys here are: \(keys)")
    }
  }
}

extension Duration {
  /// Parses `500ms`, `10s`, `1.5m`, `4h`, `1d`; a bare `0` too. Nil for anything else and beyond 10 years.
  package init?(configuration text: String) {
    if text == "0" {
      self = .zero
      return
    }
    let units: [(String, Double)] = [("us", 1e-6), ("ms", 1e-3), ("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)]
    let digits = text.prefix { $0.isASCII && ($0.isNumber || $0 == ".") }
    let unit = text.dropFirst(digits.count)
    guard let scale = units.first(where: { $0.0 == unit })?.1, let count = Double(digits) else { return nil }
    let seconds = count * scale
    guard seconds <= 10 * 365 * 86_400 else { return nil }
    self = .nanoseconds(Int64((seconds * 1e9).rounded()))
  }

  /// `1h 4m`, `12.5s`, `3ms`: short, for people.
  package var display: String {
    let seconds = Double(wholeNanoseconds) / 1e9
    if seconds < 0 { return "-" + (Duration.zero - self).display }
    if seconds == 0 { return "0s" }
    if seconds < 1 { return String(format: "%gms", (seconds * 1e6).rounded() / 1e3) }
    if seconds < 120 { return String(format: "%gs", (seconds * 1e3).rounded() / 1e3) }
    let minutes = Int(seconds / 60)
    if minutes < 120 { return "\(minutes)m" + (Int(seconds) % 60 == 0 ? "" : " \(Int(seconds) % 60)s") }
    return "\(minutes / 60)h" + (minutes % 60 == 0 ? "" : " \(minutes % 60)m")
  }
}
#endif
