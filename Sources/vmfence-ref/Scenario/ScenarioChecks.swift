#if Daemon
import Foundation
import VMFenceConfiguration
import VMFenceCore
import VMFenceDetection

extension ScenarioParser {
  /// The steps of one domain must be in order, and the first must bring it into being.
  func checkOrder(_ steps: [ScenarioStep], in map: YAMLMapping) {
    for (previous, next) in zip(steps, steps.dropFirst()) where next.at < previous.at {
      reader.report(
        Diagnostic(
          at: next.place, "a lifecycle step at \(next.at.display) stands after one at \(previous.at.display)",
          remedy: "write the steps in the order of time"))
    }
    if let first = steps.first, first.event != .created, first.event != .migratedIn {
      reader.report(
        Diagnostic(
          at: first.place, "the first lifecycle step is `\(first.event.rawValue)`",
          remedy: "a domain begins with `created` or `migrated-in`"))
    }
  }

  /// No two domains share a name, a UUID or a domain number; no two ports of one bridge share a MAC address.
  func checkIdentities(_ scenario: Scenario) {
    var names: [String: SourcePlace] = [:]
    var uuids: [DomainUUID: SourcePlace] = [:]
    var numbers: [DomainID: SourcePlace] = [:]
    var macs: [MACAddress: (String, SourcePlace)] = [:]
    var interfaces: [String: SourcePlace] = [:]
    for domain in scenario.domains {
      let place = domain.place
      if let other = names.updateValue(place, forKey: domain.name) {
        reader.report(
          Diagnostic(at: place, "two domains are named `\(domain.name.escapedForDisplay)` (the other: \(other))"))
      }
      if let other = uuids.updateValue(place, forKey: domain.uuid) {
        reader.report(
          Diagnostic(
            at: place, "two domains have the UUID \(domain.uuid) (the other: \(other))",
            remedy: "one VM that migrates is one domain with `migrated-away` and `migrated-in` steps"))
      }
      let migrations = domain.lifecycle.filter { $0.event == .migratedIn }
      for number in [domain.domainID] + migrations.compactMap(\.domainID) {
        if let other = numbers.updateValue(place, forKey: number) {
          reader.report(Diagnostic(at: place, "the domid \(number) is used twice (also at \(other))"))
        }
      }
      for port in domain.ports + migrations.flatMap({ $0.ports ?? [] }) {
        if let other = interfaces.updateValue(place, forKey: port.interface) {
          reader.report(
            Diagnostic(
              at: place, "the interface `\(port.interface.escapedForDisplay)` is used twice (also at \(other))"))
        }
        if let (owner, other) = macs[port.mac], owner != domain.name {
          reader.report(
            Diagnostic(
              at: place,
              "the MAC address \(port.mac) belongs to two domains: `\(domain.name.escapedForDisplay)` and "
                + "`\(owner.escapedForDisplay)` (\(other))", remedy: "give each port an address of its own"))
        }
        macs[port.mac] = (domain.name, place)
      }
    }
  }

  func checkCaptures(_ scenario: Scenario) {
    let ports = scenario.domains.flatMap { domain in
      domain.ports + domain.lifecycle.flatMap { $0.ports ?? [] }
    }
    let interfaces = Set(ports.map(\.interface))
    let bridges = Set(ports.compactMap(\.bridge))
    for capture in scenario.captures {
      let known = capture.isBridge ? bridges : interfaces
      if !known.contains(capture.interface) {
        reader.report(
          Diagnostic(
            at: capture.place,
            "no domain has the \(capture.isBridge ? "bridge" : "interface") `\(capture.interface.escapedForDisplay)`",
            remedy: "known here: \(known.sorted().joined(separator: ", ").escapedForDisplay)"))
      }
    }
  }

