/// Follows the domains of a host and says what is to be done with their detectors: one automaton per incarnation, levels in,
/// actions out.
///
/// A plain value: it reads no clock, waits for nothing and starts nothing. The time is handed in; a time before the last one
/// counts as the last one. The same calls give the same actions in the same order: by incarnation, and for each in the order in
/// which they are to be done.
public struct LifecycleTracker: Sendable {
  public struct Configuration: Hashable, Sendable {
    /// How long a blocked domain has to go without CPU time and traffic until it counts as halted.
    public var blockedAfter: Duration
    /// How long a domain may stay in an unstable state before that is reported.
    public var stuckAfter: Duration
    /// How long the detector of a domain that was migrated away is kept while the domain is still listed: the migration may
    /// fail in its last step, and the domain go on here.
    public var handoverGrace: Duration
    /// Incarnations that are followed at once; more are counted and not guarded.
    public var maximumDomains: Int
    /// Incarnations that are remembered after their end.
    public var endedKept: Int
    /// Transitions that are remembered of each.
    public var historyCapacity: Int

    public init(
      blockedAfter: Duration = .seconds(2), stuckAfter: Duration = .seconds(30),
      handoverGrace: Duration = .seconds(5), maximumDomains: Int = 4096, endedKept: Int = 256,
      historyCapacity: Int = 64
    ) {
      self.blockedAfter = blockedAfter
      self.stuckAfter = stuckAfter
      self.handoverGrace = handoverGrace
      self.maximumDomains = maximumDomains
      self.endedKept = endedKept
      self.historyCapacity = historyCapacity
    }
  }

  public enum Action: Hashable, Sendable {
    case startDetector(Incarnation)
    case suspendDetector(Incarnation)
    case resumeDetector(Incarnation)
    /// Kill it, then say so with `detectorGone`.
    case killDetector(Incarnation)
    case report(LifecycleReport)
  }

  /// Whether there are rules for a domain.
  public typealias IsConfigured = (DomainDescription) -> Bool

  public let configuration: Configuration
  /// The latest time that was handed in.
  public private(set) var now: Timestamp
  /// Whether the platform goes down: nothing is started any more.
  public private(set) var isShuttingDown = false
  /// Incarnations that were not followed because `maximumDomains` were.
  public private(set) var refusedDomains: UInt64 = 0
  /// Snapshots that were passed over because a later one had been seen.
  public private(set) var staleSnapshots: UInt64 = 0

  private var records: [Incarnation: LifecycleRecord] = [:]
  /// Ended incarnations, the first that ended first.
  private var ended: [Incarnation] = []
  private var lastSnapshot: (time: Timestamp, sequence: UInt64)?

  public init(configuration: Configuration = Configuration(), at time: Timestamp = Timestamp(nanoseconds: .min)) {
    self.configuration = configuration
    now = time
  }

  // MARK: What is known

  /// All incarnations that are remembered, in their order.
  public var incarnations: [Incarnation] { records.keys.sorted() }

  public func automaton(of incarnation: Incarnation) -> LifecycleAutomaton? { records[incarnation]?.automaton }
  public func state(of incarnation: Incarnation) -> LifecycleState? { records[incarnation]?.automaton.state }
  /// The latest description; also of a domain that is gone.
  public func description(of incarnation: Incarnation) -> DomainDescription? { records[incarnation]?.description }

  /// Whether a packet for it would resume its detector: it is suspended because it is blocked.
  public func wakesOnTraffic(_ incarnation: Incarnation) -> Bool {
    guard let record = records[incarnation] else { return false }
    return record.automaton.state == .suspended && record.description.runState == .blocked
  }

  // MARK: What happens

  /// Takes all of a change that the probe reported. Says nothing about the domains that it does not concern.
  public mutating func apply(
    _ change: InventoryChange, at time: Timestamp, isConfigured: IsConfigured
  ) -> [Action] {
    advance(to: time)
    switch change {
    case .changed(let domain):
      observe(domain, isConfigured)
      return settle([domain.incarnation])
    case .removed(let incarnation):
      records[incarnation]?.isListed = false
      return settle([incarnation])
    case .gap: return []
    case .snapshot(let snapshot): return apply(snapshot, at: time, isConfigured: isConfigured)
    case .platformShutdown:
      isShuttingDown = true
      return settle(incarnations)
    }
  }

