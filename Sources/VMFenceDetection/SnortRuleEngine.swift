import VMFenceCore

/// Compiles rules in the dialects of Snort 2.9, Snort 3 and Suricata for `SnortInspector`.
///
/// Deterministic: equal requests give equal images. Allocates and takes its time (milliseconds to seconds, with the number
/// of rules): not for the thread that inspects packets.
public struct SnortRuleEngine: RuleEngine {
  /// What the operator changes about all rule sets.
  public var adjustments: RuleAdjustments

  /// Bytes that one compiled rule set may take, up to 1 GiB.
  public var imageLimit = ImageLayout.byteLimit

  /// Reads the files that rules name (`dataset`, `datarep`); nil for one that is not there. The message of what it throws says why one that is there cannot be read, and a rule
  /// that names it is wrong. Called while rules are compiled, on that thread. Without it rules may name none.
  public var readData: (@Sendable (RuleDataFile) throws(RuleCompilationError) -> [UInt8]?)?

  public init(adjustments: RuleAdjustments = RuleAdjustments()) { self.adjustments = adjustments }

  public func compile(
    _ request: RuleCompilationRequest
  ) throws(RuleCompilationError) -> RuleCompilation<SnortRules> {
    try compile(request, keeping: RulesBefore(), at: .zero).result
  }

  /// As `compile`, but a rule whose text is wrong and was right in `before` goes on as it was there: with the variables of now if it can be read with them, else with those
  /// of then. It counts as rejected and as loaded. A right one of the same gid and sid, in any of the files, takes its place.
  ///
  /// - `time`: noted for what is kept from now on.
  /// - Returns: besides, what was kept, and what is to be `before` the next time.
  package func compile(
    _ request: RuleCompilationRequest, keeping before: RulesBefore, at time: Timestamp
  ) throws(RuleCompilationError) -> (result: RuleCompilation<SnortRules>, kept: [KeptRule], before: RulesBefore) {
    let set = RuleSet.parse(request, adjustments, readData: readData, keeping: before, at: time)
    // A line of configuration may be wrong, too.
    let mistakes = set.diagnostics.count { $0.severity == .error }
    if request.onBadRule == .fail, let first = set.diagnostics.first(where: { $0.severity == .error }) {
      throw RuleCompilationError(
        .badRule, "\(set.rejected) rules cannot be used, \(mistakes) mistakes in all; the first: \(first.message)",
        at: first.place, remedy: first.remedy, diagnostics: set.diagnostics)
    }
    // A detector without rules would look like protection.
    if set.rules.isEmpty {
      throw RuleCompilationError(
        .noRules, Self.nothing(set),
        at: set.diagnostics.first { $0.severity == .error }?.place,
        remedy: set.rejected > 0 ? "mend the rules that the diagnostics name" : "give one rule at least",
        diagnostics: set.diagnostics)
    }
    let rules = try SnortRules(compiling: set.rules, limit: imageLimit)
    let result = RuleCompilation(
      rules: rules, diagnostics: set.diagnostics, loaded: set.rules.count, rejected: set.rejected,
      skipped: set.skipped)
    return (result, set.kept, set.before)
  }

  private static func nothing(_ set: RuleSet) -> String {
    if set.rejected > 0 { return "none of \(set.rejected) rules can be used" }
    return set.skipped > 0 ? "all of \(set.skipped) rules require another engine" : "there is no rule"
  }
}

extension SnortRuleEngine {
  /// The classes that rules may name without a `config classification` of their own.
  public static var standardClasses: Set<String> { ClassificationTable().names }
}
