import Testing
import VMFenceCore

/// A tracker with somebody who does what it says: kills are done and reported back.
struct TrackerDriver {
  typealias Action = LifecycleTracker.Action
  var tracker: LifecycleTracker
  var configured: Set<DomainUUID> = []
  var log: [Action] = []
  /// Whether kills are carried out.
  var obeysKills = true

  init(_ configuration: LifecycleTracker.Configuration = .init()) {
    tracker = LifecycleTracker(configuration: configuration)
  }

  private mutating func take(_ actions: [Action]) {
    log += actions
    for case .killDetector(let incarnation) in actions where obeysKills {
      take(tracker.detectorGone(incarnation, at: tracker.now))
    }
  }

  mutating func apply(_ change: InventoryChange, at seconds: Double) {
    let configured = configured
    take(tracker.apply(change, at: .at(seconds)) { configured.contains($0.incarnation.uuid) })
  }

  mutating func see(_ domain: DomainDescription, at seconds: Double) { apply(.changed(domain), at: seconds) }
  mutating func tick(at seconds: Double) { take(tracker.tick(at: .at(seconds))) }
  mutating func traffic(_ domain: DomainDescription, at seconds: Double) {
    take(tracker.noteTraffic(domain.incarnation, at: .at(seconds)))
  }
  mutating func died(_ domain: DomainDescription, at seconds: Double, retry: Double? = nil) {
    take(tracker.detectorGone(domain.incarnation, at: .at(seconds), retry: retry.map { .at($0) }))
  }
  mutating func configure(_ uuid: DomainUUID, at seconds: Double) {
    configured.insert(uuid)
    let configured = configured
    take(tracker.reconfigure(at: .at(seconds)) { configured.contains($0.incarnation.uuid) })
  }

  func state(_ domain: DomainDescription) -> LifecycleState? { tracker.state(of: domain.incarnation) }

  /// What was done since the last call, in short words.
  mutating func words() -> [String] {
    defer { log = [] }
    return log.map { action in
      switch action {
      case .startDetector: "start"
      case .suspendDetector: "suspend"
      case .resumeDetector: "resume"
      case .killDetector: "kill"
      case .report(let report):
        switch report.kind {
        case .transition(let from, let event, let to): "\(from.paperName)×\(event.paperName)→\(to.paperName)"
        case .unexpected(let state, let event): "\(state.paperName)×\(event.paperName)?"
        case .configurationNeeded: "configure!"
        case .stuck(let state, _): "stuck \(state.paperName)"
        }
      }
    }
  }
}

extension Timestamp {
  static func at(_ seconds: Double) -> Timestamp { Timestamp(nanoseconds: Int64(seconds * 1e9)) }
}

extension DomainDescription {
  static func numbered(_ number: UInt64, id: UInt32? = nil, _ state: RunState = .running) -> DomainDescription {
    DomainDescription(
      incarnation: Incarnation(uuid: DomainUUID(high: 0, low: number), domainID: DomainID(id ?? UInt32(number))),
      name: "vm\(number)", runState: state)
  }

  func with(_ state: RunState, cpu: Int = 0, role: MigrationRole = .none) -> DomainDescription {
    var copy = self
    copy.runState = state
    copy.cpuTime = .seconds(cpu)
    copy.migration = role
    return copy
  }
}

@Suite("The lifecycle tracker")
struct LifecycleTrackerTests {
  let web = DomainDescription.numbered(1)

  func configuredDriver(_ configuration: LifecycleTracker.Configuration = .init()) -> TrackerDriver {
    var driver = TrackerDriver(configuration)
    driver.configured.insert(web.incarnation.uuid)
    driver.see(web, at: 0)
    return driver
  }

  @Test("asks for rules when a domain has none, once, and starts its detector when they come")
  func createdThenConfigured() {
    var driver = TrackerDriver()
    driver.see(web, at: 0)
    #expect(driver.words() == ["Start×e1→q1", "configure!"])
    driver.see(web, at: 1)
    driver.tick(at: 2)
    #expect(driver.words() == [])
    driver.configure(web.incarnation.uuid, at: 3)
    #expect(driver.words() == ["q1×e2→q2", "start"])
  }

