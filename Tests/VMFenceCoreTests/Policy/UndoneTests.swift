import Synchronization
import TestSupport
import Testing
import VMFenceCore
import VMFenceTestKit

/// Keeps what the log has at the moment in which a domain is to be paused: what a process that dies then leaves.
private final class DyingControl: HypervisorControl {
  let left = Mutex<[Decision]>([])
  let log: MemoryDecisionLog
  init(_ log: MemoryDecisionLog) { self.log = log }

  func pause(_ domain: Incarnation) async throws(ProbeError) { left.withLock { $0 = log.decisions } }
  func resume(_ domain: Incarnation) async throws(ProbeError) {}
  func shutDown(_ domain: Incarnation) async throws(ProbeError) { left.withLock { $0 = log.decisions } }
}

@Suite("What was decided and not done when the process died")
struct UndoneTests {
  private let firewall = RecordingFirewallSink()
  private let events = RecordingEventSink()
  private let control = RecordingControl()
  private let log = MemoryDecisionLog()

  private var told: [Decision] {
    events.events.compactMap { if case .decision(let decision) = $0 { decision } else { nil } }
  }
  private var platform: [PlatformAlert.Kind] {
    events.events.compactMap { if case .platform(let alert) = $0 { alert.kind } else { nil } }
  }

  private func start(
    _ held: [Decision] = [], at time: Timestamp, control: any HypervisorControl, on other: (any FirewallSink)? = nil,
    action: LadderStep.Action = .pause, directory: DomainDirectory = hosts(), change: (inout Policy) -> Void = { _ in }
  ) throws -> EnforcementCoordinator {
    var updater = try updater(
      rule(count: 1), rule("files", [.files([])], per: .domain, count: 1, ladder: [LadderStep(action)]),
      directory: directory, change: change)
    let lifted = updater.restore(held, at: time)
    return EnforcementCoordinator(
      updater: updater, log: log, firewall: other ?? firewall, control: control, events: events,
      actionPatience: .seconds(60), lifted: lifted)
  }

  /// What is in the log of a process that died when it was about to pause, or to shut down, guest 1, which was approved at 10.
  private func diedBefore(_ action: LadderStep.Action = .pause) async throws -> [Decision] {
    let log = MemoryDecisionLog()
    let control = DyingControl(log)
    let coordinator = EnforcementCoordinator(
      updater: try updater(rule("files", [.files([])], per: .domain, count: 1, ladder: [LadderStep(action)])),
      log: log, firewall: RecordingFirewallSink(), control: control, events: RecordingEventSink(),
      actionPatience: .seconds(60))
    await coordinator.handle(fileEvent(), at: at(0))
    #expect(try await coordinator.approve(1, at: at(10)).status == .enforced)
    return control.left.withLock { $0 }
  }

  @Test("is done after a restart, told, and not done again", arguments: [LadderStep.Action.pause, .shutDown])
  func done(action: LadderStep.Action) async throws {
    let held = try await diedBefore(action)
    #expect(held.map(\.status) == [.pending, .desired])
    try log.append(held)
    let coordinator = try start(held, at: at(15), control: control, action: action)
    #expect(await coordinator.waitingForFirewall.map(\.id) == [1])
    try await coordinator.reconcile(at: at(15))
    #expect(control.calls.withLock { $0 } == [action == .pause ? "pause 1" : "shutDown 1"])
    #expect(told.map(\.status) == [.enforced] && told == [log.decisions.last])
    #expect(await coordinator.waitingForFirewall.isEmpty)
    let next = try start(log.decisions, at: at(20), control: control, action: action)
    try await next.reconcile(at: at(20))
    await next.advance(to: at(21))
    #expect(control.calls.withLock { $0.count } == 1 && told.count == 1)
  }

