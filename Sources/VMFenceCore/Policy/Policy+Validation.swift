extension Policy {
  static let ruleLimit = 1_024
  static let countLimit = 65_536
  /// Different values are remembered one by one.
  static let distinctLimit = 256
  static let ladderLimit = 64
  /// Of how many tenants guests may be asked for evidence.
  public static let hostBlockTenantsRange = 1...64
  /// The widest networks that may be blocked at once, by their leading bits.
  static let widestBlock = (v4: 8, v6: 16)

  /// Everything that is wrong with this policy, in order; a policy with an error in it is not used.
  ///
  /// `knownClasses`: the classes of the rules in use; nil when they are not known.
  public func validate(knownClasses: Set<String>? = nil) -> [Diagnostic] {
    var found: [Diagnostic] = []
    func error(_ message: String, _ remedy: String) { found.append(Diagnostic(.error, message, remedy: remedy)) }

    if !Self.hostBlockTenantsRange.contains(hostBlockTenants) {
      error(
        "a block on the host by \(hostBlockTenants) tenants",
        "use a number from \(Self.hostBlockTenantsRange.lowerBound) to \(Self.hostBlockTenantsRange.upperBound)")
    }
    if measuresPerMinute < 1 {
      error("at most \(measuresPerMinute) measures a minute means none at all", "use dry run to take no measures")
    }
    if reportsPerMinute < 1 { error("at most \(reportsPerMinute) reports a minute", "allow one at least") }
    if !(Self.widestBlock.v6...128).contains(ipv6SourcePrefix) {
      error(
        "IPv6 sources by /\(ipv6SourcePrefix) are no sources", "use a prefix from \(Self.widestBlock.v6) to 128")
    }
    for (name, value) in [
      ("counters", capacities.countersPerRule), ("offenders", capacities.offenders),
      ("measures", capacities.measures), ("pending measures", capacities.pending),
    ] where !(1...(1 << 24)).contains(value) {
      error("room for \(value) \(name)", "use a number from 1 to \(1 << 24)")
    }
    for network in neverBlock where network.prefix == 0 && rules.contains(where: \.blocksAddresses) {
      error(
        "never to block \(network) and to block sources contradict each other",
        "take the network out of the never-block list, or the blocks out of the rules")
    }
    if rules.count > Self.ruleLimit { error("\(rules.count) rules", "use \(Self.ruleLimit) at most") }
    var names: Set<String> = []
    for rule in rules {
      if !names.insert(rule.name).inserted {
        found.append(
          Diagnostic(
            .error, at: rule.place, "two rules are called \(rule.quotedName)", remedy: "give each a name of its own"))
      }
      found += rule.validate(knownClasses: knownClasses)
    }
    return found + warnings()
  }
}

extension PolicyRule {
  var quotedName: String { "'\(name.escapedForDisplay)'" }
  var blocksAddresses: Bool { ladder.contains { $0.action.isAddressBlock } }

  fileprivate func validate(knownClasses: Set<String>?) -> [Diagnostic] {
    var found: [Diagnostic] = []
    func report(_ severity: Diagnostic.Severity, _ message: String, _ remedy: String) {
      found.append(Diagnostic(severity, at: place, "rule \(quotedName): \(message)", remedy: remedy))
    }

    if name.isEmpty { report(.error, "it has no name", "name it: decisions say which rule they come from") }
    validateSelectors(knownClasses, report)
    if !(1...Policy.countLimit).contains(counting.count) {
      report(.error, "a count of \(counting.count)", "use a number from 1 to \(Policy.countLimit)")
    }
    if counting.what != .events, counting.count > Policy.distinctLimit {
      report(
        .error, "a count of \(counting.count) different \(counting.what.rawValue)",
        "use a number from 1 to \(Policy.distinctLimit)")
    }
    if counting.window <= .zero { report(.error, "a window of no length", "say within what time to count") }
    if case .sourceNetwork(let v4, let v6) = counting.key { validatePrefixes(v4, v6, report) }
    validateLadder(report)
    validateEscalation(report)
    return found
  }

  private typealias Report = (Diagnostic.Severity, String, String) -> Void

  private func validateSelectors(_ knownClasses: Set<String>?, _ report: Report) {
    if selectors.isEmpty { report(.error, "it selects no event", "select signatures, classes or priorities") }
    for selector in selectors {
      switch selector {
      case .classification(let name):
        if let knownClasses, !knownClasses.contains(name) {
          report(.error, "there is no class '\(name.escapedForDisplay)'", "use a class of the rules in use")
        }
      case .priority(let limit):
        if limit < 1 { report(.error, "no alert has priority \(limit)", "priorities begin at 1, the most severe") }
      case .files:
        if counting.what != .events {
          report(.error, "a change to a file has no \(counting.what.rawValue)", "count events, in a rule of its own")
        }
        if counting.key.needsSource {
          report(.error, "a change to a file has no source to count", "count per domain, in a rule of its own")
        }
      case .platform:
        if blocksAddresses {
          report(
            .warning, "what VMFence notices itself never proves who sent it, and will not block an address",
            "notify, or limit or quarantine the domain")
        }
      case .signatures, .allAlerts: break
      }
    }
  }

