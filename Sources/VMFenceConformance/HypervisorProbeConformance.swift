public import Testing
public import VMFenceCore

/// Makes things happen on the host that a probe looks at, for `HypervisorProbeConformance`. An adapter's author writes one for the
/// host of the adapter: a real one, or a fake of the hypervisor's interface.
public protocol HypervisorDriver: Sendable {
  var probe: any HypervisorProbe { get }
  /// nil when the adapter only looks.
  var control: (any HypervisorControl)? { get }

  /// Makes a domain that runs, and says what the probe must report of it. Called with 0, 1, 2 …; each has another UUID.
  func create(_ number: Int) async throws -> DomainDescription
  /// Takes it off the host, in whatever state it is.
  func destroy(_ domain: Incarnation) async throws
  /// Brings a domain into a run state.
  ///
  /// - Returns: false when this host cannot do that; then what needs it is not checked.
  func bring(_ domain: Incarnation, to state: RunState) async throws -> Bool
  /// Makes more changes than a subscriber may have waiting, all of them to `domain`, which runs again afterwards.
  ///
  /// - Returns: false when this host cannot do that.
  func overflow(_ domain: Incarnation) async throws -> Bool
  /// Shuts the platform down. The last call.
  ///
  /// - Returns: false when this host cannot do that.
  func shutDownPlatform() async throws -> Bool
}

/// What every `HypervisorProbe` (and `HypervisorControl`, if there is one) must do, checked from outside. Call it inside a `@Test`:
///
///     @Test func isAProbe() async throws {
///       try await HypervisorProbeConformance().check { try await MyDriver() }
///     }
///
/// A failure's text begins with the requirement that is not met.
public struct HypervisorProbeConformance: Sendable {
  /// How long a notification may take.
  public var patience: Duration

  public init(patience: Duration = .seconds(10)) { self.patience = patience }

  /// `make`: makes a driver whose host has no domains besides Dom0. Called several times, one after the other.
  public func check(
    sourceLocation: SourceLocation = #_sourceLocation, _ make: () async throws -> any HypervisorDriver
  ) async throws {
    try await checkSnapshots(try await make(), sourceLocation)
    try await checkChanges(try await make(), sourceLocation)
    try await checkGaps(try await make(), sourceLocation)
    try await checkControl(try await make(), sourceLocation)
    try await checkShutdown(try await make(), sourceLocation)
  }

  // MARK: Snapshots

