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
/// A thread of its own looks; `snapshot` looks at once, on the caller's thread. Safe to use from any thread.
///
/// Limits: backends in Dom0 only (what a driver domain serves is not seen); `tenant` and `serviceType` are not Xen's to say, and stay nil.
public final class XenProbe: HypervisorProbe {
  public struct Configuration: Hashable, Sendable {
    /// The longest time between two looks at the hypervisor's list.
    public var pollInterval: Duration
    /// What is kept of xenstore is no older than about this, even without a hint.
    public var refreshInterval: Duration
    /// Changes that wait for one subscriber; when one more comes, they are lost, and it gets a gap.
    public var subscriberCapacity: Int

    public init(
      pollInterval: Duration = .milliseconds(50), refreshInterval: Duration = .seconds(30),
      subscriberCapacity: Int = 4096
    ) {
      self.pollInterval = max(pollInterval, .milliseconds(1))
      self.refreshInterval = max(refreshInterval, .milliseconds(100))
      self.subscriberCapacity = subscriberCapacity
    }
  }

  private struct Contents {
    var inventory: XenInventory
    var isClosed = false
    var isShuttingDown = false
    var sequence: UInt64 = 0
    var lastTime = Timestamp(nanoseconds: .min)
    var feeds = ChangeFeeds()
    var failure: ProbeError?
  }

  /// The shortest time between two looks that hints ask for.
  private static let hintPause: Duration = .milliseconds(5)

  private let configuration: Configuration
  private let clock: any TimeSource
  /// Intervals go by a clock that does not jump.
  private let started = ContinuousClock.now
  private let contents: Mutex<Contents>
  private let wakeUp: WakeUp

  private init(
    _ configuration: Configuration, _ clock: any TimeSource, _ inventory: consuming XenInventory
  ) throws(ProbeError) {
    self.configuration = configuration
    self.clock = clock
    contents = Mutex(Contents(inventory: inventory))
    do throws(SystemFailure) { wakeUp = try WakeUp() } catch {
      throw ProbeError(.failed, error.description, remedy: "allow the process more open files")
    }
  }

  deinit { close() }

  /// Connects to the hypervisor and to xenstored, and begins to look.
  ///
  /// - `clock`: gives the times of snapshots.
  /// - Throws: `unavailable` when there is no Xen, this is not Dom0, or Xen's release is not known; `permissionDenied`.
  public static func open(clock: any TimeSource, configuration: Configuration = Configuration()) throws(ProbeError)
    -> XenProbe
  {
    try open(clock: clock, configuration: configuration, on: try XenInterface.open(on: try XenHost.find()))
  }

  /// The same over an interface that is open already.
  package static func open(
    clock: any TimeSource, configuration: Configuration = Configuration(), on hypervisor: XenInterface
  ) throws(ProbeError) -> XenProbe {
    let probe = try open(
      clock: clock, configuration: configuration, hypervisor: hypervisor, connect: XenStoreConnection.connect,
      // SAFETY: the name is handed over as a string that ends in zero and lives during the call.
      interfaceExists: { unsafe if_nametoindex($0) != 0 })
    if let failure = probe.contents.withLock({ $0.inventory.storeFailure }) { throw failure }
    return probe
  }

  /// The same with another hypervisor and another xenstore.
  package static func open(
    clock: any TimeSource, configuration: Configuration = Configuration(), hypervisor: any XenHypervisor,
    connect: @escaping XenInventory.Connect, interfaceExists: @escaping @Sendable (String) -> Bool
  ) throws(ProbeError) -> XenProbe {
    let inventory = XenInventory(
      hypervisor: hypervisor, connect: connect, interfaceExists: interfaceExists,
      refreshInterval: configuration.refreshInterval)
    let probe = try XenProbe(configuration, clock, inventory)
    probe.look()
    try probe.startThread()
    return probe
  }

  /// What is wrong now: with the way to the hypervisor or to xenstored, or with what is written about a domain.
  public var problems: [Diagnostic] {
    contents.withLock { contents in
      (contents.failure.map { [$0.diagnostic] } ?? []) + contents.inventory.problems
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
    }
    wakeUp.ring()
  }

  // MARK: HypervisorProbe

  /// - Throws: `failed` when the hypervisor cannot be asked.
  public func snapshot() async throws(ProbeError) -> InventorySnapshot {
    look()
    if let failure = contents.withLock({ $0.failure }) { throw failure }
    return takeSnapshot()
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

  /// Looks once, and tells the subscribers what is different.
  private func look() {
    contents.withLock { contents in
      guard !contents.isClosed else { return }
      do throws(SystemFailure) {
        let news = try contents.inventory.look(at: started.duration(to: .now))
        contents.failure = nil
        for change in news.changes { contents.feeds.send(change) }
        for reason in news.gaps { contents.feeds.lose(reason: reason) }
      } catch {
        if contents.failure == nil { contents.feeds.lose(reason: "the hypervisor could not be asked") }
        contents.failure = ProbeError(
          error.isPermission ? .permissionDenied : .failed, error.description,
          remedy: "see whether `xl list` works on this host")
      }
    }
  }

  private func startThread() throws(ProbeError) {
    let watcher = Watcher(self)
    let error = DetachedThread.start { watcher.run() }
    guard error == 0 else {
      throw ProbeError(
        .failed, "cannot start a thread: \(describeError(error))", remedy: "allow the process more threads")
    }
  }

  /// Waits for a hint, at most one poll interval. The probe is not kept alive by its thread.
  fileprivate struct Waiting {
    var store: CInt
    var bell: WakeUp
    var milliseconds: CInt

    func wait() {
      var descriptors = [
        pollfd(fd: bell.descriptor, events: Int16(POLLIN), revents: 0),
        pollfd(fd: store, events: Int16(POLLIN), revents: 0),
      ]
      // SAFETY: two structures, as is said; a negative descriptor is passed over.
      _ = unsafe poll(&descriptors, 2, milliseconds)
      // A hint comes with others: one look for all of them. And a descriptor that stays readable must not make this thread spin.
      if descriptors[1].revents != 0 { usleep(UInt32(XenProbe.hintPause.wholeNanoseconds / 1000)) }
    }
  }

  /// Looks; nil when the probe is closed.
  fileprivate func lookAndPrepareToWait() -> Waiting? {
    look()
    return contents.withLock { contents in
      contents.isClosed
        ? nil
        : Waiting(
          store: contents.inventory.descriptor, bell: wakeUp,
          milliseconds: CInt(clamping: max(1, configuration.pollInterval.wholeNanoseconds / 1_000_000)))
    }
  }
}

/// What the probe's thread has of the probe.
private final class Watcher: Sendable {
  private let probe: Mutex<WeakProbe>
  private struct WeakProbe {
    weak var probe: XenProbe?
  }

  init(_ probe: XenProbe) { self.probe = Mutex(WeakProbe(probe: probe)) }

  func run() {
    // SAFETY: the name is handed over as a string that ends in zero and lives during the call.
    unsafe vmfence_name_thread("vmfence-probe")
    while let waiting = probe.withLock({ $0.probe })?.lookAndPrepareToWait() { waiting.wait() }
  }
}
