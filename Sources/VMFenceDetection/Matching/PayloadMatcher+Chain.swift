import VMFenceCore

extension PayloadMatcher {
  /// What one test said.
  enum Outcome {
    case fails
    /// What follows is counted from here.
    case holds(cursor: Int)
  }

  /// Whether `count` tests from record `start` on hold in `bytes`.
  mutating func chainMatches(
    _ start: Int, _ count: Int, _ first: Int, depth: Int, _ subject: Subject, _ bytes: RawSpan, frame: RawSpan,
    image: RawSpan
  ) -> Bool {
    if count == 0 { return true }
    // Nothing to look at: a packet without payload is none for Suricata's payload rules.
    if bytes.byteCount == 0, subject.isSuricata, image.u8(start + OptionRecord.kind) != PayloadKind.length.rawValue {
      return false
    }
    let base = depth * OptionRecord.payloadLimit
    for level in base..<base + count { progress[level] = Progress() }
    var level = 0
    var isEntered = true
    while level < count {
      budget -= 1
      if budget < 0 { return false }
      let record = start + level * OptionRecord.stride
      let flags = image.u8(record + OptionRecord.flags)
      if isEntered, flags & PayloadFlags.restarts != 0 { restart(level, count, base, start, image) }
      let cursor = Int(progress[base + level].cursor)
      let outcome =
        image.u8(record + OptionRecord.kind) == PayloadKind.content.rawValue
        ? content(record, flags, base + level, cursor, subject, bytes, image)
        : test(record, flags, base + level, cursor, first, depth, subject, bytes, frame, image)
      switch outcome {
      case .holds(let next):
        level += 1
        isEntered = true
        if level < count { progress[base + level].cursor = Int32(truncatingIfNeeded: next) }
      case .fails:
        let earlier = image.u8(record + OptionRecord.small1)
        guard earlier != PayloadFlags.noLevel, Int(earlier) < level, canHelp(record, flags, image) else { return false }
        level = Int(earlier)
        isEntered = false
      }
    }
    return true
  }

  /// Whether another place of an earlier test could make this one hold: not for a content whose window only shrinks as the one before
  /// moves on.
  private func canHelp(_ record: Int, _ flags: UInt8, _ image: RawSpan) -> Bool {
    flags & (PayloadFlags.restarts | PayloadFlags.hasWithin | OptionRecord.isNegated) != 0
      || image.u8(record + OptionRecord.kind) != PayloadKind.content.rawValue
  }

  /// Forgets how far this test got, and those whose places hang on it.
  private mutating func restart(_ level: Int, _ count: Int, _ base: Int, _ start: Int, _ image: RawSpan) {
    var index = level
    repeat {
      progress[base + index].next = 0
      progress[base + index].known = -1
      index += 1
    } while index < count
      && image.u8(start + index * OptionRecord.stride + OptionRecord.flags) & PayloadFlags.restarts == 0
  }

  // MARK: Content

  /// The positions at which a content's pattern may begin; empty when `first` > `last`.
  private struct Window {
    var first: Int
    var last: Int
  }

  private func window(
    _ record: Int, _ flags: UInt8, _ cursor: Int, size: Int, count: Int, _ image: RawSpan
  ) -> Window {
    let isRelative = flags & PayloadFlags.isRelative != 0
    let offset = position(record, 0, image)
    // An offset before the buffer's start means its start.
    var low = max(0, offset)
    var high = flags & PayloadFlags.hasDepth != 0 ? low + position(record, 1, image) : count
    if isRelative {
      let base = cursor + position(record, 2, image)
      low = max(low, base)
      if flags & PayloadFlags.hasWithin != 0 { high = min(high, base + position(record, 3, image)) }
    }
    let end = min(high, count)
    if flags & PayloadFlags.endsBuffer != 0 { low = max(low, count - size) }
    return Window(first: low, last: end - size)
  }

  /// offset, depth, distance, within (0 ... 3) of a content.
  @inline(__always)
  private func position(_ record: Int, _ index: Int, _ image: RawSpan) -> Int {
    let word = image.u32le(OptionRecord.word(record, 2 + index))
    if image.u8(record + OptionRecord.small2) & (1 << UInt8(index)) == 0 { return Int(Int32(bitPattern: word)) }
    return Int(clamping: min(variables[Int(word)], 1 << 31))
  }

