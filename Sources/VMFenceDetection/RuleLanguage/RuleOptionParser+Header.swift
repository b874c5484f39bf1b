import VMFenceCore

/// Options about headers and sizes.
extension RuleOptionParser {
  mutating func headerOption(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> Bool {
    let isSnort2 = dialect == .snort2
    switch text {
    case "flags", "tcp.flags":
      tests.append(.header(.tcpFlags(try TCPFlagsTest.parse(required(name, value), dialect: dialect))))
    case "dsize":
      let size = try number(name, value, maximum: 65_535, arrowIncludesEnds: isSnort2, hasSigns: false)
      tests.append(.header(.payloadSize(size)))
    case "fragbits":
      tests.append(.header(.fragmentBits(try FragmentBitsTest.parse(required(name, value), dialect: dialect))))
    case "ipopts": tests.append(.header(.ipOption(try ipOption(name, required(name, value)))))
    case "sameip":
      try none(name, value)
      tests.append(.header(.sameAddress))
    case "ip_proto": tests.append(.header(.field(.ipProtocol, try ipProtocolTest(name, required(name, value)))))
    case "tos": tests.append(.header(.field(.typeOfService, try typeOfService(name, required(name, value)))))
    case "l3_proto": tests.append(.header(try networkTest(name, required(name, value))))
    case "vlan.id": tests.append(.header(try vlanTest(name, required(name, value))))
    case "sctp.chunk_type": tests.append(.header(.field(.sctpChunkType, try chunkType(name, required(name, value)))))
    default:
      if let (field, maximum) = Self.fields[text] {
        let test = try number(
          name, value, maximum: maximum, dashIncludesEnds: isSnort2 && field == .timeToLive,
          hasSigns: field != .icmpType && field != .icmpCode)
        tests.append(.header(.field(field, test)))
      } else if let header = Self.checksums[text] {
        tests.append(.header(.checksum(header, isValid: try isValid(name, required(name, value)))))
      } else {
        return false
      }
    }
    return true
  }

  /// Options that are a test of a number, and the largest.
  private static let fields: [String: (HeaderField, UInt64)] = [
    "ttl": (.timeToLive, 255), "id": (.identification, 65_535), "fragoffset": (.fragmentOffset, 8191),
    "seq": (.tcpSequence, 0xFFFF_FFFF), "tcp.seq": (.tcpSequence, 0xFFFF_FFFF),
    "ack": (.tcpAcknowledgement, 0xFFFF_FFFF), "tcp.ack": (.tcpAcknowledgement, 0xFFFF_FFFF),
    "window": (.tcpWindow, 65_535), "tcp.window": (.tcpWindow, 65_535), "urg": (.urgentPointer, 65_535),
    "mss": (.segmentSize, 65_535), "tcp.mss": (.segmentSize, 65_535), "wscale": (.windowScale, 255),
    "tcp.wscale": (.windowScale, 255), "itype": (.icmpType, 255), "icode": (.icmpCode, 255),
    "icmp_id": (.icmpID, 65_535), "icmp_seq": (.icmpSequence, 65_535), "icmpv6.mtu": (.icmpv6MTU, 0xFFFF_FFFF),
    "igmp.type": (.igmpType, 255), "vlan.layers": (.vlanCount, 3), "sctp.vtag": (.sctpTag, 0xFFFF_FFFF),
    "sctp.chunk_cnt": (.sctpChunkCount, 0xFFFF), "pkt_num": (.packetNumber, UInt64(Int64.max)),
    "vxlan_vni": (.vxlanNetwork, 0xFF_FFFF),
  ]

  private static let checksums: [String: ChecksummedHeader] = [
    "ipv4-csum": .ipv4, "tcpv4-csum": .tcpv4, "tcpv6-csum": .tcpv6, "udpv4-csum": .udpv4, "udpv6-csum": .udpv6,
    "icmpv4-csum": .icmpv4, "icmpv6-csum": .icmpv6, "igmp-csum": .igmp,
  ]

  private func isValid(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) -> Bool {
    switch value.unquoted.text {
    case "valid": return true
    case "invalid": return false
    default: throw RuleProblem(value.startIndex, "\(name.shown): \(value.shown) is not known", "write valid or invalid")
    }
  }

  /// IPv4 option kinds (RFC 791 §3.1, RFC 1108, RFC 2113, RFC 4782, draft-ietf-cipso-ipsecurity-01).
  private static let ipOptions: [String: UInt8] = [
    "eol": 0, "nop": 1, "rr": 7, "qs": 25, "ts": 68, "sec": 130, "lsrr": 131, "esec": 133, "cipso": 134, "satid": 136,
    "ssrr": 137, "rtralt": 148,
  ]

  private func ipOption(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) -> UInt8? {
    let text = value.text.lowercased()
    if text == "any" { return nil }
    // Snort's name for a loose source route that is not the first of its kind.
    if text == "lsrre", dialect != .suricata { return 131 }
    guard let kind = Self.ipOptions[text] else {
      throw RuleProblem(
        value.startIndex, "\(name.shown): \(value.shown) is no IP option",
        "use any, \(Self.ipOptions.keys.sorted().joined(separator: ", "))")
    }
    return kind
  }

  /// `[!|<|>]N` or a protocol's name.
  private func ipProtocolTest(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) -> NumberTest {
    let isNegated = value.first == UInt8(ascii: "!")
    let word = isNegated ? value.dropFirst().trimmed : value
    if let number = IPProtocolNames.number(word.text) {
      return NumberTest(low: number, high: number, isNegated: isNegated)
    }
    return try number(name, value, maximum: 255)
  }

  /// Suricata writes hexadecimal ones as `x88`, too.
  private func typeOfService(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) -> NumberTest {
    let isNegated = value.first == UInt8(ascii: "!")
    let word = isNegated ? value.dropFirst().trimmed : value
    if dialect == .suricata, word.first.map({ $0 | 0x20 }) == UInt8(ascii: "x"),
      let number = UInt8(word.dropFirst().text, radix: 16)
    {
      return NumberTest(low: number, high: number, isNegated: isNegated)
    }
    return try number(name, value, maximum: 255)
  }

  private func networkTest(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) -> HeaderTest {
    switch value.text.lowercased() {
    case "ip4", "ipv4": return .network(isIPv6: false)
    case "ip6", "ipv6": return .network(isIPv6: true)
    default: throw RuleProblem(value.startIndex, "\(name.shown): \(value.shown) is not known", "write ipv4 or ipv6")
    }
  }

  /// `NUMBER[,LAYER]`.
  private func vlanTest(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) -> HeaderTest {
    let parts = value.split(at: UInt8(ascii: ","))
    var layer = VLANLayer.any
    if parts.count > 1 {
      switch parts[1].text {
      case "any": break
      case "all": layer = .all
      case let text:
        guard let tag = Int8(text), (-3...2).contains(tag), parts.count == 2 else {
          throw RuleProblem(
            parts[1].startIndex, "\(name.shown): no such layer", "write any, all, or a number from -3 to 2")
        }
        layer = .tag(tag)
      }
    }
    return .vlan(layer, try number(name, parts[0], maximum: 4095))
  }

  /// RFC 9260 §3.2, by number or by name.
  private func chunkType(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) -> NumberTest {
    let names: [String: UInt64] = [
      "data": 0, "init": 1, "init_ack": 2, "sack": 3, "heartbeat": 4, "heartbeat_ack": 5, "abort": 6, "shutdown": 7,
      "shutdown_ack": 8, "error": 9, "cookie_echo": 10, "cookie_ack": 11, "ecne": 12, "cwr": 13,
      "shutdown_complete": 14, "auth": 15,
    ]
    if let number = names[value.text.lowercased()] { return NumberTest(number) }
    return try number(name, value, maximum: 255)
  }

  /// `transport` is nil for a protocol that is not supported yet.
  func finishHeader(_ transport: RuleProtocol?, _ start: Int) throws(RuleProblem) {
    guard let transport, transport != .ip else { return }
    for test in tests {
      switch test {
      case .header(.tcpFlags) where transport != .tcp:
        throw RuleProblem(start, "`flags` in a rule that is not for TCP", "make it a tcp rule")
      case .header(.field(.icmpType, _)) where transport != .icmp,
        .header(.field(.icmpCode, _)) where transport != .icmp:
        throw RuleProblem(start, "`itype` or `icode` in a rule that is not for ICMP", "make it an icmp rule")
      default: break
      }
    }
  }
}

/// Names of IP protocols that rules may use in place of numbers (IANA's registry of protocol numbers).
enum IPProtocolNames {
  private static let numbers: [String: UInt8] = [
    "ip": 0, "icmp": 1, "igmp": 2, "ggp": 3, "ipencap": 4, "ipip": 4, "st": 5, "tcp": 6, "egp": 8, "igp": 9, "pup": 12,
    "udp": 17, "hmp": 20, "xns-idp": 22, "rdp": 27, "iso-tp4": 29, "dccp": 33, "xtp": 36, "ddp": 37, "idpr-cmtp": 38,
    "ipv6": 41, "ipv6-route": 43, "ipv6-frag": 44, "idrp": 45, "rsvp": 46, "gre": 47, "esp": 50, "ah": 51, "skip": 57,
    "ipv6-icmp": 58, "icmpv6": 58, "ipv6-nonxt": 59, "ipv6-opts": 60, "rspf": 73, "vmtp": 81, "eigrp": 88, "ospf": 89,
    "ax.25": 93, "etherip": 97, "encap": 98, "pim": 103, "ipcomp": 108, "vrrp": 112, "l2tp": 115, "isis": 124,
    "sctp": 132, "fc": 133, "mobility-header": 135, "udplite": 136, "mpls-in-ip": 137, "hip": 139, "shim6": 140,
  ]

