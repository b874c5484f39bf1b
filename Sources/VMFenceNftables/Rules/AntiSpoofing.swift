public import VMFenceCore

/// A way in which a guest pretends to be somebody else.
public enum SpoofingKind: String, Hashable, Sendable, CaseIterable {
  /// Another Ethernet source address than the port's; a frame in which addresses cannot be checked: with a second VLAN tag, or with
  /// IPv4, IPv6 or ARP behind a length and LLC (802.3 with SNAP, RFC 1042); and anything to the bridge's own group addresses (01:80:C2:00:00:00 to 0F:
  /// spanning tree, LACP, 802.1X, LLDP), by which a bridge learns where its sender is before any other rule is asked. The latter needs
  /// `KernelFeatures.hasIngressHook`.
  case mac
  /// An IPv4 source address that is not the domain's. Asking for one by DHCP (from 0.0.0.0) is honest.
  case ipv4
  /// An IPv6 source address that is not the domain's, or a neighbour advertisement for one. Those that the port's MAC address gives in
  /// the domain's networks (EUI-64, RFC 4291 appendix A) are the domain's.
  ///
  /// Of link-local addresses, which nobody assigns, those that its ports' MAC addresses give and those that were named for its ports are the
  /// domain's. At a port for which none was named, so is any other that is not known to be somebody else's: another domain's in the same way, or
  /// one of `AntiSpoofing.reserved`. This is checked at ports whose addresses are not known, too, but not at a router's.
  case ipv6
  /// ARP (RFC 826) that names another sender. A probe (sender 0.0.0.0, RFC 5227) is honest.
  case arp
  /// Answering as a DHCP server: UDP from port 67, or from port 547 (DHCPv6), and UDP to port 68 or 546: many clients take an answer by the port that
  /// it comes to, whatever it comes from.
  case dhcp
  /// Router advertisements and redirects (RFC 4861), neighbour advertisements that say that a link-local address which is not known to be the
  /// port's is a router's, and what could be one of these, since its first fragment does not have all of its headers (RFC 7112).
  case router
}

/// Which pretences are stopped at the ports of which domains.
///
/// What has to do with IP addresses is stopped only at ports whose addresses are known; then those are all that the domain has. Link-local addresses
/// are an exception (`SpoofingKind.ipv6`).
public struct AntiSpoofing: Hashable, Sendable {
  /// For every domain.
  public var kinds: Set<SpoofingKind>
  /// What a domain may do all the same: a router, a DHCP server.
  public var exceptions: [DomainUUID: Set<SpoofingKind>]
  /// IPv6 link-local addresses that are no domain's: the host's own, and those of routers. A port for which one of them was named has it all the
  /// same, and a domain that may be a router may use any. Addresses of other kinds say nothing here.
  public var reserved: Set<IPAddress>

  public init(
    _ kinds: Set<SpoofingKind> = Set(SpoofingKind.allCases), exceptions: [DomainUUID: Set<SpoofingKind>] = [:],
    reserved: Set<IPAddress> = []
  ) {
    self.kinds = kinds
    self.exceptions = exceptions
    self.reserved = reserved
  }

  public static let off = AntiSpoofing([])

  func kinds(for domain: DomainUUID) -> Set<SpoofingKind> { kinds.subtracting(exceptions[domain] ?? []) }
}

/// The rules and sets against spoofing. They sit in the bridge's prerouting hook, so the host is protected too, and a forged frame teaches
/// the bridge nothing. What does not come to that hook is stopped before it (`PortRules`).
enum SpoofingRules {
  /// Before everything else in the table.
  static let priority: Int32 = -300
  static let chain = "antispoof"
  /// Interface with Ethernet address, IPv4 address, IPv6 address.
  static let macSet = "port-mac"
  static let v4Set = "port-ip4"
  static let v6Set = "port-ip6"
  /// Interface with Ethernet and IPv4, IPv6 address together: what an honest frame of a known port has.
  static let honest4Set = "port-honest4"
  static let honest6Set = "port-honest6"
  static func guardSet(_ kind: SpoofingKind) -> String { "guard-\(kind.rawValue)" }
  /// Ports whose addresses are known: what of ARP names IP addresses is checked there.
  static let knownSet = "guard-addresses"
  /// Link-local addresses that are known to be somebody's, and ports that may not use them but for their own.
  static let takenSet = "taken6"
  static let takenGuardSet = "guard-taken6"
  /// Ports that may use no link-local address but their own.
  static let localGuardSet = "guard-local6"
  /// Ports at which anything is checked: the others pass at once.
  static let guardedSet = "guarded"

