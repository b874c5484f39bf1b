import Testing
import VMFenceCore
import VMFenceDetection

/// A rule file of one dialect with a mistake, where it is, and a part of what is said about it.
struct Mistake: Sendable, CustomTestStringConvertible {
  var dialect: RuleDialect
  var text: String
  var line: Int
  var column: Int
  var message: String
  var remedy: String

  init(
    _ dialect: RuleDialect, _ text: String, _ line: Int, _ column: Int, _ message: String, remedy: String = ""
  ) {
    self.dialect = dialect
    self.text = text
    self.line = line
    self.column = column
    self.message = message
    self.remedy = remedy
  }

  var testDescription: String { "\(dialect): \(text)" }

  static let heads: [Mistake] = [
    .init(.snort2, "alrt tcp any any -> any any (sid:1;)", 1, 1, "begins no rule", remedy: "did you mean `alert`?"),
    .init(.snort2, "\n  %%% (sid:1;)", 2, 3, "`%%%` begins no rule", remedy: "an action"),
    .init(.suricata, "log tcp any any -> any any (sid:1;)", 1, 1, "no action of suricata", remedy: "snort2, snort3"),
    .init(.snort3, "sdrop tcp any any -> any any (sid:1;)", 1, 1, "no action of snort3", remedy: "snort2"),
    .init(.snort2, "alert (sid:1;)", 1, 7, "the protocol is missing"),
    .init(
      .snort2, "alert tpc any any -> any any (sid:1;)", 1, 7, "`tpc` is no protocol", remedy: "did you mean `tcp`?"),
    .init(.snort3, "alert htttp (sid:1;)", 1, 7, "`htttp` is no protocol", remedy: "did you mean `http`?"),
    .init(.snort2, "alert tcp any any -> any (sid:1;)", 1, 26, "has 6 of its 7 parts"),
    .init(.snort2, "alert tcp any any -> any any any (sid:1;)", 1, 30, "`any` is too much before the `(`"),
    .init(.snort2, "alert tcp any any <- any any (sid:1;)", 1, 19, "`<-` is no direction", remedy: "swap the ends"),
    .init(.snort3, "alert tcp any any => any any (sid:1;)", 1, 19, "`=>` is no direction"),
    .init(.snort2, "alert tcp any any -> any any", 1, 29, "has no `(`"),
    .init(.snort2, "alert tcp 10.0.0.256 any -> any any (sid:1;)", 1, 11, "`10.0.0.256` is not an address"),
    .init(.snort2, "alert tcp 10.0.0.0/33 any -> any any (sid:1;)", 1, 11, "no valid prefix length"),
    .init(.snort2, "alert tcp 10.0.0.0/255.0.255.0 any -> any any (sid:1;)", 1, 11, "no valid prefix length"),
    .init(.snort2, "alert tcp any any -> fe80::1::2 any (sid:1;)", 1, 22, "is not an address"),
    .init(.snort2, "alert tcp [10.0.0.1,x] any -> any any (sid:1;)", 1, 21, "`x` is not an address"),
    .init(.snort2, "alert tcp [10.0.0.1,,10.0.0.2] any -> any any (sid:1;)", 1, 21, "an item of the list is missing"),
    .init(.snort2, "alert tcp [10.0.0.1, 10.0.0.2 any -> any any (sid:1;)", 1, 11, "the list is not closed"),
    .init(.snort2, "alert tcp [10.0.0.1]x any -> any any (sid:1;)", 1, 21, "`x` follows the list"),
    .init(.snort2, "alert tcp any any -> !any any (sid:1;)", 1, 23, "`!any` leaves no address"),
    .init(.snort2, "alert tcp [10.0.0.1,!10.0.0.0/8] any -> any any (sid:1;)", 1, 11, "excludes every address"),
    .init(.snort2, "alert tcp 10.0.0.1-10.0.0.9 any -> any any (sid:1;)", 1, 11, "only Suricata has address ranges"),
    .init(.suricata, "alert tcp 10.0.0.9-10.0.0.1 any -> any any (sid:1;)", 1, 11, "is empty", remedy: "lower"),
    .init(.suricata, "alert icmpv6 10.0.0.0/8 any -> any any (sid:1;)", 1, 7, "exclude each other"),
    .init(.snort2, "alert tcp any 65536 -> any any (sid:1;)", 1, 15, "`65536` is not a port"),
    .init(.snort2, "alert tcp any +80 -> any any (sid:1;)", 1, 15, "`+80` is not a port"),
    .init(.snort2, "alert tcp any 90:80 -> any any (sid:1;)", 1, 15, "is empty", remedy: "the lower port first"),
    .init(.snort2, "alert tcp any : -> any any (sid:1;)", 1, 15, "is not a port range"),
    .init(.snort2, "alert tcp any [80,!1:100] -> any any (sid:1;)", 1, 15, "leaves no port"),
    .init(.snort2, "alert tcp $NET any -> any any (sid:1;)", 1, 11, "`$NET` is not defined", remedy: "--var NET=VALUE"),
    .init(
      .snort2, "ipvar A $B\nipvar B [10.0.0.1,$A]\nalert tcp any any -> $A any (sid:1;)", 3, 22,
      "defined by itself: A -> B -> A"),
    .init(
      .snort2, "ipvar A 10.0.0.x\nalert tcp $A any -> any any (sid:1;)", 2, 11, "in `$A`: `10.0.0.x` is not an address"),
    .init(.snort2, "ipvar A any\nalert tcp !$A any -> any any (sid:1;)", 2, 12, "`!any` leaves no address"),
    .init(
      .snort2, "ipvar A [10.0.0.0/8,!10.0.0.1]\nalert tcp !$A any -> any any (sid:1;)", 2, 11, "excludes every address",
      remedy: "turns over"),
    .init(.snort2, "ipvar A", 1, 8, "a variable needs a name and a value"),
    .init(.snort2, "include other.rules", 1, 1, "`include` is not followed", remedy: "other.rules"),
    .init(.snort2, "suppress gen_id 1, sig_id x", 1, 27, "`x` is no number"),
    .init(.snort2, "config classification: a,b", 1, 24, "is not a classification"),
  ]

