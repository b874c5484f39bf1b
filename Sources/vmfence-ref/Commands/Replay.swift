#if Daemon
import ArgumentParser
import Foundation
import VMFenceCore
import VMFenceDetection
import VMFenceProcess

/// `vmfence-ref replay`
struct Replay: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Replay a scenario: guests with their lives, captures, disks, rules and policy.",
    discussion: """
      Runs the real parts on the times of the captures, and ends with a summary: for each domain its states, packets,
      alerts, file events and measures. The same input gives the same output every time.

      EXAMPLES
        vmfence-ref replay Examples/quickstart/scenario.yaml --eve out.json
        vmfence-ref replay scenario.yaml --detectors thread --eve - | jq 'select(.event_type == "alert")'
      """)

  enum Detectors: String, CaseIterable, ExpressibleByArgument { case process, thread }

  @Argument(help: "The scenario, a YAML file.")
  var scenario: String

  @Option(help: "Where to write events as EVE JSON; - for standard output.")
  var eve: String?

  @Option(help: "process or thread; goes before what the scenario says.")
  var detectors: Detectors?

  @Option(help: "The detector's program; vmfence-detector beside this program when not given.")
  var detector: String?

  func run() async throws {
    let prepared = try PreparedScenario(path: scenario)
    let usesProcesses = detectors.map { $0 == .process } ?? prepared.scenario.usesProcesses
    guard usesProcesses else {
      try await replay(prepared, ThreadDetectorBackend<SnortInspector>())
      return
    }
    let backend: ProcessDetectorBackend<SnortRules>
    do throws(DetectorError) { backend = try ProcessDetectorBackend(executable: detector) } catch {
      throw failure(error, Exit.unavailable)
    }
    try await replay(prepared, backend)
  }

  private func replay<Backend: DetectorBackend>(_ prepared: PreparedScenario, _ backend: Backend) async throws
  where Backend.Rules == SnortRules {
    let scenario = prepared.scenario
    let disks = scenario.domains.compactMap(\.disk).flatMap { [$0.image] + [$0.writes].compactMap(\.self) }
    try OutputFile.check(
      [("--eve", eve)],
      apartFrom: [self.scenario] + scenario.captures.map(\.path) + scenario.rules.allFiles.map(\.path) + disks)
    let output = try eve.map(LineFile.init)
    var progress = ProgressLine()
    do throws(ReplayFailure) {
      let run = try ReplayRun(
        prepared.scenario, rules: prepared.rules, backend: backend, captures: prepared.captures, eve: output)
      let summary = try await run.run { done, total in progress.show("replay", done: done, of: total) }
      progress.clear()
      let terminal = eve == "-" ? Terminal.error : Terminal.output
      summary.lines(terminal).forEach { terminal.print($0) }
      if let problem = summary.captureProblem { throw ReplayFailure(problem.diagnostic) }
      if let problem = summary.disks.compactMap(\.problem).first { throw ReplayFailure(problem.diagnostic) }
    } catch {
      progress.clear()
      Terminal.error.print([error.diagnostic])
      output?.flush()
      throw Exit.badData
    }
    try output?.close()
  }
}

/// A scenario that was read and whose rules were compiled.
struct PreparedScenario {
  let scenario: Scenario
  let rules: RuleSelection
  let captures: [(file: ScenarioCapture, size: Int64)]

  /// Prints what is wrong, and throws the exit code.
  init(path: String) throws {
    let parser = ScenarioParser(file: path)
    let parsed = parser.parse()
    Terminal.error.print(parser.reader.diagnostics)
    guard let scenario = parsed else {
      throw WholeFile.problem(path) == nil ? Exit.badData : Exit.noInput
    }
    var loading = RuleLoading(rules: scenario.rules)
    do throws(RuleLoading.Failure) {
      rules = try RuleSelection(&loading, domains: scenario.domains.map(RuleSubject.init))
    } catch {
      Terminal.error.print(error.diagnostics)
      throw Exit.badData
    }
    Terminal.error.print(loading.diagnostics)
    let unknown = rules.unknownClasses(in: scenario.policy)
    Terminal.error.print(unknown)
    guard unknown.isEmpty else { throw Exit.badData }
    captures = scenario.captures.map { capture in
      let attributes = try? FileManager.default.attributesOfItem(atPath: capture.path)
      return (capture, (attributes?[.size] as? Int64) ?? 0)
    }
    self.scenario = scenario
  }
}
#endif
