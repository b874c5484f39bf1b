#if Daemon
import Foundation
import NetworkTestSupport
import Testing

/// Xen's block script, with others in the place of what it calls, and folders of its own for the system's. Real disks under it are tried in Tests/Rig.
@Suite("The block script", .enabled(if: NetworkNamespace.isPossible, "needs root: mounts folders of its own"))
struct BlockScriptTests {
  /// What each test begins with, in a mount namespace: two nbd devices, two disks, and guests that want them.
  private static let scene = """
    mount -t tmpfs none /run
    mkdir -p /run/systemd/system /run/stubs
    mount -t tmpfs none /sys/block
    mkdir /sys/block/nbd0 /sys/block/nbd1
    mount -t tmpfs none /dev
    mknod -m 666 /dev/null c 1 3
    mkdir /dev/mapper
    mknod /dev/web b 1 1
    mknod /dev/slow b 1 2
    mknod /dev/third b 1 3
    # stub NAME : puts a script in a program's place.
    stub() {
      { echo '#!/bin/bash'; cat; } >/run/stubs/$1
      chmod +x /run/stubs/$1
      for folder in /usr/sbin /sbin; do if [ -e $folder/$1 ]; then mount --bind /run/stubs/$1 $folder/$1; fi; done
    }
    stub logger </dev/null
    stub modprobe </dev/null
    stub xenstore-write <<'STUB'
    echo "$*" >>/run/written
    STUB
    # Of the guest whose name the path ends in.
    stub xenstore-read <<'STUB'
    guest=${1#backend/vbd/} guest=${guest%%/*}
    case $1 in
      */frontend-id) echo $guest ;;
      */params) echo /dev/$guest ;;
      */dev) echo xvda ;;
      */mode) echo w ;;
      */vmfence-name) echo $guest-xvda ;;
      /local/domain/*/name) guest=${1#/local/domain/}; echo ${guest%/name} ;;
      /local/domain/*/vm) echo /vm/6f9619ff-8b86-4d01-b42d-00cf4fc964ff ;;
    esac
    STUB
    # A disk comes at once, but for one that never does.
    stub systemctl <<'STUB'
    unit=${@: -1} name=${unit#vmfence-disk@} name=${name%.service}
    case $1 in
      is-active) [ -e /run/active-$name ]; exit ;;
      stop) rm -f /dev/mapper/vmfence-$name /run/active-$name; exit ;;
    esac
    touch /run/active-$name
    echo "$1 $name" >>/run/started
    [ $name = slow-xvda -o -e /dev/mapper/vmfence-$name ] || mknod /dev/mapper/vmfence-$name b 1 3
    STUB
    # Somebody has each of them open.
    stub dmsetup <<'STUB'
    echo 1
    STUB
    # As libxl does, which gives up after 40 seconds.
    begin() { XENBUS_PATH=backend/vbd/$2/51712 PATH=/run/stubs:$PATH timeout 40 "$script" $1 & called=$!; }
    call() { begin "$@"; wait $called; }
    nbd() { sed -n 's/^NBD=//p' /run/vmfence-disk/$1-xvda.conf; }
    within() { [ $SECONDS -le $1 ] || { echo "$SECONDS s: $2"; exit 1; }; }

    """

  private func run(_ test: String) throws -> String {
    let folder = try TemporaryFolder()
    let script = Program.root.appending(path: "packaging/xen-scripts/block-vmfence").path
    let path = try folder.write("test", "set -eu\nscript='\(script)'\n\(Self.scene)\n\(test)\n")
    return try NetworkNamespace.shell("unshare -m bash '\(path)' 2>&1")
  }

  @Test("a disk that does not come keeps nobody else's waiting, and not the nbd device that it was to have")
  func add() throws {
    let said = try run(
      """
      SECONDS=0
      begin add slow
      slow=$called
      until [ -n "$(nbd slow 2>/dev/null)" ]; do sleep 0.05; done
      call add web
      # Which would have been for half a minute.
      within 25 "the other disk was waited for"
      echo "$(nbd slow) $(nbd web)"
      grep -c 'web/51712/hotplug-status connected' /run/written
      call add third && exit 1
      grep -c 'third/51712/hotplug-status error' /run/written
      # Libxl takes down what it gave up on.
      kill $slow; wait $slow || true
      call remove slow
      ls /run/vmfence-disk
      """)
    #expect(said.hasPrefix("/dev/nbd0 /dev/nbd1\n1\n1\n"), "\(said)")
    #expect(said.contains("web-xvda.nbd") && !said.contains("slow-xvda.nbd"), "\(said)")
  }

  @Test("a disk that is there is taken as it is, and kept again where nobody keeps it any more")
  func leftBehind() throws {
    let said = try run(
      """
      call add web
      printf '%s\\n' /dev/web /run/vmfence-disk/web-xvda.sock /dev/nbd1 held 1 >/run/vmfence-disk/web-xvda.path
      call add web
      rm /run/active-web-xvda
      call add web
      cat /run/started
      grep -E '^(RAW|NBD)=' /run/vmfence-disk/web-xvda.conf
      grep -c 'web/51712/hotplug-status connected' /run/written
      """)
    #expect(said == "start web-xvda\nstart web-xvda\nRAW=/dev/web\nNBD=/dev/nbd1\n3\n")
  }

  @Test("of disks that somebody else has open, each is waited for by itself")
  func remove() throws {
    let said = try run(
      """
      mkdir -p /run/vmfence-disk
      for guest in a b c d e f g h; do mknod /dev/mapper/vmfence-$guest-xvda b 1 3; done
      SECONDS=0
      for guest in a b c d e f g h; do begin remove $guest; done
      wait
      # Each for five seconds, by a clock that knows whole ones.
      within 30 "one waited for the other"
      ls /dev/mapper
      """)
    #expect(said == "abcdefgh".map { "vmfence-\($0)-xvda\n" }.joined())
  }
}
#endif
