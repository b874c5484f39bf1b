import VMFenceCore

extension ImageValidator {
  static func validate(
    _ kind: StateKind, _ record: Int, _ bytes: RawSpan, _ sections: ImageSections
  ) throws(RuleCompilationError) {
    let (small1, small2) = (bytes.u8(record + OptionRecord.small1), bytes.u8(record + OptionRecord.small2))
    let word = bytes.u32le(OptionRecord.word(record, 0))
    switch kind {
    case .flow: try require(word <= FlowTest.all, "what is asked of a flow")
    case .flowBits:
      try require(FlowBitsTest.Need(rawValue: small1) != nil, "what is asked of flow bits")
      try requireRange(word, bytes.u32le(OptionRecord.word(record, 1)), in: .bitLists, sections)
    case .flowInteger:
      try require(FlowIntegerTest.Comparison(rawValue: small1) != nil, "how a flow's integer is compared")
    case .hostBit: try require(HostSide(rawValue: small1) != nil, "whose bit it is")
    case .flowAge: break
    case .flowCount:
      try require(FlowCount(rawValue: small1) != nil && FlowSide(rawValue: small2) != nil, "what is counted of a flow")
    case .streamSize, .elephant: try require(FlowSide(rawValue: small2) != nil, "the side of a stream")
    case .addresses:
      try require(HostSide(rawValue: small1) != nil, "which address it is")
      try require(word == noIndex || word < sections[.addressSets].count, "a set of addresses")
    case .tcpSession: try require(TCPPhase(rawValue: small1) != nil, "how far a connection is")
    case .variable:
      try require(CaptureScope(rawValue: small1) != nil, "what a captured value is kept with")
      try requireRange(
        bytes.u32le(OptionRecord.word(record, 2)), bytes.u32le(OptionRecord.word(record, 3)), in: .patterns, sections)
    case .streamEvent:
      try require(
        EventRecord.isValid(record, bytes) { StreamEvent(rawValue: $0) != nil }, "the event of a stream")
    }
  }

  static func validate(
    _ kind: EffectKind, _ record: Int, _ bytes: RawSpan, _ sections: ImageSections
  ) throws(RuleCompilationError) {
    let (small1, small2) = (bytes.u8(record + OptionRecord.small1), bytes.u8(record + OptionRecord.small2))
    switch kind {
    case .noAlert, .alert, .bypass: break
    case .flowBits:
      try require(FlowBitsChange.Kind(rawValue: small1) != nil, "what is done to flow bits")
      for list in [0, 2] {
        try requireRange(
          bytes.u32le(OptionRecord.word(record, list)), bytes.u32le(OptionRecord.word(record, list + 1)), in: .bitLists,
          sections)
      }
    case .flowInteger:
      try require(FlowIntegerChange.Kind(rawValue: small1) != nil, "what is done to a flow's integer")
    case .hostBit:
      try require(
        HostSide(rawValue: small1) != nil && HostBitChange.Kind(rawValue: small2) != nil, "what is done to a host's bit"
      )
    case .reassembly: try require(FlowSide(rawValue: small1) != nil, "whose stream it is")
    case .tag: try require(TagEffect.Subject(rawValue: small1) != nil, "whose packets are logged")
    }
  }
}
