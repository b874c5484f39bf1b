import VMFencePackets

/// How connections end.
extension TCPSession {
  mutating func followFin(_ segment: TCPSegment, fromClient: Bool, _ step: inout TCPStep) {
    let number = segment.end
    if self[ofClient: fromClient].marks.contains(.sentFin) {
      if number != self[ofClient: fromClient].final {
        step.events.insert(state == .finWait2 ? .finWait2FinWrongSequence : .finWait1FinWrongSequence)
      }
      return
    }
    guard sequenceDistance(number, self[ofClient: fromClient].next) >= 0 else {
      step.events.insert(state == .closeWait ? .closeWaitFinOutOfWindow : .finOutOfWindow)
      return
    }
    self[ofClient: fromClient].noteFin(segment)
    switch state {
    case .established: state = fromClient ? .closeWait : .finWait1
    case .finWait1, .finWait2: state = .closing
    case .closeWait: state = .lastAck
    default: break
    }
  }

  mutating func advanceClosing() {
    if state == .finWait1, server.marks.contains(.finAcknowledged) { state = .finWait2 }
    guard client.marks.contains(.finAcknowledged), server.marks.contains(.finAcknowledged),
      state != .timeWait, state != .closed
    else { return }
    state = .timeWait
    marks.insert(.isOver)
  }

  /// RFC 9293 §3.10.7.4, RFC 5961 §3.2: hosts take a reset at exactly the number that they expect, and answer any other in their window with a
  /// challenge; older ones take all of those. Linux takes one behind the highest segment that came ahead, too, where it acknowledges
  /// selectively (`tcp_validate_incoming` in net/ipv4/tcp_input.c): which that is, it says with every acknowledgement.
  mutating func followReset(_ segment: TCPSegment, fromClient: Bool, _ step: inout TCPStep) {
    let (own, other) = fromClient ? (client, server) : (server, client)
    let isInWindow: Bool =
      own.policy.takesResetsInWindow
      ? sequenceDistance(segment.sequence, own.acknowledged) >= 0
        && (!own.marks.contains(.hasEdge) || sequenceDistance(segment.sequence, own.edge) <= 0)
      : own.expects(segment.sequence) || own.policy == .linux && own.isSelected(upTo: segment.sequence)
    let ackIsValid =
      !segment.flags.contains(.ack) || marks.contains(.midstream)
      || sequenceDistance(segment.acknowledgement, other.next) <= 0
      || other.marks.contains(.hasEdge) && sequenceDistance(segment.acknowledgement, other.edge) <= 0
    guard isInWindow, ackIsValid else {
      if !refusesAlternative(segment, fromClient) { step.events.insert(.resetInvalidAck) }
      return
    }
    end(byServer: !fromClient, &step)
  }

  /// Whether it is the answer to a SYN for another connection, which so does not begin.
  private mutating func refusesAlternative(_ segment: TCPSegment, _ fromClient: Bool) -> Bool {
    guard marks.contains(.hasAlternative), fromClient == marks.contains(.alternativeIsServers),
      segment.flags.contains(.ack), segment.acknowledgement == alternative &+ 1
    else { return false }
    marks.remove(.hasAlternative)
    return true
  }

  /// Ends the connection with a reset.
  mutating func end(byServer: Bool, _ step: inout TCPStep) {
    if state != .closed { marks.insert(.isOver) }
    state = .closed
    marks.insert(byServer ? .serverReset : .clientReset)
  }

  /// Whoever sent a reset and goes on did not send it: the connection stands.
  mutating func reopen(_ fromClient: Bool, _ segment: TCPSegment, _ step: inout TCPStep) {
    let mark = fromClient ? Marks.clientReset : .serverReset
    guard state == .closed, marks.contains(mark) else { return }
    marks.remove(mark)
    step.events.insert(.suspectedResetInject)
    if segment.length > 0 { step.events.insert(.dataAfterReset) }
    if !wasReset { state = .established }
  }
}

extension TCPEnd {
  /// Whether a reset with this number is at the one that its receiver expects, as far as that is known. A FIN takes a number, and some systems send their
  /// reset with that of a FIN that they sent, which is forgiven to them.
  func expects(_ number: UInt32) -> Bool {
    guard !arrived.isVague else { return false }
    if number == arrived.expected { return true }
    return marks.contains(.sentFin) && arrived.expected == final && number == final &+ 1
      || marks.contains(.sentFin) && arrived.expected == final &+ 1 && number == final
  }

  /// Whether the other end has numbers of this one up to here, and none beyond, behind a hole.
  func isSelected(upTo number: UInt32) -> Bool { marks.contains(.isSelected) && number == selected }

  mutating func noteFin(_ segment: TCPSegment) {
    final = segment.end
    next = segment.end &+ 1
    if arrived.expected == final { arrived.advance(to: next, next: next) }
    marks.insert(.sentFin)
  }
}
