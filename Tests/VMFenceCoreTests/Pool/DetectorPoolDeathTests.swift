import Testing
import ToyEngine
import VMFenceCore
import VMFenceTestKit

@Suite("The detector pool, when detectors die")
struct DetectorPoolDeathTests {
  let web = DomainDescription.numbered(1)

  /// A rig with one domain, whose detector has not looked at what is in the ring: `bytes`, one packet each.
  func rig(
    holding bytes: [UInt8] = [], _ configuration: DetectorPool<MortalBackend>.Configuration = .init()
  ) throws -> PoolRig {
    let rig = PoolRig([1: ToyRules([(.alert, 7)])], configuration)
    rig.backend.startsStill = !bytes.isEmpty
    try rig.happen(.create(web), at: 0)
    rig.backend.startsStill = false
    _ = rig.words()
    for byte in bytes { rig.send([byte], to: web, at: 0.5) }
    rig.pool.publish()
    return rig
  }

  @Test("notices it, tells it, restarts at once and loses no packet")
  func restart() throws {
    let rig = try rig(holding: [7, 0, 7])
    try rig.backend.current?.die(.crashed(signal: 9))
    rig.tick(at: 1)
    rig.drain()
    #expect(
      rig.words() == [
        "alert 0 alert on byte 7", "alert 2 alert on byte 7", "detector-died", "q2×e7→q1", "q1×e2→q2",
        "detector-restarted",
      ])
    #expect(rig.counters(web).restarts == 1 && rig.counters(web).inspected == 3)
    #expect(rig.state(web) == .inspecting)
  }

  @Test("passes over a packet at its second death, keeps it, and goes on with the next at once")
  func poison() throws {
    let rig = try rig(holding: [0x66, 7])
    for second in 1...2 {
      try rig.backend.current?.die(.crashed(signal: 11))
      // The successor stands still at the same packet.
      rig.backend.startsStill = second == 1
      rig.tick(at: Double(second))
    }
    rig.drain()
    #expect(
      rig.words().filter { !$0.contains("×") } == [
        "alert 1 alert on byte 7", "detector-died", "detector-restarted", "detector-died", "poison-packet",
        "detector-restarted",
      ])
    #expect(rig.pool.evidence.map(\.bytes) == [[0x66]] && rig.pool.evidence[0].packetID == 0)
    #expect(rig.counters(web).droppedPoison == 1 && rig.counters(web).inspected == 1)
    #expect(rig.state(web) == .inspecting)
  }

  @Test("keeps no more evidence than it may, the latest")
  func boundedEvidence() throws {
    let rig = try rig(holding: [1, 2, 3, 4, 7], .init(evidenceCapacity: 2))
    rig.backend.startsStill = true
    for second in 1...8 {
      try rig.backend.current?.die(.crashed(signal: 11))
      rig.backend.startsStill = second < 8
      rig.tick(at: Double(second))
    }
    rig.drain()
    #expect(rig.pool.evidence.map(\.bytes) == [[3], [4]])
    #expect(rig.counters(web).droppedPoison == 4 && rig.counters(web).alerts == 1)
  }

  @Test("lays no blame on a packet when a detector ends by itself, and spaces out the restarts")
  func backOff() throws {
    let rig = try rig(holding: [7, 7])
    rig.backend.startsStill = true
    for second in 1...5 {
      try rig.backend.current?.die(.exited(code: 65))
      rig.tick(at: Double(second))
      #expect(rig.state(web) == .inspecting)
    }
    try rig.backend.current?.die(.exited(code: 65))
    rig.tick(at: 6)
    #expect(rig.state(web) == .unguarded)
    rig.tick(at: 6.09)
    #expect(rig.state(web) == .unguarded && rig.backend.launches == 6)
    rig.tick(at: 6.1)
    #expect(rig.state(web) == .inspecting)
    try rig.backend.current?.die(.exited(code: 65))
    rig.tick(at: 7)
    rig.tick(at: 7.15)
    #expect(rig.state(web) == .unguarded)
    // What comes meanwhile waits.
    rig.send([7], to: web, at: 7.2)
    rig.backend.startsStill = false
    rig.tick(at: 7.21)
    rig.drain()
    #expect(rig.counters(web).inspected == 3 && rig.counters(web).uninspected.isEmpty && rig.pool.evidence.isEmpty)
  }

  @Test("tries again, ever more slowly, when a detector cannot be started")
  func launchFails() throws {
    let rig = PoolRig()
    rig.backend.refuse(8)
    try rig.happen(.create(web), at: 0)
    #expect(rig.words() == ["Start×e2→q2", "detector-died", "q2×e7→q1"])
    var attempts = 1
    var second = 0.0
    while rig.state(web) != .inspecting, second < 60 {
      second += 0.1
      rig.tick(at: second)
      attempts += rig.words().count { $0 == "detector-died" }
    }
    #expect(attempts == 8 && rig.backend.launches == 1)
    #expect(second > 0.7 && second < 5)
    rig.send([7], to: web, at: second)
    rig.drain()
    #expect(rig.counters(web).alerts == 1)
  }

  @Test("ends one that does not answer any more, and takes what it stands at for the reason")
  func hang() throws {
    let rig = try rig(holding: [1, 7], .init(answerTimeout: .seconds(3)))
    rig.tick(at: 1)
    rig.tick(at: 2)
    #expect(rig.words() == [])
    rig.tick(at: 3)
    rig.drain()
    #expect(rig.words().contains("detector-died") && rig.counters(web).inspected == 2)
    // One that has nothing to do is left alone.
    rig.tick(at: 10)
    rig.tick(at: 20)
    #expect(rig.words() == [])
  }

  @Test("does not wait for one that says nothing for longer than it should")
  func unresponsive() throws {
    let rig = try rig()
    try rig.backend.current?.suspend()
    rig.send([7], to: web, at: 1)
    #expect(!rig.pool.drain(at: .at(1), patience: .milliseconds(20)))
    #expect(rig.report(web)?.waiting == 1)
    try rig.backend.current?.resume()
    let channel = try #require(rig.backend.channel)
    #expect(channel.waitForVerdicts(upTo: .seconds(20)) == .verdicts)
    rig.pool.collect(at: .at(1))
    rig.send([7], to: web, at: 2)
    rig.drain()
    #expect(rig.counters(web).inspected == 2)
  }

  /// A rig whose detector has written down that it saw three packets, and then died of a fourth, which its successor has before it.
  private func rigWithSnapshot() throws -> PoolRig {
    let rig = try rig(.init(snapshotInterval: .seconds(10)))
    for _ in 0..<3 { rig.send([7], to: web, at: 0.5) }
    rig.drain()
    rig.tick(at: 1)
    // What comes behind the question is answered behind it.
    rig.send([0], to: web, at: 2)
    rig.drain()
    _ = rig.words()
    rig.backend.startsStill = true
    try rig.backend.current?.die(.crashed(signal: 11))
    rig.send([7], to: web, at: 3)
    rig.pool.publish()
    rig.tick(at: 3)
    return rig
  }

  @Test("does not offer a saved state again that a detector died of before it had taken it over")
  func snapshotThatKills() throws {
    let rig = try rigWithSnapshot()
    #expect(rig.backend.channel?.lastState?.time == .at(1))
    // It has said nothing of the state.
    try rig.backend.current?.die(.exited(code: 1))
    rig.backend.startsStill = false
    rig.tick(at: 4)
    #expect(rig.words().contains("state-lost") && rig.backend.channel?.lastState == nil)
    rig.drain()
    let flows = rig.pool.takeEvents().compactMap { if case .alert(let alert) = $0 { alert.flowID } else { nil } }
    #expect(flows == [1], "it began with nothing")
  }

  @Test("forgets a saved state with which detectors die again and again, though they had taken it over")
  func snapshotThatKillsLater() throws {
    let rig = try rigWithSnapshot()
    for second in 4...9 {
      // The word in which a detector says that it has taken it over.
      rig.backend.channel?.up.area(272, count: 8).store(1 as UInt64, at: 0)
      try rig.backend.current?.die(.exited(code: 1))
      rig.tick(at: Double(second))
      let isKept = second < 9
      #expect((rig.backend.channel?.lastState != nil) == isKept, "\(second)")
      #expect(rig.words().contains("state-lost") != isKept, "\(second)")
    }
  }

  @Test("is suspended again with its domain after a restart")
  func restartWhilePaused() throws {
    let rig = try rig()
    try rig.happen(.pause(web.incarnation), at: 1)
    _ = rig.words()
    try rig.backend.current?.die(.crashed(signal: 9))
    rig.tick(at: 2)
    #expect(
      Set(rig.words()) == ["detector-died", "q3×e7→q1", "q1×e2→q2", "q2×e3→q3", "detector-restarted"])
    #expect(rig.state(web) == .suspended && rig.backend.current?.status == .suspended)
  }

  @Test("does not trip over a detector that is dead already when its domain ends")
  func deadAtTheEnd() throws {
    let rig = try rig(holding: [7, 7])
    try rig.backend.current?.die(.crashed(signal: 9))
    try rig.happen(.destroy(web.incarnation), at: 1)
    #expect(rig.state(web) == .ended && rig.report(web)?.automaton?.unexpectedCount == 0)
    let counters = rig.counters(web)
    #expect(counters.inspected + counters.droppedAtEnd == 2)
    #expect(rig.words().contains("packets-dropped"))
  }

  @Test("kills one that hangs up and runs on")
  func hangsUp() throws {
    let rig = try rig(holding: [7, 7])
    (rig.backend.current?.inner as? StillDetector)?.hangUp()
    rig.drain()
    #expect(rig.words().count { $0 == "detector-died" } == 1 && rig.counters(web).inspected == 2)
  }

  @Test("kills one that writes what a sound one never writes, tells it, and goes on")
  func violation() throws {
    let rig = try rig(holding: [7, 7])
    let channel = try #require(rig.backend.channel)
    // The index that says how far it has written.
    channel.up.area(0, count: 8).store(1 << 40 as UInt64, at: 0)
    rig.pool.collect(at: .at(1))
    rig.drain()
    let words = rig.words()
    #expect(words.count { $0 == "detector-violation" } == 1 && words.count { $0 == "detector-died" } == 1)
    #expect(rig.counters(web).inspected == 2 && rig.state(web) == .inspecting)
  }
}
