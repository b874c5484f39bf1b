import VMFenceCore
import VMFencePackets

/// What is to be told of a fragment.
struct FragmentEvents: OptionSet, BitwiseCopyable {
  var rawValue: UInt8
  static let overlap = FragmentEvents(rawValue: 1)
  /// It would end beyond the largest datagram.
  static let tooLarge = FragmentEvents(rawValue: 2)
  /// There was no room for it.
  static let ignored = FragmentEvents(rawValue: 4)
  /// Not the last one, and its length is no multiple of 8.
  static let badLength = FragmentEvents(rawValue: 8)
}

extension FragmentStore {
  struct Outcome {
    var events: FragmentEvents = []
    /// Where the datagram's frame lies in `rebuilt`, if this was the last that it lacked.
    var frame: Range<Int>?
  }

  /// Where a fragment's parts lie in its frame.
  private struct Layout {
    /// What precedes the fragmented part, in the rebuilt datagram.
    var header: Range<Int>
    /// Where in it, from the frame's start, the number of the next header stands (IPv6).
    var nextHeaderOffset = 0
    var nextHeader: UInt8 = 0
    var data: Range<Int>
  }

  /// Keeps a fragment; rebuilds its datagram when it was the last that was missing.
  ///
  /// - `packet`: a fragment, IPv4 or IPv6, decoded from `frame`.
  /// - `key`: of its datagram: `FragmentStore.key`, and whatever else tells datagrams apart.
  /// - `start`: where the frame, or what the tunnel carries, begins: link headers from there on go with the datagram.
  /// - `depth`: in 0 ..< `depthLimit`: how many datagrams that were rebuilt are being looked at.
  /// - `policy`: of the host that receives it.
  mutating func add(
    _ packet: DecodedPacket, _ frame: RawSpan, _ key: FlowKey, from start: Int, depth: Int, at now: Int64,
    policy: OverlapPolicy
  ) -> Outcome {
    var outcome = Outcome()
    guard var layout = Self.layout(packet, frame) else { return outcome }
    layout.header = min(start, layout.header.lowerBound)..<layout.header.upperBound
    let offset = Int(packet.fragmentOffset)
    let headerLength = packet.network == .ipv4 ? layout.header.upperBound - Int(packet.networkOffset) : 0
    guard offset + layout.data.count + headerLength <= 65_535 else {
      outcome.events.insert(.tooLarge)
      return outcome
    }
    if packet.moreFragments, !layout.data.count.isMultiple(of: 8) {
      outcome.events.insert(.badLength)
      // RFC 8200 §4.5 discards it; IPv4 hosts leave out what is over.
      if packet.network == .ipv6 { return outcome }
      layout.data = layout.data.lowerBound..<layout.data.upperBound - layout.data.count % 8
    }
    // What was cut off in the capture cannot be told.
    guard !layout.data.isEmpty, !packet.anomalies.contains(.badDatagramLength) else { return outcome }
    let place = place(for: key, at: now)
    datagrams[place].lastSeen = max(datagrams[place].lastSeen, now)
    if policy == .linux, let fate = fate(of: offset..<offset + layout.data.count, place) {
      outcome.events.insert(.overlap)
      count(\.overlaps)
      if fate == .datagramIsLost { release(place) }
      return outcome
    }
    guard keep(frame, layout, packet, place, &outcome.events) else {
      outcome.events.insert(.ignored)
      count(\.ignored)
      return outcome
    }
    guard isComplete(place) else { return outcome }
    outcome.frame = rebuild(place, policy, at: depth * Self.rebuiltCapacity)
    count(\.rebuilt)
    release(place)
    return outcome
  }

  private static func layout(_ packet: DecodedPacket, _ frame: RawSpan) -> Layout? {
    let start = Int(packet.networkOffset)
    let end = Int(packet.networkEnd)
    if packet.network == .ipv4 {
      let headerEnd = start + Int(frame.u8(start) & 0x0F) * 4
      guard headerEnd <= end else { return nil }
      return Layout(header: start..<headerEnd, data: headerEnd..<end)
    }
    // RFC 8200 §4: the fragment header follows those that every node on the way reads. Decoding came past all of them.
    var nextHeaderOffset = start + 6
    var offset = start + 40
    while end - offset >= 8 {
      let header = frame.u8(nextHeaderOffset)
      if header == 44 {
        return Layout(
          header: start..<offset, nextHeaderOffset: nextHeaderOffset, nextHeader: frame.u8(offset),
          data: offset + 8..<end)
      }
      nextHeaderOffset = offset
      offset += header == 51 ? (Int(frame.u8(offset + 1)) + 2) * 4 : (Int(frame.u8(offset + 1)) + 1) * 8
    }
    return nil
  }

