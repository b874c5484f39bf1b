import VMFenceCore
import VMFencePackets

/// Frames with one thing wrong each, and the event that tells it.
enum EventSamples {
  static func v4(_ ipProtocol: Int, _ payload: [UInt8], options: [UInt8] = []) -> [UInt8] {
    Frame.ethernet(0x0800, Frame.ipv4(ipProtocol, payload, options: options))
  }

  static func v6(_ next: Int, _ payload: [UInt8]) -> [UInt8] {
    Frame.ethernet(0x86DD, Frame.ipv6(next, payload))
  }

  static func gre(_ flags: Int, _ type: Int, _ rest: [UInt8] = []) -> [UInt8] {
    v4(47, Frame.be16(flags) + Frame.be16(type) + rest)
  }

  static func tcp(_ options: [UInt8]) -> [UInt8] { v4(6, Frame.tcp(Frame.hello, options: options)) }
  static let zeros = [UInt8](repeating: 0, count: 60)

  /// A frame, and what it must give; `transport` none stands for "and is followed no further".
  static let linkAndNetwork: [([UInt8], DecodeEvent)] = [
    ([], .ethernetTooSmall), (Frame.ethernet(0x1234, zeros), .ethernetUnknownType),
    (Frame.ethernet(0x8100, [0, 1, 8]), .vlanTooSmall), (Frame.ethernet(0x8100, [0, 1, 0x12, 0x34]), .vlanUnknownType),
    (Frame.ethernet(0x0800, [], vlans: [(0x8100, 1), (0x8100, 2), (0x8100, 3), (0x8100, 4)]), .vlanTooMany),
    (Frame.ethernet(0x88E7, [0, 1, 8]), .backboneTooSmall), (Frame.ethernet(0x8926, [0, 1, 8]), .vnTagTooSmall),
    (Frame.ethernet(0x8926, [0, 1, 8, 0, 0x12, 0x34]), .vnTagUnknownType),
    (Frame.ethernet(0x8903, [0]), .fabricPathTooSmall),
    (Frame.ethernet(0x8847, [0, 0, 1]), .mplsTooSmall),
    (Frame.ethernet(0x8847, Frame.be32(0x10_0140)), .mplsPacketTooSmall),
    (Frame.ethernet(0x8847, Frame.be32(0x1140) + zeros), .mplsRouterAlert),
    (Frame.ethernet(0x8847, Frame.be32(0x3140) + zeros), .mplsImplicitNull),
    (Frame.ethernet(0x8847, Frame.be32(0x5140) + zeros), .mplsReserved),
    (Frame.ethernet(0x8847, Frame.be32(0x10_0140) + [0xF0]), .mplsUnknownPayload),
    (Frame.ethernet(0x8864, [0x11, 0, 0]), .pppoeTooSmall), (Frame.ethernet(0x8863, [0x11, 9, 0]), .pppoeTooSmall),
    (Frame.ethernet(0x8863, [0x11, 0xBB, 0, 0, 0, 0]), .pppoeWrongCode),
    (Frame.ethernet(0x8863, [0x11, 9, 0, 0, 0, 9]), .pppoeMalformedTags),
    (Frame.ethernet(0x8863, [0x11, 9, 0, 0, 0, 4, 1, 1, 0, 9]), .pppoeMalformedTags),
    (Frame.ethernet(0x8864, [0x11, 0, 0, 1, 0, 4, 0, 0x21, 0x45, 0]), .pppIPv4TooSmall),
    (Frame.ethernet(0x8864, [0x11, 0, 0, 1, 0, 4, 0, 0x57, 0x60, 0]), .pppIPv6TooSmall),
    (Frame.ethernet(0x8864, [0x11, 0, 0, 1, 0, 4, 0, 0x2F, 0x45, 0]), .pppCompressedTooSmall),
    (Frame.ethernet(0x8864, [0x11, 0, 0, 1, 0, 4, 0x00, 0x2B, 1, 0]), .pppUnsupported),
    (Frame.ethernet(0x8864, [0x11, 0, 0, 1, 0, 4, 0x0F, 0xFF, 1, 0]), .pppWrongType),
    (Frame.ethernet(0x894F, [0, 6, 1]), .nshTooSmall), (Frame.ethernet(0x894F, [0x40, 6, 1, 1] + zeros), .nshVersion),
    (Frame.ethernet(0x894F, [0, 63, 1, 1] + zeros), .nshLength),
    (Frame.ethernet(0x894F, [0, 2, 1, 1] + zeros), .nshLength),
    (Frame.ethernet(0x894F, [0, 2, 0, 1] + zeros), .nshReservedType),
    (Frame.ethernet(0x894F, [0, 2, 3, 1] + zeros), .nshUnsupportedType),
    (Frame.ethernet(0x894F, [0, 2, 2, 9] + zeros), .nshUnknownPayload),
    (Frame.ethernet(0x0806, [0, 1]), .arpTooSmall), (Frame.ethernet(0x0806, [0, 6] + Frame.arp()[2...]), .arpHardware),
    (Frame.ethernet(0x0806, [0, 1, 9, 0] + Frame.arp()[4...]), .arpProtocol),
    (Frame.ethernet(0x0806, Array(Frame.arp()[..<27])), .arpInvalid),
    (Frame.ethernet(0x0806, [0, 1, 8, 0, 7] + Frame.arp()[5...]), .arpHardwareSize),
    (Frame.ethernet(0x0806, [0, 1, 8, 0, 6, 5] + Frame.arp()[6...]), .arpProtocolSize),
    (Frame.ethernet(0x0806, Frame.arp(9)), .arpOperation),
    (Frame.ethernet(0x0800, [0x45]), .ipv4PacketTooSmall), (Frame.ethernet(0x0800, [0x55] + zeros), .ipv4WrongVersion),
    (Frame.ethernet(0x0800, [0x44] + zeros), .ipv4HeaderTooSmall),
    (Frame.ethernet(0x0800, [0x45, 0, 0, 9] + zeros), .ipv4LengthBelowHeader),
    (Frame.ethernet(0x0800, Frame.ipv4(6, [], totalLength: 99)), .ipv4Truncated),
    (Frame.ethernet(0x0800, Frame.ipv4(17, Frame.hello, fragment: 0x1FFF)), .ipv4FragmentsTooLarge),
    (v4(253, Frame.hello), .ipv4UnknownProtocol), (v4(58, Frame.hello), .ipv4WithICMPv6),
    (Frame.ethernet(0x86DD, [0x60]), .ipv6PacketTooSmall), (Frame.ethernet(0x86DD, [0x45] + zeros), .ipv6WrongVersion),
    (Frame.ethernet(0x86DD, Frame.ipv6(6, [], payloadLength: 9)), .ipv6Truncated),
    (v6(60, [6]), .ipv6ExtensionTruncated),
    (v6(253, Frame.hello), .ipv6UnknownNextHeader), (v6(1, Frame.hello), .ipv6WithICMP),
    (v6(59, Frame.hello), .ipv6DataAfterNone),
    (v6(43, [6, 0, 0, 0, 0, 0, 0, 0] + zeros), .ipv6RoutingType0),
    (v6(43, [43, 0, 2, 0, 0, 0, 0, 0, 59, 0, 2, 0, 0, 0, 0, 0]), .ipv6RoutingTwice),
    (v6(0, [0, 0, 1, 4, 0, 0, 0, 0, 59, 0, 1, 4, 0, 0, 0, 0]), .ipv6HopByHopTwice),
    (v6(0, [59, 0, 1, 4, 0, 0, 0, 0]), .ipv6HopByHopOnlyPadding),
    (v6(0, [59, 0, 0x3E, 4, 0, 0, 0, 0]), .ipv6HopByHopUnknownOption),
    (v6(60, [59, 0, 0x3E, 4, 0, 0, 0, 0]), .ipv6DestinationUnknownOption),
    (v6(60, [59, 0, 1, 4, 0, 0, 0, 0]), .ipv6DestinationOnlyPadding),
    (v6(60, [59, 0, 1, 0, 1, 2, 0, 0]), .ipv6EmptyPadding),
    (v6(60, [59, 0, 1, 9, 0, 0, 0, 0]), .ipv6OptionLength), (v6(60, [59, 0, 5, 0, 0, 0, 0, 0]), .ipv6OptionLength),
    (
      v6(60, [60, 0, 1, 4, 0, 0, 0, 0, 60, 0, 1, 4, 0, 0, 0, 0, 59, 0, 1, 4, 0, 0, 0, 0]), .ipv6DestinationOptionsTwice
    ),
    (v6(51, [59, 1, 0, 1] + Frame.be32(1) + Frame.be32(1)), .ipv6AuthenticationReserved),
    (
      v6(51, [51, 1, 0, 0] + Frame.be32(1) + Frame.be32(1) + [59, 1, 0, 0] + Frame.be32(1) + Frame.be32(1)),
      .ipv6AuthenticationTwice
    ),
    (v6(44, [17, 0, 0, 0, 0, 0, 0, 1] + Frame.udp([], v6: true)), .ipv6FragmentHeaderUseless),
    (v6(44, [44, 0, 0, 0, 0, 0, 0, 1, 17, 0, 0, 0, 0, 0, 0, 1] + Frame.udp([], v6: true)), .ipv6FragmentHeaderTwice),
    (v6(44, [17, 7, 0, 1, 0, 0, 0, 1] + zeros[..<8]), .ipv6FragmentReserved),
    (v6(44, [17, 0, 0, 1, 0, 0, 0, 1, 9]), .ipv6FragmentLength),
    (v6(44, [17, 0, 0xFF, 0xF8, 0, 0, 0, 1] + zeros[..<16]), .ipv6FragmentsTooLarge),
    (v6(4, [0x45]), .ipv4InIPv6TooSmall), (v6(4, [0x65] + zeros), .ipv4InIPv6WrongVersion),
    (v6(41, [0x65]), .ipv6InIPv6TooSmall), (v6(41, [0x45] + zeros), .ipv6InIPv6WrongVersion),
  ]

