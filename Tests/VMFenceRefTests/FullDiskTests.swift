#if Daemon
import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceControl

@Suite(
  "An event file on a disk that is full",
  .enabled(if: NetworkNamespace.isPossible, Comment(rawValue: NetworkNamespace.reason)))
struct FullDiskTests {
  @Test("that there is no space is said, and not that a guest has too many events")
  func reason() throws {
    let folder = try TemporaryFolder()
    let namespace = try NetworkNamespace("no-space")
    try namespace.run("ip link add vif1.0 type veth peer name eth0; ip link set vif1.0 up")
    let logs = folder.path("logs")
    try NetworkNamespace.shell("mkdir -p '\(logs)'; mount -t tmpfs -o size=64k tmpfs '\(logs)'")
    defer { _ = try? NetworkNamespace.shell("umount -l '\(logs)'") }
    try NetworkNamespace.shell("cat /dev/zero >'\(logs)/filler' 2>/dev/null || true")
    _ = try folder.write(
      "inventory.yaml",
      """
      version: 1
      domains:
        - {name: web, uuid: 6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0001, domid: 1, ports: [{interface: vif1.0, mac: "00:16:3e:00:00:01"}]}

      """)
    _ = try folder.write("a.rules", "alert tcp any any -> any any (msg:\"m\"; content:\"x\"; sid:1;)\n")
    let config = try folder.write(
      "host.yaml",
      """
      version: 1
      inventory: inventory.yaml
      control-socket: control.sock
      statistics-every: 100ms
      rules: {dialect: snort2, common: a.rules}
      firewall: {kind: none}

      """)
    let daemon = try Program.start(
      ["run", "--config", config, "--eve", "\(logs)/eve.json", "--log-level", "critical"], in: namespace.name,
      errors: Pipe(), output: Pipe())
    defer { if daemon.isRunning { daemon.terminate() } }
    let socket = folder.path("control.sock")
    // There is a socket before it takes connections.
    try eventually("it answers") { try Program.run("status", "--socket", socket).status == 0 }
    func status() throws -> DaemonStatus {
      let said = try Program.run("status", "--json", "--socket", socket)
      return try JSONDecoder().decode(DaemonStatus.self, from: Data(said.output.utf8))
    }
    func ofWeb() throws -> UInt64 {
      let said = try Program.run("domains", "--json", "--socket", socket)
      return try JSONDecoder().decode([DomainStatus].self, from: Data(said.output.utf8)).first?.eventsLost ?? 0
    }
    try eventually("statistics of the guest are lost") { try ofWeb() > 0 }
    let said = try status()
    #expect(said.eventsUnwritten > 0 && said.eventsLostByDomain.isEmpty)
    #expect(said.problems.contains { $0.contains("eve.json") && $0.contains("No space left") }, "\(said.problems)")
    let shown = try Program.run("status", "--socket", socket).output
    #expect(shown.contains(/events, of which the event file did not take \d+/), "\(shown)")
    #expect(!shown.contains("too many of their own"), "\(shown)")
  }
}
#endif
