// What follows from a count that is full: the next step of the ladder, and what may stand against it.

extension PolicyUpdater {
  struct Outcome {
    var decisions: [Decision] = []
    /// The count stays full, so that the next event asks again.
    var keepsCount = false
  }

  /// - `isForgeable`: nothing but evidence that anybody can forge speaks for it.
  /// - `isReportOnly`: and the rule does not count such evidence.
  mutating func decide(
    _ observation: Observation, _ rule: PolicyRule, _ subject: Subject, isForgeable: Bool, isReportOnly: Bool
  ) -> Outcome {
    let number = nextStep(of: subject)
    var (step, repetition) = rule.step(number)
    var objection: String?
    if step.action == .blockOnHost {
      objection = objectionToHost(observation, subject)
      if objection != nil { step.action = .block }
    }
    let measure = step.action.measure(against: subject.network)
    var decision = Decision(
      id: 0, time: now, incarnation: observation.incarnation, measure: measure, status: statusWhenTaken,
      policy: rule.name, reason: rule.reason(observation, subject), step: number,
      expires: step.duration(repetition: repetition, rule.escalation).map { now + $0 }, trigger: observation.trigger,
      source: subject.network)

    if isReportOnly || isForgeable && step.action.isAddressBlock {
      return Outcome(
        decisions: withhold(
          decision,
          because: (observation.isTunnelled
            ? "the ends of a tunnel can forge what it carries, " : "anybody can forge this evidence, ")
            + (step.action.isAddressBlock ? "and an address is not blocked on it" : "which the rule does not count"),
          about: subject, for: rule.counting.window))
    }
    if step.action.isAddressBlock, let network = subject.network,
      let obstacle = obstacle(to: network, for: observation.domain, onHost: step.action == .blockOnHost)
    {
      return Outcome(decisions: withhold(decision, because: obstacle, about: subject, for: rule.counting.window))
    }
    if isStanding(decision) {
      counts.suppressed += 1
      return Outcome()
    }
    if step.action == .notify {
      guard takeReport(about: observation.incarnation?.uuid) else { return Outcome(keepsCount: true) }
      decision.status = .enforced
    } else {
      let owner = observation.incarnation?.uuid
      if let obstacle = lackOfRoom(for: step.action, of: owner) {
        return Outcome(
          decisions: withhold(decision, because: obstacle, about: Subject(rule: "", domain: owner), for: .seconds(60)),
          keepsCount: true)
      }
      if step.action.isDestructive, policy.destructiveMeasures == .pending, !policy.isDryRun {
        decision.status = .pending
      }
    }
    if let objection { decision.reason += "; for this domain alone: \(objection)" }
    giveNumber(to: &decision)
    enter(decision)
    remember(decision, of: subject, rule)
    counts.decided += 1
    return Outcome(decisions: [decision])
  }

  var statusWhenTaken: Decision.Status { policy.isDryRun ? .dryRun : .enforced }

  /// Gives what stands the status that the policy gives now: a dry run began or ended. The log and whoever is told
  /// have to know, for a restart goes by the log, and people by what they were told.
  ///
  /// - Returns: those that have another status than before, in the order of their numbers.
  mutating func restated() -> [Decision] {
    let status = statusWhenTaken
    var decisions: [Decision] = []
    for var entry in register.all where entry.decision.status != status {
      entry.decision.status = status
      entry.decision.time = now
      register.replaceDecision(of: entry.measure.key, by: entry.decision)
      desired[entry.decision.id] = nil
      if isLast(entry.decision) { remember(entry.decision) }
      decisions.append(entry.decision)
    }
    return decisions
  }

  /// Gives a decision the next number.
  mutating func giveNumber(to decision: inout Decision) {
    decision.id = nextDecisionID
    nextDecisionID += 1
    last = decision
  }

  /// Puts a decision where it belongs: among the measures in force, or among those that wait.
  mutating func enter(_ decision: Decision) {
    if decision.status == .pending {
      waiting.append(decision)
    } else if let measure = decision.firewallMeasure {
      register.insert(.init(measure: measure, decision: decision))
    }
  }

  mutating func remember(_ decision: Decision, of subject: Subject, _ rule: PolicyRule) {
    let offender = Offender(
      decision: decision, forgottenAt: (decision.expires ?? decision.time) + rule.escalation.decay)
    offenders.update(subject, initial: offender) { $0 = offender }
  }

