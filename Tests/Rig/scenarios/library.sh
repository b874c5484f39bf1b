# What the scenarios share. Read by each of them, in Dom0, after the rig's own helpers (domu_cfg, domu_wait, domu_exec, log).
failures=0
# What dies leaves its memory beside the other results.
ulimit -c unlimited
echo /out/core.%e.%p >/proc/sys/kernel/core_pattern

# Each check is a line `ok …` or `FAILED …`, which the runner shows.
ok() { echo "ok $* ($SECONDS s)"; }
fail() { echo "FAILED $* ($SECONDS s)"; failures=$((failures + 1)); }
finish() {
  cp -r /var/log/vmfence /out/ 2>/dev/null
  { nft list ruleset; vmfence-ref status; vmfence-ref domains --json; xl list -v; xenstore-ls -f; ip link; } >/out/state 2>&1
  [ "$failures" -eq 0 ] || exit 1
  exit 0
}

dpkg -i /share/vmfence_*.deb || { fail "the package is installed"; finish; }

# until_true SECONDS WHAT COMMAND… : waits until the command succeeds, and is a check. Behind the end there is one more look: the machine may have stood still over it.
until_true() {
  local end=$((SECONDS + $1)) what=$2 last=
  shift 2
  while :; do
    if "$@" >/dev/null 2>&1; then ok "$what"; return 0; fi
    [ -z "$last" ] || break
    [ $SECONDS -lt $end ] || last=yes
    sleep 0.5
  done
  fail "$what"
  echo "--- what is so:"; timeout 20 vmfence-ref domains 2>&1 | head -20
  return 1
}

# domain NAME FIELD : of the last line that the daemon has about a domain of that name. Over the control socket, as `vmfence-ref domains --json` asks: a program
# takes seconds to start under emulation, and this is asked again and again.
domain() {
  python3 -IS -c '
import json, socket, sys
daemon = socket.socket(socket.AF_UNIX)
daemon.settimeout(20)
daemon.connect(sys.argv[1])
daemon.sendall(b"{\"verb\":\"domains\"}\n")
rows = [row for row in json.loads(daemon.makefile().readline())["result"] if row["name"] == sys.argv[2]]
if not rows: sys.exit(1)
print(max(rows, key=lambda row: row["domid"]).get(sys.argv[3]))' "$VMFENCE_SOCKET" "$1" "$2" 2>/dev/null
}
# packets_of NAME : keeps what passes that guest's first card from now on.
packets_of() { tcpdump -i "vif$(xl domid "$1").0" -U -w "/out/$1.pcap" 2>/dev/null & }
# sniff INTERFACE FILE FILTER : keeps what passes an interface from now on.
sniff() { tcpdump -i "$1" -U -w "$2" "$3" 2>/dev/null & }
# passed FILE [FROM UNTIL] : how many frames a sniffer has seen, in that time (seconds since the epoch).
passed() { tcpdump -tt -n -r "$1" 2>/dev/null | awk -v from="${2:-0}" -v until="${3:-9999999999}" '$1 >= from && $1 <= until { n++ } END { print n + 0 }'; }
has() { [ "$(domain "$1" "$2")" = "$3" ]; }
lacks() { ! domain "$1" state; }

vif() { echo "vif=[\"mac=$1,bridge=xenbr0,script=vif-bridge,ip=$2\"]"; }

# guest NAME MAC ADDRESS : creates a paravirtual guest and waits until its shell answers.
guest() {
  DOMU_IP=$3 domu_cfg "$1" "$(vif "$2" "$3")" >"/tmp/$1.cfg"
  xl create -q "/tmp/$1.cfg" && domu_wait "$1" 200
}

# Starts the daemon; its process is $daemon. Not in a pipeline: what a subshell counts and starts is lost.
daemon_start() {
  mkdir -p /var/log/vmfence
  { host_yaml; more_yaml; } >/var/lib/vmfence/host.yaml
  vmfence-ref run --config /var/lib/vmfence/host.yaml --eve /var/log/vmfence/eve.json >>/var/log/vmfence/daemon.log 2>&1 &
  daemon=$!
  until_true 90 "the daemon answers" vmfence-ref status || { cat /var/log/vmfence/daemon.log; finish; }
}

