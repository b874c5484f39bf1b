#if Daemon
import VMFenceCapture
import VMFenceCore

/// Counts what a replay told.
struct ReplayTally {
  struct AlertLine: Hashable {
    var incarnation: Incarnation
    var gid: UInt32
    var sid: UInt32
  }

  private(set) var alerts: [AlertLine: (message: String, sources: Set<IPAddress>, count: Int)] = [:]
  private(set) var files: [FileEvent] = []
  private(set) var decisions: [Decision] = []
  private(set) var platform: [PlatformAlert] = []
  private(set) var notices: [LifecycleReport] = []
  private(set) var blockedPackets: [Incarnation: Int] = [:]
  private(set) var blockedByDecision: [UInt64: Int] = [:]
  /// Lines that are kept of each kind for the summary; the event file has all.
  static let linesKept = 10_000

  mutating func note(_ event: Event) {
    switch event {
    case .alert(let alert):
      let key = AlertLine(incarnation: alert.incarnation, gid: alert.rule.gid, sid: alert.rule.sid)
      var line = alerts[key] ?? (alert.rule.message, [], 0)
      if line.sources.count < 64 { line.sources.insert(alert.source) }
      line.count += 1
      alerts[key] = line
    case .file(let event): if files.count < Self.linesKept { files.append(event) }
    case .decision(let decision): if decisions.count < Self.linesKept { decisions.append(decision) }
    case .packet: break
    case .platform(let alert): if platform.count < Self.linesKept { platform.append(alert) }
    case .lifecycle(let report):
      if case .transition = report.kind { return }
      if notices.count < Self.linesKept { notices.append(report) }
    }
  }

  mutating func noteBlocked(_ incarnation: Incarnation, _ decision: UInt64) {
    blockedPackets[incarnation, default: 0] += 1
    blockedByDecision[decision, default: 0] += 1
  }
}

/// What a replay came to, for people.
struct ReplaySummary {
  var scenario: Scenario
  var start: Timestamp
  var end: Timestamp
  var reports: [DomainReport]
  var tally: ReplayTally
  var capture: CaptureCounters
  var captureProblem: PacketSourceError?
  var dispatch: DispatchCounters
  var disks: [DiskWatch]
  var measures: [FirewallMeasure]

  var statistics: EVEStatistics {
    EVEStatistics(
      time: end, uptime: end - start, packets: capture.received, bytes: capture.receivedBytes,
      drops: reports.reduce(0) { $0 + $1.counters.uninspected.reduce(0) { $0 + $1.count } },
      alerts: reports.reduce(0) { $0 + $1.counters.alerts })
  }

  func lines(_ terminal: Terminal) -> [String] {
    var lines = [
      terminal.styled("Replay of \(scenario.name.escapedForDisplay)", .bold)
        + ": \((end - start).display) of traffic, \(capture.received) frames, \(reports.count) incarnations"
    ]
    for report in reports { lines += [""] + domain(report, terminal) }
    let hostEvents = tally.platform.filter { $0.incarnation == nil }
    if !hostEvents.isEmpty {
      lines += ["", terminal.styled("host", .bold)]
      lines += hostEvents.map { "  \(offset($0.time))  \($0.kind.name): \($0.message)\(times($0.count))" }
    }
    if dispatch.notForGuest + dispatch.unknown + dispatch.unknownPort + dispatch.malformed > 0 {
      lines += [
        "",
        "frames for nobody: \(dispatch.notForGuest) flooded, \(dispatch.unknown) of no known domain, "
          + "\(dispatch.unknownPort) before or after their domain, \(dispatch.malformed) malformed",
      ]
    }
    return lines
  }

  private func domain(_ report: DomainReport, _ terminal: Terminal) -> [String] {
    let domain = report.description
    let about = [domain.tenant.map { "tenant \($0.name)" }, domain.serviceType].compactMap(\.self).joined(
      separator: ", ")
    var lines = [
      terminal.styled(domain.name.escapedForDisplay, .bold) + " (\(about.escapedForDisplay)) \(domain.incarnation)"
    ]
    lines.append("  states    " + history(report))
    lines.append("  packets   " + packets(report))
    lines += section("limits", report.limits.map { "\($0.name): \($0.count)" }, terminal, .yellow)
    lines += section("alerts", alerts(domain.incarnation), terminal, .red)
    lines += section("files", files(domain.incarnation), terminal, .yellow)
    lines += section("measures", decisions(domain.incarnation), terminal, .green)
    lines += section("notices", notices(domain.incarnation), terminal, .dim)
    return lines
  }

  private func section(_ name: String, _ items: [String], _ terminal: Terminal, _ style: Terminal.Style) -> [String] {
    items.enumerated().map { index, item in
      "  " + (index == 0 ? terminal.styled(name, style) : name.map { _ in " " }.joined())
        + String(repeating: " ", count: max(1, 10 - name.count)) + item
    }
  }