  private func checkSnapshots(_ driver: any HypervisorDriver, _ location: SourceLocation) async throws {
    let probe = driver.probe
    var last = try await probe.snapshot()
    #expect(
      last.domains.isEmpty, "a snapshot of a host without guests is empty (Dom0 excluded)", sourceLocation: location)
    #expect(!last.isPlatformShuttingDown, "a platform that is up is not shutting down", sourceLocation: location)
    var expected: [DomainDescription] = []
    func look(_ what: Comment) async throws {
      let snapshot = try await probe.snapshot()
      #expect(snapshot.sequence > last.sequence, "the sequence rises with each snapshot", sourceLocation: location)
      #expect(snapshot.time >= last.time, "time does not go back", sourceLocation: location)
      #expect(snapshot.levels == Self.levels(expected), what, sourceLocation: location)
      #expect(
        snapshot.domains.count == expected.count, "a snapshot lists each domain once", sourceLocation: location)
      last = snapshot
    }
    for number in 0..<3 {
      expected.append(try await driver.create(number))
      try await look("a snapshot shows a domain as soon as it is there, with all that identifies it")
    }
    var next = expected.count
    for state in RunState.allCases {
      guard try await driver.bring(expected[1].incarnation, to: state) else { continue }
      expected[1].runState = state
      try await look("a snapshot shows the run state \(state)")
      if state.isFinal {
        try await driver.destroy(expected[1].incarnation)
        expected.remove(at: 1)
        try await look("a snapshot does not show a domain that is gone")
        expected.insert(try await driver.create(next), at: 1)
        next += 1
        try await look("a snapshot shows a domain that came after another was gone")
      }
    }
    for domain in expected { try await driver.destroy(domain.incarnation) }
    expected = []
    try await look("a snapshot does not show domains that are gone")
  }

  // MARK: Changes

  private func checkChanges(_ driver: any HypervisorDriver, _ location: SourceLocation) async throws {
    let early = try await driver.create(0)
    let subscribers = [
      ChangeCollector(await driver.probe.changes()), ChangeCollector(await driver.probe.changes()),
    ]
    for subscriber in subscribers { subscriber.assume(try await driver.probe.snapshot()) }
    var expected = [early]
    func agree(_ what: Comment) async throws {
      let wanted = Self.levels(expected)
      for subscriber in subscribers where !(await subscriber.waits(patience) { $0.levels == wanted }) {
        #expect(subscriber.levels == wanted, what, sourceLocation: location)
      }
    }
    expected.append(try await driver.create(1))
    try await agree("every subscriber is told of a domain that appears")
    for state in [RunState.paused, .running, .blocked, .suspendedForMigration, .running, .crashed] {
      guard try await driver.bring(expected[1].incarnation, to: state) else { continue }
      expected[1].runState = state
      try await agree("every subscriber is told that a domain is \(state)")
    }
    try await driver.destroy(expected[1].incarnation)
    expected.removeLast()
    try await agree("every subscriber is told that a domain is gone")
    for subscriber in subscribers { subscriber.cancel() }
    let late = ChangeCollector(await driver.probe.changes())
    late.assume(try await driver.probe.snapshot())
    expected.append(try await driver.create(2))
    let wanted = Self.levels(expected)
    let agrees = await late.waits(patience) { $0.levels == wanted }
    #expect(agrees, "a subscriber that left does not disturb one that came later", sourceLocation: location)
    late.cancel()
  }

  private func checkGaps(_ driver: any HypervisorDriver, _ location: SourceLocation) async throws {
    let domain = try await driver.create(0)
    let stream = await driver.probe.changes()
    guard try await driver.overflow(domain.incarnation) else { return }
    let late = try await driver.create(1)
    // Nobody read until now.
    let subscriber = ChangeCollector(stream)
    let wanted = Self.levels([domain, late])
    let agrees = await subscriber.waits(patience) { $0.levels == wanted && $0.owedSnapshots == 0 }
    #expect(subscriber.sawGap, "who is too slow gets a gap", sourceLocation: location)
    #expect(subscriber.owedSnapshots == 0, "a gap is followed by a snapshot", sourceLocation: location)
    #expect(agrees, "after a gap and its snapshot, what was told is what is so", sourceLocation: location)
    subscriber.cancel()
  }

  private func checkShutdown(_ driver: any HypervisorDriver, _ location: SourceLocation) async throws {
    let subscriber = ChangeCollector(await driver.probe.changes())
    guard try await driver.shutDownPlatform() else {
      subscriber.cancel()
      return
    }
    let ended = await subscriber.waits(patience) { $0.hasEnded }
    #expect(ended, "the stream ends when the platform shuts down", sourceLocation: location)
    #expect(subscriber.sawShutdown, "the shutdown is told before the stream ends", sourceLocation: location)
    let again = ChangeCollector(await driver.probe.changes())
    let endsAtOnce = await again.waits(patience) { $0.hasEnded }
    #expect(endsAtOnce, "a stream of a platform that is down ends", sourceLocation: location)
    subscriber.cancel()
    again.cancel()
  }

  // MARK: Control

  private func checkControl(_ driver: any HypervisorDriver, _ location: SourceLocation) async throws {
    guard let control = driver.control else { return }
    let domain = try await driver.create(0)
    let incarnation = domain.incarnation
    func isSeen(_ what: Comment, _ holds: (RunState?) -> Bool) async throws {
      var state: RunState?
      let isSo = try await Looks.until(patience) {
        state = try await driver.probe.snapshot().domains.first { $0.incarnation == incarnation }?.runState
        return holds(state)
      }
      if !isSo { Issue.record("\(what): it is \(state.map { "\($0)" } ?? "gone")", sourceLocation: location) }
    }
    try await control.pause(incarnation)
    try await isSeen("pause pauses") { $0 == .paused }
    try await control.resume(incarnation)
    try await isSeen("resume ends a pause") { $0 == .running || $0 == .blocked }
    try await control.shutDown(incarnation)
    try await isSeen("shutDown ends the domain") { $0?.isFinal ?? true }

    let nobody = Incarnation(uuid: DomainUUID(high: .max, low: .max), domainID: DomainID(32_000))
    for (name, act) in [("pause", control.pause), ("resume", control.resume), ("shutDown", control.shutDown)] {
      do throws(ProbeError) {
        try await act(nobody)
        Issue.record("\(name) of a domain that does not exist fails", sourceLocation: location)
      } catch {
        #expect(error.code == .noSuchDomain, "\(name) of nobody says `noSuchDomain`", sourceLocation: location)
        #expect(
          !error.message.isEmpty && !error.remedy.isEmpty,
          "an error says what happened and what to do",
          sourceLocation: location)
      }
    }
  }

  /// What is compared of each domain: everything but the CPU time, which goes on by itself.
  static func levels(_ domains: [DomainDescription]) -> [Incarnation: DomainDescription] {
    var levels: [Incarnation: DomainDescription] = [:]
    for domain in domains {
      levels[domain.incarnation] = domain
      levels[domain.incarnation]?.cpuTime = .zero
    }
    return levels
  }
}

extension InventorySnapshot {
  fileprivate var levels: [Incarnation: DomainDescription] { HypervisorProbeConformance.levels(domains) }
}
