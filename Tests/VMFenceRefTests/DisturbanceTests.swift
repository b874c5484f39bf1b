#if Daemon
import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceControl

extension EndToEnd {
  /// What others do to the host while the daemon runs.
  @Suite("What others do", .serialized)
  struct DisturbanceTests {
    @Test(
      "a table that nobody owns: whoever flushes or deletes it is named, and it is mended",
      arguments: ["nft flush ruleset", "nft delete table bridge vmfence", "nft flush set bridge vmfence block4"])
    func changedByOthers(command: String) throws {
      let host = try ProtectedHost("unowned", host: "firewall: {own-table: false}")
      try host.start()
      host.attack()
      try eventually("a block") { host.bans.count == 1 }
      #expect(try !host.network.host.run("nft list table bridge vmfence").contains("flags owner"))
      // What others have stays theirs.
      try host.network.host.run("nft add table ip others")
      try host.network.host.run(command)
      try eventually("it is said") { host.said.contains("the packet filter: nft (process ") }
      try eventually("the block stands again") {
        host.network.host.succeeds("nft list set bridge vmfence block4 | grep -q 10.77.0.99")
      }
      #expect(host.isCutOff(1) && host.fetches(2))
      try eventually("it is told") { try host.platformKinds().contains("firewall-drift") }
      #expect(host.network.host.succeeds("nft list table ip others") == (command != "nft flush ruleset"))
      let ban = try #require(host.bans.first)
      #expect((ban.remaining ?? 0) < 300, "with the time that it had left")
    }

    @Test("a card whose name another one gets: the new one is opened at once, not at the next look at all")
    func renamed() throws {
      let host = try ProtectedHost("renamed")
      try host.start()
      let closed = "its interface has another name now"
      // What only looks once a second opens it in a look. From the second round on, which begins right after one, that comes after the news. Otherwise one may come in
      // between, too, while the new card is made: the oftener the longer this machine takes for that.
      var (rounds, atOnce) = (0, 0)
      while rounds < 60, atOnce < 4 {
        rounds += 1
        let round = rounds
        let before = host.said.components(separatedBy: "capturing on vif1.0").count
        try host.network.host.run(
          """
          ip link set vif1.0 down; ip link set vif1.0 name old\(round)
          ip link add vif1.0 type veth peer name far\(round); ip link set vif1.0 up
          """)
        try eventually("round \(round)") {
          host.said.components(separatedBy: "capturing on vif1.0").count > before
        }
        let told = try #require(
          host.said.components(separatedBy: closed).last?.components(separatedBy: "opening vif1.0"))
        try #require(told.count > 1)
        if !told[0].contains("looking at everything") { atOnce += 1 }
      }
      #expect(atOnce == 4, "of \(rounds)")
      #expect(host.said.components(separatedBy: closed).count == rounds + 1)
    }

    @Test("a card whose name goes to another one while it is opened, again and again: the last one is captured")
    func renamedWhileOpened() throws {
      let host = try ProtectedHost("renaming")
      try host.start()
      for round in 1...80 {
        try host.network.host.run(
          """
          for number in $(seq 2); do
            ip link set vif1.0 down; ip link set vif1.0 name old\(round)-$number
            ip link add vif1.0 type veth peer name far\(round)-$number; ip link set vif1.0 up
          done
          """)
        let status = try host.ask(ControlRequest(.barrier, duration: 60, port: "vif1.0"), BarrierStatus.self)
        #expect(status.isInspected, "round \(round)")
      }
    }

    private static let faketime = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"

    /// A clock for the daemon alone: what the whole machine has is none of a test's business. The library keeps its state in memory that faketime(1) makes, and
    /// lets go of with its child; when it had to make it itself, it would move the environment, by which Swift finds a program's arguments.
    private final class FakeClock {
      private var keepers: [Process] = []
      private let file: String

      init(_ folder: TemporaryFolder) throws { file = try folder.write("clock", "+0") }

      /// What one start of the daemon needs, with memory of its own: a process that is killed while it holds the lock in it leaves it locked, and all others
      /// that use it would wait for ever.
      func environment() throws -> String {
        let keeper = Process()
        keeper.executableURL = URL(filePath: "/usr/bin/faketime")
        keeper.arguments = ["-m", "-f", "+0", "/bin/sh", "-c", "echo $FAKETIME_SHARED; exec sleep 600"]
        let output = Pipe()
        keeper.standardOutput = output
        try keeper.run()
        keepers.append(keeper)
        let shared = String(decoding: output.fileHandleForReading.availableData, as: UTF8.self)
          .trimmingCharacters(in: .whitespacesAndNewlines)
        try #require(shared.contains("faketime_shm"))
        return "LD_PRELOAD=\(faketime) 'FAKETIME_SHARED=\(shared)' FAKETIME_TIMESTAMP_FILE=\(file) FAKETIME_NO_CACHE=1 "
          + "FAKETIME_DONT_FAKE_MONOTONIC=1 DONT_FAKE_MONOTONIC=1"
      }

      func set(_ seconds: Int) throws {
        try Data("\(seconds > 0 ? "+" : "")\(seconds)\n".utf8).write(to: URL(filePath: file), options: .atomic)
      }

      deinit {
        for keeper in keepers {
          _ = try? NetworkNamespace.shell("pkill -9 -P \(keeper.processIdentifier) || true")
          keeper.waitUntilExit()
        }
      }
    }

    @Test(
      "the daemon's clock jumps: measures last as long as they should, detectors live, people see the new time, a restart finds it right",
      .enabled(if: FileManager.default.isReadableFile(atPath: faketime), "needs faketime (scripts/setup tests)"),
      arguments: [3 * 86_400, -3 * 86_400])
    func clockJump(seconds: Int) throws {
      let host = try ProtectedHost("clock", policy: ProtectedHost.policy(block: "45s"))
      let clock = try FakeClock(host.folder)
      try host.start(environment: clock.environment())
      host.attack()
      try eventually("a block") { host.bans.count == 1 }
      let before = try #require(host.bans.first)
      try clock.set(seconds)
      try eventually("the jump is told") { try host.platformKinds().contains("clock-jump") }
      let after = try #require(host.bans.first)
      #expect(after.id == before.id && (after.remaining ?? 0) > 0 && (after.remaining ?? 0) <= (before.remaining ?? 0))
      #expect(host.isCutOff(1))
      let shift = try rfc3339(#require(after.expires)).timeIntervalSince(rfc3339(#require(before.expires)))
      #expect(abs(shift - Double(seconds)) < 10, "people are shown the system's time")
      host.attack(2, from: "10.77.0.98")
      try eventually("attacks are found and blocked") { host.bans.contains { $0.network == "10.77.0.98" } }
      host.stop(SIGKILL)
      try host.start(environment: clock.environment())
      #expect(host.bans.contains { $0.network == "10.77.0.98" && ($0.remaining ?? 100) <= 45 })
      try eventually("the blocks end on time") { host.bans.isEmpty }
      #expect(host.fetches(1))
      let domains = try host.ask(ControlRequest(.domains), [DomainStatus].self)
      #expect(domains.allSatisfy { $0.restarts == 0 }, "\(domains)")
    }

    private func rfc3339(_ text: String) throws -> Date { try Date(text, strategy: .iso8601) }
  }
}
#endif
