import Testing
import VMFenceCore
import VMFenceDetection

/// What each payload option asks of bytes, in each dialect.
@Suite("Payload options")
struct PayloadTests {
  struct Case: CustomTestStringConvertible, Sendable {
    let dialects: [RuleDialect]
    let options: String
    let payload: String
    let fires: Bool
    var testDescription: String { "\(dialects) \(options) on \(payload): \(fires)" }

    init(_ dialects: [RuleDialect], _ options: String, _ payload: String, _ fires: Bool) {
      self.dialects = dialects
      self.options = options
      self.payload = payload
      self.fires = fires
    }
  }

  static let snort: [RuleDialect] = [.snort2, .snort3]
  static let all = RuleDialect.allCases
  static let old: [RuleDialect] = [.snort2, .suricata]

  private func run(_ test: Case) throws {
    for dialect in test.dialects {
      // Snort 3 writes modifiers inside of the content.
      var engine = try EngineUnderTest(
        "alert tcp any any -> any any (\(Self.spelled(test.options, dialect)) sid:1;)", dialect: dialect)
      #expect(engine.inspect(Frame().carrying(test.payload).tcp) == (test.fires ? [1] : []), "\(dialect)")
    }
  }

  private static func spelled(_ options: String, _ dialect: RuleDialect) -> String {
    guard dialect == .snort3 else { return options }
    var text = options
    for name in ["offset", "depth", "distance", "within"] {
      text = text.replacing("\"; \(name):", with: "\",\(name) ").replacing("0; \(name):", with: "0,\(name) ")
    }
    return text
  }

  // MARK: Numbers

