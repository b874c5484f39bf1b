/// A component of a pattern in which `*` stands for any bytes and `?` for any one byte, made ready to be compared with names.
///
/// A guest chooses the names, and its owner some of the patterns, so a comparison takes time in proportion to the name, whatever the pattern:
/// what stands between two stars is looked for once, from where the part before it ended, and never tried again.
package struct NamePattern: Sendable {
  /// What stands before, between and behind the stars.
  private let parts: [Part]
  private let shortest: Int

  package static func isOne(_ component: some Sequence<UInt8>) -> Bool {
    component.contains { $0 == 0x2A || $0 == 0x3F }
  }

  package init(_ component: [UInt8]) {
    parts = component.split(separator: 0x2A, omittingEmptySubsequences: false).enumerated().compactMap { index, bytes in
      // Between two stars that follow each other nothing stands.
      let isInside = index > 0 && bytes.endIndex < component.count
      return isInside && bytes.isEmpty ? nil : Part(Array(bytes))
    }
    shortest = parts.reduce(0) { $0 + $1.count }
  }

  /// - `steps`: counts how many bytes were looked at, of parts of more than 64 bytes a multiple.
  package func matches(_ name: [UInt8], steps: inout Int) -> Bool {
    guard name.count >= shortest, let first = parts.first, let last = parts.last else { return false }
    guard parts.count > 1 else { return name.count == shortest && first.fits(name, at: 0, &steps) }
    let end = name.count - last.count
    guard first.fits(name, at: 0, &steps), last.fits(name, at: end, &steps) else { return false }
    var position = first.count
    for part in parts.dropFirst().dropLast() {
      guard let next = part.search(name, in: position..<end, &steps) else { return false }
      position = next
    }
    return true
  }

  private struct Part: Sendable {
    private let bytes: [UInt8]
    /// 0 where any byte fits.
    private let masks: [UInt8]
    /// Of eight bytes at the most: what the window over the name is to have, and where.
    private let value: UInt64
    private let mask: UInt64
    /// Of more: of each byte, the row with a bit for each place where it fits. The first row is that of bytes that fit `?` only.
    private let rows: [UInt8]
    private let fitting: [UInt64]

    var count: Int { bytes.count }
    private var words: Int { (bytes.count + 63) / 64 }

    init(_ bytes: [UInt8]) {
      self.bytes = bytes
      masks = bytes.map { $0 == 0x3F ? 0 : 0xFF }
      value = zip(bytes, masks).suffix(8).reduce(0) { $0 << 8 | UInt64($1.0 & $1.1) }
      mask = masks.suffix(8).reduce(0) { $0 << 8 | UInt64($1) }
      guard bytes.count > 8 else {
        (rows, fitting) = ([], [])
        return
      }
      var rows = [UInt8](repeating: 0, count: 256)
      let distinct = Set(zip(bytes, masks).filter { $0.1 != 0 }.map { $0.0 }).sorted()
      // A component has no slash, no NUL and no star: they are fewer than 256.
      for (index, byte) in distinct.enumerated() { rows[Int(byte)] = UInt8(index + 1) }
      let words = (bytes.count + 63) / 64
      var fitting = [UInt64](repeating: 0, count: (distinct.count + 1) * words)
      for (place, byte) in bytes.enumerated() {
        for row in masks[place] == 0 ? 0..<distinct.count + 1 : Int(rows[Int(byte)])..<Int(rows[Int(byte)]) + 1 {
          fitting[row * words + place / 64] |= 1 << UInt64(place % 64)
        }
      }
      (self.rows, self.fitting) = (rows, fitting)
    }

    /// - Precondition: the name is long enough.
    func fits(_ name: [UInt8], at start: Int, _ steps: inout Int) -> Bool {
      for index in bytes.indices {
        steps += 1
        if (name[start + index] ^ bytes[index]) & masks[index] != 0 { return false }
      }
      return true
    }

    /// - Returns: where its first occurrence in the range ends.
    func search(_ name: [UInt8], in range: Range<Int>, _ steps: inout Int) -> Int? {
      guard range.count >= count else { return nil }
      if count > 64 { return searchLong(name, in: range, &steps) }
      if count > 8 {
        var begun: UInt64 = 0
        for position in range {
          steps += 1
          begun = (begun << 1 | 1) & fitting[Int(rows[Int(name[position])])]
          if begun >> UInt64(count - 1) != 0 { return position + 1 }
        }
        return nil
      }
      var window: UInt64 = 0
      for position in range {
        steps += 1
        window = window << 8 | UInt64(name[position])
        if position - range.lowerBound >= count - 1, (window ^ value) & mask == 0 { return position + 1 }
      }
      return nil
    }

    /// A bit for each beginning of the part that ends at the byte that was looked at last.
    private func searchLong(_ name: [UInt8], in range: Range<Int>, _ steps: inout Int) -> Int? {
      let words = words
      var begun = [UInt64](repeating: 0, count: words)
      for position in range {
        let row = Int(rows[Int(name[position])]) * words
        var carry: UInt64 = 1
        for word in 0..<words {
          steps += 1
          let old = begun[word]
          begun[word] = (old << 1 | carry) & fitting[row + word]
          carry = old >> 63
        }
        if begun[words - 1] >> UInt64((count - 1) % 64) != 0 { return position + 1 }
      }
      return nil
    }
  }
}
