// What is done to the log beside everything else, since a disk can be slow.

extension EnforcementCoordinator {
  static func sync(_ log: any DecisionLog) async -> DecisionLogError? {
    await inThread { () throws(DecisionLogError) in try log.sync() }
  }

  /// In a thread of its own: on a host with one processor all tasks share one thread.
  private static func inThread(
    _ body: @escaping @Sendable () throws(DecisionLogError) -> Void
  ) async -> DecisionLogError? {
    @Sendable func result() -> DecisionLogError? {
      do throws(DecisionLogError) {
        try body()
        return nil
      } catch {
        return error
      }
    }
    return await withCheckedContinuation { continuation in
      let isStarted = DetachedThread.start { continuation.resume(returning: result()) } == 0
      if !isStarted { continuation.resume(returning: result()) }
    }
  }

  // MARK: Making it anew

  struct Compaction {
    var finish: @Sendable () throws(DecisionLogError) -> Void
    /// What the log had not taken before it began, and what is in it with the rest now.
    var covered: [UInt64: Decision]
    /// Of more nobody knew but the updater, whose state it is made of.
    var coversLoss: Bool
  }

  /// Writes the log anew, with what is still of consequence. To be called after the system's clock was set. Other calls go on meanwhile, and what they decide is in the log at each
  /// instant; while it is written anew already, it is once more afterwards, and this does not wait for that.
  public func compactLog(at time: Timestamp) async {
    await enter()
    guard !isCompacting else {
      isCompactionWanted = true
      return leave()
    }
    let compaction = await beginCompaction(at: time)
    leave()
    if let compaction { await finish(compaction, at: time) }
  }

  /// To be called between `enter` and `leave`, so that nothing is decided between what is kept and what is appended.
  func beginCompaction(at time: Timestamp) async -> Compaction? {
    // What ran out before the start is known by the log alone until it says that it did.
    isCompactionWanted = !lifted.rest.isEmpty
    guard !isCompactionWanted else { return nil }
    do throws(DecisionLogError) {
      let finish = try log.beginCompaction(to: updater.liveDecisions)
      isCompacting = true
      defer { isLogIncomplete = false }
      return Compaction(finish: finish, covered: unlogged, coversLoss: isLogIncomplete)
    } catch {
      await noteCompaction(failed: error, at: time)
      return nil
    }
  }

  /// The log that is there goes on, so this says nothing of whether it takes what is decided.
  private func noteCompaction(failed error: DecisionLogError?, at time: Timestamp) async {
    let wasTold = compactionRetry != nil
    compactionRetry = error == nil ? nil : time + Self.compactionPause
    guard wasTold == (error == nil) else { return }
    if let error {
      await report(
        .logUncompacted, severity: 2, at: time,
        "the decision log cannot be made anew, and goes on as it is: \(error.message.escapedForDisplay)")
    } else {
      await report(.logCompacted, severity: 3, at: time, "the decision log was made anew")
    }
  }

  /// Whether the log could not be made anew when that was tried last: it goes on as it is.
  package var isLogUncompacted: Bool { compactionRetry != nil }

  /// Writing it anew is much work for a disk that has just refused it.
  private static var compactionPause: Duration { .seconds(30) }

  func finish(_ compaction: Compaction, at time: Timestamp) async {
    var compaction = compaction
    while true {
      let error = await Self.inThread(compaction.finish)
      await enter()
      defer { leave() }
      isCompacting = false
      await noteCompaction(failed: error, at: time)
      if error == nil {
        for (id, decision) in compaction.covered where unlogged[id] == decision { unlogged[id] = nil }
        if unlogged.isEmpty { await reportSoundLog(at: time) }
      } else if compaction.coversLoss {
        isLogIncomplete = true
      }
      guard isCompactionWanted, let next = await beginCompaction(at: time) else { return }
      compaction = next
    }
  }
}
