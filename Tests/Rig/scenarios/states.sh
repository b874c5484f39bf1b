# Discovery, and every change of a guest's state followed to the right state of its detector.
exec 2>&1
. /share/library.sh

# A guest that is there before the daemon.
guest early 00:16:3e:00:00:01 10.77.0.11 || fail "the guest early came up"
daemon_start
until_true 30 "a guest that was there before is inspected" has early state inspecting
has early ports "['vif1.0']" && ok "its port is known" || fail "its port is known: $(domain early ports)"

# One that comes later, with what the configuration says of it.
guest web 00:16:3e:00:00:02 10.77.0.12 || fail "the guest web came up"
until_true 30 "a guest that comes is inspected" has web state inspecting
has web tenant acme && has web service http && ok "tenant and service are the configuration's" || fail "tenant and service"
[ "$(domain web uuid)" = "$(xl list -v web | awk 'NR==2{print $7}')" ] && ok "its UUID is Xen's" || fail "its UUID: $(domain web uuid)"

xl pause web
until_true 30 "a paused guest's detector is suspended" has web state suspended
xl unpause web
until_true 30 "a resumed guest is inspected" has web state inspecting
domu_exec web 'ping -c 2 10.77.0.1' 30 >/dev/null
until_true 30 "its packets are inspected" eval '[ "$(domain web alerts)" -ge 2 ]'

xl rename web shop
until_true 60 "a renamed guest is known by its new name" has shop state inspecting

xl network-attach shop mac=00:16:3e:00:00:05 bridge=xenbr0 script=vif-bridge
until_true 30 "an interface that is plugged in is known" has shop ports "['vif2.0', 'vif2.1']"

before=$(domain shop domid)
uuid=$(domain shop uuid)
xl save shop /tmp/shop.sav >/dev/null 2>&1
until_true 30 "a saved guest is gone" lacks shop
xl restore /tmp/shop.sav >/dev/null 2>&1
until_true 60 "a restored guest is inspected" has shop state inspecting
[ "$(domain shop domid)" != "$before" ] && [ "$(domain shop uuid)" = "$uuid" ] && ok "under another number, with its UUID" || fail "its identity"

domu_exec early 'echo c > /proc/sysrq-trigger' 3 >/dev/null
until_true 60 "a guest that panicked is not inspected any more" eval '! has early state inspecting'
xl destroy early
until_true 30 "a destroyed guest is gone" lacks early

# The daemon goes and comes while a guest runs.
kill -9 $daemon; wait $daemon 2>/dev/null
daemon_start
until_true 30 "after a restart of the daemon the guest is inspected" has shop state inspecting

# A detector is killed.
restarts=$(domain shop restarts)
# A name has 15 characters there.
pkill -9 -x vmfence-detecto
until_true 60 "a killed detector is started again" eval '[ "$(domain shop restarts)" -gt "$restarts" ] && has shop state inspecting'

# The hypervisor's handle is in a process of its own. When that is killed, and when it says nothing, that is told, and another follows what happens.
holds_handle "$(holder)" && ! holds_handle "$daemon" && ok "the daemon does not hold the hypervisor's handle" || fail "the daemon holds the hypervisor's handle, or nobody does"
gap_of() { grep '"kind":"probe-gap"' /var/log/vmfence/eve.json | grep -q "$1"; }
before=$(holder)
kill -9 "$before"
until_true 60 "the death of its holder is told" gap_of 'vmfence-hypervisor is gone'
xl pause shop
until_true 60 "another one follows a pause" has shop state suspended
[ "$(holder)" != "$before" ] && holds_handle "$(holder)" && [ "$(awk '/^Uid:/ { print $2 }' "/proc/$(holder)/status")" = 65534 ] && ok "and is nobody, with the handle" || fail "the other one"
before=$(holder)
kill -STOP "$before"
until_true 30 "one that says nothing is told of" gap_of 'vmfence-hypervisor does not answer'
timeout 20 vmfence-ref status >/dev/null && ok "and keeps nobody waiting" || fail "the daemon waits for it"
xl unpause shop
until_true 60 "and another takes its place" has shop state inspecting
! kill -0 "$before" 2>/dev/null && ok "it is ended" || fail "the one that said nothing is there still"

# What opens packet sockets is killed: another takes its place, and the guest's packets go on.
before=$(pgrep -x vmfence-capture)
kill -9 "$before"
until_true 30 "the death of what opens packet sockets is told" grep -q '"kind":"capture-gap"' /var/log/vmfence/eve.json
until_true 30 "another takes its place" eval '[ -n "$(pgrep -x vmfence-capture)" ] && [ "$(pgrep -x vmfence-capture)" != "$before" ]'
has shop state inspecting && ok "and the guest is inspected" || fail "the guest is not inspected"

vmfence-ref domains
daemon_stop
finish
