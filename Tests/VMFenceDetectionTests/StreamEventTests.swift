import Testing
import VMFenceCore
import VMFenceDetection

/// What is told of segments that are not as they should be, and what becomes of them.
@Suite("Stream events") struct StreamEventTests {
  /// A connection and the engine that watches it, with a rule for each of some events.
  struct Wire: ~Copyable {
    var engine: EngineUnderTest
    var connection = Connection()
    var found: [UInt32] = []

    init(_ rules: String, dialect: RuleDialect = .suricata, isInline: Bool = false, settings: [String: String] = [:])
      throws
    {
      engine = try EngineUnderTest(rules, dialect: dialect, isInline: isInline, settings: settings)
    }

    mutating func send(_ frame: [UInt8]) { found += engine.inspect(frame) }
    mutating func shakeHands() { for frame in connection.handshake() { send(frame) } }

    mutating func fromClient(_ text: String = "", at distance: Int = 0, flags: UInt8 = 0x18, acknowledging: Int = 0) {
      send(client(text, at: distance, flags: flags, acknowledging: acknowledging).tcp)
    }

    func client(_ text: String = "", at distance: Int = 0, flags: UInt8 = 0x18, acknowledging: Int = 0) -> Frame {
      connection.client.carrying(text).with {
        $0.flags = flags
        $0.sequence = connection.clientNext &+ UInt32(truncatingIfNeeded: distance)
        $0.acknowledgement = connection.serverNext &+ UInt32(truncatingIfNeeded: acknowledging)
      }
    }
  }

  private static func rule(_ event: String) -> String {
    "alert tcp any any -> any any (stream-event:\(event); sid:1;)"
  }

  /// Each thing that a peer may do wrong, by the event that tells of it, and Snort's number for it.
  private static let mistakes: [(event: String, snort: UInt32?, act: @Sendable (inout Wire) -> Void)] = [
    ("data_on_syn", 2, { $0.fromClient("early", flags: Frame.syn) }),
    ("3whs_not_seen", 20, { $0.fromClient("in the middle") }),
    (
      "data_after_fin", 3,
      {
        $0.shakeHands()
        $0.fromClient("", flags: Frame.fin | Frame.ack)
        $0.fromClient("more", at: 1)
      }
    ),
    (
      "ack_beyond_fin", 17,
      {
        $0.shakeHands()
        $0.send($0.connection.fromServer("", flags: Frame.fin | Frame.ack))
        $0.fromClient("", flags: Frame.ack, acknowledging: 9)
      }
    ),
    (
      "fin_invalid_ack", nil,
      {
        $0.shakeHands()
        $0.fromClient("", flags: Frame.fin | Frame.ack, acknowledging: 100_000)
      }
    ),
    (
      "data_after_rst_sent", 8,
      {
        $0.shakeHands()
        $0.fromClient("", flags: Frame.rst)
        $0.fromClient("still here")
      }
    ),
    (
      "data_after_rst_received", 18,
      {
        $0.shakeHands()
        $0.send($0.connection.fromServer("", flags: Frame.rst))
        $0.fromClient("still here")
      }
    ),
    (
      "pkt_without_flags", 11,
      {
        $0.shakeHands()
        $0.fromClient("none", flags: 0)
      }
    ),
    (
      "rst_invalid_ack", 15,
      {
        $0.shakeHands()
        $0.fromClient("", at: 50_000, flags: Frame.rst)
      }
    ),
    (
      "4whs_seen", 13,
      {
        _ = $0.connection.handshake()
        $0.send($0.connection.client.with { $0.flags = Frame.syn }.tcp)
        $0.send($0.connection.client.reply.with { $0.flags = Frame.syn }.tcp)
      }
    ),
    (
      "3whs_syn_flood", nil,
      { wire in
        for number in 0..<15 as Range<UInt32> {
          wire.send(
            wire.connection.client.with {
              $0.flags = Frame.syn
              $0.sequence = number &* 77_777
            }.tcp)
        }
      }
    ),
    (
      "3whs_synack_flood", nil,
      { wire in
        wire.send(wire.connection.handshake()[0])
        for number in 0..<9 as Range<UInt32> {
          wire.send(
            wire.connection.client.reply.with {
              $0.flags = Frame.syn | Frame.ack
              $0.sequence = 5000 &+ number &* 77_777
              $0.acknowledgement = wire.connection.clientNext
            }.tcp)
        }
      }
    ),
    (
      "pkt_bad_window_update", nil,
      {
        $0.shakeHands()
        $0.send($0.connection.fromServer("something that the client does not know of"))
        var small = $0.client("", at: 500, flags: Frame.ack, acknowledging: -20).tcp
        small.replaceSubrange(48..<50, with: [0, 9])
        $0.send(small)
      }
    ),
    (
      "client_mac_changed", 9,
      {
        $0.shakeHands()
        $0.send(elsewhere($0.connection.fromClient("not from where the handshake came")))
      }
    ),
    (
      "server_mac_changed", 10,
      {
        $0.shakeHands()
        $0.send(elsewhere($0.connection.fromServer("not from where the handshake came")))
      }
    ),
    (
      "window_closed_before_data", 19,
      {
        $0.shakeHands()
        var closed = $0.client("a question, and no room for an answer").tcp
        closed.replaceSubrange(48..<50, with: [0, 0])
        $0.send(closed)
      }
    ),
  ]

