internal import VMFenceCore

/// What a client can make the server hold or do, whatever it sends.
enum NBDLimits {
  /// In bytes; what one read or write may carry. The size that the protocol tells clients to expect of a server.
  static let requestBytes: UInt32 = 32 << 20
  /// Output that may wait for a client that does not read: beyond, its requests wait.
  static let waitingOutputBytes = 8 << 20
  /// Reads from this size on are sent from the page cache without a copy.
  static let passedOnBytes = 64 << 10
  /// A larger write is judged and done in parts of this size: what of it is in memory at once, and small enough to stay in a
  /// processor's cache between the socket and the disk.
  static let partBytes: UInt32 = 256 << 10
  /// Extents in one answer to a block status request; the client asks again for the rest.
  static let extents = 1024
  /// Bytes in requests that wait for the disk, of all clients: beyond, all requests wait.
  static let queuedBytes = 64 << 20
  static let queuedRequests = 128
  /// Stretches of the disk that wait for their write-back: 32 MiB.
  static let writeBacks = 8
  /// How long one client may keep the others waiting with a request, or an answer, that is under way.
  static let stall = Duration.milliseconds(10)
  /// How long one receiving waits at the most; a tick of the slower kernels' clocks. The only client is waited for so within its own
  /// socket, which takes one system call and one wake-up less than the poller does.
  static let briefWait = Duration.milliseconds(4)
  /// After so many waits of that kind it is looked for other clients and for the end, too.
  static let briefWaits = 32
}

/// The header of a request: 32-bit magic, 16-bit flags, 16-bit type, 64-bit cookie, 64-bit offset, 32-bit length. Of a flush, offset and
/// length are zero whatever was sent.
struct NBDRequest: Sendable, BitwiseCopyable {
  var flags: UInt16
  var type: UInt16
  var cookie: UInt64
  var offset: UInt64
  var length: UInt32
  /// How many bytes of a write that is taken in parts come behind this part.
  private(set) var following: UInt32 = 0
  /// What lies before the data in the input: nothing before a part but the first.
  private(set) var headerSize = NBD.requestSize

  /// - Precondition: `bytes` has 28 bytes at least.
  /// - Returns: nil when the magic is wrong: then nothing that follows can be understood.
  init?(_ bytes: RawSpan) {
    guard bytes.u32(0) == NBD.requestMagic else { return nil }
    flags = bytes.u16(4)
    type = bytes.u16(6)
    cookie = bytes.u64(8)
    // A flush is of the whole disk; these fields are reserved there, and no check of the range holds for them.
    let isRanged = type != NBD.Command.flush
    offset = isRanged ? bytes.u64(16) : 0
    length = isRanged ? bytes.u32(24) : 0
  }

  /// How many bytes follow the header.
  var payload: UInt32 { type == NBD.Command.write ? length : 0 }

  /// What it takes of the input, in bytes.
  var wireSize: Int { headerSize + Int(payload) }

  var isFirstPart: Bool { headerSize > 0 }

  /// Itself, or the first part of a large write.
  var firstPart: NBDRequest {
    guard payload > NBDLimits.partBytes else { return self }
    var part = self
    part.length = NBDLimits.partBytes
    part.following = length - part.length
    return part
  }

  /// The part behind this one; nil behind the last.
  var nextPart: NBDRequest? {
    guard following > 0 else { return nil }
    var part = self
    // Of a write beyond the end of the disk, which is only skipped, this may be any number.
    part.offset = offset &+ UInt64(length)
    part.length = min(following, NBDLimits.partBytes)
    part.following = following - part.length
    part.headerSize = 0
    return part
  }

  var isForced: Bool { flags & NBD.CommandFlag.fua != 0 }

  /// What is wrong with it, with all its parts, as the error to answer; nil when the disk may be asked. Asked of the first part.
  func problem(_ export: NBDExport, _ session: NBDSession) -> UInt32? {
    typealias Flag = NBD.CommandFlag
    let allowed: UInt16
    switch type {
    case NBD.Command.read: allowed = Flag.fua | Flag.dontFragment
    case NBD.Command.write, NBD.Command.trim: allowed = Flag.fua
    case NBD.Command.writeZeroes: allowed = Flag.fua | Flag.noHole | Flag.fastZero
    case NBD.Command.flush: return flags & ~Flag.fua == 0 ? nil : NBD.Failure.invalid
    case NBD.Command.cache: allowed = 0
    case NBD.Command.blockStatus:
      guard session.hasAllocation else { return NBD.Failure.invalid }
      allowed = Flag.requestOne
    default: return NBD.Failure.invalid
    }
    guard flags & ~allowed == 0, length > 0 else { return NBD.Failure.invalid }
    let changes = type == NBD.Command.write || type == NBD.Command.trim || type == NBD.Command.writeZeroes
    if changes, export.isReadOnly { return NBD.Failure.permission }
    if type == NBD.Command.read, length > NBDLimits.requestBytes { return NBD.Failure.overflow }
    guard offset <= export.byteCount, UInt64(length) + UInt64(following) <= export.byteCount - offset else {
      return changes ? NBD.Failure.space : NBD.Failure.invalid
    }
    return nil
  }

  /// What an observer is shown; nil for what neither reads nor changes the disk.
  var operation: BlockRequest.Operation? {
    switch type {
    case NBD.Command.read: .read
    case NBD.Command.write: .write
    case NBD.Command.flush: .flush
    case NBD.Command.trim: .discard
    case NBD.Command.writeZeroes: .writeZeroes
    default: nil
    }
  }
}