  static let sets: [SetSpecification] =
    [
      SetSpecification(name: macSet, kind: .plain, fields: [.interface, .mac], hasTimeouts: false),
      SetSpecification(name: v4Set, kind: .plain, fields: [.interface, .v4], hasTimeouts: false),
      SetSpecification(name: v6Set, kind: .plain, fields: [.interface, .v6], hasTimeouts: false),
      SetSpecification(name: honest4Set, kind: .plain, fields: [.interface, .mac, .v4], hasTimeouts: false),
      SetSpecification(name: honest6Set, kind: .plain, fields: [.interface, .mac, .v6], hasTimeouts: false),
      SetSpecification(name: guardedSet, kind: .plain, fields: [.interface], hasTimeouts: false),
      SetSpecification(name: knownSet, kind: .plain, fields: [.interface], hasTimeouts: false),
      SetSpecification(name: takenSet, kind: .plain, fields: [.v6], hasTimeouts: false),
    ]
    + countingSets.map { SetSpecification(name: $0.set, kind: .counted, fields: [.interface], hasTimeouts: false) }

  /// Sets of ports at which a kind is stopped. A rule that drops looks in one of them last, so each element counts what was dropped at its port.
  static let countingSets: [(set: String, kind: SpoofingKind)] =
    SpoofingKind.allCases.map { (guardSet($0), $0) } + [(takenGuardSet, .ipv6), (localGuardSet, .ipv6)]

  /// What an honest frame costs is what counts here: each has to pass all of this. So TCP whose addresses are both the port's passes at once, by one
  /// look-up; any other frame goes to the rules of its protocol only, a port's addresses are looked up once, and whether a kind is stopped at the port
  /// is looked up last, for frames that would be dropped.
  private static let v4Chain = "antispoof4"
  private static let v6Chain = "antispoof6"
  private static let icmp6Chain = "antispoof-icmp6"
  private static let arpChain = "antispoof-arp"

  static let chains: [ChainSpecification] =
    [ChainSpecification(name: chain, base: .init(hook: .prerouting, priority: priority))]
    + [v4Chain, v6Chain, icmp6Chain, arpChain].map { ChainSpecification(name: $0) }

  private static let unspecified = [UInt8](repeating: 0, count: 16)

  /// Drops what the expressions match at ports where this kind is stopped. The comment begins with the kind that the rule counts for.
  ///
  /// - `ports`: the set of these ports, when it is not that of the kind.
  private static func drop(
    _ kind: SpoofingKind, _ what: String, in chain: String, at ports: String? = nil, _ expressions: [Expression]
  ) -> RuleSpecification {
    RuleSpecification(
      chain, "\(kind.rawValue): \(what)",
      [interface] + expressions + [.lookup(Register(0), set: ports ?? guardSet(kind)), .counter, .verdict(.drop)])
  }

  /// Lets what the expressions match pass.
  private static func pass(_ what: String, in chain: String, _ expressions: [Expression]) -> RuleSpecification {
    RuleSpecification(chain, what, [interface] + expressions + [.verdict(.accept)])
  }

  private static let interface = Expression.meta(.inputInterface, Register(0))

  private static func isTransport(_ number: UInt8) -> [Expression] {
    [.meta(.transportProtocol, Register(8)), .equal(Register(8), [number])]
  }

  private static func transport(_ offset: UInt32, is bytes: [UInt8]) -> [Expression] {
    [.payload(.transport, offset: offset, length: UInt32(bytes.count), Register(8)), .equal(Register(8), bytes)]
  }

  /// Goes on for UDP from or to this port. The whole header is loaded: for loads of one, two and four bytes the kernel (nft_payload_fast_eval) does not look
  /// whether this is a later fragment, and would take what is no header for one.
  private static func udp(from source: UInt16 = 0, to destination: UInt16 = 0) -> [Expression] {
    // Port 0 is any.
    func mask(_ port: UInt16) -> [UInt8] { port == 0 ? [0, 0] : [0xFF, 0xFF] }
    func bytes(_ port: UInt16) -> [UInt8] { [UInt8(port >> 8), UInt8(port & 0xFF)] }
    return isTransport(17) + [
      .payload(.transport, offset: 0, length: 8, Register(8)),
      .mask(Register(8), mask(source) + mask(destination) + [0, 0, 0, 0]),
      .equal(Register(8), bytes(source) + bytes(destination) + [0, 0, 0, 0]),
    ]
  }

