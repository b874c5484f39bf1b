#if Daemon
import Foundation
import Logging
import Synchronization
import VMFenceCapture
import VMFenceConfiguration
import VMFenceControl
import VMFenceCore
import VMFenceDetection
import VMFenceNftables
import VMFencePackets
import VMFenceProcess

/// What the daemon's loop is built from.
struct LiveParts {
  var host: PreparedHost
  var assigned: RuleAssignments
  var domains: LiveDomains
  var clock: SteadyClock
  var directory: DomainDirectory
  var coordinator: EnforcementCoordinator
  /// Gets what the coordinator tells.
  var decisions: EventQueue
  var outputs: EventOutputs
  var mailbox: Mailbox<LiveMessage>
  var desk: ControlDesk
  var history: HistoryRecorder
  var guestPolicies: GuestPolicies
  var firewall: HostFirewall
  /// nil: guests of this host have none.
  var channels: GuestChannels?
  var declarations: Declarations
  var disks: LiveDisks
  var opener: PacketSocketOpener
  var logger: Logger
}

/// The daemon's loop: live capture, the domains of this host, detectors, decisions.
///
/// One task turns it. What takes its time (compiling rules, answering people, writing to disks that are slow, opening and closing captures) happens in other threads, which
/// hand in their results through the mailbox. One thing is waited for: what an earlier process kept of a domain.
final class LiveRun<Backend: DetectorBackend> where Backend.Rules == SnortRules {
  /// How long the loop waits when nothing comes.
  private static var patience: Duration { .milliseconds(10) }
  private static var tickInterval: Duration { .milliseconds(20) }
  private static var slowInterval: Duration { .seconds(1) }
  private static var reconcileInterval: Duration { .seconds(60) }
  /// Whoever changes our table again and again does not keep us busy with it.
  private static var reconcilePause: Duration { .milliseconds(200) }
  private static var batch: Int { 1024 }
  /// How long detectors may take to answer, and then to save what they remember, when the daemon stops.
  private static var savePatience: Duration { .seconds(2) }

  let logger: Logger
  let clock: SteadyClock
  let started: Timestamp
  let pool: DetectorPool<Backend>
  let directory: DomainDirectory
  let domains: LiveDomains
  let coordinator: EnforcementCoordinator
  let mailbox: Mailbox<LiveMessage>
  let captures: Captures
  let rules: RulesInForce
  let outputs: EventOutputs
  let desk: ControlDesk
  let history: HistoryRecorder
  let guestPolicies: GuestPolicies
  let firewall: HostFirewall
  let flowCuts: FlowCuts
  let drops = DropWatch()
  var spoofingAlerts = SpoofingAlerts()
  let channels: GuestChannels?
  let policyRefresh = PolicyRefresh()
  var declarations: Declarations
  /// Who waits until a guest is guarded at a port.
  var barriers: [BarrierWait] = []
  let disks: LiveDisks
  var host: PreparedHost
  var assigned: RuleAssignments
  /// A reload or a compilation that is under way.
  var isPreparing = false
  /// Another reload was asked for meanwhile.
  var isReloadWanted = false
  let jobs = DispatchQueue(label: "vmfence-jobs")

  private let decisions: EventQueue
  private let detectorStates: DetectorStateKeeper?
  let declarationWriter: DeclarationWriter?
  let service = ServiceManager()
  let publisher = DispatchTablePublisher()
  let hashKey: (UInt64, UInt64)
  private let decoding: DecodeSettings
  var dispatcher: Dispatcher
  var membership: UInt64?
  /// What the dispatch table leaves out.
  var dispatchMistakes: [DispatchError] = []
  var extra: [Event] = []
  private var isHistoryBroken = false
  private var sourceAlerts = SourceAlertPace()
  var hostAddresses = HostAddresses()
  var toldProblems: [Diagnostic] = []
  var snapshot: InventorySnapshot?
  /// The firewall is to be told of the domains' ports.
  var portsAreStale = true
  var interfaces = InterfaceWatch()
  private var metrics: MetricsServer?
  var latency = LatencyHistogram()
  var isReconcileWanted = false
  private let isAdvancing = SharedFlag()
  private var lastReconcile: Timestamp
  /// When domains that are known and not in the inventory any more were seen last.
  var gone: [Incarnation: Timestamp] = [:]