  /// The decision that says that a measure has ended: one that was only imagined, by its own status, whatever the policy is now.
  mutating func lifting(_ entry: MeasureRegister.Entry, reason: String) -> Decision {
    desired[entry.decision.id] = nil
    var decision = Decision(
      id: 0, time: now, incarnation: entry.decision.incarnation, measure: .lift(entry.measure.key),
      status: entry.decision.status == .dryRun ? .dryRun : .expired, policy: entry.decision.policy, reason: reason,
      step: entry.decision.step, expires: nil, trigger: "decision \(entry.measure.decision)",
      source: entry.decision.source)
    giveNumber(to: &decision)
    return decision
  }

  mutating func settle(
    _ id: UInt64, _ status: Decision.Status, at time: Timestamp
  ) throws(PolicyError) -> Decision {
    now = Swift.max(now, time)
    guard let position = waiting.firstIndex(where: { $0.id == id }) else {
      throw PolicyError(.notPending, "no decision \(id) waits for an answer", remedy: "list what is pending")
    }
    var decision = waiting.remove(at: position)
    decision.status = status
    decision.time = now
    if last?.id == id { last = decision }
    remember(decision)
    return decision
  }

  private func nextStep(of subject: Subject) -> Int {
    guard let offender = offenders[subject], now < offender.forgottenAt else { return 0 }
    return offender.decision.step + 1
  }

  /// Whether the same is in force or waits already.
  private func isStanding(_ decision: Decision) -> Bool {
    if let key = decision.firewallMeasure?.key { return register[key] != nil }
    return waiting.contains {
      $0.measure == decision.measure && $0.incarnation == decision.incarnation && $0.policy == decision.policy
    }
  }

  /// Takes a measure on the word of `domain` out of the minute's allowance, or says why it cannot be taken now. A domain has a share of everything that is
  /// bounded: what it leaves is for its neighbours.
  private mutating func lackOfRoom(for action: LadderStep.Action, of domain: DomainUUID?) -> String? {
    if action.expires {
      let own = register.count(of: domain)
      if !FairShare.eightfold.admits(own: own, free: policy.capacities.measures - register.count) {
        return "\(register.count) measures are in force, \(own) of them on the word of this domain, "
          + "and there is no room for more"
      }
    }
    if action.isDestructive {
      let own = waiting.count { $0.incarnation?.uuid == domain }
      if !FairShare.half.admits(own: own, free: policy.capacities.pending - waiting.count) {
        return "\(waiting.count) measures wait for the administrator, \(own) of them against this domain, "
          + "and there is no room for more"
      }
    }
    return switch takeMeasure(for: domain) {
    case .taken: nil
    case .full: "\(policy.measuresPerMinute) measures were taken within this minute already"
    case .ownShareFull:
      "this domain has had its share of the \(policy.measuresPerMinute) measures that are taken within a minute"
    }
  }

  /// Why a source is not blocked for all domains of the host on this evidence; nil: it may be.
  private func objectionToHost(_ observation: Observation, _ subject: Subject) -> String? {
    // What a guest can bring about by itself must not cut others off from an address.
    if !observation.isUnprovoked { return "its guest can bring this about by itself" }
    if !observation.isAttested { return "no packet at hand says whose this was" }
    let needed = policy.hostBlockTenants
    guard needed > 1 else { return nil }
    let count = witnesses[subject.onHost]?.count(at: now) ?? 0
    return count < needed ? "guests of \(count) of the \(needed) tenants needed speak for a block on the host" : nil
  }

  /// What stands against blocking a network, whatever it did.
  func obstacle(to network: IPNetwork, for domain: DomainEntry?, onHost: Bool) -> String? {
    let widest = network.base.family == .v4 ? Policy.widestBlock.v4 : Policy.widestBlock.v6
    if Int(network.prefix) < widest { return "\(network) is wider than any block may be" }
    if let reserved = IPNetwork.unblockable.first(where: network.overlaps) {
      return "\(network) lies in \(reserved), where no source is, or which every network needs"
    }
    if let listed = policy.neverBlock.first(where: network.overlaps) { return "\(listed) is never blocked" }
    for owner in directory.owners(in: network) {
      let name = owner.description.name.escapedForDisplay
      if owner.description.incarnation.uuid == domain?.description.incarnation.uuid {
        return "\(network) holds an address of \(name) itself"
      }
      if let tenant = owner.description.tenant, tenant == domain?.description.tenant {
        return "\(network) holds an address of \(name), a guest of the same tenant"
      }
      if onHost { return "\(network) holds an address of \(name), a guest of this host" }
    }
    return nil
  }

