import VMFenceCore
import VMFencePackets

extension SnortInspector {
  // MARK: Candidates

  /// Compares the packet, or the window of a stream, with the rules that want it. What those that match say is done by `settle`.
  ///
  /// - `payload`: the packet's payload, or the window.
  /// - `frame`: all bytes of `match.packet`.
  mutating func evaluate(
    _ match: borrowing PacketMatch, _ payload: RawSpan, frame: RawSpan, image: RawSpan,
    into output: inout InspectionOutput
  ) {
    let (first, second) = match.packetClasses
    if match.searched > 0 {
      found.forEach { matching.candidates.insert(Int($0)) }
      findCandidates(first, match, payload.extracting(match.searched..<payload.byteCount), image)
    } else {
      findCandidates(first, match, payload, image)
      if let second { findCandidates(second, match, payload, image) }
    }
    evaluateCandidates(match, payload, frame, image, into: &output)
  }

  /// Collects the rules of a class that this packet has to be compared with.
  private mutating func findCandidates(
    _ packetClass: PacketClass, _ match: borrowing PacketMatch, _ payload: RawSpan, _ image: RawSpan
  ) {
    let record = matching.sections[.classes].offset + packetClass.rawValue * ClassRecord.stride
    let anyPort = image.u32le(record + ClassRecord.anyPort)
    if anyPort != noIndex { search(Int(anyPort), match, payload, image) }
    let destination = group(image.u32le(record + ClassRecord.destinationPages), match.packet.destinationPort, image)
    if destination != noGroup { search(Int(destination), match, payload, image) }
    let wide = group(image.u32le(record + ClassRecord.widePages), match.packet.destinationPort, image)
    if wide != noGroup { search(Int(wide), match, payload, image) }
    let source = group(image.u32le(record + ClassRecord.sourcePages), match.packet.sourcePort, image)
    if source != noGroup, source != destination { search(Int(source), match, payload, image) }
  }

  private func group(_ pages: UInt32, _ port: UInt16, _ image: RawSpan) -> UInt16 {
    guard pages != noIndex else { return noGroup }
    let page = image.u16le(matching.sections[.portPages].offset + (Int(pages) + Int(port >> 8)) * 2)
    return image.u16le(matching.sections[.portGroups].offset + (Int(page) << 8 + Int(port & 0xFF)) * 2)
  }

  /// Of a stream, what is found is put into `found`, too.
  private mutating func search(
    _ group: Int, _ match: borrowing PacketMatch, _ payload: RawSpan, _ image: RawSpan
  ) {
    let record = matching.sections[.groups].offset + group * GroupRecord.stride
    var direct = image.u32le(record + GroupRecord.directCount)
    if !match.packet.tcpFlags.contains(.syn) { direct -= image.u32le(record + GroupRecord.synCount) }
    insertList(image.u32le(record + GroupRecord.directStart), direct, image)
    let remembers = match.isStream
    guard payload.byteCount > 0 else { return }
    let patterns = image.u32le(record + GroupRecord.patternCount)
    let first = Int(image.u32le(record + GroupRecord.patternStart))
    let runs = Int(image.u32le(record + GroupRecord.runCount))
    if runs > 0 { searchRuns(first + Int(patterns), runs, payload, image, remembers: remembers) }
    guard patterns > 0 else { return }
    switch matching.scanner.scan(group, payload) {
    case .hits(let count):
      for index in 0..<count {
        let pattern = matching.scanner.hit(index)
        if pattern < patterns { insertRules(ofPattern: first + pattern, image, remembers: remembers) }
      }
    case .everything:
      // Nothing is missed for the want of room: all rules of the group are compared.
      counters.scanOverflows += 1
      for pattern in 0..<Int(patterns) { insertRules(ofPattern: first + pattern, image, remembers: false) }
      found.noteMore()
    }
  }