  init(_ parts: LiveParts, backend: Backend, answerTimeout: Duration?) {
    host = parts.host
    assigned = parts.assigned
    logger = parts.logger
    clock = parts.clock
    started = parts.clock.now
    lastReconcile = parts.clock.now
    directory = parts.directory
    domains = parts.domains
    coordinator = parts.coordinator
    decisions = parts.decisions
    outputs = parts.outputs
    mailbox = parts.mailbox
    desk = parts.desk
    history = parts.history
    guestPolicies = parts.guestPolicies
    firewall = parts.firewall
    disks = parts.disks
    flowCuts = FlowCuts(parts.firewall, logger: parts.logger)
    channels = parts.channels
    declarations = parts.declarations
    let mailbox = parts.mailbox
    captures = Captures(parts.opener, logger: parts.logger) { mailbox.post(.captures) }
    let configuration = parts.host.configuration
    var random = SystemRandomNumberGenerator()
    hashKey = (random.next(), random.next())
    var inspector = configuration.inspector
    (inspector.hashKeyLow, inspector.hashKeyHigh) = hashKey
    decoding = inspector.decoding
    let rules = RulesInForce(parts.host.rules)
    self.rules = rules
    let channel = DetectorChannelConfiguration()
    let logger = parts.logger
    let states = configuration.stateDirectory.map {
      DetectorStateKeeper(DetectorStates(stateDirectory: $0), logger: logger)
    }
    detectorStates = states
    declarationWriter = configuration.stateDirectory.map { DeclarationWriter(stateDirectory: $0, logger: logger) }
    pool = DetectorPool(
      backend: backend,
      configuration: .init(
        lifecycle: .init(
          blockedAfter: configuration.lifecycle.blockedAfter, stuckAfter: configuration.lifecycle.stuckAfter),
        channel: channel, inspector: inspector, answerTimeout: answerTimeout, lookInterval: .seconds(1),
        snapshotInterval: .seconds(10),
        keepsRefusedPackets: true, packetNotes: configuration.packetNotes),
      at: parts.clock.now,
      savedState: { domain in
        do throws(DetectorStateProblem) {
          guard let bytes = try states?.take(domain.incarnation.uuid, limit: channel.stateBytes) else { return nil }
          logger.notice(
            "\(domain.name): its detector goes on with \(bytes.count) bytes of saved state")
          return bytes
        } catch {
          logger.log([error.diagnostic])
          return nil
        }
      },
      keepState: { domain, bytes in states?.keep(bytes, of: domain.incarnation.uuid) },
      rules: { rules.selection.rules(for: $0) })
    dispatcher = Dispatcher(publisher)
  }

