/// A domain that frames are dispatched to.
public struct DispatchMember: Hashable, Sendable {
  /// The number under which the dispatcher names the domain: small, chosen by the caller (the index of its ring, say).
  public var slot: Int
  public var domain: DomainDescription

  public init(slot: Int, domain: DomainDescription) {
    self.slot = slot
    self.domain = domain
  }
}

/// A place where frames are captured.
public struct DispatchPort: Hashable, Sendable {
  public enum Kind: Hashable, Sendable {
    /// A port of one domain: whatever passes it, that domain sent or is about to receive.
    case vif(owner: Incarnation)
    /// A whole bridge, the degraded mode: whose a frame is, only its addresses say. All domains with a port on the bridge of this
    /// name belong to it, and those whose bridge is not known; with nil, all domains.
    case bridge(String?)
  }

  public var id: PortID
  public var kind: Kind

  public init(id: PortID, kind: Kind) {
    self.id = id
    self.kind = kind
  }
}

/// What is wrong with domains and ports of which a dispatch table is made.
public struct DispatchError: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    /// Two domains on one bridge with one MAC address.
    public static let overlappingMAC = Code("overlapping-mac")
    /// A domain's MAC address is zero or a group address.
    public static let badMAC = Code("bad-mac")
    /// One incarnation, one slot or one port twice, or one UUID twice outside a migration.
    public static let duplicateIdentity = Code("duplicate-identity")
    /// A port whose owner is not among the domains.
    public static let unknownOwner = Code("unknown-owner")
    public static let tooLarge = Code("too-large")
  }

  public var code: Code
  public var message: String
  public var place: SourcePlace? { nil }
  public var remedy: String
  /// The domains that lose something by it: frames at one of their ports are not theirs, or not found to be.
  public var concerned: [Incarnation]

  public init(_ code: Code, _ message: String, remedy: String, concerned: [Incarnation] = []) {
    self.code = code
    self.message = message
    self.remedy = remedy
    self.concerned = concerned
  }
}

/// Which domain a frame concerns, by the port where it was captured and its MAC addresses: an immutable snapshot, made anew whenever
/// a domain or a port comes or goes, and handed to the dispatching threads whole (`DispatchTablePublisher`).
public struct DispatchTable: Sendable {
  /// Slots and ports at the most.
  public static let capacity = 65_535

  // Open addressing with linear probing, at most half full. A key is a port's index (16 bits) and a MAC address (48 bits).
  @usableFromInline let macKeys: [UInt64]
  @usableFromInline let macSlots: [Int32]
  @usableFromInline let hash: KeyedHash
  @usableFromInline static let emptyKey = UInt64.max

  /// Port identifiers, ascending, and by the same index each port's owner (-1: a bridge) and the range of its members.
  @usableFromInline let portIDs: [UInt32]
  @usableFromInline let owners: [Int32]
  @usableFromInline let memberStarts: [Int32]
  @usableFromInline let members: [Int32]

  /// By slot: which address families are checked (bit 0: IPv4, bit 1: IPv6), and who it is.
  @usableFromInline let checkedFamilies: [UInt8]
  let identities: [Identity?]
  let addresses: AddressSet

  struct Identity: Hashable, Sendable {
    var incarnation: Incarnation
    var name: String
  }

  /// Slots are below this.
  public var slotCount: Int { identities.count }

  /// A table of nothing: every port is unknown.
  public static let empty = DispatchTable()

  private init() {
    hash = KeyedHash(key: (0, 0))
    macKeys = [Self.emptyKey]
    macSlots = [-1]
    portIDs = []
    owners = []
    memberStarts = [0]
    members = []
    checkedFamilies = []
    identities = []
    addresses = AddressSet([], hash: hash)
  }

  /// `key`: seeds the table's hash, so that a guest cannot choose addresses that collide.
  /// - Throws: when it is not clear to whom a frame would belong; the message names both claimants.
  public init(
    members domains: [DispatchMember], ports: [DispatchPort], key: (UInt64, UInt64)
  ) throws(DispatchError) {
    var mistakes: [DispatchError] = []
    self.init(members: domains, ports: ports, key: key, leavingOut: &mistakes)
    if let first = mistakes.first { throw first }
  }

