import VMFenceCore
import VMFencePackets

/// Restoring what an engine remembered. All of it is read into new tables, which take the place of the old ones at the end.
extension SnortInspector {
  public mutating func restoreState(
    _ bytes: [UInt8], at now: Timestamp?
  ) throws(EngineStateError) -> EngineStateReport {
    let version = try Self.checkHeader(bytes)
    var reader = StateReader(Array(bytes[Self.stateHeaderLength...]))
    let saved = try reader.i64()
    let clock = StateClock(now: now?.nanoseconds ?? saved)
    var counts = StateCounts()

    let names = RestoredNames(bits: try Self.names(&reader), integers: try Self.names(&reader), rules)
    var flows = FlowTable(
      capacity: configuration.flowCapacity, key: configuration.hashKey, timeouts: settings.timeouts)
    var streams = StreamStore(memory: settings.streamMemory, key: configuration.hashKey)
    var variables = FlowVariables(rules.variableShape, places: flows.places)
    var identities: [UInt64] = []
    while try reader.flag() {
      identities.append(
        try restoreFlow(names, clock, &reader, into: &flows, &streams, &variables, &counts))
    }
    let rates = try restoreRates(names, identities, clock, &reader, &counts)
    let bits = try restoreHostBits(clock, &reader, &counts)
    let remaining = try restoreDynamicRules(names, &reader)
    var fragments = FragmentStore(settings, key: configuration.hashKey)
    var datagrams = 0
    while try reader.flag() {
      datagrams += 1
      _ = try fragments.restore(clock, from: &reader)
    }
    counts.datagrams.kept = fragments.waiting
    counts.datagrams.dropped = datagrams - fragments.waiting
    var tags = TagTable(key: configuration.hashKey)
    var captured = CapturedValues(key: configuration.hashKey)
    if version >= 2 {
      try restoreTags(names, identities, clock, &reader, into: &tags, &counts)
      try restoreCaptures(identities, &reader, into: &captured, &counts)
    }
    // SAFETY: the image is valid for its length as long as `rules` holds it, which outlasts this call.
    let image = unsafe UnsafeRawBufferPointer(start: rules.image.baseAddress, count: rules.image.byteCount).bytes
    var dataSets = DataSetStore(matching.sections, image, key: configuration.hashKey)
    if version >= 3 { try dataSets.restore(from: &reader, image, &counts) }
    guard reader.isAtEnd else { throw StateReader.damaged("something follows its end") }

    self.flows = flows
    self.streams = streams
    self.variables = variables
    self.rates = rates
    self.bits = bits
    self.fragments = fragments
    self.tags = tags
    matching.payloads.captured = captured
    matching.payloads.dataSets = dataSets
    matching.remaining = remaining
    finishPlace = 0
    return counts.report
  }

  /// Returns the version.
  private static func checkHeader(_ bytes: [UInt8]) throws(EngineStateError) -> UInt32 {
    guard bytes.count > stateHeaderLength, Array(bytes[..<8]) == stateMagic else {
      throw EngineStateError(
        .unknownFormat, "this is no saved state of the engine", remedy: "name a file that was saved as one")
    }
    var header = StateReader(Array(bytes[8..<stateHeaderLength]))
    let (version, reserved, checksum) = (try header.u32(), try header.u32(), try header.u64())
    guard (1...stateVersion).contains(version), reserved == 0 else {
      throw EngineStateError(
        .unknownFormat, "the saved state has version \(version), this engine reads those up to \(stateVersion)",
        remedy: "restore with a version that is not older, or start without a saved state")
    }
    guard Self.checksum(bytes[stateHeaderLength...]) == checksum else {
      throw StateReader.damaged("its checksum is another")
    }
    return version
  }

  private static func names(_ reader: inout StateReader) throws(EngineStateError) -> [[UInt8]] {
    var names: [[UInt8]] = []
    for _ in 0..<(try reader.count(of: 2)) { names.append(try reader.text()) }
    return names
  }

  // MARK: Flows

