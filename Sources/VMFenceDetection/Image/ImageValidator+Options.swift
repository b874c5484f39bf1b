import VMFenceCore

extension ImageValidator {
  /// That a rule's options are there, and of the families that their places say.
  static func validateOrder(
    _ bytes: RawSpan, _ rule: Int, _ sections: ImageSections
  ) throws(RuleCompilationError) {
    let conditions = Int(bytes.u16le(rule + RuleRecord.conditionCount))
    let payloads = Int(bytes.u16le(rule + RuleRecord.payloadCount))
    let effects = Int(bytes.u16le(rule + RuleRecord.effectCount))
    let start = bytes.u32le(rule + RuleRecord.optionsStart)
    try requireRange(start, UInt32(conditions + payloads + effects), in: .options, sections)
    try require(payloads <= OptionRecord.payloadLimit, "a rule's number of tests of bytes")
    try validateRuns(
      bytes, sections[.options].offset + (Int(start) + conditions) * OptionRecord.stride, payloads,
      top: Int(bytes.u16le(rule + RuleRecord.topPayloadCount)))
    for index in 0..<conditions + payloads + effects {
      let record = sections[.options].offset + (Int(start) + index) * OptionRecord.stride
      let kind = bytes.u8(record + OptionRecord.kind)
      let isInPlace =
        if index < conditions {
          HeaderKind(rawValue: kind) != nil || StateKind(rawValue: kind) != nil
        } else if index < conditions + payloads {
          PayloadKind(rawValue: kind) != nil
        } else {
          EffectKind(rawValue: kind) != nil
        }
      try require(isInPlace, "the order of a rule's options")
    }
  }

  static func validateOptions(_ bytes: RawSpan, _ sections: ImageSections) throws(RuleCompilationError) {
    for index in 0..<sections[.options].count {
      let record = sections[.options].offset + index * OptionRecord.stride
      let number = bytes.u8(record + OptionRecord.kind)
      if let kind = PayloadKind(rawValue: number) {
        try validate(kind, record, bytes, sections)
      } else if let kind = HeaderKind(rawValue: number) {
        try validate(kind, record, bytes)
      } else if let kind = StateKind(rawValue: number) {
        try validate(kind, record, bytes, sections)
      } else if let kind = EffectKind(rawValue: number) {
        try validate(kind, record, bytes, sections)
      } else {
        try require(false, "the kind of a test")
      }
    }
  }
}
