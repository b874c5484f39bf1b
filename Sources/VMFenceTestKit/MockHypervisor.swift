public import VMFenceCore
internal import Synchronization

/// A hypervisor that exists in memory only: a script creates, pauses, migrates and ends its domains, and decides which
/// notifications of it arrive, how often and when. For tests, replay, and integrators who develop without a host. Safe to use from
/// any thread.
public final class MockHypervisor: HypervisorProbe, HypervisorControl {
  /// One thing that happens.
  public enum Step: Hashable, Sendable {
    case create(DomainDescription)
    case pause(Incarnation)
    /// Ends a pause.
    case resume(Incarnation)
    /// Waits for an event from now on.
    case block(Incarnation)
    /// Runs again after `block`.
    case wake(Incarnation)
    /// Uses CPU time. No notification tells of it, as on a real host.
    case consume(Incarnation, Duration)
    case shutDown(Incarnation)
    case crash(Incarnation)
    /// The hypervisor tears it down; it is still listed.
    case die(Incarnation)
    /// It is not listed any more.
    case destroy(Incarnation)
    case rename(Incarnation, to: String)
    /// Saved, or in the last step of a migration: suspended, not gone.
    case suspend(Incarnation)
    /// The source's end: suspended, and called NAME--migratedaway. `destroy` or `failMigration` follows.
    case migrateAway(Incarnation)
    /// The source goes on after all.
    case failMigration(Incarnation)
    /// The target's end: paused, and called NAME--incoming. `completeMigration` or `destroy` follows.
    case migrateIn(DomainDescription)
    /// The target runs under its own name.
    case completeMigration(Incarnation)
    /// The platform goes down: the last thing that happens.
    case platformShutdown
  }

  /// What happens to a notification on its way.
  public enum Fault: Hashable, Sendable {
    /// Lost, and the probe knows: subscribers get a gap and a snapshot.
    case lose
    /// Lost, and nobody knows. No probe may do that by its contract; those who rely on levels survive it.
    case loseSilently
    case double
    /// Kept back until `releaseDelayed()`.
    case delay
  }

  fileprivate struct Contents {
    var domains: [Incarnation: DomainDescription] = [:]
    var isShuttingDown = false
    var isClosed = false
    var sequence: UInt64 = 0
    var faults: [Fault] = []
    var delayed: [InventoryChange] = []
    var failures: [ProbeError] = []
    var subscribers = ChangeFeeds()
  }

  private let clock: any TimeSource
  private let subscriberCapacity: Int
  private let contents = Mutex(Contents())

  /// - `clock`: gives the times of snapshots.
  /// - `subscriberCapacity`: changes that wait for one subscriber; when one more comes, they are lost, and it gets a gap.
  public init(clock: any TimeSource, subscriberCapacity: Int = 1024) {
    self.clock = clock
    self.subscriberCapacity = subscriberCapacity
  }

  deinit { close() }

  // MARK: HypervisorProbe

  public func snapshot() async throws(ProbeError) -> InventorySnapshot {
    try failIfTold()
    return takeSnapshot()
  }

  /// The same without waiting and without fail.
  public func takeSnapshot() -> InventorySnapshot {
    contents.withLock { contents in
      contents.sequence += 1
      return InventorySnapshot(
        time: clock.now, sequence: contents.sequence,
        domains: contents.domains.values.sorted { $0.incarnation.domainID < $1.incarnation.domainID },
        isPlatformShuttingDown: contents.isShuttingDown)
    }
  }

  public func changes() async -> AsyncStream<InventoryChange> {
    let feed = ChangeFeed(capacity: subscriberCapacity) { [weak self] in
      self?.takeSnapshot() ?? InventorySnapshot(time: .zero, sequence: .max, domains: [])
    }
    contents.withLock { contents in
      contents.subscribers.add(feed)
      if contents.isClosed || contents.isShuttingDown { feed.close() }
    }
    // The stream alone keeps the feed alive.
    return AsyncStream { await feed.next() }
  }

  /// Ends all streams of changes.
  public func close() {
    contents.withLock { contents in
      contents.isClosed = true
      contents.subscribers.close()
    }
  }

  // MARK: HypervisorControl

  public func pause(_ domain: Incarnation) async throws(ProbeError) {
    try failIfTold()
    try perform(.pause(domain))
  }

  public func resume(_ domain: Incarnation) async throws(ProbeError) {
    try failIfTold()
    try perform(.resume(domain))
  }

  public func shutDown(_ domain: Incarnation) async throws(ProbeError) {
    try failIfTold()
    try perform(.shutDown(domain))
  }

  // MARK: The script

  /// Makes `step` happen, and notifies.
  ///
  /// - Returns: the change that subscribers are told, unless a fault prevents it; nil when nobody is told of this step.
  /// - Throws: when the step is impossible; then nothing happened.
  @discardableResult
  public func perform(_ step: Step) throws(ProbeError) -> InventoryChange? {
    // Under one lock, so that all subscribers get the changes in the order in which they happened.
    try contents.withLock { contents throws(ProbeError) in
      let change = try contents.perform(step)
      if let change { contents.notify(change) }
      return change
    }
  }

  /// Lets `fault` befall each of the next `count` notifications. Faults queue.
  public func inject(_ fault: Fault, next count: Int = 1) {
    contents.withLock { $0.faults += Array(repeating: fault, count: max(0, count)) }
  }

