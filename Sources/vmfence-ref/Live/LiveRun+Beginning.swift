#if Daemon
import ArgumentParser
import VMFenceCore

extension LiveRun {
  /// Puts in force what the decision log says, and has it told what ran out since then. Not before: a start that fails, again and again perhaps, would have it in the log, and no place
  /// of `notifications` would hear of it.
  func takeUpMeasures() async throws(ReplayFailure) {
    do throws(FirewallError) { try await coordinator.reconcile(at: clock.now) } catch {
      throw ReplayFailure(error.diagnostic, error.exit)
    }
  }
}

extension FirewallError {
  /// With what the daemon ends that cannot do without the packet filter.
  var exit: ExitCode { code == .permissionDenied ? Exit.noPermission : Exit.unavailable }
}
#endif
