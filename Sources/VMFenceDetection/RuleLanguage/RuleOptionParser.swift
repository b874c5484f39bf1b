import VMFenceCore

/// Parses the options of one rule.
struct RuleOptionParser {
  /// Options in one rule.
  static let optionMaximum = 256
  /// Bytes in one pattern.
  static let patternMaximum = 8192

  let dialect: RuleDialect
  let classes: ClassificationTable
  let place: (Int) -> SourcePlace
  var references = ReferenceTable()

  /// What was collected so far.
  var tests: [RuleTest] = []
  var effects: [StateEffect] = []
  var threshold: RuleThreshold?
  var detectionFilter: RuleThreshold?
  var activates: UInt32?
  var activatedBy: UInt32?
  var count: UInt32?
  /// Snort 2's `resp` and `react`: the action that tells the ends, as it is called where it is one.
  var response: RuleAction?
  /// Snort 3's `enable`.
  var isEnabled = true
  var metadata = RuleMetadata(sid: 0)
  var hasPriority = false
  /// What is known and not evaluated yet, in order.
  var unsupported: [RuleFeature] = []
  /// A class that the table does not have, and where it is named.
  var unknownClass: (name: String, offset: Int)?
  /// Of all contents together.
  var patternBytes = 0
  /// What `byte_extract` and `byte_math` set, by name.
  var variables: [String: RuleVariable] = [:]
  /// Where the last digest stands.
  var digestPlace = 0
  /// The buffer that payload options look at now.
  var buffer = RuleBuffer.payload
  /// Those that the rules before named, and this one.
  var dataSets = DataSets()
  var reputations = Reputations()
  /// nil: none was given.
  var countries: CountryDatabase?
  /// What `requires` names and is not there.
  var unmetRequirement: String?
  private var seen = 0
  private var given: Set<String> = []
  /// Where the parts of each content stand, by its index in `tests`; nil when modifiers belong to a pattern that is
  /// not evaluated yet.
  var contents: [(test: Int, places: ContentPlaces)] = []
  var lastPattern = LastPattern.none

  enum LastPattern { case none, content, digest, unsupported }

  /// Offsets in the file; 0 when the part is not there.
  struct ContentPlaces {
    var content = 0
    var depth = 0
    var within = 0
    /// The first of `offset` and `depth`, and of `distance` and `within`.
    var absolute = 0
    var relative = 0
    var fastPattern = 0
  }

  /// Options of which a rule has one at most.
  private static let single: Set<String> = [
    "msg", "sid", "gid", "rev", "classtype", "priority", "dsize", "flow", "threshold", "detection_filter", "activates",
    "activated_by", "count",
  ]

  init(dialect: RuleDialect, classes: ClassificationTable, place: @escaping (Int) -> SourcePlace) {
    self.dialect = dialect
    self.classes = classes
    self.place = place
  }

  /// Takes one option; false when the dialect has none of this name. `value` is nil when the option has none.
  mutating func option(_ name: ArraySlice<UInt8>, value: ArraySlice<UInt8>?) throws(RuleProblem) -> Bool {
    seen += 1
    let offset = name.startIndex
    guard seen <= Self.optionMaximum else {
      throw RuleProblem(offset, "a rule has \(Self.optionMaximum) options at the most", "split the rule")
    }
    let text = name.text
    guard OptionNames.known(in: dialect).contains(text) else { return false }
    if Self.single.contains(text), !given.insert(text).inserted {
      throw RuleProblem(offset, "a second \(name.shown)", "keep one of them")
    }
    if try generalOption(text, name, value) { return true }
    if try payloadOption(text, name, value) { return true }
    if try headerOption(text, name, value) { return true }
    if try stateOption(text, name, value) { return true }
    try applicationOption(text, name, value)
    return true
  }

  mutating func refuse(_ feature: String, at offset: Int, because reason: String? = nil) {
    unsupported.append(RuleFeature(name: feature, offset: offset, reason: reason))
  }

  // MARK: The rule as a whole

  /// What can only be said when all options are known. `transport` is nil for a protocol that is not supported yet.
  mutating func finish(action: RuleAction, transport: RuleProtocol?, _ start: Int) throws(RuleProblem) {
    guard metadata.sid != 0 else {
      throw RuleProblem(start, "the rule has no sid", "add `sid:NUMBER;` (1000000 and above are for your own)")
    }
    try finishPayload()
    try finishHeader(transport, start)
    if action == .activate, activates == nil {
      throw RuleProblem(start, "an `activate` rule names no group", "add `activates:NUMBER;`")
    }
    if action == .dynamic, activatedBy == nil || count == nil {
      throw RuleProblem(
        start, "a `dynamic` rule needs its group and a count", "add `activated_by:NUMBER; count:NUMBER;`")
    }
    for (isGiven, name, needed) in [
      (activates != nil, "activates", RuleAction.activate), (activatedBy != nil, "activated_by", .dynamic),
      (count != nil, "count", .dynamic),
    ] where isGiven && action != needed {
      throw RuleProblem(start, "`\(name)` in a rule whose action is not `\(needed)`", "begin the rule with `\(needed)`")
    }
  }
}
