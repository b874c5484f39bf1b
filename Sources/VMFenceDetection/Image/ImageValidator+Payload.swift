import VMFenceCore

extension ImageValidator {
  static func validate(
    _ kind: PayloadKind, _ record: Int, _ bytes: RawSpan, _ sections: ImageSections
  ) throws(RuleCompilationError) {
    let flags = bytes.u8(record + OptionRecord.flags)
    func word(_ index: Int) -> UInt32 { bytes.u32le(OptionRecord.word(record, index)) }
    switch kind {
    case .content:
      try require(flags <= ContentFlags.known, "the flags of a content")
      try require(word(1) >= 1, "an empty content")
      try requireRange(word(0), word(1), in: .patterns, sections)
    }
  }
}
