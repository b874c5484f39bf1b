import Synchronization
import TestSupport
import Testing
import VMFenceCore
import VMFenceTestKit

@Suite("What ran out while nobody was here")
struct LiftedMeanwhileTests {
  private let firewall = RecordingFirewallSink()
  private let events = RecordingEventSink()

  private var told: [Decision] {
    events.events.compactMap { if case .decision(let decision) = $0 { decision } else { nil } }
  }

  /// Goes on at `time` with what the log holds.
  private func restart(
    _ log: any DecisionLog, _ held: [Decision], at time: Timestamp, on other: (any FirewallSink)? = nil
  ) throws -> (coordinator: EnforcementCoordinator, lifted: [Decision]) {
    var updater = try updater(rule(count: 1))
    let lifted = updater.restore(held, at: time)
    let coordinator = EnforcementCoordinator(
      updater: updater, log: log, firewall: other ?? firewall, events: events, lifted: lifted)
    return (coordinator, lifted)
  }

  /// Blocks of so many addresses, for a minute from the beginning on.
  private func blocks(_ count: Int) throws -> [Decision] {
    var updater = try updater(rule())
    return try (0..<count).flatMap { index in
      try updater.block(
        network("198.18.\(index / 256).\(index % 256)"), for: nil, duration: .seconds(60), reason: "r", at: at(0))
    }
  }

  @Test("it is in the log and told, once, as soon as the firewall is right; the firewall is not asked to lift it")
  func once() async throws {
    let log = MemoryDecisionLog()
    let blocks = try blocks(3)
    try log.append(blocks)
    let (first, lifted) = try restart(log, log.decisions, at: at(90))
    #expect(lifted.map(\.id) == [4, 5, 6] && lifted.allSatisfy { $0.status == .expired })
    await first.advance(to: at(90))
    #expect(log.decisions == blocks && told.isEmpty, "a start that fails is to leave it to the next one")
    try await first.reconcile(at: at(91))
    #expect(log.decisions == blocks + lifted && told == lifted)
    #expect(firewall.generation == 0)
    try await first.reconcile(at: at(92))
    await first.advance(to: at(93))
    await first.tellLifted()
    #expect(log.decisions == blocks + lifted && told == lifted)

    let (second, again) = try restart(log, log.decisions, at: at(94))
    try await second.reconcile(at: at(94))
    #expect(again.isEmpty && told == lifted)
  }

  @Test("a log that is made anew does not forget it before it is told")
  func compaction() async throws {
    let log = MemoryDecisionLog()
    let blocks = try blocks(1)
    try log.append(blocks)
    let (coordinator, lifted) = try restart(log, log.decisions, at: at(90))
    await coordinator.compactLog(at: at(90))
    #expect(log.decisions == blocks)
    try await coordinator.reconcile(at: at(91))
    #expect(told == lifted)
    await coordinator.compactLog(at: at(92))
    #expect(log.decisions == lifted, "for its number alone")
  }

  @Test("what ran out before and is remembered for the ladder alone is not told again")
  func remembered() async throws {
    let log = MemoryDecisionLog()
    func make(_ held: [Decision], at time: Timestamp) throws -> (EnforcementCoordinator, lifted: [Decision]) {
      var updater = try updater(
        rule(count: 1, ladder: [LadderStep(.block, for: .seconds(60)), LadderStep(.quarantine, for: .seconds(60))]))
      let lifted = updater.restore(held, at: time)
      return (
        EnforcementCoordinator(updater: updater, log: log, firewall: firewall, events: events, lifted: lifted), lifted
      )
    }
    let (first, _) = try make([], at: at(0))
    await first.handle(alert(), at: at(0))
    await first.advance(to: at(60))
    #expect(told.map(\.status) == [.enforced, .expired])
    await first.compactLog(at: at(61))
    #expect(log.decisions.map(\.id) == [1, 2])
    let (second, lifted) = try make(log.decisions, at: at(62))
    #expect(lifted.isEmpty)
    #expect(await second.measuresInForce.isEmpty)
    await second.compactLog(at: at(63))
    let (third, again) = try make(log.decisions, at: at(64))
    #expect(again.isEmpty)
    #expect(await third.handle(alert(), at: at(65)).map(\.measure) == [.quarantine], "the ladder goes on")
  }

  @Test("it is in the log before a new block of the same address, so that the next start has that one")
  func orderInLog() async throws {
    let log = MemoryDecisionLog()
    var before = try updater(rule(count: 1))
    try log.append(before.handle(alert(), at: at(0)))
    let (coordinator, lifted) = try restart(log, log.decisions, at: at(90))
    let decided = await coordinator.handle(alert(), at: at(91))
    #expect(lifted.count == 1 && decided.count == 1)
    #expect(log.decisions.suffix(2) == lifted + decided)
    #expect(told == lifted + decided)
    var after = try updater(rule(count: 1))
    #expect(after.restore(log.decisions, at: at(92)).isEmpty)
    #expect(after.measuresInForce.map(\.decision) == decided.map(\.id))
  }

