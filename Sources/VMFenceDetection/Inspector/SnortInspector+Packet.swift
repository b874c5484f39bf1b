import VMFenceCore
import VMFencePackets

/// The way of one packet, whether a frame's own, a tunnel's, or put together from fragments.
extension SnortInspector {
  /// A packet, and the packets in its tunnels, outermost first.
  ///
  /// `packet`: decoded from `bytes`.
  mutating func inspectLayers(
    _ packet: DecodedPacket, _ bytes: RawSpan, _ context: PacketContext, into output: inout InspectionOutput
  ) {
    inspect(packet, bytes, context, into: &output)
    guard packet.isTunnel else { return }
    var (inner, context) = (packet, context)
    context.carried = inner.carried
    // As deep as decoding goes.
    while inner.enterTunnel(bytes, settings: settings.decoding) {
      inspect(inner, bytes, context, into: &output)
      context.carried = inner.carried
    }
  }

  private mutating func inspect(
    _ packet: DecodedPacket, _ bytes: RawSpan, _ context: PacketContext, into output: inout InspectionOutput
  ) {
    var match = PacketMatch(packet: packet, flow: nil, timestamp: context.frame.timestamp)
    match.isRebuilt = context.depth > 0
    match.origin = packet.origin == .wire && context.depth > 0 ? .defragmented : packet.origin
    // A datagram that ends before its own end is dropped by whoever gets it.
    match.isMalformed =
      packet.network == .none && !packet.anomalies.isEmpty || packet.anomalies.contains(.badDatagramLength)
    if packet.network == .none || packet.network == .arp || match.isMalformed {
      if packet.network == .none || packet.network == .arp { counters.notIP += 1 }
      compare(match, bytes.extracting(Self.payload(packet)), bytes, into: &output)
      return
    }
    let sought = packet.isFragment ? nil : seek(packet, context)
    match.verifiesChecksums = context.frame.checksums == .unknown && settings.verifiesChecksums
    if match.verifiesChecksums {
      switch packet.verifyChecksums(in: bytes) {
      case .correct, .unverifiable: break
      case .badNetwork, .badTransport:
        counters.badChecksums += 1
        if matching.testsChecksums { inspectBadChecksum(&match, bytes, context, into: &output) }
        return
      }
    }
    guard let sought else {
      inspectFragment(&match, bytes, context, into: &output)
      return
    }
    guard let place = followFlow(&match, sought, bytes, context, into: &output) else { return }
    if packet.transport == .tcp {
      inspectTCP(&match, place, bytes, context.frame.direction, into: &output)
    } else {
      if let toServer = match.flow?.toServer { count(bytes.byteCount, place, toServer: toServer, match.timestamp) }
      compare(match, bytes.extracting(Self.payload(packet)), bytes, into: &output)
      noteAddresses(match)
    }
  }

  /// Counts a packet of a flow.
  @inline(__always)
  mutating func count(_ bytes: Int, _ place: Int, toServer: Bool, _ time: Timestamp) {
    flows[place].counts.add(bytes: bytes, toServer: toServer)
    if settings.elephantBytes > 0 { noteRate(bytes, place, toServer: toServer, time) }
  }

  private mutating func noteRate(_ bytes: Int, _ place: Int, toServer: Bool, _ time: Timestamp) {
    let mark = toServer ? Flow.Marks.clientIsElephant : .serverIsElephant
    guard !flows[place].marks.contains(mark) else { return }
    let identity = flows[place].identity
    if flowRates.add(bytes, place, flow: identity, fromClient: toServer, at: time.nanoseconds) {
      flows[place].marks.insert(mark)
    }
  }

  /// The rules about addresses alone have seen a packet of this direction.
  mutating func noteAddresses(_ match: borrowing PacketMatch) {
    guard let flow = match.flow else { return }
    flows[flow.place].marks.insert(flow.toServer ? .clientAddressesSeen : .serverAddressesSeen)
  }

  @inline(__always)
  static func payload(_ packet: borrowing DecodedPacket) -> Range<Int> {
    Int(packet.payloadOffset)..<Int(packet.payloadOffset) + Int(packet.payloadLength)
  }

