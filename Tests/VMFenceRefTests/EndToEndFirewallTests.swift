#if Daemon
import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceControl

extension EndToEnd {
  /// The process that holds the packet filter, when it does not do what it should.
  @Suite("The packet filter's process", .serialized)
  struct FirewallTests {
    /// The number of the daemon's vmfence-firewall; nil when there is none.
    private func holder(_ host: ProtectedHost) throws -> Int32? {
      let daemon = try #require(host.daemon?.processIdentifier)
      let text = try NetworkNamespace.shell("pgrep -P \(daemon) -x vmfence-firewal || true")
      return Int32(text.trimmingCharacters(in: .whitespacesAndNewlines))
    }

    @Test(
      "killed, or stuck, while blocks stand: they stand, it is told, and what is decided meanwhile stands once another runs",
      arguments: [SIGKILL, SIGSTOP])
    func ends(signal: Int32) throws {
      let host = try ProtectedHost("holder")
      try host.start()
      host.attack()
      try eventually("a block") { host.bans.count == 1 && host.isCutOff(1) }
      let first = try #require(try holder(host))
      kill(first, signal)
      #expect(host.isCutOff(1) && host.fetches(2), "what stands does not stand any more")
      host.attack(2, from: "10.77.0.98")
      try eventually("it is told") { try host.platformKinds().contains("firewall-gap") }
      try eventually("it is said") { host.said.contains("vmfence-firewall is gone (") }
      try eventually("another runs") { try holder(host).map { $0 != first } ?? false }
      try eventually("what was decided stands") {
        host.bans.contains { $0.network == "10.77.0.98" } && host.isCutOff(2, from: "10.77.0.98")
      }
      #expect(host.isCutOff(1) && host.fetches(1, from: "10.77.0.98"))
      try eventually("the first one is ended") { kill(first, 0) == -1 }
      try eventually("it is said") { host.said.contains("vmfence-firewall runs again") }
      // The kernel has a measure before the daemon hears that it has.
      var status: DaemonStatus?
      try eventually("both measures are known to be in force", saying: { "\(status as Any)" }) {
        let now = try host.ask(ControlRequest(.status), DaemonStatus.self)
        status = now
        return now.desired == 0 && now.measures == 2 && now.problems.allSatisfy { !$0.contains("cannot be changed") }
      }
    }

    @Test("while none can be started, status says why, and nothing that stands is lost")
    func unavailable() throws {
      let host = try ProtectedHost("noholder", host: "firewall: {own-table: false}")
      try host.start()
      host.attack()
      try eventually("a block") { host.bans.count == 1 && host.isCutOff(1) }
      // A program that never answers, in its place as the daemon sees it, stands for a kernel that does not answer.
      let daemon = try #require(host.daemon?.processIdentifier)
      let (program, silent) = (try Program.path("vmfence-firewall"), host.folder.path("silent"))
      try NetworkNamespace.shell(
        "printf '#!/bin/sh\\nexec sleep 600\\n' >\(silent); chmod 755 \(silent); "
          + "nsenter -t \(daemon) -m mount --bind \(silent) \(program)")
      kill(try #require(try holder(host)), SIGSTOP)
      try eventually("status says it") {
        try host.ask(ControlRequest(.status), DaemonStatus.self).problems.contains {
          $0.contains("vmfence-firewall is gone (it did not answer")
        }
      }
      #expect(host.isCutOff(1) && host.fetches(2))
      #expect(try host.cli("status").contains("problem: the packet filter cannot be changed"))
      host.attack(2, from: "10.77.0.98")
      try eventually("a decision waits") {
        try host.ask(ControlRequest(.status), DaemonStatus.self).desired == 1
      }
      try NetworkNamespace.shell("nsenter -t \(daemon) -m umount -l \(program); pkill -P \(daemon) -x sleep || true")
      try eventually("what waited stands") { host.isCutOff(2, from: "10.77.0.98") }
      #expect(host.isCutOff(1))
      try eventually("nothing is wrong any more") {
        let status = try host.ask(ControlRequest(.status), DaemonStatus.self)
        return status.problems.isEmpty && status.desired == 0
      }
    }
  }
}
#endif
