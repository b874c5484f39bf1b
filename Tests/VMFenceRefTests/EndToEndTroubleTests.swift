#if Daemon
import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceControl
import VMFenceCore

extension EndToEnd {
  @Suite("What goes wrong", .serialized)
  struct TroubleTests {
    @Test(
      "a full disk: attacks are found and measures taken, marked as unlogged; log and history catch up when there is room again"
    )
    func fullDisk() throws {
      let host = try ProtectedHost("full")
      let state = host.folder.path("state")
      try NetworkNamespace.shell("mkdir -p \(state); mount -t tmpfs -o size=1m tmpfs \(state)")
      defer { _ = try? NetworkNamespace.shell("umount -l \(state)") }
      try host.start()
      _ = try? NetworkNamespace.shell("cat /dev/zero > \(state)/filler 2>/dev/null || true")
      host.attack()
      try eventually("a block") { host.bans.count == 1 }
      #expect(host.isCutOff(1))
      try eventually("both are told") {
        try host.decisions().contains { $0.status == "enforced" && !$0.logged }
          && host.platformKinds().contains("log-unwritable")
      }
      try eventually("it is told") { host.said.contains("the history is not written") }
      let status = try host.cli("status")
      #expect(status.contains("problem: the history is not written"))
      #expect(status.contains("problem: the decision log cannot be written"), "\(status)")
      try FileManager.default.removeItem(atPath: state + "/filler")
      try eventually("it is logged") { try host.platformKinds().contains("log-writable") }
      #expect(try !host.cli("status").contains("the decision log"))
      try eventually("the history is written again") { host.said.contains("the history is written again") }
      #expect(try host.cli("alerts").components(separatedBy: "password file").count == 4, "nothing was lost meanwhile")
      host.stop(SIGKILL)
      try host.start()
      #expect(host.bans.count == 1, "a restart knows of it")
    }

    @Test("SIGHUP: what is wrong changes nothing; what is right is in force, and no packet is lost for it")
    func reload() throws {
      let host = try ProtectedHost("reload")
      try host.start()
      _ = try host.folder.write(
        "policy.yaml", ProtectedHost.policy.replacingOccurrences(of: "web-application-attack", with: "no-such-class"))
      host.signal(SIGHUP)
      try eventually("it is refused") { host.said.contains("nothing was reloaded") }
      try eventually("it is said why") {
        host.said.contains("there is no class 'no-such-class'") && host.said.contains("policy.yaml:2:")
      }
      host.attack()
      try eventually("the old policy is in force") { host.bans.count == 1 }
      #expect(try host.cli("bans", "delete", "10.77.0.99").contains("lift"))

      // The next step would be another; a policy that only tells is put in force while packets flow.
      _ = try host.folder.write(
        "policy.yaml",
        ProtectedHost.policy.replacingOccurrences(
          of: "{block: 5m, times: 2}, {block-on-host: 5m}", with: "{notify: true}"))
      _ = try host.folder.write(
        "guests.rules", ProtectedHost.rules + "alert icmp any any -> any any (msg:\"new\"; itype:8; sid:1000010;)\n")
      // For as long as it takes, and then on until the new rules have found one of them.
      let pinger = try host.network.outside.start("ping -q -i 0.002 10.77.0.2")
      defer { if pinger.isRunning { kill(pinger.processIdentifier, SIGKILL) } }
      host.signal(SIGHUP)
      try eventually("it is taken over") { host.said.contains("notice: reloaded") }
      try eventually("the new rules are in force") {
        let alerts = try EVELine.read(host.folder.path("eve.json"))
        return alerts.contains { $0.alert?.signatureID == 1_000_010 }
      }
      kill(pinger.processIdentifier, SIGINT)
      pinger.waitUntilExit()
      host.attack()
      try eventually("the new policy is in force") {
        try host.decisions().contains { $0.measure == "notify" && $0.status == "enforced" }
      }
      #expect(host.bans.isEmpty)
      let domains = try host.ask(ControlRequest(.domains), [DomainStatus].self)
      #expect(domains.allSatisfy { $0.drops == 0 && $0.restarts == 0 }, "\(domains)")
      try eventually("what a detector counts by itself arrives") {
        let web = try host.ask(ControlRequest(.domains), [DomainStatus].self).first { $0.name == "web" }
        return web.map { $0.inspected > 0 && $0.inspector["packets"] == $0.inspected } ?? false
      }
      #expect(try host.cli("status").contains("limits of the inspection reached: "))
    }

