import Testing
import VMFenceCore
import VMFenceDetection

/// `iprep` and `geoip`: what lists say of a packet's hosts.
@Suite("Reputations and countries of hosts") struct HostListTests {
  private static let categories = """
    # number, name, what it is
    1,BadHosts,Hosts known for evil
    2,Google,Google's

    """
  private static let lists = """
    192.0.2.1,1,100
    192.0.2.0/24,1,10
    192.0.2.128/25,1,50
    192.0.2.200,2,7
    2001:db8::/32,1,90
    2001:db8::1,1,3
    0.0.0.0/1,2,1
    """

  private func source(_ text: some StringProtocol, _ file: String = "lists") -> RuleSource {
    RuleSource(file: file, text: Array(text.utf8))
  }

  private func compile(
    _ options: String, _ adjustments: RuleAdjustments
  ) throws -> RuleCompilation<SnortRules> {
    try SnortRuleEngine(adjustments: adjustments).compile(
      RuleCompilationRequest(
        sources: [
          RuleSource(
            file: "r",
            text: Array(
              "alert udp any any -> any any (content:\"x\"; \(options); sid:1;)\nalert tcp any any -> any 9 (sid:2;)"
                .utf8),
            dialect: .suricata)
        ], onBadRule: .skip))
  }

  /// Of these pairs of hosts, those whose packet a rule with the option fires for.
  private func fires(
    _ option: String, _ adjustments: RuleAdjustments, _ pairs: [(String, String)]
  ) throws -> [Bool] {
    var engine = try EngineUnderTest(try compile(option, adjustments).rules)
    return pairs.map { pair in
      engine.inspect(Frame(source: pair.0, destination: pair.1).carrying("x").udp) == [1]
    }
  }

  private var reputations: RuleAdjustments {
    RuleAdjustments(reputationCategories: [source(Self.categories)], reputations: [source(Self.lists)])
  }

  @Test("the smallest listed network counts, for each category by itself, in both families")
  func smallest() throws {
    let hosts = [
      "192.0.2.1", "192.0.2.2", "192.0.2.127", "192.0.2.128", "192.0.2.200", "192.0.2.255", "192.0.3.0", "192.0.1.255",
    ]
    let pairs = hosts.map { ($0, "203.0.113.1") }
    let expected: [(String, [Bool])] = [
      ("src,BadHosts,>,49", [true, false, false, true, true, true, false, false]),
      ("src,BadHosts,=,10", [false, true, true, false, false, false, false, false]),
      ("src,BadHosts,!=,10", [true, false, false, true, true, true, false, false]),
      ("src,BadHosts,<,11", [false, true, true, false, false, false, false, false]),
      ("src,BadHosts,isset", [true, true, true, true, true, true, false, false]),
      ("src,BadHosts,isnotset", [false, false, false, false, false, false, true, true]),
      ("src,Google,>=,1", [false, false, false, false, true, false, false, false]),
      ("src,BadHosts,>,100", Array(repeating: false, count: 8)),
    ]
    for (option, answers) in expected {
      #expect(try fires("iprep:\(option)", reputations, pairs) == answers, "\(option)")
    }
    let v6 = ["2001:db8::1", "2001:db8::2", "2001:db9::"].map { ($0, "2001:db9::9") }
    #expect(try fires("iprep:src,BadHosts,>,50", reputations, v6) == [false, true, false])
    #expect(try fires("iprep:src,BadHosts,isnotset", reputations, v6) == [false, false, true])
    // Over the middle of all addresses, up to its last.
    let half = ["127.255.255.255", "128.0.0.0", "0.0.0.0"].map { ($0, "203.0.113.1") }
    #expect(try fires("iprep:src,Google,isset", reputations, half) == [true, false, true])
  }

  @Test("of one host, either or both")
  func sides() throws {
    let pairs = [
      ("192.0.2.1", "192.0.2.128"), ("192.0.2.1", "203.0.113.1"), ("203.0.113.1", "192.0.2.1"),
      ("203.0.113.1", "203.0.113.2"),
    ]
    for (side, answers) in [
      ("src", [true, true, false, false]), ("dst", [true, false, true, false]), ("any", [true, true, true, false]),
      ("both", [true, false, false, false]),
    ] {
      #expect(try fires("iprep:\(side),BadHosts,>,20", reputations, pairs) == answers, "\(side)")
    }
  }

