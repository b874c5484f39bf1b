/// A test of what is remembered of flows and hosts. (The rates stand in the rule itself.)
package enum StateTest: Hashable, Sendable {
  case flow(FlowTest)
}

/// What a rule does to what is remembered, once all of it matched.
package enum StateEffect: Hashable, Sendable {
  /// The match is not told.
  case noAlert
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
