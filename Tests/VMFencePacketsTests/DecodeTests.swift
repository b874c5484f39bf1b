import Testing
import VMFenceCore
import VMFencePackets

@Suite struct DecodeTests {
  @Test(arguments: Frame.samples.indices)
  func `a sound frame is decoded without anomaly`(index: Int) {
    let sample = Frame.samples[index]
    let packet = DecodedPacket.decode(sample.bytes, sample.linkType)
    #expect(packet.anomalies.isEmpty, "\(sample.name): \(packet.anomalies)")
    #expect(packet.network != .none, "\(sample.name)")
  }

  @Test func `tcp over every link type gives the same datagram`() {
    for (name, linkType, bytes) in Frame.samples where packetIsPlainTCP(name) {
      let packet = DecodedPacket.decode(bytes, linkType)
      #expect(packet.transport == .tcp, "\(name)")
      #expect(packet.sourcePort == 40_000 && packet.destinationPort == 80, "\(name)")
      #expect(packet.tcpSequence == 0x0102_0304 && packet.tcpAcknowledgement == 0x0506_0708, "\(name)")
      #expect(packet.tcpFlags == [.psh, .ack] && packet.tcpWindow == 0x2000, "\(name)")
      #expect(packet.payload(of: bytes) == Frame.hello, "\(name)")
      #expect(packet.etherType == (packet.network == .ipv4 ? 0x0800 : 0x86DD), "\(name)")
      let isV4 = packet.network == .ipv4
      #expect(packet.source == IPAddress(isV4 ? "192.0.2.1" : "2001:db8::1"), "\(name)")
      #expect(packet.destination == IPAddress(isV4 ? "198.51.100.2" : "2001:db8::2"), "\(name)")
      #expect(packet.timeToLive == 64 && packet.ipProtocol == 6, "\(name)")
    }
  }

  private func packetIsPlainTCP(_ name: String) -> Bool {
    ![
      "tcp, padded frame", "udp", "udp, ip options", "icmp", "sctp", "fragment", "arp", "udp over ipv6", "icmpv6",
      "extension headers",
    ].contains(name)
  }

  @Test func `the padding of a short Ethernet frame is no payload`() {
    let bytes = Frame.ethernet(0x0800, Frame.ipv4(6, Frame.tcp([]))) + [1, 2, 3, 4, 5, 6]
    let packet = DecodedPacket.decode(bytes)
    #expect(packet.payloadLength == 0 && packet.networkEnd == 54)
  }

  @Test func `a total length of zero means the end of the frame`() {
    let bytes = Frame.ethernet(0x0800, Frame.ipv4(6, Frame.tcp(Frame.hello), totalLength: 0))
    let packet = DecodedPacket.decode(bytes)
    #expect(packet.anomalies == .zeroLengthField)
    #expect(packet.payload(of: bytes) == Frame.hello)
  }

  @Test func `an IPv6 payload length of zero means the end of the frame`() {
    let bytes = Frame.ethernet(0x86DD, Frame.ipv6(6, Frame.tcp(Frame.hello, v6: true), payloadLength: 0))
    let packet = DecodedPacket.decode(bytes)
    #expect(packet.anomalies == .zeroLengthField)
    #expect(packet.payload(of: bytes) == Frame.hello)
  }

  @Test func `a jumbogram takes its length from the option`() {
    let payload = [UInt8](repeating: 7, count: 70_000)
    var udp = Frame.udp(payload, length: 0, v6: true)
    let jumbo = [17, 0, 0xC2, 4] + Frame.be32(udp.count + 8)
    udp += [9, 9, 9]
    let bytes = Frame.ethernet(0x86DD, Frame.ipv6(0, jumbo + udp, payloadLength: 0))
    let packet = DecodedPacket.decode(bytes)
    #expect(packet.transport == .udp && packet.payloadLength == 70_000)
    #expect(packet.anomalies == .zeroLengthField, "of UDP, which a jumbogram leaves zero")
  }

  @Test func `a later IPv4 fragment has no transport and its bytes are payload`() {
    let bytes = Frame.ethernet(0x0800, Frame.ipv4(17, Frame.hello, id: 0xBEEF, fragment: 0x2000 | 3))
    let packet = DecodedPacket.decode(bytes)
    #expect(packet.transport == .none && packet.ipProtocol == 17 && packet.sourcePort == 0)
    #expect(packet.isFragment && packet.moreFragments && packet.fragmentOffset == 24 && packet.fragmentID == 0xBEEF)
    #expect(packet.payload(of: bytes) == Frame.hello)
  }

