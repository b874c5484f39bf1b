import Testing
import VMFenceCore

@Suite("Policy safety")
struct PolicySafetyTests {
  @Test(
    "evidence that anybody can forge never blocks an address, and that is said once per window",
    arguments: [(UInt8(6), false), (17, true), (1, false), (58, false)], Evidence.allCases)
  func forgeable(evidence: (UInt8, Bool), rule evidenceRule: Evidence) throws {
    var updater = try updater(rule(evidence: evidenceRule))
    let event = alert(protocolNumber: evidence.0, established: evidence.1)
    let decisions = updater.handle(event, times: 300, at: at(0))
    #expect(decisions.map(\.status) == [.withheld])
    #expect(decisions.first?.reason.contains("anybody can forge") == true)
    #expect(updater.measuresInForce.isEmpty)
    #expect(updater.handle(event, times: 3, at: at(60)).map(\.status) == [.withheld])
  }

  @Test("forged alerts in between neither help nor hinder the true ones")
  func mixed() throws {
    var updater = try updater(rule())
    let forged = alert(protocolNumber: 17)
    #expect(updater.handle(alert(), times: 2, at: at(0)).isEmpty)
    #expect(updater.handle(forged, times: 2, at: at(0)).isEmpty)
    #expect(updater.handle(alert(), at: at(0)).map(\.status) == [.enforced])
  }

  @Test(
    "the never-block list holds for addresses and for networks that contain them",
    arguments: ["203.0.113.7", "203.0.113.0/24", "203.0.113.64"])
  func neverBlock(listed: String) throws {
    var updater = try updater(rule(per: .sourceNetwork(v4Prefix: 24, v6Prefix: 64))) {
      $0.neverBlock = [network(listed)]
    }
    let decisions = updater.handle(alert(), times: 30, at: at(0))
    #expect(decisions.map(\.status) == [.withheld])
    #expect(decisions.first?.reason.hasSuffix("withheld: \(listed) is never blocked") == true)
  }

  @Test(
    "nobody's own guests are blocked, nor what a network needs",
    arguments: [
      ("192.0.2.2", "guest2, a guest of the same tenant"), ("fe80::1", "fe80::/10"), ("0.0.0.0", "0.0.0.0/8"),
      ("255.255.255.255", "224.0.0.0/3"), ("::1", "::/127"), ("ff02::1", "ff00::/8"),
    ])
  func own(source: String, because: String) throws {
    var updater = try updater(rule())
    let decisions = updater.handle(alert(from: address(source)), times: 3, at: at(0))
    #expect(decisions.map(\.status) == [.withheld])
    #expect(decisions.first?.reason.contains(because) == true)
  }

  @Test("another tenant's guest can be blocked for one's own, but not on the host")
  func otherTenant() throws {
    var updater = try updater(
      rule(ladder: [LadderStep(.block, for: .seconds(1)), LadderStep(.blockOnHost, for: .seconds(60))])
    ) { $0.hostBlockTenants = 1 }
    let event = alert(from: address("192.0.2.3"))
    #expect(updater.handle(event, times: 3, at: at(0)).map(\.status) == [.enforced])
    let next = updater.handle(event, times: 3, at: at(2))
    #expect(next.map(\.status) == [.expired, .withheld])
    #expect(next.last?.reason.contains("a guest of this host") == true)
  }

  @Test(
    "what a guest can bring about by itself cuts nobody else off: what it sends, and what it is answered",
    arguments: [
      (address("192.0.2.1"), attacker, Alert.FlowDirection.toServer), (attacker, address("192.0.2.1"), .toClient),
    ])
  func provoked(source: IPAddress, destination: IPAddress, direction: Alert.FlowDirection) throws {
    let ladder = [LadderStep(.block, for: .seconds(1)), LadderStep(.blockOnHost, for: .seconds(60))]
    let event = alert(from: source, to: destination, direction: direction)
    var own = try updater(rule(ladder: ladder)) { $0.hostBlockTenants = 1 }
    #expect(own.handle(event, times: 3, at: at(0)).map(\.measure) == [.block(IPNetwork(attacker))])
    #expect(own.handle(event, times: 3, at: at(2)).last?.measure == .block(IPNetwork(attacker)))
    // What comes of its own accord goes up the ladder.
    #expect(own.handle(alert(), times: 3, at: at(100)).last?.measure == .blockOnHost(IPNetwork(attacker)))
    var counted = try updater(rule(per: .sourceOnHost, ladder: [LadderStep(.blockOnHost, for: .seconds(60))])) {
      $0.hostBlockTenants = 1
    }
    #expect(counted.handle(event, times: 100, at: at(0)).isEmpty)
    #expect(counted.handle(alert(), times: 3, at: at(0)).map(\.measure) == [.blockOnHost(IPNetwork(attacker))])
  }

