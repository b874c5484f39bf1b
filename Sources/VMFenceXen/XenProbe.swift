internal import CXen
internal import Glibc
internal import Synchronization
public import VMFenceCore

/// The domains of a Xen host.
///
/// The hypervisor's list (`xc_domain_getinfolist`) is the truth and is asked again and again, because pausing, blocking and waking raise no
/// event anywhere. What the toolstack wrote in xenstore (names, vifs, disks) is kept, and read again when a watch hints at a
/// change, and besides now and then, for hints that were lost. Only paths that Dom0 alone writes are read.
///
/// One thread looks at the hypervisor's list, another asks xenstored, which may be slow or not there at all: nothing else waits for it but `snapshot`, and that
/// for `storePatience` at the most. `snapshot` looks at the list at once, on the caller's thread; `latestSnapshot` waits for nobody. Safe to use from any thread.
///
/// A domain is told of once its name is known, or after three seconds without one; one that is paused and has not run yet, after a minute. A xenstored that
/// is gone, or says nothing for five seconds, is told as a gap and among the `problems`; what was read before stays.
///
/// Limits: backends in Dom0 only (what a driver domain serves is not seen); `tenant` and `serviceType` are not Xen's to say, and stay nil.
public final class XenProbe: HypervisorProbe {
  public struct Configuration: Hashable, Sendable {
    /// The longest time between two looks at the hypervisor's list.
    public var pollInterval: Duration
    /// What is kept of xenstore is no older than about this, even without a hint.
    public var refreshInterval: Duration
    /// How long a snapshot waits for xenstored where something may be new there; then what is known has to do, and until xenstored has answered
    /// no other snapshot waits.
    public var storePatience: Duration
    /// Changes that wait for one subscriber; when one more comes, they are lost, and it gets a gap.
    public var subscriberCapacity: Int

    public init(
      pollInterval: Duration = .milliseconds(50), refreshInterval: Duration = .seconds(30),
      storePatience: Duration = .milliseconds(250), subscriberCapacity: Int = 4096
    ) {
      self.pollInterval = max(pollInterval, .milliseconds(1))
      self.refreshInterval = max(refreshInterval, .milliseconds(100))
      self.storePatience = storePatience
      self.subscriberCapacity = subscriberCapacity
    }
  }

  /// Who waits until xenstore was asked.
  fileprivate struct Waiter {
    /// Of the round of questions that is enough for it.
    var round: UInt64
    var deadline: Duration
    var continuation: CheckedContinuation<Void, Never>
  }

  fileprivate struct Contents {
    var inventory: XenInventory
    var isClosed = false
    var isShuttingDown = false
    var sequence: UInt64 = 0
    var lastTime = Timestamp(nanoseconds: .min)
    var feeds = ChangeFeeds()
    var failure: ProbeError?
    /// Readable when xenstore has hints; -1 when nothing tells.
    var hints: CInt = -1
    /// Rounds of questions to xenstored that were begun and ended.
    var begun: UInt64 = 0
    var ended: UInt64 = 0
    /// Since when an answer of xenstored is awaited.
    var asked: Duration?
    /// That it does not answer was told.
    var isSilent = false
    var waiters: [Waiter] = []
  }

  /// The shortest time between two looks that hints ask for.
  private static let hintPause: Duration = .milliseconds(5)
  /// A xenstored that says nothing for so long is a problem that is told.
  private static let silence: Duration = .seconds(5)
  /// How long the first answer is waited for.
  private static let openPatience: Duration = .seconds(10)
  /// Domains that are read about between two looks at the time.
  private static let readingsAtOnce = 64

  private let configuration: Configuration
  private let clock: any TimeSource
  /// Intervals go by a clock that does not jump.
  private let started = ContinuousClock.now
  /// Never held while the hypervisor or xenstored is asked.
  private let contents: Mutex<Contents>
  /// Held while the hypervisor is asked, so that what it lists is taken over in order; before `contents`.
  private let looking = Mutex(())
  private let hypervisor: any XenHypervisor
  /// Held by that thread alone.
  private let follower: Mutex<XenStoreFollower>
  private let wakeUp: WakeUp
  private let storeWakeUp: WakeUp
  /// Rung when xenstore was asked for the first time.
  private let firstRound: WakeUp

