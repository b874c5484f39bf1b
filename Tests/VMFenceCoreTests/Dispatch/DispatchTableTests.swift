import Testing
import VMFenceCore

/// What a dispatch table can be made of.
@Suite struct DispatchTableTests {
  typealias Scene = DispatchScene
  private let outside = MACAddress(rawValue: 0x0200_0000_0001)

  private func table(_ domains: [DomainDescription], _ ports: [DispatchPort]) throws(DispatchError) -> DispatchTable {
    try DispatchTable(
      members: domains.enumerated().map { DispatchMember(slot: $0, domain: $1) }, ports: ports, key: (1, 2))
  }

  private func failure(_ domains: [DomainDescription], _ ports: [DispatchPort] = []) -> DispatchError? {
    do throws(DispatchError) {
      _ = try table(domains, ports)
      return nil
    } catch { return error }
  }

  private let bridge = DispatchPort(id: PortID(9), kind: .bridge("xenbr0"))

  @Test func `two domains on one bridge with one MAC address are refused, both named`() throws {
    let error = try #require(failure([Scene.domain(1), Scene.domain(2, mac: Scene.mac(1))]))
    #expect(error.code == .overlappingMAC && !error.remedy.isEmpty)
    #expect(error.message.contains("guest1") && error.message.contains("guest2"))
    #expect(error.message.contains("00:16:3e:00:00:01") && error.message.contains("xenbr0"))
    #expect(failure([Scene.domain(1), Scene.domain(2, bridge: nil, mac: Scene.mac(1))])?.code == .overlappingMAC)
  }

  @Test func `one MAC address on two bridges is no overlap, unless both are captured as one`() {
    let domains = [Scene.domain(1), Scene.domain(2, bridge: "other", mac: Scene.mac(1))]
    #expect(failure(domains, [bridge]) == nil)
    #expect(failure(domains, [DispatchPort(id: PortID(3), kind: .bridge(nil))])?.code == .overlappingMAC)
  }