  @Test("mistakes are told with their place, and without lists such rules are refused")
  func mistakes() throws {
    var adjustments = reputations
    adjustments.reputationCategories.append(source("9,Nine\n60,Sixty,too many\n x,Ten,", "c"))
    adjustments.reputations.append(
      source("192.0.2.1,9\n192.0.2.300,1,5\n192.0.2.1,1,128\n192.0.2.7,9,127 # right", "l"))
    let result = try compile("iprep:src,BadHost,>,1", adjustments)
    let errors = result.diagnostics.filter { $0.severity == .error }
    #expect(
      errors.compactMap(\.place).map { "\($0.file):\($0.line):\($0.column)" } == [
        "c:2:1", "c:3:2", "l:1:1", "l:2:1", "l:3:1", "r:1:54",
      ], "\(errors)")
    #expect(errors.last?.remedy.contains("BadHosts") == true)
    for option in ["iprep:src,BadHosts,isset", "geoip:src,SE"] {
      let refused = try compile(option, RuleAdjustments())
      #expect(refused.loaded == 1 && refused.rejected == 1)
      #expect(refused.diagnostics.contains { $0.message.contains("of rule 1:1 is not supported yet") }, "\(option)")
    }
  }

  // MARK: Countries

  @Test(
    "countries are those of the database, in IPv4 and IPv6, whatever the size of its records", arguments: [24, 28, 32])
  func countries(_ recordSize: Int) throws {
    let networks = [
      ("192.0.2.0/24", "SE"), ("192.0.3.0/24", "NO"), ("198.51.100.64/26", "SE"), ("2001:db8::/32", "NO"),
      ("203.0.113.7/32", "DE"),
    ]
    for isIPv6 in [true, false] {
      let database = CountryDatabaseFile(networks, recordSize: recordSize, isIPv6: isIPv6)
      let adjustments = RuleAdjustments(countryDatabase: RuleSource(file: "db", text: database.bytes))
      let pairs = [
        ("192.0.2.9", "192.0.3.9"), ("192.0.3.9", "198.51.100.63"), ("198.51.100.64", "198.51.100.127"),
        ("203.0.113.7", "203.0.113.6"), ("10.0.0.1", "10.0.0.2"),
      ]
      for (option, answers) in [
        ("src,SE", [true, false, true, false, false]), ("dst,se,no", [true, false, true, false, false]),
        ("both,SE", [false, false, true, false, false]), ("SE,DE", [true, false, true, true, false]),
        ("any,NO", [true, true, false, false, false]), ("src,!SE", [false, true, false, true, false]),
        ("src,FR", [false, false, false, false, false]),
      ] {
        #expect(try fires("geoip:\(option)", adjustments, pairs) == answers, "\(option) \(recordSize) \(isIPv6)")
      }
      let v6 = [("2001:db8::1", "2001:db9::1"), ("2001:db9::1", "2001:db8::1")]
      #expect(try fires("geoip:src,NO", adjustments, v6) == [isIPv6, false])
    }
  }

  @Test("a rule about reputations alone is for a flow's first packets, one about countries for each packet")
  func packetsOfFlow() throws {
    let database = CountryDatabaseFile([("192.0.2.0/24", "SE")], recordSize: 24, isIPv6: true)
    var adjustments = reputations
    adjustments.countryDatabase = RuleSource(file: "db", text: database.bytes)
    for (option, expected) in [("geoip:src,SE", [[1], [1], [1]]), ("iprep:src,BadHosts,>,5", [[1], [], []])]
      as [(String, [[UInt32]])]
    {
      let text = "alert udp any any -> any any (\(option); sid:1;)"
      let request = RuleCompilationRequest(sources: [
        RuleSource(file: "r", text: Array(text.utf8), dialect: .suricata)
      ])
      var engine = try EngineUnderTest(try SnortRuleEngine(adjustments: adjustments).compile(request).rules)
      let frame = Frame(source: "192.0.2.9").carrying("x").udp
      #expect(engine.inspect([frame, frame, frame]) == expected, "\(option)")
    }
  }

  @Test("a database that was cut or changed anywhere is refused or read, and never traps")
  func damaged() throws {
    let whole = CountryDatabaseFile([("192.0.2.0/24", "SE"), ("2001:db8::/32", "NO")], recordSize: 24, isIPv6: true)
      .bytes
    var refused = 0
    func look(_ bytes: [UInt8]) throws {
      let result = try compile("geoip:src,SE", RuleAdjustments(countryDatabase: RuleSource(file: "d", text: bytes)))
      if result.diagnostics.contains(where: { $0.severity == .error }) { refused += 1 }
    }
    try look(whole)
    #expect(refused == 0)
    for cut in stride(from: 0, to: whole.count, by: 31) { try look(Array(whole[..<cut])) }
    #expect(refused == (whole.count + 30) / 31)
    for place in stride(from: 0, to: whole.count, by: 7) {
      for value in [0x00, 0xFF, 0x20] as [UInt8] {
        var bytes = whole
        bytes[place] ^= value
        try look(bytes)
      }
    }
    // A tree whose nodes lead back to its root.
    var loop = whole
    for index in 0..<600 { loop[index] = 0 }
    let before = refused
    try look(loop)
    #expect(refused == before + 1)
  }
}