  /// `first`: the first pattern of those that are runs; there are `count`, the longest first.
  private mutating func searchRuns(
    _ first: Int, _ count: Int, _ payload: RawSpan, _ image: RawSpan, remembers: Bool
  ) {
    let records = matching.sections[.groupPatterns].offset
    func length(_ pattern: Int) -> Int {
      Int(image.u32le(records + pattern * GroupPatternRecord.stride + GroupPatternRecord.patternLength))
    }
    let shortest = length(first + count - 1)
    var position = 0
    // Each is told once, however many runs there are.
    var told: UInt64 = 0
    while let run = RunSearch.next(in: payload, from: position, atLeast: shortest) {
      position = run.upperBound
      let byte = payload.u8(run.lowerBound)
      var index = count - 1
      while index >= 0, length(first + index) <= run.count {
        let record = records + (first + index) * GroupPatternRecord.stride
        let start = matching.sections[.patterns].offset + Int(image.u32le(record + GroupPatternRecord.patternOffset))
        if image.u8(start) == byte, told >> UInt64(index) & 1 == 0 {
          told |= 1 << UInt64(index)
          insertRules(ofPattern: first + index, image, remembers: remembers)
        }
        index -= 1
      }
    }
  }

  private mutating func insertRules(ofPattern pattern: Int, _ image: RawSpan, remembers: Bool) {
    let record = matching.sections[.groupPatterns].offset + pattern * GroupPatternRecord.stride
    let start = image.u32le(record + GroupPatternRecord.rulesStart)
    let count = image.u32le(record + GroupPatternRecord.rulesCount)
    insertList(start, count, image)
    guard remembers else { return }
    guard count <= FoundRules.capacity else { return found.noteMore() }
    let list = matching.sections[.ruleLists].offset + Int(start) * 4
    for index in 0..<Int(count) { found.insert(image.u32le(list + index * 4)) }
  }

  private mutating func insertList(_ start: UInt32, _ count: UInt32, _ image: RawSpan) {
    let list = matching.sections[.ruleLists].offset + Int(start) * 4
    for index in 0..<Int(count) { matching.candidates.insert(Int(image.u32le(list + index * 4))) }
  }

  // MARK: Evaluation

  /// Compares the candidates in order.
  private mutating func evaluateCandidates(
    _ match: borrowing PacketMatch, _ payload: RawSpan, _ frame: RawSpan, _ image: RawSpan,
    into output: inout InspectionOutput
  ) {
    if matching.candidates.isEmpty { return }
    var owes = match.flow.map { flows[$0.place].marks.contains(.owes) } ?? false
    var owed = WorkDebts()
    if owes, let flow = match.flow { owed = debts[flow.place] }
    owed.begin(generation)
    var (budget, work) = (Self.workLimit, 0)
    var (isLimited, isLimitedByFlow) = (false, false)
    matching.payloads.packet = match.packet
    let key = HeaderKey(match)
    let tcpFlags = UInt16(match.packet.tcpFlags.rawValue)
    let records = matching.sections[.rules].offset
    while let rule = matching.candidates.popFirst() {
      let record = records + rule * RuleRecord.stride
      // Most rules without a content are about flags that few packets have.
      let flags = image.u16le(record + RuleRecord.tcpFlags)
      if flags & 0xFF & ~tcpFlags | flags >> 8 & tcpFlags != 0 { continue }
      if matching.isSecondLook, !asksForVariables(record, image) || findings.contains(rule) { continue }
      guard isAwake(rule, image.u8(record + RuleRecord.action)), isDue(image.u8(record + RuleRecord.moreFlags), match)
      else { continue }
      let header = Int(image.u32le(record + RuleRecord.header))
      guard matching.header.matches(header, key, image) else { continue }
      let left = max(budget, Self.ruleAllowance)
      let own = owes ? min(left, max(Self.workLimit - owed.debt(of: rule), Self.ruleAllowance)) : left
      matching.payloads.budget = own
      let start = matching.profile.start()
      let isMatch = windowMatches(record, match, payload, frame, image)
      matching.profile.note(rule, since: start, isMatch)
      if matching.payloads.budget < 0 {
        isLimited = true
        if own < left { isLimitedByFlow = true }
      }
      let spent = own - max(matching.payloads.budget, 0)
      work += spent
      budget -= spent
      if spent > Self.ruleAllowance {
        owed.charge(spent, to: rule)
        owes = true
      }
      guard isMatch else { continue }
      find(rule, record, applyEffects(record, match, image), match, payload, frame, image, into: &output)
    }
    counters.work &+= UInt64(work)
    if isLimited {
      counters.workLimitHits += 1
      if isLimitedByFlow { counters.flowWorkLimitHits += 1 }
    }
    guard owes, let flow = match.flow else { return }
    owed.pay()
    setDebts(owed, of: flow.place)
  }