  /// Until a signal asks it to stop: see `run`.
  func work() async throws(ReplayFailure) {
    var (nextTick, nextSlow, nextStatistics, nextAlive, isReady) = (started, started, started, started, false)
    // Before domains are looked at: one that is paused because of a disk that is not known would be let run.
    disks.follow(host.configuration.disks)
    // First the ports, so that restored measures need not move there afterwards; what is never blocked puts the measures in force.
    useDeclarations()
    await refreshInventory(at: clock.now)
    await refreshNeverBlock(at: clock.now, isFirst: true)
    try await takeUpMeasures()
    if let path = host.configuration.controlSocket {
      do throws(ControlFailure) { try desk.open(path) } catch {
        throw ReplayFailure(Diagnostic(.error, error.message, remedy: error.remedy), Exit.cannotCreate)
      }
    }
    outputs.use(host.configuration.notifications)
    try serveMetrics()
    watchInventory()
    while !Signals.isStopRequested {
      if let jump = clock.look() { noteJump(jump) }
      let now = clock.now
      let (isTick, isLook) = (now >= nextTick, now >= nextSlow)
      if isLook { logger.trace("looking at everything") }
      if isTick { noteInterfaces(at: now) }
      if isLook {
        nextSlow = now + Self.slowInterval
        await refreshInventory(at: now)
        try openCaptures()
        noteDrops(at: now)
        noteStopped(at: now)
        await refreshNeverBlock(at: now)
        advance(to: now)
        refreshPolicies()
        outputs.logProblems()
        logHistoryProblem()
        if let metrics { metrics.publish(await metricsText(at: now)) }
      }
      if isTick {
        nextTick = now + Self.tickInterval
        // There may be a socket now for a card that has waited for one.
        if captures.tend() { forgetTable() }
        pool.tick(at: now)
        await reconcile(at: now)
      }
      if !isReady {
        isReady = true
        service.ready()
        logger.notice("running", metadata: ["version": "\(VMFenceVersion.text)"])
      }
      if let interval = service.watchdogInterval, now >= nextAlive {
        nextAlive = now + interval
        service.alive()
      }
      if now >= nextStatistics {
        nextStatistics = now + host.configuration.statisticsInterval
        writeStatistics(at: now)
      }
      if Signals.takeReload() { startReload() }
      let messages = mailbox.take()
      if messages.contains(where: \.isOfInventory) { await refreshInventory(at: now) }
      for message in messages { await take(message, at: now) }
      // Right before frames are read: a slot may be another domain's since they were read last.
      try refreshTable(at: now)
      if isTick { openBarriers(at: now) }
      let frames = readCaptures()
      pool.collect(at: now)
      await tell(at: now)
      // Fewer than a batch is all that there was. What comes meanwhile ends the wait at once.
      if frames < Self.batch {
        pool.wait(upTo: Self.patience, alsoFor: captures.descriptors + [mailbox.descriptor])
      }
      // On a host with one processor, nobody else may run before this.
      await Task.yield()
    }
  }

  /// Lets the decisions' time pass, beside the loop, and makes the log durable, beside both: a disk can be slow, and what the packet filter refused is tried again meanwhile.
  private func advance(to now: Timestamp) {
    guard isAdvancing.raise() else { return }
    let (coordinator, isAdvancing) = (coordinator, isAdvancing)
    Task {
      await coordinator.pass(to: now)
      isAdvancing.lower()
      await coordinator.syncLog(at: now)
    }
  }

  /// Looks whether the firewall holds what it should: soon after others changed it, and besides now and then.
  private func reconcile(at now: Timestamp) async {
    guard now >= (isReconcileWanted ? lastReconcile + Self.reconcilePause : lastReconcile + Self.reconcileInterval)
    else {
      return
    }
    isReconcileWanted = false
    lastReconcile = now
    // In case that a change of the host's addresses was not told.
    interfaces.addressesAreStale = true
    // What goes wrong is told as an event, and tried again.
    do throws(FirewallError) { try await coordinator.reconcile(at: now) } catch {}
  }

  func stop() async {
    service.stopping()
    desk.close()
    abandonBarriers()
    metrics?.close()
    for case .question(let question) in mailbox.take() {
      question.answer(.failure(ControlFailure("the daemon stops", cause: .busy)))
    }
    let now = clock.now
    if let detectorStates {
      for (domain, bytes) in pool.saveStates(at: now, patience: Self.savePatience) {
        detectorStates.keep(bytes, of: domain.incarnation.uuid)
      }
      detectorStates.finish()
    }
    declarationWriter?.finish()
    pool.close(at: now)
    await tellTheRest(at: now)
    await releaseGuards()
    channels?.close()
    domains.close()
    disks.close()
    writeStatistics(at: now)
    outputs.close()
    history.close()
    logger.notice("stopped")
    for line in pool.reports.map(\.summaryLine) { logger.notice("\(line)") }
  }

