import Testing
import VMFenceCore
import VMFenceDetection

/// What a receiver reads of TCP segments, and when it is inspected.
@Suite("Streams") struct StreamTests {
  private static let needle = "the needle to be found"
  private static let rule = "alert tcp any any -> any any (content:\"\(needle)\"; flow:to_server; sid:1;)"

  /// A connection and the engine that watches it.
  struct Wire: ~Copyable {
    var engine: EngineUnderTest
    var connection: Connection
    var found: [UInt32] = []

    /// - `options`: of both sides' SYN.
    init(
      _ rules: String, dialect: RuleDialect = .snort2, sequence: UInt32 = 1000, settings: [String: String] = [:],
      options: [UInt8] = []
    ) throws {
      engine = try EngineUnderTest(rules, dialect: dialect, settings: settings)
      connection = Connection()
      connection.clientNext = sequence
      for (index, frame) in connection.handshake().enumerated() {
        send(index < 2 ? frame.with(options: options) : frame)
      }
    }

    mutating func send(_ frame: [UInt8]) { found += engine.inspect(frame) }

    /// A segment at a distance from what the client sent last.
    mutating func send(_ text: some StringProtocol, at distance: Int = 0, flags: UInt8 = 0x18) {
      send(segment(text, at: distance, flags: flags).tcp)
    }

    func segment(_ text: some StringProtocol, at distance: Int = 0, flags: UInt8 = 0x18) -> Frame {
      connection.client.carrying(String(text)).with {
        $0.flags = flags
        $0.sequence = connection.clientNext &+ UInt32(truncatingIfNeeded: distance)
        $0.acknowledgement = connection.serverNext
      }
    }

    /// The server acknowledges so many bytes more.
    mutating func acknowledge(_ count: Int) {
      connection.clientNext &+= UInt32(truncatingIfNeeded: count)
      send(connection.fromServer("", flags: Frame.ack))
    }

    mutating func finish() -> [UInt32] {
      found += engine.finish()
      return found
    }
  }

  @Test("cut anywhere, once or into single bytes, the stream is what it was")
  func cuts() throws {
    let text = "before " + Self.needle + " after"
    for cut in 1..<text.utf8.count {
      var wire = try Wire(Self.rule)
      wire.send(text.prefix(cut))
      wire.send(text.dropFirst(cut), at: cut)
      wire.acknowledge(text.utf8.count)
      #expect(wire.finish() == [1], "cut at \(cut)")
    }
    var wire = try Wire(Self.rule)
    for character in text {
      wire.send(String(character))
      wire.acknowledge(1)
    }
    #expect(wire.finish() == [1])
  }

  @Test("in every order, with repetitions, over the wrap of sequence numbers", arguments: [1000, UInt32.max - 9])
  func orders(_ sequence: UInt32) throws {
    let text = Array(Self.needle)
    let edges = [0, 5, 9, 15, text.count]
    for order in permutations(4) {
      var wire = try Wire(Self.rule, sequence: sequence)
      for index in order + [order[0]] {
        wire.send(String(text[edges[index]..<edges[index + 1]]), at: edges[index])
      }
      wire.acknowledge(text.count)
      #expect(wire.finish() == [1], "order \(order)")
    }
  }

  @Test("passive, nothing is inspected before its receiver has it; then at the answer, the chunk, or the end")
  func acknowledged() throws {
    var wire = try Wire(Self.rule)
    wire.send(Self.needle)
    #expect(wire.found == [])
    wire.acknowledge(Self.needle.utf8.count)
    #expect(wire.found == [], "less than a chunk")
    wire.send(wire.connection.fromServer("an answer"))
    #expect(wire.found == [1])
    #expect(wire.engine.output[0].flags == [.toServer, .established, .stream])
    #expect(wire.engine.output[0].source == IPAddress("192.0.2.1"))
    var other = try Wire(Self.rule)
    other.send(Self.needle)
    #expect(other.finish() == [1], "never acknowledged, but sent")
    #expect(other.engine.statistic("alerts") == 1)
  }

