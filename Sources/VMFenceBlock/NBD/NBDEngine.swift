internal import CLinux
internal import Glibc
internal import Synchronization
public import VMFenceCore

/// The loop behind `NBDServer`: clients in, requests out, one after the other. Used by one thread at a time; only
/// `stop()` may come from any other.
///
/// All sockets are served by the thread that calls `next`, and so are requests that need not wait for the disk: reads
/// that the page cache has, and plain writes, which go to it. The rest goes through `DiskQueue`. So the order in which
/// requests are judged is the order of one thread, and needs no lock.
@safe @usableFromInline
final class NBDEngine {
  @usableFromInline
  enum Step {
    /// `request` is to be judged: its data are in `payload` until `submit`.
    case request
    /// What the observer knows may be wrong now: `takeGap()` says why.
    case gap
    /// The deadline has passed.
    case idle
    case end
  }

  static let listenerToken = UInt64.max
  static let stopToken = UInt64.max - 1
  static let doneToken = UInt64.max - 2

  let configuration: NBDServer.Configuration
  let socketPath: String
  let export: NBDExport
  let queue: DiskQueue
  let pool = ByteBlockPool()
  let clock: any TimeSource
  let poller: CInt
  let stopEvent: CInt
  var listener: CInt
  var acceptPause = AcceptPause()
  /// Whether the poller says when somebody comes.
  var isListenerWatched = true
  var connections: [UInt64: NBDConnection] = [:]
  /// Have input that was not looked at yet.
  var ready: [NBDConnection] = []
  var current: NBDConnection?
  /// The request that was handed out and waits for its verdict.
  var judged: NBDRequest?
  // SAFETY: points into the current connection's input, which does not change between `next` and `submit`.
  @usableFromInline var payload = unsafe UnsafeRawBufferPointer(start: nil, count: 0)
  @usableFromInline var request = BlockRequest(sequence: 0, timestamp: .zero, operation: .flush)
  var gap: String?
  var nextConnection: UInt64 = 0
  var sequence: UInt64 = 0
  var hadClient = false
  var isStopping = false
  var hasStopped = false
  var statistics = NBDStatistics()
  var writeStreams = WriteStreams()
  /// Waits in the only client's socket since the poller was asked last.
  var briefWaits = 0
  /// On the monotonic clock, in nanoseconds: when clients are greeted next while there is no time for their requests.
  var nextGreeting: UInt64 = 0
  /// What the poller found.
  var tokens = [UInt64](repeating: 0, count: Int(VMFENCE_EPOLL_EVENTS))

  init(
    disk: DiskFile, listener socket: consuming NBDListener, configuration: NBDServer.Configuration,
    clock: any TimeSource
  ) throws(BlockSourceError) {
    self.configuration = configuration
    self.clock = clock
    export = NBDExport(
      name: Array(configuration.exportName.utf8), byteCount: disk.byteCount, isReadOnly: disk.isReadOnly)
    guard export.name.count <= 4096 else {
      throw BlockSourceError(.inputOutput, "the export's name has more than 4096 bytes", remedy: "choose a shorter one")
    }
    queue = try DiskQueue(disk)
    socketPath = socket.path
    listener = socket.release()
    poller = vmfence_epoll_make()
    stopEvent = vmfence_event_make()
    guard poller >= 0, stopEvent >= 0, vmfence_epoll_add(poller, listener, Self.listenerToken) == 0,
      vmfence_epoll_add(poller, stopEvent, Self.stopToken) == 0,
      vmfence_epoll_add(poller, queue.event, Self.doneToken) == 0
    else { throw DiskFile.failure("watch the socket", socketPath, errno) }
  }

  deinit {
    if !hasStopped { queue.stop() }
    if listener >= 0 { NBDListener.end(listener) }
    for descriptor in [poller, stopEvent] where descriptor >= 0 { close(descriptor) }
  }

  // MARK: The next request

  @usableFromInline
  func next(until deadline: Timestamp?) throws(BlockSourceError) -> Step {
    while true {
      if gap != nil { return .gap }
      if queue.hasDone {
        finishJobs()
        continue
      }
      if isStopping || configuration.endsWithLastClient && hadClient && connections.isEmpty {
        if hasStopped || finishAll() { return .end }
        continue
      }
      // It was held: the same again.
      if judged != nil { return .request }
      guard let connection = current else {
        if takeReady() { continue }
        if let deadline, clock.now > deadline { return .idle }
        try wait(until: deadline)
        continue
      }
      switch connection.phase {
      case .handshake: shakeHands(connection)
      case .transmission(let session):
        guard let request = nextRequest(of: connection) else { continue }
        if let step = take(request, of: connection, session, deadline) { return step }
      }
    }
  }

  @usableFromInline
  func takeGap() -> (time: Timestamp, reason: String) {
    defer { gap = nil }
    return (clock.now, gap ?? "")
  }

  private func takeReady() -> Bool {
    guard !ready.isEmpty else { return false }
    let connection = ready.removeFirst()
    guard connections[connection.id] != nil else { return true }
    switch connection.receive() {
    case .some, .nothing: current = connection
    case .end: remove(connection)
    }
    return true
  }

  func shakeHands(_ connection: NBDConnection) {
    switch connection.shakeHands() {
    case .incomplete: leave(connection)
    case .transmission:
      statistics.clients += 1
      hadClient = true
      connection.flush()
    case .aborted:
      connection.flush()
      remove(connection)
    case .refused:
      statistics.refusedClients += 1
      connection.flush()
      remove(connection)
    }
  }

