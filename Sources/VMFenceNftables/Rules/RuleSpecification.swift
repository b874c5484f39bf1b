import VMFenceCore

/// A chain of the table. With a base, the kernel calls it; without, rules jump to it.
struct ChainSpecification: Hashable, Sendable {
  /// The hooks of linux/netfilter.h, which are the same in the bridge and inet families. The first is the ingress hook in the netdev family
  /// (NF_NETDEV_INGRESS).
  enum Hook: Int32, Sendable {
    case prerouting = 0
    case input, forward, output

    /// The chain of this hook in which measures are looked up.
    var chain: String {
      switch self {
      case .prerouting: "prerouting"
      case .input: "input"
      case .forward: "forward"
      case .output: "output"
      }
    }
  }

  struct Base: Hashable, Sendable {
    var hook: Hook
    var priority: Int32
  }

  var name: String
  var base: Base?
}

/// A set, or a map to verdicts or limits.
struct SetSpecification: Hashable, Sendable {
  enum Kind: UInt32, Sendable {
    case plain = 0
    case counted, verdicts, limits
  }

  /// A part of a key, with nft(8)'s number for its type, by which it prints the elements.
  enum Field: Sendable {
    case interface, v4, v6, mac, transportPort

    var nftType: UInt32 {
      switch self {
      case .interface: 41
      case .v4: 7
      case .v6: 8
      case .mac: 9
      case .transportPort: 13
      }
    }

    var byteCount: UInt8 {
      switch self {
      case .interface, .v6: 16
      case .v4: 4
      case .mac: 6
      case .transportPort: 2
      }
    }
  }

  var name: String
  var kind: Kind
  var fields: [Field]
  var hasTimeouts: Bool
}

/// A rule, by the comment that identifies it in its chain.
struct RuleSpecification: Sendable {
  var chain: String
  var comment: String
  var expressions: [Expression]

  init(_ chain: String, _ comment: String, _ expressions: [Expression]) {
    self.chain = chain
    self.comment = comment
    self.expressions = expressions
  }
}

/// One of the 16 registers of 32 bits; a longer value takes the following ones too.
struct Register: Hashable, Sendable {
  var number: UInt32
  /// `NFT_REG32_00` is 8.
  init(_ index: UInt32) { number = 8 + index }
}

enum RuleVerdict: Hashable, Sendable {
  case drop, accept, `return`
  case jump(String)
  case goto(String)
}

/// A step of a rule, as the kernel's machine knows it (linux/netfilter/nf_tables.h).
enum Expression: Hashable, Sendable {
  enum MetaKey: UInt32, Sendable {
    case `protocol` = 0
    case inputInterface, outputInterface, transportProtocol, bridge
  }
  enum Base: UInt32, Sendable {
    case link = 0
    case network, transport
  }

  case meta(MetaKey, Register)
  case payload(Base, offset: UInt32, length: UInt32, Register)
  /// Two bytes of an IPv6 fragment header: the offset in units of eight bytes, and three bits of flags. Goes on only when there is one.
  case fragmentOffset(Register)
  case mask(Register, [UInt8])
  case equal(Register, [UInt8])
  case notEqual(Register, [UInt8])
  case load(Register, [UInt8])
  case lookup(Register, set: String)
  /// Goes on when the set does not have it.
  case lookupMissing(Register, set: String)
  case verdictMap(Register, set: String)
  /// Goes on when the limit that the map has for it is exceeded.
  case limitMap(Register, set: String)
  case counter
  /// A TCP reset to the sender.
  case reset
  case verdict(RuleVerdict)
}

extension Expression {
  static let ipv4EtherType: [UInt8] = [0x08, 0x00]
  static let ipv6EtherType: [UInt8] = [0x86, 0xDD]
  static let arpEtherType: [UInt8] = [0x08, 0x06]

  /// Goes on when the frame's protocol is this.
  static func isEtherType(_ type: [UInt8]) -> [Expression] {
    [.meta(.protocol, Register(0)), .equal(Register(0), type)]
  }

  static func address(_ family: IPAddress.Family, isSource: Bool, _ register: Register) -> Expression {
    let length = UInt32(family.bitWidth / 8)
    let source: UInt32 = family == .v4 ? 12 : 8
    return .payload(.network, offset: isSource ? source : source + length, length: length, register)
  }
}
