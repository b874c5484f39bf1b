import VMFenceCore

/// The texts of rules that were compiled, by their files: what stands for a rule whose text is wrong when it is compiled again.
///
/// A rule is known by its file, its gid and its sid. Of each file there is the text as it was read (shared with whoever read it), where in it each rule lies, and of rules that
/// are kept already a copy of their text. What was kept goes with the file, or when its rule is right again or not there any more.
package struct RulesBefore: Sendable {
  /// Rules that are kept of one file, and bytes of their texts together.
  static let keptMaximum = 4_096
  static let keptBytesMaximum = 4 << 20

  struct File: Sendable {
    var dialect: RuleDialect
    var text: [UInt8]
    /// Rules that could be used, by `RulesBefore.id`: of one that is there several times the newest.
    var rules: [UInt64: Place] = [:]
    var kept: [UInt64: KeptRule] = [:]
    /// The variables that stood after the file.
    var variables: [String: String]

    struct Place: Sendable {
      var bytes: Range<Int>
      var revision: UInt32
    }

    /// What stood for a rule.
    func rule(_ id: UInt64) -> (text: [UInt8], dialect: RuleDialect, variables: [String: String], since: Timestamp?)? {
      if let rule = kept[id] { return (rule.text, rule.dialect, rule.variables, rule.since) }
      guard let place = rules[id] else { return nil }
      return (Array(text[place.bytes]), dialect, variables, nil)
    }
  }

  private(set) var files: [String: File] = [:]

  package init() {}

  static func id(_ gid: UInt32, _ sid: UInt32) -> UInt64 { UInt64(gid) << 32 | UInt64(sid) }

  /// Notes what of a file is used. A file that several rule sets have is one: what is used in any of them counts.
  mutating func note(_ source: RuleSource, _ parsed: ParsedRules, kept: [KeptRule]) {
    var file = File(dialect: parsed.dialect, text: source.text, rules: parsed.places, variables: parsed.variables)
    for rule in kept where rule.place.file == source.file { file.kept[Self.id(rule.gid, rule.sid)] = rule }
    note(file, source.file)
  }

  private mutating func note(_ file: File, _ path: String) {
    var file = file
    if let other = files[path], other.text == file.text {
      file.rules.merge(other.rules) { $1 }
      file.kept.merge(other.kept) { $1 }
    }
    files[path] = file
  }

  /// Adds what another rule set uses of its files.
  package mutating func merge(_ other: RulesBefore) {
    for (path, file) in other.files { note(file, path) }
  }

  /// Goes on with what is known of files that were not compiled again.
  package mutating func carry(_ previous: RulesBefore, where isMeant: (String) -> Bool) {
    for (path, file) in previous.files where files[path] == nil && isMeant(path) { files[path] = file }
  }
}

/// A rule that stays in force although its text is wrong now.
package struct KeptRule: Sendable, CustomStringConvertible {
  package var gid: UInt32
  package var sid: UInt32
  package var revision: UInt32
  /// Where its text is wrong.
  package var place: SourcePlace
  /// When it was found wrong first.
  package var since: Timestamp
  var text: [UInt8]
  var dialect: RuleDialect
  /// Those of when it was right.
  var variables: [String: String]

  package var description: String {
    "rule \(gid):\(sid) is wrong at \(place) and stays in force as it was before, revision \(revision) (since \(since.rfc5424))"
  }

  /// Those of several rule sets, each of a file once, in the order of their places.
  package static func once(_ rules: [KeptRule]) -> [KeptRule] {
    struct Key: Hashable {
      var file: String
      var id: UInt64
    }
    return Dictionary(rules.map { (Key(file: $0.place.file, id: RulesBefore.id($0.gid, $0.sid)), $0) }) { $1 }.values
      .sorted { ($0.place.file, $0.place.line, $0.sid) < ($1.place.file, $1.place.line, $1.sid) }
  }
}

extension RuleSet {
  /// How many kept rules are named among the diagnostics.
  private static let namedMaximum = 100

  /// Takes out kept rules that a right one, wherever it stands, makes needless.
  ///
  /// - `kept`: with the indices of their rules.
  static func resolve(_ kept: [(rule: KeptRule, index: Int)], _ rules: inout [Rule]) -> [KeptRule] {
    guard !kept.isEmpty else { return [] }
    let indices = Set(kept.map(\.index))
    var known: Set<UInt64> = []
    for (index, rule) in rules.enumerated() where !indices.contains(index) {
      known.insert(RulesBefore.id(rule.metadata.gid, rule.metadata.sid))
    }
    var (found, needless): ([KeptRule], Set<Int>) = ([], [])
    for (rule, index) in kept {
      if known.insert(RulesBefore.id(rule.gid, rule.sid)).inserted {
        found.append(rule)
      } else {
        needless.insert(index)
      }
    }
    rules = rules.indices.filter { !needless.contains($0) }.map { rules[$0] }
    return found
  }

  static func diagnostics(of kept: [KeptRule]) -> [Diagnostic] {
    let remedy = "mend its text, or remove it, and reload"
    var result = kept.prefix(namedMaximum).map { Diagnostic(.warning, at: $0.place, "\($0)", remedy: remedy) }
    if kept.count > namedMaximum {
      result.append(
        Diagnostic(
          .warning, "\(kept.count - namedMaximum) more rules that are wrong stay in force as they were before",
          remedy: remedy))
    }
    return result
  }
}
