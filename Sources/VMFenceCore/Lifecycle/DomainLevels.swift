/// What is so of one incarnation now. Events are derived from this at every look, so that a lost, late or doubled
/// notification cannot leave a wrong state behind.
public struct DomainLevels: Hashable, Sendable, BitwiseCopyable {
  /// It exists on this host and is not over.
  public var isPresent: Bool
  /// There are rules for it, and its detector may be started now.
  public var isConfigured: Bool
  /// Paused, suspended, or blocked for long enough.
  public var isHalted: Bool
  /// A detector runs for it, or is stopped.
  public var hasDetector: Bool

  public init(isPresent: Bool, isConfigured: Bool, isHalted: Bool, hasDetector: Bool) {
    self.isPresent = isPresent
    self.isConfigured = isConfigured
    self.isHalted = isHalted
    self.hasDetector = hasDetector
  }

  /// The next event that leads `state` towards what these levels imply; nil when it is there.
  ///
  /// `wasToldHalted`: what the automaton was told last of the run state; only `unguarded`, which stays what it is, needs it.
  public func event(in state: LifecycleState, wasToldHalted: Bool) -> LifecycleEvent? {
    switch state {
    case .start: isPresent ? (isConfigured ? .configured : .created) : nil
    case .unguarded:
      if !isPresent {
        isHalted ? .goneWhileSuspended : .goneWhileInspecting
      } else if isConfigured {
        .configured
      } else if isHalted != wasToldHalted {
        isHalted ? .halted : .running
      } else {
        nil
      }
    case .inspecting: !isPresent ? .goneWhileInspecting : !hasDetector ? .detectorKilled : isHalted ? .halted : nil
    case .suspended: !isPresent ? .goneWhileSuspended : !hasDetector ? .detectorKilled : !isHalted ? .running : nil
    // A domain that is back counts as running first; if it is halted, that is the next event.
    case .orphaned: !hasDetector ? .detectorKilled : isPresent ? .running : nil
    // `ended` begins anew when the domain is present: that is not an event, and not this automaton any more.
    case .ended, .end: nil
    }
  }
}