  static let numbers: [Case] = [
    .init(all, "byte_test:1,=,65,0;", "ABC", true),
    .init(all, "byte_test:1,!=,65,0;", "ABC", false),
    .init(all, "byte_test:1,!,65,0;", "BBC", true),
    .init(all, "byte_test:2,>,0x4141,0;", "AB", true),
    .init(all, "byte_test:2,<,0x4142,0,little;", "AA", true),
    .init(all, "byte_test:2,=,0x4241,0,little;", "AB", true),
    .init(all, "byte_test:1,<=,65,1;", "BA", true),
    .init(all, "byte_test:1,>=,66,1;", "BA", false),
    .init(all, "byte_test:1,&,0x40,0;", "A", true),
    .init(all, "byte_test:1,!&,0x40,0;", "A", false),
    .init(all, "byte_test:1,&,0x82,0;", "A", false),
    // Both manuals say "or"; what it does is "not equal".
    .init(all, "byte_test:1,^,65,0;", "A", false),
    .init(all, "byte_test:1,^,64,0;", "A", true),
    .init(all, "byte_test:4,=,1234,0,string,dec;", "1234", true),
    .init(all, "byte_test:4,=,255,0,string,hex;", "0xff", true),
    .init(all, "byte_test:3,=,8,0,string,oct;", "010", true),
    .init(all, "byte_test:4,=,12,0,string,dec;", "12ab", true),
    .init(all, "byte_test:2,=,12,0,string,dec;", "ab", false),
    // Snort takes the digits that are there, Suricata wants all of the bytes.
    .init(snort, "byte_test:10,=,12,0,string,dec;", "12", true),
    .init([.suricata], "byte_test:10,=,12,0,string,dec;", "12", false),
    .init(all, "byte_test:2,=,0,9;", "AB", false),
    .init(all, "content:\"x\"; byte_test:1,=,65,0,relative;", "xA", true),
    .init(all, "content:\"x\"; byte_test:1,=,65,-1,relative;", "xA", false),
    .init(all, "content:\"x\"; byte_test:1,=,65,-2,relative;", "Ax", true),
    // A later "x" is tried when the first does not do.
    .init(all, "content:\"x\"; byte_test:1,=,65,0,relative;", "xBxA", true),
    .init(all, "byte_test:2,=,3,0,bitmask 0x0030;", "A0", true),
    .init(all, "byte_test:1,=,1,0,bitmask 0x40;", "A", true),
    .init([.suricata], "byte_test:8,=,0x4141414141414142,0;", "AAAAAAAB", true),

    .init(all, "byte_jump:1,0,from_beginning; content:\"z\"; distance:0; within:1;", "\u{3}aaz", true),
    .init(all, "byte_jump:1,0; content:\"z\"; distance:0; within:1;", "\u{2}aaz", true),
    .init(all, "byte_jump:1,0; content:\"z\"; distance:0; within:1;", "\u{3}aaz", false),
    .init(all, "byte_jump:1,0,multiplier 2; content:\"z\"; distance:0; within:1;", "\u{1}aaz", true),
    .init(all, "byte_jump:1,0,align; content:\"z\"; distance:0; within:1;", "\u{1}aaaaz", true),
    .init(all, "byte_jump:1,0,post_offset -1; content:\"z\"; distance:0; within:1;", "\u{3}aaz", true),
    .init(all, "byte_jump:0,0,from_end,post_offset -1; content:\"z\"; distance:0; within:1;", "abcz", true),
    .init(all, "content:\"x\"; byte_jump:1,0,relative; content:\"z\"; within:1;", "aax\u{1}az", true),
    // To the end is allowed, past it is not.
    .init(all, "byte_jump:1,0;", "\u{2}aa", true),
    .init(all, "byte_jump:1,0;", "\u{3}aa", false),
    // Before the start: Suricata goes on at the start.
    .init([.suricata], "byte_jump:1,0,post_offset -9; content:\"A\"; within:1;", "Abc", false),
    .init([.suricata], "byte_jump:1,2,from_beginning,post_offset -9; content:\"A\"; within:1;", "Ab\u{1}", true),
    .init(snort, "byte_jump:1,2,from_beginning,post_offset -9; content:\"A\"; within:1;", "Ab\u{1}", false),

    .init(old, "byte_extract:1,0,n; content:\"z\"; offset:n;", "\u{3}zaz", true),
    .init(old, "byte_extract:1,0,n; content:\"z\"; offset:n;", "\u{3}zaa", false),
    .init([.snort3], "byte_extract:1,0,n; content:\"z\",offset n;", "\u{3}zaz", true),
    .init([.snort3], "byte_extract:1,0,n; content:\"z\",offset n;", "\u{3}zaa", false),
    .init(all, "byte_extract:1,0,n; byte_test:1,=,n,1;", "AA", true),
    .init(all, "byte_extract:1,0,n; byte_test:1,=,n,1;", "AB", false),
    .init(all, "byte_extract:1,0,n,multiplier 2; isdataat:n;", "\u{1}ab", true),
    .init(all, "byte_extract:1,0,n,multiplier 2; isdataat:n;", "\u{1}a", false),
    .init(all, "byte_extract:1,0,n,align 4; byte_test:1,=,n,1;", "\u{1}\u{4}", true),
    .init(all, "byte_extract:2,0,n,string,dec; byte_test:1,=,n,2;", "65A", true),
    // A variable that a later occurrence sets again.
    .init(all, "content:\"x\"; byte_extract:1,0,n,relative; byte_test:1,=,n,4;", "xAxBC", false),
    .init(all, "content:\"x\"; byte_extract:1,0,n,relative; byte_test:1,=,n,4;", "xAxBB", true),

    .init(all, "byte_math:bytes 1,offset 0,oper +,rvalue 2,result n; byte_test:1,=,n,1;", "AC", true),
    .init(all, "byte_math:bytes 1,offset 0,oper -,rvalue 1,result n; byte_test:1,=,n,1;", "BA", true),
    .init(all, "byte_math:bytes 1,offset 0,oper *,rvalue 2,result n; byte_test:1,=,n,1;", "\u{2}\u{4}", true),
    .init(all, "byte_math:bytes 1,offset 0,oper /,rvalue 2,result n; byte_test:1,=,n,1;", "\u{8}\u{4}", true),
    .init(all, "byte_math:bytes 1,offset 0,oper <<,rvalue 1,result n; byte_test:1,=,n,1;", "\u{8}\u{10}", true),
    .init(all, "byte_math:bytes 1,offset 0,oper >>,rvalue 1,result n; byte_test:1,=,n,1;", "\u{8}\u{4}", true),
    .init(all, "byte_math:bytes 1,offset 0,oper +,rvalue 1,result n,bitmask 0xF0; byte_test:1,=,n,1;", "0\u{4}", true),
    // Snort calculates with 32 bits, Suricata with 64.
    .init(
      snort, "byte_math:bytes 1,offset 0,oper -,rvalue 66,result n; byte_test:4,=,n,1;", "A" + "\u{7f}", false),
    .init([.suricata], "byte_math:bytes 1,offset 0,oper /,rvalue 0,result n;", "A", false),
  ]

  @Test("numbers are read, compared, jumped by and kept as the dialect says", arguments: numbers)
  func number(_ test: Case) throws { try run(test) }

  // MARK: Lengths and places

