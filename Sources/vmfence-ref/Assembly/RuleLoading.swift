#if Daemon
import Foundation
import VMFenceCore
import VMFenceDetection

/// Compiles the rule sets of a configuration, one for each distinct list of files: domains with equal rules share one
/// image.
struct RuleLoading {
  /// A rule file larger than this is refused.
  static let byteCountMaximum = 64 << 20

  struct Failure: Error {
    var diagnostics: [Diagnostic]
  }

  let rules: ScenarioRules
  private(set) var diagnostics: [Diagnostic] = []
  private var compiled: [[String]: SnortRules] = [:]
  private var reported: Set<Diagnostic> = []

  init(rules: ScenarioRules) { self.rules = rules }

  /// The files that a domain's rules come from, in order: for all, for its service, for itself.
  func files(name: String, serviceType: String?) -> [ScenarioRules.File] {
    rules.common + (serviceType.flatMap { rules.services[$0] } ?? []) + (rules.domains[name] ?? [])
  }

  /// The compiled rules for a domain; nil when none are configured for it.
  mutating func rules(name: String, serviceType: String?) throws(Failure) -> SnortRules? {
    let files = files(name: name, serviceType: serviceType)
    if files.isEmpty { return nil }
    let key = files.map(\.path)
    if let known = compiled[key] { return known }
    var sources: [RuleSource] = []
    for file in files { sources.append(try Self.read(file.path, dialect: rules.dialect, at: file.place)) }
    let result = try compile(sources)
    compiled[key] = result
    return result
  }

  private mutating func compile(_ sources: [RuleSource]) throws(Failure) -> SnortRules {
    let request = RuleCompilationRequest(sources: sources, variables: rules.variables, onBadRule: rules.onBadRule)
    do throws(RuleCompilationError) {
      let result = try SnortRuleEngine().compile(request)
      note(result.diagnostics)
      return result.rules
    } catch {
      note(error.diagnostics)
      throw Failure(diagnostics: error.diagnostics.isEmpty ? [error.diagnostic] : error.diagnostics)
    }
  }

  private mutating func note(_ found: [Diagnostic]) {
    for diagnostic in found where reported.insert(diagnostic).inserted { diagnostics.append(diagnostic) }
  }

  static func read(_ path: String, dialect: RuleDialect?, at place: SourcePlace? = nil) throws(Failure) -> RuleSource {
    guard let data = FileManager.default.contents(atPath: path) else {
      throw Failure(diagnostics: [
        Diagnostic(
          at: place, "the rule file `\(path.escapedForDisplay)` cannot be read",
          remedy: "check the path and its permissions")
      ])
    }
    guard data.count <= byteCountMaximum else {
      throw Failure(diagnostics: [
        Diagnostic(
          at: place,
          "the rule file `\(path.escapedForDisplay)` has \(data.count) bytes; at most \(byteCountMaximum) are read")
      ])
    }
    return RuleSource(file: path, text: [UInt8](data), dialect: dialect)
  }
}
#endif
