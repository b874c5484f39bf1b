import VMFenceCore

/// What a line outside of rules says about when rules are told, or what they do: `threshold` (also `event_filter`), `suppress` and
/// `rate_filter`.
struct RuleFilter: Hashable, Sendable {
  enum Effect: Hashable, Sendable {
    case threshold(RuleThreshold)
    case suppress(RuleSuppression)
    case rate(RuleRateFilter)
  }

  /// 0: all generators, all rules.
  var gid: UInt32
  var sid: UInt32
  var effect: Effect
  var place: SourcePlace

  func isFor(_ rule: RuleMetadata) -> Bool {
    (gid == 0 || gid == rule.gid) && (sid == 0 || sid == rule.sid)
  }

  /// Changes `rules` as the filters say: one for a single rule goes before one for many, and over the rule's own threshold; of equals the
  /// last one counts. All suppressions count. Filters for rules that are not there are told.
  static func apply(_ filters: [RuleFilter], to rules: inout [Rule]) -> [Diagnostic] {
    guard !filters.isEmpty else { return [] }
    var byRule: [UInt64: [RuleFilter]] = [:]
    var general: [RuleFilter] = []
    for filter in filters {
      if filter.gid == 0 || filter.sid == 0 {
        general.append(filter)
      } else {
        byRule[UInt64(filter.gid) << 32 | UInt64(filter.sid), default: []].append(filter)
      }
    }
    general.sort { ($0.gid == 0 ? 0 : 1) < ($1.gid == 0 ? 0 : 1) }
    for index in rules.indices {
      let metadata = rules[index].metadata
      let id = UInt64(metadata.gid) << 32 | UInt64(metadata.sid)
      for filter in general where filter.isFor(metadata) { filter.apply(to: &rules[index], isExact: false) }
      for filter in byRule.removeValue(forKey: id) ?? [] { filter.apply(to: &rules[index], isExact: true) }
    }
    return byRule.values.joined().sorted { ($0.place.file, $0.place.line) < ($1.place.file, $1.place.line) }
      .map {
        Diagnostic(
          .warning, at: $0.place, "there is no rule \($0.gid):\($0.sid) to filter", remedy: "check gen_id and sig_id")
      }
  }

  private func apply(to rule: inout Rule, isExact: Bool) {
    switch effect {
    case .suppress(let suppression): rule.suppressions.append(suppression)
    case .rate(let filter): rule.rateFilter = filter
    case .threshold(let threshold):
      guard isExact || rule.threshold == nil && rule.detectionFilter == nil else { return }
      rule.threshold = threshold
      rule.detectionFilter = nil
    }
  }
}

/// Reads the part of a filter line after its first word: `gen_id 1, sig_id 2, …`.
struct RuleFilterParser {
  private let keyword: String
  private var parts: [String: ArraySlice<UInt8>] = [:]
  private let start: Int

  private static let form: [String: String] = [
    "threshold":
      "gen_id N, sig_id N, type limit|threshold|both, track by_src|by_dst|by_rule|by_both|by_flow, count N, seconds N",
    "suppress": "gen_id N, sig_id N[, track by_src|by_dst|by_either, ip ADDRESSES]",
    "rate_filter":
      "gen_id N, sig_id N, track by_src|by_dst|by_rule|by_both|by_flow, count N, seconds N, new_action ACTION, timeout N",
  ]

  static let keywords: Set<String> = ["threshold", "event_filter", "suppress", "rate_filter"]

  init(_ keyword: String, _ text: ArraySlice<UInt8>) throws(RuleProblem) {
    self.keyword = keyword == "event_filter" ? "threshold" : keyword
    start = text.startIndex
    for item in Self.items(text) {
      let name = item.prefix { $0 != 0x20 && $0 != 0x09 }
      let value = item[name.endIndex...].trimmed
      guard !name.isEmpty, !value.isEmpty else {
        throw RuleProblem(item.startIndex, "\(item.shown) is not NAME VALUE", "write \(form)", rejectsRule: false)
      }
      guard parts.updateValue(value, forKey: name.text) == nil else {
        throw RuleProblem(item.startIndex, "a second \(name.shown)", "keep one of them", rejectsRule: false)
      }
    }
  }

  private var form: String { "`\(keyword) \(Self.form[keyword] ?? "")`" }