  /// The next request, or part of a large write, that is there whole; nil when the connection was left for now.
  private func nextRequest(of connection: NBDConnection) -> NBDRequest? {
    if connection.output.count >= NBDLimits.waitingOutputBytes {
      connection.flush()
      guard connection.output.count < NBDLimits.waitingOutputBytes else {
        // It comes back when it has read: there may be nothing more to come from it, so nothing may be sent between these two.
        current = nil
        settle(connection)
        return nil
      }
    }
    let (isThere, request) = connection.peek()
    guard isThere else {
      leave(connection)
      return nil
    }
    // A write larger than any that is taken cannot be skipped either: it would take the client's time and ours.
    guard let request = request?.firstPart, request.payload + request.following <= NBDLimits.requestBytes else {
      statistics.protocolErrors += 1
      remove(connection)
      return nil
    }
    let missing = request.wireSize - connection.input.count
    if missing > 0 {
      // The client may be waiting for these answers before it sends the rest.
      connection.flush()
      if connection.receive(missing: missing) == .end {
        remove(connection)
        return nil
      }
      guard connection.input.count >= request.wireSize else {
        leave(connection)
        return nil
      }
    }
    return request
  }

  /// Nil: the request was answered without the disk, or needs no verdict.
  private func take(
    _ request: NBDRequest, of connection: NBDConnection, _ session: NBDSession, _ deadline: Timestamp?
  ) -> Step? {
    if request.type == NBD.Command.disconnect {
      connection.flush()
      remove(connection)
      return nil
    }
    if request.isFirstPart, let problem = request.problem(export, session) {
      statistics.refusedRequests += 1
      return skip(request, of: connection, problem)
    }
    // A part before it failed.
    if connection.partFailure != 0 { return skip(request, of: connection, connection.partFailure) }
    guard let operation = request.operation else {
      judged = request
      submit(.allow)
      return nil
    }
    let now = clock.now
    if let deadline, now > deadline { return .idle }
    queue.waitForConflicts(request.offset, UInt64(request.length), changes: operation != .read && operation != .flush)
    judged = request
    // SAFETY: the payload lies in the input behind the header, and the input changes only after `submit`.
    unsafe payload = UnsafeRawBufferPointer(
      rebasing: connection.input.bytes[request.headerSize..<request.wireSize])
    defer { sequence &+= 1 }
    self.request = BlockRequest(
      sequence: sequence, timestamp: now, operation: operation, offset: request.offset,
      length: operation == .flush ? 0 : UInt64(request.length), isForcedUnitAccess: request.isForced)
    return .request
  }

  private func skip(_ request: NBDRequest, of connection: NBDConnection, _ error: UInt32) -> Step? {
    answer(request, of: connection, error: error)
    connection.consume(request)
    return nil
  }

  // MARK: Connections

  /// Its turn is over: what it is to be told goes out, and it comes back when more of it does.
  func leave(_ connection: NBDConnection) {
    if connection === current { current = nil }
    connection.flush()
    settle(connection)
  }

  /// What is watched for, after output was made or sent.
  func settle(_ connection: NBDConnection) {
    if connection.isBroken { return remove(connection) }
    let wantsWriting = connection.output.count > 0
    let mayRead = connection.output.count < NBDLimits.waitingOutputBytes
    guard wantsWriting != connection.isWatchedForWriting || mayRead != connection.isReadable else { return }
    if mayRead, !connection.isReadable, connection.input.count > 0 { ready.append(connection) }
    connection.isWatchedForWriting = wantsWriting
    connection.isReadable = mayRead
    if vmfence_epoll_watch(poller, connection.socket, connection.id, mayRead ? 1 : 0, wantsWriting ? 1 : 0) != 0 {
      remove(connection)
    }
  }

  func remove(_ connection: NBDConnection) {
    if connection === current {
      current = nil
      forgetJudged()
    }
    connections[connection.id] = nil
  }

  func accept() {
    while true {
      let socket = vmfence_unix_accept(
        listener, NBDLimits.briefWait.wholeNanoseconds / 1000, NBDLimits.stall.wholeNanoseconds / 1000, 4 << 20)
      guard socket >= 0 else {
        if acceptPause.begins(after: errno) { watchListener(false) }
        return
      }
      guard connections.count < configuration.clientLimit else {
        statistics.refusedClients += 1
        close(socket)
        continue
      }
      let connection = NBDConnection(
        id: nextConnection, socket: socket, export: export,
        handshakeDeadline: Self.monotonic() &+ UInt64(max(0, configuration.handshakeLimit.wholeNanoseconds)))
      nextConnection += 1
      guard vmfence_epoll_add(poller, socket, connection.id) == 0 else { continue }
      connections[connection.id] = connection
      connection.flush()
      settle(connection)
    }
  }

  func watchListener(_ isWatched: Bool) {
    guard isWatched != isListenerWatched,
      vmfence_epoll_watch(poller, listener, Self.listenerToken, isWatched ? 1 : 0, 0) == 0
    else { return }
    isListenerWatched = isWatched
  }

  static func monotonic() -> UInt64 {
    var time = timespec()
    // SAFETY: `time` lives across the call, which fills it.
    unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }
}
