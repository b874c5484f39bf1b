import Glibc
import VMFenceCore

/// Rules of the form "when a frame contains this byte, do that", for tests of rings and detectors.
package struct ToyRules: CompiledRules {
  package enum Action: UInt8, Sendable, CaseIterable {
    case alert
    case drop
    /// 100 alerts, more than fit.
    case flood
    case crash
    /// Never returns.
    case hang
    /// Alerts whose flow identifier is the error number of an attempt, 0 when it succeeded.
    case openFile
    case openSocket
    case fork
    case executableMemory
    case signalParent
    /// Fills memory until it is refused; the flow identifier is the number of whole mebibytes.
    case allocate
    case reject
    /// An alert that waits until time has passed, or for the end.
    case later
    /// An anomaly in layer 2, numbered by the frame's length, and a tag.
    case note
  }

  package let rules: [(action: Action, byte: UInt8)]
  package let image: RuleImage

  package init(_ rules: [(action: Action, byte: UInt8)]) {
    self.rules = rules
    let bytes = Array("TOY1".utf8) + [UInt8(rules.count)] + rules.flatMap { [$0.action.rawValue, $0.byte] }
    image = bytes.withRawSpan { RuleImage(copying: $0) }
  }

  package init(image: RuleImage) throws(RuleCompilationError) {
    let bytes = image.withBytes { $0.copiedBytes() }
    guard bytes.count >= 5, Array(bytes[..<4]) == Array("TOY1".utf8), bytes.count >= 5 + Int(bytes[4]) * 2 else {
      throw RuleCompilationError(.badImage, "not a toy")
    }
    var rules: [(Action, UInt8)] = []
    for index in 0..<Int(bytes[4]) {
      guard let action = Action(rawValue: bytes[5 + index * 2]) else {
        throw RuleCompilationError(.badImage, "an action that does not exist")
      }
      rules.append((action, bytes[6 + index * 2]))
    }
    self.rules = rules
    self.image = image
  }

  package var ruleCount: Int { rules.count }

  package static let inspectorCounters = [
    InspectorCounter("seen", "Packets."), InspectorCounter("last_length", .level, "Bytes of the last packet."),
  ]

  package func metadata(at index: Int) -> RuleMetadata {
    RuleMetadata(sid: UInt32(index), message: "\(rules[index].action) on byte \(rules[index].byte)")
  }
}

