#if Daemon
import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceControl

/// Real attackers and servers on a real bridge; everything within namespaces that the test makes.
extension EndToEnd {
  @Suite("Attacks become measures", .serialized)
  struct AttackTests {
    @Test("an attack is blocked; others are not; an open connection is cut; the block ends, and the next is longer")
    func attackOnHTTP() throws {
      let host = try ProtectedHost("e2e", policy: ProtectedHost.policy(block: "30s"))
      try host.start()
      // A download that stands before the attack, and would take minutes.
      let file = host.folder.path("download")
      let curl = "curl -s -m 600 --limit-rate 200k --interface 10.77.0.99 -o \(file) http://10.77.0.1/large"
      let standing = try host.network.outside.start(curl)
      defer { kill(standing.processIdentifier, SIGKILL) }
      func downloaded() throws -> Int {
        (try? FileManager.default.attributesOfItem(atPath: file)[.size] as? Int) ?? 0
      }
      try eventually("the download has begun") { try downloaded() > 0 }
      #expect(host.fetches(1) && host.fetches(2) && host.fetches(1, from: "10.77.0.98"))

      host.attack()
      try eventually("a block") { host.bans.count == 1 }
      let ban = try #require(host.bans.first)
      #expect(host.isCutOff(1), "the attacker is blocked")
      #expect(ban.network == "10.77.0.99" && ban.domain == "web" && ban.step == 0)
      let why = try host.cli("why", "web", "10.77.0.99")
      #expect(why.contains("decision \(ban.id) of policy rule `attacks` (1:1000001)"), "\(why)")
      #expect(try host.cli("why", "files", "10.77.0.99").contains("nothing stands between"))
      #expect(host.fetches(2), "for the domain that it attacked")
      #expect(host.fetches(1, from: "10.77.0.98"), "nobody else")
      try eventually("the open connection is cut") {
        let before = try downloaded()
        usleep(1_000_000)
        return try downloaded() == before
      }

      try eventually("the block's end") { host.bans.isEmpty }
      #expect(host.fetches(1))
      host.attack()
      try eventually("a second block") { host.bans.first?.step == 1 }
      #expect((host.bans.first?.remaining ?? 0) > 30, "twice as long")
      #expect(try host.cli("bans", "delete", "10.77.0.99").contains("lift"))
      #expect(host.fetches(1), "taken back by a person")
      host.attack()
      try eventually("a block on the host") { host.bans.first?.measure == "block_on_host" }
      #expect(host.isCutOff(1) && host.isCutOff(2))
      #expect(host.fetches(2, from: "10.77.0.98"))
      try eventually("all of them are told") {
        let statuses = try host.decisions().filter { $0.policy == "attacks" }.map(\.status)
        return statuses.count { $0 == "enforced" } == 3 && statuses.count { $0 == "expired" } == 2
      }
      host.stop()
      #expect(host.daemon?.terminationStatus == 0)
      #expect(host.isCutOff(2), "a measure outlives the daemon")
    }

    @Test("guessed passwords are blocked at FTP and SSH; a sweep can be forged and blocks nobody")
    func guesses() throws {
      let host = try ProtectedHost("guess")
      try host.start()
      _ = try host.folder.write("words", (0..<40).map { "word\($0)" }.joined(separator: "\n"))
      let words = host.folder.path("words")
      _ = try? host.network.outside.run("timeout 100 nmap -n -Pn -sS -p 1-200 10.77.0.1")
      // How soon it has failed three times is up to the machine: one that has given up before begins again. It leaves a file where it runs.
      func guess(_ target: String, until isBlocked: () throws -> Bool) throws {
        let hydra = "timeout 70 hydra -I -q -t 2 -l admin -P \(words) \(target)"
        var guesser: Process?
        defer { guesser?.terminate() }
        try eventually("who guesses passwords at \(target) is blocked") {
          if try isBlocked() { return true }
          if guesser?.isRunning != true {
            guesser = try host.network.outside.start("sh -c 'cd \(host.folder.path(".")); exec \(hydra)'")
          }
          return false
        }
      }
      try guess("ftp://10.77.0.2") { host.bans.contains { $0.domain == "files" } }
      try guess("ssh://10.77.0.3") {
        try host.decisions().contains { $0.policy == "attacks" && $0.reason.contains("1:1000003") }
      }
      var sweeps: [EVEDecision] = []
      try eventually("the sweep is told") {
        sweeps = try host.decisions().filter { $0.policy == "sweeps" }
        return !sweeps.isEmpty
      }
      #expect(
        sweeps.allSatisfy { $0.status == "withheld" && $0.reason.contains("anybody can forge") },
        "\(sweeps)")
    }

    @Test("the host itself, and a gateway, are never blocked, whatever they do")
    func neverBlocked() throws {
      let host = try ProtectedHost("never")
      try host.network.host.run("ip route add default via 10.77.0.98")
      try host.start()
      for _ in 0..<4 {
        _ = try? host.network.host.run("curl -s -m 60 --path-as-is http://10.77.0.1/../etc/passwd")
      }
      host.attack(from: "10.77.0.98", times: 4)
      try eventually("both are told of") { try Set(host.decisions().compactMap(\.network)).count == 2 }
      #expect(try host.decisions().allSatisfy { $0.status == "withheld" })
      #expect(host.bans.isEmpty && host.fetches(1, from: "10.77.0.98"))
      #expect(throws: NetworkNamespace.CommandFailed.self) { try host.cli("bans", "add", "10.77.0.98", "--for", "1m") }
      #expect(try host.cli("why", "web", "10.77.0.254").contains("never blocked: 10.77.0.254"))
    }

