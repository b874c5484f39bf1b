# Live migration on one host, save and restore: rules, bans with what remains of their time, and what the detector remembers go on under the new number,
# behind the barrier.
exec 2>&1
. /share/library.sh

# libxl migrates PVH guests alone where Xen has no shadow paging, as Debian's.
guest_with_frontend
DOMU_MEM=192 DOMU_IP=10.77.0.12 domu_cfg web "$(vif 00:16:3e:00:00:02 10.77.0.12)" |
  sed 's/type="pv"/type="pvh"/; s/script=vif-bridge/script=vif-vmfence/; s|/rig/domu.img|/tmp/frontend.img|' >/tmp/web.cfg
# barrier SCRIPT : with that in the place of Xen's own.
barrier() { printf 'VIF_SCRIPT=%s\nTIMEOUT=30s\nFAIL=closed\n' "$1" >/etc/vmfence/barrier.conf; }
barrier vif-bridge
# The second alerts only in a connection in which the first was seen; at once, and not at the end of the stream.
cat >>/var/lib/vmfence/rig.rules <<'RULES'
alert tcp any any -> any 5556 (msg:"RIG first"; flow:to_server,established,no_stream; content:"first"; flowbits:set,rig; flowbits:noalert; sid:1000203; rev:1;)
alert tcp any any -> any 5556 (msg:"RIG second"; flow:to_server,established,no_stream; content:"second"; flowbits:isset,rig; sid:1000204; rev:1;)
RULES
daemon_start
xl create -q /tmp/web.cfg && domu_wait web 200 || { fail "a PVH guest comes up"; finish; }
until_true 60 "a PVH guest is inspected" has web state inspecting
uuid=$(domain web uuid)
domu_exec web 'for m in $(cat /modules/order); do insmod /modules/$m; done' 60
frontend_start web
until_true 60 "its frontend has a session" has web channel open
vmfence-ref bans add 192.0.2.7 --domain web --for 20m || fail "a ban can be set"
# banned : the ban stands at the port that the guest has now, with less than its whole time.
banned() { nft list set bridge vmfence block4 | tr ',' '\n' | grep "vif$(xl domid web).0" | grep 192.0.2.7 | grep -q 'expires 1[0-9]m'; }
until_true 30 "and a ban in force" banned
ping -q -c 2 -W 5 10.77.0.12 >/dev/null
until_true 30 "its packets are seen" eval '[ "$(domain web alerts)" -ge 2 ]'

# A connection to the guest, which goes on wherever the guest goes.
domu_exec web '(tail -f /dev/null | nc -l -p 5556 >/tmp/got 2>&1) & echo listening' 20
for i in 1 2 3 4 5 6 7 8 9 10; do { exec 7<>/dev/tcp/10.77.0.12/5556; } 2>/dev/null && break; sleep 1; done
echo first >&7
until_true 30 "a connection to the guest stands" eval 'domu_exec web "cat /tmp/got" 20 | grep -q first'
# remembers COUNT : whether the rule that needs what was seen before has alerted so often, after one packet more.
remembers() {
  echo second >&7
  until_true 30 "its detector remembers the connection" eval '[ "$(grep "\"event_type\":\"alert\"" /var/log/vmfence/eve.json | grep -c 1000204)" -eq '"$1"' ]'
}

# migrate : to this host; the domain's number is another one then.
migrate() { xl migrate -s '' web 'xl migrate-receive'; }
before=$(xl domid web)
migrate >/tmp/migrate.log 2>&1 && ok "it is migrated on this host" || { fail "the migration"; cat /tmp/migrate.log; cat /var/log/xen/xl-web*.log; }
until_true 60 "it is there under another number" eval '[ -n "$(xl domid web)" ] && [ "$(xl domid web)" != "$before" ] && has web domid "$(xl domid web)" && has web state inspecting'
has web uuid "$uuid" && ok "with its UUID" || fail "its UUID"
until_true 30 "the ban stands at its new port, with what remained of its time" banned
until_true 60 "it answers" ping -c 1 -W 2 10.77.0.12
until_true 90 "its frontend has a session again" has web channel open
vmfence-ref bans add 192.0.2.8 --domain web --for 10m || fail "a ban can be set"
until_true 60 "and takes its policy" eval 'domu_exec web "vmfence-guest show" 20 | grep -q 192.0.2.8'
until_true 30 "and answers" eval '[ "$(domain web policy)" != None ]'
until_true 30 "and its packets are seen" eval '[ "$(domain web alerts)" -ge 1 ]'
remembers 1

