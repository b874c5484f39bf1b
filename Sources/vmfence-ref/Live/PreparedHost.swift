#if Daemon
import Foundation
import VMFenceConfiguration
import VMFenceCore
import VMFenceDetection

/// A host's configuration, read and ready: rules compiled, policy checked, inventory readable. Whole, or not at all.
struct PreparedHost: Sendable {
  var configuration: HostConfiguration
  var rules: RuleSelection

  /// - `assigned`: rule files that were set for domains at run time; they go before those of the file.
  /// - Returns: nil when something is wrong, and all that is to be said.
  static func load(
    path: String, assigned: RuleAssignments = RuleAssignments()
  ) -> (host: PreparedHost?, diagnostics: [Diagnostic]) {
    let parser = HostConfigurationParser(file: path)
    guard let configuration = parser.parse() else { return (nil, parser.reader.diagnostics) }
    var found = parser.reader.diagnostics
    let domains: [(name: String, serviceType: String?)]
    switch configuration.domains {
    case .inventory(let path):
      let inventory = StaticInventory.read(path: path)
      found += inventory.problems
      guard let read = inventory.domains else { return (nil, found) }
      domains = read.map { ($0.name, $0.serviceType) }
    case .xen:
      // Which domains there are is not asked here. Rules of domains that turn out to serve something else are compiled when they come.
      let names = Set(configuration.rules.catalog.byDomain.keys).union(assigned.byName.keys)
      domains = names.sorted().map { ($0, configuration.guests.service(name: $0)) }
    }
    let compiled = compile(configuration.rules, assigned, for: domains)
    found += compiled.diagnostics
    guard let rules = compiled.rules else { return (nil, found) }
    let host = PreparedHost(configuration: configuration, rules: rules)
    let unknown = rules.unknownClasses(in: configuration.policy)
    found += unknown
    return (unknown.isEmpty ? host : nil, found)
  }

  /// Compiles the rules of `configuration` for `domains`; nil when they cannot be used.
  static func compile(
    _ files: ScenarioRules, _ assigned: RuleAssignments, for domains: [(name: String, serviceType: String?)]
  ) -> (rules: RuleSelection?, diagnostics: [Diagnostic]) {
    var files = files
    for (name, paths) in assigned.byName {
      files.catalog.byDomain[name] = paths.map { .init(path: $0, place: SourcePlace(file: $0)) }
    }
    var loading = RuleLoading(rules: files)
    do throws(RuleLoading.Failure) {
      let rules = try RuleSelection(&loading, domains: domains)
      return (rules, loading.diagnostics)
    } catch { return (nil, loading.diagnostics.isEmpty ? error.diagnostics : loading.diagnostics) }
  }
}

/// Rule files that were set for domains at run time, by the domains' names. Kept in the state directory.
struct RuleAssignments: Sendable, Codable, Equatable {
  var byName: [String: [String]] = [:]

  static let fileName = "rules.json"
  static let byteLimit = 1 << 20

  /// None, when there is no such file.
  static func read(stateDirectory: String?) throws -> RuleAssignments {
    guard let stateDirectory else { return RuleAssignments() }
    let path = stateDirectory + "/" + fileName
    guard FileManager.default.fileExists(atPath: path) else { return RuleAssignments() }
    return try JSONDecoder().decode(RuleAssignments.self, from: Data(contentsOf: URL(filePath: path)))
  }

  /// Whole, or not at all.
  func write(stateDirectory: String) throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
    try encoder.encode(self).write(to: URL(filePath: stateDirectory + "/" + Self.fileName), options: .atomic)
  }
}
#endif
