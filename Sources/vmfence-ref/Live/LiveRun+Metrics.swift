#if Daemon
import Foundation
import VMFenceChannel
import VMFenceControl
import VMFenceCore
import VMFenceDetection

/// What tells one domain's series from another's.
private struct SeriesName: Hashable {
  var name: String
  var uuid: DomainUUID
}

extension LiveRun {
  /// What Prometheus gets: base units, no label that the network chooses.
  func metricsText(at now: Timestamp) async -> String {
    var metrics = MetricsText()
    metrics.metric("vmfence_build_info", .gauge, "The daemon's version.")
    metrics.sample(1, [("version", VMFenceVersion.text)])
    metrics.metric("vmfence_uptime_seconds", .gauge, "Since the daemon's start.")
    metrics.sample(Double((now - started).wholeNanoseconds) / 1e9)
    metrics.metric("vmfence_clock_offset_seconds", .gauge, "By how much the system's clock was set since the start.")
    metrics.sample(Double(clock.offset.wholeNanoseconds) / 1e9)
    let reports = shownReports
    writeDomains(&metrics, reports)
    writeShares(&metrics, reports)
    await writeMeasures(&metrics, reports)
    metrics.metric(
      "vmfence_rules_kept", .gauge, "Rules whose texts are wrong and that stay in force as they were before.")
    metrics.sample(rules.selection.kept.count)
    metrics.metric(
      "vmfence_capture_drops_total", .counter, "Frames that the kernel dropped before the daemon read them.")
    metrics.sample(captures.drops)
    metrics.metric("vmfence_events_lost_total", .counter, "Events that did not reach where they should have gone.")
    metrics.sample(outputs.lost)
    let (kept, recorded) = (history.figures, history.counters)
    metrics.metric("vmfence_history_alerts", .gauge, "Alerts in the history.")
    metrics.sample(kept.alerts)
    metrics.metric("vmfence_history_bytes", .gauge, "The history's size.")
    metrics.sample(kept.bytes)
    metrics.metric(
      "vmfence_history_forgotten_total", .counter, "Alerts that made room for younger ones in the history.")
    metrics.sample(kept.forgotten)
    metrics.metric("vmfence_history_skipped_total", .counter, "Alerts and decisions that the history did not take.")
    metrics.sample(recorded.skipped)
    metrics.metric(
      "vmfence_enforce_latency_seconds", .histogram, "From the packet that decided to the measure in force.")
    latency.write(&metrics)
    return metrics.text
  }

  /// Those of the domains that are there. While a domain reboots, or is migrated on this host, there are two of one name and UUID, and its series are
  /// there once: those of the one that goes on.
  private var shownReports: [DomainReport] {
    func rank(_ report: DomainReport) -> Int {
      (report.description.migration == .none ? 2 : 0) + (report.automaton?.state == .orphaned ? 0 : 1)
    }
    var shown: [DomainReport] = []
    var places: [SeriesName: Int] = [:]
    for report in pool.reports where report.automaton?.state != .ended {
      let name = SeriesName(name: report.description.name, uuid: report.description.incarnation.uuid)
      if let place = places[name] {
        if rank(report) >= rank(shown[place]) { shown[place] = report }
      } else {
        places[name] = shown.count
        shown.append(report)
      }
    }
    return shown
  }

  /// What is counted in parts: by the port at which it was captured, and by the class of the rule.
  private func writeShares(_ metrics: inout MetricsText, _ reports: [DomainReport]) {
    let ports = captures.ports
    func write(_ name: String, _ help: String, _ value: (PortTraffic) -> UInt64) {
      metrics.metric(name, .counter, help)
      for report in reports {
        var silent = Set(report.description.ports.map(\.interface).filter { ports.numbers[$0] != nil })
        for traffic in report.ports {
          let interface = traffic.port.flatMap { ports.name(of: $0) }
          if let interface { silent.remove(interface) }
          metrics.sample(value(traffic), labels(report) + [("vif", interface ?? "other")])
        }
        for interface in silent.sorted() { metrics.sample(0, labels(report) + [("vif", interface)]) }
      }
    }
    write(
      "vmfence_capture_packets_total", "Packets of the domain, by the interface where they were captured.", \.packets)
    write("vmfence_capture_bytes_total", "Bytes of the domain's frames, by the same.", \.bytes)
    metrics.metric(
      "vmfence_alerts_total", .counter, "Alerts, by the class of their rules; other: beyond 64 classes of a domain.")
    for report in reports {
      for (name, count) in report.alertsByClass.sorted(by: { $0.key < $1.key }) {
        metrics.sample(count, labels(report) + [("classtype", name)])
      }
    }
  }

