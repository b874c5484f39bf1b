import VMFenceCore
import VMFencePackets

/// TCP: connections, their streams, and when those are inspected.
extension SnortInspector {
  /// How much of what was inspected is kept, for patterns that begin there, in bytes.
  static let overlap = 1024
  /// Urgent bytes of one stream that are left out of it.
  static let urgentLimit: UInt32 = 65_535
  /// Streams that went on for this long are inspected in larger parts, four chunks at a time.
  static let bulk = 64 << 10

  /// `match.packet`: TCP, of the flow at `place`.
  mutating func inspectTCP(
    _ match: inout PacketMatch, _ place: Int, _ frame: RawSpan, _ direction: FrameDirection,
    into output: inout InspectionOutput
  ) {
    var segment = TCPSegment(match.packet, frame)
    if match.isRebuilt { segment.station = 0 }
    segment.isToGuest = direction == .toGuest
    let isForward = packetIsForward(match)
    guard match.packet.isTaken(frame, sidesKnown: direction != .unknown) else {
      counters.invalidSegments += 1
      count(frame.byteCount, place, toServer: match.flow?.toServer ?? true, match.timestamp)
      compare(match, frame.extracting(Self.payload(match.packet)), frame, into: &output)
      noteAddresses(match)
      return
    }
    let wasEstablished = match.flow?.isEstablished ?? false
    var step = follow(segment, place, isForward, match.timestamp, into: &output)
    var seen = sighting(place, isForward: isForward)
    // The acknowledgement that completes the handshake is a part of it.
    if segment.length == 0, !wasEstablished { seen.isEstablished = false }
    match.flow = seen
    count(frame.byteCount, place, toServer: seen.toServer, match.timestamp)
    if step.isMidstream || step.isTakenUp {
      counters.midstream += 1
      let policy = settings.midstreamPolicy
      if step.isMidstream || [.passFlow, .passPacket, .bypass].contains(policy),
        except(policy, place, .streamMidstream, into: &output)
      {
        return
      }
    }
    let payload = frame.extracting(Self.payload(match.packet))
    var stored: Stored?
    if matching.wantsStreams || output.keepsAnomalies {
      let fromClient = match.flow?.toServer ?? true
      // What the other end sent before this is read by now.
      inspectStream(
        place, ofClient: !fromClient, payload.byteCount > 0 ? .acknowledged : .chunk, match.timestamp, .wire,
        &step.events, into: &output)
      if let position = step.urgent { noteUrgent(position, place, fromClient, &step) }
      // Data of a SYN is taken by nobody who was not asked to (RFC 7413).
      if step.isAccepted, payload.byteCount > 0, !segment.flags.contains(.syn) || segment.hasFastOpen {
        stored = store(payload, segment, place, fromClient, &step, into: &output)
      }
    }
    if !step.isAccepted { counters.invalidSegments += 1 }
    guard output.dropReason == .rules || output.verdict == .pass else { return }
    match.events = step.events
    if !step.events.isEmpty { judge(step, into: &output) }
    finishTCP(&match, place, payload, frame, stored, into: &output)
  }

  /// Counts what was told of a segment; inline, drops what cannot be a part of its connection.
  private mutating func judge(_ step: TCPStep, into output: inout InspectionOutput) {
    if step.events.contains(StreamEvent.lowTTL.rawValue) { counters.lowTTL += 1 }
    guard settings.isInline, settings.dropsInvalid, !step.isAccepted, output.verdict == .pass,
      !step.events.isDisjoint(with: .invalid)
    else { return }
    output.verdict = .drop
    output.dropReason = .streamError
  }

