import Testing
import VMFenceCore
import VMFenceDetection

/// What each part of a rule asks of a packet.
@Suite struct EngineRuleTests {
  /// One content case: options, payload, whether it fires.
  struct ContentCase: CustomTestStringConvertible, Sendable {
    let options: String
    let payload: String
    let fires: Bool
    var testDescription: String { "\(options) on \(payload): \(fires)" }

    init(_ options: String, _ payload: String, _ fires: Bool) {
      self.options = options
      self.payload = payload
      self.fires = fires
    }
  }

  static let contents: [ContentCase] = [
    .init("content:\"abc\";", "xxabcxx", true),
    .init("content:\"abc\";", "xxabxcx", false),
    .init("content:\"abc\";", "", false),
    .init("content:\"ABC\";", "xxabcxx", false),
    .init("content:\"aBc\"; nocase;", "xxAbCxx", true),
    .init("content:\"a[c\"; nocase;", "xxA{Cxx", false),
    .init("content:\"|41 00|b\";", "A\u{0}b", true),
    .init("content:\"|00 00|\";", "A\u{0}\u{0}b", true),
    .init("content:\"|00|b|5C|\";", "A\u{0}b\\", true),
    .init("content:\"a.c\";", "abc", false),
    .init("content:!\"abc\";", "xxabcxx", false),
    .init("content:!\"abc\";", "xxabxx", true),
    .init("content:!\"abc\";", "", true),
    .init("content:\"abc\"; offset:2;", "abcd", false),
    .init("content:\"abc\"; offset:2;", "xxabc", true),
    .init("content:\"abc\"; depth:3;", "abcd", true),
    .init("content:\"abc\"; depth:3;", "xabc", false),
    .init("content:\"abc\"; offset:1; depth:4;", "xxabc", true),
    .init("content:\"abc\"; offset:1; depth:4;", "xxxabc", false),
    .init("content:!\"abc\"; offset:1; depth:4;", "xxxabc", true),
    .init("content:!\"abc\"; offset:1; depth:4;", "xxabc", false),
    .init("content:\"a\"; content:\"b\"; distance:1;", "ab", false),
    .init("content:\"a\"; content:\"b\"; distance:1;", "axb", true),
    .init("content:\"a\"; content:\"b\"; distance:0; within:1;", "ab", true),
    .init("content:\"a\"; content:\"b\"; distance:0; within:1;", "axb", false),
    .init("content:\"a\"; content:\"b\"; distance:1; within:1;", "axb", true),
    .init("content:\"a\"; content:\"b\"; distance:1; within:2;", "axxb", true),
    .init("content:\"a\"; content:\"b\"; distance:1; within:2;", "axxxb", false),
    .init("content:\"b\"; content:\"a\"; distance:-2; within:1;", "ab", true),
    .init("content:\"cd\"; content:\"ab\"; distance:-10;", "abcd", true),
    .init("content:\"cd\"; content:\"ab\"; distance:-4; within:2;", "abcd", true),
    .init("content:\"cd\"; content:\"ab\"; distance:-3; within:2;", "abcd", false),
    .init("content:\"a\"; content:!\"b\"; distance:0; within:1;", "ab", false),
    .init("content:\"a\"; content:!\"b\"; distance:0; within:1;", "axb", true),
    .init("content:\"a\"; content:!\"b\"; within:1;", "a", true),
    // An earlier content is retried: the first "a" is not followed by "b" in time.
    .init("content:\"a\"; content:\"b\"; within:1;", "axxab", true),
    .init("content:\"a\"; content:\"b\"; within:2; content:\"c\"; within:1;", "abxaxbxabc", true),
    .init("content:\"a\"; content:\"b\"; within:2; content:\"c\"; within:1;", "abxaxbxabxc", false),
    .init("content:\"a\"; content:!\"b\"; within:1; content:\"c\"; distance:0;", "abac", true),
    .init("content:\"a\"; content:!\"b\"; within:1; content:\"c\"; distance:0;", "abab", false),
    .init("content:\"x\"; content:\"a\"; offset:0; content:\"b\"; within:1;", "ab", false),
    .init("content:\"x\"; content:\"a\"; offset:0; content:\"b\"; within:1;", "acabx", true),
    .init("content:\"long pattern of some length\";", "a long pattern of some length.", true),
    .init("content:\"long pattern of some length\";", "a long pattern of some lengtt.", false),
    .init("content:\"one\"; content:\"two\"; fast_pattern;", "two one", true),
    .init("content:\"one\"; content:\"twenty\"; fast_pattern:1,3;", "one wen", false),
    .init("content:\"one\"; content:\"twenty\"; fast_pattern:1,3;", "one twenty", true),
    .init("content:\"one\"; fast_pattern:only;", "an one", true),
    .init("dsize:3;", "abc", true),
    .init("dsize:3;", "abcd", false),
    .init("dsize:>3;", "abcd", true),
    .init("dsize:<3;", "abc", false),
    .init("dsize:1<>3;", "abc", true),
  ]

