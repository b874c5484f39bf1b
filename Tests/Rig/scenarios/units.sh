# The package under systemd: the units as they are installed, with what they forbid themselves, in the order in which a host starts.
# Dom0 runs systemd.
exec 2>&1
. /share/library.sh
name=web-xvda
more_yaml() { printf 'disks:\n  - {name: web, control: /run/vmfence-disk/%s.control}\n' $name; }
property() { systemctl show -p "$2" --value "$1"; }
is_active() { [ "$(property "$1" ActiveState)" = active ]; }
# holds PROCESS : its capabilities, as a number.
holds() { sed -n 's/^CapEff:\t/0x/p' "/proc/$1/status"; }

systemd-analyze verify /lib/systemd/system/vmfence.service /lib/systemd/system/vmfence-disk@.service 2>&1 | grep vmfence && fail "systemd finds faults" || ok "systemd finds no fault in the units"

# What a host has started before; it tidies up /tmp.
systemctl start basic.target
{ host_yaml; more_yaml; } | sed 's|/run/vmfence.sock|/run/vmfence/control.sock|' >/etc/vmfence/host.yaml
export VMFENCE_SOCKET=/run/vmfence/control.sock
seed_disk /var/web.img
echo 'OPTIONS=--protect /etc/** --deny /etc/shadow --eve /var/log/vmfence/disk.json' >/etc/vmfence/disk/$name.conf
printf 'VIF_SCRIPT=vif-bridge\nTIMEOUT=30s\nFAIL=closed\n' >/etc/vmfence/barrier.conf
DECLARED='/srv/**' guest_with_frontend
DOMU_MEM=192 DOMU_IP=10.77.0.12 domu_cfg web 'vif=["mac=00:16:3e:00:00:02,bridge=xenbr0,script=vif-vmfence,ip=10.77.0.12"]' \
  'disk=["vdev=xvda,access=rw,script=block-vmfence,target=/var/web.img"]' | sed 's|/rig/domu.img|/tmp/frontend.img|' >/etc/xen/web.cfg
# Guests that a host starts with, in the place of Debian's script for them, which would look for a Xen that it started itself.
cat >/run/systemd/system/xendomains.service <<'UNIT'
[Unit]
[Service]
Type=oneshot
RemainAfterExit=yes
KillMode=none
ExecStart=/usr/sbin/xl create -q /etc/xen/web.cfg
UNIT
# As at boot: one transaction. Of two units that it is told of, systemctl asks for one after the other, and the first may have started by then.
cat >/run/systemd/system/rig-boot.target <<'UNIT'
[Unit]
Wants=xendomains.service vmfence.service
UNIT
systemctl daemon-reload

# The guest is behind the barrier, which fails closed, so it comes only when the daemon guards it.
{ systemctl start rig-boot.target && is_active vmfence.service && is_active xendomains.service; } || { fail "the units start"; systemctl status vmfence xendomains --no-pager -l; journalctl --no-pager | tail -60; cat /var/log/xen/xl-web.log; finish; }
ok "the units start"
[ "$(property vmfence.service ActiveEnterTimestampMonotonic)" -le "$(property xendomains.service ExecMainStartTimestampMonotonic)" ] &&
  ok "guests are started when the daemon has said that it is ready" || fail "guests were started before the daemon was ready"
domu_wait web 200 && ok "the guest comes up behind the barrier" || fail "the guest does not come up"
until_true 60 "and is inspected" has web state inspecting
is_active "vmfence-disk@$name.service" && ok "its disk is a unit of its own" || fail "its disk's unit: $(property "vmfence-disk@$name.service" ActiveState)"
[ "$(property "vmfence-disk@$name.service" Slice)" = vmfence-disk.slice ] && ok "outside of the daemon's" || fail "in the daemon's group"

daemon=$(property vmfence.service MainPID)
# CAP_KILL, CAP_DAC_READ_SEARCH
[ $(($(holds "$daemon"))) -eq $((1 << 5 | 1 << 2)) ] && ok "the daemon has the capabilities that it needs, and no other" || fail "the daemon has $(holds "$daemon")"

process=$(pgrep -x vmfence-firewal | head -1)
[ -n "$process" ] && [ $(($(holds "$process"))) -eq $((1 << 12)) ] && [ "$(awk '/^Uid:/ { print $2 }' /proc/$process/status)" = 65534 ] && grep -q '^Seccomp:.2' /proc/$process/status &&
  ok "vmfence-firewall holds CAP_NET_ADMIN and nothing else" || fail "vmfence-firewall: $(grep -E '^(Uid|CapEff|Seccomp):' /proc/$process/status | tr '\n' ' ')"

holds_handle "$(holder)" && ! holds_handle "$daemon" && ok "the hypervisor's handle is in a process of its own" || fail "the daemon holds the hypervisor's handle, or nobody does"

# Within what the unit allows: a channel, a ban, a measure in the packet filter, a pause.
domu_exec web 'for m in $(cat /modules/order); do insmod /modules/$m; done' 60
frontend_start web
until_true 90 "a guest's frontend has a session" has web channel open
for program in vmfence-detecto vmfence-channel vmfence-hypervi vmfence-disk; do
  process=$(pgrep -x $program | head -1)
  [ -n "$process" ] && [ "$(holds "$process")" = 0x0000000000000000 ] && [ "$(awk '/^Uid:/ { print $2 }' /proc/$process/status)" = 65534 ] &&
    grep -q '^Seccomp:.2' /proc/$process/status && ok "$program holds nothing" || fail "$program: $(grep -E '^(Uid|CapEff|Seccomp):' /proc/$process/status | tr '\n' ' ')"
