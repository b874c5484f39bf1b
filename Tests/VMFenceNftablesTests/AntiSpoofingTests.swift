import NetworkTestSupport
import TestSupport
import Testing
import VMFenceCore
import VMFenceNftables

/// Frames that a guest forges, on a real bridge.
@Suite("Spoofing is stopped", .enabled(if: NetworkNamespace.isPossible, "\(NetworkNamespace.reason)"))
struct AntiSpoofingTests {
  private struct Attempt: CustomTestStringConvertible, Sendable {
    var name: String
    var kind: SpoofingKind?
    var frame: [UInt8]
    var testDescription: String { name }
  }

  private static let payload: [UInt8] = Array("a payload to know it by".utf8)

  private static func attempt(_ name: String, _ kind: SpoofingKind?, _ type: UInt16, _ packet: [UInt8]) -> Attempt {
    Attempt(name: name, kind: kind, frame: Frames.ethernet(type, packet))
  }

  private static func udp4(_ source: String, _ port: UInt16 = 5_000, _ to: UInt16 = 5_000) -> [UInt8] {
    Frames.ipv4(source, "10.77.0.99", 17, Frames.udp(port, to, payload))
  }

  private static func udp6(_ source: String, _ port: UInt16 = 5_000, _ to: UInt16 = 5_000) -> [UInt8] {
    Frames.ipv6(source, "fd77::99", 17, Frames.udp(port, to, payload))
  }

  private static func tcp4(_ source: String) -> [UInt8] {
    Frames.ipv4(source, "10.77.0.99", 6, Frames.tcp(80, 5_000, payload))
  }

  private static func tcp6(_ source: String) -> [UInt8] {
    Frames.ipv6(source, "fd77::99", 6, Frames.tcp(80, 5_000, payload))
  }

  private static let reserved: [UInt8] = [0, 0, 0, 0]
  private static let own = "fe80::77:ff:fe00:1"
  /// What the MAC address of vm2 gives.
  private static let neighbours = "fe80::77:ff:fe00:2"
  private static let router = IPAddress("fe80::1")!
  private static let unknown = "fe80::1234:5678:9abc:def0"

  /// - `flags`: of an advertisement: 0x80 for a router's, 0x20 to override what is known (RFC 4861 section 4.4).
  private static func neighbour(
    _ source: String, _ to: String, _ type: UInt8, _ target: String, flags: UInt8 = 0
  ) -> [UInt8] {
    Frames.icmpv6(source, to, type, [flags, 0, 0, 0] + Frames.bytes(target) + payload)
  }

  /// 24 of the 40 bytes of destination options, before a header of this number.
  private static func cutOptions(before number: UInt8) -> [UInt8] {
    [number, 4, 1, 36] + [UInt8](repeating: 0, count: 20)
  }

  private static func snap(_ type: UInt16, organization: [UInt8] = [0, 0, 0], _ packet: [UInt8]) -> [UInt8] {
    [0xAA, 0xAA, 3] + organization + Frames.big(UInt64(type), 2) + packet
  }

  private static func in8023(_ name: String, _ kind: SpoofingKind?, _ packet: [UInt8]) -> Attempt {
    attempt(name, kind, UInt16(packet.count), packet)
  }

