import Glibc
import Synchronization
import TestSupport
import Testing
import VMFenceCore
import VMFenceTestKit

/// Takes nothing until it is told to, and counts how often it was asked for a change.
private final class FullFirewall: FirewallSink {
  let inner = RecordingFirewallSink()
  let asked = Mutex(0)
  let isFull = Mutex(true)

  func apply(_ change: FirewallChange) async throws(FirewallError) -> UInt64 {
    asked.withLock { $0 += 1 }
    if isFull.withLock(\.self) { throw FirewallError(.failed, "Device or resource busy") }
    return try await inner.apply(change)
  }

  func replace(with measures: [FirewallMeasure], at time: Timestamp) async throws(FirewallError) -> UInt64 {
    try await inner.replace(with: measures, at: time)
  }

  func readBack(at time: Timestamp) async throws(FirewallError) -> FirewallState { try await inner.readBack(at: time) }
  func acknowledgements() async -> AsyncStream<FirewallAcknowledgement> { await inner.acknowledgements() }
}

/// A log whose disk does not answer until it is told to.
private final class HangingLog: DecisionLog {
  let memory = MemoryDecisionLog()
  let syncs = Mutex(0)
  private let isReady = Mutex(false)

  func append(_ decisions: [Decision]) throws(DecisionLogError) { try memory.append(decisions) }
  func sync() throws(DecisionLogError) {
    syncs.withLock { $0 += 1 }
    while !isReady.withLock(\.self) { usleep(1_000) }
  }
  func compact(to decisions: [Decision]) throws(DecisionLogError) { try memory.compact(to: decisions) }
  func go() { isReady.withLock { $0 = true } }
}

private final class Box: Sendable {
  let decisions = Mutex<[Decision]>([])
}

@Suite("What the firewall does not take")
struct FirewallRetryTests {
  private let events = RecordingEventSink()
  private let log = MemoryDecisionLog()

  private var platform: [PlatformAlert.Kind] {
    events.events.compactMap { if case .platform(let alert) = $0 { alert.kind } else { nil } }
  }

  private func make(
    _ firewall: any FirewallSink, log: (any DecisionLog)? = nil, control: (any HypervisorControl)? = nil,
    change: (inout Policy) -> Void = { _ in }
  ) throws -> EnforcementCoordinator {
    EnforcementCoordinator(
      updater: try updater(
        rule(count: 1, ladder: [LadderStep(.block, for: .seconds(3_600))]),
        rule("files", [.files([])], per: .domain, count: 1, ladder: [LadderStep(.pause)]), change: change),
      log: log ?? self.log, firewall: firewall, control: control, events: events, actionPatience: .seconds(60))
  }

  @Test("is tried again after pauses that grow to half a minute, said once, and counted each time")
  func backoff() async throws {
    let firewall = FullFirewall()
    let coordinator = try make(firewall)
    #expect(await coordinator.handle(alert(), at: at(0)).map(\.status) == [.desired])
    var tries: [Int] = []
    for second in 1...120 {
      let before = firewall.asked.withLock(\.self)
      await coordinator.advance(to: at(Double(second)))
      if firewall.asked.withLock(\.self) > before { tries.append(second) }
    }
    #expect(tries == [1, 3, 7, 15, 31, 61, 91])
    #expect(platform == [.enforcementFailed])
    #expect(await coordinator.refusedChanges == 8)
    #expect(await coordinator.firewallProblem == "Device or resource busy (8 times so far; it is tried again)")
    firewall.isFull.withLock { $0 = false }
    #expect(await coordinator.advance(to: at(121)).map(\.status) == [.enforced])
    #expect(await coordinator.firewallProblem == nil)
    #expect(try await firewall.inner.readBack(at: at(121)).measures.count == 1)
    // The next time begins anew.
    firewall.isFull.withLock { $0 = true }
    await coordinator.handle(alert(from: address("203.0.113.8")), at: at(200))
    firewall.isFull.withLock { $0 = false }
    #expect(await coordinator.advance(to: at(201)).map(\.status) == [.enforced])
    #expect(platform == [.enforcementFailed, .enforcementFailed])
  }

  @Test("is tried again while the log's disk is waited for")
  func slowDisk() async throws {
    let (firewall, log) = (FullFirewall(), HangingLog())
    let coordinator = try make(firewall, log: log)
    await coordinator.handle(alert(), at: at(0))
    let first = Task { await coordinator.advance(to: at(0.5)) }
    defer { log.go() }
    try #require(await comesTrueSuspending { log.syncs.withLock(\.self) == 1 })
    firewall.isFull.withLock { $0 = false }
    let settled = Box()
    Task {
      let decisions = await coordinator.advance(to: at(1))
      settled.decisions.withLock { $0 = decisions }
    }
    #expect(await comesTrueSuspending { settled.decisions.withLock { $0.map(\.status) } == [.enforced] })
    #expect(log.syncs.withLock(\.self) == 1)
    log.go()
    _ = await first.value
    // What came meanwhile is made durable the next time.
    await coordinator.advance(to: at(2))
    #expect(log.syncs.withLock(\.self) == 2)
  }