  private func asksForVariables(_ record: Int, _ image: RawSpan) -> Bool {
    let start =
      matching.sections[.options].offset + Int(image.u32le(record + RuleRecord.optionsStart)) * OptionRecord.stride
    return (0..<Int(image.u16le(record + RuleRecord.conditionCount))).contains {
      let kind = image.u8(start + $0 * OptionRecord.stride + OptionRecord.kind)
      return kind == StateKind.flowBits.rawValue || kind == StateKind.flowInteger.rawValue
        || kind == StateKind.variable.rawValue
    }
  }

  private func isAwake(_ rule: Int, _ action: UInt8) -> Bool {
    action != RuleAction.dynamic.rawValue || matching.remaining[rule] > 0
  }

  /// Whether a rule looks at this packet at all.
  private func isDue(_ flags: UInt8, _ match: borrowing PacketMatch) -> Bool {
    if match.isMalformed, flags & RuleRecord.seesMalformed == 0 { return false }
    if match.hasBadChecksum, flags & RuleRecord.seesBadChecksums == 0 { return false }
    guard flags & RuleRecord.isOncePerDirection != 0, let flow = match.flow else { return true }
    return !match.isStream
      && !flows[flow.place].marks.contains(flow.toServer ? .clientAddressesSeen : .serverAddressesSeen)
  }

  /// Whether the rule matches with bytes that were not inspected before: in the new ones alone, or in the window as a whole though not in
  /// the old ones alone.
  private mutating func windowMatches(
    _ record: Int, _ match: borrowing PacketMatch, _ payload: RawSpan, _ frame: RawSpan, _ image: RawSpan
  ) -> Bool {
    guard match.fresh > 0 else { return optionsMatch(record, match, payload, frame, image) }
    let fresh = payload.extracting(match.fresh..<payload.byteCount)
    if optionsMatch(record, match, fresh, at: match.fresh, frame, image) { return true }
    guard image.u8(record + RuleRecord.flags) & RuleRecord.isAnchored == 0,
      optionsMatch(record, match, payload, frame, image)
    else { return false }
    let captures = matching.payloads.captured.pendingCount > 0
    guard !optionsMatch(record, match, payload.extracting(0..<match.fresh), frame, image) else { return false }
    // What was captured is that of the whole.
    return !captures || optionsMatch(record, match, payload, frame, image)
  }

  /// `payload`: the payload or window, or a part of it that begins at `start`.
  private mutating func optionsMatch(
    _ record: Int, _ match: borrowing PacketMatch, _ payload: RawSpan, at start: Int = 0, _ frame: RawSpan,
    _ image: RawSpan
  ) -> Bool {
    matching.payloads.captured.forgetPending()
    let conditions = Int(image.u16le(record + RuleRecord.conditionCount))
    let first =
      matching.sections[.options].offset + Int(image.u32le(record + RuleRecord.optionsStart)) * OptionRecord.stride
    for index in 0..<conditions {
      let option = first + index * OptionRecord.stride
      let number = image.u8(option + OptionRecord.kind)
      if let kind = HeaderKind(rawValue: number) {
        guard headerMatches(kind, option, match, payload.byteCount, frame, image) else { return false }
      } else if let kind = StateKind(rawValue: number) {
        guard stateMatches(kind, option, match, image) else { return false }
      }
    }
    let payloads = Int(image.u16le(record + RuleRecord.payloadCount))
    return payloads == 0
      || payloadMatches(first + conditions * OptionRecord.stride, record, match, payload, at: start, frame, image)
  }
}