  /// The frame as another station would send it.
  private static func elsewhere(_ frame: [UInt8]) -> [UInt8] {
    var frame = frame
    frame[11] ^= 0xFF
    return frame
  }

  @Test("each mistake is told of, by its name and by Snort's number", arguments: 0..<mistakes.count)
  func told(_ index: Int) throws {
    let mistake = Self.mistakes[index]
    var wire = try Wire(Self.rule(mistake.event))
    mistake.act(&wire)
    #expect(Set(wire.found) == [1], "\(mistake.event)")
    if let snort = mistake.snort {
      var other = try Wire("alert ( msg:\"built in\"; gid:129; sid:\(snort); rev:1; )", dialect: .snort3)
      mistake.act(&other)
      #expect(Set(other.found) == [snort], "129:\(snort)")
    }
    // And of a connection without mistakes nothing is told.
    var right = try Wire(Self.rule(mistake.event))
    right.shakeHands()
    right.send(right.connection.fromClient("a question"))
    right.send(right.connection.fromServer("an answer"))
    right.send(right.connection.fromClient("", flags: Frame.fin | Frame.ack))
    #expect(right.found == [], "\(mistake.event)")
  }

  @Test("inline, a server's data before the client's last word are told of; passive, that word was lost")
  func dataBeforeTheHandshakeIsOver() throws {
    for (isInline, expected) in [(true, [1]), (false, [])] as [(Bool, [UInt32])] {
      var wire = try Wire(Self.rule("3whs_ack_data_inject"), isInline: isInline)
      for frame in wire.connection.handshake().prefix(2) { wire.send(frame) }
      wire.send(wire.connection.fromServer("injected"))
      #expect(wire.found == expected)
    }
  }

  @Test("rules of Snort's decoders fire on what they are about, and those not known are refused by name")
  func builtInRules() throws {
    let frame = Frame(source: "192.0.2.1", destination: "192.0.2.1").carrying("to itself").udp
    var short = Frame().carrying("cut off").udp
    short[17] = 200
    for (text, dialect) in [
      ("alert ( msg:\"cut\"; gid:116; sid:6; rev:1; )", .snort3),
      ("alert (msg:\"cut\"; gid:116; sid:6; rev:1;)", .snort2),
    ] as [(String, RuleDialect)] {
      var engine = try EngineUnderTest(text, dialect: dialect)
      #expect(engine.inspect(short) == [6])
      #expect(engine.inspect(frame) == [])
    }
    let source = RuleSource(
      file: "a.rules", text: Array("alert ( msg:\"?\"; gid:129; sid:21; )\nalert ( msg:\"?\"; gid:1; sid:9; )".utf8),
      dialect: .snort3)
    let result = RuleFileParser.parse(source, variables: [:])
    #expect(result.unsupported.map(\.features) == [["built-in rule 129:21"], ["rule without a head"]])
  }

  @Test("what is wrong while a stream is put together is told of though no rule looks at streams")
  func eventsOfReassembly() throws {
    for (event, act) in [
      (
        "reassembly_overlap_different_data",
        {
          $0.fromClient("behind a gap", at: 10)
          $0.fromClient("other", at: 12)
        }
      ),
      (
        "reassembly_seq_gap",
        {
          $0.fromClient("behind a gap", at: 10)
          $0.connection.clientNext += 22
          $0.send($0.connection.fromServer("it has it all"))
          $0.fromClient("more")
        }
      ),
    ] as [(String, (inout Wire) -> Void)] {
      var wire = try Wire(Self.rule(event))
      wire.shakeHands()
      act(&wire)
      let found = wire.found + wire.engine.finish()
      #expect(found == [1], "\(event)")
    }
  }