  private func serveMetrics() throws(ReplayFailure) {
    guard let endpoint = host.configuration.metrics else { return }
    do throws(ControlFailure) {
      let server = try MetricsServer(address: endpoint.address, port: endpoint.port)
      server.start()
      metrics = server
    } catch { throw ReplayFailure(Diagnostic(.error, error.message, remedy: error.remedy), Exit.cannotCreate) }
  }

  private func readCaptures() -> Int {
    let frames = captures.read(limit: Self.batch, clock) { frame, bytes in
      dispatcher.dispatch(frame, bytes) { slot, direction in
        var mine = frame
        if direction != .unknown { mine.direction = direction }
        pool.deliver(to: slot, mine, bytes)
      }
    }
    pool.publish()
    return frames
  }

  func openCaptures() throws(ReplayFailure) {
    let known = captures.ports.numbers.count
    var wanted = host.configuration.captures.map { Captures.Wanted(interface: $0.interface, isBridge: $0.isBridge) }
    if wanted.isEmpty {
      wanted = pool.members.flatMap(\.domain.ports).map { Captures.Wanted(interface: $0.interface, isBridge: false) }
    }
    do throws(PacketSourceError) { try captures.update(wanted) } catch {
      throw ReplayFailure(error.diagnostic, Exit.noPermission)
    }
    // A port that was not known yet is in no table yet.
    if captures.ports.numbers.count != known { forgetTable() }
  }

  /// Tells the log once when the history is not written, and once when it is again.
  private func logHistoryProblem() {
    let problem = history.problem
    if let problem, !isHistoryBroken {
      logger.error("the history is not written, alerts and decisions wait for it: \(problem)")
    } else if problem == nil, isHistoryBroken {
      logger.notice(
        "the history is written again; \(history.counters.skipped) alerts and decisions found no room in it")
    }
    isHistoryBroken = problem != nil
  }

  // MARK: Events

  func note(_ event: Event) { extra.append(event) }

  private func noteDrops(at now: Timestamp) {
    for (interface, count) in captures.newDrops() {
      note(
        .platform(
          PlatformAlert(
            time: now, incarnation: nil, kind: .packetsDropped,
            message: "the capture on \(interface.escapedForDisplay) lost packets because it was not read in time",
            count: count)))
    }
    if let failure = flowCuts.newFailures(at: now) { note(.platform(failure)) }
    if let trouble = captures.newTrouble(at: now) { note(.platform(trouble)) }
    for loss in outputs.newLosses(at: now) {
      note(
        .platform(
          PlatformAlert(
            time: now, incarnation: loss.domain, kind: .eventsLost, message: loss.message, count: loss.count)))
    }
  }

  /// The system's clock was set. Nothing here waits for it; what is kept is written anew, so that a restart finds it right.
  private func noteJump(_ jump: Duration) {
    let now = clock.now
    note(
      .platform(
        PlatformAlert(
          time: now, incarnation: nil, kind: .clockJump,
          message: "the system's clock was set by \(jump.display); measures and detectors go on as if it had not been",
          severity: 3)))
    // Beside the loop: a disk can be slow.
    Task { [coordinator] in await coordinator.compactLog(at: now) }
  }

  func tell(at now: Timestamp) async {
    // Flows first: each packet that they still carry counts.
    let cut = await flowCuts.act(
      on: pool.takeRefusedPackets(), lost: pool.refusedPacketsLost, isDryRun: host.configuration.policy.isDryRun)
    var events = pool.takeEvents()
    if !extra.isEmpty { events.insert(contentsOf: extra, at: 0) }
    events += pool.takeNotedPackets().flatMap { $0.events(decoding) }
    events += disks.takeEvents(at: now, offset: clock.offset)
    events += sourceAlerts.drain(&dispatcher, at: now)
    extra = []
    if !cut.isEmpty { for index in events.indices { events[index].noteCut(cut) } }
    for event in events { directory.note(event) }
    if !events.isEmpty { measure(await coordinator.handle(events, at: now), after: events) }
    // A decision is told after what led to it.
    let decided = decisions.take()
    if !decided.isEmpty { refreshPolicies() }
    let offset = clock.offset
    outputs.receive(events + decided, shiftedBy: offset)
  }

