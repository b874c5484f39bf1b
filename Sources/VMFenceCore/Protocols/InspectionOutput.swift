/// What a detector says of one match: a plain value of fixed size, as it travels through the verdict ring. It names its
/// rule by index; the words come from the collector's own copy of the rule set, never from the detector.
public struct AlertRecord: Sendable, BitwiseCopyable {
  /// How many payload bytes an alert carries at the most.
  public static let excerptCapacity = 64
  /// How many bytes of what the rule's expressions captured for it, with two before each.
  public static let captureCapacity = 63

  public var timestamp: Timestamp
  /// The rule's index in its compiled rules.
  public var ruleIndex: UInt32
  /// An identifier of the flow, equal for both directions; 0 when the packet has none. Stable between runs on the same input.
  public var flowID: UInt64
  public var source: IPAddress
  public var destination: IPAddress
  public var sourcePort: UInt16
  public var destinationPort: UInt16
  /// The IP protocol number.
  public var ipProtocol: UInt8
  public var flags: Flags
  /// VLAN identifier (12 bits) of the outermost tag, 0 for none.
  public var vlan: UInt16
  public var excerptLength: UInt8
  /// How the packet came to be. `layer` says which of the packets of a frame it is: 0 the outermost, 1 the one in its tunnel …
  public var origin: PacketOrigin = .wire
  public var layer: UInt8 = 0
  public var excerpt: InlineArray<64, UInt8>
  /// What the rule's expressions captured for the alert: for each which of `RuleMetadata.captures` it is, its length, and its bytes.
  public var captures: InlineArray<63, UInt8>
  public var captureLength: UInt8
  /// Which way the packet went through the guest's port, as the supervisor knows it; a detector does not say.
  package var way = FrameDirection.unknown
  /// What was inspected, where that is not a part of the frame itself: bytes of the output that this record is in.
  /// Not handed on between processes.
  public var payload = EvidenceRange()
  public var packet = EvidenceRange()

  /// Whether it was found in what a tunnel carries.
  var isTunnelled: Bool { layer > 0 || origin.isTunnel }

  public struct Flags: OptionSet, Hashable, Sendable, BitwiseCopyable {
    public var rawValue: UInt8
    @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }
    /// The packet went from the client to the server of its flow.
    public static let toServer = Flags(rawValue: 1)
    public static let toClient = Flags(rawValue: 2)
    /// The flow's handshake was seen, so its source address is not forged.
    public static let established = Flags(rawValue: 4)
    /// The match was found in a reassembled stream.
    public static let stream = Flags(rawValue: 8)
    /// The rule drops, or would; and tells the ends, or would.
    public static let drops = Flags(rawValue: 16)
    public static let rejects = Flags(rawValue: 32)
    /// Set by the supervisor, never by a detector: the packet that the alert came with does not have its ends.
    package static let unattested = Flags(rawValue: 64)
  }

  @inlinable
  public init(
    timestamp: Timestamp, ruleIndex: UInt32, flowID: UInt64, source: IPAddress, destination: IPAddress,
    sourcePort: UInt16, destinationPort: UInt16, ipProtocol: UInt8, flags: Flags, vlan: UInt16 = 0
  ) {
    self.timestamp = timestamp
    self.ruleIndex = ruleIndex
    self.flowID = flowID
    self.source = source
    self.destination = destination
    self.sourcePort = sourcePort
    self.destinationPort = destinationPort
    self.ipProtocol = ipProtocol
    self.flags = flags
    self.vlan = vlan
    excerptLength = 0
    excerpt = InlineArray(repeating: 0)
    captures = InlineArray(repeating: 0)
    captureLength = 0
  }

  /// Adds what was captured; what does not fit is cut.
  public mutating func addCapture(_ number: UInt8, _ bytes: [UInt8]) {
    let start = Int(captureLength) + 2
    guard start <= Self.captureCapacity else { return }
    let count = min(bytes.count, Self.captureCapacity - start)
    captures[start - 2] = number
    captures[start - 1] = UInt8(truncatingIfNeeded: count)
    for index in 0..<count { captures[start + index] = bytes[index] }
    captureLength = UInt8(truncatingIfNeeded: start + count)
  }

  /// What was captured, by name. `names`: `RuleMetadata.captures`. What no sound detector writes is left out.
  public func captures(_ names: [String]) -> [AlertCapture] {
    var result: [AlertCapture] = []
    var place = 0
    let end = min(Int(captureLength), Self.captureCapacity)
    while place + 2 <= end, place + 2 + Int(captures[place + 1]) <= end {
      let (number, count) = (Int(captures[place]), Int(captures[place + 1]))
      if names.indices.contains(number) {
        result.append(AlertCapture(name: names[number], value: (0..<count).map { captures[place + 2 + $0] }))
      }
      place += 2 + count
    }
    return result
  }
}

