#if Daemon
import VMFenceCore

/// The policies that guests of this host are to have, from the decisions that are in force now. Safe to use from any thread.
///
/// Asking again costs nothing as long as no measure changed; otherwise time in proportion to the measures, outside of the coordinator, which decides
/// meanwhile.
actor GuestPolicies {
  private struct Known {
    var revision: UInt64
    var offset: Duration
    var rendering: GuestPolicy.Rendering
  }

  private let coordinator: EnforcementCoordinator
  private let clock: SteadyClock
  private let exceptions: QuarantineExceptions
  private var book = GuestPolicyBook()
  private var known: [DomainUUID: Known] = [:]

  init(coordinator: EnforcementCoordinator, clock: SteadyClock, exceptions: QuarantineExceptions) {
    self.coordinator = coordinator
    self.clock = clock
    self.exceptions = exceptions
  }

  /// What the guest is to have now; the same version and digest as before when nothing changed but the time.
  func current(of domain: DomainUUID) async throws(GuestPolicyError) -> GuestPolicy.Rendering {
    let offset = clock.offset
    let revision = await coordinator.measureRevision
    if let known = known[domain], known.revision >= revision, known.offset == offset { return known.rendering }
    let found = await coordinator.measures(concerning: domain)
    // Somebody else may have asked meanwhile, and have got later ones.
    if let known = known[domain], known.revision > found.revision { return known.rendering }
    let rendering = try book.policy(
      for: domain,
      measures: found.measures.lazy.map { measure in
        var measure = measure
        measure.expires = measure.expires.map { $0 + offset }
        return measure
      }, exceptions: exceptions,
      at: clock.now + offset)
    known[domain] = Known(revision: found.revision, offset: offset, rendering: rendering)
    return rendering
  }

  /// A guest holds another policy, of this version: it gets one with a higher version.
  func outbid(_ version: UInt64, for domain: DomainUUID) {
    book.outbid(version, for: domain)
    known[domain] = nil
  }

  /// For a guest that is gone.
  func forget(_ domain: DomainUUID) {
    book.forget(domain)
    known[domain] = nil
  }
}
#endif
