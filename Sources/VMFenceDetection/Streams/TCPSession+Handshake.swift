import VMFencePackets

/// What following a segment found.
struct TCPStep {
  var events = StreamEvents()
  /// Both ends take it for a part of their connection: its payload belongs into the stream.
  var isAccepted = false
  /// It opened another connection between the same ends; its sender is the client.
  var isNewConnection = false
  /// The sender turned out to be the server (true) or the client.
  var serverIsSender: Bool?
  /// A connection in midstream, which was not taken up.
  var isMidstream = false
  /// One that was, with this segment.
  var isTakenUp = false
  /// The number of an urgent byte that it announces.
  var urgent: UInt32?
}

/// From the first packet to an established connection.
extension TCPSession {
  /// SYNs, and SYN/ACKs, with other numbers than the first that are still an accident.
  static let synLimit: UInt8 = 10
  static let synAckLimit: UInt8 = 5

  /// `fromClient`: by what was known before; for a new session its sender is the client.
  mutating func open(
    _ segment: TCPSegment, fromClient: Bool, _ settings: TCPSettings, at seconds: UInt32, into step: inout TCPStep
  ) {
    let flags = segment.flags
    if flags.contains(.syn), flags.contains(.fin) { step.events.insert(.finSyn) }
    if flags.contains(.rst) {
      step.events.insert(.resetNoSession)
      return
    }
    if flags.contains(.syn), !flags.contains(.ack) {
      guard !flags.contains(.fin) else { return }
      if segment.length > 0 { step.events.insert(.dataOnSyn) }
      begin(segment, at: seconds)
      step.isAccepted = true
      return
    }
    if flags.contains(.fin), !flags.contains(.syn) { step.events.insert(.finNoSession) }
    step.events.insert(.noHandshake)
    guard settings.picksUpMidstream else {
      step.isMidstream = true
      return
    }
    guard flags.contains(.ack) else { return }
    takeUp(segment, fromClient: fromClient, settings, at: seconds, into: &step)
  }

  /// A SYN without ACK.
  mutating func begin(_ segment: TCPSegment, at seconds: UInt32) {
    let (former, latter) = (client, server)
    self = TCPSession()
    (client.policy, server.policy) = (former.policy, latter.policy)
    (client.timeToLive, server.timeToLive) = (former.timeToLive, latter.timeToLive)
    state = .synSent
    marks = .clientSeen
    client.begin(segment.sequence, sent: segment.length)
    client.announce(segment.window)
    client.note(segment, at: seconds)
    if segment.scale != 255 {
      client.scale = segment.scale
      client.marks.insert(.scales)
    }
  }

  /// Midstream: nothing is known but this segment.
  private mutating func takeUp(
    _ segment: TCPSegment, fromClient: Bool, _ settings: TCPSettings, at seconds: UInt32, into step: inout TCPStep
  ) {
    marks.insert(.midstream)
    step.isTakenUp = true
    // What was agreed on is not known: the most generous.
    client.scale = 14
    server.scale = 14
    if segment.flags.contains(.syn) {
      step.serverIsSender = true
      state = .synReceived
      marks.insert(.serverSeen)
      server.begin(segment.sequence, sent: segment.length)
      server.announce(segment.window)
      server.note(segment, at: seconds)
      client.begin(segment.acknowledgement &- 1, sent: 0)
      client.edge = segment.acknowledgement &+ segment.window << 14
      client.marks.insert(.hasEdge)
      step.isAccepted = true
      return
    }
    state = .established
    var (sender, receiver) = (TCPEnd(), TCPEnd())
    sender.policy = client.policy
    receiver.policy = server.policy
    (sender.scale, receiver.scale) = (14, 14)
    sender.begin(segment.sequence &- 1, sent: segment.length)
    sender.announce(segment.window << 14)
    sender.note(segment, at: seconds)
    receiver.begin(segment.acknowledgement &- 1, sent: 0)
    receiver.edge = segment.acknowledgement &+ sender.window
    receiver.marks.insert(.hasEdge)
    if segment.flags.contains(.fin) { sender.noteFin(segment) }
    (client, server) = fromClient ? (sender, receiver) : (receiver, sender)
    marks.insert(fromClient ? .clientSeen : .serverSeen)
    if settings.picksUpOneSide { marks.insert(.oneSided) }
    if let offset = segment.urgentOffset { step.urgent = segment.sequence &+ UInt32(offset) }
    step.isAccepted = true
  }

