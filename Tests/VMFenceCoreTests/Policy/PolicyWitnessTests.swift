import Testing
import VMFenceCore

/// Guests 1 and 2 are one tenant's, guest 3 another's.
@Suite("Whose word a measure stands on")
struct PolicyWitnessTests {
  private let source = IPNetwork(attacker)
  private let ladder = [LadderStep(.blockOnHost, for: .seconds(60))]

  private static func fresh(_ rule: PolicyRule, tenants: Int = 2) throws -> PolicyUpdater {
    try updater(rule) { $0.hostBlockTenants = tenants }
  }

  @Test(
    "what a tunnel carries blocks nobody: its ends write any addresses into it",
    arguments: [(PacketOrigin.ipv4Tunnel, UInt8(1)), (.wire, 1), (.gtp, 0), (.flowTimeout, 2), (.defragmented, 1)],
    Evidence.allCases)
  func tunnel(place: (origin: PacketOrigin, layer: UInt8), evidence: Evidence) throws {
    var updater = try updater(rule(count: 1, evidence: evidence, ladder: ladder)) { $0.hostBlockTenants = 1 }
    let event = alert { ($0.origin, $0.layer) = place }
    let decisions = updater.handle(event, times: 9, at: at(0))
    #expect(decisions.map(\.status) == [.withheld])
    #expect(decisions.first?.reason.contains("the ends of a tunnel can forge what it carries") == true)
    #expect(updater.measuresInForce.isEmpty)
    #expect(updater.handle(alert(), at: at(0)).map(\.status) == [.enforced], "outside the tunnel")
  }

  @Test(
    "a packet from the side where its sender is not proves nothing",
    arguments: [(FrameDirection.toGuest, true), (.unknown, true), (.fromGuest, false)])
  func side(way: FrameDirection, isSolid: Bool) throws {
    var updater = try updater(rule(count: 1))
    #expect(updater.handle(alert { $0.way = way }, at: at(0)).map(\.status) == [isSolid ? .enforced : .withheld])
    let answer = alert(on: 2, from: address("192.0.2.2"), to: attacker, direction: .toClient) {
      $0.way = way.opposite
    }
    #expect(updater.handle(answer, at: at(0)).map(\.status) == [isSolid ? .enforced : .withheld])
  }

  @Test("a source is blocked for the one domain until guests of two tenants have evidence against it")
  func twoTenants() throws {
    var updater = try updater(rule(count: 2, ladder: ladder))
    let first = updater.handle(alert(), times: 2, at: at(0))
    #expect(first.map(\.measure) == [.block(source)])
    let reason = "for this domain alone: guests of 1 of the 2 tenants needed speak for a block on the host"
    #expect(first.first?.reason.hasSuffix(reason) == true)
    #expect(updater.handle(alert(on: 2), times: 2, at: at(1)).map(\.measure) == [.block(source)], "the same tenant")
    #expect(updater.handle(alert(on: 3), at: at(2)).isEmpty, "no word before its count is full")
    #expect(updater.handle(alert(on: 3), at: at(2)).map(\.measure) == [.blockOnHost(source)])
    #expect(updater.handle(alert(), at: at(3)).isEmpty)
  }

  @Test("guests that no tenant has are one tenant's")
  func untenanted() throws {
    let directory = hosts()
    for number in 1...3 as ClosedRange<UInt64> {
      var description = try #require(directory.entry(for: incarnation(number))).description
      description.tenant = nil
      directory.update(description)
    }
    var updater = try updater(rule(count: 1, ladder: ladder), directory: directory)
    for guest in 1...3 as ClosedRange<UInt64> {
      #expect(updater.handle(alert(on: guest), at: at(0)).map(\.measure) == [.block(source)])
    }
  }

  @Test("who says that one tenant is enough gets it", arguments: [Counting.Key.source, .sourceOnHost])
  func oneTenant(key: Counting.Key) throws {
    var updater = try updater(rule(per: key, count: 1, ladder: ladder)) { $0.hostBlockTenants = 1 }
    #expect(updater.handle(alert(), at: at(0)).map(\.measure) == [.blockOnHost(source)])
  }

  @Test("a word holds as long as the ladder remembers, and no longer")
  func decay() throws {
    func second(at time: Double) throws -> Decision.Measure? {
      var updater = try updater(
        rule(count: 1, ladder: ladder, escalation: Escalation(decay: .seconds(600))))
      _ = updater.handle(alert(), at: at(0))
      return updater.handle(alert(on: 3), at: at(time)).last?.measure
    }
    #expect(try second(at: 599) == .blockOnHost(source))
    #expect(try second(at: 600) == .block(source))
  }

  @Test("counted over the host, each tenant's share of the count is its word")
  func counted() throws {
    var updater = try updater(rule(per: .sourceOnHost, count: 3, ladder: ladder))
    #expect(updater.handle(alert(on: 3), at: at(0)).isEmpty)
    #expect(updater.handle(alert(), at: at(1)).isEmpty)
    #expect(updater.handle(alert(), at: at(2)).map(\.measure) == [.blockOnHost(source)])
    updater = try Self.fresh(rule(per: .sourceOnHost, count: 3, ladder: ladder))
    #expect(updater.handle(alert(on: 2), times: 2, at: at(0)).isEmpty)
    #expect(updater.handle(alert(), at: at(0)).map(\.measure) == [.block(source)])
  }

  @Test("where nothing but the detector's word says whose packet it was, it speaks for its own domain only")
  func unattested() throws {
    var updater = try updater(rule(count: 1, ladder: ladder))
    let silent = alert { ($0.isAttested, $0.origin) = (false, .flowTimeout) }
    #expect(updater.handle(silent, at: at(0)).map(\.measure) == [.block(source)])
    #expect(updater.handle(alert(on: 3), at: at(0)).map(\.measure) == [.block(source)])
    updater = try Self.fresh(rule(count: 1, ladder: ladder), tenants: 1)
    #expect(updater.handle(silent, at: at(0)).map(\.measure) == [.block(source)])
  }

  @Test("what the guest can bring about by itself is no word")
  func provoked() throws {
    var updater = try updater(rule(count: 1, ladder: ladder))
    let own = alert(from: address("192.0.2.1"), to: attacker)
    #expect(updater.handle(own, at: at(0)).map(\.measure) == [.block(source)])
    #expect(updater.handle(alert(on: 3), at: at(0)).map(\.measure) == [.block(source)])
  }
}
