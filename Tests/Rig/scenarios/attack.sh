# One guest attacks another: it is detected, and blocked in Dom0; others go on undisturbed.
exec 2>&1
. /share/library.sh

daemon_start
guest web 00:16:3e:00:00:01 10.77.0.11 || fail "the guest web came up"
guest evil 00:16:3e:00:00:02 10.77.0.12 || fail "the guest evil came up"
until_true 30 "both are inspected" eval 'has web state inspecting && has evil state inspecting'

domu_exec evil 'ping -c 1 -W 2 10.77.0.11' 20 >/dev/null && ok "before the attack they talk" || fail "before the attack they talk"
attack='(echo "cat /etc/passwd"; sleep 1) | nc -w 3 10.77.0.11 5555'
domu_exec evil "$attack" 20 >/dev/null
domu_exec evil "$attack" 20 >/dev/null
until_true 30 "the attacker is blocked" eval 'vmfence-ref bans list | grep -q 10.77.0.12'
nft list table bridge vmfence | grep -q 10.77.0.12 && ok "the kernel has the block" || fail "the kernel has the block"
domu_exec evil 'ping -c 1 -W 2 10.77.0.11' 20 >/dev/null && fail "the attacker does not get through" || ok "the attacker does not get through"
domu_exec evil 'ping -c 1 -W 2 10.77.0.1' 20 >/dev/null && ok "the attacker reaches others" || fail "the attacker reaches others"
domu_exec web 'ping -c 1 -W 2 10.77.0.1' 20 >/dev/null && ok "the attacked guest reaches others" || fail "the attacked guest reaches others"
vmfence-ref why web 10.77.0.12

# A guest that sends what is not its own.
domu_exec evil 'ifconfig eth0 10.77.0.99 netmask 255.255.255.0; ping -c 1 -W 2 10.77.0.1' 20 >/dev/null \
  && fail "a forged address does not get through" || ok "a forged address does not get through"
domu_exec evil 'ifconfig eth0 10.77.0.12 netmask 255.255.255.0; ping -c 1 -W 2 10.77.0.1' 20 >/dev/null \
  && ok "its own address does" || fail "its own address does"

vmfence-ref bans delete 10.77.0.12 --domain web || vmfence-ref bans delete 10.77.0.12
until_true 30 "an administrator's word lifts the block" domu_exec evil 'ping -c 1 -W 2 10.77.0.11' 20
kill $daemon; wait $daemon
finish
