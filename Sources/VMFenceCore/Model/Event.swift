/// Everything that VMFence has to tell somebody, in one type: what goes to the notification sinks, in order. Handing one on, or keeping many,
/// costs a reference each and no copy.
public indirect enum Event: Sendable, Hashable {
  case alert(Alert)
  case file(FileEvent)
  case decision(Decision)
  case lifecycle(LifecycleReport)
  case platform(PlatformAlert)
  case packet(PacketNotice)

  public var time: Timestamp {
    switch self {
    case .alert(let alert): alert.time
    case .file(let event): event.time
    case .decision(let decision): decision.time
    case .lifecycle(let report): report.time
    case .platform(let alert): alert.time
    case .packet(let notice): notice.packet.time
    }
  }

  /// The incarnation it concerns; nil when it concerns the host.
  public var incarnation: Incarnation? {
    switch self {
    case .alert(let alert): alert.incarnation
    case .file(let event): event.incarnation
    case .decision(let decision): decision.incarnation
    case .lifecycle(let report): report.incarnation
    case .platform(let alert): alert.incarnation
    case .packet(let notice): notice.packet.incarnation
    }
  }
}

/// A rule that fired on a packet of a domain.
public struct Alert: Sendable, Hashable {
  public var time: Timestamp
  public var incarnation: Incarnation
  /// The packet's number in its domain's ring, from 0: the order in which the detector saw the packets.
  public var packetID: UInt64
  public var rule: RuleMetadata
  public var flowID: UInt64
  public var source: IPAddress
  public var destination: IPAddress
  public var sourcePort: UInt16
  public var destinationPort: UInt16
  public var ipProtocol: UInt8
  public var direction: FlowDirection
  /// The flow's handshake was seen: the addresses are not forged.
  public var isEstablished: Bool
  public var vlan: UInt16
  /// What the rule itself asked for.
  public var verdict: Verdict
  /// What became of the packet, for all its rules; nil: what this rule asked for.
  public var packetVerdict: Verdict?
  /// Beside the path: whether the flow of its packet was cut behind it, since a rule refused the packet.
  public var isFlowCut = false
  /// The action of the rule that tells the packet's ends, if one does.
  public var rejectAction: RuleAction?
  public var payloadExcerpt: [UInt8]
  /// What the rule's expressions captured for it (`pcre` with `alert:NAME`): 61 bytes at the most, in all.
  public var captures: [AlertCapture] = []
  public var origin = PacketOrigin.wire
  /// Which of the packets in its frame it is about: 0 the outermost, 1 the one in its tunnel …
  public var layer: UInt8 = 0
  /// Whether the packet that the detector was given for it has its ends. False for what was found without one (a silence, the end of a flow): then
  /// the detector alone says whose it is.
  public var isAttested = true
  /// Which way its packet went through the guest's port, where that is known.
  public var way = FrameDirection.unknown
  /// Whether the match was found in a reassembled stream.
  public var isInStream = false
  /// The packet itself, where somebody asked for it.
  public var evidence: PacketEvidence?

  /// Whether it was found in what a tunnel carries.
  public var isTunnelled: Bool { layer > 0 || origin.isTunnel }

  public enum FlowDirection: String, Sendable, Hashable { case toServer = "to_server", toClient = "to_client" }

  public init(
    time: Timestamp, incarnation: Incarnation, packetID: UInt64, rule: RuleMetadata, flowID: UInt64,
    source: IPAddress, destination: IPAddress, sourcePort: UInt16, destinationPort: UInt16, ipProtocol: UInt8,
    direction: FlowDirection, isEstablished: Bool, vlan: UInt16 = 0, verdict: Verdict = .pass,
    payloadExcerpt: [UInt8] = []
  ) {
    self.time = time
    self.incarnation = incarnation
    self.packetID = packetID
    self.rule = rule
    self.flowID = flowID
    self.source = source
    self.destination = destination
    self.sourcePort = sourcePort
    self.destinationPort = destinationPort
    self.ipProtocol = ipProtocol
    self.direction = direction
    self.isEstablished = isEstablished
    self.vlan = vlan
    self.verdict = verdict
    self.payloadExcerpt = payloadExcerpt
  }
}

/// Bytes that a rule's expression captured, by the name that the rule gives them.
public struct AlertCapture: Sendable, Hashable {
  public var name: String
  public var value: [UInt8]

