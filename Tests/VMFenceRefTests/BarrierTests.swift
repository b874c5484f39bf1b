#if Daemon
import Foundation
import NetworkTestSupport
import Synchronization
import TestSupport
import Testing
import VMFenceControl
import VMFenceCore

extension EndToEnd {
  /// The vif script around Xen's own, with one that only notes how it was called in Xen's place.
  @Suite("The barrier before a guest's packets")
  struct Barrier {
    private static let script = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent().appending(path: "packaging/xen-scripts/vif-vmfence").path

    /// Begins what the toolstack begins for a card, in the host's namespace.
    ///
    /// - `name`: what `vifname=` says; Xen's script gives the card that name.
    private func plug(
      _ host: ProtectedHost, _ verb: String = "online", timeout: String = "60s", fail: String = "open",
      name: String = "vif1.0"
    ) throws -> Process {
      try Self.write(
        "vif-bridge",
        """
        echo "$vif $*" >>\(host.folder.path("calls"))
        [ \(name) = $vif ] || { ip link set $vif down; ip link set $vif name \(name); ip link set \(name) up; }
        """, in: host.folder)
      try Self.write(
        "bin/xenstore-read", "[ \(name) != $vif -a \"$1\" = backend/vif/1/0/vifname ] && echo \(name)", in: host.folder)
      let configuration = try host.folder.write(
        "barrier.conf", "VIF_SCRIPT=\(host.folder.path("vif-bridge"))\nTIMEOUT=\(timeout)\nFAIL=\(fail)\n")
      let programs = URL(filePath: try Program.path("vmfence-ref")).deletingLastPathComponent().path
      return try host.network.host.start(
        "env vif=vif1.0 XENBUS_PATH=backend/vif/1/0 VMFENCE_BARRIER_CONF=\(configuration) "
          + "VMFENCE_SOCKET=\(host.folder.path("control.sock")) "
          + "PATH=\(host.folder.path("bin")):\(programs):/usr/sbin:/usr/bin:/sbin:/bin \(Self.script) \(verb) type_if=vif"
      )
    }

    /// Puts a shell script there.
    private static func write(_ name: String, _ text: String, in folder: TemporaryFolder) throws {
      let path = folder.path(name)
      try FileManager.default.createDirectory(
        at: URL(filePath: path).deletingLastPathComponent(), withIntermediateDirectories: true)
      try NetworkNamespace.shell("chmod +x \(try folder.write(name, "#!/bin/sh\n\(text)\n"))")
    }

    private func isShut(_ host: ProtectedHost) -> Bool {
      host.network.host.succeeds("nft list table bridge vmfence-barrier-vif1.0")
    }

    @Test(
      "a card is shut until its guest is guarded there, with what was blocked before, whatever name the card is given",
      arguments: ["vif1.0", "web0"])
    func opens(name: String) throws {
      let host = try ProtectedHost("barrier")
      let inventory = try String(contentsOfFile: host.folder.path("inventory.yaml"), encoding: .utf8)
      let line = try #require(inventory.split(separator: "\n").first { $0.contains("vif1.0") })
      _ = try host.folder.write("inventory.yaml", inventory.replacingOccurrences(of: line + "\n", with: ""))
      try host.start(captures: 2)
      _ = try host.cli("bans", "add", "10.77.0.99", "--domain", "web", "--for", "1h")
      // A port that nobody has is waited for no longer than was asked.
      let failure = #expect(throws: ControlFailure.self) {
        try host.ask(ControlRequest(.barrier, duration: 0, port: name), BarrierStatus.self)
      }
      #expect(failure?.message.contains("no domain has it") == true)
      // A guest with many cards, or many guests: each waits, whatever else is connected.
      let followers = try (0..<16).map { _ in
        try Program.start(
          ["alerts", "--follow", "--socket", host.folder.path("control.sock")], errors: Pipe(), output: Pipe())
      }
      defer { followers.forEach { $0.terminate() } }
      let crowd = try (0..<20).map { _ in
        try Program.start(
          ["barrier", name, "--timeout", "60s", "--socket", host.folder.path("control.sock")], errors: Pipe(),
          output: Pipe())
      }
      let script = try plug(host, fail: "closed", name: name)
      try eventually("the card is shut") { isShut(host) }
      try eventually("it has its name") { host.network.host.succeeds("ip link show up dev \(name) | grep -q .") }
      #expect(host.isCutOff(1, from: "10.77.0.98"))
      #expect(script.isRunning && crowd.allSatisfy(\.isRunning), "they wait for the guest")
      // The toolstack has written what card that is.
      _ = try host.folder.write(
        "inventory.yaml", inventory.replacingOccurrences(of: "interface: vif1.0", with: "interface: \(name)"))
      script.waitUntilExit()
      #expect(script.terminationStatus == 0)
      for one in crowd { one.waitUntilExit() }
      #expect(crowd.allSatisfy { $0.terminationStatus == 0 } && followers.allSatisfy(\.isRunning))
      #expect(!isShut(host))
      // At once, not a moment later: the ban stands at the new port, and packets are inspected.
      #expect(host.isCutOff(1, from: "10.77.0.99"))
      #expect(host.fetches(1, from: "10.77.0.98"))
      let domains = try host.ask(ControlRequest(.domains), [DomainStatus].self)
      #expect(domains.first { $0.name == "web" }?.ports == [name])
      #expect(try String(contentsOfFile: host.folder.path("calls"), encoding: .utf8) == "vif1.0 online type_if=vif\n")
      // A second time there is nothing to wait for.
      let status = try host.ask(ControlRequest(.barrier, duration: 0, port: "vif2.0"), BarrierStatus.self)
      #expect(status == BarrierStatus(port: "vif2.0", domain: "files", isInspected: true))
    }

