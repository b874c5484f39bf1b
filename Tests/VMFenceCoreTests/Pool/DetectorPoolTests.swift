import TestSupport
import Testing
import ToyEngine
import VMFenceCore
import VMFenceTestKit

@Suite("The detector pool")
struct DetectorPoolTests {
  let web = DomainDescription.numbered(1)
  let ftp = DomainDescription.numbered(2)

  @Test("follows a domain through its whole life, and inspects every packet of it")
  func wholeLife() throws {
    let rig = PoolRig([:])
    try rig.happen(.create(web), at: 0)
    rig.send([7], to: web, at: 0.5)
    #expect(rig.words() == ["Start×e1→q1", "configure!"])
    #expect(rig.counters(web).droppedUnguarded == 1)

    rig.rules.rules[1] = ToyRules([(.alert, 7)])
    rig.at(1)
    rig.pool.rulesChanged(at: .at(1))
    rig.send([7], to: web, at: 1)
    rig.drain()
    #expect(rig.words() == ["q1×e2→q2", "alert 0 alert on byte 7"])

    try rig.happen(.block(web.incarnation), at: 2)
    rig.tick(at: 4)
    // With what came before there was a detector.
    #expect(rig.words() == ["q2×e3→q3", "packets-dropped"])
    rig.send([7], to: web, at: 5)
    rig.drain()
    #expect(rig.words() == ["q3×e4→q2", "alert 1 alert on byte 7"])

    try rig.happen(.pause(web.incarnation), at: 6)
    rig.send([7], to: web, at: 7, count: 3)
    rig.drain()
    #expect(rig.words() == ["q2×e3→q3"])
    #expect(rig.report(web)?.waiting == 3)
    try rig.happen(.resume(web.incarnation), at: 8)
    rig.drain()
    // By time: the packets came while the domain was paused.
    #expect(rig.words() == (2...4).map { "alert \($0) alert on byte 7" } + ["q3×e4→q2"])
    #expect(rig.counters(web).alerts == 5)

    try rig.happen(.suspend(web.incarnation), at: 9)
    rig.send([7], to: web, at: 9.5)
    try rig.happen(.migrateAway(web.incarnation), at: 10)
    #expect(rig.state(web) == .orphaned)
    try rig.happen(.destroy(web.incarnation), at: 11)
    // What waited in the ring is inspected before the detector is killed, and nobody waits for that but who wants to see it.
    rig.drain()
    #expect(rig.words() == ["q2×e3→q3", "alert 5 alert on byte 7", "q3×e6→q4", "q4×e7→q5"])
    #expect(rig.state(web) == .ended && rig.slot(web) == nil)
    let counters = rig.counters(web)
    #expect(counters.packets == 7 && counters.inspected == 6 && counters.alerts == 6)
    #expect(counters.uninspected.map(\.count) == [1])
    #expect(rig.report(web)?.channel.answered == 6)
  }

  /// Two domains with detectors. The first was paused and is suspended to be moved; its detector does not run when it is resumed for that.
  private func moving() throws -> (rig: PoolRig, held: MortalDetector) {
    let rig = PoolRig([1: ToyRules([(.alert, 7)]), 2: ToyRules([(.alert, 7)])], keepsStates: true)
    try rig.happen(.create(web), at: 0)
    let held = try #require(rig.backend.current)
    try rig.happen(.create(ftp), at: 0)
    rig.send([7], to: web, at: 1)
    rig.drain()
    try rig.happen(.pause(web.incarnation), at: 1)
    held.hold()
    try rig.happen(.suspend(web.incarnation), at: 2)
    _ = rig.words()
    return (rig, held)
  }

  /// Turns the pool, with its time standing still, until something is so.
  private func turn(_ rig: PoolRig, until isSo: () -> Bool) {
    let hasComeTrue = comesTrue {
      guard !isSo() else { return true }
      rig.pool.wait(upTo: .milliseconds(10))
      rig.pool.collect(at: rig.clock.now)
      return isSo()
    }
    #expect(hasComeTrue)
  }

