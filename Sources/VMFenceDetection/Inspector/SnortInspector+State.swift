import VMFenceCore
import VMFencePackets

/// Tests of what is remembered, and changes to it.
extension SnortInspector {
  mutating func stateMatches(_ kind: StateKind, _ option: Int, _ match: borrowing PacketMatch, _ image: RawSpan) -> Bool
  {
    let small1 = image.u8(option + OptionRecord.small1)
    let small2 = image.u8(option + OptionRecord.small2)
    let word = image.u32le(OptionRecord.word(option, 0))
    switch kind {
    case .flow: return Self.flowMatches(FlowTest(rawValue: word), match, needsFlow: small1 == 1)
    case .flowBits:
      guard let need = FlowBitsTest.Need(rawValue: small1), let owner = owner(match) else { return false }
      return bitsMatch(need, BitList(option, 0, image), owner, image)
    case .flowInteger: return integerMatches(option, match, image)
    case .hostBit:
      guard let side = HostSide(rawValue: small1) else { return false }
      let name = image.u64le(OptionRecord.word(option, 0))
      return side.matches(match.packet) { bits.isSet(name, of: $0, at: match.timestamp) == (small2 == 1) }
    case .flowAge:
      guard let flow = match.flow else { return false }
      let age = (match.timestamp.nanoseconds / 1_000_000_000) - (flows[flow.place].firstSeen / 1_000_000_000)
      return NumberRecord.matches(option, UInt64(max(0, age)), image)
    case .flowCount:
      guard let flow = match.flow, let side = FlowSide(rawValue: small2) else { return false }
      let counts = flows[flow.place].counts
      let isPackets = small1 == FlowCount.packets.rawValue
      return side.matches(
        client: isPackets ? UInt64(counts.clientPackets) : counts.clientBytes,
        server: isPackets ? UInt64(counts.serverPackets) : counts.serverBytes
      ) { NumberRecord.matches(option, $0, image) }
    case .streamSize:
      guard let flow = match.flow, match.isTCP, let side = FlowSide(rawValue: small2) else { return false }
      let (client, server) = flows[flow.place].sequenceSizes
      return side.matches(client: client, server: server) { NumberRecord.matches(option, $0, image) }
    case .elephant:
      guard let flow = match.flow, let side = FlowSide(rawValue: small2) else { return false }
      let marks = flows[flow.place].marks
      let (client, server) = (marks.contains(.clientIsElephant), marks.contains(.serverIsElephant))
      return side.matches(client: client ? 1 : 0, server: server ? 1 : 0) { $0 == 1 }
    case .addresses:
      guard let side = HostSide(rawValue: small1) else { return false }
      let header = matching.header
      return side.matches(match.packet) { header.hasAddress(word, $0.first, image) }
    case .tcpSession:
      guard let flow = match.flow, match.isTCP else { return false }
      return flows[flow.place].session.phase.rawValue == small1
    case .variable:
      guard let scope = CaptureScope(rawValue: small1), let owner = captureOwner(scope, match) else { return false }
      let start = matching.sections[.patterns].offset + Int(image.u32le(OptionRecord.word(option, 2)))
      let isThere = matching.payloads.captured.holds(
        owner, image.u64le(OptionRecord.word(option, 0)),
        pattern: start..<start + Int(image.u32le(OptionRecord.word(option, 3))), in: image)
      guard let isThere else { return false }
      return isThere == (image.u8(option + OptionRecord.flags) & OptionRecord.isNegated == 0)
    case .streamEvent:
      return !match.isStream && EventRecord.contains(option, image) { match.events.contains($0) }
    }
  }

