import Glibc
import TestSupport
import Testing
import ToyEngine
import VMFenceCore
import VMFenceProcess

@Suite("A pool of detector processes", .serialized)
struct ProcessPoolTests {
  let processes: ProcessDetectorBackend<ToyRules>
  let domains = (1...3).map { number in
    DomainDescription(
      incarnation: Incarnation(uuid: DomainUUID(high: 0, low: UInt64(number)), domainID: DomainID(UInt32(number))),
      name: "vm\(number)")
  }

  init() throws {
    processes = try ProcessDetectorBackend(
      executable: ProcessDetectorBackend<ToyRules>.besideThisProgram("test-detector"))
  }

  private func makePool<Backend: DetectorBackend>(
    _ backend: Backend, _ rules: ToyRules, savedState: @escaping (DomainDescription) -> [UInt8]? = { _ in nil },
    keepState: ((DomainDescription, [UInt8]?) -> Void)? = nil, snapshotInterval: Duration? = nil
  ) -> DetectorPool<Backend> where Backend.Rules == ToyRules {
    let configuration = DetectorPool<Backend>.Configuration(
      channel: DetectorChannelConfiguration(packetRingBytes: 8192, verdictRingBytes: 16384, snapLength: 2048),
      waitsWhenFull: true, snapshotInterval: snapshotInterval)
    let pool = DetectorPool(
      backend: backend, configuration: configuration, at: .zero, savedState: savedState, keepState: keepState,
      rules: { _ in rules })
    pool.update(
      .snapshot(InventorySnapshot(time: .zero, sequence: 1, domains: domains)), at: .zero)
    return pool
  }

  private func send<Backend: DetectorBackend>(
    _ bytes: [UInt8], to slot: Int, at second: Int64, _ pool: DetectorPool<Backend>
  ) {
    bytes.withRawSpan {
      pool.deliver(
        to: slot,
        FrameMetadata(timestamp: Timestamp(seconds: second), port: PortID(0), originalLength: UInt32(bytes.count)), $0)
    }
  }

  /// Three domains with repeatable noise, paused and resumed meanwhile.
  private func story<Backend: DetectorBackend>(_ pool: DetectorPool<Backend>) -> [Event]
  where Backend.Rules == ToyRules {
    var noise = Noise(11)
    var events: [Event] = []
    for second in 1...30 as ClosedRange<Int64> {
      let time = Timestamp(seconds: second)
      var domain = domains[Int(second) % 3]
      domain.runState = second % 4 == 0 ? .paused : .running
      pool.update(.changed(domain), at: time)
      for _ in 0..<20 {
        let bytes = (0..<Int.random(in: 0...200, using: &noise)).map { _ in
          UInt8.random(in: 0...255, using: &noise) & 0x3F
        }
        send(bytes, to: Int.random(in: 0..<3, using: &noise), at: second, pool)
      }
      _ = pool.drain(at: time)
      events += pool.takeEvents()
    }
    pool.close(at: Timestamp(seconds: 31))
    return events + pool.takeEvents()
  }

  @Test("says exactly what a pool of threads says")
  func sameAsThreads() {
    let rules = ToyRules([(.alert, 7), (.drop, 9)])
    let ofProcesses = story(makePool(processes, rules))
    let ofThreads = story(makePool(ThreadDetectorBackend<ToyInspector>(), rules))
    #expect(ofProcesses.count > 100)
    #expect(ofProcesses == ofThreads)
  }

  /// The second pool goes on with what the first one's detectors remembered, as far as it is a state.
  private func succession<Backend: DetectorBackend>(_ backend: Backend) -> (flows: [UInt64], told: [String])
  where Backend.Rules == ToyRules {
    let rules = ToyRules([(.alert, 7)])
    let first = makePool(backend, rules)
    for _ in 0..<5 { send([7], to: 0, at: 1, first) }
    send([7], to: 1, at: 1, first)
    var paused = domains[1]
    paused.runState = .paused
    first.update(.changed(paused), at: Timestamp(seconds: 2))
    let saved = first.saveStates(at: Timestamp(seconds: 3), patience: waitLimit)
    first.close(at: Timestamp(seconds: 3))
    #expect(saved.map(\.domain.name) == ["vm1", "vm2", "vm3"])
    let second = makePool(backend, rules) { domain in
      domain.name == "vm3" ? [1, 2, 3] : saved.first { $0.domain.incarnation == domain.incarnation }?.bytes
    }
    for slot in 0..<3 { send([7], to: slot, at: 4, second) }
    #expect(second.drain(at: Timestamp(seconds: 4)))
    second.tick(at: Timestamp(seconds: 5))
    var result: (flows: [UInt64], told: [String]) = ([], [])
    for event in second.takeEvents() {
      switch event {
      case .alert(let alert): result.flows.append(alert.flowID)
      case .platform(let alert): result.told.append("\(alert.kind.name): \(alert.message)")
      default: break
      }
    }
    second.close(at: Timestamp(seconds: 6))
    return result
  }

