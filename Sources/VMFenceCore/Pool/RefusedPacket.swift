/// A packet that a rule said to drop or to reject, as the supervisor put it into the ring: what acts on its flow needs no word of the detector's for
/// addresses and sequence numbers.
public struct RefusedPacket: Hashable, Sendable {
  /// How much of a packet is kept: the headers, and some options.
  public static let headBytes = 256

  public var incarnation: Incarnation
  /// `drop` or `reject`.
  public var verdict: Verdict
  public var rule: RuleMetadata
  public var frame: FrameMetadata
  /// The first bytes of the frame, `headBytes` at most.
  public var head: [UInt8]

  public init(incarnation: Incarnation, verdict: Verdict, rule: RuleMetadata, frame: FrameMetadata, head: [UInt8]) {
    self.incarnation = incarnation
    self.verdict = verdict
    self.rule = rule
    self.frame = frame
    self.head = head
  }
}

/// Refused packets that wait to be acted on. Bounded: what does not fit is counted.
struct RefusedPackets {
  static let capacity = 4_096

  private var packets: [RefusedPacket] = []
  private(set) var lost: UInt64 = 0

  /// Counts the packet that would come when there is none.
  mutating func hasRoom() -> Bool {
    if packets.count < Self.capacity { return true }
    lost &+= 1
    return false
  }

  mutating func append(_ packet: RefusedPacket) { packets.append(packet) }

  mutating func take() -> [RefusedPacket] {
    defer { packets = [] }
    return packets
  }
}