  // MARK: Keeping

  private mutating func keep(
    _ frame: RawSpan, _ layout: Layout, _ packet: DecodedPacket, _ place: Int, _ events: inout FragmentEvents
  ) -> Bool {
    guard Int(datagrams[place].count) < fragmentLimit else { return false }
    // Whether or not there is room for it.
    if datagrams[place].count >= Self.bitmapThreshold, datagrams[place].bitmap == 0 { _ = makeBitmap(place) }
    let range = Int(packet.fragmentOffset)..<Int(packet.fragmentOffset) + layout.data.count
    let overlaps = overlaps(range, place)
    if overlaps {
      events.insert(.overlap)
      count(\.overlaps)
      guard datagrams[place].bitmap != 0 || makeBitmap(place) else { return false }
      datagrams[place].hasOverlap = true
    }
    if range.lowerBound == 0, datagrams[place].header == 0 {
      guard keepHeader(frame, layout, packet, place) else { return false }
    }
    guard append(frame.extracting(layout.data), at: range.lowerBound, place) else { return false }
    if !packet.moreFragments { datagrams[place].end = max(datagrams[place].end, Int32(range.upperBound)) }
    return true
  }

  /// Adds the bytes of a fragment to those that wait for their datagram.
  mutating func append(_ data: RawSpan, at offset: Int, _ place: Int) -> Bool {
    let range = offset..<offset + data.byteCount
    let needed = (range.count + Self.chunk - 1) / Self.chunk
    guard let list = takeChunks(needed, sparing: place) else { return false }
    let fragment = Int(list) - 1
    var chunk = list
    var copied = 0
    while chunk != 0 {
      let part = min(Self.chunk, range.count - copied)
      bytes.write(data.extracting(copied..<copied + part), at: (Int(chunk) - 1) * Self.chunk)
      copied += part
      chunk = nextChunk[Int(chunk) - 1]
    }
    fragments[fragment] = Fragment(
      next: Self.none, offset: UInt16(truncatingIfNeeded: range.lowerBound),
      length: UInt16(truncatingIfNeeded: range.count))
    let last = datagrams[place].last
    if last == Self.none {
      datagrams[place].first = Int32(fragment)
    } else {
      fragments[Int(last)].next = Int32(fragment)
    }
    datagrams[place].last = Int32(fragment)
    datagrams[place].count += 1
    datagrams[place].highest = max(datagrams[place].highest, Int32(range.upperBound))
    if datagrams[place].bitmap != 0 {
      mark(range, place)
    } else {
      datagrams[place].units += Int32((range.count + 7) / 8)
    }
    return true
  }

  private mutating func keepHeader(
    _ frame: RawSpan, _ layout: Layout, _ packet: DecodedPacket, _ place: Int
  ) -> Bool {
    guard layout.header.count <= Self.chunk, let chunk = takeChunks(1, sparing: place) else { return false }
    bytes.write(frame.extracting(layout.header), at: (Int(chunk) - 1) * Self.chunk)
    datagrams[place].header = chunk
    datagrams[place].headerLength = UInt16(truncatingIfNeeded: layout.header.count)
    datagrams[place].linkLength = UInt16(truncatingIfNeeded: Int(packet.networkOffset) - layout.header.lowerBound)
    datagrams[place].nextHeaderOffset = UInt16(
      truncatingIfNeeded: max(0, layout.nextHeaderOffset - layout.header.lowerBound))
    datagrams[place].nextHeader = layout.nextHeader
    return true
  }

  mutating func overlaps(_ range: Range<Int>, _ place: Int) -> Bool {
    guard range.lowerBound < Int(datagrams[place].highest) else { return false }
    if datagrams[place].bitmap != 0 { return unitsThere(range, place) > 0 }
    var fragment = datagrams[place].first
    while fragment != Self.none {
      charge(1)
      if fragments[Int(fragment)].range.overlaps(range) { return true }
      fragment = fragments[Int(fragment)].next
    }
    return false
  }