  @Test("a pattern that begins in one inspected part and ends in the next is found once", arguments: [false, true])
  func straddling(_ isInline: Bool) throws {
    for shift in stride(from: 0, through: 44, by: 4) {
      var wire = try Wire(Self.rule, settings: ["stream.inline": isInline ? "yes" : "no"])
      let text = String(repeating: ".", count: 2530 + shift) + Self.needle + String(repeating: ".", count: 6000)
      var rest = text[...]
      while !rest.isEmpty {
        let part = rest.prefix(320)
        wire.send(part)
        wire.acknowledge(part.utf8.count)
        rest = rest.dropFirst(320)
      }
      #expect(wire.finish() == [1], "\(shift)")
    }
  }

  @Test(
    "overlapping segments are read as the receiver's system reads them",
    arguments: [
      // The old segment lies at 4 ..< 8, the new one somewhere over it: who wins where both are.
      ("bsd", [true, false, false, false]), ("windows", [true, false, false, false]),
      ("first", [false, false, false, false]), ("last", [true, true, true, true]),
      ("linux", [true, true, false, false]), ("old-linux", [true, true, true, false]),
      ("solaris", [true, true, true, true]), ("macos", [true, false, false, false]),
      ("vista", [false, false, false, false]),
    ])
  func policies(_ test: (system: String, newWins: [Bool])) throws {
    // Begins before; the same beginning and longer; the same; begins after and ends after.
    let places = [(2, 6), (4, 6), (4, 4), (6, 6)]
    for (place, newWins) in zip(places, test.newWins) {
      let shared = max(4, place.0)..<min(8, place.0 + place.1)
      var wire = try Wire(
        """
        alert tcp any any -> any any (content:"\(String(repeating: "N", count: shared.count))"; sid:2;)
        """, settings: ["host-os-policy.\(test.system)": "198.51.100.2"])
      wire.send("OOOO", at: 4)
      let new = (place.0..<place.0 + place.1).map { shared.contains($0) ? "N" : "x" }.joined()
      wire.send(new, at: place.0)
      wire.send("0123", at: 0)
      wire.send("................", at: place.0 + place.1)
      wire.acknowledge(12)
      #expect(wire.finish() == (newWins ? [2] : []), "\(test.system) at \(place)")
      #expect(wire.engine.statistic("stream_overlaps_different") == 1 || place.0 < 4)
    }
  }

  @Test(
    "many segments over each other, in any order, are read as the first or the last of them says", arguments: 1...12)
  func manyOverlaps(_ seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    let length = Int.random(in: 200...900, using: &random)
    // Enough to cover everything, and some more, each with other bytes.
    var ranges: [Range<Int>] = []
    var end = 0
    while end < length {
      let next = min(length, end + Int.random(in: 10...120, using: &random))
      ranges.append(Int.random(in: 0...end, using: &random)..<next)
      end = next
    }
    for _ in 0..<8 {
      let start = Int.random(in: 0..<length, using: &random)
      ranges.append(start..<min(length, start + Int.random(in: 1...150, using: &random)))
    }
    ranges.shuffle(using: &random)
    let pieces = ranges.map { range in (range, range.map { _ in UInt8.random(in: 0x61...0x7A, using: &random) }) }
    for (system, isFirst) in [("first", true), ("last", false)] {
      var whole = [UInt8](repeating: 0, count: length)
      for (range, bytes) in pieces {
        for (place, byte) in zip(range, bytes) where !isFirst || whole[place] == 0 { whole[place] = byte }
      }
      var wire = try Wire(
        "alert tcp any any -> any any (content:\"\(String(decoding: whole, as: UTF8.self))\"; sid:1;)",
        settings: ["host-os-policy.default": system])
      for (range, bytes) in pieces { wire.send(String(decoding: bytes, as: UTF8.self), at: range.lowerBound) }
      wire.acknowledge(length)
      #expect(wire.finish() == [1], "\(system): \(ranges)")
    }
  }

