public import VMFenceCore

/// How the hypervisor is reached: in this process, or through one of its own.
///
/// Whoever holds `/dev/xen/privcmd` is as strong as root over the host. A program that also reads what guests write had better leave the handle to another:
///
/// ```swift
/// let xen = try XenTransport.process { () throws(DetectorError) in try HelperProcess("vmfence-hypervisor") }
/// let probe = try XenProbe.open(clock: SteadyClock(), over: xen)
/// let control = XenControl.open(over: xen)
/// ```
public struct XenTransport: Sendable {
  package let hypervisor: any XenHypervisor

  package init(_ hypervisor: any XenHypervisor) { self.hypervisor = hypervisor }

  /// libxenctrl in this process.
  ///
  /// - Throws: `unavailable` when there is no Xen, this is not Dom0, or Xen's release is not known; `permissionDenied`.
  public static func direct() throws(ProbeError) -> XenTransport {
    XenTransport(try XenInterface.open(on: try XenHost.find()))
  }

  /// The program `vmfence-hypervisor`, which opens the handle, gives up everything else, and does what is asked of it over a socket: lists domains, and
  /// pauses, resumes, stops and destroys one by number *and* UUID. What it says is checked as if it had been taken over. When it ends or does not answer, what is asked fails at
  /// once or after half a second (a verb: two seconds), and another is started, a second after the last at the earliest.
  ///
  /// - `start`: starts it: `HelperProcess` of `VMFenceProcess`. Called again after its end, from any thread.
  /// - Throws: as `direct`, and `unavailable` when it cannot be started.
  public static func process(
    _ start: @escaping @Sendable () throws(DetectorError) -> any MessageProcess
  ) throws(ProbeError) -> XenTransport {
    XenTransport(try XenRemote(on: try XenHost.find(), start))
  }
}
