import VMFenceCore

/// Options about headers and sizes.
extension RuleOptionParser {
  mutating func headerOption(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> Bool {
    switch text {
    case "flags", "tcp.flags":
      tests.append(.header(.tcpFlags(try TCPFlagsTest.parse(required(name, value), dialect: dialect))))
    case "dsize":
      if let test = try number(name, value, maximum: 65_535, arrowIncludesEnds: dialect == .snort2) {
        tests.append(.header(.payloadSize(test)))
      }
    case "itype":
      if let test = try number(name, value, maximum: 255, arrowIncludesEnds: false) {
        tests.append(.header(.icmpType(test)))
      }
    case "icode":
      if let test = try number(name, value, maximum: 255, arrowIncludesEnds: false) {
        tests.append(.header(.icmpCode(test)))
      }
    default: return false
    }
    return true
  }

  /// `transport` is nil for a protocol that is not supported yet.
  func finishHeader(_ transport: RuleProtocol?, _ start: Int) throws(RuleProblem) {
    for test in tests {
      switch test {
      case .header(.tcpFlags) where transport != nil && transport != .tcp && transport != .ip:
        throw RuleProblem(start, "`flags` in a rule that is not for TCP", "make it a tcp rule")
      case .header(.icmpType) where transport != nil && transport != .icmp && transport != .ip,
        .header(.icmpCode) where transport != nil && transport != .icmp && transport != .ip:
        throw RuleProblem(start, "`itype` or `icode` in a rule that is not for ICMP", "make it an icmp rule")
      default: break
      }
    }
  }
}
