import VMFenceCore
import VMFencePackets

/// Saving what the engine remembers.
///
/// Format, little-endian: "VMFSTATE"; version (u32); 0 (u32); FNV-1a of what follows (u64; against damage, not against
/// somebody); when it was saved (i64). Then, each entry after a 1 and each list ended by a 0: flows, rates, host bits,
/// `dynamic` rules, datagrams, from version 2 on tags and what flows captured, and from version 3 on what rules changed in data
/// sets. Before the flows stand the names of bits and integers, which flows name by number; the other lists name a flow by its
/// number in this state. Times are ages at the moment of saving. Rules are named by generator and signature, captured values by
/// the hash of their variable's name. What `stream.overlap-limit` and its like count begins anew.
extension SnortInspector {
  static let stateMagic = Array("VMFSTATE".utf8)
  static let stateVersion: UInt32 = 3
  static let stateHeaderLength = 24

  public func saveState(at now: Timestamp, limit: Int) -> SavedEngineState {
    let clock = StateClock(now: now.nanoseconds)
    // The head counts, too: a state that is longer than there is room for is lost as a whole.
    var writer = ByteWriter()
    var counts = StateCounts()
    writer.append(Self.stateMagic)
    writer.u32(Self.stateVersion)
    writer.u32(0)
    writer.u64(0)
    writer.i64(now.nanoseconds)
    saveNames(limit, &writer)
    // A quarter is for what is not about flows.
    let places = saveFlows(clock, limit - limit / 4, &writer, &counts)
    var numbers: [UInt64: Int] = [:]
    for (number, place) in places.enumerated() { numbers[flows[place].identity] = number }
    saveRates(clock, limit, numbers, &writer, &counts)
    saveHostBits(clock, limit, &writer, &counts)
    saveDynamicRules(&writer)
    saveDatagrams(clock, limit, &writer, &counts)
    saveTags(clock, limit, numbers, &writer, &counts)
    saveCaptures(limit, numbers, &writer, &counts)
    matching.payloads.dataSets.save(limit: limit, into: &writer, &counts)
    writer.setU64(Self.checksum(writer.bytes[Self.stateHeaderLength...]), at: Self.stateHeaderLength - 8)
    return SavedEngineState(bytes: writer.bytes, report: counts.report)
  }

  /// FNV-1a, 64 bits.
  static func checksum(_ bytes: ArraySlice<UInt8>) -> UInt64 {
    bytes.reduce(0xCBF2_9CE4_8422_2325 as UInt64) { ($0 ^ UInt64($1)) &* 0x0000_0100_0000_01B3 }
  }

  private func saveNames(_ limit: Int, _ writer: inout ByteWriter) {
    for section in [ImageSection.flowBits, .flowIntegers] {
      let names = rules.names(section)
      writer.u32(UInt32(names.count))
      for name in names { writer.name(name) }
    }
  }

  // MARK: Flows

  /// Those that matter most first. Returns the place of each that was saved, in order.
  private func saveFlows(
    _ clock: StateClock, _ limit: Int, _ writer: inout ByteWriter, _ counts: inout StateCounts
  ) -> [Int] {
    var order: [[Int]] = Array(repeating: [], count: Flow.worthLimit)
    for place in 0..<flows.usedEnd where flows.isUsed(place) { order[flows[place].worth].append(place) }
    var saved: [Int] = []
    for place in order.reversed().joined() {
      let flow = flows[place]
      let owner = FlowVariables.Owner(place: place, identity: flow.identity)
      let (client, server) = (flow.session.client.stream, flow.session.server.stream)
      let buffered = streams.savedSize(client) + streams.savedSize(server)
      let room = limit - writer.count - Flow.savedSizeMost - variables.savedSizeMost
      guard room >= 8 else {
        counts.flows.dropped += 1
        continue
      }
      let keepsStreams = buffered <= room
      saved.append(place)
      counts.flows.kept += 1
      if flow.hasBuffers {
        if keepsStreams { counts.streams.kept += 1 } else { counts.streams.dropped += 1 }
      }
      writer.u8(1)
      writer.flow(keepsStreams ? flow : flow.withoutBuffers, clock)
      ruleName(of: flow, &writer)
      variables.save(owner, into: &writer)
      guard flow.isTCP else { continue }
      streams.save(keepsStreams ? client : StreamTrack(), into: &writer)
      streams.save(keepsStreams ? server : StreamTrack(), into: &writer)
    }
    writer.u8(0)
    return saved
  }