  /// Compares the packet, then what it completed.
  private mutating func finishTCP(
    _ match: inout PacketMatch, _ place: Int, _ payload: RawSpan, _ frame: RawSpan, _ stored: Stored?,
    into output: inout InspectionOutput
  ) {
    match.source = stored == nil ? .packet : .segment
    if let stored, stored.isRewritten, frame.byteCount <= streams.scratch.count {
      // Inline: what its receiver has of it is what came first.
      let length = rewriteFrame(frame, match.packet)
      // SAFETY: `rewritten` is written to for the next such segment only.
      let bytes = unsafe rewritten.bytes(0..<length).bytes
      match.isRewritten = true
      if stored.isKept { inspectInline(match, place, stored.sequence, payload.byteCount, bytes, into: &output) }
      compare(match, bytes.extracting(Self.payload(match.packet)), bytes, into: &output)
    } else {
      let isInStream = settings.isStreamInline && stored?.isKept == true
      if isInStream, let stored {
        inspectInline(match, place, stored.sequence, payload.byteCount, frame, into: &output)
      }
      let changes = variables.changes
      compare(match, payload, frame, into: &output)
      // What rules about the packet set is there for rules about the stream, too.
      if isInStream, let stored, variables.changes != changes {
        matching.isSecondLook = true
        inspectInline(match, place, stored.sequence, payload.byteCount, frame, into: &output)
        matching.isSecondLook = false
      }
    }
    noteAddresses(match)
    guard flows[place].session.marks.contains(.isOver) else { return }
    guard !flows[place].session.wasReset else {
      inspectReset(place, at: match.timestamp, into: &output)
      return
    }
    endFlow(place, at: match.timestamp, into: &output)
  }

  /// Puts the segment's bytes as they count into a copy of its frame, and mends the checksum (RFC 1624); returns the copy's length.
  private mutating func rewriteFrame(_ frame: RawSpan, _ packet: DecodedPacket) -> Int {
    let range = Self.payload(packet)
    rewritten.write(frame, at: 0)
    // SAFETY: `scratch` and `rewritten` are different memory; the span ends with the block.
    let bytes = unsafe streams.rewritten(range.count).bytes
    rewritten.write(bytes, at: range.lowerBound)
    mendChecksum(
      at: Int(packet.transportOffset) + 16, isUDP: false, in: frame,
      old: Checksum.internet(frame, from: range.lowerBound, count: range.count), new: Checksum.internet(bytes))
    return frame.byteCount
  }

  private func packetIsForward(_ match: borrowing PacketMatch) -> Bool {
    guard let flow = match.flow else { return true }
    return flow.toServer == flows[flow.place].marks.contains(.clientIsFirst)
  }

  // MARK: Connections

  private mutating func follow(
    _ segment: TCPSegment, _ place: Int, _ isForward: Bool, _ time: Timestamp, into output: inout InspectionOutput
  ) -> TCPStep {
    let seconds = UInt32(truncatingIfNeeded: time.nanoseconds / FlowTimeouts.second)
    if flows[place].session.state == .none { guessClient(segment, place, isForward) }
    let fromClient = isForward == flows[place].marks.contains(.clientIsFirst)
    let blocks = (flows[place].session.client.stream.block, flows[place].session.server.stream.block)
    var step = flows[place].session.follow(segment, fromClient: fromClient, tcp, at: seconds)
    // A stream that begins anew has nothing any more.
    if blocks.0 != 0, flows[place].session.client.stream.block == 0 { streams.release(Int(blocks.0) - 1) }
    if blocks.1 != 0, flows[place].session.server.stream.block == 0 { streams.release(Int(blocks.1) - 1) }
    if step.isNewConnection {
      step = reconnect(segment, place, isForward, time, step.events, into: &output)
    }
    if step.serverIsSender == true {
      setClient(place, isFirst: !isForward)
    }
    return step
  }

  private mutating func setClient(_ place: Int, isFirst: Bool) {
    if isFirst == flows[place].marks.contains(.clientIsFirst) { return }
    if isFirst { flows[place].marks.insert(.clientIsFirst) } else { flows[place].marks.remove(.clientIsFirst) }
    // Other rules are about it now.
    (flows[place].clientFound, flows[place].serverFound) = (.unknown, .unknown)
  }

  /// Ports below are those of services. Nobody outside chooses a guest's: which of two is the lower one says nothing then.
  private static let servicePorts: UInt16 = 10_000