  /// Notes how long it took from the packet to the block in force.
  private func measure(_ decisions: [Decision], after events: [Event]) {
    let now = clock.now
    for decision in decisions where decision.status == .enforced && decision.firewallMeasure != nil {
      let packet = events.last { event in
        if case .alert(let alert) = event, alert.incarnation == decision.incarnation {
          return decision.source.map { $0.contains(alert.source) || $0.contains(alert.destination) } ?? true
        }
        return false
      }
      if let packet { latency.add(seconds: Double(max(0, (now - packet.time).wholeNanoseconds)) / 1e9) }
    }
  }

  /// What domains lost because too much of theirs was in a queue already, by queue.
  var losses: DomainLosses {
    DomainLosses(
      events: outputs.lostByDomain, places: outputs.lostAtPlacesByDomain, history: history.skippedByDomain)
  }

  private func writeStatistics(at now: Timestamp) {
    let (uptime, time) = (now - started, now + clock.offset)
    let losses = losses
    for report in pool.reports where directory.entry(for: report.description.incarnation) != nil {
      outputs.receive(report.statistics(at: time, uptime: uptime, losses))
    }
    let dispatch = dispatcher.counters
    outputs.receive(
      EVEStatistics(
        time: time, uptime: uptime, packets: captures.received, drops: captures.drops,
        counters: [
          ("delivered", dispatch.delivered), ("unknown", dispatch.unknown), ("malformed", dispatch.malformed),
          ("events_lost", outputs.lost),
        ]))
  }
}

/// Something is under way.
private final class SharedFlag: Sendable {
  private let isRaised = Mutex(false)

  /// - Returns: false when it was raised already.
  func raise() -> Bool {
    isRaised.withLock { isRaised in
      defer { isRaised = true }
      return !isRaised
    }
  }

  func lower() { isRaised.withLock { $0 = false } }
}

/// What found no room in a queue since a domain had its share of it, by domain; nil: what concerns the host.
struct DomainLosses {
  var events: [Incarnation?: UInt64]
  var places: [Incarnation?: UInt64]
  var history: [Incarnation?: UInt64]
}

/// The rules that detectors have, as the pool asks for them.
final class RulesInForce {
  var selection: RuleSelection
  init(_ selection: RuleSelection) { self.selection = selection }
}

extension DomainReport {
  var summaryLine: String {
    let lost = counters.uninspected.map { ", \($0.count) not inspected (\($0.cause))" }.joined()
    return "\(description.name): \(counters.packets) packets, \(counters.inspected) inspected, "
      + "\(counters.alerts) alerts, \(counters.restarts) detector restarts\(lost)"
  }

  func statistics(at time: Timestamp, uptime: Duration, _ losses: DomainLosses) -> EVEStatistics {
    EVEStatistics(
      time: time, uptime: uptime, incarnation: description.incarnation, packets: counters.packets,
      bytes: counters.bytes, drops: counters.droppedFull &+ counters.droppedUnguarded &+ counters.droppedAtEnd,
      alerts: counters.alerts,
      counters: [
        ("inspected", counters.inspected), ("alerts_lost", counters.alertsLost),
        ("packet_events_lost", counters.notesLost),
        ("events_lost", losses.events[description.incarnation] ?? 0),
        ("history_skipped", losses.history[description.incarnation] ?? 0),
        ("refused_packets_lost", counters.refusalsLost),
        ("dropped_ring_full", counters.droppedFull), ("dropped_unguarded", counters.droppedUnguarded),
        ("dropped_poison", counters.droppedPoison), ("dropped_by_rule", counters.droppedByRule),
        ("restarts", counters.restarts), ("waiting", UInt64(waiting)), ("alerts_unproved", channel.unproved),
      ], inspector: inspectorFigures)
  }
}
#endif
