import VMFenceCore

/// Memory for what is made of buffers: fixed, allocated once. What does not fit is cut off.
@safe
struct Scratch: ~Copyable {
  /// A payload, and a little more.
  static let capacity = 65_536 + 256

  // SAFETY: allocated here with `capacity` bytes, all initialised, freed once in deinit; `count` never exceeds it.
  private let memory: UnsafeMutablePointer<UInt8>
  private(set) var count = 0

  init() {
    unsafe memory = UnsafeMutablePointer<UInt8>.allocate(capacity: Self.capacity)
    unsafe memory.initialize(repeating: 0, count: Self.capacity)
  }

  deinit { unsafe memory.deallocate() }

  mutating func removeAll() { count = 0 }

  @inline(__always)
  mutating func append(_ byte: UInt8) {
    guard count < Self.capacity else { return }
    // SAFETY: below the capacity.
    unsafe memory[count] = byte
    count += 1
  }

  mutating func append(_ bytes: RawSpan) {
    for index in 0..<bytes.byteCount { append(bytes.u8(index)) }
  }

  /// Appends what `body` writes into the room it is given, `limit` bytes at the most; it says how many those are.
  @unsafe
  mutating func fill(_ limit: Int, _ body: (UnsafeMutableRawBufferPointer) -> Int) {
    let size = min(max(limit, 0), Self.capacity - count)
    // SAFETY: inside the allocation, from its first byte that is not used on.
    let room = unsafe UnsafeMutableRawBufferPointer(start: memory + count, count: size)
    count += min(max(unsafe body(room), 0), size)
  }

  /// What was appended, as a buffer pointer: valid until the next change, and no longer than this value.
  @unsafe
  // SAFETY: `count` bytes are initialised.
  var bytes: UnsafeRawBufferPointer { unsafe UnsafeRawBufferPointer(start: memory, count: count) }
}