  private mutating func content(
    _ record: Int, _ flags: UInt8, _ level: Int, _ cursor: Int, _ subject: Subject, _ bytes: RawSpan, _ image: RawSpan
  ) -> Outcome {
    let size = Int(image.u32le(OptionRecord.word(record, 1)))
    let search = ByteSearch(
      offset: sections[.patterns].offset + Int(image.u32le(OptionRecord.word(record, 0))), count: size,
      ignoresCase: flags & PayloadFlags.ignoresCase != 0)
    var window = window(record, flags, cursor, size: size, count: bytes.byteCount, image)
    if subject.streamStart > 0, flags & (PayloadFlags.hasDepth | PayloadFlags.isRelative) == PayloadFlags.hasDepth {
      // What is negated does not hold there either.
      let end = max(0, position(record, 0, image)) + position(record, 1, image) - subject.streamStart
      guard end > 0 else { return .fails }
      window.last = min(window.last, end - size)
    }
    if flags & OptionRecord.isNegated != 0 {
      return stands(search, level, window, bytes, image) ? .fails : .holds(cursor: cursor)
    }
    let start = max(window.first, Int(progress[level].next))
    let found =
      start <= window.last
      ? search.firstPosition(in: bytes, from: start, through: window.last, image: image, budget: &budget) : -1
    guard found >= 0 else {
      progress[level].next = Int32(truncatingIfNeeded: max(start, window.last + 1))
      return .fails
    }
    progress[level].next = Int32(truncatingIfNeeded: found + 1)
    return .holds(cursor: found + size)
  }

  /// Whether a negated content stands in its window.
  private mutating func stands(
    _ search: ByteSearch, _ level: Int, _ window: Window, _ bytes: RawSpan, _ image: RawSpan
  ) -> Bool {
    guard window.first <= window.last else { return false }
    let known = Int(progress[level].known)
    if known >= window.first { return known <= window.last }
    let start = max(window.first, Int(progress[level].next))
    guard start <= window.last else { return false }
    let found = search.firstPosition(in: bytes, from: start, through: window.last, image: image, budget: &budget)
    progress[level].known = Int32(truncatingIfNeeded: found)
    progress[level].next = Int32(truncatingIfNeeded: found < 0 ? window.last + 1 : found + 1)
    return found >= 0
  }

  // MARK: Regular expressions

  /// Keeps what the expression at `record` captured in `subject`, until it is known whether all of the rule matches.
  private mutating func note(_ count: UInt32, _ record: Int, _ subject: RawSpan, _ image: RawSpan) {
    for index in 0..<Int(count) {
      let place = image.u32le(OptionRecord.word(record, 2 + 2 * VariableCapture.limit)) >> UInt32(8 * index)
      guard let scope = CaptureScope(rawValue: UInt8(truncatingIfNeeded: place >> 4 & 15)),
        let range = regexes.capture(group: Int(place & 15)), range.upperBound <= subject.byteCount
      else { continue }
      captured.note(image.u64le(OptionRecord.word(record, 2 + 2 * index)), scope, subject.extracting(range))
    }
  }

  mutating func regex(
    _ record: Int, _ flags: UInt8, _ level: Int, _ cursor: Int, _ subject: Subject, _ bytes: RawSpan, _ image: RawSpan
  ) -> Outcome {
    let index = Int(image.u32le(OptionRecord.word(record, 0)))
    // A relative one sees a subject that begins at the cursor.
    let base = flags & PayloadFlags.isRelative != 0 ? min(max(cursor, 0), bytes.byteCount) : 0
    let from = max(Int(progress[level].next) - base, 0)
    budget -= (bytes.byteCount - base - from) / 8 + 16
    let limitsBefore = regexes.limitHits
    let found =
      base + from <= bytes.byteCount
      && regexes.matches(
        index, record: sections[.regexes].offset + index * RegexRecord.stride, patterns: sections[.patterns].offset,
        image: image, subject: bytes.extracting(base..<bytes.byteCount), from: from)
    if regexes.limitHits != limitsBefore { budget -= 1 << 16 }
    if flags & OptionRecord.isNegated != 0 { return found ? .fails : .holds(cursor: cursor) }
    guard found else { return .fails }
    let captures = image.u32le(OptionRecord.word(record, 1))
    if captures > 0 { note(captures, record, bytes.extracting(base..<bytes.byteCount), image) }
    // Again from the next byte on in Suricata, from the match's end in Snort.
    let next = subject.isSuricata ? regexes.start + 1 : max(regexes.end, regexes.start + 1)
    progress[level].next = Int32(truncatingIfNeeded: base + next)
    return .holds(cursor: base + regexes.end)
  }
}
