#if Daemon
import Foundation
import VMFenceCapture
import VMFenceCore
import VMFenceDetection
import VMFenceProcess
import VMFenceTestKit

/// The daemon's loop: live capture, the domains of a configuration file, detectors, decisions. Measures go to a recorder.
final class LiveRun<Backend: DetectorBackend> where Backend.Rules == SnortRules {
  /// How long the loop waits when nothing comes.
  private static var patience: Duration { .milliseconds(10) }
  private static var tickInterval: Duration { .milliseconds(20) }
  private static var slowInterval: Duration { .seconds(1) }
  private static var batch: Int { 1024 }

  private final class OpenCapture {
    let interface: String
    var source: LiveCapture
    init(_ interface: String, _ source: consuming LiveCapture) {
      self.interface = interface
      self.source = source
    }
  }

  private let configuration: Scenario
  private let pool: DetectorPool<Backend>
  private let directory = DomainDirectory()
  private let firewall = RecordingFirewallSink()
  private let hypervisor: ScenarioHypervisor
  private let publisher = DispatchTablePublisher()
  private var dispatcher: Dispatcher
  private var ports = HostPorts()
  private let wanted: [(interface: String, isBridge: Bool)]
  private var captures: [OpenCapture] = []
  private var missing: Set<String> = []
  private let coordinator: EnforcementCoordinator
  private let decisions = RecordingEventSink()
  private let sink: EVEFileSink?
  private let rules: ReloadableRules
  private let configured: ConfiguredDomains
  private let hashKey: (UInt64, UInt64)
  private var membership: UInt64?
  private var kernelDrops: [String: UInt64] = [:]
  private let started: Timestamp

  init(
    _ configuration: Scenario, rules: ReloadableRules, backend: Backend, log: any DecisionLog, restored: [Decision],
    eve path: String?
  ) throws(ReplayFailure) {
    self.configuration = configuration
    self.rules = rules
    var random = SystemRandomNumberGenerator()
    hashKey = (random.next(), random.next())
    let now = SystemTime().now
    started = now
    hypervisor = ScenarioHypervisor(configuration, start: now)
    var inspector = configuration.inspector
    (inspector.hashKeyLow, inspector.hashKeyHigh) = hashKey
    let configured = ConfiguredDomains(configuration)
    self.configured = configured
    pool = DetectorPool(
      backend: backend,
      configuration: .init(
        lifecycle: .init(
          blockedAfter: configuration.lifecycle.blockedAfter, stuckAfter: configuration.lifecycle.stuckAfter),
        inspector: inspector), at: now
    ) { domain in configured.contains(domain.incarnation.uuid) ? rules.selection.rules(for: domain) : nil }
    dispatcher = Dispatcher(publisher)
    let encoder = EVEEncoder(
      node: configuration.node, isInline: configuration.inspector.isInline, directory: directory)
    if configuration.captures.isEmpty {
      let interfaces = configuration.domains.flatMap { $0.ports + $0.lifecycle.flatMap { $0.ports ?? [] } }
      wanted = interfaces.map { ($0.interface, false) }
    } else {
      wanted = configuration.captures.map { ($0.interface, $0.isBridge) }
    }
    do throws(NotificationError) {
      if let path { sink = try EVEFileSink(path: path, encoder: encoder) } else { sink = nil }
    } catch { throw ReplayFailure(error.diagnostic, Exit.cannotCreate) }
    do throws(PolicyError) {
      var updater = try PolicyUpdater(policy: configuration.policy, directory: directory)
      _ = updater.restore(restored, at: now)
      coordinator = EnforcementCoordinator(
        updater: updater, log: log, firewall: firewall, control: hypervisor, events: decisions)
    } catch { throw ReplayFailure(error.diagnostic) }
  }

  /// Runs until a signal asks it to stop.
  func run() async throws(ReplayFailure) {
    var nextTick = started
    var nextSlow = started
    do throws(FirewallError) { try await coordinator.reconcile(at: started) } catch {
      throw ReplayFailure(error.diagnostic)
    }
    while !Signals.isStopRequested {
      let now = SystemTime().now
      if now >= nextSlow {
        nextSlow = now + Self.slowInterval
        try openCaptures()
        noteKernelDrops(at: now)
        noteSinkProblem()
        await coordinator.advance(to: now)
      }
      if now >= nextTick {
        nextTick = now + Self.tickInterval
        for step in hypervisor.advance(to: now) where step.step.event == .configured {
          configured.insert(step.domain.uuid)
        }
        let snapshot = hypervisor.look()
        snapshot.domains.forEach(directory.update)
        pool.update(.snapshot(snapshot), at: now)
        pool.tick(at: now)
        try refreshTable(at: now)
      }
      if Signals.takeReload() { reload(at: now) }
      let frames = readCaptures(at: now)
      pool.collect(at: now)
      await tell(at: now)
      if frames == 0 { wait() }
    }
    let now = SystemTime().now
    pool.close(at: now)
    await tell(at: now)
    await coordinator.advance(to: now)
    report("stopped")
    for line in pool.reports.map(Self.line) { report(line) }
  }

  private static func line(_ report: DomainReport) -> String {
    let counters = report.counters
    let lost = counters.uninspected.map { ", \($0.count) not inspected (\($0.cause))" }.joined()
    return
      "\(report.description.name.escapedForDisplay): \(counters.packets) packets, \(counters.inspected) inspected, "
      + "\(counters.alerts) alerts, \(counters.restarts) detector restarts\(lost)"
  }

