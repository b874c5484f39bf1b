import VMFenceCore

extension StreamStore {
  /// What became of a segment's payload.
  struct Insertion {
    enum Result: Equatable {
      /// It is kept; of what it shares with earlier segments, the policy said whose bytes count.
      case kept
      /// All of it lies before what is still open.
      case isOld
      /// It does not fit: too far from what was inspected last, or too many segments with gaps between them.
      case tooFar
      case noMemory
    }
    var result: Result
    /// Bytes that both an earlier segment and this one have are different.
    var isDifferent = false
    /// It shares bytes with an earlier segment that wait to be inspected.
    var isOverlap = false
    /// Inline: the segment's bytes as they count, in `scratch`, are others than in the packet.
    var isRewritten = false
  }

  /// Keeps the payload of a segment. The stream may have another block afterwards, which is nobody's before `setOwner`.
  ///
  /// - `sequence`: of the payload's first byte.
  /// - `policy`: of the host that receives it. Inline, what came first was let through, so it stays; bytes that were inspected stay in any
  ///   case.
  /// - `joins`: segments that touch each other are one from here on, so that each costs little, however many there are.
  mutating func insert(
    _ payload: RawSpan, at sequence: UInt32, _ track: inout StreamTrack, policy: OverlapPolicy, isInline: Bool,
    joins: Bool
  ) -> Insertion {
    let before = -Int(sequenceDistance(sequence, track.base))
    let skipped = max(0, before)
    guard skipped < payload.byteCount else { return Insertion(result: .isOld) }
    let start = max(0, -before)
    let end = start + payload.byteCount - skipped
    if let problem = makeRoom(&track, end) { return Insertion(result: problem) }
    let block = Int(track.block) - 1
    let record = Record(start: sequence, length: UInt32(truncatingIfNeeded: payload.byteCount))
    let position = dataStart(block) + start
    if start >= Int(blocks[block].highest) {
      bytes.write(payload.extracting(skipped..<payload.byteCount), at: position)
      append(block, record, touches: start == Int(blocks[block].highest), joins: joins)
      blocks[block].highest = Int32(end)
      if start == Int(blocks[block].ready) { blocks[block].ready = Int32(end) } else { file(block) }
      return Insertion(result: .kept)
    }
    var result = Insertion(result: .kept)
    scratch.write(payload, at: 0)
    if joins, !blocks[block].isJoined { joinRecords(block) }
    let first = joins ? firstTouching(block, record, track.base) : 0
    resolve(block, record, from: first, track, policy, isInline, &result)
    // SAFETY: `scratch` and `bytes` are different memory; the span ends with the statement.
    bytes.write(unsafe scratch.bytes(skipped..<payload.byteCount).bytes, at: position)
    if joins { join(block, record, at: first, track.base) } else { addSorted(block, record, track.base) }
    blocks[block].highest = max(blocks[block].highest, Int32(end))
    if start <= Int(blocks[block].ready), end > Int(blocks[block].ready) {
      extendReady(block, track.base, from: first)
      if Int(blocks[block].list) != Self.plain { refresh(block) }
    }
    file(block)
    return result
  }

  /// The payload of the last segment that was inserted, as it counts.
  @unsafe
  func rewritten(_ length: Int) -> UnsafeRawBufferPointer {
    // SAFETY: as `ByteStore.bytes` says, until the next insertion.
    unsafe scratch.bytes(0..<length)
  }

  // MARK: Room

  /// Sees to it that the stream has a block with room up to `end`, and for one more record.
  private mutating func makeRoom(_ track: inout StreamTrack, _ end: Int) -> Insertion.Result? {
    var records = 1
    if track.block != 0 {
      let order = Int(blocks[Int(track.block) - 1].order)
      if Int(blocks[Int(track.block) - 1].count) == Self.recordLimit, !blocks[Int(track.block) - 1].isJoined {
        joinRecords(Int(track.block) - 1)
      }
      records += Int(blocks[Int(track.block) - 1].count)
      if end <= Self.dataCapacity(order), records <= min(Self.recordLimit, Self.recordCapacity(order)) {
        clear(Int(track.block) - 1, to: end)
        return nil
      }
    }
    guard records <= Self.recordLimit else { return .tooFar }
    var order = 0
    while end > Self.dataCapacity(order) || records > Self.recordCapacity(order) {
      order += 1
      if order > Self.orderLimit { return .tooFar }
    }
    guard let block = take(order) else { return .noMemory }
    if track.block != 0 { moveBlock(Int(track.block) - 1, to: block) }
    track.block = Int32(block) + 1
    return nil
  }