  @Test("contents are where the rule says", arguments: contents)
  func content(_ test: ContentCase) throws {
    var engine = try EngineUnderTest("alert tcp any any -> any any (\(test.options) sid:1;)")
    #expect(engine.inspect(Frame().carrying(test.payload).tcp) == (test.fires ? [1] : []))
  }

  @Test("a pattern longer than what the multi-pattern search takes is compared in full")
  func longContent() throws {
    let pattern = String(repeating: "abcdefgh", count: 30)
    var engine = try EngineUnderTest("alert tcp any any -> any any (content:\"\(pattern)\"; sid:1;)")
    #expect(engine.inspect(Frame().carrying("xx" + pattern + "yy").tcp) == [1])
    #expect(engine.inspect(Frame().carrying("xx" + pattern.dropLast() + "yy").tcp) == [])
  }

  struct HeaderCase: CustomTestStringConvertible, Sendable {
    let head: String
    let frame: Frame
    let fires: Bool
    var testDescription: String {
      "\(head) on \(frame.source):\(frame.sourcePort) -> \(frame.destination):\(frame.destinationPort)"
    }

    init(_ head: String, _ fires: Bool, _ change: (inout Frame) -> Void = { _ in }) {
      self.head = head
      self.fires = fires
      frame = Frame().with(change)
    }
  }

  static let headers: [HeaderCase] = [
    .init("tcp any any -> any any", true),
    .init("udp any any -> any any", false),
    .init("ip any any -> any any", true),
    .init("icmp any any -> any any", false),
    .init("tcp 192.0.2.1 any -> any any", true),
    .init("tcp 192.0.2.0/24 any -> 198.51.100.0/24 any", true),
    .init("tcp 192.0.3.0/24 any -> any any", false),
    .init("tcp !192.0.2.0/24 any -> any any", false),
    .init("tcp !192.0.3.0/24 any -> any any", true),
    .init("tcp [192.0.2.0/24,!192.0.2.1] any -> any any", false),
    .init("tcp [192.0.2.0/24,!192.0.2.2] any -> any any", true),
    .init("tcp any any -> any 80", true),
    .init("tcp any any -> any !80", false),
    .init("tcp any any -> any [79,81]", false),
    .init("tcp any any -> any [70:90,!80]", false),
    .init("tcp any any -> any [70:90,!81]", true),
    .init("tcp any any -> any :80", true),
    .init("tcp any any -> any 81:", false),
    .init("tcp any 40000 -> any any", true),
    .init("tcp any 40000 -> any 80", true),
    .init("tcp any 40001 -> any 80", false),
    .init("ip any any -> any 80", true),
    .init("ip any any -> any 81", false),
    .init("tcp 198.51.100.2 80 -> any any", false),
    .init("tcp 198.51.100.2 80 <> any any", true),
    .init("tcp 198.51.100.2 80 <> 192.0.2.1 40000", true),
    .init("tcp 192.0.2.1 any <> any 80", true),
    .init("tcp 192.0.2.1 80 <> any any", false),
    .init("tcp 2001:db8::/32 any -> any any", false),
    .init("tcp 2001:db8::/32 any -> any any", true) {
      $0.source = "2001:db8::1"
      $0.destination = "2001:db9::1"
    },
    .init("tcp 2001:db8::/127 any -> any any", false) {
      $0.source = "2001:db8::2"
      $0.destination = "2001:db9::1"
    },
    .init("tcp !2001:db8::/64 any -> any any", true) {
      $0.source = "2001:db8:0:1::"
      $0.destination = "2001:db9::1"
    },
    .init("tcp 192.0.2.0/24 any -> any any", false) {
      $0.source = "2001:db8::2"
      $0.destination = "2001:db9::1"
    },
    .init("tcp any any -> any 65535", true) { $0.destinationPort = 65_535 },
    .init("tcp any 0 -> any any", true) { $0.sourcePort = 0 },
  ]

