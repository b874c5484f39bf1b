/// What decoding found wrong, or worth a rule, in a packet: what Suricata's `decode-event` names, and Snort's built-in rules of
/// generator 116 are about. Raw values stand in rule images and change with their version only.
public enum DecodeEvent: UInt8, Hashable, Sendable, CaseIterable, BitwiseCopyable {
  case ipv4PacketTooSmall
  case ipv4HeaderTooSmall
  case ipv4LengthBelowHeader
  case ipv4Truncated
  case ipv4OptionInvalid
  case ipv4OptionLength
  case ipv4OptionMalformed
  case ipv4OptionPadding
  case ipv4OptionEndMissing
  case ipv4OptionTwice
  case ipv4OptionUnknown
  case ipv4WrongVersion
  case ipv4WithICMPv6
  case ipv4UnknownProtocol
  case ipv4FragmentsTooLarge
  case ipv4FragmentOverlap
  case ipv4FragmentIgnored
  case icmpPacketTooSmall
  case icmpUnknownType
  case icmpUnknownCode
  case icmpQuoteTruncated
  case icmpQuoteVersion
  case icmpv6UnknownType
  case icmpv6UnknownCode
  case icmpv6PacketTooSmall
  case icmpv6QuoteVersion
  case icmpv6QuoteTruncated
  case icmpv6ListenerHopLimit
  case icmpv6UnassignedType
  case icmpv6ExperimentalType
  case ipv6PacketTooSmall
  case ipv6Truncated
  case ipv6ExtensionTruncated
  case ipv6FragmentHeaderTwice
  case ipv6FragmentHeaderUseless
  case ipv6RoutingTwice
  case ipv6HopByHopTwice
  case ipv6DestinationOptionsTwice
  case ipv6AuthenticationTwice
  case ipv6EncryptionTwice
  case ipv6OptionLength
  case ipv6WrongVersion
  case ipv6AuthenticationReserved
  case ipv6HopByHopUnknownOption
  case ipv6HopByHopOnlyPadding
  case ipv6DestinationUnknownOption
  case ipv6DestinationOnlyPadding
  case ipv6RoutingType0
  case ipv6EmptyPadding
  case ipv6FragmentReserved
  case ipv6DataAfterNone
  case ipv6UnknownNextHeader
  case ipv6WithICMP
  case ipv6FragmentsTooLarge
  case ipv6FragmentOverlap
  case ipv6FragmentLength
  case ipv6FragmentIgnored
  case ipv4InIPv6TooSmall
  case ipv4InIPv6WrongVersion
  case ipv6InIPv6TooSmall
  case ipv6InIPv6WrongVersion
  case tcpPacketTooSmall
  case tcpHeaderBeyondPacket
  case tcpHeaderTooSmall
  case tcpOptionLength
  case tcpOptionTwice
  case udpPacketTooSmall
  case udpLengthBeyondPacket
  case udpLengthBelowPacket
  case udpLengthInvalid
  case cookedTooSmall
  case cooked2TooSmall
  case ethernetTooSmall
  case ethernetUnknownType
  case pppTooSmall
  case pppCompressedTooSmall
  case pppIPv4TooSmall
  case pppIPv6TooSmall
  case pppWrongType
  case pppUnsupported
  case pppoeTooSmall
  case pppoeWrongCode
  case pppoeMalformedTags
  case greTooSmall
  case greWrongVersion
  case gre0Recursion
  case gre0Flags
  case gre0HeaderTooBig
  case gre0SourceRoute
  case gre1Checksum
  case gre1Route
  case gre1StrictRoute
  case gre1Recursion
  case gre1Flags
  case gre1NoKey
  case gre1WrongProtocol
  case gre1SourceRoute
  case gre1HeaderTooBig
  case vlanTooSmall
  case vlanUnknownType
  case vlanTooMany
  case backboneTooSmall
  case vnTagTooSmall
  case vnTagUnknownType
  case rawWrongVersion
  case loopbackTooSmall
  case loopbackUnsupported
  case sctpTooSmall
  case sctpChunkTooSmall
  case sctpChunkLength
  case sctpInitNotAlone
  case sctpInitTag
  case sctpDataTag
  case espTooSmall
  case igmpTooSmall
  case igmp3TooSmall
  case igmpMalformed
  case arpTooSmall
  case arpHardware
  case arpProtocol
  case arpInvalid
  case arpHardwareSize
  case arpProtocolSize
  case arpOperation
  case mplsTooSmall
  case mplsPacketTooSmall
  case mplsRouterAlert
  case mplsImplicitNull
  case mplsReserved
  case mplsUnknownPayload
  case vxlanUnknownPayload
  case geneveUnknownPayload
  case erspanTooSmall
  case erspanVersion
  case erspanTooManyTags
  case fabricPathTooSmall
  case hdlcTooSmall
  case nshTooSmall
  case nshVersion
  case nshLength
  case nshReservedType
  case nshUnsupportedType
  case nshUnknownPayload
  case tooManyLayers