  /// Reports a measure that is not taken, once within `window` for each subject.
  private mutating func withhold(
    _ draft: Decision, because obstacle: String, about subject: Subject, for window: Duration
  ) -> [Decision] {
    counts.withheld += 1
    guard mayReport(subject, of: draft.incarnation?.uuid, for: window) else { return [] }
    var decision = draft
    decision.status = .withheld
    decision.expires = nil
    decision.reason += "; withheld: \(obstacle)"
    giveNumber(to: &decision)
    return [decision]
  }
}

extension PolicyRule {
  /// The step with this number, and how many times it was taken before.
  func step(_ number: Int) -> (LadderStep, repetition: Int) {
    var rest = number
    for step in ladder.dropLast() {
      if rest < step.times { return (step, rest) }
      rest -= step.times
    }
    return (ladder[ladder.count - 1], rest)
  }

  fileprivate func reason(_ observation: Observation, _ subject: Subject) -> String {
    let whom =
      switch counting.key {
      case .source, .sourceNetwork, .sourceOnHost: " from \(subject.network.map(\.description) ?? "nowhere")"
      case .domain: " in the domain"
      case .host: " on the host"
      }
    let seconds = Double(counting.window.wholeNanoseconds) / 1e9
    let text = seconds == seconds.rounded() ? String(Int64(seconds)) : String(seconds)
    let what = counting.what == .events ? "" : " \(counting.what.rawValue)"
    return "\(counting.count)\(what) within \(text) s\(whom), the last \(observation.trigger)"
  }
}

extension LadderStep.Action {
  /// - Precondition: the policy is valid, so whatever blocks has a network.
  fileprivate func measure(against network: IPNetwork?) -> Decision.Measure {
    switch (self, network) {
    case (.block, let network?): .block(network)
    case (.blockOnHost, let network?): .blockOnHost(network)
    case (.rateLimit(let packetsPerSecond), _): .rateLimit(packetsPerSecond: packetsPerSecond)
    case (.quarantine, _): .quarantine
    case (.pause, _): .pause
    case (.shutDown, _): .shutDown
    case (.notify, _), (.block, nil), (.blockOnHost, nil): .notify
    }
  }
}

extension Decision {
  /// What a firewall has to do for this decision; nil when it is not for a firewall.
  public var firewallMeasure: FirewallMeasure? {
    let scope: FirewallScope
    let kind: FirewallMeasureKind
    switch measure {
    case .notify, .pause, .shutDown, .lift: return nil
    case .blockOnHost(let network): (scope, kind) = (.host, .block(network))
    case .block(let network):
      guard let incarnation else { return nil }
      (scope, kind) = (.domain(incarnation.uuid), .block(network))
    case .quarantine:
      guard let incarnation else { return nil }
      (scope, kind) = (.domain(incarnation.uuid), .quarantine)
    case .rateLimit(let packetsPerSecond):
      guard let incarnation else { return nil }
      (scope, kind) = (.domain(incarnation.uuid), .rateLimit(packetsPerSecond: packetsPerSecond))
    }
    return FirewallMeasure(scope: scope, kind: kind, expires: expires, decision: id, comment: "\(policy): \(trigger)")
  }
}

/// What a policy updater has done so far.
public struct PolicyStatistics: Sendable, Hashable {
  /// Events that it looked at.
  public var events: UInt64 = 0
  /// Times a rule counted an event.
  public var counted: UInt64 = 0
  /// Not counted, because what it speaks for is in force already.
  public var suppressed: UInt64 = 0
  /// Not counted, because it has no source or no domain, and the rule counts by that.
  public var uncountable: UInt64 = 0
  /// Measures taken, and notices.
  public var decided: UInt64 = 0
  /// Times that something stood against a measure, reported or not.
  public var withheld: UInt64 = 0
  /// Notices and withheld measures beyond what is reported within a minute.
  public var reportsDropped: UInt64 = 0
  /// Measures that were in force, and decisions that waited for the administrator, which a restart ended because there is no room for them any more.
  public var surplus: UInt64 = 0
  /// Counts and steps that made room for others.
  public var countersEvicted: UInt64 = 0
  public var offendersEvicted: UInt64 = 0

  public init() {}
}