  func checkFiles(_ scenario: Scenario) {
    var files: [(String, SourcePlace)] = scenario.captures.map { ($0.path, $0.place) }
    for disk in scenario.domains.compactMap(\.disk) {
      files.append((disk.image, disk.place))
      if let writes = disk.writes { files.append((writes, disk.place)) }
    }
    // An image may be a block device, so these are not looked at as whole files are.
    var unreadable = files.compactMap { path, place -> (path: String, place: SourcePlace, reason: String)? in
      // SAFETY: access(2) reads the path up to its NUL.
      unsafe access(path, R_OK) == 0 ? nil : (path, place, describeError(errno))
    }
    for file in scenario.rules.allFiles {
      guard let problem = WholeFile.problem(file.path) else { continue }
      unreadable.append((file.path, file.place ?? SourcePlace(file: reader.file), problem.reason))
    }
    for (path, place, reason) in unreadable.sorted(by: { ($0.place.line, $0.path) < ($1.place.line, $1.path) }) {
      reader.report(
        Diagnostic(
          at: place, "the file `\(path.escapedForDisplay)` cannot be read: \(reason)",
          remedy: "paths are relative to the folder of this file"))
    }
    let names = Set(scenario.domains.flatMap { RuleSubject($0).keys })
    for name in scenario.rules.catalog.byDomain.keys.sorted() where !names.contains(name) {
      reader.report(
        Diagnostic(
          at: SourcePlace(file: reader.file), "rules.domains names `\(name.escapedForDisplay)`, which is no domain"))
    }
  }
}

extension RuleSubject {
  init(_ domain: ScenarioDomain) {
    self.init(name: domain.name, uuid: domain.uuid, serviceType: domain.serviceType)
  }
}

/// The `rules` section, which scenarios and the daemon's configuration share.
struct RulesSection {
  let reader: YAMLReader
  let resolve: (String) -> String

  func read(_ map: YAMLMapping, into rules: inout ScenarioRules) {
    rules.dialect = map.choice("dialect", RuleDialect.self)
    if let choice = map.value("on-bad-rule", expected: "skip or fail", { ["skip": false, "fail": true][$0] }) {
      rules.onBadRule = choice ? .fail : .skip
    }
    if let variables = map.child("variables") {
      for (name, node) in variables.entries {
        guard case .scalar(let scalar) = node else {
          reader.report(
            at: node, "the variable \(name.escapedForDisplay) must be a text", remedy: "quote the list: \"[…]\"")
          continue
        }
        rules.variables[name] = scalar.string
      }
    }
    rules.catalog.common = files(map, "common")
    rules.filters = files(map, "threshold-config")
    rules.definitions = files(map, "definitions")
    rules.enabled = files(map, "enable-list")
    rules.disabled = files(map, "disable-list")
    rules.dropping = files(map, "drop-list")
    rules.reputationCategories = files(map, "reputation-categories")
    rules.reputationLists = files(map, "reputation-lists")
    rules.countryDatabase = files(map, "country-database").first
    rules.actionOrder = map.value("action-order", expected: "pass, drop, reject and alert in some order") {
      RuleActionOrder($0)
    }
    for (section, keyPath) in [
      ("services", \ScenarioRules.catalog.byService), ("domains", \ScenarioRules.catalog.byDomain),
    ] as [(String, WritableKeyPath<ScenarioRules, [String: [ScenarioRules.File]]>)] {
      guard let child = map.child(section) else { continue }
      for (name, node) in child.entries {
        let key = section == "domains" ? RuleSubject.key(name) : name
        if rules[keyPath: keyPath][key] != nil {
          reader.report(at: node, "\(section) names \(key.escapedForDisplay) twice", remedy: "remove one")
        }
        rules[keyPath: keyPath][key] = files(child, name)
      }
    }
  }

  private func files(_ map: YAMLMapping, _ key: String) -> [ScenarioRules.File] {
    map.strings(key).map { ScenarioRules.File(path: resolve($0.text), place: reader.place(of: $0.node)) }
  }
}
#endif
