#if Daemon
import VMFenceCore
import VMFenceDetection

/// What of a domain decides about its rules.
struct RuleSubject: Hashable, Sendable {
  var name: String
  /// nil: of a domain that only the configuration names.
  var uuid: DomainUUID?
  var serviceType: String?

  init(name: String, uuid: DomainUUID?, serviceType: String?) {
    self.name = name
    self.uuid = uuid
    self.serviceType = serviceType
  }

  init(_ domain: DomainDescription) {
    self.init(name: domain.name, uuid: domain.incarnation.uuid, serviceType: domain.serviceType)
  }

  /// Under what its own files may stand: its UUID, which goes before its name. A name that reads as a UUID is none here, since it could be another's.
  var keys: [String] { [uuid?.description, DomainUUID(name) == nil ? name : nil].compactMap(\.self) }

  /// The form in which a domain is named as an owner of files: one form for each UUID.
  static func key(_ text: String) -> String { DomainUUID(text)?.description ?? text }
}

/// The compiled rules of a configuration, ready to be chosen from.
struct RuleSelection: Sendable {
  /// A domain with files of its own; which others it has depends on its service.
  private struct Own: Hashable {
    var key: String
    /// Set at run time.
    var isAssigned: Bool
    var service: String?
  }

  /// The names and UUIDs of domains with files of their own, set at run time and configured.
  private let assigned: Set<String>
  private let configured: Set<String>
  /// Those of them that have no rules of their own: their files cannot be used, which was told, or name nothing.
  private var without: Set<Own> = []
  private var byDomain: [Own: RuleLoading.Compiled] = [:]
  private var byService: [String: RuleLoading.Compiled] = [:]
  private var fallback: RuleLoading.Compiled?
  /// What stands for rules whose texts are wrong when the same files are compiled again.
  private(set) var texts = RulesBefore()
  /// Rules of all sets that stand as they were before, because their texts are wrong now, by their places.
  private(set) var kept: [KeptRule] = []
  /// Those whose files cannot be used, by the names and UUIDs under which they are configured.
  private var unusable: [String] = []

  /// Compiles all rule sets that `domains` need, so that nothing is compiled while packets flow.
  ///
  /// - `isolating`: own files of a domain that cannot be used are an error among `loading`'s diagnostics, and cost nobody but that domain anything:
  ///   it keeps what it has in `previous`, or has the rules of its service. Otherwise they are thrown.
  init(
    _ loading: inout RuleLoading, domains: [RuleSubject], isolating: Bool = false,
    keeping previous: RuleSelection? = nil
  ) throws(RuleLoading.Failure) {
    assigned = Set(loading.rules.assigned.keys)
    configured = Set(loading.rules.catalog.byDomain.keys)
    fallback = try loading.rules(serviceType: nil)
    for service in loading.rules.catalog.byService.keys.sorted() {
      byService[service] = try loading.rules(serviceType: service)
    }
    for domain in domains {
      guard let own = own(domain), byDomain[own] == nil, !without.contains(own) else { continue }
      let files = (own.isAssigned ? loading.rules.assigned[own.key] : loading.rules.catalog.byDomain[own.key]) ?? []
      do throws(RuleLoading.Failure) {
        let rules = try loading.rules(own: files, serviceType: own.service)
        if let rules { byDomain[own] = rules } else { without.insert(own) }
      } catch {
        guard isolating else { throw error }
        let kept = previous?.byDomain[own]
        if let kept { byDomain[own] = kept } else { without.insert(own) }
        unusable.append(own.key)
        loading.note(error.diagnostics)
        loading.note([
          Diagnostic(
            .error,
            "the rule files of the guest `\(own.key.escapedForDisplay)` cannot be used: it "
              + (kept == nil ? "has the rules of its service and those for all" : "keeps the rules that it has"),
            remedy: "mend what is named, and reload")
        ])
      }
    }
    // For when files that cannot be used now can be, and guests that are away come again.
    for files in Array(loading.rules.assigned.values) + Array(loading.rules.catalog.byDomain.values) {
      loading.carryTexts(of: files)
    }
    texts = loading.texts
    kept = KeptRule.once(sets.flatMap(\.kept))
  }

