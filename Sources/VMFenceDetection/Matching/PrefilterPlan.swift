import VMFenceCore

/// Which rules are looked for together: groups by packet class (which for streams has their direction) and port, as in Snort. A rule whose destination ports are few
/// is looked for in packets to those ports; else one whose source ports are few, in packets from those; all
/// others in every packet of the class, but for those of the list of many destination ports that most rules have. Messages of ICMP have their type for a source port. So a packet is searched at most four times: for its destination port's
/// group, its source port's, the group for any port, and that for many.
///
/// Groups only narrow down: the rule's header is compared with each packet all the same.
struct PrefilterPlan {
  struct Group: Hashable {
    /// In ascending order.
    var rules: [UInt32]
  }

  struct PortTable {
    /// For each of the 65,536 ports a group, or `noGroup`.
    var groups: [UInt16]
  }

  struct ClassPlan {
    var anyPort: UInt16 = noGroup
    var destination: PortTable?
    var source: PortTable?
    /// For the destination ports of many rules, when those are more than `portLimit`.
    var wide: PortTable?
  }

  private(set) var groups: [Group] = []
  /// By `PacketClass.rawValue`.
  private(set) var classes: [ClassPlan] = []

  private var numbers: [[UInt32]: UInt16] = [:]

  /// Rules for more ports than this are looked for at any port.
  private static let portLimit = 4096
  /// Rules for one such list of destination ports that are worth a search of their own, instead of one in every packet.
  private static let wideMinimum = 32

  init(_ rules: [Rule]) throws(RuleCompilationError) {
    var portLimit = Self.portLimit
    // Each port's group has its own copy of the patterns. Where lists of ports overlap so much that the copies would
    // outgrow the rules many times, wide lists are treated as any port.
    while true {
      groups = []
      classes = []
      numbers = [:]
      for packetClass in PacketClass.allCases {
        classes.append(try plan(packetClass, rules, portLimit: portLimit))
      }
      let copies = groups.reduce(0) { $0 + $1.rules.count }
      if copies <= 8 * rules.count + 1024 || portLimit <= 1 { break }
      portLimit /= 4
    }
  }

  private struct Entry {
    var rule: UInt32
    var ports: PortSet
  }

  private mutating func plan(
    _ packetClass: PacketClass, _ rules: [Rule], portLimit: Int
  ) throws(RuleCompilationError) -> ClassPlan {
    var anyPort: [UInt32] = []
    var destination: [Entry] = []
    var source: [Entry] = []
    var wide: [PortSet: [UInt32]] = [:]
    for (index, rule) in rules.enumerated() where Self.applies(rule, to: packetClass) {
      let rule32 = UInt32(index)
      var orientations = [(rule.source.ports, rule.destination.ports)]
      if rule.isBidirectional { orientations.append((rule.destination.ports, rule.source.ports)) }
      for (from, to) in orientations {
        if packetClass == .icmp, let types = rule.messageTypes {
          source.append(Entry(rule: rule32, ports: types))
        } else if !packetClass.hasPorts {
          anyPort.append(rule32)
        } else if Self.isNarrow(to, portLimit) {
          destination.append(Entry(rule: rule32, ports: to))
        } else if Self.isNarrow(from, portLimit) {
          source.append(Entry(rule: rule32, ports: from))
        } else if to.isAny {
          anyPort.append(rule32)
        } else {
          wide[to, default: []].append(rule32)
        }
      }
    }
    var result = ClassPlan()
    // Of lists with as many rules, that of the first rule: equal rules give equal images.
    let most = wide.max { ($0.value.count, $1.value[0]) < ($1.value.count, $0.value[0]) }
    if let most, most.value.count >= Self.wideMinimum {
      wide[most.key] = nil
      result.wide = try table(Self.unique(most.value).map { Entry(rule: $0, ports: most.key) })
    }
    anyPort = (anyPort + wide.values.joined()).sorted()
    if !anyPort.isEmpty { result.anyPort = try number(of: Self.unique(anyPort)) }
    result.destination = try table(destination)
    result.source = try table(source)
    return result
  }

  private static func isNarrow(_ ports: PortSet, _ limit: Int) -> Bool {
    ports.ranges.reduce(0) { $0 + $1.count } <= limit
  }

  private static func unique(_ ascending: [UInt32]) -> [UInt32] {
    var result: [UInt32] = []
    for rule in ascending where result.last != rule { result.append(rule) }
    return result
  }