  /// Returns its identity here; 0 when it was dropped.
  private func restoreFlow(
    _ names: RestoredNames, _ clock: StateClock, _ reader: inout StateReader, into flows: inout FlowTable,
    _ streams: inout StreamStore, _ variables: inout FlowVariables, _ counts: inout StateCounts
  ) throws(EngineStateError) -> UInt64 {
    var flow = try reader.flow(clock)
    if let rule = names.rules[try reader.u64()] {
      flow.verdictRule = rule
      flow.verdictGeneration = generation
    }
    let place = flows.adopt(flow)
    if place == nil { counts.flows.dropped += 1 } else { counts.flows.kept += 1 }
    let owner = place.map { FlowVariables.Owner(place: $0, identity: flows[$0].identity) }
    for _ in 0..<(try reader.count(of: 4)) {
      let bit = try names.number(try reader.u32(), in: names.bits)
      if let owner, let bit {
        variables.set(bit, to: true, of: owner)
        counts.variables.kept += 1
      } else {
        counts.variables.dropped += 1
      }
    }
    for _ in 0..<(try reader.count(of: 8)) {
      let integer = try names.number(try reader.u32(), in: names.integers)
      let value = try reader.u32()
      if let owner, let integer {
        variables.setInteger(integer, to: value, of: owner)
        counts.variables.kept += 1
      } else {
        counts.variables.dropped += 1
      }
    }
    guard flow.isTCP else { return owner?.identity ?? 0 }
    var (client, server) = (flow.session.client.stream, flow.session.server.stream)
    let wasKept = (try streams.restore(&client, from: &reader), try streams.restore(&server, from: &reader))
    guard let place else {
      streams.releaseAll(&client)
      streams.releaseAll(&server)
      return 0
    }
    let share = streams.share(of: flows[place].peer)
    streams.setOwner(client, place, share: share)
    streams.setOwner(server, place, share: share)
    flows[place].session.client.stream = client
    flows[place].session.server.stream = server
    if !wasKept.0 || !wasKept.1 {
      counts.streams.dropped += 1
    } else if flows[place].hasBuffers {
      counts.streams.kept += 1
    }
    return owner?.identity ?? 0
  }

  // MARK: The rest

  private func restoreRates(
    _ names: RestoredNames, _ identities: [UInt64], _ clock: StateClock, _ reader: inout StateReader,
    _ counts: inout StateCounts
  ) throws(EngineStateError) -> RateTable {
    var rates = RateTable(key: configuration.hashKey)
    while try reader.flag() {
      var name = RateTable.Name(
        rule: try reader.u64(), kinds: try reader.u64(), firstHigh: try reader.u64(), firstLow: try reader.u64(),
        secondHigh: try reader.u64(), secondLow: try reader.u64())
      let entry = (start: clock.time(try reader.i64()), count: try reader.u32(), other: try reader.u32())
      let isActive = try reader.flag()
      var ports: [UInt16] = []
      for _ in 0..<(try reader.count(of: 2)) { ports.append(try reader.u16()) }
      var isKnown = names.rules[name.rule] != nil
      if name.isOfFlow {
        guard name.firstLow < UInt64(identities.count) else { throw StateReader.damaged("a rate of no flow") }
        name.firstLow = identities[Int(name.firstLow)]
        isKnown = isKnown && name.firstLow != 0
      }
      let isKept =
        isKnown
        && rates.adopt(
          RateTable.Entry(
            name: name, place: 0, windowStart: entry.start, count: entry.count, other: entry.other, isActive: isActive,
            ports: 0), ports: ports)
      if isKept { counts.rates.kept += 1 } else { counts.rates.dropped += 1 }
    }
    return rates
  }

  private func restoreHostBits(
    _ clock: StateClock, _ reader: inout StateReader, _ counts: inout StateCounts
  ) throws(EngineStateError) -> HostBits {
    var bits = HostBits(key: configuration.hashKey)
    let known = rules.hostBitNames
    while try reader.flag() {
      let name = try reader.u64()
      let expires = clock.time(try reader.i64())
      let isPair = try reader.flag()
      let (first, second) = (try reader.address(), try reader.address())
      guard known.contains(name) else {
        counts.hostBits.dropped += 1
        continue
      }
      counts.hostBits.kept += 1
      bits.adopt(
        HostBits.Entry(
          name: name, expires: expires,
          subject: isPair ? HostBits.Subject(first, second) : HostBits.Subject(host: first)),
        at: Timestamp(nanoseconds: clock.now))
    }
    counts.hostBits.kept -= Int(bits.evicted)
    counts.hostBits.dropped += Int(bits.evicted)
    return bits
  }

