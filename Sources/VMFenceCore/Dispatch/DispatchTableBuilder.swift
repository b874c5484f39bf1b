/// Checks domains and ports against each other, and lays out what a dispatch table holds.
struct DispatchTableBuilder {
  private(set) var identities: [DispatchTable.Identity?] = []
  private(set) var ports: [DispatchPort] = []
  private(set) var owners: [Int32] = []
  private(set) var memberStarts: [Int32] = [0]
  private(set) var members: [Int32] = []
  private(set) var checkedFamilies: [UInt8] = []
  private(set) var addresses: [(slot: Int32, address: IPAddress)] = []
  /// Port index and MAC address → slot; every key once.
  private(set) var entries: [UInt64: Int32] = [:]

  init(domains: [DispatchMember], ports: [DispatchPort]) throws(DispatchError) {
    let domains = domains.sorted { $0.slot < $1.slot }
    self.ports = ports.sorted { $0.id < $1.id }
    try checkIdentities(domains)
    let losers = try shadowedPorts(domains)
    layOutSlots(domains)
    for (index, port) in self.ports.enumerated() {
      switch port.kind {
      case .vif(let incarnation): try addVIF(index, port, owner: incarnation, domains)
      case .bridge(let name): try addBridge(index, name, domains, except: losers)
      }
      memberStarts.append(Int32(members.count))
    }
  }

  private func checkIdentities(_ domains: [DispatchMember]) throws(DispatchError) {
    guard domains.count <= DispatchTable.capacity, ports.count <= DispatchTable.capacity,
      domains.allSatisfy({ (0..<DispatchTable.capacity).contains($0.slot) })
    else {
      throw DispatchError(
        .tooLarge, "more than \(DispatchTable.capacity) domains or ports, or a slot beyond that",
        remedy: "inspect fewer domains on this host")
    }
    for (a, b) in zip(domains, domains.dropFirst()) where a.slot == b.slot {
      throw DispatchError(
        .duplicateIdentity, "slot \(a.slot) is given to \(Self.name(a)) and to \(Self.name(b))",
        remedy: "give each domain a slot of its own")
    }
    for (a, b) in zip(ports, ports.dropFirst()) where a.id == b.id {
      throw DispatchError(
        .duplicateIdentity, "\(a.id) is listed twice", remedy: "give each captured interface a number of its own")
    }
    var seen: [DomainUUID: DispatchMember] = [:]
    for member in domains {
      let incarnation = member.domain.incarnation
      if let other = seen.updateValue(member, forKey: incarnation.uuid) {
        guard other.domain.incarnation != incarnation,
          Self.rank(other.domain) > 0 || Self.rank(member.domain) > 0
        else {
          throw DispatchError(
            .duplicateIdentity, "\(Self.name(other)) and \(Self.name(member)) have one UUID, \(incarnation.uuid)",
            remedy: "give one of them another UUID, or finish the migration")
        }
      }
      for port in member.domain.ports where port.mac.isMulticast || port.mac.rawValue == 0 {
        throw DispatchError(
          .badMAC, "\(Self.name(member)) has the MAC address \(port.mac), which no interface can have",
          remedy: "give \(port.interface.escapedForDisplay) an address whose first byte is even, not zero throughout")
      }
    }
  }

  /// A port of a domain, by its place in the list.
  private struct PortReference: Hashable {
    var slot: Int
    var port: Int
  }

