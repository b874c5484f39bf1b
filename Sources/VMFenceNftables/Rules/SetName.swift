import VMFenceCore

/// The sets that hold measures, by their names in the table.
///
/// Networks have a hash set for each length of prefix, and a rule that masks the address before it looks it up. An interval set would
/// take one set for all of them, but the kernel copies the whole of it at each change, and takes no network inside another one.
enum SetName: Hashable, Sendable {
  case blocks(BlockSet)
  case quarantine
  /// Rate limits of a domain go into different ones, since a port names one limit in each.
  case limit(Int)

  /// How many different rate limits one domain can have at a time. The lowest counts; the others come into force as lower ones end, without
  /// anybody's help.
  static let limitSlots = 4

  var description: String {
    switch self {
    case .blocks(let set): set.name
    case .quarantine: "quarantined"
    case .limit(let slot): "limits\(slot)"
    }
  }
}

struct BlockSet: Hashable, Sendable {
  /// Those that are always there.
  static let first = [
    BlockSet(.v4, prefix: 32, isHost: false), BlockSet(.v6, prefix: 128, isHost: false),
    BlockSet(.v6, prefix: 64, isHost: false), BlockSet(.v4, prefix: 32, isHost: true),
    BlockSet(.v6, prefix: 128, isHost: true), BlockSet(.v6, prefix: 64, isHost: true),
  ]

  var family: IPAddress.Family
  var prefix: UInt8
  /// For all guests of the host.
  var isHost: Bool

  init(_ network: IPNetwork, isHost: Bool) {
    family = network.base.family
    prefix = network.prefix
    self.isHost = isHost
  }

  init(_ family: IPAddress.Family, prefix: Int, isHost: Bool) {
    self.family = family
    self.prefix = UInt8(prefix)
    self.isHost = isHost
  }

  private var isSingle: Bool { Int(prefix) == family.bitWidth }
  private var digit: String { family == .v4 ? "4" : "6" }

  /// `block4`, `net4-24`, `hostblock6`, `hostnet6-64`.
  var name: String {
    (isHost ? "host" : "") + (isSingle ? "block\(digit)" : "net\(digit)-\(prefix)")
  }

  init?(name: String) {
    var rest = name[...]
    isHost = rest.hasPrefix("host")
    if isHost { rest = rest.dropFirst(4) }
    let isNetwork = rest.hasPrefix("net")
    guard isNetwork || rest.hasPrefix("block") else { return nil }
    rest = rest.dropFirst(isNetwork ? 3 : 5)
    switch rest.first {
    case "4": family = .v4
    case "6": family = .v6
    default: return nil
    }
    rest = rest.dropFirst()
    if !isNetwork {
      guard rest.isEmpty else { return nil }
      prefix = UInt8(family.bitWidth)
      return
    }
    guard rest.first == "-", let number = Int(rest.dropFirst()), (0..<family.bitWidth).contains(number) else {
      return nil
    }
    prefix = UInt8(number)
    guard self.name == name else { return nil }
  }

  var specification: SetSpecification {
    let address: SetSpecification.Field = family == .v4 ? .v4 : .v6
    return SetSpecification(
      name: name, kind: .counted, fields: isHost ? [address] : [.interface, address], hasTimeouts: true)
  }

  var chain: String { "block\(digit)" }
  static let arpChain = "blockarp"

  /// Both directions: what comes from a network to the scope, and what goes from the scope to it; of IPv4 address resolution too, as neighbour discovery
  /// is IPv6 itself.
  var rules: [RuleSpecification] {
    let addressRegister = Register(isHost ? 0 : 4)
    let bytes = family.bitWidth / 8
    let mask = (0..<bytes).map { index in
      UInt8(truncatingIfNeeded: 0xFF00 >> Swift.min(8, Swift.max(0, Int(prefix) - 8 * index)))
    }
    func rule(_ chain: String, isSource: Bool, _ address: Expression) -> RuleSpecification {
      var expressions: [Expression] = []
      if !isHost { expressions.append(.meta(isSource ? .outputInterface : .inputInterface, Register(0))) }
      expressions.append(address)
      if !isSingle { expressions.append(.mask(addressRegister, mask)) }
      expressions += [.lookup(Register(0), set: name), .counter, .verdict(.drop)]
      return RuleSpecification(chain, "\(name) \(isSource ? "from" : "to")", expressions)
    }
    let rules = [true, false].map { rule(chain, isSource: $0, .address(family, isSource: $0, addressRegister)) }
    guard family == .v4 else { return rules }
    // RFC 826 in Ethernet and IPv4: the sender's protocol address, and the target's.
    return rules
      + [true, false].map {
        rule(Self.arpChain, isSource: $0, .payload(.network, offset: $0 ? 14 : 24, length: 4, addressRegister))
      }
  }
}
