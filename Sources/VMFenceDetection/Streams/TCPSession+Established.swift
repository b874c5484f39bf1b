import VMFencePackets

/// From an established connection to its end.
extension TCPSession {
  /// Follows a segment of a known or a new connection.
  ///
  /// - `fromClient`: for a new one, what it is taken for.
  /// - `seconds`: packet time.
  mutating func follow(
    _ segment: TCPSegment, fromClient: Bool, _ settings: TCPSettings, at seconds: UInt32
  ) -> TCPStep {
    var step = TCPStep()
    marks.remove(.isOver)
    if !segment.flags.contains(.ack), segment.acknowledgement != 0, !segment.flags.contains(.rst) {
      step.events.insert(.brokenAck)
    }
    if segment.length > 0, segment.flags.rawValue & 0x3F == 0 { step.events.insert(.noFlags) }
    guard arrives(segment, fromClient: fromClient, settings) else {
      step.events.insert(.lowTTL)
      return step
    }
    guard isDelivered(segment, fromClient: fromClient) else { return step }
    let isNew = state == .none
    switch state {
    case .none: open(segment, fromClient: fromClient, settings, at: seconds, into: &step)
    case .synSent: followSynSent(segment, fromClient: fromClient, settings, at: seconds, into: &step)
    case .synReceived: followSynReceived(segment, fromClient: fromClient, settings, at: seconds, into: &step)
    case .closed where opensAlternative(segment, fromClient: fromClient, settings): step.isNewConnection = true
    default: followEstablished(segment, fromClient: fromClient, at: seconds, into: &step)
    }
    if isNew { noteDelivery(segment, fromClient: fromClient != (step.serverIsSender ?? false)) }
    if step.isAccepted, !marks.contains(.midstream) { lookAtSender(segment, fromClient: fromClient, &step) }
    if settings.hasLimits, step.isAccepted { lookAtLimits(segment, fromClient: fromClient, settings, &step) }
    return step
  }

  /// What is only told of where somebody set a limit.
  private mutating func lookAtLimits(
    _ segment: TCPSegment, fromClient: Bool, _ settings: TCPSettings, _ step: inout TCPStep
  ) {
    // A SYN's window is not scaled (RFC 7323 §2.2).
    let scale = segment.flags.contains(.syn) ? 0 : UInt32(self[ofClient: fromClient].scale)
    if settings.windowMaximum > 0, segment.window << scale > settings.windowMaximum {
      step.events.insert(.windowTooLarge)
    }
    guard settings.smallSegmentCount > 0, segment.length > 0 else { return }
    guard segment.length <= settings.smallSegmentSize else {
      self[ofClient: fromClient].smallSegments = 0
      return
    }
    let count = min(self[ofClient: fromClient].smallSegments, UInt8.max - 1) + 1
    let isMany = count >= settings.smallSegmentCount
    self[ofClient: fromClient].smallSegments = isMany ? 0 : count
    if isMany { step.events.insert(.smallSegments) }
  }

  /// A receiver's window that is this small lets nothing through.
  private static let closedWindow: UInt32 = 4

  /// What a connection's own segments tell of who sends them: from another station than its handshake, or with no wish for an answer.
  private mutating func lookAtSender(_ segment: TCPSegment, fromClient: Bool, _ step: inout TCPStep) {
    if segment.flags.contains(.syn) {
      self[ofClient: fromClient].station = segment.station
      return
    }
    guard marks.contains(.handshakeSeen), isEstablished else { return }
    let known = self[ofClient: fromClient].station
    if known != 0, segment.station != 0, segment.station != known {
      step.events.insert(fromClient ? .clientMoved : .serverMoved)
    }
    if segment.window <= Self.closedWindow, !segment.flags.contains(.fin),
      segment.acknowledgement == self[ofClient: !fromClient].initial &+ 1
    {
      step.events.insert(.windowClosed)
    }
  }

