import VMFenceCore

extension ImageValidator {
  static func validate(
    _ kind: HeaderKind, _ record: Int, _ bytes: RawSpan
  ) throws(RuleCompilationError) {
    switch kind {
    case .tcpFlags:
      let mode = TCPFlagsTest.Mode(rawValue: bytes.u8(record + OptionRecord.small1))
      try require(mode != nil, "how TCP flags are compared")
    case .payloadSize, .icmpType, .icmpCode: break
    }
  }
}