  /// The rule whose verdict the flow has; zeros for none of this set.
  private func ruleName(of flow: Flow, _ writer: inout ByteWriter) {
    let isOfThisSet = flow.verdictGeneration == generation && Int(flow.verdictRule) < rules.ruleCount
    writer.u64(isOfThisSet && flow.marks.contains(.isDropped) ? rules.identifier(at: Int(flow.verdictRule)) : 0)
  }

  // MARK: The rest

  /// `numbers`: of the flows that were saved, by their identity.
  private func saveRates(
    _ clock: StateClock, _ limit: Int, _ numbers: [UInt64: Int], _ writer: inout ByteWriter,
    _ counts: inout StateCounts
  ) {
    for index in 0..<RateTable.capacity where rates.entries[index].place != 0 {
      let entry = rates.entries[index]
      let ports = rates.ports(of: index)
      // A flow is named by its number in this state.
      let number = entry.name.isOfFlow ? numbers[entry.name.firstLow] : 0
      guard let number, writer.count + 80 + 2 * ports.count <= limit else {
        counts.rates.dropped += 1
        continue
      }
      counts.rates.kept += 1
      writer.u8(1)
      writer.u64(entry.name.rule)
      writer.u64(entry.name.kinds)
      writer.u64(entry.name.firstHigh)
      writer.u64(entry.name.isOfFlow ? UInt64(number) : entry.name.firstLow)
      writer.u64(entry.name.secondHigh)
      writer.u64(entry.name.secondLow)
      writer.i64(clock.age(entry.windowStart))
      writer.u32(entry.count)
      writer.u32(entry.other)
      writer.flag(entry.isActive)
      writer.u32(UInt32(ports.count))
      for port in ports { writer.u16(port) }
    }
    writer.u8(0)
  }

  private func saveHostBits(
    _ clock: StateClock, _ limit: Int, _ writer: inout ByteWriter, _ counts: inout StateCounts
  ) {
    for index in 0..<HostBits.capacity {
      let entry = bits.entries[index]
      guard entry.name != 0, entry.expires > clock.now else { continue }
      guard writer.count + 64 <= limit else {
        counts.hostBits.dropped += 1
        continue
      }
      counts.hostBits.kept += 1
      writer.u8(1)
      writer.u64(entry.name)
      writer.i64(clock.age(entry.expires))
      writer.flag(entry.subject.isPair)
      writer.address(entry.subject.first)
      writer.address(entry.subject.second)
    }
    writer.u8(0)
  }

  private func saveDynamicRules(_ writer: inout ByteWriter) {
    for rule in matching.dynamicRules where matching.remaining[rule] > 0 {
      writer.u8(1)
      writer.u64(rules.identifier(at: rule))
      writer.u32(matching.remaining[rule])
    }
    writer.u8(0)
  }

  private func saveDatagrams(
    _ clock: StateClock, _ limit: Int, _ writer: inout ByteWriter, _ counts: inout StateCounts
  ) {
    for place in 0..<fragments.datagrams.count where fragments.isWaiting(place) {
      guard writer.count + fragments.savedSize(place) <= limit else {
        counts.datagrams.dropped += 1
        continue
      }
      counts.datagrams.kept += 1
      writer.u8(1)
      fragments.save(place, clock, into: &writer)
    }
    writer.u8(0)
  }

