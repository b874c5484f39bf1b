#if Daemon
import Foundation
import NetworkTestSupport
import Testing
import VMFenceControl

extension EndToEnd {
  /// What others do to the host while the daemon runs.
  @Suite("What others do", .serialized)
  struct DisturbanceTests {
    private static let longBlocks = ProtectedHost.policy.replacingOccurrences(of: "6s", with: "5m")

    @Test(
      "a table that nobody owns: whoever flushes or deletes it is named, and it is mended",
      arguments: ["nft flush ruleset", "nft delete table bridge vmfence", "nft flush set bridge vmfence block4"])
    func changedByOthers(command: String) throws {
      let host = try ProtectedHost("unowned", policy: Self.longBlocks, host: "firewall: {own-table: false}")
      try host.start()
      host.attack()
      try LiveRunTests.wait("a block") { host.bans.count == 1 }
      #expect(try !host.network.host.run("nft list table bridge vmfence").contains("flags owner"))
      // What others have stays theirs.
      try host.network.host.run("nft add table ip others")
      try host.network.host.run(command)
      try LiveRunTests.wait("it is said") { host.said.contains("the packet filter: nft (process ") }
      try LiveRunTests.wait("the block stands again") {
        host.network.host.succeeds("nft list set bridge vmfence block4 | grep -q 10.77.0.99")
      }
      #expect(!host.fetches(1) && host.fetches(2))
      try LiveRunTests.wait("it is told") { try host.platformKinds().contains("firewall-drift") }
      #expect(host.network.host.succeeds("nft list table ip others") == (command != "nft flush ruleset"))
      let ban = try #require(host.bans.first)
      #expect((ban.remaining ?? 0) < 300, "with the time that it had left")
    }
  }
}
#endif
