#if Daemon
import Foundation
import TestSupport
import Testing

/// The whole path with this machine's kernel as the guest. They need root, FUSE and loop devices.
@Suite(.serialized, .enabled(if: LiveDisk.isPossible, "needs root, /dev/fuse and loop devices"))
struct LiveDiskTests {
  /// File systems as mke2fs makes them, and how they are mounted.
  static let layouts: [(format: String, options: String)] = [
    ("-t ext2", "rw"), ("-t ext2 -b 1024 -r 0", "rw"),
    ("-t ext3", "data=ordered"), ("-t ext3", "data=writeback"), ("-t ext3", "data=journal"),
    ("-t ext4", "data=ordered"), ("-t ext4", "data=writeback"), ("-t ext4", "data=journal"),
    ("-t ext4 -b 1024", "data=ordered"),
    // Checksums of the journal: version 3 with metadata_csum; version 1 (of the whole transaction) where only the mount
    // asks for them; and commit blocks that do not wait for what they commit.
    ("-t ext4 -O metadata_csum", "journal_checksum"), ("-t ext4 -O ^metadata_csum", "journal_checksum"),
    ("-t ext4 -O ^metadata_csum", "journal_async_commit,data=writeback"), ("-t ext4 -O fast_commit", "data=ordered"),
  ]

  @Test(arguments: layouts) func whatAGuestDoesIsTold(format: String, options: String) throws {
    // No commit between a step and its sync, which may come seconds later on a busy machine: one may make a longer size durable before the data, which are told apart then.
    let hasJournal = !format.contains("ext2")
    let disk = try LiveDisk(
      format: format, mountOptions: options + (hasJournal ? ",commit=300" : ""), arguments: Workload.watched)
    for step in Workload.steps { try shell("cd \(disk.mount) && \(step.command) && sync -f .") }
    disk.disconnect()
    #expect(try disk.stop() == 0)
    // Fast commits are told as a gap.
    let told = try disk.told(hasJournal: hasJournal).filter { $0 != "gap " || !format.contains("fast_commit") }
    #expect(told == Workload.told, "\(told)")
    #expect(try disk.inconsistencies() == "")
  }

  /// A fast commit is recognised and not read: what it made durable is told with the next whole one.
  @Test func whatAFastCommitHoldsIsToldWithTheNextWholeOne() throws {
    let disk = try LiveDisk(format: "-t ext4 -O fast_commit", mountOptions: "commit=300", arguments: Workload.watched)
    // A file system's first commit is a whole one.
    try shell("cd \(disk.mount) && echo x > x && sync -f . && chmod 600 etc/passwd && sync etc/passwd")
    #expect(try disk.fastCommits() > 0, "this kernel makes fast commits")
    try shell("sync -f \(disk.mount)")
    disk.disconnect()
    #expect(try disk.stop() == 0)
    #expect(try disk.told() == ["gap ", "chmod /etc/passwd"])
  }

