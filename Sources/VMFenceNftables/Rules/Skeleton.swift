import VMFenceCore

/// The table's fixed part: what is there before any measure stands.
struct Skeleton {
  /// Between bridge tools' own filter (-200) and what people write by hand (0). An `accept` of another table does not open what a later
  /// one drops, so the order decides only who counts a packet first.
  static let priority: Int32 = -100

  var chains: [ChainSpecification]
  var sets: [SetSpecification]
  var rules: [RuleSpecification]

  init(_ configuration: NftablesSink.Configuration, blockSets: [BlockSet]) {
    chains = [
      ChainSpecification(name: "quarantine"), ChainSpecification(name: "block4"), ChainSpecification(name: "block6"),
      ChainSpecification(name: BlockSet.arpChain),
      ChainSpecification(
        name: SpoofingRules.chain, base: .init(hook: .prerouting, priority: SpoofingRules.priority)),
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
    sets += blockSets.map(\.specification) + SpoofingRules.sets + FlowRules.sets
    chains += FlowRules.chains
    rules = SpoofingRules.rules + FlowRules.rules + Self.quarantine(configuration.quarantineExceptions)
    // Limits count each packet once: in forward, a flooded frame passes for each port it goes out of.
    rules += (0..<SetName.limitSlots).map { slot in
      RuleSpecification(
        "prerouting", SetName.limit(slot).description,
        [
          .meta(.inputInterface, Register(0)), .limitMap(Register(0), set: SetName.limit(slot).description), .counter,
          .verdict(.drop),
        ])
    }
    rules += Self.entrance("forward", isIn: true, isOut: true, blocks: true)
    // In this hook only: resets are sent from the host's side.
    for (type, chain) in [(Expression.ipv4EtherType, "flow4"), (Expression.ipv6EtherType, "flow6")] {
      rules.append(RuleSpecification("forward", chain, Expression.isEtherType(type) + [.verdict(.jump(chain))]))
    }
    rules += Self.entrance("input", isIn: true, isOut: false, blocks: configuration.protectsHost)
    rules += Self.entrance("output", isIn: false, isOut: true, blocks: configuration.protectsHost)
    rules += blockSets.flatMap(\.rules)
  }

  /// What a base chain does with a frame that came in or goes out at a domain's port.
  private static func entrance(_ chain: String, isIn: Bool, isOut: Bool, blocks: Bool) -> [RuleSpecification] {
    var rules: [RuleSpecification] = []
    let quarantined = SetName.quarantine.description
    if isOut {
      rules.append(
        RuleSpecification(
          chain, "quarantine to", [.meta(.outputInterface, Register(0)), .verdictMap(Register(0), set: quarantined)]))
    }
    if isIn {
      rules.append(
        RuleSpecification(
          chain, "quarantine from", [.meta(.inputInterface, Register(0)), .verdictMap(Register(0), set: quarantined)]))
    }
    guard blocks else { return rules }
    for (type, name) in [
      (Expression.ipv4EtherType, "block4"), (Expression.ipv6EtherType, "block6"),
      (Expression.arpEtherType, BlockSet.arpChain),
    ] {
      rules.append(RuleSpecification(chain, name, Expression.isEtherType(type) + [.verdict(.jump(name))]))
    }
    return rules
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
