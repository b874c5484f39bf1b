// What did not work the first time: with the firewall, and with domains.

/// When a firewall is tried again that did not take a change: after a second, then each time after twice as long, up to half a minute.
struct FirewallRetry {
  private static let longest = Duration.seconds(30)

  /// What it said last.
  var reason: String
  /// How often it took no change, since it took the last.
  private(set) var refusals: UInt64 = 1
  private(set) var due: Timestamp
  private var pause = Duration.seconds(1)

  init(_ reason: String, at time: Timestamp) {
    self.reason = reason
    due = time + pause
  }

  /// - `isRetry`: it was tried because it was due.
  mutating func note(_ reason: String, at time: Timestamp, isRetry: Bool) {
    self.reason = reason
    refusals += 1
    guard isRetry else { return }
    pause = Swift.min(pause * 2, Self.longest)
    due = time + pause
  }
}

extension EnforcementCoordinator {
  /// How many measures are tried one by one in one go, when the firewall refused them together.
  private static var singleAttempts: Int { 1_024 }

  /// Tries again what did not work, the firewall when that is due.
  ///
  /// - `isDue`: it is.
  func catchUp(at time: Timestamp, isDue: Bool = false) async -> [Decision] {
    if isBehind, isDue || retry.map({ time >= $0.due }) ?? true {
      do throws(FirewallError) {
        _ = try await mend(at: time)
      } catch {
        await fallBehind(error, at: time, isRetry: true)
      }
    }
    return await settleDesired(at: time)
  }

  /// Makes the firewall hold exactly what it should.
  func mend(at time: Timestamp) async throws(FirewallError) -> Difference {
    let state = try await firewall.readBack(at: time)
    generation = state.generation
    let difference = difference(of: state, at: time)
    if !difference.isEmpty {
      let change = FirewallChange(
        from: state.generation, time: time, add: difference.missing, remove: difference.unexpected.map(\.key))
      do throws(FirewallError) {
        try await apply(change)
      } catch {
        guard error.isOfOneMeasure else { throw error }
        try await applyOneByOne(change)
      }
    }
    (isBehind, retry) = (false, nil)
    return difference
  }

  /// One measure that the firewall cannot take must not keep the others out, nor must many of them: the next time others are tried first.
  private func applyOneByOne(_ change: FirewallChange) async throws(FirewallError) {
    if !change.remove.isEmpty {
      try await apply(FirewallChange(from: 0, time: change.time, remove: change.remove))
    }
    let missing = change.add
    guard !missing.isEmpty else { return }
    let start = singlesTried % missing.count
    let tried = (missing[start...] + missing[..<start]).prefix(Self.singleAttempts)
    singlesTried = start + tried.count
    var failure: FirewallError?
    for measure in tried {
      do throws(FirewallError) {
        try await apply(FirewallChange(from: 0, time: change.time, add: [measure]))
        if let decision = updater.desired[measure.decision] { await settle(decision, .enforced, at: change.time) }
      } catch {
        guard error.isOfOneMeasure else { throw error }
        failure = error
      }
    }
    if let failure { throw failure }
    if tried.count < missing.count {
      throw FirewallError(.full, "\(missing.count - tried.count) measures were not tried one by one yet")
    }
  }

  private func difference(of state: FirewallState, at time: Timestamp) -> Difference {
    // The ends of those that are held; what is wanted, too, is taken out.
    var held = Dictionary<FirewallMeasure.Key, Timestamp?>(minimumCapacity: state.measures.count)
    for measure in state.measures { held[measure.key] = .some(measure.expires) }
    var difference = Difference()
    for measure in updater.measuresInForce where measure.expires.map({ time < $0 }) ?? true {
      let end = held.removeValue(forKey: measure.key)
      if end.map({ Self.isSameEnd($0, measure.expires) }) != true { difference.missing.append(measure) }
    }
    if !held.isEmpty { difference.unexpected = state.measures.filter { held[$0.key] != nil } }
    return difference
  }

  private static func isSameEnd(_ a: Timestamp?, _ b: Timestamp?) -> Bool {
    guard let first = a, let second = b else { return a == b }
    let distance = first - second
    return distance <= expiryTolerance && .zero - distance <= expiryTolerance
  }

  /// - `isRetry`: it was tried because it was due.
  func fallBehind(_ error: FirewallError, at time: Timestamp, isRetry: Bool = false) async {
    (generation, isBehind) = (nil, true)
    refusedChanges += 1
    let reason = error.message.escapedForDisplay
    if retry != nil {
      retry?.note(reason, at: time, isRetry: isRetry)
    } else {
      retry = FirewallRetry(reason, at: time)
      await report(
        .enforcementFailed, severity: 1, at: time, "the firewall did not take a change: \(reason); trying again")
    }
  }