  static func number(_ name: String) -> UInt8? { numbers[name.lowercased()] }
}

extension FragmentBitsTest {
  /// `[+*!=]BITS` with the letters M, D and R; the sign may stand behind, too.
  ///
  /// Alone: exactly these. `*`: any. `+`: all, but any in Snort 3. `!`: none, but "not all" in Suricata. (The manuals say otherwise of
  /// the latter two in places; this is what the engines do.)
  static func parse(_ value: ArraySlice<UInt8>, dialect: RuleDialect) throws(RuleProblem) -> FragmentBitsTest {
    var mode = TCPFlagsTest.Mode.exactly
    var bits: UInt8 = 0
    for (offset, byte) in zip(value.indices, value) where byte != 0x20 {
      switch byte {
      case UInt8(ascii: "+"): mode = dialect == .snort3 ? .any : .all
      case UInt8(ascii: "*"): mode = .any
      case UInt8(ascii: "!"), UInt8(ascii: "-"): mode = dialect == .suricata ? .notAll : TCPFlagsTest.Mode.none
      case UInt8(ascii: "="): mode = .exactly
      case UInt8(ascii: "M"), UInt8(ascii: "m"): bits |= 1
      case UInt8(ascii: "D"), UInt8(ascii: "d"): bits |= 2
      case UInt8(ascii: "R"), UInt8(ascii: "r"): bits |= 4
      default: throw RuleProblem(offset, "fragbits: \([byte].shown) is no bit", "use M, D and R")
      }
    }
    guard bits != 0 else {
      throw RuleProblem(value.startIndex, "fragbits: no bit is named", "for example `fragbits:MD;`")
    }
    return FragmentBitsTest(mode: mode, bits: bits)
  }
}

extension ArraySlice<UInt8> {
  /// Without quotation marks around.
  var unquoted: ArraySlice<UInt8> {
    count >= 2 && first == UInt8(ascii: "\"") && last == UInt8(ascii: "\"") ? dropFirst().dropLast().trimmed : self
  }
}