  private mutating func moveBlock(_ old: Int, to new: Int) {
    let count = Int(blocks[old].count)
    moveData(count * Self.recordBytes, from: old * Self.page, to: new * Self.page)
    moveData(Int(blocks[old].highest), from: dataStart(old), to: dataStart(new))
    blocks[new].count = blocks[old].count
    blocks[new].ready = blocks[old].ready
    blocks[new].highest = blocks[old].highest
    blocks[new].isJoined = blocks[old].isJoined
    release(old)
    file(new)
  }

  // MARK: Overlaps

  /// Puts into `scratch`, which holds the new segment, the bytes of earlier ones that count more. The records before `first` have none of its bytes.
  private mutating func resolve(
    _ block: Int, _ new: Record, from first: Int, _ track: StreamTrack, _ policy: OverlapPolicy,
    _ isInline: Bool, _ result: inout Insertion
  ) {
    let shared = sharedBytes(block, new, from: first, track, isInline)
    result.isOverlap = shared.isOverlap
    charge(shared.records + Int(new.length) / 8)
    guard shared.isDifferent else { return }
    result.isDifferent = true
    if shared.segments > Self.overlapLimit, !blocks[block].isJoined { joinRecords(block) }
    let data = dataStart(block)
    let from = Int(sequenceDistance(new.start, track.base))
    let to = from + Int(new.length)
    let fixed = Int(sequenceDistance(track.inspected, track.base))
    for index in first..<Int(blocks[block].count) {
      charge(1)
      let old = record(block, index)
      let oldFrom = Int(sequenceDistance(old.start, track.base))
      if oldFrom >= to { break }
      let shared = max(from, oldFrom, 0)..<max(max(from, oldFrom, 0), min(to, oldFrom + Int(old.length)))
      guard !shared.isEmpty else { continue }
      charge(shared.count / 8)
      guard differs(shared, data, from) else { continue }
      let wins =
        !isInline
        && policy.segmentReplaces(
          start: (from - oldFrom).signum(), end: (to - oldFrom - Int(old.length)).signum())
      let kept = wins ? shared.lowerBound..<max(shared.lowerBound, min(shared.upperBound, fixed)) : shared
      guard !kept.isEmpty else { continue }
      result.isRewritten = true
      // SAFETY: `scratch` and `bytes` are different memory; the span ends with the statement.
      scratch.write(
        unsafe bytes.bytes(data + kept.lowerBound..<data + kept.upperBound).bytes, at: kept.lowerBound - from)
    }
  }

  private func differs(_ range: Range<Int>, _ data: Int, _ from: Int) -> Bool {
    !bytes.equals(data + range.lowerBound..<data + range.upperBound, scratch, at: range.lowerBound - from)
  }

  /// What a new segment, which is in `scratch`, has in common with earlier ones, of which there are `segments` among the `records` that were looked at.
  /// Each of its bytes is compared once, however many of them have it.
  private func sharedBytes(
    _ block: Int, _ new: Record, from first: Int, _ track: StreamTrack, _ isInline: Bool
  ) -> (isOverlap: Bool, isDifferent: Bool, segments: Int, records: Int) {
    let data = dataStart(block)
    let begin = Int(sequenceDistance(new.start, track.base))
    let to = begin + Int(new.length)
    let from = max(0, begin)
    let fixed = Int(sequenceDistance(track.inspected, track.base))
    var (isOverlap, isDifferent, segments, records, compared) = (false, false, 0, 0, from)
    for index in first..<Int(blocks[block].count) {
      records += 1
      let old = record(block, index)
      let oldFrom = Int(sequenceDistance(old.start, track.base))
      if oldFrom >= to { break }
      let (lower, upper) = (max(from, oldFrom), min(to, oldFrom + Int(old.length)))
      guard lower < upper else { continue }
      segments += 1
      if isInline || upper > fixed { isOverlap = true }
      guard upper > compared else { continue }
      if !isDifferent { isDifferent = differs(max(lower, compared)..<upper, data, begin) }
      compared = upper
    }
    return (isOverlap, isDifferent, segments, records)
  }

  /// Makes one record of those that touch each other or overlap.
  mutating func joinRecords(_ block: Int) {
    guard blocks[block].count > 0 else { return }
    charge(Int(blocks[block].count))
    blocks[block].isJoined = true
    var (kept, joined) = (0, record(block, 0))
    for index in 1..<max(1, Int(blocks[block].count)) {
      let next = record(block, index)
      if sequenceDistance(next.start, joined.end) <= 0 {
        joined.length = max(joined.length, next.end &- joined.start)
      } else {
        setRecord(block, kept, joined)
        (kept, joined) = (kept + 1, next)
      }
    }
    setRecord(block, kept, joined)
    blocks[block].count = Int32(kept + 1)
  }