  static let places: [Case] = [
    .init(all, "isdataat:2;", "abc", true),
    .init(all, "isdataat:3;", "abc", false),
    .init(all, "isdataat:!3;", "abc", true),
    .init(all, "content:\"b\"; isdataat:0,relative;", "abc", true),
    // The end of the buffer is `!0,relative` in Snort and `!1,relative` in Suricata.
    .init(snort, "content:\"c\"; isdataat:!0,relative;", "abc", true),
    .init(snort, "content:\"b\"; isdataat:1,relative;", "abc", false),
    .init([.suricata], "content:\"c\"; isdataat:0,relative;", "abc", true),
    .init([.suricata], "content:\"c\"; isdataat:!1,relative;", "abc", true),
    .init([.suricata], "content:\"b\"; isdataat:1,relative;", "abc", true),
    .init(old, "content:\"b\"; isdataat:!9,relative; content:\"c\"; distance:0;", "abc", true),
    .init([.suricata], "content:\"a\"; bsize:3;", "abc", true),
    .init([.suricata], "content:\"a\"; bsize:>3;", "abc", false),
    .init([.suricata], "content:\"a\"; bsize:2<>4;", "abc", true),
    .init([.suricata], "content:\"a\"; bsize:3<>5;", "abc", false),
    .init([.suricata], "content:\"a\"; bsize:!3;", "abc", false),
    .init([.snort3], "bufferlen:3;", "abc", true),
    .init([.snort3], "bufferlen:2<=>3;", "abc", true),
    .init([.snort3], "content:\"a\"; bufferlen:2,relative;", "abc", true),
    .init([.suricata], "content:\"abc\"; startswith;", "abcd", true),
    .init([.suricata], "content:\"abc\"; startswith;", "xabc", false),
    .init([.suricata], "content:\"abc\"; endswith;", "abcxabc", true),
    .init([.suricata], "content:\"abc\"; endswith;", "abcx", false),
    .init([.suricata], "content:!\"abc\"; endswith;", "abcx", true),
    // A negated content where no byte is: true in Suricata, not in Snort.
    .init([.suricata], "content:\"a\"; content:!\"b\"; within:1;", "a", true),
    .init([.snort3], "content:\"a\"; content:!\"b\",within 1;", "a", true),
    .init([.snort3], "content:\"a\"; content:!\"bcd\",within 3;", "ab", true),
    .init([.snort3], "content:\"ab\",width 16;", "\u{0}a\u{0}b", true),
    .init([.snort3], "content:\"ab\",width 16,endian little;", "a\u{0}b\u{0}", true),
    .init([.snort3], "content:\"ab\",width 32;", "\u{0}\u{0}\u{0}a\u{0}\u{0}\u{0}b", true),
  ]

  @Test("lengths and places", arguments: places)
  func place(_ test: Case) throws { try run(test) }

  // MARK: Regular expressions

  static let expressions: [Case] = [
    .init(all, "pcre:\"/a.c/\";", "xabcx", true),
    .init(all, "pcre:\"/a.c/\";", "xa\nc", false),
    .init(all, "pcre:\"/a.c/s\";", "xa\nc", true),
    .init(all, "pcre:\"/ABC/i\";", "xabcx", true),
    .init(all, "pcre:!\"/abc/\";", "xabcx", false),
    .init(all, "pcre:!\"/abc/\";", "xabx", true),
    .init(all, "pcre:\"/^b/\";", "a\nb", false),
    .init(all, "pcre:\"/^b/m\";", "a\nb", true),
    .init(all, "pcre:\"/a b c/x\";", "abc", true),
    .init(all, "pcre:\"/bc/A\";", "abc", false),
    .init(all, "pcre:\"/c$/\";", "abc\n", true),
    .init(all, "pcre:\"/c$/E\";", "abc\n", false),
    .init(all, "pcre:\"/(a)\\1/\";", "baa", true),
    .init(all, "pcre:\"/a(?=b)/\";", "ac", false),
    .init(all, "pcre:\"m|a/b|\";", "a/b", true),
    .init(all, "content:\"x\"; pcre:\"/^b/R\";", "axb", true),
    .init(all, "content:\"x\"; pcre:\"/^b/R\";", "axcb", false),
    .init(all, "content:\"x\"; pcre:\"/^b/R\";", "axcxb", true),
    .init(old, "pcre:\"/a+/\"; content:\"b\"; within:1;", "acaab", true),
    .init([.snort3], "pcre:\"/a+/\"; content:\"b\",within 1;", "acaab", true),
    .init(old, "pcre:\"/a/\"; content:\"b\"; within:1; content:\"c\"; within:1;", "abxabc", true),
    .init(old, "pcre:\"/a/\"; content:\"b\"; within:1; content:\"c\"; within:1;", "abxacb", false),
    .init(old, "pcre:\"/b/B\";", "abc", true),
    .init([.snort3], "regex:\"/A.c/i\";", "abc", true),
    .init([.snort3], "regex:\"/a.c/\",fast_pattern;", "abc", true),
    .init([.snort3], "content:\"a\"; regex:\"/^b/\",relative;", "ab", true),
    .init([.snort3], "sd_pattern:\"\\d{3}-\\d{2}\",threshold 2;", "123-45 678-90", true),
    .init([.snort3], "sd_pattern:\"\\d{3}-\\d{2}\",threshold 3;", "123-45 678-90", false),
    .init([.snort3], "sd_pattern:\"credit_card\";", "no 4111111111111111 x", true),
    .init([.snort3], "sd_pattern:\"credit_card\";", "no 4111111111111112 x", false),
    .init([.snort2], "sd_pattern:2,us_social;", "123-45-6789 987-65-4321", true),
  ]

