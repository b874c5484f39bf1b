import VMFenceCore
import VMFencePackets

/// What is kept of one flow. All zeros is "no flow".
struct Flow: BitwiseCopyable {
  var key: FlowKey
  var hash: UInt64
  /// Nanoseconds, packet time. When this connection began: a new one between the same ends is another flow.
  var firstSeen: Int64
  var lastSeen: Int64
  var counts = Counts()
  var client = TCPEnd()
  var server = TCPEnd()
  /// A SYN that was seen on a flow that already was there: the number that its answer has to acknowledge.
  var pendingAcknowledgement: UInt32
  /// The rule that gave the verdict on the whole flow, of the rules of `verdictGeneration`.
  var verdictRule: UInt32
  var verdictGeneration: UInt32
  var state: State
  var marks: Marks

  struct TCPEnd: BitwiseCopyable {
    /// The sequence number after the highest sent so far.
    var next: UInt32 = 0
    /// That of its SYN.
    var initial: UInt32 = 0
  }

  /// What the two sides have sent. Bytes are those of whole frames.
  struct Counts: BitwiseCopyable {
    var clientBytes: UInt64 = 0
    var serverBytes: UInt64 = 0
    var clientPackets: UInt32 = 0
    var serverPackets: UInt32 = 0

    mutating func add(bytes: Int, toServer: Bool) {
      if toServer {
        clientBytes &+= UInt64(bytes)
        clientPackets &+= 1
      } else {
        serverBytes &+= UInt64(bytes)
        serverPackets &+= 1
      }
    }
  }

  /// How far a flow has come. Raw values are stored; 0 is never that of a flow.
  struct State: Equatable, BitwiseCopyable {
    var rawValue: UInt8
    /// TCP: a SYN was seen. Others: only one side has sent.
    static let opening = State(rawValue: 1)
    /// TCP: the SYN was answered.
    static let answered = State(rawValue: 2)
    /// TCP: the client acknowledged the server's own sequence number, so it receives what is sent to its address. Others: both sides
    /// have sent.
    static let established = State(rawValue: 3)
    /// TCP: picked up without its handshake.
    static let midstream = State(rawValue: 4)
  }

  struct Marks: OptionSet, BitwiseCopyable {
    var rawValue: UInt16
    /// The client is the first end of the key.
    static let clientIsFirst = Marks(rawValue: 1)
    static let clientClosed = Marks(rawValue: 2)
    static let serverClosed = Marks(rawValue: 4)
    static let wasReset = Marks(rawValue: 8)
    /// `pendingAcknowledgement` is set; the SYN came from the first end of the key or not.
    static let hasPendingSYN = Marks(rawValue: 16)
    static let pendingIsFirst = Marks(rawValue: 32)
    /// Verdicts on the flow as a whole.
    static let isPassed = Marks(rawValue: 64)
    static let isDropped = Marks(rawValue: 128)
    static let isBypassed = Marks(rawValue: 256)
    /// A packet of this direction was compared with the rules about addresses alone.
    static let clientAddressesSeen = Marks(rawValue: 512)
    static let serverAddressesSeen = Marks(rawValue: 1024)
  }

  var isClosing: Bool {
    marks.contains(.wasReset) || marks.contains(.clientClosed) && marks.contains(.serverClosed)
  }

  /// For rules: data of the flow's two ends, with the handshake seen or not. A detector that was restarted must not be blind to the
  /// connections that stood before it.
  var isEstablished: Bool { state == .established || state == .midstream }

  /// Not 0; another one for each flow that lies at a place, and for each new connection between the same ends.
  var identity: UInt64 { (hash ^ UInt64(bitPattern: firstSeen) &* 0x9E37_79B9_7F4A_7C15) | 1 }

  /// What each side of a TCP connection has sent, by its sequence numbers: SYN and FIN count as one. nil: its SYN was not seen.
  var sequenceSizes: (client: UInt64?, server: UInt64?) {
    guard state != .midstream else { return (nil, nil) }
    return (UInt64(client.next &- client.initial), state == .opening ? nil : UInt64(server.next &- server.initial))
  }

  /// How long the flow is kept after its last packet, in nanoseconds.
  var timeout: Int64 {
    if isClosing { return FlowTimeouts.closing }
    if key.ipProtocol != 6 { return state == .established ? FlowTimeouts.exchange : FlowTimeouts.opening }
    return isEstablished ? FlowTimeouts.established : FlowTimeouts.opening
  }

  /// What eviction spares: the higher the better. A flow that costs a flooder nothing to make is worth least.
  var worth: Int {
    if isClosing { return 0 }
    return switch state {
    case .established: key.ipProtocol == 6 ? 4 : 3
    case .midstream: 2
    default: 1
    }
  }
}

/// In nanoseconds of packet time.
enum FlowTimeouts {
  static let opening: Int64 = 30_000_000_000
  static let closing: Int64 = 10_000_000_000
  /// UDP, ICMP and others after an answer.
  static let exchange: Int64 = 180_000_000_000
  static let established: Int64 = 3_600_000_000_000
}

