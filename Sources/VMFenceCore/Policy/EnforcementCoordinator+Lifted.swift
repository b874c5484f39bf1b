// What ran out while nobody was here. There may be as much of it as there is room for measures: the log takes it at once, those who are told get it in portions.

/// Measures that ended before the start.
struct LiftedMeanwhile {
  /// How many are told in one go: queues behind the events have room for many times that.
  static let portion = 4_096

  /// Not in the log yet, and told to nobody.
  var fresh: [Decision]
  /// In the log, and not told yet.
  var untold: ArraySlice<Decision> = []

  init(_ decisions: [Decision]) { fresh = decisions }
}

extension EnforcementCoordinator {
  /// Tells of what ran out before the start as much as is not told yet, all at once. To be called before the end: it is in the log, so the next start does not find it again. What
  /// is not in the log yet is left to that.
  public func tellLifted() async {
    await enter()
    defer { leave() }
    await tellLifted(atMost: .max)
  }

  /// Writes what ran out before the start to the log, and begins to tell of it. The firewall is not asked to lift it: what it holds of it goes when it is reconciled.
  /// To be called between `enter` and `leave`.
  func logLifted(at time: Timestamp) async {
    guard !lifted.fresh.isEmpty else { return }
    lifted.untold = await logged(lifted.fresh, at: time)[...]
    lifted.fresh = []
    await tellLifted(atMost: LiftedMeanwhile.portion)
  }

  /// To be called between `enter` and `leave`.
  func tellLifted(atMost limit: Int) async {
    for decision in lifted.untold.prefix(limit) { await events.receive(.decision(decision)) }
    lifted.untold = lifted.untold.dropFirst(limit)
    // The array behind the slice goes with it.
    if lifted.untold.isEmpty { lifted.untold = [] }
  }
}
