import VMFenceCore

extension RuleFileParser {
  /// Has what stood for a rule go on in its place, when its text, which is wrong, still says which rule it is.
  mutating func keep(_ wrong: ArraySlice<UInt8>, at start: Int) {
    guard let file = context.before.files[scanner.file] else { return }
    guard let id = RuleSelectors.identity(of: wrong) else {
      // A line that is no rule at all has nothing to keep.
      guard wrong.contains(UInt8(ascii: "(")) else { return }
      report(
        RuleProblem(start, "this says no sid, so nothing that was in force before stands for it", "give it its sid"),
        .warning)
      return
    }
    guard let old = file.rule(id), !result.kept.contains(where: { RulesBefore.id($0.rule.gid, $0.rule.sid) == id })
    else { return }
    let name = "\(id >> 32):\(id & 0xFFFF_FFFF)"
    guard result.kept.count < RulesBefore.keptMaximum,
      context.keptBytes + old.text.count <= RulesBefore.keptBytesMaximum
    else {
      report(
        RuleProblem(
          start, "rule \(name) is not kept as it was before: too many are",
          "at most \(RulesBefore.keptMaximum) of a file are, with \(RulesBefore.keptBytesMaximum) bytes in all"),
        .warning)
      return
    }
    // With the variables of now, if it can be read with them; it may be one of them that is wrong or gone.
    for variables in [context.variables, RuleVariables(old.variables)] {
      var attempt = context
      attempt.variables = variables
      attempt.before = RulesBefore()
      let source = RuleSource(file: scanner.file, text: old.text, dialect: old.dialect)
      var parsed = Self.parse(source, in: &attempt)
      if parsed.disabled > 0 { return }
      guard parsed.rejected == 0, parsed.rules.count == 1, var rule = parsed.rules.popLast(),
        RulesBefore.id(rule.metadata.gid, rule.metadata.sid) == id
      else { continue }
      rule.metadata.place = scanner.place(at: start)
      context.dataSets = attempt.dataSets
      context.keptBytes += old.text.count
      result.kept.append(
        (
          KeptRule(
            gid: rule.metadata.gid, sid: rule.metadata.sid, revision: rule.metadata.revision,
            place: scanner.place(at: start), since: old.since ?? context.time, text: old.text, dialect: old.dialect,
            variables: old.variables), result.rules.count
        ))
      result.rules.append(rule)
      return
    }
    report(
      RuleProblem(
        start, "rule \(name) cannot be kept as it was before either", "mend it, and what it names (files, classes)"),
      .warning)
  }
}
