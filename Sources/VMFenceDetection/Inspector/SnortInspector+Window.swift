import VMFenceCore
import VMFencePackets

/// Windows of streams: what of a stream is compared with rules, and when.
extension SnortInspector {
  /// How far a stream is inspected.
  enum Extent {
    /// What was acknowledged, once there is a chunk of it.
    case chunk
    /// What was acknowledged.
    case acknowledged
    /// What is there without a gap, acknowledged or not: it has to make room, or a reset was seen, though perhaps not by its receiver. Gaps are passed
    /// only where they were acknowledged.
    case ready
    /// Everything: nothing more will come.
    case all
  }

  /// Inspects what one end sent and the other acknowledged. Bytes that the capture lacks are passed over once they are acknowledged.
  mutating func inspectStream(
    _ place: Int, ofClient: Bool, _ extent: Extent, _ time: Timestamp, _ origin: PacketOrigin,
    _ events: inout StreamEvents, into output: inout InspectionOutput
  ) {
    // Nearly every packet comes here, and most have nothing to do.
    guard hasWindow(flows[place].session[ofClient: ofClient], ofClient, extent) else { return }
    let end = flows[place].session[ofClient: ofClient]
    var track = end.stream
    // Each turn passes a gap, of which there are fewer than segments, or ends.
    while true {
      let acknowledged =
        extent == .all || extent == .ready ? Int.max : Int(sequenceDistance(end.mapped(end.acknowledged), track.base))
      guard track.block != 0 || acknowledged > 0 else { break }
      let fresh = Int(sequenceDistance(track.inspected, track.base))
      let to = min(streams.ready(track), acknowledged)
      if to > fresh {
        if !settings.isStreamInline {
          inspectWindow(place, ofClient, track, 0..<to, fresh: fresh, time, origin, into: &output)
        }
        track.missing = 0
        track.inspected = track.base &+ UInt32(truncatingIfNeeded: to)
        streams.release(&track, before: track.inspected &- UInt32(min(Self.overlap, to)))
      }
      // What is not put together is not missing.
      if flows[place].session[ofClient: ofClient].stream.marks.contains(.isOff) { break }
      // A FIN takes a number too.
      let final = end.marks.contains(.sentFin) ? Int(sequenceDistance(end.mapped(end.final), track.base)) : Int.max
      let known = extent == .all ? Int.max : Int(sequenceDistance(end.mapped(end.acknowledged), track.base))
      guard let next = gapEnd(track, min(known, final), extent) else { break }
      counters.gaps += 1
      events.insert(.sequenceGap)
      track.marks.insert(.hasGap)
      track.missing = UInt32(truncatingIfNeeded: next - Int(sequenceDistance(track.inspected, track.base)))
      let number = track.base &+ UInt32(truncatingIfNeeded: next)
      streams.release(&track, before: number)
      (track.inspected, track.chunkStart) = (number, number)
    }
    // A rule that matched may have turned it off or on.
    let now = flows[place].session[ofClient: ofClient].stream.marks
    track.marks = track.marks.subtracting(.ofRules).union(now.intersection(.ofRules))
    setStream(track, place, ofClient)
    chargeSegments(place)
  }

  mutating func setStream(_ track: StreamTrack, _ place: Int, _ ofClient: Bool) {
    flows[place].session[ofClient: ofClient].stream = track
  }

  /// Whether there may be something to inspect.
  @inline(__always)
  private func hasWindow(_ end: borrowing TCPEnd, _ ofClient: Bool, _ extent: Extent) -> Bool {
    guard end.stream.marks.contains(.isKnown) else { return false }
    if end.stream.marks.contains(.isOff), end.stream.block == 0 { return false }
    let acknowledged = end.mapped(end.acknowledged)
    switch extent {
    case .all: return true
    case .ready: return end.stream.block != 0
    case .chunk: return Int(sequenceDistance(acknowledged, end.stream.inspected)) >= chunkSize(end.stream, ofClient)
    case .acknowledged:
      if end.stream.block != 0 { return true }
      return sequenceDistance(acknowledged, end.stream.base) > 0
    }
  }

  private func chunkSize(_ track: StreamTrack, _ ofClient: Bool) -> Int {
    let size = ofClient ? settings.chunkToServer : settings.chunkToClient
    return Int(sequenceDistance(track.inspected, track.origin)) > Self.bulk ? size * 4 : size
  }