  public init(name: String, value: [UInt8]) {
    self.name = name
    self.value = value
  }
}

/// A packet that is told of without an alert.
public struct PacketNotice: Sendable, Hashable {
  public enum Kind: Sendable, Hashable {
    /// Something is wrong with it; `event`: what, as `decode-event` and `stream-event` name it.
    case anomaly(PacketAnomaly, event: String)
    /// An earlier packet matched a rule that wants it to be logged (`tag`).
    case tagged
  }

  public var kind: Kind
  /// Its `reason` and `verdict` say nothing.
  public var packet: DroppedPacket

  public init(_ kind: Kind, _ packet: DroppedPacket) {
    self.kind = kind
    self.packet = packet
  }
}

/// What an analyst may want to see of the packet of an alert; only where it was asked for, and the packet is at hand.
public struct PacketEvidence: Sendable, Hashable {
  /// The capture file, and the packet's number in it, from 1; nil in a live run, and for what no packet of it caused.
  public var captureFile: String?
  public var captureNumber: UInt64?
  public var linkType: LinkType
  /// The packet that was inspected, with its link header where it has one.
  public var packet: [UInt8]?
  /// What was inspected of it: its payload, or the stream that it completed.
  public var payload: [UInt8]?
  public var sourceMAC: MACAddress?
  public var destinationMAC: MACAddress?
  /// Whether the packet was decoded far enough to have addresses.
  public var hasAddresses = true
  /// The flow's Community ID, by which other systems' logs of it are found (corelight/community-id-spec).
  public var communityID: String?
  /// VLAN identifiers, the outermost first.
  public var vlans: [UInt16] = []
  /// Type and code of an ICMP or ICMPv6 message.
  public var icmp: (type: UInt8, code: UInt8)? {
    get { icmpType.map { ($0, icmpCode) } }
    set { (icmpType, icmpCode) = (newValue?.type, newValue?.code ?? 0) }
  }
  private var icmpType: UInt8?
  private var icmpCode: UInt8 = 0
  /// The packet that carried this one.
  public var tunnel: Tunnel?

  public struct Tunnel: Sendable, Hashable {
    public var source: IPAddress
    public var destination: IPAddress
    public var sourcePort: UInt16
    public var destinationPort: UInt16
    public var ipProtocol: UInt8
    /// How many packets are around the inspected one.
    public var depth: Int

    public init(
      source: IPAddress, destination: IPAddress, sourcePort: UInt16, destinationPort: UInt16, ipProtocol: UInt8,
      depth: Int
    ) {
      self.source = source
      self.destination = destination
      self.sourcePort = sourcePort
      self.destinationPort = destinationPort
      self.ipProtocol = ipProtocol
      self.depth = depth
    }
  }

  public init(linkType: LinkType) { self.linkType = linkType }
}

/// A change to a file of a guest, as seen from its disk.
public struct FileEvent: Sendable, Hashable {
  public enum Operation: String, Sendable, Hashable, CaseIterable {
    case create, write, append, truncate, rename, replace, link, unlink, rmdir, chmod, chown, xattr, times, read
    /// A rule matches what was written.
    case match
    /// The file system itself is damaged at a place that describes the file.
    case damage
    /// Requests were lost; what is known of the file may be out of date.
    case gap
  }

  public var time: Timestamp
  public var incarnation: Incarnation
  /// The disk's device name in the guest: `xvda`.
  public var disk: String
  /// The number of the block request that showed it.
  public var sequence: UInt64
  public var operation: Operation
  /// Bytes as the guest's file system has them: mostly UTF-8, never trusted to be.
  public var path: [UInt8]
  /// For rename and replace.
  public var oldPath: [UInt8]?
  public var inode: UInt64
  /// For write, append and truncate: where in the file, in bytes.
  public var offset: UInt64?
  public var length: UInt64?
  /// Old and new values as text: `mode`: `0644` → `0666`.
  public var changes: [AttributeChange]
  public var verdict: BlockVerdict
  /// 1 is the most severe, as with rules' priorities.
  public var severity: Int
  /// It falls into an announced window of changes: recorded, and nobody is alerted.
  public var isAnnounced: Bool