  /// Whether it can come as far as its receiver, by how far packets have to come here, and by how far others of this end came.
  private mutating func arrives(_ segment: TCPSegment, fromClient: Bool, _ settings: TCPSettings) -> Bool {
    guard segment.timeToLive >= settings.lowestTTL else { return false }
    guard settings.deepestDrop > 0 else { return true }
    let first = fromClient ? client.timeToLive : server.timeToLive
    if state == .none || first == 0 {
      if fromClient { client.timeToLive = segment.timeToLive } else { server.timeToLive = segment.timeToLive }
      return true
    }
    return Int(segment.timeToLive) >= Int(first) - settings.deepestDrop
  }

  /// Whether its receiver's stack hands it on to the connection at all. One with a signature that was not agreed on is thrown away, and so is
  /// one to a group of stations, unless nothing else has come from this end.
  private mutating func isDelivered(_ segment: TCPSegment, fromClient: Bool) -> Bool {
    let byGroup = fromClient ? Marks.clientByGroup : .serverByGroup
    guard segment.isToGroup || segment.isSigned else {
      if marks.contains(byGroup) { marks.remove(byGroup) }
      return true
    }
    guard state != .none else { return true }
    if segment.isSigned, !marks.contains(.isSigned), segment.flags.intersection([.syn, .ack]) != .syn { return false }
    guard segment.isToGroup else {
      marks.remove(byGroup)
      return true
    }
    if marks.contains(.midstream), !marks.contains(fromClient ? .clientSeen : .serverSeen) { marks.insert(byGroup) }
    return marks.contains(byGroup)
  }

  /// Of the first segment.
  private mutating func noteDelivery(_ segment: TCPSegment, fromClient: Bool) {
    if segment.isToGroup { marks.insert(fromClient ? .clientByGroup : .serverByGroup) }
    if segment.isSigned { marks.insert(.isSigned) }
  }

  mutating func followEstablished(
    _ segment: TCPSegment, fromClient: Bool, at seconds: UInt32, into step: inout TCPStep
  ) {
    let flags = segment.flags
    if flags.contains(.syn) {
      followLateSyn(segment, fromClient: fromClient, at: seconds, &step)
      return
    }
    if flags.contains(.rst) {
      followReset(segment, fromClient: fromClient, &step)
      return
    }
    marks.insert(fromClient ? .clientSeen : .serverSeen)
    guard isInTime(segment, fromClient, at: seconds) else {
      step.events.insert(.invalidTimestamp)
      return
    }
    if segment.length > 0, marks.contains(fromClient ? .serverReset : .clientReset) { step.events.insert(.dataToReset) }
    reopen(fromClient, segment, &step)
    if !segment.hasTimestamp, client.marks.contains(.stamps), server.marks.contains(.stamps) {
      step.events.insert(.timestampMissing)
    }
    // Hosts take no segment without it (RFC 9293 §3.10.7.4).
    guard flags.contains(.ack) else { return }
    guard isInWindow(segment, fromClient, &step), acknowledgementIsValid(segment, fromClient, &step) else { return }
    if isBadWindowUpdate(segment, fromClient) {
      step.events.insert(.badWindowUpdate)
    }
    let next = self[ofClient: fromClient].next
    if segment.length > 0, sequenceDistance(segment.sequence, next) < 0 { step.events.insert(.retransmission) }
    if let offset = segment.urgentOffset {
      // What points to something that came already is not taken notice of.
      let position = segment.sequence &+ UInt32(offset)
      if sequenceDistance(position, self[ofClient: fromClient].arrived.expected) >= 0 { step.urgent = position }
    }
    self[ofClient: fromClient].take(segment)
    acknowledge(segment, fromClient: fromClient)
    if marks.contains(.hasAlternative), fromClient == marks.contains(.alternativeIsServers) {
      marks.insert(.goesOn)
    }
    if flags.contains(.fin) { followFin(segment, fromClient: fromClient, &step) }
    if marks.contains(.oneSided) { advanceOneSided(fromClient, upTo: segment.sequence) }
    // RFC 7323 §4.3: of a segment that is the next after what was acknowledged, or older. One from farther on says nothing yet.
    if sequenceDistance(segment.sequence, self[ofClient: fromClient].acknowledged) <= 0 {
      self[ofClient: fromClient].note(segment, at: seconds)
    }
    advanceClosing()
    step.isAccepted = true
  }