before=$(xl domid web)
xl save web /tmp/web.sav >/dev/null 2>&1
until_true 20 "what the detector of a saved guest remembers is kept" [ -f "/var/lib/vmfence/detectors/$uuid.state" ]
# The daemon is another one meanwhile.
kill $daemon; wait $daemon
daemon_start
xl restore /tmp/web.sav >/dev/null 2>&1
until_true 60 "it is there again after save and restore" eval '[ "$(xl domid web)" != "$before" ] && has web domid "$(xl domid web)" && has web state inspecting'
grep -q "goes on with [0-9]* bytes of saved state" /var/log/vmfence/daemon.log && ok "its detector was given that" || fail "its detector was not given that"
until_true 30 "the ban stands at its new port" banned
until_true 60 "it answers" ping -c 1 -W 2 10.77.0.12
remembers 2

# A migration that nobody takes: it goes on here, as it was.
before=$(xl domid web)
xl migrate -s '' web 'false' >/dev/null 2>&1 && fail "a migration to nobody succeeded"
goes_on() { [ "$(xl domid web)" = "$before" ] && has web domid "$before" && has web state inspecting && ping -c 1 -W 2 10.77.0.12; }
until_true 60 "after a migration that nobody takes it goes on, and is inspected" goes_on
# One that fails when all of the guest is there already and it is suspended here: its card cannot be plugged in. It was here twice for a moment.
barrier /bin/false
xl migrate -s '' web 'xl migrate-receive' >/tmp/migrate.log 2>&1 && fail "a migration without a card succeeded"
grep -q "resuming at sender" /tmp/migrate.log && ok "a migration fails in its last step" || { fail "a migration that fails in its last step"; cat /tmp/migrate.log; }
barrier vif-bridge
until_true 60 "after that it goes on, and is inspected" goes_on
banned && ok "and its ban is in force" || fail "its ban is gone"
remembers 3
until_true 90 "and its frontend has a session" has web channel open
# And one that works, after that.
migrate >/tmp/migrate.log 2>&1 && ok "it is migrated after all" || { fail "the migration after one that failed"; cat /tmp/migrate.log; }
until_true 60 "and inspected under another number" eval '[ -n "$(xl domid web)" ] && [ "$(xl domid web)" != "$before" ] && has web domid "$(xl domid web)" && has web state inspecting'
until_true 60 "it answers" ping -c 1 -W 2 10.77.0.12
remembers 4

# Once more, with a guest that sends all the time, to whom it may, to whom it may not, and from an address that it may not have; and with a daemon that says
# nothing for a while after the new card is there. The barrier says when it began and ended, and whether the guest had a detector then.
mv /etc/xen/scripts/vif-vmfence /etc/xen/scripts/vif-vmfence.package
cat >/etc/xen/scripts/vif-vmfence <<'SCRIPT'
#!/bin/bash
[ "$1" != online ] || date +%s.%N >/tmp/began
"$0.package" "$@"
status=$?
if [ "$1" = online ]; then
  date +%s.%N >/tmp/ended
  vmfence-ref domains --json >/tmp/behind
