#if Daemon
import Foundation
import NetworkTestSupport
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
      try LiveRunTests.wait("the guest is inspected") {
        let late = try domain("late", of: host)
        return late?.state == "inspecting" && late?.rules == common
      }
      // Long enough for many compilations.
      usleep(3_000_000)
      #expect(count("guests.rules` cannot be read", in: host) == 1, "\(host.said.suffix(4000))")
      #expect(count("the rules of the guests `late` could not be compiled", in: host) == 1)
      #expect(try host.ask(ControlRequest(.barrier, duration: 5, port: "vif9.0"), BarrierStatus.self).isInspected)
      _ = try host.folder.write("guests.rules", ProtectedHost.rules)
      host.signal(SIGHUP)
      try LiveRunTests.wait("mended, it has its own besides") { try domain("late", of: host)?.rules == common + 1 }
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
      for _ in 0..<3 {
        host.signal(SIGHUP)
        usleep(100_000)
      }
      try LiveRunTests.wait("both reloads") { count("notice: reloaded", in: host) == 2 }
      #expect(count("the reload follows", in: host) == 1, "\(host.said.suffix(4000))")
      #expect(try domain("web", of: host)?.rules == 5_005)
    }

    @Test(
      "damaged files of the state directory are moved away and told, and the daemon guards all guests",
      arguments: ["", "{\"byName\":", "\u{0}\u{0}"])
    func damagedState(content: String) throws {
      let host = try ProtectedHost("damaged")
      try FileManager.default.createDirectory(atPath: host.folder.path("state"), withIntermediateDirectories: true)
      let names = ["rules.json", "declarations.json"]
      for name in names { _ = try host.folder.write("state/\(name)", content) }
      try host.start()
      for name in names {
        #expect(host.said.contains("state/\(name) cannot be read") && host.said.contains("\(name).damaged now"))
        #expect(try String(contentsOfFile: host.folder.path("state/\(name).damaged"), encoding: .utf8) == content)
        #expect(!FileManager.default.fileExists(atPath: host.folder.path("state/\(name)")))
      }
    }
  }
}
#endif
