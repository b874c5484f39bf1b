#if Daemon
import Foundation
import Testing

/// What people do wrong when they start vmfence-disk: said at once, with place and remedy, and before anything is served.
@Suite("Mistakes in starting vmfence-disk")
struct MistakeTests {
  private let folder: String

  init() throws {
    folder = try shell("mktemp -d /tmp/vmfence-disk.XXXXXX").output.trimmingCharacters(in: .whitespacesAndNewlines)
    try shell(
      """
      cd \(folder) && truncate -s 64K disk.img && mkdir folder && mkfifo pipe && truncate -s 1T huge
      printf 'alert tcp any any -> any any (msg:"m"; content:"x"; sid:1;)\\n' > a.rules
      printf 'alert tcp any any -> any any (msg:"m"; ip.src; dataset:isset,n,type ip,load n.lst; sid:1;)\\n' > set.rules
      """)
  }

  /// What it says and with what status it ends; killed when it serves, which has no status of its own.
  private func start(_ words: String, socket: String = "socket") throws -> (status: Int32, output: String) {
    let program = try programPath("vmfence-disk")
    defer { _ = try? shell("rm -f \(folder)/socket") }
    return try shell(
      "cd \(folder) && timeout -s KILL 20 \(program) --disk disk.img --socket \(socket) \(words)", allowFailure: true)
  }

  @Test(
    "a file that cannot be read is named with the reason, and nothing waits for it", .timeLimit(.minutes(3)),
    arguments: ["--policy", "--rules"])
  func unreadable(option: String) throws {
    defer { _ = try? shell("rm -rf \(folder)") }
    let limit = option == "--policy" ? "1 MiB" : "64 MiB"
    for (name, reason) in [
      ("gone", "No such file or directory"), ("folder", "Is a directory"), ("pipe", "it is no regular file"),
      ("/dev/zero", "it is no regular file"), ("huge", "it has more than \(limit)"),
    ] {
      let result = try start("\(option) \(name)")
      #expect(
        result.status == 66 && result.output.contains("\(name)")
          && result.output.contains(" cannot be read: \(reason) (check the path and its permissions)"), "\(result)")
    }
  }

  @Test("a byte order mark is no part of the first rule, and lists beside the rules are read")
  func marks() throws {
    defer { _ = try? shell("rm -rf \(folder)") }
    try shell(
      """
      cd \(folder) && for name in a set; do (printf '\\357\\273\\277'; cat $name.rules) > marked-$name.rules; done
      printf '\\357\\273\\277192.0.2.1\\n' > n.lst; printf '\\357\\273\\277/etc/**\\n' > policy
      """)
    // The socket is made last, so all else was right.
    for words in ["--rules marked-a.rules", "--rules marked-set.rules", "--policy policy"] {
      let result = try start(words, socket: "gone/socket")
      #expect(result.status == 71 && !result.output.contains("rules:1"), "\(words): \(result)")
    }
    try shell("rm \(folder)/n.lst")
    let without = try start("--rules set.rules")
    #expect(
      without.status == 64 && without.output.contains("set.rules:1:")
        && without.output.contains("the file `n.lst` cannot be read: there is none (paths are relative"), "\(without)")
  }
}
#endif
