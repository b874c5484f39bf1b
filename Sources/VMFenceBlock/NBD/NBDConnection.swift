internal import CLinux
internal import Glibc
internal import VMFenceCore

/// One client: its socket, what it sent and was not taken yet, and what it was answered and has not read yet.
final class NBDConnection {
  enum Phase {
    case handshake(NBDHandshake)
    case transmission(NBDSession)
  }

  enum Received { case some, nothing, end }

  /// Beyond this much output is sent before more is made, in bytes.
  static let batchBytes = 128 << 10
  /// What is read at once when nothing is known of what comes, in bytes.
  private static let chunkBytes = 64 << 10
  /// Writes above this size are received with nothing behind them, so that none of it need be moved, in bytes.
  private static let largeWrite: UInt32 = 16 << 10

  let id: UInt64
  let socket: CInt
  var phase: Phase
  private(set) var input = ByteQueue()
  /// What came behind a large write while the disk took it; empty when `input` is.
  private var ahead = ByteQueue()
  let output = ByteQueue()
  /// When the handshake must have ended, on the monotonic clock.
  let handshakeDeadline: UInt64
  var jobs = 0
  /// It said that it will send no more, or did.
  var isLeaving = false
  /// Its socket is of no use any more.
  var isBroken = false
  var isReadable = true
  var isWatchedForWriting = false
  private var lastPayload: UInt32 = 0
  /// The next part of a write of which the first was taken; nil between requests.
  private(set) var nextPart: NBDRequest?
  /// Why the write that is taken in parts fails; 0 as long as it does not. What follows is skipped then.
  var partFailure: UInt32 = 0

  init(id: UInt64, socket: CInt, export: NBDExport, handshakeDeadline: UInt64) {
    self.id = id
    self.socket = socket
    self.handshakeDeadline = handshakeDeadline
    phase = .handshake(NBDHandshake(export))
    output.append(NBDHandshake.greeting)
  }

  deinit { close(socket) }

  var session: NBDSession? {
    if case .transmission(let session) = phase { session } else { nil }
  }

  // MARK: Input

  /// Takes what has come. After a large write only the next header is read, and of a large write only the next part, so that data come
  /// to the beginning of the memory and need not be moved.
  ///
  /// `waits`: for something to come, as long as `NBDLimits.briefWait`.
  func receive(waits: Bool = false) -> Received {
    var count = lastPayload > Self.largeWrite && input.count == 0 ? NBD.requestSize : Self.chunkBytes
    if let nextPart, input.count < nextPart.wireSize { count = nextPart.wireSize - input.count }
    return receive(count, waits ? VMFENCE_WAIT_ANY : VMFENCE_WAIT_NOT)
  }

  /// Takes the next `count` bytes, and waits for them as long as a client may keep the others waiting.
  func receive(missing count: Int) -> Received {
    let end = input.count + count
    var result = Received.nothing
    var waited = Duration.zero
    while input.count < end, result != .end, waited < NBDLimits.stall {
      result = receive(end - input.count, VMFENCE_WAIT_ALL)
      waited += NBDLimits.briefWait
    }
    return result
  }

  /// Takes what has come behind a large write that the disk is to take next: a client's socket holds little more than one, and a client that
  /// has no room there would do nothing meanwhile. Its end is found when there is nothing else to do.
  func receiveAhead(of request: NBDRequest) {
    guard request.payload > Self.largeWrite, input.count == request.wireSize else { return }
    let room = request.nextPart?.wireSize ?? request.wireSize
    // SAFETY: room for `room` bytes is reserved, and what came into it is committed.
    let result = unsafe vmfence_receive(socket, ahead.reserve(room), room, VMFENCE_WAIT_NOT)
    if result > 0 { ahead.commit(result) }
  }

  private func receive(_ count: Int, _ waits: CInt) -> Received {
    // SAFETY: room for `count` bytes is reserved, and what came into it is committed.
    let result = unsafe vmfence_receive(socket, input.reserve(count), count, waits)
    if result > 0 {
      input.commit(result)
      return .some
    }
    if result == 0 { return .end }
    return errno == EAGAIN || errno == EINTR ? .nothing : .end
  }

  /// Whether its client has gone, and nothing that it sent is left to be taken.
  var hasGone: Bool {
    var next: UInt8 = 0
    // SAFETY: room for the one byte that is asked for; it stays in the socket.
    let result = unsafe recv(socket, &next, 1, Int32(MSG_PEEK) | Int32(MSG_DONTWAIT))
    return result == 0 && input.count == 0
  }

  /// The header of the next request, if it has come, or the next part of one; nil in `request` when it is none.
  func peek() -> (isThere: Bool, request: NBDRequest?) {
    if let nextPart { return (true, nextPart) }
    guard input.count >= NBD.requestSize else { return (false, nil) }
    // SAFETY: the queue is not changed while the bytes are looked at.
    return (true, unsafe NBDRequest(input.bytes.bytes))
  }

  func consume(_ request: NBDRequest) {
    lastPayload = request.payload
    nextPart = request.nextPart
    input.consume(request.wireSize)
    if input.count == 0 { swap(&input, &ahead) }
  }

  /// Goes on with the handshake as far as the input goes.
  func shakeHands() -> NBDHandshake.Outcome {
    guard case .handshake(var handshake) = phase else { return .incomplete }
    var answer: [UInt8] = []
    // SAFETY: the queue is not changed while the bytes are looked at.
    let (count, outcome) = unsafe handshake.consume(input.bytes.bytes, output: &answer)
    input.consume(count)
    output.append(answer)
    if case .transmission(let session) = outcome {
      phase = .transmission(session)
    } else {
      phase = .handshake(handshake)
    }
    return outcome
  }