  @Test("in Suricata a depth counts from the stream's beginning; a packet counts for itself")
  func depthOfContents() throws {
    let fixed = "alert tcp any any -> any any (content:\"ab\"; depth:4; content:\"z\"; distance:0; sid:1;)"
    let negated = "alert tcp any any -> any any (content:\"z\"; content:!\"ab\"; depth:9; flow:only_stream; sid:2;)"
    func found(_ rule: String, _ texts: [String]) throws -> [UInt32] {
      var wire = try Wire(rule, dialect: .suricata)
      for text in texts {
        wire.send(text)
        wire.acknowledge(text.utf8.count)
        wire.send(wire.connection.fromServer("answer"))
      }
      return wire.finish()
    }
    #expect(try found(fixed, ["abz"]) == [1, 1], "once in the packet, once in the stream")
    #expect(try found(fixed, ["....", "abz"]) == [1], "not at the stream's beginning")
    #expect(try found(fixed, ["..a", "b..z"]) == [1], "the stream's beginning came in two parts")
    #expect(try found(fixed, ["...a", "b..z"]) == [], "beyond the depth")
    #expect(try found(negated, ["..", "..z"]) == [2])
    #expect(try found(negated, ["....", "abz"]) == [])
  }

  @Test("inline, what was let through first stays, and only that is inspected")
  func inlineOverlap() throws {
    let rules = """
      alert tcp any any -> any any (content:"EVIL"; sid:1;)
      alert tcp any any -> any any (content:"GOOD"; sid:2;)
      """
    var wire = try Wire(rules, settings: ["stream.inline": "yes", "host-os-policy.last": "0.0.0.0/0"])
    wire.send("GOOD")
    wire.send("EVIL")
    #expect(wire.finish() == [2, 2])
  }

