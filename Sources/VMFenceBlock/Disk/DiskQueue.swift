internal import CLinux
internal import Glibc
internal import Synchronization
internal import VMFenceCore
internal import VMFenceIntegrity

/// What waits for the disk, and the threads that wait with it.
///
/// One thread submits, and collects what is done. A request that overlaps one in flight, when one of the two changes
/// the disk, must wait for it: `waitForConflicts`. So the disk sees overlapping requests in the order in which they
/// were judged.
@safe final class DiskQueue: @unchecked Sendable {
  static let threads = 8

  let disk: DiskFile
  /// Becomes readable when something is done while the submitting thread waits for it (`waitsForEvent`).
  let event: CInt
  // SAFETY: initialised in `init`, destroyed in `deinit`, and the mutex is held around each look at what follows.
  private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
  /// Told when a worker may have something to do, and when the submitting thread may have. One thread is woken, not all.
  private let hasWork = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
  private let hasChanged = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
  /// Submitted and not done; `waiting` are those that no worker has taken.
  private var active: [DiskJob] = []
  private var waiting: [DiskJob] = []
  private var done: [DiskJob] = []
  /// What the disk is to be given when no request waits for a worker. One worker at a time does it: a slow disk makes it wait.
  private var writeBacks: [Range<UInt64>] = []
  private var isWritingBack = false
  private var heldBytes = 0
  private var isStopping = false
  private var running = 0
  private var begun = 0
  private var idleWorkers = 0
  /// The submitting thread waits for `hasChanged`.
  private var isAwaited = false
  /// So that the way past an idle queue takes no lock.
  private let activeCount = Atomic<Int>(0)
  private let doneCount = Atomic<Int>(0)
  private let waitsForEvent = Atomic<Bool>(false)

  init(_ disk: DiskFile) throws(BlockSourceError) {
    self.disk = disk
    event = vmfence_event_make()
    // SAFETY: fresh allocations.
    unsafe mutex.initialize(to: pthread_mutex_t())
    unsafe hasWork.initialize(to: pthread_cond_t())
    unsafe hasChanged.initialize(to: pthread_cond_t())
    unsafe pthread_mutex_init(mutex, nil)
    unsafe pthread_cond_init(hasWork, nil)
    unsafe pthread_cond_init(hasChanged, nil)
    guard event >= 0 else { throw DiskFile.failure("make an eventfd", disk.path, errno) }
    for _ in 0..<Self.threads {
      let error = start()
      guard error == 0 else {
        stop()
        throw DiskFile.failure("start a thread", disk.path, error)
      }
    }
    // A thread that has not begun yet still needs system calls that a sandbox may forbid next.
    locked { waitForChange { begun < Self.threads } }
  }

  deinit {
    close(event)
    // SAFETY: no thread holds a reference any more.
    unsafe pthread_mutex_destroy(mutex)
    unsafe pthread_cond_destroy(hasWork)
    unsafe pthread_cond_destroy(hasChanged)
    unsafe mutex.deallocate()
    unsafe hasWork.deallocate()
    unsafe hasChanged.deallocate()
  }

  private func start() -> CInt {
    let error = DetachedThread.start(stackSize: 256 << 10) { [self] in work() }
    if error == 0 { locked { running += 1 } }
    return error
  }

  private func locked<Result>(_ body: () -> Result) -> Result {
    // SAFETY: initialised in `init`.
    unsafe pthread_mutex_lock(mutex)
    defer { unsafe pthread_mutex_unlock(mutex) }
    return body()
  }

  /// The submitting thread lets the lock go until a worker has changed something, as often as `condition` holds.
  private func waitForChange(while condition: () -> Bool) {
    isAwaited = true
    // SAFETY: the caller holds the lock.
    while condition() { unsafe _ = pthread_cond_wait(hasChanged, mutex) }
    isAwaited = false
  }

  private func tellSubmitter() {
    // SAFETY: initialised in `init`.
    unsafe _ = pthread_cond_signal(hasChanged)
  }

  // MARK: The submitting thread

  var isIdle: Bool { activeCount.load(ordering: .acquiring) == 0 && doneCount.load(ordering: .acquiring) == 0 }
  var hasDone: Bool { doneCount.load(ordering: .acquiring) != 0 }

  /// Waits until nothing that overlaps is in flight.
  ///
  /// `changes`: the request is one that changes the disk; otherwise other reads do not disturb it.
  @inline(__always)
  func waitForConflicts(_ offset: UInt64, _ length: UInt64, changes: Bool) {
    if activeCount.load(ordering: .acquiring) != 0 { waitSlowly(offset, length, changes: changes) }
  }

