import TestSupport
import Testing

/// A host with a bridge, two guests and an outside, each in a network namespace of a test's own:
///
///     vm1 eth0 ── vif1.0 ┐            ┌ uplink0 ── eth0 outside
///     vm2 eth0 ── vif2.0 ┴── xenbr0 ──┘            (host)
///
/// The last byte of the addresses is 1 and 2 for the guests, 99 for the outside and 254 for the host: 10.77.0.0/24, fd77::/64, and
/// MAC addresses 02:77:00:00:00:xx. The outside has 98 besides.
public final class BridgeNetwork: Sendable {
  public let host: NetworkNamespace
  public let vm1: NetworkNamespace
  public let vm2: NetworkNamespace
  public let outside: NetworkNamespace

  public init(_ label: String) throws {
    host = try NetworkNamespace("\(label)-host")
    vm1 = try NetworkNamespace("\(label)-vm1")
    vm2 = try NetworkNamespace("\(label)-vm2")
    outside = try NetworkNamespace("\(label)-out")
    try host.run(
      """
      ip link add xenbr0 address 02:77:00:00:00:fe type bridge forward_delay 0
      ip addr add 10.77.0.254/24 dev xenbr0
      ip addr add fd77::fe/64 dev xenbr0 nodad
      ip link set xenbr0 up
      """)
    try attach(vm1, port: "vif1.0", number: 1)
    try attach(vm2, port: "vif2.0", number: 2)
    try attach(outside, port: "uplink0", number: 99)
    try outside.run("ip addr add 10.77.0.98/24 dev eth0; ip addr add fd77::98/64 dev eth0 nodad")
  }

  /// Plugs a guest into the bridge, with addresses that end in `number`.
  public func attach(_ guest: NetworkNamespace, port: String, number: Int) throws {
    let mac = "02:77:00:00:00:\(number < 16 ? "0" : "")\(String(number, radix: 16))"
    try NetworkNamespace.shell(
      """
      ip -n \(host.name) link add \(port) type veth peer name eth0 netns \(guest.name) address \(mac)
      ip -n \(host.name) link set \(port) master xenbr0 up
      ip -n \(guest.name) addr add 10.77.0.\(number)/24 dev eth0
      ip -n \(guest.name) addr add fd77::\(number)/64 dev eth0 nodad
      ip -n \(guest.name) link set eth0 up
      """)
    // The kernel notes a moment later that both ends are up: until then what is sent there is dropped.
    try eventually("\(port) is up") {
      host.succeeds("bridge link show dev \(port) | grep -q 'state forwarding'")
        && guest.succeeds("ip link show dev eth0 | grep -q 'state UP'")
    }
  }

  /// Whether an echo request from `source` to `address` is answered after all, within a minute: on a busy machine one may take longer than `pings` waits.
  public func reaches(from source: NetworkNamespace, _ address: String, as own: String? = nil) -> Bool {
    comesTrue { pings(from: source, address, as: own) }
  }

  /// Whether an echo request from `source` to `address` is answered within a second. That it is not shows that something stops it, where others come through;
  /// that one comes through, `reaches` shows.
  public func pings(
    from source: NetworkNamespace, _ address: String, as own: String? = nil, count: Int = 1
  ) -> Bool {
    source.succeeds("ping -n -q -c \(count) -i 0.05 -W 1 \(own.map { "-I \($0)" } ?? "") \(address)")
  }
}
