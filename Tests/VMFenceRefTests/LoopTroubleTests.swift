#if Daemon
import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceControl

extension EndToEnd {
  @Suite("What must not keep the loop busy, nor the daemon from starting", .serialized)
  struct LoopTroubleTests {
    private func count(_ text: String, in host: ProtectedHost) -> Int {
      host.said.components(separatedBy: text).count - 1
    }

    private func domain(_ name: String, of host: ProtectedHost) throws -> DomainStatus? {
      try host.ask(ControlRequest(.domains), [DomainStatus].self).first { $0.name == name }
    }

    @Test(
      "a common rule file that cannot be used any more: a guest with rules of its own that comes then has what is in force, and nothing is compiled again and again"
    )
    func commonRulesBreak() throws {
      let host = try ProtectedHost("broken")
      _ = try host.folder.write(
        "late.rules", "alert tcp any any -> any 7 (msg:\"late\"; content:\"late\"; sid:1000020;)\n")
      let configuration = try String(contentsOfFile: host.folder.path("host.yaml"), encoding: .utf8)
      _ = try host.folder.write(
        "host.yaml",
        configuration.replacingOccurrences(
          of: "common: guests.rules", with: "common: guests.rules, domains: {late: late.rules}"))
      try host.network.host.run("ip link add vif9.0 type veth peer name far9; ip link set vif9.0 up")
      try host.start()
      try FileManager.default.removeItem(atPath: host.folder.path("guests.rules"))
      let inventory = try String(contentsOfFile: host.folder.path("inventory.yaml"), encoding: .utf8)
      _ = try host.folder.write(
        "inventory.yaml",
        inventory + """
            - name: late
              uuid: 6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0009
              domid: 9
              ports: [{interface: vif9.0, bridge: xenbr0, mac: "02:77:00:00:00:09"}]

          """)
      let common = ProtectedHost.rules.split(separator: "\n").count
      try eventually("the guest is inspected") {
        let late = try domain("late", of: host)
        return late?.state == "inspecting" && late?.rules == common
      }
      // Long enough for many compilations.
      usleep(3_000_000)
      #expect(count("guests.rules` cannot be read", in: host) == 1, "\(host.said.suffix(4000))")
      #expect(count("the rules of the guests `late` could not be compiled", in: host) == 1)
      #expect(try host.ask(ControlRequest(.barrier, duration: 60, port: "vif9.0"), BarrierStatus.self).isInspected)
      _ = try host.folder.write("guests.rules", ProtectedHost.rules)
      host.signal(SIGHUP)
      try eventually("mended, it has its own besides") { try domain("late", of: host)?.rules == common + 1 }
    }

    @Test(
      "a reload that finds a rule wrong which was right leaves it in force as it was, and says so until it is mended")
    func ruleBreaks() throws {
      let host = try ProtectedHost("kept")
      try host.start()
      let new = "alert tcp any any -> any 80 (msg:\"new\"; content:\"GET /new\"; sid:1000021;)\n"
      let wrong = ProtectedHost.rules.replacingOccurrences(of: "msg:", with: "no_such_option; msg:") + new
      let count = ProtectedHost.rules.split(separator: "\n").count
      for time in 1...2 {
        _ = try host.folder.write("guests.rules", wrong + String(repeating: "# again\n", count: time))
        host.signal(SIGHUP)
        try eventually("reload \(time)") { self.count("notice: reloaded", in: host) == time }
        #expect(try domain("web", of: host)?.rules == count + 1)
      }
      #expect(host.said.contains("stays in force as it was before"), "\(host.said.suffix(4000))")
      host.attack()
      try eventually("what was right is in force") { host.bans.count == 1 }
      #expect(try host.cli("status").contains("problem: rule 1:1000001 is wrong at"))
      #expect(try host.cli("rules", "show", "web").contains("  rule 1:1000001 is wrong at"))
      _ = try host.folder.write("guests.rules", new)
      host.signal(SIGHUP)
      try eventually("without it") { try domain("web", of: host)?.rules == 1 }
      #expect(
        try !host.cli("status").contains("is wrong at") && !host.cli("rules", "show", "web").contains("is wrong at"))
    }

    @Test("a reload that is asked for while rules are compiled is told once, and follows")
    func reloadDuringCompilation() throws {
      let host = try ProtectedHost("reloads")
      try host.start()
      // So many that they take their time.
      let many = (1...5_000).map { number in
        "alert tcp any any -> any 80 (msg:\"many\"; content:\"needle number \(number)\"; sid:\(2_000_000 + number);)\n"
      }
      _ = try host.folder.write("guests.rules", ProtectedHost.rules + many.joined())
      host.signal(SIGHUP)
      try eventually("one is asked for while rules are compiled") {
        usleep(50_000)
        host.signal(SIGHUP)
        return count("the reload follows", in: host) > 0
      }
      host.signal(SIGHUP)
      try eventually("both reloads") { count("notice: reloaded", in: host) == 2 }
      #expect(count("the reload follows", in: host) == 1, "\(host.said.suffix(4000))")
      #expect(try domain("web", of: host)?.rules == 5_005)
    }