  public struct AttributeChange: Sendable, Hashable {
    public var attribute: String
    public var old: String
    public var new: String
    public init(attribute: String, old: String, new: String) {
      self.attribute = attribute
      self.old = old
      self.new = new
    }
  }

  public init(
    time: Timestamp, incarnation: Incarnation, disk: String, sequence: UInt64, operation: Operation, path: [UInt8],
    oldPath: [UInt8]? = nil, inode: UInt64, offset: UInt64? = nil, length: UInt64? = nil,
    changes: [AttributeChange] = [], verdict: BlockVerdict = .allow, severity: Int = 2, isAnnounced: Bool = false
  ) {
    self.time = time
    self.incarnation = incarnation
    self.disk = disk
    self.sequence = sequence
    self.operation = operation
    self.path = path
    self.oldPath = oldPath
    self.inode = inode
    self.offset = offset
    self.length = length
    self.changes = changes
    self.verdict = verdict
    self.severity = severity
    self.isAnnounced = isAnnounced
  }
}

/// A step in the life of a detector, or a notice to the administrator about it.
public struct LifecycleReport: Sendable, Hashable {
  public enum Kind: Sendable, Hashable {
    case transition(from: LifecycleState, event: LifecycleEvent, to: LifecycleState)
    /// The pair changes nothing and was not expected.
    case unexpected(state: LifecycleState, event: LifecycleEvent)
    /// The administrator is asked to configure rules for the domain (state `unguarded`).
    case configurationNeeded
    /// The domain has been in an unstable state for longer than allowed.
    case stuck(state: LifecycleState, for: Duration)
  }

  public var time: Timestamp
  public var incarnation: Incarnation
  public var domainName: String
  public var kind: Kind

  public init(time: Timestamp, incarnation: Incarnation, domainName: String, kind: Kind) {
    self.time = time
    self.incarnation = incarnation
    self.domainName = domainName
    self.kind = kind
  }
}

/// Something that VMFence itself noticed, without a rule.
public struct PlatformAlert: Sendable, Hashable {
  /// What was noticed: a name with hyphens, stable, for machines.
  public struct Kind: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    public static let detectorDied = Kind("detector-died")
    public static let detectorRestarted = Kind("detector-restarted")
    /// A detector wrote something that a sound one never writes.
    public static let detectorViolation = Kind("detector-violation")
    public static let poisonPacket = Kind("poison-packet")
    public static let packetsDropped = Kind("packets-dropped")
    /// What a detector remembered of the traffic could not be saved, or not be taken over.
    public static let stateLost = Kind("state-lost")
    public static let spoofedSource = Kind("spoofed-source")
    /// Anti-spoofing stopped what a domain sent.
    public static let spoofingStopped = Kind("spoofing-stopped")
    public static let unknownSource = Kind("unknown-source")
    public static let probeGap = Kind("probe-gap")
    /// No interface can be captured that comes now.
    public static let captureGap = Kind("capture-gap")
    /// Two domains have an address, an interface or a UUID that only one can have: which of the two goes without is said.
    public static let duplicateIdentity = Kind("duplicate-identity")
    /// A domain's card has a MAC address that no interface can have.
    public static let badAddress = Kind("bad-mac")
    public static let integrityGap = Kind("integrity-gap")
    /// A firewall did not take a measure; it is tried again.
    public static let enforcementFailed = Kind("enforcement-failed")
    /// The decision log cannot be written; measures are enforced unlogged.
    public static let logUnwritable = Kind("log-unwritable")
    /// It is written again.
    public static let logWritable = Kind("log-writable")
    /// The decision log cannot be made anew, without what is over. It goes on as it is, and grows until that is tried again and done.
    public static let logUncompacted = Kind("log-uncompacted")
    /// It was made anew.
    public static let logCompacted = Kind("log-compacted")
    /// The system's clock was set.
    public static let clockJump = Kind("clock-jump")
    /// Events did not reach a place that they should go to.
    public static let eventsLost = Kind("events-lost")
    /// What a firewall holds is not what it should.
    public static let firewallDrift = Kind("firewall-drift")
    /// Whoever holds the firewall cannot be reached: what stands stays in force, and what is decided waits.
    public static let firewallGap = Kind("firewall-gap")
    /// A domain was paused because a request to its disk is held (the verb `freeze`).
    public static let domainFrozen = Kind("domain-frozen")
    /// It runs again.
    public static let domainThawed = Kind("domain-thawed")
    /// A policy of file integrity is carried out in another way than it says, because of what is on the disk.
    public static let integrityLimit = Kind("integrity-limit")
    /// A disk that is to be watched has nobody who watches it, or refuses anything.
    public static let diskUnwatched = Kind("disk-unwatched")
    /// It is watched again.
    public static let diskWatched = Kind("disk-watched")