  @Test(
    arguments: [
      (.none, .incoming, 0), (.incoming, .none, 1), (.none, .migratedAway, 0), (.migratedAway, .none, 1),
      (.migratedAway, .incoming, 1), (.incoming, .migratedAway, 0),
    ] as [(MigrationRole, MigrationRole, Int)])
  func `during a migration one of two incarnations speaks for their address`(
    first: MigrationRole, second: MigrationRole, winner: Int
  ) throws {
    let domains = [
      Scene.domain(1, domainID: 11, migration: first),
      Scene.domain(1, domainID: 12, migration: second),
    ]
    let ports =
      [bridge]
      + domains.enumerated().map {
        DispatchPort(id: PortID(UInt32($0 + 1)), kind: .vif(owner: $1.incarnation))
      }
    var dispatcher = Dispatcher(DispatchTablePublisher(try table(domains, ports)))
    let toGuest = Scene.ethernet(from: outside, to: Scene.mac(1))
    #expect(dispatcher.targets(Scene.frame(9), toGuest) == [Delivery(slot: winner, direction: .toGuest)])
    let toAll = Scene.ethernet(from: outside, to: .broadcast)
    #expect(dispatcher.targets(Scene.frame(9), toAll) == [Delivery(slot: winner, direction: .toGuest)])
    // At ports of their own both are who they are.
    for slot in [0, 1] {
      #expect(
        dispatcher.targets(Scene.frame(UInt32(slot + 1), .toGuest), toGuest)
          == [Delivery(slot: slot, direction: .toGuest)])
    }
  }

  @Test(arguments: [.suspendedForMigration, .dying] as [RunState])
  func `who is suspended or over leaves its UUID to another, by whatever name`(_ state: RunState) throws {
    var old = Scene.domain(1, domainID: 11)
    old.runState = state
    let domains = [old, Scene.domain(1, domainID: 12)]
    var dispatcher = Dispatcher(DispatchTablePublisher(try table(domains, [bridge])))
    let toGuest = Scene.ethernet(from: outside, to: Scene.mac(1))
    #expect(dispatcher.targets(Scene.frame(9), toGuest) == [Delivery(slot: 1, direction: .toGuest)])
  }

  @Test func `one UUID twice outside a migration is refused`() {
    #expect(
      failure([Scene.domain(1, domainID: 11), Scene.domain(1, domainID: 12)])?.code == .duplicateIdentity)
    #expect(failure([Scene.domain(1), Scene.domain(1, migration: .incoming)])?.code == .duplicateIdentity)
  }

  @Test func `what cannot be is refused with a remedy`() {
    let guest = Scene.domain(1)
    let cases: [(DispatchError?, DispatchError.Code)] = [
      (failure([Scene.domain(1, mac: .broadcast)]), .badMAC),
      (failure([Scene.domain(1, mac: MACAddress(rawValue: 0))]), .badMAC),
      (failure([guest], [bridge, bridge]), .duplicateIdentity),
      (
        failure([guest], [DispatchPort(id: PortID(1), kind: .vif(owner: Scene.incarnation(2)))]), .unknownOwner
      ),
    ]
    for (error, code) in cases { #expect(error?.code == code && error?.remedy.isEmpty == false) }
    for slots in [[0, 0], [-1, 0], [0, 65_535]] {
      #expect(throws: DispatchError.self) {
        try DispatchTable(
          members: [
            DispatchMember(slot: slots[0], domain: guest), DispatchMember(slot: slots[1], domain: Scene.domain(2)),
          ], ports: [], key: (0, 0))
      }
    }
  }

  // MARK: What is left out on a live host

  /// A table of what is not wrong, with a port of its own for each domain (numbers from 1) and the bridge as port 9.
  private func rest(
    _ domains: [DomainDescription], ports: [DispatchPort]? = nil
  ) -> (table: DispatchTable, mistakes: [DispatchError]) {
    var mistakes: [DispatchError] = []
    let own = domains.enumerated().map { DispatchPort(id: PortID(UInt32($0 + 1)), kind: .vif(owner: $1.incarnation)) }
    let table = DispatchTable(
      members: domains.enumerated().map { DispatchMember(slot: $0, domain: $1) }, ports: ports ?? own + [bridge],
      key: (1, 2), leavingOut: &mistakes)
    return (table, mistakes)
  }

  @Test(
    arguments: [
      (Scene.domain(2, mac: Scene.mac(1)), .overlappingMAC),
      (Scene.domain(2, bridge: nil, mac: Scene.mac(1)), .overlappingMAC),
      (Scene.domain(2, mac: MACAddress(rawValue: 0)), .badMAC), (Scene.domain(2, mac: .broadcast), .badMAC),
      (Scene.domain(1, domainID: 2, mac: Scene.mac(2)), .duplicateIdentity),
    ] as [(DomainDescription, DispatchError.Code)])
  func `one domain with a wrong card takes nothing from the others, nor from itself at its own port`(
    wrong: DomainDescription, code: DispatchError.Code
  ) {
    let (table, mistakes) = rest([Scene.domain(1), wrong, Scene.domain(3)])
    var dispatcher = Dispatcher(DispatchTablePublisher(table))
    #expect(mistakes.map(\.code) == [code] && mistakes.map(\.concerned) == [[wrong.incarnation]])
    for (slot, number) in [(0, 1), (2, 3)] as [(Int, UInt64)] {
      for port in [UInt32(number), 9] {
        let from = Scene.ethernet(from: Scene.mac(number), to: outside)
        #expect(dispatcher.targets(Scene.frame(port), from) == [Delivery(slot: slot, direction: .fromGuest)])
      }
      #expect(table.leads(Scene.mac(number), at: PortID(9), to: Scene.incarnation(number)))
      #expect(table.leads(Scene.mac(number), at: PortID(UInt32(number)), to: Scene.incarnation(number)))
    }
    let own = Scene.ethernet(from: Scene.mac(77), to: outside)
    #expect(dispatcher.targets(Scene.frame(2, .fromGuest), own) == [Delivery(slot: 1, direction: .fromGuest)])
    let mac = wrong.ports[0].mac
    #expect(table.leads(mac, at: PortID(9), to: wrong.incarnation) == (code == .duplicateIdentity))
    #expect(table.leads(mac, at: PortID(2), to: wrong.incarnation) == (code != .badMAC))
    #expect(!table.leads(mac, at: PortID(1), to: wrong.incarnation))
    #expect(!table.leads(mac, at: PortID(8), to: wrong.incarnation))
  }

  @Test func `of two domains with one interface or one address, who was here first keeps it, whatever its slot`() {
    let (late, early) = (Scene.domain(5, mac: Scene.mac(1)), Scene.domain(1))
    let ports = [late, early].map { DispatchPort(id: PortID(4), kind: .vif(owner: $0.incarnation)) }
    let (table, mistakes) = rest([late, early], ports: ports + [bridge])
    var dispatcher = Dispatcher(DispatchTablePublisher(table))
    #expect(mistakes.map(\.code) == [.duplicateIdentity, .overlappingMAC])
    #expect(mistakes.allSatisfy { $0.concerned == [late.incarnation] && $0.message.contains("guest5") })
    for port in [4, 9] as [UInt32] {
      let frame = Scene.ethernet(from: Scene.mac(1), to: outside)
      #expect(dispatcher.targets(Scene.frame(port), frame) == [Delivery(slot: 1, direction: .fromGuest)])
      #expect(table.leads(Scene.mac(1), at: PortID(port), to: early.incarnation))
      #expect(!table.leads(Scene.mac(1), at: PortID(port), to: late.incarnation))
    }
  }

  @Test func `who is over leaves its interface and its address to another domain, and that is no mistake`() {
    var old = Scene.domain(1)
    old.runState = .dying
    let new = Scene.domain(5, mac: Scene.mac(1))
    let ports = [old, new].map { DispatchPort(id: PortID(4), kind: .vif(owner: $0.incarnation)) }
    let (table, mistakes) = rest([old, new], ports: ports + [bridge])
    var dispatcher = Dispatcher(DispatchTablePublisher(table))
    #expect(mistakes.isEmpty)
    for port in [4, 9] as [UInt32] {
      let frame = Scene.ethernet(from: Scene.mac(1), to: outside)
      #expect(dispatcher.targets(Scene.frame(port), frame) == [Delivery(slot: 1, direction: .fromGuest)])
      #expect(table.leads(Scene.mac(1), at: PortID(port), to: new.incarnation))
    }
  }

  @Test func `a thousand domains with one address are one mistake each, and the first is inspected`() {
    let domains = (0..<1_000).map { Scene.domain(UInt64($0), domainID: UInt32($0 + 1), mac: Scene.mac(1)) }
    let (table, mistakes) = rest(domains, ports: [bridge])
    var dispatcher = Dispatcher(DispatchTablePublisher(table))
    #expect(mistakes.count == 999)
    let frame = Scene.ethernet(from: Scene.mac(1), to: outside)
    #expect(dispatcher.targets(Scene.frame(9), frame) == [Delivery(slot: 0, direction: .fromGuest)])
  }

  @Test func `an address that is not known at one port of a domain leaves all of its sources unjudged`() throws {
    var guest = Scene.domain(1, addresses: ["192.0.2.1"])
    guest.ports.append(NetworkPort(interface: "vif1.1", bridge: "other", mac: Scene.mac(50)))
    var dispatcher = Dispatcher(
      DispatchTablePublisher(
        try table([guest], [DispatchPort(id: PortID(1), kind: .vif(owner: guest.incarnation))])))
    let frame = Scene.ethernet(from: Scene.mac(50), to: outside, Scene.v4(from: [203, 0, 113, 9]))
    #expect(dispatcher.targets(Scene.frame(1, .fromGuest), frame) == [Delivery(slot: 0, direction: .fromGuest)])
    #expect(dispatcher.drainAlerts(at: .zero).isEmpty)
  }
}