    @Test(
      "damaged files of the state directory are moved away and told, with the place in them, and the daemon guards all guests",
      arguments: [
        ("", ["end of file"]), ("{\"byName\":", ["end of file"]), ("\u{0}\u{0}", ["around character 0"]),
        ("{\"byName\": {\"web\": [oops]}}", ["around character 20"]),
        ("{\"byName\": {\"a\\u001b[2J\": [\"x\", 7]}}", ["byName.a\\u{1b}[2J[1]: Expected", "byName.paths: "]),
        (
          "{\"byName\": {\"\(String(repeating: "n", count: 10_000))\": 7}}",
          ["byName.nnnnn", "…: Expected", "byName.paths: "]
        ),
      ])
    func damagedState(content: String, places: [String]) throws {
      let host = try ProtectedHost("damaged")
      try FileManager.default.createDirectory(atPath: host.folder.path("state"), withIntermediateDirectories: true)
      let names = ["rules.json", "declarations.json"]
      for name in names { _ = try host.folder.write("state/\(name)", content) }
      try host.start()
      for (name, place) in zip(names, [places[0], places[places.count - 1]]) {
        #expect(host.said.contains("\(name).damaged now"))
        let line = host.said.split(separator: "\n").first { $0.contains("state/\(name) cannot be read: ") }
        #expect(line?.contains(place) == true, "\(line?.prefix(2_000) ?? "")")
        #expect(line.map { $0.count < 1_000 && !$0.contains("\u{1B}") } == true)
        #expect(try String(contentsOfFile: host.folder.path("state/\(name).damaged"), encoding: .utf8) == content)
        #expect(!FileManager.default.fileExists(atPath: host.folder.path("state/\(name)")))
      }
    }

    private static let canFreeze = ["/usr/sbin/fsfreeze", "/usr/sbin/mkfs.ext4", "/usr/sbin/losetup"]
      .allSatisfy(FileManager.default.isExecutableFile)

    @Test(
      "a disk that hangs while what a detector remembers is kept holds no other guest up",
      .enabled(if: canFreeze, "needs fsfreeze, mkfs.ext4 and losetup"))
    func slowDisk() throws {
      let host = try ProtectedHost("slowdisk")
      let (state, frozen) = (host.folder.path("state"), host.folder.path("frozen"))
      try NetworkNamespace.shell(
        """
        mkdir -p \(state) \(frozen); truncate -s 16M \(frozen).image; mkfs.ext4 -q \(frozen).image
        ln -s \(frozen) \(state)/detectors
        # `mount -o loop` asks all loop devices of the machine for their files, and waits for one whose file is on a disk that hangs.
        device=$(losetup --find --show \(frozen).image)
        mount $device \(frozen) || { losetup --detach $device; exit 1; }
        # As long as it is mounted it stays.
        losetup --detach $device
        """)
      // What hangs there ends with this, and the daemon with the host.
      defer {
        _ = try? NetworkNamespace.shell("fsfreeze -u \(host.folder.path("frozen")) || true; umount -l \(frozen)")
      }
      try host.start()
      #expect(host.fetches(1))
      try NetworkNamespace.shell("fsfreeze -f \(frozen)")
      let inventory = try String(contentsOfFile: host.folder.path("inventory.yaml"), encoding: .utf8)
      _ = try host.folder.write(
        "inventory.yaml",
        inventory.replacingOccurrences(of: "domid: 1\n", with: "domid: 1\n    state: suspended\n"))
      let program = try Program.path("vmfence-ref")
      func domains() -> String {
        let socket = host.folder.path("control.sock")
        return (try? NetworkNamespace.shell("timeout -s KILL 20 \(program) domains --socket \(socket)")) ?? ""
      }
      try eventually("the guest is suspended") { domains().contains("suspended") }
      // Time enough for the detector's answer.
      usleep(1_000_000)
      host.attack(2)
      try eventually("other guests' attackers are found") { host.bans.count == 1 && !domains().isEmpty }
      #expect(try FileManager.default.contentsOfDirectory(atPath: frozen).allSatisfy { !$0.hasSuffix(".state") })
      try NetworkNamespace.shell("fsfreeze -u \(frozen)")
      try eventually("it is kept when the disk answers") {
        try FileManager.default.contentsOfDirectory(atPath: frozen).contains { $0.hasSuffix("0001.state") }
      }
    }
  }
}
#endif
