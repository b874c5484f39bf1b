extension EnforcementCoordinator {
  /// In a thread of its own, since a disk can be slow, and on a host with one processor all tasks share one thread.
  static func sync(_ log: any DecisionLog) async -> DecisionLogError? {
    await withCheckedContinuation { continuation in
      let isStarted = DetachedThread.start { continuation.resume(returning: syncNow(log)) } == 0
      if !isStarted { continuation.resume(returning: syncNow(log)) }
    }
  }

  private static func syncNow(_ log: any DecisionLog) -> DecisionLogError? {
    do throws(DecisionLogError) {
      try log.sync()
      return nil
    } catch {
      return error
    }
  }
}