# Asks the daemon to stop, and is a check.
daemon_stop() {
  local i thread
  kill "$daemon"
  for i in $(seq 240); do kill -0 "$daemon" 2>/dev/null || break; sleep 0.5; done
  if kill -0 "$daemon" 2>/dev/null; then
    for thread in /proc/"$daemon"/task/*; do echo "$(cat "$thread/comm"): $(cat "$thread/wchan") $(tr '\n' ' ' <"$thread/stack")"; done
    kill -9 "$daemon"
    fail "the daemon does not stop when it is asked to"
    return
  fi
  wait "$daemon"
  [ $? -eq 0 ] && ok "the daemon stops when it is asked to" || fail "the daemon ended with $?"
}

# The process that holds the hypervisor's handle (a name has 15 characters there), and whether a process has that.
holder() { pgrep -x vmfence-hypervi; }
holds_handle() { ls -l "/proc/$1/fd" | grep -q privcmd; }

# What a scenario adds to the configuration.
more_yaml() { :; }

# Of a host with a guest that serves.
host_yaml() {
  cat <<'YAML'
version: 1
node: rig
hypervisor: xen
guests:
  - {name: web, tenant: acme, service: http}
state-directory: /var/lib/vmfence
control-socket: /run/vmfence.sock
rules:
  dialect: snort2
  common: [/var/lib/vmfence/rig.rules]
  services: {http: /var/lib/vmfence/http.rules}
policy:
  rules:
    - name: password-files
      when: {sids: [1000201]}
      count: {per: source, at-least: 2, within: 60s}
      ladder: [{block: 5m}]
YAML
}
mkdir -p /var/lib/vmfence
cat >/var/lib/vmfence/rig.rules <<'RULES'
alert icmp any any -> any any (msg:"RIG echo request"; itype:8; sid:1000202; rev:1;)
RULES
cat >/var/lib/vmfence/http.rules <<'RULES'
alert tcp any any -> any 80 (msg:"RIG password file"; flow:to_server,established; content:"/etc/passwd"; classtype:attempted-admin; sid:1000201; rev:1;)
RULES
export VMFENCE_SOCKET=/run/vmfence.sock

# The guest with what it does not have by itself: the frontend, and the kernel's nftables. Its image is two archives, one behind the other, packed as one:
# libxl unpacks a packed image, and takes no more of it than the first part.
guest_with_frontend() {
  local root=/tmp/frontend module
  mkdir -p $root/bin $root/etc $root/modules
  cp /share/vmfence-guest $root/bin/
  printf 'service-type: http\nprotected-paths:\n  - %s\n' "${DECLARED:-/etc/passwd}" >$root/etc/vmfence-guest.yaml
  for module in nf_tables nft_limit; do modprobe -S "$(uname -r)" --show-depends $module; done |
    awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r module; do
      cp "$module" $root/modules/
      basename "$module" >>$root/modules/order
    done
  { zcat /rig/domu.img; archive $root; } | gzip -1 >/tmp/frontend.img
}

# archive FOLDER : as the kernel unpacks it (cpio's form `newc`).
archive() {
  python3 - "$1" <<'PYTHON'
import os, sys
out = sys.stdout.buffer
def entry(name, mode, data=b""):
    head = b"070701" + b"".join(b"%08X" % n for n in (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)) + name.encode() + b"\0"
    out.write(head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4))
os.chdir(sys.argv[1])
for folder, _, files in os.walk("."):
    if folder != ".": entry(folder[2:], 0o40755)
    for name in files:
        path = os.path.join(folder, name)
        entry(path[2:], os.stat(path).st_mode, open(path, "rb").read())
entry("TRAILER!!!", 0)
PYTHON
}

# frontend NAME MAC ADDRESS [LINE…] : creates a guest of that kind, with more lines in its configuration, and starts the frontend in it.
frontend() {
  DOMU_MEM=192 DOMU_IP=$3 domu_cfg "$1" "$(vif "$2" "$3")" "${@:4}" | sed 's|/rig/domu.img|/tmp/frontend.img|' >"/tmp/$1.cfg"
  xl create -q "/tmp/$1.cfg" && domu_wait "$1" 200 || return 1
  domu_exec "$1" 'for m in $(cat /modules/order); do insmod /modules/$m; done' 60
  frontend_start "$1"
}
frontend_start() { domu_exec "$1" 'vmfence-guest run >>/tmp/frontend.log 2>&1 & echo $! >/tmp/frontend.pid' 30; }

# serve NAME : a web server in that guest.
serve() { domu_exec "$1" 'mkdir -p /tmp/www && echo hello >/tmp/www/index.html && httpd -p 80 -h /tmp/www' 20; }
# fetch GUEST PATH : by that guest from the web server at 10.77.0.12. (busybox's wget dies in a guest with another C library than its own.)
fetch() { domu_exec "$1" "printf 'GET /$2 HTTP/1.0\\r\\n\\r\\n' | nc -w 3 10.77.0.12 80" 30; }
# blocked : whether 10.77.0.13 is, in Dom0's packet filter.
blocked() { nft list set bridge vmfence block4 | grep -q 10.77.0.13; }

# seed_disk FILE : a disk with an ext4 file system and some files.
seed_disk() {
  mkdir -p /var/seed/etc /var/seed/srv
  echo root >/var/seed/etc/passwd
  echo "the secret stays as it is" >/var/seed/etc/shadow
  truncate -s 64M "$1"
  mke2fs -q -t ext4 -d /var/seed "$1"
}
# told OPERATION PATH : whether the monitor of a disk said so.
told() { grep '"vmfence_file"' /var/log/vmfence/disk.json | grep "\"operation\":\"$1\"" | grep -q "\"path\":\"$2\""; }