  /// Tells what was wrong with a packet.
  private func note(_ match: borrowing PacketMatch, into output: inout InspectionOutput) {
    let flow = match.flow.map { flows.name(of: $0.place) } ?? 0
    for event in DecodeEvent.allCases where match.packet.events.contains(event) {
      output.append(
        PacketAnomaly(kind: .decode, number: event.rawValue, flowID: flow, layer: match.packet.tunnelDepth))
    }
    for event in StreamEvent.allCases where match.events.contains(event.rawValue) {
      output.append(
        PacketAnomaly(kind: .stream, number: event.rawValue, flowID: flow, layer: match.packet.tunnelDepth))
    }
  }

  /// The name of what an anomaly is about, as `decode-event` and `stream-event` have it.
  public static func name(of anomaly: PacketAnomaly) -> String {
    switch anomaly.kind {
    case .decode: DecodeEvent(rawValue: anomaly.number)?.name ?? "unknown"
    case .stream: StreamEvent(rawValue: anomaly.number)?.name ?? "unknown"
    }
  }

  /// Compares a packet or a window of a stream with the rules.
  mutating func compare(
    _ match: borrowing PacketMatch, _ payload: RawSpan, _ frame: RawSpan, into output: inout InspectionOutput
  ) {
    if output.keepsAnomalies, !match.isStream { note(match, into: &output) }
    if !tags.isEmpty, !match.isStream { noteTags(match, frame.byteCount, into: &output) }
    // SAFETY: the image is valid for its length as long as `rules` holds it, which outlasts this call.
    let image = unsafe UnsafeRawBufferPointer(start: rules.image.baseAddress, count: rules.image.byteCount).bytes
    evaluate(match, payload, frame: frame, image: image, into: &output)
  }

  /// Its receiver takes no notice of it, so it changes nothing that is remembered; rules that are for such packets see it.
  private mutating func inspectBadChecksum(
    _ match: inout PacketMatch, _ bytes: RawSpan, _ context: PacketContext, into output: inout InspectionOutput
  ) {
    match.hasBadChecksum = true
    if !match.packet.isFragment {
      let (key, isForward) = Self.flowKey(match.packet, context)
      if let place = flows.lookUp(key, at: context.frame.timestamp) {
        if decideByFlow(place, into: &output) { return }
        match.flow = sighting(place, isForward: isForward)
      }
    }
    compare(match, bytes.extracting(Self.payload(match.packet)), bytes, into: &output)
  }

  // MARK: Fragments

  private mutating func inspectFragment(
    _ match: inout PacketMatch, _ bytes: RawSpan, _ context: PacketContext, into output: inout InspectionOutput
  ) {
    counters.fragments += 1
    let packet = match.packet
    guard context.depth < FragmentStore.depthLimit else { return }
    if packet.timeToLive < settings.fragmentTTLMinimum {
      counters.lowTTL += 1
      compare(match, bytes.extracting(Self.payload(packet)), bytes, into: &output)
      return
    }
    var key = FragmentStore.key(packet, layer: Int(match.packet.tunnelDepth))
    key.place(context.frame.direction, carrier: context.carrier)
    let outcome = fragments.add(
      packet, bytes, key, from: context.carried?.offset ?? 0, depth: context.depth,
      at: context.frame.timestamp.nanoseconds,
      policy: settings.policy(of: packet.destination))
    counters.work &+= UInt64(fragments.takeWork())
    match.noteFragment(outcome.events)
    if outcome.events.contains(.ignored),
      except(settings.fragmentMemoryPolicy, nil, .defragmentMemory, into: &output)
    {
      return
    }
    compare(match, bytes.extracting(Self.payload(packet)), bytes, into: &output)
    guard let range = outcome.frame else { return }
    // SAFETY: the datagram stays where it is until another one is put together at this depth, which this call's are deeper than.
    let rebuilt = unsafe fragments.rebuilt.bytes(range).bytes
    var next = context
    next.depth += 1
    inspectLayers(decodeRebuilt(rebuilt, packet, context), rebuilt, next, into: &output)
  }