  /// What is sent after the FIN of a connection whose other direction is not seen counts as acknowledged.
  private mutating func advanceOneSided(_ fromClient: Bool, upTo number: UInt32) {
    if marks.contains([.clientSeen, .serverSeen]) {
      marks.remove(.oneSided)
      return
    }
    if sequenceDistance(number, self[ofClient: fromClient].acknowledged) > 0 {
      self[ofClient: fromClient].acknowledged = number
      self[ofClient: fromClient].arrived.advance(to: number, next: self[ofClient: fromClient].next)
    }
  }

  // MARK: Validity
  //
  // Ends are asked where they lie: each is longer than a segment is worth.

  /// RFC 7323 §5: a segment with an older timestamp than the last is not taken, except after 24 days of silence. Linux takes one that is
  /// one too old, and whatever comes after a timestamp of 0, with which some systems begin.
  private func isInTime(_ segment: TCPSegment, _ fromClient: Bool, at seconds: UInt32) -> Bool {
    guard segment.hasTimestamp, self[ofClient: fromClient].marks.contains(.stamps) else { return true }
    let age = Int32(bitPattern: segment.timestamp &- self[ofClient: fromClient].timestamp)
    if age >= 0 || seconds &- self[ofClient: fromClient].timestampTime > 24 * 86_400 { return true }
    return self[ofClient: fromClient].policy == .linux && (age == -1 || self[ofClient: fromClient].timestamp == 0)
  }

  private func isInWindow(_ segment: TCPSegment, _ fromClient: Bool, _ step: inout TCPStep) -> Bool {
    let end = segment.end
    let acknowledged = self[ofClient: fromClient].acknowledged
    if sequenceDistance(end, acknowledged) < 0 {
      // One byte before what is expected: it asks whether the other end is alive.
      let asksForLife = segment.length <= 1 && segment.sequence == acknowledged &- 1
      if segment.length > 0 {
        if !asksForLife { step.events.insert(.spuriousRetransmission) }
      } else if !asksForLife, !marks.contains(.midstream),
        !self[ofClient: fromClient].stream.marks.contains(.hasGap)
      {
        step.events.insert(state == .closeWait ? .closeWaitBeforeLastAck : .establishedBeforeLastAck)
        return false
      }
      return true
    }
    let known = self[ofClient: fromClient].marks
    if known.contains(.hasEdge), sequenceDistance(end, self[ofClient: fromClient].edge) > 0,
      !marks.contains(.oneSided)
    {
      step.events.insert(outOfWindowEvent)
      return false
    }
    if known.contains(.sentFin), segment.length > 0, sequenceDistance(end, self[ofClient: fromClient].final) > 0 {
      // Nothing follows a FIN.
      step.events.insert(.dataAfterFin)
      step.events.insert(outOfWindowEvent)
      return false
    }
    return true
  }

  private func acknowledgementIsValid(_ segment: TCPSegment, _ fromClient: Bool, _ step: inout TCPStep) -> Bool {
    let number = segment.acknowledgement
    if sequenceDistance(number, self[ofClient: !fromClient].next) <= 0 {
      let age = sequenceDistance(self[ofClient: !fromClient].acknowledged, number)
      guard age > 0, isTooOld(UInt32(age), fromClient) else { return true }
    } else {
      // More than was seen of it: lost by the capture, if its window allowed it.
      let known = self[ofClient: !fromClient].marks
      if marks.contains(.oneSided) || !known.contains(.hasEdge) { return true }
      if sequenceDistance(number, self[ofClient: !fromClient].edge) <= 0, !known.contains(.sentFin),
        !sentNoMore(segment, fromClient)
      {
        return true
      }
      if known.contains(.sentFin) { step.events.insert(.ackBeyondFin) }
    }
    step.events.insert(.invalidAck)
    step.events.insert(state == .established && segment.flags.contains(.fin) ? .finInvalidAck : invalidAckEvent)
    return false
  }