  /// Delivers the notifications that were delayed.
  ///
  /// `reversed`: the last one first.
  public func releaseDelayed(reversed: Bool = false) {
    contents.withLock { contents in
      let delayed = reversed ? contents.delayed.reversed() : contents.delayed
      contents.delayed = []
      for change in delayed { contents.send(change) }
    }
  }

  /// Makes the next `count` calls of the probe and of the control fail with `error`.
  public func fail(next count: Int = 1, with error: ProbeError) {
    contents.withLock { $0.failures += Array(repeating: error, count: max(0, count)) }
  }

  private func failIfTold() throws(ProbeError) {
    try contents.withLock { contents throws(ProbeError) in
      if !contents.failures.isEmpty { throw contents.failures.removeFirst() }
    }
  }
}

extension MockHypervisor.Contents {
  // MARK: Notifications

  fileprivate mutating func notify(_ change: InventoryChange) {
    switch faults.isEmpty ? nil : faults.removeFirst() {
    case nil: send(change)
    case .lose: subscribers.lose(reason: "a notification was lost")
    case .loseSilently: break
    case .double:
      send(change)
      send(change)
    case .delay: delayed.append(change)
    }
    if change == .platformShutdown { subscribers.close() }
  }

  fileprivate func send(_ change: InventoryChange) {
    subscribers.send(change)
  }

  // MARK: Steps

  fileprivate mutating func perform(_ step: MockHypervisor.Step) throws(ProbeError) -> InventoryChange? {
    guard !isShuttingDown else {
      throw ProbeError(.unavailable, "the platform is down", remedy: "begin another script")
    }
    switch step {
    case .create(let domain): return try create(domain)
    case .migrateIn(var domain):
      domain.migration = .incoming
      domain.runState = .paused
      return try create(domain)
    case .destroy(let incarnation):
      _ = try existing(incarnation)
      domains[incarnation] = nil
      return .removed(incarnation)
    case .platformShutdown:
      isShuttingDown = true
      return .platformShutdown
    case .consume(let incarnation, let duration):
      let domain = try alive(incarnation)
      guard duration >= .zero else {
        throw ProbeError(.inconsistent, "a negative CPU time", remedy: "let CPU time rise")
      }
      domains[incarnation]?.cpuTime = domain.cpuTime + duration
      return nil
    case .pause(let incarnation): return try change(incarnation) { $0.runState = .paused }
    case .resume(let incarnation), .wake(let incarnation): return try change(incarnation) { $0.runState = .running }
    case .block(let incarnation): return try change(incarnation) { $0.runState = .blocked }
    case .shutDown(let incarnation): return try change(incarnation) { $0.runState = .shutDown }
    case .crash(let incarnation): return try change(incarnation) { $0.runState = .crashed }
    case .suspend(let incarnation): return try change(incarnation) { $0.runState = .suspendedForMigration }
    case .rename(let incarnation, let name): return try change(incarnation) { $0.name = name }
    case .die(let incarnation):
      _ = try existing(incarnation)
      domains[incarnation]?.runState = .dying
      return domains[incarnation].map { .changed($0) }
    case .migrateAway(let incarnation):
      return try change(incarnation) {
        $0.runState = .suspendedForMigration
        $0.migration = .migratedAway
      }
    case .failMigration(let incarnation), .completeMigration(let incarnation):
      return try change(incarnation) {
        $0.runState = .running
        $0.migration = .none
      }
    }
  }

  private mutating func create(_ domain: DomainDescription) throws(ProbeError) -> InventoryChange {
    let number = domain.incarnation.domainID
    guard number != .dom0, !domains.keys.contains(where: { $0.domainID == number }) else {
      throw ProbeError(
        .inconsistent, "there is a domain with the number \(number) already",
        remedy: "give each domain of a host a number of its own; 0 is the host's")
    }
    let rivals = domains.values.filter { $0.incarnation.uuid == domain.incarnation.uuid }
    guard domain.migration != .none || rivals.allSatisfy({ $0.migration != .none || $0.runState.isFinal }) else {
      throw ProbeError(
        .inconsistent, "two domains with the UUID \(domain.incarnation.uuid) outside a migration",
        remedy: "give each its own, or let the second migrate in")
    }
    domains[domain.incarnation] = domain
    return .changed(domain)
  }

  private mutating func change(
    _ incarnation: Incarnation, _ body: (inout DomainDescription) -> Void
  ) throws(ProbeError) -> InventoryChange {
    var domain = try alive(incarnation)
    body(&domain)
    domains[incarnation] = domain
    return .changed(domain)
  }

  private func alive(_ incarnation: Incarnation) throws(ProbeError) -> DomainDescription {
    let domain = try existing(incarnation)
    guard !domain.runState.isFinal else {
      throw ProbeError(
        .wrongState, "the domain \(incarnation) is over (\(domain.runState))",
        remedy: "create it again under another number")
    }
    return domain
  }

  private func existing(_ incarnation: Incarnation) throws(ProbeError) -> DomainDescription {
    guard let domain = domains[incarnation] else {
      throw ProbeError(
        .noSuchDomain, "there is no domain \(incarnation)", remedy: "take a snapshot to see which there are")
    }
    return domain
  }
}
