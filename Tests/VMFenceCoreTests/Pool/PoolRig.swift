import Glibc
import Synchronization
import Testing
import ToyEngine
import VMFenceCore
import VMFenceTestKit

/// Detectors that are threads, or stand still, and die when a test says so.
final class MortalBackend: DetectorBackend {
  typealias Rules = ToyRules

  private struct State {
    var launched: [MortalDetector] = []
    var channel: DetectorChannel?
    var refusals = 0
    var startsStill = false
  }

  private let inner = ThreadDetectorBackend<ToyInspector>()
  private let state = Mutex(State())

  func makeChannel(_ configuration: DetectorChannelConfiguration) throws(DetectorError) -> DetectorChannel {
    let channel = try inner.makeChannel(configuration)
    state.withLock { $0.channel = channel }
    return channel
  }

  func launch(
    rules: ToyRules, channel: DetectorChannel, configuration: InspectorConfiguration
  ) throws(DetectorError) -> any DetectorHandle<ToyRules> {
    let (refuses, isStill) = state.withLock { state in
      defer { state.refusals = max(0, state.refusals - 1) }
      return (state.refusals > 0, state.startsStill)
    }
    if refuses {
      // As when there is no process to be had, which shows only then.
      _ = try DetectorSocket.pair().attach(to: channel, ruleCount: rules.ruleCount)
      channel.detach()
      throw DetectorError(.launchFailed, "refused", remedy: "wait")
    }
    let handle: any DetectorHandle<ToyRules> =
      isStill
      ? try StillDetector(rules, channel)
      : try inner.launch(rules: rules, channel: channel, configuration: configuration)
    let detector = MortalDetector(handle)
    state.withLock { $0.launched.append(detector) }
    return detector
  }

  /// The next launches fail.
  func refuse(_ count: Int) { state.withLock { $0.refusals = count } }

  /// Detectors that are launched from now on take nothing from their rings.
  var startsStill: Bool {
    get { state.withLock { $0.startsStill } }
    set { state.withLock { $0.startsStill = newValue } }
  }

  var launches: Int { state.withLock { $0.launched.count } }
  /// The detector that was launched last.
  var current: MortalDetector? { state.withLock { $0.launched.last } }
  /// The channel that was made last.
  var channel: DetectorChannel? { state.withLock { $0.channel } }
}

/// A detector that is attached to its channel and inspects nothing.
final class StillDetector: DetectorHandle {
  private let channel: DetectorChannel
  private let state = Mutex<(descriptor: Int32, isSuspended: Bool, isKilled: Bool)>((-1, false, false))

  init(_ rules: ToyRules, _ channel: DetectorChannel) throws(DetectorError) {
    self.channel = channel
    let descriptor = try DetectorSocket.pair().attach(to: channel, ruleCount: rules.ruleCount).releaseDescriptor()
    state.withLock { $0.descriptor = descriptor }
  }

  deinit { kill() }

  func suspend() throws(DetectorError) { state.withLock { $0.isSuspended = true } }
  func resume() throws(DetectorError) { state.withLock { $0.isSuspended = false } }
  func replaceRules(with rules: ToyRules) throws(DetectorError) -> UInt32 {
    channel.advanceGeneration(ruleCount: rules.ruleCount)
  }
  func kill() {
    let wasKilled = state.withLock { state in
      defer { state.isKilled = true }
      return state.isKilled
    }
    guard !wasKilled else { return }
    hangUp()
    channel.detach()
  }
  /// Ends its side of the conversation, and runs on.
  func hangUp() {
    let descriptor = state.withLock { state in
      defer { state.descriptor = -1 }
      return state.descriptor
    }
    // Not only closed: a process that another test is starting has a copy for an instant.
    if descriptor >= 0 {
      shutdown(descriptor, Int32(SHUT_RDWR))
      _ = DetectorSocket(adopting: descriptor)
    }
  }
  var status: DetectorStatus {
    state.withLock { $0.isKilled ? .killed : $0.isSuspended ? .suspended : .running }
  }
}

/// Passes everything on to a detector, until it dies.
final class MortalDetector: DetectorHandle {
  let inner: any DetectorHandle<ToyRules>
  private let fate = Mutex<DetectorStatus?>(nil)
  private let holding = Mutex((isHeld: false, isWanted: false))

  init(_ inner: any DetectorHandle<ToyRules>) { self.inner = inner }

  /// From now on it does not run when it is resumed, until it is let go.
  func hold() { holding.withLock { $0.isHeld = true } }
  func letGo() throws {
    let isWanted = holding.withLock { holding in
      defer { holding = (false, false) }
      return holding.isWanted
    }
    if isWanted { try inner.resume() }
  }

