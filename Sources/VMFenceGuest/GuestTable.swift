import VMFenceCore

/// The table as a policy makes it:
///
/// ```
/// table inet vmfence_guest
///   set block4_32, block6_64 …   blocked networks, a set for each family and prefix length
///   set quarantine, limited      the address families for which it stands: so that both end by themselves
///   chain about                  called by nobody: its one rule has the policy's record
///   chain from, to               drop what has a blocked source or destination
///   chain isolated               quarantine: returns for exceptions, drops everything else
///   chain input, forward, output (hooks)
/// ```
struct GuestTable {
  static let name = "vmfence_guest"
  /// Every table of ours has these.
  static let fixedSets = ["quarantine", "limited"]
  /// Before what people write by hand (0), so that our counters see it. Whatever another table accepts, a drop here holds.
  static let priority: Int32 = -10
  /// AF_INET and AF_INET6, as `meta nfproto` has them.
  private static let families: [UInt8] = [2, 10]
  private static let ipv4: UInt8 = 2
  private static let ipv6: UInt8 = 10

  let policy: GuestPolicy
  let record: PolicyRecord
  /// With what is left of each one's time, in milliseconds; 0 when it has no end.
  let measures: [(measure: GuestPolicy.Measure, timeout: UInt64)]

  /// - `hostTime`: Dom0's clock, by which is told what is left of a measure's time.
  init(_ policy: GuestPolicy, at now: Timestamp, hostTime: Timestamp) {
    self.policy = policy
    var standing: [(measure: GuestPolicy.Measure, timeout: UInt64)] = []
    for measure in policy.measures {
      let left = policy.remaining(of: measure, at: hostTime)?.wholeNanoseconds
      if let left, left <= 0 { continue }
      standing.append((measure, left.map { UInt64(($0 - 1) / 1_000_000 + 1) } ?? 0))
    }
    measures = standing
    record = PolicyRecord(policy, appliedAt: now)
  }

  // MARK: Writing

  /// Writes the messages that put this table in the place of one that is there or not.
  func write(to writer: inout NetlinkWriter) {
    Self.writeRemoval(to: &writer)
    writer.message(.newTable, flags: NetlinkWriter.Flag.create) { $0.attribute(1, Self.name) }
    let sets = blockSets
    for (index, set) in sets.enumerated() {
      addSet(set.name, key: set.key, id: UInt32(index + 1), to: &writer)
    }
    for (index, set) in Self.fixedSets.enumerated() {
      addSet(set, key: .family, id: UInt32(sets.count + index + 1), to: &writer)
    }
    for chain in ["about", "from", "to", "isolated"] { addChain(chain, hook: nil, to: &writer) }
    for (hook, chain) in ["input", "forward", "output"].enumerated() {
      addChain(chain, hook: UInt32(hook + 1), to: &writer)
    }
    rule("about", "VMFence policy \(record.version)", record: record.encoded, to: &writer) { $0.verdict(.return) }
    for set in sets { writeRules(of: set, to: &writer) }
    writeIsolation(to: &writer)
    writeHooks(to: &writer)
    for set in sets {
      addElements(set.name, set.measures.map { (address($0.network.base), $0.measure, $0.timeout) }, to: &writer)
    }
    for (measure, timeout) in measures {
      let elements = Self.families.map { (key: [$0], measure: measure, timeout: timeout) }
      if measure.kind == .quarantine { addElements("quarantine", elements, to: &writer) }
      if case .rateLimit = measure.kind { addElements("limited", elements, to: &writer) }
    }
  }

  /// Deleting what is not there would fail, so it is made first.
  static func writeRemoval(to writer: inout NetlinkWriter) {
    writer.message(.newTable, flags: NetlinkWriter.Flag.create) { $0.attribute(1, name) }
    writer.message(.deleteTable) { $0.attribute(1, name) }
  }

  private func rule(
    _ chain: String, _ comment: String, record: [UInt8] = [], to writer: inout NetlinkWriter,
    _ body: (inout NetlinkWriter) -> Void
  ) {
    writer.rule(table: Self.name, chain: chain, comment: comment, record: record, body)
  }

  private func addChain(_ chain: String, hook: UInt32?, to writer: inout NetlinkWriter) {
    writer.message(.newChain, flags: NetlinkWriter.Flag.create) { writer in
      writer.attribute(1, Self.name)
      writer.attribute(3, chain)
      guard let hook else { return }
      writer.nest(4) { writer in
        writer.attribute(1, hook)
        writer.attribute(2, Self.priority)
      }
      writer.attribute(5, UInt32(1))
      writer.attribute(7, "filter")
    }
  }

  // MARK: Sets

  /// What the keys of a set are, with nft(8)'s number for their type and their length in bytes.
  private enum Key {
    case v4, v6, family

    var type: (number: UInt32, length: UInt32) {
      switch self {
      case .v4: (7, 4)
      case .v6: (8, 16)
      case .family: (2, 1)
      }
    }
  }

  /// Blocks of one family and prefix length.
  private struct BlockSet {
    var network: IPNetwork
    var measures: [(network: IPNetwork, measure: GuestPolicy.Measure, timeout: UInt64)]

    var family: IPAddress.Family { network.base.family }
    var prefix: Int { Int(network.prefix) }
    var key: Key { family == .v4 ? .v4 : .v6 }
    var name: String { "block\(family.rawValue)_\(prefix)" }
  }

  /// In canonical order, blocks of one family and prefix length come one after another.
  private var blockSets: [BlockSet] {
    var sets: [BlockSet] = []
    for (measure, timeout) in measures {
      guard case .block(let network) = measure.kind else { continue }
      if sets.last?.family != network.base.family || sets.last?.prefix != Int(network.prefix) {
        sets.append(BlockSet(network: network, measures: []))
      }
      sets[sets.count - 1].measures.append((network, measure, timeout))
    }
    return sets
  }