    @Test("a guest without rules is told of, and guarded once it is given some; guests come and go with the inventory")
    func rules() throws {
      let host = try ProtectedHost("rules")
      try host.start()
      let inventory = try String(contentsOfFile: host.folder.path("inventory.yaml"), encoding: .utf8)
      let own = try host.folder.write(
        "own.rules", "alert tcp any any -> any 80 (msg:\"own\"; content:\"GET /own\"; sid:1000020;)\n")
      #expect(try host.cli("rules", "set", "web", own).contains("own.rules"))
      try eventually("the rule that was set") {
        _ = host.fetches(1, path: "/own")
        return try EVELine.read(host.folder.path("eve.json")).contains { $0.alert?.signatureID == 1_000_020 }
      }
      let bad = try host.folder.write("bad.rules", "alert tcp any any -> any any (msg:\"no end\"; sid:1;\n")
      let failure = #expect(throws: NetworkNamespace.CommandFailed.self) { try host.cli("rules", "set", "web", bad) }
      #expect(
        failure?.output.contains("bad.rules:1:") == true && failure?.output.contains("nothing was changed") == true)
      #expect(try host.cli("rules", "show", "web").contains("own.rules"))

      _ = try host.folder.write("inventory.yaml", inventory.replacingOccurrences(of: "name: web", with: "nme: web"))
      try eventually("it is told") { host.said.contains("what was known of the domains stays in force") }
      #expect(try host.ask(ControlRequest(.domains), [DomainStatus].self).count == 3)
      let two = try #require(inventory.range(of: "  - name: files"))
      _ = try host.folder.write("inventory.yaml", "version: 1\ndomains:\n" + inventory[two.lowerBound...])
      try eventually("the first guest is gone") {
        try host.ask(ControlRequest(.domains), [DomainStatus].self).map(\.name) == ["files", "shell"]
      }
      host.stop(SIGKILL)
      _ = try host.folder.write("inventory.yaml", inventory)
      try host.start()
      #expect(try host.cli("rules", "show", "web").contains("set at run time"), "kept over a restart")
    }

    /// A set of capabilities of each of the daemon's threads, by the set's name.
    private func capabilities(of daemon: Int32, _ set: String) throws -> [UInt64] {
      try FileManager.default.contentsOfDirectory(atPath: "/proc/\(daemon)/task").compactMap {
        thread throws -> UInt64? in
        // One that has ended meanwhile has no file any more.
        let status = try? String(contentsOfFile: "/proc/\(daemon)/task/\(thread)/status", encoding: .utf8)
        guard let lines = status?.split(separator: "\n") else { return nil }
        let line = try #require(lines.first { $0.hasPrefix("\(set):\t") })
        let held: UInt64 = try #require(UInt64(line.dropFirst(set.count + 2), radix: 16))
        return held
      }
    }