  // MARK: SYN sent

  mutating func followSynSent(
    _ segment: TCPSegment, fromClient: Bool, _ settings: TCPSettings, at seconds: UInt32, into step: inout TCPStep
  ) {
    let flags = segment.flags
    if flags.contains(.rst) {
      // RFC 9293 §3.10.7.3: only one that acknowledges the SYN. One from the client ends nothing: its SYN may be answered yet.
      guard !fromClient else { return }
      if !hasValidEcho(segment) {
        step.events.insert(.invalidTimestamp)
      } else if flags.contains(.ack), acknowledgesSYN(segment) {
        end(byServer: true, &step)
      } else {
        step.events.insert(.resetInvalidAck)
      }
      return
    }
    if !fromClient, segment.hasTimestamp, !hasValidEcho(segment) {
      step.events.insert(.invalidTimestamp)
      return
    }
    switch (flags.contains(.syn), flags.contains(.ack)) {
    case (true, true): followSynAck(segment, fromClient: fromClient, at: seconds, into: &step)
    case (true, false): followSecondSyn(segment, fromClient: fromClient, at: seconds, into: &step)
    case (false, true) where fromClient:
      followLoneClient(segment, settings, at: seconds, into: &step)
    default: break
    }
  }

  /// An answer that echoes another number than the SYN had is no answer to it (RFC 7323 §3.2). 0 is what some send instead.
  private func hasValidEcho(_ segment: TCPSegment) -> Bool {
    !segment.hasTimestamp || !client.marks.contains(.stamps) || segment.echo == 0 || segment.echo == client.timestamp
  }

  private func acknowledgesSYN(_ segment: TCPSegment) -> Bool {
    let distance = segment.acknowledgement &- client.initial &- 1
    return distance <= client.next &- client.initial &- 1
      || marks.contains(.hasAlternative) && !marks.contains(.alternativeIsServers)
        && segment.acknowledgement == alternative &+ 1
  }

  private mutating func followSynAck(
    _ segment: TCPSegment, fromClient: Bool, at seconds: UInt32, into step: inout TCPStep
  ) {
    if fromClient {
      guard marks.contains(.fourWay) else {
        step.events.insert(.synAckInWrongDirection)
        return
      }
      // The client answers the server's SYN.
      if segment.acknowledgement != server.initial &+ 1 {
        step.events.insert(.fourWaySynAckWrongAck)
      } else if segment.sequence != client.initial {
        step.events.insert(.fourWaySynAckWrongSyn)
      } else {
        state = .synReceived
        allow(segment, fromClient: true)
      }
      return
    }
    guard acknowledgesSYN(segment) else {
      step.events.insert(.synAckWrongAck)
      return
    }
    if segment.acknowledgement == alternative &+ 1, marks.contains(.hasAlternative),
      segment.acknowledgement != client.initial &+ 1
    {
      client.begin(alternative, sent: 0)
    }
    marks.remove(.hasAlternative)
    if client.next != client.initial &+ 1, segment.acknowledgement == client.initial &+ 1 {
      // The data of the SYN was not taken.
      step.events.insert(.fastOpenDataIgnored)
      client.begin(client.initial, sent: 0)
    }
    marks.insert(.serverSeen)
    server.begin(segment.sequence, sent: segment.length)
    server.note(segment, at: seconds)
    if segment.scale != 255, client.marks.contains(.scales) {
      server.scale = segment.scale
      server.marks.insert(.scales)
    } else {
      client.scale = 0
    }
    if !segment.hasTimestamp { client.marks.remove(.stamps) }
    state = .synReceived
    repetitions = 0
    allow(segment, fromClient: false)
    step.isAccepted = true
  }

  private mutating func followSecondSyn(
    _ segment: TCPSegment, fromClient: Bool, at seconds: UInt32, into step: inout TCPStep
  ) {
    if !fromClient {
      step.events.insert(.fourWayHandshake)
      marks.formUnion([.fourWay, .serverSeen])
      server.begin(segment.sequence, sent: segment.length)
      server.note(segment, at: seconds)
      server.announce(segment.window)
      if segment.scale != 255 {
        server.scale = segment.scale
        server.marks.insert(.scales)
      }
      return
    }
    guard segment.sequence != client.initial else {
      step.events.insert(.retransmission)
      return
    }
    repetitions = repetitions == .max ? .max : repetitions + 1
    if repetitions > Self.synLimit { step.events.insert(.synFlood) }
    // Which of them the server took, its answer tells.
    alternative = segment.sequence
    marks.insert(.hasAlternative)
    marks.remove(.alternativeIsServers)
  }

