// The only place where bytes are loaded from a span without a check of our own. Each function has the precondition that
// the field lies inside the span; a view checks that once when it is made (`init throws`), after which its accessors cannot
// fail. A call that breaks the precondition traps, in release builds too: `RawSpan` is bounds-checked at -O.

extension RawSpan {
  /// The byte at `offset`.
  @inlinable @inline(__always)
  public func u8(_ offset: Int) -> UInt8 {
    // SAFETY: every bit pattern is a UInt8; RawSpan checks the bounds.
    unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: UInt8.self)
  }

  /// The big-endian (network order) number at `offset`.
  @inlinable @inline(__always)
  public func u16(_ offset: Int) -> UInt16 {
    // SAFETY: every bit pattern is a UInt16; RawSpan checks the bounds.
    UInt16(bigEndian: unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: UInt16.self))
  }

  /// The big-endian number at `offset`.
  @inlinable @inline(__always)
  public func u32(_ offset: Int) -> UInt32 {
    // SAFETY: every bit pattern is a UInt32; RawSpan checks the bounds.
    UInt32(bigEndian: unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: UInt32.self))
  }

  /// The big-endian number at `offset`.
  @inlinable @inline(__always)
  public func u64(_ offset: Int) -> UInt64 {
    // SAFETY: every bit pattern is a UInt64; RawSpan checks the bounds.
    UInt64(bigEndian: unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: UInt64.self))
  }

  /// The little-endian number at `offset` (disk structures).
  @inlinable @inline(__always)
  public func u16le(_ offset: Int) -> UInt16 {
    // SAFETY: every bit pattern is a UInt16; RawSpan checks the bounds.
    UInt16(littleEndian: unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: UInt16.self))
  }

  /// The little-endian number at `offset`.
  @inlinable @inline(__always)
  public func u32le(_ offset: Int) -> UInt32 {
    // SAFETY: every bit pattern is a UInt32; RawSpan checks the bounds.
    UInt32(littleEndian: unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: UInt32.self))
  }

  /// The little-endian number at `offset`.
  @inlinable @inline(__always)
  public func u64le(_ offset: Int) -> UInt64 {
    // SAFETY: every bit pattern is a UInt64; RawSpan checks the bounds.
    UInt64(littleEndian: unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: UInt64.self))
  }

  /// The 48 bits at `offset` as an Ethernet address.
  @inlinable @inline(__always)
  public func macAddress(_ offset: Int) -> MACAddress {
    MACAddress(rawValue: UInt64(u16(offset)) << 32 | UInt64(u32(offset + 2)))
  }

  /// A copy as an array, for control paths and tests.
  public func copiedBytes() -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(byteCount)
    for offset in 0..<byteCount { bytes.append(u8(offset)) }
    return bytes
  }
}

extension Array where Element == UInt8 {
  /// Calls `body` with these bytes as a span.
  @inlinable
  public func withRawSpan<Result, Failure: Error>(
    _ body: (RawSpan) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    // SAFETY: UInt8 has no padding, so every byte of the array is initialised.
    try body(unsafe span.bytes)
  }
}
