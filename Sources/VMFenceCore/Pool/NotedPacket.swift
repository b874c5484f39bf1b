/// What a detector is to say of packets beside alerts.
public struct PacketNotes: OptionSet, Hashable, Sendable {
  public var rawValue: UInt8
  public init(rawValue: UInt8) { self.rawValue = rawValue }
  /// What decoding and streams find wrong.
  public static let anomalies = PacketNotes(rawValue: 1)
  /// That an earlier packet matched a rule which wants this one to be logged (`tag`).
  public static let tagged = PacketNotes(rawValue: 2)
}

/// Which packets without alerts are handed over, and how many. A guest can send as many as its link carries.
public struct PacketNoteConfiguration: Hashable, Sendable {
  public var notes: PacketNotes
  /// Packets of one domain in a second of their time at the most, from 1 on. What is over is counted (`DomainCounters.notesLost`).
  public var perSecond: Int
  /// All domains together have so many times as many.
  public static let hostShare = 10

  public init(notes: PacketNotes = [], perSecond: Int = 100) {
    precondition(perSecond > 0, "packets in a second out of bounds")
    self.notes = notes
    self.perSecond = perSecond
  }
}

/// A packet with something to tell beside alerts, as the supervisor put it into the ring, and what the detector said of it.
public struct NotedPacket: Hashable, Sendable {
  /// How much of a frame is kept.
  public static let headBytes = 4096

  public var incarnation: Incarnation
  /// As in `Alert.packetID`.
  public var packetID: UInt64
  public var frame: FrameMetadata
  /// The first bytes of the frame, `headBytes` at most, and how many there were.
  public var head: [UInt8]
  public var capturedLength: Int
  /// In the order in which they were found. Their numbers are the engine's, and may be ones that it does not have.
  public var anomalies: [PacketAnomaly]
  public var isTagged: Bool
}

/// Noted packets that wait to be told. Bounded: what does not fit is counted.
struct NotedPackets {
  static let capacity = 4_096

  private var packets: [NotedPacket] = []
  var hasRoom: Bool { packets.count < Self.capacity }

  mutating func append(_ packet: NotedPacket) { packets.append(packet) }

  mutating func take() -> [NotedPacket] {
    defer { packets = [] }
    return packets
  }
}

/// So many in a second, and no more than those of one second at once.
struct Pace {
  private static let second: Int64 = 1_000_000_000
  /// What one costs, of a second that is saved up at the most.
  private let cost: Int64
  private var saved = Self.second
  private var last = Int64.min

  init(perSecond: Int) { cost = max(1, Self.second / Int64(max(1, perSecond))) }

  mutating func admits(at time: Timestamp) -> Bool {
    let (passed, overflow) = time.nanoseconds.subtractingReportingOverflow(last)
    // A clock that goes back saves nothing up, and starts from there.
    if overflow ? time.nanoseconds > 0 : passed > 0 {
      saved = overflow || passed >= Self.second ? Self.second : min(Self.second, saved + passed)
    }
    last = time.nanoseconds
    guard saved >= cost else { return false }
    saved -= cost
    return true
  }
}
