import Synchronization
import VMFenceCore

/// What is wrong with an engine, to show that the suite sees it.
protocol WordFault: Sendable { static var kind: WordFaultKind { get } }

enum WordFaultKind: CaseIterable {
  case none, otherBytesEachTime, takesCutImages, skipsSilently, ignoresFail, forgetsPlace, firesOnEverything,
    keepsOldRules, firesAbsentRule, losesMetadata, dependsOnPast
}

/// An engine whose rules are lines of `SID REV MESSAGE WORD`: fires on UDP to port 9999 whose frame has the word.
struct WordEngine<Fault: WordFault>: RuleEngine {
  func compile(
    _ request: RuleCompilationRequest
  ) throws(RuleCompilationError) -> RuleCompilation<WordRules<Fault>> {
    var rules: [WordRules<Fault>.Rule] = []
    var diagnostics: [Diagnostic] = []
    for source in request.sources {
      let lines = String(decoding: source.text, as: UTF8.self).split(separator: "\n", omittingEmptySubsequences: false)
      for (index, line) in lines.enumerated() where !line.isEmpty && !line.hasPrefix("#") {
        let parts = line.split(separator: " ")
        if parts.count == 4, let sid = UInt32(parts[0]), let revision = UInt32(parts[1]) {
          rules.append(.init(sid: sid, revision: revision, message: String(parts[2]), word: Array(parts[3].utf8)))
        } else {
          let place = SourcePlace(file: source.file, line: Fault.kind == .forgetsPlace ? 0 : index + 1)
          diagnostics.append(Diagnostic(at: place, "not a rule", remedy: "write SID REV MESSAGE WORD"))
        }
      }
    }
    let rejected = diagnostics.count
    if Fault.kind == .skipsSilently { diagnostics = [] }
    if request.onBadRule == .fail, rejected > 0, Fault.kind != .ignoresFail {
      throw RuleCompilationError(.badRule, "a bad rule", diagnostics: diagnostics)
    }
    guard !rules.isEmpty else { throw RuleCompilationError(.noRules, "no rules", diagnostics: diagnostics) }
    return RuleCompilation(
      rules: WordRules(rules), diagnostics: diagnostics, loaded: rules.count, rejected: rejected)
  }
}

private let stamp = Atomic<UInt8>(0)

struct WordRules<Fault: WordFault>: CompiledRules {
  struct Rule: Sendable {
    var sid: UInt32
    var revision: UInt32
    var message: String
    var word: [UInt8]
  }

  let rules: [Rule]
  let image: RuleImage

  init(_ rules: [Rule]) {
    self.rules = rules
    var bytes = Array("WORDS".utf8)
    bytes.append(Fault.kind == .otherBytesEachTime ? stamp.add(1, ordering: .relaxed).newValue : 0)
    for rule in rules {
      let texts = [Array(rule.message.utf8), rule.word]
      bytes += "\(rule.sid) \(rule.revision)".utf8
      for text in texts { bytes += [UInt8(ascii: " ")] + text }
      bytes.append(UInt8(ascii: "\n"))
    }
    let sum = bytes.reduce(UInt8(0), &+)
    image = (bytes + [sum]).withRawSpan { RuleImage(copying: $0) }
  }

  init(image: RuleImage) throws(RuleCompilationError) {
    let all = image.withBytes { $0.copiedBytes() }
    let bytes = all.dropLast()
    guard Fault.kind == .takesCutImages || bytes.starts(with: "WORDS".utf8) && bytes.reduce(0, &+) == all.last,
      Fault.kind == .takesCutImages || bytes.last == UInt8(ascii: "\n")
    else { throw RuleCompilationError(.badImage, "damaged") }
    var rules: [Rule] = []
    for line in bytes.dropFirst(6).split(separator: UInt8(ascii: "\n")) {
      let parts = line.split(separator: UInt8(ascii: " "))
      guard parts.count == 4, let sid = UInt32(String(decoding: parts[0], as: UTF8.self)),
        let revision = UInt32(String(decoding: parts[1], as: UTF8.self))
      else {
        if Fault.kind == .takesCutImages { continue }
        throw RuleCompilationError(.badImage, "damaged")
      }
      rules.append(
        Rule(
          sid: sid, revision: revision, message: String(decoding: parts[2], as: UTF8.self), word: Array(parts[3])))
    }
    self.rules = rules
    self.image = image
  }

  var ruleCount: Int { rules.count }

  func metadata(at index: Int) -> RuleMetadata {
    let rule = rules[index]
    return RuleMetadata(
      sid: rule.sid, revision: Fault.kind == .losesMetadata ? 0 : rule.revision, message: rule.message)
  }
}

struct WordInspector<Fault: WordFault>: PacketInspector, ~Copyable {
  typealias Rules = WordRules<Fault>
  private var rules: Rules
  private var frames: UInt64 = 0
  private let offset: UInt64

  private init(rules: Rules) {
    self.rules = rules
    offset = Fault.kind == .dependsOnPast ? UInt64(stamp.add(1, ordering: .relaxed).newValue) : 0
  }

  static func make(
    rules: Rules, configuration: InspectorConfiguration
  ) throws(RuleCompilationError) -> WordInspector { WordInspector(rules: rules) }

  mutating func replaceRules(with rules: Rules) throws(RuleCompilationError) {
    if Fault.kind != .keepsOldRules { self.rules = rules }
  }

  var statistics: [(name: String, value: UInt64)] { [("frames", frames)] }

  mutating func inspect(_ frame: FrameMetadata, _ bytes: RawSpan, into output: inout InspectionOutput) {
    frames += 1
    // Ethernet, IPv4 without options, UDP.
    guard frame.linkType == .ethernet, bytes.byteCount >= 42, bytes.u16(12) == 0x0800, bytes.u8(14) == 0x45,
      bytes.u8(23) == 17, bytes.u16(36) == 9_999
    else { return }
    let payload = bytes.copiedBytes().dropFirst(42)
    for (index, rule) in rules.rules.enumerated()
    where Fault.kind == .firesOnEverything || payload.contains(rule.word) {
      output.append(
        AlertRecord(
          timestamp: frame.timestamp,
          ruleIndex: UInt32(Fault.kind == .firesAbsentRule ? index + rules.ruleCount : index), flowID: offset,
          source: IPAddress(v4: bytes.u32(26)), destination: IPAddress(v4: bytes.u32(30)),
          sourcePort: bytes.u16(34), destinationPort: bytes.u16(36), ipProtocol: 17, flags: .toServer))
    }
  }
}