    @Test(
      "a guest with a card that no interface can be costs nobody else anything, and is said not to be guarded there")
    func wrongCard() throws {
      let host = try ProtectedHost("wrongcard")
      let inventory = try String(contentsOfFile: host.folder.path("inventory.yaml"), encoding: .utf8)
      let line = try #require(inventory.split(separator: "\n").first { $0.contains("vif1.0") })
      try host.network.host.run("ip link add vif9.0 type veth peer name far9; ip link set vif9.0 up")
      let wrong = """
          - name: wrong
            uuid: 6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0009
            domid: 9
            ports: [{interface: vif9.0, bridge: xenbr0, mac: "00:00:00:00:00:00"}]

        """
      _ = try host.folder.write("inventory.yaml", inventory.replacingOccurrences(of: line + "\n", with: ""))
      try host.start(captures: 2)
      func barrier(_ port: String, _ seconds: Double) throws -> BarrierStatus {
        try host.ask(ControlRequest(.barrier, duration: seconds, port: port), BarrierStatus.self)
      }
      // The wrong one first, and only then a card that is plugged.
      _ = try host.folder.write(
        "inventory.yaml", inventory.replacingOccurrences(of: line + "\n", with: "") + wrong)
      try eventually("the wrong card is told") { try host.platformKinds().contains("bad-mac") }
      _ = try host.folder.write("inventory.yaml", inventory + wrong)
      #expect(try barrier("vif1.0", 60) == BarrierStatus(port: "vif1.0", domain: "web", isInspected: true))
      let failure = #expect(throws: ControlFailure.self) { try barrier("vif9.0", 1) }
      #expect(failure?.message.contains("wrong (9) has the MAC address 00:00:00:00:00:00") == true, "\(failure as Any)")
      host.attack(1)
      try eventually("the attack on the guest that was plugged is found") { host.bans.count == 1 }
      let status = try host.ask(ControlRequest(.status), DaemonStatus.self)
      #expect(status.problems.contains { $0.contains("wrong (9)") }, "\(status.problems)")
      // Mended, it is guarded.
      _ = try host.folder.write(
        "inventory.yaml", inventory + wrong.replacingOccurrences(of: "00:00:00:00:00:00", with: "02:77:00:00:00:09"))
      #expect(try barrier("vif9.0", 60).domain == "wrong")
      try eventually("nothing is wrong any more") {
        try host.ask(ControlRequest(.status), DaemonStatus.self).problems.isEmpty
      }
    }

