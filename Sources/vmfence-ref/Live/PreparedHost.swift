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
  /// - `previous`: what is in force; a domain whose own files cannot be used keeps what it has there.
  /// - `looksAtPaths`: programs, folders and sockets that the configuration names are looked at, too: what is missing now may be there when it is needed.
  /// - Returns: nil when something is wrong, and all that is to be said.
  static func load(
    path: String, assigned: RuleAssignments = RuleAssignments(), keeping previous: RuleSelection? = nil,
    looksAtPaths: Bool = false
  ) -> (host: PreparedHost?, diagnostics: [Diagnostic]) {
    let parser = HostConfigurationParser(file: path)
    guard let configuration = parser.parse() else { return (nil, parser.reader.diagnostics) }
    var found = parser.reader.diagnostics
    if looksAtPaths { found += configuration.namedPaths.compactMap(\.problem) }
    let domains: [RuleSubject]
    var inventoryNames: [String]?
    switch configuration.domains {
    case .inventory(let path):
      let inventory = StaticInventory.read(path: path)
      found += inventory.problems
      guard let read = inventory.domains else { return (nil, found) }
      domains = read.map(RuleSubject.init)
      inventoryNames = read.map(\.name)
    case .xen:
      // Which domains there are is not asked here. Rules of domains that turn out to serve something else are compiled when they come.
      let keys = Set(configuration.rules.catalog.byDomain.keys).union(assigned.files.keys)
      domains = keys.sorted().map { key in
        RuleSubject(name: key, uuid: DomainUUID(key), serviceType: configuration.guests.service(of: key))
      }
    }
    found += configuration.unknownSpoofingExceptions(inventory: inventoryNames)
    let compiled = compile(configuration.rules, assigned, for: domains, keeping: previous)
    found += compiled.diagnostics
    guard let rules = compiled.rules else { return (nil, found) }
    let host = PreparedHost(configuration: configuration, rules: rules)
    let unknown = rules.unknownClasses(in: configuration.policy)
    found += unknown + rules.unknownSignatures(in: configuration.policy)
    let services = configuration.services(besides: domains.compactMap(\.serviceType))
    found += configuration.policy.unknownServices(known: services) + configuration.measuresWithoutControl
    return (unknown.contains { $0.severity == .error } ? nil : host, found)
  }

  /// Compiles the rules of `configuration` for `domains`; nil when they cannot be used.
  ///
  /// - `previous`: of what is in force, what goes on: rules whose texts are wrong now, and own files of guests that cannot be used.
  static func compile(
    _ files: ScenarioRules, _ assigned: RuleAssignments, for domains: [RuleSubject],
    keeping previous: RuleSelection? = nil
  ) -> (rules: RuleSelection?, diagnostics: [Diagnostic]) {
    var files = files
    files.assigned = assigned.files.mapValues { paths in paths.map { .init(path: $0, place: SourcePlace(file: $0)) } }
    var loading = RuleLoading(rules: files, keeping: previous?.texts ?? RulesBefore())
    do throws(RuleLoading.Failure) {
      let rules = try RuleSelection(&loading, domains: domains, isolating: true, keeping: previous)
      return (rules, loading.diagnostics)
    } catch {
      loading.note(error.diagnostics)
      return (nil, loading.diagnostics)
    }
  }
}

/// Rule files that were set for domains at run time, by what they were set for: a name, which the domain's next incarnation may have under another UUID, or a
/// UUID, which stays when the domain is renamed. Kept in the state directory.
struct RuleAssignments: Sendable, Codable, Equatable {
  /// By `RuleSubject.key`.
  private(set) var files: [String: [String]] = [:]

  /// The files of a domain; nil when none were set for it.
  func files(of domain: DomainDescription) -> [String]? {
    RuleSubject(domain).keys.lazy.compactMap { files[$0] }.first
  }

  /// The last word counts, whether it names the domain by its UUID or its name.
  ///
  /// - `byUUID`: whether the domain was named so.
  mutating func set(_ paths: [String], for domain: DomainDescription, byUUID: Bool) {
    let subject = RuleSubject(domain)
    let uuid = domain.incarnation.uuid.description
    if paths.isEmpty {
      for key in subject.keys { files[key] = nil }
    } else if byUUID || !subject.keys.contains(domain.name) {
      files[uuid] = paths
    } else {
      files[uuid] = nil
      files[domain.name] = paths
    }
  }

  // Of a time when files were set for names only.
  private enum CodingKeys: String, CodingKey { case files = "byName" }

  static let fileName = "rules.json"

  /// None, when there is no such file.
  static func read(stateDirectory: String?) throws(DamagedFile) -> RuleAssignments {
    guard let stateDirectory else { return RuleAssignments() }
    return try KeptJSON.read(RuleAssignments.self, from: stateDirectory + "/" + fileName) ?? RuleAssignments()
  }

  /// Whole, or not at all.
  func write(stateDirectory: String) throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
    try encoder.encode(self).write(to: URL(filePath: stateDirectory + "/" + Self.fileName), options: .atomic)
  }
}
#endif