  @Test("is given up and told so when that is too long ago", arguments: [(609, true), (611, false), (-86_400, true)])
  func validity(second: Double, isDone: Bool) async throws {
    let held = try await diedBefore()
    let coordinator = try start(held, at: at(second), control: control)
    try await coordinator.reconcile(at: at(second))
    await coordinator.advance(to: at(second + 1))
    #expect(control.calls.withLock { $0 } == (isDone ? ["pause 1"] : []))
    #expect(told.map(\.status) == [isDone ? .enforced : .expired])
    #expect(platform == (isDone ? [] : [.enforcementFailed]))
    try log.append(held + told)
    let next = try start(log.decisions, at: at(second + 2), control: control)
    try await next.reconcile(at: at(second + 2))
    #expect(told.count == 1 && control.calls.withLock { $0.count } == (isDone ? 1 : 0))
  }

  @Test("is not done to the domain's next incarnation")
  func rebooted() async throws {
    let directory = hosts()
    guard var description = directory.entry(for: incarnation(1))?.description else { return }
    directory.remove(incarnation(1))
    description.incarnation = Incarnation(uuid: uuid(1), domainID: DomainID(9))
    directory.update(description)
    let coordinator = try start(try await diedBefore(), at: at(15), control: control, directory: directory)
    try await coordinator.reconcile(at: at(15))
    #expect(control.calls.withLock { $0 }.isEmpty)
    #expect(told.map(\.status) == [.expired] && platform == [.enforcementFailed])
    #expect(told.first?.reason.hasSuffix("; not carried out: its domain is gone") == true)
  }

  @Test("is not done twice when the domain stands still already")
  func doneAlready() async throws {
    let directory = hosts()
    guard var description = directory.entry(for: incarnation(1))?.description else { return }
    description.runState = .paused
    directory.update(description)
    let coordinator = try start(try await diedBefore(), at: at(15), control: control, directory: directory)
    try await coordinator.reconcile(at: at(15))
    #expect(control.calls.withLock { $0 }.isEmpty)
    #expect(told.map(\.status) == [.enforced])
  }

  @Test("is done though somebody else paused the domain meanwhile, who may let it run again")
  func pausedByOthers() async throws {
    let directory = hosts()
    control.failure.withLock { $0 = ProbeError(.failed, "not now") }
    let coordinator = try start(at: at(0), control: control, directory: directory) {
      $0.destructiveMeasures = .allowed
    }
    #expect(await coordinator.handle(fileEvent(), at: at(0)).map(\.status) == [.desired])
    guard var description = directory.entry(for: incarnation(1))?.description else { return }
    description.runState = .paused
    directory.update(description)
    control.failure.withLock { $0 = nil }
    #expect(await coordinator.advance(to: at(1)).map(\.status) == [.enforced])
    #expect(control.calls.withLock { $0 } == ["pause 1"])
  }

  @Test("waits while the policy is dry, and is told as given up when its time is over")
  func dryRun() async throws {
    let coordinator = try start(try await diedBefore(), at: at(15), control: control) { $0.isDryRun = true }
    try await coordinator.reconcile(at: at(15))
    await coordinator.advance(to: at(600))
    #expect(control.calls.withLock { $0 }.isEmpty && told.isEmpty)
    await coordinator.advance(to: at(611))
    #expect(told.map(\.status) == [.expired])
  }

  @Test("is left to the next start by one that fails")
  func failedStart() async throws {
    let held = try await diedBefore()
    let coordinator = try start(held, at: at(15), control: control)
    firewall.fail(next: 8, with: FirewallError(.inUse, "no"))
    await #expect(throws: FirewallError.self) { try await coordinator.reconcile(at: at(15)) }
    await coordinator.advance(to: at(20))
    await coordinator.tellLifted()
    #expect(control.calls.withLock { $0 }.isEmpty && told.isEmpty && log.decisions.isEmpty)
  }