    /// Those that VMFence itself notices.
    public static let known: [Kind] = [
      .detectorDied, .detectorRestarted, .detectorViolation, .poisonPacket, .packetsDropped, .stateLost,
      .spoofedSource, .spoofingStopped, .unknownSource, .probeGap, .captureGap, .duplicateIdentity, .badAddress,
      .integrityGap,
      .enforcementFailed, .logUnwritable, .logWritable, .logUncompacted, .logCompacted, .clockJump, .eventsLost,
      .firewallDrift, .firewallGap,
      .domainFrozen, .domainThawed, .integrityLimit, .diskUnwatched, .diskWatched,
    ]
  }

  public var time: Timestamp
  public var incarnation: Incarnation?
  public var kind: Kind
  /// One sentence. Text from outside in it is escaped already.
  public var message: String
  /// 1 is the most severe, as with rules' priorities.
  public var severity: Int
  /// How many times it happened, when several are reported as one.
  public var count: UInt64
  /// The address concerned, if one is.
  public var source: IPAddress?

  public init(
    time: Timestamp, incarnation: Incarnation?, kind: Kind, message: String, severity: Int = 2, count: UInt64 = 1,
    source: IPAddress? = nil
  ) {
    self.time = time
    self.incarnation = incarnation
    self.kind = kind
    self.message = message
    self.severity = severity
    self.count = count
    self.source = source
  }
}

/// What the policy updater decided, and why.
public struct Decision: Sendable, Hashable {
  public enum Measure: Sendable, Hashable {
    case notify
    case block(IPNetwork)
    case blockOnHost(IPNetwork)
    case quarantine
    case rateLimit(packetsPerSecond: UInt32)
    case pause
    case shutDown
    /// A measure that ran out or was taken back.
    case lift(FirewallMeasure.Key)
  }

  public enum Status: String, Sendable, Hashable, CaseIterable {
    case enforced
    /// Decided, and not in force yet: the place of enforcement did not take it, or what is to be done with the domain is not done. It is tried again.
    case desired
    /// Dry run: would have been.
    case dryRun = "dry_run"
    /// Waits for the administrator.
    case pending
    /// A never-block list, the cap or weak evidence stood against it.
    case withheld
    /// The administrator said no.
    case denied
    /// Its time is over. Of what is to be done with a domain: it was given up, and not done.
    case expired
  }

  /// Rises by one with each decision of this host. A decision whose status changes is reported again under its number.
  public var id: UInt64
  public var time: Timestamp
  public var incarnation: Incarnation?
  public var measure: Measure
  public var status: Status
  /// The name of the policy rule.
  public var policy: String
  /// One sentence for people: what was counted, and why this step.
  public var reason: String
  /// How far up the ladder it is, from 0; each repetition of a step counts.
  public var step: Int
  public var expires: Timestamp?
  /// What was counted: `1:1000001`.
  public var trigger: String
  /// Whose events were counted, when they were counted per source.
  public var source: IPNetwork?
  /// Whether the decision log has it. False when the log could not be written (a full disk): then it is enforced all the
  /// same, and a restart will not know of it.
  public var isLogged: Bool

  public init(
    id: UInt64, time: Timestamp, incarnation: Incarnation?, measure: Measure, status: Status, policy: String,
    reason: String, step: Int, expires: Timestamp?, trigger: String, source: IPNetwork? = nil, isLogged: Bool = true
  ) {
    self.id = id
    self.time = time
    self.incarnation = incarnation
    self.measure = measure
    self.status = status
    self.policy = policy
    self.reason = reason
    self.step = step
    self.expires = expires
    self.trigger = trigger
    self.source = source
    self.isLogged = isLogged
  }
}

/// Where events go: a file, a socket, a recorder. Called in order, from one task at a time.
public protocol EventSink: Sendable {
  func receive(_ event: Event) async
}
