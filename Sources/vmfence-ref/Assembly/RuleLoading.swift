#if Daemon
import VMFenceCore
import VMFenceDetection

/// Compiles the rule sets of a configuration, one for each distinct list of files: domains with equal rules share one
/// image.
struct RuleLoading {
  struct Failure: Error {
    var diagnostics: [Diagnostic]
  }

  let rules: ScenarioRules
  private(set) var diagnostics: [Diagnostic] = []
  private var adjustments: RuleAdjustments?
  private var compiled: [[String]: SnortRules] = [:]
  private var reported: Set<Diagnostic> = []

  init(rules: ScenarioRules) { self.rules = rules }

  /// The compiled rules for a domain with files of its `own`, and that service; nil when none are configured for it.
  mutating func rules(own: [ScenarioRules.File] = [], serviceType: String?) throws(Failure) -> SnortRules? {
    let files = rules.catalog.sources(domainName: "", serviceType: serviceType) + own
    if files.isEmpty { return nil }
    let key = files.map(\.path)
    if let known = compiled[key] { return known }
    let sources = try RuleFiles.read(all: files, dialect: rules.dialect)
    let result = try compile(sources)
    compiled[key] = result
    return result
  }

  private mutating func compile(_ sources: [RuleSource]) throws(Failure) -> SnortRules {
    let request = RuleCompilationRequest(sources: sources, variables: rules.variables, onBadRule: rules.onBadRule)
    if adjustments == nil { adjustments = try rules.adjustments() }
    do throws(RuleCompilationError) {
      var engine = SnortRuleEngine(adjustments: adjustments ?? RuleAdjustments())
      engine.readData = RuleFiles.dataReader(stateFolder: nil)
      let result = try engine.compile(request)
      note(result.diagnostics)
      return result.rules
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
