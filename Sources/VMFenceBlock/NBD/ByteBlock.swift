/// A piece of memory that goes from hand to hand, between the thread that serves clients and those that wait for the disk.
@safe final class ByteBlock {
  // SAFETY: `capacity` bytes that only this object frees.
  let memory: UnsafeMutableRawPointer
  /// In bytes.
  let capacity: Int

  init(_ capacity: Int) {
    self.capacity = capacity
    // SAFETY: freed in `deinit`.
    unsafe memory = .allocate(byteCount: capacity, alignment: 4096)
  }

  deinit {
    // SAFETY: allocated by this object.
    unsafe memory.deallocate()
  }
}

/// Blocks of the usual size that nobody needs at the moment: fresh memory costs the kernel more than what is done with it. Used by one thread
/// at a time.
final class ByteBlockPool {
  /// In bytes: a request of 256 KiB, with its header.
  static let usual = 260 << 10
  private static let limit = 16

  private var spare: [ByteBlock] = []

  /// A block of at least so many bytes.
  func take(_ count: Int = usual) -> ByteBlock {
    if count <= Self.usual, let block = spare.popLast() { return block }
    return ByteBlock(max(count, Self.usual))
  }

  func giveBack(_ block: ByteBlock) {
    if block.capacity == Self.usual, spare.count < Self.limit { spare.append(block) }
  }
}
