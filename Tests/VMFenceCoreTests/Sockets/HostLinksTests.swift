import NetworkTestSupport
import Testing
import VMFenceCore

/// The kernel itself, in network namespaces.
@Suite("News of interfaces", .enabled(if: NetworkNamespace.isPossible, "\(NetworkNamespace.reason)"))
struct HostLinksTests {
  private let now = ContinuousClock.now

  /// The links of a namespace, listed.
  private func links(of network: NetworkNamespace) throws -> HostLinks {
    var links = HostLinks()
    _ = try network.inside { try links.take(at: now) }
    return links
  }

  private func number(of interface: String, in network: NetworkNamespace) throws -> UInt32? {
    UInt32(try network.run("cat /sys/class/net/\(interface)/ifindex").filter(\.isNumber))
  }

  @Test("at first all that are there are told, then what comes, goes, is renamed or made anew")
  func changes() throws {
    let network = try NetworkNamespace("links")
    try network.run("ip link add vif1.0 type veth peer name eth0; ip link add vif2.0 type bridge")
    var links = HostLinks()
    let all = try network.inside { try links.take(at: now) }
    #expect(all?.isSuperset(of: ["lo", "eth0", "vif1.0", "vif2.0"]) == true)
    #expect(try links.number(of: "vif1.0") == number(of: "vif1.0", in: network))
    #expect(try links.take(at: now) == nil, "nothing has happened")
    try network.run("ip link add vif3.0 type bridge; ip link del vif2.0")
    #expect(try links.take(at: now) == ["vif2.0", "vif3.0"])
    #expect(try links.number(of: "vif2.0") == 0 && links.number(of: "vif3.0") == number(of: "vif3.0", in: network))
    try network.run("ip link del vif3.0; ip link add vif3.0 type bridge; ip link set vif1.0 name vif4.0")
    #expect(try links.take(at: now) == ["vif1.0", "vif3.0", "vif4.0"])
    for name in ["vif3.0", "vif4.0"] { #expect(try links.number(of: name) == number(of: name, in: network)) }
    let other = try NetworkNamespace("links-other")
    try network.run("ip link set vif4.0 netns \(other.name)")
    #expect(try links.take(at: now) == ["vif4.0"])
  }

  @Test("what changes and stays the same interface is news without a name, and so are addresses and routes")
  func others() throws {
    let network = try NetworkNamespace("links-others")
    try network.run(
      "ip link add vif1.0 type veth peer name eth0; ip link add xenbr0 type bridge; ip link set xenbr0 up; ip link set eth0 up"
    )
    var links = try links(of: network)
    for change in [
      "ip link set vif1.0 master xenbr0", "ip link set vif1.0 up", "ip link set vif1.0 nomaster",
      "ip addr add 192.0.2.1/24 dev vif1.0", "ip route add 198.51.100.0/24 via 192.0.2.2",
      "ip route del 198.51.100.0/24", "ip -6 addr add 2001:db8::1/64 dev vif1.0 nodad",
      "ip -6 route add 2001:db8:1::/48 via 2001:db8::2", "ip link set vif1.0 down",
    ] {
      try network.run(change)
      #expect(try links.take(at: now) == [], "\(change)")
      #expect(links.number(of: "vif1.0") != 0, "\(change)")
    }
  }

  @Test("news that were lost are made good by a list, no sooner than a second after the last")
  func lost() throws {
    let network = try NetworkNamespace("links-lost")
    // Of one that is down another alias is no news.
    try network.run("ip link add vif1.0 type bridge; ip link add vif2.0 type bridge; ip link set vif1.0 up")
    var links = try links(of: network)
    // Many news of one, and then what matters.
    let many = (1...3_000).map { "link set dev vif1.0 alias number-\($0)\n" }.joined()
    try network.run("ip -batch - <<end\n\(many)end\nip link del vif2.0; ip link add vif3.0 type bridge")
    #expect(try links.take(at: now + .milliseconds(999)) == [])
    #expect(links.number(of: "vif2.0") != 0 && links.number(of: "vif3.0") == 0, "the test's news found room")
    let told = try links.take(at: now + .seconds(1))
    #expect(told == ["vif2.0", "vif3.0"])
    #expect(try links.number(of: "vif2.0") == 0 && links.number(of: "vif3.0") == number(of: "vif3.0", in: network))
    #expect(try links.take(at: now + .seconds(60)) ?? [] == [])
  }
}
