// What ended while nobody was here. There may be as much of it as there is room for measures, and who is told has room for less at once.

/// Measures that ended before the start. What is not told yet is not in the log either, so whenever the process dies, the next start finds it again.
struct LiftedMeanwhile {
  /// How many are told in one go: queues behind the events have room for many times that.
  static let portion = 4_096

  /// Neither in the log nor told.
  var rest: ArraySlice<Decision>

  init(_ decisions: [Decision]) { rest = decisions[...] }
}

extension EnforcementCoordinator {
  /// Writes what ended before the start and is not told yet to the log, and tells it, all at once. To be called before the end. Where the first `reconcile` has not succeeded, and
  /// nothing was decided, it is left to the next start.
  public func tellLifted() async {
    await enter()
    defer { leave() }
    await tellLifted(atMost: .max)
  }

  /// Begins to go on with what the log said, and to tell of what ended before the start. The firewall is not asked to lift it: what it holds of it goes when it is reconciled.
  /// To be called between `enter` and `leave`.
  func begin(at time: Timestamp) async {
    guard !hasBegun else { return }
    hasBegun = true
    let surplus = updater.statistics.surplus
    if surplus > 0 {
      await report(
        .enforcementFailed, severity: 2, at: time, count: surplus,
        "the capacities have no room for \(surplus) of the measures that stood and of the decisions that waited: these end with this start"
      )
    }
    await tellLifted(atMost: LiftedMeanwhile.portion)
  }

  /// To be called between `enter` and `leave`.
  func tellLifted(atMost limit: Int) async {
    guard hasBegun, !lifted.rest.isEmpty else { return }
    let portion = Array(lifted.rest.prefix(limit))
    lifted.rest = lifted.rest.dropFirst(limit)
    // The array behind the slice goes with it.
    if lifted.rest.isEmpty { lifted.rest = [] }
    await tell(logged: portion)
  }

  /// Of one address the log must not say first that it is blocked anew: tells before of what ended there. To be called between `enter` and `leave`.
  func tellLifted(before decisions: [Decision], at time: Timestamp) async {
    await begin(at: time)
    guard !lifted.rest.isEmpty else { return }
    let keys = Set(decisions.compactMap { $0.firewallMeasure?.key })
    func isOfThese(_ decision: Decision) -> Bool {
      if case .lift(let key) = decision.measure { keys.contains(key) } else { false }
    }
    let first = lifted.rest.filter(isOfThese)
    guard !first.isEmpty else { return }
    lifted.rest.removeAll(where: isOfThese)
    await tell(logged: Array(first))
  }

  private func tell(logged decisions: [Decision]) async {
    for decision in await logged(decisions, at: updater.now) { await events.receive(.decision(decision)) }
  }
}
