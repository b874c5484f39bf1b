# One guest attacks another: detected, blocked in Dom0's packet filter, and in the attacked guest's own through the policy channel.
exec 2>&1
. /share/library.sh

guest_with_frontend
daemon_start
frontend web 00:16:3e:00:00:02 10.77.0.12 || fail "the guest web came up"
guest bad 00:16:3e:00:00:03 10.77.0.13 || fail "the guest bad came up"
guest good 00:16:3e:00:00:04 10.77.0.14 || fail "the guest good came up"
until_true 60 "the frontend has a session" has web channel open
until_true 60 "all are inspected" eval 'has web state inspecting && has bad state inspecting && has good state inspecting'
packets_of web

serve web
until_true 60 "a guest fetches from the server" eval 'fetch bad index.html | grep -q hello'
fetch good index.html | grep -q hello && ok "another one too" || fail "another one too"

began=$(up)
fetch bad etc/passwd
fetch bad etc/passwd
until_true 30 "the attack is detected" eval '[ "$(domain web alerts)" -ge 2 ]'
until_true 30 "and its sender blocked in the packet filter" blocked
echo "note from the first request to the block $(awk "BEGIN { print $(up) - $began }") s, with the looks"
! fetch bad index.html | grep -q hello && ok "nothing of its passes any more" || fail "the sender still gets in"
fetch good index.html | grep -q hello && ok "and others do" || fail "others are kept out"
until_true 60 "the guest has the ban in its own packet filter" eval 'domu_exec web "vmfence-guest show" 20 | grep -q 10.77.0.13'
until_true 30 "and says so" eval '[ "$(domain web answerSeconds)" != None ]'
echo "note the guest answered to its policy after $(domain web answerSeconds) s"
vmfence-ref why web 10.77.0.13
vmfence-ref why web 10.77.0.13 | grep -q 1000201 && ok "why says which rule it was" || fail "why does not say the rule"

# Without Dom0: no daemon, no table of its. What keeps the sender away is the guest's own filter.
kill -9 $daemon; wait $daemon 2>/dev/null
nft delete table bridge vmfence
! fetch bad index.html | grep -q hello && ok "the guest alone keeps the sender away" || fail "the guest's own packet filter lets the sender in"
fetch good index.html | grep -q hello && ok "and lets others in" || fail "the guest keeps others out"

# And what was decided outlives the daemon.
daemon_start
until_true 30 "the next daemon puts the ban back" blocked
until_true 60 "all are inspected again" eval 'has web state inspecting && has bad state inspecting'
grep -ac '"event_type":"alert"' /var/log/vmfence/eve.json

daemon_stop
finish
