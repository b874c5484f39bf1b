/// In which order rules of one action are compared with a packet, so that a bit that one sets is seen by those that ask for it:
/// a rule's rank is above those of all that change what it tests.
struct StateOrder {
  /// What a rule may test and another change. Names of flow bits, flow integers and host bits do not mix.
  private enum Variable: Hashable {
    case flowBit(String), flowInteger(String), hostBit(String), captured(CaptureScope, String)
  }

  private var ranks: [Variable: Int] = [:]
  /// Longer chains are cut: their rules come last, in no particular order. A circle of rules is such a chain.
  private static let rankMaximum = 16

  init(_ rules: [Rule]) {
    let steps = rules.map {
      ($0.tests.flatMap(Self.tested), $0.effects.flatMap(Self.changed) + $0.tests.flatMap(Self.captured))
    }
    .filter { !$0.0.isEmpty || !$0.1.isEmpty }
    // A variable's rank is one above the highest of the rules that change it.
    for _ in 0...Self.rankMaximum {
      var isStable = true
      for (tested, changed) in steps {
        let rank = min(tested.reduce(0) { max($0, ranks[$1] ?? 0) } + 1, Self.rankMaximum)
        for variable in changed where ranks[variable] ?? 0 < rank {
          ranks[variable] = rank
          isStable = false
        }
      }
      if isStable { break }
    }
  }

  /// 0 for rules that test nothing that a rule changes.
  func rank(of rule: Rule) -> Int { rule.tests.flatMap(Self.tested).reduce(0) { max($0, ranks[$1] ?? 0) } }

  private static func tested(_ test: RuleTest) -> [Variable] {
    guard case .state(let test) = test else { return [] }
    switch test {
    case .flowBits(let test): return names(test.bits)
    case .flowInteger(let test): return [.flowInteger(test.name)]
    case .hostBit(let test): return [.hostBit(test.name)]
    case .flow, .flowAge, .flowCount, .streamSize, .addresses, .country, .streamEvent, .tcpSession, .elephant:
      return []
    case .variable(let test): return [.captured(test.scope, test.name)]
    }
  }

  private static func captured(_ test: RuleTest) -> [Variable] {
    guard case .payload(let payload) = test, case .regex(let regex) = payload.check else { return [] }
    return regex.captures.filter { $0.scope != .alert }.map { .captured($0.scope, $0.name) }
  }

  private static func changed(_ effect: StateEffect) -> [Variable] {
    switch effect {
    case .flowBits(let change): names(change.bits)
    case .flowInteger(let change): [.flowInteger(change.name)]
    case .hostBit(let change): [.hostBit(change.name)]
    case .noAlert, .alert, .bypass, .tag, .reassembly: []
    }
  }

  private static func names(_ bits: FlowBitNames) -> [Variable] {
    guard case .named(let names) = bits else { return [] }
    return names.map { .flowBit($0) }
  }
}