  private func saveTags(
    _ clock: StateClock, _ limit: Int, _ numbers: [UInt64: Int], _ writer: inout ByteWriter,
    _ counts: inout StateCounts
  ) {
    for index in 0..<TagTable.capacity {
      let entry = tags.entries[index]
      guard entry.rule != 0, entry.expires >= clock.now, entry.packets > 0, entry.bytes > 0 else { continue }
      let number = entry.subject.flow == 0 ? 0 : numbers[entry.subject.flow]
      guard let number, writer.count + 64 <= limit else {
        counts.tags.dropped += 1
        continue
      }
      counts.tags.kept += 1
      writer.u8(1)
      writer.u64(entry.rule)
      writer.flag(entry.subject.flow != 0)
      if entry.subject.flow != 0 { writer.u32(UInt32(number)) } else { writer.address(entry.subject.host) }
      writer.u64(entry.packets)
      writer.u64(entry.bytes)
      writer.i64(clock.age(entry.expires))
    }
    writer.u8(0)
  }

  /// What flows captured, the oldest first; what a packet captured is over with it.
  private func saveCaptures(
    _ limit: Int, _ numbers: [UInt64: Int], _ writer: inout ByteWriter, _ counts: inout StateCounts
  ) {
    let indices = (0..<CapturedValues.capacity).filter { matching.payloads.captured.entries[$0].owner != 0 }
      .sorted { matching.payloads.captured.entries[$0].order < matching.payloads.captured.entries[$1].order }
    for index in indices {
      let entry = matching.payloads.captured.entries[index]
      guard let number = numbers[entry.owner] else { continue }
      guard writer.count + 24 + Int(entry.length) <= limit else {
        counts.captures.dropped += 1
        continue
      }
      counts.captures.kept += 1
      writer.u8(1)
      writer.u32(UInt32(number))
      writer.u64(entry.name)
      writer.name((0..<Int(entry.length)).map { entry.bytes[$0] })
    }
    writer.u8(0)
  }
}

/// What came of each kind of thing.
struct StateCounts {
  var flows = EngineStateReport.Item("flows")
  /// Connections with data that waits.
  var streams = EngineStateReport.Item("streams")
  var variables = EngineStateReport.Item("flow variables")
  var rates = EngineStateReport.Item("rates")
  var hostBits = EngineStateReport.Item("host bits")
  var datagrams = EngineStateReport.Item("datagrams")
  var tags = EngineStateReport.Item("tags")
  var captures = EngineStateReport.Item("captured values")
  var dataSets = EngineStateReport.Item("changes of data sets")

  var report: EngineStateReport {
    EngineStateReport([flows, streams, variables, rates, hostBits, datagrams, tags, captures, dataSets])
  }
}

extension Flow {
  /// Worths are below this.
  static let worthLimit = 5
  /// Bytes in a saved state, without variables and what is buffered.
  static let savedSizeMost = 320

  /// As if all that waits had been inspected.
  var withoutBuffers: Flow {
    var flow = self
    flow.session.client.stream.forgetBuffer()
    flow.session.server.stream.forgetBuffer()
    return flow
  }
}

extension StreamTrack {
  fileprivate mutating func forgetBuffer() {
    block = 0
    base = inspected
    chunkStart = inspected
  }
}

extension FlowVariables {
  /// Bytes of one flow's in a saved state.
  var savedSizeMost: Int { 8 + shape.bits * 4 + shape.integers * 8 }

  func save(_ owner: Owner, into writer: inout ByteWriter) {
    let set = (0..<shape.bits).filter { isSet($0, of: owner) }
    writer.u32(UInt32(set.count))
    for bit in set { writer.u32(UInt32(bit)) }
    let values = (0..<shape.integers).compactMap { index in integer(index, of: owner).map { (index, $0) } }
    writer.u32(UInt32(values.count))
    for (index, value) in values {
      writer.u32(UInt32(index))
      writer.u32(value)
    }
  }
}