  @Test("is in a log that is made anew before it is done")
  func compaction() async throws {
    control.failure.withLock { $0 = ProbeError(.failed, "no") }
    let coordinator = try start(at: at(0), control: control) { $0.destructiveMeasures = .allowed }
    #expect(await coordinator.handle(fileEvent(), at: at(0)).map(\.status) == [.desired])
    await coordinator.handle(alert(on: 2), at: at(1))
    await coordinator.compactLog(at: at(1))
    #expect(log.decisions.map(\.status) == [.desired, .enforced])
    control.failure.withLock { $0 = nil }
    let next = try start(log.decisions, at: at(5), control: control)
    try await next.reconcile(at: at(5))
    #expect(control.calls.withLock { $0 } == ["pause 1"])
    await next.compactLog(at: at(6))
    #expect(log.decisions.map(\.status) == [.enforced, .enforced])
  }

  @Test("a hypervisor that answers hours later pauses nobody any more, which is told")
  func hypervisorComesBack() async throws {
    control.failure.withLock { $0 = ProbeError(.failed, "no answer") }
    let coordinator = try start(at: at(0), control: control) { $0.destructiveMeasures = .allowed }
    #expect(await coordinator.handle(fileEvent(), at: at(0)).map(\.status) == [.desired])
    for minute in 1...10 { await coordinator.advance(to: at(Double(60 * minute))) }
    #expect(told.map(\.status) == [.desired])
    let last = await coordinator.advance(to: at(601))
    #expect(last.map(\.status) == [.expired])
    #expect(
      last.first?.reason.hasSuffix("; not carried out: it was decided more than 10 minutes ago (no answer)") == true)
    control.failure.withLock { $0 = nil }
    await coordinator.advance(to: at(7_200))
    #expect(control.calls.withLock { $0 }.isEmpty && platform == [.enforcementFailed, .enforcementFailed])
    await coordinator.compactLog(at: at(7_201))
    #expect(log.decisions.map(\.status) == [.expired])
  }

  @Test("a pause of a domain that is gone is never called done")
  func gone() async throws {
    let directory = hosts()
    let coordinator = try start(at: at(0), control: control, directory: directory)
    await coordinator.handle(fileEvent(), at: at(0))
    control.failure.withLock { $0 = ProbeError(.noSuchDomain, "there is no such domain") }
    #expect(try await coordinator.approve(1, at: at(1)).status == .desired)
    directory.remove(incarnation(1))
    #expect(await coordinator.advance(to: at(2)).map(\.status) == [.expired])
    #expect(told.map(\.status) == [.pending, .desired, .expired])
  }

  @Test("many events at once pause a domain once, and again when it was resumed and goes on")
  func once() async throws {
    let coordinator = try start(at: at(0), control: control) { $0.destructiveMeasures = .allowed }
    let first = await coordinator.handle([fileEvent(), fileEvent()], at: at(0))
    #expect(first.map(\.status) == [.enforced, .withheld])
    #expect(await coordinator.handle(fileEvent(), at: at(1)).map(\.status) == [.withheld])
    #expect(control.calls.withLock { $0 } == ["pause 1"])
    #expect(await coordinator.handle(fileEvent(), at: at(20)).map(\.status) == [.enforced])
    #expect(control.calls.withLock { $0.count } == 2)
  }

  @Test("a block that the firewall had not taken is called in force once it is")
  func block() async throws {
    let broken = FussyFirewall(inner: firewall, refused: [.block(network("203.0.113.7"))])
    let first = try start(at: at(0), control: control, on: broken)
    #expect(await first.handle(alert(), at: at(0)).map(\.status) == [.desired])
    #expect(await first.decisionsInForce.map(\.status) == [.desired])
    #expect(log.decisions.map(\.status) == [.enforced, .desired])
    let second = try start(log.decisions, at: at(5), control: control)
    #expect(await second.decisionsInForce.map(\.status) == [.desired])
    try await second.reconcile(at: at(5))
    #expect(await second.decisionsInForce.map(\.status) == [.enforced])
    #expect(told.map(\.status) == [.desired, .enforced] && log.decisions.last == told.last)
    let third = try start(log.decisions, at: at(6), control: control)
    try await third.reconcile(at: at(6))
    #expect(told.count == 2)
  }
}
