import VMFenceCore

/// Urgent bytes, which are no part of their stream, that are known for such only after what follows them came.
extension StreamStore {
  /// Whether a stream holds a byte that is not inspected at a number, or behind it.
  func reaches(_ track: StreamTrack, _ number: UInt32) -> Bool {
    guard track.block != 0, sequenceDistance(number, track.inspected) >= 0 else { return false }
    return Int(sequenceDistance(number, track.base)) < Int(blocks[Int(track.block) - 1].highest)
  }

  /// Takes the place at a number out of a stream that reaches so far: the byte there goes, if it came, and all behind gets nearer by one.
  /// Returns it.
  mutating func close(_ track: inout StreamTrack, _ number: UInt32) -> UInt8? {
    let block = Int(track.block) - 1
    let (place, highest) = (Int(sequenceDistance(number, track.base)), Int(blocks[block].highest))
    charge(Int(blocks[block].count) + (highest - place) / 64)
    let data = dataStart(block)
    let byte = bytes[data + place]
    bytes.move(highest - place - 1, from: data + place + 1, to: data + place)
    var (kept, hasCome) = (0, false)
    for index in 0..<Int(blocks[block].count) {
      var record = record(block, index)
      if sequenceDistance(record.start, number) > 0 {
        record.start &-= 1
      } else if sequenceDistance(record.end, number) > 0 {
        record.length -= 1
        hasCome = true
        if record.length == 0 { continue }
      }
      setRecord(block, kept, record)
      kept += 1
    }
    blocks[block].count = Int32(kept)
    blocks[block].highest = Int32(highest - 1)
    blocks[block].isJoined = false
    let ready = Int(blocks[block].ready)
    if ready > place { blocks[block].ready = Int32(ready - 1) } else { extendReady(block, track.base) }
    if highest == 1 { releaseAll(&track) } else { file(block) }
    return hasCome ? byte : nil
  }

  /// Puts an empty place into a stream that reaches a number: what lies there and behind gets farther by one. False: there is no room for it.
  mutating func open(_ track: StreamTrack, _ number: UInt32) -> Bool {
    let block = Int(track.block) - 1
    let (place, highest) = (Int(sequenceDistance(number, track.base)), Int(blocks[block].highest))
    let (order, count) = (Int(blocks[block].order), Int(blocks[block].count))
    charge(2 * count + (highest - place) / 64)
    // Segments on both sides of it that touched may be one.
    var over: Int?
    for index in 0..<count {
      let record = record(block, index)
      guard sequenceDistance(record.start, number) < 0, sequenceDistance(record.end, number) > 0 else { continue }
      if over != nil { return false }
      over = index
    }
    guard highest < Self.dataCapacity(order), count < min(Self.recordLimit, Self.recordCapacity(order)) else {
      return false
    }
    clear(block, to: highest + 1)
    let data = dataStart(block)
    bytes.move(highest - place, from: data + place, to: data + place + 1)
    for index in 0..<count where sequenceDistance(record(block, index).start, number) >= 0 {
      var moved = record(block, index)
      moved.start &+= 1
      setRecord(block, index, moved)
    }
    if let over {
      var record = record(block, over)
      let behind = Record(start: number &+ 1, length: record.end &- number)
      record.length = number &- record.start
      setRecord(block, over, record)
      addSorted(block, behind, track.base)
    }
    blocks[block].highest = Int32(highest + 1)
    blocks[block].ready = min(blocks[block].ready, Int32(place))
    file(block)
    return true
  }
}
