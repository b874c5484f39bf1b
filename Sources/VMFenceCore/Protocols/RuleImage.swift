/// Compiled rules as one flat block of immutable memory, aligned to 64 bytes at least. What holds the memory (the heap,
/// a sealed memory file that many processes map) is the maker's business.
@safe public final class RuleImage: @unchecked Sendable {
  // SAFETY: `base` is valid for `byteCount` bytes and never written from init to deinit, which runs `release` once.
  @usableFromInline let base: UnsafeRawPointer
  public let byteCount: Int
  private let release: (@Sendable () -> Void)?

  /// Takes over memory that stays valid and unchanged until `release` is called.
  ///
  /// - Precondition: `base` is aligned to 64 bytes.
  @unsafe
  public init(adopting base: UnsafeRawPointer, byteCount: Int, release: @escaping @Sendable () -> Void) {
    precondition(UInt(bitPattern: base) % 64 == 0, "a rule image must be aligned to 64 bytes")
    // SAFETY: the caller promised that the memory stays until `release`.
    unsafe self.base = base
    self.byteCount = byteCount
    self.release = release
  }

  /// Copies `bytes` into memory of its own.
  public convenience init(copying bytes: RawSpan) {
    let count = bytes.byteCount
    let memory = UnsafeMutableRawPointer.allocate(byteCount: Swift.max(count, 64), alignment: 64)
    // SAFETY: `memory` has room for `count` bytes and does not overlap `bytes`.
    unsafe bytes.withUnsafeBytes { source in
      if let start = source.baseAddress { unsafe memory.copyMemory(from: start, byteCount: count) }
    }
    let address = UInt(bitPattern: memory)
    unsafe self.init(adopting: UnsafeRawPointer(memory), byteCount: count) {
      // SAFETY: the address came from the allocation above; the closure runs once.
      unsafe UnsafeMutableRawPointer(bitPattern: address)?.deallocate()
    }
  }

  deinit { release?() }

  /// The bytes, valid for the duration of the call.
  @inlinable
  public func withBytes<Result, Failure: Error>(
    _ body: (RawSpan) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    // SAFETY: the memory is valid for `byteCount` bytes as long as `self` lives, which is longer than this call.
    try body(unsafe UnsafeRawBufferPointer(start: base, count: byteCount).bytes)
  }

  /// The address, for C libraries that use data in place (Vectorscan's database). Valid as long as the image lives.
  @unsafe public var baseAddress: UnsafeRawPointer { unsafe base }
}
