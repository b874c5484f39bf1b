import VMFenceCore

/// The operator's lists of rules to turn on, to turn off, and to let drop.
///
/// One entry in a line, `#` begins a comment: `SID`, `GID:SID` (several with commas), `group:FILE` (the name of a rule file, with `*` and `?`,
/// its ending may be left out) or `re:EXPRESSION` (found anywhere in the rule's text, in any case).
struct RuleSelectors {
  enum Kind: CaseIterable { case enable, disable, drop }

  fileprivate struct List {
    var ids: Set<UInt64> = []
    var groups: [String] = []
    var expressions: [_StringProcessing.Regex<AnyRegexOutput>] = []
    var isEmpty: Bool { ids.isEmpty && groups.isEmpty && expressions.isEmpty }
  }

  private var enabled = List()
  private var disabled = List()
  private var dropping = List()
  private static let expressionMaximum = 512

  var enablesAny: Bool { !enabled.isEmpty }

  func disables(_ rule: RuleMetadata, file: String, _ text: ArraySlice<UInt8>) -> Bool {
    Self.has(disabled, Self.id(rule.gid, rule.sid), file, text)
  }

  func drops(_ rule: RuleMetadata, file: String, _ text: ArraySlice<UInt8>) -> Bool {
    Self.has(dropping, Self.id(rule.gid, rule.sid), file, text)
  }

  /// Whether a rule that was commented out is to be used. `text`: the rule.
  func enables(_ text: ArraySlice<UInt8>, file: String) -> Bool {
    guard let id = Self.identity(of: text) else { return false }
    return Self.has(enabled, id, file, text)
  }

  /// Which rule a text is, by `RulesBefore.id`, as far as that can be read in one that is wrong; nil: it has no sid.
  static func identity(of text: ArraySlice<UInt8>) -> UInt64? {
    let rule = text.text
    return number(of: "sid", in: rule).map { id(number(of: "gid", in: rule) ?? 1, $0) }
  }

  private static func id(_ gid: UInt32, _ sid: UInt32) -> UInt64 { UInt64(gid) << 32 | UInt64(sid) }

  private static func number(of option: String, in rule: String) -> UInt32? {
    guard let found = rule.ranges(of: "\(option):").last else { return nil }
    return UInt32(rule[found.upperBound...].drop { $0 == " " }.prefix { $0.isASCII && $0.isNumber })
  }

  private static func has(_ list: List, _ id: UInt64, _ file: String, _ text: ArraySlice<UInt8>) -> Bool {
    if list.ids.contains(id) { return true }
    if list.groups.isEmpty, list.expressions.isEmpty { return false }
    let name = file.split(separator: "/").last.map(String.init) ?? file
    let stem = name.split(separator: ".").first.map(String.init) ?? name
    if list.groups.contains(where: { Wildcard.matches($0, name) || Wildcard.matches($0, stem) }) { return true }
    guard !list.expressions.isEmpty else { return false }
    let rule = text.text
    return list.expressions.contains { rule.firstMatch(of: $0) != nil }
  }

  // MARK: Reading

  /// Adds what a file says; every line that is wrong gives a diagnostic.
  mutating func read(_ source: RuleSource, as kind: Kind) -> [Diagnostic] {
    var list = List()
    var diagnostics: [Diagnostic] = []
    for (index, line) in source.text.split(separator: 0x0A, omittingEmptySubsequences: false).enumerated() {
      let entry = line.prefix { $0 != UInt8(ascii: "#") }.trimmed.text
      if entry.isEmpty { continue }
      let column = (line.firstIndex { $0 != 0x20 && $0 != 0x09 } ?? line.startIndex) - line.startIndex + 1
      if let (message, remedy) = Self.add(entry, to: &list) {
        diagnostics.append(
          Diagnostic(
            .error, at: SourcePlace(file: source.file, line: index + 1, column: column), message, remedy: remedy))
      }
    }
    switch kind {
    case .enable: enabled.merge(list)
    case .disable: disabled.merge(list)
    case .drop: dropping.merge(list)
    }
    return diagnostics
  }

  /// What is wrong with the entry, if anything is.
  private static func add(_ entry: String, to list: inout List) -> (String, String)? {
    let shown = "`\(entry.escapedForDisplay)`"
    if entry.hasPrefix("group:") {
      list.groups.append(String(entry.dropFirst("group:".count)))
      return nil
    }
    if entry.hasPrefix("re:") {
      let expression = String(entry.dropFirst("re:".count))
      guard list.expressions.count < expressionMaximum, let regex = try? _StringProcessing.Regex(expression) else {
        return ("\(shown) is no regular expression, or one of more than \(expressionMaximum)", "write `re:EXPRESSION`")
      }
      list.expressions.append(regex.ignoresCase())
      return nil
    }
    var ids: [UInt64] = []
    for item in entry.split(separator: ",") {
      let numbers = item.split(separator: ":", omittingEmptySubsequences: false).map {
        UInt32($0.filter { $0 != " " })
      }
      switch (numbers.count, numbers.first ?? nil, numbers.last ?? nil) {
      case (1, let sid?, _): ids.append(id(1, sid))
      case (2, let gid?, let sid?): ids.append(id(gid, sid))
      default: return ("\(shown) names no rule", "write SID, GID:SID, `group:FILE` or `re:EXPRESSION`")
      }
    }
    list.ids.formUnion(ids)
    return nil
  }
}

extension RuleSelectors.List {
  fileprivate mutating func merge(_ other: RuleSelectors.List) {
    ids.formUnion(other.ids)
    groups += other.groups
    expressions += other.expressions
  }
}

/// `*` for any characters, `?` for one.
enum Wildcard {
  static func matches(_ pattern: String, _ text: String) -> Bool {
    let (pattern, text) = (Array(pattern.utf8), Array(text.utf8))
    var (p, t) = (0, 0)
    // Where to go on when the last star has to take one more.
    var star: (p: Int, t: Int)?
    while t < text.count {
      if p < pattern.count, pattern[p] == UInt8(ascii: "*") {
        star = (p + 1, t)
        p += 1
      } else if p < pattern.count, pattern[p] == UInt8(ascii: "?") || pattern[p] == text[t] {
        p += 1
        t += 1
      } else if let last = star {
        star = (last.p, last.t + 1)
        (p, t) = (last.p, last.t + 1)
      } else {
        return false
      }
    }
    return pattern[p...].allSatisfy { $0 == UInt8(ascii: "*") }
  }
}
