#if Daemon
import Foundation
import TestSupport
import Testing
import VMFenceControl

extension EndToEnd {
  @Suite("What is remembered", .serialized)
  struct HistoryTests {
    @Test("alerts and decisions outlive a kill; the history can be thrown away and is made again from the decision log")
    func restart() throws {
      let host = try ProtectedHost("history")
      try host.start()
      host.attack(2)
      try eventually("a block") { host.bans.count == 1 }
      try eventually("the alerts are listed") {
        try host.cli("alerts").components(separatedBy: "password file").count == 4
      }
      let why = try host.cli("why", "files", "10.77.0.99")
      #expect(why.contains("alert: ") && why.contains("[1:1000001] password file"), "\(why)")
      _ = try host.cli("bans", "delete", "10.77.0.99")
      host.stop(SIGKILL)

      try host.start()
      #expect(try host.cli("alerts", "--domain", "files").components(separatedBy: "password file").count == 4)
      #expect(try host.cli("alerts", "--domain", "web", "--json").isEmpty)
      #expect(try host.cli("alerts", "--address", "10.77.0.98") == "no alerts\n")
      let after = try host.cli("why", "files", "10.77.0.99")
      #expect(after.contains("nothing stands between files and 10.77.0.99"), "\(after)")
      #expect(after.contains("before: lift 10.77.0.99, expired"), "\(after)")
      #expect(try host.cli("bans", "list", "--past").contains("lift"))
      host.stop(SIGKILL)

      // Thrown away, and once more as something else.
      for suffix in ["", "-wal", "-shm"] {
        try? FileManager.default.removeItem(atPath: host.folder.path("state/history.db\(suffix)"))
      }
      _ = try host.folder.write("state/history.db", String(repeating: "no database ", count: 1000))
      try host.start()
      #expect(host.said.contains("the history was begun anew"))
      try eventually("the decision log is projected again") {
        try host.cli("why", "files", "10.77.0.99").contains("before: lift 10.77.0.99, expired")
      }
      #expect(try host.cli("alerts") == "no alerts\n")
    }
  }
}
#endif