  /// Adds the record of a segment behind all others.
  private mutating func append(_ block: Int, _ new: Record, touches: Bool, joins: Bool) {
    let count = Int(blocks[block].count)
    if touches, joins, blocks[block].isJoined, count > 0 {
      var last = record(block, count - 1)
      last.length = new.end &- last.start
      setRecord(block, count - 1, last)
      return
    }
    if touches { blocks[block].isJoined = false }
    setRecord(block, count, new)
    blocks[block].count += 1
  }

  /// Of records that do not touch each other, the first that a segment touches, or that comes behind it.
  private mutating func firstTouching(_ block: Int, _ new: Record, _ base: UInt32) -> Int {
    let start = sequenceDistance(new.start, base)
    var (low, high) = (0, Int(blocks[block].count))
    while low < high {
      charge(1)
      let middle = (low + high) / 2
      if sequenceDistance(record(block, middle).end, base) < start { low = middle + 1 } else { high = middle }
    }
    return low
  }

  /// Makes one of a segment and the records from `first` on that it touches, so that none touch each other afterwards, either.
  private mutating func join(_ block: Int, _ new: Record, at first: Int, _ base: UInt32) {
    var (joined, next) = (new, first)
    while next < Int(blocks[block].count) {
      charge(1)
      let old = record(block, next)
      if sequenceDistance(old.start, base) > sequenceDistance(joined.end, base) { break }
      let end = sequenceDistance(old.end, joined.end) > 0 ? old.end : joined.end
      if sequenceDistance(old.start, joined.start) < 0 { joined.start = old.start }
      joined.length = end &- joined.start
      next += 1
    }
    if next != first + 1 { move(block, from: next, to: first + 1) }
    setRecord(block, first, joined)
    blocks[block].count += Int32(first + 1 - next)
  }

  private mutating func move(_ block: Int, from source: Int, to target: Int) {
    charge((Int(blocks[block].count) - source) / 8)
    moveRecords(block, from: source, to: target)
  }

  /// Records are sorted by where they begin.
  mutating func addSorted(_ block: Int, _ new: Record, _ base: UInt32) {
    let count = Int(blocks[block].count)
    let key = sequenceDistance(new.start, base)
    var index = count
    while index > 0 {
      let other = record(block, index - 1)
      if other.start == new.start, other.length == new.length { return }
      if sequenceDistance(other.start, base) <= key { break }
      index -= 1
    }
    charge(count - index)
    blocks[block].isJoined = false
    if index < count { move(block, from: index, to: index + 1) }
    setRecord(block, index, new)
    blocks[block].count += 1
  }

  /// How far the bytes reach without a gap. The records before `first` say nothing new of it.
  mutating func extendReady(_ block: Int, _ base: UInt32, from first: Int = 0) {
    var ready = Int(blocks[block].ready)
    for index in first..<Int(blocks[block].count) {
      charge(1)
      let record = record(block, index)
      let start = Int(sequenceDistance(record.start, base))
      if start > ready { break }
      ready = max(ready, start + Int(record.length))
    }
    blocks[block].ready = Int32(ready)
  }

  // MARK: Reading

  /// How many bytes from the track's base are there without a gap.
  func ready(_ track: StreamTrack) -> Int { track.block == 0 ? 0 : Int(blocks[Int(track.block) - 1].ready) }

  /// Where the first segment behind the gap begins, as distance from the base; nil when there is none.
  func nextSegment(_ track: StreamTrack, from distance: Int) -> Int? {
    guard track.block != 0 else { return nil }
    let block = Int(track.block) - 1
    for index in 0..<Int(blocks[block].count) {
      let record = record(block, index)
      let start = Int(sequenceDistance(record.start, track.base))
      if start + Int(record.length) > distance { return max(start, distance) }
    }
    return nil
  }

  /// The stretch without gaps around a distance from the base.
  mutating func stretch(_ track: StreamTrack, around distance: Int) -> Range<Int> {
    guard track.block != 0 else { return distance..<distance }
    let block = Int(track.block) - 1
    if distance < Int(blocks[block].ready) { return 0..<Int(blocks[block].ready) }
    if blocks[block].isJoined { return joinedStretch(track, around: distance) }
    var (start, end) = (0, Int(blocks[block].ready))
    for index in 0..<Int(blocks[block].count) {
      charge(1)
      let record = record(block, index)
      let from = max(0, Int(sequenceDistance(record.start, track.base)))
      if from > end {
        if distance < end { break }
        (start, end) = (from, from)
      }
      end = max(end, Int(sequenceDistance(record.end, track.base)))
    }
    return start <= distance && distance < end ? start..<end : distance..<distance
  }