  @Test("the cap holds for the whole host; what it withheld is taken when there is room")
  func cap() throws {
    var updater = try updater(rule(count: 1)) { $0.measuresPerMinute = 2 }
    var decisions: [Decision] = []
    for number in 1...50 {
      decisions += updater.handle(
        alert(on: UInt64(number % 2 * 2 + 1), from: address("203.0.113.\(number)")), at: at(0))
    }
    #expect(decisions.map(\.status) == [.enforced, .enforced, .withheld, .withheld], "one report for each domain")
    #expect(updater.handle(alert(from: address("203.0.113.50")), at: at(60)).last?.status == .enforced)
  }

  @Test("reports are capped, and the rest is counted")
  func reports() throws {
    var updater = try updater(rule(count: 1)) { $0.reportsPerMinute = 15 }
    var decisions: [Decision] = []
    for number in 0..<1_000 {
      decisions += updater.handle(
        alert(from: IPAddress(v4: 0xCB00_0000 + UInt32(number)), protocolNumber: 17), at: at(0))
    }
    #expect(decisions.count == 5)
    #expect(updater.statistics.withheld == 1_000)
    #expect(updater.statistics.reportsDropped == 995)
  }

  @Test("a dry run decides and changes nothing")
  func dryRun() throws {
    var updater = try updater(rule()) { $0.isDryRun = true }
    let decisions = updater.handle(alert(), times: 30, at: at(0)) + updater.advance(to: at(60))
    #expect(decisions.map(\.status) == [.dryRun, .dryRun])
    #expect(updater.measuresInForce.isEmpty)
  }

  @Test("into a dry run and out of it what stands has the status that is true, is told again, and a restart goes by it")
  func switchedDryRun() throws {
    func policy(isDryRun: Bool) -> Policy { Policy(rules: [rule()], isDryRun: isDryRun) }
    var updater = try restored(isDryRun: true, [], at(0))
    var log = updater.handle(alert(), times: 3, at: at(0))
    let ended = try updater.replacePolicy(with: policy(isDryRun: false), at: at(1))
    #expect(ended.map(\.id) == [1] && ended.map(\.status) == [.enforced] && ended.map(\.time) == [at(1)])
    #expect(updater.decisionsInForce == ended)
    let explained = updater.explain(attacker, for: incarnation(1), at: at(1))
    #expect(explained.decisions == ended && explained.offences.map(\.decision.status) == [.enforced])
    #expect(try updater.replacePolicy(with: policy(isDryRun: false), at: at(2)).isEmpty, "told once")
    log += ended
    var restarted = try restored(isDryRun: false, log, at(3))
    #expect(restarted.measuresInForce.map(\.decision) == [1], "what was in force is not lost by a restart")
    #expect(try restored(isDryRun: true, log, at(3)).decisionsInForce.map(\.status) == [.dryRun])

    log += try updater.replacePolicy(with: policy(isDryRun: true), at: at(4))
    #expect(log.map(\.status) == [.dryRun, .enforced, .dryRun])
    #expect(updater.measuresInForce.isEmpty && updater.decisionsInForce.map(\.status) == [.dryRun])
    restarted = try restored(isDryRun: false, log, at(5))
    #expect(restarted.measuresInForce.isEmpty, "what was only imagined at last")
    #expect(updater.advance(to: at(60)).map(\.status) == [.dryRun])
  }

  private func restored(isDryRun: Bool, _ log: [Decision], _ time: Timestamp) throws -> PolicyUpdater {
    var updater = try PolicyUpdater(policy: Policy(rules: [rule()], isDryRun: isDryRun), directory: hosts())
    _ = updater.restore(log, at: time)
    return updater
  }

