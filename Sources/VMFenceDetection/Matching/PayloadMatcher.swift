import VMFenceCore
import VMFencePackets

/// Finds out whether a rule's payload tests hold, each buffer's in their order, trying earlier ones at other places where a later one
/// needs it.
///
/// What follows a test hangs only on where that test ended (and on variables, when the rule has some). Of contents that are counted
/// from each other no position is looked at twice: their windows only move upwards, and `Progress.next` remembers how far each
/// one got. Everything else is bounded by the budget.
struct PayloadMatcher: ~Copyable {
  /// How far one test got.
  struct Progress: BitwiseCopyable {
    /// No position below is to be looked at again.
    var next: Int32 = 0
    /// For a negated content: an occurrence known at or after the positions looked at; -1 for none.
    var known: Int32 = -1
    /// Where the test before it ended.
    var cursor: Int32 = 0
  }

  /// What of the rule matters to its tests.
  struct Subject {
    /// The rule's dialect, in what differs.
    var isSuricata: Bool
    /// Suricata: how many bytes of the stream come before the buffer. A content's depth counts from the stream's beginning.
    var streamStart = 0
  }

  private let inPlace = InPlace()
  let sections: ImageSections
  /// Whose bytes are looked at: set once for all rules, because it is long.
  var packet = DecodedPacket()
  /// Work left, in steps of about 8 bytes.
  var budget = 0
  /// Of the buffer's tests, then of the tests of what `base64_decode` made.
  var progress: [Progress]
  var variables: [UInt64]
  var regexes: RegexCache
  var inflater = Inflater()
  var dataSets: DataSetStore
  /// What expressions capture.
  var captured: CapturedValues
  /// Two for the transforms of each depth, and what was decoded.
  var scratch0 = Scratch()
  var scratch1 = Scratch()
  var scratch2 = Scratch()
  var scratch3 = Scratch()
  var decoded = Scratch()

  /// `key`: secret.
  init(_ sections: ImageSections, _ image: RawSpan, key: (UInt64, UInt64)) {
    dataSets = DataSetStore(sections, image, key: key)
    captured = CapturedValues(key: key)
    self.sections = sections
    progress = Array(repeating: Progress(), count: 2 * OptionRecord.payloadLimit)
    variables = Array(repeating: 0, count: RuleOptionParser.variableMaximum)
    regexes = RegexCache(count: sections[.regexes].count)
  }

  /// Whether all tests from record `first` of `image` on, `count` with those that choose buffers, hold. False also when `budget` ran
  /// out, which the caller sees by its being negative.
  mutating func matches(
    _ first: Int, count: Int, _ subject: Subject, payload: RawSpan, frame: RawSpan, image: RawSpan
  ) -> Bool {
    var index = 0
    while index < count {
      let record = first + index * OptionRecord.stride
      let tests = Int(image.u32le(OptionRecord.word(record, 2)))
      guard bufferMatches(record, tests, first, depth: 0, subject, payload: payload, frame: frame, image: image) else {
        return false
      }
      index += 1 + tests
    }
    return true
  }

  /// Whether the tests of one buffer hold; `record` chooses it.
  mutating func bufferMatches(
    _ record: Int, _ tests: Int, _ first: Int, depth: Int, _ subject: Subject, payload: RawSpan, frame: RawSpan,
    image: RawSpan
  ) -> Bool {
    let source = BufferSource(rawValue: image.u8(record + OptionRecord.small2)) ?? .payload
    if source == .sctpData { return anyChunkMatches(record, tests, first, subject, frame, image) }
    var start = record + OptionRecord.stride
    var tests = tests
    let isPayload = source == .payload || source == .base64
    let range = isPayload ? nil : source.range(of: packet, in: frame)
    // A test for absence comes first, if there is one.
    let isAbsenceTest = image.u8(start + OptionRecord.kind) == PayloadKind.absent.rawValue
    if !isPayload, range == nil { return isAbsenceTest }
    if isAbsenceTest {
      guard image.u8(start + OptionRecord.small2) == 1 else { return false }
      start += OptionRecord.stride
      tests -= 1
    }
    let data = source == .payload ? dialectData(subject, frame) : range
    let raw = if let data { frame.extracting(data) } else { payload }
    var subject = subject
    if source != .payload { subject.streamStart = 0 }
    return contentsMatch(record, start, tests, first, depth, subject, raw, frame, image)
  }

  /// Whether the tests of one buffer hold in its bytes, once they are transformed. `start`: the first test; `record` chooses the buffer.
  private mutating func contentsMatch(
    _ record: Int, _ start: Int, _ tests: Int, _ first: Int, _ depth: Int, _ subject: Subject, _ raw: RawSpan,
    _ frame: RawSpan, _ image: RawSpan
  ) -> Bool {
    let transforms = Int(image.u32le(OptionRecord.word(record, 1)))
    guard transforms > 0 else {
      return chainMatches(start, tests, first, depth: depth, subject, raw, frame: frame, image: image)
    }
    let record = sections[.transforms].offset + Int(image.u32le(OptionRecord.word(record, 0))) * TransformRecord.stride
    guard transform(record, transforms, depth: depth, raw, image: image) else { return false }
    var subject = subject
    subject.streamStart = 0
    // SAFETY: nothing writes to this scratch until the chain is done: deeper tests have scratch of their own.
    let made = unsafe depth == 0 ? scratch0.bytes : scratch2.bytes
    return chainMatches(start, tests, first, depth: depth, subject, unsafe made.bytes, frame: frame, image: image)
  }