    @Test("without a daemon, the card opens or stays shut as was chosen")
    func fails() throws {
      let host = try ProtectedHost("nodaemon")
      for mode in ["open", "closed"] {
        let script = try plug(host, timeout: "1s", fail: mode)
        script.waitUntilExit()
        #expect((script.terminationStatus == 0) == (mode == "open"))
        #expect(isShut(host) == (mode == "closed"))
        #expect(host.fetches(1, from: "10.77.0.98", seconds: mode == "open" ? 60 : 1) == (mode == "open"))
      }
      let offline = try plug(host, "offline")
      offline.waitUntilExit()
      #expect(offline.terminationStatus == 0 && !isShut(host))
    }

    @Test(
      "the daemon is asked for the name that Xen's script gives the card, and the card is shut under it",
      arguments: [
        ("online type_if=vif", "vif7.0", "", "vif7.0"), ("online type_if=vif", "vif7.0", "web0", "web0"),
        ("add type_if=tap", "vif7.0-emu", "", "vif7.0-emu"), ("add type_if=tap", "vif7.0-emu", "web0", "web0-emu"),
        ("online type_if=vif", "vif7.0", "-web", "-web"),
      ])
    func names(call: String, card: String, vifname: String, asked: String) throws {
      let (host, folder) = (try NetworkNamespace("names"), try TemporaryFolder())
      try host.run("ip link add \(card) type veth peer name peer")
      try Self.write("vif-bridge", "[ \(card) = \(asked) ] || ip link set dev \(card) name \(asked)", in: folder)
      try Self.write(
        "bin/xenstore-read", "[ -n '\(vifname)' -a \"$1\" = backend/vif/7/0/vifname ] && echo '\(vifname)'", in: folder)
      try Self.write(
        "bin/vmfence-ref", "echo \"$*\" >\(folder.path("asked")); nft list ruleset >\(folder.path("rules"))", in: folder
      )
      let configuration = try folder.write("barrier.conf", "VIF_SCRIPT=\(folder.path("vif-bridge"))\n")
      try host.run(
        "vif=vif7.0 INTERFACE=vif7.0-emu XENBUS_PATH=backend/vif/7/0 VMFENCE_BARRIER_CONF=\(configuration) "
          + "PATH=\(folder.path("bin")):$PATH \(Self.script) \(call)")
      #expect(
        try String(contentsOfFile: folder.path("asked"), encoding: .utf8) == "barrier --timeout 10s -- \(asked)\n")
      let rules = try String(contentsOfFile: folder.path("rules"), encoding: .utf8)
      #expect(rules.contains("iif \"\(asked)\" drop") && rules.contains("oif \"\(asked)\" drop"), "\(rules)")
      #expect(rules.contains("hook ingress device \"\(asked)\" priority"), "\(rules)")
      #expect(try host.run("nft list tables").isEmpty)
    }

