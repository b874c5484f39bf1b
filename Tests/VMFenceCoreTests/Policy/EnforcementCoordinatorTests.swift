import Glibc
import NetworkTestSupport
import Synchronization
import TestSupport
import Testing
import VMFenceCore
import VMFenceTestKit

/// A log whose disk can be full, and that notes what the firewall held when it was written.
private final class ProbingLog: DecisionLog {
  let isFull = Mutex(false)
  let generations = Mutex<[UInt64]>([])
  let memory = MemoryDecisionLog()
  let firewall: RecordingFirewallSink

  init(_ firewall: RecordingFirewallSink) { self.firewall = firewall }

  func append(_ decisions: [Decision]) throws(DecisionLogError) {
    if isFull.withLock({ $0 }) { throw DecisionLogError(.full, "no space left") }
    generations.withLock { $0.append(firewall.generation) }
    try memory.append(decisions)
  }

  func sync() throws(DecisionLogError) {}
}

/// A log that is made anew on a disk that does not answer until it is told to.
private final class SlowLog: DecisionLog {
  let memory = MemoryDecisionLog()
  let isDue = Mutex(false)
  let begun = Mutex(0)
  let hasRoom = Mutex(true)
  private let doors = Mutex(0)

  func append(_ decisions: [Decision]) throws(DecisionLogError) { try memory.append(decisions) }
  func sync() throws(DecisionLogError) {}
  func compact(to decisions: [Decision]) throws(DecisionLogError) { try beginCompaction(to: decisions)() }

  func beginCompaction(
    to decisions: [Decision]
  ) throws(DecisionLogError) -> @Sendable () throws(DecisionLogError) -> Void {
    begun.withLock { $0 += 1 }
    isDue.withLock { $0 = false }
    let held = memory.decisions.count
    return { [self] () throws(DecisionLogError) in
      while !(doors.withLock { doors in
        defer { doors = max(0, doors - 1) }
        return doors > 0
      }) { usleep(1_000) }
      guard hasRoom.withLock(\.self) else { throw DecisionLogError(.full, "no space is left") }
      try memory.compact(to: decisions + memory.decisions.dropFirst(held))
    }
  }

  /// Lets one go on.
  func answer() { doors.withLock { $0 += 1 } }

  var isCompactionDue: Bool { isDue.withLock { $0 } }
}

@Suite("Enforcement")
struct EnforcementCoordinatorTests {
  private let firewall = RecordingFirewallSink()
  private let events = RecordingEventSink()
  private let control = RecordingControl()

  private func make(
    _ log: any DecisionLog = MemoryDecisionLog(), control: (any HypervisorControl)? = nil,
    files: LadderStep.Action = .pause, directory: DomainDirectory = hosts(), actionPatience: Duration = .seconds(60),
    change: (inout Policy) -> Void = { _ in }
  ) throws -> EnforcementCoordinator {
    EnforcementCoordinator(
      updater: try updater(
        rule(count: 1), rule("files", [.files([])], per: .domain, count: 1, ladder: [LadderStep(files)]),
        directory: directory, change: change),
      log: log, firewall: firewall, control: control, events: events, actionPatience: actionPatience)
  }

  private var held: [FirewallMeasureKind] {
    get async throws { try await firewall.readBack(at: at(0)).measures.map(\.key.kind) }
  }

  private var platform: [PlatformAlert.Kind] {
    events.events.compactMap { if case .platform(let alert) = $0 { alert.kind } else { nil } }
  }

  private var told: [Decision] {
    events.events.compactMap { if case .decision(let decision) = $0 { decision } else { nil } }
  }

  @Test("a decision is in the log before the firewall changes, and told afterwards")
  func order() async throws {
    let log = ProbingLog(firewall)
    let coordinator = try make(log)
    let decisions = await coordinator.handle(alert(), at: at(0))
    #expect(decisions.map(\.status) == [.enforced])
    #expect(log.generations.withLock { $0 } == [0])
    #expect(try await held == [.block(network("203.0.113.7"))])
    #expect(told == decisions)
    let lifted = await coordinator.advance(to: at(60))
    #expect(lifted.map(\.status) == [.expired])
    #expect(try await held.isEmpty)
    #expect(log.memory.decisions == decisions + lifted)
  }

