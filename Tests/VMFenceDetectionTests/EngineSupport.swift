import Testing
import VMFenceCore
import VMFenceDetection

/// Rules from text, all of which have to be right.
func parsed(_ text: String, dialect: RuleDialect = .snort2, variables: [String: String] = [:]) throws -> [Rule] {
  let source = RuleSource(file: "test.rules", text: Array(text.utf8), dialect: dialect)
  let result = RuleFileParser.parse(source, variables: variables)
  try #require(result.rejected == 0, "\(result.diagnostics)")
  return result.rules
}

func compiled(_ text: String, dialect: RuleDialect = .snort2) throws -> SnortRules {
  try SnortRules(compiling: try parsed(text, dialect: dialect))
}

/// SplitMix64: the same numbers in every run.
struct SeededGenerator: RandomNumberGenerator {
  var state: UInt64

  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
    return z ^ z >> 31
  }
}

/// `count` rules with a content each, over a spread of protocols and ports.
func manyRules(_ count: Int) -> String {
  (1...count).map { number in
    let head =
      switch number % 5 {
      case 0: "tcp any any -> any 80"
      case 1: "tcp any any -> any [80,443,8000:8100]"
      case 2: "tcp any 25 -> any any"
      case 3: "udp any any -> any 53"
      default: "ip any any -> any any"
      }
    return "alert \(head) (msg:\"rule \(number)\"; content:\"needle-\(number)-\"; sid:\(number);)"
  }.joined(separator: "\n")
}

/// An inspector with what it needs around it: gives the sids that fired, in order.
struct EngineUnderTest: ~Copyable {
  var inspector: SnortInspector
  var output = InspectionOutput()
  var rules: SnortRules
  var now = Timestamp(seconds: 1_700_000_000)

  init(
    _ rules: SnortRules, isInline: Bool = false, flowCapacity: Int = 1024, verifiesChecksums: Bool = false,
    hashKey: (UInt64, UInt64) = (1, 2), settings: [String: String] = [:]
  ) throws {
    self.rules = rules
    inspector = try SnortInspector.make(
      rules: rules,
      configuration: InspectorConfiguration(
        verifiesChecksums: verifiesChecksums, isInline: isInline, flowCapacity: flowCapacity, hashKey: hashKey,
        settings: settings))
  }

  /// Streams are inspected with each segment, so that a packet's alerts are told with the packet; connections are taken up in midstream.
  static let immediate = ["stream.inline": "yes", "stream.midstream": "yes"]

  init(
    _ text: String, dialect: RuleDialect = .snort2, isInline: Bool = false, settings: [String: String] = [:]
  ) throws {
    try self.init(try compiled(text, dialect: dialect), isInline: isInline, settings: settings)
  }

  /// What waited for packets that do not come.
  mutating func finish() -> [UInt32] {
    var sids: [UInt32] = []
    while true {
      output.reset()
      let more = inspector.finish(into: &output)
      for index in 0..<output.count { sids.append(rules.metadata(at: Int(output[index].ruleIndex)).sid) }
      guard more else { return sids }
    }
  }

  /// What is found because no packet came for so long.
  mutating func advance(by silence: Duration) -> [UInt32] {
    now = now + silence
    output.reset()
    while inspector.advance(to: now, into: &output) {}
    return (0..<output.count).map { rules.metadata(at: Int(output[$0].ruleIndex)).sid }
  }

  mutating func inspect(
    _ frame: [UInt8], after delay: Duration = .milliseconds(1), _ direction: FrameDirection = .unknown
  ) -> [UInt32] {
    now = now + delay
    output.reset()
    let metadata = FrameMetadata(
      timestamp: now, port: PortID(1), direction: direction, originalLength: UInt32(frame.count))
    frame.withRawSpan { inspector.inspect(metadata, $0, into: &output) }
    return (0..<output.count).map { rules.metadata(at: Int(output[$0].ruleIndex)).sid }
  }

