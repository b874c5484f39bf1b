import TestSupport
import Testing
import ToyEngine
import VMFenceCore
import VMFenceTestKit

@Suite("The detector pool, when domains end and detectors say nothing")
struct DetectorPoolEndTests {
  let web = DomainDescription.numbered(1)
  let db = DomainDescription.numbered(2)
  private static let rules = [1: ToyRules([(.alert, 7)]), 2: ToyRules([(.alert, 7)])] as [UInt64: ToyRules]

  /// Two domains. The detector of the first stands still over a packet; the other one's works.
  private func rig(_ configuration: DetectorPool<MortalBackend>.Configuration) throws -> PoolRig {
    let rig = PoolRig(Self.rules, configuration)
    rig.backend.startsStill = true
    try rig.happen(.create(web), at: 0)
    rig.backend.startsStill = false
    rig.send([7], to: web, at: 0.5)
    rig.pool.publish()
    return rig
  }

  /// Turns as a live driver does, at one moment of the pool's time, until something is so.
  private func turn(_ rig: PoolRig, until isSo: () -> Bool) {
    let hasComeTrue = comesTrue {
      guard !isSo() else { return true }
      rig.pool.publish()
      rig.pool.wait(upTo: .milliseconds(50))
      rig.pool.collect(at: rig.clock.now)
      return isSo()
    }
    #expect(hasComeTrue)
  }

  @Test("a detector that says nothing when its domain ends keeps nobody waiting, and is killed when its time is over")
  func endsBeside() throws {
    let rig = try rig(.init(endingPatience: .seconds(600)))
    try rig.happen(.create(db), at: 1)
    let began = ContinuousClock.now
    try rig.happen(.destroy(web.incarnation), at: 2)
    #expect(rig.state(web) == .orphaned)
    rig.send([7], to: db, at: 3)
    turn(rig) { rig.counters(db).alerts == 1 }
    #expect(ContinuousClock.now - began < .seconds(300))
    rig.tick(at: 601.9)
    #expect(rig.state(web) == .orphaned && rig.slot(web) != nil)
    rig.tick(at: 602)
    #expect(rig.state(web) == .ended && rig.slot(web) == nil && rig.counters(web).droppedAtEnd == 1)
    #expect(rig.backend.launches == 2 && rig.state(db) == .inspecting)
  }

  @Test("what a domain that is gone was called is its successor's, although its detector has not finished")
  func leavesItsNames() throws {
    let rig = try rig(.init(endingPatience: .seconds(60)))
    try rig.happen(.create(db), at: 1)
    func states() -> [RunState] { rig.pool.members.map(\.domain.runState) }
    #expect(states() == [.running, .running])
    try rig.happen(.destroy(web.incarnation), at: 2)
    #expect(rig.state(web) == .orphaned && states() == [.dying, .running])
  }

  @Test("a domain whose role in a migration changes is told apart anew")
  func rolesChange() throws {
    let rig = try rig(.init())
    let before = rig.pool.membershipGeneration
    try rig.happen(.suspend(web.incarnation), at: 1)
    #expect(rig.pool.membershipGeneration > before)
  }

  @Test("a detector that has something left when its domain ends inspects it first")
  func inspectsTheRest() throws {
    let rig = PoolRig(Self.rules, .init(endingPatience: .seconds(60)))
    try rig.happen(.create(web), at: 0)
    rig.send([7], to: web, at: 1, count: 50)
    try rig.happen(.destroy(web.incarnation), at: 2)
    turn(rig) { rig.state(web) == .ended }
    #expect(rig.counters(web).alerts == 50 && rig.counters(web).droppedAtEnd == 0)
  }

  @Test("a detector that dies over what is left is not started again")
  func diesOverTheRest() throws {
    let rig = try rig(.init(endingPatience: .seconds(60)))
    try rig.happen(.destroy(web.incarnation), at: 1)
    try rig.backend.current?.die(.crashed(signal: 11))
    rig.tick(at: 2)
    #expect(rig.state(web) == .ended && rig.backend.launches == 1 && rig.counters(web).droppedAtEnd == 1)
    #expect(rig.report(web)?.automaton?.unexpectedCount == 0)
  }

  @Test("a domain that is there after all keeps its detector, whose time is not over any more")
  func thereAfterAll() throws {
    let rig = try rig(.init(endingPatience: .seconds(10)))
    rig.pool.update(.removed(web.incarnation), at: .at(1))
    #expect(rig.state(web) == .orphaned)
    rig.pool.update(.changed(web), at: .at(2))
    rig.tick(at: 20)
    #expect(rig.state(web) == .inspecting && rig.backend.launches == 1 && rig.report(web)?.waiting == 1)
  }

  @Test("the shutdown does not outlast a detector that says nothing")
  func shutdown() throws {
    let rig = try rig(.init(endingPatience: .milliseconds(50)))
    rig.at(1)
    rig.pool.close(at: rig.clock.now)
    #expect(rig.pool.members.isEmpty && rig.counters(web).droppedAtEnd == 1)
  }

  /// So many stand still that it would be 96 s one after the other.
  private static let stillOnes: UInt64 = 24
  /// Long enough for the one that works, on a busy machine, too.
  private static let patience = Duration.seconds(4)
  private static let together = Duration.seconds(60)