  @Test func `the first fragment of a UDP datagram has its ports`() {
    let whole = Frame.udp([UInt8](repeating: 1, count: 100))
    let bytes = Frame.ethernet(0x0800, Frame.ipv4(17, Array(whole[..<64]), fragment: 0x2000))
    let packet = DecodedPacket.decode(bytes)
    #expect(packet.transport == .udp && packet.destinationPort == 53 && packet.payloadLength == 56)
    #expect(packet.anomalies.isEmpty && packet.isFragment)
  }

  @Test func `an IPv6 fragment header is followed to the first fragment and not beyond`() {
    let udp = Frame.udp([UInt8](repeating: 1, count: 100), v6: true)
    let first = Frame.ipv6(44, [17, 0] + Frame.be16(1) + Frame.be32(77) + udp[..<64])
    let packet = DecodedPacket.decode(Frame.ethernet(0x86DD, first))
    #expect(packet.transport == .udp && packet.moreFragments && packet.fragmentID == 77 && packet.anomalies.isEmpty)
    let bytes = Frame.ethernet(0x86DD, Frame.ipv6(44, [17, 0] + Frame.be16(64) + Frame.be32(77) + udp[64...]))
    let last = DecodedPacket.decode(bytes)
    #expect(last.transport == .none && last.fragmentOffset == 64 && !last.moreFragments && last.ipProtocol == 17)
    #expect(last.payload(of: bytes) == Array(udp[64...]))
  }

  @Test func `extension headers are passed over`() {
    let sample = Frame.samples.first { $0.name == "extension headers" }
    let packet = DecodedPacket.decode(sample?.bytes ?? [])
    #expect(packet.transport == .udp && packet.ipProtocol == 17 && packet.fragmentID == 0xABCD && !packet.isFragment)
    for header: UInt8 in [43, 60, 135, 139, 140] {
      let extended = Frame.ipv6(Int(header), [6, 1] + [UInt8](repeating: 0, count: 14) + Frame.tcp([], v6: true))
      #expect(DecodedPacket.decode(Frame.ethernet(0x86DD, extended)).transport == .tcp, "header \(header)")
    }
    let authenticated = Frame.ipv6(51, [6, 4] + [UInt8](repeating: 0, count: 22) + Frame.tcp([], v6: true))
    #expect(DecodedPacket.decode(Frame.ethernet(0x86DD, authenticated)).transport == .tcp)
  }

  @Test func `extension headers are passed over as long as the datagram has any, and many are told of`() {
    let udp = Frame.udp([1, 2, 3, 4], v6: true)
    for count in [16, 17, 40, 4000] {
      let headers = (1...count).flatMap { [$0 < count ? 60 : 17, 0, 1, 4, 0, 0, 0, 0] as [UInt8] }
      let frame = Frame.ethernet(0x86DD, Frame.ipv6(60, headers + udp))
      let packet = DecodedPacket.decode(frame)
      #expect(packet.transport == .udp && packet.destinationPort == 53 && packet.payloadLength == 4, "\(count)")
      #expect(packet.events.contains(.tooManyLayers) == (count > 16), "\(count)")
      #expect(packet.anomalies.contains(.tooManyExtensionHeaders) == (count > 16), "\(count)")
    }
  }

  @Test func `an extension header in the wrong place is told and passed over`() {
    let tcp = Frame.tcp([], v6: true)
    for (first, second) in [(60, 0), (43, 43), (0, 0), (51, 51)] {
      func header(_ kind: Int, _ next: Int) -> [UInt8] {
        [UInt8(next), kind == 51 ? 1 : 0] + [UInt8](repeating: 0, count: kind == 51 ? 10 : 6)
      }
      let bytes = Frame.ethernet(0x86DD, Frame.ipv6(first, header(first, second) + header(second, 6) + tcp))
      let packet = DecodedPacket.decode(bytes)
      #expect(packet.anomalies.contains(.badExtensionHeader) && packet.transport == .tcp, "\(first), \(second)")
    }
  }