  /// Where metadata are judged fast commits are refused: the kernel commits in full instead, and that is judged.
  @Test func aFastCommitDoesNotGetRoundARefusal() throws {
    let disk = try LiveDisk(
      format: "-t ext4 -O fast_commit", mountOptions: "commit=300",
      arguments: ["--protect", "/etc/**", "--deny-metadata", "/boot/**"])
    try shell("cd \(disk.mount) && echo x > x && sync -f . && chmod 600 etc/passwd && sync etc/passwd")
    let refused = try shell("cd \(disk.mount) && chmod 777 boot/kernel && sync boot/kernel", allowFailure: true)
    #expect(refused.status != 0, "the guest is told")
    disk.disconnect()
    #expect(try disk.stop() == 0)
    #expect(
      try disk.events().map { "\($0) \($0.verdict)" } == ["chmod /etc/passwd allow", "chmod /boot/kernel deny"])
    let said = try String(contentsOfFile: disk.eve, encoding: .utf8)
    #expect(said.contains("integrity-limit") && !said.contains("\"monitor_refused_fast_commits\":0"))
    // The kernel's own replay of what the journal has.
    try shell("mount -o loop \(disk.image) \(disk.mount)")
    defer { _ = try? shell("umount \(disk.mount)") }
    #expect(try shell("stat -c %a \(disk.mount)/boot/kernel \(disk.mount)/etc/passwd").output == "644\n600\n")
  }

  @Test(arguments: ["ext2", "ext3", "ext4"]) func aRefusedWriteFailsInTheGuestAndLeavesTheDiskIntact(fileSystem: String)
    throws
  {
    let disk = try LiveDisk(format: "-t \(fileSystem)", arguments: Workload.watched)
    let overwrite = "dd if=/dev/zero of=\(disk.mount)/boot/kernel bs=4k count=8 conv=notrunc,fsync"
    let (status, output) = try shell(overwrite, allowFailure: true)
    #expect(status != 0 && output.contains("Input/output error"), "the guest is told: \(output)")
    // The guest goes on with what is not refused. (Its kernel tells a syncfs(2) of the failure, too; an fsync(2) of another
    // file succeeds.)
    try shell("echo fine > \(disk.mount)/etc/fine && sync \(disk.mount)/etc/fine")
    disk.disconnect()
    #expect(try disk.stop() == 0)
    #expect(try disk.events().contains { $0.path == "/boot/kernel" && $0.verdict == "deny" })
    try shell("cp \(disk.image) \(disk.folder)/copy.img && e2fsck -fp \(disk.folder)/copy.img")
    #expect(try shell("e2fsck -fn \(disk.folder)/copy.img", allowFailure: true).status == 0)
    try shell("mount -o loop,ro \(disk.folder)/copy.img \(disk.mount)")
    defer { _ = try? shell("umount \(disk.mount)") }
    let kernel = try Data(contentsOf: URL(filePath: "\(disk.mount)/boot/kernel"))
    #expect(kernel.count == 262_144 && kernel.allSatisfy { $0 == UInt8(ascii: "K") })
    #expect(try shell("cat \(disk.mount)/etc/fine").output == "fine\n")
  }

  @Test(arguments: ["ext2", "ext3", "ext4"]) func aServerThatIsKilledLosesNothingThatWasDurable(fileSystem: String)
    throws
  {
    let disk = try LiveDisk(format: "-t \(fileSystem)", arguments: Workload.watched)
    let writer = Process()
    writer.executableURL = URL(filePath: "/bin/sh")
    writer.arguments = [
      "-c",
      """
      i=0; while [ $i -lt 5000 ]; do
        head -c 20000 /dev/zero | tr '\\0' Z > \(disk.mount)/f$i || exit 1
        sync \(disk.mount)/f$i && sync -f \(disk.mount) || exit 1
        echo $i >> \(disk.folder)/durable; i=$((i+1)); done
      """,
    ]
    writer.standardError = FileHandle.nullDevice
    try writer.run()
    try eventually("some files are durable") {
      try shell("[ $(wc -l < \(disk.folder)/durable) -ge 10 ]", allowFailure: true).status == 0
    }
    disk.kill()
    writer.waitUntilExit()
    #expect(writer.terminationStatus != 0, "the guest's disk is gone")
    let durable: [Substring] = try String(contentsOfFile: "\(disk.folder)/durable", encoding: .utf8).split(
      separator: "\n")
    disk.disconnect()
    // Another process takes over where it was: nothing of the dead one stands in the way.
    try disk.start(Workload.watched)
    #expect(try disk.stop() == 0)
    #expect(try shell("e2fsck -fy \(disk.image)", allowFailure: true).status <= 1)
    try shell("mount -o loop,ro \(disk.image) \(disk.mount)")
    defer { _ = try? shell("umount \(disk.mount)") }
    for number in durable {
      let content = try Data(contentsOf: URL(filePath: "\(disk.mount)/f\(number)"))
      #expect(content.count == 20_000 && content.allSatisfy { $0 == UInt8(ascii: "Z") }, "f\(number)")
    }
  }

  @Test func theProcessHoldsNoPower() throws {
    let disk = try ServedDisk(format: "-t ext2", arguments: Workload.watched)
    let id = try #require(disk.server?.processIdentifier)
    for thread in try FileManager.default.contentsOfDirectory(atPath: "/proc/\(id)/task") {
      let status = try String(contentsOfFile: "/proc/\(id)/task/\(thread)/status", encoding: .utf8)
      for line in ["Uid:\t65534\t65534\t65534\t65534", "NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000"] {
        #expect(status.contains(line), "thread \(thread): \(line)")
      }
    }
    #expect(try disk.stop() == 0)
  }
}

@Suite struct DiskCommandLineTests {
  @Test(arguments: [
    (["--disk", "/nowhere/disk", "--socket", "/tmp/x"], Int32(66), "No such file"),
    (["--disk", "/dev/null", "--socket", "/tmp/x"], 66, "neither a regular file nor a block device"),
    (["--disk", "/etc/hostname", "--socket", "/nowhere/x", "--read-only"], 71, "cannot listen"),
    (["--disk", "/etc/hostname", "--socket", "/tmp/x", "--protect", "etc"], 64, "begin with a slash"),
    (["--disk", "/etc/hostname", "--socket", "/tmp/x", "--domain", "web"], 64, "is no UUID"),
    (
      ["--disk", "/etc/hostname", "--socket", "/tmp/x", "--read-only", "--eve", "/nowhere/e"], 73, "cannot write events"
    ),
    (["--socket", "/tmp/x"], 64, "--disk"),
  ]) func whatIsWrongIsSaid(arguments: [String], status: Int32, text: String) throws {
    let program = try programPath("vmfence-disk")
    let quoted = ([program] + arguments).map { "'\($0)'" }.joined(separator: " ")
    let result = try shell("timeout 60 \(quoted)", allowFailure: true)
    #expect(result.status == status && result.output.contains(text), "\(result)")
  }
}
#endif
