import VMFenceCore
import VMFencePackets

/// Tests of what is remembered, and changes to it.
extension SnortInspector {
  mutating func stateMatches(_ kind: StateKind, _ option: Int, _ match: PacketMatch, _ image: RawSpan) -> Bool {
    switch kind {
    case .flow:
      Self.flowMatches(
        FlowTest(rawValue: image.u32le(OptionRecord.word(option, 0))), match.flow, isFragment: match.packet.isFragment)
    }
  }

  /// Does what the rule at `record` does when all of it matched; false when it is not to be told.
  mutating func applyEffects(_ record: Int, _ match: PacketMatch, _ image: RawSpan) -> Bool {
    var isTold = true
    let count = Int(image.u16le(record + RuleRecord.effectCount))
    let skipped =
      Int(image.u16le(record + RuleRecord.conditionCount)) + Int(image.u16le(record + RuleRecord.payloadCount))
    let first =
      matching.sections[.options].offset
      + (Int(image.u32le(record + RuleRecord.optionsStart)) + skipped) * OptionRecord.stride
    for index in 0..<count {
      let option = first + index * OptionRecord.stride
      switch EffectKind(rawValue: image.u8(option + OptionRecord.kind)) {
      case .noAlert: isTold = false
      case nil: break
      }
    }
    return isTold
  }

  private static func flowMatches(_ test: FlowTest, _ flow: FlowTable.Sighting?, isFragment: Bool) -> Bool {
    if test.contains(.notFragment), isFragment { return false }
    if test.contains(.onlyFragment), !isFragment { return false }
    guard let flow else { return test.isDisjoint(with: [.toServer, .toClient, .established]) }
    if test.contains(.toServer), !flow.toServer { return false }
    if test.contains(.toClient), flow.toServer { return false }
    if test.contains(.established), !flow.isEstablished { return false }
    if test.contains(.notEstablished), flow.isEstablished { return false }
    return true
  }
}
