/// A packet that a rule said to drop or to reject, as the supervisor put it into the ring: what acts on its flow needs no word of the detector's for
/// addresses and sequence numbers. Or one of the first that came behind a rejected one: the ends of a connection may have gone on
/// meanwhile, and these packets tell what they expect by now.
public struct RefusedPacket: Hashable, Sendable {
  /// How much of a packet is kept: the headers, and some options.
  public static let headBytes = 256
  /// How many packets of a domain are kept behind one that was rejected.
  public static let following = 64

  /// Which packet it is.
  public struct Name: Hashable, Sendable {
    public var incarnation: Incarnation
    /// As in `Alert.packetID`.
    public var packetID: UInt64

    public init(_ incarnation: Incarnation, _ packetID: UInt64) {
      self.incarnation = incarnation
      self.packetID = packetID
    }
  }

  public var name: Name { Name(incarnation, packetID) }

  public var incarnation: Incarnation
  /// As in `Alert.packetID`.
  public var packetID: UInt64
  /// `drop` or `reject`; `pass` for a packet that was let through behind a rejected one, of whatever flow.
  public var verdict: Verdict
  /// The rule that refused it, or the one that it came behind.
  public var rule: RuleMetadata
  public var frame: FrameMetadata
  /// The first bytes of the frame, `headBytes` at most.
  public var head: [UInt8]

  public init(
    incarnation: Incarnation, packetID: UInt64 = 0, verdict: Verdict, rule: RuleMetadata, frame: FrameMetadata,
    head: [UInt8]
  ) {
    self.incarnation = incarnation
    self.packetID = packetID
    self.verdict = verdict
    self.rule = rule
    self.frame = frame
    self.head = head
  }
}

/// Refused packets that wait to be acted on. Bounded, and shared between domains: what does not fit is counted.
struct RefusedPackets {
  /// A domain alone gets half.
  static let capacity = 8_192

  private var packets: [RefusedPacket] = []
  private var room = FairRoom(capacity: capacity)
  private(set) var lost: UInt64 = 0

  var isEmpty: Bool { packets.isEmpty }

  /// Takes room for a packet that is appended next, or counts it as lost.
  ///
  /// - `held`: what waits of its domain; `lost`: what was lost of it.
  mutating func hasRoom(_ held: inout Int, lost mine: inout UInt64) -> Bool {
    if room.enter(&held) { return true }
    mine &+= 1
    lost &+= 1
    return false
  }

  mutating func append(_ packet: RefusedPacket) { packets.append(packet) }

  mutating func take() -> [RefusedPacket] {
    defer {
      packets = []
      room.empty()
    }
    return packets
  }
}