  mutating func parse(
    _ variables: inout RuleVariables, at place: SourcePlace
  ) throws(RuleProblem) -> RuleFilter {
    let (gid, sid) = (try number("gen_id"), try number("sig_id"))
    let effect: RuleFilter.Effect =
      switch keyword {
      case "suppress": .suppress(try suppression(&variables))
      case "rate_filter": .rate(try rateFilter())
      default: .threshold(try threshold())
      }
    if let (name, value) = parts.min(by: { $0.value.startIndex < $1.value.startIndex }) {
      throw RuleProblem(
        value.startIndex, "`\(name.escapedForDisplay)` is not known here", "write \(form)", rejectsRule: false)
    }
    return RuleFilter(gid: gid, sid: sid, effect: effect, place: place)
  }

  private mutating func take(_ name: String) throws(RuleProblem) -> ArraySlice<UInt8> {
    guard let value = parts.removeValue(forKey: name) else {
      throw RuleProblem(start, "`\(keyword)` lacks \(name)", "write \(form)", rejectsRule: false)
    }
    return value
  }

  private mutating func number(_ name: String) throws(RuleProblem) -> UInt32 {
    let value = try take(name)
    guard let number = UInt32(value.text) else {
      throw RuleProblem(value.startIndex, "\(name): \(value.shown) is no number", "write \(form)", rejectsRule: false)
    }
    return number
  }

  private mutating func choice<Choice>(_ name: String, _ choices: [String: Choice]) throws(RuleProblem) -> Choice {
    let value = try take(name)
    guard let choice = choices[value.text] else {
      throw RuleProblem(
        value.startIndex, "\(name): \(value.shown) is not known here",
        "use \(choices.keys.sorted().joined(separator: ", "))",
        rejectsRule: false)
    }
    return choice
  }

  private static let tracks: [String: RuleThreshold.Track] = [
    "by_src": .bySource, "by_dst": .byDestination, "by_rule": .byRule, "by_both": .byBoth, "by_flow": .byFlow,
  ]

  private mutating func threshold() throws(RuleProblem) -> RuleThreshold {
    let kinds: [String: RuleThreshold.Kind] = [
      "limit": .limit, "threshold": .threshold, "both": .both, "backoff": .backoff,
    ]
    let kind = try choice("type", kinds)
    let track = try choice("track", Self.tracks)
    if kind == .backoff {
      return RuleThreshold(
        kind: kind, track: track, count: try number("count"), seconds: 0, extra: max(2, try number("multiplier")))
    }
    return RuleThreshold(kind: kind, track: track, count: try number("count"), seconds: try number("seconds"))
  }

  private mutating func rateFilter() throws(RuleProblem) -> RuleRateFilter {
    let track = try choice("track", Self.tracks)
    let (count, seconds) = (try number("count"), try number("seconds"))
    let action = try choice(
      "new_action",
      ["alert": RuleAction.alert, "drop": .drop, "pass": .pass, "log": .log, "reject": .reject, "sdrop": .sdrop])
    return RuleRateFilter(
      rate: RuleThreshold(kind: .rate, track: track, count: count, seconds: seconds, extra: try number("timeout")),
      action: action)
  }

  private mutating func suppression(_ variables: inout RuleVariables) throws(RuleProblem) -> RuleSuppression {
    guard parts["track"] != nil || parts["ip"] != nil else { return RuleSuppression(side: nil, addresses: .any) }
    let side = try choice("track", ["by_src": HostSide.source, "by_dst": .destination, "by_either": .either])
    let addresses = try take("ip")
    do throws(RuleProblem) {
      return RuleSuppression(side: side, addresses: try variables.addresses(addresses, .suricata))
    } catch {
      throw RuleProblem(error.offset, error.message, error.remedy, rejectsRule: false)
    }
  }

  /// Splits at the commas that are in no brackets.
  private static func items(_ text: ArraySlice<UInt8>) -> [ArraySlice<UInt8>] {
    var result: [ArraySlice<UInt8>] = []
    var depth = 0
    var start = text.startIndex
    for index in text.indices {
      switch text[index] {
      case UInt8(ascii: "["): depth += 1
      case UInt8(ascii: "]"): depth -= 1
      case UInt8(ascii: ",") where depth == 0:
        result.append(text[start..<index].trimmed)
        start = index + 1
      default: break
      }
    }
    result.append(text[start...].trimmed)
    return result
  }
}