  private func writeDomains(_ metrics: inout MetricsText, _ reports: [DomainReport]) {
    func write(_ name: String, _ help: String, _ value: (DomainReport) -> UInt64) {
      metrics.metric(name, .counter, help)
      for report in reports { metrics.sample(value(report), labels(report)) }
    }
    write("vmfence_inspected_packets_total", "Packets that a detector has answered.") { $0.counters.inspected }
    write("vmfence_alerts_lost_total", "Alerts that did not fit into their packet's record.") { $0.counters.alertsLost }
    write("vmfence_alerts_unproved_total", "Alerts whose claim of a proved address their packet did not bear out.") {
      $0.channel.unproved
    }
    write("vmfence_packet_events_lost_total", "Packets with anomalies or tags that came too fast to be told of.") {
      $0.counters.notesLost
    }
    write("vmfence_file_events_total", "Changes to protected files that the disks' processes told.") {
      disks.eventsTaken(of: $0.description.incarnation)
    }
    write("vmfence_detector_restarts_total", "Detectors that were started again.") { $0.counters.restarts }
    write("vmfence_refused_packets_lost_total", "Packets that rules refused and that came too fast to act on.") {
      $0.counters.refusalsLost
    }
    metrics.metric(
      "vmfence_vm_events_lost_total", .counter,
      "Events of the domain that found no room in a queue because too many of its own were there, by queue.")
    let losses = losses
    for report in reports {
      let domain = report.description.incarnation
      metrics.sample(losses.events[domain] ?? 0, labels(report) + [("queue", "outputs")])
      metrics.sample(losses.places[domain] ?? 0, labels(report) + [("queue", "places")])
      metrics.sample(losses.history[domain] ?? 0, labels(report) + [("queue", "history")])
    }
    metrics.metric("vmfence_packets_uninspected_total", .counter, "Packets that no detector has seen, by cause.")
    for report in reports {
      let counters = report.counters
      for (reason, count) in [
        ("ring_full", counters.droppedFull), ("no_detector", counters.droppedUnguarded),
        ("domain_ended", counters.droppedAtEnd), ("poison_packet", counters.droppedPoison),
      ] { metrics.sample(count, labels(report) + [("reason", reason)]) }
    }
    for (index, counter) in SnortRules.inspectorCounters.enumerated() {
      let isLevel = counter.kind == .level
      metrics.metric(
        "vmfence_engine_\(counter.name)\(isLevel ? "" : "_total")", isLevel ? .gauge : .counter, counter.meaning)
      for report in reports { metrics.sample(report.inspector[index], labels(report)) }
    }
    metrics.metric(
      "vmfence_policy_acked_version", .gauge, "The policy that the guest's frontend says is in force, by its version.")
    let statuses = channels?.statuses ?? [:]
    for report in reports {
      guard let policy = statuses[report.description.incarnation]?.inForce?.policy else { continue }
      metrics.sample(policy.version, labels(report))
    }
    metrics.metric(
      "vmfence_channel_errors_total", .counter,
      "What went wrong on the guest's policy channel: violations of its protocol, policies that are not in force.")
    for report in reports {
      // A guest that never had a channel has no series of it.
      guard let status = statuses[report.description.incarnation], status.state != .none || !status.errors.isEmpty
      else { continue }
      for error in ChannelError.allCases {
        metrics.sample(status.errors[error] ?? 0, labels(report) + [("reason", error.rawValue)])
      }
    }
    metrics.metric("vmfence_ring_waiting_packets", .gauge, "Packets that wait for the domain's detector.")
    for report in reports { metrics.sample(report.waiting, labels(report)) }
    metrics.metric("vmfence_vm_state", .gauge, "1 for the state that the domain's detector is in.")
    for report in reports {
      metrics.sample(1, labels(report) + [("state", (report.automaton?.state ?? .unguarded).rawValue)])
    }
  }

  private func labels(_ report: DomainReport) -> [(String, String)] {
    [("vm", report.description.name), ("uuid", report.description.incarnation.uuid.description)]
  }

