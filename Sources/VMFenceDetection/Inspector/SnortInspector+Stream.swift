import VMFenceCore
import VMFencePackets

/// TCP: connections, their streams, and when those are inspected.
extension SnortInspector {
  /// How much of what was inspected is kept, for patterns that begin there, in bytes.
  static let overlap = 1024
  /// Streams that went on for this long are inspected in larger parts, four chunks at a time.
  static let bulk = 64 << 10

  /// `match.packet`: TCP, of the flow at `place`.
  mutating func inspectTCP(
    _ match: inout PacketMatch, _ place: Int, _ frame: RawSpan, into output: inout InspectionOutput
  ) {
    let packet = match.packet
    let segment = TCPSegment(packet, frame)
    let isForward = packetIsForward(match)
    var step = follow(segment, place, isForward, match.timestamp, into: &output)
    let seen = sighting(place, isForward: isForward)
    match.flow = seen
    flows[place].counts.add(bytes: frame.byteCount, toServer: seen.toServer)
    if step.isMidstream || step.isTakenUp {
      counters.midstream += 1
      let policy = settings.midstreamPolicy
      if step.isMidstream || [.passFlow, .passPacket, .bypass].contains(policy),
        except(policy, place, .streamMidstream, into: &output)
      {
        return
      }
    }
    let payload = frame.extracting(Self.payload(packet))
    var stored: Stored?
    if matching.wantsStreams {
      let fromClient = match.flow?.toServer ?? true
      // What the other end sent before this is read by now.
      inspectStream(
        place, ofClient: !fromClient, payload.byteCount > 0 ? .acknowledged : .chunk, match.timestamp, .wire,
        &step.events, into: &output)
      if step.isAccepted, payload.byteCount > 0 {
        stored = store(payload, segment, packet, frame, place, fromClient, &step, into: &output)
      }
    }
    if !step.isAccepted { counters.invalidSegments += 1 }
    guard output.dropReason == .rules || output.verdict == .pass else { return }
    match.events = step.events
    finishTCP(&match, place, payload, frame, stored, into: &output)
  }

  /// Compares the packet, then what it completed.
  private mutating func finishTCP(
    _ match: inout PacketMatch, _ place: Int, _ payload: RawSpan, _ frame: RawSpan, _ stored: Stored?,
    into output: inout InspectionOutput
  ) {
    match.source = stored == nil ? .packet : .segment
    if let stored, stored.isRewritten {
      // Inline: what its receiver has of it is what came first.
      // SAFETY: `scratch` is written to at the next insertion only.
      compare(match, unsafe streams.rewritten(payload.byteCount).bytes, frame, into: &output)
    } else {
      compare(match, payload, frame, into: &output)
    }
    noteAddresses(match)
    guard matching.wantsStreams else { return }
    if settings.isStreamInline, let stored, stored.isKept {
      inspectInline(match, place, stored.sequence, payload.byteCount, frame, into: &output)
    }
    guard flows[place].session.marks.contains(.isOver) else { return }
    endFlow(place, at: match.timestamp, into: &output)
  }

  private func packetIsForward(_ match: PacketMatch) -> Bool {
    guard let flow = match.flow else { return true }
    return flow.toServer == flows[flow.place].marks.contains(.clientIsFirst)
  }

  // MARK: Connections

  private mutating func follow(
    _ segment: TCPSegment, _ place: Int, _ isForward: Bool, _ time: Timestamp, into output: inout InspectionOutput
  ) -> TCPStep {
    let seconds = UInt32(truncatingIfNeeded: time.nanoseconds / FlowTimeouts.second)
    let fromClient = isForward == flows[place].marks.contains(.clientIsFirst)
    if flows[place].session.state == .none { guessClient(segment, place, isForward) }
    var step = flows[place].session.follow(segment, fromClient: fromClient, settings, at: seconds)
    if step.isNewConnection {
      step = reconnect(segment, place, isForward, time, step.events, into: &output)
    }
    if step.serverIsSender == true {
      setClient(place, isFirst: !isForward)
    }
    return step
  }

  private mutating func setClient(_ place: Int, isFirst: Bool) {
    if isFirst { flows[place].marks.insert(.clientIsFirst) } else { flows[place].marks.remove(.clientIsFirst) }
  }

  /// Of a connection in midstream the sender is taken for the client, unless its port says otherwise.
  private mutating func guessClient(_ segment: TCPSegment, _ place: Int, _ isForward: Bool) {
    guard !segment.flags.contains(.syn) else {
      setClient(place, isFirst: isForward)
      return
    }
    let key = flows[place].key
    let (own, other) = isForward ? (key.firstPort, key.secondPort) : (key.secondPort, key.firstPort)
    setClient(place, isFirst: (own < 1024 && other >= 1024) != isForward)
  }