  @Test("Snort's limits are told of where they are set, and only there")
  func limits() throws {
    let cases: [(event: String, snort: UInt32, settings: [String: String], act: @Sendable (inout Wire) -> Void)] = [
      ("window_too_large", 6, ["stream.max-window": "8191"], { $0.fromClient("a question") }),
      (
        "excessive_overlaps", 7, ["stream.overlap-limit": "2"],
        {
          $0.fromClient("behind a gap, and long", at: 10)
          for distance in [12, 14] { $0.fromClient("in it", at: distance) }
          #expect($0.found == [])
          $0.fromClient("behind a gap, and long", at: 10)
        }
      ),
      (
        "small_segments", 12, ["stream.small-segments.count": "3", "stream.small-segments.maximum-size": "4"],
        {
          // A longer one begins the count anew.
          for text in ["a", "bcde", "fghij", "k", "l"] { $0.send($0.connection.fromClient(text)) }
          #expect($0.found == [])
          $0.send($0.connection.fromClient("m"))
        }
      ),
    ]
    for (event, snort, settings, act) in cases {
      var wire = try Wire(Self.rule(event), settings: settings)
      wire.shakeHands()
      wire.found = []
      act(&wire)
      #expect(Set(wire.found) == [1], "\(event)")
      var other = try Wire("alert ( gid:129; sid:\(snort); )", dialect: .snort3, settings: settings)
      other.shakeHands()
      other.found = []
      act(&other)
      #expect(Set(other.found) == [snort], "129:\(snort)")
      var unset = try Wire(Self.rule(event))
      unset.shakeHands()
      act(&unset)
      #expect(unset.found == [], "\(event)")
    }
  }

