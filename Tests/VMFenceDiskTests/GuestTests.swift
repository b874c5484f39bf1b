#if Daemon
import Foundation
import Testing

/// The whole path with a guest kernel of its own, as QEMU takes it: vmfence-disk's socket → a virtio disk.
@Suite(.serialized, .enabled(if: Guest.isWanted, Guest.needs))
struct GuestTests {
  private static let formats = ["ext2", "ext3", "ext4"]
  private static let names = ["vda", "vdb", "vdc", "vdd", "vde"]

  private static func served(_ arguments: [String]) throws -> [ServedDisk] {
    try formats.map { try ServedDisk(format: "-t \($0)", arguments: arguments) }
  }

  @Test func whatAGuestDoesIsTold() throws {
    let disks = try Self.served(Workload.watched)
    let workload = zip(Self.names, Self.formats).map { name, format in
      // No commit between a step and its sync, which may come seconds later on a busy host: one may make a longer size durable before the data, which are told apart then.
      "attach \(name) \(format) \(format == "ext2" ? "rw" : "commit=300") && cd /mnt/\(name)\n"
        + Workload.steps.map { "try \(name) '\($0.command)'; sync\n" }.joined() + "cd /; umount /mnt/\(name)\n"
    }
    let results = try Guest(disks.map { .served($0, reconnects: false) }, workload: workload.joined()).finish()
    for (disk, (name, format)) in zip(disks, zip(Self.names, Self.formats)) {
      #expect(results[name] == Workload.steps.map { _ in "0" }, "\(format)")
      #expect(try disk.stop() == 0)
      let told = try disk.told(hasJournal: format != "ext2")
      #expect(told == Workload.told, "\(format): \(told)")
      #expect(try disk.inconsistencies() == "", "\(format)")
    }
  }

  @Test func aRefusedWriteFailsInTheGuestAndLeavesTheDiskIntact() throws {
    let disks = try Self.served(Workload.watched)
    let workload = zip(Self.names, Self.formats).map { name, format in
      """
      attach \(name) \(format) rw
      try \(name) 'dd if=/dev/zero of=/mnt/\(name)/boot/kernel bs=4k count=8 conv=notrunc,fsync'
      tell why-\(name) < /tmp.out
      try \(name) 'echo fine > /mnt/\(name)/etc/fine && sync /mnt/\(name)/etc/fine'
      umount /mnt/\(name)

      """
    }
    let results = try Guest(disks.map { .served($0, reconnects: false) }, workload: workload.joined()).finish()
    for (disk, (name, format)) in zip(disks, zip(Self.names, Self.formats)) {
      #expect(results[name] == ["1", "0"], "\(format): the guest is told, and goes on")
      #expect(results["why-" + name]?.contains { $0.contains("error") } == true, "\(format): \(results)")
      #expect(try disk.stop() == 0)
      #expect(try disk.events().contains { $0.path == "/boot/kernel" && $0.verdict == "deny" }, "\(format)")
      #expect(try disk.inconsistencies() == "", "\(format)")
    }
    // What a kernel finds on a copy, without anything of ours before it.
    let look = zip(Self.names, Self.formats).map { name, format in
      """
      attach \(name) \(format) rw
      tr -d K < /mnt/\(name)/boot/kernel | wc -c | tell changed-\(name)
      wc -c < /mnt/\(name)/boot/kernel | tell size-\(name)
      cat /mnt/\(name)/etc/fine | tell fine-\(name)

      """
    }
    let found = try Guest(try disks.map { .image(try Self.copy($0)) }, workload: look.joined()).finish()
    for (name, format) in zip(Self.names, Self.formats) {
      #expect(found["changed-" + name] == ["0"] && found["size-" + name] == ["262144"], "\(format): \(found)")
      #expect(found["fine-" + name] == ["fine"], "\(format): \(found)")
    }
  }

  private static func copy(_ disk: ServedDisk) throws -> String {
    try shell("cp --sparse=always \(disk.image) \(disk.folder)/copy.img")
    return "\(disk.folder)/copy.img"
  }

