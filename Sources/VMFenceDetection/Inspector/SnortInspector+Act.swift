import VMFenceCore
import VMFencePackets

/// What happens when rules matched.
extension SnortInspector {
  /// Notes that a rule matched; `settle` does what it says.
  mutating func find(
    _ rule: Int, _ record: Int, _ telling: Telling, _ match: borrowing PacketMatch, _ payload: RawSpan,
    _ frame: RawSpan,
    _ image: RawSpan, into output: inout InspectionOutput
  ) {
    if image.u8(record + RuleRecord.moreFlags) & RuleRecord.replaces != 0 {
      noteReplacements(rule, record, match, payload, frame, image)
    }
    findings.insert(
      Findings.Finding(
        rule: rule, telling: telling, place: match.flow?.place ?? -1,
        flow: match.flow.map { flows[$0.place].identity } ?? 0, isEstablished: match.flow?.isEstablished ?? false,
        priority: image.u8(record + RuleRecord.priority),
        record: alert(rule, match, payload, frame, &output)))
  }

  /// Does what the rules say that matched this packet, in their order; the first that passes it silences those after it.
  ///
  /// - `suppress` and rates decide whether a rule is told of; they never keep it from dropping or passing. What a
  ///   `detection_filter` holds back has not matched.
  /// - `rate_filter` may give the rule another action.
  mutating func settle(_ image: RawSpan, into output: inout InspectionOutput) {
    guard findings.count > 0 else { return }
    let records = matching.sections[.rules].offset
    for index in 0..<findings.count {
      let finding = findings[index]
      if act(finding, records + finding.rule * RuleRecord.stride, image, into: &output) { break }
    }
    findings.removeAll()
    if matching.hasActivated { activateDynamicRules(image) }
  }

  /// True: no later rule is to be heard.
  private mutating func act(
    _ finding: Findings.Finding, _ record: Int, _ image: RawSpan, into output: inout InspectionOutput
  ) -> Bool {
    guard admits(image.u32le(record + RuleRecord.filter), record, finding, image),
      var action = RuleAction(rawValue: image.u8(record + RuleRecord.action))
    else { return false }
    let flags = image.u8(record + RuleRecord.flags)
    var reason = DropReason.rules
    var isSilent = flags & RuleRecord.isSilent != 0
    if let other = filteredAction(record, finding, image) {
      action = other
      isSilent = action == .pass
      reason = .rulesThreshold
    }
    if image.u8(record + RuleRecord.moreFlags) & RuleRecord.replaces != 0 { replacements.accept(finding.rule) }
    var told = finding.record
    switch action {
    case .pass: pass(finding, record, image, output)
    case .drop, .block, .sdrop:
      drop(.drop, reason, finding, record, image, into: &output)
      told.flags.insert(.drops)
    case .reject, .rejectSource, .rejectDestination, .rejectBoth, .react:
      drop(.reject, reason, finding, record, image, into: &output)
      told.flags.insert(.rejects)
    case .activate:
      let activation = image.u32le(record + RuleRecord.activation)
      if activation != noIndex {
        matching.activated[Int(activation)] = true
        matching.hasActivated = true
      }
    case .dynamic:
      // It may have been found twice in one packet.
      guard matching.remaining[finding.rule] > 0 else { return false }
      matching.remaining[finding.rule] -= 1
    case .alert, .log, .rewrite: break
    }
    if finding.telling == .always || finding.telling == .byAction && !isSilent,
      !isSuppressed(record, finding, image), admits(image.u32le(record + RuleRecord.threshold), record, finding, image)
    {
      output.append(told, limit: alertLimit)
    }
    return action == .pass
  }

  /// Alerts of one packet at the most; those of the rules that come first in the list.
  private var alertLimit: Int { settings.alertLimit }

  // MARK: Verdicts

  private func actsOnFlow(_ finding: Findings.Finding, _ record: Int, _ image: RawSpan) -> Bool {
    if image.u8(record + RuleRecord.flags) & RuleRecord.actsOnFlow != 0 { return true }
    // What anybody can send before a handshake must not cut a connection.
    return finding.isEstablished && finding.record.flags.contains(.stream)
      && image.u8(record + RuleRecord.moreFlags) & RuleRecord.actsOnStream != 0
  }

  private mutating func pass(
    _ finding: Findings.Finding, _ record: Int, _ image: RawSpan, _ output: borrowing InspectionOutput
  ) {
    // What a rule before dropped stays dropped.
    guard output.verdict == .pass else { return }
    counters.passed += 1
    if actsOnFlow(finding, record, image), finding.place >= 0 { flows[finding.place].marks.insert(.isPassed) }
  }

  /// The first rule that drops gives the verdict; a later one may still tell the ends.
  private mutating func drop(
    _ verdict: Verdict, _ reason: DropReason, _ finding: Findings.Finding, _ record: Int, _ image: RawSpan,
    into output: inout InspectionOutput
  ) {
    let rule = UInt32(truncatingIfNeeded: finding.rule)
    if verdict == .reject, output.rejectRule == .max { output.rejectRule = rule }
    if output.verdict == .pass {
      output.verdict = verdict
      output.verdictRule = rule
      output.dropReason = reason
    } else if verdict == .reject {
      output.verdict = .reject
    }
    // What was not really dropped goes on, and is to be inspected.
    guard configuration.isInline, finding.place >= 0, actsOnFlow(finding, record, image),
      flows[finding.place].marks.isDisjoint(with: [.isPassed, .isDropped])
    else { return }
    flows[finding.place].marks.insert(.isDropped)
    flows[finding.place].verdictRule = rule
    flows[finding.place].verdictGeneration = generation
  }