  /// The same for a live host, where whoever names one domain's card must not cost all others their inspection: what is wrong is left out, and nothing else.
  ///
  /// Of two domains that name one interface, or on a captured bridge have one address, the one with the lower number keeps it. Who is over, or was migrated away,
  /// leaves both to any other, which is no mistake.
  ///
  /// - `mistakes`: gets what is wrong, the same for the same domains.
  public init(
    members domains: [DispatchMember], ports: [DispatchPort], key: (UInt64, UInt64),
    leavingOut mistakes: inout [DispatchError]
  ) {
    let builder = DispatchTableBuilder(domains: domains, ports: ports)
    mistakes += builder.mistakes
    hash = KeyedHash(key: key)
    identities = builder.identities
    portIDs = builder.ports.map(\.id.rawValue)
    owners = builder.owners
    memberStarts = builder.memberStarts
    members = builder.members
    checkedFamilies = builder.checkedFamilies
    addresses = AddressSet(builder.addresses, hash: hash)

    let size = Self.tableSize(for: builder.entries.count)
    var keys = [UInt64](repeating: Self.emptyKey, count: size)
    var slots = [Int32](repeating: -1, count: size)
    for (entry, slot) in builder.entries {
      var index = Int(truncatingIfNeeded: hash.hash(entry)) & (size - 1)
      while keys[index] != Self.emptyKey { index = (index + 1) & (size - 1) }
      keys[index] = entry
      slots[index] = slot
    }
    macKeys = keys
    macSlots = slots
  }

  /// A power of two, at least twice `count`.
  static func tableSize(for count: Int) -> Int {
    var size = 2
    while size < count * 2 { size *= 2 }
    return size
  }

  /// The domain that `mac` belongs to at the port of this index, or -1. Always inlined, as a call would copy the table's fields.
  @inlinable @inline(__always)
  func slot(port: Int, mac: MACAddress) -> Int {
    let key = UInt64(truncatingIfNeeded: port) << 48 | mac.rawValue
    let mask = macKeys.count &- 1
    var index = Int(truncatingIfNeeded: hash.hash(key)) & mask
    while macKeys[index] != Self.emptyKey {
      if macKeys[index] == key { return Int(macSlots[index]) }
      index = (index &+ 1) & mask
    }
    return -1
  }

  /// Whether what is captured at `port` and sent from or to `mac` is a domain's.
  public func leads(_ mac: MACAddress, at port: PortID, to domain: Incarnation) -> Bool {
    let index = portIndex(port)
    guard index >= 0 else { return false }
    let slot = slot(port: index, mac: mac)
    return slot >= 0 && identities[slot]?.incarnation == domain && (owners[index] < 0 || owners[index] == Int32(slot))
  }

  /// The index of a port, or -1.
  @usableFromInline
  func portIndex(_ port: PortID) -> Int {
    var low = 0
    var high = portIDs.count
    while low < high {
      let middle = (low + high) / 2
      if portIDs[middle] < port.rawValue { low = middle + 1 } else { high = middle }
    }
    return low < portIDs.count && portIDs[low] == port.rawValue ? low : -1
  }
}

/// Which addresses a slot may use as its own.
struct AddressSet: Sendable {
  private let keys: [IPAddress]
  /// -1: empty.
  private let slots: [Int32]
  private let hash: KeyedHash

  init(_ entries: [(slot: Int32, address: IPAddress)], hash: KeyedHash) {
    let size = DispatchTable.tableSize(for: entries.count)
    var keys = [IPAddress](repeating: .anyV4, count: size)
    var slots = [Int32](repeating: -1, count: size)
    for (slot, address) in entries {
      var index = Int(truncatingIfNeeded: hash.hash(address) &+ UInt64(slot)) & (size - 1)
      while slots[index] >= 0 { index = (index + 1) & (size - 1) }
      keys[index] = address
      slots[index] = slot
    }
    self.keys = keys
    self.slots = slots
    self.hash = hash
  }

  func contains(_ address: IPAddress, of slot: Int) -> Bool {
    let mask = keys.count - 1
    var index = Int(truncatingIfNeeded: hash.hash(address) &+ UInt64(slot)) & mask
    while slots[index] >= 0 {
      if keys[index] == address, Int(slots[index]) == slot { return true }
      index = (index + 1) & mask
    }
    return false
  }
}
