#if Daemon
import Foundation
import NetworkTestSupport
import Testing
import VMFenceControl

extension EndToEnd {
  /// The vif script around Xen's own, with one that only notes how it was called in Xen's place.
  @Suite("The barrier before a guest's packets")
  struct Barrier {
    private static let script = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent().appending(path: "packaging/xen-scripts/vif-vmfence").path

    /// Begins what the toolstack begins for a card, in the host's namespace.
    private func plug(
      _ host: ProtectedHost, _ verb: String = "online", timeout: String = "60s", fail: String = "open"
    ) throws -> Process {
      let bridge = try host.folder.write("vif-bridge", "#!/bin/sh\necho \"$vif $*\" >>\(host.folder.path("calls"))\n")
      try NetworkNamespace.shell("chmod +x \(bridge)")
      let configuration = try host.folder.write(
        "barrier.conf", "VIF_SCRIPT=\(bridge)\nTIMEOUT=\(timeout)\nFAIL=\(fail)\n")
      let programs = URL(filePath: try Program.path("vmfence-ref")).deletingLastPathComponent().path
      return try host.network.host.start(
        "env vif=vif1.0 VMFENCE_BARRIER_CONF=\(configuration) VMFENCE_SOCKET=\(host.folder.path("control.sock")) "
          + "PATH=\(programs):/usr/sbin:/usr/bin:/sbin:/bin \(Self.script) \(verb) type_if=vif")
    }

    private func isShut(_ host: ProtectedHost) -> Bool {
      host.network.host.succeeds("nft list table bridge vmfence-barrier-vif1.0")
    }

    @Test("a card is shut until its guest is guarded there, with what was blocked before")
    func opens() throws {
      let host = try ProtectedHost("barrier")
      let inventory = try String(contentsOfFile: host.folder.path("inventory.yaml"), encoding: .utf8)
      let line = try #require(inventory.split(separator: "\n").first { $0.contains("vif1.0") })
      _ = try host.folder.write("inventory.yaml", inventory.replacingOccurrences(of: line + "\n", with: ""))
      try host.start(captures: 2)
      _ = try host.cli("bans", "add", "10.77.0.99", "--domain", "web", "--for", "1h")
      // A port that nobody has is waited for no longer than was asked.
      let failure = #expect(throws: ControlFailure.self) {
        try host.ask(ControlRequest(.barrier, duration: 0, port: "vif1.0"), BarrierStatus.self)
      }
      #expect(failure?.message.contains("no domain has it") == true)
      let script = try plug(host)
      try LiveRunTests.wait("the card is shut") { isShut(host) }
      #expect(!host.fetches(1, from: "10.77.0.98"))
      #expect(script.isRunning, "it waits for the guest")
      // The toolstack has written what card that is.
      _ = try host.folder.write("inventory.yaml", inventory)
      script.waitUntilExit()
      #expect(script.terminationStatus == 0)
      #expect(!isShut(host))
      // At once, not a moment later: the ban stands at the new port, and packets are inspected.
      #expect(!host.fetches(1, from: "10.77.0.99"))
      #expect(host.fetches(1, from: "10.77.0.98", seconds: 10))
      let domains = try host.ask(ControlRequest(.domains), [DomainStatus].self)
      #expect(domains.first { $0.name == "web" }?.ports == ["vif1.0"])
      #expect(try String(contentsOfFile: host.folder.path("calls"), encoding: .utf8) == "vif1.0 online type_if=vif\n")
      // A second time there is nothing to wait for.
      let status = try host.ask(ControlRequest(.barrier, duration: 0, port: "vif2.0"), BarrierStatus.self)
      #expect(status == BarrierStatus(port: "vif2.0", domain: "files", isInspected: true))
    }

    @Test("without a daemon, the card opens or stays shut as was chosen")
    func fails() throws {
      let host = try ProtectedHost("nodaemon")
      for mode in ["open", "closed"] {
        let script = try plug(host, timeout: "1s", fail: mode)
        script.waitUntilExit()
        #expect((script.terminationStatus == 0) == (mode == "open"))
        #expect(isShut(host) == (mode == "closed"))
        #expect(host.fetches(1, from: "10.77.0.98", seconds: mode == "open" ? 10 : 1) == (mode == "open"))
      }
      let offline = try plug(host, "offline")
      offline.waitUntilExit()
      #expect(offline.terminationStatus == 0 && !isShut(host))
    }
  }
}
#endif