  private init(
    _ configuration: Configuration, _ clock: any TimeSource, _ hypervisor: any XenHypervisor,
    _ inventory: consuming XenInventory, _ follower: consuming XenStoreFollower
  ) throws(ProbeError) {
    self.configuration = configuration
    self.hypervisor = hypervisor
    self.clock = clock
    contents = Mutex(Contents(inventory: inventory))
    self.follower = Mutex(follower)
    do throws(SystemFailure) { (wakeUp, storeWakeUp, firstRound) = (try WakeUp(), try WakeUp(), try WakeUp()) } catch {
      throw ProbeError(.failed, error.description, remedy: "allow the process more open files")
    }
  }

  deinit { close() }

  /// Connects to the hypervisor, with its handle in this process, and to xenstored, and begins to look.
  ///
  /// - `clock`: gives the times of snapshots.
  /// - Throws: `unavailable` when there is no Xen, this is not Dom0, Xen's release is not known, or xenstored does not answer within 10 s;
  ///   `permissionDenied`.
  public static func open(clock: any TimeSource, configuration: Configuration = Configuration()) throws(ProbeError)
    -> XenProbe
  {
    try open(clock: clock, configuration: configuration, over: try XenTransport.direct())
  }

  /// The same over a way to the hypervisor that is open already.
  public static func open(
    clock: any TimeSource, configuration: Configuration = Configuration(), over transport: XenTransport
  ) throws(ProbeError) -> XenProbe {
    let probe = try open(
      clock: clock, configuration: configuration, hypervisor: transport.hypervisor,
      connect: XenStoreConnection.connect,
      // SAFETY: the name is handed over as a string that ends in zero and lives during the call.
      interfaceExists: { unsafe if_nametoindex($0) != 0 })
    let failure = probe.contents.withLock { $0.begun > 0 && $0.ended == 0 ? Self.silent : $0.inventory.storeFailure }
    if let failure { throw failure }
    return probe
  }

  /// The same with another hypervisor and another xenstore.
  package static func open(
    clock: any TimeSource, configuration: Configuration = Configuration(), hypervisor: any XenHypervisor,
    connect: @escaping XenStoreFollower.Connect, interfaceExists: @escaping @Sendable (String) -> Bool
  ) throws(ProbeError) -> XenProbe {
    let probe = try XenProbe(
      configuration, clock, hypervisor, XenInventory(refreshInterval: configuration.refreshInterval),
      XenStoreFollower(connect: connect, interfaceExists: interfaceExists))
    probe.look()
    try probe.startThread("vmfence-probe") { $0.lookAndPrepareToWait() }
    try probe.startThread("vmfence-store") { $0.askAndPrepareToWait() }
    probe.awaitFirstRound()
    return probe
  }

  private func awaitFirstRound() {
    var bell = pollfd(fd: firstRound.descriptor, events: Int16(POLLIN), revents: 0)
    // SAFETY: one structure, as is said.
    _ = unsafe poll(&bell, 1, CInt(clamping: Self.openPatience.wholeNanoseconds / 1_000_000))
  }

  private static let silent = ProbeError(
    .unavailable, "xenstored does not answer", remedy: "see whether `xenstore-ls` works on this host")

  /// What is wrong now: with the way to the hypervisor or to xenstored, or with what is written about a domain.
  public var problems: [Diagnostic] {
    contents.withLock { contents in
      let failures = [contents.failure, contents.isSilent ? Self.silent : nil].compactMap { $0?.diagnostic }
      return failures + contents.inventory.problems
    }
  }

  /// Tells everybody that the platform goes down (event e8), and ends all streams of changes. Xen does not say so: whoever is told
  /// by the service manager does.
  public func platformShutsDown() {
    contents.withLock { contents in
      contents.isShuttingDown = true
      contents.feeds.send(.platformShutdown)
      contents.feeds.close()
    }
  }

  /// Ends the looks and all streams of changes.
  public func close() {
    contents.withLock { contents in
      contents.isClosed = true
      contents.feeds.close()
      defer { contents.waiters = [] }
      return contents.waiters
    }.forEach { $0.continuation.resume() }
    wakeUp.ring()
    storeWakeUp.ring()
  }

  // MARK: HypervisorProbe

  /// - Throws: `failed` when the hypervisor cannot be asked.
  public func snapshot() async throws(ProbeError) -> InventorySnapshot {
    look()
    await askStore()
    return try latestSnapshot()
  }

  /// What the last looks found, at once: for whoever has something else to do meanwhile. `changes` says when there is more, and `lookSoon` makes it come.
  ///
  /// - Throws: `failed` when the hypervisor could not be asked the last time.
  public func latestSnapshot() throws(ProbeError) -> InventorySnapshot {
    if let failure = contents.withLock({ $0.failure }) { throw failure }
    return takeSnapshot()
  }

