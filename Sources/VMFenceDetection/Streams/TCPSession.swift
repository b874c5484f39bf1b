import VMFenceCore
import VMFencePackets

/// A TCP connection as both ends see it, as far as it can be told from outside (RFC 9293). All zeros: nothing is known of it.
struct TCPSession: BitwiseCopyable {
  /// The client, the server.
  private var ends: InlineArray<2, TCPEnd> = InlineArray(repeating: TCPEnd())
  var state = State.none
  var marks: Marks = []
  /// Second SYNs or SYN/ACKs with other numbers than the first.
  var repetitions: UInt8 = 0
  /// A number from a second SYN or SYN/ACK: the answer to it decides which one counts.
  var alternative: UInt32 = 0

  enum State: UInt8, BitwiseCopyable {
    case none
    case synSent, synReceived, established
    /// The server, the client sent its FIN first.
    case finWait1, closeWait
    /// The server's FIN was acknowledged.
    case finWait2
    /// Both sent a FIN; the server or the client first.
    case closing, lastAck
    case timeWait, closed
  }

  struct Marks: OptionSet, BitwiseCopyable {
    var rawValue: UInt16
    /// Taken up without its handshake.
    static let midstream = Marks(rawValue: 1)
    /// Only one direction is seen; so its data counts as acknowledged.
    static let oneSided = Marks(rawValue: 2)
    /// The server answered the SYN with a SYN of its own (split handshake, simultaneous open).
    static let fourWay = Marks(rawValue: 4)
    static let hasAlternative = Marks(rawValue: 8)
    /// `alternative` is the server's.
    static let alternativeIsServers = Marks(rawValue: 16)
    static let clientReset = Marks(rawValue: 32)
    static let serverReset = Marks(rawValue: 64)
    static let clientSeen = Marks(rawValue: 128)
    static let serverSeen = Marks(rawValue: 256)
    /// The last packet made it end; what is buffered is to be looked at.
    static let isOver = Marks(rawValue: 512)
    static let handshakeSeen = Marks(rawValue: 1024)
    /// Its SYN bore a signature (RFC 2385, RFC 5925).
    static let isSigned = Marks(rawValue: 2048)
    /// All that the client, the server sent so far went to a group address of the link (as to a cluster of servers that share an address).
    static let clientByGroup = Marks(rawValue: 4096)
    static let serverByGroup = Marks(rawValue: 8192)
    /// The end that is to answer the SYN with `alternative` sent something that belongs to this connection instead, or before.
    static let goesOn = Marks(rawValue: 16_384)
  }

  // In place: an end is longer than what is mostly asked of it. One `yield` each: with two, each use would allocate.
  subscript(ofClient isClient: Bool) -> TCPEnd {
    @inline(__always) _read { yield ends[isClient ? 0 : 1] }
    @inline(__always) _modify { yield &ends[isClient ? 0 : 1] }
  }
  var client: TCPEnd {
    @inline(__always) _read { yield ends[0] }
    @inline(__always) _modify { yield &ends[0] }
  }
  var server: TCPEnd {
    @inline(__always) _read { yield ends[1] }
    @inline(__always) _modify { yield &ends[1] }
  }

  @inline(__always) var isEstablished: Bool { state.rawValue >= State.established.rawValue }
  /// For rules.
  var phase: TCPPhase {
    switch state {
    case .none, .synSent, .synReceived: .setup
    case .established: .established
    case .finWait1, .closeWait, .finWait2, .closing, .lastAck, .timeWait, .closed: .closing
    }
  }
  @inline(__always) var isClosed: Bool { state == .closed || state == .timeWait }
  @inline(__always) var wasReset: Bool { !marks.isDisjoint(with: [.clientReset, .serverReset]) }
}

/// What of the settings matters to a connection. `EngineSettings` is too long to be handed on for each segment.
struct TCPSettings: BitwiseCopyable {
  /// `EngineSettings.streamTTLMinimum`, `.streamTTLDrop`.
  var lowestTTL: UInt8
  var deepestDrop: Int
  var picksUpMidstream: Bool
  var picksUpOneSide: Bool
  var isStreamInline: Bool
  /// `EngineSettings.windowMaximum`, `.smallSegmentCount`, `.smallSegmentSize`.
  var windowMaximum: UInt32
  var smallSegmentCount: UInt8
  var smallSegmentSize: UInt32
  var hasLimits: Bool