  /// Options of a rule in the second line: the column is counted from the first byte after the parenthesis.
  static func option(
    _ dialect: RuleDialect, _ options: String, _ column: Int, _ message: String, remedy: String = "",
    head: String = "tcp any any -> any any"
  ) -> Mistake {
    let start = "alert \(head) ("
    return Mistake(dialect, "# a comment\n\(start)\(options))", 2, start.count + column, message, remedy: remedy)
  }

  static let options: [Mistake] = [
    option(.snort2, "mgs:\"x\"; sid:1;", 1, "`mgs` is no option of snort2", remedy: "did you mean `msg`?"),
    option(.snort2, "sid:1; bsize:3;", 8, "is no option of snort2", remedy: "it belongs to suricata"),
    option(.snort3, "content:\"a\"; nocase; sid:1;", 14, "`nocase` is no option", remedy: "inside the content"),
    option(.snort2, "msg:\"x\";", -29, "the rule has no sid"),
    option(.snort2, "sid:0;", 5, "`0` is not a whole number from 1"),
    option(.snort2, "sid:4294967296;", 5, "is not a whole number"),
    option(.snort2, "sid:x;", 5, "`x` is not a whole number"),
    option(.snort2, "sid;", 1, "`sid` needs a value"),
    option(.snort2, "sid:1; sid:2;", 8, "a second `sid`"),
    option(.snort2, "sid:1; rev:-1;", 12, "is not a whole number"),
    option(.snort2, "sid:1; priority:0;", 17, "is not a whole number from 1"),
    option(.suricata, "sid:1; priority:256;", 17, "is not a whole number from 1 to 255"),
    option(.snort2, "sid:1; reference:cve;", 18, "a reference is TYPE,ID"),
    option(.snort2, "msg:\"a; sid:1;", 5, "the text is not closed", remedy: "`\\;`"),
    option(.suricata, "msg:a; sid:1;", 5, "not in quotation marks"),
    option(.snort2, "msg:\"a\" sid:1;", 5, "the text is not closed"),
    option(.snort2, "sid:1; nocase; content:\"a\";", 8, "`nocase` stands before any content"),
    option(.snort2, "content:\"a\"; nocase:1; sid:1;", 21, "`nocase` takes no value"),
    option(.snort2, "content:a; sid:1;", 9, "stands in quotation marks"),
    option(.snort2, "content:\"\"; sid:1;", 10, "the content is empty"),
    option(.snort2, "content:\"a|4|\"; sid:1;", 11, "odd number of hexadecimal digits"),
    option(.snort2, "content:\"a|4G|\"; sid:1;", 13, "`G` is no hexadecimal digit"),
    option(.snort2, "content:\"a|41\"; sid:1;", 11, "the bytes in `|` are not closed"),
    option(.suricata, "content:\"a\\x41\"; sid:1;", 11, "`\\\\x` is no escape", remedy: "|41|"),
    option(.snort2, "content:\"a\",nocase; sid:1;", 12, "stands after the content", remedy: "options of their own"),
    option(.snort3, "content:\"a\",depht 3; sid:1;", 13, "`depht` is no modifier"),
    option(.snort3, "content:\"a\",,depth 3; sid:1;", 13, "a modifier is missing"),
    option(.snort2, "content:\"abc\"; depth:2; sid:1;", 22, "depth 2 is less than the content's 3 bytes"),
    option(.snort2, "content:\"abc\"; content:\"abc\"; within:2; sid:1;", 38, "within 2 is less than the content's 3"),
    option(.snort2, "content:\"abc\"; offset:1; distance:1; sid:1;", 26, "offset or depth together with distance"),
    option(.snort2, "content:\"abc\"; offset:1; offset:2; sid:1;", 26, "a second `offset`"),
    option(.snort2, "content:\"abc\"; offset:65536; sid:1;", 23, "is not a whole number from -65535 to 65535"),
    option(.suricata, "content:\"abc\"; offset:-1; sid:1;", 23, "is not a whole number from 0 to 65535"),
    option(.snort2, "content:\"abc\"; fast_pattern:2,2; sid:1;", 29, "within the 3 bytes"),
    option(
      .snort3, "content:\"abc\",fast_pattern_offset 1,fast_pattern_length 3; sid:1;", 15, "reaches over the content"),
    option(.snort2, "content:\"a\"; fast_pattern; content:\"b\"; fast_pattern; sid:1;", 41, "a second `fast_pattern`"),
    option(.snort2, "flags:X; sid:1;", 7, "`X` is no TCP flag"),
    option(.snort2, "flags:+; sid:1;", 7, "no flag is named"),
    option(.snort2, "flags:S,1,2; sid:1;", 11, "a second mask"),
    option(.snort2, "flags:S; sid:1;", -29, "`flags` in a rule that is not for TCP", head: "udp any any -> any any"),
    option(.snort2, "itype:8; sid:1;", -29, "in a rule that is not for ICMP"),
    option(.snort2, "dsize:70000; sid:1;", 7, "a number from 0 to 65535"),
    option(.snort2, "dsize:10-20; sid:1;", 7, "is not a test of a number", remedy: "A<>B"),
    option(.snort2, "dsize:>=10; sid:1;", 7, "is not a test of a number", remedy: "N, <N, >N or A<>B"),
    option(.snort2, "dsize:20<>10; sid:1;", 7, "is true of no number"),
    option(.snort3, "dsize:5<>6; sid:1;", 7, "is true of no number"),
    option(.snort2, "dsize:1; dsize:2; sid:1;", 10, "a second `dsize`"),
    option(.snort2, "flow:to_sever; sid:1;", 6, "`to_sever` is not known"),
    option(.snort2, "flow:to_server,to_client; sid:1;", 6, "exclude each other"),
    option(.snort2, "flow:established; flow:to_server; sid:1;", 19, "a second `flow`"),
    option(.snort2, "threshold:type limit, track by_src, count 1; sid:1;", 11, "`threshold` lacks seconds"),
    option(.snort2, "threshold:type limt, track by_src, count 1, seconds 1; sid:1;", 11, "`type limt` is not known"),
    option(.snort2, "detection_filter:track by_src, count 0, seconds 1; sid:1;", 38, "`0` is no count"),
    option(.snort2, "detection_filter:track by_src, count, seconds 1; sid:1;", 32, "is not NAME VALUE"),
    option(.snort2, "activates:1; sid:1;", -29, "whose action is not `activate`"),
    option(.snort2, "sid:1; content:\"a\" nocase;", 20, "stands after the content"),
    option(.snort2, "sid:1; nocase content:\"a\";", 14, "a `;` is missing after the option `nocase`"),
    option(.snort2, "sid:1; :3;", 8, "begins no option"),
    option(.snort2, "sid:1", 1, "the option `sid` is not ended"),
  ]

