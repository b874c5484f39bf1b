import VMFenceCore

/// How a dialect writes a number to compare with.
///
/// - Snort 2: `N`, `<N`, `>N`, `A<>B`.
/// - Snort 3: also `=N`, `!N`, `!=N`, `<=N`, `>=N`, and `A<=>B`, which has its ends in it (`A<>B` has not).
/// - Suricata: also `A-B` and `!A-B`, like `A<>B` without their ends; hexadecimal numbers; `kb`, `mb`, `gb`.
struct NumberForm {
  var dialect: RuleDialect
  var maximum: UInt32
  /// Whether `A<>B` has A and B in it: so for Snort 2's `dsize`.
  var arrowIncludesEnds: Bool

  func parse(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) -> NumberTest {
    func wrong(_ message: String, _ remedy: String) -> RuleProblem {
      RuleProblem(value.startIndex, "\(name.shown): \(value.shown) \(message)", remedy)
    }
    func number(_ text: Substring) throws(RuleProblem) -> Int64 {
      guard let number = self.number(text.trimmingBlanks), number <= Int64(maximum) else {
        throw wrong("is not a test of a number from 0 to \(maximum)", "write \(forms)")
      }
      return number
    }
    var text = Substring(value.text)
    var negated = false
    var low: Int64 = 0
    var high = Int64(maximum)
    if dialect != .snort2, text.hasPrefix("!") {
      negated = true
      text = text.dropFirst().drop { $0 == " " }
      if text.hasPrefix("<") || text.hasPrefix(">") { throw wrong("has two signs", "write \(forms)") }
    }
    let isSuricataRange = dialect == .suricata && text.contains("-")
    if dialect == .snort3, let arrow = text.firstRange(of: "<=>") {
      low = try number(text[..<arrow.lowerBound])
      high = try number(text[arrow.upperBound...])
    } else if let arrow = text.firstRange(of: "<>") ?? (isSuricataRange ? text.firstRange(of: "-") : nil) {
      let inset: Int64 = arrowIncludesEnds ? 0 : 1
      low = try number(text[..<arrow.lowerBound]) + inset
      high = try number(text[arrow.upperBound...]) - inset
    } else if dialect != .snort2, text.hasPrefix("<=") {
      high = try number(text.dropFirst(2))
    } else if dialect != .snort2, text.hasPrefix(">=") {
      low = try number(text.dropFirst(2))
    } else if text.hasPrefix("<") {
      high = try number(text.dropFirst()) - 1
    } else if text.hasPrefix(">") {
      low = try number(text.dropFirst()) + 1
    } else {
      low = try number(dialect != .snort2 && text.hasPrefix("=") ? text.dropFirst() : text)
      high = low
    }
    guard low <= high, low <= Int64(maximum) else {
      throw wrong("is true of no number", "mind which ends belong to the range, and their order")
    }
    return NumberTest(low: UInt32(low), high: UInt32(high), isNegated: negated)
  }

  private var forms: String {
    switch dialect {
    case .snort2: "N, <N, >N or A<>B"
    case .snort3: "N, !N, <N, <=N, >N, >=N, A<>B or A<=>B"
    case .suricata: "N, !N, <N, <=N, >N, >=N, A-B or A<>B"
    }
  }

  private func number(_ text: Substring) -> Int64? {
    guard dialect == .suricata else { return UInt32(text).map(Int64.init) }
    if text.hasPrefix("0x") { return UInt32(text.dropFirst(2), radix: 16).map(Int64.init) }
    let units: [(String, Int64)] = [("kb", 1 << 10), ("mb", 1 << 20), ("gb", 1 << 30)]
    let unit = units.first { text.lowercased().hasSuffix($0.0) }
    return UInt32(unit == nil ? text : text.dropLast(2)).map { Int64($0) * (unit?.1 ?? 1) }
  }
}

extension Substring {
  fileprivate var trimmingBlanks: Substring {
    var text = self
    while text.first == " " { text.removeFirst() }
    while text.last == " " { text.removeLast() }
    return text
  }
}

extension TCPFlagsTest {
  /// `[!*+=]FLAGS[,IGNORED]` with the letters F S R P A U C E 1 2 0.
  static func parse(_ value: ArraySlice<UInt8>, dialect: RuleDialect) throws(RuleProblem) -> TCPFlagsTest {
    let parts = value.split(at: UInt8(ascii: ","))
    guard parts.count <= 2, var flags = parts.first else {
      throw RuleProblem(parts[2].startIndex, "flags: a second mask", "write FLAGS,IGNORED")
    }
    var mode = Mode.exactly
    func modifier(_ byte: UInt8?) -> Mode? {
      switch byte {
      case UInt8(ascii: "+"): .all
      case UInt8(ascii: "*"): .any
      case UInt8(ascii: "!"): dialect == .suricata ? .notAll : Mode.none
      case UInt8(ascii: "="): .exactly
      default: nil
      }
    }
    if let found = modifier(flags.first) {
      mode = found
      flags = flags.dropFirst()
    } else if let found = modifier(flags.last) {
      mode = found
      flags = flags.dropLast()
    }
    guard !flags.isEmpty else {
      throw RuleProblem(value.startIndex, "flags: no flag is named", "for example `flags:S,CE;`")
    }
    return TCPFlagsTest(mode: mode, flags: try mask(flags), ignored: parts.count == 2 ? try mask(parts[1]) : 0)
  }

