#if Daemon
import ArgumentParser
import Foundation
import VMFenceCore
import VMFenceDetection
import VMFenceProcess

/// `vmfence-ref run`
struct Run: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Run as a daemon: capture live, inspect, decide.",
    discussion: """
      The configuration has the form of a scenario; the domains live as it says, from now on, and the ports of its
      domains (or the interfaces and bridges under `captures`) are captured live. Measures are decided and logged, and
      recorded; no packet filter is changed. Needs CAP_NET_RAW.

      SIGTERM and SIGINT stop it, SIGHUP reloads the rules and reopens the event file.

      EXAMPLES
        vmfence-ref run --config host.yaml --eve /var/log/vmfence/eve.json
        vmfence-ref run --config host.yaml --decisions /var/lib/vmfence/decisions.log
      """)

  @Option(help: "The configuration, a YAML file.")
  var config: String

  @Option(help: "Where to append events as EVE JSON.")
  var eve: String?

  @Option(help: "The decision log; kept in memory only when not given.")
  var decisions: String?

  @Option(help: "process or thread; goes before what the configuration says.")
  var detectors: Replay.Detectors?

  @Option(help: "The detector's program; vmfence-detector beside this program when not given.")
  var detector: String?

  func run() async throws {
    let prepared = try PreparedScenario(path: config, isLive: true)
    let (log, restored) = try openLog()
    Signals.install()
    let usesProcesses = detectors.map { $0 == .process } ?? prepared.scenario.usesProcesses
    if usesProcesses {
      let backend: ProcessDetectorBackend<SnortRules>
      do throws(DetectorError) { backend = try ProcessDetectorBackend(executable: detector) } catch {
        throw failure(error, Exit.unavailable)
      }
      try await live(prepared, backend, log, restored)
    } else {
      try await live(prepared, ThreadDetectorBackend<SnortInspector>(), log, restored)
    }
  }

  private func openLog() throws -> (any DecisionLog, [Decision]) {
    guard let decisions else { return (MemoryDecisionLog(), []) }
    do throws(DecisionLogError) {
      let (log, recovery) = try FileDecisionLog.open(path: decisions)
      if let damage = recovery.damage { Terminal.error.print([damage]) }
      return (log, recovery.decisions)
    } catch { throw failure(error, error.code == .permissionDenied ? Exit.noPermission : Exit.cannotCreate) }
  }

  private func live<Backend: DetectorBackend>(
    _ prepared: PreparedScenario, _ backend: Backend, _ log: any DecisionLog, _ restored: [Decision]
  ) async throws where Backend.Rules == SnortRules {
    do throws(ReplayFailure) {
      let run = try LiveRun(
        prepared.scenario, rules: ReloadableRules(prepared), backend: backend, log: log, restored: restored, eve: eve)
      Terminal.error.print("vmfence-ref: measures are recorded only; no packet filter is changed")
      try await run.run()
    } catch {
      Terminal.error.print([error.diagnostic])
      throw error.exit
    }
  }
}
#endif
