import VMFenceCore

/// Kinds of state tests: 128 ... 191.
enum StateKind: UInt8 {
  /// `FlowTest.rawValue` (word 0); small 1 is 1 for a Suricata rule.
  case flow = 128
  /// `FlowBitsTest.Need` (small 1), a list of bits (words 0, 1: start and count in `bitLists`).
  case flowBits = 129
  /// `FlowIntegerTest.Comparison` (small 1); the integer (word 0) and an operand (`FlowOperand`: words 1, 2).
  case flowInteger = 130
  /// `HostSide` (small 1); small 2 is 1 when the bit is to be set; the hash of its name (words 0, 1).
  case hostBit = 131
  /// A number (`NumberRecord`).
  case flowAge = 132
  /// `FlowCount` (small 1), `FlowSide` (small 2), a number (`NumberRecord`).
  case flowCount = 133
  /// `FlowSide` (small 2), a number (`NumberRecord`).
  case streamSize = 134
  /// `HostSide` (small 1), an address set (word 0).
  case addresses = 135
  /// `CaptureScope` (small 1); the hash of the variable's name (words 0, 1), what stands in its value (words 2, 3: offset in `patterns`,
  /// length).
  case variable = 136
  /// `FlowSide` (small 2).
  case elephant = 137
  /// Raw values of `StreamEvent` (`EventRecord`).
  case streamEvent = 160
  /// `TCPPhase` (small 1).
  case tcpSession = 161
}

/// Kinds of effects: 192 ... 255.
enum EffectKind: UInt8 {
  case noAlert = 192
  case alert = 193
  case bypass = 194
  /// `FlowBitsChange.Kind` (small 1), a list of bits (words 0, 1); for `setAlone` the bits to unset (words 2, 3).
  case flowBits = 195
  /// `FlowIntegerChange.Kind` (small 1); the integer (word 0) and an operand (words 1, 2).
  case flowInteger = 196
  /// `HostSide` (small 1), `HostBitChange.Kind` (small 2); the hash of the bit's name (words 0, 1), seconds (word 2).
  case hostBit = 197
  /// `TagEffect.Subject` (small 1); packets, bytes, seconds (words 0 ... 2).
  case tag = 198
  /// `FlowSide` (small 1); small 2 is 1 when its stream is to be put together.
  case reassembly = 199
}

/// Flags of `flowInteger` tests and effects: the operand (word 1) is another integer.
enum OperandFlags {
  static let isVariable: UInt8 = 2
}

extension ImageBuilder {
  mutating func draft(_ test: StateTest, _ dialect: RuleDialect) -> OptionDraft {
    switch test {
    case .flow(let flow):
      return OptionDraft(
        kind: StateKind.flow.rawValue, small1: dialect == .suricata ? 1 : 0, words: [flow.rawValue])
    case .flowBits(let bits):
      return OptionDraft(
        kind: StateKind.flowBits.rawValue, small1: bits.need.rawValue, words: list(variables.bits(of: bits.bits)))
    case .flowInteger(let test):
      return draft(StateKind.flowInteger.rawValue, test.comparison.rawValue, test.name, test.operand)
    case .hostBit(let bit):
      return OptionDraft(
        kind: StateKind.hostBit.rawValue, small1: bit.side.rawValue, small2: bit.isSet ? 1 : 0,
        words: Self.hashWords(bit.name))
    case .flowAge(let number): return number.draft(StateKind.flowAge.rawValue)
    case .flowCount(let count, let side, let number):
      return number.draft(StateKind.flowCount.rawValue, small1: count.rawValue, small2: side.rawValue)
    case .streamSize(let side, let number):
      return number.draft(StateKind.streamSize.rawValue, small2: side.rawValue)
    case .addresses(let side, let addresses), .country(let side, let addresses):
      return OptionDraft(
        kind: StateKind.addresses.rawValue, small1: side.rawValue, words: [index(of: addresses)])
    case .streamEvent(let events):
      return OptionDraft(kind: StateKind.streamEvent.rawValue, alternatives: events.map(\.rawValue))
    case .variable(let test):
      return OptionDraft(
        kind: StateKind.variable.rawValue, flags: test.isNegated ? OptionRecord.isNegated : 0,
        small1: test.scope.rawValue,
        words: Self.hashWords(test.name) + [offset(ofPattern: test.pattern), UInt32(test.pattern.count)])
    case .elephant(let side): return OptionDraft(kind: StateKind.elephant.rawValue, small2: side.rawValue)
    case .tcpSession(let phase): return OptionDraft(kind: StateKind.tcpSession.rawValue, small1: phase.rawValue)
    }
  }