  @Test("segments that the receiver does not take are in no stream")
  func insertion() throws {
    let events = """
      alert tcp any any -> any any (content:"attack"; flow:only_stream; sid:1;)
      """
    func inserted(_ change: (inout Frame) -> Void, verifies: Bool = false) throws -> [UInt32] {
      let rules = try compiled(events, dialect: .suricata)
      var engine = try EngineUnderTest(rules, verifiesChecksums: verifies)
      var connection = Connection()
      _ = engine.inspect(connection.handshake())
      _ = engine.inspect(connection.fromClient("att"))
      var frame = Frame(sequence: connection.clientNext, acknowledgement: connection.serverNext).carrying("XXX")
      change(&frame)
      var bytes = frame.tcp
      if verifies { bytes[51] ^= 0x55 }
      _ = engine.inspect(bytes)
      _ = engine.inspect(connection.fromClient("ack"))
      return engine.inspect(connection.fromServer("ok")) + engine.finish()
    }
    #expect(try inserted { $0.sequence &+= 60_000 } == [1], "beyond the window")
    #expect(try inserted { $0.sequence &-= 30_000 } == [1], "before the window")
    #expect(try inserted { $0.acknowledgement &+= 100_000 } == [1], "acknowledges what was not sent")
    #expect(try inserted { $0.flags = 0 } == [1], "without ACK")
    #expect(try inserted({ _ in }, verifies: true) == [1], "a wrong checksum")
    #expect(
      try inserted {
        $0.flags = Frame.rst; $0.payload = []; $0.sequence &+= 99
      } == [1], "a reset beside the number")
    #expect(try inserted { _ in } == [], "the receiver takes it")
  }

  @Test("a reset that was not meant does not blind the engine")
  func afterReset() throws {
    var wire = try Wire(Self.rule)
    wire.send("", flags: Frame.rst)
    wire.send(Self.needle)
    wire.acknowledge(Self.needle.utf8.count)
    #expect(wire.finish() == [1])
  }

  @Test("missing bytes are passed over when they are acknowledged, and nothing matches over the gap")
  func gaps() throws {
    let rules = """
      alert tcp any any -> any any (content:"GOOD"; sid:1;)
      alert tcp any any -> any any (content:"DATA"; sid:2;)
      alert tcp any any -> any any (content:"GOODDATA"; sid:3;)
      """
    var wire = try Wire(rules)
    wire.send("GOOD")
    wire.send("DATA", at: 8)
    wire.acknowledge(12)
    #expect(wire.finish().sorted() == [1, 2])
    #expect(wire.engine.statistic("stream_gaps") == 1)
  }

  @Test("below the depth streams are put together, beyond it packets are looked at one by one")
  func depth() throws {
    var wire = try Wire(Self.rule, settings: ["stream.reassembly.depth": "1000"])
    wire.send(String(repeating: ".", count: 990))
    wire.acknowledge(990)
    wire.send(Self.needle.prefix(12))
    wire.send(Self.needle.dropFirst(12), at: 12)
    wire.acknowledge(Self.needle.utf8.count)
    wire.send(Self.needle)
    wire.acknowledge(Self.needle.utf8.count)
    #expect(wire.finish() == [1])
    #expect(wire.engine.statistic("stream_depth_reached") == 1)
  }

  @Test(
    "what was found in an inspected part counts in the next, however many rules were found there, and over a change of rules",
    arguments: [1, FoundInOneWindow.fits, FoundInOneWindow.tooMany], [false, true])
  func foundBefore(_ count: Int, _ swaps: Bool) throws {
    // The first content is the longer one, so the search is for it; the second comes a window later.
    let rules = (1...count).map {
      "alert tcp any any -> any any (content:\"beginning-of-\($0)-\"; content:\"end-\($0)\"; distance:0; sid:\($0);)"
    }.joined(separator: "\n")
    var wire = try Wire(rules)
    func pass(_ text: String, _ wire: inout Wire) {
      wire.send(text)
      wire.acknowledge(text.utf8.count)
      wire.send(wire.connection.fromServer("an answer"))
    }
    pass((1...count).map { "beginning-of-\($0)-" }.joined(), &wire)
    pass("nothing here", &wire)
    if swaps {
      let other = try compiled("alert tcp any any -> any any (content:\"something else\"; sid:999;)\n" + rules)
      try wire.engine.inspector.replaceRules(with: other)
      wire.engine.rules = other
    }
    #expect(wire.found == [])
    pass((1...count).map { "end-\($0)" }.joined(separator: " "), &wire)
    #expect(wire.finish() == (1...count).map { UInt32($0) })
  }

  private enum FoundInOneWindow {
    static let fits = 4
    static let tooMany = 40
  }

  @Test("a flood of segments beyond gaps stays within its memory, and the rest is still inspected")
  func memory() throws {
    var engine = try EngineUnderTest(
      try compiled(Self.rule), flowCapacity: 4096, settings: ["stream.memcap": "1mb", "stream.midstream": "yes"])
    for port in 1...1000 {
      var connection = Connection(Frame(sourcePort: UInt16(port)))
      _ = engine.inspect(connection.handshake())
      connection.clientNext &+= 10
      _ = engine.inspect(connection.fromClient(String(repeating: "x", count: 1000)))
    }
    #expect((engine.statistic("stream_bytes_most") ?? 0) <= 1 << 20)
    #expect((engine.statistic("stream_memory_hits") ?? 0) > 0)
    var connection = Connection(Frame(sourcePort: 2000))
    _ = engine.inspect(connection.handshake())
    #expect(engine.inspect(connection.fromClient(Self.needle)) + engine.finish() == [1])
  }

  @Test("midstream: taken up when the settings say so, else packets are looked at one by one")
  func midstream() throws {
    for isOn in [true, false] {
      var engine = try EngineUnderTest(Self.rule, settings: ["stream.midstream": isOn ? "yes" : "no"])
      var connection = Connection()
      var found = engine.inspect(connection.fromClient(String(Self.needle.prefix(10))))
      found += engine.inspect(connection.fromClient(String(Self.needle.dropFirst(10))))
      #expect(found + engine.finish() == (isOn ? [1] : []))
      #expect(engine.inspect(Frame(sourcePort: 50_007).carrying(Self.needle).tcp) + engine.finish() == [1])
    }
  }

  @Test("settings that cannot be are refused by name, with what they can be")
  func settings() throws {
    for (name, value, expected) in [
      ("stream.midstreem", "yes", "stream.midstream"), ("stream.midstream", "perhaps", "yes or no"),
      ("stream.midstream-policy", "drop", "drop-flow"), ("host-os-policy.beos", "10.0.0.0/8", "old-linux"),
      ("host-os-policy.linux", "10.0.0.300", "10.0.0.0/8"), ("stream.reassembly.depth", "2tb", "bytes"),
      ("defrag.max-frags", "1", "2 to 8192"), ("stream.reassembly.urgent.policy", "never", "oob"),
    ] {
      let error = #expect(throws: RuleCompilationError.self) {
        _ = try EngineSettings(InspectorConfiguration(settings: [name: value]))
      }
      #expect(error?.code == .badSetting)
      #expect(error?.description.contains(expected) == true, "\(error?.description ?? "")")
    }
  }

  @Test(
    "the urgent byte is in the stream or not, as the receiver reads it",
    arguments: [
      ("oob", "patient", true), ("inline", "pat!ient", true), ("gap", "patient", false), ("drop", "patient", false),
    ])
  func urgent(_ test: (policy: String, text: String, isFound: Bool)) throws {
    var wire = try Wire(
      "alert tcp any any -> any any (content:\"\(test.text)\"; sid:1;)",
      settings: ["stream.reassembly.urgent.policy": test.policy])
    // The pointer stands in the TCP header's last two bytes; checksums are not verified here.
    var bytes = wire.segment("pat!", flags: 0x38).tcp
    bytes[53] = 4
    wire.send(bytes)
    wire.send("ient", at: 4)
    wire.send(bytes)
    wire.acknowledge(8)
    #expect(wire.finish() == (test.isFound ? [1] : []))
  }

  @Test("data of a SYN that the server did not take is no part of the stream")
  func fastOpen() throws {
    var engine = try EngineUnderTest(
      "alert tcp any any -> any any (content:\"attack\"; flow:only_stream; sid:1;)", dialect: .suricata)
    var connection = Connection()
    let opening = connection.client.carrying("XXX").with {
      $0.flags = Frame.syn
      $0.acknowledgement = 0
    }
    _ = engine.inspect(opening.tcp)
    connection.clientNext &+= 1
    _ = engine.inspect(connection.fromServer("", flags: Frame.syn | Frame.ack))
    connection.serverNext += 1
    _ = engine.inspect(connection.fromClient("", flags: Frame.ack))
    _ = engine.inspect(connection.fromClient("attack"))
    #expect(engine.inspect(connection.fromServer("ok")) + engine.finish() == [1])
  }

  @Test("events are told with the segment that caused them")
  func events() throws {
    let names = [
      "pkt_retransmission", "rst_invalid_ack", "est_packet_out_of_window", "reassembly_overlap_different_data",
    ]
    let rules =
      names.enumerated().map {
        "alert tcp any any -> any any (msg:\"\($0.element)\"; stream-event:\($0.element); sid:\($0.offset + 1);)"
      }.joined(separator: "\n")
      + "\nalert tcp any any -> any any (msg:\"s\"; content:\"zzz\"; flow:only_stream; sid:9;)"
    var wire = try Wire(rules, dialect: .suricata)
    wire.send("hello")
    #expect(wire.found == [])
    wire.send("hello")
    #expect(wire.found == [1])
    wire.send("jello")
    #expect(wire.found == [1, 1, 4])
    wire.send("", at: 77, flags: Frame.rst)
    wire.send("far away", at: 30_000)
    #expect(wire.found == [1, 1, 4, 2, 3])
  }

  @Test("every event has a name, and each name is known")
  func names() throws {
    #expect(Set(StreamEvent.names).count == StreamEvent.allCases.count)
    #expect(StreamEvent.names.count == StreamEvent.allCases.count)
  }
}
