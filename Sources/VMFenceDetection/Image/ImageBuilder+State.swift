import VMFenceCore

/// Kinds of state tests: 128 ... 191.
enum StateKind: UInt8 {
  /// `FlowTest.rawValue` (word 0).
  case flow = 128
}

/// Kinds of effects: 192 ... 255.
enum EffectKind: UInt8 {
  case noAlert = 192
}

extension ImageBuilder {
  mutating func draft(_ test: StateTest, _ dialect: RuleDialect) -> OptionDraft {
    switch test {
    case .flow(let flow): OptionDraft(kind: StateKind.flow.rawValue, words: [flow.rawValue])
    }
  }

  mutating func draft(_ effect: StateEffect, _ dialect: RuleDialect) -> OptionDraft {
    switch effect {
    case .noAlert: OptionDraft(kind: EffectKind.noAlert.rawValue)
    }
  }
}