  private static func flowMatches(_ test: FlowTest, _ match: borrowing PacketMatch, needsFlow: Bool) -> Bool {
    if test.contains(.notFragment), match.packet.isFragment { return false }
    if test.contains(.onlyFragment), !match.packet.isFragment { return false }
    if test.contains(.notStream), match.isStream { return false }
    if test.contains(.onlyStream), !match.isStream { return false }
    guard let flow = match.flow else {
      let aboutFlow: FlowTest = [.toServer, .toClient, .established]
      return test.isDisjoint(with: needsFlow ? aboutFlow.union([.notEstablished, .stateless]) : aboutFlow)
    }
    if test.contains(.toServer), !flow.toServer { return false }
    if test.contains(.toClient), flow.toServer { return false }
    if test.contains(.established), !flow.isEstablished { return false }
    if test.contains(.notEstablished), flow.isEstablished { return false }
    return true
  }

  /// nil: the packet belongs to no flow.
  private func owner(_ match: borrowing PacketMatch) -> FlowVariables.Owner? {
    match.flow.map { FlowVariables.Owner(place: $0.place, identity: flows[$0.place].identity) }
  }

  /// Whose captured values a packet can ask for.
  private func captureOwner(_ scope: CaptureScope, _ match: borrowing PacketMatch) -> UInt64? {
    scope == .flow ? owner(match)?.identity : counters.packets
  }

  // MARK: Flow bits

  private func bitsMatch(
    _ need: FlowBitsTest.Need, _ list: BitList, _ owner: FlowVariables.Owner, _ image: RawSpan
  ) -> Bool {
    let base = matching.sections[.bitLists].offset
    let wanted = need == .any || need == .none
    // `any` and `none` are decided by a bit that is set, the others by one that is not.
    var isFound = false
    for index in 0..<list.count where !isFound {
      isFound = variables.isSet(list.bit(index, base, image), of: owner) == wanted
    }
    return switch need {
    case .any, .notAll: isFound
    case .all, .none: !isFound
    }
  }

  private mutating func change(
    _ kind: FlowBitsChange.Kind, _ option: Int, _ owner: FlowVariables.Owner, _ image: RawSpan
  ) {
    let base = matching.sections[.bitLists].offset
    if kind == .setAlone {
      let others = BitList(option, 2, image)
      for index in 0..<others.count { variables.set(others.bit(index, base, image), to: false, of: owner) }
    }
    let list = BitList(option, 0, image)
    for index in 0..<list.count {
      let bit = list.bit(index, base, image)
      switch kind {
      case .set, .setAlone: variables.set(bit, to: true, of: owner)
      case .unset: variables.set(bit, to: false, of: owner)
      case .toggle: variables.set(bit, to: !variables.isSet(bit, of: owner), of: owner)
      }
    }
  }

  // MARK: Flow integers

  private func operand(_ option: Int, _ owner: FlowVariables.Owner, _ image: RawSpan) -> UInt32? {
    let word = image.u32le(OptionRecord.word(option, 1))
    guard image.u8(option + OptionRecord.flags) & OperandFlags.isVariable != 0 else { return word }
    return variables.integer(Int(word), of: owner)
  }

  private func integerMatches(_ option: Int, _ match: borrowing PacketMatch, _ image: RawSpan) -> Bool {
    guard let owner = owner(match),
      let comparison = FlowIntegerTest.Comparison(rawValue: image.u8(option + OptionRecord.small1))
    else { return false }
    let value = variables.integer(Int(image.u32le(OptionRecord.word(option, 0))), of: owner)
    switch comparison {
    case .isSet: return value != nil
    case .isNotSet: return value == nil
    default: break
    }
    guard let value, let operand = operand(option, owner, image) else { return false }
    return switch comparison {
    case .less: value < operand
    case .lessOrEqual: value <= operand
    case .equal: value == operand
    case .notEqual: value != operand
    case .greaterOrEqual: value >= operand
    case .greater: value > operand
    case .isSet, .isNotSet: false
    }
  }