/// How an inspected packet came to be.
public enum PacketOrigin: UInt8, Hashable, Sendable, CaseIterable, BitwiseCopyable {
  /// The frame itself.
  case wire = 0
  /// What a tunnel in the frame carries.
  case gre, ipv4Tunnel, ipv6Tunnel, teredo, vxlan, geneve
  /// Put together from fragments.
  case defragmented
  /// No packet: the end of a flow or of the input, or a silence in it, made its stream be inspected.
  case flowTimeout
  /// What a GTP tunnel in the frame carries.
  case gtp

  /// Whether it was carried by another packet.
  public var isTunnel: Bool {
    switch self {
    case .gre, .ipv4Tunnel, .ipv6Tunnel, .teredo, .vxlan, .geneve, .gtp: true
    case .wire, .defragmented, .flowTimeout: false
    }
  }
}

/// Why a packet was dropped, or would have been.
public enum DropReason: UInt8, Hashable, Sendable, CaseIterable, BitwiseCopyable {
  /// A rule matched this packet.
  case rules
  /// A rule's threshold (`rate_filter`) turned its action into a drop.
  case rulesThreshold
  /// An earlier packet of the flow was dropped for all of it.
  case flowDrop
  /// What a policy says of a connection whose beginning was not seen, of segments that cannot be right, of memory that is used up …
  case streamMidstream, streamError, streamMemory, streamReassembly, streamUrgent, flowMemory, defragmentMemory
  case decodeError, defragmentError, applicationError, innerPacket
}

/// Something wrong with a packet, whether or not a rule is about it.
public struct PacketAnomaly: Sendable, Hashable, BitwiseCopyable {
  public enum Kind: String, Sendable, BitwiseCopyable {
    /// Found by decoding.
    case decode
    /// Found by following its connection.
    case stream
  }

  public var kind: Kind
  /// The engine's number of the event among those of its kind.
  public var number: UInt8
  public var flowID: UInt64
  /// Which of the packets in the frame: 0 the outermost.
  public var layer: UInt8

  public init(kind: Kind, number: UInt8, flowID: UInt64, layer: UInt8) {
    self.kind = kind
    self.number = number
    self.flowID = flowID
    self.layer = layer
  }
}

/// Bytes that an inspector kept in its output: empty when it kept none.
public struct EvidenceRange: Hashable, Sendable, BitwiseCopyable {
  public var offset: UInt32
  public var length: UInt32

  @inlinable
  public init(offset: UInt32 = 0, length: UInt32 = 0) {
    self.offset = offset
    self.length = length
  }
}

/// What is to happen to a packet.
public enum Verdict: UInt8, Hashable, Sendable, BitwiseCopyable {
  case pass = 0
  /// A rule said drop (or its like): the packet, and the flow it belongs to.
  case drop = 1
  /// Drop, and tell the ends.
  case reject = 2
}

/// Where an inspector puts what it found in one packet. Fixed capacity, reused for every packet; what does not fit is
/// counted.
public struct InspectionOutput: ~Copyable {
  /// Alerts of one packet at the most.
  public static let capacity = 64
  /// Anomalies of one frame at the most.
  public static let anomalyCapacity = 32

  @usableFromInline var records: UniqueRecords
  /// Bytes kept for the alerts of this packet, one after the other.
  private var evidence: [UInt8]
  private var evidenceUsed = 0
  /// Bytes that did not fit, of this packet's alerts.
  public private(set) var evidenceLost = 0
  /// The alerts found so far.
  public private(set) var count: Int = 0
  /// Alerts of this packet that did not fit.
  public private(set) var overflow: Int = 0
  public var verdict: Verdict = .pass
  /// The rule that gave the verdict; `UInt32.max` when it is `pass`, and when no rule of this set gave it: the engine's
  /// settings, or a rule of an earlier set that refused the flow.
  public var verdictRule: UInt32 = .max
  /// The rule that says which ends are told, when the verdict is `reject`; else `UInt32.max`.
  public var rejectRule: UInt32 = .max
  /// Why the verdict is not `pass`.
  public var dropReason = DropReason.rules
  /// An earlier packet matched a rule that wants those after it to be logged. Not handed on between processes.
  public var isTagged = false
  /// Whether the frame is to go on with other bytes than it came with: `withRewritten`.
  public private(set) var isRewritten = false
  /// Made when a frame is first rewritten; as long as the longest so far.
  private var rewritten: [UInt8] = []

