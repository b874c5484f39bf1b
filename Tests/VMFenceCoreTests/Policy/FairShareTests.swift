import Testing
import VMFenceCore

/// Guest 1 does all that it can to use up what the host has; guest 3 is another tenant's.
@Suite("No domain uses up its neighbours' measures")
struct FairShareTests {
  /// An alert of the guest's about a source of its own.
  private func flood(_ guest: UInt64, _ number: Int) -> Event {
    alert(on: guest, from: IPAddress(v4: 0xCB00_0000 + UInt32(number)))
  }

  @Test("a domain that takes what it can leaves measures and reports for another", arguments: [40, 400, 40_000])
  func minute(count: Int) throws {
    var updater = try updater(rule(count: 1))
    let hostile = (0..<count).flatMap { updater.handle(flood(1, $0), at: at(0)) }
    #expect(hostile.count { $0.status == .enforced } == 40, "a third of 120")
    #expect(hostile.count { $0.status == .withheld } == (count > 40 ? 1 : 0), "told once")
    #expect(hostile.last?.reason.contains("its share of the 120 measures") == (count > 40))
    #expect(updater.handle(alert(on: 3), at: at(1)).map(\.status) == [.enforced])
    #expect(updater.handle(flood(1, 1_000_000), at: at(59)).allSatisfy { $0.status == .withheld })
    #expect(updater.handle(flood(1, 1_000_000), at: at(60)).last?.status == .enforced)
  }

  @Test("that holds for notices and for what is withheld, too")
  func reports() throws {
    var updater = try updater(rule(count: 1))
    let forged = (0..<1_000).flatMap { number in
      updater.handle(
        alert(from: IPAddress(v4: 0xCB00_0000 + UInt32(number)), protocolNumber: 17), at: at(0))
    }
    #expect(forged.count == 40)
    #expect(updater.handle(alert(on: 3, protocolNumber: 17), at: at(1)).map(\.status) == [.withheld])
  }

  @Test("each domain that finds no room is told of by itself")
  func toldApart() throws {
    var updater = try updater(rule(count: 1)) { $0.measuresPerMinute = 1 }
    _ = updater.handle(flood(2, 0), at: at(0))
    for guest in [1, 3] as [UInt64] {
      let told = (0..<50).flatMap { updater.handle(flood(guest, $0), at: at(0)) }
      #expect(told.map(\.status) == [.withheld])
      #expect(told.map(\.incarnation) == [incarnation(guest)])
    }
  }

  @Test("measures in force have room for others, however long a domain goes on")
  func inForce() throws {
    var updater = try updater(rule(count: 1)) {
      $0.capacities.measures = 90
      $0.measuresPerMinute = 1_000_000
    }
    let hostile = (0..<1_000).flatMap { updater.handle(flood(1, $0), at: at(0)) }
    #expect(hostile.count { $0.status == .enforced } == 80)
    #expect(hostile.last?.reason.contains("80 of them on the word of this domain") == true)
    #expect(updater.handle(alert(on: 3), at: at(0)).map(\.status) == [.enforced])
    // What has ended is given back.
    #expect(updater.handle(flood(1, 5_000), at: at(60)).last?.status == .enforced)
  }

  @Test("so has what waits for the administrator")
  func pending() throws {
    let rules = (0..<9).map {
      rule("pause\($0)", [.files([])], per: .domain, count: 1, ladder: [LadderStep($0 == 0 ? .shutDown : .pause)])
    }
    var policy = Policy(rules: rules)
    policy.capacities.pending = 6
    var updater = try PolicyUpdater(policy: policy, directory: hosts())
    #expect(updater.handle(fileEvent(), at: at(0)).map(\.status) == [.pending, .pending, .withheld])
    #expect(updater.handle(fileEvent(on: 3), at: at(0)).first?.status == .pending)
  }

  @Test("a block that is renewed or replaced counts once")
  func replaced() throws {
    var updater = try updater(rule(count: 1)) { $0.capacities.measures = 2 }
    for second in 0..<20 {
      _ = try updater.block(
        IPNetwork(attacker), for: incarnation(1), duration: .seconds(60), reason: "", at: at(Double(second)))
    }
    #expect(updater.handle(flood(1, 1), at: at(30)).map(\.status) == [.enforced])
  }
}