  /// What vm1 sends: its MAC address is 02:77:00:00:00:01, its addresses are 10.77.0.1 and fd77::1.
  private static let attempts: [Attempt] = {
    let vm1 = Frames.vm1MAC
    let vm2 = Frames.vm2MAC
    return [
      attempt("own IPv4", nil, 0x0800, udp4("10.77.0.1")),
      attempt("own IPv6", nil, 0x86DD, udp6("fd77::1")),
      attempt("SLAAC's IPv6", nil, 0x86DD, udp6("fd77::77:ff:fe00:1")),
      attempt("link-local", nil, 0x86DD, udp6(own)),
      attempt("another link-local", nil, 0x86DD, udp6("fe80::1234:5678:9abc:def0")),
      attempt("a request by DHCP", nil, 0x0800, udp4("0.0.0.0", 68, 67)),
      attempt("own IPv4 over TCP", nil, 0x0800, tcp4("10.77.0.1")),
      attempt("own IPv6 over TCP", nil, 0x86DD, tcp6("fd77::1")),
      attempt("link-local over TCP", nil, 0x86DD, tcp6(own)),
      attempt("own ARP", nil, 0x0806, Frames.arp(1, sender: (vm1, "10.77.0.1"), target: "10.77.0.99") + payload),
      attempt("an ARP probe", nil, 0x0806, Frames.arp(1, sender: (vm1, "0.0.0.0"), target: "10.77.0.1") + payload),
      attempt("DAD", nil, 0x86DD, neighbour("::", "ff02::1:ff00:1", 135, "fd77::1")),
      attempt("DAD of a link-local address", nil, 0x86DD, neighbour("::", "ff02::1:ff00:1", 135, own)),
      attempt("a router solicitation", nil, 0x86DD, Frames.icmpv6("::", "ff02::2", 133, reserved + payload)),
      attempt("an own advertisement", nil, 0x86DD, neighbour("fd77::1", "fd77::99", 136, "fd77::1")),
      Attempt(
        name: "another MAC", kind: .mac,
        frame: Frames.ethernet(0x0800, from: MACAddress("02:77:00:00:00:33")!, udp4("10.77.0.1"))),
      Attempt(name: "a neighbour's MAC", kind: .mac, frame: Frames.ethernet(0x0800, from: vm2, udp4("10.77.0.2"))),
      Attempt(
        name: "another MAC over TCP", kind: .mac,
        frame: Frames.ethernet(0x0800, from: MACAddress("02:77:00:00:00:33")!, tcp4("10.77.0.1"))),
      Attempt(
        name: "a neighbour's MAC and address over TCP", kind: .mac,
        frame: Frames.ethernet(0x0800, from: vm2, tcp4("10.77.0.2"))),
      Attempt(
        name: "another MAC over TCP and IPv6", kind: .mac,
        frame: Frames.ethernet(0x86DD, from: MACAddress("02:77:00:00:00:33")!, tcp6("fd77::1"))),
      attempt("another IPv4 over TCP", .ipv4, 0x0800, tcp4("10.77.0.2")),
      attempt("another IPv6 over TCP", .ipv6, 0x86DD, tcp6("fd77::2")),
      attempt("two VLAN tags", .mac, 0x8100, [0, 5, 0x81, 0, 0, 6, 8, 0] + udp4("10.77.0.2")),
      attempt("another IPv4", .ipv4, 0x0800, udp4("10.77.0.2")),
      attempt("no IPv4", .ipv4, 0x0800, udp4("0.0.0.0")),
      attempt("another IPv6", .ipv6, 0x86DD, udp6("fd77::2")),
      attempt("another SLAAC's IPv6", .ipv6, 0x86DD, udp6("fd77::77:ff:fe00:2")),
      attempt("DAD of another address", .ipv6, 0x86DD, neighbour("::", "ff02::1:ff00:2", 135, "fd77::2")),
      attempt("another's advertisement", .ipv6, 0x86DD, neighbour("fd77::1", "fd77::99", 136, "fd77::2")),
      attempt(
        "ARP for a neighbour", .arp, 0x0806, Frames.arp(2, sender: (vm1, "10.77.0.2"), target: "10.77.0.99") + payload),
      attempt(
        "ARP with a neighbour's MAC", .arp, 0x0806,
        Frames.arp(2, sender: (vm2, "10.77.0.1"), target: "10.77.0.99") + payload),
      attempt("ARP of another form", .arp, 0x0806, [0, 6, 8, 0, 6, 4, 0, 1] + payload),
      attempt("a DHCP server", .dhcp, 0x0800, udp4("10.77.0.1", 67, 68)),
      attempt("a DHCPv6 server", .dhcp, 0x86DD, udp6(own, 547, 546)),
      attempt(
        "a router advertisement", .router, 0x86DD,
        Frames.icmpv6(own, "ff02::1", 134, [64, 0, 7, 8] + [UInt8](repeating: 0, count: 8) + payload)),
      attempt(
        "a redirect", .router, 0x86DD,
        Frames.icmpv6(own, "fd77::99", 137, reserved + Frames.bytes("fd77::2") + Frames.bytes("fd77::99") + payload)),
    ] + portAttempts + linkLocalAttempts + fragmentAttempts + snapAttempts
  }()

