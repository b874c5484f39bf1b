import Testing
import VMFenceCore

@Suite struct DispatchSpoofingTests {
  typealias Scene = DispatchScene
  private let outside = MACAddress(rawValue: 0x0200_0000_0001)
  private let other = MACAddress(rawValue: 0x0200_0000_0002)

  private func dispatcher(addresses: [String] = ["192.0.2.1", "2001:db8::1"]) throws -> Dispatcher {
    let guest = Scene.domain(1, addresses: addresses)
    return Dispatcher(
      DispatchTablePublisher(
        try DispatchTable(
          members: [DispatchMember(slot: 0, domain: guest)],
          ports: [
            DispatchPort(id: PortID(1), kind: .vif(owner: guest.incarnation)),
            DispatchPort(id: PortID(9), kind: .bridge("xenbr0")),
          ], key: (1, 2))))
  }

  private func send(
    _ dispatcher: inout Dispatcher, type: [UInt8] = [0x08, 0x00], _ payload: [UInt8], port: UInt32 = 1
  ) -> [Delivery] {
    dispatcher.targets(
      Scene.frame(port, .fromGuest), Scene.ethernet(from: Scene.mac(1), to: outside, type: type, payload))
  }

  @Test func `a forged MAC address is told, and the frame still goes to the port's owner`() throws {
    var dispatcher = try dispatcher()
    for source in [other, other, outside] {
      #expect(
        dispatcher.targets(Scene.frame(1, .fromGuest), Scene.ethernet(from: source, to: Scene.mac(7)))
          == [Delivery(slot: 0, direction: .fromGuest)])
    }
    let alerts = dispatcher.drainAlerts(at: .zero)
    #expect(alerts.map(\.kind) == [.spoofedSource, .spoofedSource] && alerts.map(\.count) == [2, 1])
    #expect(alerts.allSatisfy { $0.incarnation == Scene.incarnation(1) })
    #expect(alerts[0].message.contains("02:00:00:00:00:02") && dispatcher.counters.forgedMACs == 3)
    #expect(dispatcher.drainAlerts(at: .zero).isEmpty)
  }

  @Test func `a guest that forged its address gets no frame past inspection under another`() throws {
    var dispatcher = try dispatcher()
    let answer = Scene.ethernet(from: outside, to: other)
    #expect(dispatcher.targets(Scene.frame(1, .toGuest), answer).isEmpty)
    _ = dispatcher.targets(Scene.frame(1, .fromGuest), Scene.ethernet(from: other, to: outside))
    #expect(dispatcher.targets(Scene.frame(1, .toGuest), answer) == [Delivery(slot: 0, direction: .toGuest)])
  }

  @Test func `a forged IPv4 source is told with the address`() throws {
    var dispatcher = try dispatcher()
    #expect(send(&dispatcher, Scene.v4(from: [192, 0, 2, 1])).count == 1)
    #expect(dispatcher.drainAlerts(at: .zero).isEmpty)
    #expect(send(&dispatcher, Scene.v4(from: [192, 0, 2, 2])).count == 1)
    #expect(send(&dispatcher, Scene.v4(from: [192, 0, 2, 2]), port: 9).count == 1)
    let alerts = dispatcher.drainAlerts(at: .zero)
    #expect(alerts.map(\.source) == [IPAddress("192.0.2.2")] && alerts.map(\.count) == [2])
    #expect(alerts.map(\.kind) == [.spoofedSource])
  }

  @Test func `a forged IPv6 source is told, a link-local one is not`() throws {
    var dispatcher = try dispatcher()
    func v6(_ first: [UInt8], _ last: UInt8) -> [UInt8] {
      [0x60, 0, 0, 0, 0, 0, 59, 64] + first + Array(repeating: 0, count: 15 - first.count) + [last]
        + [UInt8](repeating: 0, count: 16)
    }
    for (first, last) in [([0x20, 0x01, 0x0D, 0xB8], 1), ([0xFE, 0x80], 9), ([0xFE, 0xBF], 9), ([], 0)]
      as [([UInt8], UInt8)]
    {
      _ = send(&dispatcher, type: [0x86, 0xDD], v6(first, last))
    }
    #expect(dispatcher.drainAlerts(at: .zero).isEmpty)
    _ = send(&dispatcher, type: [0x86, 0xDD], v6([0x20, 0x01, 0x0D, 0xB8], 2))
    _ = send(&dispatcher, type: [0x86, 0xDD], v6([0xFE, 0xC0], 9))
    #expect(
      dispatcher.drainAlerts(at: .zero).map(\.source) == [IPAddress("2001:db8::2"), IPAddress("fec0::9")])
  }

  @Test func `an ARP packet's sender is judged too, MAC and address`() throws {
    var dispatcher = try dispatcher()
    _ = send(&dispatcher, type: [0x08, 0x06], Scene.arp(Scene.mac(1), [192, 0, 2, 1]))
    _ = send(&dispatcher, type: [0x08, 0x06], Scene.arp(Scene.mac(1), [0, 0, 0, 0]))
    #expect(dispatcher.drainAlerts(at: .zero).isEmpty)
    _ = send(&dispatcher, type: [0x08, 0x06], Scene.arp(other, [192, 0, 2, 254]))
    let alerts = dispatcher.drainAlerts(at: .zero)
    #expect(alerts.map(\.source) == [nil, IPAddress("192.0.2.254")])
    // Where no addresses are configured, the MAC address in it still is.
    var unconfigured = try self.dispatcher(addresses: [])
    _ = send(&unconfigured, type: [0x08, 0x06], Scene.arp(other, [192, 0, 2, 254]))
    #expect(unconfigured.drainAlerts(at: .zero).map(\.source) == [nil])
  }

  @Test func `a source behind VLAN tags is judged`() throws {
    var dispatcher = try dispatcher()
    _ = send(&dispatcher, type: [0x88, 0xA8], [0, 1, 0x81, 0, 0, 2, 8, 0] + Scene.v4(from: [192, 0, 2, 3]))
    #expect(dispatcher.drainAlerts(at: .zero).map(\.source) == [IPAddress("192.0.2.3")])
    // Tags without end and frames cut off say nothing, and trap nothing.
    _ = send(&dispatcher, type: [0x81, 0], [UInt8]([[UInt8]](repeating: [0, 1, 0x81, 0], count: 40).joined()))
    for length in 0..<20 { _ = send(&dispatcher, Array(Scene.v4(from: [192, 0, 2, 3])[..<length])) }
    #expect(dispatcher.drainAlerts(at: .zero).isEmpty)
  }

  @Test func `a source in 802_3 is judged, and only behind a whole header of IP's or ARP's`() throws {
    var dispatcher = try dispatcher()
    func snap(_ header: [UInt8], _ type: [UInt8], _ payload: [UInt8]) throws -> IPAddress? {
      for length in 0..<8 { _ = send(&dispatcher, type: [0, 60], Array((header + type).prefix(length))) }
      #expect(dispatcher.drainAlerts(at: .zero).isEmpty)
      _ = send(&dispatcher, type: [0, 60], header + type + payload)
      return dispatcher.drainAlerts(at: .zero).first?.source
    }
    let packet = Scene.v4(from: [192, 0, 2, 3])
    #expect(try snap([0xAA, 0xAA, 3, 0, 0, 0], [8, 0], packet) == IPAddress("192.0.2.3"))
    #expect(try snap([0xAA, 0xAA, 3, 0, 0, 0xF8], [8, 0], packet) == IPAddress("192.0.2.3"))
    #expect(
      try snap([0xAA, 0xAA, 3, 0, 0, 0], [8, 6], Scene.arp(Scene.mac(1), [192, 0, 2, 254])) == IPAddress("192.0.2.254"))
    #expect(try snap([0xAA, 0xAA, 3, 0, 0, 0x0C], [8, 0], packet) == nil, "another organization's number")
    #expect(try snap([0xE0, 0xE0, 3, 0, 0, 0], [8, 0], packet) == nil)
  }

  @Test func `unknown addresses are never called forged, nor those of a family that is not configured`() throws {
    var unconfigured = try dispatcher(addresses: [])
    _ = send(&unconfigured, Scene.v4(from: [203, 0, 113, 5]))
    #expect(unconfigured.drainAlerts(at: .zero).isEmpty)
    var v6Only = try dispatcher(addresses: ["2001:db8::1"])
    _ = send(&v6Only, Scene.v4(from: [203, 0, 113, 5]))
    #expect(v6Only.drainAlerts(at: .zero).isEmpty && v6Only.counters.forgedAddresses == 0)
  }

  @Test func `frames to the guest are not judged by its addresses`() throws {
    var dispatcher = try dispatcher()
    let frame = Scene.ethernet(from: outside, to: Scene.mac(1), Scene.v4(from: [203, 0, 113, 5]))
    #expect(dispatcher.targets(Scene.frame(1, .toGuest), frame).count == 1)
    #expect(dispatcher.drainAlerts(at: .zero).isEmpty)
  }

  @Test func `a flood of forged sources gives a bounded number of alerts, with nothing uncounted`() throws {
    var dispatcher = try dispatcher()
    for number in 0..<10_000 as Range<UInt64> {
      let source = MACAddress(rawValue: 0x0200_0001_0000 + number)
      #expect(dispatcher.targets(Scene.frame(1, .fromGuest), Scene.ethernet(from: source, to: outside)).count == 1)
    }
    let alerts = dispatcher.drainAlerts(at: .zero)
    #expect(alerts.count == 17 && alerts.reduce(0) { $0 + $1.count } == 10_000)
    #expect(alerts.last?.count == 10_000 - 16 && alerts.last?.kind == .spoofedSource)
  }

  @Test func `a name from outside is escaped in what is told`() throws {
    var guest = Scene.domain(1)
    guest.name = "evil\u{1B}[2J"
    var dispatcher = Dispatcher(
      DispatchTablePublisher(
        try DispatchTable(
          members: [DispatchMember(slot: 0, domain: guest)],
          ports: [DispatchPort(id: PortID(1), kind: .vif(owner: guest.incarnation))], key: (1, 2))))
    _ = dispatcher.targets(Scene.frame(1, .fromGuest), Scene.ethernet(from: other, to: outside))
    #expect(dispatcher.drainAlerts(at: .zero).allSatisfy { $0.message.contains("evil\\u{1b}[2J") })
  }
}