  /// An integer that was not set counts as 0 when something is added to it; nothing over- or underflows.
  private mutating func changeInteger(_ option: Int, _ owner: FlowVariables.Owner, _ image: RawSpan) {
    let index = Int(image.u32le(OptionRecord.word(option, 0)))
    guard let operand = operand(option, owner, image) else { return }
    let value = variables.integer(index, of: owner)
    switch FlowIntegerChange.Kind(rawValue: image.u8(option + OptionRecord.small1)) {
    case .assign: variables.setInteger(index, to: operand, of: owner)
    case .add:
      let (sum, overflow) = (value ?? 0).addingReportingOverflow(operand)
      if !overflow { variables.setInteger(index, to: sum, of: owner) }
    case .subtract:
      if let value, value >= operand { variables.setInteger(index, to: value - operand, of: owner) }
    case nil: break
    }
  }

  // MARK: Effects

  /// Whether a rule that matched is told of, by its own account.
  enum Telling { case byAction, never, always }

  /// Does what the rule at `record` does when all of it matched.
  mutating func applyEffects(_ record: Int, _ match: borrowing PacketMatch, _ image: RawSpan) -> Telling {
    var telling = Telling.byAction
    if matching.payloads.captured.pendingCount > 0 {
      matching.payloads.captured.keepPending(flow: owner(match)?.identity, packet: counters.packets)
    }
    let count = Int(image.u16le(record + RuleRecord.effectCount))
    let skipped =
      Int(image.u16le(record + RuleRecord.conditionCount)) + Int(image.u16le(record + RuleRecord.payloadCount))
    let first =
      matching.sections[.options].offset
      + (Int(image.u32le(record + RuleRecord.optionsStart)) + skipped) * OptionRecord.stride
    for index in 0..<count {
      let option = first + index * OptionRecord.stride
      let small1 = image.u8(option + OptionRecord.small1)
      switch EffectKind(rawValue: image.u8(option + OptionRecord.kind)) {
      case .noAlert: telling = .never
      case .alert: if telling == .byAction { telling = .always }
      case .bypass: if let flow = match.flow { flows[flow.place].marks.insert(.isBypassed) }
      case .flowBits:
        if let owner = owner(match), let kind = FlowBitsChange.Kind(rawValue: small1) {
          change(kind, option, owner, image)
        }
      case .flowInteger: if let owner = owner(match) { changeInteger(option, owner, image) }
      case .hostBit: changeHostBit(option, match, image)
      case .tag: tag(option, record, match, image)
      case .reassembly:
        if let side = FlowSide(rawValue: small1) {
          setReassembly(side, isOn: image.u8(option + OptionRecord.small2) == 1, match)
        }
      case nil: break
      }
    }
    return telling
  }

  /// What is buffered already is inspected all the same: a window of it may be what matched.
  private mutating func setReassembly(_ side: FlowSide, isOn: Bool, _ match: borrowing PacketMatch) {
    guard let place = match.flow?.place, match.isTCP else { return }
    for ofClient in [true, false] where side != (ofClient ? .server : .client) {
      var marks = flows[place].session[ofClient: ofClient].stream.marks
      if !isOn {
        marks.insert(.isOff)
        marks.remove(.beginsAnew)
      } else if marks.contains(.isOff) {
        marks.insert(.beginsAnew)
      }
      flows[place].session[ofClient: ofClient].stream.marks = marks
    }
  }

  /// Begins to log what follows.
  private mutating func tag(_ option: Int, _ record: Int, _ match: borrowing PacketMatch, _ image: RawSpan) {
    var subject = TagTable.Subject()
    switch TagEffect.Subject(rawValue: image.u8(option + OptionRecord.small1)) {
    case .session:
      guard let owner = owner(match) else { return }
      subject.flow = owner.identity
    case .source: subject.host = match.packet.source
    case .destination: subject.host = match.packet.destination
    case nil: return
    }
    tags.add(
      subject,
      rule: UInt64(image.u32le(record + RuleRecord.gid)) << 32 | UInt64(image.u32le(record + RuleRecord.sid)),
      packets: image.u32le(OptionRecord.word(option, 0)),
      bytes: image.u32le(OptionRecord.word(option, 1)), seconds: image.u32le(OptionRecord.word(option, 2)),
      at: match.timestamp.nanoseconds)
  }