  /// RFC 5961 §5.2: hosts throw a segment away whose acknowledgement lies further back than the largest window that its sender ever offered;
  /// the present ones also one from before their first byte. RFC 9293 §3.10.7.4 alone, as older ones do it, lets it pass.
  ///
  /// `age`: how far behind what was acknowledged before, in bytes.
  private func isTooOld(_ age: UInt32, _ fromClient: Bool) -> Bool {
    guard !self[ofClient: fromClient].policy.takesResetsInWindow, !marks.contains(.oneSided) else { return false }
    let largest = self[ofClient: fromClient].largestWindow
    let window = largest == 0 ? UInt32(Int32.max) : largest
    guard !marks.contains(.midstream) else { return age > window }
    return age > min(window, self[ofClient: !fromClient].acknowledged &- self[ofClient: !fromClient].initial &- 1)
  }

  /// Whether the guest has not sent what a segment to it acknowledges. What it sends passes here before anybody can acknowledge it; so this
  /// holds as long as nothing of the connection was lost here.
  private func sentNoMore(_ segment: TCPSegment, _ fromClient: Bool) -> Bool {
    segment.isToGuest && marks.contains(.handshakeSeen)
      && !self[ofClient: !fromClient].stream.marks.contains(.hasGap)
  }

  /// The window shrinks by more than was sent, though something before was lost: somebody wants to stop the other end.
  private func isBadWindowUpdate(_ segment: TCPSegment, _ fromClient: Bool) -> Bool {
    let window = segment.window << UInt32(self[ofClient: fromClient].scale)
    let former = self[ofClient: fromClient].window
    return window > 0 && window < former && former - window > segment.length
      && sequenceDistance(segment.sequence, self[ofClient: fromClient].next) > 0
      && sequenceDistance(self[ofClient: !fromClient].next, segment.acknowledgement) > 0
  }

  private var outOfWindowEvent: StreamEvent {
    switch state {
    case .finWait1: .finWait1AckWrongSequence
    case .finWait2: .finWait2AckWrongSequence
    case .closing: .closingAckWrongSequence
    case .closeWait: .closeWaitAckOutOfWindow
    case .lastAck: .lastAckWrongSequence
    case .timeWait: .timeWaitWrongSequence
    default: .establishedOutOfWindow
    }
  }

  private var invalidAckEvent: StreamEvent {
    switch state {
    case .finWait1: .finWait1InvalidAck
    case .finWait2: .finWait2InvalidAck
    case .closing: .closingInvalidAck
    case .closeWait: .closeWaitInvalidAck
    case .lastAck: .lastAckInvalidAck
    case .timeWait: .timeWaitInvalidAck
    default: .establishedInvalidAck
    }
  }

  // MARK: Acknowledgements

  private mutating func acknowledge(_ segment: TCPSegment, fromClient: Bool) {
    let window = segment.window << UInt32(self[ofClient: fromClient].scale)
    self[ofClient: fromClient].announce(window)
    self[ofClient: !fromClient].takeAcknowledgement(segment.acknowledgement, window: window)
    self[ofClient: !fromClient].takeSelection(segment)
  }

  /// Of a handshake, where windows are not scaled yet.
  mutating func allow(_ segment: TCPSegment, fromClient: Bool) {
    self[ofClient: fromClient].announce(segment.window)
    self[ofClient: !fromClient].beginWindow(segment.acknowledgement, segment.window)
  }

  // MARK: SYN on an established connection

  private mutating func followLateSyn(
    _ segment: TCPSegment, fromClient: Bool, at seconds: UInt32, _ step: inout TCPStep
  ) {
    if segment.flags.contains(.ack) {
      followLateSynAck(segment, fromClient: fromClient, at: seconds, &step)
      return
    }
    if isClosed && !isClosedByWord(ofClient: fromClient)
      || marks.contains(.midstream) && segment.length == 0 && !fromClient
    {
      step.isNewConnection = true
      return
    }
    if isClosed {
      // The usual way to use the same port again.
    } else if state != .established {
      step.events.insert(.shutdownSynResend)
    } else if !fromClient {
      step.events.insert(.establishedSynToClient)
    } else {
      step.events.insert(
        segment.sequence == client.initial ? .establishedSynResend : .establishedSynOtherSequence)
    }
    // Perhaps a new connection, perhaps forged: the other end's answer decides.
    if segment.sequence != client.initial || !fromClient {
      alternative = segment.sequence
      marks.insert(.hasAlternative)
      if fromClient { marks.remove(.alternativeIsServers) } else { marks.insert(.alternativeIsServers) }
    }
  }