  // MARK: SCTP

  /// Whether the tests hold in what one of the DATA chunks carries.
  private mutating func anyChunkMatches(
    _ record: Int, _ tests: Int, _ first: Int, _ subject: Subject, _ frame: RawSpan, _ image: RawSpan
  ) -> Bool {
    var start = record + OptionRecord.stride
    var tests = tests
    let isAbsenceTest = image.u8(start + OptionRecord.kind) == PayloadKind.absent.rawValue
    var chunks = SCTPChunks(packet)
    var hasData = false
    if isAbsenceTest {
      start += OptionRecord.stride
      tests -= 1
    }
    while hasChunks, let chunk = chunks.next(in: frame) {
      guard let data = chunk.userData else { continue }
      hasData = true
      if isAbsenceTest, image.u8(start - OptionRecord.stride + OptionRecord.small2) != 1 { return false }
      budget -= 1
      if contentsMatch(record, start, tests, first, 0, subject, frame.extracting(data), frame, image) { return true }
      if budget < 0 { return false }
    }
    return isAbsenceTest && !hasData
  }

  /// What the dialects take for the payload where it is not what follows the headers: Suricata what the first DATA chunk of SCTP carries,
  /// Snort all of IGMP.
  @inline(__always)
  private func dialectData(_ subject: Subject, _ frame: RawSpan) -> Range<Int>? {
    guard packet.transport == .sctp || packet.transport == .other else { return nil }
    return otherData(subject, frame)
  }

  private func otherData(_ subject: Subject, _ frame: RawSpan) -> Range<Int>? {
    guard subject.isSuricata else {
      return packet.isGroupMessage ? Int(packet.transportOffset)..<Int(packet.networkEnd) : nil
    }
    guard hasChunks else { return nil }
    var chunks = SCTPChunks(packet)
    while let chunk = chunks.next(in: frame) {
      if let data = chunk.userData { return data }
    }
    return nil
  }

  /// Whether it is a whole packet of SCTP.
  private var hasChunks: Bool { packet.transport == .sctp && !packet.isFragment }
}

extension DecodedPacket {
  /// Whether it is a whole message of IGMP.
  fileprivate var isGroupMessage: Bool {
    network == .ipv4 && ipProtocol == 2 && transport == .other && !isFragment && transportOffset <= networkEnd
  }
}

extension BufferSource {
  /// Where in the frame the buffer lies; nil when the packet has none.
  func range(of packet: DecodedPacket, in frame: RawSpan) -> Range<Int>? {
    let network = Int(packet.networkOffset)
    let transport = Int(packet.transportOffset)
    let isTransport = packet.transport != .none && !packet.isFragment
    func part(_ start: Int, _ count: Int) -> Range<Int>? {
      start >= 0 && count > 0 && start + count <= frame.byteCount ? start..<start + count : nil
    }
    let isV4 = packet.network == .ipv4
    let isV6 = packet.network == .ipv6
    switch self {
    case .payload, .base64: return nil
    case .ethernetHeader: return packet.etherType != 0 && network >= 14 ? part(0, 14) : nil
    case .ipv4Header:
      guard isV4, network < frame.byteCount else { return nil }
      return part(network, Int(frame.u8(network) & 0x0F) * 4)
    case .ipv6Header: return isV6 ? part(network, 40) : nil
    case .sourceAddress: return isV4 ? part(network + 12, 4) : isV6 ? part(network + 8, 16) : nil
    case .destinationAddress: return isV4 ? part(network + 16, 4) : isV6 ? part(network + 24, 16) : nil
    case .tcpHeader:
      guard isTransport, packet.transport == .tcp, transport + 13 <= frame.byteCount else { return nil }
      return part(transport, Int(frame.u8(transport + 12) >> 4) * 4)
    case .udpHeader: return isTransport && packet.transport == .udp ? part(transport, 8) : nil
    case .icmpv4Header:
      guard isTransport, packet.transport == .icmp else { return nil }
      return part(transport, min(Self.icmpHeaderLength(packet, frame), Int(packet.networkEnd) - transport))
    case .icmpv6Header: return isTransport && packet.transport == .icmpv6 ? part(transport, 8) : nil
    // With all chunks.
    case .sctpHeader:
      return isTransport && packet.transport == .sctp ? part(transport, Int(packet.networkEnd) - transport) : nil
    // One for each chunk: `SCTPChunks` finds them.
    case .sctpData: return nil
    case .igmpHeader: return packet.isGroupMessage ? part(transport, 8) : nil
    }
  }

  /// What of a message of ICMP is its header: RFC 792, RFC 950 (address masks) and RFC 1256 §3.1 (routers and how they are preferred).
  private static func icmpHeaderLength(_ packet: DecodedPacket, _ frame: RawSpan) -> Int {
    let start = Int(packet.transportOffset)
    switch packet.icmpType {
    case 9:
      guard start + 6 <= frame.byteCount else { return 8 }
      return 8 + Int(frame.u8(start + 4)) * Int(frame.u8(start + 5)) * 4
    case 13, 14: return 20
    case 17, 18: return 12
    default: return 8
    }
  }
}