  /// Whether anybody asks for anomalies.
  public let keepsAnomalies: Bool
  /// What was wrong with the packets of this frame; always empty when nobody asks for it.
  public private(set) var anomalies: [PacketAnomaly] = []
  /// Anomalies of this frame that did not fit.
  public private(set) var anomaliesLost = 0

  /// - `evidenceCapacity`: how many bytes `keep(_:)` holds for one packet's alerts, in all; 0 when nobody asks for them.
  public init(evidenceCapacity: Int = 0, keepsAnomalies: Bool = false) {
    self.keepsAnomalies = keepsAnomalies
    if keepsAnomalies { anomalies.reserveCapacity(Self.anomalyCapacity) }
    precondition((0...1 << 30).contains(evidenceCapacity), "an evidence capacity out of bounds")
    records = UniqueRecords(capacity: Self.capacity)
    evidence = Array(repeating: 0, count: evidenceCapacity)
  }

  /// Whether `keep(_:)` holds anything: an inspector need not gather evidence that nobody asks for.
  public var keepsEvidence: Bool { !evidence.isEmpty }

  /// Keeps a copy of bytes that no frame holds (a reassembled stream, a datagram put together) for an alert of this packet.
  /// Empty, and counted, when they do not fit.
  public mutating func keep(_ bytes: RawSpan) -> EvidenceRange {
    guard keepsEvidence else { return EvidenceRange() }
    guard bytes.byteCount <= evidence.count - evidenceUsed else {
      evidenceLost += bytes.byteCount
      return EvidenceRange()
    }
    let range = EvidenceRange(offset: UInt32(evidenceUsed), length: UInt32(bytes.byteCount))
    for index in 0..<bytes.byteCount { evidence[evidenceUsed + index] = bytes.u8(index) }
    evidenceUsed += bytes.byteCount
    return range
  }

  /// What was kept; nil for an empty range.
  public func evidence(_ range: EvidenceRange) -> [UInt8]? {
    let end = Int(range.offset) + Int(range.length)
    guard range.length > 0, end <= evidenceUsed else { return nil }
    return Array(evidence[Int(range.offset)..<end])
  }

  /// Says that the frame is to go on as these bytes: inline, when a rule replaced some of it.
  public mutating func rewrite(_ frame: RawSpan) {
    rewritten.removeAll(keepingCapacity: true)
    for index in 0..<frame.byteCount { rewritten.append(frame.u8(index)) }
    isRewritten = true
  }

  /// Calls `body` with the bytes that the frame is to go on as, when they are others than it came with.
  public func withRewritten(_ body: (RawSpan) -> Void) {
    // SAFETY: UInt8 has no padding, so every byte is initialised.
    if isRewritten { body(unsafe rewritten.span.bytes) }
  }

  public mutating func reset() {
    isRewritten = false
    isTagged = false
    evidenceUsed = 0
    evidenceLost = 0
    count = 0
    overflow = 0
    clearVerdict()
    if keepsAnomalies {
      anomalies.removeAll(keepingCapacity: true)
      anomaliesLost = 0
    }
  }

  /// Takes back what rules said of the packet: there is none.
  public mutating func clearVerdict() {
    verdict = .pass
    verdictRule = .max
    rejectRule = .max
    dropReason = .rules
  }

  public mutating func append(_ anomaly: PacketAnomaly) {
    guard keepsAnomalies else { return }
    if anomalies.count < Self.anomalyCapacity { anomalies.append(anomaly) } else { anomaliesLost += 1 }
  }

  /// - `limit`: alerts of this packet at the most; what is over it is counted.
  public mutating func append(_ record: AlertRecord, limit: Int = capacity) {
    guard count < min(limit, Self.capacity) else {
      overflow += 1
      return
    }
    records[count] = record
    count += 1
  }

  /// - Precondition: `index` is in 0 ..< `count`.
  public subscript(index: Int) -> AlertRecord {
    precondition(index >= 0 && index < count, "an alert that is not there")
    return records[index]
  }
}

/// Storage for the records of one packet, allocated once.
@usableFromInline
struct UniqueRecords: ~Copyable {
  private var storage: [AlertRecord]

  init(capacity: Int) {
    storage = Array(
      repeating: AlertRecord(
        timestamp: .zero, ruleIndex: 0, flowID: 0, source: .anyV4, destination: .anyV4, sourcePort: 0,
        destinationPort: 0, ipProtocol: 0, flags: []), count: capacity)
  }

  subscript(index: Int) -> AlertRecord {
    get { storage[index] }
    set { storage[index] = newValue }
  }
}