  /// Data or an acknowledgement of a client whose SYN nobody was seen to answer.
  private mutating func followLoneClient(
    _ segment: TCPSegment, _ settings: TCPSettings, at seconds: UInt32, into step: inout TCPStep
  ) {
    guard settings.picksUpOneSide || settings.picksUpMidstream else { return }
    guard segment.sequence == client.initial &+ 1 || segment.sequence == client.next else {
      step.events.insert(.asyncWrongSequence)
      return
    }
    state = .established
    marks.insert(settings.picksUpOneSide ? .oneSided : .midstream)
    server.begin(segment.acknowledgement &- 1, sent: 0)
    (client.scale, server.scale) = (14, 14)
    followEstablished(segment, fromClient: true, at: seconds, into: &step)
  }

  // MARK: SYN received

  mutating func followSynReceived(
    _ segment: TCPSegment, fromClient: Bool, _ settings: TCPSettings, at seconds: UInt32, into step: inout TCPStep
  ) {
    let flags = segment.flags
    if flags.contains(.syn) {
      followRepeatedSyn(segment, fromClient: fromClient, &step)
      return
    }
    if flags.contains(.rst) {
      followReset(segment, fromClient: fromClient, &step)
      return
    }
    guard flags.contains(.ack) else { return }
    let four = marks.contains(.fourWay)
    // Before the client's last word no data comes from the server, unless the client's SYN had some; inline, none of it is lost.
    if !fromClient, !four, segment.length > 0, settings.isStreamInline, !settings.picksUpOneSide,
      !marks.contains(.midstream), client.next == client.initial &+ 1
    {
      step.events.insert(.ackDataInject)
      return
    }
    guard fromClient != four || segment.length > 0 else {
      step.events.insert(.ackInWrongDirection)
      return
    }
    if fromClient, marks.contains([.hasAlternative, .alternativeIsServers]),
      segment.acknowledgement == alternative &+ 1
    {
      server.begin(alternative, sent: 0)
      server.edge = server.next &+ client.window << UInt32(client.scale)
      server.marks.insert(.hasEdge)
    }
    marks.remove(.hasAlternative)
    let (own, other) = fromClient ? (client, server) : (server, client)
    let rightAck = segment.acknowledgement &- other.initial &- 1 <= other.next &- other.initial &- 1
    let distance = sequenceDistance(segment.sequence, own.acknowledged)
    let rightSequence =
      distance >= 0 && (!own.marks.contains(.hasEdge) || sequenceDistance(segment.sequence, own.edge) <= 0)
    guard rightAck, rightSequence else {
      step.events.insert(
        four
          ? (rightAck ? .fourWayWrongSequence : .fourWayInvalidAck)
          : (rightSequence ? .rightSequenceWrongAck : .wrongSequenceWrongAck))
      return
    }
    state = .established
    if !marks.contains(.midstream) { marks.insert(.handshakeSeen) }
    followEstablished(segment, fromClient: fromClient, at: seconds, into: &step)
  }

  private mutating func followRepeatedSyn(_ segment: TCPSegment, fromClient: Bool, _ step: inout TCPStep) {
    if segment.flags.contains(.ack) {
      if fromClient {
        if !marks.contains(.fourWay) { step.events.insert(.synAckToServer) }
        return
      }
      if segment.acknowledgement != client.acknowledged {
        step.events.insert(.synAckResendOtherAck)
      } else if segment.sequence != server.initial {
        step.events.insert(.synAckResendOtherSequence)
        repetitions = repetitions == .max ? .max : repetitions + 1
        if repetitions > Self.synAckLimit { step.events.insert(.synAckFlood) }
        // The client's answer tells which it took.
        alternative = segment.sequence
        marks.formUnion([.hasAlternative, .alternativeIsServers])
      } else {
        step.events.insert(.retransmission)
      }
      return
    }
    if !fromClient {
      if !marks.contains(.fourWay) { step.events.insert(.synToClient) }
    } else if segment.sequence != client.initial {
      step.events.insert(.synResendOtherSequence)
    }
  }
}