    @Test(
      "of what root may do, each thread of the daemon keeps what it needs again and again, and one has in reserve what programs need that it starts",
      arguments: [[], ["setpriv", "--no-new-privs"]])
    func capabilities(under command: [String]) throws {
      let host = try ProtectedHost("powers")
      // Where no program gets more than who starts it has, as in the unit, each gets its power and becomes nobody all the same.
      try host.start(environment: command.joined(separator: " "))
      let daemon = try #require(host.daemon?.processIdentifier)
      // DAC_OVERRIDE, DAC_READ_SEARCH, KILL.
      let kept: UInt64 = 1 << 1 | 1 << 2 | 1 << 5
      // SETGID, SETUID, NET_ADMIN, NET_RAW.
      let reserve: UInt64 = 1 << 6 | 1 << 7 | 1 << 12 | 1 << 13
      #expect(try capabilities(of: daemon, "CapEff").count > 3)
      #expect(try capabilities(of: daemon, "CapEff").allSatisfy { $0 == kept })
      for set in ["CapPrm", "CapBnd"] {
        let threads = try capabilities(of: daemon, set)
        #expect(threads.count { $0 == kept | reserve } == 1, "\(set): \(threads)")
        #expect(threads.count { $0 == kept } == threads.count - 1, "\(set): \(threads)")
      }
      #expect(try capabilities(of: daemon, "CapInh").allSatisfy { $0 & ~(kept | reserve) == 0 })
      #expect(try capabilities(of: daemon, "CapAmb").allSatisfy { $0 == 0 })
    }