  /// Dies of something. What it has not answered stays so.
  func die(_ status: DetectorStatus) throws {
    try inner.suspend()
    fate.withLock { $0 = status }
  }

  private func checkAlive() throws(DetectorError) {
    if fate.withLock({ $0 }) != nil { throw DetectorError(.gone, "it is dead", remedy: "launch another") }
  }

  func suspend() throws(DetectorError) {
    try checkAlive()
    try inner.suspend()
  }
  func resume() throws(DetectorError) {
    try checkAlive()
    let isHeld = holding.withLock { holding in
      holding.isWanted = holding.isHeld
      return holding.isHeld
    }
    if !isHeld { try inner.resume() }
  }
  func replaceRules(with rules: ToyRules) throws(DetectorError) -> UInt32 {
    try checkAlive()
    return try inner.replaceRules(with: rules)
  }
  func kill() { inner.kill() }
  var status: DetectorStatus { fate.withLock { $0 } ?? inner.status }
}

/// A pool with a mock hypervisor in front of it, driven by the seconds of a test.
final class PoolRig {
  let backend = MortalBackend()
  let clock = VirtualClock()
  let mock: MockHypervisor
  let pool: DetectorPool<MortalBackend>
  let rules: RuleBook
  let keeper: StateKeeper

  /// Which rules a domain has, by its UUID's low half.
  final class RuleBook {
    var rules: [UInt64: ToyRules]
    init(_ rules: [UInt64: ToyRules]) { self.rules = rules }
  }

  /// What detectors of moved domains said, by their UUIDs' low halves; nil: it is out of date.
  final class StateKeeper {
    var kept: [(domain: UInt64, bytes: [UInt8]?)] = []
  }

  init(
    _ rules: [UInt64: ToyRules] = [1: ToyRules([(.alert, 7), (.drop, 9)])],
    _ configuration: DetectorPool<MortalBackend>.Configuration = .init(), keepsStates: Bool = false,
    savedState: [UInt8]? = nil
  ) {
    let book = RuleBook(rules)
    self.rules = book
    mock = MockHypervisor(clock: clock)
    let keeper = StateKeeper()
    self.keeper = keeper
    pool = DetectorPool(
      backend: backend, configuration: configuration, at: .zero, savedState: { _ in savedState },
      keepState: keepsStates ? { keeper.kept.append(($0.incarnation.uuid.low, $1)) } : nil
    ) {
      book.rules[$0.incarnation.uuid.low]
    }
  }

  static let smallRing = DetectorChannelConfiguration(
    packetRingBytes: 4096, verdictRingBytes: 16384, snapLength: 1500)

  func at(_ seconds: Double) { clock.advance(to: .at(seconds)) }

  func happen(_ step: MockHypervisor.Step, at seconds: Double) throws {
    at(seconds)
    if let change = try mock.perform(step) { pool.update(change, at: clock.now) }
  }

  func tick(at seconds: Double) {
    at(seconds)
    pool.tick(at: clock.now)
  }

  func slot(_ domain: DomainDescription) -> Int? {
    pool.members.first { $0.domain.incarnation == domain.incarnation }?.slot
  }

  func send(_ bytes: [UInt8], to domain: DomainDescription, at seconds: Double, count: Int = 1) {
    at(seconds)
    let slot = slot(domain) ?? -1
    for _ in 0..<count {
      bytes.withRawSpan {
        pool.deliver(
          to: slot, FrameMetadata(timestamp: .at(seconds), port: PortID(1), originalLength: UInt32(bytes.count)), $0)
      }
    }
  }

  func drain() { #expect(pool.drain(at: clock.now)) }

  func report(_ domain: DomainDescription) -> DomainReport? {
    pool.reports.first { $0.description.incarnation == domain.incarnation }
  }
  func state(_ domain: DomainDescription) -> LifecycleState? { report(domain)?.automaton?.state }
  func counters(_ domain: DomainDescription) -> DomainCounters { report(domain)?.counters ?? DomainCounters() }

  /// What happened since the last call, in short words.
  func words() -> [String] {
    pool.takeEvents().map { event in
      switch event {
      case .alert(let alert): "alert \(alert.packetID) \(alert.rule.message)"
      case .platform(let alert): alert.kind.name
      case .lifecycle(let report):
        switch report.kind {
        case .transition(let from, let event, let to): "\(from.paperName)×\(event.paperName)→\(to.paperName)"
        case .unexpected(let state, let event): "\(state.paperName)×\(event.paperName)?"
        case .configurationNeeded: "configure!"
        case .stuck(let state, _): "stuck \(state.paperName)"
        }
      case .file, .decision, .packet: "?"
      }
    }
  }
}