  @Test("guards others while a moved domain's detector has not said what it remembers, and takes that when it comes")
  func asksWithoutWaiting() throws {
    let (rig, held) = try moving()
    rig.send([7], to: ftp, at: 3)
    rig.pool.publish()
    turn(rig) { rig.counters(ftp).alerts == 1 }
    #expect(rig.keeper.kept.isEmpty)
    // Not even its domain's end is waited for.
    try rig.happen(.destroy(web.incarnation), at: 4)
    #expect(rig.state(web) == .orphaned)
    try held.letGo()
    turn(rig) { rig.state(web) == .ended }
    #expect(rig.keeper.kept.map(\.domain) == [1] && rig.keeper.kept.first?.bytes?.isEmpty == false)
    rig.pool.close(at: .at(5))
  }

  @Test("gives up on a moved domain's detector that never says what it remembers")
  func asksWithinBounds() throws {
    let (rig, _) = try moving()
    try rig.happen(.destroy(web.incarnation), at: 3)
    rig.tick(at: 6)
    #expect(rig.state(web) == .orphaned && rig.keeper.kept.isEmpty)
    rig.send([7], to: ftp, at: 6)
    rig.pool.publish()
    turn(rig) { rig.counters(ftp).alerts == 1 }
    // At its end it is woken for what may be left in its ring, and there is nothing.
    rig.tick(at: 7)
    #expect(rig.words().contains("state-lost") && rig.state(web) == .ended && rig.keeper.kept.isEmpty)
    rig.pool.close(at: .at(8))
  }