/// Writes a database in the MaxMind DB format, as small as can be.
private struct CountryDatabaseFile {
  private(set) var bytes: [UInt8] = []

  init(_ networks: [(network: String, country: String)], recordSize: Int, isIPv6: Bool) {
    // Children: a node's number, or -1 for none, or -2 - (index of the country).
    var nodes: [(Int, Int)] = [(-1, -1)]
    let names = Array(Set(networks.map(\.country))).sorted()
    for (text, country) in networks {
      guard let network = IPNetwork(text), let name = names.firstIndex(of: country) else { continue }
      let isV4 = network.base.family == .v4
      guard isIPv6 || isV4 else { continue }
      let zeros = [Int](repeating: 0, count: isV4 && isIPv6 ? 96 : 0)
      let bits = zeros + (0..<Int(network.prefix)).map { Self.bit($0, of: network.base) }
      var node = 0
      for (depth, bit) in bits.enumerated() {
        let isLast = depth == bits.count - 1
        var child = bit == 0 ? nodes[node].0 : nodes[node].1
        if isLast {
          child = -2 - name
        } else if child < 0 {
          child = nodes.count
          nodes.append((-1, -1))
        }
        if bit == 0 { nodes[node].0 = child } else { nodes[node].1 = child }
        node = child
      }
    }
    // The first record's country is spelt out, the others' keys are pointers to it.
    var data: [UInt8] = []
    var places: [Int] = []
    for name in names {
      places.append(data.count)
      let keys = places.count == 1 ? (Self.text("country"), Self.text("iso_code")) : ([0x20, 8], [0x20, 17])
      // Something else comes first.
      var other = Self.text("a")
      other += [0xE1] + Self.text("b")
      other += [0xA1, 7]
      data += [0xE2] + other
      data += keys.0 + [0xE1]
      data += keys.1 + Self.text(name)
    }
    func value(_ child: Int) -> Int {
      child >= 0 ? child : child == -1 ? nodes.count : nodes.count + 16 + places[-2 - child]
    }
    for (left, right) in nodes.map({ (value($0.0), value($0.1)) }) {
      switch recordSize {
      case 24: bytes += Self.big(left, 3) + Self.big(right, 3)
      case 28:
        let high = (left >> 24) << 4 | (right >> 24)
        bytes += Self.big(left, 3)
        bytes.append(UInt8(high))
        bytes += Self.big(right, 3)
      default: bytes += Self.big(left, 4) + Self.big(right, 4)
      }
    }
    bytes += Array(repeating: 0, count: 16) + data + [0xAB, 0xCD, 0xEF] + Array("MaxMind.com".utf8)
    bytes += [0xE9] + Self.text("binary_format_major_version") + [0xA1, 2]
    bytes += Self.text("binary_format_minor_version") + [0xA1, 0]
    bytes += Self.text("build_epoch") + [0x04, 0x02] + Self.big(1_700_000_000, 4)
    bytes += Self.text("database_type") + Self.text("Countries")
    bytes += Self.text("languages") + [0x00, 0x04] + Self.text("description") + [0xE0]
    bytes += Self.text("node_count")
    bytes += [0xC4] + Self.big(nodes.count, 4)
    bytes += Self.text("record_size") + [0xA1, UInt8(recordSize)]
    bytes += Self.text("ip_version") + [0xA1, isIPv6 ? 6 : 4]
  }

  private static func bit(_ index: Int, of address: IPAddress) -> Int {
    let place = address.family == .v4 ? index + 96 : index
    let word = place < 64 ? address.high : address.low
    return Int(word >> UInt64(63 - place % 64)) & 1
  }

  private static func text(_ text: String) -> [UInt8] { [0x40 | UInt8(text.utf8.count)] + Array(text.utf8) }

  private static func big(_ value: Int, _ count: Int) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: value >> (8 * (count - 1 - $0))) }
  }
}
