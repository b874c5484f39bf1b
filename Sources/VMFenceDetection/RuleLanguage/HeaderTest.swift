/// A test of a packet's headers, or of its size.
package enum HeaderTest: Hashable, Sendable {
  case tcpFlags(TCPFlagsTest)
  /// The payload's size in bytes.
  case payloadSize(NumberTest)
  case icmpType(NumberTest)
  case icmpCode(NumberTest)
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
