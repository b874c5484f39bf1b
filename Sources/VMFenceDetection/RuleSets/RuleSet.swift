import VMFenceCore

/// The rules of several files, parsed one after the other with the variables and classes of all before, each gid and sid
/// once, in the order in which conflicts are resolved.
package struct RuleSet: Sendable {
  package var list: ResolvedRuleList
  /// What was wrong or worth saying, in the order of the files.
  package var diagnostics: [Diagnostic]
  /// Rules that could not be used, those that a newer revision replaces not counted.
  package var rejected: Int
  /// Rules that say themselves that they are for another engine.
  package var skipped = 0
  /// Rules among `rules` that stand as they were before, because their text is wrong.
  package var kept: [KeptRule] = []
  /// What stands for rules of these files when they are parsed again.
  package var before = RulesBefore()

  package var rules: [Rule] { list.rules }

  /// Never fails: what is wrong is in `diagnostics`, and whether that is acceptable is the caller's decision.
  package static func parse(
    _ request: RuleCompilationRequest, _ adjustments: RuleAdjustments = RuleAdjustments(),
    readData: (@Sendable (RuleDataFile) throws(RuleCompilationError) -> [UInt8]?)? = nil,
    keeping before: RulesBefore = RulesBefore(),
    at time: Timestamp = .zero
  ) -> RuleSet {
    var context = RuleContext(variables: request.variables)
    context.dataSets.read = readData
    (context.before, context.time) = (before, time)
    var rules: [Rule] = []
    var diagnostics: [Diagnostic] = []
    var (rejected, skipped) = (0, 0)
    for (sources, kind) in [
      (adjustments.enabled, RuleSelectors.Kind.enable), (adjustments.disabled, .disable), (adjustments.dropping, .drop),
    ] {
      for source in sources { diagnostics += context.selectors.read(source, as: kind) }
    }
    for source in adjustments.reputationCategories { diagnostics += context.reputations.readCategories(source) }
    for source in adjustments.reputations { diagnostics += context.reputations.readLists(source) }
    if let source = adjustments.countryDatabase { diagnostics += context.readCountries(source) }
    for source in adjustments.definitions { diagnostics += RuleFileParser.parse(source, in: &context).diagnostics }
    var files: [(source: RuleSource, parsed: ParsedRules)] = []
    var keeping: [(rule: KeptRule, index: Int)] = []
    for source in request.sources {
      var parsed = RuleFileParser.parse(source, in: &context)
      keeping += parsed.kept.map { ($0.rule, $0.index + rules.count) }
      rules += parsed.rules
      parsed.rules = []
      files.append((source, parsed))
      diagnostics += parsed.diagnostics
      rejected += parsed.rejected
      skipped += parsed.skipped
    }
    // Last, so that variables of the rule files are known in them.
    for source in adjustments.filters { diagnostics += RuleFileParser.parse(source, in: &context).diagnostics }
    let kept = resolve(keeping, &rules)
    diagnostics += Self.diagnostics(of: kept)
    rules = newestRevisions(rules, &diagnostics)
    diagnostics += RuleFilter.apply(context.filters, to: &rules)
    diagnostics += missingActivations(rules)
    var set = RuleSet(
      list: ResolvedRuleList(rules, order: adjustments.actionOrder), diagnostics: diagnostics, rejected: rejected,
      skipped: skipped, kept: kept)
    for (source, parsed) in files { set.before.note(source, parsed, kept: kept) }
    return set
  }

  /// Each (gid, sid) once: the one with the highest revision, of equal revisions the first.
  private static func newestRevisions(_ rules: [Rule], _ diagnostics: inout [Diagnostic]) -> [Rule] {
    var kept: [UInt64: Int] = [:]
    kept.reserveCapacity(rules.count)
    var dropped = Set<Int>()
    for (index, rule) in rules.enumerated() {
      let id = UInt64(rule.metadata.gid) << 32 | UInt64(rule.metadata.sid)
      guard let other = kept[id] else {
        kept[id] = index
        continue
      }
      let isNewer = rule.metadata.revision > rules[other].metadata.revision
      let (loser, winner) = isNewer ? (other, index) : (index, other)
      kept[id] = winner
      dropped.insert(loser)
      let name = "\(rule.metadata.gid):\(rule.metadata.sid)"
      let reason =
        rules[loser].metadata.revision < rules[winner].metadata.revision
        ? "revision \(rules[winner].metadata.revision) is newer" : "it came first"
      let place = rules[winner].metadata.place.map { " at \($0)" } ?? ""
      diagnostics.append(
        Diagnostic(
          .warning, at: rules[loser].metadata.place, "rule \(name) is there twice; the one\(place) is used: \(reason)",
          remedy: "give one of them another sid, or remove it"))
    }
    return dropped.isEmpty ? rules : rules.indices.filter { !dropped.contains($0) }.map { rules[$0] }
  }

  /// A dynamic rule that nothing turns on, or a group that no dynamic rule belongs to.
  private static func missingActivations(_ rules: [Rule]) -> [Diagnostic] {
    let turnedOn = Set(rules.compactMap(\.activates))
    let waiting = Set(rules.compactMap(\.activatedBy))
    var result: [Diagnostic] = []
    for rule in rules {
      if let id = rule.activatedBy, !turnedOn.contains(id) {
        result.append(
          Diagnostic(
            .warning, at: rule.metadata.place, "no rule activates \(id), so this dynamic rule never logs",
            remedy: "add an activate rule with `activates:\(id);`"))
      }
      if let id = rule.activates, !waiting.contains(id) {
        result.append(
          Diagnostic(
            .warning, at: rule.metadata.place, "no dynamic rule is activated by \(id)",
            remedy: "add a dynamic rule with `activated_by:\(id);`, or make this an alert rule"))
      }
    }
    return result
  }
}
