# In Dom0 of the rig; see `run`.
exec 2>&1
export LD_LIBRARY_PATH=/share/lib VMFENCE_STATE=/run/vmfence-disk
cp /share/vmfence-disk /share/disk-path /usr/local/bin/
chmod 755 /usr/local/bin/*; chmod -R a+rX /share/lib
modprobe -a nbd loop dm-mod
failures=0
problem() { echo "PROBLEM: $*"; failures=$((failures + 1)); }
pid() { pgrep -x vmfence-disk | head -1; }
now() { date +%s.%N; }

mkdir -p /run/vmfence-disk /var/d /mnt/d
truncate -s 256M /var/d/raw.img
mkdir -p /var/d/seed/etc; echo secret >/var/d/seed/etc/passwd
mke2fs -q -t ext4 -d /var/d/seed /var/d/raw.img
raw=$(losetup --find --show /var/d/raw.img)
keep() {
  disk-path run web "$raw" /run/vmfence-disk/web.sock /dev/nbd0 -- \
    vmfence-disk --disk "$raw" --socket /run/vmfence-disk/web.sock --protect '/etc/**' --eve /var/d/eve.json &
  keeper=$!
  for _ in $(seq 200); do [ "$(disk-path status web 2>/dev/null)" = "${1:-through}" ] && return; sleep 0.1; done
  problem "the disk is not ${1:-through}"
}
keep
mapped=/dev/mapper/vmfence-web
mount "$mapped" /mnt/d

# $1: what is measured; $2: seconds; $3: what happens meanwhile.
under_load() {
  fio --name=load --directory=/mnt/d --size=64M --rw=randrw --bs=16k --iodepth=8 --ioengine=libaio --direct=1 --time_based \
    --runtime="$2" --fsync=16 --verify_fatal=1 --output-format=json --output=/var/d/fio.json >/dev/null 2>/var/d/fio.err &
  local fio=$! status=0
  sleep 3
  $3
  wait $fio || status=$?
  echo "MEASURED $1: fio's status $status, $(python3 -c '
import json
text = open("/var/d/fio.json").read(); job = json.loads(text[text.index("{"):])["jobs"][0]
longest = max(job[k]["clat_ns"]["max"] for k in ("read", "write")) / 1e9
print("errors %d, %d requests, the longest took %.2f s" % (job["error"], job["read"]["total_ios"] + job["write"]["total_ios"], longest))')"
  [ $status = 0 ] || { problem "$1: requests failed"; cat /var/d/fio.err; dmesg | tail -5; }
  grep -q "$mapped /mnt/d ext4 rw" /proc/mounts || problem "$1: the file system became read-only"
}
nothing() { :; }
kill_once() { kill -9 "$(pid)" || true; }
kill_thrice() { for _ in 1 2 3; do kill -9 "$(pid)"; sleep 8; done; }
kill_always() { local until=$((SECONDS + 45)); while [ $SECONDS -lt $until ] && [ "$(disk-path status web)" = through ]; do kill -9 $(pid) 2>/dev/null; sleep 0.3; done; }
restart_service() { kill -TERM $keeper; wait $keeper; keep; }
kill_keeper() { kill -9 $keeper "$(pid)"; keep; }

under_load "nobody dies" 10 nothing
under_load "kill -9 once" 20 kill_once
under_load "kill -9 three times" 35 kill_thrice
under_load "the service restarted (an upgrade)" 20 restart_service
under_load "the keeper and its program killed, both started anew" 20 kill_keeper
echo changed >>/mnt/d/etc/passwd; sync; sleep 1
grep -c '"operation":"append"' /var/d/eve.json | sed 's/^/told after the deaths: /'
grep -q '"operation":"append"' /var/d/eve.json || problem "a change was not told after the deaths"
under_load "killed again and again: led past it" 60 kill_always
[ "$(disk-path status web)" = past ] || problem "not led past a program that cannot live: $(disk-path status web)"
under_load "past it" 10 nothing
under_load "restored" 20 "disk-path restore web"
[ "$(disk-path status web)" = through ] || problem "not restored"
echo again >>/mnt/d/etc/passwd; sync; sleep 1
[ "$(grep -c '"operation":"append"' /var/d/eve.json)" = 2 ] || problem "a change was not told after the restoring"
under_load "bypass as ordered" 20 "disk-path bypass web"
disk-path restore web

umount /mnt/d
e2fsck -fn "$mapped" >/var/d/fsck 2>&1 && echo "e2fsck: clean" || { problem "e2fsck"; cat /var/d/fsck; }

# And in a guest, whose disk comes over blkback.
domu_cfg g1 "disk=[\"phy:$mapped,xvda,w\"]" >/var/d/g1.cfg
xl create -q /var/d/g1.cfg && domu_wait g1 200 || problem "no guest"
# Its console takes one line at a time.
work='n=0; worst=0; failed=0; end=$(($(cut -d. -f1 /proc/uptime) + 25)); while [ $(cut -d. -f1 /proc/uptime) -lt $end ]; do '
work="$work"'a=$(cut -d" " -f1 /proc/uptime | tr -d .); dd if=/dev/zero of=/mnt/load bs=16k count=4 conv=fsync 2>/dev/null || failed=$((failed + 1)); '
work="$work"'b=$(cut -d" " -f1 /proc/uptime | tr -d .); n=$((n + 1)); [ $((b - a)) -gt $worst ] && worst=$((b - a)); done; '
work="$work"'echo "$n writes, $failed failed, the longest took $worst hundredths of a second; $(grep -c "/mnt ext4 rw" /proc/mounts) mounted rw"'
domu_exec g1 'umount /mnt 2>/dev/null; mount -t ext4 /dev/xvda /mnt && ls /mnt'
(sleep 8; kill -9 $(pid); sleep 8; kill -9 $(pid)) &
said=$(domu_exec g1 "$work" 120)
echo "MEASURED a guest's writes, kill -9 twice: $said"
case $said in *" 0 failed"*"1 mounted rw"*) ;; *) problem "the guest's writes" ;; esac
xl destroy g1
kill -TERM $keeper; wait $keeper
disk-path detach web && echo detached || problem "detach"
echo "problems: $failures"
exit $failures
