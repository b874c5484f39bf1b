import VMFenceCore

/// A rule engine of one's own, as small as one can be. A rule is a line `SID REVISION MESSAGE PORT WORD`; it fires on a TCP segment or
/// UDP datagram over IPv4 to that port that carries the word.
///
/// It keeps no flows, so nothing it finds proves who sent it, and it never says that it does: VMFence will not block
/// an address on its word alone. The product VMFenceDetection has an engine that can.
public struct WordEngine: RuleEngine {
  public init() {}

  public func compile(
    _ request: RuleCompilationRequest
  ) throws(RuleCompilationError) -> RuleCompilation<WordRules> {
    var rules: [WordRules.Rule] = []
    var diagnostics: [Diagnostic] = []
    for source in request.sources {
      let lines = source.text.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false)
      for (index, line) in lines.enumerated() where !line.isEmpty && line.first != UInt8(ascii: "#") {
        if let rule = WordRules.Rule(line) {
          rules.append(rule)
        } else {
          diagnostics.append(
            Diagnostic(
              at: SourcePlace(file: source.file, line: index + 1), "not a rule",
              remedy: "write SID REVISION MESSAGE PORT WORD"))
        }
      }
    }
    if request.onBadRule == .fail, let first = diagnostics.first {
      throw RuleCompilationError(
        .badRule, first.message, at: first.place, remedy: first.remedy, diagnostics: diagnostics)
    }
    guard !rules.isEmpty else {
      throw RuleCompilationError(
        .noRules, "no rule can be used", remedy: "write one rule a line", diagnostics: diagnostics)
    }
    return RuleCompilation(
      rules: WordRules(rules), diagnostics: diagnostics, loaded: rules.count, rejected: diagnostics.count)
  }
}

/// Compiled rules: one flat image, which detectors share. Here it is the rules' text between a mark and a checksum.
public struct WordRules: CompiledRules {
  struct Rule: Sendable {
    var sid: UInt32
    var revision: UInt32
    var message: String
    var port: UInt16
    var word: [UInt8]

    init?(_ line: some Collection<UInt8>) {
      let parts = line.split(separator: UInt8(ascii: " "))
      guard parts.count == 5, let sid = UInt32(String(decoding: parts[0], as: UTF8.self)),
        let revision = UInt32(String(decoding: parts[1], as: UTF8.self)),
        let message = String(validating: parts[2], as: UTF8.self),
        let port = UInt16(String(decoding: parts[3], as: UTF8.self))
      else { return nil }
      self.sid = sid
      self.revision = revision
      self.message = message
      self.port = port
      word = Array(parts[4])
    }

    var line: [UInt8] { Array("\(sid) \(revision) \(message) \(port) ".utf8) + word }
  }

  private static let mark = Array("WORDS 1\n".utf8)

  let rules: [Rule]
  public let image: RuleImage
  public var ruleCount: Int { rules.count }

  init(_ rules: [Rule]) {
    self.rules = rules
    var bytes = Self.mark
    for rule in rules { bytes += rule.line + [UInt8(ascii: "\n")] }
    let sum = Self.checksum(bytes)
    bytes += (0..<8).map { UInt8(truncatingIfNeeded: sum >> UInt64(8 * $0)) }
    image = bytes.withRawSpan { RuleImage(copying: $0) }
  }

  /// Takes over an image that another process compiled: all of it is checked here, and nothing later.
  public init(image: RuleImage) throws(RuleCompilationError) {
    let bytes = image.withBytes { $0.copiedBytes() }
    let text = bytes.dropLast(8)
    let sum = bytes.suffix(8).reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
    let damage = RuleCompilationError(.badImage, "not an image of words, or a damaged one", remedy: "compile it again")
    guard bytes.count > 8, text.starts(with: Self.mark), Self.checksum(text) == sum else { throw damage }
    var rules: [Rule] = []
    for line in text.dropFirst(Self.mark.count).split(separator: UInt8(ascii: "\n")) {
      guard let rule = Rule(line) else { throw damage }
      rules.append(rule)
    }
    self.rules = rules
    self.image = image
  }

