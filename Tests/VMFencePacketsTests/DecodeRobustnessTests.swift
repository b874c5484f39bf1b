import Testing
import VMFenceCore
import VMFencePackets

/// What must hold of a decoded packet whatever the bytes were.
@Suite struct DecodeRobustnessTests {
  static let linkTypes: [LinkType] = [
    .null, .ethernet, .ppp, .rawBSD, .rawOpenBSD, .raw, .ciscoHDLC, .loop, .linuxSLL, .ipv4, .ipv6, .linuxSLL2,
    LinkType(rawValue: 147),
  ]

  private func check(_ bytes: [UInt8], _ linkType: LinkType, vlan: UInt16 = 0) {
    let packet = DecodedPacket.decode(bytes, linkType, vlan: vlan)
    let count = Int32(bytes.count)
    var holds = packet.payloadOffset >= 0 && packet.payloadLength >= 0
    holds = holds && packet.payloadOffset + packet.payloadLength <= count
    holds = holds && packet.networkOffset >= 0 && packet.networkOffset <= packet.networkEnd
    holds = holds && packet.networkEnd <= count
    if packet.transport != .none {
      holds = holds && packet.networkOffset < packet.transportOffset && packet.transportOffset <= packet.payloadOffset
      holds = holds && packet.payloadOffset + packet.payloadLength <= packet.networkEnd
    }
    // The fast way gives what the long way gives.
    var long = DecodedPacket()
    bytes.withRawSpan { long.decodeAnyFrame($0, linkType: linkType, strippedVLAN: vlan) }
    holds = holds && packet.allFields == long.allFields
    #expect(holds, "\(linkType.rawValue): \(bytes)")
    checkTunnels(bytes, packet)
  }

  /// The packets in the frame's tunnels obey the same bounds, and there is an end of them.
  private func checkTunnels(_ bytes: [UInt8], _ outer: DecodedPacket) {
    var packet = outer
    var depth = 0
    while bytes.withRawSpan({ packet.enterTunnel($0) }) {
      depth += 1
      let payloadEnd = packet.payloadOffset + packet.payloadLength
      var holds = packet.payloadLength >= 0 && packet.payloadOffset >= 0 && payloadEnd <= Int32(bytes.count)
      holds = holds && packet.networkOffset <= packet.networkEnd && packet.networkEnd <= Int32(bytes.count)
      holds = holds && packet.tunnelDepth == depth && depth <= DecodedPacket.tunnelDepthLimit
      #expect(holds, "depth \(depth): \(bytes)")
      guard holds else { return }
    }
  }

  @Test(arguments: Frame.samples.indices)
  func `every sample cut at every byte is decoded within its bounds, as every link type`(index: Int) {
    let bytes = Frame.samples[index].bytes
    for length in 0...bytes.count {
      let part = Array(bytes[..<length])
      check(part, Frame.samples[index].linkType)
      check(part, Self.linkTypes[length % Self.linkTypes.count], vlan: UInt16(length))
    }
  }

  @Test(arguments: Frame.nested.indices)
  func `every nested sample cut at every byte is decoded within its bounds`(index: Int) {
    let (_, _, bytes) = Frame.nested[index]
    for length in 0...bytes.count { check(Array(bytes[..<length]), .ethernet) }
  }

  @Test(arguments: 0..<8 as Range<UInt64>)
  func `mutated frames are decoded within their bounds`(seed: UInt64) {
    var random = SeededGenerator(state: seed)
    for _ in 0..<1_500 {
      let samples = Frame.samples + Frame.nested.map { ($0.name, .ethernet, $0.bytes) }
      let sample = samples[Int.random(in: 0..<samples.count, using: &random)]
      var bytes = sample.bytes
      for _ in 0..<Int.random(in: 1...4, using: &random) {
        let position = Int.random(in: 0..<bytes.count, using: &random)
        bytes[position] =
          Bool.random(using: &random)
          ? UInt8.random(in: 0...255, using: &random) : [0, 255, 0x7F].randomElement(using: &random) ?? 0
      }
      if Bool.random(using: &random) { bytes.removeLast(Int.random(in: 0...bytes.count, using: &random)) }
      check(bytes, sample.linkType)
    }
  }

  @Test func `random bytes are decoded within their bounds`() {
    var random = SeededGenerator(state: 99)
    for _ in 0..<3_000 {
      let bytes = (0..<Int.random(in: 0...120, using: &random)).map { _ in UInt8.random(in: 0...255, using: &random) }
      for linkType in Self.linkTypes.shuffled(using: &random).prefix(3) { check(bytes, linkType) }
    }
  }
}
