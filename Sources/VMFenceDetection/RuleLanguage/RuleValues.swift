import VMFenceCore

/// How a dialect writes a number to compare with.
///
/// - Snort 2: `N`, `<N`, `>N`, `A<>B`; some options (`hasSigns`) also `!N`, `=N`, `<=N`, `>=N`, and `ttl` (`dashIncludesEnds`) `A-B`,
///   `A-` and `-B` with their ends in them.
/// - Snort 3: `N`, `=N`, `!N`, `!=N`, `<N`, `<=N`, `>N`, `>=N`, and `A<=>B`, which has its ends in it (`A<>B` has not).
/// - Suricata: as Snort 3, with `A-B` and `!A-B` (like `A<>B` without their ends) in place of `A<=>B`; `&MASK=N` and `&MASK!=N`;
///   hexadecimal numbers; `kb`, `mb`, `gb`.
struct NumberForm {
  var dialect: RuleDialect
  var maximum: UInt64
  /// Whether `A<>B` has A and B in it: so for Snort 2's `dsize`.
  var arrowIncludesEnds = false
  var dashIncludesEnds = false
  var hasSigns = true

  func parse(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) -> NumberTest {
    var text = Substring(value.text).trimmingBlanks
    if dialect == .suricata, text.hasPrefix("&") { return try masked(name, value, text.dropFirst()) }
    var isNegated = false
    if hasSigns || dialect != .snort2, text.hasPrefix("!") {
      isNegated = true
      text = text.dropFirst().trimmingBlanks
      if text.hasPrefix("=") {
        text = text.dropFirst()
      } else if text.hasPrefix("<") || text.hasPrefix(">") {
        throw wrong(name, value, "has two signs", "write \(forms)")
      }
    }
    guard let (low, high) = try bounds(text, name, value), low <= high else {
      throw wrong(name, value, "is true of no number", "mind which ends belong to the range, and their order")
    }
    return NumberTest(low: low, high: high, isNegated: isNegated)
  }

  /// nil: no number lies within.
  private func bounds(
    _ text: Substring, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>
  ) throws(RuleProblem) -> (UInt64, UInt64)? {
    func number(_ text: Substring) throws(RuleProblem) -> UInt64 {
      guard let number = self.number(text.trimmingBlanks), number <= maximum else {
        throw wrong(name, value, "is not a test of a number from 0 to \(maximum)", "write \(forms)")
      }
      return number
    }
    func between(_ low: Substring, _ high: Substring, includesEnds: Bool) throws(RuleProblem) -> (UInt64, UInt64)? {
      let (low, high) = (try number(low), try number(high))
      if includesEnds { return (low, high) }
      return high > 0 ? (low + 1, high - 1) : nil
    }
    if dialect == .snort3, let arrow = text.firstRange(of: "<=>") {
      return try between(text[..<arrow.lowerBound], text[arrow.upperBound...], includesEnds: true)
    }
    if let arrow = text.firstRange(of: "<>") {
      return try between(text[..<arrow.lowerBound], text[arrow.upperBound...], includesEnds: arrowIncludesEnds)
    }
    if dialect == .suricata || dashIncludesEnds, let dash = text.firstIndex(of: "-") {
      let (low, high) = (text[..<dash].trimmingBlanks, text[text.index(after: dash)...].trimmingBlanks)
      if dashIncludesEnds, low.isEmpty { return (0, try number(high)) }
      if dashIncludesEnds, high.isEmpty { return (try number(low), maximum) }
      return try between(low, high, includesEnds: dashIncludesEnds)
    }
    if hasSigns || dialect != .snort2 {
      if text.hasPrefix("<=") { return (0, try number(text.dropFirst(2))) }
      if text.hasPrefix(">=") { return (try number(text.dropFirst(2)), maximum) }
    }
    if text.hasPrefix("<") {
      let end = try number(text.dropFirst())
      return end > 0 ? (0, end - 1) : nil
    }
    if text.hasPrefix(">") {
      let start = try number(text.dropFirst())
      return start < maximum ? (start + 1, maximum) : nil
    }
    let exact = try number((hasSigns || dialect != .snort2) && text.hasPrefix("=") ? text.dropFirst() : text)
    return (exact, exact)
  }

  /// `MASK=N` or `MASK!=N`.
  private func masked(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>, _ text: Substring
  ) throws(RuleProblem) -> NumberTest {
    guard let equals = text.firstIndex(of: "=") else {
      throw wrong(name, value, "is no test of a bit mask", "write &MASK=N or &MASK!=N")
    }
    var mask = text[..<equals].trimmingBlanks
    let isNegated = mask.last == "!"
    if isNegated { mask = mask.dropLast().trimmingBlanks }
    guard let bits = number(mask), let wanted = number(text[text.index(after: equals)...].trimmingBlanks),
      bits <= maximum, wanted <= maximum
    else { throw wrong(name, value, "is no test of a bit mask", "write &MASK=N or &MASK!=N, from 0 to \(maximum)") }
    return NumberTest(low: wanted, high: wanted, mask: bits, isNegated: isNegated)
  }