  @Test("what is taken back in a dry run does not come again with a restart")
  func liftedInDryRun() throws {
    var before = try updater(rule())
    var log = before.handle(alert(), times: 3, at: at(0))
    var policy = before.policy
    policy.isDryRun = true
    log += try before.replacePolicy(with: policy, at: at(1))
    log += try before.lift(try #require(before.decisionsInForce.first?.firewallMeasure).key, reason: "no", at: at(2))
    var after = try updater(rule())
    _ = after.restore(log, at: at(3))
    #expect(after.measuresInForce.isEmpty)
    // In a log without the second word on it, too.
    after = try updater(rule())
    _ = after.restore(log.filter { $0.status == .enforced || $0.measure.name == "lift" }, at: at(3))
    #expect(after.measuresInForce.isEmpty)
  }

  @Test("in a dry run what the administrator approves is not done either")
  func approvedInDryRun() throws {
    var updater = try updater(rule("files", [.files([])], per: .domain, count: 1, ladder: [LadderStep(.pause)]))
    #expect(updater.handle(fileEvent(), at: at(0)).map(\.status) == [.pending])
    var policy = updater.policy
    policy.isDryRun = true
    _ = try updater.replacePolicy(with: policy, at: at(1))
    #expect(try updater.approve(1, at: at(2)).status == .dryRun)
  }

  @Test("pausing waits for the administrator, and is asked once")
  func pending() throws {
    var updater = try updater(
      rule("files", [.files([])], per: .domain, count: 1, ladder: [LadderStep(.pause)]))
    let decisions = updater.handle(fileEvent(), times: 5, at: at(0))
    #expect(decisions.map(\.status) == [.pending])
    #expect(updater.pending == decisions)
    let approved = try updater.approve(1, at: at(5))
    #expect(approved.status == .enforced)
    #expect(approved.id == 1)
    #expect(updater.pending.isEmpty)
    #expect(throws: PolicyError.self) { try updater.approve(1, at: at(5)) }
    _ = updater.handle(fileEvent(), at: at(6))
    #expect(try updater.deny(2, at: at(7)).status == .denied)
  }

  @Test("what the operator allowed is not asked")
  func allowed() throws {
    var updater = try updater(
      rule("files", [.files([])], per: .domain, count: 1, ladder: [LadderStep(.pause)])
    ) { $0.destructiveMeasures = .allowed }
    #expect(updater.handle(fileEvent(), at: at(0)).map(\.status) == [.enforced])
  }

  @Test("a million sources do not grow memory, and what made room is counted")
  func flood() throws {
    var updater = try updater(rule(count: 2)) { $0.capacities.countersPerRule = 1_000 }
    for number in 0..<50_000 {
      _ = updater.handle(alert(from: IPAddress(v4: 0x0100_0000 + UInt32(number))), at: at(0))
    }
    #expect(updater.statistics.countersEvicted == 49_000)
    #expect(updater.measuresInForce.isEmpty)
  }

  @Test("a flood of forged sources does not push out the count of a true one")
  func forgedFlood() throws {
    var updater = try updater(rule()) { $0.capacities.countersPerRule = 100 }
    _ = updater.handle(alert(), times: 2, at: at(0))
    for number in 0..<10_000 {
      _ = updater.handle(
        alert(from: IPAddress(v4: 0x0100_0000 + UInt32(number)), established: false), at: at(0))
    }
    #expect(updater.handle(alert(), at: at(1)).map(\.status) == [.enforced])
  }

  @Test("measures in force are bounded")
  func fullRegister() throws {
    var updater = try updater(rule(count: 1)) {
      $0.capacities.measures = 4
      $0.measuresPerMinute = 1_000
    }
    var decisions: [Decision] = []
    for number in 1...9 { decisions += updater.handle(alert(from: address("203.0.113.\(number)")), at: at(0)) }
    #expect(decisions.map(\.status) == [.enforced, .enforced, .enforced, .enforced, .withheld])
    #expect(updater.measuresInForce.count == 4)
  }

  @Test("a clock that goes back ends no block early and starts none anew")
  func clockBack() throws {
    var updater = try updater(rule())
    _ = updater.handle(alert(), times: 3, at: at(1_000))
    #expect(updater.advance(to: at(0)).isEmpty)
    #expect(updater.handle(alert(), at: at(0)).isEmpty)
    #expect(updater.advance(to: at(1_060)).count == 1)
  }

  @Test("the administrator blocks and takes back, but not against the never-block list")
  func manual() throws {
    var updater = try updater(rule()) { $0.neverBlock = [network("198.51.100.1")] }
    for forbidden in ["198.51.100.0/24", "0.0.0.0/0", "::/0", "192.0.0.0/8"] {
      #expect(throws: PolicyError.self) {
        try updater.block(network(forbidden), for: nil, duration: .seconds(60), reason: "asked", at: at(0))
      }
    }
    let blocked = try updater.block(
      network("198.51.100.128/25"), for: nil, duration: .seconds(60), reason: "asked", at: at(0))
    #expect(blocked.map(\.measure) == [.blockOnHost(network("198.51.100.128/25"))])
    let key = FirewallMeasure.Key(scope: .host, kind: .block(network("198.51.100.128/25")))
    #expect(updater.measuresInForce.map(\.key) == [key])
    #expect(try updater.lift(key, reason: "a mistake", at: at(1)).map(\.reason) == ["a mistake"])
    #expect(updater.measuresInForce.isEmpty)
    #expect(throws: PolicyError.self) { try updater.lift(key, reason: "again", at: at(1)) }
  }