  @Test("a change made by somebody else in between is no obstacle")
  func conflict() async throws {
    let coordinator = try make()
    _ = await coordinator.handle(alert(), at: at(0))
    _ = try await firewall.apply(FirewallChange(from: firewall.generation, time: at(1)))
    let decisions = await coordinator.handle(alert(from: address("203.0.113.8")), at: at(2))
    #expect(decisions.map(\.status) == [.enforced])
    #expect(try await held.count == 2)
  }

  @Test("what the firewall refuses is said, stays desired, and is in force after the next tick")
  func failure() async throws {
    let coordinator = try make()
    firewall.fail(with: FirewallError(.failed, "netlink: no buffer space"))
    #expect(await coordinator.handle(alert(), at: at(0)).map(\.status) == [.desired])
    #expect(await coordinator.waitingForFirewall.count == 1)
    #expect(try await held.isEmpty)
    let late = await coordinator.advance(to: at(1))
    #expect(late.map(\.status) == [.enforced])
    #expect(late.map(\.id) == [1])
    #expect(try await held.count == 1)
    #expect(platform == [.enforcementFailed])
    #expect(told.map(\.status) == [.desired, .enforced])
  }

  @Test("a lift that the firewall refused is made up for")
  func failedLift() async throws {
    let coordinator = try make()
    await coordinator.handle(alert(), at: at(0))
    firewall.tamper(
      adding: FirewallMeasure(
        scope: .domain(uuid(1)), kind: .block(network("203.0.113.7")), expires: nil, decision: 1))
    firewall.fail(with: FirewallError(.failed, "no"))
    await coordinator.advance(to: at(60))
    await coordinator.advance(to: at(61))
    #expect(try await held.isEmpty)
  }

  @Test("a measure that the firewall cannot express does not keep others out")
  func unsupported() async throws {
    let fussy = FussyFirewall(inner: firewall, refused: [.block(network("203.0.113.8"))])
    let coordinator = EnforcementCoordinator(
      updater: try updater(rule(count: 1)), log: MemoryDecisionLog(), firewall: fussy, events: events)
    let batch = [alert(), alert(from: address("203.0.113.8")), alert(from: address("203.0.113.9"))]
    #expect(await coordinator.handle(batch, at: at(0)).map(\.status) == [.desired, .desired, .desired])
    await coordinator.advance(to: at(1))
    #expect(try await held == [.block(network("203.0.113.7")), .block(network("203.0.113.9"))])
    #expect(await coordinator.waitingForFirewall.map(\.id) == [2])
    #expect(await coordinator.handle(alert(from: address("203.0.113.10")), at: at(2)).map(\.status) == [.enforced])
    await coordinator.advance(to: at(60))
    await coordinator.advance(to: at(61))
    #expect(await coordinator.waitingForFirewall.isEmpty)
    #expect(platform == [.enforcementFailed])
  }

  @Test("with a full disk measures are enforced, and marked unlogged")
  func fullDisk() async throws {
    let log = ProbingLog(firewall)
    let coordinator = try make(log)
    log.isFull.withLock { $0 = true }
    let decisions = await coordinator.handle(alert(), at: at(0))
    #expect(decisions.map(\.isLogged) == [false])
    #expect(decisions.map(\.status) == [.enforced])
    #expect(try await held.count == 1)
    await coordinator.handle(alert(from: address("203.0.113.8")), at: at(0))
    #expect(platform == [.logUnwritable], "said once")
    log.isFull.withLock { $0 = false }
    #expect(await coordinator.handle(alert(from: address("203.0.113.9")), at: at(0)).map(\.isLogged) == [true])
  }