  /// The name in rules, without the word `decoder` that EVE puts before it.
  public var name: String { Self.table[Int(rawValue)].name }

  /// The number of Snort's built-in rule about the same (generator 116); nil where Snort has none.
  public var snortSID: UInt32? {
    let sid = Self.table[Int(rawValue)].snort
    return sid == 0 ? nil : UInt32(sid)
  }

  /// The event of a name, as rules write it.
  public init?(named name: String) {
    guard let index = Self.table.firstIndex(where: { $0.name == name }) else { return nil }
    self.init(rawValue: UInt8(index))
  }

  private static let table: [(name: String, snort: UInt16)] = [
    ("ipv4.pkt_too_small", 0),
    ("ipv4.hlen_too_small", 2),
    ("ipv4.iplen_smaller_than_hlen", 3),
    ("ipv4.trunc_pkt", 6),
    ("ipv4.opt_invalid", 0),
    ("ipv4.opt_invalid_len", 4),
    ("ipv4.opt_malformed", 0),
    ("ipv4.opt_pad_required", 0),
    ("ipv4.opt_eol_required", 5),
    ("ipv4.opt_duplicate", 0),
    ("ipv4.opt_unknown", 0),
    ("ipv4.wrong_ip_version", 1),
    ("ipv4.icmpv6", 0),
    ("ipv4.unknown_protocol", 0),
    ("ipv4.frag_pkt_too_large", 0),
    ("ipv4.frag_overlap", 0),
    ("ipv4.frag_ignored", 0),
    ("icmpv4.pkt_too_small", 105),
    ("icmpv4.unknown_type", 0),
    ("icmpv4.unknown_code", 0),
    ("icmpv4.ipv4_trunc_pkt", 250),
    ("icmpv4.ipv4_unknown_ver", 251),
    ("icmpv6.unknown_type", 0),
    ("icmpv6.unknown_code", 0),
    ("icmpv6.pkt_too_small", 0),
    ("icmpv6.ipv6_unknown_version", 0),
    ("icmpv6.ipv6_trunc_pkt", 0),
    ("icmpv6.mld_message_with_invalid_hl", 0),
    ("icmpv6.unassigned_type", 0),
    ("icmpv6.experimentation_type", 0),
    ("ipv6.pkt_too_small", 273),
    ("ipv6.trunc_pkt", 275),
    ("ipv6.trunc_exthdr", 272),
    ("ipv6.exthdr_dupl_fh", 0),
    ("ipv6.exthdr_useless_fh", 0),
    ("ipv6.exthdr_dupl_rh", 0),
    ("ipv6.exthdr_dupl_hh", 0),
    ("ipv6.exthdr_dupl_dh", 0),
    ("ipv6.exthdr_dupl_ah", 0),
    ("ipv6.exthdr_dupl_eh", 0),
    ("ipv6.exthdr_invalid_optlen", 295),
    ("ipv6.wrong_ip_version", 271),
    ("ipv6.exthdr_ah_res_not_null", 0),
    ("ipv6.hopopts_unknown_opt", 0),
    ("ipv6.hopopts_only_padding", 0),
    ("ipv6.dstopts_unknown_opt", 0),
    ("ipv6.dstopts_only_padding", 0),
    ("ipv6.rh_type_0", 0),
    ("ipv6.zero_len_padn", 0),
    ("ipv6.fh_non_zero_reserved_field", 0),
    ("ipv6.data_after_none_header", 0),
    ("ipv6.unknown_next_header", 281),
    ("ipv6.icmpv4", 0),
    ("ipv6.frag_pkt_too_large", 0),
    ("ipv6.frag_overlap", 0),
    ("ipv6.frag_invalid_length", 0),
    ("ipv6.frag_ignored", 0),
    ("ipv6.ipv4_in_ipv6_too_small", 0),
    ("ipv6.ipv4_in_ipv6_wrong_version", 0),
    ("ipv6.ipv6_in_ipv6_too_small", 0),
    ("ipv6.ipv6_in_ipv6_wrong_version", 0),
    ("tcp.pkt_too_small", 45),
    ("tcp.hlen_too_small", 47),
    ("tcp.invalid_optlen", 46),
    ("tcp.opt_invalid_len", 54),
    ("tcp.opt_duplicate", 0),
    ("udp.hlen_too_small", 95),
    ("udp.pkt_too_small", 97),
    ("udp.hlen_invalid", 98),
    ("udp.len_invalid", 96),
    ("sll.pkt_too_small", 0),
    ("sll2.pkt_too_small", 0),
    ("ethernet.pkt_too_small", 0),
    ("ethernet.unknown_ethertype", 0),
    ("ppp.pkt_too_small", 0),
    ("ppp.vju_pkt_too_small", 0),
    ("ppp.ip4_pkt_too_small", 0),
    ("ppp.ip6_pkt_too_small", 0),
    ("ppp.wrong_type", 0),
    ("ppp.unsup_proto", 0),
    ("pppoe.pkt_too_small", 120),
    ("pppoe.wrong_code", 0),
    ("pppoe.malformed_tags", 0),
    ("gre.pkt_too_small", 0),
    ("gre.wrong_version", 162),
    ("gre.version0_recur", 0),
    ("gre.version0_flags", 0),
    ("gre.version0_hdr_too_big", 160),
    ("gre.version0_malformed_sre_hdr", 0),
    ("gre.version1_chksum", 164),
    ("gre.version1_route", 164),
    ("gre.version1_ssr", 164),
    ("gre.version1_recur", 164),
    ("gre.version1_flags", 164),
    ("gre.version1_no_key", 164),
    ("gre.version1_wrong_protocol", 164),
    ("gre.version1_malformed_sre_hdr", 0),
    ("gre.version1_hdr_too_big", 160),
    ("vlan.header_too_small", 130),
    ("vlan.unknown_type", 0),
    ("vlan.too_many_layers", 0),
    ("ieee8021ah.header_too_small", 0),
    ("vntag.header_too_small", 0),
    ("vntag.unknown_type", 0),
    ("ipraw.invalid_ip_version", 0),
    ("ltnull.pkt_too_small", 0),
    ("ltnull.unsupported_type", 0),
    ("sctp.pkt_too_small", 0),
    ("sctp.chunk_too_small", 0),
    ("sctp.chunk_len_invalid", 0),
    ("sctp.init_chunk_not_alone", 0),
    ("sctp.init_with_non_zero_vtag", 0),
    ("sctp.data_with_zero_vtag", 0),
    ("esp.pkt_too_small", 294),
    ("igmp.pkt_too_small", 0),
    ("igmp.v3_pkt_too_small", 0),
    ("igmp.malformed", 0),
    ("arp.pkt_too_small", 109),
    ("arp.unsupported_hardware", 0),
    ("arp.unsupported_protocol", 0),
    ("arp.invalid_pkt", 0),
    ("arp.invalid_hardware_size", 0),
    ("arp.invalid_protocol_size", 0),
    ("arp.unsupported_opcode", 0),
    ("mpls.header_too_small", 170),
    ("mpls.pkt_too_small", 0),
    ("mpls.bad_label_router_alert", 172),
    ("mpls.bad_label_implicit_null", 174),
    ("mpls.bad_label_reserved", 175),
    ("mpls.unknown_payload_type", 0),
    ("vxlan.unknown_payload_type", 0),
    ("geneve.unknown_payload_type", 0),
    ("erspan.header_too_small", 0),
    ("erspan.unsupported_version", 0),
    ("erspan.too_many_vlan_layers", 0),
    ("dce.pkt_too_small", 0),
    ("chdlc.pkt_too_small", 0),
    ("nsh.header_too_small", 0),
    ("nsh.unsupported_version", 0),
    ("nsh.bad_header_length", 0),
    ("nsh.reserved_type", 0),
    ("nsh.unsupported_type", 0),
    ("nsh.unknown_payload", 0),
    ("too_many_layers", 0),
  ]
}

/// A set of decode events, of a fixed size.
public struct DecodeEventSet: Hashable, Sendable, BitwiseCopyable {
  @usableFromInline var low: UInt64 = 0
  @usableFromInline var middle: UInt64 = 0
  @usableFromInline var high: UInt64 = 0

  @inlinable public init() {}

  @inlinable public var isEmpty: Bool { low | middle | high == 0 }

  @inlinable
  public mutating func insert(_ event: DecodeEvent) {
    let bit = (1 as UInt64) << UInt64(event.rawValue & 63)
    switch event.rawValue >> 6 {
    case 0: low |= bit
    case 1: middle |= bit
    default: high |= bit
    }
  }

  @inlinable
  public func contains(_ event: DecodeEvent) -> Bool {
    let word = event.rawValue < 64 ? low : event.rawValue < 128 ? middle : high
    return word >> UInt64(event.rawValue & 63) & 1 != 0
  }

  @inlinable
  public mutating func formUnion(_ other: DecodeEventSet) {
    low |= other.low
    middle |= other.middle
    high |= other.high
  }

  /// In the order of their numbers.
  public var elements: [DecodeEvent] { DecodeEvent.allCases.filter(contains) }
}
