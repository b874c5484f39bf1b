/// What a pool holds for one incarnation.
final class GuardedDomain<Rules: CompiledRules> {
  let incarnation: Incarnation
  var description: DomainDescription
  /// Outlives the detectors that come one after the other; nil while none was ever started.
  var channel: DetectorChannel?
  var handle: (any DetectorHandle<Rules>)?
  /// The rule sets whose verdicts may still come, oldest first.
  var generations: [(generation: UInt32, rules: Rules)] = []
  var counters = DomainCounters()
  var finalChannelCounters = DetectorChannelCounters()
  var isSuspended = false
  var isEnding = false
  var wakesOnTraffic = false
  var lastTraffic = Timestamp(nanoseconds: .min)
  var notedTraffic = Timestamp(nanoseconds: .min)
  var deaths = 0
  /// Deaths since the last verdict, with no packet to blame.
  var deathsInVain = 0
  /// The packet that the last detector died on.
  var suspectedPacket: UInt64?

  /// Rule sets that are remembered while verdicts of older ones are still to come.
  static var generationsKept: Int { 8 }

  init(_ description: DomainDescription) {
    incarnation = description.incarnation
    self.description = description
  }

  /// Whether waiting for its verdicts makes sense.
  var isAnswering: Bool { handle != nil && !isSuspended }

  func remember(_ rules: Rules, generation: UInt32) {
    generations.append((generation, rules))
    if generations.count > Self.generationsKept { generations.removeFirst() }
  }

  func rules(of generation: UInt32) -> Rules? { generations.last { $0.generation <= generation }?.rules }
}

/// What became of one domain's packets.
public struct DomainCounters: Hashable, Sendable {
  /// Delivered to the domain, in frames and bytes.
  public var packets: UInt64 = 0
  public var bytes: UInt64 = 0
  /// Answered by a detector.
  public var inspected: UInt64 = 0
  public var alerts: UInt64 = 0
  /// Alerts that did not fit into their packet's record.
  public var alertsLost: UInt64 = 0
  /// Packets that a rule says to drop.
  public var droppedByRule: UInt64 = 0
  /// Not inspected because the ring was full.
  public var droppedFull: UInt64 = 0
  /// Not inspected because the domain had no detector yet.
  public var droppedUnguarded: UInt64 = 0
  /// Not inspected because the domain ended.
  public var droppedAtEnd: UInt64 = 0
  /// Passed over because they killed their detector twice.
  public var droppedPoison: UInt64 = 0
  public var restarts: UInt64 = 0
  public init() {}

  /// Packets that no detector has answered and none will, with the cause of each; causes that did not occur are left out.
  public var uninspected: [(cause: String, count: UInt64)] {
    [
      ("ring full", droppedFull), ("no detector", droppedUnguarded), ("domain ended", droppedAtEnd),
      ("poison packet", droppedPoison),
    ].filter { $0.1 > 0 }
  }
}

/// A domain's state and figures, for people and for the end of a run.
public struct DomainReport: Sendable {
  public var description: DomainDescription
  /// nil when its history was forgotten.
  public var automaton: LifecycleAutomaton?
  public var counters: DomainCounters
  public var channel: DetectorChannelCounters
  /// Packets that wait in its ring.
  public var waiting: Int
}

/// A packet that killed a detector twice.
public struct PoisonPacket: Sendable, Hashable {
  public var incarnation: Incarnation
  public var packetID: UInt64
  public var frame: FrameMetadata
  public var bytes: [UInt8]
}

extension Alert {
  /// An alert from a detector's record and the collector's own words for the rule.
  public init(
    _ record: AlertRecord, rule: RuleMetadata, incarnation: Incarnation, packetID: UInt64, verdict: Verdict
  ) {
    let length = min(Int(record.excerptLength), AlertRecord.excerptCapacity)
    self.init(
      time: record.timestamp, incarnation: incarnation, packetID: packetID, rule: rule, flowID: record.flowID,
      source: record.source, destination: record.destination, sourcePort: record.sourcePort,
      destinationPort: record.destinationPort, ipProtocol: record.ipProtocol,
      direction: record.flags.contains(.toClient) ? .toClient : .toServer,
      isEstablished: record.flags.contains(.established), vlan: record.vlan, verdict: verdict,
      payloadExcerpt: (0..<length).map { record.excerpt[$0] })
  }
}
