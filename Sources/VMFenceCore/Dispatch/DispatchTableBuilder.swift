/// Checks domains and ports against each other, and lays out what a dispatch table holds. What is wrong is left out and told: one domain with a
/// card that cannot be told apart must not cost any other domain its inspection.
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
  private(set) var mistakes: [DispatchError] = []

  private var byIncarnation: [Incarnation: DispatchMember] = [:]

  init(domains: [DispatchMember], ports: [DispatchPort]) {
    let domains = domainsWithIdentities(domains)
    self.ports = portsWithNumbers(ports)
    let losers = portsWithoutAddress(domains)
    layOutSlots(domains)
    for (index, port) in self.ports.enumerated() {
      switch port.kind {
      case .vif(let incarnation): addVIF(index, owner: incarnation)
      case .bridge(let name): addBridge(index, name, domains, except: losers)
      }
      memberStarts.append(Int32(members.count))
    }
  }

  private mutating func note(
    _ code: DispatchError.Code, _ message: String, _ concerned: [Incarnation] = [], remedy: String
  ) {
    mistakes.append(DispatchError(code, message, remedy: remedy, concerned: concerned))
  }

  // MARK: Who there is

  /// By slot, without those that have none of their own.
  private mutating func domainsWithIdentities(_ domains: [DispatchMember]) -> [DispatchMember] {
    var kept: [DispatchMember] = []
    var byUUID: [DomainUUID: DispatchMember] = [:]
    for member in domains.sorted(by: { $0.slot < $1.slot }) {
      let incarnation = member.domain.incarnation
      guard (0..<DispatchTable.capacity).contains(member.slot) else {
        note(
          .tooLarge,
          "\(Self.name(member)) has the slot \(member.slot), and those from 0 to "
            + "\(DispatchTable.capacity - 1) are there", [incarnation], remedy: "inspect fewer domains on this host")
        continue
      }
      if let last = kept.last, last.slot == member.slot {
        note(
          .duplicateIdentity, "slot \(member.slot) is given to \(Self.name(last)) and to \(Self.name(member))",
          [incarnation], remedy: "give each domain a slot of its own")
        continue
      }
      if let other = byUUID[incarnation.uuid] {
        let isSame = other.domain.incarnation == incarnation
        if isSame || other.domain.dispatchRank == 0 && member.domain.dispatchRank == 0 {
          note(
            .duplicateIdentity, "\(Self.name(other)) and \(Self.name(member)) have one UUID, \(incarnation.uuid)",
            [incarnation], remedy: "give one of them another UUID, or finish the migration")
        }
        if isSame { continue }
      } else {
        byUUID[incarnation.uuid] = member
      }
      byIncarnation[incarnation] = member
      kept.append(member)
    }
    return kept
  }

  /// By number, each number once. Who is over leaves its interface's name to another.
  private mutating func portsWithNumbers(_ ports: [DispatchPort]) -> [DispatchPort] {
    var kept: [DispatchPort] = []
    for port in ports.sorted(by: { $0.id < $1.id }) {
      if case .vif(let owner) = port.kind, byIncarnation[owner] == nil {
        note(
          .unknownOwner, "\(port.id) belongs to \(owner), which is not among the domains",
          remedy: "take the port out together with its domain")
        continue
      }
      guard let last = kept.last, last.id == port.id else {
        if kept.count < DispatchTable.capacity {
          kept.append(port)
        } else {
          note(
            .tooLarge, "\(port.id) is one port more than \(DispatchTable.capacity)",
            remedy: "inspect fewer domains on this host")
        }
        continue
      }
      guard case .vif(let owner) = port.kind, case .vif(let other) = last.kind, owner != other,
        let member = byIncarnation[owner], let holder = byIncarnation[other]
      else {
        note(
          .duplicateIdentity, "\(port.id) is listed twice", remedy: "give each captured interface a number of its own")
        continue
      }
      let (winner, loser) = Self.precedes(member, holder) ? (member, holder) : (holder, member)
      if winner.slot == member.slot { kept[kept.count - 1] = port }
      guard !loser.domain.isOver else { continue }
      note(
        .duplicateIdentity, "\(Self.name(winner)) and \(Self.name(loser)) both name \(port.id) as theirs",
        [loser.domain.incarnation], remedy: "give the interface of one of them another name")
    }
    return kept
  }

  /// A port of a domain, by its place in the list.
  private struct PortReference: Hashable {
    var slot: Int
    var port: Int
  }

  /// Finds ports with an address that no interface can have, and ports on one bridge with one address: then those are returned of the domain that does not
  /// count. Two incarnations of one UUID may share an address while they migrate.
  private mutating func portsWithoutAddress(_ domains: [DispatchMember]) -> Set<PortReference> {
    var holders: [MACAddress: [(member: DispatchMember, port: Int)]] = [:]
    var losers: Set<PortReference> = []
    for member in domains {
      for (index, port) in member.domain.ports.enumerated() {
        guard port.mac.isAssignable else {
          losers.insert(PortReference(slot: member.slot, port: index))
          note(
            .badMAC, "\(Self.name(member)) has the MAC address \(port.mac), which no interface can have",
            [member.domain.incarnation],
            remedy: "give \(port.interface.escapedForDisplay) an address whose first byte is even, not zero throughout")
          continue
        }
        // One of them is enough to lose against, and to be named.
        let other = holders[port.mac, default: []].first { other in
          let bridge = other.member.domain.ports[other.port].bridge
          return other.member.slot != member.slot
            && !losers.contains(PortReference(slot: other.member.slot, port: other.port))
            && (bridge == port.bridge || bridge == nil || port.bridge == nil)
        }
        if let other {
          let wins = Self.precedes(member, other.member)
          losers.insert(
            wins
              ? PortReference(slot: other.member.slot, port: other.port)
              : PortReference(slot: member.slot, port: index))
          noteShared(port.mac, on: port.bridge, wins ? (member, other.member) : (other.member, member))
        }
        holders[port.mac, default: []].append((member, index))
      }
    }
    return losers
  }

  /// That two domains have one address, unless they may.
  private mutating func noteShared(
    _ mac: MACAddress, on bridge: String?, _ pair: (winner: DispatchMember, loser: DispatchMember)
  ) {
    guard pair.winner.domain.incarnation.uuid != pair.loser.domain.incarnation.uuid, !pair.loser.domain.isOver else {
      return
    }
    note(
      .overlappingMAC,
      "\(Self.name(pair.winner)) and \(Self.name(pair.loser)) both have the MAC address \(mac)"
        + (bridge.map { " on bridge \($0.escapedForDisplay)" } ?? ""), [pair.loser.domain.incarnation],
      remedy: "give one of them another address")
  }

  /// Whose a port or an address is that two domains name: the one's that speaks for it now, and of equals the one's that has been here longer.
  private static func precedes(_ a: DispatchMember, _ b: DispatchMember) -> Bool {
    let (first, second) = (a.domain.dispatchRank, b.domain.dispatchRank)
    return first == second ? a.domain.incarnation.domainID < b.domain.incarnation.domainID : first < second
  }

  // MARK: The layout

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

  /// At a domain's own port nobody else's address is looked for, so another may have the same.
  private mutating func addVIF(_ index: Int, owner: Incarnation) {
    guard let member = byIncarnation[owner] else { return owners.append(-1) }
    owners.append(Int32(member.slot))
    for own in member.domain.ports where own.mac.isAssignable {
      entries[Self.key(index, own.mac)] = Int32(member.slot)
    }
  }

  private mutating func addBridge(
    _ index: Int, _ name: String?, _ domains: [DispatchMember], except losers: Set<PortReference>
  ) {
    owners.append(-1)
    var holders: [MACAddress: DispatchMember] = [:]
    for member in domains {
      var isMember = false
      for (number, port) in member.domain.ports.enumerated()
      where (name == nil || port.bridge == nil || port.bridge == name)
        && !losers.contains(PortReference(slot: member.slot, port: number))
      {
        isMember = true
        // Named bridges were compared before; a capture of all bridges sees both domains.
        if let holder = holders[port.mac], holder.slot != member.slot {
          let wins = Self.precedes(member, holder)
          note(
            .overlappingMAC, "\(Self.name(holder)) and \(Self.name(member)) both have the MAC address \(port.mac)",
            [(wins ? holder : member).domain.incarnation],
            remedy: "give one of them another address, or capture each bridge by its name")
          guard wins else { continue }
        }
        holders[port.mac] = member
        entries[Self.key(index, port.mac)] = Int32(member.slot)
      }
      if isMember { members.append(Int32(member.slot)) }
    }
  }

  private static func key(_ index: Int, _ mac: MACAddress) -> UInt64 { UInt64(index) << 48 | mac.rawValue }

  private static func name(_ member: DispatchMember) -> String {
    "domain \(member.domain.name.escapedForDisplay) (\(member.domain.incarnation.domainID))"
  }
}

extension DomainDescription {
  /// What is suspended or over has been left by its guest, whatever the toolstack calls it at the moment.
  fileprivate var isOver: Bool {
    migration == .migratedAway || runState == .suspendedForMigration || runState.isFinal
  }

  /// Who speaks for what two incarnations have in common, the lowest first: the one that is at neither end of a migration; between the ends the one that arrives, as the
  /// other is suspended for good.
  var dispatchRank: Int { isOver ? 2 : migration == .incoming ? 1 : 0 }
}

extension MACAddress {
  /// Whether one interface can have it.
  fileprivate var isAssignable: Bool { !isMulticast && rawValue != 0 }
}
