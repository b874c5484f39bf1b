#if Daemon
import ArgumentParser
import VMFenceCore
import VMFenceDetection

/// What an operator may say of rules on the command line, for all commands that take rule files.
struct RuleOptions: ParsableArguments {
  @Option(help: "The rules' dialect: snort2, snort3 or suricata. Detected per file when not given.")
  var dialect: RuleDialect?

  @Option(name: .customLong("var"), parsing: .singleValue, help: "A rule variable, as NAME=VALUE.")
  var variables: [RuleVariable] = []

  @Option(parsing: .singleValue, help: "A file of `config classification:` and `config reference:` lines.")
  var definitions: [String] = []

  @Option(parsing: .singleValue, help: "A file of threshold, event_filter, suppress and rate_filter lines.")
  var thresholdConfig: [String] = []

  @Option(
    name: .customLong("enable-list"), parsing: .singleValue,
    help: "A file of rules to use although commented out: SID, GID:SID, group:FILE or re:EXPRESSION in each line.")
  var enabled: [String] = []

  @Option(name: .customLong("disable-list"), parsing: .singleValue, help: "A file of rules not to use.")
  var disabled: [String] = []

  @Option(name: .customLong("drop-list"), parsing: .singleValue, help: "A file of rules to let drop instead of alert.")
  var dropping: [String] = []

  @Option(
    parsing: .singleValue, help: "A file of categories for `iprep`: NUMBER,NAME,DESCRIPTION in each line.")
  var reputationCategories: [String] = []

  @Option(
    name: .customLong("reputation-list"), parsing: .singleValue,
    help: "A file of reputations for `iprep`: ADDRESS,CATEGORY,REPUTATION in each line.")
  var reputationLists: [String] = []

  @Option(help: "A database of countries for `geoip`, in the MaxMind DB format.")
  var countryDatabase: String?

  @Option(help: "The order of actions, for example `pass,drop,reject,alert`. Each dialect's own when not given.")
  var actionOrder: RuleActionOrder?

  /// All files that are named here.
  var lists: [String] {
    let adjusting = definitions + thresholdConfig + enabled + disabled + dropping
    return adjusting + reputationCategories + reputationLists + [countryDatabase].compactMap(\.self)
  }

  /// The request for some rule files, with an engine that has the adjustments.
  func request(
    _ files: [String], onBadRule: RuleCompilationRequest.OnBadRule, stateFolder: String? = nil
  ) throws(RuleLoading.Failure) -> (SnortRuleEngine, RuleCompilationRequest) {
    var rules = ScenarioRules()
    func named(_ paths: [String]) -> [ScenarioRules.File] { paths.map { ScenarioRules.File(path: $0) } }
    rules.dialect = dialect
    rules.definitions = named(definitions)
    rules.filters = named(thresholdConfig)
    rules.enabled = named(enabled)
    rules.disabled = named(disabled)
    rules.dropping = named(dropping)
    rules.reputationCategories = named(reputationCategories)
    rules.reputationLists = named(reputationLists)
    rules.countryDatabase = countryDatabase.map { ScenarioRules.File(path: $0) }
    rules.actionOrder = actionOrder
    let names = Dictionary(variables.map { ($0.name, $0.value) }, uniquingKeysWith: { $1 })
    let sources = try RuleFiles.read(all: named(files), dialect: dialect)
    var engine = SnortRuleEngine(adjustments: try rules.adjustments())
    engine.readData = SnortRuleEngine.dataReader(stateFolder: stateFolder)
    return (
      engine,
      RuleCompilationRequest(sources: sources, variables: names, onBadRule: onBadRule)
    )
  }
}

extension RuleDialect: ExpressibleByArgument {}

extension RuleActionOrder: ExpressibleByArgument {
  public init?(argument: String) { self.init(argument) }
}

struct RuleVariable: ExpressibleByArgument {
  var name: String
  var value: String

  init?(argument: String) {
    guard let equals = argument.firstIndex(of: "="), equals != argument.startIndex else { return nil }
    name = String(argument[..<equals])
    value = String(argument[argument.index(after: equals)...])
    if name.hasPrefix("$") { name.removeFirst() }
  }
}
#endif
