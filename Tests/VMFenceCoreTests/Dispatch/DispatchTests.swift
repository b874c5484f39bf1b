import Testing
import VMFenceCore

/// A host with bridges and guests, in few words.
enum DispatchScene {
  static func incarnation(_ number: UInt64, _ domainID: UInt32? = nil) -> Incarnation {
    Incarnation(uuid: DomainUUID(high: 0, low: number), domainID: DomainID(domainID ?? UInt32(number)))
  }

  static func mac(_ number: UInt64) -> MACAddress { MACAddress(rawValue: 0x0016_3E00_0000 + number) }

  static func domain(
    _ number: UInt64, domainID: UInt32? = nil, bridge: String? = "xenbr0", mac: MACAddress? = nil,
    addresses: [String] = [], migration: MigrationRole = .none
  ) -> DomainDescription {
    DomainDescription(
      incarnation: incarnation(number, domainID), name: "guest\(number)",
      ports: [
        NetworkPort(
          interface: "vif\(number).0", bridge: bridge, mac: mac ?? self.mac(number),
          addresses: addresses.compactMap { IPAddress($0) })
      ], migration: migration)
  }

  static func frame(
    _ port: UInt32, _ direction: FrameDirection = .unknown, linkType: LinkType = .ethernet
  ) -> FrameMetadata {
    FrameMetadata(
      timestamp: .zero, port: PortID(port), direction: direction, linkType: linkType, originalLength: 60)
  }

  static func bytes(_ mac: MACAddress) -> [UInt8] {
    (0..<6).map { UInt8(truncatingIfNeeded: mac.rawValue >> UInt64(40 - 8 * $0)) }
  }

  static func ethernet(
    from source: MACAddress, to destination: MACAddress, type: [UInt8] = [0x08, 0x00], _ payload: [UInt8] = []
  ) -> [UInt8] { bytes(destination) + bytes(source) + type + payload }

  static func v4(from source: [UInt8]) -> [UInt8] {
    [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0] + source + [198, 51, 100, 1]
  }

  static func arp(_ mac: MACAddress, _ address: [UInt8]) -> [UInt8] {
    [0, 1, 8, 0, 6, 4, 0, 1] + bytes(mac) + address + [0, 0, 0, 0, 0, 0, 192, 0, 2, 99]
  }
}

/// Where a frame went.
struct Delivery: Hashable, CustomStringConvertible {
  var slot: Int
  var direction: FrameDirection
  var description: String { "\(slot) \(direction)" }
}

extension Dispatcher {
  mutating func targets(_ frame: FrameMetadata, _ bytes: [UInt8]) -> [Delivery] {
    var result: [Delivery] = []
    bytes.withRawSpan { span in
      dispatch(frame, span) { result.append(Delivery(slot: $0, direction: $1)) }
    }
    return result
  }
}

@Suite struct DispatchTests {
  typealias Scene = DispatchScene
  private let outside = MACAddress(rawValue: 0x0200_0000_0001)

  /// Guests 1 and 2 at slots 0 and 1, each with a port of its own (1 and 2), and the bridge as port 9.
  private func dispatcher(
    _ domains: [DomainDescription] = [DispatchScene.domain(1), DispatchScene.domain(2)]
  ) throws -> Dispatcher {
    let members = domains.enumerated().map { DispatchMember(slot: $0, domain: $1) }
    var ports = domains.enumerated().map {
      DispatchPort(id: PortID(UInt32($0 + 1)), kind: .vif(owner: $1.incarnation))
    }
    ports.append(DispatchPort(id: PortID(9), kind: .bridge("xenbr0")))
    return Dispatcher(DispatchTablePublisher(try DispatchTable(members: members, ports: ports, key: (1, 2))))
  }

  // MARK: A domain's own port