  private func restoreDynamicRules(
    _ names: RestoredNames, _ reader: inout StateReader
  ) throws(EngineStateError) -> [UInt32] {
    var remaining = matching.remaining.map { _ in 0 as UInt32 }
    while try reader.flag() {
      let (rule, count) = (try reader.u64(), try reader.u32())
      if let rule = names.rules[rule], Int(rule) < remaining.count, matching.dynamicRules.contains(Int(rule)) {
        remaining[Int(rule)] = count
      }
    }
    return remaining
  }

  /// `identities`: of the flows of the saved state here, by their numbers; 0: dropped.
  private func restoreTags(
    _ names: RestoredNames, _ identities: [UInt64], _ clock: StateClock, _ reader: inout StateReader,
    into tags: inout TagTable, _ counts: inout StateCounts
  ) throws(EngineStateError) {
    while try reader.flag() {
      let rule = try reader.u64()
      var subject = TagTable.Subject()
      var isKnown = names.rules[rule] != nil
      if try reader.flag() {
        subject.flow = try Self.identity(identities, &reader)
        isKnown = isKnown && subject.flow != 0
      } else {
        subject.host = try reader.address()
      }
      let entry = TagTable.Entry(
        rule: rule, subject: subject, packets: try reader.u64(), bytes: try reader.u64(),
        expires: min(clock.time(try reader.i64()), clock.time(-TagTable.lifetime)))
      guard isKnown else {
        counts.tags.dropped += 1
        continue
      }
      counts.tags.kept += 1
      tags.adopt(entry)
    }
    counts.tags.kept -= Int(tags.evicted)
    counts.tags.dropped += Int(tags.evicted)
  }

  private func restoreCaptures(
    _ identities: [UInt64], _ reader: inout StateReader, into captured: inout CapturedValues,
    _ counts: inout StateCounts
  ) throws(EngineStateError) {
    while try reader.flag() {
      let owner = try Self.identity(identities, &reader)
      let name = try reader.u64()
      let value = try reader.text()
      guard value.count <= CapturedValues.valueLimit else {
        throw StateReader.damaged("a captured value that is too long")
      }
      guard owner != 0 else {
        counts.captures.dropped += 1
        continue
      }
      var entry = CapturedValues.Entry(
        owner: owner, name: name, order: 0, length: UInt32(value.count), bytes: InlineArray(repeating: 0))
      for (index, byte) in value.enumerated() { entry.bytes[index] = byte }
      counts.captures.kept += 1
      captured.adopt(entry)
    }
    counts.captures.kept -= Int(captured.evicted)
    counts.captures.dropped += Int(captured.evicted)
  }

  /// Of the flow whose number comes next.
  private static func identity(_ identities: [UInt64], _ reader: inout StateReader) throws(EngineStateError) -> UInt64 {
    let number = Int(try reader.u32())
    guard number < identities.count else { throw StateReader.damaged("something of no flow") }
    return identities[number]
  }
}

/// What the names in a saved state are in this rule set.
private struct RestoredNames {
  /// For each saved number, the number here; nil: no rule knows it.
  let bits: [Int?]
  let integers: [Int?]
  /// By generator and signature.
  let rules: [UInt64: UInt32]

  init(bits: [[UInt8]], integers: [[UInt8]], _ rules: SnortRules) {
    func numbers(_ names: [[UInt8]], _ section: ImageSection) -> [Int?] {
      let known = Dictionary(zip(rules.names(section), 0...)) { first, _ in first }
      return names.map { known[$0] }
    }
    self.bits = numbers(bits, .flowBits)
    self.integers = numbers(integers, .flowIntegers)
    self.rules = Dictionary(
      (0..<rules.ruleCount).map { (rules.identifier(at: $0), UInt32($0)) }, uniquingKeysWith: { first, _ in first })
  }

  func number(_ saved: UInt32, in numbers: [Int?]) throws(EngineStateError) -> Int? {
    guard Int(saved) < numbers.count else { throw StateReader.damaged("a bit or integer without a name") }
    return numbers[Int(saved)]
  }
}