  /// Whether a segment is the first after a SYN that looked out of place, with an answer between that was not seen: its sender closed the connection, and
  /// the other end said nothing since that belongs to it. As for any connection whose SYN is not seen to be answered, the settings have to allow it.
  private func opensAlternative(_ segment: TCPSegment, fromClient: Bool, _ settings: TCPSettings) -> Bool {
    settings.picksUpMidstream || settings.picksUpOneSide ? isAlternative(segment, fromClient: fromClient) : false
  }

  private func isAlternative(_ segment: TCPSegment, fromClient: Bool) -> Bool {
    marks.contains(.hasAlternative) && !marks.contains(.goesOn) && fromClient != marks.contains(.alternativeIsServers)
      && isClosedByWord(ofClient: fromClient) && segment.sequence == alternative &+ 1
      && segment.flags.intersection([.syn, .rst, .ack]) == .ack
  }

  /// Whether nothing but a reset of this end closed the connection: perhaps the other never got it, and its answer to a SYN tells. Where only
  /// one end is seen, no answer will.
  private func isClosedByWord(ofClient isClient: Bool) -> Bool {
    state == .closed && marks.intersection([.clientReset, .serverReset]) == (isClient ? .clientReset : .serverReset)
      && marks.contains([.clientSeen, .serverSeen]) && !marks.contains(.oneSided)
  }

  private mutating func followLateSynAck(
    _ segment: TCPSegment, fromClient: Bool, at seconds: UInt32, _ step: inout TCPStep
  ) {
    if marks.contains(.hasAlternative), segment.acknowledgement == alternative &+ 1,
      fromClient == marks.contains(.alternativeIsServers)
    {
      // The answer to a SYN that looked out of place: the old connection is gone.
      step.isNewConnection = true
      return
    }
    if fromClient {
      step.events.insert(.establishedSynAckToServer)
    } else if segment.acknowledgement != client.initial &+ 1 {
      step.events.insert(.establishedSynAckOtherAck)
    } else if segment.sequence != server.initial {
      step.events.insert(.establishedSynAckOtherSequence)
    } else {
      step.events.insert(.establishedSynAckResend)
    }
  }
}

extension TCPEnd {
  /// What the other end says that it has of this one, and how much more it takes.
  fileprivate mutating func takeAcknowledgement(_ number: UInt32, window: UInt32) {
    if sequenceDistance(number, acknowledged) > 0 {
      acknowledged = number
      // Sent, though not seen.
      if sequenceDistance(number, next) > 0 { next = number }
      arrived.advance(to: number, next: next)
    }
    let limit = number &+ window
    if !marks.contains(.hasEdge) || sequenceDistance(limit, edge) > 0 {
      edge = limit
      marks.insert(.hasEdge)
    }
    if marks.contains(.sentFin), number == final &+ 1 { marks.insert(.finAcknowledged) }
  }

  /// Which numbers of this one the other end says that it has beyond what it acknowledges (RFC 2018): up to where. It says so as long as it has any.
  fileprivate mutating func takeSelection(_ segment: TCPSegment) {
    guard let edge = segment.selectedEdge else {
      if marks.contains(.isSelected) { marks.remove(.isSelected) }
      return
    }
    selected = edge
    marks.insert(.isSelected)
  }

  fileprivate mutating func beginWindow(_ number: UInt32, _ window: UInt32) {
    if sequenceDistance(number, acknowledged) > 0 { acknowledged = number }
    edge = number &+ window
    marks.insert(.hasEdge)
  }

  /// Counts what a segment brings that its receiver takes.
  fileprivate mutating func take(_ segment: TCPSegment) {
    if sequenceDistance(segment.end, next) > 0 { next = segment.end }
    arrived.add(segment.sequence, segment.end, next: next)
  }

  /// Remembers a segment's timestamp.
  mutating func note(_ segment: TCPSegment, at seconds: UInt32) {
    guard segment.hasTimestamp else { return }
    if marks.contains(.stamps), Int32(bitPattern: segment.timestamp &- timestamp) < 0 { return }
    marks.insert(.stamps)
    timestamp = segment.timestamp
    timestampTime = seconds
  }
}