  /// Domains whose detectors stand still over a packet, and behind them one whose works.
  private func manyStill(_ endingPatience: Duration) throws -> PoolRig {
    let numbers = 1...Self.stillOnes + 1
    let domains = numbers.map { DomainDescription.numbered($0) }
    let rig = PoolRig(
      Dictionary(uniqueKeysWithValues: numbers.map { ($0, ToyRules([(.alert, 7)])) }),
      .init(channel: PoolRig.smallRing, endingPatience: endingPatience))
    for domain in domains {
      rig.backend.startsStill = domain != domains.last
      try rig.happen(.create(domain), at: 0)
      rig.send([7], to: domain, at: 0.5)
    }
    return rig
  }

  @Test("detectors that say nothing are waited for all together at the shutdown")
  func shutdownOfMany() throws {
    let rig = try manyStill(Self.patience)
    rig.at(1)
    let began = ContinuousClock.now
    rig.pool.close(at: rig.clock.now)
    #expect(ContinuousClock.now - began < Self.together)
    #expect(
      rig.pool.members.isEmpty
        && rig.pool.reports.map(\.counters.droppedAtEnd) == (0...Self.stillOnes).map { $0 < Self.stillOnes ? 1 : 0 })
  }

  @Test("and when they are to say what they remember, which costs none that does")
  func statesOfMany() throws {
    let rig = try manyStill(.seconds(1))
    rig.at(1)
    let began = ContinuousClock.now
    let states = rig.pool.saveStates(at: rig.clock.now, patience: Self.patience)
    #expect(ContinuousClock.now - began < Self.together)
    #expect(states.map(\.domain.name) == ["vm\(Self.stillOnes + 1)"])
    #expect(rig.words().count { $0 == "state-lost" } == Self.stillOnes)
  }

  /// What a toy remembers of five packets.
  private static let saved = Array("SEEN".utf8) + [5, 0, 0, 0, 0, 0, 0, 0]

  /// A domain whose detector was offered a saved state; `stands`: it says nothing of it.
  private func offered(stands: Bool = true, refusals: Int = 0) throws -> PoolRig {
    let rig = PoolRig(Self.rules, savedState: Self.saved)
    rig.backend.startsStill = stands
    rig.backend.refuse(refusals)
    try rig.happen(.create(web), at: 0)
    return rig
  }

  private func states(_ rig: PoolRig, patience: Duration = waitLimit) -> [[UInt8]] {
    rig.pool.saveStates(at: rig.clock.now, patience: patience).map(\.bytes)
  }

  @Test("a saved state that no detector got to take over before the end is there for the next pool's")
  func untakenState() throws {
    var rig = try offered()
    #expect(states(rig, patience: .milliseconds(1)) == [Self.saved])
    // Nor is it lost with a detector that had packets and answered none.
    rig = try offered()
    rig.send([7], to: web, at: 1)
    #expect(states(rig, patience: .milliseconds(1)) == [Self.saved])
    #expect(!rig.words().contains("state-lost"))
  }

  @Test("so is that of a detector which could not be started, or one that can be goes on with it")
  func unstartedState() throws {
    var rig = try offered(refusals: 1)
    #expect(rig.backend.launches == 0 && states(rig) == [Self.saved])
    rig = try offered(stands: false, refusals: 1)
    rig.tick(at: 10)
    rig.send([7], to: web, at: 11)
    rig.drain()
    #expect(rig.backend.launches == 1 && states(rig) == [Array("SEEN".utf8) + [6, 0, 0, 0, 0, 0, 0, 0]])
  }

  @Test(
    "a domain that is moved before its detector took over a saved state takes that along: one that says nothing in time, or could not be started",
    arguments: [0, 1])
  func movedUntakenState(refusals: Int) throws {
    let rig = PoolRig(Self.rules, keepsStates: true, savedState: Self.saved)
    rig.backend.startsStill = true
    rig.backend.refuse(refusals)
    try rig.happen(.create(web), at: 0)
    #expect(rig.backend.launches == 1 - refusals)
    rig.send([7], to: web, at: 1)
    try rig.happen(.suspend(web.incarnation), at: 2)
    for second in 3...8 { rig.tick(at: Double(second)) }
    #expect(rig.keeper.kept.map(\.bytes) == [Self.saved])
    #expect(!rig.words().contains("state-lost"))
  }

  @Test("a saved state is given back neither beside what was made of it nor after a detector died over it")
  func takenState() throws {
    var rig = try offered()
    // The word in which a detector says that it has taken it over.
    rig.backend.channel?.up.area(272, count: 8).store(1 as UInt64, at: 0)
    #expect(states(rig, patience: .milliseconds(1)).isEmpty && rig.words().contains("state-lost"))
    rig = try offered()
    try rig.backend.current?.die(.crashed(signal: 11))
    rig.tick(at: 1)
    #expect(rig.backend.launches == 2 && states(rig, patience: .milliseconds(1)).isEmpty)
  }

  @Test("one that hangs up and runs on keeps nobody waiting, and is killed a tenth of a second later")
  func hangsUp() throws {
    let rig = try rig(.init())
    _ = rig.words()
    (rig.backend.current?.inner as? StillDetector)?.hangUp()
    rig.tick(at: 1)
    #expect(rig.words() == [] && rig.backend.launches == 1)
    // Its descriptor would end the sleep at once.
    let began = ContinuousClock.now
    rig.pool.wait(upTo: .milliseconds(50))
    #expect(ContinuousClock.now - began >= .milliseconds(45))
    rig.tick(at: 1.09)
    #expect(rig.words() == [])
    rig.tick(at: 1.1)
    #expect(rig.words().contains("detector-died") && rig.backend.launches == 2)
    turn(rig) { rig.counters(web).alerts == 1 }
  }
}