  @Test("what has just run out is lifted, though what the administrator asks for at that moment is refused")
  func refusedAtEnd() throws {
    var updater = try updater(rule())
    let key = try #require(updater.handle(alert(), times: 3, at: at(0)).first?.firewallMeasure).key
    let other = FirewallMeasure.Key(scope: .host, kind: .block(network("203.0.113.8")))
    #expect(throws: PolicyError.self) { try updater.lift(other, reason: "r", at: at(60)) }
    #expect(throws: PolicyError.self) { try updater.lift(key, reason: "r", at: at(60)) }
    #expect(throws: PolicyError.self) {
      try updater.block(network("192.0.2.1"), for: incarnation(1), duration: .seconds(1), reason: "r", at: at(60))
    }
    #expect(updater.advance(to: at(60)).map(\.measure) == [.lift(key)])
    #expect(updater.measuresInForce.isEmpty)
  }

  @Test("a new policy lifts what it forbids, and keeps the rest and the counts")
  func replace() throws {
    var updater = try updater(rule(), rule("other", count: 2, ladder: [LadderStep(.notify)]))
    _ = updater.handle(alert(), times: 3, at: at(0))
    _ = updater.handle(alert(from: address("203.0.113.9")), times: 3, at: at(0))
    _ = updater.handle(alert(from: address("203.0.113.10")), times: 2, at: at(0))
    let decisions = try updater.replacePolicy(
      with: Policy(rules: [rule()], neverBlock: [network("203.0.113.9")]), at: at(1))
    #expect(decisions.map(\.status) == [.expired])
    #expect(decisions.first?.reason == "the policy changed: 203.0.113.9 is never blocked")
    #expect(updater.measuresInForce.map(\.key.kind) == [.block(network("203.0.113.7"))])
    #expect(updater.handle(alert(from: address("203.0.113.10")), at: at(2)).map(\.status) == [.enforced])
    #expect(throws: PolicyError.self) { try updater.replacePolicy(with: Policy(rules: [rule(count: 0)]), at: at(3)) }
    #expect(updater.policy.rules.count == 1)
  }

  @Test("after a restart the log's decisions hold on: timers, ladder, numbers, what is pending")
  func restore() throws {
    func make() throws -> PolicyUpdater {
      try updater(
        rule(ladder: [LadderStep(.block, for: .seconds(60)), LadderStep(.blockOnHost, for: .seconds(60))]),
        rule("files", [.files([])], per: .domain, count: 1, ladder: [LadderStep(.pause)])
      ) { $0.hostBlockTenants = 1 }
    }
    var before = try make()
    var log = before.handle(alert(), times: 3, at: at(0))
    log += before.handle(alert(from: address("203.0.113.8")), times: 3, at: at(50))
    log += before.handle(fileEvent(), at: at(50))
    log += before.handle(fileEvent(on: 2), at: at(50))
    log.append(try before.deny(4, at: at(51)))

    var after = try make()
    let lifted = after.restore(log, at: at(70))
    #expect(lifted.map(\.status) == [.expired])
    #expect(lifted.map(\.id) == [5])
    #expect(after.measuresInForce.map(\.key.kind) == [.block(network("203.0.113.8"))])
    #expect(after.pending.map(\.id) == [3])
    #expect(
      after.handle(alert(), times: 3, at: at(80)).map(\.measure) == [.blockOnHost(network("203.0.113.7"))])

    var compacted = try make()
    _ = compacted.restore(after.liveDecisions, at: at(80))
    #expect(compacted.measuresInForce == after.measuresInForce)
    #expect(compacted.pending == after.pending)
    #expect(compacted.liveDecisions == after.liveDecisions)
  }

  @Test("what was taken back before its time is not in force again after the log was made anew, and the ladder goes on")
  func restoreTakenBack() throws {
    func make() throws -> PolicyUpdater {
      try updater(
        rule(ladder: [LadderStep(.block, for: .seconds(3600)), LadderStep(.quarantine, for: .seconds(60))]))
    }
    var before = try make()
    let taken = try #require(before.handle(alert(), times: 3, at: at(0)).first?.firewallMeasure)
    _ = try before.lift(taken.key, reason: "a mistake", at: at(10))
    let kept = before.liveDecisions
    var after = try make()
    _ = after.restore(kept, at: at(20))
    #expect(after.measuresInForce.isEmpty)
    #expect(after.handle(alert(), times: 3, at: at(21)).map(\.measure) == [.quarantine])
  }

  @Test("a log from the future, after the clock was set back, makes no measure last longer than it was decided for")
  func restoreFromFuture() throws {
    var before = try updater(rule(ladder: [LadderStep(.block, for: .seconds(60))]))
    let log = before.handle(alert(), times: 3, at: at(86_400))
    var after = try updater(rule(ladder: [LadderStep(.block, for: .seconds(60))]))
    _ = after.restore(log, at: at(0))
    #expect(after.measuresInForce.map(\.expires) == [at(60)])
    #expect(after.advance(to: at(60)).map(\.status) == [.expired])
  }
}
