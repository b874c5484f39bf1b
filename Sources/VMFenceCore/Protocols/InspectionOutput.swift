/// What a detector says of one match: a plain value of fixed size, as it travels through the verdict ring. It names its
/// rule by index; the words come from the collector's own copy of the rule set, never from the detector.
public struct AlertRecord: Sendable, BitwiseCopyable {
  /// How many payload bytes an alert carries at the most.
  public static let excerptCapacity = 64

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
  public var excerpt: InlineArray<64, UInt8>

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

  @usableFromInline var records: UniqueRecords
  /// The alerts found so far.
  public private(set) var count: Int = 0
  /// Alerts of this packet that did not fit.
  public private(set) var overflow: Int = 0
  public var verdict: Verdict = .pass
  /// The rule that gave the verdict; `UInt32.max` when it is `pass`.
  public var verdictRule: UInt32 = .max

  public init() { records = UniqueRecords(capacity: Self.capacity) }

  public mutating func reset() {
    count = 0
    overflow = 0
    verdict = .pass
    verdictRule = .max
  }

  public mutating func append(_ record: AlertRecord) {
    guard count < Self.capacity else {
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