  /// What Docs/Operating.md says of `deny-metadata`.
  @Test func aRefusedTransactionStopsTheJournal() throws {
    let kinds = [
      ("ext4", "errors=remount-ro"), ("ext4", "errors=continue"), ("ext3", "errors=continue"), ("ext2", "rw"),
      ("ext4", "errors=continue"),
    ]
    let disks = try kinds.enumerated().map { number, kind in
      // The fifth with fast commits, which are refused.
      let features = number == 4 ? " -O fast_commit" : ""
      return try ServedDisk(
        format: "-t \(kind.0)\(features)", arguments: ["--protect", "/etc/**", "--deny-metadata", "/boot/**"])
    }
    let workload = zip(Self.names, kinds).map { name, kind in
      """
      attach \(name) \(kind.0) \(kind.1); cd /mnt/\(name)
      try before-\(name) 'echo before > before && sync before'
      try change-\(name) 'chmod 777 boot/kernel && sync boot/kernel'
      try after-\(name) 'echo after > after && sync after'
      try read-\(name) 'echo 3 > /proc/sys/vm/drop_caches; cat before'
      grep ' /mnt/\(name) ' /proc/mounts | cut -d' ' -f4 | tell mounted-\(name)
      dmesg | grep -o '\\(EXT4-fs\\|JBD2\\|Buffer I/O\\|Aborting\\).*' | grep '\(name)' | tell kernel-\(name)
      cd /; umount /mnt/\(name)
      attach \(name) \(kind.0) \(kind.1); cd /mnt/\(name)
      stat -c %a boot/kernel | tell mode-\(name)
      ls | tell files-\(name)
      try again-\(name) 'echo again > again && sync again'
      cd /; umount /mnt/\(name)

      """
    }
    let results = try Guest(disks.map { .served($0, reconnects: false) }, workload: workload.joined()).finish()
    for (disk, (name, kind)) in zip(disks, zip(Self.names, kinds)) {
      let hasJournal = kind.0 != "ext2"
      #expect(try disk.stop() == 0)
      #expect(results["before-" + name] == ["0"], "\(kind)")
      // The caller of fsync is told, and from then on the file system takes no change, whatever `errors=` says. It is read on.
      #expect(results["change-" + name] == [hasJournal ? "1" : "0"], "\(kind)")
      #expect(results["after-" + name] == [hasJournal ? "1" : "0"], "\(kind)")
      #expect(results["read-" + name] == ["0"], "\(kind)")
      let said = results["kernel-" + name]?.joined(separator: " ") ?? ""
      #expect(said.contains("Aborting journal") == hasJournal && said.contains("read-only") == hasJournal, "\(said)")
      // Mounted again it has what was committed before, not what was refused, and takes changes.
      #expect(results["mode-" + name] == [hasJournal ? "644" : "777"], "\(kind)")
      #expect(results["files-" + name]?.contains("before") == true, "\(kind)")
      #expect(results["files-" + name]?.contains("after") == !hasJournal, "\(kind)")
      #expect(results["again-" + name] == ["0"], "\(kind)")
      #expect(
        try disk.events().map { "\($0) \($0.verdict)" } == ["chmod /boot/kernel " + (hasJournal ? "deny" : "allow")])
      // The kernel has noted the error in the superblock, which e2fsck then forgets.
      try shell("e2fsck -fp \(disk.image) || [ $? = 1 ]")
      #expect(try disk.inconsistencies() == "", "\(kind)")
    }
  }

  /// QEMU holds back what the dead process had taken and sends it again.
  @Test func aServerThatIsKilledIsAStallWhereTheHypervisorWaits() throws {
    let disks = try Self.served(Workload.watched)
    let writes = 40
    let workload = """
      attach vda ext2 rw; attach vdb ext3 rw; attach vdc ext4 rw
      i=0
      while [ $i -lt \(writes) ]; do
        for name in vda vdb vdc; do
          try $name "dd if=/dev/zero of=/mnt/$name/f$i bs=20000 count=1 && sync /mnt/$name/f$i && sync -f /mnt/$name"
        done
        i=$((i+1))
      done
      for name in vda vdb vdc; do
        echo told > /mnt/$name/etc/told
        umount /mnt/$name; attach $name ext4 ro
        for i in $(seq 0 \(writes - 1)); do tr -d '\\0' < /mnt/$name/f$i | wc -c; wc -c < /mnt/$name/f$i; done | sort -u | tell content-$name
      done

      """
    let guest = try Guest(disks.map { .served($0, reconnects: true) }, workload: workload)
    try guest.waitFor("result vdc: 0")
    for disk in disks {
      disk.kill()
      try disk.start(Workload.watched)
    }
    let results = try guest.finish()
    for (disk, (name, format)) in zip(disks, zip(Self.names, Self.formats)) {
      #expect(results[name] == Array(repeating: "0", count: writes))
      #expect(results["content-" + name]?.sorted() == ["0", "20000"], "\(results)")
      #expect(try disk.stop() == 0)
      #expect(try disk.told(hasJournal: format != "ext2") == ["create /etc/told"])
      #expect(try disk.inconsistencies() == "")
    }
  }
}
#endif
