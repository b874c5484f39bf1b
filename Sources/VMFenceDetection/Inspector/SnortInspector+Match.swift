import VMFenceCore
import VMFencePackets

extension SnortInspector {
  // MARK: Candidates

  /// Collects the rules that this packet has to be compared with.
  mutating func findCandidates(_ match: PacketMatch, _ payload: RawSpan, _ image: RawSpan) {
    let packetClass = match.packetClass
    let record = matching.sections[.classes].offset + packetClass.rawValue * ClassRecord.stride
    let anyPort = image.u32le(record + ClassRecord.anyPort)
    if anyPort != noIndex { search(Int(anyPort), payload, image) }
    guard packetClass == .tcp || packetClass == .udp else { return }
    let destination = group(image.u32le(record + ClassRecord.destinationPages), match.packet.destinationPort, image)
    if destination != noGroup { search(Int(destination), payload, image) }
    let source = group(image.u32le(record + ClassRecord.sourcePages), match.packet.sourcePort, image)
    if source != noGroup, source != destination { search(Int(source), payload, image) }
  }

  private func group(_ pages: UInt32, _ port: UInt16, _ image: RawSpan) -> UInt16 {
    guard pages != noIndex else { return noGroup }
    let page = image.u16le(matching.sections[.portPages].offset + (Int(pages) + Int(port >> 8)) * 2)
    return image.u16le(matching.sections[.portGroups].offset + (Int(page) << 8 + Int(port & 0xFF)) * 2)
  }

  private mutating func search(_ group: Int, _ payload: RawSpan, _ image: RawSpan) {
    let record = matching.sections[.groups].offset + group * GroupRecord.stride
    insertList(image.u32le(record + GroupRecord.directStart), image.u32le(record + GroupRecord.directCount), image)
    let patterns = image.u32le(record + GroupRecord.patternCount)
    guard patterns > 0, payload.byteCount > 0 else { return }
    let first = Int(image.u32le(record + GroupRecord.patternStart))
    switch matching.scanner.scan(group, payload) {
    case .hits(let count):
      for index in 0..<count {
        let pattern = matching.scanner.hit(index)
        if pattern < patterns { insertRules(ofPattern: first + pattern, image) }
      }
    case .everything:
      // Nothing is missed for the want of room: all rules of the group are compared.
      counters.scanOverflows += 1
      for pattern in 0..<Int(patterns) { insertRules(ofPattern: first + pattern, image) }
    }
  }

  private mutating func insertRules(ofPattern pattern: Int, _ image: RawSpan) {
    let record = matching.sections[.groupPatterns].offset + pattern * GroupPatternRecord.stride
    insertList(
      image.u32le(record + GroupPatternRecord.rulesStart), image.u32le(record + GroupPatternRecord.rulesCount), image)
  }

  private mutating func insertList(_ start: UInt32, _ count: UInt32, _ image: RawSpan) {
    let list = matching.sections[.ruleLists].offset + Int(start) * 4
    for index in 0..<Int(count) { matching.candidates.insert(Int(image.u32le(list + index * 4))) }
  }

  // MARK: Evaluation

  /// Compares the candidates in order, until one passes the packet.
  mutating func evaluateCandidates(
    _ match: PacketMatch, _ payload: RawSpan, _ image: RawSpan, into output: inout InspectionOutput
  ) {
    var budget = Self.workLimit
    let records = matching.sections[.rules].offset
    while let rule = matching.candidates.popFirst() {
      let record = records + rule * RuleRecord.stride
      guard isAwake(rule, image.u8(record + RuleRecord.action)) else { continue }
      let header = Int(image.u32le(record + RuleRecord.header))
      guard matching.header.matches(header, match.packet, hasTransport: match.hasTransport, image),
        optionsMatch(record, match, payload, image, &budget)
      else { continue }
      if act(rule, record, match, payload, image, into: &output) {
        matching.candidates.removeAll()
        break
      }
    }
    if budget < 0 { counters.workLimitHits += 1 }
    if matching.hasActivated { activateDynamicRules(image) }
  }

  private func isAwake(_ rule: Int, _ action: UInt8) -> Bool {
    action != RuleAction.dynamic.rawValue || matching.remaining[rule] > 0
  }

  private mutating func optionsMatch(
    _ record: Int, _ match: PacketMatch, _ payload: RawSpan, _ image: RawSpan, _ budget: inout Int
  ) -> Bool {
    let count = Int(image.u16le(record + RuleRecord.optionsCount))
    let start =
      matching.sections[.options].offset + Int(image.u32le(record + RuleRecord.optionsStart)) * OptionRecord.stride
    for index in 0..<count {
      let option = start + index * OptionRecord.stride
      let kind = OptionKind(rawValue: image.u8(option + OptionRecord.kind))
      if kind == .content {
        // All that follow are contents too.
        return matching.contents.matches(
          option, count: count - index, patterns: matching.sections[.patterns].offset, payload: payload, image: image,
          budget: &budget)
      }
      guard Self.headerTest(kind, option, match, payload.byteCount, image) else { return false }
    }
    return true
  }

  private static func headerTest(
    _ kind: OptionKind?, _ option: Int, _ match: PacketMatch, _ size: Int, _ image: RawSpan
  ) -> Bool {
    let isICMP = match.packetClass == .icmp
    return switch kind {
    case .tcpFlags: match.packetClass == .tcp && flagsMatch(option, match.packet.tcpFlags.rawValue, image)
    case .payloadSize: numberMatches(option, UInt32(clamping: size), image)
    case .icmpType: isICMP && numberMatches(option, UInt32(match.packet.icmpType), image)
    case .icmpCode: isICMP && numberMatches(option, UInt32(match.packet.icmpCode), image)
    case .flow:
      flowMatches(
        FlowTest(rawValue: image.u32le(option + OptionRecord.word1)), match.flow, isFragment: match.packet.isFragment)
    case .content, nil: false
    }
  }

  private static func flagsMatch(_ option: Int, _ flags: UInt8, _ image: RawSpan) -> Bool {
    let wanted = image.u8(option + OptionRecord.small2)
    let set = flags & ~UInt8(truncatingIfNeeded: image.u32le(option + OptionRecord.word1))
    return switch TCPFlagsTest.Mode(rawValue: image.u8(option + OptionRecord.small1)) {
    case .exactly: set == wanted
    case .all: set & wanted == wanted
    case .any: set & wanted != 0
    case .some(.none): set & wanted == 0
    case .notAll: set & wanted != wanted
    case nil: false
    }
  }

  private static func numberMatches(_ option: Int, _ value: UInt32, _ image: RawSpan) -> Bool {
    let isInside =
      image.u32le(option + OptionRecord.word1) <= value && value <= image.u32le(option + OptionRecord.word2)
    return isInside != (image.u8(option + OptionRecord.flags) & OptionRecord.isNegated != 0)
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

  // MARK: Acting

  /// Does what a rule that matched says. True: no later rule is to be compared.
  private mutating func act(
    _ rule: Int, _ record: Int, _ match: PacketMatch, _ payload: RawSpan, _ image: RawSpan,
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
    if flags & RuleRecord.isSilent == 0, admits(image.u32le(record + RuleRecord.threshold), record, match, image) {
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