extension Flow {
  /// Follows a packet of this flow. `isForward`: it came from the first end of the key.
  mutating func follow(_ packet: DecodedPacket, isForward: Bool, at now: Int64) {
    guard packet.transport == .tcp else {
      if isForward != marks.contains(.clientIsFirst) { state = .established }
      return
    }
    let flags = packet.tcpFlags
    if flags.contains(.syn) {
      if flags.contains(.ack) {
        followAnswer(packet, isForward: isForward, at: now)
      } else if !flags.contains(.rst) {
        followOpening(packet, isForward: isForward, at: now)
      }
    } else if flags.contains(.rst) {
      followReset(packet, isForward: isForward)
    } else {
      followData(packet, isForward: isForward)
    }
  }

  /// The state of a new flow after its first packet.
  mutating func begin(_ packet: DecodedPacket, isForward: Bool) {
    marks = isForward ? .clientIsFirst : []
    state = .opening
    guard packet.transport == .tcp else { return }
    let flags = packet.tcpFlags
    let end = TCPEnd(next: packet.tcpEnd, initial: packet.tcpSequence)
    if flags.contains(.syn), !flags.contains(.ack) {
      client = end
      return
    }
    if flags.contains(.syn) {
      // Its SYN was missed: the sender is the server.
      marks = isForward ? [] : .clientIsFirst
      server = end
      client.next = packet.tcpAcknowledgement
      state = .answered
      return
    }
    if flags.contains(.rst) { marks.insert(.wasReset) }
    state = .midstream
    // A guess: the well-known port is the server's.
    if packet.sourcePort < 1024, packet.destinationPort >= 1024 {
      marks.formSymmetricDifference(.clientIsFirst)
      server.next = end.next
      client.next = packet.tcpAcknowledgement
    } else {
      client.next = end.next
      server.next = packet.tcpAcknowledgement
    }
  }

  private func isFromClient(_ isForward: Bool) -> Bool { isForward == marks.contains(.clientIsFirst) }

  private mutating func followOpening(_ packet: DecodedPacket, isForward: Bool, at now: Int64) {
    if state == .opening, isFromClient(isForward) {
      client = TCPEnd(next: packet.tcpEnd, initial: packet.tcpSequence)
      return
    }
    if isClosing {
      // The same ends, another connection.
      (client, server) = (TCPEnd(), TCPEnd())
      firstSeen = now
      begin(packet, isForward: isForward)
      return
    }
    // Perhaps a new connection, perhaps forged to confuse: the other end's answer decides.
    pendingAcknowledgement = packet.tcpSequence &+ 1
    marks.insert(.hasPendingSYN)
    if isForward { marks.insert(.pendingIsFirst) } else { marks.remove(.pendingIsFirst) }
  }

  private mutating func followAnswer(_ packet: DecodedPacket, isForward: Bool, at now: Int64) {
    let end = TCPEnd(next: packet.tcpEnd, initial: packet.tcpSequence)
    if marks.contains(.hasPendingSYN), isForward != marks.contains(.pendingIsFirst),
      packet.tcpAcknowledgement == pendingAcknowledgement
    {
      let clientIsFirst = marks.contains(.pendingIsFirst)
      marks = clientIsFirst ? .clientIsFirst : []
      client = TCPEnd(next: pendingAcknowledgement, initial: pendingAcknowledgement &- 1)
      server = end
      state = .answered
      firstSeen = now
      return
    }
    guard state == .opening, !isFromClient(isForward), packet.tcpAcknowledgement == client.initial &+ 1 else { return }
    server = end
    state = .answered
  }

  private mutating func followReset(_ packet: DecodedPacket, isForward: Bool) {
    let fromClient = isFromClient(isForward)
    if state == .opening {
      // RFC 9293 §3.10.7.3: only an answer that acknowledges the SYN.
      if fromClient || packet.tcpAcknowledgement == client.initial &+ 1 { marks.insert(.wasReset) }
      return
    }
    let distance = Int32(bitPattern: packet.tcpSequence &- (fromClient ? client.next : server.next))
    if distance >= -1, distance <= 1 << 20 { marks.insert(.wasReset) }
  }

  private mutating func followData(_ packet: DecodedPacket, isForward: Bool) {
    let fromClient = isFromClient(isForward)
    let acknowledges = packet.tcpFlags.contains(.ack)
    switch state {
    case .answered where fromClient && acknowledges:
      // The client knows a number that only the server's answer told it.
      let known = packet.tcpAcknowledgement &- server.initial
      if known >= 1, known <= server.next &- server.initial { state = .established }
    case .opening:
      state = .midstream
      if !fromClient { server.initial = packet.tcpSequence }
    default: break
    }
    let end = packet.tcpEnd
    if fromClient {
      if client.next == 0 || Int32(bitPattern: end &- client.next) > 0 { client.next = end }
      if packet.tcpFlags.contains(.fin) { marks.insert(.clientClosed) }
    } else {
      if server.next == 0 || Int32(bitPattern: end &- server.next) > 0 { server.next = end }
      if packet.tcpFlags.contains(.fin) { marks.insert(.serverClosed) }
    }
  }
}

extension DecodedPacket {
  /// The sequence number after this segment.
  var tcpEnd: UInt32 {
    tcpSequence &+ UInt32(truncatingIfNeeded: payloadLength) &+ (tcpFlags.contains(.syn) ? 1 : 0)
      &+ (tcpFlags.contains(.fin) ? 1 : 0)
  }
}