  static let layout: [Mistake] = [
    .init(.snort2, "alert tcp any any -> any any (sid:1;) x", 1, 39, "something follows the rule's `)`"),
    .init(.snort2, "alert tcp any any -> any any (sid:1;", 1, 37, "is not closed"),
    .init(.snort2, "alert tcp any any -> any any \\\r\n  (sid:1;\\\n   rev:x;)", 3, 8, "is not a whole number"),
    .init(.snort2, "alert tcp any any -> any any (msg:\"ü€\"; sid:x;)", 1, 45, "is not a whole number"),
    .init(
      .snort3, "alert tcp any any -> any any\n(\n  # sid:1;\n  msg:\"a\";\n  sid:x;\n)", 5, 7, "is not a whole number"),
    .init(.snort3, "alert tcp (msg:\"a\nb\"; sid:1;)", 1, 12, "the text of `msg` is not closed"),
    .init(.snort3, "alert tcp (sid:1;\nalert tcp (sid:2;)", 1, 18, "is not closed"),
    .init(.snort3, "alert tcp (sid:1\nalert tcp (sid:2;)", 1, 12, "the option `sid` is not ended"),
  ]
}

@Suite("Mistakes in rule files are told with their place")
struct LanguageMistakeTests {
  @Test("in a rule's head and in definitions", arguments: Mistake.heads)
  func heads(_ mistake: Mistake) { expect(mistake) }

