import VMFenceCore
import VMFencePackets

/// Flows and their connections in a saved state.
extension ByteWriter {
  mutating func key(_ key: FlowKey) {
    for word in [
      key.firstHigh, key.firstLow, key.secondHigh, key.secondLow, key.portsAndVLANs, key.protocolAndFamily,
    ] { u64(word) }
  }

  mutating func address(_ address: IPAddress) {
    u8(address.family.rawValue)
    u64(address.high)
    u64(address.low)
  }

  /// All but the verdict's rule and what is buffered.
  mutating func flow(_ flow: Flow, _ clock: StateClock) {
    key(flow.key)
    i64(clock.age(flow.firstSeen))
    i64(clock.age(flow.lastSeen))
    u64(flow.counts.clientBytes)
    u64(flow.counts.serverBytes)
    u32(flow.counts.clientPackets)
    u32(flow.counts.serverPackets)
    u16(flow.marks.rawValue)
    flag(flow.isTCP)
    guard flow.isTCP else { return }
    u8(flow.session.state.rawValue)
    u16(flow.session.marks.rawValue)
    u8(flow.session.repetitions)
    u32(flow.session.alternative)
    end(flow.session.client, clock)
    end(flow.session.server, clock)
  }

  private mutating func end(_ end: TCPEnd, _ clock: StateClock) {
    for number in [
      end.initial, end.next, end.acknowledged, end.edge, end.window, end.timestamp,
      clock.seconds &- end.timestampTime, end.final, end.urgentCount, end.urgentLast,
    ] { u32(number) }
    u8(end.scale)
    u8(end.marks.rawValue)
    u8(end.policy.rawValue)
    u8(end.timeToLive)
    for number in [end.stream.origin, end.stream.base, end.stream.inspected, end.stream.missing] { u32(number) }
    u8(end.stream.marks.rawValue)
  }
}

extension StateReader {
  mutating func key() throws(EngineStateError) -> FlowKey {
    var key = FlowKey.make(source: .anyV4, sourcePort: 0, destination: .anyV4, destinationPort: 0, ipProtocol: 0).key
    key.firstHigh = try u64()
    key.firstLow = try u64()
    key.secondHigh = try u64()
    key.secondLow = try u64()
    key.portsAndVLANs = try u64()
    key.protocolAndFamily = try u64()
    let family = key.protocolAndFamily >> 8 & 0xFF
    guard key.protocolAndFamily & FlowKey.unusedBits == 0, family == 4 || family == 6,
      family == 6 || key.firstHigh | key.secondHigh | key.firstLow >> 32 | key.secondLow >> 32 == 0
    else { throw Self.damaged("the ends of a flow cannot be") }
    return key
  }

  mutating func address() throws(EngineStateError) -> IPAddress {
    let family = try u8()
    let (high, low) = (try u64(), try u64())
    switch family {
    case 4 where high == 0 && low >> 32 == 0: return IPAddress(v4: UInt32(truncatingIfNeeded: low))
    case 6: return IPAddress(v6High: high, low: low)
    default: throw Self.damaged("an address that cannot be")
    }
  }

  mutating func flow(_ clock: StateClock) throws(EngineStateError) -> Flow {
    let key = try key()
    let (first, last) = (clock.time(try i64()), clock.time(try i64()))
    var flow = Flow(
      key: key, hash: 0, firstSeen: first, lastSeen: last, verdictRule: .max, verdictGeneration: 0, marks: [])
    flow.counts.clientBytes = try u64()
    flow.counts.serverBytes = try u64()
    flow.counts.clientPackets = try u32()
    flow.counts.serverPackets = try u32()
    flow.takeMarks(try u16())
    guard try flag() == flow.isTCP else { throw Self.damaged("a connection of something else than TCP") }
    guard flow.isTCP else { return flow }
    guard let state = TCPSession.State(rawValue: try u8()) else { throw Self.damaged("a connection in no known state") }
    flow.session.state = state
    flow.session.marks = TCPSession.Marks(rawValue: try u16())
    flow.session.repetitions = try u8()
    flow.session.alternative = try u32()
    flow.session.client = try end(clock)
    flow.session.server = try end(clock)
    (flow.clientFound, flow.serverFound) = (.unknown, .unknown)
    return flow
  }

  /// What is not saved of what came is taken for lost: the next acknowledgement tells.
  private mutating func end(_ clock: StateClock) throws(EngineStateError) -> TCPEnd {
    var end = TCPEnd()
    end.initial = try u32()
    end.next = try u32()
    end.acknowledged = try u32()
    end.edge = try u32()
    end.window = try u32()
    end.timestamp = try u32()
    end.timestampTime = clock.seconds &- (try u32())
    end.final = try u32()
    end.urgentCount = try u32()
    end.urgentLast = try u32()
    end.scale = try u8()
    // What was acknowledged selectively is not saved: the next acknowledgement says it again.
    end.marks = TCPEnd.Marks(rawValue: try u8()).subtracting(.isSelected)
    guard end.scale <= 14, let policy = OverlapPolicy(rawValue: try u8()) else {
      throw Self.damaged("an end of a connection that cannot be")
    }
    end.policy = policy
    end.timeToLive = try u8()
    end.stream.origin = try u32()
    end.stream.base = try u32()
    end.stream.inspected = try u32()
    end.stream.chunkStart = end.stream.inspected
    end.stream.missing = try u32()
    end.stream.marks = StreamTrack.Marks(rawValue: try u8())
    end.arrived = TCPArrivals(at: end.acknowledged)
    end.largestWindow = max(end.window, 65_535)
    return end
  }
}

extension Flow {
  /// Marks as they were saved. Before flows of different sides were told apart by their keys, marks said where the packets of each end came
  /// from: the first end's from the guest (16) or not (32), the second's (2048, 4096).
  fileprivate mutating func takeMarks(_ saved: UInt16) {
    let sides = saved & (16 | 32 | 2048 | 4096)
    // What it owes is not saved.
    marks = Marks(rawValue: saved & ~sides).subtracting(.owes)
    guard key.guestIsFirst == nil, sides != 0 else { return }
    let (firstIsGuest, secondIsGuest) = (sides & (16 | 4096) != 0, sides & (32 | 2048) != 0)
    guard firstIsGuest != secondIsGuest else { return }
    key.place(.fromGuest, isForward: firstIsGuest, carrier: 0)
    if sides & (16 | 2048) != 0 { marks.insert(.hasGuestSpoken) }
  }
}
