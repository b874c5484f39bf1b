internal import Glibc

/// Detectors as threads of this process: for embedders and tests. The same rings, the same loop and the same output as
/// a detector process.
///
/// What a thread cannot give: a trap or a crash in it ends the whole program, and an inspector that never returns can neither
/// be suspended nor killed (`suspend()` and `kill()` would wait for it). Use processes where packets are hostile.
public struct ThreadDetectorBackend<Inspector: PacketInspector & SendableMetatype & ~Copyable>: DetectorBackend {
  public typealias Rules = Inspector.Rules

  public init() {}

  public func makeChannel(_ configuration: DetectorChannelConfiguration) throws(DetectorError) -> DetectorChannel {
    try DetectorChannel.check(configuration)
    return try DetectorChannel(
      configuration: configuration,
      down: SharedRegion.anonymous(byteCount: DetectorChannel.downBytes(configuration)),
      up: SharedRegion.anonymous(byteCount: DetectorChannel.upBytes(configuration)))
  }

  @inlinable
  public func launch(
    rules: Inspector.Rules, channel: DetectorChannel, configuration: InspectorConfiguration
  ) throws(DetectorError) -> any DetectorHandle<Inspector.Rules> {
    try ThreadDetector<Inspector.Rules>(rules: rules, channel: channel) { loop, control in
      // Made on the thread that uses it.
      do throws(RuleCompilationError) {
        let inspector = try Inspector.make(rules: rules, configuration: configuration)
        return DetectorLoop.run(loop, inspector: inspector, control: &control)
      } catch {
        return .badRules(error.description)
      }
    }
  }
}

/// A detector that is a thread.
@usableFromInline
final class ThreadDetector<Rules: CompiledRules>: DetectorHandle, @unchecked Sendable {
  private let channel: DetectorChannel
  private let gate: ThreadGate<Rules>
  // Used by the supervisor's thread only, as the handle's contract says.
  private var thread: pthread_t?
  private var wasKilled = false

  @usableFromInline
  typealias Body = @Sendable (consuming DetectorLoop, inout ThreadControl<Rules>) -> DetectorLoopEnd

  @usableFromInline
  init(rules: Rules, channel: DetectorChannel, body: @escaping Body) throws(DetectorError) {
    self.channel = channel
    let gate = ThreadGate<Rules>()
    self.gate = gate
    let socket = try DetectorSocket.pair().attach(to: channel, ruleCount: rules.ruleCount).releaseDescriptor()
    let (down, up) = (channel.down, channel.up)
    let start = ThreadStart {
      var control = ThreadControl(gate: gate, socket: DetectorSocket(adopting: socket))
      let end = body(DetectorLoop(down: down, up: up), &control)
      gate.end(end)
    }
    var thread = pthread_t()
    // SAFETY: the thread takes over the reference that is passed to it; the attributes are the default ones.
    let error = unsafe pthread_create(&thread, nil, runThread, Unmanaged.passRetained(start).toOpaque())
    guard error == 0 else {
      // SAFETY: no thread took over the reference.
      unsafe Unmanaged.passUnretained(start).release()
      _ = close(socket)
      channel.detach()
      throw DetectorError(
        .launchFailed, "cannot start a detector thread: error \(error)", remedy: "raise the limit of threads")
    }
    self.thread = thread
  }

  deinit { kill() }

  @usableFromInline
  func suspend() throws(DetectorError) {
    try checkAlive()
    gate.park { _ = channel.withSocket { $0.ring() } }
  }

  @usableFromInline
  func resume() throws(DetectorError) {
    try checkAlive()
    gate.unpark()
  }

  @usableFromInline
  func replaceRules(with rules: Rules) throws(DetectorError) -> UInt32 {
    try checkAlive()
    let generation = channel.advanceGeneration(ruleCount: rules.ruleCount)
    gate.hand(rules, generation: generation)
    return generation
  }

  @usableFromInline
  func kill() {
    guard let thread else { return }
    wasKilled = gate.ended == nil
    gate.stop()
    _ = channel.withSocket { $0.ring() }
    _ = pthread_join(thread, nil)
    self.thread = nil
    channel.detach()
  }

  @usableFromInline
  var status: DetectorStatus {
    if wasKilled { return .killed }
    switch gate.ended {
    case nil: return gate.isParked ? .suspended : .running
    case .stopped: return .exited(code: 0)
    case .badRules: return .exited(code: DetectorExitCode.badRules)
    case .damaged: return .exited(code: DetectorExitCode.damaged)
    }
  }

  private func checkAlive() throws(DetectorError) {
    guard thread != nil, gate.ended == nil else {
      throw DetectorError(.gone, "the detector thread has ended", remedy: "launch another on the same channel")
    }
  }
}

