// What goes to the log, and what becomes of it when the log does not take it.

extension EnforcementCoordinator {
  /// How much of what the log did not take is appended at once: while its disk is full, trying costs no more than this.
  private static var portion: Int { 4_096 }
  /// And how much together with what is decided, which waits for it.
  private static var promptPortion: Int { 256 }

  /// Writes the decisions to the log, and marks those that it did not take.
  func logged(_ decisions: [Decision], at time: Timestamp) async -> [Decision] {
    do throws(DecisionLogError) {
      // First what it did not take before: if a measure came behind the word that lifted it, the next start would put it in force again. Nobody waits for much of it.
      if unlogged.count <= Self.promptPortion {
        try log.append(backlog + decisions)
        unlogged = [:]
        isSyncNeeded = true
        return decisions
      }
    } catch { await reportBrokenLog(error, at: time) }
    for decision in decisions {
      if unlogged.count < Self.unloggedCapacity || unlogged[decision.id] != nil {
        unlogged[decision.id] = decision
      } else {
        isLogIncomplete = true
      }
    }
    return decisions.map { decision in
      var decision = decision
      decision.isLogged = false
      return decision
    }
  }

  /// In the order of the numbers: nothing is said of a measure any more once another number says that it has ended.
  private var backlog: [Decision] { unlogged.isEmpty ? [] : unlogged.values.sorted { $0.id < $1.id } }

  /// Tries again. To be called between `enter` and `leave`.
  func appendUnlogged(at time: Timestamp) async {
    var rest = backlog[...]
    do throws(DecisionLogError) {
      while !rest.isEmpty {
        let portion = rest.prefix(Self.portion)
        try log.append(Array(portion))
        for decision in portion { unlogged[decision.id] = nil }
        rest = rest.dropFirst(Self.portion)
      }
      // Whether the disk keeps it has to be seen, too.
      isSyncNeeded = true
    } catch { await reportBrokenLog(error, at: time) }
  }

  /// Makes the log durable, if something was appended since. What comes meanwhile is for the next time, and while it is being done already this returns at once.
  public func syncLog(at time: Timestamp) async {
    guard isSyncNeeded, !isSyncing else { return }
    (isSyncNeeded, isSyncing) = (false, true)
    let error = await Self.sync(log)
    isSyncing = false
    if let error {
      await reportBrokenLog(error, at: time)
    } else if unlogged.isEmpty {
      await reportSoundLog(at: time)
    }
  }

  /// Whether the log is to be made anew: somebody wants it, it says so, or something is known here alone.
  var isCompactionDue: Bool { isCompactionWanted || isLogIncomplete && !isLogBroken || log.isCompactionDue }

  func reportSoundLog(at time: Timestamp) async {
    guard isLogBroken else { return }
    isLogBroken = false
    await report(
      .logWritable, severity: 3, at: time, "the decision log is written again, with what it did not take meanwhile")
  }

  func reportBrokenLog(_ error: DecisionLogError, at time: Timestamp) async {
    guard !isLogBroken else { return }
    isLogBroken = true
    await report(
      .logUnwritable, severity: 1, at: time,
      "the decision log cannot be written, measures are enforced unlogged: \(error.message.escapedForDisplay)")
  }
}