  private func decodeRebuilt(_ bytes: RawSpan, _ fragment: DecodedPacket, _ context: PacketContext) -> DecodedPacket {
    guard let carried = context.carried, fragment.tunnelDepth > 0 else {
      return DecodedPacket.decode(
        bytes, linkType: context.frame.linkType, strippedVLAN: context.frame.strippedVLAN, settings: settings.decoding)
    }
    return DecodedPacket(rebuilt: bytes, carried: carried, fragment: fragment, settings: settings.decoding)
  }

  // MARK: Flows

  /// The key of a packet's flow, and whether its source is the first end of that. Packets in tunnels are in flows of their own.
  @inline(__always)
  private static func flowKey(
    _ packet: borrowing DecodedPacket, _ context: borrowing PacketContext
  ) -> (FlowKey, isForward: Bool) {
    var (key, isForward) = FlowKey.make(packet)
    key.protocolAndFamily |= UInt64(packet.tunnelDepth) << 16
    key.place(context.frame.direction, isForward: isForward, carrier: context.carrier)
    return (key, isForward)
  }

  /// A packet's flow, while it is on its way from memory.
  private struct SoughtFlow {
    var key: FlowKey
    var isForward: Bool
    var hint: FlowTable.Hint
  }

  /// Has the packet's flow brought near the processor: it takes about as long as verifying the checksums.
  @inline(__always)
  private func seek(_ packet: borrowing DecodedPacket, _ context: borrowing PacketContext) -> SoughtFlow {
    let (key, isForward) = Self.flowKey(packet, context)
    return SoughtFlow(key: key, isForward: isForward, hint: flows.seek(key))
  }

  /// Finds the packet's flow and follows it, except for TCP; nil when the packet needs no inspection.
  private mutating func followFlow(
    _ match: inout PacketMatch, _ sought: SoughtFlow, _ bytes: RawSpan, _ context: PacketContext,
    into output: inout InspectionOutput
  ) -> Int? {
    let transport = match.packet.transport
    if transport == .icmp || transport == .icmpv6, let related = relatedFlow(match.packet, bytes, context) {
      if decideByFlow(related.place, into: &output) { return nil }
      match.flow = sighting(related.place, isForward: related.isForward)
      return related.place
    }
    let (key, isForward, hint) = (sought.key, sought.isForward, sought.hint)
    var location = flows.locate(key, hint, isForward: isForward, at: context.frame.timestamp)
    // Each turn ends one flow; the second finds a place.
    for _ in 0..<4 {
      guard case .isToEnd(let old) = location else { break }
      endFlow(old, at: context.frame.timestamp, into: &output)
      flows.release(old)
      location = flows.locate(key, hint, isForward: isForward, at: context.frame.timestamp)
    }
    switch location {
    case .isToEnd: return nil
    case .found(let place, let isForward):
      if decideByFlow(place, into: &output) { return nil }
      if context.frame.direction == .fromGuest { flows[place].marks.insert(.hasGuestSpoken) }
      if match.packet.transport != .tcp, isForward != flows[place].marks.contains(.clientIsFirst) {
        flows[place].marks.insert(.isAnswered)
      }
      match.flow = sighting(place, isForward: isForward)
      return place
    case .made(let place, let isForward, let evictedEstablished):
      if context.frame.direction == .fromGuest { flows[place].marks.insert(.hasGuestSpoken) }
      if match.packet.transport == .tcp, !settings.hostPolicies.isEmpty || settings.defaultPolicy != .bsd {
        // What one end sends is put together as the other end does it.
        flows[place].session.client.policy = settings.policy(of: match.packet.destination)
        flows[place].session.server.policy = settings.policy(of: match.packet.source)
      }
      match.flow = sighting(place, isForward: isForward)
      if evictedEstablished, except(settings.flowMemoryPolicy, place, .flowMemory, into: &output) { return nil }
      return place
    }
  }

  func sighting(_ place: Int, isForward: Bool) -> FlowTable.Sighting {
    FlowTable.Sighting(
      place: place, toServer: isForward == flows[place].marks.contains(.clientIsFirst),
      isEstablished: flows[place].isEstablished,
      handshakeSeen: flows[place].session.isEstablished && flows[place].session.marks.contains(.handshakeSeen))
  }

