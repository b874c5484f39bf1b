// What a policy may say and hardly anybody means: it cuts off nearly everybody, or contradicts itself. Such a policy is used all the same.

extension Policy {
  /// Whoever is blocked by fewer leading bits than these shares the network with parties that it does not know. An IPv4 /16 is about the most that one organisation has in
  /// one piece (it was a network of class B); an IPv6 /32 is the least that a registry gives a provider, for all of its customers.
  static let sharedBeyond = (v4: 16, v6: 32)
  /// The usual classes have priorities from 1 to 4, so what selects this one selects every alert.
  static let lowestPriority = 4

  func warnings() -> [Diagnostic] {
    var found: [Diagnostic] = []
    if ipv6SourcePrefix < Self.sharedBeyond.v6,
      rules.contains(where: { $0.blocksAddresses && $0.counting.key.isSingleSource })
    {
      found.append(
        Diagnostic(
          .warning,
          "IPv6 sources by /\(ipv6SourcePrefix): with one of them a network is blocked that is shared by many who have nothing to do with each other",
          remedy: "use a prefix from \(Self.sharedBeyond.v6) to 128; a site has 48 as a rule, and one network of it 64")
      )
    }
    for rule in rules { found += rule.warnings(destructiveMeasures) }
    return found + contradictions()
  }

  /// Rules that count the same and do different things about it, or the same things twice. Rules that only tell contradict nobody.
  private func contradictions() -> [Diagnostic] {
    struct Selection: Hashable {
      var selectors: Set<EventSelector>
      var services: Set<String>
      var counting: Counting
    }
    var first: [Selection: PolicyRule] = [:]
    var found: [Diagnostic] = []
    for rule in rules {
      let selection = Selection(
        selectors: Set(rule.selectors), services: rule.services, counting: rule.counting)
      guard let other = first[selection] else {
        first[selection] = rule
        continue
      }
      let isSame = (rule.ladder, rule.evidence, rule.escalation) == (other.ladder, other.evidence, other.escalation)
      if !isSame, rule.onlyTells || other.onlyTells { continue }
      let named = other.quotedName + (other.place.map { " (\($0))" } ?? "")
      found.append(
        Diagnostic(
          .warning, at: rule.place,
          "rule \(rule.quotedName): it counts the same as rule \(named) and \(isSame ? "does the same" : "does something else"): both act",
          remedy: isSame
            ? "remove one of the two"
            : "make one rule of the two, with one ladder, or have them select different events"))
    }
    return found
  }
}

extension PolicyRule {
  /// Every alert of every rule, whatever its priority.
  private var selectsEveryAlert: Bool {
    selectors.contains { selector in
      switch selector {
      case .allAlerts: true
      case .priority(let limit): limit >= Policy.lowestPriority
      case .signatures, .classification, .platform, .files: false
      }
    }
  }

  fileprivate var onlyTells: Bool { ladder.allSatisfy { $0.action == .notify } }

  /// What a full count is made of, in words.
  private var enough: String {
    switch (counting.count, counting.what) {
    case (1, _): selectsEveryAlert ? "one alert of any kind is" : "one alert is"
    case (_, .events): "\(counting.count) alerts are"
    case (_, .targets), (_, .ports): "alerts at \(counting.count) \(counting.what.rawValue) are"
    }
  }

  fileprivate func warnings(_ destructiveMeasures: Policy.DestructiveMeasures) -> [Diagnostic] {
    var found: [Diagnostic] = []
    func warn(_ message: String, _ remedy: String) {
      found.append(Diagnostic(.warning, at: place, "rule \(quotedName): \(message)", remedy: remedy))
    }
    if blocksAddresses, case .sourceNetwork(let v4, let v6) = counting.key {
      for (family, prefix, widest, shared) in [
        ("IPv4", v4, Policy.widestBlock.v4, Policy.sharedBeyond.v4),
        ("IPv6", v6, Policy.widestBlock.v6, Policy.sharedBeyond.v6),
      ] where (widest..<shared).contains(prefix) {
        warn(
          "\(enough) enough to block all of an \(family) network of /\(prefix), which many share who have nothing to do with each other",
          "count by a longer prefix, /\(shared) at least, or per source")
      }
    }
    if counting.count == 1, selectsEveryAlert,
      let act = ladder.first?.action.cuttingOff(mayDestroy: destructiveMeasures == .allowed)
    {
      warn(
        "one false alert of the lowest priority is enough to \(act)",
        "select classes, signatures or severe priorities, ask for more alerts, or begin the ladder with `notify`")
    }
    return found
  }
}

extension Counting.Key {
  /// By whatever counts as one source: `Policy.ipv6SourcePrefix`.
  fileprivate var isSingleSource: Bool { self == .source || self == .sourceOnHost }
}

extension LadderStep.Action {
  /// What it does to somebody who is cut off by it at once; nil: it leaves them something, or waits for the administrator.
  fileprivate func cuttingOff(mayDestroy: Bool) -> String? {
    switch self {
    case .notify, .rateLimit: nil
    case .block: "block its sender for the domain"
    case .blockOnHost: "block its sender for all domains of the host"
    case .quarantine: "quarantine the domain"
    case .pause: mayDestroy ? "pause the domain" : nil
    case .shutDown: mayDestroy ? "shut the domain down" : nil
    }
  }
}
