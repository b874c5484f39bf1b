import Testing
import VMFenceCore
import VMFencePackets

@Suite struct DecodeEventTests {
  @Test func `every event has a name of its own, by which it is found`() {
    for event in DecodeEvent.allCases { #expect(DecodeEvent(named: event.name) == event, "\(event.name)") }
    #expect(Set(DecodeEvent.allCases.map(\.name)).count == DecodeEvent.allCases.count)
    #expect(DecodeEvent(named: "ipv4.none") == nil)
    #expect(DecodeEvent.ipv4Truncated.snortSID == 6 && DecodeEvent.igmpTooSmall.snortSID == nil)
  }

  @Test func `a set holds what was put in, and nothing else`() {
    var set = DecodeEventSet()
    let some: [DecodeEvent] = [.ipv4PacketTooSmall, .tcpOptionTwice, .nshVersion, .tooManyLayers]
    for event in some { set.insert(event) }
    #expect(set.elements == some && !set.isEmpty)
    var other = DecodeEventSet()
    #expect(other.isEmpty)
    other.formUnion(set)
    #expect(other == set)
  }

  @Test(arguments: EventSamples.linkAndNetwork.indices)
  func `link and network`(index: Int) { check(EventSamples.linkAndNetwork[index]) }

  @Test(arguments: EventSamples.transport.indices)
  func `transport`(index: Int) { check(EventSamples.transport[index]) }

  @Test(arguments: EventSamples.options.indices)
  func `options`(index: Int) { check(EventSamples.options[index]) }

  private func check(_ sample: ([UInt8], DecodeEvent)) {
    let packet = DecodedPacket.decode(sample.0)
    #expect(packet.events.contains(sample.1), "\(sample.1.name): \(packet.events.elements)")
  }

  @Test(
    "other link types",
    arguments: [
      ([2, 0], .null, .loopbackTooSmall), ([9, 0, 0, 0], .null, .loopbackUnsupported), ([0x55], .raw, .rawWrongVersion),
      ([0, 0], .linuxSLL, .cookedTooSmall), ([0, 0], .linuxSLL2, .cooked2TooSmall), ([0xFF, 3], .ppp, .pppTooSmall),
      ([15, 0], .ciscoHDLC, .hdlcTooSmall),
    ] as [([UInt8], LinkType, DecodeEvent)])
  func linkTypes(bytes: [UInt8], linkType: LinkType, event: DecodeEvent) {
    #expect(DecodedPacket.decode(bytes, linkType).events.elements == [event])
  }

  @Test func `what is in a tunnel has events of its own`() {
    let bytes = EventSamples.gre(0x1000, 0x88BE, Frame.be32(1) + [0x20, 0, 0, 0, 0, 0, 0, 0])
    var packet = DecodedPacket.decode(bytes)
    #expect(packet.events.isEmpty)
    #expect(bytes.withRawSpan { packet.enterTunnel($0) })
    #expect(packet.events.elements == [.erspanVersion])
  }
}