  @Test("what somebody took out or put in is found, mended and said")
  func drift() async throws {
    let coordinator = try make()
    await coordinator.handle(alert(), at: at(0))
    #expect(try await coordinator.reconcile(at: at(1)).isEmpty)
    let key = FirewallMeasure.Key(scope: .domain(uuid(1)), kind: .block(network("203.0.113.7")))
    firewall.tamper(removing: key)
    let foreign = FirewallMeasure(scope: .host, kind: .block(network("198.51.100.0/24")), expires: nil, decision: 99)
    firewall.tamper(adding: foreign)
    let difference = try await coordinator.reconcile(at: at(2))
    #expect(difference.missing.map(\.key) == [key])
    #expect(difference.unexpected == [foreign])
    #expect(try await held == [key.kind])
    #expect(platform == [.firewallDrift])
  }

  @Test("after a restart the firewall gets what the log says")
  func restart() async throws {
    let log = MemoryDecisionLog()
    await (try make(log)).handle(alert(), at: at(0))
    let empty = RecordingFirewallSink()
    var updater = try updater(rule(count: 1))
    _ = updater.restore(log.decisions, at: at(5))
    let coordinator = EnforcementCoordinator(updater: updater, log: log, firewall: empty, events: events)
    #expect(try await coordinator.reconcile(at: at(5)).missing.count == 1)
    #expect(try await empty.readBack(at: at(5)).measures.map(\.expires) == [at(60)])
  }

  @Test("pausing waits for a yes, and is then done")
  func approve() async throws {
    let coordinator = try make(control: control)
    #expect(await coordinator.handle(fileEvent(), at: at(0)).map(\.status) == [.pending])
    #expect(control.calls.withLock { $0 }.isEmpty)
    #expect(try await coordinator.approve(1, at: at(1)).status == .enforced)
    #expect(control.calls.withLock { $0 } == ["pause 1"])
    await #expect(throws: PolicyError.self) { try await coordinator.approve(1, at: at(1)) }
  }

  @Test("a pause that fails is tried again, told once for each reason, and not called in force before it is")
  func pauseFails() async throws {
    let coordinator = try make(control: control) { $0.destructiveMeasures = .allowed }
    func statuses(at seconds: Double) async -> [Decision.Status] {
      await coordinator.explain(address("203.0.113.7"), for: incarnation(1), at: at(seconds)).offences
        .map(\.decision.status)
    }
    control.failure.withLock { $0 = ProbeError(.failed, "no") }
    #expect(await coordinator.handle(fileEvent(), at: at(0)).map(\.status) == [.desired])
    await coordinator.advance(to: at(1))
    await coordinator.advance(to: at(2))
    #expect(platform == [.enforcementFailed] && control.calls.withLock { $0 }.isEmpty)
    #expect(await statuses(at: 2) == [.desired])
    control.failure.withLock { $0 = ProbeError(.failed, "not now") }
    await coordinator.advance(to: at(3))
    #expect(platform == [.enforcementFailed, .enforcementFailed])
    control.failure.withLock { $0 = nil }
    #expect(await coordinator.advance(to: at(4)).map(\.status) == [.enforced])
    #expect(control.calls.withLock { $0 } == ["pause 1"])
    #expect(await statuses(at: 4) == [.enforced])
  }

  @Test("what waits to be done with a domain is decided once, and forgotten with the domain when nobody can do it")
  func repetition() async throws {
    let directory = hosts()
    let coordinator = try make(directory: directory) { $0.destructiveMeasures = .allowed }
    var statuses: [Decision.Status] = []
    for second in 0..<50 { statuses += await coordinator.handle(fileEvent(), at: at(Double(second))).map(\.status) }
    #expect(statuses.first == .desired && statuses.dropFirst().allSatisfy { $0 == .withheld })
    #expect(await coordinator.waitingForFirewall.count == 1)
    directory.remove(incarnation(1))
    _ = await coordinator.advance(to: at(100))
    #expect(await coordinator.waitingForFirewall.isEmpty)
  }

