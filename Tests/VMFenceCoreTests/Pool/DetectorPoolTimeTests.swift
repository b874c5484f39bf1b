import TestSupport
import Testing
import ToyEngine
import VMFenceCore
import VMFenceTestKit

@Suite("The detector pool tells detectors the time")
struct DetectorPoolTimeTests {
  let web = DomainDescription.numbered(1)

  private func rig(
    _ interval: Duration? = .seconds(1), keepsStates: Bool = false, waits: Bool = false
  ) throws -> PoolRig {
    let rig = PoolRig(
      [1: ToyRules([(.later, 7), (.alert, 8)])], .init(waitsWhenFull: waits, lookInterval: interval),
      keepsStates: keepsStates)
    try rig.happen(.create(web), at: 0)
    _ = rig.words()
    return rig
  }

  private func told(_ rig: PoolRig) -> UInt64 { rig.report(web)?.channel.timesTold ?? 0 }

  @Test("what waits for a packet is told of without one, in its place among the packets")
  func silence() throws {
    let rig = try rig()
    rig.send([7], to: web, at: 1)
    rig.tick(at: 1)
    rig.drain()
    #expect(rig.words() == ["alert 1 later on byte 7"])
    rig.send([7], to: web, at: 1.2)
    rig.tick(at: 1.5)
    rig.drain()
    #expect(rig.words() == [], "not before the interval is over")
    rig.tick(at: 2)
    rig.send([8], to: web, at: 2)
    rig.drain()
    #expect(rig.words().sorted() == ["alert 3 later on byte 7", "alert 4 alert on byte 8"])
    // The times are no packets.
    let counters = rig.counters(web)
    #expect(counters.packets == 3 && counters.inspected == 3 && counters.alerts == 3 && counters.droppedByRule == 0)
    #expect(told(rig) == 2 && rig.report(web)?.channel.enqueued == 5)
  }

  @Test("without traffic the pauses double; the first packet begins anew")
  func pauses() throws {
    let rig = try rig()
    for second in stride(from: 0, to: 10, by: 0.5) { rig.tick(at: second) }
    rig.drain()
    #expect(told(rig) == 0, "nothing was ever seen")
    rig.send([0], to: web, at: 10)
    var times: [Double] = []
    for second in stride(from: 10, to: 100, by: 0.5) {
      let before = told(rig)
      rig.tick(at: second)
      rig.drain()
      if told(rig) > before { times.append(second) }
    }
    #expect(times == [10, 11, 13, 17, 25, 41, 73])
    rig.send([0], to: web, at: 100)
    rig.tick(at: 100)
    rig.tick(at: 100.5)
    rig.tick(at: 101)
    rig.drain()
    #expect(told(rig) == 9)
  }

  @Test("more than fits a verdict comes with the next")
  func many() throws {
    let rig = try rig()
    rig.tick(at: 1)
    rig.send([7], to: web, at: 1, count: 100)
    for turn in 1...5 {
      rig.tick(at: 1 + Double(turn) / 100)
      rig.drain()
    }
    #expect(rig.words().count == 100)
    #expect(rig.counters(web).alerts == 100 && rig.counters(web).alertsLost == 0)
    #expect(told(rig) == 4)
  }

  @Test("a detector that is suspended is told when it runs again")
  func suspended() throws {
    let rig = try rig()
    rig.send([7], to: web, at: 1)
    rig.drain()
    try rig.happen(.pause(web.incarnation), at: 1)
    rig.tick(at: 30)
    #expect(told(rig) == 0)
    try rig.happen(.resume(web.incarnation), at: 31)
    rig.tick(at: 31)
    rig.drain()
    #expect(rig.words().contains("alert 1 later on byte 7"))
  }

  /// Turns the pool, with its time standing still, until the domain's detector has ended.
  private func turnUntilEnded(_ rig: PoolRig) {
    let hasEnded = comesTrue {
      guard rig.state(web) != .ended else { return true }
      rig.pool.wait(upTo: .milliseconds(10))
      rig.pool.collect(at: rig.clock.now)
      return rig.state(web) == .ended
    }
    #expect(hasEnded)
  }

  @Test("at the domain's end what waits is looked at, all of it", arguments: [false, true])
  func end(waits: Bool) throws {
    let rig = try rig(waits: waits)
    rig.send([7], to: web, at: 1, count: 100)
    try rig.happen(.destroy(web.incarnation), at: 1.5)
    turnUntilEnded(rig)
    #expect(rig.words().filter { $0.hasPrefix("alert") }.count == 100)
    #expect(rig.counters(web).inspected == 100 && rig.counters(web).uninspected.isEmpty)
  }

  @Test("when it is moved, or the platform stops, what waits goes on elsewhere")
  func moved() throws {
    let rig = try rig(keepsStates: true)
    rig.send([7], to: web, at: 1)
    rig.drain()
    try rig.happen(.suspend(web.incarnation), at: 1)
    try rig.happen(.migrateAway(web.incarnation), at: 1.2)
    try rig.happen(.destroy(web.incarnation), at: 1.3)
    turnUntilEnded(rig)
    #expect(rig.words().allSatisfy { !$0.hasPrefix("alert") })
    let other = try self.rig()
    other.send([7], to: web, at: 1)
    other.pool.close(at: .at(2))
    #expect(other.words().allSatisfy { !$0.hasPrefix("alert") })
  }

  @Test("nobody is told who did not ask for it")
  func off() throws {
    let rig = try rig(nil)
    rig.send([7], to: web, at: 1)
    for second in 1...10 { rig.tick(at: Double(second)) }
    rig.drain()
    #expect(rig.words() == [] && told(rig) == 0)
  }
}