  @Test("in options", arguments: Mistake.options)
  func options(_ mistake: Mistake) { expect(mistake) }

  @Test("in what goes over lines", arguments: Mistake.layout)
  func layout(_ mistake: Mistake) { expect(mistake) }

  private func expect(_ mistake: Mistake) {
    let parsed = RuleFileParser.parse(
      RuleSource(file: "x.rules", text: Array(mistake.text.utf8), dialect: mistake.dialect), variables: [:])
    guard let first = parsed.diagnostics.first(where: { $0.severity == .error }) else {
      Issue.record("no mistake was found")
      return
    }
    #expect(first.message.contains(mistake.message), "\(first)")
    #expect(first.place == SourcePlace(file: "x.rules", line: mistake.line, column: mistake.column), "\(first)")
    #expect(mistake.remedy.isEmpty || first.remedy.contains(mistake.remedy), "\(first)")
  }

  @Test("and every rule is looked at, whatever is wrong before it")
  func recovery() {
    let bad = (Mistake.heads + Mistake.options).filter { $0.dialect == .snort2 }
    for mistake in bad {
      let text = mistake.text + "\nalert tcp any any -> any any (sid:77;)\n"
      let parsed = RuleFileParser.parse(
        RuleSource(file: "x.rules", text: Array(text.utf8), dialect: .snort2), variables: [:])
      #expect(parsed.rules.map(\.metadata.sid) == [77], "\(mistake.text)")
      #expect(parsed.diagnostics.count { $0.severity == .error } == 1, "\(mistake.text)")
    }
  }

