#if Daemon
import VMFenceCore
import VMFenceDetection

/// The compiled rules of a configuration, ready to be chosen from.
struct RuleSelection: Sendable {
  /// A domain with files of its own; which others it has depends on its service.
  private struct Name: Hashable {
    var name: String
    var service: String?
  }

  /// The names of domains with files of their own.
  private let special: Set<String>
  private var byName: [Name: SnortRules] = [:]
  private var byService: [String: SnortRules] = [:]
  private var fallback: SnortRules?

  /// Compiles all rule sets that `domains` need, so that nothing is compiled while packets flow.
  init(_ loading: inout RuleLoading, domains: [(name: String, serviceType: String?)]) throws(RuleLoading.Failure) {
    special = Set(loading.rules.catalog.byDomain.keys)
    fallback = try loading.rules(name: "", serviceType: nil)
    for service in loading.rules.catalog.byService.keys.sorted() {
      byService[service] = try loading.rules(name: "", serviceType: service)
    }
    for domain in domains where special.contains(domain.name) {
      byName[Name(name: domain.name, service: domain.serviceType)] = try loading.rules(
        name: domain.name, serviceType: domain.serviceType)
    }
  }

  /// nil: no rules are configured for it, or its own are not compiled yet.
  func rules(for domain: DomainDescription) -> SnortRules? {
    if special.contains(domain.name) { return byName[Name(name: domain.name, service: domain.serviceType)] }
    return domain.serviceType.flatMap { byService[$0] } ?? fallback
  }

  /// Whether rules of its own are configured for a domain and not compiled for the service that it has.
  func lacks(_ domain: DomainDescription) -> Bool { special.contains(domain.name) && rules(for: domain) == nil }

  /// All rule sets, each once.
  var all: [SnortRules] { Array(byName.values) + byService.values + (fallback.map { [$0] } ?? []) }

  /// Classes that a policy names and no rule can have.
  func unknownClasses(in policy: Policy) -> [Diagnostic] {
    let known = SnortRuleEngine.standardClasses.union(classes)
    let before = Set(policy.validate())
    return policy.validate(knownClasses: known).filter { $0.severity == .error && !before.contains($0) }
  }

  /// The classes of all rules.
  var classes: Set<String> {
    var result: Set<String> = []
    for rules in all {
      for index in 0..<rules.ruleCount { result.insert(rules.metadata(at: index).classification) }
    }
    return result
  }
}
#endif
