/// What the tracker knows of one incarnation.
struct LifecycleRecord: Sendable {
  var automaton: LifecycleAutomaton
  private(set) var description: DomainDescription
  /// The probe lists it, in whatever state.
  var isListed = true
  var isConfigured = false
  var hasDetector = false
  /// The kill was asked for; `detectorGone` is to come.
  var killIsUnderWay = false
  /// When a detector may be started at the earliest.
  var retry: Timestamp?
  /// The last CPU time or packet of a blocked domain, or when it was first seen blocked.
  var lastSignOfLife: Timestamp
  private var wasToldHalted = false
  /// The detector has been told to stand still.
  private var isStopped = false
  private var askedForRules = false
  private var reportedStuck = false

  /// From Start to q3 it takes two events, from q4 by way of q2 to q3 two, and to begin anew one more look: no run is longer.
  private static let eventsAtMost = 8

  init(_ domain: DomainDescription, automaton: LifecycleAutomaton, at time: Timestamp) {
    description = domain
    self.automaton = automaton
    lastSignOfLife = time
  }

  mutating func observe(_ domain: DomainDescription, at now: Timestamp) {
    let wasBlockedHere = isListed && description.runState == .blocked
    if !wasBlockedHere || domain.cpuTime != description.cpuTime { lastSignOfLife = now }
    description = domain
    isListed = true
  }

  func levels(at now: Timestamp, blockedAfter: Duration) -> DomainLevels {
    let isHalted =
      switch description.runState {
      case .paused, .suspendedForMigration: true
      case .blocked: now - lastSignOfLife >= blockedAfter
      case .running, .shutDown, .crashed, .dying: false
      }
    return DomainLevels(
      isPresent: isListed && description.isPresent, isConfigured: isConfigured && retry.map { $0 <= now } ?? true,
      isHalted: isHalted, hasDetector: hasDetector)
  }

  /// Feeds the automaton until its state is what the levels imply, and adds what that takes to `actions`.
  mutating func settle(
    at now: Timestamp, _ configuration: LifecycleTracker.Configuration, isShuttingDown: Bool,
    _ actions: inout [LifecycleTracker.Action]
  ) {
    for _ in 0..<Self.eventsAtMost {
      let levels = levels(at: now, blockedAfter: configuration.blockedAfter)
      if isShuttingDown {
        if automaton.state != .end { actions.append(handle(.platformShutdown, at: now)) }
        break
      }
      if automaton.state == .ended, levels.isPresent {
        automaton.beginAnew(at: now)
        wasToldHalted = false
      }
      guard let event = levels.event(in: automaton.state, wasToldHalted: wasToldHalted) else { break }
      actions.append(handle(event, at: now))
      if automaton.state == .inspecting, !hasDetector { launch(&actions) }
      align(&actions)
    }
    leave(at: now, configuration, &actions)
  }

  /// Gives the automaton an event.
  mutating func handle(_ event: LifecycleEvent, at now: Timestamp) -> LifecycleTracker.Action {
    let before = automaton.state
    let kind = automaton.handle(event, at: now)
    if automaton.state != before {
      reportedStuck = false
      askedForRules = false
    }
    switch event {
    case .halted: wasToldHalted = true
    case .running, .created, .configured: wasToldHalted = automaton.state == .suspended
    default: break
    }
    return report(kind, at: now)
  }

  private mutating func launch(_ actions: inout [LifecycleTracker.Action]) {
    hasDetector = true
    isStopped = false
    retry = nil
    actions.append(.startDetector(description.incarnation))
  }

  /// Stops or continues the detector as the state says. In `orphaned` it stays as it is.
  private mutating func align(_ actions: inout [LifecycleTracker.Action]) {
    guard hasDetector else { return }
    if automaton.state == .suspended, !isStopped {
      isStopped = true
      actions.append(.suspendDetector(description.incarnation))
    } else if automaton.state == .inspecting, isStopped {
      isStopped = false
      actions.append(.resumeDetector(description.incarnation))
    }
  }

  /// What is to be done in states that must not last.
  private mutating func leave(
    at now: Timestamp, _ configuration: LifecycleTracker.Configuration, _ actions: inout [LifecycleTracker.Action]
  ) {
    let age = now - automaton.since
    if automaton.state == .unguarded, !isConfigured, !askedForRules {
      askedForRules = true
      actions.append(report(.configurationNeeded, at: now))
    }
    // A domain that was migrated away and is still listed may come back within the grace.
    let mayComeBack = isListed && !description.runState.isFinal && age < configuration.handoverGrace
    if hasDetector, !killIsUnderWay, automaton.state == .end || automaton.state == .orphaned && !mayComeBack {
      killIsUnderWay = true
      actions.append(.killDetector(description.incarnation))
    }
    if automaton.state.isUnstable, age >= configuration.stuckAfter, !reportedStuck {
      reportedStuck = true
      actions.append(report(.stuck(state: automaton.state, for: age), at: now))
    }
  }

  private func report(_ kind: LifecycleReport.Kind, at now: Timestamp) -> LifecycleTracker.Action {
    .report(
      LifecycleReport(time: now, incarnation: description.incarnation, domainName: description.name, kind: kind))
  }
}