  mutating func draft(_ effect: StateEffect, _ dialect: RuleDialect) -> OptionDraft {
    switch effect {
    case .noAlert: return OptionDraft(kind: EffectKind.noAlert.rawValue)
    case .alert: return OptionDraft(kind: EffectKind.alert.rawValue)
    case .bypass: return OptionDraft(kind: EffectKind.bypass.rawValue)
    case .flowBits(let change):
      let bits = variables.bits(of: change.bits)
      var words = list(bits)
      if change.kind == .setAlone {
        words += list(variables.bits(of: .group(change.group)).filter { !bits.contains($0) })
      }
      return OptionDraft(kind: EffectKind.flowBits.rawValue, small1: change.kind.rawValue, words: words)
    case .flowInteger(let change):
      return draft(EffectKind.flowInteger.rawValue, change.kind.rawValue, change.name, change.operand)
    case .hostBit(let change):
      return OptionDraft(
        kind: EffectKind.hostBit.rawValue, small1: change.side.rawValue, small2: change.kind.rawValue,
        words: Self.hashWords(change.name) + [change.seconds])
    case .reassembly(let side, let isOn):
      return OptionDraft(kind: EffectKind.reassembly.rawValue, small1: side.rawValue, small2: isOn ? 1 : 0)
    case .tag(let tag):
      return OptionDraft(
        kind: EffectKind.tag.rawValue, small1: tag.subject.rawValue, words: [tag.packets, tag.bytes, tag.seconds])
    }
  }

  private func draft(_ kind: UInt8, _ small: UInt8, _ name: String, _ operand: FlowOperand) -> OptionDraft {
    let integer = UInt32(variables.integers[name] ?? 0)
    return switch operand {
    case .number(let number): OptionDraft(kind: kind, small1: small, words: [integer, number])
    case .variable(let other):
      OptionDraft(
        kind: kind, flags: OperandFlags.isVariable, small1: small,
        words: [integer, UInt32(variables.integers[other] ?? 0)])
    }
  }

  static func hashWords(_ name: String) -> [UInt32] {
    let hash = BitName.hash(name)
    return [UInt32(truncatingIfNeeded: hash), UInt32(truncatingIfNeeded: hash >> 32)]
  }

  /// Start and count of the bits in `bitLists`.
  private mutating func list(_ bits: [Int]) -> [UInt32] {
    let start = UInt32(count(.bitLists))
    write(.bitLists) { writer in bits.forEach { writer.u32(UInt32($0)) } }
    return [start, UInt32(bits.count)]
  }

  /// The names, by which what flows have is found again under the next rule set.
  mutating func appendVariableNames() {
    for (section, names) in [(ImageSection.flowBits, variables.bitNames), (.flowIntegers, variables.integerNames)] {
      for name in names {
        let bytes = Array(name.utf8)
        let start = offset(ofPattern: bytes)
        write(section) {
          $0.u32(start)
          $0.u32(UInt32(bytes.count))
        }
      }
    }
  }
}

/// The variables of flows that the rules of a set name, numbered in the order in which they come.
struct VariableNames {
  static let bitMaximum = 4096
  static let integerMaximum = 64

  private(set) var bitNames: [String] = []
  private(set) var integerNames: [String] = []
  private(set) var bits: [String: Int] = [:]
  private(set) var integers: [String: Int] = [:]
  private var groups: [String: [Int]] = [:]

  init() {}

  /// - Throws: when there are more than a flow has room for.
  init(_ rules: [Rule]) throws(RuleCompilationError) {
    for rule in rules {
      for case .state(let test) in rule.tests { add(test) }
      for effect in rule.effects { add(effect) }
      guard bitNames.count <= Self.bitMaximum, integerNames.count <= Self.integerMaximum else {
        throw RuleCompilationError(
          .tooLarge,
          "the rules name more than \(Self.bitMaximum) flowbits or \(Self.integerMaximum) flowints",
          at: rule.metadata.place,
          remedy: "use fewer names, or fewer rules for this domain")
      }
    }
  }

  func bits(of names: FlowBitNames) -> [Int] {
    switch names {
    case .named(let names): names.compactMap { bits[$0] }
    case .group(let group?): groups[group] ?? []
    case .group(nil): Array(bitNames.indices)
    }
  }

  private mutating func add(_ test: StateTest) {
    switch test {
    case .flowBits(let test): add(test.bits, group: nil)
    case .flowInteger(let test): add(test.name, test.operand)
    case .flow, .hostBit, .flowAge, .flowCount, .streamSize, .addresses, .country, .streamEvent, .tcpSession, .variable,
      .elephant:
      break
    }
  }

  private mutating func add(_ effect: StateEffect) {
    switch effect {
    case .flowBits(let change): add(change.bits, group: change.group)
    case .flowInteger(let change): add(change.name, change.operand)
    case .noAlert, .alert, .bypass, .hostBit, .tag, .reassembly: break
    }
  }

  private mutating func add(_ names: FlowBitNames, group: String?) {
    guard case .named(let names) = names else { return }
    for name in names {
      let bit = bits[name] ?? bitNames.count
      if bits.updateValue(bit, forKey: name) == nil { bitNames.append(name) }
      if let group, groups[group]?.contains(bit) != true { groups[group, default: []].append(bit) }
    }
  }

  private mutating func add(_ name: String, _ operand: FlowOperand) {
    var names = [name]
    if case .variable(let other) = operand { names.append(other) }
    for name in names where integers[name] == nil {
      integers[name] = integerNames.count
      integerNames.append(name)
    }
  }
}