  @Test("a log that cannot be made anew goes on, which is told once, and is tried again half a minute later")
  func failedCompaction() async throws {
    let log = SlowLog()
    log.hasRoom.withLock { $0 = false }
    log.isDue.withLock { $0 = true }
    let coordinator = try make(log)
    log.answer()
    await coordinator.compactLog(at: at(0))
    log.isDue.withLock { $0 = true }
    for second in 1..<30 { _ = await coordinator.advance(to: at(Double(second))) }
    #expect(log.begun.withLock { $0 } == 1)
    #expect(platform == [.logUncompacted])
    #expect(await !coordinator.isLogBroken)
    #expect(await coordinator.isLogUncompacted)
    #expect(await coordinator.handle(alert(), at: at(29)) == log.memory.decisions)
    log.hasRoom.withLock { $0 = true }
    log.answer()
    _ = await coordinator.advance(to: at(30))
    #expect(await comesTrueSuspending { platform.count == 2 })
    #expect(log.begun.withLock { $0 } == 2)
    #expect(platform == [.logUncompacted, .logCompacted])
    #expect(await !coordinator.isLogUncompacted)
  }

  @Test("while the log is made anew, which a slow disk draws out, decisions are made, enforced and logged")
  func slowCompaction() async throws {
    let log = SlowLog()
    let coordinator = try make(log)
    async let first: Void = coordinator.compactLog(at: at(0))
    // So that whoever waits for the disk comes to an end when something is not as expected.
    defer { for _ in 0..<4 { log.answer() } }
    try #require(await comesTrueSuspending { log.begun.withLock { $0 } == 1 })
    let decisions = await coordinator.handle(alert(), at: at(0))
    #expect(decisions.map(\.status) == [.enforced])
    #expect(try await held == [.block(network("203.0.113.7"))])
    #expect(log.memory.decisions == decisions)
    // The clock was set once more: this one is not waited for, and follows.
    await coordinator.compactLog(at: at(1))
    #expect(log.begun.withLock { $0 } == 1)
    log.answer()
    log.answer()
    await first
    #expect(log.begun.withLock { $0 } == 2)
    #expect(log.memory.decisions == decisions)
    // Nor does the time stand still for one that is due.
    log.isDue.withLock { $0 = true }
    let lifted = await coordinator.advance(to: at(60))
    #expect(lifted.map(\.status) == [.expired] && log.begun.withLock { $0 } == 3)
    #expect(try await held.isEmpty)
    log.answer()
    let live = await coordinator.liveDecisions
    #expect(await comesTrueSuspending { log.memory.decisions == live })
  }

  @Test("a guest that does not shut down keeps nobody waiting, and is said to be down only when it is")
  func disobedient() async throws {
    let control = RecordingControl(isDisobedient: true)
    let coordinator = try make(control: control, files: .shutDown, actionPatience: .milliseconds(1)) {
      $0.destructiveMeasures = .allowed
    }
    #expect(await coordinator.handle(fileEvent(), at: at(0)).map(\.status) == [.desired])
    #expect(await coordinator.handle(alert(), at: at(1)).map(\.status) == [.enforced])
    #expect(await coordinator.advance(to: at(2)).isEmpty && control.calls.withLock { $0 }.isEmpty)
    control.obey.finish()
    var settled: [Decision] = []
    _ = await comesTrueSuspending {
      settled = await coordinator.advance(to: at(3))
      return !settled.isEmpty
    }
    #expect(settled.map(\.status) == [.enforced] && settled.map(\.measure) == [.shutDown])
    #expect(control.calls.withLock { $0 } == ["shutDown 1"], "once, however often it was looked at")
    #expect(platform.isEmpty)
  }

  @Test("a dry run touches neither firewall nor domain")
  func dryRun() async throws {
    let coordinator = try make(control: control) {
      $0.isDryRun = true
      $0.destructiveMeasures = .allowed
    }
    await coordinator.handle([alert(), fileEvent()], at: at(0))
    await coordinator.advance(to: at(100))
    #expect(firewall.generation == 0)
    #expect(control.calls.withLock { $0 }.isEmpty)
    #expect(told.allSatisfy { $0.status == .dryRun })
  }

