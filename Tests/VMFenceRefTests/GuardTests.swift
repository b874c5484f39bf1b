#if Daemon
import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceControl

extension EndToEnd {
  /// What guests may not pretend.
  @Suite("Guards at guests' ports", .serialized)
  struct GuardTests {
    /// Sends an answer of a DHCP server from the first guest, in the guest's name or from another MAC address.
    private func answer(_ host: ProtectedHost, mac: String = "02:77:00:00:00:01") throws {
      let sender = try PacketEndpoint(host.network.vm1)
      let bytes = mac.split(separator: ":").map { UInt8($0, radix: 16)! }
      // UDP without a checksum, from 10.77.0.1 and port 67 to 10.77.0.99 and port 68.
      var header: [UInt8] = [
        0x45, 0, 0, 46, 0, 1, 0, 0, 64, 17, 0, 0, 10, 77, 0, 1, 10, 77, 0, 99,
      ]
      var sum = stride(from: 0, to: 20, by: 2).reduce(0) {
        $0 + Int(header[$1]) << 8 + Int(header[$1 + 1])
      }
      while sum > 0xFFFF { sum = sum & 0xFFFF + sum >> 16 }
      header.replaceSubrange(10..<12, with: [UInt8(~sum >> 8 & 0xFF), UInt8(~sum & 0xFF)])
      try sender.send(
        [0x02, 0x77, 0, 0, 0, 0x63] + bytes + [8, 0] + header + [0, 67, 0, 68, 0, 26, 0, 0]
          + Array("a payload to know".utf8)
          + [0])
    }

    /// Sends UDP from the first guest with an IPv6 source address that ends in these bytes, in fe80::/64.
    private func speak(_ host: ProtectedHost, as identifier: [UInt8]) throws {
      let sender = try PacketEndpoint(host.network.vm1)
      let source: [UInt8] = [0xFE, 0x80] + [UInt8](repeating: 0, count: 14 - identifier.count) + identifier
      let destination: [UInt8] = [0xFD, 0x77] + [UInt8](repeating: 0, count: 13) + [0x99]
      try sender.send(
        [0x02, 0x77, 0, 0, 0, 0x63, 0x02, 0x77, 0, 0, 0, 1, 0x86, 0xDD, 0x60, 0, 0, 0, 0, 12, 17, 64] + source
          + destination + [0x13, 0x88, 0x13, 0x88, 0, 12, 0, 1, 1, 2, 3, 4])
    }

    private func arrives(_ host: ProtectedHost, mac: String, within milliseconds: Int = 60_000) throws -> Bool {
      let receiver = try PacketEndpoint(host.network.outside)
      try answer(host, mac: mac)
      return receiver.receives(within: milliseconds) {
        Array($0.dropFirst(42).prefix(17)) == Array("a payload to know".utf8)
      }
    }

    @Test(
      "what they stop is counted, shown and told with the guest's name; when the daemon stops, they go and blocks stay"
    )
    func guards() throws {
      let host = try ProtectedHost("guards", host: "metrics: {}\nfirewall: {routers: [\"fe80::1\"]}")
      try host.start()
      let (begun, date) = (ContinuousClock.now, Date())
      func series(_ name: String) throws -> Double? {
        let text = try host.network.host.run("curl -s http://127.0.0.1:9477/metrics || true")
        return text.split(separator: "\n").first { $0.hasPrefix(name + " ") }?.split(separator: " ").last
          .flatMap { Double($0) }
      }
      func metric(_ reason: String) throws -> Double? {
        try series("vmfence_firewall_dropped_total{reason=\"\(reason)\"}")
      }
      func told() throws -> [EVELine] {
        try EVELine.read(host.folder.path("eve.json")).filter {
          $0.vmfence?.platform?.kind == "spoofing-stopped"
        }
      }
      try eventually("the counters are read") { try metric("spoofed_dhcp") == 0 }
      try answer(host)
      try eventually("the answer is counted") { try metric("spoofed_dhcp") == 1 }
      let status = try host.ask(ControlRequest(.status), DaemonStatus.self)
      #expect(
        status.stopped["spoofed_dhcp"] == 1 && status.stopped["quarantine"] == 0,
        "\(status.stopped)")
      #expect(try host.cli("status").contains("stopped by the packet filter: spoofed_dhcp 1"))
      try eventually("it is told") { try !told().isEmpty }
      // The router that was named, and the host by the address that its bridge's MAC address gives.
      #expect(try metric("spoofed_ipv6") == 0)
      try speak(host, as: [1])
      try speak(host, as: [0x77, 0, 0xFF, 0xFE, 0, 0, 0xFE])
      try speak(host, as: [0x12, 0x34])
      try eventually("they are counted") { try metric("spoofed_ipv6") == 2 }
      host.attack(from: "10.77.0.98")
      try eventually("a block") { host.bans.count == 1 }
      #expect(host.isCutOff(1, from: "10.77.0.98"))
      for _ in 0..<3 { try answer(host) }
      try eventually("all are counted") {
        try metric("spoofed_dhcp") == 4 && metric("block") ?? 0 > 0
      }
      #expect(try metric("spoofed_ipv6") == 2, "an address of which nothing is known is stopped")
      try eventually("the block is counted in the kernel") {
        try series("vmfence_firewall_desired_elements") == 1 && series("vmfence_firewall_kernel_elements") == 1
      }
      let web = "vm=\"web\",uuid=\"6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0001\""
      #expect(try series("vmfence_blocks_active{\(web),family=\"ipv4\"}") == 1)
      #expect(try series("vmfence_blocks_active{\(web),family=\"ipv6\"}") == 0)
      #expect(try series("vmfence_blocks_active{family=\"ipv4\"}") == 0, "it is no block for the whole host")
      try eventually("the alerts are counted") {
        try series("vmfence_alerts_total{\(web),classtype=\"web-application-attack\"}") ?? 0 >= 3
      }
      #expect(try series("vmfence_capture_packets_total{\(web),vif=\"vif1.0\"}") ?? 0 > 0)
      let counted = try #require(try series("vmfence_firewall_kernel_elements_timestamp_seconds"))
      #expect(counted >= date.timeIntervalSince1970 - 1 && counted <= Date().timeIntervalSince1970 + 1)
      try eventually("both kinds are told") { try told().count > 1 }
      let names = try told().map { $0.vmfence?.vm?.name }
      let most = 2 + 2 * Int((ContinuousClock.now - begun).components.seconds / 60)
      #expect(names.allSatisfy { $0 == "web" } && (2...most).contains(names.count), "one a minute of each kind at most")
      // The guest comes back with another address, say, while nobody is there to learn of it.
      let other = "02:77:00:00:00:77"
      #expect(try !arrives(host, mac: other, within: 500))
      host.stop()
      #expect(try arrives(host, mac: other), "a guard stays without the daemon")
      #expect(host.isCutOff(1, from: "10.77.0.98") && host.fetches(1), "the block does not stay")
      try host.start()
      #expect(try !arrives(host, mac: other, within: 500), "the guards do not come back")
      #expect(host.isCutOff(1, from: "10.77.0.98"))
    }
  }
}
#endif