  /// Another connection between the same ends: its SYN, or the answer to one that was kept in mind.
  private mutating func reconnect(
    _ segment: TCPSegment, _ place: Int, _ isForward: Bool, _ time: Timestamp, _ events: StreamEvents,
    into output: inout InspectionOutput
  ) -> TCPStep {
    endFlow(place, at: time, into: &output)
    let seconds = UInt32(truncatingIfNeeded: time.nanoseconds / FlowTimeouts.second)
    let isAnswer = segment.flags.contains(.ack)
    let session = flows[place].session
    let wasFirst = flows[place].marks.contains(.clientIsFirst)
    setClient(place, isFirst: isForward != isAnswer)
    flows[place].firstSeen = time.nanoseconds
    flows[place].marks.remove([.isPassed, .isDropped, .isBypassed])
    var next = TCPSession()
    (next.client.policy, next.server.policy) =
      wasFirst == (isForward != isAnswer)
      ? (session.client.policy, session.server.policy) : (session.server.policy, session.client.policy)
    flows[place].session = next
    guard isAnswer else { return flows[place].session.follow(segment, fromClient: true, settings, at: seconds) }
    var opening = segment
    opening.sequence = segment.acknowledgement &- 1
    opening.length = 0
    opening.flags = .syn
    opening.hasTimestamp = false
    flows[place].session.begin(opening, at: seconds)
    var step = flows[place].session.follow(segment, fromClient: false, settings, at: seconds)
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
    _ payload: RawSpan, _ segment: TCPSegment, _ packet: DecodedPacket, _ frame: RawSpan, _ place: Int,
    _ fromClient: Bool, _ step: inout TCPStep, into output: inout InspectionOutput
  ) -> Stored? {
    var end = fromClient ? flows[place].session.client : flows[place].session.server
    guard !end.stream.marks.contains(.isOff) else { return nil }
    if !end.stream.marks.contains(.isKnown) { end.stream = StreamTrack(at: segment.dataStart) }
    var data = payload
    if settings.streamDepth > 0, let cut = clip(segment, &end.stream, &step.events) {
      guard cut > 0 else {
        setEnd(end, place, fromClient)
        return nil
      }
      data = payload.extracting(0..<min(cut, payload.byteCount))
    }
    let sequence = segment.dataStart
    var insertion = streams.insert(
      data, at: sequence, &end.stream, policy: end.policy, isInline: settings.isStreamInline)
    setEnd(end, place, fromClient)
    if insertion.result == .noMemory || insertion.result == .tooFar {
      if insertion.result == .noMemory { counters.memoryLimitHits += 1 }
      giveRoom(place, fromClient, insertion.result == .tooFar, packet, &step.events, into: &output)
      end = fromClient ? flows[place].session.client : flows[place].session.server
      insertion = streams.insert(
        data, at: sequence, &end.stream, policy: end.policy, isInline: settings.isStreamInline)
      setEnd(end, place, fromClient)
    }
    switch insertion.result {
    case .kept, .isOld: break
    case .tooFar, .noMemory:
      step.events.insert(insertion.result == .noMemory ? .insertMemoryLimit : .insertLimit)
      _ = except(settings.streamMemoryPolicy, place, .streamMemory, into: &output)
      return nil
    }
    if insertion.isDifferent {
      counters.overlapsDifferent += 1
      step.events.insert(.overlapDifferentData)
    }
    return Stored(
      sequence: sequence, isKept: insertion.result == .kept,
      isRewritten: insertion.isRewritten && settings.isStreamInline)
  }

  private mutating func setEnd(_ end: TCPEnd, _ place: Int, _ fromClient: Bool) {
    if fromClient { flows[place].session.client = end } else { flows[place].session.server = end }
  }

  /// How many of the segment's bytes are above the depth; nil: all.
  private mutating func clip(
    _ segment: TCPSegment, _ track: inout StreamTrack, _ events: inout StreamEvents
  ) -> Int? {
    let begin = Int(sequenceDistance(segment.dataStart, track.origin))
    guard begin + Int(segment.length) > settings.streamDepth else { return nil }
    if begin <= settings.streamDepth, sequenceDistance(segment.dataStart, track.inspected) <= 1 << 20 {
      counters.depthReached += 1
      events.insert(.depthReached)
    }
    return max(0, settings.streamDepth - begin)
  }

  /// Makes room for a segment: by giving up what was inspected of other streams, or by inspecting of this one what was not acknowledged.
  private mutating func giveRoom(
    _ place: Int, _ fromClient: Bool, _ ofThisStream: Bool, _ packet: DecodedPacket, _ events: inout StreamEvents,
    into output: inout InspectionOutput
  ) {
    if ofThisStream {
      counters.inspectedEarly += 1
      inspectStream(
        place, ofClient: fromClient, .all, Timestamp(nanoseconds: flows[place].lastSeen), .wire, &events,
        into: &output)
      return
    }
    giveUpOverlaps()
  }
}