  @Test func `at a domain's port its frames are its own, from and to it`() throws {
    var dispatcher = try dispatcher()
    #expect(
      dispatcher.targets(Scene.frame(1, .fromGuest), Scene.ethernet(from: Scene.mac(1), to: outside))
        == [Delivery(slot: 0, direction: .fromGuest)])
    #expect(
      dispatcher.targets(Scene.frame(1, .toGuest), Scene.ethernet(from: outside, to: Scene.mac(1)))
        == [Delivery(slot: 0, direction: .toGuest)])
    #expect(
      dispatcher.targets(Scene.frame(1, .toGuest), Scene.ethernet(from: outside, to: .broadcast))
        == [Delivery(slot: 0, direction: .toGuest)])
    #expect(dispatcher.drainAlerts(at: .zero).isEmpty && dispatcher.counters.delivered == 3)
  }

  @Test func `a flooded frame for somebody else is counted and not delivered`() throws {
    var dispatcher = try dispatcher()
    #expect(dispatcher.targets(Scene.frame(1, .toGuest), Scene.ethernet(from: outside, to: Scene.mac(2))).isEmpty)
    #expect(dispatcher.counters.notForGuest == 1 && dispatcher.counters.delivered == 0)
  }

  @Test func `without a direction the addresses tell it, and a frame that they tell nothing of is inspected`() throws {
    var dispatcher = try dispatcher()
    #expect(
      dispatcher.targets(Scene.frame(2), Scene.ethernet(from: Scene.mac(2), to: outside))
        == [Delivery(slot: 1, direction: .fromGuest)])
    #expect(
      dispatcher.targets(Scene.frame(2), Scene.ethernet(from: outside, to: Scene.mac(2)))
        == [Delivery(slot: 1, direction: .toGuest)])
    #expect(
      dispatcher.targets(Scene.frame(2), Scene.ethernet(from: outside, to: Scene.mac(1)))
        == [Delivery(slot: 1, direction: .unknown)])
    #expect(dispatcher.counters.undirected == 1 && dispatcher.counters.forgedMACs == 0)
  }

  @Test func `a frame between guests is seen once on each side`() throws {
    var dispatcher = try dispatcher()
    let frame = Scene.ethernet(from: Scene.mac(1), to: Scene.mac(2))
    let seen =
      dispatcher.targets(Scene.frame(1, .fromGuest), frame) + dispatcher.targets(Scene.frame(2, .toGuest), frame)
    #expect(seen == [Delivery(slot: 0, direction: .fromGuest), Delivery(slot: 1, direction: .toGuest)])
  }

  @Test func `a domain may have two ports`() throws {
    let guest = Scene.domain(1)
    let table = try DispatchTable(
      members: [DispatchMember(slot: 4, domain: guest)],
      ports: [1, 2].map { DispatchPort(id: PortID($0), kind: .vif(owner: guest.incarnation)) }, key: (0, 0))
    var dispatcher = Dispatcher(DispatchTablePublisher(table))
    for port: UInt32 in [1, 2] {
      #expect(
        dispatcher.targets(Scene.frame(port, .fromGuest), Scene.ethernet(from: Scene.mac(1), to: outside))
          == [Delivery(slot: 4, direction: .fromGuest)])
    }
    #expect(dispatcher.drainAlerts(at: .zero).isEmpty)
  }

  @Test func `other link types belong to the port's owner`() throws {
    var dispatcher = try dispatcher()
    #expect(
      dispatcher.targets(Scene.frame(1, .toGuest, linkType: .raw), [0x45])
        == [Delivery(slot: 0, direction: .toGuest)])
    #expect(dispatcher.targets(Scene.frame(9, .toGuest, linkType: .raw), [0x45]).isEmpty)
    #expect(dispatcher.counters.unknown == 1 && dispatcher.counters.malformed == 0)
  }

  @Test(arguments: 0..<14)
  func `a frame too short for addresses is counted, and inspected where its owner is known`(length: Int) throws {
    var dispatcher = try dispatcher()
    let bytes = [UInt8](repeating: 0xFF, count: length)
    #expect(dispatcher.targets(Scene.frame(1, .fromGuest), bytes) == [Delivery(slot: 0, direction: .fromGuest)])
    #expect(dispatcher.targets(Scene.frame(9), bytes).isEmpty)
    #expect(dispatcher.counters.malformed == 2 && dispatcher.counters.unknown == 1)
  }

  @Test func `a port that nobody announced is counted`() throws {
    var dispatcher = try dispatcher()
    #expect(dispatcher.targets(Scene.frame(77), Scene.ethernet(from: Scene.mac(1), to: outside)).isEmpty)
    #expect(dispatcher.counters.unknownPort == 1)
  }

  // MARK: A bridge

  @Test func `on a bridge both ends are looked up`() throws {
    var dispatcher = try dispatcher()
    #expect(
      dispatcher.targets(Scene.frame(9), Scene.ethernet(from: Scene.mac(1), to: Scene.mac(2)))
        == [Delivery(slot: 0, direction: .fromGuest), Delivery(slot: 1, direction: .toGuest)])
    #expect(
      dispatcher.targets(Scene.frame(9), Scene.ethernet(from: outside, to: Scene.mac(2)))
        == [Delivery(slot: 1, direction: .toGuest)])
    #expect(
      dispatcher.targets(Scene.frame(9), Scene.ethernet(from: Scene.mac(2), to: outside))
        == [Delivery(slot: 1, direction: .fromGuest)])
  }

  @Test func `on a bridge a group frame reaches everybody but its sender`() throws {
    var dispatcher = try dispatcher([Scene.domain(1), Scene.domain(2), Scene.domain(3, bridge: "other")])
    let multicast = MACAddress(rawValue: 0x0100_5E00_0001)
    #expect(
      dispatcher.targets(Scene.frame(9), Scene.ethernet(from: Scene.mac(1), to: .broadcast))
        == [Delivery(slot: 0, direction: .fromGuest), Delivery(slot: 1, direction: .toGuest)])
    #expect(
      dispatcher.targets(Scene.frame(9), Scene.ethernet(from: outside, to: multicast))
        == [Delivery(slot: 0, direction: .toGuest), Delivery(slot: 1, direction: .toGuest)])
  }

  @Test func `on a bridge frames of nobody we know are counted and told once`() throws {
    var dispatcher = try dispatcher()
    for _ in 0..<3 {
      #expect(dispatcher.targets(Scene.frame(9), Scene.ethernet(from: outside, to: Scene.mac(7))).isEmpty)
    }
    #expect(dispatcher.counters.unknown == 3)
    let alerts = dispatcher.drainAlerts(at: Timestamp(nanoseconds: 5))
    #expect(alerts.map(\.kind) == [.unknownSource] && alerts.map(\.count) == [3] && alerts.map(\.incarnation) == [nil])
    #expect(alerts[0].message.contains("02:00:00:00:00:01"))
  }

  @Test func `a domain whose bridge is not known is on every bridge`() throws {
    var dispatcher = try dispatcher([Scene.domain(1, bridge: nil)])
    #expect(
      dispatcher.targets(Scene.frame(9), Scene.ethernet(from: outside, to: Scene.mac(1)))
        == [Delivery(slot: 0, direction: .toGuest)])
  }

  // MARK: Changes

  @Test func `a new table is in force from the next refresh on`() throws {
    let guest = Scene.domain(1)
    let other = Scene.domain(2)
    func table(_ domain: DomainDescription) throws -> DispatchTable {
      try DispatchTable(
        members: [DispatchMember(slot: 0, domain: domain)],
        ports: [DispatchPort(id: PortID(1), kind: .vif(owner: domain.incarnation))], key: (0, 0))
    }
    let publisher = DispatchTablePublisher(try table(guest))
    var dispatcher = Dispatcher(publisher)
    let forged = Scene.ethernet(from: outside, to: Scene.mac(9))
    let refreshed = dispatcher.refresh(at: .zero)
    #expect(refreshed.isEmpty)
    _ = dispatcher.targets(Scene.frame(1, .fromGuest), forged)
    publisher.publish(try table(other))
    _ = dispatcher.targets(Scene.frame(1, .fromGuest), forged)
    let alerts = dispatcher.refresh(at: Timestamp(nanoseconds: 7))
    // What was counted under the old table names the old domain.
    #expect(alerts.map(\.incarnation) == [guest.incarnation] && alerts.map(\.count) == [2])
    #expect(alerts.map(\.time) == [Timestamp(nanoseconds: 7)])
    _ = dispatcher.targets(Scene.frame(1, .fromGuest), forged)
    #expect(dispatcher.drainAlerts(at: .zero).map(\.incarnation) == [other.incarnation])
    let again = dispatcher.refresh(at: .zero)
    #expect(again.isEmpty)
  }

  @Test func `an empty table knows no port`() {
    var dispatcher = Dispatcher(DispatchTablePublisher())
    #expect(dispatcher.targets(Scene.frame(0), Scene.ethernet(from: outside, to: Scene.mac(1))).isEmpty)
    #expect(dispatcher.counters.unknownPort == 1)
  }

  @Test func `a thousand domains are told apart`() throws {
    let domains = (0..<1_000).map { Scene.domain(UInt64($0)) }
    var dispatcher = Dispatcher(
      DispatchTablePublisher(
        try DispatchTable(
          members: domains.enumerated().map { DispatchMember(slot: $0, domain: $1) },
          ports: [DispatchPort(id: PortID(9), kind: .bridge("xenbr0"))], key: (5, 6))))
    for number in 0..<1_000 {
      let peer = (number + 1) % 1_000
      #expect(
        dispatcher.targets(
          Scene.frame(9), Scene.ethernet(from: Scene.mac(UInt64(number)), to: Scene.mac(UInt64(peer))))
          == [Delivery(slot: number, direction: .fromGuest), Delivery(slot: peer, direction: .toGuest)])
    }
  }
}