  /// What becomes of an overlapping fragment.
  private enum Fate {
    case isDuplicate, datagramIsLost
  }

  /// Linux (4.19 and later; RFC 5722, which it follows for IPv4, too): a fragment that lies in a run of those that are there is thrown away; any
  /// other overlap takes the whole datagram with it. A run are fragments of which each came next behind the last of all. nil: it overlaps none.
  private mutating func fate(of range: Range<Int>, _ place: Int) -> Fate? {
    guard range.lowerBound < Int(datagrams[place].highest) else { return nil }
    if datagrams[place].bitmap != 0 {
      let there = unitsThere(range, place)
      if there == 0 { return nil }
      guard datagrams[place].looks < Self.lookLimit else {
        return there == Self.units(range).count ? .isDuplicate : .datagramIsLost
      }
    }
    datagrams[place].looks += UInt32(datagrams[place].count)
    charge(Int(datagrams[place].count))
    // The run at the end so far; those before it have ended.
    var tail = 0..<0
    var isHit = false
    var fragment = datagrams[place].first
    while fragment != Self.none {
      let next = fragments[Int(fragment)].range
      fragment = fragments[Int(fragment)].next
      if next.lowerBound == tail.upperBound, !tail.isEmpty {
        tail = tail.lowerBound..<next.upperBound
        continue
      }
      let ended = next.lowerBound > tail.upperBound ? tail : next
      if next.lowerBound > tail.upperBound || tail.isEmpty { tail = next }
      guard ended.overlaps(range) else { continue }
      if ended.lowerBound <= range.lowerBound, range.upperBound <= ended.upperBound { return .isDuplicate }
      isHit = true
    }
    if tail.overlaps(range) {
      if tail.lowerBound <= range.lowerBound, range.upperBound <= tail.upperBound { return .isDuplicate }
      isHit = true
    }
    return isHit ? .datagramIsLost : nil
  }

  // MARK: What arrived

  /// Two chunks with a bit for each unit, set for what is there. The second is the next of the first.
  mutating func makeBitmap(_ place: Int) -> Bool {
    guard let list = takeChunks(2, sparing: place) else { return false }
    datagrams[place].bitmap = list
    datagrams[place].units = 0
    for chunk in [list, nextChunk[Int(list) - 1]] {
      let start = (Int(chunk) - 1) * Self.chunk
      bytes.fill(start..<start + Self.chunk, with: 0)
    }
    var fragment = datagrams[place].first
    while fragment != Self.none {
      mark(fragments[Int(fragment)].range, place)
      fragment = fragments[Int(fragment)].next
    }
    return true
  }

  private mutating func mark(_ range: Range<Int>, _ place: Int) {
    for unit in Self.units(range) {
      let (at, bit) = bitmapPlace(unit, place)
      if bytes[at] & bit == 0 {
        bytes[at] |= bit
        datagrams[place].units += 1
      }
    }
  }

  /// The units of 8 bytes that a fragment has. All begin at a multiple of 8, so two that have a byte of one both have its first.
  private static func units(_ range: Range<Int>) -> Range<Int> { range.lowerBound / 8..<(range.upperBound + 7) / 8 }

  /// How many units of a range came, by the bitmap.
  private mutating func unitsThere(_ range: Range<Int>, _ place: Int) -> Int {
    var count = 0
    for unit in Self.units(range) {
      let (at, bit) = bitmapPlace(unit, place)
      if bytes[at] & bit != 0 { count += 1 }
    }
    charge(range.count / 8)
    return count
  }

  /// Where a unit's bit is.
  private func bitmapPlace(_ unit: Int, _ place: Int) -> (at: Int, bit: UInt8) {
    let first = Int(datagrams[place].bitmap) - 1
    let byte = unit / 8
    let start = byte < Self.chunk ? first : Int(nextChunk[first]) - 1
    return (start * Self.chunk + byte % Self.chunk, 1 << UInt8(unit % 8))
  }

  private func isComplete(_ place: Int) -> Bool {
    // Fragments beyond the end by the last one make it longer: what was sent is looked at.
    let datagram = datagrams[place]
    return datagram.header != 0 && datagram.end > 0 && datagram.end >= datagram.highest
      && datagram.units == (datagram.end + 7) / 8
  }

  // MARK: Rebuilding

