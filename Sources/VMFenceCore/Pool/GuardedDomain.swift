/// What a pool holds for one incarnation.
final class GuardedDomain<Rules: CompiledRules> {
  /// A detector that is to say what it remembers, because its domain is moved.
  struct Move {
    /// So many packets are to be answered first, of all that were ever enqueued.
    var packets: UInt64
    var handle: any DetectorHandle<Rules>
    var deadline: Timestamp
    var isAsked = false
    /// The domain is gone meanwhile: the detector ends with its answer.
    var endsDetector = false
  }

  /// A detector that may finish what is left in the ring, because its domain is gone.
  struct Ending {
    var handle: any DetectorHandle<Rules>
    var deadline: Timestamp
  }

  let incarnation: Incarnation
  let slot: Int
  var description: DomainDescription
  /// Outlives the detectors that come one after the other; nil while none was ever started.
  var channel: DetectorChannel?
  var handle: (any DetectorHandle<Rules>)?
  /// The rule sets whose verdicts may still come, oldest first.
  var generations: [(generation: UInt32, rules: Rules)] = []
  var counters = DomainCounters()
  /// Parts of these.
  var traffic = TrafficByPort()
  var alerts = AlertsByClass()
  /// Of the channels it had before this one.
  var pastChannels = DetectorChannelCounters()
  /// What their detectors counted, in the order of `Rules.inspectorCounters`.
  var pastInspectors = [UInt64](repeating: 0, count: Rules.inspectorCounters.count)
  var isSuspended = false
  /// The domain stands still to be saved or migrated, and what its detector remembers is handed on.
  var isHandedOver = false
  /// While that is asked for.
  var move: Move?
  /// While it finishes.
  var ending: Ending?
  /// When it was seen to have hung up without having ended.
  var hungUpAt: Timestamp?
  /// Its detector was offered a saved state, and has not said what became of it.
  var isTakingOver = false
  /// When a detector was last to write down what it remembers, and how many packets the domain had by then.
  var lastSnapshot = Timestamp(nanoseconds: .min)
  var packetsAtSnapshot: UInt64 = 0
  var wakesOnTraffic = false
  var lastTraffic = Timestamp(nanoseconds: .min)
  var notedTraffic = Timestamp(nanoseconds: .min)
  var deaths = 0
  var lastDeath = Timestamp(nanoseconds: .min)
  /// Deaths and failed starts with no packet to blame, since there were verdicts long after the last death.
  var deathsInVain = 0
  /// Deaths that were laid on a packet, since the same.
  var deathsByPacket = 0
  /// The packet that the last detector died on.
  var suspectedPacket: UInt64?
  /// What this detector did wrong has been told.
  var toldViolation = false
  /// It did not answer for as long as somebody waited; over with its next verdict.
  var isUnresponsive = false
  /// When it last was seen to answer, or to have nothing to do.
  var lastProgress = Timestamp(nanoseconds: .min)
  var inspectedAtProgress: UInt64 = 0
  /// When its detector was told the time last, how many packets it had by then, and when it is to be told next without more of them.
  var lastLook = Timestamp(nanoseconds: .min)
  var packetsAtLook: UInt64 = 0
  var lookPause = Duration.zero
  /// It had more to tell at that time than fits one verdict.
  var looksAgain = false
  /// How often it was told that its domain is gone.
  var endLooks = 0
  /// Refused packets of its that wait to be acted on.
  var refusalsHeld = 0
  /// The rule that rejected a packet last, while the packets behind it are kept.
  var rejecting: (rule: RuleMetadata, left: Int)?
  /// Of rules that fired: what they are called is read from the image once.
  private var metadata: [UInt32: RuleMetadata] = [:]
  private var metadataGeneration: UInt32 = 0
  /// Drops that an alert has told of, and when it did.
  var reportedDrops: UInt64 = 0
  var lastDropReport: Timestamp?

  /// Rule sets that are remembered while verdicts of older ones are still to come.
  static var generationsKept: Int { 64 }
  private static var metadataKept: Int { 64 }

  init(_ description: DomainDescription, slot: Int) {
    incarnation = description.incarnation
    self.slot = slot
    self.description = description
  }

  /// What the detectors of this and the earlier channels counted.
  var inspectorCounters: [UInt64] {
    guard let channel else { return pastInspectors }
    let current = channel.inspectorCounters(Rules.inspectorCounters)
    return Rules.inspectorCounters.indices.map { index in
      guard index < current.count else { return pastInspectors[index] }
      return Rules.inspectorCounters[index].kind == .level
        ? current[index] : pastInspectors[index].addingSaturated(current[index])
    }
  }

  /// Whether waiting for its verdicts makes sense.
  var isAnswering: Bool { handle != nil && !isSuspended && !isUnresponsive && hungUpAt == nil }

  /// The saved state that its detector was offered, while that has not said what became of it. One that died over it has.
  var untakenState: [UInt8]? { isTakingOver ? channel?.untakenState : nil }

