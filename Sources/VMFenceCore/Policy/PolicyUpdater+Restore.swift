// Going on after a restart: the decision log is the memory.

extension PolicyUpdater {
  /// Takes over what a log says, oldest first, as it stands at `time`. A decision that comes again under its number replaces itself. One that is
  /// younger than `time` was taken before the system's clock was set back: it counts from `time` on, so that its measure lasts its whole time again, and no
  /// longer. What the log calls `desired` is still to be carried out: `EnforcementCoordinator` does, or tells that it is not done.
  ///
  /// - Returns: the decisions that follow: what ran out in the meantime is lifted, and so is what `Policy.Capacities` have no room for any more, what ends first before all
  ///   else. Of what waits for the administrator the last ones are withheld then.
  public mutating func restore(_ decisions: [Decision], at time: Timestamp) -> [Decision] {
    register.reserve(min(decisions.count, policy.capacities.measures))
    for decision in decisions {
      restore(decision.time > time ? decision.shifted(by: time - decision.time) : decision)
    }
    let ended = advance(to: time) + endSurplus()
    desired = desired.filter { $0.value.isDestructive || stands($0.value) }
    // Not told anew: the log's word counts again once the daemon is started without the dry run.
    if policy.isDryRun { suspended.formUnion(restated().map(\.id)) }
    return ended
  }

  /// Ends what there is no room for: the capacities are smaller than they were, or an administrator, who is not asked for room, took it.
  private mutating func endSurplus() -> [Decision] {
    var decisions: [Decision] = []
    let surplus = register.count - policy.capacities.measures
    if surplus > 0 {
      func end(_ entry: MeasureRegister.Entry) -> Timestamp { entry.measure.expires ?? Timestamp(nanoseconds: .max) }
      for entry in register.all.sorted(by: { end($0) < end($1) }).prefix(surplus) {
        _ = register.remove(entry.measure.key)
        decisions.append(
          lifting(entry, reason: "there is room for no more than \(policy.capacities.measures) measures in force"))
      }
    }
    for var decision in waiting.dropFirst(policy.capacities.pending) {
      decision.status = .withheld
      decision.time = now
      decision.reason += "; withheld: no more than \(policy.capacities.pending) may wait for the administrator"
      take(decision)
      decisions.append(decision)
    }
    waiting.removeLast(Swift.max(0, waiting.count - policy.capacities.pending))
    counts.surplus += UInt64(decisions.count)
    return decisions
  }

  /// The decisions from which `restore` makes the same state again, in the order of their numbers: for a log that is to
  /// forget the rest. The one that was taken last is always among them.
  public var liveDecisions: [Decision] {
    // What waits for an answer is in `waiting`: what an administrator answered when its rule was gone is not here.
    let remembered = offenders.values.lazy.filter { now < $0.forgottenAt && $0.decision.status != .pending }
      .map { withItsEnd(asLogged($0.decision)) }
    // What is not carried out yet is in force for the updater.
    let all =
      Array(desired.values) + register.unordered.map { asLogged($0.decision) } + waiting + remembered
      + (last.map { [$0] } ?? [])
    // There may be very many, and who is to be blocked waits: what is sorted is small. Of one number the first counts.
    let order = all.indices.map { (number: all[$0].id, index: $0) }.sorted { $0 < $1 }
    var live: [Decision] = []
    live.reserveCapacity(order.count)
    for place in order where live.last?.id != place.number { live.append(all[place.index]) }
    return live
  }

  /// A decision as a log is to say it that forgets the rest.
  private func asLogged(_ decision: Decision) -> Decision {
    var decision = decision
    if decision.status == .dryRun, suspended.contains(decision.id) { decision.status = .enforced }
    return decision
  }

  /// A decision that is remembered for its step on the ladder. Of one whose measure has ended, the word that lifted it is forgotten, so this one has to say it, whatever the system's
  /// clock will be: otherwise a measure that was taken back before its time would stand again after a restart, and of any it would be told once more that it ran out. One that was only
  /// imagined keeps its status, by which a policy that acts forgets it, and says it by having lasted no time.
  private func withItsEnd(_ decision: Decision) -> Decision {
    guard decision.firewallMeasure != nil, !stands(decision) else { return decision }
    let end = decision.expires.map { Swift.min($0, now) } ?? now
    var decision = decision
    decision.expires = end
    if decision.status == .dryRun { decision.time = end } else { decision.status = .expired }
    return decision
  }

  private mutating func restore(_ said: Decision) {
    var decision = said
    desired[decision.id] = nil
    if decision.id &+ 1 >= nextDecisionID { (nextDecisionID, last) = (decision.id &+ 1, decision) }
    waiting.removeAll { $0.id == decision.id }
    if case .lift(let key) = decision.measure {
      _ = register.remove(key)
      return
    }
    switch decision.status {
    case .withheld: return
    case .denied:
      remember(decision)
      return
    case .pending: break
    case .expired: return rememberEnded(decision)
    case .dryRun:
      // What was only imagined has no hold on a policy that acts; nor has what was in force before the dry run.
      guard policy.isDryRun else { return forget(decision) }
      if let end = decision.expires, end <= decision.time { return rememberEnded(decision) }
    case .enforced: break
    case .desired:
      desired[decision.id] = decision
      decision.status = .enforced
    }
    enter(decision)
    remember(decision)
  }

  /// Takes a decision whose end was told when it came.
  private mutating func rememberEnded(_ decision: Decision) {
    forget(decision)
    remember(decision)
  }

  /// Takes a decision's own measure out of those that are to be in force.
  private mutating func forget(_ decision: Decision) {
    if let key = decision.firewallMeasure?.key, stands(decision) { _ = register.remove(key) }
  }

  /// Whether a decision's own measure is one of those that are to be in force, or would be without the dry run.
  func stands(_ decision: Decision) -> Bool {
    guard let key = decision.firewallMeasure?.key else { return false }
    return register[key]?.decision.id == decision.id
  }

  /// Takes another word about a decision that was given before.
  mutating func take(_ decision: Decision) {
    if last?.id == decision.id { last = decision }
    if isLast(decision) { remember(decision) }
  }

  /// Takes a decision as the last one of whom it concerns.
  mutating func remember(_ decision: Decision) {
    guard let (rule, subject) = origin(of: decision) else { return }
    remember(decision, of: subject, rule)
  }

  /// Whether a decision is the last one of whom it concerns.
  func isLast(_ decision: Decision) -> Bool {
    guard let (_, subject) = origin(of: decision) else { return false }
    return offenders[subject]?.decision.id == decision.id
  }

  /// The rule that a decision follows from, and whom it concerns; nil: there is no such rule any more.
  private func origin(of decision: Decision) -> (rule: PolicyRule, subject: Subject)? {
    guard let rule = policy.rules.first(where: { $0.name == decision.policy }) else { return nil }
    let subject = Subject(
      rule: rule.name, domain: rule.counting.key.isPerDomain ? decision.incarnation?.uuid : nil,
      network: rule.counting.key.needsSource ? decision.source : nil)
    return (rule, subject)
  }
}
