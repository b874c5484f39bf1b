/// Turns events into decisions. Synchronous, deterministic, and without a clock: the time is handed in. Everything that it
/// keeps is bounded, whatever the network sends. It changes nothing itself: `EnforcementCoordinator` does.
///
/// Used by one thread at a time.
public struct PolicyUpdater: Sendable {
  public private(set) var policy: Policy
  var counts = PolicyStatistics()
  let directory: DomainDirectory
  var register = MeasureRegister()
  var offenders: BoundedTable<Subject, Offender>
  var nextDecisionID: UInt64 = 1
  /// The one with the highest number: a log that is made anew keeps it, so that no number is given twice.
  var last: Decision?
  var waiting: [Decision] = []
  /// Decided and not carried out yet, by number: what the firewall did not take, and what is to be done with a domain. Whoever carries out keeps this, and a log that is made anew says it.
  var desired: [UInt64: Decision] = [:]
  /// What is in force by the log, and only imagined since a dry run began with the start, which is not logged: a log that is made anew says what it said before.
  var suspended: Set<UInt64> = []
  /// Which tenants' guests bear witness against a source, by rule and network: for blocks on the host.
  var witnesses: BoundedTable<Subject, Witnesses>
  private var rules: [RuleState]
  /// How often the policy was replaced.
  private var policyRevision: UInt64 = 0
  /// Until when nothing more is said of a measure that was withheld.
  private var reported: BoundedTable<Subject, Timestamp>
  private var measureCap: MinuteCap
  private var reportCap: MinuteCap
  /// The latest time seen. A clock that goes back is taken to stand still.
  var now = Timestamp(nanoseconds: .min)

  /// - Throws: `invalid` when the policy has errors.
  public init(policy: Policy, directory: DomainDirectory) throws(PolicyError) {
    try Self.check(policy)
    self.policy = policy
    self.directory = directory
    offenders = BoundedTable(capacity: policy.capacities.offenders)
    witnesses = BoundedTable(capacity: policy.capacities.countersPerRule)
    rules = policy.rules.map { RuleState($0, capacity: policy.capacities.countersPerRule) }
    reported = BoundedTable(capacity: policy.capacities.countersPerRule)
    measureCap = MinuteCap(limit: policy.measuresPerMinute)
    reportCap = MinuteCap(limit: policy.reportsPerMinute)
  }

  /// Counts an event, and lets the time pass until `time` first.
  ///
  /// - Returns: what was decided, in order: measures that ran out, then what follows from the event.
  public mutating func handle(_ event: Event, at time: Timestamp) -> [Decision] {
    var decisions = advance(to: time)
    guard let observation = Observation(event, directory) else { return decisions }
    counts.events += 1
    for index in rules.indices
    where rules[index].rule.selects(event, service: observation.domain?.description.serviceType) {
      consider(observation, ruleAt: index, &decisions)
    }
    return decisions
  }

  /// Lets the time pass: what has run out is lifted.
  public mutating func advance(to time: Timestamp) -> [Decision] {
    now = Swift.max(now, time)
    var decisions: [Decision] = []
    while let entry = register.popExpired(at: now) {
      decisions.append(lifting(entry, reason: "its time is over"))
    }
    return decisions
  }

  public var statistics: PolicyStatistics {
    var result = counts
    for state in rules { result.countersEvicted += state.solid.evicted + state.any.evicted }
    result.offendersEvicted = offenders.evicted
    return result
  }

  /// The measures that are to be in force, in the order of their decisions. Empty in a dry run.
  public var measuresInForce: [FirewallMeasure] { policy.isDryRun ? [] : register.measures }

  /// Of these, those of one domain and those of the host, in no order: what a guest's own policy is made of.
  public func measures(concerning domain: DomainUUID) -> [FirewallMeasure] {
    policy.isDryRun ? [] : register.all(concerning: domain)
  }

  /// Rises whenever the measures in force may be others.
  public var measureRevision: UInt64 { register.revision &+ policyRevision }

  /// What waits for the administrator, in the order of its numbers.
  public var pending: [Decision] { waiting }

  /// The administrator says yes: the decision comes back as `enforced`, in a dry run as `dryRun`.
  public mutating func approve(_ id: UInt64, at time: Timestamp) throws(PolicyError) -> Decision {
    try settle(id, statusWhenTaken, at: time)
  }

  /// The administrator says no: the decision comes back as `denied`.
  public mutating func deny(_ id: UInt64, at time: Timestamp) throws(PolicyError) -> Decision {
    try settle(id, .denied, at: time)
  }

