# xenstored is updated while it runs: what changes after that is followed, and guests that come are found.
exec 2>&1
. /share/library.sh
programs=/usr/lib/xen-4.17/bin

daemon_start
guest web 00:16:3e:00:00:02 10.77.0.12 || fail "the guest web came up"
until_true 60 "it is inspected" has web state inspecting
control=$(command -v xenstore-control || echo $programs/xenstore-control)
$control live-update $programs/xenstored && ok "xenstored is updated while it runs" || fail "the live update of xenstored"
xl pause web
until_true 30 "a pause after that is followed" has web state suspended
xl unpause web
until_true 30 "and its end" has web state inspecting
guest other 00:16:3e:00:00:03 10.77.0.13 || fail "the guest other came up"
until_true 60 "a guest that comes after that is inspected" has other state inspecting

kill $daemon; wait $daemon
[ $? -eq 0 ] && ok "the daemon stops when it is asked to" || fail "the daemon ended with $?"
finish
