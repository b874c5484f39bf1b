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
        vmfence-ref inspect --capture first.pcap --rules web.rules --save-state engine.state
        vmfence-ref inspect --capture second.pcap --rules web.rules --load-state engine.state
      """)

  @Option(name: .customLong("capture"), parsing: .upToNextOption, help: "Capture files (pcap or pcapng).")
  var captures: [String]

  @Option(parsing: .upToNextOption, help: "Rule files; `*`, `?` and `[…]` stand for names, in quotes.")
  var rules: [String]

  @Option(help: "Where to write EVE JSON; - for standard output.")
  var eve: String?

  @OptionGroup var ruleOptions: RuleOptions

  @Flag(help: "Inspect packets whose checksums are wrong too.")
  var ignoreChecksums = false

  @Flag(help: "Act as if on the path: rules that drop or reject give drop events.")
  var inline = false

  @Option(
    name: .customLong("set"), parsing: .singleValue,
    help: "A setting of the engine, as KEY=VALUE; an unknown key names those that there are.")
  var settings: [EngineSetting] = []

  @Flag(help: "Write each alert's packet into its EVE event, in base64.")
  var packet = false

  @Flag(
    help: "Write what was inspected (the payload, or the stream up to there) into each alert's EVE event, in base64.")
  var payload = false

  @Flag(help: "Inspect each capture by itself, with a new engine, instead of merging them by time.")
  var separate = false

  @Option(help: "Go on with what an engine remembered that --save-state wrote to this file.")
  var loadState: String?

  @Option(help: "At the end write to this file what the engine remembers, instead of inspecting what still waits.")
  var saveState: String?

  @Flag(help: "Load nothing if any rule is wrong, instead of going on without it.")
  var strict = false

  func validate() throws {
    if captures.isEmpty { throw ValidationError("name at least one capture: --capture FILE") }
    if rules.isEmpty { throw ValidationError("name at least one rule file: --rules FILE") }
    if separate, loadState != nil || saveState != nil {
      throw ValidationError(
        "--separate begins with a new engine for each capture: leave out --load-state and --save-state")
    }
  }

  func run() throws {
    let compiled = try compile()
    let (configuration, settings) = try inspectorConfiguration()
    var run = try InspectionRun(
      rules: compiled, isInline: inline, output: eve, showsAlerts: eve != "-",
      evidence: EvidenceWanted(packet: packet, payload: payload), decoding: settings.decoding)
    var problem: PacketSourceError?
    for group in separate ? captures.map({ [$0] }) : [captures] {
      var inspector = try inspector(compiled, configuration)
      if let loadState { try restore(loadState, &inspector) }
      problem = run.inspect(group, with: &inspector, keepsWaiting: saveState != nil) ?? problem
      if let saveState {
        let state = inspector.saveState(at: run.last, limit: StateFile.limit)
        try StateFile.write(state.bytes, to: saveState)
        Terminal.error.print("state saved: \(state.report)")
      }
    }
    try run.finish()
    if let problem { throw failure(problem, problem.code == .inputOutput ? Exit.noInput : Exit.badData) }
  }

  private func inspector(_ rules: SnortRules, _ configuration: InspectorConfiguration) throws -> SnortInspector {
    do throws(RuleCompilationError) {
      return try SnortInspector.make(rules: rules, configuration: configuration)
    } catch { throw failure(error, Exit.internalError) }
  }

  private func restore(_ path: String, _ inspector: inout SnortInspector) throws {
    let bytes = try StateFile.read(path)
    do throws(EngineStateError) {
      Terminal.error.print("state restored: \(try inspector.restoreState(bytes, at: nil))")
    } catch { throw failure(error, Exit.badData) }
  }

  private func inspectorConfiguration() throws -> (InspectorConfiguration, EngineSettings) {
    var configuration = InspectorConfiguration(verifiesChecksums: !ignoreChecksums, isInline: inline)
    for setting in settings { configuration.settings[setting.name] = setting.value }
    do throws(RuleCompilationError) { return (configuration, try EngineSettings(configuration)) } catch {
      Terminal.error.print([Diagnostic(.error, error.message, remedy: error.remedy)])
      throw ExitCode.validationFailure
    }
  }

  private func compile() throws -> SnortRules {
    let (engine, request): (SnortRuleEngine, RuleCompilationRequest)
    do throws(RuleLoading.Failure) {
      (engine, request) = try ruleOptions.request(rules, onBadRule: strict ? .fail : .skip)
    } catch {
      Terminal.error.print(error.diagnostics)
      throw Exit.noInput
    }
    do throws(RuleCompilationError) {
      let result = try engine.compile(request)
      Terminal.error.print(result.diagnostics)
      Terminal.error.print("rules: \(result.loaded) loaded, \(result.rejected) rejected")
      return result.rules
    } catch {
      Terminal.error.print(error.diagnostics)
      throw failure(error, Exit.badData)
    }
  }
}

extension Incarnation {
  /// For alerts without a domain.
  static let none = Incarnation(uuid: DomainUUID(high: 0, low: 0), domainID: DomainID(0))
}
#endif