/// How a detector process says why it ended, beside 0.
package enum DetectorExitCode {
  /// The arguments or descriptors it was started with are not usable.
  package static let usage: Int32 = 64
  /// The rule image was refused.
  package static let badRules: Int32 = 65
  /// The shared memory holds what the supervisor never writes.
  package static let damaged: Int32 = 70
  /// A part of the sandbox that was asked for could not be set up.
  package static let sandbox: Int32 = 71
}

/// What a thread is to run.
private final class ThreadStart {
  let body: @Sendable () -> Void
  init(_ body: @escaping @Sendable () -> Void) { self.body = body }
}

private func runThread(_ context: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
  // SAFETY: the reference that `pthread_create` was given, taken over once.
  if let context = unsafe context { unsafe Unmanaged<ThreadStart>.fromOpaque(context).takeRetainedValue().body() }
  return nil
}

/// The thread's end of its control.
@usableFromInline
struct ThreadControl<Rules: CompiledRules>: DetectorControl, ~Copyable {
  let gate: ThreadGate<Rules>
  let socket: DetectorSocket

  @usableFromInline
  mutating func checkpoint() -> Bool { gate.pass() }

  @usableFromInline
  mutating func sleep() -> Bool {
    switch socket.wait(milliseconds: -1) {
    case .ready: socket.drain()
    case .timedOut: true
    case .gone: false
    }
  }

  @usableFromInline
  mutating func ring() { socket.ring() }

  @usableFromInline
  mutating func takeRules(generation: UInt32) -> Rules? { gate.take(generation: generation) }
}

/// What the supervisor wants of a thread, and what the thread says of itself, under one lock. The thread looks at it once
/// per batch.
@safe final class ThreadGate<Rules: CompiledRules>: @unchecked Sendable {
  // SAFETY: allocated in init, destroyed in deinit, used only by the functions below.
  private let mutex: UnsafeMutablePointer<pthread_mutex_t>
  private let changed: UnsafeMutablePointer<pthread_cond_t>
  private var wantsPark = false
  private var wantsStop = false
  private var parked = false
  private var end: DetectorLoopEnd?
  private var pending: [(generation: UInt32, rules: Rules)] = []

  init() {
    // SAFETY: fresh allocations, initialised before anybody else sees them.
    unsafe mutex = .allocate(capacity: 1)
    unsafe changed = .allocate(capacity: 1)
    unsafe mutex.initialize(to: pthread_mutex_t())
    unsafe changed.initialize(to: pthread_cond_t())
    unsafe pthread_mutex_init(mutex, nil)
    unsafe pthread_cond_init(changed, nil)
  }

  deinit {
    // SAFETY: nobody refers to this object, so nobody holds the lock or waits.
    unsafe pthread_cond_destroy(changed)
    unsafe pthread_mutex_destroy(mutex)
    unsafe changed.deallocate()
    unsafe mutex.deallocate()
  }

  private func locked<Result>(_ body: () -> Result) -> Result {
    // SAFETY: initialised in init; no body below locks again.
    unsafe pthread_mutex_lock(mutex)
    defer { unsafe pthread_mutex_unlock(mutex) }
    return body()
  }

  private func await(while condition: () -> Bool) {
    // SAFETY: called with the lock held.
    while condition() { unsafe pthread_cond_wait(changed, mutex) }
  }

  // SAFETY: initialised in init.
  private func announce() { unsafe pthread_cond_broadcast(changed) }

  // MARK: The thread's side

  /// Parks if that is wanted. False: the thread is to end.
  func pass() -> Bool {
    locked {
      if wantsPark, !wantsStop {
        parked = true
        announce()
        self.await { wantsPark && !wantsStop }
        parked = false
      }
      return !wantsStop
    }
  }

  func take(generation: UInt32) -> Rules? {
    locked {
      self.await { !wantsStop && !pending.contains { $0.generation == generation } }
      guard !wantsStop, let index = pending.firstIndex(where: { $0.generation == generation }) else { return nil }
      let rules = pending[index].rules
      pending.removeFirst(index + 1)
      return rules
    }
  }

  func end(_ reason: DetectorLoopEnd) {
    locked {
      end = reason
      announce()
    }
  }

  // MARK: The supervisor's side

  /// Returns when the thread is parked or has ended.
  func park(_ wake: () -> Void) {
    locked { wantsPark = true }
    wake()
    locked { self.await { !parked && end == nil } }
  }

  func unpark() {
    locked {
      wantsPark = false
      announce()
    }
  }

  func hand(_ rules: Rules, generation: UInt32) {
    locked {
      pending.append((generation, rules))
      announce()
    }
  }

  func stop() {
    locked {
      wantsStop = true
      announce()
    }
  }

  var isParked: Bool { locked { parked } }
  var ended: DetectorLoopEnd? { locked { end } }
}
