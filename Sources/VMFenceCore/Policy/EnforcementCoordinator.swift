/// Carries out what a policy updater decides: event → decisions → log → firewall → notification, in this order, one call
/// after another. The firewall is only changed once the log has the decision; if the log cannot be written, it is changed all the same,
/// and the decision says that it is unlogged.
///
/// What the firewall does not take stays `desired` and is tried again by `advance`, a second later at first and every half minute at last. What is to be done with a domain (pausing it, shutting it
/// down) is `desired` in the log before it is begun, and `enforced` when it is done, so that a restart goes on with it; what is not done within `actionValidity` is given up and told as `expired`.
/// Keeps no clock: call `advance` about once a second, and at the times of a replay.
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
  /// How long after it was approved, or decided where that is not needed, a domain may be paused or shut down: whoever wanted that must not be surprised by it hours later, after
  /// a restart or when a hypervisor answers again. What has begun by then goes on.
  public static let actionValidity = Duration.seconds(600)
  /// How many decisions wait for a log that cannot be written. Of more, a restart does not know, unless the log can be made anew before.
  static let unloggedCapacity = 65_536
  /// Ends that lie no further apart are the same: a firewall may count in coarse units.
  static let expiryTolerance = Duration.seconds(2)

  /// Has what is `desired`, too.
  var updater: PolicyUpdater
  let log: any DecisionLog
  let firewall: any FirewallSink
  var actions: DomainActions?
  let events: any EventSink
  var generation: UInt64?
  /// What was `desired` at the start: an earlier process may have done it.
  var inherited: Set<UInt64>
  /// What was told last of why a decision that acts on a domain could not be carried out, by number.
  var toldFailures: [UInt64: String] = [:]
  /// The firewall may not hold what it should.
  var isBehind: Bool
  /// It did not take what it should hold when that was tried last.
  var retry: FirewallRetry?
  /// What was done with domains a moment ago.
  var justDone: [Decision] = []
  /// Where in what is missing measures are tried one by one the next time.
  var singlesTried = 0
  /// How many changes the firewall did not take, tried again or not.
  public internal(set) var refusedChanges: UInt64 = 0
  /// Whether the log took nothing when it was written last: measures are enforced unlogged.
  package internal(set) var isLogBroken = false
  var isSyncNeeded = false
  var isSyncing = false
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
  /// The start has succeeded, or something was decided. A start that fails, again and again perhaps, is to leave what the log said to the next one.
  var hasBegun = false

  /// - `updater`: after a restart with what the log says (`PolicyUpdater.restore`). What it calls `desired` there is
  ///   carried out when the first `reconcile` has succeeded, or with the first decision that is taken.
  /// - `control`: pauses and shuts domains down; nil: such decisions stay `desired` until they are given up.
  /// - `events`: gets every decision, each time its status changes, and what went wrong.
  /// - `actionPatience`: how long everything else waits for one such action to be done, in real time. One that takes longer, as a guest's shutting down
  ///   may, goes on beside; its decision is `desired` until an `advance` finds that it is done.
  /// - `lifted`: what `PolicyUpdater.restore` returned. It goes to the log and to `events` in portions of 4,096, from when the first `reconcile` has succeeded, or the first decision was
  ///   taken, and at each `advance`; what of it is about the same as a new decision, before that.
  public init(
    updater: PolicyUpdater, log: any DecisionLog, firewall: any FirewallSink,
    control: (any HypervisorControl)? = nil, events: any EventSink, actionPatience: Duration = .milliseconds(100),
    lifted: [Decision] = []
  ) {
    self.lifted = LiftedMeanwhile(lifted)
    // What the log does not call in force may not be.
    isBehind = !updater.desired.isEmpty
    inherited = Set(updater.desired.keys)
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

  /// Lets the time pass, and makes the log durable: `pass`, then `syncLog`. While the log's disk is waited for, other calls go on, this one among them, which waits for no disk then.
  @discardableResult
  public func advance(to time: Timestamp) async -> [Decision] {
    let decisions = await pass(to: time)
    await syncLog(at: time)
    return decisions
  }

  /// Lets the time pass: lifts what has run out, and tries again what did not work. For whoever must not wait for the log's disk with it; `syncLog` is to be called besides.
  @discardableResult
  public func pass(to time: Timestamp) async -> [Decision] {
    await enter()
    defer { leave() }
    var decisions = await carryOut(updater.advance(to: time), at: time)
    decisions += await catchUp(at: time)
    await tellLifted(atMost: LiftedMeanwhile.portion)
    if isLogBroken { await appendUnlogged(at: time) }
    if !isCompacting, compactionRetry.map({ time >= $0 }) ?? isCompactionDue,
      let compaction = await beginCompaction(at: time)
    {
      // Nothing of this waits for it.
      Task { await finish(compaction, at: time) }
    }
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
      await begin(at: time)
      await settleDesired(at: time)
      return difference
    } catch {
      await fallBehind(error, at: time, isRetry: true)
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
    return await carryOut(decisions, at: time) + catchUp(at: time, isDue: true)
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
  /// The decisions behind them. What is not in force yet is `desired`.
  public var decisionsInForce: [Decision] { updater.decisionsInForce.map(asItStands) }
  public var pending: [Decision] { updater.pending }
  public var policy: Policy { updater.policy }
  public var statistics: PolicyStatistics { updater.statistics }
  /// From these `PolicyUpdater.restore` makes the present state again.
  public var liveDecisions: [Decision] { updater.liveDecisions }
  /// See `PolicyUpdater.explain`. What is not in force yet is `desired`.
  public func explain(_ address: IPAddress, for domain: Incarnation, at time: Timestamp) -> PolicyExplanation {
    var explanation = updater.explain(address, for: domain, at: time)
    explanation.decisions = explanation.decisions.map(asItStands)
    for index in explanation.offences.indices {
      explanation.offences[index].decision = asItStands(explanation.offences[index].decision)
    }
    return explanation
  }

  private func asItStands(_ decision: Decision) -> Decision {
    guard updater.desired[decision.id] != nil else { return decision }
    var decision = decision
    decision.status = .desired
    return decision
  }

  /// Decided, and not in force yet.
  public var waitingForFirewall: [Decision] { updater.desired.values.sorted { $0.id < $1.id } }
  /// Why the firewall does not hold what it should; nil when it took what it was given last. Text of others in it is escaped.
  public var firewallProblem: String? {
    retry.map { "\($0.reason) (\($0.refusals) times so far; it is tried again)" }
  }
}

// MARK: Carrying out

extension EnforcementCoordinator {
  private func carryOut(_ decided: [Decision], at time: Timestamp) async -> [Decision] {
    guard !decided.isEmpty else { return [] }
    await tellLifted(before: decided, at: time)
    let intended = await logged(intended(decided, at: time), at: time)
    var decisions = intended
    await enforce(&decisions, at: time)
    for index in decisions.indices where decisions[index].isDestructive && decisions[index].status == .desired {
      guard await act(decisions[index], at: time) else { continue }
      decisions[index].status = .enforced
      justDone.append(decisions[index])
    }
    for decision in decisions where decision.status == .desired { updater.desired[decision.id] = decision }
    let changed = zip(intended, decisions).filter { $0.status != $1.status }.map(\.1)
    if !changed.isEmpty { _ = await logged(changed, at: time) }
    for decision in decisions { await events.receive(.decision(decision)) }
    return decisions
  }

  /// Changes the firewall by what was decided, in one change. What it does not take becomes `desired`.
  private func enforce(_ decisions: inout [Decision], at time: Timestamp) async {
    // Of each the last word counts.
    var words: [FirewallMeasure.Key: (place: Int, measure: FirewallMeasure?)] = [:]
    for (place, decision) in decisions.enumerated() {
      if decision.status == .enforced, let measure = decision.firewallMeasure {
        words[measure.key] = (place, measure)
      } else if decision.status == .expired, case .lift(let key) = decision.measure {
        words[key] = (place, nil)
      }
    }
    var change = FirewallChange(from: 0, time: time)
    for (key, word) in words.sorted(by: { $0.value.place < $1.value.place }) {
      if let measure = word.measure { change.add.append(measure) } else { change.remove.append(key) }
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
  func apply(_ original: FirewallChange) async throws(FirewallError) {
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
}

// MARK: Events and order

extension EnforcementCoordinator {
  func report(
    _ kind: PlatformAlert.Kind, severity: Int, at time: Timestamp, about incarnation: Incarnation? = nil,
    count: UInt64 = 1, _ message: String
  ) async {
    await events.receive(
      .platform(
        PlatformAlert(
          time: time, incarnation: incarnation, kind: kind, message: message, severity: severity, count: count)))
  }

  /// One call after another, although each of them waits for others in between.
  func enter() async {
    if line.tryEnter() { return }
    await withCheckedContinuation { line.wait($0) }
  }

  func leave() { line.leave() }
}
