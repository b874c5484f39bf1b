internal import CLinux
internal import Glibc
public import VMFenceCore

extension NBDEngine {
  /// Does what the verdict says with the request that `next` gave.
  @usableFromInline
  func submit(_ verdict: BlockVerdict) {
    guard let request = judged, let connection = current else { return }
    forgetJudged()
    if request.isFirstPart { statistics.count(request) }
    if verdict == .deny {
      statistics.denied += 1
      answer(request, of: connection, error: NBD.Failure.inputOutput)
    } else {
      switch request.type {
      case NBD.Command.read: read(request, connection)
      case NBD.Command.write: write(request, connection)
      case NBD.Command.trim: queue(.discard, request, connection)
      case NBD.Command.writeZeroes:
        queue(
          .zero(
            mayPunch: request.flags & NBD.CommandFlag.noHole == 0,
            isFast: request.flags & NBD.CommandFlag.fastZero != 0), request, connection)
      case NBD.Command.cache: queue(.readAhead, request, connection)
      case NBD.Command.blockStatus:
        queue(
          .extents(limit: request.flags & NBD.CommandFlag.requestOne != 0 ? 1 : NBDLimits.extents), request, connection)
      default: queue(.flush, request, connection)
      }
    }
    connection.consume(request)
    connection.flushIfLarge()
  }

  /// Nobody looks at the request that was handed out, or at its data, any more.
  func forgetJudged() {
    judged = nil
    // SAFETY: no pointer into a connection's input is left.
    unsafe payload = UnsafeRawBufferPointer(start: nil, count: 0)
  }

  /// The request that was handed out waits for a decision, and so does every client. What was under way before is answered
  /// meanwhile, and so are handshakes. Ends at the deadline (without one, at once), and after 100 ms at the most.
  @usableFromInline
  func hold(until deadline: Timestamp?) {
    if queue.hasDone { finishJobs() }
    flushAll()
    attend()
    guard let deadline, queue.willWait() else { return }
    var waited = [
      pollfd(fd: stopEvent, events: Int16(POLLIN), revents: 0),
      pollfd(fd: queue.event, events: Int16(POLLIN), revents: 0),
    ]
    let rest = (deadline - clock.now).wholeNanoseconds
    let patience = rest <= 0 ? 0 : min(100, rest / 1_000_000 + 1)
    // SAFETY: two structures, as is said.
    _ = unsafe poll(&waited, 2, Int32(patience))
    queue.hasWaited()
    if waited[0].revents != 0 { isStopping = true }
    if waited[1].revents != 0 { queue.clearEvent() }
    if queue.hasDone {
      finishJobs()
      flushAll()
    }
  }

  private func queue(
    _ work: DiskJob.Work, _ request: NBDRequest, _ connection: NBDConnection,
    _ block: (memory: ByteBlock, start: Int)? = nil
  ) {
    connection.jobs += 1
    queue.submit(DiskJob(work, request, connection: connection.id, block: block))
  }

  /// Reads straight behind the header of the answer. What the page cache does not have is left to a worker.
  private func read(_ request: NBDRequest, _ connection: NBDConnection) {
    let length = Int(request.length)
    let header = connection.readHeaderSize()
    if length >= NBDLimits.passedOnBytes, queue.disk.isCached(request.offset, length) {
      connection.flush()
      if connection.output.count == 0 { return passOn(request, connection) }
    }
    // SAFETY: room for the header and the data is reserved in one piece; it is in the queue only when it is filled.
    let place = unsafe connection.output.reserve(header + length)
    let count = unsafe queue.disk.readCached(place + header, length, at: request.offset)
    guard count == length else {
      queue(.read, request, connection, (pool.take(DiskJob.headroom + length), DiskJob.headroom))
      return
    }
    unsafe connection.writeReadHeader(
      UnsafeMutableRawBufferPointer(start: place, count: header), cookie: request.cookie, offset: request.offset,
      length: request.length)
    connection.output.commit(header + length)
  }

