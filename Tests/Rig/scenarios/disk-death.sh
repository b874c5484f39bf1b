# What a guest sees when its disk's process is killed, restarted, led past and back: fio on the mapped device, then a guest over blkback.
exec 2>&1
. /share/library.sh
disk_path=/usr/lib/vmfence/disk-path
# In an emulated machine a program takes its time to start.
patience=60
mapped=/dev/mapper/vmfence-web
events=/var/log/vmfence/disk-death.json
modprobe -a nbd loop dm-mod
mkdir -p /run/vmfence-disk /var/log/vmfence /var/seed/etc /mnt/d
echo secret >/var/seed/etc/passwd
truncate -s 256M /var/raw.img
mke2fs -q -t ext4 -d /var/seed /var/raw.img
raw=$(losetup --find --show /var/raw.img)

pid() { pgrep -f '^vmfence-disk .*/web[.]sock ' | head -1; }
interim() { pgrep -f '^vmfence-disk .*/web[.]sock[.]past ' | head -1; }
mode_is() { [ "$(sed -n 4p /run/vmfence-disk/web.path 2>/dev/null)" = "$1" ]; }
keep() {
  $disk_path run web "$raw" /run/vmfence-disk/web.sock /dev/nbd0 --patience $patience -- \
    vmfence-disk --disk "$raw" --socket /run/vmfence-disk/web.sock --protect '/etc/**' --eve $events &
  keeper=$!
  until_true 120 "the disk's way is through its process" mode_is through
}
keep
mount $mapped /mnt/d || { fail "the mapped device cannot be mounted"; finish; }

# In a process of its own: it takes the place of whoever calls it.
fio() { exec /share/fio/ld-linux-x86-64.so.2 --library-path /share/fio /share/fio/fio "$@"; }
# Some writes that are durable: whatever happened before, the disk answers again.
go_on() {
  local i
  for i in 1 2 3; do dd if=/dev/zero of=/mnt/d/probe bs=16k count=4 conv=fsync 2>/dev/null || { fail "$1: a write failed"; return; }; done
}
# under_load WHAT SECONDS COMMAND… : does something while fio reads and writes, so many seconds at the most, and tells how long the longest request took.
under_load() {
  local what=$1 seconds=$2 load status=0 end
  shift 2
  rm -f /tmp/fio.json
  fio --name=load --directory=/mnt/d --size=64M --rw=randrw --bs=16k --iodepth=8 --ioengine=libaio --direct=1 --time_based --runtime="$seconds" \
    --fsync=16 --output-format=json --output=/tmp/fio.json >/dev/null 2>/tmp/fio.err &
  load=$!
  # fio has laid out its file, and is at it.
  end=$((SECONDS + 120))
  until [ -e /proc/$load/fd ] && [ "$(stat -c %s /mnt/d/load.0.0 2>/dev/null)" = 67108864 ] || [ $SECONDS -ge $end ]; do sleep 0.2; done
  go_on "$what"
  "$@"
  go_on "$what"
  # It ends with a report, and this status.
  kill -TERM $load
  wait $load || status=$?
  [ $status -ne 128 ] || status=0
  python3 - "$what" $status <<'PYTHON' || failures=$((failures + 1))
import json, sys
try:
    text = open("/tmp/fio.json").read()
    job = json.loads(text[text.index("{"):])["jobs"][0]
except (OSError, ValueError) as error:
    job = {"error": error, "read": {"total_ios": 0, "clat_ns": {"max": 0}}, "write": {"total_ios": 0, "clat_ns": {"max": 0}}}
longest = max(job[k]["clat_ns"]["max"] for k in ("read", "write")) / 1e9
fine = sys.argv[2] == "0" and job["error"] == 0 and job["write"]["total_ios"] > 0
print("ok" if fine else "FAILED", f"{sys.argv[1]}: errors {job['error']}, {job['read']['total_ios'] + job['write']['total_ios']} requests, the longest took {longest:.2f} s")
sys.exit(not fine)
PYTHON
  grep -q "$mapped /mnt/d ext4 rw" /proc/mounts || fail "$what: the file system became read-only"
}
# told NUMBER : so many changes of the protected file were told. An fsync of others may commit the size before the data: then it is no append.
told() { [ "$(grep '"path":"/etc/passwd"' $events | grep -cE '"operation":"(append|write)"')" -ge "$1" ]; }
change() { echo changed >>/mnt/d/etc/passwd; sync; until_true 60 "a change is told" told "$1"; }

