# The barrier: no packet of a guest's passes its card before its detector, its bans and what it may pretend are in force there; at create, reboot, restore.
exec 2>&1
. /share/library.sh
# vif MAC ADDRESS [NAME] : NAME is the interface's in Dom0, instead of vifN.M.
vif() { echo "vif=[\"mac=$1,bridge=xenbr0,script=vif-vmfence,ip=$2${3:+,vifname=$3}\"]"; }
barrier() { printf 'VIF_SCRIPT=vif-bridge\nTIMEOUT=%s\nFAIL=%s\n' "$1" "$2" >/etc/vmfence/barrier.conf; }

# A guest that sends from its first moment on: to Dom0, to another guest, and to Dom0 from an address that it may not have.
root=/tmp/eager
mkdir -p $root
cat >$root/eager <<'GUEST'
#!/bin/sh
b=/bin/busybox
# What runs in the background needs /dev/null.
$b mount -t devtmpfs dev /dev
(
  until [ -e /sys/class/net/eth0 ]; do $b usleep 20000; done
  $b ip link set eth0 up
  $b ip addr add 10.77.0.22/24 dev eth0
  $b ip addr add 10.77.0.99/24 dev eth0
  while :; do
    $b ping -c 1 -W 1 10.77.0.1 && echo out >>/tmp/out
    $b ping -c 1 -W 1 10.77.0.14 && echo there >>/tmp/there
    $b ip route replace 10.77.0.1 dev eth0 src 10.77.0.99
    $b ping -c 1 -W 1 10.77.0.1 && echo forged >>/tmp/forged
    $b ip route del 10.77.0.1
  done
) >/dev/null 2>&1 &
# And over a second card, from the moment on in which it is plugged in.
(
  # It is there before it can be brought up.
  until $b ip link set eth1 up; do $b usleep 20000; done
  $b ip addr add 10.78.0.22/24 dev eth1
  while :; do $b arping -c 1 -w 1 -I eth1 10.78.0.1; $b usleep 100000; done
) >/dev/null 2>&1 &
exec /init
GUEST
chmod 755 $root/eager
{ zcat /rig/domu.img; archive $root; } | gzip -1 >/tmp/eager.img

barrier 30s closed
daemon_start
guest good 00:16:3e:00:00:04 10.77.0.14 || fail "a guest comes up behind the barrier"
until_true 60 "it is inspected" has good state inspecting
sniff xenbr0 /out/forged.pcap 'ether src 00:16:3e:00:00:22 and src host 10.77.0.99'
DOMU_IP=10.77.0.22 DOMU_ARGS=rdinit=/eager domu_cfg web "$(vif 00:16:3e:00:00:22 10.77.0.22 eager0)" | sed 's|/rig/domu.img|/tmp/eager.img|' >/tmp/eager.cfg
echo 'uuid="5b1c9a52-0d7e-4a3c-9a86-2f7b3f6f0a22"' >>/tmp/eager.cfg
xl create -q /tmp/eager.cfg && domu_wait web 200 || fail "a guest that sends at once comes up behind it"
got_out() { domu_exec web 'grep -c out /tmp/out' 20 | grep -q "[1-9]"; }
until_true 60 "what it may send gets out" got_out
[ -e /sys/class/net/eager0 ] && ok "over a card with the name that was chosen" || fail "its card has another name"
until_true 60 "and it reaches another guest" eval 'domu_exec web "grep -c there /tmp/there" 20 | grep -q "[1-9]"'
vmfence-ref bans add 10.77.0.14 --domain web --for 1h || fail "a ban can be set"
# At the other guest's card, where its own questions for the first one's address are seen too: they go no further.
sniff "vif$(xl domid good).0" /out/banned.pcap 'ether src 00:16:3e:00:00:22 and host 10.77.0.14'

before=$(xl domid web)
domu_exec web 'reboot -f' 3 >/dev/null
until_true 240 "it is there again after a reboot" eval '[ -n "$(xl domid web)" ] && [ "$(xl domid web)" != "$before" ] && domu_exec web true 5'
until_true 60 "and what it may send gets out" got_out
domu_exec web 'rm /tmp/out' 20
xl save web /tmp/eager.sav >/dev/null 2>&1
xl restore /tmp/eager.sav >/dev/null 2>&1
until_true 240 "it is there again after save and restore" eval 'domu_exec web true 5'
until_true 60 "and what it may send gets out" got_out
until_true 30 "it is inspected" has web state inspecting
nft list set bridge vmfence block4 | grep -q 10.77.0.14 && ok "the ban is in force at its new card" || fail "the ban is not in force"
[ "$(passed /out/banned.pcap)" -eq 0 ] && ok "not one frame of it passed to the banned address" ||
  { fail "$(passed /out/banned.pcap) frames of it passed to the banned address"; tcpdump -enr /out/banned.pcap 2>/dev/null | head; }
[ "$(passed /out/forged.pcap)" -eq 0 ] && ok "not one frame passed from an address that is not its own" ||
  { fail "$(passed /out/forged.pcap) frames passed from an address that is not its own"; tcpdump -enr /out/forged.pcap 2>/dev/null | head; }
# A card that is plugged in while the guest runs and sends, and a daemon that says nothing for a while.
kill -STOP $daemon
sniff xenbr0 /out/plugged.pcap 'ether src 00:16:3e:00:00:23'
until_true 20 "a sniffer is there" [ -s /out/plugged.pcap ]
xl network-attach web mac=00:16:3e:00:00:23 bridge=xenbr0 script=vif-vmfence >/tmp/attach.log 2>&1 &
attach=$!
plugged="/sys/class/net/vif$(xl domid web).1/statistics/rx_packets"
until_true 60 "a guest sends over a card that is plugged in" eval '[ "$(cat $plugged)" -gt 2 ]'
[ "$(passed /out/plugged.pcap)" -eq 0 ] && ok "and nothing of it passes as long as nobody guards it" || fail "$(passed /out/plugged.pcap) frames passed"
kill -CONT $daemon
wait $attach && ok "the card is plugged in" || { fail "the card is not plugged in"; cat /tmp/attach.log; }
until_true 60 "it passes when it is guarded" eval '[ "$(passed /out/plugged.pcap)" -gt 0 ]'
grep -aq spoofed-source /var/log/vmfence/eve.json && ok "though it sent from there" || fail "it sent from no address that is not its own"
nft list tables | grep -q vmfence-barrier && fail "a port was left shut" || ok "no port was left shut"
xl destroy web

# A daemon that is not there at all.
kill $daemon; wait $daemon
barrier 2s closed
! xl create -q /tmp/eager.cfg && ok "without a daemon a guest that must be guarded is not started" || fail "it was started"
xl destroy web 2>/dev/null
barrier 2s open
xl create -q /tmp/eager.cfg && domu_wait web 200 && ok "and one that may run unguarded is" || fail "it was not started"
nft list tables | grep -q vmfence-barrier && fail "a port was left shut" || ok "no port was left shut"
finish
