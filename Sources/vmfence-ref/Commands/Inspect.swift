#if Daemon
import ArgumentParser
import Foundation
import VMFenceCapture
import VMFenceCore
import VMFenceDetection

/// `vmfence-ref inspect`
struct Inspect: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Run one detector over capture files, without any hypervisor.",
    discussion: """
      Several captures are merged by time. Alerts are printed as one line each; --eve writes them as EVE JSON too.

      EXAMPLES
        vmfence-ref inspect --capture web.pcap --rules web.rules --eve alerts.json
        vmfence-ref inspect --capture a.pcapng --capture b.pcap --rules all.rules --dialect suricata --eve - | jq .alert
        vmfence-ref inspect --capture web.pcap --rules web.rules --var 'HOME_NET=[10.0.0.0/8,!10.9.0.0/16]' --inline
      """)

  @Option(name: .customLong("capture"), parsing: .upToNextOption, help: "Capture files (pcap or pcapng).")
  var captures: [String]

  @Option(parsing: .upToNextOption, help: "Rule files.")
  var rules: [String]

  @Option(help: "Where to write EVE JSON; - for standard output.")
  var eve: String?

  @Option(help: "The rules' dialect: snort2, snort3 or suricata. Detected per file when not given.")
  var dialect: RuleDialect?

  @Option(name: .customLong("var"), parsing: .singleValue, help: "A rule variable, as NAME=VALUE.")
  var variables: [RuleVariable] = []

  @Flag(help: "Inspect packets whose checksums are wrong too.")
  var ignoreChecksums = false

  @Flag(help: "Act as if on the path: rules that drop or reject give drop events.")
  var inline = false

  @Flag(help: "Load nothing if any rule is wrong, instead of going on without it.")
  var strict = false

  func validate() throws {
    if captures.isEmpty { throw ValidationError("name at least one capture: --capture FILE") }
    if rules.isEmpty { throw ValidationError("name at least one rule file: --rules FILE") }
  }

  func run() throws {
    let compiled = try compile()
    var merged = MergedCapture()
    for path in captures {
      do throws(PacketSourceError) { merged.add(try CaptureFile.open(path: path, ports: .all(PortID(0)))) } catch {
        throw failure(error, error.code == .inputOutput ? Exit.noInput : Exit.badData)
      }
    }
    var run = try InspectionRun(
      rules: compiled, inspector: try inspector(compiled), isInline: inline, output: eve, showsAlerts: eve != "-")
    let problem = run.inspect(&merged)
    try run.finish(captured: merged.counters)
    if let problem { throw failure(problem, Exit.badData) }
  }

  private func inspector(_ rules: SnortRules) throws -> SnortInspector {
    let configuration = InspectorConfiguration(verifiesChecksums: !ignoreChecksums, isInline: inline)
    do throws(RuleCompilationError) {
      return try SnortInspector.make(rules: rules, configuration: configuration)
    } catch { throw failure(error, Exit.internalError) }
  }

  private func compile() throws -> SnortRules {
    var sources: [RuleSource] = []
    do throws(RuleLoading.Failure) {
      for path in rules { sources.append(try RuleLoading.read(path, dialect: dialect)) }
    } catch {
      Terminal.error.print(error.diagnostics)
      throw Exit.noInput
    }
    do throws(RuleCompilationError) {
      let names = Dictionary(variables.map { ($0.name, $0.value) }, uniquingKeysWith: { $1 })
      let result = try SnortRuleEngine().compile(
        RuleCompilationRequest(sources: sources, variables: names, onBadRule: strict ? .fail : .skip))
      Terminal.error.print(result.diagnostics)
      Terminal.error.print("rules: \(result.loaded) loaded, \(result.rejected) rejected")
      return result.rules
    } catch {
      Terminal.error.print(error.diagnostics)
      throw failure(error, Exit.badData)
    }
  }
}

extension RuleDialect: ExpressibleByArgument {}

struct RuleVariable: ExpressibleByArgument {
  var name: String
  var value: String

  init?(argument: String) {
    guard let equals = argument.firstIndex(of: "="), equals != argument.startIndex else { return nil }
    name = String(argument[..<equals])
    value = String(argument[argument.index(after: equals)...])
    if name.hasPrefix("$") { name.removeFirst() }
  }
}

/// One inspector, fed from a packet source until that ends.
private struct InspectionRun: ~Copyable {
  private var inspector: SnortInspector
  private let rules: SnortRules
  private var output = InspectionOutput()
  private let encoder: EVEEncoder
  private let eve: LineFile?
  private let showsAlerts: Bool
  private let isInline: Bool
  private var packets: UInt64 = 0
  private var alerts: UInt64 = 0
  private var dropped: UInt64 = 0
  private var overflow: UInt64 = 0
  private var first: Timestamp?
  private var last = Timestamp.zero

  init(
    rules: SnortRules, inspector: consuming SnortInspector, isInline: Bool, output path: String?, showsAlerts: Bool
  ) throws {
    self.rules = rules
    self.inspector = inspector
    self.showsAlerts = showsAlerts
    self.isInline = isInline
    encoder = EVEEncoder(node: "inspect", isInline: isInline, directory: DomainDirectory())
    eve = try path.map(LineFile.init)
  }

  mutating func inspect(_ source: inout MergedCapture) -> PacketSourceError? {
    do throws(PacketSourceError) {
      while true {
        let outcome = try source.nextBatch(limit: 4096, patience: .zero) { frame, bytes in take(frame, bytes) }
        if outcome.isAtEnd { return nil }
      }
    } catch {
      return error
    }
  }

  private mutating func take(_ frame: FrameMetadata, _ bytes: RawSpan) {
    output.reset()
    inspector.inspect(frame, bytes, into: &output)
    if first == nil { first = frame.timestamp }
    last = frame.timestamp
    overflow += UInt64(output.overflow)
    for index in 0..<output.count { tell(output[index]) }
    if output.verdict != .pass { dropped += 1 }
    packets += 1
  }

  private mutating func tell(_ record: AlertRecord) {
    let rule = rules.metadata(at: Int(record.ruleIndex))
    let alert = Alert(
      record, rule: rule, incarnation: .none, packetID: packets,
      verdict: output.verdictRule == record.ruleIndex ? output.verdict : .pass)
    alerts += 1
    eve?.write(encoder.encode(.alert(alert)))
    if let drop = encoder.encodeDrop(alert) { eve?.write(drop) }
    if showsAlerts {
      Terminal.output.print(String(decoding: FastAlertEncoder(isInline: isInline).encode(alert), as: UTF8.self))
    }
  }

  mutating func finish(captured: CaptureCounters) throws {
    var statistics = EVEStatistics(
      time: last, uptime: first.map { last - $0 } ?? .zero, packets: packets, bytes: captured.receivedBytes,
      drops: captured.skipped, alerts: alerts)
    statistics.counters = inspector.statistics
    eve?.write(encoder.encode(statistics))
    try eve?.close()
    let verb = isInline ? "dropped" : "would have been dropped"
    Terminal.error.print("packets: \(packets), alerts: \(alerts), \(verb): \(dropped)")
    if overflow > 0 {
      Terminal.error.print("alerts that did not fit (over \(InspectionOutput.capacity) of one packet): \(overflow)")
    }
    if captured.skipped > 0 { Terminal.error.print("capture records passed over: \(captured.skipped)") }
  }
}

extension Incarnation {
  /// For alerts without a domain.
  static let none = Incarnation(uuid: DomainUUID(high: 0, low: 0), domainID: DomainID(0))
}
#endif