  @Test("keeps no domain from being paused")
  func pauses() async throws {
    let firewall = FussyFirewall(inner: RecordingFirewallSink(), refused: [.block(network("203.0.113.7"))])
    let control = RecordingControl()
    control.failure.withLock { $0 = ProbeError(.failed, "not now") }
    let coordinator = try make(firewall, control: control) { $0.destructiveMeasures = .allowed }
    #expect(
      await coordinator.handle([alert(), fileEvent()], at: at(0)).map(\.status) == [.desired, .desired])
    control.failure.withLock { $0 = nil }
    #expect(await coordinator.advance(to: at(1)).map(\.measure) == [.pause])
    #expect(control.calls.withLock { $0 } == ["pause 1"])
    #expect(await coordinator.waitingForFirewall.map(\.id) == [1])
  }

  @Test("does not wait any more once its time is over, though the firewall takes others as little")
  func expired() async throws {
    let firewall = FussyFirewall(
      inner: RecordingFirewallSink(),
      refused: [.block(network("203.0.113.7")), .block(network("203.0.113.8"))])
    let coordinator = try make(firewall)
    for (source, seconds) in [("203.0.113.7", 60), ("203.0.113.8", 3_600)] {
      try await coordinator.block(
        network(source), for: nil, duration: .seconds(seconds), reason: "r", at: at(0))
    }
    #expect(await coordinator.waitingForFirewall.count == 2)
    await coordinator.advance(to: at(60))
    #expect(await coordinator.waitingForFirewall.map(\.id) == [2])
  }

  @Test("does not keep another out for good, however much of it there is")
  func many() async throws {
    let count: UInt32 = 1_100
    let sources = (0..<count).map { IPAddress(v4: 0xC612_0000 + $0) }
    let inner = RecordingFirewallSink()
    let coordinator = try make(
      FussyFirewall(inner: inner, refused: Set(sources.map { .block(IPNetwork($0)) }))
    ) { $0.measuresPerMinute = 100_000 }
    let batch = sources.map { alert(from: $0) } + [alert(from: attacker)]
    #expect(await coordinator.handle(batch, at: at(0)).allSatisfy { $0.status == .desired })
    await coordinator.advance(to: at(1))
    await coordinator.advance(to: at(3))
    #expect(try await inner.readBack(at: at(3)).measures.map(\.key.kind) == [.block(IPNetwork(attacker))])
    #expect(await coordinator.waitingForFirewall.count == Int(count))
    #expect(platform == [.enforcementFailed])
  }
}

@Suite("What there is no room for any more")
struct SurplusTests {
  private let events = RecordingEventSink()
  private let log = MemoryDecisionLog()

  private var told: [Decision] {
    events.events.compactMap { if case .decision(let decision) = $0 { decision } else { nil } }
  }

  private func start(
    at time: Timestamp, on firewall: RecordingFirewallSink, measures: Int = 2, pending: Int = 2
  ) throws -> EnforcementCoordinator {
    var updater = try updater(
      rule(count: 1), rule("files", [.files([])], per: .domain, count: 1, ladder: [LadderStep(.pause)])
    ) { $0.capacities = .init(measures: measures, pending: pending) }
    let lifted = updater.restore(log.decisions, at: time)
    return EnforcementCoordinator(updater: updater, log: log, firewall: firewall, events: events, lifted: lifted)
  }

  @Test("of what stood, what would end first ends with the start, told once each; the firewall and the log agree")
  func measures() async throws {
    let firewall = RecordingFirewallSink()
    let before = try start(at: at(0), on: firewall, measures: 100)
    for (index, seconds) in [300, 100, 400, 200, 20].enumerated() {
      try await before.block(
        network("203.0.113.\(index + 1)"), for: nil, duration: .seconds(seconds), reason: "r", at: at(0))
    }
    _ = events.take()
    // One has run out, so that four stand.
    let after = try start(at: at(30), on: firewall)
    try await after.reconcile(at: at(30))
    let kinds = await after.measuresInForce.map(\.key.kind)
    #expect(kinds == [.block(network("203.0.113.1")), .block(network("203.0.113.3"))])
    #expect(try await firewall.readBack(at: at(30)).measures.map(\.key.kind) == kinds)
    #expect(told.map(\.trigger) == ["decision 5", "decision 2", "decision 4"])
    #expect(told.suffix(2).allSatisfy { $0.status == .expired && $0.reason.contains("no more than 2 measures") })
    let alerts = events.events.compactMap { event -> PlatformAlert? in
      if case .platform(let alert) = event, alert.kind == .enforcementFailed { alert } else { nil }
    }
    #expect(alerts.map(\.count) == [2])
    #expect(await after.statistics.surplus == 2)
    _ = events.take()
    // With more room again nothing comes back that was told as ended.
    let last = try start(at: at(31), on: firewall, measures: 100)
    #expect(try await last.reconcile(at: at(31)).isEmpty)
    #expect(await last.measuresInForce.map(\.key.kind) == kinds)
    #expect(events.events.isEmpty)
  }

  @Test("of what waited for the administrator, the last is withheld, and told")
  func pending() async throws {
    let firewall = RecordingFirewallSink()
    let before = try start(at: at(0), on: firewall, pending: 100)
    for guest in 1...3 as ClosedRange<UInt64> { await before.handle(fileEvent(on: guest), at: at(0)) }
    _ = events.take()
    let after = try start(at: at(1), on: firewall)
    try await after.reconcile(at: at(1))
    #expect(await after.pending.map(\.id) == [1, 2])
    #expect(told.map(\.id) == [3] && told.map(\.status) == [.withheld])
    #expect(log.decisions.last == told.last)
    let last = try start(at: at(2), on: firewall, pending: 100)
    #expect(await last.pending.map(\.id) == [1, 2])
  }
}