  static let transport: [([UInt8], DecodeEvent)] = [
    (v4(6, [0, 1]), .tcpPacketTooSmall), (v4(6, zeros[..<12] + [0x40] + zeros[..<7]), .tcpHeaderTooSmall),
    (v4(6, zeros[..<12] + [0xF0] + zeros[..<7]), .tcpHeaderBeyondPacket), (tcp([2, 9, 0, 0]), .tcpOptionLength),
    (tcp([2, 3, 0, 0]), .tcpOptionLength), (tcp([3, 3, 1, 3, 3, 1, 0, 0]), .tcpOptionTwice),
    (tcp([5, 6, 0, 0, 0, 0, 0, 0]), .tcpOptionLength),
    (v4(17, [0, 1]), .udpPacketTooSmall), (v4(17, Frame.udp([], length: 7)), .udpLengthInvalid),
    (v4(17, Frame.udp([], length: 9)), .udpLengthBeyondPacket),
    (v4(17, Frame.udp(Frame.hello, length: 9)), .udpLengthBelowPacket),
    (v4(1, [8, 0]), .icmpPacketTooSmall), (v4(1, Frame.icmp(99, 0, zeros)), .icmpUnknownType),
    (v4(1, Frame.icmp(8, 1, zeros)), .icmpUnknownCode),
    (v4(1, Frame.icmp(3, 1, zeros[..<9] + [])), .icmpQuoteTruncated),
    (v4(1, Frame.icmp(3, 1, zeros)), .icmpQuoteVersion),
    (v6(58, [128, 0]), .icmpv6PacketTooSmall), (v6(58, Frame.icmpv6(127, 0, zeros)), .icmpv6UnknownType),
    (v6(58, Frame.icmpv6(128, 1, zeros)), .icmpv6UnknownCode),
    (v6(58, Frame.icmpv6(1, 0, zeros[..<9] + [])), .icmpv6QuoteTruncated),
    (v6(58, Frame.icmpv6(1, 0, zeros)), .icmpv6QuoteVersion),
    (v6(58, Frame.icmpv6(131, 0, zeros)), .icmpv6ListenerHopLimit),
    (v6(58, Frame.icmpv6(50, 0, zeros)), .icmpv6UnassignedType),
    (v6(58, Frame.icmpv6(200, 0, zeros)), .icmpv6ExperimentalType),
    (v4(132, [0, 1]), .sctpTooSmall), (v4(132, Frame.sctp([[0, 0]])), .sctpChunkTooSmall),
    (v4(132, Frame.sctp([Frame.chunk(0, [], length: 3)])), .sctpChunkLength),
    (v4(132, Frame.sctp([Frame.chunk(0, [], length: 99)])), .sctpChunkLength),
    (v4(132, Frame.sctp([Frame.chunk(1, zeros), Frame.chunk(0, [])])), .sctpInitNotAlone),
    (v4(132, Frame.sctp([Frame.chunk(1, zeros)])), .sctpInitTag),
    (v4(132, Frame.sctp([Frame.chunk(0, [])], tag: 0)), .sctpDataTag),
    (v4(50, [0, 1]), .espTooSmall), (v4(2, [0x11, 0]), .igmpTooSmall),
    (v4(2, [0x11] + zeros[..<9] + [0, 9]), .igmp3TooSmall),
    (v4(2, [0x22] + zeros[..<6] + [1]), .igmp3TooSmall),
    (v4(2, [0x22] + zeros[..<6] + [1, 1, 9] + zeros[..<6]), .igmpMalformed),
    (v4(47, [0, 1]), .greTooSmall), (gre(2, 0x0800), .greWrongVersion), (gre(0x0100, 0x0800), .gre0Recursion),
    (gre(0x0008, 0x0800), .gre0Flags),
    (gre(0x2000, 0x0800), .gre0HeaderTooBig), (gre(0x4000, 0x0800, Frame.be32(0)), .gre0SourceRoute),
    (gre(0x4000, 0x0800, Frame.be32(0) + [8, 0, 0, 99]), .gre0SourceRoute), (gre(0xA001, 0x880B), .gre1Checksum),
    (gre(0x6001, 0x880B), .gre1Route),
    (gre(0x2801, 0x880B), .gre1StrictRoute), (gre(0x2101, 0x880B), .gre1Recursion), (gre(0x2009, 0x880B), .gre1Flags),
    (gre(1, 0x880B), .gre1NoKey),
    (gre(0x2001, 0x0800), .gre1WrongProtocol), (gre(0x3001, 0x880B, Frame.be32(9)), .gre1HeaderTooBig),
    (
      v4(17, Frame.udp([8, 0, 0, 0, 0, 0, 1, 0] + Frame.ethernet(0x1234, []), destination: 4789)), .vxlanUnknownPayload
    ),
    (v4(17, Frame.udp([0, 0, 0x12, 0x34, 0, 0, 1, 0], destination: 6081)), .geneveUnknownPayload),
  ]