  /// Where the stream goes on when bytes that were acknowledged, or will never come, are missing; nil when none are.
  private func gapEnd(_ track: StreamTrack, _ acknowledged: Int, _ extent: Extent) -> Int? {
    let ready = streams.ready(track)
    let inspected = Int(sequenceDistance(track.inspected, track.base))
    guard inspected >= ready, acknowledged > max(ready, inspected) else { return nil }
    let next = streams.nextSegment(track, from: max(ready, inspected))
    if extent == .all { return next }
    return min(next ?? acknowledged, acknowledged)
  }

  /// Inline: the stream around a segment that just came.
  mutating func inspectInline(
    _ match: borrowing PacketMatch, _ place: Int, _ sequence: UInt32, _ length: Int, _ frame: RawSpan,
    into output: inout InspectionOutput
  ) {
    let ofClient = match.flow?.toServer ?? true
    var track = flows[place].session[ofClient: ofClient].stream
    let at = max(0, Int(sequenceDistance(sequence, track.base)))
    let stretch = streams.stretch(track, around: at)
    chargeSegments(place)
    guard stretch.contains(at) else { return }
    let size = ofClient ? settings.chunkToServer : settings.chunkToClient
    let window = max(stretch.lowerBound, at - size)..<min(stretch.upperBound, at + length + size)
    var stream = PacketMatch(streamOf: match)
    // Bytes before were inspected, if they came before.
    stream.fresh = at - window.lowerBound
    stream.streamOffset = max(0, Int(sequenceDistance(track.base, track.origin)) + window.lowerBound)
    counters.streamWindows += 1
    let position = streams.position(track, window)
    // SAFETY: comparing does not change the store.
    compare(stream, unsafe streams.bytes.bytes(position).bytes, frame, into: &output)
    let ready = streams.ready(track)
    if ready > Int(sequenceDistance(track.inspected, track.base)) {
      track.inspected = track.base &+ UInt32(truncatingIfNeeded: ready)
    }
    // What was let through can be sent again with other bytes until it is acknowledged.
    let end = flows[place].session[ofClient: ofClient]
    let kept = min(ready, Int(sequenceDistance(end.mapped(end.acknowledged), track.base))) - size
    if kept > size { streams.release(&track, before: track.base &+ UInt32(truncatingIfNeeded: kept)) }
    setStream(track, place, ofClient)
    chargeSegments(place)
  }

  mutating func inspectWindow(
    _ place: Int, _ ofClient: Bool, _ track: StreamTrack, _ window: Range<Int>, fresh: Int, _ time: Timestamp,
    _ origin: PacketOrigin, into output: inout InspectionOutput
  ) {
    guard flows[place].marks.isDisjoint(with: [.isPassed, .isDropped]) else { return }
    counters.streamWindows += 1
    let (packet, count) = pseudoPacket(
      place, ofClient, track.base &+ UInt32(truncatingIfNeeded: fresh), window.count - fresh)
    let isForward = ofClient == flows[place].marks.contains(.clientIsFirst)
    var match = PacketMatch(packet: packet, flow: sighting(place, isForward: isForward), timestamp: time)
    match.source = .stream
    match.origin = origin
    match.packet.tunnelDepth = UInt8(truncatingIfNeeded: flows[place].key.protocolAndFamily >> 16)
    match.fresh = fresh
    match.streamOffset = max(0, Int(sequenceDistance(track.base, track.origin)))
    match.missing = track.missing
    found = ofClient ? flows[place].clientFound : flows[place].serverFound
    if fresh > 0, found.isComplete(generation) {
      // A pattern that ends in the new bytes may begin before.
      match.searched = max(0, fresh - (PatternDatabase.patternLimit - 1))
    } else {
      found = .nothing(generation)
    }
    let position = streams.position(track, window)
    // SAFETY: comparing changes neither the store nor the header.
    compare(
      match, unsafe streams.bytes.bytes(position).bytes, unsafe pseudoFrame.bytes(0..<count).bytes, into: &output)
    if ofClient { flows[place].clientFound = found } else { flows[place].serverFound = found }
  }

  // MARK: The end of flows

