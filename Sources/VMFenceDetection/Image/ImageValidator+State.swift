import VMFenceCore

extension ImageValidator {
  static func validate(
    _ kind: StateKind, _ record: Int, _ bytes: RawSpan, _ sections: ImageSections
  ) throws(RuleCompilationError) {
    switch kind {
    case .flow: try require(bytes.u32le(OptionRecord.word(record, 0)) <= 0xFF, "what is asked of a flow")
    }
  }

  static func validate(
    _ kind: EffectKind, _ record: Int, _ bytes: RawSpan, _ sections: ImageSections
  ) throws(RuleCompilationError) {
    switch kind {
    case .noAlert: break
    }
  }
}
