import VMFenceCore

/// Base64 (RFC 4648 §4, RFC 2045 §6.8) as the dialects decode it.
enum Base64Decoder {
  /// Appends what `bytes` say to `output`; false when that is nothing, or in `strict` mode when they are not all of it.
  static func decode(_ bytes: RawSpan, _ mode: Base64Transform.Mode, to output: inout Scratch) -> Bool {
    var bits: UInt32 = 0
    var count = 0
    var index = 0
    var isWhole = true
    while index < bytes.byteCount {
      let byte = bytes.u8(index)
      index += 1
      guard let value = value(byte) else {
        if byte == UInt8(ascii: "=") { break }
        if mode == .rfc2045 { continue }
        isWhole = false
        break
      }
      bits = bits << 6 | UInt32(value)
      count += 1
      if count == 4 {
        for shift in [UInt32(16), 8, 0] { output.append(UInt8(truncatingIfNeeded: bits >> shift)) }
        (bits, count) = (0, 0)
      }
    }
    if mode == .strict, !isWhole || bytes.byteCount % 4 != 0 {
      output.removeAll()
      return false
    }
    // Two digits left over are one byte, three are two.
    if count == 2 { output.append(UInt8(truncatingIfNeeded: bits >> 4)) }
    if count == 3 {
      output.append(UInt8(truncatingIfNeeded: bits >> 10))
      output.append(UInt8(truncatingIfNeeded: bits >> 2))
    }
    return output.count > 0
  }

  @inline(__always)
  private static func value(_ byte: UInt8) -> UInt8? {
    switch byte {
    case UInt8(ascii: "A")...UInt8(ascii: "Z"): byte - 65
    case UInt8(ascii: "a")...UInt8(ascii: "z"): byte - 71
    case UInt8(ascii: "0")...UInt8(ascii: "9"): byte + 4
    case UInt8(ascii: "+"): 62
    case UInt8(ascii: "/"): 63
    default: nil
    }
  }
}

extension PayloadMatcher {
  /// Decodes, and compares what was decoded with the tests of it.
  mutating func decodedMatches(
    _ record: Int, _ flags: UInt8, _ cursor: Int, _ first: Int, _ depth: Int, _ subject: Subject, _ bytes: RawSpan,
    _ frame: RawSpan, _ image: RawSpan
  ) -> Bool {
    let offset = Int(image.u32le(OptionRecord.word(record, 1)))
    let start = (flags & PayloadFlags.isRelative != 0 ? cursor : 0) + offset
    guard depth == 0, start >= 0, start < bytes.byteCount else { return false }
    let wanted = Int(image.u32le(OptionRecord.word(record, 0)))
    var end = wanted == 0 ? bytes.byteCount : min(bytes.byteCount, start + wanted)
    budget -= (end - start) / 4
    decoded.removeAll()
    if !subject.isSuricata { end = Self.endOfHeader(bytes, start, end) }
    // What was folded over lines is one line in Snort, blanks left out.
    guard
      Base64Decoder.decode(
        bytes.extracting(start..<end), subject.isSuricata ? .rfc4648 : .rfc2045, to: &decoded)
    else { return false }
    let nested = Int(image.u32le(OptionRecord.word(record, 2)))
    let count = Int(image.u32le(OptionRecord.word(record, 3)))
    // SAFETY: nothing writes to `decoded` until the tests are done: they cannot decode again.
    let made = unsafe decoded.bytes
    var index = nested
    while index < nested + count {
      let record = first + index * OptionRecord.stride
      let tests = Int(image.u32le(OptionRecord.word(record, 2)))
      guard
        bufferMatches(
          record, tests, first, depth: 1, subject, payload: unsafe made.bytes, frame: frame, image: image)
      else { return false }
      index += 1 + tests
    }
    return true
  }

  /// Where a header that may be folded (RFC 822 §3.1.1) ends: at a line end that no blank follows.
  private static func endOfHeader(_ bytes: RawSpan, _ start: Int, _ end: Int) -> Int {
    var index = start
    while index < end {
      if bytes.u8(index) == 0x0A || bytes.u8(index) == 0x0D {
        var next = index + 1
        if bytes.u8(index) == 0x0D, next < end, bytes.u8(next) == 0x0A { next += 1 }
        guard next < end, bytes.u8(next) == 0x20 || bytes.u8(next) == 0x09 else { return index }
        index = next
      }
      index += 1
    }
    return end
  }
}
