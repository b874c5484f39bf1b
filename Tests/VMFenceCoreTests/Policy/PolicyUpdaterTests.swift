import Testing
import VMFenceCore

@Suite("Policy updater")
struct PolicyUpdaterTests {
  @Test("the third alert of a source within the window blocks it for the domain, for a time")
  func block() throws {
    var updater = try updater(rule())
    #expect(updater.handle(alert(), times: 2, at: at(0)).isEmpty)
    let decisions = updater.handle(alert(), at: at(60))
    #expect(
      decisions == [
        Decision(
          id: 1, time: at(60), incarnation: incarnation(1), measure: .block(network("203.0.113.7")),
          status: .enforced, policy: "brute", reason: "3 within 60 s from 203.0.113.7, the last 1:1000001", step: 0,
          expires: at(120), trigger: "1:1000001", source: network("203.0.113.7"))
      ])
    #expect(
      updater.measuresInForce == [
        FirewallMeasure(
          scope: .domain(uuid(1)), kind: .block(network("203.0.113.7")), expires: at(120), decision: 1,
          comment: "brute: 1:1000001")
      ])
  }

  @Test("alerts further apart than the window do not add up")
  func window() throws {
    var updater = try updater(rule())
    #expect(updater.handle(alert(), at: at(0)).isEmpty)
    #expect(updater.handle(alert(), at: at(30)).isEmpty)
    #expect(updater.handle(alert(), at: at(60.5)).isEmpty)
    #expect(updater.handle(alert(), at: at(61)).count == 1, "30, 60.5 and 61 lie within a minute")
  }

  @Test("sources and domains are counted apart")
  func apart() throws {
    var updater = try updater(rule())
    for event in [alert(), alert(on: 2), alert(from: address("203.0.113.8"))] {
      #expect(updater.handle(event, times: 2, at: at(0)).isEmpty)
    }
    #expect(updater.handle(alert(on: 2), at: at(0)).map(\.incarnation) == [incarnation(2)])
  }

  @Test("the block ends on time, and says so")
  func expiry() throws {
    var updater = try updater(rule())
    _ = updater.handle(alert(), times: 3, at: at(0))
    #expect(updater.advance(to: at(59.9)).isEmpty)
    let lifted = updater.advance(to: at(60))
    #expect(lifted.count == 1)
    #expect(lifted.first?.id == 2)
    #expect(lifted.first?.status == .expired)
    #expect(
      lifted.first?.measure == .lift(.init(scope: .domain(uuid(1)), kind: .block(network("203.0.113.7")))))
    #expect(updater.measuresInForce.isEmpty)
  }

  @Test("how many measures stand is known by scope, and nothing is left of a scope that has none")
  func counts() throws {
    var updater = try updater(rule()) { $0.hostBlockTenants = 1 }
    _ = updater.handle(alert(), times: 3, at: at(0))
    for (text, guest) in [("203.0.113.0/24", UInt64(1)), ("2001:db8:9::/48", 1), ("2001:db8:9::/48", 2)] {
      _ = try updater.block(network(text), for: incarnation(guest), duration: .seconds(30), reason: "r", at: at(0))
    }
    _ = try updater.block(network("198.51.100.7"), for: nil, duration: .seconds(90), reason: "r", at: at(0))
    // The same once more, for longer, is no second one.
    _ = try updater.block(network("198.51.100.7"), for: nil, duration: .seconds(99), reason: "r", at: at(0))
    typealias Scope = MeasureCounts.Scope
    func counts(_ all: Int, _ v4: Int, _ v6: Int) -> Scope {
      var scope = Scope()
      (scope.all, scope.v4Blocks, scope.v6Blocks) = (all, v4, v6)
      return scope
    }
    #expect(
      updater.measureCounts.scopes == [
        .domain(uuid(1)): counts(3, 2, 1), .domain(uuid(2)): counts(1, 0, 1), .host: counts(1, 1, 0),
      ])
    #expect(updater.measureCounts.all == 5)
    _ = updater.advance(to: at(30))
    #expect(updater.measureCounts.scopes == [.domain(uuid(1)): counts(1, 1, 0), .host: counts(1, 1, 0)])
    _ = updater.advance(to: at(99))
    #expect(updater.measureCounts.all == 0 && updater.measureCounts.scopes.isEmpty)
  }

  @Test("alerts of a source that is blocked already are not counted")
  func dedupe() throws {
    var updater = try updater(rule())
    #expect(updater.handle(alert(), times: 1_000, at: at(0)).count == 1)
    #expect(updater.statistics.suppressed == 997)
  }

  @Test("who comes again after the block is blocked for longer, and then on the whole host")
  func escalation() throws {
    var updater = try updater(
      rule(
        ladder: [LadderStep(.block, for: .seconds(60), times: 2), LadderStep(.blockOnHost, for: .seconds(600))],
        escalation: Escalation(factor: 3, maximum: .seconds(1_000), decay: .seconds(3_600)))
    ) { $0.hostBlockTenants = 1 }
    var time = 0.0
    var seen: [(Decision.Measure, Double)] = []
    for _ in 0..<4 {
      let decision = try #require(updater.handle(alert(), times: 3, at: at(time)).last)
      let expires = try #require(decision.expires)
      seen.append((decision.measure, Double((expires - at(time)).wholeNanoseconds) / 1e9))
      time = Double(expires.nanoseconds) / 1e9 + 1
    }
    let source = network("203.0.113.7")
    #expect(seen.map(\.0) == [.block(source), .block(source), .blockOnHost(source), .blockOnHost(source)])
    #expect(seen.map(\.1) == [60, 180, 600, 1_000])
  }

  @Test("after the decay the ladder begins anew")
  func decay() throws {
    var updater = try updater(
      rule(ladder: [LadderStep(.block, for: .seconds(60))], escalation: Escalation(decay: .seconds(600))))
    #expect(updater.handle(alert(), times: 3, at: at(0)).last?.step == 0)
    #expect(updater.handle(alert(), times: 3, at: at(659)).last?.step == 1)
    #expect(updater.handle(alert(), times: 3, at: at(659 + 120 + 600)).last?.step == 0)
  }

  @Test("notices escalate without waiting for an end")
  func notices() throws {
    var updater = try updater(
      rule(ladder: [LadderStep(.notify), LadderStep(.block, for: .seconds(1))]))
    #expect(updater.handle(alert(), times: 6, at: at(0)).map(\.measure) == [.notify, .block(network("203.0.113.7"))])
  }

  @Test("the attacker of an alert on an answer is the other end")
  func answers() throws {
    var updater = try updater(rule())
    let answer = alert(from: address("192.0.2.1"), to: attacker, direction: .toClient)
    #expect(updater.handle(answer, times: 3, at: at(0)).last?.source == network("203.0.113.7"))
  }

  @Test("counting per domain leads to measures on the domain")
  func domainMeasures() throws {
    var updater = try updater(
      rule(
        "flood", per: .domain, evidence: .any,
        ladder: [
          LadderStep(.rateLimit(packetsPerSecond: 100), for: .seconds(60)), LadderStep(.quarantine, for: .seconds(60)),
        ]))
    var decisions: [Decision] = []
    for number in 0..<60 {
      decisions += updater.handle(
        alert(from: IPAddress(v4: 0xCB00_7100 + UInt32(number)), protocolNumber: 17, established: false), at: at(0))
    }
    #expect(decisions.map(\.measure) == [.rateLimit(packetsPerSecond: 100), .quarantine])
    #expect(updater.measuresInForce.map(\.key.scope) == [.domain(uuid(1)), .domain(uuid(1))])
  }

  @Test("changes to files count per domain")
  func files() throws {
    var updater = try updater(
      rule(
        "files", [.files([.write, .replace])], per: .domain, count: 1,
        ladder: [LadderStep(.quarantine, for: .seconds(60))]))
    #expect(updater.handle(fileEvent(.chmod), at: at(0)).isEmpty)
    let decision = try #require(updater.handle(fileEvent(), at: at(0)).first)
    #expect(decision.measure == .quarantine)
    #expect(decision.trigger == "file write /etc/passwd")
  }

  @Test("selectors choose by signature, class, priority, kind and service")
  func selectors() throws {
    for (selector, hit, miss) in [
      (EventSelector.signatures(gid: 1, sids: 5...7), alert(sid: 6), alert(sid: 8)),
      (.classification("trojan-activity"), alert(class: "trojan-activity"), alert()),
      (.priority(atMost: 2), alert(priority: 1), alert(priority: 3)),
      (.allAlerts, alert(), fileEvent()),
      (.files([]), fileEvent(.read), alert()),
      (
        .platform(.poisonPacket),
        .platform(PlatformAlert(time: .zero, incarnation: incarnation(1), kind: .poisonPacket, message: "")),
        .platform(PlatformAlert(time: .zero, incarnation: incarnation(1), kind: .probeGap, message: ""))
      ),
    ] {
      var updater = try updater(rule("r", [selector], per: .domain, count: 1, ladder: [LadderStep(.notify)]))
      #expect(updater.handle(miss, at: at(0)).isEmpty)
      #expect(updater.handle(hit, at: at(0)).count == 1)
    }
    var updater = try updater(rule(count: 1, services: ["ssh"]))
    #expect(updater.handle(alert(on: 1), at: at(0)).isEmpty)
    #expect(updater.handle(alert(on: 2), at: at(0)).count == 1)
  }

  @Test("IPv6 sources are counted and blocked by /64, unless guests live there")
  func v6() throws {
    var updater = try updater(rule())
    var outside: [Decision] = []
    for number in 1...3 {
      outside += updater.handle(alert(from: address("2001:db8:ffff:2::\(number)")), at: at(0))
    }
    #expect(outside.map(\.measure) == [.block(network("2001:db8:ffff:2::/64"))])
    let neighbour = updater.handle(alert(from: address("2001:db8:0:1::bad")), times: 3, at: at(0))
    #expect(neighbour.map(\.measure) == [.block(network("2001:db8:0:1::bad"))])
  }

  @Test("networks are counted together when the rule says so")
  func networks() throws {
    var updater = try updater(rule(per: .sourceNetwork(v4Prefix: 24, v6Prefix: 48)))
    var decisions: [Decision] = []
    for number in 1...3 { decisions += updater.handle(alert(from: address("203.0.113.\(number)")), at: at(0)) }
    #expect(decisions.map(\.measure) == [.block(network("203.0.113.0/24"))])
  }

  @Test("a source that knocks at all guests is counted for the host")
  func sourceOnHost() throws {
    var updater = try updater(
      rule(per: .sourceOnHost, ladder: [LadderStep(.blockOnHost, for: .seconds(60))]))
    var decisions: [Decision] = []
    for guest: UInt64 in 1...3 { decisions += updater.handle(alert(on: guest), at: at(0)) }
    #expect(decisions.map(\.measure) == [.blockOnHost(network("203.0.113.7"))])
    #expect(updater.handle(alert(on: 2), times: 3, at: at(0)).isEmpty)
  }

  @Test("the same events give the same decisions")
  func deterministic() throws {
    func run() throws -> [Decision] {
      var updater = try updater(rule(count: 2), rule("second", per: .domain, ladder: [LadderStep(.notify)]))
      var decisions: [Decision] = []
      for step in 0..<500 {
        let source = IPAddress(v4: 0xCB00_7100 + UInt32(step % 37))
        decisions += updater.handle(alert(on: UInt64(step % 3 + 1), from: source), at: at(Double(step)))
      }
      return decisions
    }
    let first = try run()
    #expect(try run() == first)
    #expect(first.map(\.id) == Array(1...UInt64(first.count)))
  }
}
