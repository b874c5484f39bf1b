import Testing
import VMFenceCore
import VMFencePackets

@Suite struct TunnelTests {
  @Test(arguments: Frame.nested.indices)
  func `the packet in a tunnel is decoded as if it were alone`(index: Int) {
    let (name, origin, bytes) = Frame.nested[index]
    let outer = DecodedPacket.decode(bytes)
    #expect(outer.isTunnel && outer.origin == .wire && outer.tunnelDepth == 0 && outer.anomalies.isEmpty, "\(name)")
    var packet = outer
    let isEntered = bytes.withRawSpan { packet.enterTunnel($0) }
    #expect(isEntered && packet.origin == origin && packet.tunnelDepth == 1 && !packet.isTunnel, "\(name)")
    #expect(packet.transport == .tcp && packet.sourcePort == 40_000 && packet.destinationPort == 80, "\(name)")
    #expect(packet.payload(of: bytes) == Frame.hello, "\(name)")
    #expect(packet.events.elements.isEmpty, "\(name): \(packet.events.elements)")
    let before = packet.allFields
    let isEnteredAgain = bytes.withRawSpan { packet.enterTunnel($0) }
    #expect(!isEnteredAgain && packet.allFields == before, "\(name)")
  }

  @Test(arguments: Frame.carried.indices)
  func `headers between link and network are passed over`(index: Int) {
    let (name, bytes) = Frame.carried[index]
    let packet = DecodedPacket.decode(bytes)
    #expect(packet.transport == .tcp && packet.payload(of: bytes) == Frame.hello, "\(name)")
    #expect(packet.anomalies.isEmpty && packet.events.elements.isEmpty, "\(name): \(packet.events.elements)")
    #expect(!packet.isTunnel && packet.etherType == 0x0800, "\(name)")
  }

  @Test func `the tags of the frame, and that of a mirrored one, are the inner packet's`() {
    let mirrored = Frame.nested.first { $0.name == "erspan II" }
    let bytes = mirrored.map { Frame.guestMAC + Frame.peerMAC + [0x81, 0, 0, 9] + $0.bytes[12...] } ?? []
    var packet = DecodedPacket.decode(bytes)
    #expect(bytes.withRawSpan { packet.enterTunnel($0) })
    #expect(packet.outerVLAN == 9 && packet.innerVLAN == 0x17 && packet.vlanCount == 2)
  }

  @Test func `three tags are kept`() {
    let packet = DecodedPacket.decode(Frame.carried[0].bytes)
    #expect((packet.outerVLAN, packet.innerVLAN, packet.thirdVLAN) == (1, 2, 3))
  }

  @Test func `tunnels nest up to a limit`() {
    var datagram = Frame.ipv4(6, Frame.tcp(Frame.hello))
    for _ in 0..<30 { datagram = Frame.ipv4(4, datagram) }
    let bytes = Frame.ethernet(0x0800, datagram)
    var packet = DecodedPacket.decode(bytes)
    var depth = 0
    var told = false
    while bytes.withRawSpan({ packet.enterTunnel($0) }) {
      depth += 1
      told = told || packet.events.contains(.tooManyLayers)
    }
    #expect(depth <= DecodedPacket.tunnelDepthLimit && packet.transport != .tcp)
    #expect(told || packet.isTunnel, "what is not followed can be told")
  }

  @Test func `ports of tunnels are settings`() {
    let inner = Frame.ethernet(0x0800, Frame.ipv4(6, Frame.tcp(Frame.hello)))
    let payload: [UInt8] = [8, 0, 0, 0, 0, 0, 9, 0] + inner
    let bytes = Frame.ethernet(0x0800, Frame.ipv4(17, Frame.udp(payload, destination: 8472)))
    func isTunnel(_ settings: DecodeSettings) -> Bool {
      bytes.withRawSpan {
        DecodedPacket.decode($0, linkType: .ethernet, strippedVLAN: 0, settings: settings).isTunnel
      }
    }
    var settings = DecodeSettings()
    #expect(!isTunnel(settings))
    settings.setPorts([1, 8472], of: .vxlan)
    #expect(isTunnel(settings))
    settings.setEnabled(false, .vxlan)
    #expect(!isTunnel(settings))
    settings.setEnabled(true, .vxlan)
    #expect(isTunnel(settings) && settings != DecodeSettings())
    // The same bits in the mask, another port.
    settings.setPorts([8472 - 64], of: .vxlan)
    #expect(!isTunnel(settings))
  }

  @Test(
    "what is at a tunnel's port and has not its form is no tunnel",
    arguments: [
      (4789, [8, 0, 0, 0, 0, 0, 9, 1]), (4789, [0, 0, 0, 0, 0, 0, 9, 0]), (6081, [0x40, 0, 0x65, 0x58, 0, 0, 0, 0]),
      (6081, [0x3F, 0, 0x65, 0x58, 0, 0, 0, 0]), (3544, [0x60, 0, 0, 0, 0, 9, 6, 64]), (3544, [0, 9, 0, 0]),
      (2152, [0x30, 0xFF, 0, 48, 0, 0, 0, 0]), (2152, [0x30, 0xFF, 0, 40, 0, 0, 0, 0, 0x45]),
      (2152, [0x30, 0x01, 0, 49, 0, 0, 0, 0, 0x45]), (2152, [0x34, 0xFF, 0, 52, 0, 0, 0, 0, 0, 0, 0, 5]),
      (2152, [0x34, 0xFF, 0, 53, 0, 0, 0, 0, 0, 0, 0, 5, 99]),
    ] as [(Int, [UInt8])])
  func notATunnel(port: Int, head: [UInt8]) {
    let payload = head + [UInt8](repeating: 0, count: 48)
    let packet = DecodedPacket.decode(Frame.ethernet(0x0800, Frame.ipv4(17, Frame.udp(payload, destination: port))))
    #expect(packet.transport == .udp && !packet.isTunnel)
  }

  @Test func `what a fragment carries is not decoded`() {
    let inner = Frame.ipv4(6, Frame.tcp(Frame.hello))
    #expect(!DecodedPacket.decode(Frame.ethernet(0x0800, Frame.ipv4(4, inner, fragment: 0x2000))).isTunnel)
  }

  @Test func `chunks of SCTP are walked`() {
    let bytes = Frame.ethernet(0x0800, Frame.ipv4(132, Frame.sctp([Frame.chunk(0, [1, 2, 3]), Frame.chunk(3, [9])])))
    let packet = DecodedPacket.decode(bytes)
    var cursor = SCTPChunkCursor(packet)
    var chunks: [[Int]] = []
    bytes.withRawSpan {
      while let chunk = cursor.next(in: $0) { chunks.append([Int(chunk.type), chunk.offset, chunk.length]) }
    }
    #expect(chunks == [[0, 50, 3], [3, 58, 1]] && cursor.problem == nil && packet.transport == .sctp)
  }
}
