/// The part of the verb `freeze` that a disk's process cannot do: pauses the domain whose request is held, and lets it run again
/// when nothing of it is held any more.
///
/// Works with levels: whoever follows the disks says again and again how all of them stand (`settle`), and what did not work is tried
/// again then. A domain that somebody else had paused before is left paused. Safe to use from any thread; one call after another
/// acts, however long the hypervisor takes.
public actor FrozenDomains {
  /// How one disk of a domain stands.
  public struct Disk: Hashable, Sendable {
    public var domain: Incarnation
    /// How people know it.
    public var name: String
    public var state: State

    public init(domain: Incarnation, name: String, state: State) {
      self.domain = domain
      self.name = name
      self.state = state
    }
  }

  public enum State: Hashable, Sendable {
    /// Its process has not said yet, or cannot be asked: what holds for its domain goes on to hold.
    case unknown
    case passing
    /// A request waits for a decision: its number, and the protected paths that it would change, escaped for people.
    case holding(request: UInt64, paths: [String])
  }

  private let control: any HypervisorControl
  private let events: any EventSink
  private let remember: @Sendable (Set<Incarnation>) -> Void
  /// Paused here, and not resumed yet.
  public private(set) var paused: Set<Incarnation>
  /// Of these it was told that they cannot be paused, or resumed.
  private var failed: Set<Incarnation> = []
  private var isSettling = false
  private var latest: Timestamp?
  private var next: (domains: [DomainDescription], disks: [Disk], time: Timestamp)?

  /// - `paused`: what was remembered before a restart.
  /// - `events`: is told of every domain that is paused or resumed, and what does not work.
  /// - `remember`: called with the domains that are paused, before one is and after one no longer is, so that a restart knows which to
  ///   let run again.
  public init(
    control: any HypervisorControl, paused: Set<Incarnation> = [], events: any EventSink,
    remember: @escaping @Sendable (Set<Incarnation>) -> Void = { _ in }
  ) {
    self.control = control
    self.paused = paused
    self.events = events
    self.remember = remember
  }

  /// Makes it so: domains with a disk that holds a request are paused, the others run again.
  ///
  /// While another call acts, this one returns at once, and what it says is done after that: of several, the last. One that is older than
  /// another before it is passed over.
  ///
  /// - `domains`: all that there are.
  public func settle(_ domains: [DomainDescription], _ disks: [Disk], at time: Timestamp) async {
    if let latest, time < latest { return }
    latest = time
    next = (domains, disks, time)
    guard !isSettling else { return }
    isSettling = true
    defer { isSettling = false }
    while let (domains, disks, time) = next {
      next = nil
      await act(domains, disks, at: time)
    }
  }

  private func act(_ domains: [DomainDescription], _ disks: [Disk], at time: Timestamp) async {
    let states = Dictionary(domains.map { ($0.incarnation, $0.runState) }, uniquingKeysWith: { a, _ in a })
    let byDomain = Dictionary(grouping: disks, by: \.domain)
    for gone in paused.union(failed) where states[gone]?.isFinal ?? true { forget(gone) }
    for (domain, disks) in byDomain.sorted(by: { $0.key.domainID < $1.key.domainID }) {
      guard let state = states[domain], !state.isFinal, !paused.contains(domain),
        let (disk, request, paths) = disks.lazy.compactMap(\.held).first
      else { continue }
      // It stands still already, by somebody else's will.
      guard state != .paused, state != .suspendedForMigration else { continue }
      await pause(
        domain, at: time,
        "request \(request) to its disk \(disk) waits for a decision; it would change \(paths.joined(separator: " "))")
    }
    for domain in paused.sorted(by: { $0.domainID < $1.domainID })
    where byDomain[domain, default: []].allSatisfy({ $0.state == .passing }) {
      await resume(domain, isPaused: states[domain] == .paused, at: time)
    }
  }

  private func pause(_ domain: Incarnation, at time: Timestamp, _ why: String) async {
    paused.insert(domain)
    remember(paused)
    do throws(ProbeError) {
      try await control.pause(domain)
      failed.remove(domain)
      await report(.domainFrozen, severity: 1, domain, "paused: \(why)", at: time)
    } catch {
      paused.remove(domain)
      remember(paused)
      guard failed.insert(domain).inserted else { return }
      await report(
        .enforcementFailed, severity: 1, domain,
        "it cannot be paused, and goes on without its disk: \(error.message.escapedForDisplay); \(why)", at: time)
    }
  }

  private func resume(_ domain: Incarnation, isPaused: Bool, at time: Timestamp) async {
    do throws(ProbeError) { try await control.resume(domain) } catch {
      // It runs, or somebody else sees to it: nothing is left to be done.
      let isOver = error.code == .wrongState || error.code == .noSuchDomain || failed.contains(domain) && !isPaused
      guard isOver else {
        guard failed.insert(domain).inserted else { return }
        return await report(
          .enforcementFailed, severity: 1, domain,
          "it cannot be resumed although nothing of it is held any more: \(error.message.escapedForDisplay); it is tried again",
          at: time)
      }
    }
    forget(domain)
    await report(.domainThawed, severity: 3, domain, "it runs again: nothing of its disks is held any more", at: time)
  }

  private func forget(_ domain: Incarnation) {
    failed.remove(domain)
    if paused.remove(domain) != nil { remember(paused) }
  }

  private func report(
    _ kind: PlatformAlert.Kind, severity: Int, _ domain: Incarnation, _ message: String, at time: Timestamp
  ) async {
    await events.receive(
      .platform(PlatformAlert(time: time, incarnation: domain, kind: kind, message: message, severity: severity)))
  }
}

extension FrozenDomains.Disk {
  fileprivate var held: (disk: String, request: UInt64, paths: [String])? {
    guard case .holding(let request, let paths) = state else { return nil }
    return (name.escapedForDisplay, request, paths)
  }
}