  /// Clients take an answer by the port that it goes to.
  private static let portAttempts: [Attempt] = [
    attempt("a DHCP server that answers from another port", .dhcp, 0x0800, udp4("10.77.0.1", 1067, 68)),
    attempt("a DHCPv6 server that answers from another port", .dhcp, 0x86DD, udp6("fd77::1", 1547, 546)),
    attempt("another port whose number has the same last byte", nil, 0x0800, udp4("10.77.0.1", 5_000, 68 + 256)),
    attempt("a DHCPv6 client", nil, 0x86DD, udp6(own, 546, 547)),
    // Later fragments have no ports, whatever their bytes look like; the second one's flow label ends in 546.
    attempt(
      "a later IPv4 fragment", nil, 0x0800,
      Frames.ipv4("10.77.0.1", "10.77.0.99", 17, offset: 4, [0, 67, 0, 68] + payload)),
    attempt(
      "a later IPv6 fragment", nil, 0x86DD,
      [0x60, 0, 0x02, 0x22]
        + Frames.fragment6("fd77::1", "fd77::99", 17, offset: 4, hasMore: false, [0x02, 0x23, 0x02, 0x22] + payload)
        .dropFirst(4)),
  ]

  private static let linkLocalAttempts: [Attempt] = [
    attempt("a neighbour's link-local address", .ipv6, 0x86DD, udp6(neighbours)),
    attempt("a neighbour's link-local address over TCP", .ipv6, 0x86DD, tcp6(neighbours)),
    attempt("an advertisement for a neighbour's", .ipv6, 0x86DD, neighbour(own, "ff02::1", 136, neighbours)),
    attempt("DAD of a neighbour's", .ipv6, 0x86DD, neighbour("::", "ff02::1:ff00:2", 135, neighbours)),
    attempt("the router's link-local address", .ipv6, 0x86DD, udp6("fe80::1")),
    attempt("an advertisement for the router's", .ipv6, 0x86DD, neighbour(own, "ff02::1", 136, "fe80::1", flags: 0x20)),
    attempt("asking as the router", .ipv6, 0x86DD, neighbour("fe80::1", "ff02::1:ff00:2", 135, neighbours)),
    attempt(
      "looking for routers as the router", .ipv6, 0x86DD, Frames.icmpv6("fe80::1", "ff02::2", 133, reserved + payload)),
    attempt("DAD of the router's", .ipv6, 0x86DD, neighbour("::", "ff02::1:ff00:1", 135, "fe80::1")),
    attempt(
      "an advertisement for the router's, as a router", .router, 0x86DD,
      neighbour(own, "ff02::1", 136, "fe80::1", flags: 0xA0)),
    attempt(
      "an advertisement for another link-local", nil, 0x86DD, neighbour(unknown, "ff02::1", 136, unknown, flags: 0x20)),
    attempt("DAD of another link-local", nil, 0x86DD, neighbour("::", "ff02::1:ff9a:def0", 135, unknown)),
    attempt("asking for a neighbour", nil, 0x86DD, neighbour(own, "ff02::1:ff00:2", 135, neighbours)),
    attempt(
      "a router's advertisement of another link-local", .router, 0x86DD,
      neighbour(own, "ff02::1", 136, unknown, flags: 0xA0)),
    attempt("a router's advertisement of its own", nil, 0x86DD, neighbour(own, "ff02::1", 136, own, flags: 0xE0)),
    attempt(
      "a router's advertisement of its own address", nil, 0x86DD, neighbour(own, "ff02::1", 136, "fd77::1", flags: 0xE0)
    ),
  ]

  private static let fragmentAttempts: [Attempt] = [
    attempt(
      "an advertisement behind options that end in the next fragment", .router, 0x86DD,
      Frames.fragment6(own, "ff02::1", 60, offset: 0, hasMore: true, cutOptions(before: 58))),
    attempt(
      "options that end in the next fragment, before more of them", .router, 0x86DD,
      Frames.fragment6("fd77::1", "fd77::99", 60, offset: 0, hasMore: true, cutOptions(before: 60))),
    attempt(
      "options before the fragment header, too", .router, 0x86DD,
      Frames.ipv6(
        own, "ff02::1", 60,
        [44, 0, 1, 4, 0, 0, 0, 0] + Frames.fragmentHeader(60, offset: 0, hasMore: true) + cutOptions(before: 17))),
    attempt(
      "a fragment in a fragment", .router, 0x86DD,
      Frames.fragment6(
        own, "ff02::1", 44, offset: 0, hasMore: true, Frames.fragmentHeader(58, offset: 3, hasMore: false) + payload)),
    attempt(
      "a first fragment", nil, 0x86DD,
      Frames.fragment6("fd77::1", "fd77::99", 17, offset: 0, hasMore: true, Frames.udp(5_000, 5_000, payload + [0]))),
    attempt(
      "a first fragment with options", nil, 0x86DD,
      Frames.fragment6(
        "fd77::1", "fd77::99", 60, offset: 0, hasMore: true,
        [17, 0, 1, 4, 0, 0, 0, 0] + Frames.udp(5_000, 5_000, payload + [0]))),
    attempt(
      "a later fragment", nil, 0x86DD,
      Frames.fragment6("fd77::1", "fd77::99", 17, offset: 4, hasMore: false, payload)),
    attempt(
      "a later fragment of a packet with options", nil, 0x86DD,
      Frames.fragment6("fd77::1", "fd77::99", 60, offset: 4, hasMore: false, payload)),
    attempt("nothing behind the header", nil, 0x86DD, Frames.ipv6("fd77::1", "fd77::99", 59, payload)),
  ]

