import VMFenceCore

/// Finds out whether a rule's contents stand in a payload as the rule says, trying every combination of positions: a content
/// that is counted from the one before may fail at that one's first occurrence and match at a later one.
///
/// Exact, and linear all the same. What follows a content depends only on where that content ended. Positions are tried in
/// ascending order, and a content's window moves only upwards as the one before it moves, so no content looks at a position
/// twice in one rule: `next` remembers how far each one got.
struct ContentMatcher {
  /// How far one content got.
  private struct Progress: BitwiseCopyable {
    /// No position below is to be looked at again.
    var next: Int32 = 0
    /// For a negated content: an occurrence known at or after the positions looked at; -1 for none.
    var known: Int32 = -1
    /// Where the content before it ended.
    var cursor: Int32 = 0
  }

  /// One content with its window, read from the image.
  private struct Content {
    let search: ByteSearch
    let flags: UInt8
    private let offset: Int
    private let depth: Int
    private let distance: Int
    private let within: Int

    init(_ image: RawSpan, _ record: Int, patterns: Int) {
      flags = image.u8(record + OptionRecord.flags)
      search = ByteSearch(
        offset: patterns + Int(image.u32le(OptionRecord.word(record, 0))),
        count: Int(image.u32le(OptionRecord.word(record, 1))),
        ignoresCase: flags & ContentFlags.ignoresCase != 0)
      offset = Self.signed(image, OptionRecord.word(record, 2))
      depth = Self.signed(image, OptionRecord.word(record, 3))
      distance = Self.signed(image, OptionRecord.word(record, 4))
      within = Self.signed(image, OptionRecord.word(record, 5))
    }

    private static func signed(_ image: RawSpan, _ offset: Int) -> Int {
      Int(Int32(bitPattern: image.u32le(offset)))
    }

    var isNegated: Bool { flags & OptionRecord.isNegated != 0 }
    var isRelative: Bool { flags & ContentFlags.isRelative != 0 }
    /// Whether the window's end moves with the content before.
    var hasMovingEnd: Bool { flags & ContentFlags.hasWithin != 0 }

    /// The positions at which the pattern may begin; empty when `first` > `last`.
    func window(cursor: Int, count: Int) -> (first: Int, last: Int) {
      var low = max(0, offset)
      var high = flags & ContentFlags.hasDepth != 0 ? low + depth : count
      if isRelative {
        let base = cursor + distance
        low = max(low, base)
        if flags & ContentFlags.hasWithin != 0 { high = min(high, base + within) }
      }
      let last = min(high, count) - search.count
      if flags & ContentFlags.endsBuffer != 0 { low = max(low, count - search.count) }
      return (low, last)
    }
  }

  private var progress: [Progress] = Array(repeating: Progress(), count: OptionRecord.payloadLimit)

  /// Whether the contents at `records` of the image (`count` of them) stand in `payload`. False also when `budget` ran out,
  /// which the caller sees by its being negative.
  mutating func matches(
    _ records: Int, count: Int, patterns: Int, payload: RawSpan, image: RawSpan, budget: inout Int
  ) -> Bool {
    for index in 0..<count { progress[index] = Progress() }
    var level = 0
    while level < count {
      if budget < 0 { return false }
      let content = Content(image, records + level * OptionRecord.stride, patterns: patterns)
      let cursor = Int(progress[level].cursor)
      let (first, last) = content.window(cursor: cursor, count: payload.byteCount)
      if content.isNegated {
        guard stands(content, level, first, last, payload, image, &budget) else {
          level += 1
          if level < count { progress[level].cursor = Int32(truncatingIfNeeded: cursor) }
          continue
        }
        // Only another position of the content it is counted from could help.
        guard content.isRelative, let earlier = positiveLevel(below: level, records, image) else { return false }
        level = earlier
        continue
      }
      let start = max(first, Int(progress[level].next))
      let found =
        start <= last
        ? content.search.firstPosition(in: payload, from: start, through: last, image: image, budget: &budget) : -1
      if found >= 0 {
        progress[level].next = Int32(truncatingIfNeeded: found + 1)
        level += 1
        if level < count { progress[level].cursor = Int32(truncatingIfNeeded: found + content.search.count) }
        continue
      }
      progress[level].next = Int32(truncatingIfNeeded: max(start, last + 1))
      // A window whose end does not move only shrinks as the content before moves on.
      guard content.isRelative, content.hasMovingEnd, let earlier = positiveLevel(below: level, records, image) else {
        return false
      }
      level = earlier
    }
    return true
  }

  /// Whether a negated content stands in its window.
  private mutating func stands(
    _ content: Content, _ level: Int, _ first: Int, _ last: Int, _ payload: RawSpan, _ image: RawSpan,
    _ budget: inout Int
  ) -> Bool {
    guard first <= last else { return false }
    let known = Int(progress[level].known)
    if known >= first { return known <= last }
    let start = max(first, Int(progress[level].next))
    guard start <= last else { return false }
    let found = content.search.firstPosition(in: payload, from: start, through: last, image: image, budget: &budget)
    progress[level].known = Int32(truncatingIfNeeded: found)
    progress[level].next = Int32(truncatingIfNeeded: found < 0 ? last + 1 : found + 1)
    return found >= 0
  }

  /// The nearest content before `level` that is not negated: the one whose end `level` is counted from.
  private func positiveLevel(below level: Int, _ records: Int, _ image: RawSpan) -> Int? {
    var candidate = level - 1
    while candidate >= 0 {
      let flags = image.u8(records + candidate * OptionRecord.stride + OptionRecord.flags)
      if flags & OptionRecord.isNegated == 0 { return candidate }
      candidate -= 1
    }
    return nil
  }
}
