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

  @Test(
    "what would destroy another's file, or can come to nothing, is refused with a remedy",
    arguments: [
      ("--eve disk.img", 64, "--eve and --disk name one file, disk.img", "(name another)"),
      ("--keep ./disk.img --rollback /etc/x", 64, "--keep and --disk name one file", "(name another)"),
      ("--state link", 64, "--state and --disk name one file, link", "(name another)"),
      ("--keep new --state new", 64, "--state and --keep name one file, new", "(name another)"),
      ("--control socket", 64, "--socket and --control name one socket", "(name another)"),
      ("--eve folder", 73, "error: cannot write events to folder: Is a directory", "(name a file in a folder"),
      ("--eve unix:gone", 73, "error: cannot write events to gone: No such file", "(start what listens there first)"),
      ("--state gone/state", 73, "error: the state cannot be kept: open gone/state: No such file", "(name a file in"),
      (
        "--control gone/control", 71, "error: the control socket cannot be made: bind gone/control: No such",
        "(name one"
      ),
      ("--rollback /etc/x", 64, "error: rollback needs a file", "--keep FILE"),
      ("--keep-limit 0", 64, "--keep-limit: at least 1 MiB", ""),
      ("--eve-limit 0", 64, "--eve-limit: at least 1 MiB", ""),
      ("--eve ''", 64, "--eve: a path is needed", ""), ("--policy ''", 64, "--policy: a path is needed", ""),
      (
        "--control \(String(repeating: "a", count: 108))", 64, "--control: a socket's path has 107 bytes",
        "this has 108"
      ),
      ("--policy bad", 64, "bad:2:8: error: `denny` is not understood here", "after the pattern come a verb"),
      ("--protect etc", 64, "error: protected path \"etc\": it does not begin with a slash", "/etc/passwd"),
      ("--domain x", 64, "--domain: 'x' is no UUID", ""),
      ("--socket-mode 999", 64, "is no octal number up to 0777", ""),
    ] as [(String, Int32, String, String)])
  func refused(words: String, status: Int32, says: String, remedy: String) throws {
    defer { _ = try? shell("rm -rf \(folder)") }
    try shell(
      "cd \(folder) && ln -s disk.img link && printf '/etc/**\\n/etc/x denny\\n' > bad && sha256sum disk.img > sum")
    let result = try start(words)
    #expect(
      result.status == status && result.output.contains(says) && (remedy.isEmpty || result.output.contains(remedy)),
      "\(words): \(result)")
    try shell("cd \(folder) && sha256sum --quiet -c sum")
  }

  @Test(
    "a mistake in a policy is named with its place and what to do",
    arguments: [
      ("/etc/** deny_data", "policy:1:9: error: `deny_data` is not understood here", "did you mean `deny-data`?"),
      ("/a\n/etc/** Rolback", "policy:2:9: error: `Rolback` is not understood here", "did you mean `rollback`?"),
      ("/etc/** attributes=R attributes=L", "policy:1:22: error: `attributes` stands twice", "keep one"),
      ("/etc/** severity=1 alert severity=2", "policy:1:26: error: `severity` stands twice", "keep one"),
      ("/etc/** object object", "policy:1:16: error: `object` stands twice", "keep one"),
      ("deny-data /etc/**", "policy:1:1: error: protected path", "the pattern stands first"),
      ("\"/etc/my file\"", "policy:1:1: error: protected path", "without quotes; a space in a path is written ?"),
      ("/etc/** alert freeze", "policy:1:15: error: a second verb, `freeze`", "one line has one verb"),
      ("/etc/** severity=5", "policy:1:9: error: `severity=5` is not understood here", "severity=1 to 4"),
    ])
  func policies(text: String, says: String, remedy: String) throws {
    defer { _ = try? shell("rm -rf \(folder)") }
    try text.write(toFile: "\(folder)/policy", atomically: false, encoding: .utf8)
    let result = try start("--policy policy")
    #expect(
      result.status == 64 && result.output.contains(says) && result.output.contains(remedy), "\(text): \(result)")
  }

  @Test("what nobody can decide, and rules that nothing is compared with, are told")
  func vain() throws {
    defer { _ = try? shell("rm -rf \(folder)") }
    try shell("printf '# nothing yet\\n' > \(folder)/empty")
    for (words, says) in [
      ("--freeze '/etc/**' --freeze-limit 5", "without --control nobody can decide: what freeze holds waits 5 s"),
      ("--rules a.rules", "nothing is compared with --rules"),
      ("--policy empty", "empty: warning: the policy has no rules"),
      ("--protect '/etc/[a-z]*'", "in the pattern /etc/[a-z]* brackets stand for themselves"),
    ] {
      let result = try start(words, socket: "gone/socket")
      #expect(result.status == 71 && result.output.contains(says), "\(words): \(result)")
    }
    let right = try start("--rules a.rules --protect '/etc/**'", socket: "gone/socket")
    #expect(right.status == 71 && !right.output.contains("warning"), "\(right)")
  }

  /// Whoever mistypes an option of a command that needs another one would read that the other one is missing.
  @Test(
    "an option that is none is told before what is missing, with a guess",
    arguments: [
      ("vmfence-disk --hepl", "'--help'", "vmfence-disk --help"),
      ("vmfence-disk --dsik a.img", "'--disk'", "--disk <disk>"),
      ("vmfence-ref run --confg host.yaml", "'--config'", "vmfence-ref run --help"),
      ("vmfence-ref integrity replay --imgae x", "'--image'", "vmfence-ref integrity replay --help"),
      ("vmfence-ref check --hepl", "'--help'", "vmfence-ref check --help"),
      ("vmfence-ref --verison", "'--version'", "vmfence-ref --help"),
      ("vmfence-ref bans --jsno", nil, "vmfence-ref bans --help"),
      ("vmfence-ref integrity decide web --controll x", "'--control'", "vmfence-ref integrity decide --help"),
      ("vmfence-guest apply --chek", "'--check'", "vmfence-guest --help"),
      ("vmfence-guest --hepl", "'--help'", "vmfence-guest --help"),
      ("vmfence-capture --hepl", "'--help'", "vmfence-capture --help"),
      ("vmfence-channel --hepl", "'--help'", "vmfence-channel --help"),
      ("vmfence-detector --verison", "'--version'", "vmfence-detector --help"),
      ("vmfence-firewall --hepl", "'--help'", "vmfence-firewall --help"),
      ("vmfence-hypervisor extra", nil, "vmfence-hypervisor --help"),
    ] as [(String, String?, String)])
  func options(line: String, meant: String?, more: String) throws {
    defer { _ = try? shell("rm -rf \(folder)") }
    let words = line.split(separator: " ", maxSplits: 1).map(String.init)
    let result = try shell("\(try programPath(words[0])) \(words[1]) < /dev/null", allowFailure: true)
    #expect(result.status == 64 && result.output.contains(more), "\(result)")
    #expect(!result.output.contains("Missing"), "\(result)")
    let guess = result.output.firstMatch(of: /[Dd]id you mean ('[a-z-]+')\?/)
    #expect(guess.map { String($0.1) } == meant, "\(result)")
  }

  @Test(
    "a program that only the daemon starts says so, and what it is",
    arguments: ["capture", "channel", "detector", "firewall", "hypervisor"])
  func helpers(name: String) throws {
    defer { _ = try? shell("rm -rf \(folder)") }
    let program = try programPath("vmfence-\(name)")
    let help = try shell("\(program) --help")
    #expect(help.output.hasPrefix("USAGE: vmfence-\(name)\n") && help.output.contains("of no use by hand"), "\(help)")
    #expect(try shell("\(program) --version").output.contains("."))
    let alone = try shell("\(program) < /dev/null 3<&-", allowFailure: true)
    #expect(alone.status == 64 && alone.output.contains("not by hand"), "\(alone)")
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