  /// Hands the pages of the cache to the client's socket instead of a copy of what they have. What the client does not take
  /// in time is copied and waits, as other answers do.
  private func passOn(_ request: NBDRequest, _ connection: NBDConnection) {
    let length = Int(request.length)
    connection.appendReadHeader(request)
    connection.flush()
    let sent = connection.output.count == 0 ? connection.send(queue.disk, request.offset, length) : 0
    guard sent < length, !connection.isBroken else { return }
    let rest = length - sent
    // SAFETY: room for the rest is reserved; it is in the queue only when it is filled.
    let place = unsafe connection.output.reserve(rest)
    let error = unsafe queue.disk.readAll(place, rest, at: request.offset + UInt64(sent))
    guard error == 0 else {
      // The client was promised the data.
      statistics.diskFailures += 1
      connection.isBroken = true
      return
    }
    connection.output.commit(rest)
  }

  /// A plain write goes to the page cache from where it lies. One that must be durable waits with a worker; of its parts the last does:
  /// then all of them are.
  private func write(_ request: NBDRequest, _ connection: NBDConnection) {
    let length = Int(request.length)
    // SAFETY: the data are in the input behind the header; the queue does not change before they are used.
    let data = unsafe connection.input.bytes.baseAddress.map { unsafe $0 + request.headerSize }
    guard let data = unsafe data else { return }
    guard !request.isForced || request.following > 0 else {
      let block = pool.take(length)
      // SAFETY: the block has room for `length` bytes.
      unsafe block.memory.copyMemory(from: data, byteCount: length)
      return queue(.write, request, connection, (block, 0))
    }
    connection.receiveAhead(of: request)
    // SAFETY: all of the data lies there.
    let error = unsafe queue.disk.writeAll(data, length, at: request.offset)
    if error != 0 {
      noteFailure(request.offset, UInt64(length), error)
    } else if let stretch = writeStreams.note(request.offset, UInt64(length)) {
      statistics.bytesWrittenBehind += UInt64(stretch.count)
      queue.startWriteBack(stretch)
    }
    answer(request, of: connection, error: Self.failure(error))
  }

  /// A write that is taken in parts is answered with the last, and with the first error.
  func answer(_ request: NBDRequest, of connection: NBDConnection, error: UInt32) {
    guard request.following == 0 else {
      connection.partFailure = error
      return
    }
    connection.partFailure = 0
    answer(
      request.cookie, of: connection, error: error,
      isStructured: request.type == NBD.Command.read || request.type == NBD.Command.blockStatus)
  }

  /// `isStructured`: the answer to such a request is, where the client asked for structured ones.
  private func answer(_ cookie: UInt64, of connection: NBDConnection, error: UInt32, isStructured: Bool) {
    if isStructured, connection.session?.isStructured == true {
      connection.answerStructured(cookie, error: error)
    } else {
      connection.answer(cookie, error: error)
    }
  }

  private func noteFailure(_ offset: UInt64, _ length: UInt64, _ error: CInt) {
    statistics.diskFailures += 1
    gap = "the disk failed a change of \(length) bytes at byte \(offset) that was allowed: \(describeError(error))"
  }

  /// An error number of the system as the protocol has it.
  static func failure(_ error: CInt) -> UInt32 {
    switch error {
    case 0: 0
    case EPERM, EACCES, EROFS: NBD.Failure.permission
    case ENOMEM: NBD.Failure.memory
    case EINVAL: NBD.Failure.invalid
    case ENOSPC, EDQUOT, EFBIG: NBD.Failure.space
    case EOPNOTSUPP: NBD.Failure.unsupported
    default: NBD.Failure.inputOutput
    }
  }

  // MARK: What the workers did

  func finishJobs() {
    for job in queue.collect() {
      if job.error != 0, job.changesDisk {
        // A fast zeroing that is not possible did nothing, and the client goes on to write.
        if job.error != EOPNOTSUPP { noteFailure(job.offset, UInt64(job.length), job.error) }
      } else if job.error != 0 {
        statistics.diskFailures += 1
      }
      defer { if let block = job.block { pool.giveBack(block.memory) } }
      guard let connection = connections[job.connection] else { continue }
      connection.jobs -= 1
      answer(job, connection)
      // The connection whose turn it is goes on, and is flushed at its end.
      if connection !== current {
        connection.flush()
        settle(connection)
      } else {
        connection.flushIfLarge()
      }
    }
  }