    @Test("killed in the middle, the daemon goes on where it was: measures, timers, ladders, what is pending")
    func killed() throws {
      let host = try ProtectedHost("killed", policy: ProtectedHost.policy(block: "45s"))
      try host.start()
      host.attack()
      try eventually("a block") { host.bans.count == 1 }
      _ = host.fetches(2, path: "/drastic")
      try eventually("a pending measure") {
        try host.ask(ControlRequest(.pending), [DecisionStatus].self).count == 1
      }
      let before = try #require(host.bans.first)
      let policy = try host.ask(ControlRequest(.guestPolicy, domain: "web"), GuestPolicyStatus.self)
      #expect(policy.measures.map(\.network) == ["10.77.0.99"] && policy.measures.first?.decision == before.id)
      let others = try host.ask(ControlRequest(.guestPolicy, domain: "files"), GuestPolicyStatus.self)
      #expect(others.measures.isEmpty)
      host.stop(SIGKILL)
      #expect(host.isCutOff(1), "the kernel goes on without us")
      try host.start()
      // What the guest may have taken is not older than what it is given now, and is taken by its own program.
      #expect(
        try host.cli("rules", "guest", "web", "--output", host.folder.path("web.policy")).contains("10.77.0.99"))
      let again = try host.ask(ControlRequest(.guestPolicy, domain: "web"), GuestPolicyStatus.self)
      #expect(again.version > policy.version && again.measures.map(\.network) == ["10.77.0.99"])
      let guest = try Program.path("vmfence-guest")
      let applied = try host.network.vm1.run("\(guest) apply \(host.folder.path("web.policy"))")
      #expect(applied == "policy \(again.version) is in force: 1 measures\n")
      _ = try host.network.vm1.run("\(guest) remove")
      let after = try #require(host.bans.first)
      #expect(after.id == before.id && (after.remaining ?? 0) < (before.remaining ?? 0))
      #expect(host.isCutOff(1))
      let pending = try host.ask(ControlRequest(.pending), [DecisionStatus].self)
      try #require(pending.map(\.measure) == ["pause"])
      #expect(try host.cli("pending", "deny", "\(pending[0].id)").contains("denied"))
      try eventually("the block's end") { host.bans.isEmpty }
      #expect(host.fetches(1))
      host.attack()
      try eventually("the next step") { host.bans.first?.step == 1 }
    }

    @Test("a destructive measure waits for a person, and is carried out by the host's own program")
    func approved() throws {
      let host = try ProtectedHost("pause")
      try host.configure("control: {pause: [/usr/bin/touch, \"\(host.folder.path("paused-{name}-{domid}"))\"]}")
      try host.start()
      _ = host.fetches(2, path: "/drastic")
      try eventually("a pending measure") { try host.cli("pending").contains("pause") }
      let number = try #require(try host.ask(ControlRequest(.pending), [DecisionStatus].self).first?.id)
      #expect(!FileManager.default.fileExists(atPath: host.folder.path("paused-files-2")))
      #expect(try host.cli("pending", "approve", "\(number)").contains("enforced"))
      #expect(FileManager.default.fileExists(atPath: host.folder.path("paused-files-2")))
      #expect(throws: NetworkNamespace.CommandFailed.self) { try host.cli("pending", "approve", "\(number)") }
    }

    @Test("what was approved and not done when the daemon died is done by the next one, once")
    func approvedBefore() throws {
      let host = try ProtectedHost("undone")
      try host.configure("control: {pause: [/bin/false]}")
      try host.start()
      _ = host.fetches(2, path: "/drastic")
      try eventually("a pending measure") { try host.cli("pending").contains("pause") }
      let number = try #require(try host.ask(ControlRequest(.pending), [DecisionStatus].self).first?.id)
      #expect(try host.cli("pending", "approve", "\(number)").contains("desired"))
      host.stop(SIGKILL)
      let note = host.folder.path("paused")
      try host.configure("control: {pause: [/bin/sh, -c, 'echo {name}-{domid} >> \(note)']}")
      func told() throws -> [String] { try host.decisions().filter { UInt64($0.id) == number }.map(\.status) }
      for _ in 0..<2 {
        try host.start()
        try eventually("the pause") { try told().last == "enforced" }
        host.stop()
      }
      #expect(try String(contentsOfFile: note, encoding: .utf8) == "files-2\n")
      #expect(try told() == ["pending", "desired", "enforced"])
    }

    @Test("what somebody does to the table is mended, and said")
    func flushed() throws {
      let host = try ProtectedHost("flush")
      try host.start()
      host.attack()
      try eventually("a block") { host.bans.count == 1 }
      // Where the kernel lets a table be owned (Linux 6.9), a flush passes it over, and deleting it fails.
      let isOwned = try host.network.host.run("nft list table bridge vmfence").contains("flags owner")
      _ = try host.network.host.run("nft flush ruleset")
      if isOwned { #expect(!host.network.host.succeeds("nft delete table bridge vmfence")) }
      try eventually("the block stands again") { host.isCutOff(1) }
      if !isOwned {
        try eventually("it is told") { try host.platformKinds().contains("firewall-drift") }
      }
      #expect(host.fetches(2))
    }
  }
}
#endif
