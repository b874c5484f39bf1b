#if Daemon
import ArgumentParser
import VMFenceCapture
import VMFenceCore
import VMFenceDetection
import VMFencePackets
import VMFenceTestKit

/// Replays a scenario on the virtual clock. Everything but the time, the hypervisor and the firewall is the real part.
///
/// The time moves in windows: what happens in a window is delivered, then all detectors answer, then the alerts are
/// counted, so that a measure is in force from the next window on, whatever the detectors are made of. That is what makes
/// the output the same every time.
final class ReplayRun<Backend: DetectorBackend> where Backend.Rules == SnortRules {
  /// How long a window is while something happens. An alert leads to a measure within it.
  static var window: Duration { .milliseconds(10) }
  /// How far the time moves when nothing happens, so that states that depend on time are seen in passing.
  static var idleWindow: Duration { .milliseconds(250) }

  let scenario: Scenario
  let pool: DetectorPool<Backend>
  let start: Timestamp
  private let directory = DomainDirectory()
  private let firewall = RecordingFirewallSink()
  private let decisions = RecordingEventSink()
  private let disks: [DiskWatch]
  private let hypervisor: ScenarioHypervisor
  private let configured: ConfiguredDomains
  private let publisher = DispatchTablePublisher()
  private var dispatcher: Dispatcher
  private var ports = HostPorts()
  private var frames: FrameFeed
  private let coordinator: EnforcementCoordinator
  private let encoder: EVEEncoder
  private let decoding: DecodeSettings
  private let eve: LineFile?
  private var membership: UInt64?
  private var slotOwners: [Int: Incarnation] = [:]
  private var lookup = BlockLookup(FirewallState(generation: 0, measures: []), key: (0, 0))
  private var lookupGeneration: UInt64 = 0
  private var pending: [Event] = []
  private var tally = ReplayTally()
  private var sourceAlerts = SourceAlertPace()

  init(
    _ scenario: Scenario, rules: RuleSelection, backend: Backend, captures: [(file: ScenarioCapture, size: Int64)],
    eve: LineFile?
  ) throws(ReplayFailure) {
    self.scenario = scenario
    self.eve = eve
    frames = try FrameFeed(captures, &ports)
    start = scenario.start ?? frames.next?.timestamp ?? Timestamp(seconds: 0)
    hypervisor = ScenarioHypervisor(scenario, start: start)
    let configured = ConfiguredDomains(scenario)
    self.configured = configured
    pool = DetectorPool(
      backend: backend,
      configuration: .init(
        lifecycle: .init(blockedAfter: scenario.lifecycle.blockedAfter, stuckAfter: scenario.lifecycle.stuckAfter),
        channel: .init(packetRingBytes: 1 << 20, verdictRingBytes: 1 << 18), inspector: scenario.inspector,
        waitsWhenFull: true, endingPatience: .seconds(10), lookInterval: .seconds(1),
        packetNotes: scenario.packetNotes), at: start
    ) { domain in configured.contains(domain.incarnation.uuid) ? rules.rules(for: domain) : nil }
    dispatcher = Dispatcher(publisher)
    decoding = scenario.inspector.decoding
    encoder = EVEEncoder(node: scenario.node, isInline: scenario.inspector.isInline, directory: directory)
    disks = try Self.disks(scenario, start)
    do throws(PolicyError) {
      coordinator = EnforcementCoordinator(
        updater: try PolicyUpdater(policy: scenario.policy, directory: directory), log: MemoryDecisionLog(),
        firewall: firewall, control: hypervisor, events: decisions,
        // The mock acts at once; what a replay tells must not depend on how busy the machine is.
        actionPatience: .seconds(60))
    } catch { throw ReplayFailure(error.diagnostic) }
  }

  private static func disks(_ scenario: Scenario, _ start: Timestamp) throws(ReplayFailure) -> [DiskWatch] {
    var disks: [DiskWatch] = []
    do throws(DiskWatch.Failure) {
      for domain in scenario.domains {
        if let disk = domain.disk { disks.append(try DiskWatch(domain, disk, start: start)) }
      }
    } catch { throw ReplayFailure(error.diagnostic) }
    return disks
  }

  /// Runs to the end.
  func run(progress: (Int64, Int64) -> Void) async throws(ReplayFailure) -> ReplaySummary {
    var now = start
    var lastBusy = start
    try await step(to: now)
    while let next = nextMoment(after: now, lastBusy: lastBusy) {
      now = next.time
      if next.isBusy { lastBusy = now }
      try await step(to: now)
      progress(frames.bytesDone, frames.bytesTotal)
    }
    await tell(disks.flatMap { $0.finish(at: now) }.map { Event.file($0) }, at: now)
    await advanceDecisions(to: now)
    let summary = ReplaySummary(
      scenario: scenario, start: start, end: now, reports: pool.reports, tally: tally, capture: frames.counters,
      captureProblem: frames.problem, dispatch: dispatcher.counters, disks: disks, measures: await measures(at: now))
    eve?.write(encoder.encode(summary.statistics))
    pool.close(at: now)
    return summary
  }