  /// Finds ports on one bridge with one MAC address. Two incarnations of one UUID may share it while they migrate: the ports that
  /// are returned are those of the one that does not count.
  private func shadowedPorts(_ domains: [DispatchMember]) throws(DispatchError) -> Set<PortReference> {
    var holders: [MACAddress: [(member: DispatchMember, port: Int)]] = [:]
    var losers: Set<PortReference> = []
    for member in domains {
      for (index, port) in member.domain.ports.enumerated() {
        for other in holders[port.mac, default: []] where other.member.slot != member.slot {
          let bridge = other.member.domain.ports[other.port].bridge
          guard bridge == port.bridge || bridge == nil || port.bridge == nil else { continue }
          guard other.member.domain.incarnation.uuid == member.domain.incarnation.uuid else {
            throw DispatchError(
              .overlappingMAC,
              "\(Self.name(other.member)) and \(Self.name(member)) both have the MAC address \(port.mac)"
                + (port.bridge.map { " on bridge \($0.escapedForDisplay)" } ?? ""),
              remedy: "give one of them another address")
          }
          let memberWins = Self.rank(member.domain) < Self.rank(other.member.domain)
          losers.insert(
            memberWins
              ? PortReference(slot: other.member.slot, port: other.port)
              : PortReference(slot: member.slot, port: index))
        }
        holders[port.mac, default: []].append((member, index))
      }
    }
    return losers
  }

  /// Who speaks for a UUID during a migration: the one that is at neither end; between the ends the one that arrives, as the other is suspended for good.
  /// What is suspended or over is left by its guest, whatever the toolstack calls it at the moment.
  private static func rank(_ domain: DomainDescription) -> Int {
    if domain.migration == .migratedAway || domain.runState == .suspendedForMigration || domain.runState.isFinal {
      return 2
    }
    return domain.migration == .incoming ? 1 : 0
  }

  private mutating func layOutSlots(_ domains: [DispatchMember]) {
    let count = (domains.last?.slot ?? -1) + 1
    identities = Array(repeating: nil, count: count)
    checkedFamilies = Array(repeating: 0, count: count)
    for member in domains {
      identities[member.slot] = DispatchTable.Identity(
        incarnation: member.domain.incarnation, name: member.domain.name)
      // A port whose addresses are not known may use any; then nothing can be said of the domain.
      guard member.domain.ports.allSatisfy({ !$0.addresses.isEmpty }) else { continue }
      for address in Set(member.domain.ports.flatMap(\.addresses)).sorted() {
        checkedFamilies[member.slot] |= address.family == .v4 ? 1 : 2
        addresses.append((Int32(member.slot), address))
      }
    }
  }

  private mutating func addVIF(
    _ index: Int, _ port: DispatchPort, owner: Incarnation, _ domains: [DispatchMember]
  ) throws(DispatchError) {
    guard let member = domains.first(where: { $0.domain.incarnation == owner }) else {
      throw DispatchError(
        .unknownOwner, "\(port.id) belongs to \(owner), which is not among the domains",
        remedy: "take the port out together with its domain")
    }
    owners.append(Int32(member.slot))
    for own in member.domain.ports { entries[Self.key(index, own.mac)] = Int32(member.slot) }
  }

  private mutating func addBridge(
    _ index: Int, _ name: String?, _ domains: [DispatchMember], except losers: Set<PortReference>
  ) throws(DispatchError) {
    owners.append(-1)
    for member in domains {
      var isMember = false
      for (number, port) in member.domain.ports.enumerated()
      where (name == nil || port.bridge == nil || port.bridge == name)
        && !losers.contains(PortReference(slot: member.slot, port: number))
      {
        isMember = true
        // Named bridges were compared before; a capture of all bridges sees both domains.
        let other = entries.updateValue(Int32(member.slot), forKey: Self.key(index, port.mac))
        if let other, Int(other) != member.slot, let holder = domains.first(where: { $0.slot == Int(other) }) {
          throw DispatchError(
            .overlappingMAC, "\(Self.name(holder)) and \(Self.name(member)) both have the MAC address \(port.mac)",
            remedy: "give one of them another address, or capture each bridge by its name")
        }
      }
      if isMember { members.append(Int32(member.slot)) }
    }
  }

  private static func key(_ index: Int, _ mac: MACAddress) -> UInt64 { UInt64(index) << 48 | mac.rawValue }

  private static func name(_ member: DispatchMember) -> String {
    "domain \(member.domain.name.escapedForDisplay) (\(member.domain.incarnation.domainID))"
  }
}
