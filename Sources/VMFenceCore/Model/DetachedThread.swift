internal import Glibc

/// A thread that nobody waits for. It takes no signals: those are for the program's other threads. The corresponding C functions are
/// pthread_create(3) and pthread_detach(3).
package enum DetachedThread {
  private final class Start {
    let body: @Sendable () -> Void
    init(_ body: @escaping @Sendable () -> Void) { self.body = body }
  }

  /// `stackSize`: in bytes; nil for the system's usual size.
  ///
  /// - Returns: 0, or the error number of what the system refused (mostly EAGAIN: there can be no more threads); then `body` is not called.
  package static func start(stackSize: Int? = nil, _ body: @escaping @Sendable () -> Void) -> CInt {
    var attributes = pthread_attr_t()
    var thread = pthread_t()
    // SAFETY: `attributes` is initialised before use and destroyed after; the thread takes over the reference that is passed to it.
    let reference = unsafe Unmanaged.passRetained(Start(body))
    unsafe pthread_attr_init(&attributes)
    unsafe pthread_attr_setdetachstate(&attributes, CInt(PTHREAD_CREATE_DETACHED))
    if let stackSize { unsafe pthread_attr_setstacksize(&attributes, stackSize) }
    let error = unsafe pthread_create(
      &thread, &attributes,
      { context in
        var everySignal = sigset_t()
        // SAFETY: the set is written, then read.
        unsafe sigfillset(&everySignal)
        unsafe pthread_sigmask(SIG_BLOCK, &everySignal, nil)
        // SAFETY: the reference that `pthread_create` was given, taken over once.
        if let context = unsafe context { unsafe Unmanaged<Start>.fromOpaque(context).takeRetainedValue().body() }
        return nil
      }, reference.toOpaque())
    unsafe pthread_attr_destroy(&attributes)
    // SAFETY: no thread took over the reference.
    if error != 0 { unsafe reference.release() }
    return error
  }
}
