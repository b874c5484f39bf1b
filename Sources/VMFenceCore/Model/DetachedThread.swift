internal import Glibc

/// A thread for something that may take its time, once. It takes no signals: those are for the program's other threads. The corresponding C
/// functions are pthread_create(3) and pthread_detach(3).
enum DetachedThread {
  private final class Start {
    let body: @Sendable () -> Void
    init(_ body: @escaping @Sendable () -> Void) { self.body = body }
  }

  /// - Returns: false when there can be no more threads; then `body` is not called.
  static func start(_ body: @escaping @Sendable () -> Void) -> Bool {
    // SAFETY: the thread takes over the reference that is passed to it; the attributes are the default ones.
    let reference = unsafe Unmanaged.passRetained(Start(body))
    var thread = pthread_t()
    let error = unsafe pthread_create(
      &thread, nil,
      { context in
        var everySignal = sigset_t()
        // SAFETY: the set is written, then read.
        unsafe sigfillset(&everySignal)
        unsafe pthread_sigmask(SIG_BLOCK, &everySignal, nil)
        // SAFETY: the reference that `pthread_create` was given, taken over once.
        if let context = unsafe context { unsafe Unmanaged<Start>.fromOpaque(context).takeRetainedValue().body() }
        return nil
      }, reference.toOpaque())
    guard error == 0 else {
      // SAFETY: no thread took over the reference.
      unsafe reference.release()
      return false
    }
    pthread_detach(thread)
    return true
  }
}