  private func wrong(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>, _ message: String, _ remedy: String
  ) -> RuleProblem {
    RuleProblem(value.startIndex, "\(name.shown): \(value.shown) \(message)", remedy)
  }

  private var forms: String {
    switch dialect {
    case .snort2:
      "N, " + (hasSigns ? "!N, <N, <=N, >N, >=N" : "<N, >N") + (dashIncludesEnds ? ", A-B" : "") + " or A<>B"
    case .snort3: "N, !N, <N, <=N, >N, >=N, A<>B or A<=>B"
    case .suricata: "N, !N, <N, <=N, >N, >=N, A-B or A<>B"
    }
  }

  private func number(_ text: Substring) -> UInt64? {
    // Int's initialiser takes a sign, too.
    guard let first = text.first, first.isASCII, first.isNumber else { return nil }
    guard dialect == .suricata else { return UInt64(text) }
    if text.hasPrefix("0x") { return UInt64(text.dropFirst(2), radix: 16) }
    let units: [(String, UInt64)] = [("kb", 1 << 10), ("mb", 1 << 20), ("gb", 1 << 30)]
    guard let unit = units.first(where: { text.lowercased().hasSuffix($0.0) }) else { return UInt64(text) }
    guard let number = UInt64(text.dropLast(2)) else { return nil }
    let (product, overflow) = number.multipliedReportingOverflow(by: unit.1)
    return overflow ? nil : product
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
  private var kind: RuleThreshold.Kind?
  private var track: RuleThreshold.Track?
  private var count: UInt32?
  private var seconds: UInt32?
  private var multiplier: UInt32?
  private var unique = RuleThreshold.Unique.none

  init(name: String, dialect: RuleDialect) {
    self.name = name
    self.dialect = dialect
    kind = name == "threshold" ? nil : .filter
  }

  private var form: String {
    let tracks = dialect == .suricata ? "by_src|by_dst|by_rule|by_both|by_flow" : "by_src|by_dst"
    return name == "threshold"
      ? "write `type limit|threshold|both, track \(tracks), count N, seconds N`"
      : "write `track \(tracks), count N, seconds N`"
  }

  mutating func parse(_ value: ArraySlice<UInt8>) throws(RuleProblem) -> RuleThreshold {
    for item in value.split(at: UInt8(ascii: ",")) {
      let words = item.split(whereSeparator: { $0 == 0x20 || $0 == 0x09 })
      guard words.count == 2 else { throw RuleProblem(item.startIndex, "\(item.shown) is not NAME VALUE", form) }
      try part(words[0], words[1])
    }
    let isBackoff = kind == .backoff
    let missing = [
      kind == nil ? "type" : nil, track == nil ? "track" : nil, count == nil ? "count" : nil,
      seconds == nil && !isBackoff ? "seconds" : nil, multiplier == nil && isBackoff ? "multiplier" : nil,
    ].compactMap(\.self)
    guard missing.isEmpty, let kind, let track, let count else {
      throw RuleProblem(value.startIndex, "`\(name)` lacks \(missing.joined(separator: " and "))", form)
    }
    if isBackoff, track != .byFlow {
      throw RuleProblem(value.startIndex, "`type backoff` counts by flow", "write `track by_flow`")
    }
    if unique != .none, track == .byFlow {
      throw RuleProblem(
        value.startIndex, "`unique_on` within one flow: its ports are always the same", "track otherwise")
    }
    return RuleThreshold(
      kind: kind, track: track, count: count, seconds: isBackoff ? 0 : seconds ?? 0, extra: multiplier ?? 0,
      unique: unique)
  }

  private mutating func part(_ word: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let isSuricata = dialect == .suricata
    switch (word.text, value.text) {
    case ("type", "limit") where name == "threshold": kind = .limit
    case ("type", "threshold") where name == "threshold": kind = .threshold
    case ("type", "both") where name == "threshold": kind = .both
    case ("type", "backoff") where isSuricata && name == "threshold": kind = .backoff
    case ("track", "by_src"): track = .bySource
    case ("track", "by_dst"): track = .byDestination
    case ("track", "by_rule") where isSuricata: track = .byRule
    case ("track", "by_both") where isSuricata: track = .byBoth
    case ("track", "by_flow") where isSuricata: track = .byFlow
    case ("unique_on", "src_port") where isSuricata && name == "detection_filter": unique = .sourcePort
    case ("unique_on", "dst_port") where isSuricata && name == "detection_filter": unique = .destinationPort
    case ("multiplier", let text) where isSuricata && name == "threshold":
      guard let number = UInt32(text), number > 1 else {
        throw RuleProblem(value.startIndex, "\(value.shown) is no multiplier", "a multiplier is a whole number from 2")
      }
      multiplier = number
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
