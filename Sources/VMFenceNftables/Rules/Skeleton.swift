import VMFenceCore

/// What the table is made of besides its elements.
struct Skeleton {
  /// Between bridge tools' own filter (-200) and what people write by hand (0). An `accept` of another table does not open what a later
  /// one drops, so the order decides only who counts a packet first.
  static let priority: Int32 = -100

  var chains: [ChainSpecification]
  var sets: [SetSpecification]
  var rules: [RuleSpecification]

  /// - `groups`: the rules that are not always there, in the order in which they came.
  init(_ configuration: NftablesSink.Configuration, groups: [RuleGroup]) {
    chains = [
      ChainSpecification(name: "quarantine"), ChainSpecification(name: "block4"), ChainSpecification(name: "block6"),
      ChainSpecification(name: BlockSet.arpChain),
      ChainSpecification(name: "prerouting", base: .init(hook: .prerouting, priority: Self.priority)),
      ChainSpecification(name: "forward", base: .init(hook: .forward, priority: Self.priority)),
      ChainSpecification(name: "input", base: .init(hook: .input, priority: Self.priority)),
      ChainSpecification(name: "output", base: .init(hook: .output, priority: Self.priority)),
    ]
    sets = [
      SetSpecification(
        name: SetName.quarantine.description, kind: .verdicts, fields: [.interface], hasTimeouts: true)
    ]
    sets += (0..<SetName.limitSlots).map {
      SetSpecification(name: SetName.limit($0).description, kind: .limits, fields: [.interface], hasTimeouts: true)
    }
    let others = groups.compactMap(\.blockSet).filter { !BlockSet.first.contains($0) }
    sets += (BlockSet.first + others).map(\.specification) + SpoofingRules.sets + FlowRules.sets
    chains += SpoofingRules.chains + FlowRules.chains
    rules = SpoofingRules.rules + FlowRules.rules + Self.quarantine(configuration.quarantineExceptions)
    rules += Self.blockLookups("forward")
    if configuration.protectsHost { rules += Self.blockLookups("input") + Self.blockLookups("output") }
    rules += groups.flatMap(\.rules)
  }

  private static func blockLookups(_ chain: String) -> [RuleSpecification] {
    [
      (Expression.ipv4EtherType, "block4"), (Expression.ipv6EtherType, "block6"),
      (Expression.arpEtherType, BlockSet.arpChain),
    ].map { type, name in RuleSpecification(chain, name, Expression.isEtherType(type) + [.verdict(.jump(name))]) }
  }

  private static func quarantine(_ exceptions: QuarantineExceptions) -> [RuleSpecification] {
    let chain = "quarantine"
    var rules: [RuleSpecification] = []
    let families = Set(exceptions.networks.map(\.base.family))
    if families.contains(.v4) || exceptions.allowsDHCP {
      rules.append(
        RuleSpecification(chain, "ARP", Expression.isEtherType(Expression.arpEtherType) + [.verdict(.return)]))
    }
    if families.contains(.v6) {
      // RFC 4861: router and neighbour solicitations and advertisements.
      for type in UInt8(133)...136 {
        rules.append(
          RuleSpecification(
            chain, "neighbour discovery \(type)",
            Expression.isEtherType(Expression.ipv6EtherType) + [
              .meta(.transportProtocol, Register(0)), .equal(Register(0), [58]),
              .payload(.transport, offset: 0, length: 1, Register(0)), .equal(Register(0), [type]), .verdict(.return),
            ]))
      }
    }
    if exceptions.allowsDHCP {
      for port in UInt8(67)...68 {
        rules.append(
          RuleSpecification(
            chain, "DHCP to port \(port)",
            Expression.isEtherType(Expression.ipv4EtherType) + [
              .meta(.transportProtocol, Register(0)), .equal(Register(0), [17]),
              .payload(.transport, offset: 2, length: 2, Register(0)), .equal(Register(0), [0, port]),
              .verdict(.return),
            ]))
      }
    }
    for network in exceptions.networks { rules += exception(network, chain) }
    rules.append(RuleSpecification(chain, "everything else", [.counter, .verdict(.drop)]))
    return rules
  }