  @Test("heads tell packets apart, with a content and without", arguments: headers)
  func header(_ test: HeaderCase) throws {
    for options in ["content:\"GET\";", ""] {
      var engine = try EngineUnderTest("alert \(test.head) (\(options) sid:1;)")
      #expect(engine.inspect(test.frame.carrying("a GET").tcp) == (test.fires ? [1] : []))
    }
  }

  @Test("rules of many port lists fire for exactly their packets")
  func portGroups() throws {
    let lists = ["80", "[80,8080]", "8000:8100", "!80", "1024:", "any", "[25,80,110]", ":1023"]
    var text = ""
    for (index, list) in lists.enumerated() {
      text += "alert tcp any any -> any \(list) (content:\"GET\"; sid:\(index + 1);)\n"
      text += "alert tcp any \(list) -> any any (content:\"GET\"; sid:\(index + 101);)\n"
      text += "alert tcp any \(list) -> any \(list) (sid:\(index + 201);)\n"
    }
    let contains: [@Sendable (UInt16) -> Bool] = [
      { $0 == 80 }, { $0 == 80 || $0 == 8080 }, { (8000...8100).contains($0) }, { $0 != 80 }, { $0 >= 1024 },
      { _ in true }, { [25, 80, 110].contains($0) }, { $0 <= 1023 },
    ]
    var engine = try EngineUnderTest(text)
    let ports: [UInt16] = [0, 24, 25, 79, 80, 81, 110, 1023, 1024, 7999, 8000, 8080, 8100, 8101, 65_535]
    for from in ports {
      for to in ports {
        let frame = Frame(sourcePort: from, destinationPort: to).carrying("a GET")
        var expected: [UInt32] = []
        for index in lists.indices {
          if contains[index](to) { expected.append(UInt32(index + 1)) }
          if contains[index](from) { expected.append(UInt32(index + 101)) }
          if contains[index](from), contains[index](to) { expected.append(UInt32(index + 201)) }
        }
        #expect(engine.inspect(frame.tcp).sorted() == expected.sorted(), "\(from) -> \(to)")
      }
    }
  }

  @Test("many rules for one wide list of ports fire at its ports, in both directions' groups, and others beside them")
  func widePorts() throws {
    var text =
      "alert tcp any any -> any any (content:\"GET\"; sid:1;)\nalert tcp any any -> any !80 (content:\"GET\"; sid:2;)\n"
    for sid in 101...140 { text += "alert tcp any any -> any 1024: (content:\"needle-\(sid)-\"; sid:\(sid);)\n" }
    text += "alert tcp any any <> any 1024: (content:\"both\"; sid:200;)\n"
    var engine = try EngineUnderTest(text)
    for (port, isWide) in [(1023, false), (1024, true), (80, false), (65_535, true)] as [(UInt16, Bool)] {
      let frame = Frame(sourcePort: 1000, destinationPort: port)
      let others: [UInt32] = port == 80 ? [1] : [1, 2]
      #expect(engine.inspect(frame.carrying("GET needle-117- both").tcp) == others + (isWide ? [117, 200] : []))
      #expect(engine.inspect(frame.reply.carrying("needle-117- both").tcp) == (isWide ? [200] : []))
    }
  }

  @Test("a thousand rules: each fires for its packet alone")
  func thousandRules() throws {
    var engine = try EngineUnderTest(manyRules(1000))
    for number in stride(from: 1, through: 1000, by: 37) {
      let frame = Frame().carrying("xx needle-\(number)- yy")
      let tcp80 = engine.inspect(frame.tcp)
      let udp53 = engine.inspect(frame.with { $0.destinationPort = 53 }.udp)
      let from25 = engine.inspect(
        frame.with {
          $0.sourcePort = 25; $0.destinationPort = 9
        }.tcp)
      let expected: [UInt32] = [UInt32(number)]
      #expect(tcp80 == (number % 5 == 0 || number % 5 == 1 || number % 5 == 4 ? expected : []))
      #expect(udp53 == (number % 5 == 3 || number % 5 == 4 ? expected : []))
      #expect(from25 == (number % 5 == 2 || number % 5 == 4 ? expected : []))
    }
  }

