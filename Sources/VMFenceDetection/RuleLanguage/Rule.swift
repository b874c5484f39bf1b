import VMFenceCore

/// One rule, parsed and checked: the representation that all dialects have in common.
package struct Rule: Hashable, Sendable {
  package var action: RuleAction
  package var ipProtocol: RuleProtocol
  package var source: RuleEndpoint
  package var destination: RuleEndpoint
  /// `<>`: either end may be the source.
  package var isBidirectional: Bool
  /// What is tested, in the order in which it is tested.
  package var tests: [RuleTest]
  package var flow: FlowTest?
  package var threshold: RuleThreshold?
  package var detectionFilter: RuleThreshold?
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

/// The transport that a rule is for.
package enum RuleProtocol: UInt8, Hashable, Sendable, CaseIterable {
  case tcp, udp, icmp, ip
}

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

/// One thing that a packet must fulfil.
package enum RuleTest: Hashable, Sendable {
  case content(ContentTest)
  case tcpFlags(TCPFlagsTest)
  /// The payload's size in bytes.
  case payloadSize(NumberTest)
  case icmpType(NumberTest)
  case icmpCode(NumberTest)
}

/// A byte pattern in the packet's payload.
package struct ContentTest: Hashable, Sendable {
  package var pattern: [UInt8]
  package var isNegated = false
  package var ignoresCase = false
  package var offset: Int32?
  package var depth: Int32?
  package var distance: Int32?
  package var within: Int32?
  /// Nothing here normalises the payload, so raw and decoded bytes are the same; kept for what comes.
  package var isRaw = false
  package var fastPattern: FastPattern?
  /// Suricata: the pattern ends at the end of the buffer.
  package var endsBuffer = false
  package var place: SourcePlace

  package struct FastPattern: Hashable, Sendable {
    /// The part that is searched for; nil: all of it.
    package var offset: Int?
    package var length: Int?
  }

  package var isRelative: Bool { distance != nil || within != nil }
}

/// TCP flags, compared after the ignored ones were set to zero.
package struct TCPFlagsTest: Hashable, Sendable {
  package enum Mode: UInt8, Hashable, Sendable {
    case exactly
    case all
    case any
    case none
    /// Suricata's `!`: not all of them.
    case notAll
  }
  package var mode: Mode
  package var flags: UInt8
  package var ignored: UInt8

  package init(mode: Mode, flags: UInt8, ignored: UInt8) {
    self.mode = mode
    self.flags = flags
    self.ignored = ignored
  }
}

/// A number within (or, negated, outside) a closed range.
package struct NumberTest: Hashable, Sendable {
  package var low: UInt32
  package var high: UInt32
  package var isNegated: Bool

  package init(low: UInt32, high: UInt32, isNegated: Bool = false) {
    self.low = low
    self.high = high
    self.isNegated = isNegated
  }
}

/// The `flow` option.
package struct FlowTest: OptionSet, Hashable, Sendable {
  package var rawValue: UInt32
  package init(rawValue: UInt32) { self.rawValue = rawValue }
  package static let toServer = FlowTest(rawValue: 1)
  package static let toClient = FlowTest(rawValue: 2)
  package static let established = FlowTest(rawValue: 4)
  package static let notEstablished = FlowTest(rawValue: 8)
  package static let stateless = FlowTest(rawValue: 16)
  package static let notStream = FlowTest(rawValue: 32)
  package static let notFragment = FlowTest(rawValue: 64)
  package static let onlyFragment = FlowTest(rawValue: 128)
}

/// `threshold` and `detection_filter`: how often an alert comes through.
package struct RuleThreshold: Hashable, Sendable {
  package enum Kind: UInt8, Hashable, Sendable, CaseIterable {
    case limit, threshold, both
    /// `detection_filter`: every match after the first `count` within the window.
    case filter
  }
  package enum Track: UInt8, Hashable, Sendable, CaseIterable {
    case bySource, byDestination, byRule, byBoth
  }
  package var kind: Kind
  package var track: Track
  package var count: UInt32
  package var seconds: UInt32

  package init(kind: Kind, track: Track, count: UInt32, seconds: UInt32) {
    self.kind = kind
    self.track = track
    self.count = count
    self.seconds = seconds
  }
}

/// What came out of one rule file.
package struct ParsedRules: Sendable {
  package var rules: [Rule] = []
  package var diagnostics: [Diagnostic] = []
  package var dialect: RuleDialect
  /// Rules that could not be used, those in `unsupported` included.
  package var rejected = 0
  /// Rules without a mistake that need what the engine does not evaluate yet.
  package var unsupported: [UnsupportedRule] = []
  /// The variables that stand after the file, by name.
  package var variables: [String: String] = [:]
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
}