  /// Sweeps over the ports, and gives every stretch with the same rules its group.
  private mutating func table(_ entries: [Entry]) throws(RuleCompilationError) -> PortTable? {
    guard !entries.isEmpty else { return nil }
    var begins: [Int: [UInt32]] = [:]
    var ends: [Int: [UInt32]] = [:]
    var edges: Set<Int> = []
    for entry in entries {
      for range in entry.ports.ranges {
        begins[Int(range.lowerBound), default: []].append(entry.rule)
        ends[Int(range.upperBound) + 1, default: []].append(entry.rule)
        edges.insert(Int(range.lowerBound))
        edges.insert(Int(range.upperBound) + 1)
      }
    }
    // A bidirectional rule may be here twice for one port.
    var active: [UInt32: Int] = [:]
    var groups = [UInt16](repeating: noGroup, count: 65_536)
    let ordered = edges.sorted()
    for (position, edge) in ordered.enumerated() {
      for rule in ends[edge] ?? [] {
        active[rule] = active[rule].flatMap { $0 > 1 ? $0 - 1 : nil }
      }
      for rule in begins[edge] ?? [] { active[rule, default: 0] += 1 }
      guard !active.isEmpty, edge < 65_536 else { continue }
      let group = try number(of: active.keys.sorted())
      for port in edge..<ordered[position + 1] { groups[port] = group }
    }
    return PortTable(groups: groups)
  }

  private mutating func number(of rules: [UInt32]) throws(RuleCompilationError) -> UInt16 {
    if let known = numbers[rules] { return known }
    guard groups.count < Int(noGroup) else {
      throw RuleCompilationError(
        .tooLarge, "the rules name so many combinations of ports that there are more than \(noGroup) groups",
        remedy: "use fewer distinct port lists")
    }
    let number = UInt16(groups.count)
    groups.append(Group(rules: rules))
    numbers[rules] = number
    return number
  }

  private static func applies(_ rule: Rule, to packetClass: PacketClass) -> Bool {
    // What is wrong with a packet may be that it is of no class.
    if !rule.testsDecoding, !rule.allows(packetClass.ipProtocols) { return false }
    let isIP = [.ip, .ether, .any].contains(rule.ipProtocol) || rule.testsDecoding
    return switch packetClass {
    case .tcp: (isIP || rule.ipProtocol == .tcp) && rule.inspects.contains(.packets)
    case .tcpToServer:
      (isIP || rule.ipProtocol == .tcp) && rule.inspects.contains(.streams) && rule.flow?.contains(.toClient) != true
    case .tcpToClient:
      (isIP || rule.ipProtocol == .tcp) && rule.inspects.contains(.streams) && rule.flow?.contains(.toServer) != true
    case .udp: isIP || rule.ipProtocol == .udp
    case .icmp: isIP || rule.ipProtocol == .icmp
    case .other: isIP || [.sctp, .igmp, .arp].contains(rule.ipProtocol)
    }
  }
}

extension PacketClass {
  /// What such packets' headers can name as their protocol; empty: anything. After extension headers, but for that of authentication
  /// (RFC 4302), which stands before each of them in IPv4.
  fileprivate var ipProtocols: [UInt64] {
    switch self {
    case .tcp, .tcpToServer, .tcpToClient: [6, 51]
    case .udp: [17, 51]
    case .icmp: [1, 58, 51]
    case .other: []
    }
  }
}

extension Rule {
  /// Whether its own tests leave one of these protocols.
  fileprivate func allows(_ protocols: [UInt64]) -> Bool {
    protocols.isEmpty
      || tests.allSatisfy { test in
        guard case .header(.field(.ipProtocol, let number)) = test else { return true }
        return protocols.contains(where: number.holds)
      }
  }

  /// The types of messages that a test asks for, as the ports that they stand for; nil: any.
  fileprivate var messageTypes: PortSet? {
    for case .header(.field(.icmpType, let number)) in tests {
      guard !number.isNegated, number.mask == .max, number.low <= min(number.high, 255) else { continue }
      return PortSet(ranges: [UInt16(number.low)...UInt16(min(number.high, 255))])
    }
    return nil
  }

  /// What the multi-pattern search looks for on behalf of this rule: the content its author chose, or the longest. nil when it
  /// has none that must be there.
  var searchPattern: SearchPattern? {
    var chosen: ContentTest?
    for case .payload(let test) in tests where test.buffer == .payload {
      guard case .content(let content) = test.check, !content.isNegated else { continue }
      if content.fastPattern != nil {
        chosen = content
        break
      }
      if content.pattern.count > chosen?.pattern.count ?? 0 { chosen = content }
    }
    guard let content = chosen else { return nil }
    var bytes = content.pattern[...]
    if let offset = content.fastPattern?.offset, let length = content.fastPattern?.length {
      let start = min(max(offset, 0), bytes.count - 1)
      bytes = bytes[start...].prefix(max(length, 1))
    }
    let pattern = bytes.prefix(PatternDatabase.patternLimit).map { content.ignoresCase ? $0.lowercasedASCII : $0 }
    return SearchPattern(bytes: pattern, ignoresCase: content.ignoresCase)
  }
}

extension UInt8 {
  /// ASCII capital letters become small ones.
  @inline(__always)
  var lowercasedASCII: UInt8 { self &- 65 < 26 ? self | 0x20 : self }
}