  @Test("more hits than the buffer has room for miss nothing")
  func scanOverflow() throws {
    let count = 2000
    let rules = (0..<count).map { number in
      "alert tcp any any -> any any (content:\"<\(number)>\"; sid:\(number + 1);)"
    }
    var engine = try EngineUnderTest(rules.joined(separator: "\n"))
    let payload = (0..<count).map { "<\($0)>" }.joined()
    _ = engine.inspect(Frame().carrying(payload).tcp)
    #expect(engine.output.count == InspectionOutput.capacity)
    let unheard = engine.statistic("findings_lost").map(Int.init)
    #expect(unheard.map { $0 + engine.output.overflow } == count - InspectionOutput.capacity)
    #expect(engine.statistic("scan_overflows") == 1)
  }

  @Test(
    "TCP flags",
    arguments: [
      ("S", 0x02, true), ("S", 0x12, false), ("S+", 0x12, true), ("SA", 0x12, true), ("SA+", 0x02, false),
      ("*SF", 0x02, true), ("*SF", 0x10, false), ("!S", 0x10, true), ("!S", 0x12, false), ("0", 0x00, true),
      ("0", 0x10, false), ("S,12", 0xC2, true), ("S,12", 0x12, false),
    ] as [(String, UInt8, Bool)])
  func flags(_ test: (String, UInt8, Bool)) throws {
    var engine = try EngineUnderTest("alert tcp any any -> any any (flags:\(test.0); sid:1;)")
    #expect(engine.inspect(Frame(flags: test.1).tcp) == (test.2 ? [1] : []))
  }

  @Test("ICMP type and code")
  func icmp() throws {
    var engine = try EngineUnderTest(
      """
      alert icmp any any -> any any (itype:8; sid:1;)
      alert icmp any any -> any any (itype:>7; icode:<1; sid:2;)
      alert icmp any any -> any any (icode:3; sid:3;)
      alert tcp any any -> any any (sid:4;)
      """)
    #expect(engine.inspect(Frame().icmp(type: 8)) == [1, 2])
    #expect(engine.inspect(Frame().icmp(type: 3, code: 3)) == [3])
    #expect(engine.inspect(Frame().icmp(type: 0)) == [])
  }

  @Test("fragments are compared with rules for ip only, and counted")
  func fragments() throws {
    var engine = try EngineUnderTest(
      """
      alert tcp any any -> any any (content:"secret"; sid:1;)
      alert ip any any -> any any (content:"secret"; sid:2;)
      alert ip any any -> any any (content:"secret"; flow:to_server; sid:3;)
      """)
    let frame = Frame().carrying("a secret in a fragment of some length")
    #expect(engine.inspect(frame.fragment(offset: 2, more: false)) == [2])
    #expect(engine.statistic("fragments") == 1)
  }

  @Test("frames with a wrong checksum are not inspected where checksums are verified")
  func checksums() throws {
    let rules = try compiled("alert ip any any -> any any (content:\"abc\"; sid:1;)")
    var good = Frame().carrying("xxabcxx").tcp
    var strict = try EngineUnderTest(rules, verifiesChecksums: true)
    #expect(strict.inspect(good) == [1])
    good[good.count - 1] ^= 1
    #expect(strict.inspect(good) == [])
    #expect(strict.statistic("bad_checksums") == 1)
    var lenient = try EngineUnderTest(rules, verifiesChecksums: false)
    #expect(lenient.inspect(good) == [1])
  }

  @Test("an alert says what it is about")
  func alertRecord() throws {
    var engine = try EngineUnderTest(
      "alert tcp any any -> any 80 (content:\"abc\"; sid:9;)", settings: EngineUnderTest.immediate)
    var connection = Connection()
    _ = engine.inspect(connection.handshake())
    _ = engine.inspect(connection.fromClient("xxabcxx"))
    let record = engine.output[0]
    #expect(record.source == IPAddress("192.0.2.1"))
    #expect(record.destination == IPAddress("198.51.100.2"))
    #expect(record.sourcePort == 40_000)
    #expect(record.destinationPort == 80)
    #expect(record.ipProtocol == 6)
    #expect(record.flags == [.toServer, .established, .stream])
    #expect(record.flowID > 0 && record.flowID < 1 << 53)
    #expect(record.timestamp == engine.now)
    #expect(Array("xxabcxx".utf8) == (0..<Int(record.excerptLength)).map { record.excerpt[$0] })
  }
}
