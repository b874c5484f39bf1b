import Synchronization
import Testing
import VMFenceCore
import VMFenceTestKit

/// A log whose disk can be full or broken.
private final class TroubledLog: DecisionLog {
  struct State {
    var decisions: [Decision] = []
    var isFull = false
    var isBroken = false
    /// The longest that was to be appended at once.
    var longest = 0
  }

  let state = Mutex(State())

  var decisions: [Decision] { state.withLock { $0.decisions } }
  func set(_ change: (inout State) -> Void) { state.withLock { change(&$0) } }

  private static var full: DecisionLogError { DecisionLogError(.full, "no space left") }

  func append(_ decisions: [Decision]) throws(DecisionLogError) {
    let isTaken = state.withLock { state in
      state.longest = max(state.longest, decisions.count)
      if !state.isFull || decisions.isEmpty { state.decisions += decisions }
      return !state.isFull || decisions.isEmpty
    }
    if !isTaken { throw Self.full }
  }

  func sync() throws(DecisionLogError) {
    if state.withLock({ $0.isBroken }) { throw DecisionLogError(.inputOutput, "input/output error") }
  }

  func compact(to decisions: [Decision]) throws(DecisionLogError) {
    let isTaken = state.withLock { state in
      if !state.isFull { state.decisions = decisions }
      return !state.isFull
    }
    if !isTaken { throw Self.full }
  }
}

@Suite("What the decision log did not take")
struct UnloggedTests {
  private let log = TroubledLog()
  private let events = RecordingEventSink()

  private var kinds: [PlatformAlert.Kind] {
    events.events.compactMap { if case .platform(let alert) = $0 { alert.kind } else { nil } }
  }

  private func make(_ updater: PolicyUpdater, lifted: [Decision] = []) -> EnforcementCoordinator {
    EnforcementCoordinator(
      updater: updater, log: log, firewall: RecordingFirewallSink(), events: events, lifted: lifted)
  }

  private func restored(at time: Timestamp) throws -> (updater: PolicyUpdater, lifted: [Decision]) {
    var after = try updater(
      rule(count: 1, ladder: [LadderStep(.block, for: .seconds(60)), LadderStep(.quarantine, for: .seconds(60))]))
    let lifted = after.restore(log.decisions, at: time)
    return (after, lifted)
  }

  @Test("is not appended behind what took it back, so that the next start does not put it in force again")
  func order() async throws {
    let coordinator = make(try restored(at: at(0)).updater)
    log.set { $0.isFull = true }
    let block = await coordinator.handle(alert(), at: at(0))
    #expect(block.map(\.isLogged) == [false])
    log.set { $0.isFull = false }
    let lift = try await coordinator.lift(
      try #require(block.first?.firewallMeasure).key, reason: "a mistake", at: at(1))
    #expect(lift.map(\.isLogged) == [true])
    let next = await coordinator.handle(alert(), at: at(2))
    #expect(next.map(\.measure) == [.quarantine])
    await coordinator.advance(to: at(3))
    #expect(log.decisions.map(\.id) == [1, 2, 3])
    #expect(kinds == [.logUnwritable, .logWritable])
    let after = try restored(at: at(4)).updater
    #expect(after.measuresInForce.map(\.decision) == [3])
  }

  @Test("of more than is kept, a log that is made anew once it is written again knows all the same")
  func tooMany() async throws {
    let count = 70_000
    var before = try restored(at: at(0)).updater
    let blocks = try (0..<count).flatMap { index in
      try before.block(
        IPNetwork(IPAddress(v4: 0xC612_0000 + UInt32(index))), for: nil, duration: .seconds(60), reason: "r", at: at(0))
    }
    try log.append(blocks)
    let (updater, lifted) = try restored(at: at(90))
    #expect(lifted.count == count)
    let coordinator = make(updater, lifted: lifted)
    log.set { $0.isFull = true }
    try await coordinator.reconcile(at: at(90))
    let block = await coordinator.handle(alert(), at: at(91))
    await coordinator.tellLifted()
    log.set { state in (state.isFull, state.longest) = (false, 0) }
    let next = await coordinator.handle(alert(on: 3), at: at(92))
    #expect((block + next).map(\.status) == [.enforced, .enforced])
    #expect(log.state.withLock { $0.longest } == 0, "a long backlog is for the next look, and nobody waits for it")
    await coordinator.advance(to: at(93))
    #expect(log.state.withLock { $0.longest } <= 4_096)
    await coordinator.advance(to: at(94))
    let after = try restored(at: at(95))
    #expect(after.updater.measuresInForce.map(\.decision) == (block + next).map(\.id))
    #expect(after.lifted.isEmpty, "told again")
  }

  @Test("a disk that takes it and does not keep it is told once, and once when it does")
  func sync() async throws {
    let coordinator = make(try restored(at: at(0)).updater)
    log.set { $0.isBroken = true }
    await coordinator.handle(alert(), at: at(0))
    for second in 0..<10 { await coordinator.advance(to: at(Double(second))) }
    #expect(kinds == [.logUnwritable])
    #expect(await coordinator.isLogBroken)
    log.set { $0.isBroken = false }
    for second in 10..<20 { await coordinator.advance(to: at(Double(second))) }
    #expect(kinds == [.logUnwritable, .logWritable])
    #expect(log.decisions.map(\.id) == [1])
  }
}
