/// The bytes that a payload option looks at.
package struct RuleBuffer: Hashable, Sendable {
  package var source: BufferSource
  /// Applied in this order before anything looks (Suricata).
  package var transforms: [BufferTransform] = []

  package init(_ source: BufferSource) { self.source = source }

  /// What options look at when nothing else is named.
  package static let payload = RuleBuffer(.payload)
}

/// Where a buffer's bytes come from. Raw values stand in images.
///
/// Below 128: what a packet or a window of a stream has by itself. From 128 on: what the parsers of application layers publish for
/// each transaction (none yet).
package enum BufferSource: UInt8, Hashable, Sendable, CaseIterable {
  /// The packet's payload, or the window of a reassembled stream.
  case payload = 0
  /// What the last `base64_decode` made.
  case base64 = 1
  case ethernetHeader = 2
  case ipv4Header = 3
  case ipv6Header = 4
  case tcpHeader = 5
  case udpHeader = 6
  case icmpv4Header = 7
  case icmpv6Header = 8
  case sctpHeader = 9
  case igmpHeader = 10
  /// Addresses in network order: 4 or 16 bytes.
  case sourceAddress = 11
  case destinationAddress = 12
  /// What the DATA chunks of SCTP carry, each by itself.
  case sctpData = 13

  /// The options that choose each of them, besides `pkt_data`, `raw_data` and `base64_data`.
  static let names: [String: BufferSource] = [
    "ether.hdr": .ethernetHeader, "ipv4.hdr": .ipv4Header, "ipv6.hdr": .ipv6Header, "tcp.hdr": .tcpHeader,
    "udp.hdr": .udpHeader, "icmpv4.hdr": .icmpv4Header, "icmpv6.hdr": .icmpv6Header, "sctp.hdr": .sctpHeader,
    "igmp.hdr": .igmpHeader, "sctp.chunk_data": .sctpData, "ip.src": .sourceAddress, "ip.dst": .destinationAddress,
  ]
}

/// What is made of a buffer's bytes before options look at them.
package enum BufferTransform: Hashable, Sendable {
  /// A dot before it.
  case dotPrefix
  case md5
  case sha1
  case sha256
  case lowercase
  case uppercase
  /// White space left out; runs of it made one blank.
  case stripWhitespace
  case compressWhitespace
  case urlDecode
  case xor(key: [UInt8])
  /// What begins at `offset`, with a key that stands in the buffer itself.
  case xorWithin(offset: UInt32, keyOffset: UInt32, keyLength: UInt8)
  case base64(Base64Transform)
  /// The first capture of a regular expression, or the whole match.
  case capture(RegexTest)
  /// A part: negative numbers count from the end.
  case slice(offset: Int32, length: Int32?)
  /// What was compressed, so many bytes of it at the most.
  case gunzip(maximum: UInt32)
  case inflate(maximum: UInt32)
  /// Of a name, what can be registered, and what that is registered under.
  case domain
  case topLevelDomain
  /// Of header lines, the names in lower case; without those whose names begin with a colon (HTTP/2).
  case lowercaseNames
  case stripPseudoHeaders
}

/// `from_base64`.
package struct Base64Transform: Hashable, Sendable {
  package enum Mode: UInt8, Hashable, Sendable {
    /// RFC 4648: bytes that belong to no alphabet end it.
    case rfc4648 = 0
    /// RFC 2045: they are left out.
    case rfc2045 = 1
    /// Nothing but the alphabet, padded.
    case strict = 2
  }
  package var mode: Mode
  package var offset: UInt32
  /// 0: all.
  package var bytes: UInt32
}