  @Test("also in Snort 3, where rules go over lines")
  func recoveryOverLines() {
    for broken in [
      "alert tcp (sid:1;", "alert tcp (msg:\"x;\n sid:1;\n)", "alert tcp (content:\"a\"\n)", "alert", "x (y",
    ] {
      let parsed = RuleFileParser.parse(
        RuleSource(file: "x", text: Array("\(broken)\nalert tcp\n(\n sid:77;\n)\n".utf8), dialect: .snort3),
        variables: [:])
      #expect(parsed.rules.map(\.metadata.sid) == [77], "\(broken)")
      #expect(parsed.diagnostics.count { $0.severity == .error } == 1, "\(broken)")
    }
  }

  @Test("Bytes cut or changed anywhere never trap")
  func damaged() {
    let text = Array(
      "ipvar A [10.0.0.0/8,!$B]\nalert tcp $A [80,!1:3] <> any any (msg:\"a\\\"|b\"; content:!\"|41 42|x\\;\"; depth:9; \\\n flags:!SF,12; dsize:3<>9; flow:to_server; threshold:type limit, track by_src, count 1, seconds 2; sid:1;)\n"
        .utf8)
    for dialect in RuleDialect.allCases {
      for end in text.indices {
        _ = RuleFileParser.parse(RuleSource(file: "x", text: Array(text[..<end]), dialect: dialect), variables: [:])
        for byte in [0x00, 0x0A, 0x22, 0x28, 0x29, 0x3B, 0x5B, 0x5C, 0x5D, 0x7C, 0xFF] as [UInt8] {
          var changed = text
          changed[end] = byte
          _ = RuleFileParser.parse(RuleSource(file: "x", text: changed, dialect: dialect), variables: [:])
        }
      }
      _ = RuleFileParser.parse(RuleSource(file: "x", text: [], dialect: dialect), variables: [:])
    }
  }

  @Test("Variables that multiply, lists that nest and files full of unknown names end in an error, soon")
  func bounds() {
    var text = "ipvar V0 [10.0.0.1,any]\n"
    for i in 1...6 { text += "ipvar V\(i) [\(Array(repeating: "$V\(i - 1)", count: 40).joined(separator: ","))]\n" }
    text += "alert tcp $V6 any -> any any (sid:1;)\n"
    text += "alert tcp \(String(repeating: "[", count: 20_000))1.1.1.1 any -> any any (sid:2;)\n"
    text +=
      "alert tcp \(String(repeating: "[", count: 40))1.1.1.1\(String(repeating: "]", count: 40)) any -> any any (sid:3;)\n"
    text += "alert tcp any any -> any any (sid:4; \(String(repeating: "content:\"a\";", count: 300)))\n"
    text += "alert tcp any any -> any any (sid:5; msg:\"\(String(repeating: "a", count: 70_000))\";)\n"
    for i in 0..<30_000 { text += "alert tcp any any -> any any (nonsense\(i):1; sid:6;)\n" }
    let parsed = RuleFileParser.parse(
      RuleSource(file: "x", text: Array(text.utf8), dialect: .snort2), variables: [:])
    #expect(parsed.rules.isEmpty)
    #expect(parsed.rejected == 30_005)
    let messages = parsed.diagnostics.prefix(5).map(\.message)
    #expect(messages[0].contains("more than 16384 items"))
    #expect(messages[1].contains("not closed"))
    #expect(messages[2].contains("nested more than 16 deep"))
    #expect(messages[3].contains("256 options at the most"))
    #expect(messages[4].contains("65536 bytes at the most"))
    #expect(parsed.diagnostics.count == 20_001)
    #expect(parsed.diagnostics.last?.message == "10005 more mistakes are not listed")
  }
}
