import Testing
import VMFenceCore
import VMFenceDetection
import VMFencePackets

/// `replace`: what goes on instead of the frame that came.
@Suite struct ReplaceTests {
  private func rewritten(
    _ rules: String, _ frame: [UInt8], dialect: RuleDialect = .suricata, isInline: Bool = true
  ) throws -> [UInt8]? {
    var engine = try EngineUnderTest(rules, dialect: dialect, isInline: isInline, settings: EngineUnderTest.immediate)
    _ = engine.inspect(frame)
    var result: [UInt8]?
    engine.output.withRewritten { bytes in result = (0..<bytes.byteCount).map { bytes.unsafeByte($0) } }
    return result
  }

  private func rule(_ options: String) -> String { "alert ip any any -> any any (\(options) sid:1;)" }

  @Test func `the bytes of the match are exchanged, and the checksums hold`() throws {
    for frame in [Frame().carrying("say secret now").tcp, Frame().carrying("say secret now").udp] {
      let made = try #require(
        try rewritten(rule("content:\"say \"; content:\"secret\"; distance:0; replace:\"XXXXXX\";"), frame))
      #expect(made.count == frame.count && String(decoding: made.suffix(14), as: UTF8.self) == "say XXXXXX now")
      let verdict = made.withRawSpan {
        DecodedPacket.decode($0, linkType: .ethernet, strippedVLAN: 0).verifyChecksums(in: $0)
      }
      #expect(verdict == .correct)
    }
  }

  @Test func `of several places, the one that made the rule match is replaced; and all contents that say so`() throws {
    let made = try #require(
      try rewritten(
        rule("content:\"a\"; replace:\"x\"; content:\"b\"; distance:0; within:1; replace:\"y\";"),
        Frame().carrying("acab-ab").tcp))
    #expect(String(decoding: made.suffix(7), as: UTF8.self) == "acxy-ab")
  }

  @Test func `a UDP datagram without a checksum goes on without one`() throws {
    var frame = Frame().carrying("secret").udp
    frame.replaceSubrange(40..<42, with: [0, 0])
    let made = try #require(try rewritten(rule("content:\"secret\"; replace:\"public\";"), frame))
    #expect(Array(made[40..<42]) == [0, 0] && String(decoding: made.suffix(6), as: UTF8.self) == "public")
  }

  @Test func `nothing is exchanged beside the path, in a packet that is dropped or passed before, or without a match`()
    throws
  {
    let frame = Frame().carrying("secret").tcp
    let replacing = "alert tcp any any -> any any (content:\"secret\"; replace:\"public\"; sid:1;)"
    #expect(try rewritten(replacing, frame, isInline: false) == nil)
    #expect(try rewritten(replacing, Frame().carrying("secrets").with { $0.payload.removeFirst() }.tcp) == nil)
    #expect(try rewritten(replacing + "\ndrop tcp any any -> any any (dsize:6; sid:2;)", frame) == nil)
    #expect(try rewritten("pass tcp any any -> any any (dsize:6; sid:2;)\n" + replacing, frame) == nil)
  }

  @Test func `Snort 3 replaces with its own action only, and may write more than it found`() throws {
    let frame = Frame().carrying("ab---").tcp
    let options = "tcp any any -> any any (content:\"ab\"; replace:\"wxyz\"; sid:1;)"
    #expect(try rewritten("alert \(options)", frame, dialect: .snort3) == nil)
    let made = try #require(try rewritten("rewrite \(options)", frame, dialect: .snort3))
    #expect(String(decoding: made.suffix(5), as: UTF8.self) == "wxyz-")
    // Not beyond the packet's end.
    #expect(try rewritten("rewrite \(options)", Frame().carrying("-ab").tcp, dialect: .snort3) == nil)
  }

  @Test func `what is in a tunnel, or came in fragments, is told of and counted, not exchanged`() throws {
    let inner = Array(Frame().carrying("secret").tcp[14...])
    let outer: [UInt8] =
      [0x45, 0, 0, UInt8(20 + inner.count), 0, 1, 0, 0, 64, 4, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2] + inner
    var engine = try EngineUnderTest(
      "alert tcp any any -> any any (content:\"secret\"; replace:\"public\"; sid:1;)", dialect: .suricata,
      isInline: true,
      settings: EngineUnderTest.immediate)
    #expect(engine.inspect(Array(Frame().tcp[..<14]) + outer) == [1])
    #expect(!engine.output.isRewritten && engine.statistic("replacements_lost") == 1)
    #expect(engine.statistic("packets_rewritten") == 0)
  }

  @Test(arguments: [
    (RuleDialect.suricata, "replace:\"a\";", "before any content"),
    (.suricata, "content:!\"a\"; replace:\"b\";", "cannot be replaced"),
    (.suricata, "content:\"a\"; replace:\"bc\";", "2 bytes for a content of 1"),
    (.snort2, "content:\"a\"; replace:\"\";", "is empty"),
    (.suricata, "tcp.hdr; content:\"a\"; replace:\"b\";", "cannot be replaced"),
    (.suricata, "content:\"a\"; replace:b;", "not in quotation marks"),
  ])
  func `a replacement that cannot be is a mistake`(dialect: RuleDialect, options: String, message: String) {
    let parsed = RuleFileParser.parse(
      RuleSource(
        file: "x.rules", text: Array("alert tcp any any -> any any (\(options) sid:1;)".utf8), dialect: dialect),
      variables: [:])
    #expect(
      parsed.rejected == 1 && parsed.diagnostics.contains { $0.message.contains(message) }, "\(parsed.diagnostics)")
  }
}

extension RawSpan {
  /// A byte, for tests.
  fileprivate func unsafeByte(_ offset: Int) -> UInt8 {
    precondition(offset >= 0 && offset < byteCount)
    // SAFETY: inside by the check above.
    return unsafe unsafeLoad(fromByteOffset: offset, as: UInt8.self)
  }
}
