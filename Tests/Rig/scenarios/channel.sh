# The policy channel between Dom0 and guests: delivery, answer, begin anew, save and restore, and guests that mean no good.
exec 2>&1
. /share/library.sh

guest_with_frontend
daemon_start
frontend web 00:16:3e:00:00:02 10.77.0.12 || fail "the guest web came up"
guest plain 00:16:3e:00:00:04 10.77.0.14 || fail "the guest plain came up"
until_true 60 "a guest's frontend has a session" has web channel open
has plain channel none && ok "a guest without one is a normal state" || fail "a guest without a frontend: $(domain plain channel)"
until_true 30 "a policy is in force in the guest" eval '[ "$(domain web policy)" != None ]'
until_true 30 "what its owner wants is known" eval 'domain web declared | grep -q /etc/passwd'

# A ban of one guest's, in Dom0 and in the guest.
vmfence-ref bans add 192.0.2.7 --domain web --for 10m || fail "a ban can be set"
until_true 60 "a measure is in force in the guest" eval 'domu_exec web "vmfence-guest show" 20 | grep -q 192.0.2.7'
domu_exec web 'vmfence-guest show; cat /tmp/frontend.log' 20
first=$(domain web policy)
# From the policy in the page to the answer that it is in force.
delays=
for i in 1 2 3 4 5; do
  vmfence-ref bans add 192.0.2.10$i --domain web --for 10m
  until_true 60 "ban $i is delivered" eval 'domu_exec web "vmfence-guest show" 20 | grep -q 192.0.2.10$i'
  sleep 1
  delays="$delays $(domain web answerSeconds)"
done
echo "note policies were in force in the guest after (s):$delays"
vmfence-ref bans delete 192.0.2.7 --domain web || fail "a ban can be taken back"
until_true 60 "and goes when it is taken back" eval '! domu_exec web "vmfence-guest show" 20 | grep -q 192.0.2.7'
until_true 30 "the guest answers with another version" eval '[ "$(domain web policy)" -gt "$first" ]'

# Write-back on request, as long as the frontend runs.
domu_exec web 'kill $(cat /tmp/frontend.pid); vmfence-guest run --write-back 1 >>/tmp/frontend.log 2>&1 & echo $! >/tmp/frontend.pid' 20
until_true 30 "the guest's write-back is shortened on request" eval 'domu_exec web "cat /proc/sys/vm/dirty_expire_centisecs /proc/sys/vm/dirty_writeback_centisecs | tr \"\\n\" +" 20 | grep -q 100+100+'
domu_exec web 'kill $(cat /tmp/frontend.pid)' 20
until_true 30 "and as before when the frontend ends" eval 'domu_exec web "cat /proc/sys/vm/dirty_expire_centisecs" 20 | grep -q 3000'
frontend_start web

# The frontend dies and comes back.
domu_exec web 'kill -9 $(cat /tmp/frontend.pid)' 20
frontend_start web
until_true 60 "a frontend that died and came back has a session again" eval 'domu_exec web "grep -c began /tmp/frontend.log" 20 | grep -q "[2-9]"'

# The daemon goes and comes: the guest's page stays.
kill -9 $daemon; wait $daemon 2>/dev/null
daemon_start
until_true 60 "after a restart of the daemon there is a session" has web channel open

# Saved and restored: another number, no grants, no events.
uuid=$(domain web uuid)
xl save web /tmp/web.sav >/dev/null 2>&1
until_true 60 "a saved guest is gone, though its page was mapped" eval '! xl domid web'
xl restore /tmp/web.sav >/dev/null 2>&1
until_true 90 "a restored guest has a session" eval 'has web channel open && has web uuid $uuid'
vmfence-ref bans add 192.0.2.8 --domain web --for 10m
until_true 60 "and gets its policy" eval 'domu_exec web "vmfence-guest show" 20 | grep -q 192.0.2.8'