  private func answer(_ job: DiskJob, _ connection: NBDConnection) {
    let error = Self.failure(job.error)
    switch job.work {
    case .read:
      // SAFETY: the job's memory has the header's room before the data, and `length` bytes of data.
      guard error == 0, let data = unsafe job.data else {
        return answer(job.cookie, of: connection, error: error, isStructured: true)
      }
      let header = connection.readHeaderSize()
      let start = unsafe data - header
      unsafe connection.writeReadHeader(
        UnsafeMutableRawBufferPointer(start: start, count: header), cookie: job.cookie, offset: job.offset,
        length: job.length)
      unsafe connection.send(UnsafeRawBufferPointer(start: start, count: header + Int(job.length)))
    case .extents where error == 0: connection.answer(job.cookie, extents: job.extents)
    case .extents: answer(job.cookie, of: connection, error: error, isStructured: true)
    default: connection.answer(job.cookie, error: error)
    }
  }

  // MARK: Waiting, and the end

  @usableFromInline
  func flushAll() {
    for connection in connections.values where connection.output.count > 0 {
      connection.flush()
      settle(connection)
    }
  }

  /// Waits for a client, a worker or the deadline. The clock is a value that the caller gives and may stand still, so
  /// it is looked at again from time to time.
  func wait(until deadline: Timestamp?) throws(BlockSourceError) {
    if let current { leave(current) }
    if waitBriefly(until: deadline) { return }
    var patience: Int64 = -1
    if let deadline {
      // Rounded up: the deadline has passed when this has.
      patience = min(100, max(0, (deadline - clock.now).wholeNanoseconds / 1_000_000 + 1))
    }
    let now = Self.monotonic()
    for connection in connections.values where connection.session == nil {
      guard connection.handshakeDeadline > now else {
        statistics.refusedClients += 1
        remove(connection)
        continue
      }
      let rest = Int64((connection.handshakeDeadline - now) / 1_000_000 + 1)
      patience = patience < 0 ? rest : min(patience, rest)
    }
    if let rest = acceptPause.rest() {
      let milliseconds = rest.wholeNanoseconds / 1_000_000 + 1
      patience = patience < 0 ? milliseconds : min(patience, milliseconds)
    } else {
      watchListener(true)
    }
    guard queue.willWait() else { return }
    // SAFETY: the array has as many elements as the call fills at the most.
    let count = unsafe vmfence_epoll_wait(poller, &tokens, Int32(patience))
    queue.hasWaited()
    guard count >= 0 else { throw DiskFile.failure("wait for clients", socketPath, errno) }
    for index in 0..<Int(count) {
      switch tokens[index] {
      case Self.listenerToken: accept()
      case Self.stopToken: isStopping = true
      case Self.doneToken: queue.clearEvent()
      default:
        guard let connection = connections[tokens[index]] else { continue }
        if connection.output.count > 0 {
          connection.flush(waits: false)
          settle(connection)
        }
        if connection.isReadable { ready.append(connection) }
      }
    }
  }

  /// - Returns: whether the only client sent something while it was waited for in its own socket.
  private func waitBriefly(until deadline: Timestamp?) -> Bool {
    guard briefWaits < NBDLimits.briefWaits, connections.count == 1, queue.isIdle,
      let connection = connections.first?.value, connection.session != nil, connection.output.count == 0,
      deadline.map({ $0 - clock.now >= NBDLimits.briefWait }) ?? true, connection.receive(waits: true) == .some
    else {
      briefWaits = 0
      return false
    }
    briefWaits += 1
    current = connection
    return true
  }

  /// Takes no more requests, and lets those that were taken come to their end.
  ///
  /// - Returns: false when there is a gap to tell first.
  func finishAll() -> Bool {
    queue.stop()
    finishJobs()
    hasStopped = true
    let error = queue.disk.isReadOnly ? 0 : queue.disk.flush()
    if error != 0 { noteFailure(0, export.byteCount, error) }
    flushAll()
    connections.removeAll()
    ready.removeAll()
    current = nil
    forgetJudged()
    NBDListener.end(listener)
    listener = -1
    return gap == nil
  }

  func stop() { vmfence_event_ring(stopEvent) }
}
