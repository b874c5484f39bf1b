import Testing
import VMFenceCore
import VMFenceTestKit

@Suite("A log that was made anew")
struct CompactedLogTests {
  private let events = RecordingEventSink()
  private let log = MemoryDecisionLog()

  private var told: [Decision] {
    events.events.compactMap { if case .decision(let decision) = $0 { decision } else { nil } }
  }

  private static func make(isDryRun: Bool, for duration: Duration = .seconds(60)) throws -> PolicyUpdater {
    try updater(
      rule(count: 1, ladder: [LadderStep(.block, for: duration), LadderStep(.quarantine, for: duration)])
    ) { $0.isDryRun = isDryRun }
  }

  /// Goes on at `time` with what the log holds.
  private func start(
    at time: Timestamp, isDryRun: Bool
  ) throws -> (coordinator: EnforcementCoordinator, lifted: [Decision]) {
    var updater = try Self.make(isDryRun: isDryRun)
    let lifted = updater.restore(log.decisions, at: time)
    let coordinator = EnforcementCoordinator(
      updater: updater, log: log, firewall: RecordingFirewallSink(), events: events, lifted: lifted)
    return (coordinator, lifted)
  }

  @Test("of a dry run: what ended in it is told once, however often it is started, and the ladder goes on")
  func imaginedEnd() async throws {
    let (first, _) = try start(at: at(0), isDryRun: true)
    await first.handle(alert(), at: at(0))
    await first.advance(to: at(60))
    let all = told
    #expect(all.map(\.measure.name) == ["block", "lift"] && all.allSatisfy { $0.status == .dryRun })
    await first.compactLog(at: at(61))
    for second in [62, 64, 30, 66] as [Double] {
      let (next, lifted) = try start(at: at(second), isDryRun: true)
      try await next.reconcile(at: at(second))
      #expect(lifted.isEmpty && told == all, "at \(second)")
      #expect(await next.decisionsInForce.isEmpty)
      await next.compactLog(at: at(second + 1))
    }
    let (last, _) = try start(at: at(70), isDryRun: true)
    #expect(await last.handle(alert(), at: at(70)).map(\.measure) == [.quarantine])
    // A policy that acts forgets what was only imagined.
    let (acting, _) = try start(at: at(71), isDryRun: false)
    #expect(await acting.handle(alert(), at: at(71)).map(\.measure) == [.block(network("203.0.113.7"))])
  }

  @Test("what was imagined and ran out while nobody was here is told as imagined, and what was real as real")
  func endsMeanwhile() throws {
    for (wasDryRun, isDryRun) in [(true, true), (false, true), (false, false)] {
      var before = try Self.make(isDryRun: wasDryRun)
      let decided = before.handle(alert(), at: at(0))
      var after = try Self.make(isDryRun: isDryRun)
      let lifted = after.restore(decided, at: at(90))
      #expect(lifted.map(\.status) == [wasDryRun ? .dryRun : .expired], "\(wasDryRun), then \(isDryRun)")
    }
  }

  @Test("what a new policy takes back is told by what it was under the old one")
  func endsWithPolicy() throws {
    for wasDryRun in [true, false] {
      var updater = try Self.make(isDryRun: wasDryRun)
      _ = updater.handle(alert(), at: at(0))
      var policy = updater.policy
      policy.isDryRun = !wasDryRun
      policy.neverBlock = [network("203.0.113.7")]
      let lifted = try updater.replacePolicy(with: policy, at: at(1))
      #expect(lifted.map(\.measure.name) == ["lift"])
      #expect(lifted.map(\.status) == [wasDryRun ? .dryRun : .expired], "\(wasDryRun)")
    }
  }

