import Testing
import VMFenceCore
import VMFenceDetection

private func parse(_ dialect: RuleDialect, _ text: String, variables: [String: String] = [:]) -> ParsedRules {
  RuleFileParser.parse(RuleSource(file: "x.rules", text: Array(text.utf8), dialect: dialect), variables: variables)
}

/// The only rule of a file without a mistake.
private func onlyRule(_ dialect: RuleDialect, _ text: String, variables: [String: String] = [:]) throws -> Rule {
  let parsed = parse(dialect, text, variables: variables)
  #expect(parsed.diagnostics.isEmpty, "\(text)")
  return try #require(parsed.rules.first, "\(text)")
}

private func onlyRule(_ dialect: RuleDialect, options: String, transport: String = "tcp") throws -> Rule {
  try onlyRule(dialect, "alert \(transport) any any -> any any (\(options) sid:1;)")
}

private func address(_ text: String) throws -> IPAddress { try #require(IPAddress(text)) }

@Suite("Rule heads")
struct LanguageHeadTests {
  @Test(
    "Exclusions win at whatever depth, and a negated list turns over its signs",
    arguments: [
      ("any", ["10.0.0.1", "::1"], []),
      ("10.0.0.0/8", ["10.255.255.255"], ["11.0.0.0", "::1"]),
      ("[10.0.0.0/8,!10.1.0.0/16]", ["10.0.0.1", "10.2.0.0"], ["10.1.2.3", "::1"]),
      ("[any,!10.1.0.0/16]", ["10.0.0.1", "::1"], ["10.1.2.3"]),
      ("!10.0.0.1", ["10.0.0.2", "::1"], ["10.0.0.1"]),
      ("![10.0.0.1,2001:db8::/32]", ["10.0.0.2", "::1"], ["10.0.0.1", "2001:db8::5"]),
      ("[192.0.2.0/24,![192.0.2.1, !10.0.0.1]]", ["192.0.2.2", "10.0.0.1"], ["192.0.2.1"]),
      ("10.0.0.0/255.255.0.0", ["10.0.5.5"], ["10.1.0.0"]),
      ("$NET", ["172.16.0.1", "10.1.1.1"], ["172.16.0.9", "11.1.1.1"]),
      ("!$TEN", ["11.1.1.1"], ["10.1.1.1"]),
    ] as [(String, [String], [String])])
  func addresses(list: String, inside: [String], outside: [String]) throws {
    let rule = try onlyRule(
      .snort2, "alert tcp \(list) any -> any any (sid:1;)",
      variables: ["NET": "[$TEN,172.16.0.0/12,!172.16.0.9]", "TEN": "10.0.0.0/8"])
    let set = rule.source.addresses
    for text in inside { #expect(set.contains(try address(text)), "\(text)") }
    for text in outside { #expect(!set.contains(try address(text)), "\(text)") }
    // The ranges say the same.
    for text in inside + outside {
      let address = try address(text)
      #expect(set.ranges(of: address.family).contains { $0.contains(address) } == set.contains(address), "\(text)")
    }
  }

  @Test("Suricata's address ranges are exact")
  func ranges() throws {
    let rule = try onlyRule(
      .suricata, "alert ip [10.0.0.3-10.0.0.17,2001:db8::fffe-2001:db8::1:2] any -> any any (sid:1;)")
    let set = rule.source.addresses
    for (text, isIn) in [
      ("10.0.0.2", false), ("10.0.0.3", true), ("10.0.0.17", true), ("10.0.0.18", false), ("2001:db8::fffd", false),
      ("2001:db8::fffe", true), ("2001:db8::1:2", true), ("2001:db8::1:3", false),
    ] { #expect(set.contains(try address(text)) == isIn, "\(text)") }
    #expect(set.ranges(of: .v4) == [try address("10.0.0.3")...(try address("10.0.0.17"))])
    let all = try onlyRule(.suricata, "alert ip 0.0.0.0-255.255.255.255 any -> any any (sid:1;)")
    #expect(all.source.addresses.included.map(\.description) == ["0.0.0.0/0"])
  }

  @Test(
    "Ports become sorted ranges",
    arguments: [
      ("any", [0...65_535]), ("80", [80...80]), (":1023", [0...1023]), ("1024:", [1024...65_535]),
      ("!80", [0...79, 81...65_535]), ("[443,80:90,85:100,101]", [80...101, 443...443]),
      ("[1:100,![20:30,50]]", [1...19, 31...49, 51...100]), ("[$HTTP,!8080]", [80...80]),
    ] as [(String, [ClosedRange<UInt16>])])
  func ports(list: String, expected: [ClosedRange<UInt16>]) throws {
    let parsed = parse(
      .snort2, "alert tcp any \(list) -> any any (sid:1;)", variables: ["HTTP": "[80, 8080]"])
    #expect(parsed.rules.first?.source.ports.ranges == expected)
  }

  @Test("Names of IP versions restrict the addresses")
  func families() throws {
    for (name, transport, version) in [
      ("icmpv4", RuleProtocol.icmp, "10.0.0.1"), ("icmpv6", .icmp, "::1"), ("ipv4", .ip, "10.0.0.1"),
      ("ip6", .ip, "::1"),
    ] {
      let rule = try onlyRule(.suricata, "alert \(name) any any -> !10.0.0.7 any (sid:1;)")
      #expect(rule.ipProtocol == transport)
      for text in ["10.0.0.1", "::1"] {
        #expect(rule.source.addresses.contains(try address(text)) == (text == version), "\(name) \(text)")
      }
      #expect(!rule.destination.addresses.contains(try address("10.0.0.7")))
    }
    #expect(try onlyRule(.suricata, "alert TCP-PKT any any -> any any (sid:1;)").ipProtocol == .tcp)
  }

  @Test("Variables of the caller go before those of files; later definitions before earlier; ICMP has no ports")
  func variables() throws {
    let text =
      "ipvar A 10.0.0.1\nalert icmp $A 7 -> any any (sid:1;)\nvar A 10.0.0.2\nalert tcp $A any <> any any (sid:2;)"
    let own = parse(.snort2, text)
    #expect(own.rules.map { $0.source.addresses.included.map(\.description) } == [["10.0.0.1"], ["10.0.0.2"]])
    #expect(own.rules.map(\.isBidirectional) == [false, true])
    #expect(own.rules[0].source.ports.isAny)
    #expect(own.variables == ["A": "10.0.0.2"])
    let given = parse(.snort2, text, variables: ["A": "10.0.0.3"])
    #expect(given.rules.map { $0.source.addresses.included.map(\.description) } == [["10.0.0.3"], ["10.0.0.3"]])
  }

  @Test("Snort 3 heads may be only a protocol")
  func shortHead() throws {
    let rule = try onlyRule(.snort3, "alert udp (msg:\"a\"; sid:1;)")
    #expect(rule.ipProtocol == .udp)
    #expect(rule.source == .any && rule.destination == .any)
  }
}

@Suite("Rule options")
struct LanguageOptionTests {
  private func content(_ dialect: RuleDialect, _ options: String) throws -> ContentTest {
    let rule = try onlyRule(dialect, options: options)
    guard let test = rule.tests.last?.content else { throw NotAContent() }
    return test
  }
  private struct NotAContent: Error {}

  @Test("A pattern mixes text, bytes and escapes")
  func patterns() throws {
    #expect(try content(.snort2, #"content:"a|20 0D0a|b\"\;\\\:|7c|";"#).pattern == Array("a \r\nb\";\\:|".utf8))
    #expect(try content(.suricata, #"content:!"a\:b";"#).isNegated)
    #expect(try content(.snort3, #"content:"a;b(|29|";"#).pattern == Array("a;b()".utf8))
    let raw = RuleFileParser.parse(
      RuleSource(
        file: "x",
        text: Array("alert tcp any any -> any any (content:\"".utf8) + [0xFF, 0xC3] + Array("\"; sid:1;)".utf8),
        dialect: .snort2), variables: [:])
    guard let test = raw.rules.first?.tests.first?.content else { throw NotAContent() }
    #expect(test.pattern == [0xFF, 0xC3])
  }

  @Test("Modifiers are the same in both spellings")
  func modifiers() throws {
    var old = try content(.snort2, "content:\"abcd\"; nocase; offset:-3; depth:9; fast_pattern:1,2;")
    var new = try content(
      .snort3, "content:\"abcd\",nocase,offset -3, depth 9,fast_pattern_offset 1,fast_pattern_length 2;")
    old.place = SourcePlace(file: "")
    new.place = SourcePlace(file: "")
    #expect(old == new)
    #expect(old.ignoresCase && old.offset == -3 && old.depth == 9 && !old.isRelative)
    let relative = try content(.suricata, "content:\"a\"; content:\"bc\"; distance:-1000000; within:1048576; endswith;")
    #expect(
      relative.isRelative && relative.distance == -1_000_000 && relative.within == 1_048_576 && relative.endsBuffer)
    let start = try content(.suricata, "content:\"abc\"; startswith;")
    #expect(start.offset == 0 && start.depth == 3)
  }

  @Test(
    "A range has its ends in it or not, as the dialect says",
    arguments: [
      (.snort2, "dsize:10<>20;", 10, 20), (.snort3, "dsize:10<>20;", 11, 19), (.snort3, "dsize:10<=>20;", 10, 20),
      (.suricata, "dsize:10<>20;", 11, 19), (.suricata, "dsize:10-20;", 11, 19), (.snort2, "dsize:>10;", 11, 65_535),
      (.snort2, "dsize:<10;", 0, 9), (.snort3, "dsize:<=10;", 0, 10), (.suricata, "dsize: >= 10 ;", 10, 65_535),
      (.suricata, "dsize:0x10;", 16, 16), (.suricata, "dsize:2kb;", 2048, 2048), (.snort2, "dsize:7;", 7, 7),
    ] as [(RuleDialect, String, UInt32, UInt32)])
  func numbers(dialect: RuleDialect, option: String, low: UInt32, high: UInt32) throws {
    #expect(try onlyRule(dialect, options: option).tests == [.header(.payloadSize(NumberTest(low: low, high: high)))])
  }

  @Test("ICMP types leave out the ends in every dialect; a negation stays one")
  func icmp() throws {
    for dialect in RuleDialect.allCases {
      #expect(
        try onlyRule(dialect, options: "itype:7<>20;", transport: "icmp").tests == [
          .header(.field(.icmpType, NumberTest(low: 8, high: 19)))
        ]
      )
    }
    #expect(
      try onlyRule(.suricata, options: "icode: != 0;", transport: "icmp").tests
        == [.header(.field(.icmpCode, NumberTest(low: 0, high: 0, isNegated: true)))])
  }

  @Test("Flags: the exclamation mark means none of them in Snort, not all of them in Suricata")
  func flags() throws {
    #expect(
      try onlyRule(.snort2, options: "flags:!SF;").tests == [
        .header(.tcpFlags(.init(mode: .none, flags: 3, ignored: 0)))
      ])
    #expect(
      try onlyRule(.suricata, options: "tcp.flags:!SF;").tests == [
        .header(.tcpFlags(.init(mode: .notAll, flags: 3, ignored: 0)))
      ])
    #expect(
      try onlyRule(.snort3, options: "flags:S,12;").tests == [
        .header(.tcpFlags(.init(mode: .exactly, flags: 2, ignored: 0xC0)))
      ]
    )
    #expect(
      try onlyRule(.suricata, options: "flags: S,CE;").tests == [
        .header(.tcpFlags(.init(mode: .exactly, flags: 2, ignored: 0xC0)))
      ])
    #expect(
      try onlyRule(.snort2, options: "flags:A+;").tests == [
        .header(.tcpFlags(.init(mode: .all, flags: 0x10, ignored: 0)))
      ])
    #expect(
      try onlyRule(.snort2, options: "flags:*UP;").tests == [
        .header(.tcpFlags(.init(mode: .any, flags: 0x28, ignored: 0)))
      ])
    #expect(
      try onlyRule(.snort2, options: "flags:0;").tests == [
        .header(.tcpFlags(.init(mode: .exactly, flags: 0, ignored: 0)))
      ])
  }

  @Test("Flow, rates and what is only said of a rule")
  func others() throws {
    let rule = try onlyRule(
      .suricata,
      options: """
        msg:"a\\"b\\;c"; flow: from_client, established ; threshold: type both , track by_rule, count 3,seconds 60; gid:7; \
        rev:4; classtype:trojan-activity; reference:cve,2014-6271; reference:url,a.example/b?c,d; metadata: a b c, d, a e;
        """)
    #expect(rule.flow == [.toServer, .established])
    #expect(rule.threshold == RuleThreshold(kind: .both, track: .byRule, count: 3, seconds: 60))
    let metadata = rule.metadata
    #expect(metadata.message == "a\"b;c" && metadata.gid == 7 && metadata.revision == 4 && metadata.priority == 1)
    #expect(metadata.references == ["cve,2014-6271", "url,a.example/b?c,d"])
    #expect(metadata.metadata == ["a": ["b c", "e"], "d": [""]])
    #expect(metadata.place == SourcePlace(file: "x.rules", line: 1, column: 1))
    #expect(
      try onlyRule(.snort3, options: "detection_filter:track by_dst,count 5,seconds 2;").detectionFilter
        == RuleThreshold(kind: .filter, track: .byDestination, count: 5, seconds: 2))
  }

  @Test(
    "An own priority goes before the class's, a class of the file before the built-in one, an unknown class is a warning"
  )
  func classes() {
    let parsed = parse(
      .snort2,
      """
      config classification: web-application-attack,Own text,9
      config classification: mine , A class, 2
      alert tcp any any -> any any (classtype:web-application-attack; sid:1;)
      alert tcp any any -> any any (priority:5; classtype:mine; sid:2;)
      alert tcp any any -> any any (classtype:other; sid:3;)
      alert tcp any any -> any any (classtype:other; sid:4;)
      """)
    #expect(parsed.rules.map(\.metadata.priority) == [9, 5, 3, 3])
    #expect(parsed.rules.map(\.metadata.classificationText) == ["Own text", "A class", "", ""])
    #expect(parsed.diagnostics.map(\.severity) == [.warning])
    #expect(parsed.diagnostics.first?.place == SourcePlace(file: "x.rules", line: 5, column: 41))
  }

  @Test("Snort 2's activate and dynamic")
  func activation() {
    let parsed = parse(
      .snort2,
      """
      activate tcp any any -> any 143 (content:"x"; activates:1; sid:1;)
      dynamic tcp any any -> any 143 (activated_by:1; count:50; sid:2;)
      """)
    #expect(parsed.diagnostics.isEmpty)
    #expect(parsed.rules.map(\.activates) == [1, nil])
    #expect(parsed.rules.map(\.activatedBy) == [nil, 1])
    #expect(parsed.rules.map(\.count) == [nil, 50])
  }

  @Test("What is not evaluated yet refuses the rule, names itself and the rule, and is no mistake")
  func unsupported() {
    let parsed = parse(
      .suricata,
      """
      alert http any any -> any any (http.uri; content:"a"; pcre:"/[\\"'\\;]/"; pcre:"/b/"; sid:5; gid:3;)
      alert tcp any any -> any any (content:"a"; offset:1; uricontent:"b"; nocase; sid:6;)
      config dns any any -> any any (sid:7;)
      alert tcp any any => any any (threshold:type limit, track by_flow, count 1, seconds 1; sid:8;)
      """)
    #expect(parsed.rules.isEmpty && parsed.rejected == 4)
    #expect(
      parsed.unsupported.map(\.features) == [
        ["protocol `http`", "option `http.uri`"], ["option `uricontent`"], ["action `config`", "protocol `dns`"],
        ["direction `=>`"],
      ])
    #expect(parsed.unsupported.map(\.sid) == [5, 6, 7, 8])
    #expect(
      parsed.diagnostics.first?.message
        == "protocol `http`, option `http.uri` of rule 3:5 are not supported yet")
    #expect(parsed.diagnostics.allSatisfy { $0.severity == .error })
  }

  @Test("Rules go over lines: with a backslash, in Snort 3 without, with comments and CRLF")
  func lines() throws {
    let continued = try onlyRule(
      .snort2, options: "msg:\"a \\\r\nb\"; metadata:a b, \\  \r\n c d; content:\"x\\\ny\"; \\\n")
    #expect(continued.metadata.message == "a b")
    #expect(continued.metadata.metadata == ["a": ["b"], "c": ["d"]])
    guard let test = continued.tests.first?.content else { throw NotAContent() }
    #expect(test.pattern == Array("xy".utf8))
    let parsed = parse(
      .snort3,
      """
      # first\r
      alert tcp\r
          any any -> any 80 # where
      (
          msg:"a (b)"; # what
          # flow:to_server;
          content:"x",
              nocase, depth 5;
          sid:1;
      ) # end
      alert udp (sid:2;)
      """)
    #expect(parsed.diagnostics.isEmpty, "\(parsed.diagnostics)")
    #expect(parsed.rules.map(\.metadata.sid) == [1, 2])
    #expect(parsed.rules.first?.flow == nil)
    #expect(parsed.rules.first?.head == "tcp any any -> any 80")
  }

  @Test(
    "A dialect is told by what only it has",
    arguments: [
      ("alert tcp any any -> any any (content:\"a\"; nocase; sid:1;)", .snort2),
      ("alert tcp any any -> any any (content:\"a\",nocase; sid:1;)", .snort3),
      ("alert http (sid:1;)", .snort3), ("alert tcp any any -> any any\n(\nsid:1;\n)", .snort2),
      ("alert tcp any any -> any any (\nsid:1;\n)", .snort3),
      ("alert tcp any any -> any any (http.uri; sid:1;)", .suricata),
      ("alert tls any any -> any any (sid:1;)", .suricata),
      ("# http.uri; startswith;\nipvar A any\nalert tcp any any -> any any (sid:1;)", .snort2),
      ("alert tcp any any -> any any (threshold:type limit, track by_rule, count 1, seconds 1; sid:1;)", .suricata),
      ("alert tcp any any -> any any (content:\"; bsize:1; \"; uricontent:\"a\"; activates:1; sid:1;)", .snort2),
      ("", .snort2),
    ] as [(String, RuleDialect)])
  func detection(text: String, dialect: RuleDialect) {
    let parsed = RuleFileParser.parse(RuleSource(file: "x", text: Array(text.utf8)), variables: [:])
    #expect(parsed.dialect == dialect)
    #expect(parsed.diagnostics.first?.severity == .note)
    #expect(parsed.diagnostics.first?.message.hasPrefix("taken for \(dialect.rawValue) rules: ") == true)
  }
}

