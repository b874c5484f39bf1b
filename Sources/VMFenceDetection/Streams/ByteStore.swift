internal import Glibc

/// Bytes of fixed number that begin as zeros and never move. Pages that nothing was written to take no memory (calloc(3)).
@safe
struct ByteStore: ~Copyable {
  // SAFETY: `base` has room for `count` bytes until deinit.
  private let base: UnsafeMutableRawPointer
  let count: Int

  init(count: Int) {
    guard let memory = unsafe calloc(max(1, count), 1) else { fatalError("no memory for \(count) bytes") }
    unsafe base = memory
    self.count = count
  }

  deinit { unsafe free(base) }

  subscript(offset: Int) -> UInt8 {
    get {
      precondition(offset >= 0 && offset < count, "a byte that is not there")
      // SAFETY: inside by the check above.
      return unsafe base.load(fromByteOffset: offset, as: UInt8.self)
    }
    set {
      precondition(offset >= 0 && offset < count, "a byte that is not there")
      // SAFETY: inside by the check above.
      unsafe base.storeBytes(of: newValue, toByteOffset: offset, as: UInt8.self)
    }
  }

  /// Writes a number, the highest byte first.
  mutating func writeU32(_ value: UInt32, at offset: Int) {
    precondition(offset >= 0 && offset <= count - 4, "bytes that are not there")
    // SAFETY: inside by the check above.
    unsafe base.storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt32.self)
  }

  /// Copies all of `bytes` to `offset`.
  mutating func write(_ bytes: RawSpan, at offset: Int) {
    precondition(offset >= 0 && bytes.byteCount <= count - offset, "more bytes than there is room for")
    // SAFETY: the target was checked; memmove(3) also takes bytes of this store.
    unsafe bytes.withUnsafeBytes { source in
      guard let start = source.baseAddress else { return }
      unsafe _ = memmove(base + offset, start, source.count)
    }
  }

  /// Moves bytes within the store; the ranges may overlap.
  mutating func move(_ length: Int, from source: Int, to target: Int) {
    precondition(length >= 0 && source >= 0 && target >= 0, "a range that is not there")
    precondition(length <= count - source && length <= count - target, "a range that is not there")
    // SAFETY: both ranges were checked.
    unsafe _ = memmove(base + target, base + source, length)
  }

  /// Whether the bytes of `range` are those that `other` has from `offset` on.
  func equals(_ range: Range<Int>, _ other: borrowing ByteStore, at offset: Int) -> Bool {
    precondition(range.lowerBound >= 0 && range.upperBound <= count, "a range that is not there")
    precondition(offset >= 0 && range.count <= other.count - offset, "a range that is not there")
    // SAFETY: both ranges were checked; memcmp(3) only reads.
    return unsafe memcmp(base + range.lowerBound, other.base + offset, range.count) == 0
  }

  mutating func fill(_ range: Range<Int>, with value: UInt8) {
    precondition(range.lowerBound >= 0 && range.upperBound <= count, "a range that is not there")
    // SAFETY: the range was checked.
    unsafe _ = memset(base + range.lowerBound, Int32(value), range.count)
  }

  /// The bytes of a range. They stay where they are as long as the store lives, so whoever makes a span of them has to see to
  /// that, and that nobody writes to them meanwhile.
  @unsafe
  func bytes(_ range: Range<Int>) -> UnsafeRawBufferPointer {
    precondition(range.lowerBound >= 0 && range.upperBound <= count, "a range that is not there")
    // SAFETY: the range was checked; how long it may be used is said above.
    return unsafe UnsafeRawBufferPointer(start: base + range.lowerBound, count: range.count)
  }
}
