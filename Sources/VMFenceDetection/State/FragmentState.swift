import VMFenceCore
import VMFencePackets

/// Fragments that wait, in a saved state.
extension FragmentStore {
  /// Whether something waits at a place.
  func isWaiting(_ place: Int) -> Bool { datagrams[place].isUsed && datagrams[place].count > 0 }

  func savedSize(_ place: Int) -> Int {
    let datagram = datagrams[place]
    var size = 96 + Int(datagram.headerLength)
    forEachFragment(place) { size += 4 + Int(fragments[$0].length) }
    return size
  }

  func save(_ place: Int, _ clock: StateClock, into writer: inout ByteWriter) {
    let datagram = datagrams[place]
    writer.key(datagram.key)
    writer.i64(clock.age(datagram.lastSeen))
    writer.u32(UInt32(datagram.end))
    writer.u16(datagram.headerLength)
    writer.u16(datagram.linkLength)
    writer.u16(datagram.nextHeaderOffset)
    writer.u8(datagram.nextHeader)
    if datagram.header != 0 { append((Int(datagram.header) - 1) * Self.chunk, Int(datagram.headerLength), &writer) }
    writer.u16(datagram.count)
    forEachFragment(place) { fragment in
      writer.u16(fragments[fragment].offset)
      writer.u16(fragments[fragment].length)
      var chunk = fragment
      var rest = Int(fragments[fragment].length)
      while rest > 0 {
        append(chunk * Self.chunk, min(rest, Self.chunk), &writer)
        rest -= Self.chunk
        if rest > 0 { chunk = Int(nextChunk[chunk]) - 1 }
      }
    }
  }

  private func append(_ start: Int, _ count: Int, _ writer: inout ByteWriter) {
    // SAFETY: the store does not change meanwhile.
    unsafe bytes.bytes(start..<start + count).bytes.withUnsafeBytes { unsafe writer.append($0) }
  }

  private func forEachFragment(_ place: Int, _ body: (Int) -> Void) {
    var fragment = datagrams[place].first
    while fragment != Self.none {
      body(Int(fragment))
      fragment = fragments[Int(fragment)].next
    }
  }

  /// Takes over a datagram that waits; false: there is no room for it, or for some of it.
  mutating func restore(_ clock: StateClock, from reader: inout StateReader) throws(EngineStateError) -> Bool {
    let key = try reader.key()
    let lastSeen = clock.time(try reader.i64())
    let end = Int(try reader.u32())
    let headerLength = Int(try reader.u16())
    let linkLength = Int(try reader.u16())
    let nextHeaderOffset = Int(try reader.u16())
    let nextHeader = try reader.u8()
    let networkLength = headerLength - linkLength
    guard end <= 65_535, headerLength <= Self.chunk, linkLength <= headerLength,
      headerLength == 0
        || (key.family == .v4
          ? (20...60).contains(networkLength) : networkLength >= 40 && nextHeaderOffset < headerLength)
    else { throw StateReader.damaged("a datagram that cannot be") }
    let place = place(for: key, at: lastSeen)
    // One that was restored before has another key, unless somebody made this up.
    guard datagrams[place].count == 0, datagrams[place].header == 0 else {
      throw StateReader.damaged("a datagram that is there twice")
    }
    var isWhole = true
    if headerLength > 0 {
      let header = takeChunks(1, sparing: place)
      try reader.bytes(headerLength) {
        if let header { bytes.write($0, at: (Int(header) - 1) * Self.chunk) }
      }
      if let header {
        datagrams[place].header = header
        datagrams[place].headerLength = UInt16(truncatingIfNeeded: headerLength)
        datagrams[place].linkLength = UInt16(truncatingIfNeeded: linkLength)
        datagrams[place].nextHeaderOffset = UInt16(truncatingIfNeeded: nextHeaderOffset)
        datagrams[place].nextHeader = nextHeader
      } else {
        isWhole = false
      }
    }
    try restoreFragments(place, isV4: key.family == .v4, headerLength: networkLength, &isWhole, from: &reader)
    datagrams[place].end = Int32(end)
    if !isWhole { release(place) }
    return isWhole
  }

  private mutating func restoreFragments(
    _ place: Int, isV4: Bool, headerLength: Int, _ isWhole: inout Bool, from reader: inout StateReader
  ) throws(EngineStateError) {
    let count = Int(try reader.u16())
    for index in 0..<count {
      let (offset, length) = (Int(try reader.u16()), Int(try reader.u16()))
      let range = offset..<offset + length
      guard length > 0, range.upperBound + (isV4 ? headerLength : 0) <= 65_535, offset.isMultiple(of: 8) else {
        throw StateReader.damaged("a fragment that cannot be")
      }
      var isKept = isWhole && index < fragmentLimit
      if isKept, overlaps(range, place) {
        isKept = datagrams[place].bitmap != 0 || makeBitmap(place)
        datagrams[place].hasOverlap = isKept
      }
      try reader.bytes(length) { if isKept { isKept = append($0, at: offset, place) } }
      isWhole = isWhole && isKept
    }
  }
}
