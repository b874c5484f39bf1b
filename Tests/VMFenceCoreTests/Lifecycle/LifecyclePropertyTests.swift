import Testing
import ToyEngine
import VMFenceCore

@Suite("After any order, loss or doubling of notifications")
struct LifecyclePropertyTests {
  /// What a snapshot implies for a domain, said without looking at the tracker.
  static func implied(
    _ domain: DomainDescription?, isConfigured: Bool, isShuttingDown: Bool
  ) -> Set<LifecycleState?> {
    if isShuttingDown { return [.end, nil] }
    guard let domain, !domain.runState.isFinal, domain.migration != .migratedAway else { return [.ended, nil] }
    guard isConfigured else { return [.unguarded] }
    return domain.runState == .running ? [.inspecting] : [.suspended]
  }

  @Test("the states are those that the last snapshot implies", arguments: 0..<400 as Range<UInt64>)
  func convergence(seed: UInt64) throws {
    var noise = Noise(seed &* 0x9E37_79B9 &+ 7)
    var driver = TrackerDriver(.init(historyCapacity: 8))
    var now = 0.0
    var world: [DomainDescription] = []
    var shuttingDown = false
    var sequence: UInt64 = 0
    var snapshots: [InventorySnapshot] = []
    var pending: [InventoryChange] = []
    func snapshot(_ time: Double) -> InventorySnapshot {
      sequence += 1
      return InventorySnapshot(
        time: .at(time), sequence: sequence, domains: world.shuffled(using: &noise),
        isPlatformShuttingDown: shuttingDown)
    }
    for _ in 0..<60 {
      now += Double.random(in: 0...3, using: &noise)
      // The world goes on.
      let domain = DomainDescription.numbered(
        UInt64.random(in: 1...3, using: &noise), id: UInt32.random(in: 1...4, using: &noise)
      ).with(
        RunState.allCases.randomElement(using: &noise) ?? .running, cpu: Int.random(in: 0...3, using: &noise),
        role: Int.random(in: 0..<4, using: &noise) > 0
          ? .none : MigrationRole.allCases.randomElement(using: &noise) ?? .none)
      world.removeAll { $0.incarnation == domain.incarnation }
      if Int.random(in: 0..<5, using: &noise) > 0 {
        world.append(domain)
        pending.append(.changed(domain))
      } else {
        pending.append(.removed(domain.incarnation))
      }
      if Int.random(in: 0..<10, using: &noise) == 0 { snapshots.append(snapshot(now)) }
      if Int.random(in: 0..<400, using: &noise) == 0 { shuttingDown = true }
      // Notifications come in any order, twice, or not at all.
      switch Int.random(in: 0..<8, using: &noise) {
      case 0: pending.shuffle(using: &noise)
      case 1: if let change = pending.randomElement(using: &noise) { pending.append(change) }
      case 2: if !pending.isEmpty { pending.removeLast() }
      case 3: driver.configure(DomainUUID(high: 0, low: UInt64.random(in: 1...3, using: &noise)), at: now)
      case 4: driver.traffic(domain, at: now)
      case 5: if let old = snapshots.randomElement(using: &noise) { driver.apply(.snapshot(old), at: now) }
      case 6:
        if let some = driver.tracker.incarnations.randomElement(using: &noise) {
          driver.died(.numbered(some.uuid.low, id: some.domainID.rawValue), at: now)
        }
      default: driver.tick(at: now)
      }
      for _ in 0..<Int.random(in: 0...2, using: &noise) where !pending.isEmpty {
        driver.apply(pending.removeFirst(), at: now)
      }
    }
    let last = snapshot(now)
    driver.apply(.snapshot(last), at: now)
    // Those who are blocked are so for long enough, and nobody comes back from a migration.
    driver.tick(at: now + 10)

    #expect(driver.tracker.isShuttingDown == shuttingDown)
    for number in 1...3 as ClosedRange<UInt64> {
      for id in 1...4 as ClosedRange<UInt32> {
        let incarnation = DomainDescription.numbered(number, id: id).incarnation
        let states = Self.implied(
          last.domains.first { $0.incarnation == incarnation },
          isConfigured: driver.configured.contains(incarnation.uuid), isShuttingDown: shuttingDown)
        #expect(states.contains(driver.tracker.state(of: incarnation)), "\(incarnation)")
      }
    }
    try checkActions(driver)
  }

  /// Starts and kills alternate, stops and continuations too, transitions follow the table, and whoever rests unguarded without rules
  /// was announced.
  private func checkActions(_ driver: TrackerDriver) throws {
    var alive: Set<Incarnation> = []
    var stopped: Set<Incarnation> = []
    var asked: Set<Incarnation> = []
    var states: [Incarnation: LifecycleState] = [:]
    for action in driver.log {
      switch action {
      case .startDetector(let incarnation):
        try #require(alive.insert(incarnation).inserted, "started twice")
        stopped.remove(incarnation)
      case .suspendDetector(let incarnation):
        try #require(alive.contains(incarnation) && stopped.insert(incarnation).inserted, "stopped twice")
      case .resumeDetector(let incarnation):
        try #require(alive.contains(incarnation) && stopped.remove(incarnation) != nil, "not stopped")
      case .killDetector(let incarnation): try #require(alive.remove(incarnation) != nil, "killed twice")
      case .report(let report):
        let incarnation = report.incarnation
        switch report.kind {
        case .transition(let from, let event, let to):
          let state = states[incarnation] ?? .start
          try #require(from == state || from == .start && state == .ended)
          try #require(LifecycleTable.entry(from, event).target == to)
          // Its death was told by the test.
          if event == .detectorKilled { alive.remove(incarnation) }
          states[incarnation] = to
          if from != to { asked.remove(incarnation) }
        case .configurationNeeded: asked.insert(incarnation)
        case .unexpected(let state, let event):
          try #require(LifecycleTable.entry(state, event).origin == .unexpected)
        case .stuck: break
        }
      }
    }
    for (incarnation, state) in states {
      #expect(state == driver.tracker.state(of: incarnation))
      if state == .unguarded { #expect(asked.contains(incarnation)) }
      #expect(alive.contains(incarnation) == (state == .inspecting || state == .suspended))
      #expect(stopped.contains(incarnation) == (state == .suspended) || !alive.contains(incarnation))
    }
  }
}