  private func history(_ report: DomainReport) -> String {
    guard let automaton = report.automaton, let first = automaton.history.first else { return "(none)" }
    let steps = automaton.history.map { "-\($0.event.rawValue) \(offset($0.time))-> \($0.to.rawValue)" }
    let dropped = automaton.historyDropped > 0 ? "(\(automaton.historyDropped) earlier) " : ""
    return dropped + ([first.from.rawValue] + steps).joined(separator: " ")
  }

  private func packets(_ report: DomainReport) -> String {
    let counters = report.counters
    var parts = ["\(counters.packets) for it", "\(counters.inspected) inspected"]
    if report.waiting > 0 { parts.append("\(report.waiting) waiting") }
    parts += counters.uninspected.map { "\($0.count) not inspected (\($0.cause))" }
    if let blocked = tally.blockedPackets[report.description.incarnation] {
      parts.append("\(blocked) kept away by measures")
    }
    if counters.droppedByRule > 0 {
      parts.append(
        "\(counters.droppedByRule) \(scenario.inspector.isInline ? "dropped by rules" : "that rules would drop")")
    }
    if counters.restarts > 0 { parts.append("\(counters.restarts) detector restarts") }
    return parts.joined(separator: ", ")
  }

  private func alerts(_ incarnation: Incarnation) -> [String] {
    tally.alerts.filter { $0.key.incarnation == incarnation }
      .sorted { ($0.key.gid, $0.key.sid) < ($1.key.gid, $1.key.sid) }
      .map { key, line in
        let sources = line.sources.sorted().prefix(4).map(\.description).joined(separator: ", ")
        return "\(line.count) x [\(key.gid):\(key.sid)] \(line.message.escapedForDisplay) from \(sources)"
          + (line.sources.count > 4 ? " and others" : "")
      }
  }

  private func files(_ incarnation: Incarnation) -> [String] {
    tally.files.filter { $0.incarnation == incarnation }.map { event in
      var text =
        "\(offset(event.time))  \(event.operation.rawValue) \(String(decoding: event.path, as: UTF8.self).escapedForDisplay)"
      if let length = event.length, let at = event.offset { text += " (\(length) bytes at \(at))" }
      if let old = event.oldPath { text += " (was \(String(decoding: old, as: UTF8.self).escapedForDisplay))" }
      for change in event.changes.prefix(3) {
        text +=
          " \(change.attribute.escapedForDisplay): \(change.old.escapedForDisplay) -> \(change.new.escapedForDisplay)"
      }
      return text + (event.verdict == .allow ? "" : event.verdict == .deny ? "  refused" : "  held")
    }
  }

  private func decisions(_ incarnation: Incarnation) -> [String] {
    tally.decisions.filter { $0.incarnation == incarnation }.map { decision in
      var text = "\(offset(decision.time))  \(decision.measure.words), \(decision.status.rawValue)"
      if let expires = decision.expires { text += ", until \(offset(expires))" }
      text += ": \(decision.reason.escapedForDisplay)"
      if let count = tally.blockedByDecision[decision.id], decision.status == .enforced {
        text += " [kept \(count) packets away]"
      }
      return text
    }
  }

  private func notices(_ incarnation: Incarnation) -> [String] {
    let reports = tally.notices.filter { $0.incarnation == incarnation }.map { report -> (Timestamp, String) in
      switch report.kind {
      case .configurationNeeded: (report.time, "the administrator is asked to configure rules for it")
      case .stuck(let state, let duration): (report.time, "in state \(state.rawValue) for \(duration.display)")
      case .unexpected(let state, let event): (report.time, "unexpected \(event.rawValue) in \(state.rawValue)")
      case .transition: (report.time, "")
      }
    }
    let alerts = tally.platform.filter { $0.incarnation == incarnation }.map { alert in
      (alert.time, "\(alert.kind.name): \(alert.message)\(times(alert.count))")
    }
    return (reports + alerts).enumerated().sorted { ($0.element.0, $0.offset) < ($1.element.0, $1.offset) }
      .map { "\(offset($0.element.0))  \($0.element.1)" }
  }

  private func times(_ count: UInt64) -> String { count > 1 ? " (\(count) times)" : "" }

  /// Since the scenario's start: `+12.345s`.
  private func offset(_ time: Timestamp) -> String {
    let milliseconds = (time - start).wholeNanoseconds / 1_000_000
    let fraction = String(abs(milliseconds % 1000))
    return
      "\(milliseconds < 0 ? "-" : "+")\(abs(milliseconds / 1000)).\(String(repeating: "0", count: 3 - fraction.count))\(fraction)s"
  }
}

extension Decision.Measure {
  /// For people.
  var words: String {
    switch self {
    case .notify: "notify"
    case .block(let network): "block \(network)"
    case .blockOnHost(let network): "block \(network) on the whole host"
    case .quarantine: "quarantine"
    case .rateLimit(let rate): "limit to \(rate) packets a second"
    case .pause: "pause"
    case .shutDown: "shut down"
    case .lift(let key):
      switch key.kind {
      case .block(let network): "lift the block of \(network)"
      case .quarantine: "lift the quarantine"
      case .rateLimit: "lift the rate limit"
      }
    }
  }
}
#endif