  private static let snapAttempts: [Attempt] = [
    in8023("IPv4 in 802.3", .mac, snap(0x0800, udp4("10.77.0.2"))),
    in8023("IPv6 in 802.3", .mac, snap(0x86DD, udp6("fd77::2"))),
    in8023(
      "ARP in 802.3", .mac,
      snap(0x0806, Frames.arp(2, sender: (Frames.vm1MAC, "10.77.0.2"), target: "10.77.0.99") + payload)),
    in8023("IPv4 in a bridge tunnel", .mac, snap(0x0800, organization: [0, 0, 0xF8], udp4("10.77.0.2"))),
    attempt("IPv4 in 802.3 in a VLAN", .mac, 0x8100, [0, 5, 0, 80] + snap(0x0800, udp4("10.77.0.2"))),
    in8023("another protocol in 802.3", nil, snap(0x2000, organization: [0, 0, 0x0C], payload)),
    in8023("LLC", nil, [0xE0, 0xE0, 3] + payload),
  ]

  /// Whether the frame arrives, however late. Its last bytes are a number of its own; the frame goes as it is, so that no checksum there matters.
  private func passes(
    _ attempt: Attempt, _ sender: PacketEndpoint, _ receiver: PacketEndpoint, within milliseconds: Int = 60_000
  ) throws -> Bool {
    let tail = Frames.big(UInt64.random(in: .min ... .max), 8)
    try sender.send(attempt.frame.dropLast(tail.count) + tail)
    return receiver.receives(within: milliseconds) { Array($0.suffix(tail.count)) == tail }
  }

  /// Whether the frame does not arrive.
  private func isStopped(_ attempt: Attempt, _ sender: PacketEndpoint, _ receiver: PacketEndpoint) throws -> Bool {
    try !passes(attempt, sender, receiver, within: 150)
  }

  @Test("every forged frame is stopped and counted under its kind; honest ones pass")
  func everything() async throws {
    let network = try BridgeNetwork("spoof")
    let sink = try network.host.inside { try NftablesSink.open() }
    let sender = try PacketEndpoint(network.vm1)
    let receiver = try PacketEndpoint(network.outside)
    for attempt in Self.attempts where attempt.kind != nil {
      #expect(try passes(attempt, sender, receiver), "\(attempt.name) does not even pass without anti-spoofing")
    }
    try await sink.update(ports: bridgePorts, antiSpoofing: AntiSpoofing(reserved: [Self.router]))
    for attempt in Self.attempts {
      let before = try await sink.trafficCounts().spoofed
      if let kind = attempt.kind {
        #expect(try isStopped(attempt, sender, receiver), "\(attempt.name) passes")
        let count = before[kind]?.packets ?? 0
        _ = try await comesTrueSuspending { try await sink.trafficCounts().spoofed[kind]?.packets ?? 0 > count }
      } else {
        #expect(try passes(attempt, sender, receiver), "\(attempt.name) is stopped")
      }
      let after = try await sink.trafficCounts().spoofed
      for kind in SpoofingKind.allCases {
        let counted = (after[kind]?.packets ?? 0) - (before[kind]?.packets ?? 0)
        // The guest's own stack sends honest frames meanwhile: nothing of that is counted.
        #expect(counted == (kind == attempt.kind ? 1 : 0), "\(attempt.name): \(counted) counted as \(kind)")
      }
    }
    #expect(network.reaches(from: network.vm1, "10.77.0.99") && network.reaches(from: network.vm1, "fd77::99"))
    #expect(network.reaches(from: network.outside, "10.77.0.1") && network.reaches(from: network.vm1, "fd77::fe"))
    try await sink.update(ports: bridgePorts)
    for attempt in Self.attempts where attempt.kind != nil {
      #expect(try passes(attempt, sender, receiver), "\(attempt.name) is stopped after anti-spoofing was turned off")
    }
  }

