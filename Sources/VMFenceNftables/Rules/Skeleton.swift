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
    sets = [
      SetSpecification(
        name: SetName.quarantine.description, kind: .verdicts, fields: [.interface], hasTimeouts: true)
    ]
    sets += (0..<SetName.limitSlots).map {
      SetSpecification(name: SetName.limit($0).description, kind: .limits, fields: [.interface], hasTimeouts: true)
    }
    let others = groups.compactMap(\.blockSet).filter { !BlockSet.first.contains($0) }
    sets += (BlockSet.first + others).map(\.specification) + SpoofingRules.sets + FlowRules.sets
    rules = SpoofingRules.rules + FlowRules.rules + Self.quarantine(configuration.quarantineExceptions)
    rules += groups.flatMap { $0.rules(protectsHost: configuration.protectsHost) }
    chains = ["quarantine", "block4", "block6", BlockSet.arpChain].map { ChainSpecification(name: $0) }
    chains += SpoofingRules.chains + FlowRules.chains + Self.hooks(of: rules)
  }

  /// The base chains that these rules are in, apart from anti-spoofing's. One without rules would be called for every frame all the same, so it comes
  /// with its first rule.
  static func hooks(of rules: [RuleSpecification]) -> [ChainSpecification] {
    let used = Set(rules.map(\.chain))
    let all: [ChainSpecification.Hook] = [.prerouting, .forward, .input, .output]
    return all.filter { used.contains($0.chain) }
      .map { ChainSpecification(name: $0.chain, base: .init(hook: $0, priority: priority)) }
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
/// rule that it meets, those that look something up in an empty set included, and for every hook that has a chain.
enum RuleGroup: Hashable, Sendable {
  /// The ways from the hooks to the chains where blocks of addresses of one family are looked up.
  case blockChains(IPAddress.Family)
  case blocks(BlockSet)
  case quarantine
  /// A slot of rate limits.
  case limit(Int)
  case flows(IPAddress.Family)

  /// What measures in this set need, in order.
  static func needed(by set: SetName) -> [RuleGroup] {
    switch set {
    case .blocks(let blocks): [.blockChains(blocks.family), .blocks(blocks)]
    case .quarantine: [.quarantine]
    case .limit(let slot): [.limit(slot)]
    }
  }

  var blockSet: BlockSet? {
    if case .blocks(let set) = self { set } else { nil }
  }

  func rules(protectsHost: Bool) -> [RuleSpecification] {
    typealias Hook = ChainSpecification.Hook
    switch self {
    case .blockChains(let family):
      let ways =
        family == .v4
        ? [(Expression.ipv4EtherType, "block4"), (Expression.arpEtherType, BlockSet.arpChain)]
        : [(Expression.ipv6EtherType, "block6")]
      return (protectsHost ? [Hook.forward, .input, .output] : [.forward]).flatMap { hook in
        ways.map { type, name in
          RuleSpecification(hook.chain, name, Expression.isEtherType(type) + [.verdict(.jump(name))])
        }
      }
    case .blocks(let set): return set.rules
    case .quarantine:
      return [(Hook.forward, false), (.forward, true), (.input, true), (.output, false)].map { hook, isFrom in
        RuleSpecification(
          hook.chain, isFrom ? Self.quarantineFrom : Self.quarantineTo,
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
          Hook.prerouting.chain, name,
          [.meta(.inputInterface, Register(0)), .limitMap(Register(0), set: name), .counter, .verdict(.drop)])
      ]
    case .flows(let family):
      // In this hook only: resets are sent from the host's side.
      let (type, name) = (family == .v4 ? Expression.ipv4EtherType : Expression.ipv6EtherType, FlowRules.set(family))
      return [RuleSpecification(Hook.forward.chain, name, Expression.isEtherType(type) + [.verdict(.jump(name))])]
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
    case ChainSpecification.Hook.prerouting.chain:
      guard let slot = (0..<SetName.limitSlots).first(where: { SetName.limit($0).description == comment }) else {
        return nil
      }
      self = .limit(slot)
    case ChainSpecification.Hook.forward.chain:
      switch comment {
      case "block4": self = .blockChains(.v4)
      case "block6": self = .blockChains(.v6)
      case Self.quarantineTo: self = .quarantine
      case FlowRules.set(.v4): self = .flows(.v4)
      case FlowRules.set(.v6): self = .flows(.v6)
      default: return nil
      }
    default: return nil
    }
  }
}
