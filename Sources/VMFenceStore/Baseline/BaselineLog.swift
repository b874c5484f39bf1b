public import VMFenceCore

/// What a decision log says of baselines: each that was signed is a decision there, with a code that only the key's holder can make.
/// The third place besides the store and the key's own count: whoever puts an old baseline back must change all three.
public struct BaselineLog {
  private static let policy = "integrity-baseline"
  private let log: any DecisionLog
  private let decisions: [Decision]

  /// - `decisions`: what the log held when it was opened.
  public init(_ log: any DecisionLog, holding decisions: [Decision]) {
    self.log = log
    self.decisions = decisions
  }

  /// How many baselines of a disk were signed, as far as the log knows; 0 when it knows of none.
  ///
  /// - Throws: `edited` when a decision about it has another code than the key makes.
  func generation(of disk: String, key: IntegrityKey) throws(BaselineError) -> UInt64 {
    var highest: UInt64 = 0
    for decision in decisions where decision.policy == Self.policy && decision.trigger == disk {
      guard let generation = UInt64(exactly: decision.step),
        HMACSHA256.areEqual(Array(decision.reason.utf8), Array(Self.reason(generation, disk, key).utf8))
      else {
        throw BaselineError(
          .edited,
          "what the decision log says of the baselines of \(disk.escapedForDisplay) was edited, or has another key",
          remedy: "find out who did; restore the log from a copy")
      }
      highest = max(highest, generation)
    }
    return highest
  }

  /// - Throws: `full`, `inputOutput`.
  func append(_ baseline: Baseline, key: IntegrityKey) throws(BaselineError) {
    let decision = Decision(
      id: (decisions.map(\.id).max() ?? 0) &+ 1, time: baseline.time, incarnation: nil, measure: .notify,
      status: .enforced, policy: Self.policy, reason: Self.reason(baseline.generation, baseline.disk, key),
      step: Int(clamping: baseline.generation), expires: nil, trigger: baseline.disk)
    do throws(DecisionLogError) {
      try log.append([decision])
      try log.sync()
    } catch {
      throw BaselineError(
        error.code == .full ? .full : .inputOutput,
        "baseline \(baseline.generation) is in force, and the decision log does not know of it: \(error.message)",
        at: error.place, remedy: error.remedy.isEmpty ? "free space, and `update` once more" : error.remedy)
    }
  }

  private static func reason(_ generation: UInt64, _ disk: String, _ key: IntegrityKey) -> String {
    var hmac = HMACSHA256(key: key.bytes)
    hmac.updateField(Array("vmfence baseline decision 1".utf8))
    hmac.updateField(StateKey.number(generation))
    hmac.updateField(Array(disk.utf8))
    let code = hmac.code().map { $0.hexadecimal(width: 2) }.joined()
    return "baseline \(generation) was signed: \(code)"
  }
}
