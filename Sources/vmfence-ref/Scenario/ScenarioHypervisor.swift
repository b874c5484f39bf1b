#if Daemon
import Synchronization
import VMFenceCore

/// The hypervisor of a scenario: the domains live as the file says, while the time is moved forward.
final class ScenarioHypervisor: HypervisorProbe, HypervisorControl {
  private struct State {
    var now: Timestamp
    var sequence: UInt64 = 0
    var domains: [Incarnation: DomainDescription] = [:]
    var isShuttingDown = false
    var subscribers: [Int: AsyncStream<InventoryChange>.Continuation] = [:]
    var nextSubscriber = 0
    var steps: ArraySlice<Step>
  }

  struct Step {
    var at: Timestamp
    var domain: ScenarioDomain
    var step: ScenarioStep
  }

  private let state: Mutex<State>
  /// Changes that a subscriber may leave unread before it gets a gap.
  private static let backlog = 1024

  init(_ scenario: Scenario, start: Timestamp) {
    let steps = scenario.domains.flatMap { domain in
      domain.lifecycle.map { Step(at: start + $0.at, domain: domain, step: $0) }
    }
    // Stable: what happens at one moment happens in the order of the file.
    let sorted = steps.enumerated().sorted { ($0.element.at, $0.offset) < ($1.element.at, $1.offset) }.map(\.element)
    state = Mutex(State(now: start, steps: sorted[...]))
  }

  /// When the next thing happens; nil when nothing is left.
  var nextStep: Timestamp? { state.withLock { $0.steps.first?.at } }

  /// Lets everything happen that is due.
  ///
  /// - Returns: the steps taken.
  func advance(to time: Timestamp) -> [Step] {
    state.withLock { state in
      state.now = max(state.now, time)
      var taken: [Step] = []
      while let step = state.steps.first, step.at <= time {
        state.steps.removeFirst()
        taken.append(step)
        Self.take(step, &state)
      }
      if !taken.isEmpty { Self.announce(&state) }
      return taken
    }
  }

  private static func take(_ step: Step, _ state: inout State) {
    let present = state.domains.keys.filter { $0.uuid == step.domain.uuid }.sorted()
    func change(_ body: (inout DomainDescription) -> Void) {
      for incarnation in present {
        state.domains[incarnation].map {
          var copy = $0; body(&copy); state.domains[incarnation] = copy
        }
      }
    }
    switch step.step.event {
    case .created, .migratedIn:
      let number = step.step.domainID ?? step.domain.domainID
      let incarnation = Incarnation(uuid: step.domain.uuid, domainID: number)
      state.domains[incarnation] = DomainDescription(
        incarnation: incarnation, name: step.domain.name, tenant: step.domain.tenant,
        serviceType: step.domain.serviceType, ports: step.step.ports ?? step.domain.ports,
        disks: step.domain.disk.map { [VirtualDisk(device: $0.device, source: $0.image)] } ?? [])
    case .configured: break
    case .blocked: change { $0.runState = .blocked }
    case .running, .resumed:
      change {
        $0.runState = .running; $0.cpuTime += .milliseconds(1)
      }
    case .paused: change { $0.runState = .paused }
    case .crashed: change { $0.runState = .crashed }
    case .shutDown: change { $0.runState = .shutDown }
    case .migratedAway, .destroyed: for incarnation in present { state.domains[incarnation] = nil }
    }
  }

  private static func announce(_ state: inout State) {
    let change = InventoryChange.snapshot(snapshot(&state))
    for (id, subscriber) in state.subscribers {
      // Snapshots supersede one another: one that falls out of a full buffer is no loss of knowledge, the newest stays.
      if case .terminated = subscriber.yield(change) { state.subscribers[id] = nil }
    }
  }

  private static func snapshot(_ state: inout State) -> InventorySnapshot {
    state.sequence += 1
    return InventorySnapshot(
      time: state.now, sequence: state.sequence,
      domains: state.domains.values.sorted { $0.incarnation < $1.incarnation },
      isPlatformShuttingDown: state.isShuttingDown)
  }

  /// The present snapshot, without waiting.
  func look() -> InventorySnapshot { state.withLock { Self.snapshot(&$0) } }

  // MARK: HypervisorProbe

  func snapshot() async throws(ProbeError) -> InventorySnapshot { look() }

  func changes() async -> AsyncStream<InventoryChange> {
    let (stream, continuation) = AsyncStream.makeStream(
      of: InventoryChange.self, bufferingPolicy: .bufferingNewest(Self.backlog))
    state.withLock {
      $0.subscribers[$0.nextSubscriber] = continuation
      $0.nextSubscriber += 1
    }
    return stream
  }

  // MARK: HypervisorControl

  func pause(_ domain: Incarnation) async throws(ProbeError) { try set(domain, .paused) }
  func resume(_ domain: Incarnation) async throws(ProbeError) { try set(domain, .running) }
  func shutDown(_ domain: Incarnation) async throws(ProbeError) { try set(domain, .shutDown) }

  private func set(_ domain: Incarnation, _ runState: RunState) throws(ProbeError) {
    let isThere = state.withLock { state in
      guard state.domains[domain] != nil else { return false }
      state.domains[domain]?.runState = runState
      Self.announce(&state)
      return true
    }
    if !isThere { throw ProbeError(.noSuchDomain, "there is no domain \(domain)") }
  }
}
#endif