  init(_ settings: EngineSettings) {
    lowestTTL = settings.streamTTLMinimum
    deepestDrop = settings.streamTTLDrop
    picksUpMidstream = settings.picksUpMidstream
    picksUpOneSide = settings.picksUpOneSide
    isStreamInline = settings.isStreamInline
    windowMaximum = UInt32(clamping: settings.windowMaximum)
    smallSegmentCount = UInt8(clamping: settings.smallSegmentCount)
    smallSegmentSize = UInt32(clamping: settings.smallSegmentSize)
    hasLimits = windowMaximum > 0 || smallSegmentCount > 0
  }
}

/// One end of a connection, and what it sent.
struct TCPEnd: BitwiseCopyable {
  /// The number of its SYN.
  var initial: UInt32 = 0
  /// The number after the highest it sent.
  var next: UInt32 = 0
  /// The highest number of its that the other end acknowledged.
  var acknowledged: UInt32 = 0
  /// What of its numbers has come.
  var arrived = TCPArrivals()
  /// Up to where the other end lets it send.
  var edge: UInt32 = 0
  /// What it announced last, and the most that it ever did, in bytes.
  var window: UInt32 = 0
  var largestWindow: UInt32 = 0
  /// Of its last segment with one.
  var timestamp: UInt32 = 0
  /// Packet time of that, in seconds.
  var timestampTime: UInt32 = 0
  /// The number of its FIN.
  var final: UInt32 = 0
  var scale: UInt8 = 0
  var marks: Marks = []
  /// How its segments are put together: the other end's policy.
  var policy = OverlapPolicy.bsd
  /// How many routers its first packet could still have come past.
  var timeToLive: UInt8 = 0
  var stream = StreamTrack()
  /// Segments over bytes that waited; small segments behind each other.
  var overlaps: UInt8 = 0
  var smallSegments: UInt8 = 0
  /// The last urgent byte (`urgentLast`), if it came.
  var urgentByte: UInt8 = 0
  /// Urgent bytes that are no part of the stream: how many there were, and the number of the last, which may be still to come.
  var urgentCount: UInt32 = 0
  var urgentLast: UInt32 = 0
  /// Behind the highest of its numbers that the other end has behind a hole, as it says itself.
  var selected: UInt32 = 0
  /// Of the Ethernet address that its SYN came from (`TCPSegment.station`); 0: not known.
  var station: UInt32 = 0

  struct Marks: OptionSet, BitwiseCopyable {
    var rawValue: UInt8
    static let hasEdge = Marks(rawValue: 1)
    static let scales = Marks(rawValue: 2)
    static let stamps = Marks(rawValue: 4)
    static let sentFin = Marks(rawValue: 8)
    static let finAcknowledged = Marks(rawValue: 16)
    static let hasAcknowledged = Marks(rawValue: 32)
    /// The last urgent byte is announced and did not come yet.
    static let awaitsUrgent = Marks(rawValue: 64)
    /// `selected` is known.
    static let isSelected = Marks(rawValue: 128)
  }

  /// Begins with the number of a SYN.
  mutating func begin(_ number: UInt32, sent length: UInt32) {
    initial = number
    next = number &+ 1 &+ length
    acknowledged = number &+ 1
    arrived = TCPArrivals(at: next)
    stream = StreamTrack(at: number &+ 1)
    urgentCount = 0
    marks.remove([.awaitsUrgent, .isSelected])
  }

  mutating func announce(_ window: UInt32) {
    self.window = window
    largestWindow = max(largestWindow, window)
  }

  /// Where a byte is in the stream, which lacks the urgent ones: a sequence number that counts only what is in it.
  @inline(__always)
  func mapped(_ number: UInt32) -> UInt32 {
    guard urgentCount > 0 else { return number }
    return number &- urgentCount &+ (sequenceDistance(number, urgentLast) <= 0 ? 1 : 0)
  }
}

/// How far what one end sent was put together and looked at. Numbers are sequence numbers (`TCPEnd.mapped`).
struct StreamTrack: BitwiseCopyable {
  /// Where the connection's data began.
  var origin: UInt32 = 0
  /// The first byte that is buffered.
  var base: UInt32 = 0
  /// Everything before was inspected.
  var inspected: UInt32 = 0
  /// Where the data began that is being collected for inspection.
  var chunkStart: UInt32 = 0
  /// Bytes that are missing before the next window.
  var missing: UInt32 = 0
  /// The block in the store, plus one; 0 for none.
  var block: Int32 = 0
  var marks: Marks = []

