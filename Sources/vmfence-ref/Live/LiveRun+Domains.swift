#if Daemon
import Foundation
import VMFenceControl
import VMFenceCore
import VMFenceNftables

/// What other threads hand in.
enum LiveMessage: Sendable {
  /// The inventory has something new, or has missed something, which it says.
  case inventory(InventoryChange)
  /// The policy channels have something new.
  case channels
  /// Cards that came were opened, or cannot be.
  case captures
  /// Of the packet filter.
  case firewall(ProcessFirewallSink.News)
  /// A reload was prepared, or what stands against it.
  case prepared(PreparedHost?, [Diagnostic])
  /// Rules were compiled for domains that came, with the assignments that they were compiled for.
  case compiled(RuleSelection?, [Diagnostic])
  case question(LoopQuestion)
  /// The processes of disks have said something.
  case disks
  /// Rules that were set for a domain are compiled, or cannot be.
  case assigned(RuleAssignments, RuleSelection?, [Diagnostic], LoopQuestion)

  var isOfInventory: Bool { if case .inventory = self { true } else { false } }
}

extension LiveRun {
  /// How long a domain that is gone is remembered: its name is needed for measures that run out later.
  private static var memoryOfGone: Duration { .seconds(3600) }

  /// Has the loop look when the inventory changes, and not only once a second.
  func watchInventory() {
    let (domains, mailbox) = (domains, mailbox)
    Task {
      for await change in await domains.hints() { mailbox.post(.inventory(change)) }
    }
    firewall.watch { mailbox.post(.firewall($0)) }
  }

  func refreshInventory(at now: Timestamp) async {
    do throws(ProbeError) {
      let look = try await domains.snapshot()
      if snapshot?.domains != look.domains {
        take(look, at: now)
        tellChannels(look.domains)
      }
      snapshot = look
      await tellFirewall(look.domains)
    } catch { logger.log([error.diagnostic]) }
    let problems = domains.problems
    if problems != toldProblems {
      logger.log(problems)
      logger.notice(
        problems.isEmpty
          ? "nothing is wrong with the list of domains any more"
          : "what was known of the domains stays in force as far as it is not read anew")
      toldProblems = problems
    }
    await forgetGone(at: now)
    if let snapshot { disks.settle(snapshot.domains, at: now) }
  }

  private func take(_ look: InventorySnapshot, at now: Timestamp) {
    pool.update(.snapshot(look), at: now)
    // The CPU time goes on by itself.
    guard snapshot?.domains.map(\.withoutCPUTime) != look.domains.map(\.withoutCPUTime) else { return }
    look.domains.forEach(directory.update)
    if look.domains.contains(where: rules.selection.lacks) { compileAgain(for: look.domains) }
    let present = Set(look.domains.map(\.incarnation))
    for old in snapshot?.domains ?? [] where !present.contains(old.incarnation) { gone[old.incarnation] = now }
    for incarnation in present { gone[incarnation] = nil }
    portsAreStale = true
    logger.debug("there are \(look.domains.count) domains")
  }

  private func tellFirewall(_ domains: [DomainDescription]) async {
    guard portsAreStale else { return }
    do throws(FirewallError) {
      try await firewall.update(domains, host.configuration.firewall, hostAddresses)
      portsAreStale = false
    } catch { logger.error("the firewall was not told of the domains' ports: \(error.message)") }
  }

  /// Has the packet filter stop nothing any more that guests pretend; measures stay. Soon nobody learns of guests that come with other addresses or ports, and what
  /// is right for them would be stopped, with nobody to say so.
  func releaseGuards() async {
    guard let domains = snapshot?.domains else { return }
    var choice = host.configuration.firewall
    choice.antiSpoofing = []
    do throws(FirewallError) { try await firewall.update(domains, choice, hostAddresses) } catch {
      logger.warning("anti-spoofing goes on without this daemon: \(error.message)")
    }
  }

  private func forgetGone(at now: Timestamp) async {
    var forgotten: [DomainUUID] = []
    for (incarnation, since) in gone where now - since > Self.memoryOfGone {
      directory.remove(incarnation)
      outputs.forget(incarnation)
      history.forget(incarnation)
      gone[incarnation] = nil
      forgotten.append(incarnation.uuid)
    }
    for uuid in forgotten where !directory.all.contains(where: { $0.description.incarnation.uuid == uuid }) {
      await guestPolicies.forget(uuid)
    }
  }

  /// Puts a policy in force, with what this host never blocks.
  func apply(_ policy: Policy, at now: Timestamp) async throws(PolicyError) {
    var policy = policy
    policy.neverBlock += hostAddresses.networks
    try await coordinator.replacePolicy(with: policy, at: now)
  }

  // MARK: Reloading

  /// Reads everything again, in another thread; `take` puts it in force, whole or not at all.
  func startReload() {
    guard !isPreparing else {
      if !isReloadWanted { logger.notice("rules are being compiled already; the reload follows") }
      isReloadWanted = true
      return
    }
    isReloadWanted = false
    isPreparing = true
    service.reloading()
    outputs.reopen()
    let (path, assigned, mailbox, previous) = (host.configuration.file, assigned, mailbox, rules.selection)
    jobs.async {
      let result = PreparedHost.load(path: path, assigned: assigned, keeping: previous)
      mailbox.post(.prepared(result.host, result.diagnostics))
    }
  }

