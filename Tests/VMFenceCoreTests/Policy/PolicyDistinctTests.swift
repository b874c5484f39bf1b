import Testing
import VMFenceCore
import VMFenceTestKit

private func scan(_ port: UInt16, from source: IPAddress = attacker, to guest: UInt64 = 1, udp: Bool = false) -> Event {
  guard case .alert(var found) = alert(on: guest, from: source, protocolNumber: udp ? 17 : 6) else { return alert() }
  found.destinationPort = port
  return .alert(found)
}

@Suite("Counting different targets and ports")
struct PolicyDistinctTests {
  private func rule(_ what: Counting.What, per key: Counting.Key = .source, evidence: Evidence = .established)
    -> PolicyRule
  {
    PolicyRule(
      name: "scan", selectors: [.allAlerts], counting: Counting(per: key, count: 3, of: what, within: .seconds(10)),
      evidence: evidence, ladder: [LadderStep(key == .source ? .block : .blockOnHost, for: .seconds(60))])
  }

  @Test("the same port again and again is one port; three different ones within the window are three")
  func ports() throws {
    var updater = try updater(rule(.ports))
    #expect(updater.handle(scan(80), times: 50, at: at(0)).isEmpty)
    #expect(updater.handle(scan(81), at: at(1)).isEmpty)
    let decisions = updater.handle(scan(82), at: at(2))
    #expect(decisions.map(\.measure) == [.block(IPNetwork(attacker))])
    #expect(decisions.first?.reason.hasPrefix("3 ports within 10 s from 203.0.113.7") == true)
  }

  @Test("ports that were tried longer ago than the window do not count")
  func slow() throws {
    var updater = try updater(rule(.ports))
    for second in 0..<40 { #expect(updater.handle(scan(UInt16(second)), at: at(Double(second) * 6)).isEmpty) }
  }

  @Test("different guests are counted over the whole host")
  func targets() throws {
    var updater = try updater(rule(.targets, per: .sourceOnHost))
    #expect(updater.handle(scan(80, to: 1), at: at(0)).isEmpty)
    #expect(updater.handle(scan(81, to: 1), at: at(0)).isEmpty)
    #expect(updater.handle(scan(80, to: 2), at: at(0)).isEmpty)
    #expect(updater.handle(scan(80, to: 3), at: at(0)).map(\.measure) == [.blockOnHost(IPNetwork(attacker))])
  }

  @Test("TCP and UDP ports are different, and forged scans block nobody")
  func forged() throws {
    var updater = try updater(rule(.ports, evidence: .any))
    _ = updater.handle(scan(53, udp: true), at: at(0))
    _ = updater.handle(scan(53), at: at(0))
    #expect(updater.handle(scan(54, udp: true), at: at(0)).map(\.status) == [.withheld])
  }

  @Test("more than is remembered, and files, are refused")
  func validation() {
    var bad = rule(.ports)
    bad.counting.count = 257
    #expect(bad.asPolicy.map(\.message).contains { $0.contains("a count of 257 different ports") })
    bad.counting.count = 2
    bad.selectors = [.files([])]
    bad.counting.key = .domain
    bad.ladder = [LadderStep(.notify)]
    #expect(bad.asPolicy.map(\.message).contains { $0.contains("a change to a file has no ports") })
  }
}

extension PolicyRule {
  fileprivate var asPolicy: [Diagnostic] { Policy(rules: [self]).validate() }
}

@Suite("Explaining what stands between a domain and an address")
struct PolicyExplainTests {
  @Test("the block, its rule and end, the ladder, and what is never blocked")
  func explain() throws {
    var updater = try updater(rule(count: 1)) { $0.neverBlock = [network("198.51.100.1")] }
    let decision = try #require(updater.handle(alert(), at: at(10)).first)
    let found = updater.explain(attacker, for: incarnation(1), at: at(20))
    #expect(found.decisions == [decision] && found.obstacle == nil)
    #expect(found.offences.map(\.decision.id) == [decision.id])
    #expect(found.offences.map(\.forgottenAt) == [at(70 + 86_400)])
    #expect(updater.explain(attacker, for: incarnation(2), at: at(20)).decisions.isEmpty)
    let gateway = updater.explain(address("198.51.100.1"), for: incarnation(1), at: at(20))
    #expect(gateway.obstacle == "198.51.100.1 is never blocked" && gateway.decisions.isEmpty)
  }

  @Test("what has run out does not stand any more, and never has less than nothing left")
  func runOut() throws {
    var updater = try updater(rule(count: 1))
    let decision = try #require(updater.handle(alert(), at: at(10)).first)
    #expect(decision.remaining(at: at(69)) == .seconds(1) && decision.remaining(at: at(71)) == .zero)
    #expect(updater.explain(attacker, for: incarnation(1), at: at(69)).decisions == [decision])
    #expect(updater.explain(attacker, for: incarnation(1), at: at(70)).decisions.isEmpty)
    #expect(updater.handle(fileEvent(), at: at(70)).map(\.status) == [.expired], "it is lifted all the same")
  }

  @Test("several measures come quarantine first, then the narrowest")
  func several() throws {
    var updater = try updater(
      rule(per: .domain, count: 1, ladder: [LadderStep(.quarantine, for: .seconds(60))]))
    _ = try updater.block(network("203.0.113.0/24"), for: nil, duration: .seconds(60), reason: "", at: at(0))
    _ = try updater.block(network("203.0.113.7"), for: incarnation(1), duration: .seconds(60), reason: "", at: at(0))
    _ = updater.handle(fileEvent(), at: at(0))
    _ = updater.handle(alert(from: address("203.0.114.1")), at: at(0))
    #expect(
      updater.explain(attacker, for: incarnation(1), at: at(0)).decisions.map(\.measure) == [
        .quarantine, .block(network("203.0.113.7")), .blockOnHost(network("203.0.113.0/24")),
      ])
  }
}