  /// Puts the datagram together at `base` of `rebuilt`; returns its frame's range.
  private mutating func rebuild(_ place: Int, _ policy: OverlapPolicy, at base: Int) -> Range<Int> {
    let datagram = datagrams[place]
    let headerLength = Int(datagram.headerLength)
    let start = (Int(datagram.header) - 1) * Self.chunk
    let body = base + headerLength
    // SAFETY: `bytes` and `rebuilt` are different memory; the span ends with the statement.
    rebuilt.write(unsafe bytes.bytes(start..<start + headerLength).bytes, at: base)
    if datagram.hasOverlap {
      resolve(place, policy, body)
    } else {
      var fragment = datagram.first
      while fragment != Self.none {
        let range = fragments[Int(fragment)].range
        copy(fragment, range, to: body)
        fragment = fragments[Int(fragment)].next
      }
    }
    mendHeader(datagram, base)
    return base..<body + Int(datagram.end)
  }

  /// Copies the part of a fragment that lies in `range` (of the datagram) to where it belongs behind `body`.
  private mutating func copy(_ fragment: Int32, _ range: Range<Int>, to body: Int) {
    let begin = Int(fragments[Int(fragment)].offset)
    var chunk = Int(fragment)
    var position = begin
    while position < range.upperBound {
      // Nothing, when the range begins behind this chunk.
      let end = min(position + Self.chunk, range.upperBound)
      let part = max(position, min(range.lowerBound, end))..<end
      if !part.isEmpty {
        let from = chunk * Self.chunk + part.lowerBound - position
        // SAFETY: `bytes` and `rebuilt` are different memory; the span ends with the statement.
        rebuilt.write(unsafe bytes.bytes(from..<from + part.count).bytes, at: body + part.lowerBound)
      }
      position += Self.chunk
      guard position < range.upperBound else { return }
      chunk = Int(nextChunk[chunk]) - 1
    }
  }

  /// Byte by byte in order of arrival, whoever holds a byte against whoever comes later.
  private mutating func resolve(_ place: Int, _ policy: OverlapPolicy, _ body: Int) {
    for position in 0..<Int(datagrams[place].end) { owners[position] = 0 }
    var fragment = datagrams[place].first
    var number = 0
    while fragment != Self.none {
      arrivals[number] = fragment
      number += 1
      let range = fragments[Int(fragment)].range
      charge(range.count / 8)
      // Stretches of bytes with the same holder are decided at once.
      var position = range.lowerBound
      while position < range.upperBound {
        let owner = owners[position]
        var next = position + 1
        while next < range.upperBound, owners[next] == owner { next += 1 }
        if owner == 0
          || policy.fragmentReplaces(range, fragments[Int(arrivals[Int(owner) - 1])].range)
        {
          copy(fragment, position..<next, to: body)
          for byte in position..<next { owners[byte] = UInt16(truncatingIfNeeded: number) }
        }
        position = next
      }
      fragment = fragments[Int(fragment)].next
    }
  }

  /// Lengths, the fragment fields and the checksum, as if it had never been in pieces.
  private mutating func mendHeader(_ datagram: Datagram, _ base: Int) {
    let header = base + Int(datagram.linkLength)
    let length = Int(datagram.headerLength) - Int(datagram.linkLength) + Int(datagram.end)
    if datagram.key.family == .v4 {
      rebuilt[header + 2] = UInt8(truncatingIfNeeded: length >> 8)
      rebuilt[header + 3] = UInt8(truncatingIfNeeded: length)
      // The reserved bit and "don't fragment" stay.
      rebuilt[header + 6] &= 0xC0
      rebuilt[header + 7] = 0
      rebuilt[header + 10] = 0
      rebuilt[header + 11] = 0
      let end = base + Int(datagram.headerLength)
      // SAFETY: the span ends with the statement.
      let checksum = Checksum.internet(unsafe rebuilt.bytes(header..<end).bytes)
      rebuilt[header + 10] = UInt8(truncatingIfNeeded: checksum >> 8)
      rebuilt[header + 11] = UInt8(truncatingIfNeeded: checksum)
      return
    }
    rebuilt[header + 4] = UInt8(truncatingIfNeeded: (length - 40) >> 8)
    rebuilt[header + 5] = UInt8(truncatingIfNeeded: length - 40)
    rebuilt[base + Int(datagram.nextHeaderOffset)] = datagram.nextHeader
  }
}