  private func compileAgain(for domains: [DomainDescription]) {
    guard !isPreparing else { return }
    isPreparing = true
    let (files, assigned, mailbox, previous) = (host.configuration.rules, assigned, mailbox, rules.selection)
    let domains = domains.map(RuleSubject.init)
    jobs.async {
      let result = PreparedHost.compile(files, assigned, for: domains, keeping: previous)
      mailbox.post(.compiled(result.rules, result.diagnostics))
    }
  }

  func take(_ message: LiveMessage, at now: Timestamp) async {
    switch message {
    // Looked at once for all of them. What was missed is an event; everything else is in the snapshot.
    case .inventory(let change): if case .gap = change { pool.update(change, at: now) }
    case .channels: await takeChannelNews(at: now)
    case .captures: if captures.takeOpened() { forgetTable() }
    case .firewall(let news): take(news, at: now)
    case .prepared(let prepared, let diagnostics):
      isPreparing = false
      logger.log(diagnostics)
      if let prepared {
        await takeOver(prepared, at: now)
      } else {
        logger.error("nothing was reloaded; what was in force stays in force")
      }
      service.ready()
    case .compiled(let selection, let diagnostics):
      isPreparing = false
      logger.log(diagnostics)
      if let selection { putInForce(selection, at: now) } else { goOnWithout(at: now) }
    case .question(let question): await answer(question, at: now)
    // `tell` takes it; this has woken the loop.
    case .disks: break
    case .assigned(let wanted, let selection, let diagnostics, let question):
      take(assigned: wanted, selection, diagnostics, for: question, at: now)
    }
    if !isPreparing, isReloadWanted { startReload() }
    if !isPreparing, let domains = snapshot?.domains, domains.contains(where: rules.selection.lacks) {
      compileAgain(for: domains)
    }
  }

  private func take(_ news: ProcessFirewallSink.News, at now: Timestamp) {
    switch news {
    case .changedByOthers(let change):
      if !isReconcileWanted { logger.warning("the packet filter: \(change); it is read back") }
      isReconcileWanted = true
    case .gone(let reason):
      let message =
        "vmfence-firewall is gone (\(reason.escapedForDisplay)) and is started again; what stands in the packet filter "
        + "stays in force, and what is decided waits"
      logger.error("\(message)")
      note(.platform(PlatformAlert(time: now, incarnation: nil, kind: .firewallGap, message: message, severity: 2)))
    case .back:
      logger.notice("vmfence-firewall runs again; the packet filter is read back")
      isReconcileWanted = true
    }
  }

  /// Something that is common to all rules is wrong since they were compiled last. Domains that came since then have what is in force for their like, and nothing is
  /// compiled again and again until somebody mends it.
  private func goOnWithout(at now: Timestamp) {
    let keys = rules.selection.leaveWithout(snapshot?.domains ?? [])
    guard !keys.isEmpty else { return }
    let guests = keys.map { "`\($0.escapedForDisplay)`" }.joined(separator: ", ")
    logger.error(
      "the rules of the guests \(guests) could not be compiled: each keeps those that it has, or has those of its service and those for all (mend what is named, and reload)"
    )
    pool.rulesChanged(at: now)
  }

  private func takeOver(_ prepared: PreparedHost, at now: Timestamp) async {
    let fixed = prepared.configuration.changesAtStartOnly(since: host.configuration)
    do throws(PolicyError) { try await apply(prepared.configuration.policy, at: now) } catch {
      logger.log(error.diagnostics)
      logger.error("nothing was reloaded; what was in force stays in force")
      return
    }
    host = prepared
    domains.use(prepared.configuration.guests)
    useDeclarations()
    putInForce(prepared.rules, at: now)
    outputs.use(prepared.configuration.notifications)
    portsAreStale = true
    disks.follow(prepared.configuration.disks)
    await refreshInventory(at: now)
    forgetTable()
    if !fixed.isEmpty {
      logger.warning("reloaded; a restart is needed for what changed of: \(fixed.joined(separator: ", "))")
    } else {
      logger.notice("reloaded")
    }
  }

  func putInForce(_ selection: RuleSelection, at now: Timestamp) {
    rules.selection = selection
    pool.rulesChanged(at: now)
  }
}

extension HostConfiguration {
  /// The keys that differ from `old` and are read at the start only.
  fileprivate func changesAtStartOnly(since old: HostConfiguration) -> [String] {
    [
      ("inventory", domains == old.domains), ("detectors", usesProcesses == old.usesProcesses),
      ("inspection", inspector == old.inspector), ("lifecycle", lifecycle == old.lifecycle),
      ("node", node == old.node), ("control", control == old.control), ("firewall", firewall.isSame(as: old.firewall)),
      ("control-socket", controlSocket == old.controlSocket), ("metrics", metrics == old.metrics),
      ("state-directory", stateDirectory == old.stateDirectory),
      ("answer-timeout", answerTimeout == old.answerTimeout),
    ].filter { !$0.1 }.map(\.0)
  }
}

extension DomainDescription {
  fileprivate var withoutCPUTime: DomainDescription {
    var copy = self
    copy.cpuTime = .zero
    return copy
  }
}

extension HostConfiguration.Firewall {
  /// Whether nothing is different but what a reload takes over.
  fileprivate func isSame(as other: Self) -> Bool {
    var other = other
    (other.antiSpoofing, other.antiSpoofingExceptions, other.routers) = (antiSpoofing, antiSpoofingExceptions, routers)
    return self == other
  }
}
#endif
