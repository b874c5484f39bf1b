import Testing
import ToyEngine
import VMFenceCore

/// What a detector may say of an address, compared with the packet that the supervisor gave it.
@Suite("A detector proves addresses only with the packet at hand")
struct AttestationTests {
  private static let remote = IPAddress("203.0.113.99")!
  private static let guest = IPAddress("10.77.0.11")!

  /// An Ethernet frame with a TCP segment from the remote end to the guest, or back.
  private static func frame(answer: Bool = false, ports: (UInt16, UInt16) = (40_000, 80)) -> [UInt8] {
    let (source, destination) = answer ? (guest, remote) : (remote, guest)
    let (from, to) = answer ? (ports.1, ports.0) : ports
    return Array(repeating: 2, count: 12) + [0x08, 0x00] + [0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0]
      + bytes(source.low, 4) + bytes(destination.low, 4) + bytes(UInt64(from), 2) + bytes(UInt64(to), 2)
      + Array(repeating: 0, count: 16)
  }

  private static func bytes(_ value: UInt64, _ count: Int) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64((count - 1 - $0) * 8)) }
  }

  struct Case: Sendable, CustomTestStringConvertible {
    var testDescription: String
    var frame: [UInt8]? = AttestationTests.frame()
    var origin = PacketOrigin.wire
    var layer: UInt8 = 0
    var isEstablished: Bool
    var isAttested: Bool
    var way: FrameDirection
    var unproved: UInt64 = 0
  }

  static let cases = [
    Case(testDescription: "its own packet", isEstablished: true, isAttested: true, way: .toGuest),
    Case(
      testDescription: "the packet that acknowledges it", frame: frame(answer: true), isEstablished: true,
      isAttested: true, way: .fromGuest),
    Case(
      testDescription: "a packet of another connection", frame: frame(ports: (40_001, 80)), isEstablished: false,
      isAttested: false, way: .unknown, unproved: 1),
    Case(
      testDescription: "no TCP packet at all", frame: [1, 2, 3], isEstablished: false, isAttested: false, way: .unknown,
      unproved: 1),
    Case(
      testDescription: "no packet", frame: nil, isEstablished: false, isAttested: false, way: .unknown, unproved: 1),
    Case(
      testDescription: "no packet, of a silence", frame: nil, origin: .flowTimeout, isEstablished: true,
      isAttested: false, way: .unknown),
    Case(
      testDescription: "another packet, of the end of a flow", frame: [1, 2, 3], origin: .flowTimeout,
      isEstablished: true, isAttested: false, way: .unknown),
    Case(
      testDescription: "what a tunnel carries, which no policy believes", frame: [1, 2, 3], layer: 3,
      isEstablished: true, isAttested: true, way: .unknown),
  ]

  @Test("an alert keeps of its claims what the packet bears out", arguments: cases)
  func claim(_ given: Case) throws {
    let channel = try ThreadDetectorBackend<ToyInspector>().makeChannel(
      DetectorChannelConfiguration(packetRingBytes: 4096, verdictRingBytes: 16384, snapLength: 1500))
    _ = try DetectorSocket.pair().attach(to: channel, ruleCount: 5)
    if let frame = given.frame {
      #expect(channel.send(frame) != .full)
    } else {
      #expect(channel.enqueueTime(Timestamp(seconds: 1)))
    }
    channel.publish()
    let forger = Forger(channel)
    forger.header(id: 0, alerts: 1)
    forger.alert()
    let alert = Forger.ring + 16
    forger.set(Self.remote.low, at: alert + 24)
    forger.set(Self.guest.low, at: alert + 40)
    forger.set(40_000 as UInt16, at: alert + 52)
    forger.set(80 as UInt16, at: alert + 54)
    forger.set(6 as UInt8, at: alert + 58)
    forger.set(AlertRecord.Flags([.toServer, .established]).rawValue, at: alert + 59)
    forger.set(given.layer, at: alert + 61)
    forger.set(given.origin.rawValue, at: alert + 63)
    forger.tail(208)
    var found: [Alert] = []
    try channel.collect { verdict, alerts in
      for index in alerts.indices {
        found.append(
          Alert(
            alerts[index], rule: RuleMetadata(sid: 1), incarnation: incarnation(1), packetID: verdict.id, verdict: .pass
          ))
      }
    }
    let result = try #require(found.first)
    #expect(result.source == Self.remote && result.destination == Self.guest && result.layer == given.layer)
    #expect(result.isEstablished == given.isEstablished)
    #expect(result.isAttested == given.isAttested)
    #expect(result.way == given.way)
    #expect(channel.counters.unproved == given.unproved)
  }
}