  public func metadata(at index: Int) -> RuleMetadata {
    let rule = rules[index]
    return RuleMetadata(
      sid: rule.sid, revision: rule.revision, message: rule.message, classification: "web-application-attack",
      priority: 1)
  }

  /// FNV-1a.
  private static func checksum(_ bytes: some Sequence<UInt8>) -> UInt64 {
    bytes.reduce(0xCBF2_9CE4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01B3 }
  }
}

/// Inspects the packets of one domain. The bytes are hostile: each length is checked before it is used.
public struct WordInspector: PacketInspector, ~Copyable {
  private var rules: WordRules
  private var frames: UInt64 = 0
  private var notInspected: UInt64 = 0

  private init(rules: WordRules) { self.rules = rules }

  public static func make(
    rules: WordRules, configuration: InspectorConfiguration
  ) throws(RuleCompilationError) -> WordInspector { WordInspector(rules: rules) }

  public mutating func replaceRules(with rules: WordRules) throws(RuleCompilationError) { self.rules = rules }

  public var statistics: [(name: String, value: UInt64)] { [("frames", frames), ("not inspected", notInspected)] }

  public mutating func inspect(_ frame: FrameMetadata, _ bytes: RawSpan, into output: inout InspectionOutput) {
    frames += 1
    guard let packet = Packet(frame, bytes) else {
      notInspected += 1
      return
    }
    for index in rules.rules.indices where packet.matches(rules.rules[index], in: bytes) {
      output.append(
        AlertRecord(
          timestamp: frame.timestamp, ruleIndex: UInt32(index), flowID: 0, source: packet.source,
          destination: packet.destination, sourcePort: packet.sourcePort, destinationPort: packet.destinationPort,
          ipProtocol: packet.ipProtocol, flags: frame.direction == .fromGuest ? .toClient : .toServer))
    }
  }
}

/// Where things are in a frame: Ethernet, IPv4, TCP or UDP; nothing else.
private struct Packet {
  var source: IPAddress
  var destination: IPAddress
  var sourcePort: UInt16
  var destinationPort: UInt16
  var ipProtocol: UInt8
  var payload: Range<Int>

  init?(_ frame: FrameMetadata, _ bytes: RawSpan) {
    guard frame.linkType == .ethernet, bytes.byteCount >= 34, bytes.u16(12) == 0x0800, bytes.u8(14) >> 4 == 4 else {
      return nil
    }
    let transport = 14 + Int(bytes.u8(14) & 0xF) * 4
    let end = min(bytes.byteCount, 14 + Int(bytes.u16(16)))
    ipProtocol = bytes.u8(23)
    // Fragments say nothing by themselves: the offset and the more-fragments bit are zero in what is whole.
    guard transport >= 34, bytes.u16(20) & 0x3FFF == 0, end - transport >= (ipProtocol == 6 ? 20 : 8) else {
      return nil
    }
    var start = transport + 8
    if ipProtocol == 6 {
      start = transport + Int(bytes.u8(transport + 12) >> 4) * 4
    } else if ipProtocol != 17 {
      return nil
    }
    guard start >= transport + 8, start <= end else { return nil }
    source = IPAddress(v4: bytes.u32(26))
    destination = IPAddress(v4: bytes.u32(30))
    sourcePort = bytes.u16(transport)
    destinationPort = bytes.u16(transport + 2)
    payload = start..<end
  }

  func matches(_ rule: WordRules.Rule, in bytes: RawSpan) -> Bool {
    let word = rule.word
    guard rule.port == destinationPort, word.count <= payload.count else { return false }
    for start in payload.lowerBound...(payload.upperBound - word.count) {
      var length = 0
      while length < word.count, bytes.u8(start + length) == word[length] { length += 1 }
      if length == word.count { return true }
    }
    return false
  }
}
