#if Daemon
import Foundation
import VMFenceControl
import VMFenceCore
import VMFenceDetection

// What only the loop can answer.

extension LiveRun {
  /// How many rules are named that stand as they were before.
  private static var keptNamed: Int { 20 }

  func answer(_ question: LoopQuestion, at now: Timestamp) async {
    do throws(ControlFailure) {
      switch question.request.verb {
      case .status: question.answer(.success(ControlDesk.encode(await status(at: now))))
      case .domains: question.answer(.success(ControlDesk.encode(await domains())))
      case .rulesShow: question.answer(.success(ControlDesk.encode(rulesStatus(of: try find(question.request)))))
      case .rulesSet: try setRules(question)
      case .declared, .declaredForget, .declaredAllow:
        question.answer(.success(ControlDesk.encode(try await declared(question.request, at: now))))
      case .barrier: try await waitAtBarrier(question, at: now)
      default: throw ControlFailure("the daemon's loop does not answer this")
      }
    } catch { question.answer(.failure(error)) }
  }

  private func status(at now: Timestamp) async -> DaemonStatus {
    let figures = await coordinator.statistics
    let (kept, recorded) = (history.figures, history.counters)
    let unguarded = pool.reports.filter { $0.automaton?.state == .unguarded }.map(\.description)
    return DaemonStatus(
      version: VMFenceVersion.text, node: host.configuration.node,
      uptime: Double((now - started).wholeNanoseconds) / 1e9, firewall: firewall.name,
      isDryRun: host.configuration.policy.isDryRun, measures: await coordinator.measureCounts.all,
      pending: await coordinator.pending.count, desired: await coordinator.waitingForFirewall.count,
      flows: [
        "cut": flowCuts.counters.cut, "reset": flowCuts.counters.reset, "not_cut": flowCuts.counters.notCut,
        "not_reset": flowCuts.counters.notReset,
      ],
      stopped: Dictionary(
        drops.counts?.byReason.map { ($0.name, $0.count.packets) } ?? [], uniquingKeysWith: { $1 }),
      captureDrops: captures.drops, eventsLost: outputs.lost, eventsLostByDomain: eventsLostByName,
      eventsUnwritten: outputs.unwrittenByDomain.values.reduce(0, &+),
      limitHits: pool.reports.reduce(into: [:]) { sum, report in
        for (name, count) in report.limits { sum[name, default: 0] &+= count }
      },
      history: [
        "alerts": kept.alerts, "decisions": kept.decisions, "forgotten": kept.forgotten, "bytes": kept.bytes,
        "skipped": recorded.skipped,
      ],
      clockOffset: Double(clock.offset.wholeNanoseconds) / 1e9,
      problems: guestProblems + outputs.problems + disks.problems
        + [captures.problem, interfaceProblem].compactMap(\.self)
        + (await coordinator.isLogBroken ? ["the decision log cannot be written: measures are enforced unlogged"] : [])
        + (await coordinator.isLogUncompacted ? ["the decision log cannot be made anew, and goes on as it is"] : [])
        + (history.problem.map { ["the history is not written: \($0)"] } ?? [])
        + (drops.problem.map { ["the packet filter's counters are not read: \($0)"] } ?? [])
        + (firewall.problem.map { [$0] } ?? [])
        + (await coordinator.firewallProblem.map { ["the packet filter does not hold what was decided: \($0)"] } ?? []),
      needRules: unguarded.filter { rules.selection.rules(for: $0) == nil }.map(\.name),
      frozen: await disks.paused.sorted().map { directory.entry(for: $0)?.description.name ?? "\($0)" },
      policy: [
        "events": figures.events, "counted": figures.counted, "suppressed": figures.suppressed,
        "uncountable": figures.uncountable, "decided": figures.decided, "withheld": figures.withheld,
        "reports_dropped": figures.reportsDropped, "counters_evicted": figures.countersEvicted,
        "offenders_evicted": figures.offendersEvicted,
      ])
  }

  private var eventsLostByName: [String: UInt64] {
    let unwritten = outputs.unwrittenByDomain
    return outputs.lostByDomain.reduce(into: [:]) { result, lost in
      // It is not their number that those were lost for.
      let count = lost.value - min(lost.value, unwritten[lost.key] ?? 0)
      guard let domain = lost.key, count > 0 else { return }
      result[directory.entry(for: domain)?.description.name ?? "\(domain)", default: 0] &+= count
    }
  }