    @Test("files of one guest that cannot be used cost nobody else anything; files stand by name or by UUID")
    func rulesOfOneGuest() throws {
      // A class of the policy may stand in the files that cannot be used.
      let host = try ProtectedHost(
        "ownrules", policy: ProtectedHost.policy.replacingOccurrences(of: "[attempted-recon]", with: "[only-there]"))
      let web = "6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0001"
      func rule(_ sid: Int) -> String { "alert tcp any any -> any 80 (msg:\"own\"; content:\"/own\"; sid:\(sid);)\n" }
      let own = try host.folder.write("own.rules", rule(1_000_021))
      let configuration = try String(contentsOfFile: host.folder.path("host.yaml"), encoding: .utf8)
      _ = try host.folder.write(
        "host.yaml",
        configuration.replacingOccurrences(
          of: "common: guests.rules",
          with: "common: guests.rules, domains: {\(web.uppercased()): own.rules, files: missing.rules}"))
      let check = try Program.run("check", "--live", host.folder.path("host.yaml"))
      #expect(
        check.status == 65 && check.output.contains("host.yaml:") && check.output.contains("missing.rules"),
        "\(check.output)")
      #expect(
        check.output.contains("only-there") && check.output.contains("rule files of `files`, which cannot be used"),
        "\(check.output)")
      try host.start()
      for text in ["missing.rules", "the guest `files` cannot be used: it has the rules of its service"] {
        #expect(host.said.contains(text), "\(host.said)")
      }
      func rules(_ domain: String) throws -> RulesStatus {
        try host.ask(ControlRequest(.rulesShow, domain: domain), RulesStatus.self)
      }
      #expect(try rules("files").rules == 5 && rules("shell").rules == 5 && rules("web").rules == 6)
      #expect(try rules("web").files.contains(own))

      // Renamed, it keeps what stands by its UUID, and gets nothing of what another one's name had.
      let inventory = try String(contentsOfFile: host.folder.path("inventory.yaml"), encoding: .utf8)
      _ = try host.folder.write("inventory.yaml", inventory.replacingOccurrences(of: "name: web", with: "name: shop"))
      try eventually("the new name") { (try? rules("shop").rules) == 6 }

      // A reload that finds them gone leaves it those that it has.
      try FileManager.default.removeItem(atPath: own)
      host.signal(SIGHUP)
      try eventually("it is taken over") { host.said.contains("notice: reloaded") }
      #expect(host.said.contains("the guest `\(web)` cannot be used: it keeps the rules that it has"), "\(host.said)")
      #expect(try rules("shop").rules == 6)

      // At run time: by its UUID, by its name, and as configured again.
      let two = try host.folder.write("two.rules", rule(1_000_022) + rule(1_000_023))
      #expect(try host.cli("rules", "set", web, two).contains("7 rules, set at run time"))
      let three = try host.folder.write("three.rules", rule(1_000_024) + rule(1_000_025) + rule(1_000_026))
      #expect(try host.cli("rules", "set", "shop", three).contains("8 rules, set at run time"))
      #expect(throws: NetworkNamespace.CommandFailed.self) {
        try host.cli("rules", "set", "shop", host.folder.path("none.rules"))
      }
      #expect(try rules("shop").rules == 8)
      host.stop()
      try host.start()
      #expect(try rules(web).rules == 8, "kept over a restart")
      _ = try host.folder.write("own.rules", rule(1_000_021))
      #expect(try host.cli("rules", "set", "shop").contains("6 rules"))
      #expect(try !rules("shop").isAssigned)
    }

    @Test("a port that becomes known after its guest is captured, and what comes through it inspected")
    func latePort() throws {
      let host = try ProtectedHost("lateport", policy: ProtectedHost.policy(block: "6s"))
      let inventory = try String(contentsOfFile: host.folder.path("inventory.yaml"), encoding: .utf8)
      let line = try #require(inventory.split(separator: "\n").first { $0.contains("vif1.0") })
      _ = try host.folder.write("inventory.yaml", inventory.replacingOccurrences(of: line + "\n", with: ""))
      try host.start(captures: 2)
      func ports() throws -> [String]? {
        try host.ask(ControlRequest(.domains), [DomainStatus].self).first { $0.name == "web" }?.ports
      }
      #expect(try ports() == [])
      _ = try host.folder.write("inventory.yaml", inventory)
      try eventually("the port is known") { try ports() == ["vif1.0"] }
      // What came before it was captured was not seen. Who is blocked already attacks again when the block has ended.
      try eventually("a block") {
        host.attack()
        return host.bans.count == 1
      }
    }

    @Test("a detector that is killed is replaced, and the attack is found all the same")
    func detectorKilled() throws {
      let host = try ProtectedHost("killdet")
      try host.start()
      let daemon = try #require(host.daemon?.processIdentifier)
      let detectors = try NetworkNamespace.shell("pgrep -P \(daemon) -x vmfence-detecto || true").split(separator: "\n")
      #expect(detectors.count == 3)
      for detector in detectors { kill(Int32(detector)!, SIGKILL) }
      host.attack()
      try eventually("a block") { host.bans.count == 1 }
      try eventually("it is told") { try host.platformKinds().count { $0 == "detector-died" } == 3 }
    }

    @Test("systemd is told that the daemon is ready, reloads, lives, and stops")
    func notify() throws {
      let host = try ProtectedHost("notify")
      let path = host.folder.path("notify.sock")
      let socket = try LocalSocket.bind(at: path, .datagram, mode: 0o600)
      defer { close(socket) }
      func said() -> String {
        var text = ""
        var buffer = [UInt8](repeating: 0, count: 4096)
        while true {
          // SAFETY: the buffer is valid for its count.
          let count = unsafe buffer.withUnsafeMutableBytes { unsafe recv(socket, $0.baseAddress, $0.count, 0) }
          guard count > 0 else { return text }
          text += String(decoding: buffer[..<count], as: UTF8.self) + "\n"
        }
      }
      // A socket takes ten datagrams that nobody has read, and what comes then is lost: once a second one comes, for as long as the test may be kept from reading.
      try host.start(environment: "NOTIFY_SOCKET=\(path) WATCHDOG_USEC=2000000")
      var heard = ""
      try eventually("ready and alive") {
        heard += said()
        return heard.contains("READY=1") && heard.components(separatedBy: "WATCHDOG=1").count > 3
      }
      host.signal(SIGHUP)
      heard = ""
      try eventually("reloaded") {
        heard += said()
        return heard.contains("RELOADING=1\nMONOTONIC_USEC=") && heard.contains("READY=1")
      }
      host.stop()
      #expect(said().contains("STOPPING=1"))
    }
  }
}
#endif