  private func addSet(_ name: String, key: Key, id: UInt32, to writer: inout NetlinkWriter) {
    let timeouts: UInt32 = 0x10
    writer.message(.newSet, flags: NetlinkWriter.Flag.create) { writer in
      writer.attribute(1, Self.name)
      writer.attribute(2, name)
      writer.attribute(3, timeouts)
      writer.attribute(4, key.type.number)
      writer.attribute(5, key.type.length)
      writer.attribute(10, id)
    }
  }

  private func addElements(
    _ set: String, _ elements: [(key: [UInt8], measure: GuestPolicy.Measure, timeout: UInt64)],
    to writer: inout NetlinkWriter
  ) {
    writer.message(.newElements, flags: NetlinkWriter.Flag.create) { writer in
      writer.attribute(1, Self.name)
      writer.attribute(2, set)
      writer.nest(3) { list in
        for (key, measure, timeout) in elements {
          list.nest(1) { item in
            item.nest(1) { $0.attribute(1, key) }
            if timeout != 0 { item.attribute(4, timeout) }
            let words = measure.comment.isEmpty ? "" : "\(measure.comment) "
            item.attribute(
              6,
              UserData.encode(
                comment: "\(words)decision \(measure.decision)", record: MeasureRecord(measure).encoded))
          }
        }
      }
    }
  }

  private func address(_ address: IPAddress) -> [UInt8] {
    var bytes: [UInt8] = []
    if address.family == .v4 {
      bytes.append(big: UInt32(address.low))
    } else {
      bytes.append(big: address.high)
      bytes.append(big: address.low)
    }
    return bytes
  }

  // MARK: Rules

  private func isFamily(_ family: UInt8, _ writer: inout NetlinkWriter) {
    writer.meta(.family)
    writer.equal([family])
  }

  /// Loads a packet's address as far as a prefix goes.
  private func load(_ family: IPAddress.Family, isSource: Bool, prefix: Int, _ writer: inout NetlinkWriter) {
    isFamily(family == .v4 ? Self.ipv4 : Self.ipv6, &writer)
    let length = family.bitWidth / 8
    let start = family == .v4 ? 12 : 8
    writer.payload(.network, offset: UInt32(isSource ? start : start + length), length: UInt32(length))
    guard prefix < family.bitWidth else { return }
    writer.mask((0..<length).map { UInt8(truncatingIfNeeded: 0xFF00 >> min(8, max(0, prefix - 8 * $0))) })
  }

  private func writeRules(of set: BlockSet, to writer: inout NetlinkWriter) {
    for isSource in [true, false] {
      rule(isSource ? "from" : "to", set.name, to: &writer) { writer in
        load(set.family, isSource: isSource, prefix: set.prefix, &writer)
        writer.lookup(set.name)
        writer.counter()
        writer.verdict(.drop)
      }
    }
  }

  private func writeIsolation(to writer: inout NetlinkWriter) {
    let exceptions = policy.exceptions
    if exceptions.networks.contains(where: { $0.base.family == .v6 }) {
      // RFC 4861: router and neighbour solicitations and advertisements.
      for type in UInt8(133)...136 {
        allow("neighbour discovery \(type)", family: Self.ipv6, transport: 58, field: 0, value: [type], to: &writer)
      }
    }
    if exceptions.allowsDHCP {
      for port in UInt8(67)...68 {
        allow("DHCP to port \(port)", family: Self.ipv4, transport: 17, field: 2, value: [0, port], to: &writer)
      }
    }
    for network in exceptions.networks {
      for isSource in [true, false] {
        rule("isolated", "exception \(isSource ? "from" : "to") \(network)", to: &writer) { writer in
          load(network.base.family, isSource: isSource, prefix: Int(network.prefix), &writer)
          writer.equal(address(network.base))
          writer.verdict(.return)
        }
      }
    }
    rule("isolated", "everything else", to: &writer) { writer in
      writer.counter()
      writer.verdict(.drop)
    }
  }

  private func allow(
    _ comment: String, family: UInt8, transport: UInt8, field: UInt32, value: [UInt8], to writer: inout NetlinkWriter
  ) {
    rule("isolated", comment, to: &writer) { writer in
      isFamily(family, &writer)
      writer.meta(.transportProtocol)
      writer.equal([transport])
      writer.payload(.transport, offset: field, length: UInt32(value.count))
      writer.equal(value)
      writer.verdict(.return)
    }
  }

  private func writeHooks(to writer: inout NetlinkWriter) {
    for chain in ["input", "forward", "output"] {
      if chain != "forward" {
        rule(chain, "this machine itself", to: &writer) { writer in
          writer.meta(chain == "input" ? .inputInterface : .outputInterface)
          writer.equal(Array("lo".utf8) + [UInt8](repeating: 0, count: 14))
          writer.verdict(.return)
        }
      }
      rule(chain, "quarantine", to: &writer) { writer in
        writer.meta(.family)
        writer.lookup("quarantine")
        writer.verdict(.jump("isolated"))
      }
      if chain != "output" { rule(chain, "blocked sources", to: &writer) { $0.verdict(.jump("from")) } }
      if chain != "input" { rule(chain, "blocked destinations", to: &writer) { $0.verdict(.jump("to")) } }
    }
    for case .rateLimit(let rate) in measures.map(\.measure.kind) {
      for chain in ["forward", "output"] {
        rule(chain, "limit of \(rate) packets a second", to: &writer) { writer in
          writer.meta(.family)
          writer.lookup("limited")
          writer.exceeds(packetsPerSecond: rate)
          writer.counter()
          writer.verdict(.drop)
        }
      }
    }
  }
}
