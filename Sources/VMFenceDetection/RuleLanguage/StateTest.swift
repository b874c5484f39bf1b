import VMFenceCore

/// A test of what is remembered of flows and hosts. (Rates stand in the rule itself.)
package enum StateTest: Hashable, Sendable {
  case flow(FlowTest)
  case flowBits(FlowBitsTest)
  case flowInteger(FlowIntegerTest)
  case hostBit(HostBitTest)
  /// Seconds since the flow's first packet.
  case flowAge(NumberTest)
  /// Packets or bytes of the flow so far, this packet's included.
  case flowCount(FlowCount, FlowSide, NumberTest)
  /// Bytes of a TCP connection by its sequence numbers; SYN and FIN count as one.
  case streamSize(FlowSide, NumberTest)
  /// The packet's addresses are in the set.
  case addresses(HostSide, AddressSet)
  /// The same of countries' addresses: a test of packets, not of flows.
  case country(HostSide, AddressSet)
  /// One of them.
  case streamEvent([StreamEvent])
  /// How far a TCP connection is.
  case tcpSession(TCPPhase)
  case variable(VariableTest)
  /// The side has sent much in a short time (`flow.rate-tracking`).
  case elephant(FlowSide)
}

/// `tcp.session`. Raw values stand in images.
package enum TCPPhase: UInt8, Hashable, Sendable, CaseIterable {
  /// Its handshake is not over; it is; one of its ends has said that it will send no more.
  case setup = 1
  case established, closing
}

/// What a rule does to what is remembered, once all of it matched.
package enum StateEffect: Hashable, Sendable {
  /// The rule does what its action says, without telling.
  case noAlert
  /// The rule tells, although its action (`pass`) would not.
  case alert
  /// The rest of the flow is not inspected.
  case bypass
  case flowBits(FlowBitsChange)
  case flowInteger(FlowIntegerChange)
  case hostBit(HostBitChange)
  case tag(TagEffect)
  /// What the side sends from here on is put together and inspected as a stream, or no more.
  case reassembly(FlowSide, isOn: Bool)
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
  package static let onlyStream = FlowTest(rawValue: 256)

  static let all: UInt32 = 511
}

/// `flowbits:isset` and `flowbits:isnotset`.
package struct FlowBitsTest: Hashable, Sendable {
  package enum Need: UInt8, Hashable, Sendable {
    /// One of the bits is set; all of them are.
    case any, all
    /// Snort's `isnotset`: none is set; not all are.
    case none, notAll
  }
  package var bits: FlowBitNames
  package var need: Need
}

/// Bits by their names, or all of a group.
package enum FlowBitNames: Hashable, Sendable {
  case named([String])
  /// nil: all bits that there are.
  case group(String?)
}

package struct FlowBitsChange: Hashable, Sendable {
  package enum Kind: UInt8, Hashable, Sendable {
    case set, unset, toggle
    /// Sets the bit, and unsets all others of its group.
    case setAlone
  }
  package var kind: Kind
  package var bits: FlowBitNames
  /// Snort 2: the group that the named bits belong to.
  package var group: String?
}

/// What a flow's integer is compared with, or changed by.
package enum FlowOperand: Hashable, Sendable {
  case number(UInt32)
  /// Another integer of the flow.
  case variable(String)
}

package struct FlowIntegerTest: Hashable, Sendable {
  package enum Comparison: UInt8, Hashable, Sendable {
    case less, lessOrEqual, equal, notEqual, greaterOrEqual, greater
    case isSet, isNotSet
  }
  package var name: String
  package var comparison: Comparison
  package var operand: FlowOperand
}

package struct FlowIntegerChange: Hashable, Sendable {
  package enum Kind: UInt8, Hashable, Sendable { case assign, add, subtract }
  package var name: String
  package var kind: Kind
  package var operand: FlowOperand
}

/// Which of a packet's hosts. Raw values stand in images.
package enum HostSide: UInt8, Hashable, Sendable, CaseIterable {
  case source = 1
  case destination, either, both
  /// The two hosts together, whichever way the packet goes.
  case pair
}

/// `xbits` and `hostbits`.
package struct HostBitTest: Hashable, Sendable {
  package var name: String
  package var side: HostSide
  package var isSet: Bool
}

package struct HostBitChange: Hashable, Sendable {
  package enum Kind: UInt8, Hashable, Sendable { case set, unset, toggle }
  package var kind: Kind
  package var name: String
  package var side: HostSide
  /// How long a bit stays set.
  package var seconds: UInt32
}

package enum FlowCount: UInt8, Hashable, Sendable { case packets, bytes }

/// Which of a flow's sides has sent. Raw values stand in images.
package enum FlowSide: UInt8, Hashable, Sendable, CaseIterable {
  case client = 1
  case server, either, both
}

/// `threshold` and `detection_filter`, and `rate_filter`: how often an alert comes through, or from which rate on the action is another.
package struct RuleThreshold: Hashable, Sendable {
  package enum Kind: UInt8, Hashable, Sendable, CaseIterable {
    case limit, threshold, both
    /// `detection_filter`: every match after the first `count` within the window.
    case filter
    /// Alerts come at `count`, and then at each multiple by `extra`.
    case backoff
    /// `rate_filter`: after `count` within the window, for `extra` seconds.
    case rate
  }
  package enum Track: UInt8, Hashable, Sendable, CaseIterable {
    case bySource, byDestination, byRule, byBoth, byFlow
  }
  /// What is counted once per window only.
  package enum Unique: UInt8, Hashable, Sendable, CaseIterable {
    case none, sourcePort, destinationPort
  }
  package var kind: Kind
  package var track: Track
  package var count: UInt32
  package var seconds: UInt32
  package var extra: UInt32
  package var unique: Unique

  package init(
    kind: Kind, track: Track, count: UInt32, seconds: UInt32, extra: UInt32 = 0, unique: Unique = .none
  ) {
    self.kind = kind
    self.track = track
    self.count = count
    self.seconds = seconds
    self.extra = extra
    self.unique = unique
  }
}

/// `rate_filter`: from a rate on, a rule has another action.
package struct RuleRateFilter: Hashable, Sendable {
  package var rate: RuleThreshold
  package var action: RuleAction
}

/// `suppress`: a rule is not told of for some hosts.
package struct RuleSuppression: Hashable, Sendable {
  /// nil: for all.
  package var side: HostSide?
  package var addresses: AddressSet
}