  func remember(_ rules: Rules, generation: UInt32) {
    generations.append((generation, rules))
    if generations.count > Self.generationsKept { generations.removeFirst() }
  }

  /// What a rule of a generation is called; nil when that generation is not known.
  func metadata(of index: UInt32, generation: UInt32) -> RuleMetadata? {
    if generation != metadataGeneration || metadata.count >= Self.metadataKept {
      metadata.removeAll(keepingCapacity: true)
      metadataGeneration = generation
    }
    if let known = metadata[index] { return known }
    guard let read = rules(of: generation)?.metadata(at: Int(index)) else { return nil }
    metadata[index] = read
    return read
  }

  /// The rule set of a generation. Verdicts come in order, so older ones are forgotten.
  func rules(of generation: UInt32) -> Rules? {
    while generations.count > 1, generations[0].generation < generation { generations.removeFirst() }
    return generations.first.flatMap { $0.generation == generation ? $0.rules : nil }
  }
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
  /// Packets with something to tell beside alerts that nobody was told of, because there were too many.
  public var notesLost: UInt64 = 0
  /// Packets that a rule says to drop.
  public var droppedByRule: UInt64 = 0
  /// Refused packets, and packets behind them, that `DetectorPool.takeRefusedPackets()` did not have room for.
  public var refusalsLost: UInt64 = 0
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
  /// Its packets and bytes by the port at which they were captured: 64 ports, and all others as one.
  public var ports: [PortTraffic]
  /// Its alerts by their rules' classes: `none` without one, 64 others, and all others as `other`.
  public var alertsByClass: [String: UInt64]
  public var channel: DetectorChannelCounters
  /// What its detectors counted by themselves, in the order of the rules' `inspectorCounters`.
  public var inspector: [UInt64]
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

extension DetectorChannelCounters {
  /// Adds what went through another channel.
  mutating func add(_ other: DetectorChannelCounters) {
    enqueued &+= other.enqueued
    timesTold &+= other.timesTold
    enqueuedBytes &+= other.enqueuedBytes
    cut &+= other.cut
    refused &+= other.refused
    answered &+= other.answered
    alerts &+= other.alerts
    alertsLost &+= other.alertsLost
    unproved &+= other.unproved
    skipped &+= other.skipped
    bells &+= other.bells
    violations &+= other.violations
  }
}

/// Puts what detectors say at their own pace into an order that does not depend on it.
struct EventSorter {
  private struct Key: Comparable {
    var time: Timestamp
    /// Alerts come after what VMFence noticed itself at that time.
    var isAlert: Bool
    var slot: Int
    var packet: UInt64
    /// Tells apart what is equal so far: the order in which they came.
    var order: Int

    static func < (a: Key, b: Key) -> Bool {
      if a.time != b.time { return a.time < b.time }
      if a.isAlert != b.isAlert { return b.isAlert }
      return (a.slot, a.packet, a.order) < (b.slot, b.packet, b.order)
    }
  }

  private var keys: [Key] = []
  /// As many as keys.
  private var events: [Event] = []
  /// Whether they came in order, as those of one detector do.
  private var isOrdered = true
  /// By slot: the time of its last alert. Alerts of one domain stay in the order of its packets, whatever times these carry.
  private var lastAlert: [Timestamp] = []
  private var lastNotice = Timestamp(nanoseconds: .min)

  /// Adds something that VMFence noticed itself.
  mutating func append(_ event: Event) {
    lastNotice = max(lastNotice, event.time)
    append(event, Key(time: lastNotice, isAlert: false, slot: 0, packet: 0, order: keys.count))
  }

  mutating func append(_ alert: Alert, slot: Int) {
    while lastAlert.count <= slot { lastAlert.append(Timestamp(nanoseconds: .min)) }
    lastAlert[slot] = max(lastAlert[slot], alert.time)
    append(
      .alert(alert),
      Key(time: lastAlert[slot], isAlert: true, slot: slot, packet: alert.packetID, order: keys.count))
  }

  private mutating func append(_ event: Event, _ key: Key) {
    if let last = keys.last, key < last { isOrdered = false }
    keys.append(key)
    events.append(event)
  }

  /// Hands over all of it, and begins anew.
  mutating func take() -> [Event] {
    defer {
      keys.removeAll(keepingCapacity: true)
      events = []
      isOrdered = true
      lastAlert.removeAll(keepingCapacity: true)
      lastNotice = Timestamp(nanoseconds: .min)
    }
    guard !isOrdered else { return events }
    return keys.indices.sorted { keys[$0] < keys[$1] }.map { events[$0] }
  }
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
    if record.flags.contains(.rejects) {
      self.verdict = .reject
    } else if record.flags.contains(.drops) {
      self.verdict = .drop
    }
    origin = record.origin
    captures = record.captures(rule.captures)
    layer = record.layer
    way = record.way
    isAttested = !record.flags.contains(.unattested)
    isInStream = record.flags.contains(.stream)
  }
}