  @Test(
    "what the administrator took back does not stand again, whatever the system's clock is set to",
    arguments: [true, false], [-86_400, 0, 5, 15, 25, 3_000, 86_400] as [Double])
  func takenBack(isDryRun: Bool, second: Double) throws {
    var before = try Self.make(isDryRun: isDryRun, for: .seconds(3_600))
    let taken = try #require(before.handle(alert(), at: at(0)).first?.firewallMeasure)
    _ = try before.lift(taken.key, reason: "a mistake", at: at(10))
    _ = before.advance(to: at(20))
    var kept = before.liveDecisions
    // The second time it is made anew by who was started with it.
    for _ in 0..<2 {
      var after = try Self.make(isDryRun: isDryRun, for: .seconds(3_600))
      #expect(after.restore(kept, at: at(second)).isEmpty)
      #expect(after.measuresInForce.isEmpty && after.decisionsInForce.isEmpty)
      if abs(second) < 86_400 {
        #expect(after.liveDecisions.contains { $0.id == taken.decision }, "for the ladder")
      }
      kept = after.liveDecisions
    }
  }

  @Test("no number is given twice, though what was decided last is over and forgotten")
  func numbers() async throws {
    let key = FirewallMeasure.Key(scope: .host, kind: .block(network("198.51.100.7")))
    for round in 1...3 as ClosedRange<UInt64> {
      let time = at(Double(round) * 10)
      let (coordinator, _) = try start(at: time, isDryRun: false)
      try await coordinator.block(network("198.51.100.7"), for: nil, duration: .seconds(60), reason: "r", at: time)
      try await coordinator.lift(key, reason: "enough", at: time)
      await coordinator.compactLog(at: time)
      #expect(told.map(\.id) == Array(1...2 * round))
      #expect(log.decisions.count == 1)
    }
  }

  @Test("what an administrator answered is not asked again, though its rule was gone by then")
  func answered() throws {
    func pausing() throws -> PolicyUpdater {
      try updater(rule("files", [.files([])], per: .domain, count: 1, ladder: [LadderStep(.pause)]))
    }
    for isLast in [true, false] {
      var before = try pausing()
      #expect(before.handle(fileEvent(), at: at(0)).map(\.status) == [.pending])
      var policy = before.policy
      policy.rules = [rule(count: 1)]
      _ = try before.replacePolicy(with: policy, at: at(1))
      _ = try before.deny(1, at: at(2))
      if !isLast { _ = before.handle(alert(), at: at(2)) }
      var after = try pausing()
      _ = after.restore(before.liveDecisions, at: at(3))
      #expect(after.pending.isEmpty)
      #expect(after.handle(fileEvent(), at: at(3)).map(\.id) == [isLast ? 2 : 3])
    }
  }

  @Test("in a dry run that began with a start: what was in force before it comes back when it is over")
  func realInDryRun() async throws {
    let (acting, _) = try start(at: at(0), isDryRun: false)
    await acting.handle([alert(), alert(from: address("203.0.113.8"))], at: at(0))
    let (imagining, _) = try start(at: at(10), isDryRun: true)
    #expect(await imagining.decisionsInForce.map(\.status) == [.dryRun, .dryRun])
    let key = try #require(told.first?.firewallMeasure).key
    try await imagining.lift(key, reason: "a mistake", at: at(11))
    await imagining.handle(alert(from: address("203.0.113.9")), at: at(12))
    await imagining.compactLog(at: at(13))
    let (again, _) = try start(at: at(20), isDryRun: false)
    #expect(await again.measuresInForce.map(\.decision) == [2])
    #expect(await again.handle(alert(), at: at(21)).map(\.measure) == [.quarantine], "the ladder goes on")
    // The word of one that begins or ends without a restart is in the log.
    let (other, _) = try start(at: at(30), isDryRun: true)
    var policy = await other.policy
    for isDryRun in [false, true] {
      policy.isDryRun = isDryRun
      try await other.replacePolicy(with: policy, at: at(31))
    }
    await other.compactLog(at: at(32))
    let (last, _) = try start(at: at(33), isDryRun: false)
    #expect(await last.measuresInForce.isEmpty)
  }
}