  /// Looks at one flow in turn, and ends it when its time is over.
  mutating func endOldFlow(at time: Timestamp, into output: inout InspectionOutput) {
    // With each sixteenth packet: what is looked at is seldom in the processor's cache.
    guard counters.packets & 15 == 0, let place = flows.nextToEnd(at: time) else { return }
    endFlow(place, at: time, into: &output)
    flows.expire(place)
  }

  /// Inspects what is left of a flow's streams, and gives their memory back.
  mutating func endFlow(_ place: Int, at time: Timestamp, into output: inout InspectionOutput) {
    var events = StreamEvents()
    for ofClient in [true, false] {
      inspectStream(place, ofClient: ofClient, .all, time, .flowTimeout, &events, into: &output)
    }
    streams.releaseAll(&flows[place].session.client.stream)
    streams.releaseAll(&flows[place].session.server.stream)
    for ofClient in [true, false] {
      var track = flows[place].session[ofClient: ofClient].stream
      track.base = track.inspected
      setStream(track, place, ofClient)
    }
  }

  /// Inspects what its receivers have of a flow that was reset. What lacks may come yet, if the reset did not: it is waited for until the flow ends.
  mutating func inspectReset(_ place: Int, at time: Timestamp, into output: inout InspectionOutput) {
    var events = StreamEvents()
    for ofClient in [true, false] {
      inspectStream(place, ofClient: ofClient, .ready, time, .flowTimeout, &events, into: &output)
    }
  }

  // MARK: Headers for windows

  /// A packet that stands for a window of a stream: from the end that sent it, with the number of its first new byte.
  private mutating func pseudoPacket(
    _ place: Int, _ ofClient: Bool, _ sequence: UInt32, _ length: Int
  ) -> (DecodedPacket, Int) {
    let key = flows[place].key
    let isForward = ofClient == flows[place].marks.contains(.clientIsFirst)
    let (source, destination) = isForward ? (key.first, key.second) : (key.second, key.first)
    let (from, to) = isForward ? (key.firstPort, key.secondPort) : (key.secondPort, key.firstPort)
    let other = ofClient ? flows[place].session.server : flows[place].session.client
    pseudoFrame.fill(0..<64, with: 0)
    let start = writeHeader(source, destination, 20 + min(length, 65_535 - 60))
    pseudoFrame.writeU32(UInt32(from) << 16 | UInt32(to), at: start)
    pseudoFrame.writeU32(sequence, at: start + 4)
    pseudoFrame.writeU32(other.next, at: start + 8)
    // Header length 5, PSH and ACK.
    pseudoFrame.writeU32(0x5018_0000 | min(other.window, 0xFFFF), at: start + 12)
    // SAFETY: the span ends with the statement.
    var packet = DecodedPacket.decode(
      unsafe pseudoFrame.bytes(0..<start + 20).bytes, linkType: .raw, strippedVLAN: 0)
    packet.anomalies = []
    let tags = UInt32(truncatingIfNeeded: key.portsAndVLANs)
    packet.outerVLAN = UInt16(tags >> 16)
    packet.innerVLAN = UInt16(truncatingIfNeeded: tags)
    packet.thirdVLAN = key.thirdVLAN
    packet.vlanCount = tags >> 16 == 0 ? 0 : tags & 0xFFFF == 0 ? 1 : key.thirdVLAN == 0 ? 2 : 3
    return (packet, start + 20)
  }

  /// An IPv4 or IPv6 header; returns its length.
  private mutating func writeHeader(_ source: IPAddress, _ destination: IPAddress, _ length: Int) -> Int {
    if source.family == .v4 {
      pseudoFrame.writeU32(0x4500_0000 | UInt32(length + 20), at: 0)
      pseudoFrame.writeU32(64 << 24 | 6 << 16, at: 8)
      pseudoFrame.writeU32(UInt32(truncatingIfNeeded: source.low), at: 12)
      pseudoFrame.writeU32(UInt32(truncatingIfNeeded: destination.low), at: 16)
      return 20
    }
    pseudoFrame.writeU32(0x6000_0000, at: 0)
    pseudoFrame.writeU32(UInt32(length) << 16 | 6 << 8 | 64, at: 4)
    for (index, word) in [source.high, source.low, destination.high, destination.low].enumerated() {
      pseudoFrame.writeU32(UInt32(truncatingIfNeeded: word >> 32), at: 8 + index * 8)
      pseudoFrame.writeU32(UInt32(truncatingIfNeeded: word), at: 12 + index * 8)
    }
    return 40
  }
}
