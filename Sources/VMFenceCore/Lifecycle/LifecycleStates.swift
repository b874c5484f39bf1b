/// The states of a detector's life: Q of the automaton `M = (Q, Σ, δ, Start, {End})`.
public enum LifecycleState: String, Hashable, Sendable, CaseIterable, BitwiseCopyable {
  /// The hypervisor and Dom0 are up; nothing is known of the domain.
  case start
  /// q1: the domain exists here, no detector does.
  case unguarded
  /// q2: the detector runs.
  case inspecting
  /// q3: the detector is stopped with its domain.
  case suspended
  /// q4: the domain is gone, the detector not yet.
  case orphaned
  /// q5: the detector is killed; final for this incarnation.
  case ended
  /// The platform shuts down.
  case end
}

/// The events: Σ.
public enum LifecycleEvent: String, Hashable, Sendable, CaseIterable, BitwiseCopyable {
  /// e1: the domain appeared, no rules configured for it.
  case created
  /// e2: rules were configured for it.
  case configured
  /// e3: blocked on I/O, or paused by the administrator.
  case halted
  /// e4: its state became R.
  case running
  /// e5: destroyed or migrated away while the detector runs.
  case goneWhileInspecting
  /// e6: the same while it is suspended.
  case goneWhileSuspended
  /// e7: the main process killed the detector, or found it dead.
  case detectorKilled
  /// e8
  case platformShutdown
}