  @Test(
    "saves what its detectors remember, suspended ones too, and the next pool's go on with it or say that they cannot")
  func states() {
    for result in [succession(processes), succession(ThreadDetectorBackend<ToyInspector>())] {
      // Six packets, two, and one: that detector refused what it was given.
      #expect(result.flows == [6, 2, 1])
      #expect(result.told == ["state-lost: the detector refused the saved state, and began without one"])
    }
  }

  /// A domain is suspended to be moved, and comes under another number; `comesEarly`: it is there, and has a detector, before it is suspended.
  ///
  /// - Returns: how many packets the last detector says it has seen, and what was kept.
  private func move<Backend: DetectorBackend>(_ backend: Backend, comesEarly: Bool, fails: Bool = false) -> (
    alerts: [UInt64], kept: [Int?]
  ) where Backend.Rules == ToyRules {
    var (kept, states): ([Int?], [DomainUUID: [UInt8]]) = ([], [:])
    let pool = makePool(
      backend, ToyRules([(.alert, 7)]), savedState: { states[$0.incarnation.uuid] },
      keepState: { domain, bytes in
        kept.append(bytes?.count)
        states[domain.incarnation.uuid] = bytes
      })
    for _ in 0..<5 { send([7], to: 0, at: 1, pool) }
    var (old, new) = (domains[0], domains[0])
    new.incarnation = Incarnation(uuid: old.incarnation.uuid, domainID: DomainID(9))
    (new.migration, new.runState) = (.incoming, .paused)
    if comesEarly { pool.update(.changed(new), at: Timestamp(seconds: 2)) }
    // The detector has stopped with it before, as that of an idle domain has.
    old.runState = .paused
    pool.update(.changed(old), at: Timestamp(seconds: 2))
    old.runState = .suspendedForMigration
    pool.update(.changed(old), at: Timestamp(seconds: 3))
    // What the detector says is taken when it comes, and one whose domain is gone is kept for that.
    func goOn(until isSo: () -> Bool) {
      let hasComeTrue = comesTrue {
        guard !isSo() else { return true }
        pool.wait(upTo: .milliseconds(10))
        pool.collect(at: Timestamp(seconds: 4))
        return isSo()
      }
      #expect(hasComeTrue)
    }
    if fails {
      goOn { !kept.isEmpty }
      old.runState = .running
      pool.update(.changed(old), at: Timestamp(seconds: 4))
    } else {
      pool.update(.removed(old.incarnation), at: Timestamp(seconds: 4))
      goOn {
        pool.reports.first { $0.description.incarnation == old.incarnation }?.automaton?.state == .ended
      }
      (new.migration, new.runState) = (.none, .running)
      pool.update(.changed(new), at: Timestamp(seconds: 5))
    }
    let wanted = fails ? old.incarnation : new.incarnation
    let slot = pool.members.first { $0.domain.incarnation == wanted }?.slot ?? -1
    send([7], to: slot, at: 6, pool)
    #expect(pool.drain(at: Timestamp(seconds: 6)))
    #expect(pool.reports.first { $0.description.incarnation == wanted }?.automaton?.state == .inspecting)
    var alerts: [UInt64] = []
    for event in pool.takeEvents() {
      if case .alert(let alert) = event { alerts.append(alert.flowID) }
    }
    pool.close(at: Timestamp(seconds: 7))
    return (alerts, kept)
  }

  @Test("has the detector of a domain that was saved or migrated go on with what the one before remembers")
  func moves() {
    for result in [
      move(processes, comesEarly: false), move(ThreadDetectorBackend<ToyInspector>(), comesEarly: false),
    ] {
      #expect(result.alerts == [1, 2, 3, 4, 5, 6])
      #expect(result.kept.count == 1 && result.kept[0] != nil)
    }
    for result in [move(processes, comesEarly: true), move(ThreadDetectorBackend<ToyInspector>(), comesEarly: true)] {
      #expect(result.alerts == [1, 2, 3, 4, 5, 6])
      #expect(result.kept.isEmpty)
    }
  }

  @Test("goes on with its own memory when a move fails, and forgets what was kept for it")
  func moveFails() {
    for result in [
      move(processes, comesEarly: false, fails: true),
      move(ThreadDetectorBackend<ToyInspector>(), comesEarly: false, fails: true),
    ] {
      #expect(result.alerts == [1, 2, 3, 4, 5, 6])
      #expect(result.kept.count == 2 && result.kept[0] != nil && result.kept[1] == nil)
    }
  }