  private func report(_ line: String) { Terminal.error.print("vmfence-ref: \(line)") }

  // MARK: Captures

  /// Opens what is not open: interfaces come and go with their guests.
  private func openCaptures() throws(ReplayFailure) {
    for (interface, isBridge) in wanted where !captures.contains(where: { $0.interface == interface }) {
      let port = ports.number(interface, isBridge: isBridge)
      do throws(PacketSourceError) {
        let capture = try LiveCapture.open(interface: interface, port: port, kind: isBridge ? .bridge : .guestPort)
        captures.append(OpenCapture(interface, capture))
        missing.remove(interface)
        report("capturing on \(interface.escapedForDisplay)")
      } catch {
        if error.code == .permissionDenied { throw ReplayFailure(error.diagnostic, Exit.noPermission) }
        if missing.insert(interface).inserted { report("waiting for \(interface.escapedForDisplay): \(error.message)") }
      }
    }
  }

  private func readCaptures(at now: Timestamp) -> Int {
    var frames = 0
    for capture in captures {
      do throws(PacketSourceError) {
        frames += try capture.source.nextBatch(limit: Self.batch, patience: .zero) { frame, bytes in
          dispatcher.dispatch(frame, bytes) { slot, direction in
            var mine = frame
            if direction != .unknown { mine.direction = direction }
            pool.deliver(to: slot, mine, bytes)
          }
        }.frames
      } catch {
        report("the capture on \(capture.interface.escapedForDisplay) ended: \(error.message)")
        kernelDrops[capture.interface] = nil
        captures.removeAll { $0 === capture }
      }
    }
    pool.publish()
    return frames
  }

  private func noteKernelDrops(at now: Timestamp) {
    for capture in captures {
      let dropped = capture.source.counters.droppedByKernel
      let before = kernelDrops.updateValue(dropped, forKey: capture.interface) ?? 0
      guard dropped > before else { continue }
      extra.append(
        .platform(
          PlatformAlert(
            time: now, incarnation: nil, kind: .packetsDropped,
            message:
              "the capture on \(capture.interface.escapedForDisplay) lost packets because it was not read in time",
            count: dropped - before)))
    }
  }

  private var extra: [Event] = []
  private var sourceAlerts = SourceAlertPace()
  private var sinkHasProblem = false

  private func noteSinkProblem() {
    let problem = sink?.problem
    if let problem, !sinkHasProblem { report("\(problem.message) (\(problem.remedy))") }
    if problem == nil, sinkHasProblem { report("events are written again; \(sink?.counters.linesLost ?? 0) were lost") }
    sinkHasProblem = problem != nil
  }

  /// Waits for frames or verdicts.
  private func wait() {
    pool.wait(upTo: Self.patience, alsoFor: captures.map { $0.source.pollDescriptor })
  }

  private func refreshTable(at now: Timestamp) throws(ReplayFailure) {
    guard membership != pool.membershipGeneration else { return }
    membership = pool.membershipGeneration
    do throws(DispatchError) {
      publisher.publish(try ports.table(pool.members, key: hashKey))
    } catch { report(error.description) }
    extra += dispatcher.refresh(at: now).map { Event.platform($0) }
  }

  // MARK: Events

  private func tell(at now: Timestamp) async {
    let events = extra + pool.takeEvents() + sourceAlerts.drain(&dispatcher, at: now)
    extra = []
    for event in events {
      if case .lifecycle(let report) = event, case .transition(_, _, let state) = report.kind {
        directory.setState(state, of: report.incarnation)
      }
      await sink?.receive(event)
    }
    if !events.isEmpty { await coordinator.handle(events, at: now) }
    for event in decisions.take() { await sink?.receive(event) }
  }

  private func reload(at now: Timestamp) {
    do throws(NotificationError) { try sink?.reopen() } catch { report(error.description) }
    if let problems = rules.reload() {
      Terminal.error.print(problems)
      report("the rules were not reloaded; the old ones stay in force")
      return
    }
    pool.rulesChanged(at: now)
    report("rules reloaded")
  }
}

/// The system's clock.
struct SystemTime: TimeSource {
  var now: Timestamp {
    var time = timespec()
    // SAFETY: clock_gettime(2) writes one timespec.
    unsafe clock_gettime(CLOCK_REALTIME, &time)
    return Timestamp(seconds: Int64(time.tv_sec), nanoseconds: Int64(time.tv_nsec))
  }
}

/// Rules that a reload replaces as a whole, or not at all.
final class ReloadableRules {
  private let files: ScenarioRules
  private let domains: [(name: String, serviceType: String?)]
  private(set) var selection: RuleSelection

  init(_ prepared: PreparedScenario) {
    files = prepared.scenario.rules
    domains = prepared.scenario.domains.map { ($0.name, $0.serviceType) }
    selection = prepared.rules
  }

  /// - Returns: what was wrong; nil when the new rules are in force.
  func reload() -> [Diagnostic]? {
    var loading = RuleLoading(rules: files)
    do throws(RuleLoading.Failure) {
      selection = try RuleSelection(&loading, domains: domains)
      return nil
    } catch { return error.diagnostics }
  }
}
#endif
