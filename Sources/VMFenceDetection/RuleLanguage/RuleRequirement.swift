import VMFenceCore

/// `requires` (Suricata since 7.0.3): what a rule needs of the engine that reads it. A rule whose needs are not met is no mistake: it is
/// passed over, so that one rule file can serve several versions.
struct RuleRequirement {
  /// The version of Suricata whose rule language is read here.
  static let languageVersion = [9, 0, 0]

  private enum Comparison { case less, lessOrEqual, greaterOrEqual, greater }
  private struct Bound {
    var comparison: Comparison
    var version: [Int]

    var holds: Bool {
      let isLess = languageVersion.lexicographicallyPrecedes(version)
      let isEqual = languageVersion == version
      return switch comparison {
      case .less: isLess
      case .lessOrEqual: isLess || isEqual
      case .greaterOrEqual: !isLess
      case .greater: !isLess && !isEqual
      }
    }
  }

  /// What is not there, in the rule's words; nil when everything is.
  private(set) var unmet: String?
  private var hasVersion = false

  /// `feature NAME`, `keyword NAME` and `version BOUNDS`, with commas between. Bounds that stand together have to hold all, of those with
  /// `|` between one.
  ///
  /// `isEvaluated`: whether an option of this name is evaluated.
  init(_ value: ArraySlice<UInt8>, isEvaluated: (String) -> Bool) throws(RuleProblem) {
    for item in value.split(at: UInt8(ascii: ",")) {
      let words = item.split(maxSplits: 1, whereSeparator: { $0 == 0x20 || $0 == 0x09 }).map(\.trimmed)
      guard words.count == 2 else {
        throw RuleProblem(
          item.startIndex, "requires: \(item.shown) is not understood",
          "write feature NAME, keyword NAME or version >= NUMBER, with commas between")
      }
      let isMet: Bool
      switch words[0].text {
      case "version":
        if hasVersion {
          throw RuleProblem(item.startIndex, "requires: a second version", "write `|` between alternatives")
        }
        hasVersion = true
        isMet = try Self.versionHolds(words[1])
      case "keyword": isMet = isEvaluated(words[1].text)
      // What is optional in Suricata (databases, scripts, libraries) is not there; what it does not name yet is not either.
      default: isMet = false
      }
      if !isMet, unmet == nil { unmet = item.text.escapedForDisplay }
    }
  }

  private static func versionHolds(_ text: ArraySlice<UInt8>) throws(RuleProblem) -> Bool {
    var isOneMet = false
    for alternative in text.split(at: UInt8(ascii: "|")) {
      let bounds = try bounds(alternative)
      if bounds.allSatisfy(\.holds) { isOneMet = true }
    }
    return isOneMet
  }

  private static func bounds(_ text: ArraySlice<UInt8>) throws(RuleProblem) -> [Bound] {
    var result: [Bound] = []
    var rest = text.trimmed
    while !rest.isEmpty {
      let sign = rest.prefix { $0 == UInt8(ascii: "<") || $0 == UInt8(ascii: ">") || $0 == UInt8(ascii: "=") }
      let comparison: Comparison? =
        switch sign.text {
        case "<": .less
        case "<=": .lessOrEqual
        case ">=": .greaterOrEqual
        case ">": .greater
        default: nil
        }
      rest = rest[sign.endIndex...].trimmed
      let number = rest.prefix { $0 != 0x20 && $0 != UInt8(ascii: "<") && $0 != UInt8(ascii: ">") }
      guard let comparison, let version = version(number) else {
        throw RuleProblem(
          text.startIndex, "requires: \(text.shown) compares no versions", "write for example `version >= 7.0.4 < 8`")
      }
      result.append(Bound(comparison: comparison, version: version))
      rest = rest[number.endIndex...].trimmed
    }
    guard !result.isEmpty else { throw RuleProblem(text.startIndex, "requires: a version is missing", "add one") }
    return result
  }

  /// `8`, `7.0`, `7.0.4`, `8.0.0-beta1`: three numbers, those left out 0.
  private static func version(_ text: ArraySlice<UInt8>) -> [Int]? {
    let numbers = text.prefix { $0 != UInt8(ascii: "-") }
    let parts = numbers.split(separator: UInt8(ascii: "."), omittingEmptySubsequences: false).map { UInt16($0.text) }
    guard (1...3).contains(parts.count), !parts.contains(nil) else { return nil }
    return parts.compactMap { $0.map(Int.init) } + Array(repeating: 0, count: 3 - parts.count)
  }
}

extension RuleOptionParser {
  mutating func requires(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    let value = try required(name, value)
    let (dialect, classes) = (dialect, classes)
    let requirement = try RuleRequirement(value) { Self.evaluates($0, dialect, classes) }
    unmetRequirement = unmetRequirement ?? requirement.unmet
  }

  /// Whether an option is known and evaluated.
  private static func evaluates(_ option: String, _ dialect: RuleDialect, _ classes: ClassificationTable) -> Bool {
    guard OptionNames.known(in: dialect).contains(option) else { return false }
    guard ApplicationOptions.form(of: option, in: dialect) == nil else { return false }
    // Refused without a look at its value, or taken, be it that the value is missing.
    var probe = RuleOptionParser(dialect: dialect, classes: classes) { _ in SourcePlace(file: "") }
    let isKnown = try? probe.option(Array(option.utf8)[...], value: nil)
    return isKnown == nil || probe.unsupported.isEmpty
  }
}

extension RuleFileParser {
  /// What the rule that begins at `start` requires and is not there, and its sid, with no regard to anything else in it: it may be written
  /// in a language that is not known yet. nil when that is not why it cannot be read.
  func unmetRequirement(from start: Int) -> (requirement: String, sid: String)? {
    guard dialect == .suricata else { return nil }
    var ahead = self
    var options = RuleOptionParser(dialect: dialect, classes: ClassificationTable()) { _ in SourcePlace(file: "") }
    var sid = ""
    for (name, value) in ahead.optionsAhead(from: start) {
      if name.isText("requires") { _ = try? options.option(name, value: value) }
      if name.isText("sid"), let value { sid = value.trimmed.text.escapedForDisplay }
    }
    return options.unmetRequirement.map { ($0, sid) }
  }
}