  /// Of a connection in midstream the guest is taken for the server when its port is that of a service; otherwise the end with the lower port is, the receiver when
  /// they are equal.
  private mutating func guessClient(_ segment: TCPSegment, _ place: Int, _ isForward: Bool) {
    guard !segment.flags.contains(.syn) else {
      setClient(place, isFirst: isForward)
      return
    }
    let key = flows[place].key
    if let guestIsFirst = key.guestIsFirst, (guestIsFirst ? key.firstPort : key.secondPort) < Self.servicePorts {
      setClient(place, isFirst: !guestIsFirst)
      return
    }
    let (own, other) = isForward ? (key.firstPort, key.secondPort) : (key.secondPort, key.firstPort)
    setClient(place, isFirst: (own > other) == isForward)
  }

  /// Another connection between the same ends: its SYN, or of one that was kept in mind the answer, or what follows an answer that was not seen.
  private mutating func reconnect(
    _ segment: TCPSegment, _ place: Int, _ isForward: Bool, _ time: Timestamp, _ events: StreamEvents,
    into output: inout InspectionOutput
  ) -> TCPStep {
    endFlow(place, at: time, into: &output)
    let seconds = UInt32(truncatingIfNeeded: time.nanoseconds / FlowTimeouts.second)
    let isAnswer = segment.flags.contains([.syn, .ack])
    let session = flows[place].session
    let wasFirst = flows[place].marks.contains(.clientIsFirst)
    setClient(place, isFirst: isForward != isAnswer)
    flows[place].firstSeen = time.nanoseconds
    flows[place].marks.remove([.isPassed, .isDropped, .isBypassed, .clientIsElephant, .serverIsElephant])
    var next = TCPSession()
    (next.client.policy, next.server.policy) =
      wasFirst == (isForward != isAnswer)
      ? (session.client.policy, session.server.policy) : (session.server.policy, session.client.policy)
    flows[place].session = next
    guard segment.flags.contains(.ack) else {
      return flows[place].session.follow(segment, fromClient: true, tcp, at: seconds)
    }
    var opening = segment
    opening.sequence = (isAnswer ? segment.acknowledgement : segment.sequence) &- 1
    opening.length = 0
    opening.flags = .syn
    opening.hasTimestamp = false
    // What the SYN offered is not known: the most generous, if the answer takes up any such offer.
    opening.scale = 14
    flows[place].session.begin(opening, at: seconds)
    // How segments are delivered stays as it was.
    if segment.isSigned { flows[place].session.marks.insert(.isSigned) }
    let wasClient = wasFirst == (isForward != isAnswer)
    if session.marks.contains(wasClient ? .clientByGroup : .serverByGroup) {
      flows[place].session.marks.insert(.clientByGroup)
    }
    var step = flows[place].session.follow(segment, fromClient: !isAnswer, tcp, at: seconds)
    step.isNewConnection = true
    return step
  }

  // MARK: Keeping segments

  /// What became of a segment's payload.
  private struct Stored {
    /// Where its first byte is in its stream.
    var sequence: UInt32
    /// Its bytes are in the stream's block.
    var isKept: Bool
    var isRewritten = false
  }

  /// nil: the payload is in no stream.
  private mutating func store(
    _ payload: RawSpan, _ segment: TCPSegment, _ place: Int, _ fromClient: Bool, _ step: inout TCPStep,
    into output: inout InspectionOutput
  ) -> Stored? {
    let start = flows[place].session[ofClient: fromClient].mapped(segment.dataStart)
    if !flows[place].session[ofClient: fromClient].stream.marks.contains(.isKnown) {
      flows[place].session[ofClient: fromClient].stream = StreamTrack(at: start)
    }
    guard segment.urgentOffset != nil || flows[place].session[ofClient: fromClient].urgentCount > 0,
      let position = urgentPosition(segment, place, fromClient)
    else {
      return storeAll(payload, at: start, place, fromClient, &step, into: &output)
    }
    if settings.urgentPolicy == .drop {
      if settings.isInline { _ = except(.dropPacket, place, .streamUrgent, into: &output) }
      return nil
    }
    let offset = Int(sequenceDistance(position, segment.dataStart))
    flows[place].session[ofClient: fromClient].marks.remove(.awaitsUrgent)
    flows[place].session[ofClient: fromClient].urgentByte = payload.u8(offset)
    let before = storeAll(
      payload.extracting(0..<offset), at: start, place, fromClient, &step, into: &output)
    let after = storeAll(
      payload.extracting(offset + 1..<payload.byteCount),
      at: flows[place].session[ofClient: fromClient].mapped(position &+ 1), place, fromClient, &step, into: &output)
    return before ?? after
  }

