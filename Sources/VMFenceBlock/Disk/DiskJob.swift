internal import Glibc

/// A request that waits for the disk, on its way through a worker.
@safe final class DiskJob {
  enum Work: Sendable {
    case read
    case write
    case flush
    case discard
    case zero(mayPunch: Bool, isFast: Bool)
    case readAhead
    case extents(limit: Int)
  }

  /// Room before the data, for the header of the answer.
  static let headroom = 32

  let work: Work
  let offset: UInt64
  let length: UInt32
  /// Durable before it is answered.
  let isForced: Bool
  /// Whose it is, and the request's name there.
  let connection: UInt64
  let cookie: UInt64
  /// Of a read or write, with where its data begin there; nil for all others.
  let block: (memory: ByteBlock, start: Int)?
  /// An error number of the system; written by the worker.
  private(set) var error: CInt = 0
  private(set) var extents: [(length: UInt32, isHole: Bool)] = []

  /// - Precondition: for a read or write, `block` has `length` bytes from `start` on.
  init(_ work: Work, _ request: NBDRequest, connection: UInt64, block: (memory: ByteBlock, start: Int)? = nil) {
    self.work = work
    offset = request.offset
    length = request.length
    isForced = request.isForced
    self.connection = connection
    cookie = request.cookie
    self.block = block
    switch work {
    case .read, .write: precondition(block.map { $0.memory.capacity - $0.start >= Int(length) } ?? false)
    default: break
    }
  }

  /// What of `length` bytes are held.
  var heldBytes: Int {
    switch work {
    case .read, .write: Int(length)
    default: 0
    }
  }

  var changesDisk: Bool {
    switch work {
    case .write, .discard, .zero: true
    case .read, .flush, .readAhead, .extents: false
    }
  }

  /// Where the data of a read or write are.
  @unsafe var data: UnsafeMutableRawPointer? {
    // SAFETY: the block has `length` bytes from there on.
    guard let block else { return nil }
    return unsafe block.memory.memory + block.start
  }

  func conflicts(from offset: UInt64, to end: UInt64, changes: Bool) -> Bool {
    guard changes || changesDisk else { return false }
    switch work {
    case .flush, .readAhead, .extents: return false
    case .read, .write, .discard, .zero: return self.offset < end && offset < self.offset + UInt64(length)
    }
  }

  /// Done by a worker, outside any lock.
  func run(on disk: DiskFile) {
    switch work {
    case .read:
      // SAFETY: `length` bytes that nobody else looks at meanwhile.
      if let data = unsafe data { error = unsafe disk.readAll(data, Int(length), at: offset) }
    case .write:
      // SAFETY: as above.
      if let data = unsafe data { error = unsafe disk.writeAll(data, Int(length), at: offset) }
    case .flush: error = disk.flush()
    case .discard: error = disk.discard(offset, UInt64(length))
    case .zero(let mayPunch, let isFast):
      error = disk.writeZeroes(offset, UInt64(length), mayPunch: mayPunch, isFast: isFast)
    case .readAhead: error = disk.readAhead(offset, length)
    case .extents(let limit): extents = disk.extents(offset, length, limit: limit)
    }
    if isForced, error == 0, changesDisk { error = disk.flush() }
  }
}
