# A guest's disk: xl's line and the block script put the monitor before it; changes of files are seen, a denied write is refused, and it goes with the guest.
exec 2>&1
. /share/library.sh
name=web-xvda
mapper=/dev/mapper/vmfence-$name
more_yaml() { printf 'disks:\n  - {name: web, control: /run/vmfence-disk/%s.control}\n' $name; }

seed_disk /var/web.img
echo 'OPTIONS=--protect /etc/** --deny /etc/shadow --eve /var/log/vmfence/disk.json' >/etc/vmfence/disk/$name.conf

DECLARED='/srv/**' guest_with_frontend
daemon_start
disk='disk=["vdev=xvda,access=rw,script=block-vmfence,target=/var/web.img"]'
frontend web 00:16:3e:00:00:02 10.77.0.12 "$disk" || { fail "a guest with a watched disk comes up"; cat /var/log/vmfence/disk-*.log; cat /var/log/xen/xl-web.log; finish; }
ok "a guest with a watched disk comes up"
[ "$(xenstore-read "/local/domain/0/backend/vbd/$(xl domid web)/51712/state")" = 4 ] && ok "its disk is connected" || fail "its disk is not connected"
until_true 30 "the file system is mounted in it" eval 'domu_exec web "grep -c /mnt /proc/mounts" 20 | grep -q 1'
until_true 60 "the guest is inspected" has web state inspecting

domu_exec web 'echo evil >>/mnt/etc/passwd; sync' 30
until_true 30 "a change of a file is seen" told append /etc/passwd
grep '"append"' /var/log/vmfence/disk.json | grep -q "$(domain web uuid)" && ok "with whose it is" || fail "whose it is"
domu_exec web 'mv /mnt/etc/passwd /mnt/etc/passwd.old; sync' 30
until_true 30 "so is a rename" eval 'grep -q "\"operation\":\"rename\"" /var/log/vmfence/disk.json'

! domu_exec web 'printf XXXX | dd of=/mnt/etc/shadow conv=notrunc,fsync' 30 && ok "a denied write fails in the guest" || fail "a denied write succeeded"
sync
debugfs -R 'cat /etc/shadow' /var/web.img 2>/dev/null | grep -q '^the secret stays' && ok "and is not on the disk" || fail "the denied write is on the disk"
until_true 30 "and is told" eval 'grep "/etc/shadow" /var/log/vmfence/disk.json | grep -q "\"verdict\":\"deny"'
domu_exec web 'echo new >/mnt/new && sync && grep -q new /mnt/new' 30 && ok "other writes go on" || fail "other writes fail"

pkill -9 -x vmfence-disk
domu_exec web 'echo more >>/mnt/new && sync' 60 && ok "the monitor is killed, and no request of the guest fails" || fail "a write failed when the monitor was killed"
domu_exec web 'echo again >/mnt/etc/added; sync' 60
until_true 60 "and the next one sees changes" told create /etc/added

until_true 60 "what the guest's owner declares is known" eval 'domain web declared | grep -q /srv'

xl save web /tmp/web.sav >/dev/null 2>&1
[ ! -e $mapper ] && ok "the disk of a saved guest is taken down" || fail "the disk of a saved guest stays: $(dmsetup info $mapper)"
xl restore /tmp/web.sav >/dev/null 2>&1
until_true 60 "and comes with it when it is restored" eval '[ -b $mapper ] && domu_exec web "echo back >/mnt/etc/restored && sync" 20'
until_true 60 "and is watched again" told create /etc/restored
domu_exec web 'echo page >/mnt/srv/page; sync' 60
until_true 60 "and so is what its owner declared" told create /srv/page
xl destroy web
until_true 30 "nothing is left of it" eval '[ ! -e $mapper ] && [ -z "$(losetup -a)" ] && ! pgrep -x vmfence-disk && ! cat /sys/block/nbd*/pid'
e2fsck -fn /var/web.img >/tmp/fsck 2>&1 && ok "its file system is whole" || { fail "its file system"; cat /tmp/fsck; }

# What an operator gets wrong is said, and no guest comes up with a disk that it does not have.
sed -i 's|/var/web.img|/var/none.img|' /tmp/web.cfg
! xl create -q /tmp/web.cfg && ok "a guest whose disk is not there is not started" || fail "it was started"

cat /var/log/vmfence/disk-*.log
kill $daemon; wait $daemon
[ $? -eq 0 ] && ok "the daemon stops when it is asked to" || fail "the daemon ended with $?"
finish