  private static func mask(_ letters: ArraySlice<UInt8>) throws(RuleProblem) -> UInt8 {
    var result: UInt8 = 0
    for (offset, byte) in zip(letters.indices, letters) {
      switch byte & 0xDF {
      case UInt8(ascii: "F"): result |= 0x01
      case UInt8(ascii: "S"): result |= 0x02
      case UInt8(ascii: "R"): result |= 0x04
      case UInt8(ascii: "P"): result |= 0x08
      case UInt8(ascii: "A"): result |= 0x10
      case UInt8(ascii: "U"): result |= 0x20
      case UInt8(ascii: "E"): result |= 0x40
      case UInt8(ascii: "C"): result |= 0x80
      default:
        switch byte {
        case UInt8(ascii: "2"): result |= 0x40
        case UInt8(ascii: "1"): result |= 0x80
        case UInt8(ascii: "0"): break
        default: throw RuleProblem(offset, "flags: \([byte].shown) is no TCP flag", "use F, S, R, P, A, U, C, E or 0")
        }
      }
    }
    return result
  }
}

/// Reads what `threshold` and `detection_filter` say.
struct RateOptions {
  let name: String
  let dialect: RuleDialect
  /// What of it is not evaluated yet.
  var unsupported: [RuleFeature] = []
  private var kind: RuleThreshold.Kind?
  private var track: RuleThreshold.Track?
  private var count: UInt32?
  private var seconds: UInt32?

  init(name: String, dialect: RuleDialect) {
    self.name = name
    self.dialect = dialect
    kind = name == "threshold" ? nil : .filter
  }

  private var form: String {
    let tracks = dialect == .suricata ? "by_src|by_dst|by_rule|by_both" : "by_src|by_dst"
    return name == "threshold"
      ? "write `type limit|threshold|both, track \(tracks), count N, seconds N`"
      : "write `track \(tracks), count N, seconds N`"
  }

  /// nil only when `unsupported` says why.
  mutating func parse(_ value: ArraySlice<UInt8>) throws(RuleProblem) -> RuleThreshold? {
    for item in value.split(at: UInt8(ascii: ",")) {
      let words = item.split(whereSeparator: { $0 == 0x20 || $0 == 0x09 })
      guard words.count == 2 else { throw RuleProblem(item.startIndex, "\(item.shown) is not NAME VALUE", form) }
      try part(words[0], words[1])
    }
    guard unsupported.isEmpty else { return nil }
    guard let kind, let track, let count, let seconds else {
      let missing = [
        kind == nil ? "type" : nil, track == nil ? "track" : nil, count == nil ? "count" : nil,
        seconds == nil ? "seconds" : nil,
      ]
      throw RuleProblem(
        value.startIndex, "`\(name)` lacks \(missing.compactMap(\.self).joined(separator: " and "))", form)
    }
    return RuleThreshold(kind: kind, track: track, count: count, seconds: seconds)
  }

  private mutating func part(_ word: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    switch (word.text, value.text) {
    case ("type", "limit") where name == "threshold": kind = .limit
    case ("type", "threshold") where name == "threshold": kind = .threshold
    case ("type", "both") where name == "threshold": kind = .both
    case ("track", "by_src"): track = .bySource
    case ("track", "by_dst"): track = .byDestination
    case ("track", "by_rule") where dialect == .suricata: track = .byRule
    case ("track", "by_both") where dialect == .suricata: track = .byBoth
    case ("track", "by_flow") where dialect == .suricata,
      ("type", "backoff") where dialect == .suricata && name == "threshold",
      ("multiplier", _) where dialect == .suricata && name == "threshold",
      ("unique_on", _) where dialect == .suricata && name == "detection_filter":
      unsupported.append(
        RuleFeature(name: "`\(name)` with `\(word.text) \(value.text.escapedForDisplay)`", offset: word.startIndex))
    case ("count", let text):
      guard let number = UInt32(text), number > 0 else {
        throw RuleProblem(value.startIndex, "\(value.shown) is no count", "a count is a whole number from 1")
      }
      count = number
    case ("seconds", let text):
      guard let number = UInt32(text), number > 0 else {
        throw RuleProblem(value.startIndex, "\(value.shown) is no time", "seconds are a whole number from 1")
      }
      seconds = number
    default:
      throw RuleProblem(
        word.startIndex, "`\(word.text.escapedForDisplay) \(value.text.escapedForDisplay)` is not known here", form)
    }
  }
}