  /// Takes a snapshot: whoever is not in it is gone. A snapshot that is older than one that was seen changes nothing.
  public mutating func apply(
    _ snapshot: InventorySnapshot, at time: Timestamp, isConfigured: IsConfigured
  ) -> [Action] {
    advance(to: time)
    // A lower number at a later time comes from a new probe.
    if let last = lastSnapshot, snapshot.sequence <= last.sequence, snapshot.time <= last.time {
      staleSnapshots += 1
      return settle(incarnations)
    }
    lastSnapshot = (snapshot.time, snapshot.sequence)
    let listed = Set(snapshot.domains.map(\.incarnation))
    for incarnation in incarnations where !listed.contains(incarnation) { records[incarnation]?.isListed = false }
    // Who is gone makes room first.
    var actions = settle(incarnations.filter { !listed.contains($0) })
    for domain in snapshot.domains.sorted(by: { $0.incarnation < $1.incarnation }) { observe(domain, isConfigured) }
    if snapshot.isPlatformShuttingDown { isShuttingDown = true }
    actions += settle(incarnations)
    return actions
  }

  /// Lets time pass.
  public mutating func tick(at time: Timestamp) -> [Action] {
    advance(to: time)
    return settle(incarnations)
  }

  /// Looks again whether there are rules for each domain. Rules that were taken away do not stop a detector that runs: give it an empty set.
  public mutating func reconfigure(at time: Timestamp, isConfigured: IsConfigured) -> [Action] {
    advance(to: time)
    for (incarnation, record) in records {
      records[incarnation]?.isConfigured = isConfigured(record.description)
    }
    return settle(incarnations)
  }

  /// The detector was given other rules without a restart.
  public mutating func rulesReplaced(_ incarnation: Incarnation, at time: Timestamp) -> [Action] {
    advance(to: time)
    return inject(.configured, into: incarnation)
  }

  /// The detector is no more: killed, dead, or it could not be started.
  ///
  /// `retry`: when another may be started at the earliest; nil: at once.
  public mutating func detectorGone(
    _ incarnation: Incarnation, at time: Timestamp, retry: Timestamp? = nil
  ) -> [Action] {
    advance(to: time)
    guard let record = records[incarnation] else { return [] }
    guard record.hasDetector else { return inject(.detectorKilled, into: incarnation) }
    records[incarnation]?.hasDetector = false
    records[incarnation]?.killIsUnderWay = false
    records[incarnation]?.retry = retry
    return settle([incarnation])
  }

  /// A packet from or for the domain was seen. If it was suspended because it was blocked, it counts as running at once.
  public mutating func noteTraffic(_ incarnation: Incarnation, at time: Timestamp) -> [Action] {
    advance(to: time)
    records[incarnation]?.lastSignOfLife = now
    return settle([incarnation])
  }

  // MARK: From levels to actions

  private mutating func advance(to time: Timestamp) { now = max(now, time) }

  private mutating func observe(_ domain: DomainDescription, _ isConfigured: IsConfigured) {
    let incarnation = domain.incarnation
    if records[incarnation] == nil {
      // What is over before it was ever seen had no detector and needs none.
      guard domain.isPresent else { return }
      guard records.count - ended.count < configuration.maximumDomains else {
        refusedDomains += 1
        return
      }
      records[incarnation] = LifecycleRecord(
        domain, automaton: LifecycleAutomaton(at: now, historyCapacity: configuration.historyCapacity), at: now)
    }
    records[incarnation]?.observe(domain, at: now)
    records[incarnation]?.isConfigured = isConfigured(domain)
  }

  /// Brings `incarnations` to where their levels lead.
  private mutating func settle(_ incarnations: [Incarnation]) -> [Action] {
    var actions: [Action] = []
    for incarnation in incarnations {
      guard var record = records[incarnation] else { continue }
      let before = record.automaton.state
      record.settle(at: now, configuration, isShuttingDown: isShuttingDown, &actions)
      records[incarnation] = record
      remember(incarnation, from: before, to: record.automaton.state)
    }
    return actions
  }

  /// Keeps the list of ended incarnations, and forgets the oldest of them.
  private mutating func remember(_ incarnation: Incarnation, from before: LifecycleState, to after: LifecycleState) {
    guard (before == .ended) != (after == .ended) else { return }
    if after == .ended { ended.append(incarnation) } else { ended.removeAll { $0 == incarnation } }
    while ended.count > max(0, configuration.endedKept) { records[ended.removeFirst()] = nil }
  }

  /// Gives an automaton an event that is no level, then settles it.
  private mutating func inject(_ event: LifecycleEvent, into incarnation: Incarnation) -> [Action] {
    guard var record = records[incarnation] else { return [] }
    let report = record.handle(event, at: now)
    records[incarnation] = record
    return [report] + settle([incarnation])
  }
}

extension DomainDescription {
  /// Whether it is here and not over.
  var isPresent: Bool { !runState.isFinal && migration != .migratedAway }
}
