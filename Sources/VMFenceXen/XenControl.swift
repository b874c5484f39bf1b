internal import Glibc
internal import Synchronization
public import VMFenceCore

/// Acts on the domains of a Xen host. Safe to use from any thread.
///
/// Pauses nest in Xen: a domain that the administrator paused too stays paused when this resumes it.
public final class XenControl: HypervisorControl {
  /// How long a domain has, after it was asked to shut down, until the hypervisor stops it.
  public let patience: Duration
  private static let lookInterval: Duration = .milliseconds(100)

  private let hypervisor: any XenHypervisor
  private let connect: XenStoreFollower.Connect

  package init(hypervisor: any XenHypervisor, connect: @escaping XenStoreFollower.Connect, patience: Duration) {
    self.hypervisor = hypervisor
    self.connect = connect
    self.patience = patience
  }

  /// With the hypervisor's handle in this process.
  ///
  /// - Throws: as `XenProbe.open`.
  public static func open(patience: Duration = .seconds(30)) throws(ProbeError) -> XenControl {
    open(over: try XenTransport.direct(), patience: patience)
  }

  /// The same over a way to the hypervisor that is open already.
  public static func open(over transport: XenTransport, patience: Duration = .seconds(30)) -> XenControl {
    XenControl(hypervisor: transport.hypervisor, connect: XenStoreConnection.connect, patience: patience)
  }

  public func pause(_ domain: Incarnation) async throws(ProbeError) {
    _ = try look(domain)
    try act(domain) { () throws(SystemFailure) in try hypervisor.pause(domain) }
  }

  /// - Throws: `wrongState` when it is not paused.
  public func resume(_ domain: Incarnation) async throws(ProbeError) {
    guard try look(domain).flags.contains(.paused) else {
      throw ProbeError(.wrongState, "domain \(domain.domainID) is not paused", remedy: "nothing needs to be done")
    }
    try act(domain) { () throws(SystemFailure) in try hypervisor.unpause(domain) }
  }

  /// Asks the domain to shut down, as `xl shutdown` does, and has the hypervisor stop it when it has not within `patience`. One that is paused
  /// cannot hear, and is stopped at once. Returns when it is down or gone.
  public func shutDown(_ domain: Incarnation) async throws(ProbeError) {
    if !(try look(domain).flags.contains(.paused)) {
      let request = request(domain)
      let steps = max(1, Int(patience / Self.lookInterval))
      for _ in 0..<steps {
        if try isDown(domain) { return }
        if request.value == false { break }
        // When the task is cancelled, this does not wait, and the domain is stopped without delay.
        try? await Task.sleep(for: Self.lookInterval)
      }
    }
    if try isDown(domain) { return }
    try act(domain) { () throws(SystemFailure) in try hypervisor.powerOff(domain) }
  }

  /// Takes the domain down without asking anybody (`xl destroy`, without the toolstack's own cleaning up).
  public func destroy(_ domain: Incarnation) async throws(ProbeError) {
    _ = try look(domain)
    try act(domain) { () throws(SystemFailure) in try hypervisor.destroy(domain) }
  }

  private func isDown(_ domain: Incarnation) throws(ProbeError) -> Bool {
    do throws(ProbeError) { return try look(domain).runState.isFinal } catch {
      if error.code == .noSuchDomain { return true }
      throw error
    }
  }

  /// Asks the domain, in a thread of its own: xenstored may not answer. The entry is the guest's to read (docs/misc/xenstore-paths of Xen).
  ///
  /// - Returns: whether the domain was told, once that is known; whether it heard is another matter.
  private func request(_ domain: Incarnation) -> Outcome {
    let (outcome, connect) = (Outcome(), connect)
    let error = DetachedThread.start(stackSize: 256 << 10) {
      outcome.set((try? connect().tell(domain.domainID, "control/shutdown", "poweroff")) ?? false)
    }
    if error != 0 { outcome.set(false) }
    return outcome
  }

  /// The domain that has this number *and* this UUID: numbers are given again.
  private func look(_ domain: Incarnation) throws(ProbeError) -> XenDomain {
    var found: XenDomain?
    try act(domain) { () throws(SystemFailure) in found = try hypervisor.domain(domain.domainID) }
    guard let found, found.incarnation == domain else {
      throw ProbeError(.noSuchDomain, "there is no domain \(domain)", remedy: "look at `xl list`")
    }
    return found
  }

  private func act(_ domain: Incarnation, _ body: () throws(SystemFailure) -> Void) throws(ProbeError) {
    do throws(SystemFailure) { try body() } catch {
      switch error.number {
      case ESRCH:
        throw ProbeError(.noSuchDomain, "there is no domain \(domain)", remedy: "look at `xl list`")
      case EINVAL:
        throw ProbeError(
          .wrongState, "domain \(domain.domainID): \(error.description)", remedy: "look at its state in `xl list`")
      default:
        throw ProbeError(
          error.isPermission ? .permissionDenied : .failed, "domain \(domain.domainID): \(error.description)",
          remedy: "see whether `xl` can do it")
      }
    }
  }
}

/// What came of something that another thread does; nil while it is not known.
private final class Outcome: Sendable {
  private let storage = Mutex<Bool?>(nil)
  var value: Bool? { storage.withLock { $0 } }
  func set(_ value: Bool) { storage.withLock { $0 = value } }
}
