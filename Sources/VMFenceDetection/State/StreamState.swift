import VMFenceCore

/// What is buffered of a stream, in a saved state: the segments as they came, then the bytes that they cover.
///
/// What lies between segments in a block is what others left there: it is not saved.
extension StreamStore {
  func save(_ track: StreamTrack, into writer: inout ByteWriter) {
    guard track.block != 0 else {
      writer.u32(0)
      return
    }
    let block = Int(track.block) - 1
    let count = Int(blocks[block].count)
    writer.u32(UInt32(count))
    var records: [Record] = []
    for index in 0..<count {
      records.append(record(block, index))
      writer.u32(records[index].start)
      writer.u32(records[index].length)
    }
    for range in Self.covered(records, from: track.base) {
      let place = position(track, range)
      // SAFETY: the store does not change meanwhile.
      unsafe bytes.bytes(place).bytes.withUnsafeBytes { unsafe writer.append($0) }
    }
  }

  /// How many bytes `save` writes.
  func savedSize(_ track: StreamTrack) -> Int {
    track.block == 0
      ? 4 : 4 + Int(blocks[Int(track.block) - 1].count) * Self.recordBytes + Int(blocks[Int(track.block) - 1].highest)
  }

  /// Takes over what was buffered of a stream; false: there is no memory for it. `track` says where the stream stands, and is nothing's yet.
  /// Its block has no owner before `setOwner`.
  mutating func restore(
    _ track: inout StreamTrack, from reader: inout StateReader
  ) throws(EngineStateError) -> Bool {
    let inspected = Int(sequenceDistance(track.inspected, track.base))
    let count = try reader.count(of: Self.recordBytes)
    guard count <= Self.recordLimit else { throw StateReader.damaged("a stream of too many segments") }
    guard count > 0 else {
      guard inspected == 0 else { throw StateReader.damaged("a stream that lacks what was inspected") }
      return true
    }
    var records: [Record] = []
    var highest = 0
    var previous = Int.min
    for _ in 0..<count {
      let record = Record(start: try reader.u32(), length: try reader.u32())
      let start = Int(sequenceDistance(record.start, track.base))
      let end = start + Int(record.length)
      guard record.length > 0, record.length <= UInt32(1 << 31 - 1), start >= previous, end > 0,
        end <= Self.dataCapacity(Self.orderLimit)
      else { throw StateReader.damaged("a segment that cannot be") }
      (previous, highest) = (start, max(highest, end))
      records.append(record)
    }
    let ranges = Self.covered(records, from: track.base)
    let ready = ranges.first.map { $0.lowerBound == 0 ? $0.upperBound : 0 } ?? 0
    guard track.marks.contains(.isKnown), inspected >= 0, inspected <= ready else {
      throw StateReader.damaged("a stream that was inspected further than it came")
    }
    let order = (0...Self.orderLimit).first {
      highest <= Self.dataCapacity($0) && count <= Self.recordCapacity($0)
    }
    guard let order, let block = take(order) else {
      for range in ranges { try reader.bytes(range.count) { _ in } }
      return false
    }
    // From here on the block is the track's, so that whoever drops the store drops it, too.
    track.block = Int32(block) + 1
    for (index, record) in records.enumerated() { setRecord(block, index, record) }
    blocks[block].count = Int32(count)
    blocks[block].highest = Int32(highest)
    blocks[block].ready = Int32(ready)
    for range in ranges {
      let place = position(track, range)
      try reader.bytes(range.count) { bytes.write($0, at: place.lowerBound) }
    }
    file(block)
    return true
  }

  /// The stretches that segments, sorted by where they begin, cover without a gap, as distances from `base`.
  private static func covered(_ records: [Record], from base: UInt32) -> [Range<Int>] {
    var ranges: [Range<Int>] = []
    for record in records {
      let start = max(0, Int(sequenceDistance(record.start, base)))
      let end = max(start, Int(sequenceDistance(record.start, base)) + Int(record.length))
      if let last = ranges.last, start <= last.upperBound {
        ranges[ranges.count - 1] = last.lowerBound..<max(last.upperBound, end)
      } else {
        ranges.append(start..<end)
      }
    }
    return ranges
  }
}