  /// Goes on when the frame's protocol is this; leaves the interface's name where it is.
  private static func isProtocol(_ type: [UInt8]) -> [Expression] {
    [.meta(.protocol, Register(8)), .equal(Register(8), type)]
  }

  static var rules: [RuleSpecification] { entranceRules + arpRules + v4Rules + v6Rules + icmp6Rules }

  private static var entranceRules: [RuleSpecification] {
    [
      RuleSpecification(
        chain, "ports that are not guarded",
        [interface, .lookupMissing(Register(0), set: guardedSet), .verdict(.return)]),
      honest(.v4), honest(.v6),
      drop(
        .mac, "another source address", in: chain,
        [.payload(.link, offset: 6, length: 6, Register(4)), .lookupMissing(Register(0), set: macSet)]),
    ]
      + [
        (Expression.ipv4EtherType, v4Chain), (Expression.ipv6EtherType, v6Chain), (Expression.arpEtherType, arpChain),
      ].map { type, protocolChain in
        RuleSpecification(chain, protocolChain, isProtocol(type) + [.verdict(.goto(protocolChain))])
      }
      // The kernel has taken one tag off; behind a second one nothing can be checked.
      + [
        drop(.mac, "a second VLAN tag", in: chain, isProtocol([0x81, 0x00])),
        drop(.mac, "a second VLAN tag (802.1ad)", in: chain, isProtocol([0x88, 0xA8])),
      ]
      // Some receivers take IP and ARP in 802.3, which nobody honest sends: DSAP, SSAP and control, an organization (zeros of RFC 1042, or 00-00-F8 of
      // bridge tunnels), type. The kernel's number of all that has LLC is ETH_P_802_2; it comes last, since nft(8) 1.0 aborts when it
      // lists a masked header behind it.
      + [("IPv4", Expression.ipv4EtherType), ("IPv6", Expression.ipv6EtherType), ("ARP", Expression.arpEtherType)].map {
        drop(
          .mac, "\($0) in 802.3", in: chain,
          [
            .payload(.network, offset: 0, length: 8, Register(8)),
            .mask(Register(8), [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x07, 0xFF, 0xFF]),
            .equal(Register(8), [0xAA, 0xAA, 3, 0, 0, 0] + $1),
          ] + isProtocol([0, 4]))
      }
  }

  /// No rule below stops TCP that has the port's own addresses in both headers.
  private static func honest(_ family: IPAddress.Family) -> RuleSpecification {
    let (type, set) =
      family == .v4 ? (Expression.ipv4EtherType, honest4Set) : (Expression.ipv6EtherType, honest6Set)
    return RuleSpecification(
      chain, "honest TCP over \(family == .v4 ? "IPv4" : "IPv6")",
      isProtocol(type) + isTransport(6) + [
        interface, .payload(.link, offset: 6, length: 6, Register(4)),
        .address(family, isSource: true, Register(6)), .lookup(Register(0), set: set), .verdict(.return),
      ])
  }

  /// RFC 826 in Ethernet and IPv4: types and lengths (6 bytes), operation, sender's addresses at 8 and 14.
  private static var arpRules: [RuleSpecification] {
    [
      drop(
        .arp, "another form than Ethernet and IPv4", in: arpChain,
        [.payload(.network, offset: 0, length: 6, Register(8)), .notEqual(Register(8), [0, 1, 8, 0, 6, 4])]),
      drop(
        .arp, "another sender's Ethernet address", in: arpChain,
        [.payload(.network, offset: 8, length: 6, Register(4)), .lookupMissing(Register(0), set: macSet)]),
      drop(
        .arp, "another sender's IP address", in: arpChain,
        [
          .lookup(Register(0), set: knownSet), .payload(.network, offset: 14, length: 4, Register(4)),
          .notEqual(Register(4), [0, 0, 0, 0]), .lookupMissing(Register(0), set: v4Set),
        ]),
    ]
  }

