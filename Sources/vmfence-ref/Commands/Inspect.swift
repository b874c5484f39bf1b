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

  @Option(
    name: .customLong("capture"), parsing: .upToNextOption,
    help: "Capture files (pcap or pcapng); - for standard input.")
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

  @Option(
    help: "With --inline: a pcap file to write the frames into that go on, as they go on (`replace` rewrites some).")
  var write: String?

  @Option(help: "A folder that `dataset` rules keep their `state` files in: read before, written after.")
  var dataDir: String?

  @Flag(help: "Measure what each rule costs, and print a table when the captures are done, the costliest first.")
  var profileRules = false

  @Option(
    name: .customLong("profile-json"), help: "Where to write what each rule cost as JSON; - for standard output.")
  var profileJSON: String?

  @Flag(
    help: "Write an EVE event of type anomaly for each thing that decoding and streams find wrong, whatever the rules.")
  var anomalies = false

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
    if write != nil, !inline { throw ValidationError("--write goes with --inline: without it every frame goes on") }
    if rules.isEmpty { throw ValidationError("name at least one rule file: --rules FILE") }
    if separate, loadState != nil || saveState != nil {
      throw ValidationError(
        "--separate begins with a new engine for each capture: leave out --load-state and --save-state")
    }
    // What was loaded may be saved in its place.
    try OutputFile.check(
      [("--eve", eve), ("--write", write), ("--save-state", saveState), ("--profile-json", profileJSON)],
      apartFrom: captures + rules + ruleOptions.lists)
  }

  func run() throws {
    let compiled = try compile()
    let (configuration, settings) = try inspectorConfiguration()
    var run = try InspectionRun(
      rules: compiled, isInline: inline, output: eve, showsAlerts: eve != "-",
      evidence: EvidenceWanted(packet: packet, payload: payload), tellsAnomalies: anomalies,
      decoding: settings.decoding, passed: try writer())
    var profile = RuleProfileReport(compiled)
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
      profile.add(inspector.ruleCosts)
      try keep(inspector.dataSetStates)
    }
    do { try run.finish() } catch let error as PacketSourceError { throw failure(error, Exit.cannotCreate) }
    if profileRules { Terminal.output.print(profile.table) }
    if let profileJSON { try profile.write(to: profileJSON) }
    if let problem { throw failure(problem, problem.code == .inputOutput ? Exit.noInput : Exit.badData) }
  }

  private func writer() throws -> CaptureFileWriter? {
    guard let write else { return nil }
    do throws(PacketSourceError) {
      return try CaptureFileWriter.create(path: write)
    } catch { throw failure(error, Exit.cannotCreate) }
  }

  private func keep(_ states: [(file: String, text: [UInt8])]) throws {
    guard !states.isEmpty else { return }
    guard let dataDir else {
      Terminal.error.print("data sets with a state file are not kept: name a folder with --data-dir")
      return
    }
    for state in states {
      do {
        try Data(state.text).write(to: URL(fileURLWithPath: dataDir + "/" + state.file), options: .atomic)
      } catch { throw OutputFile.failure(dataDir + "/" + state.file, error) }
    }
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
    } catch {
      Terminal.error.print([
        Diagnostic(.error, at: error.place ?? SourcePlace(file: path), error.message, remedy: error.remedy)
      ])
      throw Exit.badData
    }
  }

  private func inspectorConfiguration() throws -> (InspectorConfiguration, EngineSettings) {
    var configuration = InspectorConfiguration(verifiesChecksums: !ignoreChecksums, isInline: inline)
    for setting in settings { configuration.settings[setting.name] = setting.value }
    if profileRules || profileJSON != nil { configuration.settings["profiling.rules.enabled"] = "yes" }
    do throws(RuleCompilationError) { return (configuration, try EngineSettings(configuration)) } catch {
      Terminal.error.print([Diagnostic(.error, error.message, remedy: error.remedy)])
      throw ExitCode.validationFailure
    }
  }

  private func compile() throws -> SnortRules {
    let (engine, request): (SnortRuleEngine, RuleCompilationRequest)
    do throws(RuleLoading.Failure) {
      (engine, request) = try ruleOptions.request(rules, onBadRule: strict ? .fail : .skip, stateFolder: dataDir)
    } catch {
      Terminal.error.print(error.diagnostics)
      throw Exit.noInput
    }
    do throws(RuleCompilationError) {
      let result = try engine.compile(request)
      Terminal.error.print(result.diagnostics)
      let skipped = result.skipped > 0 ? ", \(result.skipped) passed over" : ""
      Terminal.error.print("rules: \(result.loaded) loaded, \(result.rejected) rejected\(skipped)")
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