  private static func exception(_ network: IPNetwork, _ chain: String) -> [RuleSpecification] {
    var key = ElementKey()
    key.append(network.base)
    let address = (0..<key.count).map { key.bytes[$0] }
    let mask = address.indices.map { index in
      UInt8(truncatingIfNeeded: 0xFF00 >> Swift.min(8, Swift.max(0, Int(network.prefix) - 8 * index)))
    }
    let type = network.base.family == .v4 ? Expression.ipv4EtherType : Expression.ipv6EtherType
    return [true, false].map { isSource in
      RuleSpecification(
        chain, "exception \(isSource ? "from" : "to") \(network)",
        Expression.isEtherType(type) + [
          .address(network.base.family, isSource: isSource, Register(0)), .mask(Register(0), mask),
          .equal(Register(0), address), .verdict(.return),
        ])
    }
  }
}

/// Rules that are in the table only from when the first measure needs them, until it is made anew: each frame that passes the bridge pays for every
/// rule that it meets, those that look something up in an empty set included.
enum RuleGroup: Hashable, Sendable {
  case blocks(BlockSet)
  case quarantine
  /// A slot of rate limits.
  case limit(Int)
  case flows(IPAddress.Family)

  init(_ set: SetName) {
    switch set {
    case .blocks(let blocks): self = .blocks(blocks)
    case .quarantine: self = .quarantine
    case .limit(let slot): self = .limit(slot)
    }
  }

  var blockSet: BlockSet? {
    if case .blocks(let set) = self { set } else { nil }
  }

  var rules: [RuleSpecification] {
    switch self {
    case .blocks(let set): return set.rules
    case .quarantine:
      return [("forward", false), ("forward", true), ("input", true), ("output", false)].map { chain, isFrom in
        RuleSpecification(
          chain, isFrom ? Self.quarantineFrom : Self.quarantineTo,
          [
            .meta(isFrom ? .inputInterface : .outputInterface, Register(0)),
            .verdictMap(Register(0), set: SetName.quarantine.description),
          ])
      }
    case .limit(let slot):
      // Limits count each packet once: in forward, a flooded frame passes for each port it goes out of.
      let name = SetName.limit(slot).description
      return [
        RuleSpecification(
          "prerouting", name,
          [.meta(.inputInterface, Register(0)), .limitMap(Register(0), set: name), .counter, .verdict(.drop)])
      ]
    case .flows(let family):
      // In this hook only: resets are sent from the host's side.
      let (type, name) = (family == .v4 ? Expression.ipv4EtherType : Expression.ipv6EtherType, FlowRules.set(family))
      return [RuleSpecification("forward", name, Expression.isEtherType(type) + [.verdict(.jump(name))])]
    }
  }

  private static let quarantineFrom = "quarantine from"
  private static let quarantineTo = "quarantine to"

  /// The group that a rule begins, by its chain and its comment; nil for a rule of none, and for a group's further rules.
  init?(chain: String, comment: String) {
    switch chain {
    case "block4", "block6":
      guard let name = comment.split(separator: " ").first, let set = BlockSet(name: String(name)) else { return nil }
      self = .blocks(set)
    case "prerouting":
      guard let slot = (0..<SetName.limitSlots).first(where: { SetName.limit($0).description == comment }) else {
        return nil
      }
      self = .limit(slot)
    case "forward":
      if comment == Self.quarantineTo {
        self = .quarantine
      } else if let family = [IPAddress.Family.v4, .v6].first(where: { FlowRules.set($0) == comment }) {
        self = .flows(family)
      } else {
        return nil
      }
    default: return nil
    }
  }
}
