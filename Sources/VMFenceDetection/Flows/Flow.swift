import VMFenceCore
import VMFencePackets

/// What is kept of one flow. All zeros is "no flow".
///
/// Some 350 bytes: what reads it is inlined where it is called, so that it stays where it is.
struct Flow: BitwiseCopyable {
  var key: FlowKey
  var hash: UInt64
  /// Nanoseconds, packet time. When this connection began: a new one between the same ends is another flow.
  var firstSeen: Int64
  var lastSeen: Int64
  var counts = Counts()
  /// The rule that gave the verdict on the whole flow, of the rules of `verdictGeneration`.
  var verdictRule: UInt32
  var verdictGeneration: UInt32
  var marks: Marks
  /// Where the table names it, plus one; 0: there is no flow at this place.
  var entry: UInt32 = 0
  /// Of TCP.
  var session = TCPSession()
  /// Of what the client sent, and the server.
  var clientFound = FoundRules()
  var serverFound = FoundRules()

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

  struct Marks: OptionSet, BitwiseCopyable {
    var rawValue: UInt16
    /// The client is the first end of the key.
    static let clientIsFirst = Marks(rawValue: 1)
    /// Not TCP: both ends have sent.
    static let isAnswered = Marks(rawValue: 2)
    /// The client, the server has once sent as much as `flow.rate-tracking` calls much.
    static let clientIsElephant = Marks(rawValue: 4)
    static let serverIsElephant = Marks(rawValue: 8)
    /// The guest sent a packet of it.
    static let hasGuestSpoken = Marks(rawValue: 8192)
    /// Verdicts on the flow as a whole.
    static let isPassed = Marks(rawValue: 64)
    static let isDropped = Marks(rawValue: 128)
    static let isBypassed = Marks(rawValue: 256)
    /// It owes work (`SnortInspector.debts`).
    static let owes = Marks(rawValue: 16_384)
    /// A packet of this direction was compared with the rules about addresses alone.
    static let clientAddressesSeen = Marks(rawValue: 512)
    static let serverAddressesSeen = Marks(rawValue: 1024)
  }

  @inline(__always)
  var client: TCPEnd { session.client }
  @inline(__always)
  var server: TCPEnd { session.server }
  @inline(__always)
  var isTCP: Bool { key.ipProtocol == 6 }

  /// For rules. TCP: both ends agreed on a connection. Others: both have sent.
  @inline(__always)
  var isEstablished: Bool { isTCP ? session.isEstablished : marks.contains(.isAnswered) }

  /// Whether anything of its streams waits to be inspected.
  @inline(__always)
  var hasBuffers: Bool { session.client.stream.block != 0 || session.server.stream.block != 0 }

  /// Not 0; another one for each flow that lies at a place, and for each new connection between the same ends.
  @inline(__always)
  var identity: UInt64 { (hash ^ UInt64(bitPattern: firstSeen) &* 0x9E37_79B9_7F4A_7C15) | 1 }

  /// What each side of a TCP connection has sent, by its sequence numbers: SYN and FIN count as one. nil: its SYN was not seen.
  var sequenceSizes: (client: UInt64?, server: UInt64?) {
    guard !session.marks.contains(.midstream), session.state != .none else { return (nil, nil) }
    let server = session.state == .synSent ? nil : UInt64(server.next &- server.initial)
    return (UInt64(client.next &- client.initial), server)
  }

  /// How long the flow is kept after its last packet, in nanoseconds.
  @inline(__always)
  func timeout(_ timeouts: FlowTimeouts) -> Int64 {
    switch key.ipProtocol {
    case 6: session.isClosed ? timeouts.tcpClosed : session.isEstablished ? timeouts.tcpEstablished : timeouts.tcpNew
    case 17: isEstablished ? timeouts.udpEstablished : timeouts.udpNew
    case 1, 58: isEstablished ? timeouts.icmpEstablished : timeouts.icmpNew
    default: isEstablished ? timeouts.otherEstablished : timeouts.otherNew
    }
  }

  /// What eviction spares: the higher the better. A flow that costs a flooder nothing to make is worth least.
  var worth: Int {
    if !isTCP { return isEstablished ? 3 : 1 }
    if session.isClosed { return 0 }
    guard session.isEstablished else { return 1 }
    return session.marks.contains(.handshakeSeen) ? 4 : 2
  }
}

/// The rules that the multi-pattern search found in what of a stream was inspected and is kept: so the next window is searched from its
/// new bytes on.
struct FoundRules: BitwiseCopyable {
  static let capacity = 4

  private var rules: InlineArray<4, UInt32> = InlineArray(repeating: 0)
  private var count: UInt8 = 0
  /// There were more, or nobody knows: the whole window is to be searched.
  private(set) var isIncomplete = false
  /// Of the rule set that `rules` are indices into.
  private var generation: UInt32 = 0

  /// Whether it says all of what was found with the rules of `generation`.
  func isComplete(_ generation: UInt32) -> Bool { !isIncomplete && self.generation == generation }

  static func nothing(_ generation: UInt32) -> FoundRules {
    var none = FoundRules()
    none.generation = generation
    return none
  }

  static let unknown: FoundRules = {
    var some = FoundRules()
    some.isIncomplete = true
    return some
  }()

  mutating func insert(_ rule: UInt32) {
    for index in 0..<Int(count) where rules[index] == rule { return }
    guard Int(count) < Self.capacity else {
      isIncomplete = true
      return
    }
    rules[Int(count)] = rule
    count += 1
  }

  mutating func noteMore() { isIncomplete = true }

  func forEach(_ body: (UInt32) -> Void) {
    for index in 0..<Int(count) { body(rules[index]) }
  }
}