@Suite("Rule sets")
struct LanguageRuleSetTests {
  private func set(_ sources: (RuleDialect, String)...) -> RuleSet {
    RuleSet.parse(
      RuleCompilationRequest(
        sources: sources.enumerated().map { index, source in
          RuleSource(file: "\(index).rules", text: Array(source.1.utf8), dialect: source.0)
        }))
  }

  @Test("Rules are resolved by action, protocol and head, and keep their order within")
  func order() {
    let text = """
      log tcp any any -> any any (sid:1;)
      alert ip any any -> any any (sid:2;)
      alert udp any any -> any any (sid:3;)
      alert tcp any any -> any 80 (sid:4;)
      alert tcp any any -> any 443 (sid:5;)
      alert tcp any any -> any 80 (sid:6;)
      reject tcp any any -> any any (sid:7;)
      sdrop tcp any any -> any any (sid:8;)
      drop icmp any any -> any any (sid:9;)
      pass tcp any any -> any any (sid:10;)
      dynamic tcp any any -> any any (activated_by:1; count:1; sid:11;)
      activate tcp any any -> any any (activates:1; sid:12;)
      """
    let set = set((.snort2, text))
    #expect(set.rules.map(\.metadata.sid) == [12, 11, 10, 9, 8, 7, 4, 6, 5, 3, 2, 1])
    #expect(set.diagnostics.isEmpty)
    #expect(
      set.list.rendered(domain: "web\u{7}").hasPrefix(
        """
        domain web\\u{7}: 12 rules, the first that matches decides
          activate
            tcp
              tcp any any -> any any
                #0 1:12:0 activates 1 (0.rules:12:1)
          dynamic
            tcp
              tcp any any -> any any
                #1 1:11:0 activated by 1 for 1 packets (0.rules:11:1)

        """))
  }

  @Test("Each dialect has its own order of actions")
  func actionOrder() {
    func sids(_ dialect: RuleDialect, _ actions: [String]) -> [String] {
      let text = actions.enumerated().map { "\($1) tcp any any -> any any (sid:\($0 + 1);)\n" }.joined()
      return set((dialect, text)).rules.map { actions[Int($0.metadata.sid) - 1] }
    }
    #expect(
      sids(.snort2, ["log", "alert", "reject", "sdrop", "drop", "pass"]) == [
        "pass", "drop", "sdrop", "reject", "alert", "log",
      ])
    #expect(
      sids(.snort3, ["log", "alert", "drop", "block", "reject", "pass"]) == [
        "pass", "reject", "block", "drop", "alert", "log",
      ])
    #expect(
      sids(.suricata, ["alert", "rejectboth", "reject", "drop", "pass"]) == [
        "pass", "drop", "rejectboth", "reject", "alert",
      ])
  }

  @Test("The newest revision of a rule is used, whichever file it is in; variables and classes hold across files")
  func revisions() {
    let set = set(
      (.snort2, "ipvar A 10.0.0.1\nconfig classification: own,Text,7\nalert tcp any any -> any any (sid:1; rev:2;)"),
      (
        .suricata,
        "alert tcp $A any -> any any (sid:1; rev:3; classtype:own;)\nalert tcp any any -> any any (sid:1; rev:1;)"
      ),
      (.snort3, "alert tcp any any -> any any (gid:2; sid:1;)"))
    #expect(set.rules.map(\.metadata.revision) == [3, 0])
    #expect(set.rules.first?.metadata.priority == 7)
    #expect(set.diagnostics.map(\.severity) == [.warning, .warning])
    #expect(set.diagnostics.map { $0.place?.description } == ["0.rules:3:1", "1.rules:2:1"])
    #expect(set.diagnostics.first?.message.contains("revision 3 is newer") == true)
    #expect(set.rejected == 0)
  }

  @Test("Ports of a rule for `ip` are compared, but for Snort 3's, where they are worth a warning")
  func portsOfIP() throws {
    let text = "alert ip any any -> any 5060 (content:\"INVITE\"; sid:1;)"
    for dialect in RuleDialect.allCases {
      let set = parse(dialect, text)
      #expect(set.diagnostics.map(\.severity) == (dialect == .snort3 ? [.warning] : []))
      #expect(set.diagnostics.allSatisfy { $0.place?.column == 25 && $0.message.contains("no notice of ports") })
      #expect(set.rules.first?.destination.ports.isAny == (dialect == .snort3))
    }
  }

  @Test("An activation without its other half is worth a warning")
  func halves() {
    let set = set(
      (
        .snort2,
        "activate tcp any any -> any any (activates:1; sid:1;)\ndynamic tcp any any -> any any (activated_by:2; count:1; sid:2;)"
      ))
    #expect(set.rules.count == 2)
    #expect(set.diagnostics.map(\.severity) == [.warning, .warning])
  }

  @Test("A domain gets what all get, what its service gets, and its own")
  func catalog() {
    func source(_ name: String) -> RuleSource { RuleSource(file: name, text: []) }
    let catalog = RuleSetCatalog(
      common: [source("common")], byService: ["http": [source("http")]], defaults: [source("default")],
      byDomain: ["web": [source("own")]])
    func files(_ name: String, _ service: String?) -> [String] {
      catalog.sources(domainName: name, serviceType: service).map(\.file)
    }
    #expect(files("web", "http") == ["common", "http", "own"])
    #expect(files("b", "http") == ["common", "http"])
    #expect(files("b", "gopher") == ["common", "default"])
    #expect(files("b", nil) == ["common", "default"])
    #expect(catalog.knows(serviceType: "http") && !catalog.knows(serviceType: "gopher"))
    #expect(RuleSetCatalog<RuleSource>().sources(domainName: "b", serviceType: "http").isEmpty)
  }
}