kill_it() {
  local old
  for _ in $(seq "$1"); do
    old=$(pid)
    kill -9 "$old"
    until_true 120 "another one serves after kill -9" eval "[ -n \"\$(pid)\" ] && [ \"\$(pid)\" != $old ] && mode_is through"
    go_on "kill -9"
  done
}
restart_service() { kill -TERM $keeper; wait $keeper; keep; }
kill_keeper() { kill -9 $keeper "$(pid)"; wait $keeper; keep; }
# Until it is led past; the one that answers meanwhile dies, too, once.
kill_always() {
  local end=$((SECONDS + 180)) done_with= other
  while mode_is through && [ $SECONDS -lt $end ]; do
    kill -9 $(pid) 2>/dev/null
    other=$(interim)
    if [ -z "$done_with" ] && [ -n "$other" ]; then kill -9 "$other"; done_with=$other; fi
    sleep 0.1
  done
  until_true 60 "it is led past a process that cannot live" mode_is past
  [ -n "$done_with" ] && ok "and past the death of the one that answers meanwhile" || echo "note the one that answers meanwhile was not met"
}

under_load "nothing happens" 60 sleep 5
under_load "kill -9 once" 120 kill_it 1
# Five in half a minute would lead past it.
under_load "kill -9 three times" 240 kill_it 3
under_load "the service is restarted, as for an upgrade" 120 restart_service
under_load "disk-path and the process are killed, and the service started" 120 kill_keeper
change 1
under_load "killed again and again" 240 kill_always
under_load "nothing happens past it" 60 sleep 5
under_load "led back" 120 $disk_path restore web
until_true 5 "it is through again" mode_is through
change 2
under_load "led past as ordered" 120 $disk_path bypass web
$disk_path restore web
umount /mnt/d
e2fsck -fn $mapped >/tmp/fsck 2>&1 && ok "its file system is whole" || { fail "its file system"; cat /tmp/fsck; }

# And in a guest, whose disk comes over blkback.
domu_cfg g1 "disk=[\"phy:$mapped,xvda,w\"]" >/tmp/g1.cfg
xl create -q /tmp/g1.cfg && domu_wait g1 200 || fail "no guest"
domu_exec g1 'umount /mnt 2>/dev/null; mount -t ext4 /dev/xvda /mnt && ls /mnt' 60
# Its console takes one line at a time.
domu_exec g1 '(n=0; while [ ! -e /stop ]; do dd if=/dev/zero of=/mnt/load bs=16k count=4 conv=fsync 2>/dev/null || echo failed >>/failed; n=$((n + 1)); echo $n >/count.new; mv /count.new /count; done) >/dev/null 2>&1 & true' 30
writes() { domu_exec g1 'cat /count' 20; }
more_writes() { local now; now=$(writes) && [ "${now:-0}" -ge $(($1 + 3)) ]; }
for _ in 1 2; do
  until_true 60 "the guest writes" more_writes 0
  before=$(writes)
  kill -9 "$(pid)"
  until_true 120 "and goes on after kill -9" more_writes "$before"
done
said=$(domu_exec g1 'touch /stop; cat /failed 2>/dev/null; grep -c "/mnt ext4 rw" /proc/mounts' 60)
[ "$said" = 1 ] && ok "none of its $(writes) writes failed, and it is mounted for writing" || fail "its writes: $said"
xl destroy g1
kill -TERM $keeper; wait $keeper
$disk_path detach web && [ ! -e $mapped ] && ok "nothing is left of it" || fail "it cannot be taken away"
finish
