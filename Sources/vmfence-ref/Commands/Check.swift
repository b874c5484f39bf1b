#if Daemon
import ArgumentParser
import Foundation
import VMFenceCapture
import VMFenceCore
import VMFenceDetection

/// `vmfence-ref check`
struct Check: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Check scenarios, configurations, policies and rule files: everything wrong, each with its place.",
    discussion: """
      A name that ends in .rules is read as a rule file, anything else as a scenario or configuration with all files
      that it names: rules are compiled, captures opened, images read.

      EXAMPLES
        vmfence-ref check Examples/quickstart/scenario.yaml
        vmfence-ref check --live host.yaml
        vmfence-ref check local.rules --dialect suricata --var 'HOME_NET=10.0.0.0/8'
      """)

  @Argument(help: "Scenario, configuration or rule files.")
  var files: [String]

  @OptionGroup var ruleOptions: RuleOptions

  @Flag(
    help: """
      The files are configurations of hosts, for `run`: the programs, folders and sockets that they name are looked at, too. Nothing is \
      made or changed.
      """)
  var live = false

  func run() throws {
    var found: [Diagnostic] = []
    // What is named on this command line; what those files name is wrong in them.
    var isUnreadable = false
    for file in files {
      if file.hasSuffix(".rules") {
        found += checkRules(file, &isUnreadable)
      } else {
        isUnreadable = isUnreadable || WholeFile.problem(file) != nil
        found += live ? PreparedHost.load(path: file, looksAtPaths: true).diagnostics : checkScenario(file)
      }
    }
    Terminal.output.print(found)
    let errors = found.count { $0.severity == .error }
    let warnings = found.count { $0.severity == .warning }
    Terminal.output.print(
      errors == 0
        ? "checked \(files.count) files: nothing is wrong (\(warnings) warnings)"
        : "\(errors) errors, \(warnings) warnings")
    if isUnreadable { throw Exit.noInput }
    if errors > 0 { throw Exit.badData }
  }

  private func checkRules(_ path: String, _ isUnreadable: inout Bool) -> [Diagnostic] {
    do throws(RuleLoading.Failure) {
      let (engine, request) = try ruleOptions.request([path], onBadRule: .skip)
      do throws(RuleCompilationError) {
        return try engine.compile(request).diagnostics
      } catch { return error.diagnostics.isEmpty ? [error.diagnostic] : error.diagnostics }
    } catch {
      isUnreadable = true
      return error.diagnostics
    }
  }

  private func checkScenario(_ path: String) -> [Diagnostic] {
    let parser = ScenarioParser(file: path)
    let parsed = parser.parse()
    var found = parser.reader.diagnostics
    guard let scenario = parsed else { return found }
    var loading = RuleLoading(rules: scenario.rules)
    do throws(RuleLoading.Failure) {
      let rules = try RuleSelection(&loading, domains: scenario.domains.map(RuleSubject.init))
      found +=
        loading.diagnostics + rules.unknownClasses(in: scenario.policy)
        + rules.unknownSignatures(in: scenario.policy)
        + scenario.policy.unknownServices(
          known: Set(scenario.rules.catalog.byService.keys).union(scenario.domains.compactMap(\.serviceType)))
    } catch { found += error.diagnostics }
    for capture in scenario.captures {
      do throws(PacketSourceError) {
        var file = try CaptureFile.open(path: capture.path)
        while try !file.nextBatch(limit: 65_536, patience: .zero, { _, _ in }).isAtEnd {}
      } catch { found.append(error.diagnostic) }
    }
    for domain in scenario.domains {
      guard let disk = domain.disk else { continue }
      do throws(DiskWatch.Failure) { _ = try DiskWatch(domain, disk, start: .zero) } catch {
        found.append(error.diagnostic)
      }
    }
    return found
  }
}
#endif