  @Test("gives alerts the words of its own rules, of the generation that inspected the packet")
  func rulesSwap() throws {
    let rig = PoolRig()
    try rig.happen(.create(web), at: 0)
    _ = rig.words()
    rig.send([9, 7], to: web, at: 1)
    rig.rules.rules[1] = ToyRules([(.alert, 9)])
    rig.pool.rulesChanged(at: .at(2))
    rig.send([9, 7], to: web, at: 3)
    rig.drain()
    #expect(
      rig.words() == ["alert 0 alert on byte 7", "alert 0 drop on byte 9", "q2×e2→q2", "alert 1 alert on byte 9"])
    #expect(rig.counters(web).droppedByRule == 1)
    // The same rules again are no swap.
    rig.pool.rulesChanged(at: .at(4))
    #expect(rig.words() == [] && rig.backend.launches == 1)
  }

  @Test("chooses the rules of a domain again when its name becomes known")
  func renamed() throws {
    let rig = PoolRig()
    try rig.happen(.create(web), at: 0)
    _ = rig.words()
    rig.rules.rules[1] = ToyRules([(.alert, 9)])
    try rig.happen(.pause(web.incarnation), at: 1)
    try rig.happen(.resume(web.incarnation), at: 1)
    #expect(rig.words() == ["q2×e3→q3", "q3×e4→q2"], "nothing by which rules are chosen has changed")
    try rig.happen(.rename(web.incarnation, to: "shop"), at: 2)
    rig.send([9], to: web, at: 3)
    rig.drain()
    #expect(rig.words() == ["q2×e2→q2", "alert 0 alert on byte 9"])
  }

  @Test("keeps the heads of packets that rules refused, when it is told to, and counts what nobody takes")
  func refusedPackets() throws {
    let rig = PoolRig([1: ToyRules([(.alert, 7), (.drop, 9)])], .init(keepsRefusedPackets: true))
    try rig.happen(.create(web), at: 0)
    rig.send([7], to: web, at: 1)
    rig.send([9] + Array(repeating: 1, count: 400), to: web, at: 1)
    rig.drain()
    let refused = rig.pool.takeRefusedPackets()
    #expect(refused.map(\.verdict) == [.drop] && refused.first?.incarnation == web.incarnation)
    #expect(refused.first?.rule.message == "drop on byte 9")
    #expect(refused.first?.head == [9] + Array(repeating: 1, count: RefusedPacket.headBytes - 1))
    #expect(refused.first?.frame.originalLength == 401)
    #expect(rig.pool.takeRefusedPackets().isEmpty && rig.pool.refusedPacketsLost == 0)
    rig.send([9], to: web, at: 2, count: 4_100)
    rig.drain()
    #expect(rig.pool.takeRefusedPackets().count == 4_096 && rig.pool.refusedPacketsLost == 4)
  }

  @Test("a guest with many refused packets leaves room to one in a later slot, and what it loses is counted as its own")
  func refusedPacketsAreShared() throws {
    let rig = PoolRig([1: ToyRules([(.drop, 9)]), 2: ToyRules([(.drop, 9)])], .init(keepsRefusedPackets: true))
    try rig.happen(.create(web), at: 0)
    try rig.happen(.create(ftp), at: 0)
    for second in 1...2 {
      rig.send([9], to: web, at: Double(second), count: 10_000)
      rig.send([9], to: ftp, at: Double(second), count: 100)
      rig.drain()
      let refused = rig.pool.takeRefusedPackets()
      #expect(refused.count { $0.incarnation == ftp.incarnation } == 100)
      #expect(refused.count { $0.incarnation == web.incarnation } == 4_096)
    }
    #expect(rig.counters(web).refusalsLost == 2 * (10_000 - 4_096) && rig.counters(ftp).refusalsLost == 0)
    #expect(rig.pool.refusedPacketsLost == 2 * (10_000 - 4_096))
  }

  @Test("keeps the first packets behind one that was rejected, of the same domain only, and knows which packet each is")
  func behindRejected() throws {
    let rig = PoolRig([1: ToyRules([(.reject, 8), (.drop, 9)])], .init(keepsRefusedPackets: true))
    try rig.happen(.create(web), at: 0)
    rig.send([9], to: web, at: 1)
    rig.send([1], to: web, at: 1)
    rig.send([8], to: web, at: 2)
    rig.send([2], to: web, at: 3, count: RefusedPacket.following + 5)
    rig.drain()
    let kept = rig.pool.takeRefusedPackets()
    #expect(kept.prefix(3).map(\.verdict) == [.drop, .reject, .pass] && kept.prefix(3).map(\.packetID) == [0, 2, 3])
    #expect(kept.count == 2 + RefusedPacket.following && kept.dropFirst(2).allSatisfy { $0.head == [2] })
    #expect(kept.last?.rule.message == "reject on byte 8")
    rig.send([2], to: web, at: 4)
    rig.drain()
    #expect(rig.pool.takeRefusedPackets().isEmpty)
  }

  @Test("keeps none of them when it is not told to")
  func noRefusedPackets() throws {
    let rig = PoolRig()
    try rig.happen(.create(web), at: 0)
    rig.send([9], to: web, at: 1)
    rig.drain()
    #expect(rig.counters(web).droppedByRule == 1 && rig.pool.takeRefusedPackets().isEmpty)
  }

  @Test("swaps rules of a suspended domain as often as it must, and still knows every alert's rule")
  func manySwapsWhileSuspended() throws {
    let rig = PoolRig()
    try rig.happen(.create(web), at: 0)
    try rig.happen(.pause(web.incarnation), at: 1)
    _ = rig.words()
    for byte in 20..<60 as Range<UInt8> {
      rig.rules.rules[1] = ToyRules([(.alert, byte)])
      rig.pool.rulesChanged(at: .at(2))
      rig.send([byte], to: web, at: 2)
    }
    try rig.happen(.resume(web.incarnation), at: 3)
    rig.drain()
    let alerts = rig.words().filter { $0.hasPrefix("alert") }
    #expect(alerts == (0..<40).map { "alert \($0) alert on byte \($0 + 20)" })
    #expect(rig.counters(web).alertsLost == 0)
  }

  @Test("puts events into one order, however fast the detectors are")
  func order() throws {
    func run(collects: Bool) throws -> [Event] {
      let rig = PoolRig([1: ToyRules([(.alert, 7)]), 2: ToyRules([(.alert, 7), (.alert, 8)])])
      try rig.happen(.create(web), at: 0)
      try rig.happen(.create(ftp), at: 0)
      for round in 1...50 {
        let time = 1 + Double(round) / 10
        rig.send([7, 8], to: round % 3 == 0 ? web : ftp, at: time, count: 5)
        if collects {
          rig.pool.publish()
          if round % 2 == 0 { rig.drain() }
          rig.pool.collect(at: .at(time))
        }
      }
      rig.drain()
      return rig.pool.takeEvents()
    }
    let lazy = try run(collects: false)
    let eager = try run(collects: true)
    #expect(lazy.count == 2 + 16 * 5 + 34 * 10)
    #expect(lazy == eager)
  }

  @Test("keeps the alerts of a domain in the order of its packets, whatever times those carry")
  func orderAgainstTime() throws {
    let rig = PoolRig()
    try rig.happen(.create(web), at: 0)
    _ = rig.words()
    let slot = try #require(rig.slot(web))
    for time in [5, 1_000_000, 3, -9] as [Int64] {
      [7].withRawSpan {
        rig.pool.deliver(
          to: slot, FrameMetadata(timestamp: Timestamp(seconds: time), port: PortID(1), originalLength: 1), $0)
      }
    }
    rig.drain()
    #expect(rig.words() == (0..<4).map { "alert \($0) alert on byte 7" })
  }

  @Test("is not misled about the time by what frames carry")
  func hostileTime() throws {
    let rig = PoolRig()
    try rig.happen(.create(web), at: 0)
    try rig.happen(.block(web.incarnation), at: 1)
    let slot = try #require(rig.slot(web))
    [0].withRawSpan {
      rig.pool.deliver(
        to: slot, FrameMetadata(timestamp: Timestamp(nanoseconds: .max), port: PortID(1), originalLength: 1), $0)
    }
    rig.tick(at: 2)
    #expect(rig.state(web) == .inspecting)
    rig.tick(at: 6)
    #expect(rig.state(web) == .suspended)
    rig.send([0], to: web, at: 7)
    #expect(rig.state(web) == .inspecting)
    #expect(rig.pool.reports.allSatisfy { $0.automaton?.since ?? .zero < .at(10) })
  }

  @Test("does not let a packet wake the detector of a paused domain")
  func pausedIsNotBlocked() throws {
    let rig = PoolRig()
    try rig.happen(.create(web), at: 0)
    try rig.happen(.pause(web.incarnation), at: 1)
    rig.send([7], to: web, at: 2)
    rig.tick(at: 3)
    #expect(rig.state(web) == .suspended && rig.report(web)?.waiting == 1)
  }

  @Test("counts what finds the ring full, and tells of it, but not for each packet")
  func fullRing() throws {
    let rig = PoolRig([1: ToyRules([])], .init(channel: PoolRig.smallRing))
    try rig.happen(.create(web), at: 0)
    try rig.happen(.pause(web.incarnation), at: 1)
    _ = rig.words()
    rig.send([UInt8](repeating: 0, count: 1000), to: web, at: 2, count: 10)
    rig.tick(at: 3)
    #expect(rig.words() == ["packets-dropped"])
    rig.send([UInt8](repeating: 0, count: 1000), to: web, at: 4, count: 10)
    rig.tick(at: 5)
    #expect(rig.words() == [])
    rig.tick(at: 13)
    #expect(rig.words() == ["packets-dropped"])
    try rig.happen(.resume(web.incarnation), at: 14)
    rig.drain()
    let counters = rig.counters(web)
    #expect(counters.packets == 20 && counters.inspected + counters.droppedFull == 20 && counters.droppedFull > 10)
  }

  @Test("waits for room in a replay, and then loses nothing")
  func waitsWhenFull() throws {
    let rig = PoolRig([1: ToyRules([(.alert, 7)])], .init(channel: PoolRig.smallRing, waitsWhenFull: true))
    try rig.happen(.create(web), at: 0)
    rig.send([UInt8](repeating: 7, count: 1000), to: web, at: 1, count: 200)
    rig.drain()
    #expect(rig.counters(web).inspected == 200 && rig.counters(web).uninspected.isEmpty)
  }

  @Test("keeps the detector and its flows when a migration fails in its last step")
  func failedMigration() throws {
    let rig = PoolRig()
    try rig.happen(.create(web), at: 0)
    try rig.happen(.suspend(web.incarnation), at: 1)
    try rig.happen(.migrateAway(web.incarnation), at: 2)
    try rig.happen(.failMigration(web.incarnation), at: 3)
    rig.send([7], to: web, at: 4)
    rig.drain()
    #expect(rig.words().suffix(2) == ["q4×e4→q2", "alert 0 alert on byte 7"])
    #expect(rig.backend.launches == 1)
  }

  @Test("guards both ends of a migration to the same host")
  func localhostMigration() throws {
    let rig = PoolRig()
    var target = web
    target.incarnation.domainID = DomainID(5)
    try rig.happen(.create(web), at: 0)
    try rig.happen(.migrateIn(target), at: 1)
    #expect(rig.state(target) == .suspended && rig.pool.members.count == 2)
    try rig.happen(.suspend(web.incarnation), at: 2)
    try rig.happen(.migrateAway(web.incarnation), at: 3)
    try rig.happen(.completeMigration(target.incarnation), at: 4)
    try rig.happen(.destroy(web.incarnation), at: 5)
    rig.send([7], to: target, at: 6)
    rig.drain()
    #expect(rig.state(web) == .ended && rig.state(target) == .inspecting)
    #expect(rig.counters(target).alerts == 1 && rig.backend.launches == 2)
  }

  @Test("goes on with the figures of a domain that ended and is present after all")
  func beginsAnew() throws {
    let rig = PoolRig()
    try rig.happen(.create(web), at: 0)
    rig.send([7], to: web, at: 1)
    rig.pool.update(.removed(web.incarnation), at: .at(2))
    rig.drain()
    #expect(rig.state(web) == .ended)
    rig.pool.update(.changed(web), at: .at(3))
    rig.send([7], to: web, at: 4)
    rig.drain()
    #expect(rig.pool.reports.count == 1 && rig.counters(web).inspected == 2)
    #expect(rig.report(web)?.channel.answered == 2 && rig.report(web)?.automaton?.lives == 2)
  }

  @Test("frees the slots of all domains that are gone, however many at once")
  func freesSlots() throws {
    let rig = PoolRig([:], .init(lifecycle: .init(endedKept: 3), endedReportCapacity: 5))
    for number in 1...20 as ClosedRange<UInt64> { try rig.happen(.create(.numbered(number)), at: 0) }
    #expect(rig.pool.members.map(\.slot) == Array(0..<20))
    let generation = rig.pool.membershipGeneration
    rig.pool.update(.snapshot(InventorySnapshot(time: .at(1), sequence: 1, domains: [])), at: .at(1))
    #expect(rig.pool.members.isEmpty && rig.pool.membershipGeneration > generation)
    #expect(rig.pool.reports.count == 5)
    try rig.happen(.create(.numbered(50)), at: 2)
    #expect(rig.pool.members.map(\.slot) == [0])
  }

  @Test("counts frames for slots that nobody has")
  func undeliverable() {
    let rig = PoolRig()
    rig.send([1], to: web, at: 0, count: 3)
    #expect(rig.pool.undeliverable == 3)
  }

  @Test("reports a gap of the probe, and follows the snapshot after it")
  func probeGap() throws {
    let rig = PoolRig()
    rig.pool.update(.gap(count: 2, reason: "too\u{1B}slow"), at: .at(1))
    let events = rig.pool.takeEvents()
    guard case .platform(let alert)? = events.first else {
      Issue.record("no alert")
      return
    }
    #expect(alert.kind == .probeGap && !alert.message.contains("\u{1B}"))
    rig.pool.update(.snapshot(InventorySnapshot(time: .at(1), sequence: 1, domains: [web])), at: .at(1))
    #expect(rig.state(web) == .inspecting)
  }

  @Test("ends all detectors when the platform shuts down, with what was in their rings inspected")
  func close() throws {
    let rig = PoolRig()
    try rig.happen(.create(web), at: 0)
    rig.send([7], to: web, at: 1)
    rig.pool.close(at: .at(2))
    #expect(rig.words() == ["Start×e2→q2", "alert 0 alert on byte 7", "q2×e8→End"])
    #expect(rig.state(web) == .end && rig.pool.members.isEmpty && rig.backend.current?.status == .killed)
  }
}