  @Test("what could not be done with a domain before a dry run is not done in it, and is when that is over")
  func undoneInDryRun() async throws {
    let coordinator = try make(control: control) { $0.destructiveMeasures = .allowed }
    control.failure.withLock { $0 = ProbeError(.failed, "no") }
    #expect(await coordinator.handle(fileEvent(), at: at(0)).map(\.status) == [.desired])
    var policy = await coordinator.policy
    policy.isDryRun = true
    control.failure.withLock { $0 = nil }
    try await coordinator.replacePolicy(with: policy, at: at(1))
    #expect(await coordinator.advance(to: at(2)).isEmpty)
    #expect(control.calls.withLock { $0 }.isEmpty)
    #expect(await coordinator.waitingForFirewall.map(\.id) == [1])
    policy.isDryRun = false
    #expect(try await coordinator.replacePolicy(with: policy, at: at(3)).map(\.status) == [.enforced])
    #expect(control.calls.withLock { $0 } == ["pause 1"])
  }

  @Test("switching the dry run off puts in force what stands, and on again takes it out")
  func switchDryRun() async throws {
    let coordinator = try make { $0.isDryRun = true }
    await coordinator.handle(alert(), at: at(0))
    try await coordinator.replacePolicy(with: Policy(rules: [rule(count: 1)]), at: at(1))
    #expect(try await held.count == 1)
    try await coordinator.replacePolicy(with: Policy(rules: [rule(count: 1)], isDryRun: true), at: at(2))
    #expect(try await held.isEmpty)
    #expect(told.map(\.id) == [1, 1, 1])
    #expect(told.map(\.status) == [.dryRun, .enforced, .dryRun])
  }

  @Test("many callers at once are served one after another")
  func concurrent() async throws {
    let coordinator = try make { $0.measuresPerMinute = 10_000 }
    await withTaskGroup(of: Void.self) { group in
      for number in 0..<200 {
        group.addTask { await coordinator.handle(alert(from: IPAddress(v4: 0x0100_0000 + UInt32(number))), at: at(0)) }
      }
    }
    #expect(try await held.count == 200)
    #expect(told.map(\.id) == Array(1...200))
    #expect(told.allSatisfy { $0.status == .enforced })
  }

  @Test("the administrator's block and its end reach the firewall")
  func manual() async throws {
    let coordinator = try make()
    try await coordinator.block(network("198.51.100.7"), for: nil, duration: .seconds(60), reason: "asked", at: at(0))
    #expect(try await held == [.block(network("198.51.100.7"))])
    let key = FirewallMeasure.Key(scope: .host, kind: .block(network("198.51.100.7")))
    try await coordinator.lift(key, reason: "enough", at: at(1))
    #expect(try await held.isEmpty)
  }

  @Test("what the log did not take is appended once it does, and that is told")
  func logAgain() async throws {
    let firewall = RecordingFirewallSink()
    let log = ProbingLog(firewall)
    let events = RecordingEventSink()
    let coordinator = EnforcementCoordinator(
      updater: try updater(rule(count: 1)), log: log, firewall: firewall, events: events)
    log.isFull.withLock { $0 = true }
    let decisions = await coordinator.handle(alert(), at: at(0))
    #expect(decisions.map(\.isLogged) == [false])
    await coordinator.advance(to: at(1))
    #expect(log.memory.decisions.isEmpty)
    log.isFull.withLock { $0 = false }
    await coordinator.advance(to: at(2))
    #expect(log.memory.decisions.map(\.id) == decisions.map(\.id))
    await coordinator.advance(to: at(3))
    #expect(log.memory.decisions.count == 1, "once")
    let kinds = events.take().compactMap { if case .platform(let alert) = $0 { alert.kind } else { nil } }
    #expect(kinds == [.logUnwritable, .logWritable])
  }
}