  @Test func `encrypted payload is not looked into`() {
    let packet = DecodedPacket.decode(Frame.ethernet(0x86DD, Frame.ipv6(50, Frame.tcp(Frame.hello, v6: true))))
    #expect(packet.transport == .other && packet.ipProtocol == 50 && packet.anomalies.isEmpty)
  }

  @Test func `a routing header with segments left says that the destination is not the last`() {
    let routed = Frame.ipv6(43, [6, 2, 0, 1] + [UInt8](repeating: 0, count: 20) + Frame.tcp([], v6: true))
    let packet = DecodedPacket.decode(Frame.ethernet(0x86DD, routed))
    #expect(packet.anomalies == .sourceRouted && packet.transport == .tcp)
  }

  @Test func `tags are kept, the stripped one as the outermost`() {
    let bytes = Frame.ethernet(0x0800, Frame.ipv4(6, Frame.tcp([])), vlans: [(0x8100, 0x0022), (0x9100, 0x0033)])
    let plain = DecodedPacket.decode(bytes)
    #expect(plain.outerVLAN == 0x22 && plain.innerVLAN == 0x33 && plain.vlanCount == 2)
    let stripped = DecodedPacket.decode(bytes, vlan: 0x2011)
    #expect(stripped.outerVLAN == 0x2011 && stripped.innerVLAN == 0x22 && stripped.vlanCount == 3)
    #expect(stripped.transport == .tcp && stripped.etherType == 0x0800)
  }

  @Test func `an ARP packet gives its addresses`() {
    let packet = DecodedPacket.decode(Frame.ethernet(0x0806, Frame.arp()))
    #expect(packet.network == .arp && packet.transport == .none)
    #expect(packet.source == IPAddress("192.0.2.1") && packet.destination == IPAddress("198.51.100.2"))
  }

  @Test func `ICMP gives type and code, and its payload begins after eight bytes`() {
    let bytes = Frame.ethernet(0x0800, Frame.ipv4(1, Frame.icmp(3, 13, [0, 0, 0, 0] + Frame.hello)))
    let packet = DecodedPacket.decode(bytes)
    #expect(packet.icmpType == 3 && packet.icmpCode == 13 && packet.payload(of: bytes) == Frame.hello)
  }

