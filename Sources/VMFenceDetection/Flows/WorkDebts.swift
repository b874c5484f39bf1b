/// What a flow's packets cost beyond what each may. All zeros: nothing is owed.
///
/// **Comparing**, by the rule that cost it: so that one that is made dear takes nothing from others in later packets.
/// The dearest few rules have a debt each; all others share one. The sum is bounded, and so is what a packet pays off: however many rules are dear, a flow
/// costs in the long run no more than `(capacity + 1) * SnortInspector.workAllowance` a packet, and `SnortInspector.ruleAllowance` for each rule.
///
/// **Putting segments together**: a look at the record of a segment is a step. A flow that owes much of this has its segments joined as soon as they touch:
/// where they lay over each other is not known any more then, but what each of them costs hardly depends on how many there are.
///
/// Not saved with a flow: a debt is worth some hundred packets.
struct WorkDebts: BitwiseCopyable {
  /// Rules with a debt of their own.
  static let capacity = 4

  private var rules: InlineArray<4, UInt32> = InlineArray(repeating: 0)
  /// 0: the place is free.
  private var owed: InlineArray<4, UInt32> = InlineArray(repeating: 0)
  private var owedByOthers: UInt32 = 0
  /// For segments.
  private var owedBySegments: UInt32 = 0
  /// Of the rule set that `rules` are indices into.
  private var generation: UInt32 = 0

  var isEmpty: Bool { owed[0] | owed[1] | owed[2] | owed[3] | owedByOthers | owedBySegments == 0 }

  /// Forgets what rules of another set than `generation` owe: which of the present ones those are nobody knows.
  @inline(__always)
  mutating func begin(_ generation: UInt32) {
    if self.generation == generation { return }
    let segments = owedBySegments
    self = WorkDebts()
    (owedBySegments, self.generation) = (segments, generation)
  }

  func debt(of rule: Int) -> Int {
    for index in 0..<Self.capacity where owed[index] > 0 && rules[index] == rule { return Int(owed[index]) }
    return Int(owedByOthers)
  }

  mutating func charge(_ work: Int, to rule: Int) {
    var least = 0
    for index in 0..<Self.capacity {
      if owed[index] > 0, rules[index] == rule {
        owed[index] = Self.sum(owed[index], work)
        return
      }
      if owed[index] < owed[least] { least = index }
    }
    guard owed[least] < work else {
      owedByOthers = Self.sum(owedByOthers, work)
      return
    }
    owedByOthers = Self.sum(owedByOthers, Int(owed[least]))
    (rules[least], owed[least]) = (UInt32(truncatingIfNeeded: rule), Self.sum(0, work))
  }

  private static func sum(_ debt: UInt32, _ work: Int) -> UInt32 {
    UInt32(truncatingIfNeeded: min(Int(debt) + work, SnortInspector.workLimit))
  }

  /// What each packet pays off.
  mutating func pay() {
    for index in 0..<Self.capacity { owed[index] -= min(owed[index], UInt32(SnortInspector.workAllowance)) }
    owedByOthers -= min(owedByOthers, UInt32(SnortInspector.workAllowance))
  }

  // MARK: Segments

  /// What each segment pays off, beside a step for each 4 of its bytes, which nobody can do without.
  private static let segmentAllowance = 1 << 10
  /// From here on segments are joined; twice as much is owed at the most.
  private static let segmentLimit = 1 << 16

  var joinsSegments: Bool { owedBySegments >= Self.segmentLimit }

  mutating func chargeSegments(_ work: Int) {
    owedBySegments = UInt32(truncatingIfNeeded: min(Int(owedBySegments) + work, 2 * Self.segmentLimit))
  }

  mutating func paySegment(_ byteCount: Int) {
    owedBySegments -= min(owedBySegments, UInt32(truncatingIfNeeded: Self.segmentAllowance + byteCount / 4))
  }
}