  /// Takes a measure back before its time.
  public mutating func lift(
    _ key: FirewallMeasure.Key, reason: String, at time: Timestamp
  ) throws(PolicyError) -> [Decision] {
    now = Swift.max(now, time)
    // Refused before the time passes: with the error nobody would get what runs out.
    guard let entry = register[key], entry.decision.remaining(at: now) != .zero else {
      throw PolicyError(.notInForce, "no such measure is in force", remedy: "list the measures in force")
    }
    let decisions = advance(to: time)
    _ = register.remove(key)
    return decisions + [lifting(entry, reason: reason)]
  }

  /// Blocks on the administrator's word: the never-block list holds, evidence, caps and ladders do not matter.
  ///
  /// `incarnation`: the domain; nil for all of the host.
  public mutating func block(
    _ network: IPNetwork, for incarnation: Incarnation?, duration: Duration, reason: String, at time: Timestamp
  ) throws(PolicyError) -> [Decision] {
    if let obstacle = obstacle(to: network, for: incarnation.flatMap(directory.entry), onHost: incarnation == nil) {
      throw PolicyError(.neverBlocked, obstacle, remedy: "choose a smaller network, or change the never-block list")
    }
    var decisions = advance(to: time)
    var decision = Decision(
      id: 0, time: now, incarnation: incarnation,
      measure: incarnation == nil ? .blockOnHost(network) : .block(network), status: statusWhenTaken,
      policy: "administrator", reason: reason, step: 0, expires: now + duration, trigger: "administrator",
      source: network)
    giveNumber(to: &decision)
    enter(decision)
    decisions.append(decision)
    return decisions
  }

  /// Goes on with another policy. Measures in force, offenders and what is pending stay; rules that did not change keep their counts.
  ///
  /// - Returns: what the new never-block list lifts, and, into a dry run or out of one, what stands, each with its new status.
  /// - Throws: `invalid` when the policy has errors; then the old one stays.
  public mutating func replacePolicy(with policy: Policy, at time: Timestamp) throws(PolicyError) -> [Decision] {
    try Self.check(policy)
    var decisions = advance(to: time)
    let old = Dictionary(rules.map { ($0.rule, $0) }, uniquingKeysWith: { first, _ in first })
    let keepsCounts = policy.capacities == self.policy.capacities
    rules = policy.rules.map { rule in
      keepsCounts
        ? old[rule] ?? RuleState(rule, capacity: policy.capacities.countersPerRule)
        : RuleState(rule, capacity: policy.capacities.countersPerRule)
    }
    if policy.measuresPerMinute != self.policy.measuresPerMinute {
      measureCap = MinuteCap(limit: policy.measuresPerMinute)
    }
    if policy.reportsPerMinute != self.policy.reportsPerMinute { reportCap = MinuteCap(limit: policy.reportsPerMinute) }
    let wasDryRun = self.policy.isDryRun
    self.policy = policy
    policyRevision += 1
    for entry in register.all(where: { obstacle(to: $0) != nil }) {
      guard let obstacle = obstacle(to: entry) else { continue }
      _ = register.remove(entry.measure.key)
      decisions.append(lifting(entry, reason: "the policy changed: \(obstacle)"))
    }
    if policy.isDryRun == wasDryRun { return decisions }
    let stands = restated()
    suspended.subtract(stands.map(\.id))
    return decisions + stands
  }

  /// What stands against a block that is in force.
  private func obstacle(to entry: MeasureRegister.Entry) -> String? {
    guard case .block(let network) = entry.measure.key.kind else { return nil }
    return obstacle(
      to: network, for: entry.decision.incarnation.flatMap(directory.entry), onHost: entry.measure.key.scope == .host)
  }

  mutating func takeMeasure(for domain: DomainUUID?) -> MinuteCap.Outcome { measureCap.take(for: domain, at: now) }

  /// - Returns: whether a report about `domain` fits into this minute.
  mutating func takeReport(about domain: DomainUUID?) -> Bool {
    if reportCap.take(for: domain, at: now) == .taken { return true }
    counts.reportsDropped += 1
    return false
  }

  /// - Returns: whether to report about `subject`, which `domain` brought up, and of whom nothing more is said for the time of `window` then.
  mutating func mayReport(_ subject: Subject, of domain: DomainUUID?, for window: Duration) -> Bool {
    if let until = reported[subject], now < until { return false }
    guard takeReport(about: domain) else { return false }
    let until = now + window
    reported.update(subject, initial: until) { $0 = until }
    return true
  }

  private static func check(_ policy: Policy) throws(PolicyError) {
    let errors = policy.validate().filter { $0.severity == .error }
    guard let first = errors.first else { return }
    throw PolicyError(.invalid, first.message, at: first.place, remedy: first.remedy, diagnostics: errors)
  }
}

// MARK: Counting