  // MARK: Output

  /// Sends what waits. What the client does not take within the time that it may keep the others waiting stays.
  func flush(waits: Bool = true) {
    while output.count > 0, !isBroken {
      // SAFETY: the bytes are read before the queue changes.
      let result = unsafe vmfence_send(socket, output.bytes.baseAddress, output.count, waits ? 1 : 0)
      if result > 0 {
        let isAll = result == output.count
        output.consume(result)
        // Cut short: the client did not read in time.
        if !isAll { return }
      } else if result < 0, errno == EINTR {
        continue
      } else {
        if result == 0 || errno != EAGAIN { isBroken = true }
        return
      }
    }
  }

  /// Sends bytes behind what waits already; what the client does not take in time is copied and waits, too.
  @unsafe func send(_ bytes: UnsafeRawBufferPointer) {
    flush()
    var sent = 0
    if output.count == 0, !isBroken {
      // SAFETY: the caller's bytes are read.
      let result = unsafe vmfence_send(socket, bytes.baseAddress, bytes.count, 1)
      if result < 0, errno != EAGAIN, errno != EINTR { isBroken = true }
      sent = max(0, result)
    }
    if sent < bytes.count { unsafe output.append(UnsafeRawBufferPointer(rebasing: bytes[sent...])) }
  }

  /// Sends a part of the disk from the page cache, without a copy of it.
  ///
  /// - Returns: how many bytes the client took within the time that it may keep the others waiting.
  func send(_ disk: DiskFile, _ offset: UInt64, _ count: Int) -> Int {
    while true {
      let result = vmfence_send_file(socket, disk.descriptor, Int64(offset), count)
      // 0: the disk ends earlier than it did; that is found out when the rest is read.
      if result >= 0 { return result }
      if errno == EINTR { continue }
      if errno != EAGAIN { isBroken = true }
      return 0
    }
  }

  func flushIfLarge() { if output.count >= Self.batchBytes { flush() } }

  /// Appends the answer to a request that carries no data.
  func answer(_ cookie: UInt64, error: UInt32) {
    // SAFETY: 16 bytes are reserved, and `write` fills them.
    let place = unsafe UnsafeMutableRawBufferPointer(
      start: output.reserve(NBD.simpleReplySize), count: NBD.simpleReplySize)
    unsafe Self.store32(NBD.simpleReplyMagic, place, 0)
    unsafe Self.store32(error, place, 4)
    unsafe Self.store64(cookie, place, 8)
    output.commit(NBD.simpleReplySize)
  }

  /// Appends the answer to a read that failed, or to another request whose answer would have been structured.
  func answerStructured(_ cookie: UInt64, error: UInt32) {
    var bytes = Self.chunk(NBD.Chunk.error, cookie, length: 6)
    bytes.append32(error)
    bytes.append16(0)
    output.append(bytes)
  }

  /// Appends the answer to a block status request.
  func answer(_ cookie: UInt64, extents: [(length: UInt32, isHole: Bool)]) {
    var bytes = Self.chunk(NBD.Chunk.blockStatus, cookie, length: 4 + 8 * UInt32(extents.count))
    bytes.append32(NBD.allocationContextID)
    for extent in extents {
      bytes.append32(extent.length)
      bytes.append32(extent.isHole ? NBD.Extent.hole | NBD.Extent.zero : 0)
    }
    output.append(bytes)
  }

  private static func chunk(_ type: UInt16, _ cookie: UInt64, length: UInt32) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.append32(NBD.structuredReplyMagic)
    bytes.append16(NBD.Chunk.done)
    bytes.append16(type)
    bytes.append64(cookie)
    bytes.append32(length)
    return bytes
  }

  /// How long the header before the data of a read is, in bytes.
  func readHeaderSize() -> Int {
    session?.isStructured == true ? NBD.structuredHeaderSize + 8 : NBD.simpleReplySize
  }

  func appendReadHeader(_ request: NBDRequest) {
    let size = readHeaderSize()
    // SAFETY: room for it is reserved, and filled before it is in the queue.
    let place = unsafe UnsafeMutableRawBufferPointer(start: output.reserve(size), count: size)
    unsafe writeReadHeader(place, cookie: request.cookie, offset: request.offset, length: request.length)
    output.commit(size)
  }

  /// Writes that header.
  @unsafe func writeReadHeader(
    _ place: UnsafeMutableRawBufferPointer, cookie: UInt64, offset: UInt64, length: UInt32
  ) {
    // SAFETY: the caller gives `readHeaderSize()` bytes; the slice operations check that.
    if session?.isStructured == true {
      unsafe Self.store32(NBD.structuredReplyMagic, place, 0)
      unsafe Self.store32(UInt32(NBD.Chunk.done) << 16 | UInt32(NBD.Chunk.offsetData), place, 4)
      unsafe Self.store64(cookie, place, 8)
      unsafe Self.store32(length + 8, place, 16)
      unsafe Self.store64(offset, place, 20)
    } else {
      unsafe Self.store32(NBD.simpleReplyMagic, place, 0)
      unsafe Self.store32(0, place, 4)
      unsafe Self.store64(cookie, place, 8)
    }
  }

  @inline(__always)
  private static func store32(_ value: UInt32, _ place: UnsafeMutableRawBufferPointer, _ offset: Int) {
    // SAFETY: checked against the buffer's count here, in release builds too.
    precondition(offset + 4 <= place.count)
    unsafe place.storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt32.self)
  }

  @inline(__always)
  private static func store64(_ value: UInt64, _ place: UnsafeMutableRawBufferPointer, _ offset: Int) {
    // SAFETY: as above.
    precondition(offset + 8 <= place.count)
    unsafe place.storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt64.self)
  }
}