  private static var v4Rules: [RuleSpecification] {
    let source = Expression.address(.v4, isSource: true, Register(4))
    return [
      drop(.dhcp, "a server's answer", in: v4Chain, udp(from: 67)),
      drop(.dhcp, "an answer to a client", in: v4Chain, udp(to: 68)),
      pass(
        "asking for an address", in: v4Chain,
        [source, .equal(Register(4), [0, 0, 0, 0])] + udp(from: 68, to: 67)),
      drop(.ipv4, "another source address", in: v4Chain, [source, .lookupMissing(Register(0), set: v4Set)]),
    ]
  }

  private static let v6Source = Expression.address(.v6, isSource: true, Register(4))

  /// Goes on when an address is a link-local one, or not: the source with `.network`, the target of a neighbour's advertisement or solicitation
  /// with `.transport`.
  private static func linkLocal(
    _ base: Expression.Base, _ compare: (Register, [UInt8]) -> Expression = Expression.equal
  ) -> [Expression] {
    [
      .payload(base, offset: 8, length: 2, Register(8)), .mask(Register(8), [0xFF, 0xC0]),
      compare(Register(8), [0xFE, 0x80]),
    ]
  }

  private static let isNotOwn = Expression.lookupMissing(Register(0), set: v6Set)
  private static let isTaken = Expression.lookup(Register(4), set: takenSet)

  private static var v6Rules: [RuleSpecification] {
    [
      drop(.dhcp, "a DHCPv6 server's answer", in: v6Chain, udp(from: 547)),
      drop(.dhcp, "an answer to a DHCPv6 client", in: v6Chain, udp(to: 546)),
      RuleSpecification(v6Chain, icmp6Chain, isTransport(58) + [.verdict(.jump(icmp6Chain))]),
      drop(
        .ipv6, "another source address", in: v6Chain, linkLocal(.network, Expression.notEqual) + [v6Source, isNotOwn]),
      drop(
        .ipv6, "another's link-local source address", in: v6Chain, at: takenGuardSet,
        linkLocal(.network) + [v6Source, isNotOwn, isTaken]),
      drop(
        .ipv6, "another link-local source address", in: v6Chain, at: localGuardSet,
        linkLocal(.network) + [v6Source, isNotOwn]),
      // What follows is for first fragments that hide what they are: the headers go on in the next one.
      pass(
        "headers that are whole", in: v6Chain,
        [
          // As much as there is of any header in a first fragment.
          .payload(.transport, offset: 0, length: 8, Register(8)), .mask(Register(8), [UInt8](repeating: 0, count: 8)),
          .equal(Register(8), [UInt8](repeating: 0, count: 8)),
        ]),
    ]
      + [SpoofingKind.router, .dhcp].map { kind in
        drop(
          kind, "a first fragment without all headers", in: v6Chain,
          [.fragmentOffset(Register(8)), .mask(Register(8), [0xFF, 0xF8]), .equal(Register(8), [0, 0])])
      }
  }

  /// What comes back from here is looked at by its source, as everything else of IPv6 is.
  private static var icmp6Rules: [RuleSpecification] {
    let isUnspecified = [v6Source, .equal(Register(4), unspecified)]
    let target: Expression = .payload(.transport, offset: 8, length: 16, Register(4))
    let isRouters: [Expression] = [
      .payload(.transport, offset: 4, length: 1, Register(8)), .mask(Register(8), [0x80]), .equal(Register(8), [0x80]),
    ]
    let (solicitation, advertisement) = (transport(0, is: [135]), transport(0, is: [136]))
    return [
      drop(.router, "a router advertisement", in: icmp6Chain, transport(0, is: [134])),
      drop(.router, "a redirect", in: icmp6Chain, transport(0, is: [137])),
      // Routers are known to hosts by link-local addresses. A guest that forwards says it of its own, too.
      drop(
        .router, "advertising another link-local address as a router's", in: icmp6Chain,
        advertisement + isRouters + linkLocal(.transport) + [target, isNotOwn]),
      // Duplicate address detection (RFC 4862): only for an address that may become the domain's.
      pass(
        "probing for an own address", in: icmp6Chain,
        solicitation + isUnspecified + [target, .lookup(Register(0), set: v6Set)]),
      drop(
        .ipv6, "probing for another's link-local address", in: icmp6Chain, at: takenGuardSet,
        solicitation + isUnspecified + [target, isTaken]),
      pass(
        "probing for a link-local address", in: icmp6Chain,
        solicitation + isUnspecified + linkLocal(.transport) + [.lookupMissing(Register(0), set: localGuardSet)]),
      // Before a host has an address it asks for routers, and reports its groups (RFC 4861, 3810).
      pass("asking for routers", in: icmp6Chain, transport(0, is: [133]) + isUnspecified),
      pass("reporting groups", in: icmp6Chain, transport(0, is: [143]) + isUnspecified),
      pass("reporting groups (version 1)", in: icmp6Chain, transport(0, is: [131]) + isUnspecified),
      drop(
        .ipv6, "advertising another address", in: icmp6Chain,
        advertisement + linkLocal(.transport, Expression.notEqual) + [target, isNotOwn]),
      drop(
        .ipv6, "advertising another's link-local address", in: icmp6Chain, at: takenGuardSet,
        advertisement + [target, isNotOwn, isTaken]),
      drop(
        .ipv6, "advertising another link-local address", in: icmp6Chain, at: localGuardSet,
        advertisement + linkLocal(.transport) + [target, isNotOwn]),
    ]
  }

