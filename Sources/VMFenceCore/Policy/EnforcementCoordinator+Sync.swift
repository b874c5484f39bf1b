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
    do throws(DecisionLogError) {
      let finish = try log.beginCompaction(to: updater.liveDecisions)
      isCompacting = true
      return Compaction(finish: finish, covered: unlogged)
    } catch {
      await reportBrokenLog(error, at: time)
      return nil
    }
  }

  func finish(_ compaction: Compaction, at time: Timestamp) async {
    var compaction = compaction
    while true {
      let error = await Self.inThread(compaction.finish)
      await enter()
      defer { leave() }
      isCompacting = false
      if let error {
        await reportBrokenLog(error, at: time)
      } else {
        for (id, decision) in compaction.covered where unlogged[id] == decision { unlogged[id] = nil }
        if unlogged.isEmpty { await reportSoundLog(at: time) }
      }
      guard isCompactionWanted else { return }
      isCompactionWanted = false
      guard let next = await beginCompaction(at: time) else { return }
      compaction = next
    }
  }
}