  mutating func inspect(_ frames: [[UInt8]]) -> [[UInt32]] {
    var result: [[UInt32]] = []
    for frame in frames { result.append(inspect(frame)) }
    return result
  }

  func statistic(_ name: String) -> UInt64? { inspector.statistics.first { $0.name == name }?.value }
}

/// Frames by hand: Ethernet, IPv4 or IPv6, TCP, UDP or ICMP.
struct Frame {
  var source = "192.0.2.1"
  var destination = "198.51.100.2"
  var sourcePort: UInt16 = 40_000
  var destinationPort: UInt16 = 80
  var sequence: UInt32 = 1000
  var acknowledgement: UInt32 = 5000
  var flags: UInt8 = 0x18
  var payload: [UInt8] = []

  static let syn: UInt8 = 0x02
  static let fin: UInt8 = 0x01
  static let rst: UInt8 = 0x04
  static let ack: UInt8 = 0x10

  /// The same conversation, from the other end.
  var reply: Frame {
    var frame = self
    swap(&frame.source, &frame.destination)
    swap(&frame.sourcePort, &frame.destinationPort)
    swap(&frame.sequence, &frame.acknowledgement)
    return frame
  }

  func with(_ change: (inout Frame) -> Void) -> Frame {
    var frame = self
    change(&frame)
    return frame
  }

  func carrying(_ text: String) -> Frame { with { $0.payload = Array(text.utf8) } }

  var tcp: [UInt8] {
    var segment = big16(sourcePort) + big16(destinationPort) + big32(sequence) + big32(acknowledgement)
    segment += [0x50, flags] + big16(8192) + [0, 0, 0, 0] + payload
    return datagram(6, segment, checksumAt: 16)
  }

  var udp: [UInt8] {
    let length = UInt16(8 + payload.count)
    return datagram(17, big16(sourcePort) + big16(destinationPort) + big16(length) + [0, 0] + payload, checksumAt: 6)
  }

  func icmp(type: UInt8, code: UInt8 = 0) -> [UInt8] {
    var message = [type, code, 0, 0, 0, 1, 0, 1] + payload
    let sum = internetChecksum(message)
    message[2] = UInt8(sum >> 8)
    message[3] = UInt8(sum & 0xFF)
    return datagram(1, message, checksumAt: nil)
  }

  /// A fragment of a TCP datagram: `offset` in units of 8 bytes.
  func fragment(offset: UInt16, more: Bool) -> [UInt8] {
    var frame = datagram(6, payload, checksumAt: nil)
    let field = big16(offset | (more ? 0x2000 : 0))
    frame.replaceSubrange(20..<22, with: field)
    return frame
  }

  /// A fragment of a datagram: `offset` in units of 8 bytes; `payload` is all that follows the IP headers.
  func piece(_ ipProtocol: UInt8, offset: Int, more: Bool, id: UInt16) -> [UInt8] {
    let field = big16(UInt16(offset) << (source.contains(":") ? 3 : 0) | (more ? source.contains(":") ? 1 : 0x2000 : 0))
    guard source.contains(":") else {
      var frame = datagram(ipProtocol, payload, checksumAt: nil)
      frame.replaceSubrange(18..<22, with: big16(id) + field)
      frame.replaceSubrange(24..<26, with: [0, 0])
      frame.replaceSubrange(24..<26, with: big16(internetChecksum(Array(frame[14..<34]))))
      return frame
    }
    let header: [UInt8] = [ipProtocol, 0] + field + [0, 0] + big16(id)
    return with { $0.payload = header + payload }.datagram(44, header + payload, checksumAt: nil)
  }