  /// Has the hypervisor and xenstored asked now, and waits for neither.
  public func lookSoon() {
    wakeUp.ring()
    storeWakeUp.ring()
  }

  /// Has xenstore asked where something may be new there, and waits for that, but not for long: a xenstored that does not answer keeps nobody waiting twice.
  private func askStore() async {
    let now = started.duration(to: .now)
    let isNeeded = contents.withLock { contents in
      let isSlow = contents.asked.map { now - $0 >= configuration.storePatience } ?? false
      return !contents.isClosed && !isSlow && (contents.inventory.isAnyDue || Self.mayHaveHints(contents.hints))
    }
    guard isNeeded else { return }
    await withCheckedContinuation { continuation in
      let isLate = contents.withLock { contents in
        guard !contents.isClosed else { return true }
        // A round that is under way may have taken its hints before.
        contents.waiters.append(
          Waiter(round: contents.begun + 1, deadline: now + configuration.storePatience, continuation: continuation))
        return false
      }
      if isLate { continuation.resume() } else { storeWakeUp.ring() }
    }
  }

  private static func mayHaveHints(_ descriptor: CInt) -> Bool {
    guard descriptor >= 0 else { return true }
    var hints = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    // SAFETY: one structure, as is said. It may be another's descriptor by now: nothing is taken from it.
    return unsafe poll(&hints, 1, 0) != 0
  }

  public func changes() async -> AsyncStream<InventoryChange> {
    let feed = ChangeFeed(capacity: configuration.subscriberCapacity) { [weak self] in
      self?.takeSnapshot() ?? InventorySnapshot(time: .zero, sequence: .max, domains: [])
    }
    contents.withLock { contents in
      contents.feeds.add(feed)
      if contents.isClosed || contents.isShuttingDown { feed.close() }
    }
    return AsyncStream { await feed.next() }
  }

  private func takeSnapshot() -> InventorySnapshot {
    contents.withLock { contents in
      contents.sequence += 1
      contents.lastTime = max(contents.lastTime, clock.now)
      return InventorySnapshot(
        time: contents.lastTime, sequence: contents.sequence, domains: contents.inventory.domains,
        isPlatformShuttingDown: contents.isShuttingDown)
    }
  }

  // MARK: Looking

  /// Asks the hypervisor once, and tells the subscribers what is different.
  private func look(after hints: XenHints = XenHints()) {
    let (isAnyDue, late) = looking.withLock { _ -> (isAnyDue: Bool, late: [Waiter]) in
      guard !contents.withLock({ $0.isClosed }) else { return (false, []) }
      let now = started.duration(to: .now)
      do throws(SystemFailure) {
        return take(.success(try hypervisor.domains()), at: now, after: hints)
      } catch { return take(.failure(error), at: now, after: hints) }
    }
    for waiter in late { waiter.continuation.resume() }
    if isAnyDue { storeWakeUp.ring() }
  }

  /// - Returns: whether xenstore is to be asked about something, and who has waited long enough for that.
  private func take(
    _ listed: Result<[XenDomain], SystemFailure>, at now: Duration, after hints: XenHints
  ) -> (isAnyDue: Bool, late: [Waiter]) {
    contents.withLock { contents in
      switch listed {
      case .success(let domains):
        contents.inventory.look(at: now, finding: domains, after: hints)
        contents.failure = nil
        contents.tellNews()
      case .failure(let error):
        if contents.failure == nil {
          contents.feeds.lose(reason: "the hypervisor could not be asked: \(error.description)")
        }
        contents.failure = ProbeError(
          error.isPermission ? .permissionDenied : .failed, error.description,
          remedy: "see whether `xl list` works on this host")
      }
      if !contents.isSilent, let asked = contents.asked, now - asked >= Self.silence {
        contents.isSilent = true
        contents.feeds.lose(reason: "xenstored does not answer")
      }
      let late = contents.waiters.filter { $0.deadline <= now }
      contents.waiters.removeAll { $0.deadline <= now }
      return (contents.inventory.isAnyDue, late)
    }
  }