  /// Reports the decisions that waited as in force, if they are now, and does with domains what is still to be done. Those that ran out meanwhile are not spoken of any more.
  @discardableResult
  func settleDesired(at time: Timestamp) async -> [Decision] {
    guard hasBegun else { return [] }
    var settled: [Decision] = []
    // What the firewall has not taken yet may be much.
    let open = updater.desired.values.filter { !isBehind || $0.isDestructive }
    for decision in open.sorted(by: { $0.id < $1.id }) {
      if decision.isDestructive {
        if let outcome = await pursue(decision, at: time) { settled.append(outcome) }
      } else if updater.stands(decision), !updater.policy.isDryRun {
        settled.append(await settle(decision, .enforced, at: time))
      } else {
        updater.desired[decision.id] = nil
      }
    }
    return settled
  }

  @discardableResult
  private func settle(_ decision: Decision, _ status: Decision.Status, at time: Timestamp) async -> Decision {
    updater.desired[decision.id] = nil
    toldFailures[decision.id] = nil
    inherited.remove(decision.id)
    var decision = decision
    decision.status = status
    decision.time = time
    updater.take(decision)
    decision = await logged([decision], at: time)[0]
    await events.receive(.decision(decision))
    return decision
  }

  // MARK: Domains

  /// Tries again to pause a domain or to shut it down, or gives that up.
  ///
  /// - Returns: the decision, when it is done or given up.
  private func pursue(_ decision: Decision, at time: Timestamp) async -> Decision? {
    let isUnderWay = actions?.isUnderWay(decision) == true
    if !isUnderWay {
      if let reason = reasonToGiveUp(decision, at: time) { return await giveUp(decision, reason, at: time) }
      // In a dry run nothing is done; once that is over it is.
      if updater.policy.isDryRun { return nil }
      if isDoneAlready(decision) { return await settle(decision, .enforced, at: time) }
    }
    guard await act(decision, at: time) else { return nil }
    let done = await settle(decision, .enforced, at: time)
    justDone.append(done)
    return done
  }

  /// Whether the process that died may have done it before it said so: who pauses twice must resume twice. What could not be done since the start was not done, whoever else has paused the
  /// domain meanwhile, and may let it run again.
  private func isDoneAlready(_ decision: Decision) -> Bool {
    guard inherited.contains(decision.id) else { return false }
    let state = decision.incarnation.flatMap(updater.directory.entry)?.description.runState
    return decision.measure == .pause ? state == .paused : state?.isFinal == true
  }

  private func reasonToGiveUp(_ decision: Decision, at time: Timestamp) -> String? {
    guard decision.incarnation.flatMap(updater.directory.entry) != nil else { return "its domain is gone" }
    guard time - decision.time > Self.actionValidity else { return nil }
    return "it was decided more than \(Self.actionValidity.components.seconds / 60) minutes ago"
  }

  private func giveUp(_ decision: Decision, _ reason: String, at time: Timestamp) async -> Decision {
    let before = toldFailures[decision.id].map { " (\($0))" } ?? ""
    await report(
      .enforcementFailed, severity: 1, at: time, about: decision.incarnation,
      "decision \(decision.id) to \(decision.measure.name) was not carried out and is given up: \(reason)\(before)")
    var decision = decision
    decision.reason += "; not carried out: \(reason)\(before)"
    return await settle(decision, .expired, at: time)
  }

  /// Pauses or shuts down a domain.
  ///
  /// - Returns: whether that is done.
  func act(_ decision: Decision, at time: Timestamp) async -> Bool {
    guard let incarnation = decision.incarnation else { return false }
    // Calls come one after another; it is taken out so that the actor may be left meanwhile.
    guard var actions else {
      await reportFailure(of: decision, "no hypervisor control is connected", at: time, about: incarnation)
      return false
    }
    let outcome = await actions.perform(decision, on: incarnation)
    self.actions = actions
    switch outcome {
    case .done: return true
    case .goesOn: return false
    case .failed(let error):
      await reportFailure(of: decision, error.message.escapedForDisplay, at: time, about: incarnation)
      return false
    }
  }

  /// Tells why a decision could not be carried out; it is tried again and again, and told again only when the reason is another one.
  private func reportFailure(
    of decision: Decision, _ reason: String, at time: Timestamp, about incarnation: Incarnation
  ) async {
    guard toldFailures.updateValue(reason, forKey: decision.id) != reason else { return }
    await report(
      .enforcementFailed, severity: 1, at: time, about: incarnation,
      "decision \(decision.id) to \(decision.measure.name) was not carried out: \(reason); trying again")
  }
}

extension FirewallError {
  /// Whether others may be taken where one measure is not.
  fileprivate var isOfOneMeasure: Bool { code == .unsupported || code == .full }
}
