# xenstored is updated while it runs: what changes after that is followed, and guests that come are found. And it is killed and not back: the daemon says so,
# answers, and follows what the hypervisor says; and it stops answering without an end.
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

# Without xenstored xl does nothing. The hypervisor does.
hypervisor() {
  python3 -c 'import ctypes, sys
xen = ctypes.CDLL("libxenctrl.so.4.17")
xen.xc_interface_open.restype = ctypes.c_void_p
sys.exit(getattr(xen, "xc_domain_" + sys.argv[1])(ctypes.c_void_p(xen.xc_interface_open(None, None, 0)), int(sys.argv[2])) != 0)' "$@"
}
# answers WHAT : whether the daemon says in time how it is, and calls that a problem.
answers() { timeout 20 vmfence-ref status --json >/tmp/status && grep -q "$1" /tmp/status; }
gaps() { grep -c '"kind":"probe-gap"' /var/log/vmfence/eve.json; }
number=$(xl domid web)

# One that is there, and says nothing.
before=$(gaps)
pkill -STOP -x xenstored
until_true 60 "a xenstored that says nothing is told of" answers "does not answer"
until_true 20 "and is a gap in what is known" eval '[ "$(gaps)" -gt "$before" ]'
hypervisor pause "$number"
until_true 30 "a pause is followed meanwhile" has web state suspended
pkill -CONT -x xenstored
hypervisor unpause "$number"
until_true 60 "and its end when xenstored goes on" has web state inspecting
until_true 30 "of which nothing is wrong any more" eval '! answers "does not answer"'

# One that is gone. Whatever is a control script's business needs it: what is seen from here on is the daemon's own.
before=$(gaps)
pkill -KILL -x xenstored
until_true 60 "a xenstored that is gone is told of" answers xenstored
until_true 20 "and is a gap in what is known" eval '[ "$(gaps)" -gt "$before" ]'
hypervisor pause "$number"
until_true 30 "a pause is followed without it" has web state suspended
hypervisor unpause "$number"
until_true 30 "and its end" has web state inspecting
has web name web && ok "the guests keep their names" || fail "the guests have lost their names"

daemon_stop
# Another one, which knows nothing, for what tidies up.
$programs/xenstored --pid-file /run/xenstored.pid
for guest in 1 2; do hypervisor destroy $guest; done
finish
