import VMFenceCore

/// When a rule is compared, and how far its verdict reaches.
extension Rule {
  /// Suricata: the rule is about addresses, ports and protocol alone (and may set bits): it is compared with the first packet of each
  /// direction of a flow, and its verdict is for the flow.
  var isAddressOnly: Bool {
    isLikeAddressOnly && source.addresses.excluded.isEmpty && destination.addresses.excluded.isEmpty
  }

  /// As `isAddressOnly`, but addresses may be excluded; such a rule is compared with every packet.
  private var isLikeAddressOnly: Bool {
    guard dialect == .suricata, ipProtocol.isOfFlows, tests.allSatisfy(\.isOfAddresses) else { return false }
    return effects.allSatisfy { effect in
      switch effect {
      case .noAlert, .alert, .hostBit, .tag: true
      case .flowBits(let change): change.kind == .set
      case .bypass, .flowInteger, .reassembly: false
      }
    }
  }

  /// Whether the verdict (or `pass`) is for the rest of the flow too, wherever the match was found.
  ///
  /// - Suricata: that of a rule about addresses alone.
  /// - Snort 3: `block` and the rejects; `drop` is for the packet.
  /// - Snort 2: all but `pass`.
  var actsOnFlow: Bool {
    switch action {
    case .alert, .log, .rewrite, .activate, .dynamic: false
    case .pass: dialect == .suricata && isLikeAddressOnly
    case .drop: dialect == .snort2 || dialect == .suricata && isLikeAddressOnly
    case .reject, .rejectSource, .rejectDestination, .rejectBoth: dialect != .suricata || isLikeAddressOnly
    case .block, .react, .sdrop: true
    }
  }

  /// Whether the rule is about what is wrong with packets: it sees those, too, that no other rule is compared with.
  var testsDecoding: Bool { tests.contains { if case .header(.decodeEvent) = $0 { true } else { false } } }

  /// What such a rule's protocol means for a packet whose transport header cannot be read: the number in the network header.
  mutating func widenToMalformed() {
    guard testsDecoding else { return }
    let number: UInt64
    switch ipProtocol {
    case .tcp: number = 6
    case .udp: number = 17
    case .sctp: number = 132
    case .igmp: number = 2
    case .icmp, .ip, .arp, .ether, .any: return
    }
    ipProtocol = .any
    tests.insert(.header(.field(.ipProtocol, NumberTest(low: number, high: number))), at: 0)
  }

  /// `RuleRecord.tcpFlags`.
  var tcpFlags: UInt16 {
    guard ipProtocol == .tcp else { return 0 }
    var (wanted, unwanted): (UInt8, UInt8) = (0, 0)
    for case .header(.tcpFlags(let test)) in tests {
      switch test.mode {
      case .exactly:
        wanted |= test.flags
        unwanted |= ~(test.flags | test.ignored)
      case .all: wanted |= test.flags
      case .none: unwanted |= test.flags & ~test.ignored
      case .any, .notAll: break
      }
    }
    return UInt16(unwanted) << 8 | UInt16(wanted)
  }

  /// Whether it has a `replace`.
  var replaces: Bool { tests.contains { $0.content?.replacement != nil } }

  /// `RuleRecord.moreFlags`.
  var moreFlags: UInt8 {
    var flags: UInt8 = 0
    if isAddressOnly { flags |= RuleRecord.isOncePerDirection }
    // Suricata's streams pass over such packets, its rules about headers do not.
    let isAboutHeaders = tests.allSatisfy { if case .payload = $0 { false } else { true } }
    let isAboutChecksums = tests.contains { if case .header(.checksum) = $0 { true } else { false } }
    if isAboutChecksums || dialect == .suricata && isAboutHeaders {
      flags |= RuleRecord.seesBadChecksums
    }
    if testsDecoding || ipProtocol == .any || ipProtocol == .ether { flags |= RuleRecord.seesMalformed }
    if dialect == .suricata { flags |= RuleRecord.actsOnStream }
    // Snort 3 overwrites with one action only.
    if replaces, dialect != .snort3 || action == .rewrite { flags |= RuleRecord.replaces }
    return flags
  }
}

extension RuleTest {
  fileprivate var isOfAddresses: Bool {
    switch self {
    case .header(.field(.ipProtocol, _)), .state(.addresses): true
    case .header, .payload, .state: false
    }
  }
}
