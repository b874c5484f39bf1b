import VMFenceCore

/// Looks for one pattern, eight positions at a time.
struct ByteSearch {
  /// The pattern lies here in the image; in lower case when `ignoresCase`.
  let offset: Int
  let count: Int
  let ignoresCase: Bool

  /// The first position in `first ... last` of `bytes` at which the pattern stands; -1 for none. Takes the work done from
  /// `budget` (about one unit for 8 bytes looked at).
  ///
  /// - Precondition: 0 ≤ `first`, and the pattern at `last` ends inside `bytes`.
  func firstPosition(
    in bytes: RawSpan, from first: Int, through last: Int, image: RawSpan, budget: inout Int
  ) -> Int {
    let head = image.u8(offset)
    let tail = image.u8(offset + count - 1)
    let headFold = fold(head)
    let tailFold = fold(tail)
    let headWord = UInt64(head) &* Self.ones
    let tailWord = UInt64(tail) &* Self.ones
    var position = first
    budget -= 1
    // While eight bytes can be loaded at the last byte of the pattern, too.
    let wideEnd = min(last, bytes.byteCount - count - 7)
    while position <= wideEnd {
      // A byte of `difference` is zero where both the first and the last byte of the pattern fit.
      let difference =
        ((bytes.u64le(position) | headFold) ^ headWord)
        | ((bytes.u64le(position + count - 1) | tailFold) ^ tailWord)
      // Marks every zero byte (and perhaps bytes above the lowest one, which the comparison sorts out).
      var marks = (difference &- Self.ones) & ~difference & Self.highs
      budget -= 1
      while marks != 0 {
        let candidate = position + marks.trailingZeroBitCount / 8
        if candidate > last { return -1 }
        if isPattern(at: candidate, in: bytes, image: image, &budget) { return candidate }
        marks &= marks - 1
      }
      position += 8
    }
    while position <= last {
      if isPattern(at: position, in: bytes, image: image, &budget) { return position }
      position += 1
    }
    return -1
  }

  /// Whether the pattern stands at `position`, where it ends inside `bytes`.
  private func isPattern(at position: Int, in bytes: RawSpan, image: RawSpan, _ budget: inout Int) -> Bool {
    var index = 0
    if !ignoresCase {
      while index + 8 <= count {
        if bytes.u64le(position + index) != image.u64le(offset + index) { return false }
        index += 8
        budget -= 1
      }
    }
    while index < count {
      let byte = bytes.u8(position + index)
      if (ignoresCase ? byte.lowercasedASCII : byte) != image.u8(offset + index) { return false }
      index += 1
    }
    budget -= 1
    return true
  }

  /// The bit that a letter's case is in, eight times; 0 where case matters.
  private func fold(_ byte: UInt8) -> UInt64 {
    ignoresCase && byte &- 97 < 26 ? 0x2020_2020_2020_2020 : 0
  }

  private static let ones: UInt64 = 0x0101_0101_0101_0101
  private static let highs: UInt64 = 0x8080_8080_8080_8080
}