  private func waitSlowly(_ offset: UInt64, _ length: UInt64, changes: Bool) {
    let end = offset + length
    locked {
      waitForChange { active.contains { $0.conflicts(from: offset, to: end, changes: changes) } }
    }
  }

  /// Takes a request; while too much waits already, so does the caller.
  func submit(_ job: DiskJob) {
    let someoneIsIdle = locked {
      waitForChange {
        active.count >= NBDLimits.queuedRequests
          || !active.isEmpty && heldBytes + job.heldBytes > NBDLimits.queuedBytes
      }
      active.append(job)
      waiting.append(job)
      heldBytes += job.heldBytes
      activeCount.store(active.count, ordering: .releasing)
      return idleWorkers > 0
    }
    // SAFETY: initialised in `init`.
    if someoneIsIdle { unsafe _ = pthread_cond_signal(hasWork) }
  }

  /// Has the disk begin to take what the page cache has of a range. What does not fit, the kernel writes in its own time.
  func startWriteBack(_ range: Range<UInt64>) {
    let someoneIsIdle = locked {
      guard writeBacks.count < NBDLimits.writeBacks else { return false }
      writeBacks.append(range)
      return idleWorkers > 0
    }
    // SAFETY: initialised in `init`.
    if someoneIsIdle { unsafe _ = pthread_cond_signal(hasWork) }
  }

  /// Has `event` rung when something is done from now on.
  ///
  /// - Returns: false when something is done already: then nobody must wait for it.
  func willWait() -> Bool {
    waitsForEvent.store(true, ordering: .sequentiallyConsistent)
    guard doneCount.load(ordering: .sequentiallyConsistent) == 0 else {
      hasWaited()
      return false
    }
    return true
  }

  func hasWaited() { waitsForEvent.store(false, ordering: .relaxed) }

  /// To be called when `event` was found readable.
  func clearEvent() { vmfence_event_clear(event) }

  /// What was done since the last call.
  func collect() -> [DiskJob] {
    locked {
      defer {
        done.removeAll(keepingCapacity: true)
        doneCount.store(0, ordering: .releasing)
      }
      return done
    }
  }

  /// Finishes what was submitted, and ends the threads.
  func stop() {
    locked { isStopping = true }
    // SAFETY: initialised in `init`.
    unsafe _ = pthread_cond_broadcast(hasWork)
    locked { waitForChange { running > 0 } }
  }

  // MARK: The workers

  private func work() {
    locked { begun += 1 }
    tellSubmitter()
    while let task = take() {
      guard case .request(let job) = task else {
        if case .writeBack(let range) = task { disk.startWriteBack(range) }
        locked { isWritingBack = false }
        continue
      }
      job.run(on: disk)
      let isSubmitterWaiting = locked {
        if let index = active.firstIndex(where: { $0 === job }) { active.remove(at: index) }
        heldBytes -= job.heldBytes
        done.append(job)
        activeCount.store(active.count, ordering: .releasing)
        doneCount.store(done.count, ordering: .sequentiallyConsistent)
        return isAwaited
      }
      if isSubmitterWaiting { tellSubmitter() }
      // Whoever looks at what is done before it waits needs no bell; the first that is done rings it.
      if waitsForEvent.exchange(false, ordering: .sequentiallyConsistent) { vmfence_event_ring(event) }
    }
    locked { running -= 1 }
    tellSubmitter()
  }

  private enum Task {
    case request(DiskJob)
    case writeBack(Range<UInt64>)
  }

  private func take() -> Task? {
    locked {
      idleWorkers += 1
      defer { idleWorkers -= 1 }
      while true {
        if !waiting.isEmpty { return .request(waiting.removeFirst()) }
        if isStopping { return nil }
        if !writeBacks.isEmpty, !isWritingBack {
          isWritingBack = true
          return .writeBack(writeBacks.removeFirst())
        }
        // SAFETY: the lock is held.
        unsafe _ = pthread_cond_wait(hasWork, mutex)
      }
    }
  }
}

/// The disk as a monitor reads it: with all that was allowed before. Clients that come while it reads are greeted. Used by the thread that
/// submits, which is why it may be said to be sendable.
final class JudgedDisk: DiskReader, @unchecked Sendable {
  private let queue: DiskQueue
  /// Nil when its owner has given it up: then nobody waits.
  private weak var engine: NBDEngine?

  init(_ engine: NBDEngine) {
    queue = engine.queue
    self.engine = engine
  }

  var byteCount: UInt64 { queue.disk.byteCount }

  func attend() { engine?.attend() }

  func read(at offset: UInt64, into buffer: inout [UInt8]) throws(IntegrityError) {
    attend()
    try checkBounds(at: offset, count: buffer.count)
    queue.waitForConflicts(offset, UInt64(buffer.count), changes: false)
    try queue.disk.read(at: offset, into: &buffer)
  }
}