  @Test("regular expressions and their flags", arguments: expressions)
  func expression(_ test: Case) throws { try run(test) }

  @Test("an expression made to take for ever is stopped and counted")
  func stopped() throws {
    var engine = try EngineUnderTest("alert tcp any any -> any any (pcre:\"/^(a+)+$/\"; sid:1;)")
    #expect(engine.inspect(Frame().carrying(String(repeating: "a", count: 5000) + "b").tcp) == [])
    #expect(engine.statistic("regex_limit_hits") == 1)
    #expect(engine.statistic("regexes_compiled") == 1)
    #expect(engine.inspect(Frame().carrying("aaa").tcp) == [1])
    #expect(engine.statistic("regexes_compiled") == 1)
  }

  @Test("a chain of expressions that need each other ends with its budget")
  func chained() throws {
    let chain = (0..<12).map { _ in "pcre:\"/a/R\";" }.joined(separator: " ")
    var engine = try EngineUnderTest("alert tcp any any -> any any (\(chain) pcre:\"/b/R\"; sid:1;)")
    #expect(engine.inspect(Frame().carrying(String(repeating: "a", count: 2000)).tcp) == [])
    #expect(engine.statistic("work_limit_hits") == 1)
  }

  @Test("what a packet costs beyond its allowance is taken from the later ones of its flow, not from others")
  func dearFlow() throws {
    let chain = (0..<12).map { _ in "pcre:\"/a/R\";" }.joined(separator: " ")
    var engine = try EngineUnderTest(
      """
      alert udp any any -> any any (\(chain) pcre:\"/b/R\"; sid:1;)
      alert udp any any -> any any (pcre:\"/needle/\"; sid:2;)
      """)
    let text = String(repeating: "a", count: 2000)
    for _ in 0..<3 { #expect(engine.inspect(Frame().carrying(text).udp) == []) }
    #expect(engine.statistic("work_limit_hits") == 3)
    #expect(engine.statistic("flow_work_limit_hits") == 2)
    #expect(engine.inspect(Frame(sourcePort: 7).carrying("a needle").udp) == [2], "another flow")
    #expect(engine.inspect(Frame().carrying("a needle").udp) == [2], "the allowance is enough for what is cheap")
    #expect(engine.statistic("work_limit_hits") == 3)
  }

  @Test("a rule that takes all of a packet's work, and of its flow's, keeps none after it from being decided")
  func dearRule() throws {
    let chain = (0..<12).map { _ in "pcre:\"/a/R\";" }.joined(separator: " ")
    var engine = try EngineUnderTest(
      """
      alert udp any any -> any any (\(chain) pcre:\"/b/R\"; sid:1;)
      alert udp any any -> any any (pcre:\"/needle/\"; sid:2;)
      """)
    let text = String(repeating: "a", count: 2000) + "needle"
    for packet in 0..<5 { #expect(engine.inspect(Frame().carrying(text).udp) == [2], "packet \(packet)") }
    #expect(engine.statistic("work_limit_hits") == 5)
  }

  // MARK: Formats

  static let formats: [Case] = [
    .init(all, "base64_decode; base64_data; content:\"user\";", "dXNlcjpwdw==", true),
    .init(all, "base64_decode; base64_data; content:\"user\"; pkt_data; content:\"dXN\";", "dXNlcjpwdw==", true),
    .init(all, "base64_decode; base64_data; content:\"root\";", "dXNlcjpwdw==", false),
    .init(
      all, "content:\"B \"; base64_decode:bytes 8,relative; base64_data; content:\"user\";", "B dXNlcjpwdw==", true),
    .init(all, "base64_decode:bytes 12,offset 2; base64_data; content:\"user\";", "B dXNlcjpwdw==", true),
    .init(all, "content:\"B\"; base64_decode:relative; base64_data; content:\"user\";", "BxBdXNlcjpwdw==", true),
    // Snort unfolds a header's lines.
    .init(snort, "base64_decode; base64_data; content:\"user\";", "dXN\r\n lcjpwdw==", true),
    .init(snort, "base64_decode; base64_data; content:\"user\";", "dXN\r\nlcjpwdw==", false),
    .init([.suricata], "base64_decode; base64_data; content:\"user\";", "dXN\r\n lcjpwdw==", false),
    .init([.suricata], "entropy:value < 1;", "aaaaaaaa", true),
    .init([.suricata], "entropy:value >= 2;", "abcdabcd", true),
    .init([.suricata], "entropy:bytes 4,offset 4,value = 0;", "abcdaaaa", true),
    .init([.suricata], "entropy:value > 2;", "abcdabcd", false),
    .init([.snort3], "md5:\"900150983cd24fb0d6963f7d28e17f72\",length 3;", "abc", true),
    .init([.snort3], "md5:\"900150983cd24fb0d6963f7d28e17f72\",length 3,offset 1;", "abcx", false),
    .init([.snort3], "md5:!\"900150983cd24fb0d6963f7d28e17f72\",length 3;", "abc", false),
    .init(
      [.snort3], "sha256:\"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\",length 3,offset 1;",
      "xabc",
      true),
    .init(
      [.snort3],
      "sha512:\"ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f\",length 3;",
      "abc", true),
    .init(
      [.snort2], "protected_content:\"900150983cd24fb0d6963f7d28e17f72\"; hash:md5; length:3; offset:1;", "xabc", true),
    .init(
      [.snort2], "content:\"x\"; protected_content:\"900150983cd24fb0d6963f7d28e17f72\"; length:3; distance:0;",
      "xxabc",
      true),
    .init([.snort3], "ber_data:0x30; content:\"A\",within 1;", "0\u{2}AB", true),
    .init([.snort3], "ber_skip:0x02; ber_data:0x30; content:\"A\",within 1;", "\u{2}\u{1}x0\u{1}A", true),
    .init([.snort3], "ber_skip:0x02,optional; ber_data:0x30; content:\"A\",within 1;", "0\u{1}A", true),
    .init([.snort3], "ber_skip:0x02; ber_data:0x30;", "0\u{1}A", false),
    .init(old, "asn1:oversize_length 100;", "0\u{70}A", true),
    .init(old, "asn1:oversize_length 100;", "0\u{7}A", false),
    .init(old, "asn1:bitstring_overflow;", "\u{3}\u{1}\u{9}", true),
    .init(old, "asn1:bitstring_overflow,absolute_offset 1;", "x\u{3}\u{2}\u{1}\u{0}", false),
    .init(snort, "cvs:invalid-entry;", "Entry /file/1.1/=x/\n", true),
    .init(snort, "cvs:invalid-entry;", "Entry /file/1.1//\n", false),
  ]

  @Test("formats: base64, digests, BER and others", arguments: formats)
  func format(_ test: Case) throws { try run(test) }

  @Test("calls of ONC RPC by program, version and procedure", arguments: RuleDialect.allCases)
  func rpc(_ dialect: RuleDialect) throws {
    func call(_ kind: UInt8) -> [UInt8] {
      [0, 0, 0, 1, 0, 0, 0, kind, 0, 0, 0, 2, 0, 1, 0x86, 0xA0, 0, 0, 0, 2, 0, 0, 0, 3]
    }
    for (options, fires) in [("100000,2,3", true), ("100000,*,3", true), ("100000,2,4", false), ("100001,*,*", false)] {
      var engine = try EngineUnderTest("alert udp any any -> any any (rpc:\(options); sid:1;)", dialect: dialect)
      #expect(engine.inspect(Frame().with { $0.payload = call(0) }.udp) == (fires ? [1] : []))
      #expect(engine.inspect(Frame().with { $0.payload = call(1) }.udp) == [])
    }
  }

  // MARK: Buffers and transforms

  static let buffers: [Case] = [
    .init([.suricata], "tcp.hdr; content:\"|00 50|\"; offset:2; depth:2;", "x", true),
    .init([.suricata], "tcp.hdr; content:\"|00 51|\"; offset:2; depth:2;", "x", false),
    .init([.suricata], "ipv4.hdr; content:\"|06|\"; offset:9; depth:1;", "x", true),
    .init([.suricata], "ip.src; content:\"|C0 00 02 01|\"; bsize:4;", "x", true),
    .init([.suricata], "ip.dst; content:\"|C0|\";", "x", false),
    .init([.suricata], "ether.hdr; content:\"|08 00|\"; endswith;", "x", true),
    .init([.suricata], "udp.hdr; content:\"|00|\";", "x", false),
    .init([.suricata], "udp.hdr; absent;", "x", true),
    .init([.suricata], "tcp.hdr; absent;", "x", false),
    .init([.suricata], "tcp.hdr; absent:or_else; content:\"|00 50|\";", "x", true),
    .init([.suricata], "content:\"a\"; tcp.hdr; content:\"|00 50|\"; pkt_data; content:\"b\"; distance:0;", "ab", true),
    .init(
      [.suricata], "content:\"b\"; tcp.hdr; content:\"|00 50|\"; pkt_data; content:\"a\"; distance:0;", "ab", false),
    .init([.snort3], "content:\"b\"; raw_data; content:\"a\";", "ab", true),
  ]

  @Test("buffers of headers, and matches within each", arguments: buffers)
  func buffer(_ test: Case) throws { try run(test) }

  /// Transforms, what they are given, and what they make.
  static let transforms: [(String, String, String)] = [
    ("dotprefix;", "a.b", ".a.b"), ("to_lowercase;", "aBC1", "abc1"), ("to_uppercase;", "aBc1", "ABC1"),
    ("strip_whitespace;", " a \t\r\nb ", "ab"), ("compress_whitespace;", "a \t b  c", "a b c"),
    ("url_decode;", "a%41+%zz%4", "aA %zz%4"), ("xor:\"0102\";", "abc", "``b"),
    ("xor:offset 1,extract 1 0;", "B2#115-0&", "password"),
    ("xor:offset 4, extract 2 1;", "zab-\u{1}\u{2}\u{1}", "``\u{60}"),
    ("from_base64;", "dXNlcg==", "user"), ("from_base64:bytes 4,offset 4;", "xxxxdXNlcg==", "use"),
    ("from_base64:mode rfc2045;", "dX Nl\r\ncg==", "user"), ("subslice:1;", "abcd", "bcd"),
    ("subslice:1,2;", "abcd", "bc"), ("subslice:-2;", "abcd", "cd"), ("subslice:0,-1;", "abcd", "abc"),
    ("pcrexform:\"a(b+)c\";", "xabbcx", "bb"), ("pcrexform:\"b+\";", "xabbcx", "bb"),
    ("domain;", "www.bbc.co.uk", "bbc.co.uk"), ("domain;", "Suricata.IO", "Suricata.IO"),
    ("tld;", "www.bbc.co.uk", "co.uk"),
    ("tld;", "suricata.io", "io"), ("header_lowercase;", "Host: A\r\nX-Y: B: C\r\n", "host: A\r\nx-y: B: C\r\n"),
    ("strip_pseudo_headers;", ":path: /\r\nhost: a\r\n:x\r\nb\r\n", "host: a\r\nb\r\n"),
    ("to_lowercase; strip_whitespace; dotprefix;", "A B", ".ab"), ("to_lowercase; dotprefix;", "AB", ".ab"),
  ]

  @Test("transforms make of a buffer what they say", arguments: transforms)
  func transform(_ options: String, _ payload: String, _ made: String) throws {
    for (text, fires) in [(made, true), (made + "x", false)] {
      let pattern = "|" + text.utf8.map { String($0 / 16, radix: 16) + String($0 % 16, radix: 16) }.joined() + "|"
      var engine = try EngineUnderTest(
        "alert tcp any any -> any any (pkt_data; \(options) content:\"\(pattern)\"; bsize:\(text.utf8.count); sid:1;)",
        dialect: .suricata)
      #expect(engine.inspect(Frame().carrying(payload).tcp) == (fires ? [1] : []))
    }
  }

  /// "hello compressed world" with a zlib header, and with one of gzip.
  static let compressed: [(String, [UInt8])] = [
    ("zlib_deflate", hexadecimal("78dacb48cdc9c95748cecf2d284a2d2e4e4d5128cf2fca490100638508b2")),
    ("gunzip", hexadecimal("1f8b08000000000002ffcb48cdc9c95748cecf2d284a2d2e4e4d5128cf2fca490100a12d945316000000")),
  ]

  private static func hexadecimal(_ text: String) -> [UInt8] {
    stride(from: 0, to: text.utf8.count, by: 2).compactMap {
      UInt8(String(decoding: Array(text.utf8)[$0..<$0 + 2], as: UTF8.self), radix: 16)
    }
  }

  @Test("what is compressed is looked at up to a limit, and up to where it is damaged", arguments: compressed)
  func decompress(_ transform: String, _ bytes: [UInt8]) throws {
    func fires(_ options: String, _ payload: [UInt8]) throws -> Bool {
      var engine = try EngineUnderTest(
        "alert tcp any any -> any any (pkt_data; \(options) sid:1;)", dialect: .suricata)
      return engine.inspect(Frame(payload: payload).tcp) == [1]
    }
    #expect(try fires("\(transform); content:\"hello compressed world\"; startswith; endswith;", bytes))
    #expect(try fires("\(transform):max-size 8; content:\"hello co\"; bsize:8;", bytes))
    #expect(try !fires("\(transform); content:\"hello\";", Array("hello compressed world".utf8)))
    // The checksum at the end is wrong: what stood before it was read all the same.
    var damaged = bytes
    damaged[bytes.count - 7] ^= 0xFF
    #expect(try fires("\(transform); content:\"hello\";", damaged))
    #expect(try fires("\(transform); content:\"hello\"; startswith;", Array(bytes.prefix(bytes.count - 10))))
    #expect(try !fires("\(transform); content:\"hello\";", []))
    // A million zeros in a thousand bytes, of which only so many are made.
    let bomb =
      Self.hexadecimal("78daedc101010000008220ffaf6e484001") + Array(repeating: 0, count: 968)
      + Self.hexadecimal("af0643210001")
    #expect(try fires("zlib_deflate; bsize:1024;", bomb) && fires("zlib_deflate:max-size 65535; bsize:65535;", bomb))
  }

  /// DCE/RPC with a connection, little and big endian; and without.
  static let messages: [(String, Bool)] = [
    ("|05 00 00 03 10 00 00 00| 16 bytes here|01 02|", true), ("|05 00 00 03 00 00 00 00| 16 bytes here|02 01|", true),
    ("|04 00 08 00 10 00 00 00| 16 bytes here|01 02|", true), ("|05 00 00 03 00 00 00 00| 16 bytes here|01 02|", false),
    ("|06 00 00 03 10 00 00 00| 16 bytes here|01 02|", false),
  ]

  @Test("numbers in the byte order of DCE/RPC", arguments: messages)
  func remoteProcedureCalls(_ message: String, _ fires: Bool) throws {
    let parts = message.split(separator: "|").enumerated()
    let payload = parts.flatMap { index, part in
      part.allSatisfy { $0.isHexDigit || $0 == " " } && part.first?.isWhitespace == false
        ? Self.hexadecimal(part.filter { $0 != " " }) : Array(part.utf8)
    }
    var engine = try EngineUnderTest(
      "alert tcp any any -> any any (content:\"here\"; byte_test:2,=,513,0,relative,dce; sid:1;)")
    #expect(engine.inspect(Frame(payload: payload).tcp) == (fires ? [1] : []))
  }

  /// RFC 1321 A.5, RFC 3174 and FIPS 180: "abc", and a message over two blocks.
  static let digests = [
    ("to_md5;", "abc", "900150983cd24fb0d6963f7d28e17f72"),
    (
      "to_md5;", "12345678901234567890123456789012345678901234567890123456789012345678901234567890",
      "57edf4a22be3c955ac49da2e2107b67a"
    ),
    ("to_sha1;", "abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
    (
      "to_sha1;", "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", "84983e441c3bd26ebaae4aa1f95129e5e54670f1"
    ),
    (
      "to_sha256;", "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
      "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
    ),
  ]

  @Test("digests are those of their standards", arguments: digests)
  func digest(_ options: String, _ payload: String, _ digest: String) throws {
    var engine = try EngineUnderTest(
      "alert tcp any any -> any any (pkt_data; \(options) content:\"|\(digest)|\"; bsize:\(digest.count / 2); sid:1;)",
      dialect: .suricata)
    #expect(engine.inspect(Frame().carrying(payload).tcp) == [1])
    #expect(engine.inspect(Frame().carrying(payload + "x").tcp) == [])
  }

  // MARK: Mistakes

  static let mistakes: [(RuleDialect, String, String)] = [
    (.snort2, "byte_test:1,=,65;", "is too little"), (.snort2, "byte_test:5,=,65,0;", "at most 4"),
    (.suricata, "byte_test:9,=,65,0;", "at most 8"), (.snort3, "byte_test:11,=,65,0,string;", "at most 10"),
    (.snort2, "byte_test:1,~,65,0;", "is no operator"), (.snort2, "byte_test:1,=,65,0,dce,little;", "of its own"),
    (.suricata, "gunzip:8;", "is not known"), (.suricata, "gunzip:max-size 0;", "is not a whole number"),
    (.suricata, "tcp.session:open;", "is not known"), (.suricata, "domain:x;", "takes no value"),
    (.snort2, "byte_test:1,=,65,x;", "no variable is named"),
    (.snort2, "byte_test:1,=,65,0,hex;", "need `string`"), (.snort2, "byte_test:1,=,65,0,huge;", "is not known"),
    (.snort2, "byte_test:1,=,6,0,bitmask 0xFFF;", "wider than"), (.snort2, "byte_jump:1;", "is too little"),
    (.snort2, "byte_jump:1,0,from_beginning,from_end;", "exclude each other"),
    (.snort2, "byte_extract:1,0,9x;", "is no name of a variable"),
    (.snort2, "byte_extract:1,-1,x;", "without `relative`"),
    (.snort2, "byte_extract:1,0,x; byte_extract:1,0,y; byte_extract:1,0,z;", "2 variables at the most"),
    (.snort3, "byte_math:bytes 1,offset 0,oper +,rvalue 0,result x;", "rvalue is 0"),
    (.snort3, "byte_math:bytes 1,offset 0,oper %,rvalue 1,result x;", "oper is none of"),
    (.snort3, "byte_math:bytes 1,offset 0;", "is too little"), (.snort2, "isdataat:x;", "no variable"),
    (.snort2, "isdataat:1,absolute;", "is not known"), (.snort2, "pcre:\"/a(/\";", "missing closing parenthesis"),
    (.snort2, "pcre:\"/a/q\";", "is no flag"), (.snort3, "pcre:\"/a/U\";", "is no flag"),
    (.snort2, "pcre:\"abc\";", "is not /EXPRESSION/"), (.snort2, "pcre:/a/;", "not in quotation marks"),
    (.snort3, "bufferlen:x;", "is not a test of a number"), (.suricata, "base64_data;", "without `base64_decode`"),
    (.suricata, "base64_decode:lines 3;", "is not known"), (.suricata, "entropy:value > 9;", "is no entropy"),
    (.snort3, "md5:\"90\",length 3;", "is no digest"), (.snort2, "hash:md5;", "before any `protected_content`"),
    (.snort2, "protected_content:\"900150983cd24fb0d6963f7d28e17f72\"; hash:md5;", "a digest needs its length"),
    (.snort2, "rpc:x,*,*;", "is not a whole number"), (.snort2, "asn1:print;", "looks for nothing"),
    (.snort3, "ber_data:256;", "is not a whole number"), (.snort2, "cvs:other;", "is not known"),
    (.suricata, "absent;", "without a buffer"), (.suricata, "xor:\"0g\";", "is no key"),
    (.suricata, "xor:offset 1;", "names no key"), (.suricata, "xor:extract 0 1;", "is not known"),
    (.suricata, "xor:extract 256 1;", "is not known"), (.suricata, "xor:key 1;", "is not known"),
    (.suricata, "subslice:a;", "is not a whole number"), (.suricata, "pcrexform:\"(\";", "missing closing"),
    (.snort3, "content:\"a\",width 9;", "width is 8, 16 or 32"), (.snort3, "sd_pattern:\"a\",limit 1;", "is not known"),
  ]

  @Test("arguments are checked, and the message says what is wrong and where", arguments: mistakes)
  func mistake(_ dialect: RuleDialect, _ options: String, _ message: String) throws {
    let text = "alert tcp any any -> any any (\(options) sid:1;)"
    let source = RuleSource(file: "test.rules", text: Array(text.utf8), dialect: dialect)
    let result = RuleFileParser.parse(source, variables: [:])
    let diagnostic = try #require(result.diagnostics.first)
    #expect(result.rejected == 1 && result.unsupported.isEmpty)
    #expect(diagnostic.message.contains(message), "\(diagnostic)")
    #expect(diagnostic.place?.line == 1 && (diagnostic.place?.column ?? 0) > 30)
  }
}