    @Test(
      "a card that the packet filter does not shut is plugged in only where it may be open",
      arguments: ["open", "closed"])
    func withoutPacketFilter(fail: String) throws {
      let (host, folder) = (try NetworkNamespace("nonft"), try TemporaryFolder())
      try Self.write("vif-bridge", "echo plugged >>\(folder.path("calls"))", in: folder)
      for name in ["vmfence-ref", "xenstore-write"] {
        try Self.write("bin/\(name)", "echo \"\(name) $*\" >>\(folder.path("calls"))", in: folder)
      }
      try Self.write("bin/nft", "exit 1", in: folder)
      let configuration = try folder.write(
        "barrier.conf", "VIF_SCRIPT=\(folder.path("vif-bridge"))\nFAIL=\(fail)\n")
      let isPluggedIn = host.succeeds(
        "vif=vif7.0 XENBUS_PATH=backend/vif/7/0 VMFENCE_BARRIER_CONF=\(configuration) PATH=\(folder.path("bin")):$PATH "
          + "\(Self.script) online type_if=vif")
      #expect(isPluggedIn == (fail == "open"))
      let calls = try String(contentsOfFile: folder.path("calls"), encoding: .utf8)
      #expect(
        calls
          == (fail == "open"
            ? "plugged\nvmfence-ref barrier --timeout 10s -- vif7.0\n"
            : "xenstore-write backend/vif/7/0/hotplug-error vmfence: not guarded in time backend/vif/7/0/hotplug-status error\n")
      )
    }

    @Test("a card is shut also where whoever calls the toolstack has no sbin in PATH")
    func withoutSbin() throws {
      let (host, folder) = (try NetworkNamespace("nosbin"), try TemporaryFolder())
      try host.run("ip link add vif7.0 type veth peer name peer")
      try Self.write("vif-bridge", "exit 0", in: folder)
      try Self.write("bin/vmfence-ref", "/usr/sbin/nft list ruleset >\(folder.path("rules"))", in: folder)
      let configuration = try folder.write("barrier.conf", "VIF_SCRIPT=\(folder.path("vif-bridge"))\nFAIL=closed\n")
      try host.run(
        "vif=vif7.0 VMFENCE_BARRIER_CONF=\(configuration) PATH=\(folder.path("bin")):/usr/bin:/bin "
          + "\(Self.script) online type_if=vif")
      let rules = try String(contentsOfFile: folder.path("rules"), encoding: .utf8)
      #expect(rules.contains("iif \"vif7.0\" drop") && rules.contains("oif \"vif7.0\" drop"), "\(rules)")
      #expect(try host.run("nft list tables").isEmpty)
    }

    @Test("a daemon that is not there yet, or has no room, is asked again until the time is over")
    func asksAgain() throws {
      let folder = try TemporaryFolder()
      let path = folder.path("control.sock")
      let asking = try Program.start(
        ["barrier", "vif1.0", "--timeout", "60s", "--socket", path], errors: Pipe(), output: Pipe())
      usleep(500_000)
      #expect(asking.isRunning)
      let asked = Atomic(0)
      let isOver = Atomic(false)
      var limits = ControlServer.Limits()
      limits.clients = 1
      let server = try ControlServer(path: path, limits: limits) { request throws(ControlFailure) in
        let count = asked.wrappingAdd(1, ordering: .relaxed).newValue
        guard count >= 3, isOver.load(ordering: .acquiring) else {
          throw ControlFailure("64 wait already", cause: .busy)
        }
        return Array(#"{"port":"\#(request.port ?? "")","domain":"web","isInspected":true}"#.utf8)
      }
      defer { server.close() }
      var other = try? ControlClient(path: path)
      server.start()
      try eventually("somebody was sent away") { server.refused > 0 }
      #expect(asking.isRunning)
      withExtendedLifetime(other) {}
      other = nil
      isOver.store(true, ordering: .releasing)
      asking.waitUntilExit()
      #expect(asking.terminationStatus == 0 && asked.load(ordering: .relaxed) >= 3)
    }

    @Test("a daemon that hangs is waited for no longer than was said")
    func hangs() throws {
      let folder = try TemporaryFolder()
      let listening = try LocalSocket.bind(at: folder.path("control.sock"), .stream, mode: 0o600)
      defer { close(listening) }
      let begin = ContinuousClock.now
      let result = try Program.run("barrier", "vif1.0", "--timeout", "1s", "--socket", folder.path("control.sock"))
      #expect(result.status == 69 && result.errors.contains("did not answer"), "\(result)")
      #expect(.now - begin < waitLimit)
    }
  }
}
#endif