  private func writeBlocks(_ metrics: inout MetricsText, _ counts: MeasureCounts, _ reports: [DomainReport]) {
    metrics.metric(
      "vmfence_blocks_active", .gauge,
      "Blocks in force, by guest: without one those for the whole host, other: of guests that are not here now.")
    func write(_ scope: MeasureCounts.Scope, _ labels: [(String, String)]) {
      metrics.sample(scope.v4Blocks, labels + [("family", "ipv4")])
      metrics.sample(scope.v6Blocks, labels + [("family", "ipv6")])
    }
    write(counts.scopes[.host] ?? .init(), [])
    // Guests that share a UUID share their blocks, too.
    let present = Dictionary(reports.map { ($0.description.incarnation.uuid, $0) }, uniquingKeysWith: { $1 })
    for (uuid, report) in present.sorted(by: { $0.key < $1.key }) {
      write(counts.scopes[.domain(uuid)] ?? .init(), labels(report))
    }
    var other = MeasureCounts.Scope()
    for case (.domain(let uuid), let scope) in counts.scopes where present[uuid] == nil {
      other.v4Blocks += scope.v4Blocks
      other.v6Blocks += scope.v6Blocks
    }
    if other.v4Blocks + other.v6Blocks > 0 { write(other, [("vm", "other")]) }
  }

  private func writeMeasures(_ metrics: inout MetricsText, _ reports: [DomainReport]) async {
    let counts = await coordinator.measureCounts
    writeBlocks(&metrics, counts, reports)
    metrics.metric(
      "vmfence_firewall_desired_elements", .gauge,
      "Elements that measures should have in the packet filter's sets: those of a guest one at each of its ports.")
    metrics.sample(HostFirewall.elements(of: counts, snapshot?.domains ?? []))
    if let elements = drops.elements {
      metrics.metric(
        "vmfence_firewall_kernel_elements", .gauge,
        "Elements that measures had in the kernel when they were counted last: by Linux 6.16 and later, else as written or "
          + "read back last, if the kernel says that nobody has changed its ruleset since.")
      metrics.sample(elements.count)
      metrics.metric(
        "vmfence_firewall_kernel_elements_timestamp_seconds", .gauge, "When they were counted last, as Unix time.")
      metrics.sample(Double((elements.time + clock.offset).nanoseconds) / 1e9)
    }
    metrics.metric("vmfence_firewall_waiting_decisions", .gauge, "Decisions that the firewall has not taken yet.")
    metrics.sample(await coordinator.waitingForFirewall.count)
    metrics.metric(
      "vmfence_firewall_refused_changes_total", .counter,
      "Changes that the packet filter did not take, each time that they were tried.")
    metrics.sample(await coordinator.refusedChanges)
    metrics.metric("vmfence_pending_decisions", .gauge, "Decisions that wait for an administrator.")
    metrics.sample(await coordinator.pending.count)
    metrics.metric(
      "vmfence_frozen_domains", .gauge, "Domains that are paused because a request to one of their disks is held.")
    metrics.sample(await disks.paused.count)
    metrics.metric(
      "vmfence_unwatched_disks", .gauge, "Disks of running guests that are to be watched and whose processes are away.")
    metrics.sample(disks.problems.count)
    metrics.metric(
      "vmfence_disk_statuses_outdated_total", .counter,
      "What disks' processes said of how they stand that something newer took the place of.")
    metrics.sample(disks.statusesOutdated)
    if let counts = drops.counts {
      metrics.metric(
        "vmfence_firewall_dropped_total", .counter,
        "Frames that the packet filter stopped, by why, since its table was made; as read in the last ten seconds.")
      for reason in counts.byReason { metrics.sample(reason.count.packets, [("reason", reason.name)]) }
    }
    let flows = flowCuts.counters
    metrics.metric(
      "vmfence_flows_cut_total", .counter, "Flows that were cut because a rule refused a packet of theirs.")
    metrics.sample(flows.cut)
    metrics.metric("vmfence_flows_not_cut_total", .counter, "Refused packets whose flows could not be cut.")
    metrics.sample(flows.notCut)
    metrics.metric(
      "vmfence_connections_reset_total", .counter, "Connections that rules rejected and both ends were told.")
    metrics.sample(flows.reset)
    let figures = await coordinator.statistics
    metrics.metric("vmfence_policy_decisions_total", .counter, "Measures and notices that were decided.")
    metrics.sample(figures.decided)
    metrics.metric("vmfence_policy_withheld_total", .counter, "Times that something stood against a measure.")
    metrics.sample(figures.withheld)
    metrics.metric("vmfence_policy_evictions_total", .counter, "Counts and steps that made room for others.")
    metrics.sample(figures.countersEvicted &+ figures.offendersEvicted)
  }
}
#endif
