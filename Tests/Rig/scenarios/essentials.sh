# What each change is tried with, in one machine: discovery, states, an attack that is blocked, the policy channel, changes of files. Each of them has a
# scenario of its own besides, which goes further.
exec 2>&1
. /share/library.sh
name=web-xvda
more_yaml() { printf 'disks:\n  - {name: web, control: /run/vmfence-disk/%s.control}\n' $name; }

seed_disk /var/web.img
echo 'OPTIONS=--protect /etc/** --deny /etc/shadow --eve /var/log/vmfence/disk.json' >/etc/vmfence/disk/$name.conf
DECLARED='/srv/**' guest_with_frontend

# --- discovery: a guest that is there before the daemon, and one that comes later, with what the configuration says of it.
guest bad 00:16:3e:00:00:03 10.77.0.13 || fail "the guest bad came up"
daemon_start
until_true 60 "a guest that was there before is inspected" has bad state inspecting
has bad ports "['vif1.0']" && ok "its port is known" || fail "its port is known: $(domain bad ports)"
disk='disk=["vdev=xvda,access=rw,script=block-vmfence,target=/var/web.img"]'
frontend web 00:16:3e:00:00:02 10.77.0.12 "$disk" || { fail "a guest with a watched disk comes up"; cat /var/log/vmfence/disk-*.log /var/log/xen/xl-web.log; finish; }
until_true 60 "a guest that comes is inspected" has web state inspecting
has web tenant acme && has web service http && ok "tenant and service are the configuration's" || fail "tenant and service"
uuid=$(domain web uuid)
[ "$uuid" = "$(xl list -v web | awk 'NR==2{print $7}')" ] && ok "its UUID is Xen's" || fail "its UUID: $uuid"

# --- states
xl pause bad
until_true 60 "a paused guest's detector is suspended" has bad state suspended
xl unpause bad
until_true 60 "a resumed guest is inspected" has bad state inspecting
restarts=$(domain bad restarts)
# A name has 15 characters there.
pkill -9 -x vmfence-detecto
until_true 90 "a killed detector is started again" eval '[ "$(domain bad restarts)" -gt "$restarts" ] && has bad state inspecting && has web state inspecting'

# --- the hypervisor's handle: not the daemon's; who holds it is killed, and started again
holds_handle "$(holder)" && ! holds_handle "$daemon" && ok "the daemon does not hold the hypervisor's handle" || fail "the daemon holds the hypervisor's handle, or nobody does"
kill -9 "$(holder)"
xl pause bad
until_true 60 "after its holder's death another one follows a pause" has bad state suspended
xl unpause bad
until_true 60 "and its end" has bad state inspecting

# --- the policy channel
until_true 90 "the guest's frontend has a session" has web channel open
has bad channel none && ok "a guest without one is a normal state" || fail "a guest without a frontend: $(domain bad channel)"
until_true 60 "a policy is in force in the guest" eval '[ "$(domain web policy)" != None ]'
until_true 60 "what its owner wants is known" eval 'domain web declared | grep -q /srv'

# --- an attack: detected, blocked in Dom0's packet filter, and in the attacked guest's own through the channel
serve web
until_true 60 "a guest fetches from the server" eval 'fetch bad index.html | grep -q hello'
# Until two came through: on a processor that is emulated, the server may need longer than whoever asks waits.
until_true 90 "the attack is detected" eval '[ "$(domain web alerts)" -ge 2 ] || { fetch bad etc/passwd; false; }'
until_true 60 "and its sender blocked in the packet filter" blocked
! fetch bad index.html | grep -q hello && ok "nothing of its passes any more" || fail "the sender still gets in"
until_true 60 "and others do" eval 'printf "GET /index.html HTTP/1.0\r\n\r\n" | nc -w 5 10.77.0.12 80 | grep -q hello'
until_true 60 "the guest has the ban in its own packet filter" eval 'domu_exec web "vmfence-guest show" 20 | grep -q 10.77.0.13'
vmfence-ref why web 10.77.0.13 | grep -q 1000201 && ok "why says which rule it was" || fail "why does not say the rule"

# --- changes of files
until_true 60 "the file system is mounted in it" eval 'domu_exec web "grep -c /mnt /proc/mounts" 20 | grep -q 1'
domu_exec web 'echo evil >>/mnt/etc/passwd; sync' 30
until_true 60 "a change of a file is seen" told append /etc/passwd
grep '"append"' /var/log/vmfence/disk.json | grep -q "$uuid" && ok "with whose it is" || fail "whose it is"
! domu_exec web 'printf XXXX | dd of=/mnt/etc/shadow conv=notrunc,fsync' 30 && ok "a denied write fails in the guest" || fail "a denied write succeeded"
sync
debugfs -R 'cat /etc/shadow' /var/web.img 2>/dev/null | grep -q '^the secret stays' && ok "and is not on the disk" || fail "the denied write is on the disk"
until_true 60 "and is told" eval 'grep "/etc/shadow" /var/log/vmfence/disk.json | grep -q "\"verdict\":\"deny"'

# --- saved and restored: another number, no page, another network card, the same guest
before=$(domain web domid)
xl save web /tmp/web.sav >/dev/null 2>&1
until_true 60 "a saved guest is gone" lacks web
xl restore /tmp/web.sav >/dev/null 2>&1
until_true 90 "a restored guest is inspected" has web state inspecting
[ "$(domain web domid)" != "$before" ] && has web uuid "$uuid" && ok "under another number, with its UUID" || fail "its identity"
until_true 60 "what its sender was banned for holds for its new port" eval 'nft list set bridge vmfence block4 | tr , "\n" | grep "vif$(xl domid web).0" | grep -q 10.77.0.13'
until_true 90 "and its frontend has a session again" has web channel open

# --- ends
domu_exec bad 'echo c > /proc/sysrq-trigger' 3 >/dev/null
until_true 60 "a guest that panicked is not inspected any more" eval '! has bad state inspecting'
xl destroy bad
until_true 60 "a destroyed guest is gone" lacks bad
xl destroy web
until_true 60 "and so is one whose page was mapped" lacks web
until_true 60 "and its disk" eval '[ ! -e /dev/mapper/vmfence-'$name' ] && ! pgrep -x vmfence-disk'
daemon_stop
ls /out/core.* 2>/dev/null && fail "something died"
finish