  /// Malformed frames: what is wrong, and what is told.
  static let malformed: [(String, [UInt8], LinkType, DecodeAnomalies)] = {
    let tcp = Frame.tcp(Frame.hello)
    func v4(_ edit: (inout [UInt8]) -> Void, _ payload: [UInt8] = Frame.tcp(Frame.hello)) -> [UInt8] {
      var datagram = Frame.ipv4(6, payload)
      edit(&datagram)
      return Frame.ethernet(0x0800, datagram)
    }
    func v6(_ next: Int, _ payload: [UInt8]) -> [UInt8] { Frame.ethernet(0x86DD, Frame.ipv6(next, payload)) }
    let tags = [(type: Int, tag: Int)](repeating: (0x8100, 5), count: 9)
    return [
      ("nothing", [], .ethernet, .truncatedLink),
      ("half an address", [1, 2, 3], .ethernet, .truncatedLink),
      ("nothing, raw", [], .raw, .truncatedNetwork),
      ("version 5, raw", [0x55], .raw, .wrongIPVersion),
      ("a link type that nobody knows", [0x45], LinkType(rawValue: 999), .unknownLinkType),
      ("nine tags", Frame.ethernet(0x0800, Frame.ipv4(6, tcp), vlans: tags), .ethernet, .tooManyVLANTags),
      ("a tag cut off", Frame.ethernet(0x8100, [0, 5, 8]), .ethernet, .truncatedLink),
      ("an 802.3 length beyond the frame", Frame.ethernet(0x100, [0x42, 0x42, 3]), .ethernet, .truncatedLink),
      ("an LLC header cut off", Frame.ethernet(2, [0xAA, 0xAA]), .ethernet, .truncatedLink),
      ("a SNAP header cut off", Frame.ethernet(5, [0xAA, 0xAA, 3, 0, 0]), .ethernet, .truncatedLink),
      ("no IP header", Frame.ethernet(0x0800, []), .ethernet, .truncatedNetwork),
      ("IPv6 as IPv4", Frame.ethernet(0x0800, Frame.ipv6(6, tcp)), .ethernet, .wrongIPVersion),
      ("IPv4 as IPv6", Frame.ethernet(0x86DD, Frame.ipv4(6, tcp)), .ethernet, .wrongIPVersion),
      ("short IPv4 as IPv6", Frame.ethernet(0x86DD, [0x45, 0]), .ethernet, .wrongIPVersion),
      ("header length 4", v4 { $0[0] = 0x44 }, .ethernet, .badHeaderLength),
      ("options beyond the frame", v4({ $0[0] = 0x4F }, []), .ethernet, .truncatedNetwork),
      ("total length 19", v4 { $0.replaceSubrange(2..<4, with: [0, 19]) }, .ethernet, .badDatagramLength),
      ("total length too large", v4 { $0.replaceSubrange(2..<4, with: [9, 0]) }, .ethernet, .badDatagramLength),
      ("a fragment beyond 65,535", v4 { $0.replaceSubrange(6..<8, with: [0x1F, 0xFF]) }, .ethernet, .badFragment),
      ("a TCP header cut off", v4({ _ in }, Array(tcp[..<19])), .ethernet, .truncatedTransport),
      ("data offset 4", v4 { $0[32] = 0x40 }, .ethernet, .badTransportLength),
      ("data offset beyond the segment", v4 { $0[32] = 0xF0 }, .ethernet, .badTransportLength),
      (
        "a UDP length of 7", Frame.ethernet(0x0800, Frame.ipv4(17, Frame.udp(Frame.hello, length: 7))), .ethernet,
        .badTransportLength
      ),
      (
        "a UDP length beyond the datagram", Frame.ethernet(0x0800, Frame.ipv4(17, Frame.udp([], length: 9))),
        .ethernet, .badTransportLength
      ),
      ("a UDP length of 0", v6(17, Frame.udp(Frame.hello, length: 0, v6: true)), .ethernet, .zeroLengthField),
      ("half a UDP header", v6(17, [0, 1, 0, 2]), .ethernet, .truncatedTransport),
      ("half an ICMP header", v6(58, [128, 0, 0, 0]), .ethernet, .truncatedTransport),
      ("half an SCTP header", v6(132, [0, 1, 0, 2, 0, 0, 0, 0]), .ethernet, .truncatedTransport),
      ("an ARP header cut off", Frame.ethernet(0x0806, [0, 1, 8]), .ethernet, .truncatedNetwork),
      ("an ARP body cut off", Frame.ethernet(0x0806, Array(Frame.arp()[..<27])), .ethernet, .truncatedNetwork),
      ("ARP for token ring", Frame.ethernet(0x0806, [0, 6] + Frame.arp()[2...]), .ethernet, .badARP),
      ("an extension header of one byte", v6(60, [6]), .ethernet, .badExtensionHeader),
      ("an extension header beyond the datagram", v6(60, [6, 200, 0, 0, 0, 0, 0, 0]), .ethernet, .badExtensionHeader),
      (
        "seventeen extension headers",
        v6(60, [UInt8](([[UInt8]](repeating: [60, 0, 1, 4, 0, 0, 0, 0], count: 17)).joined())), .ethernet,
        .tooManyExtensionHeaders
      ),
      (
        "two fragment headers",
        v6(44, [44, 0, 0, 1, 0, 0, 0, 1] + [6, 0, 0, 1, 0, 0, 0, 1] + tcp + [0, 0, 0, 0, 0, 0, 0, 0]),
        .ethernet, .badExtensionHeader
      ),
      ("an odd fragment with more to come", v6(44, [17, 0, 0, 9, 0, 0, 0, 1, 1, 2, 3]), .ethernet, .badFragment),
    ]
  }()

  @Test(arguments: malformed.indices)
  func `a malformed frame is told and not followed`(index: Int) {
    let (name, bytes, linkType, expected) = Self.malformed[index]
    let packet = DecodedPacket.decode(bytes, linkType)
    #expect(packet.anomalies.contains(expected), "\(name): \(packet.anomalies)")
    let followed: DecodeAnomalies = [.zeroLengthField, .badFragment]
    if expected.isDisjoint(with: followed), name != "total length too large" {
      #expect(packet.transport == .none, "\(name)")
    }
  }
}
