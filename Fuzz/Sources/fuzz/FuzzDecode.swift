import VMFenceCore
import VMFencePackets

// One frame: decoded as every link type with the packets in its tunnels, their checksums verified, its headers read whole, dispatched at a domain's port and on a
// bridge. What is checked besides "no trap": every range that decoding gives lies inside the frame.

private let linkTypes: [LinkType] = [
  .ethernet, .null, .ppp, .rawBSD, .rawOpenBSD, .raw, .ciscoHDLC, .loop, .linuxSLL, .ipv4, .ipv6, .linuxSLL2,
]

private let publisher: DispatchTablePublisher = {
  func domain(_ number: UInt64) -> DomainDescription {
    DomainDescription(
      incarnation: Incarnation(uuid: DomainUUID(high: 0, low: number), domainID: DomainID(UInt32(number))),
      name: "guest\(number)",
      ports: [
        NetworkPort(
          interface: "vif\(number).0", bridge: "xenbr0", mac: MACAddress(rawValue: 0x0016_3E01_0200 + number),
          addresses: [IPAddress(v4: 0xC000_0201)])
      ])
  }
  let members = (0..<4).map { DispatchMember(slot: $0, domain: domain(UInt64($0))) }
  let ports = [
    DispatchPort(id: PortID(0), kind: .bridge(nil)),
    DispatchPort(id: PortID(1), kind: .vif(owner: members[1].domain.incarnation)),
  ]
  guard let table = try? DispatchTable(members: members, ports: ports, key: (1, 2)) else { fatalError("no table") }
  return DispatchTablePublisher(table)
}()

func fuzzDecode(_ input: RawSpan) {
  guard input.byteCount >= 2 else { return }
  // The first byte chooses the link type and the direction, the second the stripped tag.
  let linkType = linkTypes[Int(input.u8(0)) % linkTypes.count]
  let direction = FrameDirection(rawValue: input.u8(0) >> 6) ?? .unknown
  let bytes = input.extracting(2..<input.byteCount)
  var packet = DecodedPacket.decode(bytes, linkType: linkType, strippedVLAN: UInt16(input.u8(1)))
  var depth: UInt8 = 0
  repeat {
    precondition(packet.tunnelDepth == depth && depth <= DecodedPacket.tunnelDepthLimit, "tunnels without end")
    check(packet, bytes.byteCount)
    _ = packet.verifyChecksums(in: bytes)
    if packet.network == .ipv4 || packet.network == .ipv6 {
      _ = KeyedHash(key: (1, 2)).hash(FlowKey.make(packet).key)
    }
    readHeaders(packet, bytes)
    depth += 1
  } while packet.enterTunnel(bytes)

  var dispatcher = Dispatcher(publisher)
  for port: UInt32 in 0...2 {
    let frame = FrameMetadata(
      timestamp: .zero, port: PortID(port), direction: direction, linkType: linkType,
      originalLength: UInt32(bytes.byteCount))
    dispatcher.dispatch(frame, bytes) { slot, _ in precondition((0..<4).contains(slot), "a slot of nobody") }
  }
  _ = dispatcher.drainAlerts(at: .zero)
}

private func check(_ packet: DecodedPacket, _ count: Int) {
  let payloadEnd = Int(packet.payloadOffset) + Int(packet.payloadLength)
  precondition(packet.payloadOffset >= 0 && packet.payloadLength >= 0 && payloadEnd <= count, "payload outside")
  precondition(0 <= packet.networkOffset && packet.networkOffset <= packet.networkEnd, "network layer reversed")
  precondition(Int(packet.networkEnd) <= count, "network layer outside")
  guard packet.transport != .none else { return }
  precondition(packet.networkOffset < packet.transportOffset, "transport before network")
  precondition(packet.transportOffset <= packet.payloadOffset, "payload before transport")
  precondition(payloadEnd <= Int(packet.networkEnd), "payload beyond the datagram")
}

private func readHeaders(_ packet: DecodedPacket, _ bytes: RawSpan) {
  var chunks = SCTPChunkCursor(packet)
  while let chunk = chunks.next(in: bytes) {
    precondition(chunk.offset + chunk.length <= bytes.byteCount, "a chunk outside")
  }
  for offset in [Int(packet.networkOffset), Int(packet.transportOffset)] {
    _ = try? ARPHeader(bytes, at: offset)
    _ = try? IPv6Header(bytes, at: offset)
    _ = try? ICMPHeader(bytes, at: offset)
    if var options = try? IPv4Header(bytes, at: offset).options { while options.next(in: bytes) != nil {} }
    if var options = try? TCPHeader(bytes, at: offset).options { while options.next(in: bytes) != nil {} }
  }
}