  @Test("survives a packet that crashes its detector, twice, and goes on with the next")
  func poison() {
    let pool = makePool(processes, ToyRules([(.alert, 7), (.crash, 9)]))
    for bytes in [[7], [9, 1], [7], [7]] as [[UInt8]] { send(bytes, to: 0, at: 1, pool) }
    send([7], to: 1, at: 1, pool)
    #expect(pool.drain(at: Timestamp(seconds: 1)))
    let report = pool.reports[0]
    #expect(report.counters.inspected == 3 && report.counters.alerts == 3)
    #expect(report.counters.droppedPoison == 1 && report.counters.restarts == 2)
    #expect(report.automaton?.state == .inspecting && report.waiting == 0)
    #expect(pool.evidence.map(\.bytes) == [[9, 1]] && pool.evidence.map(\.packetID) == [1])
    let kinds = pool.takeEvents().compactMap { event in
      if case .platform(let alert) = event { alert.kind.name } else { nil }
    }
    #expect(
      kinds == ["detector-died", "detector-restarted", "detector-died", "poison-packet", "detector-restarted"])
    #expect(pool.reports[1].counters.alerts == 1 && pool.reports[1].counters.restarts == 0)
    pool.close(at: Timestamp(seconds: 2))
  }

  @Test("goes on after a crash with what was written down before it, not with nothing")
  func snapshot() {
    for (interval, expected) in [
      (Duration.seconds(10), [1, 2, 3, 4, 4, 5]), (nil, [1, 2, 3, 4, 1, 2]),
    ] as [(Duration?, [UInt64])] {
      let pool = makePool(processes, ToyRules([(.alert, 7), (.crash, 9)]), snapshotInterval: interval)
      for _ in 0..<3 { send([7], to: 0, at: 1, pool) }
      #expect(pool.drain(at: Timestamp(seconds: 1)))
      // Asked for here, and answered before the next packet.
      pool.tick(at: Timestamp(seconds: 2))
      send([7], to: 0, at: 3, pool)
      // Too soon for another.
      pool.tick(at: Timestamp(seconds: 4))
      send([9], to: 0, at: 5, pool)
      for _ in 0..<2 { send([7], to: 0, at: 6, pool) }
      #expect(pool.drain(at: Timestamp(seconds: 6)))
      pool.tick(at: Timestamp(seconds: 7))
      var (alerts, told): ([UInt64], [String]) = ([], [])
      for event in pool.takeEvents() {
        switch event {
        case .alert(let alert): alerts.append(alert.flowID)
        case .platform(let alert): told.append(alert.kind.name)
        default: break
        }
      }
      #expect(alerts == expected)
      #expect(
        told == ["detector-died", "detector-restarted", "detector-died", "poison-packet", "detector-restarted"])
      pool.close(at: Timestamp(seconds: 8))
    }
  }

  @Test("ends a process that hangs, takes its packet for the reason, and goes on")
  func hang() throws {
    var configuration = DetectorPool<ProcessDetectorBackend<ToyRules>>.Configuration()
    configuration.answerTimeout = .seconds(3)
    let rules = ToyRules([(.alert, 7), (.hang, 9)])
    let pool = DetectorPool(backend: processes, configuration: configuration, at: .zero) { _ in rules }
    pool.update(.changed(domains[0]), at: .zero)
    send([9], to: 0, at: 1, pool)
    send([7], to: 0, at: 1, pool)
    pool.publish()
    var second: Int64 = 1
    let goesOn = comesTrue {
      // Time stands still for the next one, which may take longer to answer than the first was given.
      if pool.evidence.isEmpty { second += 1 }
      pool.wait(upTo: .milliseconds(100))
      pool.tick(at: Timestamp(seconds: second))
      return pool.reports[0].counters.inspected > 0
    }
    #expect(goesOn && pool.reports[0].counters.alerts == 1 && pool.evidence.map(\.bytes) == [[9]])
    pool.close(at: Timestamp(seconds: second))
  }

  @Test("wakes its driver when a verdict comes, and when a detector dies")
  func waits() {
    let pool = makePool(processes, ToyRules([(.alert, 7), (.crash, 9)]))
    var seen: [String] = []
    for (byte, wanted) in [(7, "alert"), (9, "detector-died")] as [(UInt8, String)] {
      send([byte], to: 2, at: 1, pool)
      pool.publish()
      let isSeen = comesTrue {
        pool.wait(upTo: .milliseconds(200))
        pool.collect(at: Timestamp(seconds: 1))
        pool.tick(at: Timestamp(seconds: 1))
        for event in pool.takeEvents() {
          switch event {
          case .alert: seen.append("alert")
          case .platform(let alert): seen.append(alert.kind.name)
          default: break
          }
        }
        return seen.contains(wanted)
      }
      #expect(isSeen)
    }
    pool.close(at: Timestamp(seconds: 2))
  }
}