extension PolicyUpdater {
  fileprivate struct RuleState: Sendable {
    var rule: PolicyRule
    /// Counts of what nobody could have forged.
    var solid: BoundedTable<Subject, SubjectCounter>
    /// Counts of everything when the rule takes any evidence, and otherwise of what could be forged; a table of its own, so that a
    /// flood of forged sources cannot push the others out.
    var any: BoundedTable<Subject, SubjectCounter>

    init(_ rule: PolicyRule, capacity: Int) {
      self.rule = rule
      solid = BoundedTable(capacity: capacity)
      any = BoundedTable(capacity: capacity)
    }
  }

  /// Where somebody stands on a rule's ladder.
  struct Offender: Sendable {
    /// The last measure.
    var decision: Decision
    /// When the ladder begins anew.
    var forgottenAt: Timestamp
  }

  private mutating func consider(_ observation: Observation, ruleAt index: Int, _ decisions: inout [Decision]) {
    let rule = rules[index].rule
    guard let subject = subject(of: observation, rule) else {
      counts.uncountable += 1
      return
    }
    if observation.isTraffic, let remote = observation.remote,
      register.cutting(remote, from: observation.incarnation?.uuid) != nil
    {
      counts.suppressed += 1
      return
    }
    let counting = rule.counting
    let value = observation.value(of: counting.what)
    if counting.what != .events, value == nil {
      counts.uncountable += 1
      return
    }
    counts.counted += 1
    // A change of a file that is told late, because nobody was there to be told, counts for when it was.
    var time = now
    if case .file(let event) = observation.event { time = Swift.min(now, event.time) }
    var isFull = false
    if observation.isSolid {
      isFull = rules[index].solid.update(subject, initial: SubjectCounter()) {
        $0.add(value, at: time, counting)
      }
    }
    var isFullByAny = false
    if rule.evidence == .any || !observation.isSolid {
      isFullByAny = rules[index].any.update(subject, initial: SubjectCounter()) {
        $0.add(value, at: time, counting)
      }
    }
    if isFull || observation.isSolid && subject.domain == nil {
      bearWitness(observation, rule, subject, isFull: isFull)
    }
    guard isFull || isFullByAny else { return }
    let outcome = decide(
      observation, rule, subject, isForgeable: !isFull, isReportOnly: !isFull && rule.evidence != .any)
    decisions += outcome.decisions
    guard !outcome.keepsCount else { return }
    if isFull { rules[index].solid.update(subject, initial: SubjectCounter()) { $0.clear() } }
    rules[index].any.update(subject, initial: SubjectCounter()) { $0.clear() }
  }

  /// Remembers whose guest has evidence against a source that a step of the ladder may block for the guests of others.
  private mutating func bearWitness(
    _ observation: Observation, _ rule: PolicyRule, _ subject: Subject, isFull: Bool
  ) {
    guard policy.hostBlockTenants > 1, observation.isUnprovoked, observation.isAttested,
      let domain = observation.domain, subject.network != nil,
      rule.ladder.contains(where: { $0.action == .blockOnHost })
    else { return }
    let until = now + (isFull ? rule.escalation.decay : rule.counting.window)
    witnesses.update(subject.onHost, initial: Witnesses()) {
      $0.add(domain.description.tenant, until: until, limit: policy.hostBlockTenants)
    }
  }

  private func subject(of observation: Observation, _ rule: PolicyRule) -> Subject? {
    var subject = Subject(rule: rule.name)
    if rule.counting.key.isPerDomain {
      guard let incarnation = observation.incarnation else { return nil }
      subject.domain = incarnation.uuid
    }
    if rule.counting.key.needsSource {
      guard let remote = observation.remote, subject.domain != nil || observation.isUnprovoked else { return nil }
      subject.network = network(of: remote, rule.counting.key)
    }
    return subject
  }

  /// The network that an address is counted as; nil when addresses are not counted.
  func network(of address: IPAddress, _ key: Counting.Key) -> IPNetwork? {
    switch key {
    case .source, .sourceOnHost: sourceNetwork(of: address)
    case .sourceNetwork(let v4Prefix, let v6Prefix):
      IPNetwork(address, prefix: address.family == .v4 ? v4Prefix : v6Prefix)
    case .domain, .host: nil
    }
  }

  /// By what a source is counted and blocked: IPv4 by its address, IPv6 by its network, unless others live there.
  private func sourceNetwork(of address: IPAddress) -> IPNetwork {
    guard address.family == .v6 else { return IPNetwork(address) }
    let network = IPNetwork(address, prefix: policy.ipv6SourcePrefix)
    let isShared = policy.neverBlock.contains(where: network.overlaps) || !directory.owners(in: network).isEmpty
    return isShared ? IPNetwork(address) : network
  }
}