  /// The end of the next window, cut at the hypervisor's next step; nil at the end of the replay.
  private func nextMoment(after now: Timestamp, lastBusy: Timestamp) -> (time: Timestamp, isBusy: Bool)? {
    let hasDisk = disks.contains { !$0.isAtEnd }
    let coming = [frames.next?.timestamp, hypervisor.nextStep].compactMap(\.self)
    if coming.isEmpty, !hasDisk, now >= lastBusy + scenario.settle { return nil }
    var end = now + (hasDisk ? Self.window : Self.idleWindow)
    if let soon = coming.min() { end = min(end, max(now + Self.window, soon)) }
    if let step = hypervisor.nextStep, step > now { end = min(end, step) }
    return (end, hasDisk || coming.contains { $0 <= end })
  }

  /// One window: what happens up to `time`.
  private func step(to time: Timestamp) async throws(ReplayFailure) {
    for step in hypervisor.advance(to: time) where step.step.event == .configured {
      configured.insert(step.domain.uuid)
    }
    let snapshot = hypervisor.look()
    snapshot.domains.forEach(directory.update)
    pool.update(.snapshot(snapshot), at: time)
    pool.tick(at: time)
    try refreshTable(at: time)
    await refreshLookup(at: time)
    deliver(until: time)
    if !pool.drain(at: time) {
      throw ReplayFailure(
        Diagnostic(
          .error, "a detector did not answer within 30 seconds",
          remedy: "run again with `detectors: thread` to see where"))
    }
    var events = pool.takeEvents() + sourceAlerts.drain(&dispatcher, at: time)
    events += pool.takeNotedPackets().flatMap { $0.events(decoding) }
    for disk in disks { events += disk.advance(to: time).map { Event.file($0) } }
    // Stable: what has the same time stays in the order of domains.
    let ordered = events.enumerated().sorted { ($0.element.time, $0.offset) < ($1.element.time, $1.offset) }
    await tell(ordered.map(\.element), at: time)
    await advanceDecisions(to: time)
  }

  private func deliver(until time: Timestamp) {
    while let frame = frames.next, frame.timestamp <= time { deliverNext() }
    pool.publish()
  }

  private func deliverNext() {
    let pool = self.pool
    let lookup = self.lookup
    let owners = slotOwners
    var blocked: [(Incarnation, UInt64)] = []
    frames.take { frame, bytes in
      let packet =
        lookup.isEmpty
        ? nil : DecodedPacket.decode(bytes, linkType: frame.linkType, strippedVLAN: frame.strippedVLAN)
      dispatcher.dispatch(frame, bytes) { slot, direction in
        // What the packet filter would have done.
        if let packet, packet.network == .ipv4 || packet.network == .ipv6, let owner = owners[slot],
          let found = lookup.find(
            domain: owner.uuid, source: packet.source, destination: packet.destination, at: frame.timestamp)
        {
          blocked.append((owner, lookup.measures[found].decision))
          return
        }
        var mine = frame
        if direction != .unknown { mine.direction = direction }
        pool.deliver(to: slot, mine, bytes)
      }
    }
    for (incarnation, decision) in blocked { tally.noteBlocked(incarnation, decision) }
  }

  private func refreshTable(at time: Timestamp) throws(ReplayFailure) {
    guard membership != pool.membershipGeneration else { return }
    membership = pool.membershipGeneration
    let members = pool.members
    slotOwners = Dictionary(members.map { ($0.slot, $0.domain.incarnation) }, uniquingKeysWith: { $1 })
    do throws(DispatchError) {
      publisher.publish(
        try DispatchTable(members: members, ports: ports.dispatchPorts(members), key: (0, 0)))
    } catch { throw ReplayFailure(error.diagnostic) }
    pending += dispatcher.refresh(at: time).map { Event.platform($0) }
  }

  private func refreshLookup(at time: Timestamp) async {
    guard firewall.generation != lookupGeneration, let state = try? await firewall.readBack(at: time) else { return }
    lookupGeneration = state.generation
    lookup = BlockLookup(state, key: (0, 0))
  }

  private func measures(at time: Timestamp) async -> [FirewallMeasure] {
    (try? await firewall.readBack(at: time))?.measures ?? []
  }

  private func tell(_ events: [Event], at time: Timestamp) async {
    let all = pending + events
    pending = []
    for event in all {
      if case .lifecycle(let report) = event, case .transition(_, _, let state) = report.kind {
        directory.setState(state, of: report.incarnation)
      }
      write(event)
    }
    if !all.isEmpty { await coordinator.handle(all, at: time) }
  }

  private func advanceDecisions(to time: Timestamp) async {
    await coordinator.advance(to: time)
    for event in decisions.take() { write(event) }
  }

  private func write(_ event: Event) {
    tally.note(event)
    eve?.write(encoder.encode(event))
    if case .alert(let alert) = event, let drop = encoder.encodeDrop(alert) { eve?.write(drop) }
  }
}

/// Which domains have rules by now: those with a `configured` step from that step on, all others from the start.
final class ConfiguredDomains {
  private var waiting: Set<DomainUUID>

  init(_ scenario: Scenario) {
    waiting = Set(scenario.domains.filter { $0.lifecycle.contains { $0.event == .configured } }.map(\.uuid))
  }

  func insert(_ uuid: DomainUUID) { waiting.remove(uuid) }
  func contains(_ uuid: DomainUUID) -> Bool { !waiting.contains(uuid) }
}

struct ReplayFailure: Error {
  var diagnostic: Diagnostic
  var exit: ExitCode
  init(_ diagnostic: Diagnostic, _ exit: ExitCode = Exit.badData) {
    self.diagnostic = diagnostic
    self.exit = exit
  }
}
#endif
