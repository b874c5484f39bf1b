import VMFenceCore
import VMFencePackets

/// What happens when a rule matched.
extension SnortInspector {
  /// Does what a rule that matched says. True: no later rule is to be compared.
  mutating func act(
    _ rule: Int, _ record: Int, isTold: Bool, _ match: PacketMatch, _ payload: RawSpan, _ image: RawSpan,
    into output: inout InspectionOutput
  ) -> Bool {
    guard admits(image.u32le(record + RuleRecord.filter), record, match, image),
      let action = RuleAction(rawValue: image.u8(record + RuleRecord.action))
    else { return false }
    let flags = image.u8(record + RuleRecord.flags)
    let actsOnFlow = flags & RuleRecord.actsOnFlow != 0
    switch action {
    case .pass:
      counters.passed += 1
      if actsOnFlow, let flow = match.flow { flows[flow.place].marks.insert(.isPassed) }
      return true
    case .drop, .block, .sdrop, .react: decide(.drop, rule, actsOnFlow, match, into: &output)
    case .reject, .rejectSource, .rejectDestination, .rejectBoth:
      decide(.reject, rule, actsOnFlow, match, into: &output)
    case .activate:
      let activation = image.u32le(record + RuleRecord.activation)
      if activation != noIndex {
        matching.activated[Int(activation)] = true
        matching.hasActivated = true
      }
    case .dynamic: matching.remaining[rule] -= 1
    case .alert, .log, .rewrite: break
    }
    if isTold, flags & RuleRecord.isSilent == 0,
      admits(image.u32le(record + RuleRecord.threshold), record, match, image)
    {
      output.append(alert(rule, match, payload))
    }
    return false
  }

  /// The first rule that gives a verdict gives it.
  private mutating func decide(
    _ verdict: Verdict, _ rule: Int, _ actsOnFlow: Bool, _ match: PacketMatch,
    into output: inout InspectionOutput
  ) {
    guard output.verdict == .pass else { return }
    output.verdict = verdict
    output.verdictRule = UInt32(truncatingIfNeeded: rule)
    // What was not really dropped goes on, and is to be inspected.
    guard actsOnFlow, configuration.isInline, let flow = match.flow else { return }
    flows[flow.place].marks.insert(.isDropped)
    flows[flow.place].verdictRule = UInt32(truncatingIfNeeded: rule)
    flows[flow.place].verdictGeneration = generation
  }

  private mutating func admits(
    _ rate: UInt32, _ record: Int, _ match: PacketMatch, _ image: RawSpan
  ) -> Bool {
    guard rate != noIndex else { return true }
    let offset = matching.sections[.rates].offset + Int(rate) * RateRecord.stride
    guard let limit = RateTable.Limit(image, offset) else { return true }
    let subject = RateTable.Subject(
      gid: image.u32le(record + RuleRecord.gid), sid: image.u32le(record + RuleRecord.sid),
      source: match.packet.source, destination: match.packet.destination)
    return rates.admits(limit, subject, at: match.timestamp)
  }

  /// Turns on the `dynamic` rules whose activation fired, from the next packet on.
  mutating func activateDynamicRules(_ image: RawSpan) {
    let records = matching.sections[.rules].offset
    for rule in matching.dynamicRules {
      let record = records + rule * RuleRecord.stride
      let activation = image.u32le(record + RuleRecord.activation)
      if activation != noIndex, matching.activated[Int(activation)] {
        matching.remaining[rule] = image.u32le(record + RuleRecord.activationCount)
      }
    }
    for index in matching.activated.indices { matching.activated[index] = false }
    matching.hasActivated = false
  }

  private func alert(_ rule: Int, _ match: PacketMatch, _ payload: RawSpan) -> AlertRecord {
    let packet = match.packet
    var flags: AlertRecord.Flags = []
    if let flow = match.flow {
      flags.insert(flow.toServer ? .toServer : .toClient)
      if flow.handshakeSeen { flags.insert(.established) }
    }
    var record = AlertRecord(
      timestamp: match.timestamp, ruleIndex: UInt32(truncatingIfNeeded: rule),
      flowID: match.flow.map { flows.name(of: $0.place) } ?? 0, source: packet.source, destination: packet.destination,
      sourcePort: packet.sourcePort, destinationPort: packet.destinationPort, ipProtocol: packet.ipProtocol,
      flags: flags, vlan: packet.outerVLAN & 0xFFF)
    let count = min(payload.byteCount, AlertRecord.excerptCapacity)
    for index in 0..<count { record.excerpt[index] = payload.u8(index) }
    record.excerptLength = UInt8(truncatingIfNeeded: count)
    return record
  }
}