  private func validatePrefixes(_ v4: Int, _ v6: Int, _ report: Report) {
    for (name, prefix, widest, limit) in [
      ("IPv4", v4, Policy.widestBlock.v4, 32), ("IPv6", v6, Policy.widestBlock.v6, 128),
    ] where !(widest...limit).contains(prefix) {
      report(
        .error, prefix <= 0 ? "a network of /\(prefix) is everybody" : "\(name) networks by /\(prefix)",
        "use a prefix from \(widest) to \(limit)")
    }
  }

  private func validateLadder(_ report: Report) {
    if ladder.isEmpty { report(.error, "it leads to no measure", "give its ladder a step") }
    if ladder.count > Policy.ladderLimit {
      report(.error, "\(ladder.count) steps", "use \(Policy.ladderLimit) at most")
    }
    for (number, step) in ladder.enumerated() {
      let at = "step \(number + 1)"
      if step.times < 1 { report(.error, "\(at) is taken \(step.times) times", "once at least") }
      if step.action.expires, step.duration ?? .zero <= .zero {
        report(.error, "\(at) has no duration", "say for how long: every such measure ends")
      }
      if !step.action.expires, step.duration != nil {
        report(.error, "\(at) has a duration, which its measure does not know", "leave the duration out")
      }
      if case .rateLimit(packetsPerSecond: 0) = step.action {
        report(.error, "\(at) limits to no packet at all", "use quarantine for that")
      }
      if let problem = step.action.problem(with: counting.key) { report(.error, "\(at) \(problem.0)", problem.1) }
      guard number > 0 else { continue }
      let previous = ladder[number - 1]
      if step.action.severity < previous.action.severity {
        report(.error, "\(at) is milder than the one before it", "order the ladder from mild to severe")
      } else if step.action == previous.action, step.duration ?? .zero < previous.duration ?? .zero {
        report(.error, "\(at) is shorter than the one before it", "order the ladder from short to long")
      }
    }
    if evidence == .any, counting.count == 1, ladder.contains(where: { $0.action.severity > 2 }) {
      report(
        .warning, "one forged packet is enough to act against the domain",
        "ask for established evidence, or for a higher count")
    }
    if evidence == .any, blocksAddresses {
      report(
        .note, "its blocks still need established evidence: addresses are never blocked on what can be forged", "")
    }
  }

  private func validateEscalation(_ report: Report) {
    if !(1...1_000).contains(escalation.factor) {
      report(.error, "a factor of \(escalation.factor)", "use a number from 1 to 1000")
    }
    if escalation.decay <= .zero { report(.error, "its ladder decays at once", "say after what time it begins anew") }
    if let longest = ladder.compactMap(\.duration).max(), longest > escalation.maximum {
      report(.error, "a step lasts longer than the longest time allowed", "raise the maximum or shorten the step")
    }
  }
}

extension Counting.Key {
  var needsSource: Bool {
    switch self {
    case .source, .sourceOnHost, .sourceNetwork: true
    case .domain, .host: false
    }
  }

  /// Whether each domain is counted apart.
  var isPerDomain: Bool {
    switch self {
    case .source, .sourceNetwork, .domain: true
    case .sourceOnHost, .host: false
    }
  }
}

extension LadderStep.Action {
  /// Why this cannot follow from what is counted, and what to do.
  fileprivate func problem(with key: Counting.Key) -> (String, String)? {
    switch self {
    case .notify: return nil
    case .block, .blockOnHost:
      if !key.needsSource { return ("blocks a source, but sources are not what is counted", "count per source") }
      if self == .block, !key.isPerDomain {
        return ("blocks for one domain what is counted for all", "block on the host, or count per source and domain")
      }
    case .rateLimit, .quarantine, .pause, .shutDown:
      if !key.isPerDomain { return ("acts on a domain, but domains are not counted apart", "count per domain") }
    }
    return nil
  }
}

/// A policy or what is asked of it is wrong.
public struct PolicyError: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    /// The policy has errors; all are in `diagnostics`.
    public static let invalid = Code("invalid")
    /// No measure of this number waits for the administrator.
    public static let notPending = Code("not-pending")
    /// The measure is not in force.
    public static let notInForce = Code("not-in-force")
    /// A never-block list stands against it.
    public static let neverBlocked = Code("never-blocked")
  }

  public var code: Code
  public var message: String
  public var place: SourcePlace?
  public var remedy: String
  public var diagnostics: [Diagnostic]

  public init(
    _ code: Code, _ message: String, at place: SourcePlace? = nil, remedy: String = "", diagnostics: [Diagnostic] = []
  ) {
    self.code = code
    self.message = message
    self.place = place
    self.remedy = remedy
    self.diagnostics = diagnostics
  }
}
