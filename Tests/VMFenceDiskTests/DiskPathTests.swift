#if Daemon
import Foundation
import Testing

private enum DiskPath {
  static let isPossible = ["/usr/bin/python3", "/usr/sbin/dmsetup"].allSatisfy(FileManager.default.isExecutableFile)
}

/// `packaging/disk-path` with the kernel's own NBD driver and device-mapper, in a guest that has both.
@Suite(.enabled(if: Guest.isWanted && DiskPath.isPossible, "needs a guest's kernel, dmsetup and Debian's python3"))
struct DiskPathTests {
  /// The programs with all that they load, at the places where they look for it.
  private static func makeTree(_ folder: String) throws -> String {
    let parts = #filePath.split(separator: "/").dropLast(3)
    let program = try programPath("vmfence-disk")
    let tree = "\(folder)/tree"
    try shell(
      """
      mkdir -p \(tree)/bin \(tree)/usr/bin && cd \(tree)
      ln -s /bin/busybox usr/bin/env
      strip -o bin/vmfence-disk \(program)
      cp '/\(parts.joined(separator: "/"))/packaging/disk-path' bin/
      cp -L --parents /usr/bin/python3 /usr/sbin/dmsetup .
      library=$(/usr/bin/python3 -c 'import os; print(os.path.dirname(os.__file__))')
      for part in encodings collections re importlib lib-dynload; do cp -r --parents $library/$part .; done
      cp --parents $library/*.py .
      for file in \(program) /usr/bin/python3 /usr/sbin/dmsetup $library/lib-dynload/*.so; do ldd $file; done |
        sed -n 's/^[^/]*\\(\\/[^ ]*\\).*/\\1/p' | sort -u | while read -r file; do cp -L --parents $file .; done
      """)
    return tree
  }

  private static let prologue = """
    export PATH=/bin:/usr/bin:/usr/sbin VMFENCE_STATE=/run/vmfence-disk
    insmod /lib/nbd.ko; insmod /lib/dm-mod.ko
    mkdir -p /run/vmfence-disk /mnt/d /tmp
    mode() { sed -n 4p /run/vmfence-disk/web.path; }
    until_mode() { until [ "$(mode)" = $1 ]; do sleep 1; done 2>/dev/null; echo "result mode: $(mode)"; }

    """

  private static let workload = """
    keep() {
      # An emulated machine on a busy host takes many seconds to start a process.
      disk-path run web /dev/vda /run/vmfence-disk/web.sock /dev/nbd0 --patience 200 -- vmfence-disk --disk /dev/vda \\
        --socket /run/vmfence-disk/web.sock --protect '/etc/**' --eve /eve.json &
      keeper=$!
      until_mode through
    }
    # Some more writes are durable.
    go_on() { from=$(cat /count); until [ $(cat /count) -ge $((from + 3)) ]; do sleep 1; done; }
    # The writer's fsync may commit the longer size before the data are written: then it is told as a truncate and a write.
    appended() {
      echo $1 >> /mnt/d/etc/passwd; sync
      until [ $(grep -cE '"operation":"(append|write)"' /eve.json) -ge $2 ]; do sleep 1; done; echo "result told: $2"
    }
    keep
    mount -t ext4 /dev/mapper/vmfence-web /mnt/d
    echo 0 > /count
    (i=0; while [ ! -e /stop ]; do
      dd if=/dev/zero of=/mnt/d/load bs=16k count=4 conv=fsync 2>/dev/null || echo failed >> /failed
      i=$((i+1)); echo $i > /count.new; mv /count.new /count
    done) &
    writer=$!
    go_on
    kill -9 $(pidof vmfence-disk); go_on; appended killed 1
    kill -TERM $keeper; wait $keeper; echo "result mode: $(mode)"; keep; go_on; appended restarted 2
    # Who answers until the disk is led past its process dies, too, if it can be met in that moment.
    (until [ -e /met ] || [ "$(mode)" = past ]; do
      for other in $(grep -l 'sock[.]past' /proc/[0-9]*/cmdline); do kill -9 ${other//[!0-9]/} && touch /met; done
    done) 2>/dev/null &
    disk-path bypass web; until_mode past; go_on; echo past >> /mnt/d/etc/passwd; sync
    ls /met | tell met
    disk-path restore web; until_mode through; go_on; appended restored 3
    touch /stop; wait $writer
    grep -c 'vmfence-web /mnt/d ext4 rw' /proc/mounts | tell mounted
    cat /failed 2>/dev/null | tell failed
    umount /mnt/d
    kill -TERM $keeper; wait $keeper
    try detach 'disk-path detach web'
    ls /dev/mapper | tell left

    """

