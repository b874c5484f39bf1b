# Live migration on one host, save and restore: rules and bans with what remains of their time go on under the new number, behind the barrier.
exec 2>&1
. /share/library.sh

# libxl migrates PVH guests alone where Xen has no shadow paging, as Debian's.
DOMU_IP=10.77.0.12 domu_cfg web "$(vif 00:16:3e:00:00:02 10.77.0.12)" | sed 's/type="pv"/type="pvh"/' >/tmp/web.cfg
sed -i 's/script=vif-bridge/script=vif-vmfence/' /tmp/web.cfg
printf 'VIF_SCRIPT=vif-bridge\nTIMEOUT=30s\nFAIL=closed\n' >/etc/vmfence/barrier.conf
daemon_start
xl create -q /tmp/web.cfg && domu_wait web 200 || { fail "a PVH guest comes up"; finish; }
until_true 60 "a PVH guest is inspected" has web state inspecting
uuid=$(domain web uuid)
vmfence-ref bans add 192.0.2.7 --domain web --for 20m || fail "a ban can be set"
# banned : the ban stands at the port that the guest has now, with less than its whole time.
banned() { nft list set bridge vmfence block4 | tr ',' '\n' | grep "vif$(xl domid web).0" | grep 192.0.2.7 | grep -q 'expires 1[0-9]m'; }
until_true 30 "and a ban in force" banned
ping -q -c 2 -W 5 10.77.0.12 >/dev/null
until_true 30 "its packets are seen" eval '[ "$(domain web alerts)" -ge 2 ]'

# migrate : to this host; the domain's number is another one then.
migrate() { xl migrate -s '' web 'xl migrate-receive'; }
before=$(xl domid web)
migrate >/tmp/migrate.log 2>&1 && ok "it is migrated on this host" || { fail "the migration"; cat /tmp/migrate.log; cat /var/log/xen/xl-web*.log; }
until_true 60 "it is there under another number" eval '[ -n "$(xl domid web)" ] && [ "$(xl domid web)" != "$before" ] && has web domid "$(xl domid web)" && has web state inspecting'
has web uuid "$uuid" && ok "with its UUID" || fail "its UUID"
until_true 30 "the ban stands at its new port, with what remained of its time" banned
until_true 60 "it answers" ping -c 1 -W 2 10.77.0.12
until_true 30 "and its packets are seen" eval '[ "$(domain web alerts)" -ge 1 ]'

before=$(xl domid web)
xl save web /tmp/web.sav >/dev/null 2>&1
[ -f "/var/lib/vmfence/detectors/$uuid.state" ] && ok "what the detector of a saved guest remembers is kept" || fail "no state was kept"
# The daemon is another one meanwhile.
kill $daemon; wait $daemon
daemon_start
xl restore /tmp/web.sav >/dev/null 2>&1
until_true 60 "it is there again after save and restore" eval '[ "$(xl domid web)" != "$before" ] && has web domid "$(xl domid web)" && has web state inspecting'
grep -q "goes on with [0-9]* bytes of saved state" /var/log/vmfence/daemon.log && ok "its detector was given that" || fail "its detector was not given that"
until_true 30 "the ban stands at its new port" banned
until_true 60 "it answers" ping -c 1 -W 2 10.77.0.12

# A migration that nobody takes: it goes on here, as it was.
before=$(xl domid web)
xl migrate -s '' web 'false' >/dev/null 2>&1 && fail "a migration to nobody succeeded"
until_true 60 "after a migration that failed it goes on, and is inspected" eval '[ "$(xl domid web)" = "$before" ] && has web state inspecting && ping -c 1 -W 2 10.77.0.12'
banned && ok "and its ban is in force" || fail "its ban is gone"

xl destroy web
until_true 30 "a destroyed guest is gone" lacks web
kill $daemon; wait $daemon
[ $? -eq 0 ] && ok "the daemon stops when it is asked to" || fail "the daemon ended with $?"
finish