fi
exit $status
SCRIPT
chmod 755 /etc/xen/scripts/vif-vmfence
# A port of the bridge at which arrives what is sent to whoever is not there.
ip link add other0 type veth peer name other1
ip link set other0 master xenbr0 up
ip link set other1 up
# Without its frontend, which would keep the guest itself from sending to a banned address.
domu_exec web 'kill $(cat /tmp/frontend.pid); ip addr add 10.77.0.99/24 dev eth0; arp -s 10.77.0.77 00:16:3e:00:00:77; echo ready' 20
domu_exec web '(while :; do ping -c 1 -W 1 10.77.0.1; usleep 100000; done) >/dev/null 2>&1 & (while :; do ping -c 1 -W 1 10.77.0.77; arping -c 1 -w 1 -I eth0 -s 10.77.0.99 10.77.0.1; done) >/dev/null 2>&1 & echo sends' 20
sniff other1 /out/allowed.pcap 'ether src 00:16:3e:00:00:02 and ip host 10.77.0.77'
until_true 60 "a guest sends to another address" eval '[ "$(passed /out/allowed.pcap)" -gt 0 ]'
vmfence-ref bans add 10.77.0.77 --domain web --for 1h || fail "a ban can be set"
until_true 30 "which is banned now" eval 'nft list set bridge vmfence block4 | grep -q 10.77.0.77'
sniff xenbr0 /out/sent.pcap 'ether src 00:16:3e:00:00:02'
sniff other1 /out/kept.pcap 'ether src 00:16:3e:00:00:02 and (ip host 10.77.0.77 or src host 10.77.0.99)'
until_true 20 "sniffers are there" [ -s /out/sent.pcap -a -s /out/kept.pcap ]
until_true 30 "the guest sends" eval '[ "$(passed /out/sent.pcap)" -gt 5 ]'
before=$(xl domid web)
kill -STOP $daemon
migrate >/tmp/migrate.log 2>&1 &
migration=$!
until_true 120 "its new card is there" [ -s /tmp/began ]
sleep 5
kill -CONT $daemon
wait $migration && ok "it is migrated while it sends" || { fail "the migration while it sends"; cat /tmp/migrate.log; }
read -r began </tmp/began
read -r ended </tmp/ended
until_true 60 "it sends over its new card" eval '[ "$(passed /out/sent.pcap "$ended")" -gt 5 ]'
sniff "vif$(xl domid web).0" /out/tried.pcap 'ip host 10.77.0.77 or src host 10.77.0.99'
tries() { tcpdump -n -r /out/tried.pcap 2>/dev/null >/tmp/tried; grep -q "> 10.77.0.77" /tmp/tried && grep -q "tell 10.77.0.99" /tmp/tried; }
until_true 60 "and tries there what it may not" tries
[ "$(passed /out/sent.pcap "$began" "$ended")" -eq 0 ] && ok "not one frame passed in the $(awk "BEGIN { print $ended - $began }") s before it was guarded" ||
  { fail "$(passed /out/sent.pcap "$began" "$ended") frames passed before it was guarded"; tcpdump -tt -enr /out/sent.pcap 2>/dev/null | tail -n 40; }
python3 -IS -c '
import json, sys
states = {row["domid"]: row["state"] for row in json.load(open("/tmp/behind"))}
# It stands still until it runs there, and its detector with it.
sys.exit(states[max(states)] not in ("inspecting", "suspended") or max(states) <= int(sys.argv[1]))' "$before" && ok "and then it had a detector" || { fail "it had no detector then"; cat /tmp/behind; }
[ "$(passed /out/kept.pcap)" -eq 0 ] && ok "not one frame of it passed to the banned address, or from one that is not its own" ||
  { fail "$(passed /out/kept.pcap) frames passed that may not"; tcpdump -tt -enr /out/kept.pcap 2>/dev/null | head; }
nft list tables | grep -q vmfence-barrier && fail "a port was left shut" || ok "no port was left shut"

grep -a "have one UUID" /var/log/vmfence/daemon.log && fail "a migration was taken for an error" || ok "no migration was taken for an error"
grep -aE "domain-[0-9]" /var/log/vmfence/daemon.log /var/log/vmfence/eve.json && fail "a guest went by its number" || ok "no guest ever went by its number"

xl destroy web
until_true 30 "a destroyed guest is gone" lacks web
daemon_stop
finish
