import TestSupport
import Testing

/// Two network namespaces of a test's own: `host` with the interface `vif1.0`, and `guest` with `eth0` at the other end.
/// 192.0.2.1 is the host, 192.0.2.2 the guest; IPv6 is off, so that nothing talks unasked.
public final class TestNetwork: Sendable {
  public static var isPossible: Bool { NetworkNamespace.isPossible }
  public static var reason: String { NetworkNamespace.reason }

  private let hostSide: NetworkNamespace
  private let guestSide: NetworkNamespace
  public var host: String { hostSide.name }
  public var guest: String { guestSide.name }

  public init(_ name: String) throws {
    hostSide = try NetworkNamespace("\(name)-host", ipv6: false)
    guestSide = try NetworkNamespace("\(name)-guest", ipv6: false)
    try NetworkNamespace.shell(
      """
      ip -n \(host) link add vif1.0 address 02:00:00:00:00:01 type veth peer name eth0 netns \(guest) \
        address 02:00:00:00:00:02
      ip -n \(host) addr add 192.0.2.1/24 dev vif1.0
      ip -n \(guest) addr add 192.0.2.2/24 dev eth0
      ip -n \(host) link set vif1.0 up
      ip -n \(guest) link set eth0 up
      ip -n \(host) neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev vif1.0 nud permanent
      ip -n \(guest) neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
      """)
    // The kernel notes a moment later that both ends are up: until then what is sent there is dropped.
    for (side, interface) in [(hostSide, "vif1.0"), (guestSide, "eth0")] {
      try eventually("\(interface) is up") { side.succeeds("ip link show dev \(interface) | grep -q 'state UP'") }
    }
  }

  /// Runs a shell script in a namespace; throws when it fails.
  public func run(in namespace: String, _ script: String) throws {
    try (namespace == host ? hostSide : guestSide).run(script)
  }

  /// Calls `body` with the calling thread in a namespace. Sockets that it opens stay there.
  public func inside<Result: ~Copyable>(_ namespace: String, _ body: () throws -> Result) throws -> Result {
    try (namespace == host ? hostSide : guestSide).inside(body)
  }
}