done
# CAP_NET_RAW.
[ $(($(holds "$(pgrep -x vmfence-capture)"))) -eq $((1 << 13)) ] && ok "what opens packet sockets holds that and nothing else" || fail "it holds $(holds "$(pgrep -x vmfence-capture)")"
vmfence-ref bans add 10.77.0.13 --domain web --for 10m || fail "a ban can be set"
until_true 30 "it is in the packet filter" blocked
until_true 60 "and in the guest's" eval 'domu_exec web "vmfence-guest show" 20 | grep -q 10.77.0.13'
domu_exec web 'ping -c 2 10.77.0.1' 30 >/dev/null
until_true 30 "packets are inspected" eval '[ "$(domain web alerts)" -ge 2 ]'
domu_exec web 'echo evil >>/mnt/etc/passwd; sync' 30
until_true 60 "a change of a file is seen" told append /etc/passwd
! domu_exec web 'printf XXXX | dd of=/mnt/etc/shadow conv=notrunc,fsync' 30 && ok "a denied write fails" || fail "a denied write succeeded"

systemctl reload vmfence && ok "it is reloaded" || fail "it is not reloaded"
sed -i 's/^node: .*/&\nnonsense: 1/' /etc/vmfence/host.yaml
systemctl reload vmfence
until_true 60 "a configuration that is wrong changes nothing" eval 'is_active vmfence.service && has web state inspecting && journalctl -u vmfence --no-pager | grep -q "nothing was reloaded"'
sed -i '/^nonsense/d' /etc/vmfence/host.yaml

systemctl kill -s KILL --kill-who=main vmfence
until_true 90 "a daemon that is killed is started again" eval '[ "$(property vmfence.service NRestarts)" -ge 1 ] && is_active vmfence.service && has web state inspecting'
# One that says nothing: the watchdog's time is shortened for the test.
mkdir -p /run/systemd/system/vmfence.service.d
printf '[Service]\nWatchdogSec=10\n' >/run/systemd/system/vmfence.service.d/watchdog.conf
systemctl daemon-reload && systemctl restart vmfence
until_true 60 "and inspects after a restart" has web state inspecting
journalctl -u vmfence --no-pager | grep -q 'goes on with [0-9]* bytes of saved state' && ok "with what its detector remembered" || fail "its detector has forgotten everything"
restarts=$(property vmfence.service NRestarts)
kill -STOP "$(property vmfence.service MainPID)"
until_true 120 "one that says nothing is ended by the watchdog, and started again" eval '[ "$(property vmfence.service NRestarts)" -gt "$restarts" ] && is_active vmfence.service && has web state inspecting'

# An upgrade takes the new programs over, and leaves the guest and its disk alone.
disk=$(property "vmfence-disk@$name.service" MainPID)
daemon=$(property vmfence.service MainPID)
dpkg -i --force-confold /share/vmfence_*.deb >/dev/null
until_true 90 "an upgrade restarts the daemon" eval '[ "$(property vmfence.service MainPID)" != "$daemon" ] && is_active vmfence.service && has web state inspecting'
[ "$(property "vmfence-disk@$name.service" MainPID)" = "$disk" ] && ok "and leaves the guest's disk alone" || fail "the disk's process is another one"

systemctl stop vmfence && ok "it stops" || fail "it does not stop"
[ "$(property vmfence.service Result)" = success ] && ok "by itself" || fail "with $(property vmfence.service Result)"
blocked && ok "and leaves measures in force" || fail "the measure is gone"
domu_exec web 'ping -c 1 -W 5 10.77.0.1 && echo more >>/mnt/etc/new && sync' 30 >/dev/null && ok "and the guest its network and its disk" || fail "the guest has lost its network or its disk"
# A guest's unit, here in Dom0 as it is in a guest: with what it forbids itself it still offers its page. In a network of its own, since its packet filter is the guest's.
dpkg -i /share/vmfence-guest_*.deb >/dev/null
mkdir -p /run/systemd/system/vmfence-guest.service.d
printf '[Service]\nPrivateNetwork=yes\n' >/run/systemd/system/vmfence-guest.service.d/network.conf
systemctl daemon-reload && systemctl start vmfence-guest && ok "a guest's unit starts" || fail "a guest's unit does not start"
until_true 60 "and offers its page" eval 'xenstore-read /local/domain/0/data/vmfence/offer | grep -q "^[0-9]"'
[ $(($(holds "$(property vmfence-guest.service MainPID)"))) -eq $((1 << 12)) ] && ok "with CAP_NET_ADMIN and nothing else" || fail "with $(holds "$(property vmfence-guest.service MainPID)")"
systemctl reload vmfence-guest && sleep 2 && is_active vmfence-guest.service && [ "$(property vmfence-guest.service NRestarts)" = 0 ] && ok "and goes on" ||
  { fail "it does not go on"; journalctl --no-pager -u vmfence-guest; }
systemctl stop vmfence-guest && [ "$(property vmfence-guest.service Result)" = success ] && ok "until it is stopped" || fail "with $(property vmfence-guest.service Result)"
xl destroy web
until_true 60 "a destroyed guest's disk is taken down" eval '[ ! -e /dev/mapper/vmfence-'$name' ] && ! is_active vmfence-disk@'$name'.service'
journalctl --no-pager -u vmfence >/out/journal
grep -qaE '"kind":"(state-lost|detector-died|channel-violation)"' /var/log/vmfence/eve.json && fail "a stop or a restart was taken for a failure" || ok "no stop or restart was taken for a failure"
nft list table bridge vmfence >/dev/null && ok "its table is there still" || fail "its table is gone"
dpkg -r vmfence >/dev/null && ok "the package can be removed" || fail "the package cannot be removed"
! nft list table bridge vmfence 2>/dev/null && ok "and takes its table along" || fail "its table is left"
ls /out/core.* 2>/dev/null && fail "something died"
finish