  struct Marks: OptionSet, BitwiseCopyable {
    var rawValue: UInt8
    /// No more of it is put together: the depth was reached, or a rule or policy said so.
    static let isOff = Marks(rawValue: 1)
    static let hasGap = Marks(rawValue: 2)
    static let isKnown = Marks(rawValue: 4)
    /// `isOff` ends with the next segment, where the stream begins anew.
    static let beginsAnew = Marks(rawValue: 8)
    /// What rules change.
    static let ofRules: Marks = [.isOff, .beginsAnew]
  }

  init() {}

  init(at number: UInt32) {
    origin = number
    base = number
    inspected = number
    chunkStart = number
    marks = .isKnown
  }
}

/// Differences of sequence numbers (RFC 9293 §3.4).
@inline(__always) func sequenceDistance(_ a: UInt32, _ b: UInt32) -> Int32 { Int32(bitPattern: a &- b) }

/// What of a TCP segment matters to its connection.
struct TCPSegment: BitwiseCopyable {
  var sequence: UInt32
  var acknowledgement: UInt32
  var flags: TCPFlags
  var window: UInt32
  /// Of its payload.
  var length: UInt32
  var hasTimestamp = false
  var timestamp: UInt32 = 0
  var echo: UInt32 = 0
  /// Of a SYN; 255: not given.
  var scale: UInt8 = 255
  var hasFastOpen = false
  /// Behind the highest number that it acknowledges selectively (RFC 2018); nil when it does none. What was got twice (RFC 2883) is none of these.
  var selectedEdge: UInt32?
  var timeToLive: UInt8
  /// How far the urgent byte lies from the first of its payload, in which it may be or not; nil when it names none.
  var urgentOffset: UInt16?
  /// A hash of the Ethernet address that it came from; 0 where there is none.
  var station: UInt32 = 0
  /// It goes to the guest, so that whatever the other end sent was seen before, if anything was.
  var isToGuest = false
  /// It went to a group address of the link.
  var isToGroup = false
  var isSigned = false

  var end: UInt32 { sequence &+ length }
  /// After the SYN, if it is one: where its data begins.
  var dataStart: UInt32 { flags.contains(.syn) ? sequence &+ 1 : sequence }

  /// `packet`: TCP, decoded from `frame`.
  init(_ packet: borrowing DecodedPacket, _ frame: RawSpan) {
    sequence = packet.tcpSequence
    acknowledgement = packet.tcpAcknowledgement
    flags = packet.tcpFlags
    window = UInt32(packet.tcpWindow)
    timeToLive = packet.timeToLive
    length = UInt32(truncatingIfNeeded: packet.payloadLength)
    if packet.etherType != 0, packet.networkOffset >= 14, packet.tunnelDepth == 0 {
      station = (frame.u32(6) &* 0x9E37_79B1 ^ UInt32(frame.u16(10))) | 1
      isToGroup = packet.destinationMAC.isMulticast
    }
    let start = Int(packet.transportOffset)
    if flags.contains(.urg) {
      // The pointer is to the byte behind it, as nearly all systems read it (RFC 6093 §3).
      let pointer = frame.u16(start + 18)
      if pointer > 0 { urgentOffset = pointer - 1 }
    }
    let count = Int(packet.payloadOffset) - start - 20
    guard count > 0 else { return }
    // The usual form (RFC 7323 appendix A): two fillers and a timestamp.
    if count == 12, frame.u32(start + 20) == 0x0101_080A {
      hasTimestamp = true
      timestamp = frame.u32(start + 24)
      echo = frame.u32(start + 28)
      return
    }
    readOptions(frame, at: start)
  }

  private mutating func readOptions(_ frame: RawSpan, at start: Int) {
    guard let header = try? TCPHeader(frame, at: start) else { return }
    var options = header.options
    while let option = options.next(in: frame) {
      let at = Int(option.offset)
      switch (option.kind, option.length) {
      case (3, 1): scale = min(14, frame.u8(at))
      case (8, 8):
        hasTimestamp = true
        timestamp = frame.u32(at)
        echo = frame.u32(at + 4)
      case (5, let length):
        for block in 0..<Int(length) / 8 {
          let edge = frame.u32(at + block * 8 + 4)
          if sequenceDistance(edge, selectedEdge ?? acknowledgement) > 0 { selectedEdge = edge }
        }
      // RFC 2385, RFC 5925.
      case (19, _), (29, _): isSigned = true
      case (34, _): hasFastOpen = true
      default: break
      }
    }
  }
}