  private func own(_ domain: RuleSubject) -> Own? {
    for (keys, isAssigned) in [(assigned, true), (configured, false)] {
      guard let key = domain.keys.first(where: keys.contains) else { continue }
      return Own(key: key, isAssigned: isAssigned, service: domain.serviceType)
    }
    return nil
  }

  /// nil: no rules are configured for it, or its own are not compiled yet.
  func rules(for domain: DomainDescription) -> SnortRules? { compiled(for: domain)?.rules }

  /// Of its rules those that stand as they were before, because their texts are wrong now.
  func kept(for domain: DomainDescription) -> [KeptRule] { compiled(for: domain)?.kept ?? [] }

  private func compiled(for domain: DomainDescription) -> RuleLoading.Compiled? {
    if let own = own(RuleSubject(domain)), !without.contains(own) { return byDomain[own] }
    return domain.serviceType.flatMap { byService[$0] } ?? fallback
  }

  /// Whether rules of its own are configured for a domain and not compiled for the service that it has.
  func lacks(_ domain: DomainDescription) -> Bool {
    own(RuleSubject(domain)).map { byDomain[$0] == nil && !without.contains($0) } ?? false
  }

  /// Has domains that `lack` theirs go on without: each keeps its own of before it served something else, or has the rules of its service and those for all, until there is
  /// another selection.
  ///
  /// - Returns: the names and UUIDs for which these are configured.
  mutating func leaveWithout(_ domains: [DomainDescription]) -> [String] {
    let lacking = Set(domains.filter(lacks).compactMap { own(RuleSubject($0)) })
    for own in lacking {
      let kept = byDomain.first { $0.key.key == own.key && $0.key.isAssigned == own.isAssigned }?.value
      if let kept { byDomain[own] = kept } else { without.insert(own) }
    }
    return Set(lacking.map(\.key)).sorted()
  }

  private var sets: [RuleLoading.Compiled] { Array(byDomain.values) + byService.values + (fallback.map { [$0] } ?? []) }

  /// All rule sets.
  var all: [SnortRules] { sets.map(\.rules) }

  /// Classes that a policy names and no rule can have: errors, or warnings where they may stand in files of a guest that cannot be used, since those cost nobody else
  /// anything.
  func unknownClasses(in policy: Policy) -> [Diagnostic] {
    let known = SnortRuleEngine.standardClasses.union(classes)
    let before = Set(policy.validate())
    let found = policy.validate(knownClasses: known).filter { $0.severity == .error && !before.contains($0) }
    guard !unusable.isEmpty else { return found }
    let guests = unusable.map { "`\($0.escapedForDisplay)`" }.joined(separator: ", ")
    return found.map { diagnostic in
      Diagnostic(
        .warning, at: diagnostic.place, diagnostic.message,
        remedy:
          "it may stand in the rule files of \(guests), which cannot be used: mend them; else \(diagnostic.remedy)")
    }
  }

  /// Signatures that a policy names and no rule in use has: a misspelt number would count nothing, and nobody would know. Warnings only, since rules can be set at run time. Of
  /// other generators than that of rules' own there may be alerts without a rule.
  func unknownSignatures(in policy: Policy) -> [Diagnostic] {
    let named = policy.rules.flatMap { rule in
      rule.selectors.compactMap { selector -> (rule: PolicyRule, sids: ClosedRange<UInt32>)? in
        guard case .signatures(gid: 1, let sids) = selector else { return nil }
        return (rule, sids)
      }
    }
    if named.isEmpty { return [] }
    var known: Set<UInt32> = []
    for rules in all {
      for index in 0..<rules.ruleCount where rules.metadata(at: index).gid == 1 {
        known.insert(rules.metadata(at: index).sid)
      }
    }
    return named.filter { _, sids in
      sids.count == 1 ? !known.contains(sids.lowerBound) : !known.contains(where: sids.contains)
    }.map { rule, sids in
      let name = sids.count == 1 ? "the SID \(sids.lowerBound)" : "a SID from \(sids.lowerBound) to \(sids.upperBound)"
      return Diagnostic(
        .warning, at: rule.place, "rule '\(rule.name.escapedForDisplay)': no rule in use has \(name)",
        remedy: "check the number; what it selects is not counted until a rule has it")
    }
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