  /// Where in the numbers of one end an urgent byte is that lies in a segment's payload; nil when none does.
  private func urgentPosition(_ segment: TCPSegment, _ place: Int, _ fromClient: Bool) -> UInt32? {
    if settings.urgentPolicy == .outOfBand {
      let last = flows[place].session[ofClient: fromClient].urgentLast
      guard flows[place].session[ofClient: fromClient].urgentCount > 0, last &- segment.dataStart < segment.length
      else { return nil }
      return last
    }
    guard settings.urgentPolicy != .inline, let offset = segment.urgentOffset, UInt32(offset) < segment.length else {
      return nil
    }
    return segment.dataStart &+ UInt32(offset)
  }

  /// Takes the urgent byte at a number out of the stream, whether it has come or will. One that is announced before another could be read takes its
  /// place, as hosts do it (`tcp_check_urg` in Linux' net/ipv4/tcp_input.c). More than any program sends are read as part of the stream.
  private mutating func noteUrgent(_ position: UInt32, _ place: Int, _ fromClient: Bool, _ step: inout TCPStep) {
    guard settings.urgentPolicy == .outOfBand else { return }
    var end = flows[place].session[ofClient: fromClient]
    guard end.urgentCount == 0 || sequenceDistance(position, end.urgentLast) > 0 else { return }
    let isReplaced = end.urgentCount > 0 && sequenceDistance(end.urgentLast, end.arrived.expected) >= 0
    // Moving about what lies behind one costs much where there is much.
    guard !joinsSegments(place), isReplaced ? putBack(&end) : end.urgentCount < Self.urgentLimit else {
      step.events.insert(.urgentLimit)
      return
    }
    if !isReplaced { end.urgentCount &+= 1 }
    end.urgentLast = position
    end.marks.insert(.awaitsUrgent)
    // What came ahead of it and behind it is nearer by one.
    let number = end.mapped(position)
    if streams.reaches(end.stream, number), let byte = streams.close(&end.stream, number) {
      end.marks.remove(.awaitsUrgent)
      end.urgentByte = byte
    }
    own(end.stream, place)
    chargeSegments(place)
    flows[place].session[ofClient: fromClient] = end
  }

  /// Makes the last urgent byte a part of its stream. False: there is no room for it.
  private mutating func putBack(_ end: inout TCPEnd) -> Bool {
    let number = end.mapped(end.urgentLast)
    if streams.reaches(end.stream, number), !streams.open(end.stream, number) { return false }
    let isBelow = settings.streamDepth > 0 && Int(sequenceDistance(number, end.stream.origin)) >= settings.streamDepth
    guard !end.marks.contains(.awaitsUrgent), end.stream.marks.isDisjoint(with: .isOff), !isBelow else { return true }
    let byte: InlineArray<1, UInt8> = [end.urgentByte]
    // SAFETY: the byte is there during the call.
    let insertion = streams.insert(
      unsafe byte.span.bytes, at: number, &end.stream, policy: end.policy, isInline: settings.isStreamInline,
      joins: false)
    return insertion.result == .kept
  }

  /// Says whose the block of a stream is, if it has another than it had.
  private mutating func own(_ track: StreamTrack, _ place: Int) {
    if streams.isNobodys(track) { streams.setOwner(track, place, share: streams.share(of: flows[place].peer)) }
  }

