#if Daemon
import VMFenceCore
import VMFenceDetection

/// Compiles the rule sets of a configuration, one for each distinct list of files: domains with equal rules share one
/// image.
struct RuleLoading {
  struct Failure: Error {
    var diagnostics: [Diagnostic]
  }

  /// A rule set, and which of its rules stand as they were before, because their texts are wrong now.
  struct Compiled: Sendable {
    var rules: SnortRules
    var kept: [KeptRule] = []
  }

  let rules: ScenarioRules
  private(set) var diagnostics: [Diagnostic] = []
  /// What stands for rules of these files when they are compiled again.
  private(set) var texts = RulesBefore()
  private let before: RulesBefore
  private let time: Timestamp
  private var adjustments: RuleAdjustments?
  private var compiled: [[String]: Compiled] = [:]
  /// Files that were read, so that all sets have the same of each.
  private var sources: [String: RuleSource] = [:]
  private var reported: Set<Diagnostic> = []

  /// - `keeping`: of rules that are wrong now, what goes on.
  init(rules: ScenarioRules, keeping before: RulesBefore = RulesBefore()) {
    self.rules = rules
    self.before = before
    time = SystemClock().now
  }

  /// The compiled rules for a domain with files of its `own`, and that service; nil when none are configured for it.
  mutating func rules(own: [ScenarioRules.File] = [], serviceType: String?) throws(Failure) -> Compiled? {
    let files = rules.catalog.sources(domainName: "", serviceType: serviceType) + own
    if files.isEmpty { return nil }
    let key = files.map(\.path)
    if let known = compiled[key] { return known }
    let result = try compile(try RuleFiles.read(all: files, dialect: rules.dialect, known: &sources))
    compiled[key] = result
    return result
  }

  /// Goes on with what is known of files that could not be used, for when they can be.
  mutating func carryTexts(of files: [ScenarioRules.File]) {
    texts.carry(before) { path in files.contains { RuleFiles.matches($0.path, path) } }
  }

  private mutating func compile(_ sources: [RuleSource]) throws(Failure) -> Compiled {
    let request = RuleCompilationRequest(sources: sources, variables: rules.variables, onBadRule: rules.onBadRule)
    if adjustments == nil { adjustments = try rules.adjustments() }
    do throws(RuleCompilationError) {
      var engine = SnortRuleEngine(adjustments: adjustments ?? RuleAdjustments())
      engine.readData = SnortRuleEngine.dataReader(stateFolder: nil)
      let (result, kept, texts) = try engine.compile(request, keeping: before, at: time)
      note(result.diagnostics)
      self.texts.merge(texts)
      return Compiled(rules: result.rules, kept: kept)
    } catch {
      note(error.diagnostics)
      throw Failure(diagnostics: error.diagnostics.isEmpty ? [error.diagnostic] : error.diagnostics)
    }
  }

  mutating func note(_ found: [Diagnostic]) {
    for diagnostic in found where reported.insert(diagnostic).inserted { diagnostics.append(diagnostic) }
  }
}

extension ScenarioRules {
  /// What the operator changes about rules, read from its files.
  func adjustments() throws(RuleLoading.Failure) -> RuleAdjustments {
    // Their lines are the same in all dialects that have them.
    RuleAdjustments(
      filters: try RuleFiles.read(all: filters, dialect: .suricata),
      definitions: try RuleFiles.read(all: definitions, dialect: .suricata),
      enabled: try RuleFiles.read(all: enabled, dialect: nil),
      disabled: try RuleFiles.read(all: disabled, dialect: nil),
      dropping: try RuleFiles.read(all: dropping, dialect: nil),
      reputationCategories: try RuleFiles.read(all: reputationCategories, dialect: nil),
      reputations: try RuleFiles.read(all: reputationLists, dialect: nil),
      countryDatabase: try countryDatabase.map { (file) throws(RuleLoading.Failure) in
        try RuleFiles.read(file.path, dialect: nil, at: file.place)
      }, actionOrder: actionOrder)
  }
}
#endif
