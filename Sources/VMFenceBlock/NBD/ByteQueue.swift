/// Bytes in the order in which they came, in one piece of memory: appended at the end, taken from the beginning.
@safe final class ByteQueue {
  private var block: ByteBlock
  /// Inside the block: `start <= end <= capacity`.
  private var start = 0
  private var end = 0

  init() { block = ByteBlock(ByteBlockPool.usual) }

  // SAFETY: `capacity` bytes, as long as the block is not exchanged.
  @unsafe private var memory: UnsafeMutableRawPointer { unsafe block.memory }
  private var capacity: Int { block.capacity }

  var count: Int { end - start }

  /// What is in it. Valid until the queue is changed.
  @unsafe var bytes: UnsafeRawBufferPointer {
    // SAFETY: inside the memory, as the bounds say.
    unsafe UnsafeRawBufferPointer(start: memory + start, count: end - start)
  }

  /// Room for `count` bytes after the last. They are not in the queue before `commit`.
  @unsafe func reserve(_ count: Int) -> UnsafeMutableRawPointer {
    if capacity - end < count { makeRoom(count) }
    // SAFETY: there are `count` bytes after `end` now.
    return unsafe memory + end
  }

  /// - Precondition: so many bytes were written to the place that `reserve` gave.
  func commit(_ count: Int) {
    precondition(count >= 0 && count <= capacity - end)
    end += count
  }

  func consume(_ count: Int) {
    precondition(count >= 0 && count <= end - start)
    start += count
    if start == end {
      start = 0
      end = 0
      if capacity > 8 * ByteBlockPool.usual { resize(to: ByteBlockPool.usual) }
    }
  }

  /// - Precondition: so many bytes are in it.
  func dropLast(_ count: Int) {
    precondition(count >= 0 && count <= end - start)
    end -= count
  }

  func append(_ bytes: [UInt8]) {
    // SAFETY: room for just these bytes is reserved first.
    unsafe bytes.withUnsafeBytes { unsafe append($0) }
  }

  @unsafe func append(_ bytes: UnsafeRawBufferPointer) {
    guard let base = bytes.baseAddress else { return }
    // SAFETY: the room is reserved; what is appended never lies in the queue itself.
    unsafe reserve(bytes.count).copyMemory(from: base, byteCount: bytes.count)
    commit(bytes.count)
  }

  private func makeRoom(_ room: Int) {
    if capacity - count >= room {
      // SAFETY: moves the content to the beginning of the same memory; the places may overlap.
      unsafe memory.copyMemory(from: memory + start, byteCount: count)
      end -= start
      start = 0
    } else {
      resize(to: count + room)
    }
  }

  private func resize(to newCapacity: Int) {
    let fresh = ByteBlock(newCapacity)
    // SAFETY: the content, which fits, is copied before the old memory is let go.
    unsafe fresh.memory.copyMemory(from: memory + start, byteCount: count)
    block = fresh
    end -= start
    start = 0
  }
}