  static let options: [([UInt8], DecodeEvent)] = [
    (v4(17, Frame.udp([]), options: [1, 1, 1, 0]), .ipv4OptionPadding),
    (v4(17, Frame.udp([]), options: [1, 1, 1, 7]), .ipv4OptionEndMissing),
    (v4(17, Frame.udp([]), options: [7, 9, 4, 0]), .ipv4OptionLength),
    (v4(17, Frame.udp([]), options: [7, 3, 5, 0]), .ipv4OptionMalformed),
    (v4(17, Frame.udp([]), options: [0x94, 4, 0, 0, 0x94, 4, 0, 0]), .ipv4OptionTwice),
    (v4(17, Frame.udp([]), options: [0x1E, 4, 0, 0]), .ipv4OptionInvalid),
    (v4(17, Frame.udp([]), options: [0x82, 4, 0, 0]), .ipv4OptionLength),
    (v4(17, Frame.udp([]), options: [0x88, 3, 0, 0]), .ipv4OptionLength),
    (v4(17, Frame.udp([]), options: [0x44, 8, 4, 0, 0, 0, 0, 0]), .ipv4OptionMalformed),
    (v4(17, Frame.udp([]), options: [0x19, 4, 0, 0]), .ipv4OptionLength),
    (v4(17, Frame.udp([]), options: [0x86, 10, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]), .ipv4OptionMalformed),
  ]
}