  /// Whether the guest itself sent what its peer's address stands on, be it that it forwards the peer's packets: then what came from
  /// outside under that address may be its own, come back. For alerts: it costs a look at another flow.
  func guestSpeaksForPeer(_ place: Int, at time: Timestamp) -> Bool {
    guard flows[place].key.guestIsFirst != nil, let other = flows.lookUp(flows[place].key.mirrored, at: time) else {
      return false
    }
    return flows[other].marks.contains(.hasGuestSpoken)
  }

  /// The flow that an ICMP error is about (RFC 792, RFC 4443 §2.4: it carries the beginning of the packet that caused it), if it is known.
  private func relatedFlow(
    _ packet: DecodedPacket, _ bytes: RawSpan, _ context: PacketContext
  ) -> (place: Int, isForward: Bool)? {
    let isError: Bool =
      switch packet.transport {
      case .icmp: [3, 4, 5, 11, 12].contains(packet.icmpType)
      case .icmpv6: (1...4).contains(packet.icmpType)
      default: false
      }
    guard isError, packet.payloadLength >= 28 else { return nil }
    let inner = bytes.extracting(Self.payload(packet))
    var cause = DecodedPacket.decode(inner, linkType: .raw, strippedVLAN: 0)
    guard cause.network == packet.network, !cause.isFragment, cause.transportOffset > 0,
      Int(cause.transportOffset) + 4 <= inner.byteCount
    else { return nil }
    if cause.transport == .none, cause.ipProtocol == 6 || cause.ipProtocol == 17 {
      // The first 8 bytes of a transport header are enough: its ports.
      cause.transport = cause.ipProtocol == 6 ? .tcp : .udp
      cause.sourcePort = inner.u16(Int(cause.transportOffset))
      cause.destinationPort = inner.u16(Int(cause.transportOffset) + 2)
    }
    cause.outerVLAN = packet.outerVLAN
    cause.innerVLAN = packet.innerVLAN
    cause.thirdVLAN = packet.thirdVLAN
    var (key, isForward) = FlowKey.make(cause)
    key.protocolAndFamily |= UInt64(packet.tunnelDepth) << 16
    // The cause went the other way.
    key.place(context.frame.direction.reversed, isForward: isForward, carrier: context.carrier)
    guard let place = flows.lookUp(key, at: context.frame.timestamp) else { return nil }
    // It goes back to whoever sent the cause.
    return (place, !isForward)
  }

  /// What an earlier packet decided for the whole flow. True: this packet needs no inspection.
  mutating func decideByFlow(_ place: Int, into output: inout InspectionOutput) -> Bool {
    let marks = flows[place].marks
    if marks.contains(.isPassed) {
      counters.passed += 1
      return true
    }
    if marks.contains(.isBypassed) {
      counters.bypassed += 1
      return true
    }
    if marks.contains(.isDropped) {
      output.verdict = .drop
      output.dropReason = .flowDrop
      output.verdictRule = flows[place].verdictGeneration == generation ? flows[place].verdictRule : .max
      return true
    }
    return false
  }

  // MARK: Exceptions

  /// Does what a policy says; true: the packet needs no further inspection.
  mutating func except(
    _ policy: ExceptionPolicy, _ place: Int?, _ reason: DropReason, into output: inout InspectionOutput
  ) -> Bool {
    guard policy != .ignore else { return false }
    counters.exceptions += 1
    switch policy {
    case .ignore: return false
    case .passPacket: return true
    case .passFlow, .bypass:
      if let place {
        flows[place].marks.insert(.isPassed)
        if policy == .bypass { flows[place].marks.insert(.isBypassed) }
      }
      return true
    case .dropPacket, .dropFlow, .reject:
      output.verdict = policy == .reject ? .reject : .drop
      output.verdictRule = .max
      output.dropReason = reason
      if let place, policy != .dropPacket {
        flows[place].marks.insert(.isDropped)
        flows[place].verdictRule = .max
        flows[place].verdictGeneration = generation
      }
      return true
    }
  }
}