# Over an event channel.
domu_exec web 'kill $(cat /tmp/frontend.pid)' 20
until_true 60 "a frontend that ends takes its offer back" has web channel none
domu_exec web 'vmfence-guest run --event-channel >>/tmp/frontend.log 2>&1 & echo $! >/tmp/frontend.pid' 20
until_true 60 "a frontend with an event channel has a session" has web channel open
vmfence-ref bans add 192.0.2.9 --domain web --for 10m
until_true 60 "and gets its policy" eval 'domu_exec web "vmfence-guest show" 20 | grep -q 192.0.2.9'


busy() { awk '{print $14 + $15}' /proc/$daemon/stat; }
before=$(busy); sleep 5; after=$(busy)
echo "note the daemon took $((after - before)) of 500 ticks with all at rest"

# A guest that rewrites its offer and its entries in a loop, with everything that they may hold.
domu_exec plain 'i=0; while :; do i=$((i+1)); for v in 1 8 "8 9" 4294967295 99999999999 "1 2 3" x "" "$(head -c 900 /dev/urandom | tr -d "\0")"; do xenstore-write data/vmfence/offer "$v" data/vmfence/x$i y; done; done >/dev/null 2>&1 & echo started' 20
# By the event: its offers change so fast that the mark may be seen never.
until_true 60 "a guest whose offers are none is marked" eval 'grep channel-violation /var/log/vmfence/eve.json | grep -q "\"name\":\"plain\""'
before=$(busy); sleep 5; after=$(busy)
echo "note the daemon took $((after - before)) of 500 ticks while a guest rewrote its entries"
has web state inspecting && ok "others are guarded as before" || fail "the guest web is $(domain web state)"
grep -c channel-violation /var/log/vmfence/eve.json
[ "$(grep -c channel-violation /var/log/vmfence/eve.json)" -le 20 ] && ok "and it is told a bounded number of times" || fail "told too often"
xl destroy plain
until_true 30 "a guest with that is destroyed as any other" lacks plain

# A guest that scribbles over its page without end, from beside the frontend.
domu_exec web 'kill $(cat /tmp/frontend.pid)' 20
frontend_start web
until_true 90 "a frontend has a session" has web channel open
before=$(grep -c channel-violation /var/log/vmfence/eve.json)
domu_exec web 'p=$(cat /tmp/frontend.pid); a=$(grep gntalloc /proc/$p/maps | cut -d- -f1); (while :; do dd if=/dev/urandom of=/proc/$p/mem bs=4096 count=1 seek=$((0x$a / 4096)) conv=notrunc; done) >/tmp/scribbled 2>&1 & echo $! >/tmp/scribbler' 20
until_true 60 "a guest that scribbles over its page is marked" eval '[ "$(grep -c channel-violation /var/log/vmfence/eve.json)" -gt "$before" ]'
domu_exec web 'tail -2 /tmp/scribbled' 20
sleep 10
[ "$(($(grep -c channel-violation /var/log/vmfence/eve.json) - before))" -le 10 ] && ok "and told a bounded number of times" || fail "told too often"
has web state inspecting && ok "and guarded as before" || fail "the guest web is $(domain web state)"
domu_exec web 'kill $(cat /tmp/scribbler) $(cat /tmp/frontend.pid)' 20
frontend_start web
until_true 120 "a frontend that keeps to the protocol has a session again" has web channel open

# Why it is not what a frontend uses by itself: nothing is asserted, since it is Linux's.
xl save web /tmp/web.sav >/dev/null 2>&1; xl restore /tmp/web.sav >/dev/null 2>&1
domu_exec web 'kill $(cat /tmp/frontend.pid); sleep 2' 30
echo "note after a restore with an event channel the guest's kernel said: $(domu_exec web 'dmesg | grep -E "BUG|WARNING|Oops" | tail -1' 20)"

xl destroy web
until_true 60 "a guest with a mapped page is destroyed as any other" eval '! xl list | grep -q "web\|(null)"'
vmfence-ref domains
left=$(for number in $(xenstore-list /local/domain); do xl domname "$number" >/dev/null 2>&1 || echo "$number"; done)
[ -z "$left" ] && ok "nothing is left in xenstore of guests that are gone" || { fail "entries are left of" $left; xenstore-ls -f "/local/domain/${left%%[!0-9]*}"; }
daemon_stop
ls /out/core.* 2>/dev/null && fail "something died"
finish
