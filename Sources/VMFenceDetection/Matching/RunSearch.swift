import VMFenceCore

/// Looks for runs of one byte. As contents they are padding (`AAAA …`, sleds of one-byte instructions), and a multi-pattern search meets
/// such a pattern again at every byte of a longer run. Here a run costs its length once, and of what is in none only every few bytes are
/// looked at.
enum RunSearch {
  /// Shorter runs stand in all kinds of data.
  static let minimum = 8
  /// Patterns of one group that are looked for in this way.
  static let patternLimit = 64

  /// The first run of `length` equal bytes or more, from its first byte to its last, in `bytes` from `position` on.
  ///
  /// - Precondition: `length` is `minimum` at least.
  static func next(in bytes: RawSpan, from position: Int, atLeast length: Int) -> Range<Int>? {
    // Wherever such a run begins, the four bytes at one of these places are in it. (Two would be looked at less often, and are equal too often.)
    let step = length - 3
    var probe = position
    while probe + 4 <= bytes.byteCount {
      let word = bytes.u32le(probe)
      if (word ^ word >> 8) & 0x00FF_FFFF != 0 {
        probe += step
        continue
      }
      let byte = bytes.u8(probe)
      var start = probe
      while start > position, bytes.u8(start - 1) == byte { start -= 1 }
      let end = endOfRun(bytes, from: probe + 4, byte)
      if end - start >= length { return start..<end }
      // The next one begins at `end` or later, so that its last four bytes are here or later.
      probe = end + length - 4
    }
    return nil
  }

  private static func endOfRun(_ bytes: RawSpan, from position: Int, _ byte: UInt8) -> Int {
    let eight = UInt64(byte) &* 0x0101_0101_0101_0101
    var end = position
    while end + 8 <= bytes.byteCount, bytes.u64le(end) == eight { end += 8 }
    while end < bytes.byteCount, bytes.u8(end) == byte { end += 1 }
    return end
  }
}

extension SearchPattern {
  /// One byte again and again, in one case only.
  var isRun: Bool {
    guard bytes.count >= RunSearch.minimum, let first = bytes.first, bytes.allSatisfy({ $0 == first }) else {
      return false
    }
    return !ignoresCase || first &- 97 >= 26
  }
}
