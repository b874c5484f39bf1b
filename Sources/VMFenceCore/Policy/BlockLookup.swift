/// The blocks and quarantines of a firewall's state, arranged for looking them up per packet: in a replay, to tell which packets a
/// measure in force would have stopped. Immutable; looking up allocates nothing.
public struct BlockLookup: Sendable {
  /// What was compiled: rate limits too, which are never found, since one packet does not tell.
  public let measures: [FirewallMeasure]

  private struct Entry {
    var address: IPAddress
    /// 255 for a quarantine, which is not about an address.
    var prefix: UInt8
    var isHost: Bool
    var domain: DomainUUID
    var expires: Timestamp
    var measure: Int
  }

  private static let quarantine: UInt8 = 255
  /// Open addressing with linear probing, half full at most; -1 is free.
  private var slots: [Int32]
  private var entries: [Entry] = []
  private var v4Prefixes = PrefixCounts(width: 32)
  private var v6Prefixes = PrefixCounts(width: 128)
  private var hasQuarantine = false
  private var hasHostBlock = false
  private var hasDomainBlock = false
  private let hash: KeyedHash

  /// `key`: of the table's hash. Addresses in it come from the network, so in a live system it is secret; what is found
  ///   does not depend on it.
  public init(_ state: FirewallState, key: (UInt64, UInt64)) {
    measures = state.measures
    hash = KeyedHash(key: key)
    var size = 16
    while size < 2 * measures.count { size *= 2 }
    slots = Array(repeating: -1, count: size)
    for (index, measure) in measures.enumerated() { insert(measure, index) }
  }

  public var isEmpty: Bool { entries.isEmpty }

  /// The measure that stops a packet of this domain at `time`: the position in `measures`, or nil. A block stops what
  /// comes from its network and what goes there.
  public func find(
    domain: DomainUUID, source: IPAddress, destination: IPAddress, at time: Timestamp
  ) -> Int? {
    if entries.isEmpty { return nil }
    if hasQuarantine, let found = find(.anyV4, Self.quarantine, domain, time) { return found }
    return find(source, domain, time) ?? find(destination, domain, time)
  }

  private func find(_ address: IPAddress, _ domain: DomainUUID, _ time: Timestamp) -> Int? {
    let prefixes = address.family == .v4 ? v4Prefixes.inUse : v6Prefixes.inUse
    for prefix in prefixes {
      let base = address.masked(prefix: prefix)
      if hasDomainBlock, let found = find(base, UInt8(prefix), domain, time) { return found }
      if hasHostBlock, let found = find(base, UInt8(prefix), nil, time) { return found }
    }
    return nil
  }

  private func find(_ base: IPAddress, _ prefix: UInt8, _ domain: DomainUUID?, _ time: Timestamp) -> Int? {
    let domainOrHost = domain ?? DomainUUID(high: 0, low: 0)
    var slot = hash(base, prefix, domainOrHost) & (slots.count - 1)
    while slots[slot] >= 0 {
      let entry = entries[Int(slots[slot])]
      if entry.address == base, entry.prefix == prefix, entry.isHost == (domain == nil), entry.domain == domainOrHost {
        return time < entry.expires ? entry.measure : nil
      }
      slot = (slot + 1) & (slots.count - 1)
    }
    return nil
  }

  private mutating func insert(_ measure: FirewallMeasure, _ index: Int) {
    var entry = Entry(
      address: .anyV4, prefix: Self.quarantine, isHost: measure.key.scope == .host,
      domain: DomainUUID(high: 0, low: 0), expires: measure.expires ?? Timestamp(nanoseconds: .max), measure: index)
    if case .domain(let uuid) = measure.key.scope { entry.domain = uuid }
    switch measure.key.kind {
    case .rateLimit: return
    case .quarantine:
      guard !entry.isHost else { return }
      hasQuarantine = true
    case .block(let network):
      if entry.isHost { hasHostBlock = true } else { hasDomainBlock = true }
      entry.address = network.base
      entry.prefix = network.prefix
      if network.base.family == .v4 {
        v4Prefixes.add(1, Int(network.prefix))
      } else {
        v6Prefixes.add(1, Int(network.prefix))
      }
    }
    var slot = hash(entry.address, entry.prefix, entry.domain) & (slots.count - 1)
    while slots[slot] >= 0 { slot = (slot + 1) & (slots.count - 1) }
    slots[slot] = Int32(entries.count)
    entries.append(entry)
  }

  private func hash(_ address: IPAddress, _ prefix: UInt8, _ domain: DomainUUID) -> Int {
    let form = UInt64(prefix) << 8 | UInt64(address.family.rawValue)
    return Int(
      truncatingIfNeeded: hash.hash(address.high, address.low, form, domain.high, domain.low, 0) >> 1)
  }
}