  /// Asks xenstored whatever there is to ask. It may keep this thread waiting for ever.
  private func askStore(_ follower: inout XenStoreFollower) {
    let now = started.duration(to: .now)
    contents.withLock { contents in
      contents.begun += 1
      contents.asked = now
    }
    let hints = follower.takeHints(at: now)
    // What changes among the hypervisor's domains, the other thread's looks find.
    if !contents.withLock({ $0.inventory.take(hints) }) { look(after: hints) }
    var due = contents.withLock { contents in
      contents.note(follower, at: now)
      return contents.inventory.due
    }[...]
    while !due.isEmpty, case .connected = follower.state {
      let readings = follower.read(due.prefix(Self.readingsAtOnce))
      due = due.dropFirst(Self.readingsAtOnce)
      let now = started.duration(to: .now)
      contents.withLock { contents in
        contents.inventory.take(readings, at: now)
        contents.note(follower, at: now)
      }
    }
    let answered = contents.withLock { contents in
      contents.ended = contents.begun
      contents.asked = nil
      contents.isSilent = false
      contents.tellNews()
      let answered = contents.waiters.filter { $0.round <= contents.ended }
      contents.waiters.removeAll { $0.round <= contents.ended }
      return answered
    }
    for waiter in answered { waiter.continuation.resume() }
    firstRound.ring()
  }

  private func startThread(
    _ name: String, _ turn: @escaping @Sendable (XenProbe) -> Waiting?
  ) throws(ProbeError) {
    let watcher = Watcher(self, name, turn)
    let error = DetachedThread.start { watcher.run() }
    guard error == 0 else {
      throw ProbeError(
        .failed, "cannot start a thread: \(describeError(error))", remedy: "allow the process more threads")
    }
  }

  /// What a thread waits for. The probe is not kept alive by its threads.
  fileprivate struct Waiting {
    var bell: WakeUp
    var hints: CInt = -1
    var milliseconds: CInt

    func wait() {
      var descriptors = [
        pollfd(fd: bell.descriptor, events: Int16(POLLIN), revents: 0),
        pollfd(fd: hints, events: Int16(POLLIN), revents: 0),
      ]
      // SAFETY: two structures, as is said; a negative descriptor is passed over.
      _ = unsafe poll(&descriptors, 2, milliseconds)
      // A hint comes with others: one look for all of them, unless somebody waits. And a descriptor that stays readable must not make this thread spin.
      if descriptors[1].revents != 0, descriptors[0].revents == 0 {
        // SAFETY: the first of them.
        _ = unsafe poll(&descriptors, 1, CInt(XenProbe.hintPause.wholeNanoseconds / 1_000_000))
      }
      bell.drain()
    }
  }

  /// Looks; nil when the probe is closed.
  fileprivate func lookAndPrepareToWait() -> Waiting? {
    look()
    guard !contents.withLock({ $0.isClosed }) else { return nil }
    return Waiting(
      bell: wakeUp, milliseconds: CInt(clamping: max(1, configuration.pollInterval.wholeNanoseconds / 1_000_000)))
  }

  /// Asks xenstored; nil when the probe is closed. A connection that breaks is found without a hint.
  fileprivate func askAndPrepareToWait() -> Waiting? {
    guard !contents.withLock({ $0.isClosed }) else { return nil }
    follower.withLock { askStore(&$0) }
    return Waiting(
      bell: storeWakeUp, hints: contents.withLock { $0.hints },
      milliseconds: CInt(clamping: XenStoreFollower.reconnectPause.wholeNanoseconds / 1_000_000))
  }
}

extension XenProbe.Contents {
  fileprivate mutating func tellNews() {
    let news = inventory.takeNews()
    for change in news.changes { feeds.send(change) }
    for reason in news.gaps { feeds.lose(reason: reason) }
  }

  /// Takes notice of how the connection stands, and that there was an answer.
  fileprivate mutating func note(_ follower: XenStoreFollower, at now: Duration) {
    inventory.note(follower.state)
    hints = follower.descriptor
    asked = now
  }
}

/// What one of the probe's threads has of the probe.
private final class Watcher: Sendable {
  private struct WeakProbe {
    weak var probe: XenProbe?
  }

  private let probe: Mutex<WeakProbe>
  private let name: String
  private let turn: @Sendable (XenProbe) -> XenProbe.Waiting?

  init(_ probe: XenProbe, _ name: String, _ turn: @escaping @Sendable (XenProbe) -> XenProbe.Waiting?) {
    self.probe = Mutex(WeakProbe(probe: probe))
    self.name = name
    self.turn = turn
  }

  func run() {
    // SAFETY: the name is handed over as a string that ends in zero and lives during the call.
    unsafe vmfence_name_thread(name)
    while let waiting = probe.withLock({ $0.probe }).flatMap(turn) { waiting.wait() }
  }
}
