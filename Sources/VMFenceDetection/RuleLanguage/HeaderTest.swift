import VMFencePackets

/// A test of a packet's headers, or of its size.
package enum HeaderTest: Hashable, Sendable {
  case tcpFlags(TCPFlagsTest)
  /// The payload's size in bytes.
  case payloadSize(NumberTest)
  /// Of a number in the headers; a packet without it does not match.
  case field(HeaderField, NumberTest)
  case fragmentBits(FragmentBitsTest)
  /// An IPv4 option of this kind; nil: any at all.
  case ipOption(UInt8?)
  /// Source and destination are the same address.
  case sameAddress
  /// The checksum of this header is right, or wrong.
  case checksum(ChecksummedHeader, isValid: Bool)
  /// What carries the packet.
  case network(isIPv6: Bool)
  /// Of a VLAN identifier.
  case vlan(VLANLayer, NumberTest)
  /// Decoding found this.
  /// One of them.
  case decodeEvent([DecodeEvent])
}

/// Which of a packet's VLAN tags; the outermost is the first.
package enum VLANLayer: Hashable, Sendable {
  case any, all
  /// From 0; negative ones from the innermost, which is -1.
  case tag(Int8)
}

/// Numbers in headers. Raw values stand in images.
package enum HeaderField: UInt8, Hashable, Sendable, CaseIterable {
  case timeToLive = 1
  case typeOfService
  case identification
  /// In units of 8 bytes, as it stands in the header.
  case fragmentOffset
  /// After extension headers.
  case ipProtocol
  case tcpSequence, tcpAcknowledgement, tcpWindow, urgentPointer
  /// TCP options.
  case segmentSize, windowScale
  case icmpType, icmpCode
  /// Of echo messages and other queries.
  case icmpID, icmpSequence
  case icmpv6MTU
  case igmpType
  /// How many VLAN tags there are.
  case vlanCount
  case sctpTag, sctpChunkCount
  /// Of any chunk.
  case sctpChunkType
  /// How many packets were inspected so far, this one included.
  case packetNumber
  /// Of a VXLAN datagram: the network that the frame in it belongs to.
  case vxlanNetwork
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

/// The three bits before IPv4's fragment offset.
package struct FragmentBitsTest: Hashable, Sendable {
  package var mode: TCPFlagsTest.Mode
  /// 4 reserved, 2 don't fragment, 1 more fragments.
  package var bits: UInt8
}

/// Headers with a checksum. Raw values stand in images.
package enum ChecksummedHeader: UInt8, Hashable, Sendable, CaseIterable {
  case ipv4 = 1
  case tcpv4, tcpv6, udpv4, udpv6, icmpv4, icmpv6, igmp
}

/// A number that, after a mask was applied, lies within (or, negated, outside) a closed range.
package struct NumberTest: Hashable, Sendable {
  package var low: UInt64
  package var high: UInt64
  package var mask: UInt64
  package var isNegated: Bool

  /// Both ends are not negative.
  package init(
    low: some BinaryInteger, high: some BinaryInteger, mask: UInt64 = .max, isNegated: Bool = false
  ) {
    self.low = UInt64(low)
    self.high = UInt64(high)
    self.mask = mask
    self.isNegated = isNegated
  }

  package init(_ value: UInt64) { self.init(low: value, high: value) }

  package func holds(_ value: UInt64) -> Bool { (low <= value & mask && value & mask <= high) != isNegated }
}