  /// Whether a packet is logged because an earlier one matched.
  mutating func noteTags(_ match: borrowing PacketMatch, _ count: Int, into output: inout InspectionOutput) {
    let now = match.timestamp.nanoseconds
    tags.sweep(at: now)
    var isLogged = tags.take(TagTable.Subject(host: match.packet.source), bytes: count, at: now)
    if match.packet.destination != match.packet.source,
      tags.take(TagTable.Subject(host: match.packet.destination), bytes: count, at: now)
    {
      isLogged = true
    }
    if let owner = owner(match), tags.take(TagTable.Subject(flow: owner.identity), bytes: count, at: now) {
      isLogged = true
    }
    guard isLogged, !output.isTagged else { return }
    output.isTagged = true
    counters.tagged += 1
  }

  private mutating func changeHostBit(_ option: Int, _ match: borrowing PacketMatch, _ image: RawSpan) {
    guard let side = HostSide(rawValue: image.u8(option + OptionRecord.small1)),
      let kind = HostBitChange.Kind(rawValue: image.u8(option + OptionRecord.small2))
    else { return }
    let name = image.u64le(OptionRecord.word(option, 0))
    let lifetime = Int64(image.u32le(OptionRecord.word(option, 2))) * 1_000_000_000
    let (first, second) = side.subjects(match.packet)
    for subject in [first, second] {
      guard let subject else { continue }
      switch kind {
      case .set: bits.set(name, of: subject, at: match.timestamp, lifetime: lifetime)
      case .unset: bits.unset(name, of: subject)
      case .toggle:
        if bits.isSet(name, of: subject, at: match.timestamp) {
          bits.unset(name, of: subject)
        } else {
          bits.set(name, of: subject, at: match.timestamp, lifetime: lifetime)
        }
      }
    }
  }
}

/// Bits that an option names: start and count in `bitLists`.
private struct BitList {
  let start: Int
  let count: Int

  init(_ option: Int, _ word: Int, _ image: RawSpan) {
    start = Int(image.u32le(OptionRecord.word(option, word)))
    count = Int(image.u32le(OptionRecord.word(option, word + 1)))
  }

  func bit(_ index: Int, _ base: Int, _ image: RawSpan) -> Int { Int(image.u32le(base + (start + index) * 4)) }
}

extension HostSide {
  /// One subject, or two of which `either` or `both` have to be looked at.
  fileprivate func subjects(_ packet: DecodedPacket) -> (HostBits.Subject?, HostBits.Subject?) {
    switch self {
    case .source: (HostBits.Subject(host: packet.source), nil)
    case .destination: (HostBits.Subject(host: packet.destination), nil)
    case .either, .both: (HostBits.Subject(host: packet.source), HostBits.Subject(host: packet.destination))
    case .pair: (HostBits.Subject(packet.source, packet.destination), nil)
    }
  }

  fileprivate func matches(_ packet: DecodedPacket, _ test: (HostBits.Subject) -> Bool) -> Bool {
    let (first, second) = subjects(packet)
    let isFirst = first.map(test) ?? true
    guard let second else { return isFirst }
    return self == .either ? isFirst || test(second) : isFirst && test(second)
  }
}

extension FlowSide {
  /// nil: not known.
  fileprivate func matches(client: UInt64?, server: UInt64?, _ test: (UInt64) -> Bool) -> Bool {
    let (isClient, isServer) = (client.map(test) ?? false, server.map(test) ?? false)
    return switch self {
    case .client: isClient
    case .server: isServer
    case .either: isClient || isServer
    case .both: isClient && isServer
    }
  }
}
