/// Carries out what a policy updater decides: event → decisions → log → firewall → notification, in this order, one call
/// after another. The firewall is only changed once the log has the decision; if the log cannot be written, it is changed all the same,
/// and the decision says that it is unlogged.
///
/// What the firewall does not take stays `desired` and is tried again at each `advance`. Keeps no clock: call `advance`
/// about once a second, and at the times of a replay.
public actor EnforcementCoordinator {
  /// What a firewall held that it should not, and the other way round.
  public struct Difference: Hashable, Sendable {
    /// Should be in force and was not, or with another end.
    public var missing: [FirewallMeasure]
    /// Was in force and should not be.
    public var unexpected: [FirewallMeasure]

    public init(missing: [FirewallMeasure] = [], unexpected: [FirewallMeasure] = []) {
      self.missing = missing
      self.unexpected = unexpected
    }

    public var isEmpty: Bool { missing.isEmpty && unexpected.isEmpty }
  }

  /// How often a change is made again for a generation that was read anew.
  static let conflictRetries = 4
  /// How many measures are tried one by one in one go, when the firewall refused them together.
  static let singleAttempts = 1_024
  /// How many decisions wait for a log that cannot be written. Of more, a restart does not know, unless the log can be made anew before.
  static let unloggedCapacity = 65_536
  /// Ends that lie no further apart are the same: a firewall may count in coarse units.
  static let expiryTolerance = Duration.seconds(2)

  private(set) var updater: PolicyUpdater
  let log: any DecisionLog
  private let firewall: any FirewallSink
  private var actions: DomainActions?
  let events: any EventSink
  private var generation: UInt64?
  /// Decisions that are not in force yet, by number.
  private var desired: [UInt64: Decision] = [:]
  /// What was told last of why those of them could not be carried out that act on a domain, by number.
  private var toldFailures: [UInt64: String] = [:]
  /// The firewall may not hold what it should.
  private var isBehind = false
  /// Whether the log took nothing when it was written last: measures are enforced unlogged.
  package internal(set) var isLogBroken = false
  var isSyncNeeded = false
  /// The log is being made anew, and is to be made so once more afterwards.
  var isCompacting = false
  var isCompactionWanted = false
  /// The log could not be made anew: it is tried again then.
  var compactionRetry: Timestamp?
  /// Decisions that the log did not take, by number, to be appended once it does again.
  var unlogged: [UInt64: Decision] = [:]
  /// There were more of them than are kept: the log has to be made anew.
  var isLogIncomplete = false
  private var line = WaitingLine()
  var lifted: LiftedMeanwhile

  /// - `control`: pauses and shuts domains down; nil: such decisions stay `desired`.
  /// - `events`: gets every decision, each time its status changes, and what went wrong.
  /// - `actionPatience`: how long everything else waits for one such action to be done, in real time. One that takes longer, as a guest's shutting down
  ///   may, goes on beside; its decision is `desired` until an `advance` finds that it is done.
  /// - `lifted`: what `PolicyUpdater.restore` returned. It goes to the log whole when the first `reconcile` has succeeded, or before the first decision that is taken, and to
  ///   `events` in portions, then and at each `advance`.
  public init(
    updater: PolicyUpdater, log: any DecisionLog, firewall: any FirewallSink,
    control: (any HypervisorControl)? = nil, events: any EventSink, actionPatience: Duration = .milliseconds(100),
    lifted: [Decision] = []
  ) {
    self.lifted = LiftedMeanwhile(lifted)
    self.updater = updater
    self.log = log
    self.firewall = firewall
    actions = control.map { DomainActions($0, patience: actionPatience) }
    self.events = events
  }

  /// Counts events, in order, and carries out what follows.
  ///
  /// - Returns: the decisions, with the status that they have now.
  @discardableResult
  public func handle(_ batch: [Event], at time: Timestamp) async -> [Decision] {
    await enter()
    defer { leave() }
    var decisions: [Decision] = []
    for event in batch { decisions += updater.handle(event, at: time) }
    return await carryOut(decisions, at: time)
  }

  @discardableResult
  public func handle(_ event: Event, at time: Timestamp) async -> [Decision] { await handle([event], at: time) }

  /// Lets the time pass: lifts what has run out, tries again what the firewall did not take, and makes the log durable. While the log's disk
  /// is waited for, other calls go on.
  @discardableResult
  public func advance(to time: Timestamp) async -> [Decision] {
    await enter()
    var decisions = await carryOut(updater.advance(to: time), at: time)
    if isBehind || !desired.isEmpty { decisions += await catchUp(at: time) }
    await tellLifted(atMost: LiftedMeanwhile.portion)
    if isLogBroken { await appendUnlogged(at: time) }
    if !isCompacting, compactionRetry.map({ time >= $0 }) ?? isCompactionDue,
      let compaction = await beginCompaction(at: time)
    {
      // Nothing of this waits for it.
      Task { await finish(compaction, at: time) }
    }
    let isSyncNeeded = isSyncNeeded
    self.isSyncNeeded = false
    leave()
    if isSyncNeeded { await syncLog(at: time) }
    return decisions
  }

  /// Reads the firewall back, mends what differs from what should be in force, and reports it. To be called at the start
  /// (after the log's decisions were restored), and now and then.
  ///
  /// - Throws: when the firewall cannot be read or mended; it is tried again at the next `advance`.
  @discardableResult
  public func reconcile(at time: Timestamp) async throws(FirewallError) -> Difference {
    await enter()
    defer { leave() }
    do throws(FirewallError) {
      let difference = try await mend(at: time)
      if !difference.isEmpty {
        await report(
          .firewallDrift, severity: 2, at: time,
          "the firewall missed \(difference.missing.count) measures and held \(difference.unexpected.count) "
            + "that it should not; mended")
      }
      await settleDesired(at: time)
      await logLifted(at: time)
      return difference
    } catch {
      await fallBehind(error, at: time)
      throw error
    }
  }

  // MARK: The administrator

  /// - Throws: `notPending`.
  @discardableResult
  public func approve(_ id: UInt64, at time: Timestamp) async throws(PolicyError) -> Decision {
    await enter()
    defer { leave() }
    let decision = try updater.approve(id, at: time)
    return await carryOut([decision], at: time).first ?? decision
  }

  /// - Throws: `notPending`.
  @discardableResult
  public func deny(_ id: UInt64, at time: Timestamp) async throws(PolicyError) -> Decision {
    await enter()
    defer { leave() }
    let decision = try updater.deny(id, at: time)
    return await carryOut([decision], at: time).first ?? decision
  }

  /// Takes a measure back before its time.
  ///
  /// - Throws: `notInForce`.
  @discardableResult
  public func lift(
    _ key: FirewallMeasure.Key, reason: String, at time: Timestamp
  ) async throws(PolicyError) -> [Decision] {
    await enter()
    defer { leave() }
    let decisions = try updater.lift(key, reason: reason, at: time)
    return await carryOut(decisions, at: time)
  }

  /// Blocks on the administrator's word; see `PolicyUpdater.block`.
  @discardableResult
  public func block(
    _ network: IPNetwork, for incarnation: Incarnation?, duration: Duration, reason: String, at time: Timestamp
  ) async throws(PolicyError) -> [Decision] {
    await enter()
    defer { leave() }
    let decisions = try updater.block(network, for: incarnation, duration: duration, reason: reason, at: time)
    return await carryOut(decisions, at: time)
  }

  /// Goes on with another policy; see `PolicyUpdater.replacePolicy`.
  @discardableResult
  public func replacePolicy(with policy: Policy, at time: Timestamp) async throws(PolicyError) -> [Decision] {
    await enter()
    defer { leave() }
    let decisions = try updater.replacePolicy(with: policy, at: time)
    // In and out of a dry run, everything that stands has to come or go.
    isBehind = true
    return await carryOut(decisions, at: time) + catchUp(at: time)
  }

  // MARK: What there is to see

  public var measuresInForce: [FirewallMeasure] { updater.measuresInForce }
  public var measureCounts: MeasureCounts { updater.measureCounts }
  /// See `PolicyUpdater.measureRevision`.
  public var measureRevision: UInt64 { updater.measureRevision }
  /// Of the measures in force those of one domain and those of the host, in no order, and the revision that they are of.
  public func measures(concerning domain: DomainUUID) -> (revision: UInt64, measures: [FirewallMeasure]) {
    (updater.measureRevision, updater.measures(concerning: domain))
  }
  /// The decisions behind them.
  public var decisionsInForce: [Decision] { updater.decisionsInForce }
  public var pending: [Decision] { updater.pending }
  public var policy: Policy { updater.policy }
  public var statistics: PolicyStatistics { updater.statistics }
  /// From these `PolicyUpdater.restore` makes the present state again.
  public var liveDecisions: [Decision] { updater.liveDecisions }
  /// See `PolicyUpdater.explain`. What is not in force yet is `desired`.
  public func explain(_ address: IPAddress, for domain: Incarnation, at time: Timestamp) -> PolicyExplanation {
    var explanation = updater.explain(address, for: domain, at: time)
    for index in explanation.decisions.indices where desired[explanation.decisions[index].id] != nil {
      explanation.decisions[index].status = .desired
    }
    for index in explanation.offences.indices where desired[explanation.offences[index].decision.id] != nil {
      explanation.offences[index].decision.status = .desired
    }
    return explanation
  }
  /// Decided, and not in force yet.
  public var waitingForFirewall: [Decision] { desired.values.sorted { $0.id < $1.id } }
}