  // MARK: Rates

  private func subject(_ record: Int, _ finding: Findings.Finding, _ image: RawSpan) -> RateTable.Subject {
    RateTable.Subject(
      gid: image.u32le(record + RuleRecord.gid), sid: image.u32le(record + RuleRecord.sid),
      source: finding.record.source, destination: finding.record.destination, sourcePort: finding.record.sourcePort,
      destinationPort: finding.record.destinationPort, flow: finding.flow)
  }

  private mutating func admits(
    _ rate: UInt32, _ record: Int, _ finding: Findings.Finding, _ image: RawSpan
  ) -> Bool {
    guard rate != noIndex else { return true }
    let offset = matching.sections[.rates].offset + Int(rate) * RateRecord.stride
    guard let limit = RateTable.Limit(image, offset) else { return true }
    return rates.admits(limit, subject(record, finding, image), at: finding.record.timestamp)
  }

  /// The action that a `rate_filter` in effect gives the rule.
  private mutating func filteredAction(
    _ record: Int, _ finding: Findings.Finding, _ image: RawSpan
  ) -> RuleAction? {
    let rate = image.u32le(record + RuleRecord.rateFilter)
    guard rate != noIndex, admits(rate, record, finding, image) else { return nil }
    let offset = matching.sections[.rates].offset + Int(rate) * RateRecord.stride
    return RuleAction(rawValue: image.u8(offset + RateRecord.action))
  }

  private func isSuppressed(_ record: Int, _ finding: Findings.Finding, _ image: RawSpan) -> Bool {
    let count = Int(image.u16le(record + RuleRecord.suppressionCount))
    let start = Int(image.u32le(record + RuleRecord.suppressionStart))
    for index in start..<start + count {
      let suppression = matching.sections[.suppressions].offset + index * SuppressionRecord.stride
      let addresses = image.u32le(suppression + SuppressionRecord.addresses)
      let isSource = matching.header.hasAddress(addresses, finding.record.source, image)
      let isDestination = matching.header.hasAddress(addresses, finding.record.destination, image)
      let isHit =
        switch HostSide(rawValue: UInt8(truncatingIfNeeded: image.u32le(suppression + SuppressionRecord.side))) {
        case nil: true
        case .source: isSource
        case .destination: isDestination
        case .either: isSource || isDestination
        case .both, .pair: isSource && isDestination
        }
      if isHit { return true }
    }
    return false
  }

  // MARK: Dynamic rules

  /// Turns on the `dynamic` rules whose activation fired, from the next packet on.
  private mutating func activateDynamicRules(_ image: RawSpan) {
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

  // MARK: Alerts

  private func alert(
    _ rule: Int, _ match: borrowing PacketMatch, _ payload: RawSpan, _ frame: RawSpan, _ output: inout InspectionOutput
  ) -> AlertRecord {
    let packet = match.packet
    var flags: AlertRecord.Flags = []
    if let flow = match.flow {
      flags.insert(flow.toServer ? .toServer : .toClient)
      if flow.handshakeSeen, !guestSpeaksForPeer(flow.place, at: match.timestamp) { flags.insert(.established) }
    }
    if match.isStream { flags.insert(.stream) }
    var record = AlertRecord(
      timestamp: match.timestamp, ruleIndex: UInt32(truncatingIfNeeded: rule),
      flowID: match.flow.map { flows.name(of: $0.place) } ?? 0, source: packet.source, destination: packet.destination,
      sourcePort: packet.sourcePort, destinationPort: packet.destinationPort, ipProtocol: packet.ipProtocol,
      flags: flags, vlan: packet.outerVLAN & 0xFFF)
    record.origin = match.origin
    record.layer = match.packet.tunnelDepth
    let count = min(payload.byteCount, AlertRecord.excerptCapacity)
    for index in 0..<count { record.excerpt[index] = payload.u8(index) }
    record.excerptLength = UInt8(truncatingIfNeeded: count)
    matching.payloads.captured.tell(&record)
    // What the frame as it was captured does not hold.
    if output.keepsEvidence, match.isStream || match.source == .segment || match.isRebuilt {
      record.payload = keep(payload, missing: match.missing, &output)
      if match.origin != .wire || match.isRewritten { record.packet = output.keep(frame) }
    }
    return record
  }

  /// Keeps a payload, and says before it what it lacks.
  private func keep(_ payload: RawSpan, missing: UInt32, _ output: inout InspectionOutput) -> EvidenceRange {
    guard missing > 0 else { return output.keep(payload) }
    let note = Array("[\(missing) bytes missing]".utf8)
    let first = note.withRawSpan { output.keep($0) }
    let second = output.keep(payload)
    return second.length == 0 ? second : EvidenceRange(offset: first.offset, length: first.length + second.length)
  }
}