@Suite("The ends of a frame, as the supervisor reads them")
struct FrameEndsTests {
  private func ends(_ bytes: [UInt8], _ linkType: LinkType = .ethernet) -> FrameEnds? {
    bytes.withRawSpan { FrameEnds($0, linkType) }
  }

  private let link: [UInt8] = Array(repeating: 2, count: 12)
  private let tcp: [UInt8] = [0x9C, 0x40, 0, 80] + Array(repeating: 0, count: 16)

  private func v4(
    _ payload: [UInt8], proto: UInt8 = 6, fragment: UInt16 = 0, options: Int = 0
  ) -> [UInt8] {
    [UInt8(0x45 + options), 0, 0, 40, 0, 1, UInt8(fragment >> 8), UInt8(fragment & 0xFF), 64, proto, 0, 0]
      + [203, 0, 113, 99] + [10, 77, 0, 11] + Array(repeating: 1, count: options * 4) + payload
  }

  private func v6(_ next: UInt8, _ payload: [UInt8]) -> [UInt8] {
    [0x60, 0, 0, 0, 0, 20, next, 64] + [0x20, 0x01, 0x0D, 0xB8] + Array(repeating: 0, count: 11) + [9]
      + [0xFD, 0x77] + Array(repeating: 0, count: 13) + [0x11] + payload
  }

  private func expectPorts(
    _ found: FrameEnds?, _ isThere: Bool = true, sourceLocation: SourceLocation = #_sourceLocation
  ) {
    #expect(found?.ipProtocol == 6, sourceLocation: sourceLocation)
    #expect(found?.sourcePort == (isThere ? 40_000 : 0), sourceLocation: sourceLocation)
    #expect(found?.destinationPort == (isThere ? 80 : 0), sourceLocation: sourceLocation)
  }

  @Test("IPv4 behind up to any number of VLAN tags, with options, and without a link header")
  func ipv4() {
    let plain = ends(link + [0x08, 0] + v4(tcp))
    expectPorts(plain)
    #expect(plain?.source == IPAddress("203.0.113.99") && plain?.destination == IPAddress("10.77.0.11"))
    expectPorts(ends(link + [0x81, 0, 0, 5, 0x88, 0xA8, 0, 6, 0x08, 0] + v4(tcp)))
    expectPorts(ends(link + [0x08, 0] + v4(tcp, options: 10)))
    expectPorts(ends(v4(tcp), .raw))
    expectPorts(ends(Array(repeating: 0, count: 14) + [0x08, 0] + v4(tcp), .linuxSLL))
  }

  @Test("IPv6 behind any number of extension headers")
  func ipv6() {
    expectPorts(ends(link + [0x86, 0xDD] + v6(6, tcp)))
    var chain = tcp
    var next: UInt8 = 6
    for _ in 0..<60 {
      chain = [next, 0, 0, 0, 0, 0, 0, 0] + chain
      next = 60
    }
    expectPorts(ends(link + [0x86, 0xDD] + v6(60, chain)))
    expectPorts(ends(link + [0x86, 0xDD] + v6(44, [6, 0, 0, 0, 0, 0, 0, 1] + tcp)))
  }

  @Test("a fragment has addresses and no ports")
  func fragments() {
    for fragment in [0x2000, 0x0001, 0x2005] as [UInt16] {
      let found = ends(link + [0x08, 0] + v4(tcp, fragment: fragment))
      #expect(found?.isFragment == true)
      expectPorts(found, false)
    }
    for offset in [1, 8] as [UInt8] {
      let found = ends(link + [0x86, 0xDD] + v6(44, [6, 0, 0, offset, 0, 0, 0, 1] + tcp))
      #expect(found?.isFragment == true)
      expectPorts(found, false)
    }
  }

  @Test("whatever is cut off or is something else has none, or no ports")
  func malformed() {
    let tagged = link + [0x81, 0, 0, 5, 0x08, 0] + v4(tcp, options: 3)
    for whole in [tagged, link + [0x86, 0xDD] + v6(60, [6, 0, 0, 0, 0, 0, 0, 0] + tcp)] {
      for length in 0..<whole.count {
        let found = ends(Array(whole.prefix(length)))
        #expect(found == nil || length >= 38)
      }
    }
    #expect(ends(link + [0x88, 0x47] + v4(tcp)) == nil)
    #expect(ends(link + [0x08, 0, 0x55] + v4(tcp).dropFirst()) == nil)
    #expect(ends(link + [0x08, 0, 0x44] + v4(tcp).dropFirst()) == nil)
    #expect(ends(v4(tcp), LinkType(rawValue: 999)) == nil)
    expectPorts(ends(link + [0x08, 0] + v4([])), false)
  }
}