// MARK: Carrying out

extension EnforcementCoordinator {
  private func carryOut(_ decided: [Decision], at time: Timestamp) async -> [Decision] {
    guard !decided.isEmpty else { return [] }
    // Of one address the log must not say first that it is blocked anew.
    await logLifted(at: time)
    var decisions = await logged(decided.map { $0.unlessWaiting(among: desired.values) }, at: time)
    await enforce(&decisions, at: time)
    for index in decisions.indices where decisions[index].isDestructive && decisions[index].status == .enforced {
      if await !act(decisions[index], at: time) { decisions[index].status = .desired }
    }
    for decision in decisions {
      if decision.status == .desired { desired[decision.id] = decision }
      await events.receive(.decision(decision))
    }
    let late = decisions.filter { $0.status == .desired }
    if !late.isEmpty { _ = await logged(late, at: time) }
    return decisions
  }

  /// Changes the firewall by what was decided, in one change. What it does not take becomes `desired`.
  private func enforce(_ decisions: inout [Decision], at time: Timestamp) async {
    var change = FirewallChange(from: 0, time: time)
    for decision in decisions {
      if decision.status == .enforced, let measure = decision.firewallMeasure {
        change.remove.removeAll { $0 == measure.key }
        change.add.removeAll { $0.key == measure.key }
        change.add.append(measure)
      } else if decision.status == .expired, case .lift(let key) = decision.measure {
        change.add.removeAll { $0.key == key }
        change.remove.append(key)
      }
    }
    guard !change.add.isEmpty || !change.remove.isEmpty else { return }
    do throws(FirewallError) {
      try await apply(change)
      return
    } catch {
      await fallBehind(error, at: time)
    }
    for index in decisions.indices
    where decisions[index].status == .enforced && decisions[index].firewallMeasure != nil {
      decisions[index].status = .desired
    }
  }