  @Test("starts at once what is configured already, and stops it when the domain is paused")
  func configuredThenPaused() {
    var driver = configuredDriver()
    #expect(driver.words() == ["Start×e2→q2", "start"])
    driver.see(web.with(.paused), at: 1)
    #expect(driver.words() == ["q2×e3→q3", "suspend"])
    driver.see(web, at: 2)
    #expect(driver.words() == ["q3×e4→q2", "resume"])
  }

  @Test("guards a domain that is created paused, as a migration's target is, before it runs")
  func createdPaused() {
    var driver = TrackerDriver()
    driver.configured.insert(web.incarnation.uuid)
    driver.see(web.with(.paused, role: .incoming), at: 0)
    #expect(driver.words() == ["Start×e2→q2", "start", "q2×e3→q3", "suspend"])
  }

  @Test("calls a blocked domain halted only after it used no CPU time and had no traffic for two seconds")
  func blocked() {
    var driver = configuredDriver()
    _ = driver.words()
    driver.see(web.with(.blocked, cpu: 1), at: 10)
    driver.tick(at: 11.9)
    #expect(driver.words() == [])
    // It ran between two looks.
    driver.see(web.with(.blocked, cpu: 2), at: 11.95)
    driver.tick(at: 13)
    #expect(driver.words() == [])
    driver.traffic(web, at: 13.5)
    driver.tick(at: 15.4)
    #expect(driver.words() == [])
    driver.see(web.with(.blocked, cpu: 2), at: 15.45)
    driver.tick(at: 15.5)
    #expect(driver.words() == ["q2×e3→q3", "suspend"])
    #expect(driver.tracker.wakesOnTraffic(web.incarnation))
  }

  @Test("resumes the detector of a blocked domain at the first packet, and not that of a paused one")
  func packetWakes() {
    var driver = configuredDriver()
    driver.see(web.with(.blocked), at: 1)
    driver.tick(at: 3)
    _ = driver.words()
    driver.traffic(web, at: 4)
    #expect(driver.words() == ["q3×e4→q2", "resume"])
    driver.tick(at: 6)
    #expect(driver.words() == ["q2×e3→q3", "suspend"])
    // A packet that was captured earlier wakes all the same.
    driver.traffic(web, at: 1)
    #expect(driver.words() == ["q3×e4→q2", "resume"])
    driver.see(web.with(.paused), at: 7)
    _ = driver.words()
    driver.traffic(web, at: 8)
    #expect(driver.words() == [] && !driver.tracker.wakesOnTraffic(web.incarnation))
  }

  @Test("remembers the run state while there is no detector")
  func haltedWithoutDetector() {
    var driver = TrackerDriver()
    driver.see(web.with(.paused), at: 0)
    #expect(driver.words() == ["Start×e1→q1", "q1×e3→q1", "configure!"])
    driver.see(web, at: 1)
    driver.see(web.with(.paused), at: 2)
    #expect(driver.words() == ["q1×e4→q1", "q1×e3→q1"])
    driver.configure(web.incarnation.uuid, at: 3)
    #expect(driver.words() == ["q1×e2→q2", "start", "q2×e3→q3", "suspend"])
  }

  @Test("kills the detector of a domain that is over", arguments: [RunState.shutDown, .crashed, .dying])
  func over(state: RunState) {
    var driver = configuredDriver()
    _ = driver.words()
    driver.see(web.with(state), at: 1)
    #expect(driver.words() == ["q2×e5→q4", "kill", "q4×e7→q5"])
    driver.apply(.removed(web.incarnation), at: 2)
    #expect(driver.words() == [])
  }

  @Test("kills it while it is suspended too, and ends a domain that never had one")
  func gone() {
    var driver = configuredDriver()
    driver.see(web.with(.paused), at: 1)
    _ = driver.words()
    driver.apply(.removed(web.incarnation), at: 2)
    #expect(driver.words() == ["q3×e6→q4", "kill", "q4×e7→q5"])
    let other = DomainDescription.numbered(2)
    driver.see(other, at: 3)
    driver.apply(.removed(other.incarnation), at: 4)
    #expect(driver.words() == ["Start×e1→q1", "configure!", "q1×e5→q5"])
  }

