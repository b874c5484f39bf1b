import VMFenceCore

/// One rule, parsed and checked: the representation that all dialects have in common.
package struct Rule: Hashable, Sendable {
  package var action: RuleAction
  package var ipProtocol: RuleProtocol
  package var source: RuleEndpoint
  package var destination: RuleEndpoint
  /// `<>`: either end may be the source.
  package var isBidirectional: Bool
  package var view: RuleView?
  /// What is tested, in the order in which it is tested.
  package var tests: [RuleTest]
  /// What is done once everything matched, in order.
  package var effects: [StateEffect] = []
  package var threshold: RuleThreshold?
  package var detectionFilter: RuleThreshold?
  package var rateFilter: RuleRateFilter?
  package var suppressions: [RuleSuppression] = []
  /// Snort 2: the number of the group of dynamic rules that this one turns on.
  package var activates: UInt32?
  /// Snort 2: the number of the group that this one belongs to.
  package var activatedBy: UInt32?
  /// Snort 2: for how many packets a dynamic rule stays on.
  package var count: UInt32?
  package var metadata: RuleMetadata
  package var dialect: RuleDialect
  /// The rule's head as it was written, with single spaces: what conflicts are shown by.
  package var head: String
}

extension Rule {
  /// Its `flow` option.
  package var flow: FlowTest? {
    for case .state(.flow(let test)) in tests { return test }
    return nil
  }
}

/// The transport that a rule is for.
package enum RuleProtocol: UInt8, Hashable, Sendable, CaseIterable {
  case tcp, udp, icmp, ip
  case sctp, igmp
  case arp
  /// Any frame of Ethernet; any packet, even one that cannot be decoded.
  case ether, any

  /// Whether its packets belong to flows.
  var isOfFlows: Bool { self != .arp && self != .ether && self != .any }
}

/// Suricata's `tcp-pkt` and `tcp-stream`: what alone a rule is compared with.
package enum RuleView: Hashable, Sendable { case packets, streams }

package struct RuleEndpoint: Hashable, Sendable {
  package var addresses: AddressSet
  package var ports: PortSet

  package static let any = RuleEndpoint(addresses: .any, ports: .any)
}

/// Addresses that are in one of the included networks (all, when there are none) and in none of the excluded.
package struct AddressSet: Hashable, Sendable {
  package var included: [IPNetwork]
  package var excluded: [IPNetwork]

  package static let any = AddressSet(included: [], excluded: [])

  package func contains(_ address: IPAddress) -> Bool {
    (included.isEmpty || included.contains { $0.contains(address) }) && !excluded.contains { $0.contains(address) }
  }
}

/// Sorted, disjoint, not touching ranges of ports.
package struct PortSet: Hashable, Sendable {
  package var ranges: [ClosedRange<UInt16>]

  package static let any = PortSet(ranges: [0...UInt16.max])

  package var isAny: Bool { self == .any }

  package func contains(_ port: UInt16) -> Bool { ranges.contains { $0.contains(port) } }

  /// What is in one of `included` (all, when there are none) and in none of `excluded`.
  package init(included: [ClosedRange<UInt16>], excluded: [ClosedRange<UInt16>]) {
    let wanted = Self.merged(included.isEmpty ? [0...UInt16.max] : included)
    let unwanted = Self.merged(excluded)
    ranges = []
    for range in wanted {
      var low = Int(range.lowerBound)
      let high = Int(range.upperBound)
      for hole in unwanted where Int(hole.upperBound) >= low && Int(hole.lowerBound) <= high {
        if Int(hole.lowerBound) > low { ranges.append(UInt16(low)...(hole.lowerBound - 1)) }
        low = Int(hole.upperBound) + 1
      }
      if low <= high { ranges.append(UInt16(low)...UInt16(high)) }
    }
  }

  package init(ranges: [ClosedRange<UInt16>]) { self.ranges = ranges }

  private static func merged(_ ranges: [ClosedRange<UInt16>]) -> [ClosedRange<UInt16>] {
    var result: [ClosedRange<UInt16>] = []
    for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) {
      if let last = result.last, Int(range.lowerBound) <= Int(last.upperBound) + 1 {
        result[result.count - 1] = last.lowerBound...max(last.upperBound, range.upperBound)
      } else {
        result.append(range)
      }
    }
    return result
  }
}

/// One thing that a packet must fulfil, by the family of its option. Header and state tests are evaluated first, whatever their place
/// in the rule: they need no search.
package enum RuleTest: Hashable, Sendable {
  /// Of bytes in a buffer; in the order in which they are to match.
  case payload(PayloadTest)
  /// Of the packet's headers and size.
  case header(HeaderTest)
  /// Of what is remembered: bits, counters, rates.
  case state(StateTest)
}

/// What came out of one rule file.
package struct ParsedRules: Sendable {
  package var rules: [Rule] = []
  package var diagnostics: [Diagnostic] = []
  package var dialect: RuleDialect
  /// Rules that could not be used, those in `unsupported` included.
  package var rejected = 0
  /// Rules that a list of the operator's turned off.
  package var disabled = 0
  /// Rules that say themselves that they are for another engine (`requires`).
  package var skipped = 0
  /// Rules without a mistake that need what the engine does not evaluate yet.
  package var unsupported: [UnsupportedRule] = []
  /// The variables that stand after the file, by name.
  package var variables: [String: String] = [:]
  /// Where the text of each rule lies, by `RulesBefore.id`: of one that is there several times the newest.
  var places: [UInt64: RulesBefore.File.Place] = [:]
  /// Rules that stand for wrong ones, with their indices in `rules`.
  var kept: [(rule: KeptRule, index: Int)] = []

  mutating func add(_ rule: Rule, bytes: Range<Int>) {
    let (id, revision) = (RulesBefore.id(rule.metadata.gid, rule.metadata.sid), rule.metadata.revision)
    if places[id].map({ $0.revision < revision }) ?? true { places[id] = .init(bytes: bytes, revision: revision) }
    rules.append(rule)
  }
}

/// A rule that was left out because it needs what is not evaluated yet. Loading it without that would make it match more
/// than its author wrote.
package struct UnsupportedRule: Hashable, Sendable {
  package var gid: UInt32
  package var sid: UInt32
  /// In the order of the rule, each once: "option `pcre`", "protocol `http`" …
  package var features: [String]
  package var place: SourcePlace
}

/// Something in a rule that is not supported yet.
struct RuleFeature: Hashable {
  var name: String
  /// Where in the file.
  var offset: Int
  /// Why it never will be; nil: it is only not there yet.
  var reason: String?
}
