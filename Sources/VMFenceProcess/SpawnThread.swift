internal import Glibc
import Synchronization
internal import VMFenceCore

/// The one thread that starts processes of this project, for as long as this process lives.
///
/// Such a process asks to be killed when its parent dies (PR_SET_PDEATHSIG), and the kernel means the *thread* that created it. Were
/// it started from a thread of a pool, it would die when that thread is retired. It also has in reserve what such processes need and this one does not (`Capability.keep`).
final class SpawnThread: Sendable {
  static let shared = SpawnThread()

  private let callers = Mutex<Void>(())
  private let exchangePoint = ExchangePoint()

  private init() {
    let point = exchangePoint
    let error = DetachedThread.start(stackSize: 256 << 10) { point.serve() }
    precondition(error == 0, "cannot start a thread")
  }

  /// Starts a process on the thread, or changes what processes get that it starts later.
  ///
  /// - `body`: sets the number of the process that it starts, and returns an error number or 0.
  static func spawn(_ body: @escaping @Sendable (inout Int32) -> Int32) -> (pid: Int32, error: Int32) {
    let result = SpawnResult()
    shared.run {
      var pid: Int32 = 0
      let error = body(&pid)
      result.value.withLock { $0 = (pid, error) }
    }
    return result.value.withLock { $0 }
  }

  /// Calls `body` on the thread.
  ///
  /// - Returns: what it returns.
  static func run(_ body: @escaping @Sendable () -> Int32) -> Int32 {
    spawn { _ in body() }.error
  }

  /// Runs `body` on the thread, and returns when it has.
  func run(_ body: @escaping @Sendable () -> Void) {
    callers.withLock { _ in exchangePoint.hand(body) }
  }
}

private final class SpawnResult: Sendable {
  let value = Mutex<(Int32, Int32)>((0, 0))
}

/// Where one caller at a time meets the thread.
@safe private final class ExchangePoint: @unchecked Sendable {
  // SAFETY: allocated once and never released, like the thread.
  private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
  private let changed = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
  private var job: (@Sendable () -> Void)?

  init() {
    // SAFETY: fresh allocations.
    unsafe mutex.initialize(to: pthread_mutex_t())
    unsafe changed.initialize(to: pthread_cond_t())
    unsafe pthread_mutex_init(mutex, nil)
    unsafe pthread_cond_init(changed, nil)
  }

  func hand(_ body: @escaping @Sendable () -> Void) {
    // SAFETY: initialised above, and locked around each look at `job`.
    unsafe pthread_mutex_lock(mutex)
    job = body
    unsafe pthread_cond_broadcast(changed)
    while job != nil { unsafe pthread_cond_wait(changed, mutex) }
    unsafe pthread_mutex_unlock(mutex)
  }

  func serve() {
    // SAFETY: as above. The job runs under the lock: its caller waits for nothing else.
    unsafe pthread_mutex_lock(mutex)
    while true {
      if let job {
        job()
        self.job = nil
        unsafe pthread_cond_broadcast(changed)
      }
      unsafe pthread_cond_wait(changed, mutex)
    }
  }
}