  @Test func aDeathIsAStallAndADiskGoesPastAndBackWithoutAFailure() throws {
    let disk = try ServedDisk(format: "-t ext4")
    let tree = try Self.makeTree(disk.folder)
    let results = try Guest([.image(disk.image)], workload: Self.prologue + Self.workload, tree: tree)
      .finish()
    #expect(results["mode"] == ["through", "held", "through", "past", "through"], "\(results)")
    #expect(results["told"] == ["1", "2", "3"], "\(results)")
    #expect(results["failed"] == nil && results["mounted"] == ["1"], "no request failed: \(results)")
    #expect(results["detach"] == ["0"] && results["left"] == ["control"], "\(results)")
    #expect(try disk.inconsistencies() == "")
    let passwd = try shell("debugfs -R 'cat /etc/passwd' \(disk.image) 2>/dev/null").output
    #expect(passwd == "root:x:0:0\nkilled\nrestarted\npast\nrestored\n")
  }

  /// Greets clients, as a process does that reads a large file system, and never answers a request. Who answers in its place is the real one.
  private static let busy = """
    #!/usr/bin/python3
    import os, socket, struct, sys
    options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    if options["--socket"].endswith(".past"):
        os.execv("/bin/vmfence-disk", ["vmfence-disk"] + sys.argv[1:])
    size = os.lseek(os.open(options["--disk"], os.O_RDONLY), 0, os.SEEK_END)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(options["--socket"])
    listener.listen()
    peers = []
    while True:
        peer = listener.accept()[0]
        peers.append(peer)
        peer.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        peer.recv(4 + 16 + 6, socket.MSG_WAITALL)
        magic = 0x3E889045565A9
        peer.sendall(struct.pack(">QLLLHQH", magic, 7, 3, 12, 0, size, 5) + struct.pack(">QLLL", magic, 7, 1, 0))

    """

  private static let unserved = """
    keep() {
      limits=$1; shift
      disk-path run web /dev/vda /run/vmfence-disk/web.sock /dev/nbd0 $limits -- "$@" --disk /dev/vda --socket /run/vmfence-disk/web.sock &
      keeper=$!
      until_mode through
    }
    part_ways() { kill -TERM $keeper; wait $keeper; try detach 'disk-path detach web'; rm -f /run/vmfence-disk/web.sock; }
    read_on() { dd if=/dev/mapper/vmfence-web of=/dev/null bs=4k count=1 2>/dev/null; echo "result read: $?"; }
    # The disk is there while its process is busy, and is read when that has taken too long.
    keep '--patience 200 --start-limit 20' busy; read_on; until_mode past; part_ways
    # A process that hangs answers no handshake, and hears no signal but one.
    keep '--patience 60' vmfence-disk --eve /eve.json --protect '/etc/**'; kill -STOP $(pidof vmfence-disk); echo 3 > /proc/sys/vm/drop_caches
    read_on; until_mode past; part_ways
    pidof vmfence-disk | tell left

    """

  @Test func aDiskIsLedPastAProcessThatIsBusyForTooLongOrHangs() throws {
    let disk = try ServedDisk(format: "-t ext4")
    let tree = try Self.makeTree(disk.folder)
    try Self.busy.write(toFile: "\(tree)/bin/busy", atomically: false, encoding: .utf8)
    try shell("chmod 755 \(tree)/bin/busy")
    let results = try Guest([.image(disk.image)], workload: Self.prologue + Self.unserved, tree: tree).finish()
    #expect(results["mode"] == ["through", "past", "through", "past"], "\(results)")
    #expect(results["read"] == ["0", "0"], "no request fails: \(results)")
    #expect(results["detach"] == ["0", "0"] && results["left"] == nil, "\(results)")
  }
}
#endif