  private func datagram(_ ipProtocol: UInt8, _ segment: [UInt8], checksumAt: Int?) -> [UInt8] {
    let isV6 = source.contains(":")
    let addresses = octets(source) + octets(destination)
    var segment = segment
    if let checksumAt {
      let pseudo = addresses + [0, ipProtocol] + big16(UInt16(segment.count))
      let sum = internetChecksum(pseudo + segment)
      segment.replaceSubrange(checksumAt..<checksumAt + 2, with: big16(sum))
    }
    let link: [UInt8] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2] + (isV6 ? [0x86, 0xDD] : [0x08, 0x00])
    if isV6 {
      return link + [0x60, 0, 0, 0] + big16(UInt16(segment.count)) + [ipProtocol, 64] + addresses + segment
    }
    var header: [UInt8] =
      [0x45, 0] + big16(UInt16(20 + segment.count)) + [0, 1, 0, 0, 64, ipProtocol, 0, 0] + addresses
    header.replaceSubrange(10..<12, with: big16(internetChecksum(header)))
    return link + header + segment
  }

  private func octets(_ text: String) -> [UInt8] {
    guard let address = IPAddress(text) else { return [] }
    let low = (0..<8).map { UInt8(truncatingIfNeeded: address.low >> UInt64(56 - 8 * $0)) }
    guard address.family == .v6 else { return Array(low[4...]) }
    return (0..<8).map { UInt8(truncatingIfNeeded: address.high >> UInt64(56 - 8 * $0)) } + low
  }

  private func big16(_ value: UInt16) -> [UInt8] { [UInt8(value >> 8), UInt8(value & 0xFF)] }
  private func big32(_ value: UInt32) -> [UInt8] {
    big16(UInt16(value >> 16)) + big16(UInt16(truncatingIfNeeded: value))
  }
}

/// RFC 1071.
func internetChecksum(_ bytes: [UInt8]) -> UInt16 {
  var sum: UInt32 = 0
  for index in stride(from: 0, to: bytes.count, by: 2) {
    sum += UInt32(bytes[index]) << 8 | (index + 1 < bytes.count ? UInt32(bytes[index + 1]) : 0)
  }
  while sum > 0xFFFF { sum = sum & 0xFFFF + sum >> 16 }
  return ~UInt16(sum)
}

/// A TCP connection's frames, with sequence numbers that fit.
struct Connection {
  var client: Frame
  var clientNext: UInt32 = 1000
  var serverNext: UInt32 = 5000

  init(_ client: Frame = Frame()) { self.client = client }

  mutating func handshake() -> [[UInt8]] {
    let syn = client.with {
      $0.flags = Frame.syn
      $0.sequence = clientNext
      $0.acknowledgement = 0
    }
    clientNext += 1
    let synAck = client.reply.with {
      $0.flags = Frame.syn | Frame.ack
      $0.sequence = serverNext
      $0.acknowledgement = clientNext
    }
    serverNext += 1
    return [syn.tcp, synAck.tcp, fromClient("", flags: Frame.ack)]
  }

  mutating func fromClient(_ text: String, flags: UInt8 = 0x18) -> [UInt8] {
    let frame = client.carrying(text).with {
      $0.flags = flags
      $0.sequence = clientNext
      $0.acknowledgement = serverNext
    }
    clientNext += UInt32(text.utf8.count)
    return frame.tcp
  }

  mutating func fromServer(_ text: String, flags: UInt8 = 0x18) -> [UInt8] {
    let frame = client.reply.carrying(text).with {
      $0.flags = flags
      $0.sequence = serverNext
      $0.acknowledgement = clientNext
    }
    serverNext += UInt32(text.utf8.count)
    return frame.tcp
  }
}

enum EngineFrames {
  /// A few of every kind.
  static var sample: [[UInt8]] {
    var connection = Connection()
    var frames = connection.handshake()
    frames.append(connection.fromClient("GET /index.html and /etc/passwd HTTP/1.1"))
    frames.append(connection.fromServer("HTTP/1.1 200 OK"))
    frames.append(Frame(destinationPort: 53).carrying("a question of some length").udp)
    frames.append(Frame().icmp(type: 8))
    frames.append(Frame(sourcePort: 25, flags: Frame.syn).tcp)
    frames.append(Frame(source: "2001:db8::1", destination: "2001:db8::2").carrying("GET x /ETC/passwd").tcp)
    frames.append(Frame().carrying("a fragment of something, long enough").fragment(offset: 3, more: true))
    return frames
  }
}
