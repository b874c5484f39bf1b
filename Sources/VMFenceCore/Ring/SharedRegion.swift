internal import Glibc
internal import Synchronization

/// A block of memory that two sides map: anonymous pages between threads, a memory file between processes.
///
/// Everything that is read from and written to it goes through the checked accessors below; what the *contents* mean is
/// never trusted by the supervisor.
@safe package final class SharedRegion: @unchecked Sendable {
  // SAFETY: valid for `byteCount` bytes, aligned to a page, from init to deinit, which runs `release` once.
  private let base: UnsafeMutableRawPointer
  package let byteCount: Int
  /// The memory file, open for as long as the region lives; -1 when there is none.
  package let descriptor: Int32
  private let release: @Sendable () -> Void

  /// Takes over pages that stay mapped, and a memory file that stays open, until `release` is called.
  @unsafe
  package init(
    adopting base: UnsafeMutableRawPointer, byteCount: Int, descriptor: Int32 = -1,
    release: @escaping @Sendable () -> Void
  ) {
    // SAFETY: the caller promised that the pages stay until `release`.
    unsafe self.base = base
    self.byteCount = byteCount
    self.descriptor = descriptor
    self.release = release
  }

  /// Pages of this process, zeroed, taken from the system on first touch. The C function is `mmap`.
  package static func anonymous(byteCount: Int) throws(DetectorError) -> SharedRegion {
    // SAFETY: a fresh mapping that replaces none.
    let result = unsafe mmap(
      nil, byteCount, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    guard let base = unsafe result, unsafe base != MAP_FAILED else {
      throw DetectorError(
        .memory, "cannot map \(byteCount) bytes for a ring: error \(errno)", remedy: "use smaller rings or add memory")
    }
    let address = UInt(bitPattern: base)
    // SAFETY: the mapping above has this length; it is unmapped once, when nobody refers to the region any more.
    return unsafe SharedRegion(adopting: base, byteCount: byteCount) {
      unsafe _ = munmap(UnsafeMutableRawPointer(bitPattern: address), byteCount)
    }
  }

  deinit { release() }

  /// The 64-bit word at `offset`.
  package func word(_ offset: Int) -> SharedWord {
    precondition(offset >= 0 && offset % 8 == 0 && offset <= byteCount - 8, "a word outside its region")
    // SAFETY: inside the region and aligned; `Atomic<UInt64>` has the layout of UInt64, and zeroed memory is one.
    return unsafe SharedWord(
      (base + offset).bindMemory(to: Atomic<UInt64>.self, capacity: 1))
  }

  /// The `count` bytes at `offset`, as an area of their own.
  package func area(_ offset: Int, count: Int) -> SharedArea {
    precondition(offset >= 0 && count >= 0 && count <= byteCount - offset, "an area outside its region")
    // SAFETY: inside the region.
    return unsafe SharedArea(base + offset, count: count)
  }
}

/// A word that both sides see. Its holder keeps the region alive.
@safe package struct SharedWord {
  // SAFETY: points into a region that the holder of this value keeps mapped.
  private let pointer: UnsafeMutablePointer<Atomic<UInt64>>

  @unsafe
  init(_ pointer: UnsafeMutablePointer<Atomic<UInt64>>) { unsafe self.pointer = pointer }

  @inline(__always)
  package func loadAcquiring() -> UInt64 {
    // SAFETY: mapped for as long as the holder lives; atomic, so the other side may write meanwhile.
    unsafe pointer.pointee.load(ordering: .acquiring)
  }

  @inline(__always)
  package func storeReleasing(_ value: UInt64) {
    // SAFETY: as above.
    unsafe pointer.pointee.store(value, ordering: .releasing)
  }

  /// Fetches the word exactly once, whoever writes it meanwhile; says nothing about other words.
  @inline(__always)
  package func loadOnce() -> UInt64 {
    // SAFETY: as above.
    unsafe pointer.pointee.load(ordering: .relaxed)
  }

  /// Stores the word; when others see it is up to a later `storeReleasing`.
  @inline(__always)
  package func storeOnce(_ value: UInt64) {
    // SAFETY: as above.
    unsafe pointer.pointee.store(value, ordering: .relaxed)
  }
}

/// Bytes that both sides see; bounds are checked on every access, in release builds too. Plain loads and stores: whoever
/// reads has seen the index that publishes them (acquire), or copies first and checks the copy.
@safe package struct SharedArea {
  // SAFETY: valid for `count` bytes; the holder of this value keeps the region mapped.
  private let base: UnsafeMutableRawPointer
  let count: Int

  @unsafe
  init(_ base: UnsafeMutableRawPointer, count: Int) {
    unsafe self.base = base
    self.count = count
  }

  @inline(__always)
  package func load<Value: BitwiseCopyable & FixedWidthInteger>(_ offset: Int, as type: Value.Type) -> Value {
    precondition(offset >= 0 && offset <= count - MemoryLayout<Value>.size)
    // SAFETY: inside the area; every bit pattern is an integer.
    return unsafe base.loadUnaligned(fromByteOffset: offset, as: type)
  }

  /// The aligned word at `offset`, fetched exactly once, however hostile its writer is.
  @inline(__always)
  func loadOnce(_ offset: Int) -> UInt64 {
    precondition(offset >= 0 && offset % 8 == 0 && offset <= count - 8)
    // SAFETY: inside the area and aligned, since areas begin at multiples of 16; an atomic has the layout of its value.
    return unsafe (base + offset).assumingMemoryBound(to: Atomic<UInt64>.self).pointee.load(ordering: .relaxed)
  }

  /// Stores the aligned word at `offset` whole, whoever reads it meanwhile.
  @inline(__always)
  func storeOnce(_ value: UInt64, at offset: Int) {
    precondition(offset >= 0 && offset % 8 == 0 && offset <= count - 8)
    // SAFETY: as above.
    unsafe (base + offset).assumingMemoryBound(to: Atomic<UInt64>.self).pointee.store(value, ordering: .relaxed)
  }

  @inline(__always)
  package func store<Value: BitwiseCopyable & FixedWidthInteger>(_ value: Value, at offset: Int) {
    precondition(offset >= 0 && offset <= count - MemoryLayout<Value>.size)
    // SAFETY: inside the area.
    unsafe base.storeBytes(of: value, toByteOffset: offset, as: Value.self)
  }

  /// Copies the first `length` bytes of `bytes` to `offset`.
  @inline(__always)
  func copy(_ bytes: RawSpan, length: Int, to offset: Int) {
    precondition(length >= 0 && length <= bytes.byteCount && offset >= 0 && offset <= count - length)
    // SAFETY: both ranges were checked, and a span of the caller's does not lie in free space of the ring.
    unsafe bytes.withUnsafeBytes { source in
      if length > 0, let start = source.baseAddress { unsafe memcpy(base + offset, start, length) }
    }
  }

  /// Copies `length` bytes at `offset` out of the area to the start of `target`.
  @inline(__always)
  func copy(from offset: Int, length: Int, to target: SharedArea, at targetOffset: Int = 0) {
    precondition(length >= 0 && offset >= 0 && offset <= count - length)
    precondition(targetOffset >= 0 && targetOffset <= target.count - length)
    // SAFETY: both ranges were checked; the areas belong to different allocations.
    unsafe _ = memcpy(target.base + targetOffset, base + offset, length)
  }

  /// The bytes in place, valid for the duration of the call.
  @inline(__always)
  func withBytes<Result: ~Copyable>(_ offset: Int, length: Int, _ body: (RawSpan) -> Result) -> Result {
    precondition(length >= 0 && offset >= 0 && offset <= count - length)
    // SAFETY: inside the area, which stays mapped during the call.
    return body(unsafe UnsafeRawBufferPointer(start: base + offset, count: length).bytes)
  }
}
