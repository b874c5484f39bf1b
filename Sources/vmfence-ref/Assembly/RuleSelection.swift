#if Daemon
import VMFenceCore
import VMFenceDetection

/// The compiled rules of a configuration, ready to be chosen from.
struct RuleSelection: Sendable {
  private var byName: [String: SnortRules] = [:]
  private var byService: [String: SnortRules] = [:]
  private var fallback: SnortRules?

  /// Compiles all rule sets that `domains` need, so that nothing is compiled while packets flow.
  init(_ loading: inout RuleLoading, domains: [(name: String, serviceType: String?)]) throws(RuleLoading.Failure) {
    fallback = try loading.rules(name: "", serviceType: nil)
    for service in loading.rules.services.keys.sorted() {
      byService[service] = try loading.rules(name: "", serviceType: service)
    }
    for domain in domains where loading.rules.domains[domain.name] != nil {
      byName[domain.name] = try loading.rules(name: domain.name, serviceType: domain.serviceType)
    }
  }

  /// nil: no rules are configured for it.
  func rules(for domain: DomainDescription) -> SnortRules? {
    byName[domain.name] ?? domain.serviceType.flatMap { byService[$0] } ?? fallback
  }
}
#endif
