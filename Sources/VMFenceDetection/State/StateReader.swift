import VMFenceCore

/// Reads a saved state, of which nothing is believed. It has a copy of its own, so nobody changes what was checked.
struct StateReader {
  private let bytes: [UInt8]
  private(set) var offset = 0

  init(_ bytes: [UInt8]) { self.bytes = bytes }

  var isAtEnd: Bool { offset == bytes.count }

  static func damaged(_ what: String) -> EngineStateError {
    EngineStateError(
      .damaged, "the saved state cannot be used: \(what)", remedy: "save it again, or start without a saved state")
  }

  mutating func u8() throws(EngineStateError) -> UInt8 {
    guard offset < bytes.count else { throw Self.damaged("it ends early") }
    defer { offset += 1 }
    return bytes[offset]
  }

  private mutating func number(_ count: Int) throws(EngineStateError) -> UInt64 {
    guard bytes.count - offset >= count else { throw Self.damaged("it ends early") }
    var value: UInt64 = 0
    for index in 0..<count { value |= UInt64(bytes[offset + index]) << UInt64(8 * index) }
    offset += count
    return value
  }

  mutating func u16() throws(EngineStateError) -> UInt16 { UInt16(truncatingIfNeeded: try number(2)) }
  mutating func u32() throws(EngineStateError) -> UInt32 { UInt32(truncatingIfNeeded: try number(4)) }
  mutating func u64() throws(EngineStateError) -> UInt64 { try number(8) }
  mutating func i64() throws(EngineStateError) -> Int64 { Int64(bitPattern: try number(8)) }

  /// A 0 or a 1.
  mutating func flag() throws(EngineStateError) -> Bool {
    let value = try u8()
    guard value < 2 else { throw Self.damaged("\(value) where 0 or 1 belongs") }
    return value == 1
  }

  /// A count of things that have `bytesEach` bytes at least, so that no count is larger than what follows can hold.
  mutating func count(of bytesEach: Int) throws(EngineStateError) -> Int {
    let count = Int(try u32())
    guard count <= (bytes.count - offset) / bytesEach else {
      throw Self.damaged("a count of \(count) in too few bytes")
    }
    return count
  }

  mutating func text() throws(EngineStateError) -> [UInt8] {
    let count = Int(try u16())
    guard bytes.count - offset >= count else { throw Self.damaged("it ends early") }
    defer { offset += count }
    return Array(bytes[offset..<offset + count])
  }

  /// Gives the next `count` bytes to `use`.
  mutating func bytes(_ count: Int, _ use: (RawSpan) -> Void) throws(EngineStateError) {
    guard count >= 0, bytes.count - offset >= count else { throw Self.damaged("it ends early") }
    bytes.withRawSpan { use($0.extracting(offset..<offset + count)) }
    offset += count
  }
}

extension ByteWriter {
  mutating func i64(_ value: Int64) { u64(UInt64(bitPattern: value)) }
  mutating func flag(_ value: Bool) { u8(value ? 1 : 0) }

  /// At most 65,535 bytes.
  mutating func name(_ bytes: [UInt8]) {
    u16(UInt16(truncatingIfNeeded: bytes.count))
    append(bytes.prefix(Int(UInt16(truncatingIfNeeded: bytes.count))))
  }
}

/// Times of a saved state: relative to when it was saved, and from then on to when it is restored.
struct StateClock {
  /// When it was saved, or is restored; nanoseconds of packet time.
  var now: Int64

  func age(_ time: Int64) -> Int64 {
    let (age, overflow) = now.subtractingReportingOverflow(time)
    return overflow ? (time < 0 ? .max : .min) : age
  }

  func time(_ age: Int64) -> Int64 {
    let (time, overflow) = now.subtractingReportingOverflow(age)
    return overflow ? (age < 0 ? .max : .min) : time
  }

  /// In whole seconds, as TCP timestamps' times are kept: modulo 2³².
  var seconds: UInt32 { UInt32(truncatingIfNeeded: now / FlowTimeouts.second) }
}