  @Test("a domain's exception opens only what it names, and a port without known addresses is free in these")
  func exceptions() async throws {
    let network = try BridgeNetwork("spoof-exceptions")
    let sink = try network.host.inside { try NftablesSink.open() }
    let sender = try PacketEndpoint(network.vm1)
    let receiver = try PacketEndpoint(network.outside)
    let attempts = Dictionary(uniqueKeysWithValues: Self.attempts.map { ($0.name, $0) })
    func passes(_ name: String) throws -> Bool { try self.passes(try #require(attempts[name]), sender, receiver) }
    func isStopped(_ name: String) throws -> Bool { try self.isStopped(try #require(attempts[name]), sender, receiver) }
    try await sink.update(
      ports: bridgePorts, antiSpoofing: AntiSpoofing(exceptions: [vm1: [.dhcp, .router]]))
    #expect(try passes("a DHCP server") && passes("a router advertisement"))
    #expect(try isStopped("another IPv4"))
    var unknown = port("vif1.0", 1)
    unknown.addresses = []
    try await sink.update(ports: [vm1: [unknown]], antiSpoofing: AntiSpoofing())
    #expect(try passes("another IPv4") && passes("another IPv6") && passes("ARP for a neighbour"))
    #expect(try isStopped("another MAC") && isStopped("ARP with a neighbour's MAC") && isStopped("a DHCP server"))
  }

  @Test("who may use which link-local address: what was named, what nobody else is known to have, and a router any")
  func linkLocalAddresses() async throws {
    let network = try BridgeNetwork("spoof-local")
    let sink = try network.host.inside { try NftablesSink.open() }
    let sender = try PacketEndpoint(network.vm1)
    let receiver = try PacketEndpoint(network.outside)
    let attempts = Dictionary(uniqueKeysWithValues: Self.attempts.map { ($0.name, $0) })
    func passes(_ name: String) throws -> Bool { try self.passes(try #require(attempts[name]), sender, receiver) }
    func isStopped(_ name: String) throws -> Bool { try self.isStopped(try #require(attempts[name]), sender, receiver) }
    let forged = [
      "a neighbour's link-local address", "the router's link-local address", "an advertisement for the router's",
      "asking as the router", "DAD of the router's", "DAD of a neighbour's",
    ]
    let others = [
      "another link-local", "an advertisement for another link-local", "DAD of another link-local",
    ]
    let own = [
      "link-local", "link-local over TCP", "DAD of a link-local address", "a router's advertisement of its own",
    ]
    // Nothing is known of the port's addresses.
    var unknown = port("vif1.0", 1)
    unknown.addresses = []
    let policy = AntiSpoofing(reserved: [Self.router])
    let neighbour = [vm2: [port("vif2.0", 2)]]
    try await sink.update(ports: neighbour.merging([vm1: [unknown]]) { $1 }, antiSpoofing: policy)
    for name in forged { #expect(try isStopped(name), "\(name) passes at a port without known addresses") }
    for name in others + own + ["another IPv6"] { #expect(try passes(name), "\(name) is stopped there") }
    // One was named: it is the only one besides that of the MAC address.
    var named = port("vif1.0", 1)
    named.addresses.append(try #require(IPAddress(Self.unknown)))
    try await sink.update(ports: neighbour.merging([vm1: [named]]) { $1 }, antiSpoofing: policy)
    for name in others + own { #expect(try passes(name), "\(name), which was named, is stopped") }
    named.addresses[2] = try #require(IPAddress("fe80::7"))
    try await sink.update(ports: neighbour.merging([vm1: [named]]) { $1 }, antiSpoofing: policy)
    for name in forged + others { #expect(try isStopped(name), "\(name) passes where another one was named") }
    for name in own { #expect(try passes(name), "\(name) is stopped where another one was named") }
    // What was named for another port is that one's.
    var other = port("vif2.0", 2)
    other.addresses.append(try #require(IPAddress(Self.unknown)))
    try await sink.update(ports: [vm1: [port("vif1.0", 1)], vm2: [other]], antiSpoofing: policy)
    for name in forged + others { #expect(try isStopped(name), "\(name), another's, passes") }
    // What is one port's of a domain is the domain's.
    let bond = [vm1: [port("vif1.0", 1), port("vif1.1", 2)]]
    try await sink.update(ports: bond, antiSpoofing: policy)
    #expect(try passes("a neighbour's link-local address") && isStopped("the router's link-local address"))
    // A router may have any, and one of the others' that was named as its own, too.
    let router = AntiSpoofing(exceptions: [vm1: [.router]], reserved: [Self.router])
    try await sink.update(ports: bridgePorts, antiSpoofing: router)
    for name in forged + others + own { #expect(try passes(name), "\(name) is stopped at a router's port") }
    named.addresses[2] = Self.router
    try await sink.update(ports: neighbour.merging([vm1: [named]]) { $1 }, antiSpoofing: policy)
    #expect(try passes("the router's link-local address") && passes("DAD of the router's"))
    #expect(try isStopped("a neighbour's link-local address"))
  }

  @Test("what is stopped is counted by port as long as it is guarded, whoever else comes and goes; so are blocks")
  func counts() async throws {
    let network = try BridgeNetwork("spoof-counts")
    let sink = try network.host.inside { try NftablesSink.open() }
    try await sink.update(ports: [vm1: [port("vif1.0", 1)]], antiSpoofing: AntiSpoofing())
    #expect(try await sink.trafficCounts(ofMeasures: false).spoofedAtPorts.isEmpty)
    let sender = try PacketEndpoint(network.vm1)
    let dhcp = try #require(Self.attempts.first { $0.kind == .dhcp })
    let local = try #require(Self.attempts.first { $0.name == "a neighbour's link-local address" })
    for _ in 0..<3 { try sender.send(dhcp.frame) }
    try await sink.update(ports: bridgePorts, antiSpoofing: AntiSpoofing())
    for _ in 0..<2 { try sender.send(local.frame) }
    try sender.send(dhcp.frame)
    var counts = try await sink.trafficCounts(ofMeasures: false)
    let isCounted = try await comesTrueSuspending {
      counts = try await sink.trafficCounts(ofMeasures: false)
      return counts.spoofedAtPorts.mapValues { $0.mapValues(\.packets) } == ["vif1.0": [.dhcp: 4, .ipv6: 2]]
    }
    #expect(isCounted, "\(counts.spoofedAtPorts)")
    #expect(counts.spoofed[.dhcp]?.packets == 4 && counts.measures.isEmpty)
    try await sink.change(add: [block("10.77.0.99", for: vm1)])
    #expect(!network.pings(from: network.outside, "10.77.0.1", as: "10.77.0.99"))
    counts = try await sink.trafficCounts(ofMeasures: false)
    let names = ["block", "flow", "quarantine", "rate_limit"] + SpoofingKind.allCases.map { "spoofed_\($0.rawValue)" }
    #expect(counts.blocked.packets >= 1 && counts.byReason.map(\.name) == names)
    try await sink.update(ports: [vm2: [port("vif2.0", 2)]], antiSpoofing: AntiSpoofing())
    try await sink.update(ports: bridgePorts, antiSpoofing: AntiSpoofing())
    counts = try await sink.trafficCounts(ofMeasures: false)
    #expect(counts.spoofedAtPorts.isEmpty && counts.spoofed[.dhcp]?.packets == 4)
  }

  @Test("nobody takes over the router's link-local address in a neighbour's eyes")
  func routerStays() async throws {
    let network = try BridgeNetwork("spoof-router")
    let sink = try network.host.inside { try NftablesSink.open() }
    try network.outside.run("ip addr add fe80::1/64 dev eth0 nodad")
    let sender = try PacketEndpoint(network.vm1)
    func entry() throws -> String { try network.vm2.run("ip -6 neigh show fe80::1 dev eth0") }
    // The entry is used again and again; what the guest says comes unasked.
    func forge() throws {
      try sender.send(
        Frames.ethernet(
          0x86DD, to: Frames.vm2MAC,
          Frames.icmpv6(
            "fe80::1", Self.neighbours, 135,
            Self.reserved + Frames.bytes(Self.neighbours) + [1, 1] + Frames.bytes(Frames.vm1MAC))))
    }
    // What the real router's kernel says meanwhile makes it good again.
    let isTakenOver = try await comesTrueSuspending {
      _ = network.pings(from: network.vm2, "fe80::1%eth0")
      try forge()
      _ = network.pings(from: network.outside, "10.77.0.2")
      return try entry().contains("02:77:00:00:00:01")
    }
    #expect(isTakenOver, "the attempt does not even work without anti-spoofing")
    try network.vm2.run("ip -6 neigh flush dev eth0")
    try await sink.update(ports: bridgePorts, antiSpoofing: AntiSpoofing(reserved: [Self.router]))
    #expect(network.reaches(from: network.vm2, "fe80::1%eth0"))
    try forge()
    let isStopped = try await comesTrueSuspending { try await sink.trafficCounts().spoofed[.ipv6]?.packets ?? 0 > 0 }
    #expect(isStopped, "the attempt is not stopped")
    let stays = try entry()
    #expect(stays.contains("02:77:00:00:00:63"), "\(stays)")
  }

  @Test("busybox's client takes no lease from a guest that answers from another port")
  func rogueServer() async throws {
    let network = try BridgeNetwork("spoof-dhcp")
    let sink = try network.host.inside { try NftablesSink.open() }
    // An answer to each request (RFC 2131): its number and hardware address, an offer or an acknowledgement, this server.
    let server = try network.vm1.start(
      #"""
      perl -MSocket -e 'socket(my $in, PF_INET, SOCK_DGRAM, 17); setsockopt($in, SOL_SOCKET, SO_BROADCAST, 1);
      bind($in, sockaddr_in(67, INADDR_ANY)) or die; socket(my $out, PF_INET, SOCK_DGRAM, 17);
      setsockopt($out, SOL_SOCKET, SO_BROADCAST, 1); bind($out, sockaddr_in(1067, inet_aton("10.77.0.1"))) or die;
      while (recv($in, my $q, 1500, 0)) { my $type = ord(substr($q, 242, 1)) == 1 ? 2 : 5;
      my $a = "\x02\x01\x06\x00".substr($q, 4, 4)."\0\0\x80\0"."\0" x 4 .inet_aton("10.77.0.66").("\0" x 8).substr($q, 28, 16)
      .("\0" x 192).substr($q, 236, 4)."\x35\x01".chr($type)."\x36\x04".inet_aton("10.77.0.1")."\x33\x04\0\0\x0e\x10\xff";
      send($out, $a, 0, sockaddr_in(68, INADDR_BROADCAST)); }'
      """#)
    defer { server.terminate() }
    #expect(await comesTrueSuspending { network.vm1.succeeds("ss -uln | grep -q :67") })
    // So many requests, one a second.
    func isLeased(requests: Int) -> Bool {
      network.vm2.succeeds("busybox udhcpc -q -n -f -i eth0 -t \(requests) -T 1 -s /bin/true")
    }
    #expect(isLeased(requests: 60), "the rogue server does not even work without anti-spoofing")
    try await sink.update(ports: bridgePorts, antiSpoofing: AntiSpoofing())
    #expect(!isLeased(requests: 3))
    let isCounted = try await comesTrueSuspending { try await sink.trafficCounts().spoofed[.dhcp]?.packets ?? 0 >= 3 }
    #expect(isCounted)
  }

  @Test("when somebody empties the sets, honest traffic is not stopped for longer than until the next reading back")
  func mended() async throws {
    let network = try BridgeNetwork("spoof-mended")
    let sink = try network.host.inside { try NftablesSink.open(.init(holdsTable: false)) }
    try await sink.update(ports: bridgePorts, antiSpoofing: AntiSpoofing())
    try network.host.run("nft flush set bridge vmfence port-mac")
    #expect(!network.pings(from: network.vm1, "10.77.0.99"))
    // TCP is looked up with both its addresses, in another set.
    let sender = try PacketEndpoint(network.vm1)
    let receiver = try PacketEndpoint(network.outside)
    let honest = try #require(Self.attempts.first { $0.name == "own IPv4 over TCP" })
    #expect(try passes(honest, sender, receiver))
    try network.host.run("nft flush set bridge vmfence port-honest4")
    #expect(try isStopped(honest, sender, receiver))
    _ = try await sink.readBack(at: start)
    #expect(network.reaches(from: network.vm1, "10.77.0.99"))
    try network.host.run("nft flush ruleset")
    _ = try await sink.readBack(at: start)
    let forged = try #require(Self.attempts.first { $0.kind == .ipv4 })
    #expect(try isStopped(forged, sender, receiver), "anti-spoofing does not come back with the table")
  }
}