  @Test("takes a save or the last step of a migration for a halt, not for the end")
  func suspendedForMigration() {
    var driver = configuredDriver()
    _ = driver.words()
    driver.see(web.with(.suspendedForMigration), at: 1)
    #expect(driver.words() == ["q2×e3→q3", "suspend"])
    driver.see(web, at: 2)
    #expect(driver.words() == ["q3×e4→q2", "resume"])
  }

  @Test("keeps the detector of a domain that was migrated away until that is certain")
  func migratedAway() {
    var driver = configuredDriver()
    driver.see(web.with(.suspendedForMigration), at: 1)
    _ = driver.words()
    driver.see(web.with(.suspendedForMigration, role: .migratedAway), at: 2)
    driver.tick(at: 3)
    #expect(driver.words() == ["q3×e6→q4"])
    driver.apply(.removed(web.incarnation), at: 4)
    #expect(driver.words() == ["kill", "q4×e7→q5"])
  }

  @Test("waits for a migrated domain no longer than the grace")
  func handoverGrace() {
    var driver = configuredDriver()
    driver.see(web.with(.suspendedForMigration, role: .migratedAway), at: 1)
    _ = driver.words()
    driver.tick(at: 5.9)
    #expect(driver.words() == [])
    driver.tick(at: 6)
    #expect(driver.words() == ["kill", "q4×e7→q5"])
    // The migration failed after all: it begins anew.
    driver.see(web, at: 7)
    #expect(driver.words() == ["Start×e2→q2", "start"])
    #expect(driver.tracker.automaton(of: web.incarnation)?.lives == 2)
    #expect(driver.tracker.automaton(of: web.incarnation)?.history.count == 4)
  }

  @Test("goes on with the same detector when a migration failed in its last step")
  func failedMigration() {
    var driver = configuredDriver()
    driver.see(web.with(.suspendedForMigration), at: 1)
    driver.see(web.with(.suspendedForMigration, role: .migratedAway), at: 2)
    _ = driver.words()
    driver.see(web, at: 3)
    #expect(driver.words() == ["q4×e4→q2", "resume"])
    driver.see(web.with(.suspendedForMigration, role: .migratedAway), at: 4)
    driver.see(web.with(.paused), at: 5)
    #expect(driver.words() == ["q2×e5→q4", "q4×e4→q2", "q2×e3→q3", "suspend"])
  }

  @Test("follows the two incarnations of a migration to the same host apart")
  func localhostMigration() {
    var driver = configuredDriver()
    let target = DomainDescription.numbered(1, id: 2)
    driver.see(target.with(.paused, role: .incoming), at: 1)
    driver.see(web.with(.suspendedForMigration), at: 2)
    driver.see(web.with(.suspendedForMigration, role: .migratedAway), at: 3)
    #expect(driver.state(web) == .orphaned && driver.state(target) == .suspended)
    driver.see(target, at: 4)
    driver.apply(.removed(web.incarnation), at: 5)
    #expect(driver.state(web) == .ended && driver.state(target) == .inspecting)
  }

  @Test("says that a domain is unguarded while its dead detector is not restarted")
  func detectorDies() {
    var driver = configuredDriver()
    _ = driver.words()
    driver.died(web, at: 1)
    #expect(driver.words() == ["q2×e7→q1", "q1×e2→q2", "start"])
    driver.died(web, at: 2, retry: 4)
    #expect(driver.words() == ["q2×e7→q1"])
    driver.tick(at: 3.9)
    #expect(driver.words() == [] && driver.state(web) == .unguarded)
    driver.tick(at: 4)
    #expect(driver.words() == ["q1×e2→q2", "start"])
    driver.see(web.with(.paused), at: 5)
    _ = driver.words()
    driver.died(web, at: 6)
    #expect(driver.words() == ["q3×e7→q1", "q1×e2→q2", "start", "q2×e3→q3", "suspend"])
  }

  @Test("counts and reports an event that does not fit, and changes nothing")
  func unexpected() {
    var driver = TrackerDriver()
    driver.see(web, at: 0)
    _ = driver.words()
    driver.died(web, at: 1)
    #expect(driver.words() == ["q1×e7?"])
    #expect(driver.tracker.automaton(of: web.incarnation)?.unexpectedCount == 1)
  }

