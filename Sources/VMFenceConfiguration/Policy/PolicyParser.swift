#if Daemon
package import VMFenceCore

/// Reads a policy: a section of a scenario or a configuration, or a file of its own.
package struct PolicyParser {
  package let reader: YAMLReader

  package init(reader: YAMLReader) { self.reader = reader }

  /// What is wrong is in the reader's diagnostics.
  package func parse(_ map: YAMLMapping, knownClasses: Set<String>? = nil) -> Policy {
    var policy = Policy(rules: map.children("rules").compactMap(rule))
    policy.neverBlock = map.values("never-block", expected: "an address or network such as 10.0.0.1 or fd00::/8") {
      IPNetwork($0)
    }
    if let value = map.bool("dry-run") { policy.isDryRun = value }
    if let value = map.choice("destructive", Policy.DestructiveMeasures.self) { policy.destructiveMeasures = value }
    if let value = map.integer("block-on-host-tenants", in: Policy.hostBlockTenantsRange) {
      policy.hostBlockTenants = value
    }
    if let value = map.integer("measures-per-minute", in: 1...1_000_000) { policy.measuresPerMinute = value }
    if let value = map.integer("reports-per-minute", in: 1...1_000_000) { policy.reportsPerMinute = value }
    if let value = map.integer("ipv6-source-prefix", in: 16...128) { policy.ipv6SourcePrefix = value }
    map.finish()
    for diagnostic in policy.validate(knownClasses: knownClasses) {
      var located = diagnostic
      if located.place == nil { located.place = reader.place(of: map.node) }
      reader.report(located)
    }
    return policy
  }

  /// nil when something is wrong with how it is written: what that leads to is not told as well.
  private func rule(_ map: YAMLMapping) -> PolicyRule? {
    let before = reader.errorCount
    let name = map.requiredString("name", example: "web-attacks")
    let selectors =
      map.raw("when") == nil ? missing("when", "`when: {sids: [1000001-1000099]}`", map) : self.selectors(map)
    let counting = self.counting(map)
    let ladder = map.children("ladder").compactMap(step)
    if !map.has("ladder") { _ = missing("ladder", "`ladder: [{block: 10m}]`", map) }
    let services = Set(map.strings("services").map(\.text))
    let evidence = map.choice("evidence", Evidence.self) ?? .established
    let escalation = self.escalation(map.child("escalation"))
    map.finish()
    guard let name, let counting, reader.errorCount == before else { return nil }
    return PolicyRule(
      name: name, selectors: selectors, services: services, counting: counting, evidence: evidence, ladder: ladder,
      escalation: escalation, place: reader.place(of: map.node))
  }

  private func missing(_ key: String, _ example: String, _ map: YAMLMapping) -> [EventSelector] {
    reader.report(at: map.node, "\(map.name(key)) is missing", remedy: "for example \(example)")
    return []
  }

  private func selectors(_ map: YAMLMapping) -> [EventSelector] {
    guard let when = map.child("when") else { return [] }
    var result: [EventSelector] = when.values("sids", expected: "SID, FIRST-LAST or GID:SID", Self.signatures)
    result += when.strings("classes").map { EventSelector.classification($0.text) }
    if let priority = when.integer("priority-at-most", in: 1...255) { result.append(.priority(atMost: priority)) }
    let kinds = PlatformAlert.Kind.known
    result += when.values("platform", expected: "one of \(kinds.map(\.name).joined(separator: ", "))") { text in
      kinds.first { $0.name == text }.map { EventSelector.platform($0) }
    }
    if when.has("files") {
      let operations = when.values(
        "files", expected: "`any` or one of \(FileEvent.Operation.allCases.map(\.rawValue).joined(separator: ", "))"
      ) { text -> [FileEvent.Operation]? in text == "any" ? [] : FileEvent.Operation(rawValue: text).map { [$0] } }
      result.append(.files(Set(operations.flatMap(\.self))))
    }
    if when.bool("all-alerts") == true { result.append(.allAlerts) }
    when.finish()
    return result
  }

  /// `1000001`, `1000001-1000099` or `3:17`.
  private static func signatures(_ text: String) -> EventSelector? {
    let parts = text.split(separator: ":", omittingEmptySubsequences: false)
    guard (1...2).contains(parts.count), let gid = parts.count == 2 ? UInt32(parts[0]) : 1 else { return nil }
    let ends = parts[parts.count - 1].split(separator: "-", omittingEmptySubsequences: false).map { UInt32($0) }
    guard (1...2).contains(ends.count), let first = ends[0], let last = ends[ends.count - 1], first <= last else {
      return nil
    }
    return .signatures(gid: gid, sids: first...last)
  }

  private func counting(_ map: YAMLMapping) -> Counting? {
    guard let count = map.child("count") else {
      _ = missing("count", "`count: {per: source, at-least: 3, within: 60s}`", map)
      return nil
    }
    let keys: [String: Counting.Key] = [
      "source": .source, "source-on-host": .sourceOnHost, "domain": .domain, "host": .host,
      "source-network": .sourceNetwork(
        v4Prefix: count.integer("v4-prefix", in: 8...32) ?? 24, v6Prefix: count.integer("v6-prefix", in: 16...128) ?? 48
      ),
    ]
    let key = count.requiredValue(
      "per", example: "source", expected: "one of \(keys.keys.sorted().joined(separator: ", "))"
    ) { keys[$0] }
    let number = count.integer("at-least", in: 1...65_536) ?? 1
    let window = count.duration("within") ?? .seconds(60)
    let what = count.choice("of", Counting.What.self) ?? .events
    count.finish()
    return key.map { Counting(per: $0, count: number, of: what, within: window) }
  }

  /// `{block: 10m}`, `{block-on-host: 1h, times: 2}`, `{rate-limit: 5m, packets-per-second: 100}`, `{quarantine: 1h}`,
  /// `{notify: true}`, `{pause: true}`, `{shut-down: true}`
  private func step(_ map: YAMLMapping) -> LadderStep? {
    let timed: [(String, LadderStep.Action)] = [
      ("block", .block), ("block-on-host", .blockOnHost), ("quarantine", .quarantine),
      (
        "rate-limit", .rateLimit(packetsPerSecond: UInt32(map.integer("packets-per-second", in: 1...10_000_000) ?? 100))
      ),
    ]
    let untimed: [(String, LadderStep.Action)] = [("notify", .notify), ("pause", .pause), ("shut-down", .shutDown)]
    let times = map.integer("times", in: 1...1_000_000) ?? 1
    var steps: [LadderStep] = []
    for (key, action) in timed where map.has(key) {
      if let duration = map.duration(key) { steps.append(LadderStep(action, for: duration, times: times)) }
    }
    for (key, action) in untimed where map.has(key) {
      if map.bool(key) == true { steps.append(LadderStep(action, times: times)) }
    }
    let names = (timed + untimed).map(\.0)
    let named = names.filter(map.has)
    names.forEach { _ = map.raw($0) }
    map.finish()
    if named.count != 1 {
      reader.report(
        at: map.node, "\(map.path) must name exactly one measure", remedy: "one of \(names.joined(separator: ", "))")
      return nil
    }
    return steps.first
  }

  private func escalation(_ map: YAMLMapping?) -> Escalation {
    var result = Escalation()
    guard let map else { return result }
    if let value = map.number("factor", in: 1...100) { result.factor = value }
    if let value = map.duration("maximum") { result.maximum = value }
    if let value = map.duration("decay") { result.decay = value }
    map.finish()
    return result
  }
}
#endif