  @Test("of much only a part is told at once, and of all each once")
  func portions() async throws {
    let log = MemoryDecisionLog()
    try log.append(try blocks(10_000))
    let (coordinator, lifted) = try restart(log, log.decisions, at: at(90))
    #expect(lifted.count == 10_000)
    try await coordinator.reconcile(at: at(90))
    #expect(log.decisions.count == 14_096 && told.count == 4_096)
    await coordinator.advance(to: at(91))
    #expect(told.count == 8_192)
    await coordinator.tellLifted()
    #expect(told == lifted)
    await coordinator.advance(to: at(92))
    #expect(told.count == 10_000 && log.decisions.count == 20_000)
  }

  @Test("a process that dies before all is told leaves the rest to the next one, and what is blocked anew stands")
  func killed() async throws {
    let log = MemoryDecisionLog()
    let blocks = try blocks(10_000)
    try log.append(blocks)
    let (first, _) = try restart(log, log.decisions, at: at(90))
    try await first.reconcile(at: at(90))
    // Of the last of them nobody was told yet.
    try await first.block(
      network("198.18.39.15"), for: nil, duration: .seconds(60), reason: "again", at: at(91))
    #expect(told.suffix(2).map(\.measure.name) == ["lift", "block_on_host"] && told.count == 4_098)
    let (second, lifted) = try restart(log, log.decisions, at: at(92))
    #expect(lifted.count == 10_000 - 4_097)
    try await second.reconcile(at: at(92))
    await second.tellLifted()
    let lifts = told.compactMap { if case .lift(let key) = $0.measure { key } else { nil } }
    #expect(lifts.count == 10_000 && Set(lifts) == Set(blocks.compactMap(\.firewallMeasure?.key)))
    #expect(await second.measuresInForce.map(\.key.kind) == [.block(network("198.18.39.15"))])
  }

  @Test("a log that is to be made anew meanwhile is when all is told")
  func compactionWhileTelling() async throws {
    let log = MemoryDecisionLog()
    try log.append(try blocks(10_000))
    let (coordinator, lifted) = try restart(log, log.decisions, at: at(90))
    try await coordinator.reconcile(at: at(90))
    await coordinator.compactLog(at: at(90))
    for second in 91...94 { await coordinator.advance(to: at(Double(second))) }
    #expect(await comesTrueSuspending { log.decisions == [lifted.last] })
    #expect(told == lifted)
  }

  /// A disk that is full.
  private struct FullLog: DecisionLog {
    func append(_ decisions: [Decision]) throws(DecisionLogError) { throw DecisionLogError(.full, "no space left") }
    func sync() throws(DecisionLogError) {}
    func compact(to decisions: [Decision]) throws(DecisionLogError) {}
  }

  @Test("what the log does not take is told as unlogged")
  func unlogged() async throws {
    let (coordinator, lifted) = try restart(FullLog(), try blocks(2), at: at(90))
    try await coordinator.reconcile(at: at(90))
    #expect(told.map(\.id) == lifted.map(\.id) && told.allSatisfy { !$0.isLogged })
  }

  /// A firewall that cannot be read.
  private struct BrokenFirewall: FirewallSink {
    func apply(_ change: FirewallChange) async throws(FirewallError) -> UInt64 { throw FirewallError(.failed, "no") }
    func replace(with measures: [FirewallMeasure], at time: Timestamp) async throws(FirewallError) -> UInt64 {
      throw FirewallError(.failed, "no")
    }
    func readBack(at time: Timestamp) async throws(FirewallError) -> FirewallState {
      throw FirewallError(.inUse, "no")
    }
    func acknowledgements() async -> AsyncStream<FirewallAcknowledgement> { AsyncStream { $0.finish() } }
  }

  @Test("where the firewall cannot be read at the start, the log says nothing of it, and the next start has it")
  func failedStart() async throws {
    let log = MemoryDecisionLog()
    let blocks = try blocks(1)
    try log.append(blocks)
    let (coordinator, lifted) = try restart(log, log.decisions, at: at(90), on: BrokenFirewall())
    await #expect(throws: FirewallError.self) { try await coordinator.reconcile(at: at(90)) }
    await coordinator.tellLifted()
    await coordinator.advance(to: at(91))
    #expect(log.decisions == blocks && told.isEmpty)
    #expect(try restart(log, log.decisions, at: at(92)).lifted.map(\.measure) == lifted.map(\.measure))
  }
}
