internal import CLinux
internal import Glibc
public import VMFenceCore
public import VMFenceIntegrity

/// Serves one disk to NBD clients on a unix socket, and shows every request to an observer before it is submitted: the
/// live block path. Put it into any process that wants to stand between a guest and its disk:
///
///     let disk = try DiskFile(path: "/dev/vg0/web")
///     var server = try NBDServer(disk: disk, listener: NBDListener(path: "/run/vmfence/web.sock"), clock: clock)
///     var monitor = IntegrityMonitor(server.reader, configuration: …, at: clock.now)
///     while try !server.deliver(limit: 4096, until: clock.now + .milliseconds(5), to: &monitor).isAtEnd {
///       monitor.advance(to: clock.now)
///       for event in monitor.drainEvents() { … }
///     }
///
/// It speaks the fixed newstyle of the NBD protocol without TLS: EXPORT_NAME, GO, INFO, LIST, ABORT, structured
/// replies, `base:allocation`; read, write, flush, trim, write-zeroes (NO_HOLE, FAST_ZERO), cache, block status, FUA, and
/// several clients of the same disk. Requests that overlap are done in the order in which they were judged; others may
/// overtake each other on the disk.
///
/// A write of more than 256 KiB is judged and done in parts of 256 KiB, each a request to the observer; what comes behind a part that
/// is refused, or that the disk fails, is neither shown nor done, and the client is answered once, with that error. What came before it
/// is on the disk then, as with any disk that fails in the middle of a write.
///
/// What a client can cost is bounded: 32 MiB in one request (of a write, a part of it at a time), 64 MiB in requests that wait for
/// the disk, 8 MiB of answers that it does not read, 10 s for its handshake, 10 ms of the other clients' time for a request or answer
/// that stalls.
/// A client that breaks the protocol is hung up on, and counted.
///
/// While the observer holds a request, no other is taken from any client; handshakes are answered. That the client hangs up of which a
/// request is held is not noticed: what is decided is done all the same.
///
/// Used by one thread at a time; that thread serves the clients only within `deliver`.
public struct NBDServer: BlockSource, ~Copyable {
  public struct Configuration: Sendable {
    /// The name that `NBD_OPT_LIST` gives; the empty name is served, too.
    public var exportName: String
    /// More are hung up on.
    public var clientLimit: Int
    /// How long a client may take for the handshake.
    public var handshakeLimit: Duration
    /// The source ends when its last client has left.
    public var endsWithLastClient: Bool

    public init(
      exportName: String = "", clientLimit: Int = 16,
      handshakeLimit: Duration = .seconds(10), endsWithLastClient: Bool = false
    ) {
      self.exportName = exportName
      self.clientLimit = clientLimit
      self.handshakeLimit = handshakeLimit
      self.endsWithLastClient = endsWithLastClient
    }
  }

  @usableFromInline let engine: NBDEngine

  /// Starts the threads that wait for the disk. Clients are served from the first call of `deliver` on.
  ///
  /// `clock`: stamps requests; `deliver` compares its deadline with it.
  ///
  /// - Throws: `inputOutput`: too few descriptors, threads or memory.
  public init(
    disk: DiskFile, listener: consuming NBDListener, configuration: Configuration = Configuration(),
    clock: any TimeSource
  ) throws(BlockSourceError) {
    engine = try NBDEngine(disk: disk, listener: listener, configuration: configuration, clock: clock)
  }

  /// The disk with every request that was allowed before: what an `IntegrityMonitor` of this source must read. Used on
  /// the thread that calls `deliver`. While it reads, and while `attend` is called, clients that come are greeted, and their requests wait: a
  /// handshake that is answered tells a server that is busy from one that hangs.
  public var reader: any DiskReader { JudgedDisk(engine) }

  public var statistics: NBDStatistics { engine.statistics }

  /// How to end it from elsewhere.
  public var stopper: NBDStopper { NBDStopper(event: engine.stopEvent) }

  /// Serves the clients, until `limit` requests were delivered, the clock has passed `deadline`, or the end: after
  /// `NBDStopper.stop()`, requests that were judged are finished and flushed.
  @inlinable
  public mutating func deliver<Observer: BlockObserver & ~Copyable>(
    limit: Int, until deadline: Timestamp?, to observer: inout Observer
  ) throws(BlockSourceError) -> BlockOutcome {
    try deliver(limit: limit, until: deadline, to: &observer) { _ in false }
  }

  /// The same, and returns as soon as a request was delivered after which `isEnough`: so that what an observer has to say then is
  /// said at once.
  @inlinable
  public mutating func deliver<Observer: BlockObserver & ~Copyable>(
    limit: Int, until deadline: Timestamp?, to observer: inout Observer, orAfter isEnough: (borrowing Observer) -> Bool
  ) throws(BlockSourceError) -> BlockOutcome {
    var outcome = BlockOutcome(requests: 0, denied: 0, isAtEnd: false)
    while outcome.requests < limit {
      let step = try engine.next(until: deadline)
      switch step {
      case .request:
        let verdict = Self.judge(engine, &observer)
        guard verdict != .hold else {
          engine.hold(until: deadline)
          outcome.isHeld = true
          return outcome
        }
        engine.submit(verdict)
        outcome.requests += 1
        if verdict == .deny { outcome.denied += 1 }
        if isEnough(observer) {
          engine.flushAll()
          return outcome
        }
      case .gap:
        let gap = engine.takeGap()
        observer.observeGap(at: gap.time, reason: gap.reason)
      case .idle:
        engine.flushAll()
        return outcome
      case .end:
        outcome.isAtEnd = true
        return outcome
      }
    }
    engine.flushAll()
    return outcome
  }

  /// On its own: the optimizer of Swift 6.3.1 fails on a span of a class's memory within the loop.
  @inlinable @inline(never)
  static func judge<Observer: BlockObserver & ~Copyable>(
    _ engine: NBDEngine, _ observer: inout Observer
  ) -> BlockVerdict {
    // SAFETY: the payload stays until `submit`.
    let payload = unsafe engine.payload
    return unsafe observer.observe(engine.request, data: payload.bytes)
  }
}

/// Ends an `NBDServer`, from any thread and from a signal handler, as long as the server lives.
public struct NBDStopper: Sendable {
  let event: CInt

  public func stop() { vmfence_event_ring(event) }
}

/// What a server has counted since its start.
public struct NBDStatistics: Hashable, Sendable {
  public var clients: UInt64 = 0
  /// Hung up on: too many, too slow, or not speaking the protocol.
  public var refusedClients: UInt64 = 0
  /// Hung up on in the middle: what they sent was no request.
  public var protocolErrors: UInt64 = 0
  public var reads: UInt64 = 0
  public var writes: UInt64 = 0
  /// Flushes, discards and writes of zeroes.
  public var otherRequests: UInt64 = 0
  /// In bytes.
  public var bytesRead: UInt64 = 0
  public var bytesWritten: UInt64 = 0
  /// Of those, handed to the disk before the client asked for it: of streams of writes, each of which goes on where another ended.
  public var bytesWrittenBehind: UInt64 = 0
  public var denied: UInt64 = 0
  /// Answered with an error without asking the disk: beyond its end, or not allowed.
  public var refusedRequests: UInt64 = 0
  /// The disk itself failed.
  public var diskFailures: UInt64 = 0

  mutating func count(_ request: NBDRequest) {
    switch request.type {
    case NBD.Command.read:
      reads += 1
      bytesRead += UInt64(request.length)
    case NBD.Command.write:
      writes += 1
      bytesWritten += UInt64(request.length) + UInt64(request.following)
    default: otherRequests += 1
    }
  }
}
