#if Daemon
import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceControl

extension EndToEnd {
  /// The daemon, and the process that opens packet sockets for it.
  @Suite("What opens packet sockets")
  struct Opener {
    private func opener(_ host: ProtectedHost) throws -> [Int32] {
      try Program.children(of: try #require(host.daemon?.processIdentifier), named: "vmfence-capture")
    }

    /// Plugs guests in that come while the daemon runs.
    private func add(_ numbers: ClosedRange<Int>, to host: ProtectedHost) throws -> [NetworkNamespace] {
      let guests = try numbers.map { number in
        let guest = try NetworkNamespace("opener-vm\(number)")
        try host.network.attach(guest, port: "vif\(number).0", number: number)
        return guest
      }
      let inventory = try String(contentsOfFile: host.folder.path("inventory.yaml"), encoding: .utf8)
      let more = numbers.map { number in
        """
          - name: guest\(number)
            uuid: 6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f000\(number)
            domid: \(number)
            tenant: acme
            ports: [{interface: vif\(number).0, bridge: xenbr0, mac: "02:77:00:00:00:0\(number)", addresses: [10.77.0.\(number)]}]

        """
      }
      _ = try host.folder.write("inventory.yaml", inventory + more.joined())
      return guests
    }

    private func isTold(_ host: ProtectedHost) -> Bool { (try? host.platformKinds())?.contains("capture-gap") == true }

    @Test("killed: what is captured goes on, it is told, another is started, and guests that come are captured")
    func killed() throws {
      let host = try ProtectedHost("openerdies")
      try host.start()
      let first = try opener(host)
      try #require(first.count == 1)
      let status = try String(contentsOfFile: "/proc/\(first[0])/status", encoding: .utf8)
      for line in ["Uid:\t65534\t65534\t65534\t65534", "CapEff:\t0000000000002000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        #expect(status.contains(line), "\(status)")
      }
      kill(first[0], SIGKILL)
      host.attack()
      try eventually("the attacker is blocked") { !host.bans.isEmpty }
      try eventually("another is started") { try opener(host).count == 1 && opener(host) != first }
      try eventually("it is told") { isTold(host) }
      let guests = try add(4...6, to: host)
      for number in 4...6 {
        let status = try host.ask(ControlRequest(.barrier, duration: 60, port: "vif\(number).0"), BarrierStatus.self)
        #expect(status.isInspected)
        try eventually("it is said") { host.said.contains("capturing on vif\(number).0") }
      }
      withExtendedLifetime(guests) {}
      try eventually("nothing is wrong any more") {
        try host.ask(ControlRequest(.status), DaemonStatus.self).problems.isEmpty
      }
    }

    @Test(
      "stopped: nobody waits for it, a guest that it has no socket for is not guarded yet, and another takes its place")
    func stopped() throws {
      let host = try ProtectedHost("openerstops")
      try host.start()
      let first = try opener(host)
      try #require(first.count == 1)
      kill(first[0], SIGSTOP)
      // One socket is there already.
      let guests = try add(4...5, to: host)
      try eventually("one is waited for") { host.said.contains("waiting for vif") }
      #expect(host.said.contains("vmfence-capture does not answer"), "\(host.said)")
      let waiting = host.said.contains("waiting for vif4.0") ? "vif4.0" : "vif5.0"
      // Another may have taken its place by now.
      do {
        let status = try host.ask(ControlRequest(.barrier, duration: 0, port: waiting), BarrierStatus.self)
        #expect(status.isInspected && host.said.contains("capturing on \(waiting)"), "it is guarded without a socket")
      } catch let failure as ControlFailure { #expect(failure.message.contains("is not guarded"), "\(failure)") }
      host.attack()
      try eventually("the attacker is blocked") { !host.bans.isEmpty }
      for number in 4...5 {
        let status = try host.ask(ControlRequest(.barrier, duration: 60, port: "vif\(number).0"), BarrierStatus.self)
        #expect(status.isInspected)
        try eventually("it is said") { host.said.contains("capturing on vif\(number).0") }
      }
      withExtendedLifetime(guests) {}
      try eventually("another takes its place") { try opener(host).count == 1 && opener(host) != first }
      try eventually("it is ended") { kill(first[0], 0) == -1 }
      try eventually("it is told") { isTold(host) }
    }
  }
}
#endif