  private func domains() async -> [DomainStatus] {
    var measures: [DomainUUID: Int] = [:]
    for measure in await coordinator.measuresInForce {
      if case .domain(let uuid) = measure.key.scope { measures[uuid, default: 0] += 1 }
    }
    let (statuses, losses) = (channels?.statuses ?? [:], losses)
    return pool.reports.filter { $0.automaton?.state != .ended }.map { report in
      let (domain, counters) = (report.description, report.counters)
      let channel = statuses[domain.incarnation]
      return DomainStatus(
        name: domain.name, uuid: domain.incarnation.uuid.description, domid: domain.incarnation.domainID.rawValue,
        tenant: domain.tenant?.name, service: domain.serviceType,
        state: (report.automaton?.state ?? .unguarded).rawValue, ports: domain.ports.map(\.interface),
        packets: counters.packets, bytes: counters.bytes, inspected: counters.inspected, alerts: counters.alerts,
        drops: counters.uninspected.reduce(0) { $0 &+ $1.count },
        eventsLost: losses.events[domain.incarnation] ?? 0, historySkipped: losses.history[domain.incarnation] ?? 0,
        refusalsLost: counters.refusalsLost, waiting: UInt64(report.waiting), restarts: counters.restarts,
        inspector: Dictionary(report.inspectorFigures.map { ($0.name, $0.value) }, uniquingKeysWith: { $1 }),
        limitHits: report.limits.reduce(0) { $0 &+ $1.count }, measures: measures[domain.incarnation.uuid] ?? 0,
        rules: rules.selection.rules(for: domain)?.ruleCount ?? 0, channel: channel?.state.rawValue,
        policy: channel?.inForce?.policy?.version, answerSeconds: channel?.answerDelay.map { $0 / .seconds(1) },
        declared: channel?.standing.protectedPaths)
    }
  }

  // MARK: Rules

  private func find(_ request: ControlRequest) throws(ControlFailure) -> DomainDescription {
    guard let found = directory.find(request.domain ?? "") else {
      throw ControlFailure(
        "there is no domain `\((request.domain ?? "").escapedForDisplay)`", remedy: "list them: vmfence-ref domains")
    }
    return found
  }

  private func rulesStatus(of domain: DomainDescription) -> RulesStatus {
    let own = assigned.files(of: domain)
    let catalog = host.configuration.rules.catalog
    let key = RuleSubject(domain).keys.first { catalog.byDomain[$0] != nil }
    var files = catalog.sources(domainName: own == nil ? key ?? "" : "", serviceType: domain.serviceType).map(\.path)
    files += own ?? []
    return RulesStatus(
      domain: domain.name,
      state: (directory.entry(for: domain.incarnation)?.state ?? .unguarded).rawValue, files: files,
      rules: rules.selection.rules(for: domain)?.ruleCount ?? 0, isAssigned: own != nil,
      kept: keptRules(rules.selection.kept(for: domain)))
  }

  /// Of guests, their rules and their cards.
  private var guestProblems: [String] {
    toldProblems.map(\.description) + keptRules(rules.selection.kept) + dispatchProblems
  }

  /// What there is to say of rules that stand as they were before.
  private func keptRules(_ kept: [KeptRule]) -> [String] {
    let named = kept.prefix(Self.keptNamed).map(\.description)
    return named + (kept.count > named.count ? ["\(kept.count - named.count) more rules stay in force like these"] : [])
  }

  /// The paper's event e2: rules for a domain, at run time. Compiled in another thread; in force, and kept, only when they compile.
  private func setRules(_ question: LoopQuestion) throws(ControlFailure) {
    let domain = try find(question.request)
    let files = question.request.files ?? []
    if let bad = files.first(where: { !$0.hasPrefix("/") }) {
      throw ControlFailure(
        "`\(bad.escapedForDisplay)` is no absolute path", remedy: "the daemon has a folder of its own")
    }
    guard files.count <= 256 else { throw ControlFailure("\(files.count) rule files, and at most 256 are taken") }
    guard !isPreparing else { throw ControlFailure("a reload is under way", remedy: "try again") }
    var changed = assigned
    let named = question.request.domain.flatMap { DomainUUID($0) }
    changed.set(files, for: domain, byUUID: named == domain.incarnation.uuid)
    isPreparing = true
    let (configured, domains, mailbox, wanted, previous) = (
      host.configuration.rules, snapshot?.domains ?? [], mailbox, changed, rules.selection
    )
    jobs.async {
      let result = PreparedHost.compile(configured, wanted, for: domains.map(RuleSubject.init), keeping: previous)
      mailbox.post(.assigned(wanted, result.rules, result.diagnostics, question))
    }
  }

  func take(
    assigned wanted: RuleAssignments, _ selection: RuleSelection?, _ diagnostics: [Diagnostic],
    for question: LoopQuestion, at now: Timestamp
  ) {
    isPreparing = false
    // Whoever names files wants all of them, whatever the configuration does with rules that are wrong.
    let files = Set(question.request.files ?? [])
    let isBad = diagnostics.contains { $0.severity == .error && files.contains($0.place?.file ?? "") }
    guard let selection, !isBad else {
      question.answer(
        .failure(
          ControlFailure(
            "the rules cannot be used; nothing was changed", remedy: "mend what is named",
            diagnostics: diagnostics.prefix(100).map(\.description))))
      return
    }
    if let directory = host.configuration.stateDirectory {
      do { try wanted.write(stateDirectory: directory) } catch {
        question.answer(
          .failure(
            ControlFailure(
              "the assignment cannot be kept in \(directory): \(error.localizedDescription)",
              remedy: "free space there; nothing was changed")))
        return
      }
    }
    assigned = wanted
    putInForce(selection, at: now)
    logger.notice("rules were set for \(question.request.domain ?? "") over the control socket")
    do throws(ControlFailure) {
      question.answer(.success(ControlDesk.encode(rulesStatus(of: try find(question.request)))))
    } catch { question.answer(.failure(error)) }
  }
}
#endif