  // MARK: Elements

  /// What belongs into each set, for these ports: the keys of its elements.
  static func elements(_ ports: [DomainUUID: [NetworkPort]], _ policy: AntiSpoofing) -> [String: Set<[UInt8]>] {
    var elements: [String: Set<[UInt8]>] = [:]
    for set in sets { elements[set.name] = [] }
    for (domain, list) in ports {
      let kinds = policy.kinds(for: domain)
      guard !kinds.isEmpty else { continue }
      let mayRoute = policy.exceptions[domain]?.contains(.router) ?? false
      // Of a bond, say, one port sends what is the other's.
      let locals = list.map { linkLocalAddress(of: $0.mac) } + list.flatMap(\.addresses).filter(\.isV6LinkLocal)
      for port in list {
        var name = ElementKey()
        name.append(interface: port.interface)
        func add(_ set: String, _ write: (inout ElementKey) -> Void = { _ in }) {
          var key = name
          write(&key)
          elements[set]?.insert((0..<key.count).map { key.bytes[$0] })
        }
        let isKnown = !port.addresses.isEmpty
        for kind in kinds where isKnown || (kind != .ipv4 && kind != .ipv6) { add(guardSet(kind)) }
        add(guardedSet)
        if isKnown { add(knownSet) }
        if kinds.contains(.ipv6) {
          if port.addresses.contains(where: \.isV6LinkLocal) {
            add(localGuardSet)
          } else if !mayRoute {
            add(takenGuardSet)
          }
        }
        add(macSet) { $0.append(port.mac) }
        for address in addresses(of: port) + locals {
          let isV4 = address.family == .v4
          add(isV4 ? v4Set : v6Set) { $0.append(address) }
          add(isV4 ? honest4Set : honest6Set) {
            $0.append(port.mac)
            $0.append(address)
          }
        }
      }
    }
    if elements[takenGuardSet]?.isEmpty == false {
      elements[takenSet] = Set(
        taken(ports, policy).map { address in
          var key = ElementKey()
          key.append(address)
          return (0..<key.count).map { key.bytes[$0] }
        })
    }
    return elements
  }

  /// Link-local addresses that are known to be somebody's.
  private static func taken(_ ports: [DomainUUID: [NetworkPort]], _ policy: AntiSpoofing) -> Set<IPAddress> {
    var taken = policy.reserved
    for port in ports.values.joined() {
      taken.formUnion(port.addresses)
      taken.insert(linkLocalAddress(of: port.mac))
    }
    return taken.filter(\.isV6LinkLocal)
  }

  /// The addresses that a port may use, link-local ones apart: those that are known, and those that its Ethernet address gives in their networks.
  static func addresses(of port: NetworkPort) -> [IPAddress] {
    port.addresses + port.addresses.lazy.filter { $0.family == .v6 }.map { interfaceAddress(of: port.mac, in: $0) }
  }

  private static func linkLocalAddress(of mac: MACAddress) -> IPAddress {
    interfaceAddress(of: mac, in: IPAddress(v6High: 0xFE80_0000_0000_0000, low: 0))
  }

  /// The address that a host makes itself in the /64 of `address` (RFC 4291, appendix A: modified EUI-64).
  private static func interfaceAddress(of mac: MACAddress, in address: IPAddress) -> IPAddress {
    let (top, bottom) = (mac.rawValue >> 24, mac.rawValue & 0xFF_FFFF)
    let identifier = (top << 40 | 0xFF_FE00_0000 | bottom) ^ 0x0200_0000_0000_0000
    return IPAddress(v6High: address.high, low: identifier)
  }
}
