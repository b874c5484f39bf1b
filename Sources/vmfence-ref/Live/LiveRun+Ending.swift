#if Daemon
import VMFenceCore

extension LiveRun {
  /// Runs until a signal asks it to stop, or until it turns out, mostly at the start, that something is missing. It ends in order both times: otherwise guards
  /// would stay in the packet filter with nobody who keeps them right, and what detectors remembered, taken out of the state directory for this run, were lost.
  func run() async throws(ReplayFailure) {
    do throws(ReplayFailure) { try await work() } catch {
      await stop()
      throw error
    }
    await stop()
  }

  /// Tells what happened until now, with what ran out since the last look: the log has it, so the next start does not tell of it.
  func tellTheRest(at now: Timestamp) async {
    await tell(at: now)
    await coordinator.advance(to: now)
    await coordinator.tellLifted()
    await tell(at: now)
  }
}
#endif