  @Test("reports a swap of rules as e2, in q2 and in q3")
  func swap() {
    var driver = configuredDriver()
    _ = driver.words()
    driver.log += driver.tracker.rulesReplaced(web.incarnation, at: .at(1))
    driver.see(web.with(.paused), at: 2)
    driver.log += driver.tracker.rulesReplaced(web.incarnation, at: .at(3))
    driver.see(web, at: 4)
    #expect(driver.words() == ["q2×e2→q2", "q2×e3→q3", "suspend", "q3×e2→q3", "q3×e4→q2", "resume"])
  }

  @Test("says once when a domain stays in q1 or q4 for too long")
  func stuck() {
    var driver = TrackerDriver()
    driver.obeysKills = false
    driver.see(web, at: 0)
    driver.tick(at: 29)
    _ = driver.words()
    driver.tick(at: 30)
    driver.tick(at: 40)
    #expect(driver.words() == ["stuck q1"])
    driver.configure(web.incarnation.uuid, at: 41)
    driver.apply(.removed(web.incarnation), at: 42)
    driver.tick(at: 72)
    #expect(driver.words() == ["q1×e2→q2", "start", "q2×e5→q4", "kill", "stuck q4"])
    driver.died(web, at: 73)
    #expect(driver.words() == ["q4×e7→q5"])
  }

  @Test("kills every detector when the platform shuts down, and starts none any more")
  func platformShutdown() {
    var driver = configuredDriver()
    let other = DomainDescription.numbered(2)
    driver.see(other, at: 1)
    _ = driver.words()
    driver.apply(.platformShutdown, at: 2)
    #expect(driver.words() == ["q2×e8→End", "kill", "q1×e8→End"])
    driver.configured.insert(DomainUUID(high: 0, low: 3))
    driver.see(.numbered(3), at: 3)
    #expect(driver.words() == ["Start×e8→End"])
  }

  @Test("gives the actions of a snapshot in the order of incarnations, those for the gone first")
  func order() {
    var driver = configuredDriver()
    driver.configured.formUnion([DomainUUID(high: 0, low: 2), DomainUUID(high: 0, low: 3)])
    _ = driver.words()
    let snapshot = InventorySnapshot(
      time: .at(1), sequence: 1, domains: [.numbered(3), .numbered(2, .paused)])
    driver.apply(.snapshot(snapshot), at: 1)
    #expect(
      driver.words() == [
        "q2×e5→q4", "kill", "Start×e2→q2", "start", "q2×e3→q3", "suspend", "Start×e2→q2", "start", "q4×e7→q5",
      ])
  }

  @Test("passes over a snapshot that is older than one it has seen")
  func staleSnapshot() {
    var driver = configuredDriver()
    let present = InventorySnapshot(time: .at(1), sequence: 1, domains: [web])
    driver.apply(.snapshot(InventorySnapshot(time: .at(2), sequence: 2, domains: [])), at: 2)
    driver.apply(.snapshot(present), at: 3)
    #expect(driver.state(web) == .ended && driver.tracker.staleSnapshots == 1)
    // A new probe counts from the beginning, at a later time.
    driver.apply(.snapshot(InventorySnapshot(time: .at(4), sequence: 1, domains: [web])), at: 4)
    #expect(driver.state(web) == .inspecting)
  }

  @Test("follows no more domains than it may, and forgets the oldest of the ended ones")
  func bounds() {
    var driver = TrackerDriver(.init(maximumDomains: 3, endedKept: 2))
    for number in 1...5 as ClosedRange<UInt64> { driver.see(.numbered(number), at: 0) }
    #expect(driver.tracker.incarnations.count == 3 && driver.tracker.refusedDomains == 2)
    for number in [2, 1, 3] as [UInt64] {
      driver.apply(.removed(DomainDescription.numbered(number).incarnation), at: 1)
    }
    #expect(driver.tracker.incarnations.map(\.domainID.rawValue) == [1, 3])
    for number in 10..<100 as Range<UInt64> {
      driver.see(.numbered(number), at: 2)
      driver.apply(.removed(DomainDescription.numbered(number).incarnation), at: 2)
    }
    #expect(driver.tracker.incarnations.count == 2)
  }

  @Test("takes a time that goes back for the last one")
  func timeGoesBack() {
    var driver = configuredDriver()
    driver.tick(at: 100)
    driver.tick(at: 1)
    #expect(driver.tracker.now == .at(100))
  }
}
