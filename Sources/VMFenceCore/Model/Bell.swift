internal import Glibc

/// Wakes a thread that waits, by a clock that nobody sets: what waits for a second waits for a second, although the system's clock jumps meanwhile.
/// A ring that nobody waits for yet is heard by the next who waits. `ring` may be called from any thread; one thread waits at a time.
/// The corresponding C functions are pthread_cond_timedwait(3) with CLOCK_MONOTONIC.
@safe package final class Bell: @unchecked Sendable {
  // SAFETY: allocated and initialised in `init`, destroyed in `deinit`; `isRung` is used with the mutex locked only.
  private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
  private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
  private var isRung = false

  package init() {
    // SAFETY: the memory is ours, and each object is initialised once.
    unsafe mutex.initialize(to: pthread_mutex_t())
    unsafe condition.initialize(to: pthread_cond_t())
    unsafe pthread_mutex_init(mutex, nil)
    var attributes = pthread_condattr_t()
    unsafe pthread_condattr_init(&attributes)
    unsafe pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
    unsafe pthread_cond_init(condition, &attributes)
    unsafe pthread_condattr_destroy(&attributes)
  }

  deinit {
    // SAFETY: nobody uses them any more.
    unsafe pthread_cond_destroy(condition)
    unsafe pthread_mutex_destroy(mutex)
    unsafe condition.deallocate()
    unsafe mutex.deallocate()
  }

  package func ring() {
    // SAFETY: both objects live as long as this one.
    unsafe pthread_mutex_lock(mutex)
    isRung = true
    unsafe pthread_cond_signal(condition)
    unsafe pthread_mutex_unlock(mutex)
  }

  /// Waits until it rings, or rang since the last time, at the most for `time`.
  ///
  /// - Returns: whether it rang.
  @discardableResult
  package func wait(upTo time: Duration) -> Bool {
    var deadline = timespec()
    // SAFETY: clock_gettime(2) writes one timespec; both objects live as long as this one.
    unsafe clock_gettime(CLOCK_MONOTONIC, &deadline)
    let nanoseconds = deadline.tv_nsec + Int(clamping: max(0, time.wholeNanoseconds) % 1_000_000_000)
    deadline.tv_sec += Int(clamping: max(0, time.wholeNanoseconds) / 1_000_000_000) + nanoseconds / 1_000_000_000
    deadline.tv_nsec = nanoseconds % 1_000_000_000
    unsafe pthread_mutex_lock(mutex)
    defer { unsafe pthread_mutex_unlock(mutex) }
    while !isRung {
      guard unsafe pthread_cond_timedwait(condition, mutex, &deadline) == 0 else { break }
    }
    defer { isRung = false }
    return isRung
  }
}