  /// Keeps bytes from `sequence` on of what one end sent, in parts if they are more than fit a packet on a wire (offloads make such).
  private mutating func storeAll(
    _ payload: RawSpan, at sequence: UInt32, _ place: Int, _ fromClient: Bool, _ step: inout TCPStep,
    into output: inout InspectionOutput
  ) -> Stored? {
    let limit = streams.scratch.count
    var result: Stored?
    var offset = 0
    while offset < payload.byteCount {
      let part = payload.extracting(offset..<min(offset + limit, payload.byteCount))
      let number = sequence &+ UInt32(truncatingIfNeeded: offset)
      let stored = store(part, at: number, place, fromClient, &step, into: &output)
      if result == nil { result = stored }
      offset += limit
    }
    return result
  }

  /// Keeps bytes from `sequence` on of what one end sent.
  private mutating func store(
    _ payload: RawSpan, at sequence: UInt32, _ place: Int, _ fromClient: Bool, _ step: inout TCPStep,
    into output: inout InspectionOutput
  ) -> Stored? {
    guard payload.byteCount > 0 else { return nil }
    if flows[place].session[ofClient: fromClient].stream.marks.contains(.isOff) {
      guard flows[place].session[ofClient: fromClient].stream.marks.contains(.beginsAnew) else { return nil }
      streams.releaseAll(&flows[place].session[ofClient: fromClient].stream)
      flows[place].session[ofClient: fromClient].stream = StreamTrack(at: sequence)
    }
    let kept = aboveDepth(
      payload.byteCount, at: sequence, flows[place].session[ofClient: fromClient].stream, &step.events)
    guard kept > 0 else { return nil }
    let data = payload.extracting(0..<kept)
    let isInline = settings.isStreamInline
    let policy = flows[place].session[ofClient: fromClient].policy
    let joins = joinsSegments(place)
    countSegmentWork()
    var insertion = streams.insert(
      data, at: sequence, &flows[place].session[ofClient: fromClient].stream, policy: policy, isInline: isInline,
      joins: joins)
    chargeSegments(place)
    if insertion.result == .noMemory || insertion.result == .tooFar {
      giveRoom(place, fromClient, sequence, insertion.result, &step.events, into: &output)
      insertion = streams.insert(
        data, at: sequence, &flows[place].session[ofClient: fromClient].stream, policy: policy, isInline: isInline,
        joins: joins)
      chargeSegments(place)
    }
    paySegment(kept, place)
    own(flows[place].session[ofClient: fromClient].stream, place)
    switch insertion.result {
    case .kept: break
    case .isOld:
      // What was acknowledged and came again is told of as that.
      if !step.events.contains(StreamEvent.spuriousRetransmission.rawValue) { step.events.insert(.segmentBeforeBase) }
    case .tooFar, .noMemory:
      counters.segmentsRefused += 1
      step.events.insert(insertion.result == .noMemory ? .insertMemoryLimit : .insertLimit)
      if insertion.result == .noMemory { step.events.insert(.noSegment) }
      _ = except(settings.streamMemoryPolicy, place, .streamMemory, into: &output)
      return nil
    }
    if insertion.isOverlap, settings.overlapLimit > 0 {
      let count = min(flows[place].session[ofClient: fromClient].overlaps, UInt8.max - 1) + 1
      flows[place].session[ofClient: fromClient].overlaps = count
      if count > settings.overlapLimit { step.events.insert(.excessiveOverlaps) }
    }
    if insertion.isDifferent {
      counters.overlapsDifferent += 1
      step.events.insert(.overlapDifferentData)
    }
    return Stored(
      sequence: sequence, isKept: insertion.result == .kept, isRewritten: insertion.isRewritten && isInline)
  }

  /// How many of `count` bytes are above the depth.
  private mutating func aboveDepth(
    _ count: Int, at sequence: UInt32, _ track: StreamTrack, _ events: inout StreamEvents
  ) -> Int {
    let begin = Int(sequenceDistance(sequence, track.origin))
    guard settings.streamDepth > 0, begin + count > settings.streamDepth else { return count }
    // The first segment that is cut.
    if begin <= settings.streamDepth {
      counters.depthReached += 1
      events.insert(.depthReached)
    }
    return max(0, settings.streamDepth - begin)
  }
}