  @Test("inline, a segment that cannot be a part of its connection is dropped, unless the setting says no")
  func invalidSegments() throws {
    for (setting, verdict) in [("yes", Verdict.drop), ("no", .pass)] {
      var wire = try Wire(
        Self.rule("est_packet_out_of_window"), isInline: true, settings: ["stream.drop-invalid": setting])
      wire.shakeHands()
      wire.fromClient("beyond", at: 500_000)
      #expect(wire.found == [1], "it is told of all the same")
      #expect(wire.engine.output.verdict == verdict)
      if verdict == .drop { #expect(wire.engine.output.dropReason == .streamError) }
      wire.fromClient("within")
      #expect(wire.engine.output.verdict == .pass)
    }
  }

  // MARK: Insertion

  private static let needle = "a needle to be found"
  private static let needleRule = "alert tcp any any -> any any (content:\"\(needle)\"; flow:to_server; sid:9;)"

  /// Sends the needle in two halves, and before the second something that its receiver does not take.
  private func insert(
    settings: [String: String] = [:], verifiesChecksums: Bool = false, _ insertion: (inout Wire) -> Void
  ) throws -> [UInt32] {
    var wire = try Wire(Self.needleRule, settings: settings)
    if verifiesChecksums {
      wire.engine = try EngineUnderTest(
        try compiled(Self.needleRule, dialect: .suricata), verifiesChecksums: true, settings: settings)
    }
    wire.shakeHands()
    wire.send(wire.connection.fromClient(String(Self.needle.prefix(9))))
    insertion(&wire)
    wire.send(wire.connection.fromClient(String(Self.needle.dropFirst(9))))
    wire.send(wire.connection.fromServer("an answer"))
    return wire.found + wire.engine.finish()
  }

  private static let systems = [
    "bsd", "first", "last", "bsd-right", "linux", "old-linux", "solaris", "windows", "vista", "hpux11", "macos",
  ]

  private static func withTTL(_ ttl: UInt8, _ frame: [UInt8]) -> [UInt8] {
    var frame = frame
    frame[22] = ttl
    return frame
  }

  @Test("other bytes that do not come as far as the receiver hide nothing", arguments: systems)
  func lowTTL(_ system: String) throws {
    let act: (inout Wire) -> Void = { $0.send(Self.withTTL(2, $0.client("XXXXXXXXXXX").tcp)) }
    for setting in [("stream.min-ttl", "3"), ("stream.ttl-limit", "10")] {
      #expect(try insert(settings: [setting.0: setting.1, "host-os-policy.default": system], act) == [9], "\(setting)")
    }
    // Without, who reads the first of two takes them for real: this is what the setting is for.
    if system == "first" { #expect(try insert(settings: ["host-os-policy.default": system], act) == []) }
  }

  @Test("nor do those of fragments that do not come so far")
  func lowTTLOfFragments() throws {
    let bytes = Array(Frame(destinationPort: 53).carrying("0123 found in pieces 4567").udp[34...])
    let rule = "alert udp any any -> any 53 (content:\"found in pieces\"; sid:1;)"
    for (minimum, expected) in [("3", [1]), ("0", [])] as [(String, [UInt32])] {
      var engine = try EngineUnderTest(rule, settings: ["defrag.min-ttl": minimum, "host-os-policy.default": "first"])
      let pieces: [(Int, [UInt8], Bool, UInt8)] = [
        (0, Array(bytes[..<16]), true, 64), (2, Array(repeating: 0x58, count: 8), true, 2),
        (2, Array(bytes[16..<24]), true, 64), (3, Array(bytes[24...]), false, 64),
      ]
      var found: [UInt32] = []
      for (offset, part, more, ttl) in pieces {
        found += engine.inspect(
          Self.withTTL(ttl, Frame().with { $0.payload = part }.piece(17, offset: offset, more: more, id: 9)))
      }
      #expect(found == expected)
    }
  }

  @Test("nor do those with a wrong checksum, or out of the window", arguments: systems)
  func wrongSegments(_ system: String) throws {
    let settings = ["host-os-policy.default": system]
    #expect(
      try insert(settings: settings, verifiesChecksums: true) {
        var frame = $0.client("XXXXXXXXXXX").tcp
        frame[50] ^= 1
        $0.send(frame)
      } == [9])
    // A reset or FIN where nobody expects it ends nothing.
    for flags in [Frame.rst, Frame.fin | Frame.ack] {
      #expect(try insert(settings: settings) { $0.fromClient("", at: 300_000, flags: flags) } == [9], "\(flags)")
      #expect(try insert(settings: settings) { $0.fromClient("", at: -300_000, flags: flags) } == [9], "\(flags)")
    }
    #expect(try insert(settings: settings) { $0.fromClient("XXXXXXXXXXX", at: 300_000) } == [9])
  }

  @Test("cut at every byte, over segments or fragments, it is found whatever the receiver is", arguments: systems)
  func everyCut(_ system: String) throws {
    let settings = ["host-os-policy.default": system]
    let text = Self.needle
    for cut in 1..<text.utf8.count {
      var wire = try Wire(Self.needleRule, settings: settings)
      wire.shakeHands()
      // The second half first, and with its first bytes once more in the first.
      wire.fromClient(String(text.dropFirst(cut)), at: cut)
      wire.fromClient(String(text.prefix(min(text.utf8.count, cut + 3))))
      wire.connection.clientNext += UInt32(text.utf8.count)
      wire.send(wire.connection.fromServer("an answer"))
      let found = wire.found + wire.engine.finish()
      #expect(found == [9], "segments, \(cut)")
    }
    for shift in 0..<8 {
      var engine = try EngineUnderTest(
        "alert udp any any -> any 53 (content:\"\(text)\"; sid:9;)", settings: settings)
      let bytes = Array(
        Frame(destinationPort: 53).carrying(String(repeating: ".", count: shift) + text + "...").udp[34...])
      var found: [UInt32] = []
      for offset in stride(from: 0, to: bytes.count, by: 8).reversed() {
        found += engine.inspect(
          Frame().with { $0.payload = Array(bytes[offset..<min(bytes.count, offset + 8)]) }.piece(
            17, offset: offset / 8, more: offset + 8 < bytes.count, id: 3))
      }
      #expect(found == [9], "fragments, \(shift)")
    }
  }

  // MARK: State of both sides, and bounds

  @Test(
    "inline, what a rule about the packet sets is there for one about the stream, and the other way round, in one packet"
  )
  func bothSides() throws {
    let packet = "dsize:>0; content:\"one\""
    let stream = "content:\"two\"; flow:established,only_stream"
    for (setter, asker) in [(packet, stream), (stream, packet)] {
      for order in [[1, 2], [2, 1]] {
        let rules = [
          1: "alert tcp any any -> any any (\(setter); flowbits:set,seen; flowint:n,+,1; noalert; sid:1;)",
          2: "alert tcp any any -> any any (\(asker); flowbits:isset,seen; flowint:n,==,1; sid:2;)",
        ]
        var wire = try Wire(order.compactMap { rules[$0] }.joined(separator: "\n"), isInline: true)
        wire.shakeHands()
        wire.fromClient("one and two")
        #expect(wire.found == [2], "\(asker) asks for what \(setter) sets")
      }
    }
  }

  @Test("frames with other VLAN tags are other flows, whichever of three tags it is")
  func vlans() throws {
    var engine = try EngineUnderTest("alert udp any any -> any any (sid:1;)")
    for tags in [[1, 2, 3], [1, 2, 4], [1, 5, 3], [6, 2, 3], [1, 2, 3]] as [[UInt8]] {
      var frame = Frame().carrying("x").udp
      frame.insert(contentsOf: tags.flatMap { [0x81, 0, 0, $0] }, at: 12)
      _ = engine.inspect(frame)
    }
    #expect(engine.statistic("flows") == 4)
  }
}