  /// The same, of records that do not touch each other: one of them, behind those that only touch the place.
  private mutating func joinedStretch(_ track: StreamTrack, around distance: Int) -> Range<Int> {
    let block = Int(track.block) - 1
    let place = Record(start: track.base &+ UInt32(truncatingIfNeeded: distance), length: 1)
    let first = firstTouching(block, place, track.base)
    for index in first..<min(first + 2, Int(blocks[block].count)) {
      let segment = range(track, index)
      if segment.contains(distance) { return segment }
    }
    return distance..<distance
  }

  /// Where bytes at distances from the base lie in `bytes`. They do not move until the stream is next inserted into or released.
  func position(_ track: StreamTrack, _ range: Range<Int>) -> Range<Int> {
    let start = dataStart(Int(track.block) - 1)
    return start + range.lowerBound..<start + range.upperBound
  }

  // MARK: Giving back

  /// Forgets all that lies before a sequence number.
  mutating func release(_ track: inout StreamTrack, before number: UInt32) {
    let distance = Int(sequenceDistance(number, track.base))
    guard distance > 0 else { return }
    guard track.block != 0, distance < Int(blocks[Int(track.block) - 1].highest) else {
      releaseAll(&track)
      track.base = number
      return
    }
    let block = Int(track.block) - 1
    charge(Int(blocks[block].count))
    var kept = 0
    for index in 0..<Int(blocks[block].count) {
      let record = record(block, index)
      guard sequenceDistance(record.end, number) > 0 else { continue }
      if kept != index { setRecord(block, kept, record) }
      kept += 1
    }
    blocks[block].count = Int32(kept)
    blocks[block].highest -= Int32(distance)
    blocks[block].head += Int32(distance)
    let ready = Int(blocks[block].ready)
    blocks[block].ready = Int32(max(0, ready - distance))
    track.base = number
    if ready <= distance { extendReady(block, number) }
    file(block)
  }

  /// The first segment that has to go for what lies behind a hole to fit into half of the block; all behind the hole when
  /// there is no smaller one. Makes one of those that touch.
  mutating func firstBeyondHalf(_ track: StreamTrack) -> Int {
    let block = Int(track.block) - 1
    joinRecords(block)
    let (order, count, ready) = (Int(blocks[block].order), Int(blocks[block].count), Int(blocks[block].ready))
    let limit = order == 0 ? 0 : Self.dataCapacity(order - 1)
    let most = order == 0 ? count : Self.recordCapacity(order - 1)
    var index = 0
    while index < count {
      let segment = range(track, index)
      if segment.lowerBound > ready, segment.upperBound > limit || index >= most { break }
      index += 1
    }
    return index
  }

  /// Whether a stream has as many segments as it may, some of them behind `number`.
  func isFull(_ track: StreamTrack, before number: UInt32) -> Bool {
    guard track.block != 0, Int(blocks[Int(track.block) - 1].count) >= Self.recordLimit else { return false }
    return sequenceDistance(number, record(Int(track.block) - 1, Self.recordLimit - 1).start) < 0
  }

  /// Where a segment lies, as distances from the base.
  func range(_ track: StreamTrack, _ index: Int) -> Range<Int> {
    let record = record(Int(track.block) - 1, index)
    let start = Int(sequenceDistance(record.start, track.base))
    return max(0, start)..<max(0, start + Int(record.length))
  }

  /// Forgets the segments from the one of an index on, which lie behind a hole, and gives back what is not needed.
  mutating func forget(_ track: inout StreamTrack, from index: Int) {
    let block = Int(track.block) - 1
    blocks[block].count = Int32(index)
    var highest = Int(blocks[block].ready)
    for index in 0..<index { highest = max(highest, range(track, index).upperBound) }
    blocks[block].highest = Int32(highest)
    file(block)
    if highest <= Int(sequenceDistance(track.inspected, track.base)) { release(&track, before: track.inspected) }
    if highest == 0 { releaseAll(&track) }
    if track.block != 0 { fit(block) }
  }

  mutating func releaseAll(_ track: inout StreamTrack) {
    guard track.block != 0 else { return }
    release(Int(track.block) - 1)
    track.block = 0
  }
}