  /// Applies a change, from whatever generation the firewall is at.
  private func apply(_ original: FirewallChange) async throws(FirewallError) {
    var change = original
    var attempts = 0
    while true {
      if let generation { change.from = generation } else { change.from = try await readGeneration(at: change.time) }
      do throws(FirewallError) {
        generation = try await firewall.apply(change)
        return
      } catch {
        generation = nil
        attempts += 1
        guard error.code == .conflict, attempts < Self.conflictRetries else { throw error }
      }
    }
  }

  private func readGeneration(at time: Timestamp) async throws(FirewallError) -> UInt64 {
    let state = try await firewall.readBack(at: time)
    return state.generation
  }

  /// Pauses or shuts down a domain.
  private func act(_ decision: Decision, at time: Timestamp) async -> Bool {
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

// MARK: Catching up

extension EnforcementCoordinator {
  /// Tries again what did not work.
  private func catchUp(at time: Timestamp) async -> [Decision] {
    if isBehind {
      do throws(FirewallError) {
        _ = try await mend(at: time)
      } catch {
        generation = nil
        return []
      }
    }
    return await settleDesired(at: time)
  }

  /// Makes the firewall hold exactly what it should.
  private func mend(at time: Timestamp) async throws(FirewallError) -> Difference {
    let state = try await firewall.readBack(at: time)
    generation = state.generation
    let difference = difference(of: state, at: time)
    if !difference.isEmpty {
      let change = FirewallChange(
        from: state.generation, time: time, add: difference.missing, remove: difference.unexpected.map(\.key))
      do throws(FirewallError) {
        try await apply(change)
      } catch {
        guard error.code == .unsupported || error.code == .full else { throw error }
        try await applyOneByOne(change, error)
      }
    }
    isBehind = false
    return difference
  }

  /// One measure that the firewall cannot take must not keep the others out.
  private func applyOneByOne(_ change: FirewallChange, _ first: FirewallError) async throws(FirewallError) {
    var failure: FirewallError?
    if !change.remove.isEmpty {
      try await apply(FirewallChange(from: 0, time: change.time, remove: change.remove))
    }
    for measure in change.add.prefix(Self.singleAttempts) {
      do throws(FirewallError) {
        try await apply(FirewallChange(from: 0, time: change.time, add: [measure]))
        if let decision = desired[measure.decision] { await settle(decision, at: change.time) }
      } catch {
        failure = error
      }
    }
    if let failure { throw failure }
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

  /// Reports the decisions that waited as in force, if they are now. Those that ran out meanwhile are not spoken of any more.
  @discardableResult
  private func settleDesired(at time: Timestamp) async -> [Decision] {
    guard !desired.isEmpty else { return [] }
    var settled: [Decision] = []
    let inForce = Set(updater.measuresInForce.map(\.decision))
    for decision in waitingForFirewall {
      if decision.isDestructive {
        if actions == nil, decision.incarnation.flatMap(updater.directory.entry) == nil {
          (desired[decision.id], toldFailures[decision.id]) = (nil, nil)
          continue
        }
        // In a dry run nothing is done; once that is over it is.
        guard !updater.policy.isDryRun, await act(decision, at: time) else { continue }
      } else if !inForce.contains(decision.id) {
        desired[decision.id] = nil
        continue
      }
      settled.append(await settle(decision, at: time))
    }
    return settled
  }

  @discardableResult
  private func settle(_ decision: Decision, at time: Timestamp) async -> Decision {
    desired[decision.id] = nil
    toldFailures[decision.id] = nil
    var decision = decision
    decision.status = .enforced
    decision.time = time
    decision = await logged([decision], at: time)[0]
    await events.receive(.decision(decision))
    return decision
  }

  private func fallBehind(_ error: FirewallError, at time: Timestamp) async {
    generation = nil
    if !isBehind {
      await report(
        .enforcementFailed, severity: 1, at: time,
        "the firewall did not take a change: \(error.message.escapedForDisplay); trying again")
    }
    isBehind = true
  }
}

// MARK: Events and order

extension EnforcementCoordinator {
  func report(
    _ kind: PlatformAlert.Kind, severity: Int, at time: Timestamp, about incarnation: Incarnation? = nil,
    _ message: String
  ) async {
    await events.receive(
      .platform(
        PlatformAlert(time: time, incarnation: incarnation, kind: kind, message: message, severity: severity)))
  }

  /// One call after another, although each of them waits for others in between.
  func enter() async {
    if line.tryEnter() { return }
    await withCheckedContinuation { line.wait($0) }
  }

  func leave() { line.leave() }
}