/// Inspects with `ToyRules`. Each alert's flow identifier is the number of packets this inspector has seen, so that lost
/// state shows.
package struct ToyInspector: PacketInspector, ~Copyable {
  package typealias Rules = ToyRules
  private var rules: ToyRules
  private var seen: UInt64 = 0
  private var lastLength: UInt64 = 0
  private var waiting: [AlertRecord] = []

  package static func make(
    rules: ToyRules, configuration: InspectorConfiguration
  ) throws(RuleCompilationError) -> ToyInspector { ToyInspector(rules: rules) }

  /// The number of packets, and what it is a number of.
  package func saveState(at now: Timestamp, limit: Int) -> SavedEngineState {
    SavedEngineState(
      bytes: Array("SEEN".utf8) + (0..<8).map { UInt8(truncatingIfNeeded: seen >> UInt64(8 * $0)) },
      report: EngineStateReport([.init("packets", kept: Int(seen))]))
  }

  package mutating func restoreState(
    _ bytes: [UInt8], at now: Timestamp?
  ) throws(EngineStateError) -> EngineStateReport {
    guard bytes.count == 12, Array(bytes[..<4]) == Array("SEEN".utf8) else {
      throw EngineStateError(.unknownFormat, "not a toy's state")
    }
    seen = bytes[4...].reversed().reduce(0) { $0 << 8 | UInt64($1) }
    return EngineStateReport([.init("packets", kept: Int(seen))])
  }

  package mutating func replaceRules(with rules: ToyRules) throws(RuleCompilationError) { self.rules = rules }

  package var statistics: [(name: String, value: UInt64)] { [("seen", seen), ("last_length", lastLength)] }

  package func forEachCounter(_ body: (UInt64) -> Void) {
    body(seen)
    body(lastLength)
  }

  package mutating func inspect(_ frame: FrameMetadata, _ bytes: RawSpan, into output: inout InspectionOutput) {
    seen += 1
    lastLength = UInt64(bytes.byteCount)
    for index in rules.rules.indices {
      let rule = rules.rules[index]
      guard (0..<bytes.byteCount).contains(where: { bytes.u8($0) == rule.byte }) else { continue }
      perform(rule.action, UInt32(index), frame, bytes, &output)
    }
  }

  package mutating func advance(to time: Timestamp, into output: inout InspectionOutput) -> Bool {
    guard !waiting.isEmpty else { return false }
    output.append(waiting.removeFirst())
    // Nobody is to believe this of what is no packet.
    output.verdict = .drop
    return true
  }

  package mutating func finish(into output: inout InspectionOutput) -> Bool { advance(to: .zero, into: &output) }

  private mutating func perform(
    _ action: ToyRules.Action, _ index: UInt32, _ frame: FrameMetadata, _ bytes: RawSpan,
    _ output: inout InspectionOutput
  ) {
    var record = AlertRecord(
      timestamp: frame.timestamp, ruleIndex: index, flowID: seen, source: IPAddress(v4: 0x0A00_0001),
      destination: IPAddress(v6High: 0x2001_0DB8_0000_0000, low: seen), sourcePort: UInt16(bytes.byteCount & 0xFFFF),
      destinationPort: frame.strippedVLAN, ipProtocol: 6, flags: [.toServer, .stream], vlan: 7)
    let length = min(bytes.byteCount, AlertRecord.excerptCapacity)
    for offset in 0..<length { record.excerpt[offset] = bytes.u8(offset) }
    record.excerptLength = UInt8(length)
    record.layer = UInt8(truncatingIfNeeded: frame.strippedVLAN)
    switch action {
    case .alert: output.append(record)
    case .drop, .reject:
      output.append(record)
      output.verdict = action == .drop ? .drop : .reject
      output.verdictRule = index
    case .note:
      output.append(
        PacketAnomaly(kind: .stream, number: UInt8(bytes.byteCount & 0xFF), flowID: seen, layer: 2))
      output.isTagged = true
    case .later: waiting.append(record)
    case .flood: for _ in 0..<100 { output.append(record) }
    case .crash: abort()
    case .hang: while true { sched_yield() }
    default:
      record.flowID = ToyProbe.attempt(action)
      output.append(record)
    }
  }
}

/// Attempts of what a sandboxed detector must not be able to do.
enum ToyProbe {
  static func attempt(_ action: ToyRules.Action) -> UInt64 {
    var result: Int32 = 0
    switch action {
    case .openFile: result = unsafe open("/etc/passwd", O_RDONLY)
    case .openSocket: result = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    case .signalParent: result = kill(getppid(), 0)
    case .executableMemory:
      // SAFETY: a fresh mapping that nothing uses.
      let memory = unsafe mmap(nil, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
      result = unsafe memory == MAP_FAILED ? -1 : 0
    case .fork:
      // Only the number of the error matters: there is nothing to run.
      var child: pid_t = 0
      // SAFETY: an empty argument list, and a file that is there on every Linux.
      let error = unsafe posix_spawn(&child, "/proc/self/exe", nil, nil, [nil], nil)
      return UInt64(error)
    case .allocate: return mebibytesBeforeRefusal()
    default: break
    }
    return result < 0 ? UInt64(errno) : 0
  }

  private static func mebibytesBeforeRefusal() -> UInt64 {
    var count: UInt64 = 0
    while count < 1 << 20 {
      // SAFETY: a fresh mapping that nothing uses.
      let memory = unsafe mmap(nil, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
      if unsafe memory == MAP_FAILED { break }
      count += 1
    }
    return count
  }
}
