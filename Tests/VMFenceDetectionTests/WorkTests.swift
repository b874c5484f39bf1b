import Testing
import VMFenceCore
import VMFenceDetection

/// What a sender can make the inspector do, in steps that are counted (`work`), and who pays for it.
@Suite("Work") struct WorkTests {
  // What `SnortInspector` says: the work of a packet, what a packet pays off of each debt, and what each rule has.
  private static let limit: UInt64 = 1 << 22
  private static let allowance: UInt64 = 1 << 14
  private static let ruleAllowance: UInt64 = 1 << 12
  private static let debts: UInt64 = 5

  /// A rule that takes all that it may of a packet of many `a`.
  private static func dear(_ sid: Int) -> String {
    let chain = (0..<12).map { _ in "pcre:\"/a/R\";" }.joined(separator: " ")
    return "alert udp any any -> any any (\(chain) pcre:\"/c/R\"; sid:\(sid);)\n"
  }

  /// One that has to look behind each of the `a`, which costs more than a packet pays off.
  private static let thorough = "alert udp any any -> any any (content:\"a\"; pcre:\"/^b/R\"; sid:99;)\n"

  private static let text = String(repeating: "a", count: 1000) + "b"

  private func work(_ engine: borrowing EngineUnderTest) -> UInt64 { engine.statistic("work") ?? 0 }

  @Test("what one rule cost in a flow is taken from what it may cost there, not from others", arguments: [1, 4])
  func ownDebt(_ dear: Int) throws {
    var engine = try EngineUnderTest((1...dear).map(Self.dear).joined() + Self.thorough)
    // Each of them takes one packet for itself.
    for _ in 0..<dear { _ = engine.inspect(Frame().carrying(Self.text).udp) }
    for packet in 0..<40 {
      let before = work(engine)
      #expect(engine.inspect(Frame().carrying(Self.text).udp) == [99], "packet \(packet)")
      #expect(work(engine) - before > Self.allowance * UInt64(dear + 1), "the other rule cost more than its share, too")
    }
    #expect(engine.statistic("work_limit_hits") == UInt64(dear + 40))
    #expect(engine.statistic("flow_work_limit_hits") == UInt64(dear + 39))
  }

  @Test("a debt is paid off by packets that cost nothing, and ends with its rule set")
  func paidOff() throws {
    var engine = try EngineUnderTest(Self.dear(1))
    func hits() -> [UInt64?] { [engine.statistic("work_limit_hits"), engine.statistic("flow_work_limit_hits")] }
    for _ in 0..<2 { _ = engine.inspect(Frame().carrying(Self.text).udp) }
    #expect(hits() == [2, 1])
    for _ in 0..<Self.limit / Self.allowance { _ = engine.inspect(Frame().carrying("b").udp) }
    _ = engine.inspect(Frame().carrying(Self.text).udp)
    #expect(hits() == [3, 1])
    let rules = try compiled(Self.dear(1))
    try engine.inspector.replaceRules(with: rules)
    engine.rules = rules
    _ = engine.inspect(Frame().carrying(Self.text).udp)
    #expect(hits() == [4, 1])
    _ = engine.inspect(Frame().carrying(Self.text).udp)
    #expect(hits() == [5, 2])
  }

  @Test(
    "however many rules are dear, a packet costs its limit at the most, and later ones of its flow what they pay off")
  func bounded() throws {
    let dear = 9
    var engine = try EngineUnderTest((1...dear).map(Self.dear).joined())
    for packet in 0..<60 {
      let before = work(engine)
      _ = engine.inspect(Frame().carrying(Self.text).udp)
      let most = packet < 10 ? Self.limit : Self.debts * Self.allowance
      #expect(work(engine) - before <= most + UInt64(dear) * Self.ruleAllowance, "packet \(packet)")
    }
    #expect(engine.statistic("work_limit_hits") == 60)
  }

  // MARK: Putting together

  /// What a segment pays off, and about what joining them at last costs. A flow may owe so much.
  private static let segmentAllowance: UInt64 = 1 << 10
  private static let segmentDebt: UInt64 = 1 << 17

  private static let needle = "the needle to be found"
  private static let rule = "alert tcp any any -> any any (content:\"\(needle)\"; flow:to_server; sid:1;)"

  @Test(
    "small segments over each other, and many of them, cost a flow no more than it may, and none is lost",
    arguments: ["no", "yes"], [0, 1])
  func segments(_ isInline: String, _ kind: Int) throws {
    var wire = try StreamTests.Wire(Self.rule, settings: ["stream.inline": isInline])
    for index in 0..<3000 { wire.send("x", at: 101 + 2 * index) }
    let before = work(wire.engine)
    let count = 3000
    for index in 0..<count {
      let place = 101 + 2 * (2999 - index % 50)
      // The same again, or one more byte of each hole, and two that are there.
      if kind == 0 { wire.send("x", at: place) } else { wire.send("xxx", at: place - index % 3) }
    }
    #expect(work(wire.engine) - before <= UInt64(count) * (Self.segmentAllowance + 8) + Self.segmentDebt)
    var text = Self.needle + String(repeating: ".", count: 6100 - Self.needle.utf8.count)
    while !text.isEmpty {
      wire.send(text.prefix(1000), at: 6100 - text.utf8.count)
      text.removeFirst(min(1000, text.count))
    }
    wire.acknowledge(6100)
    #expect(Set(wire.finish()) == [1])
    #expect(wire.engine.statistic("stream_segments_refused") == 0)
    #expect(wire.engine.statistic("stream_gaps") == 0)
  }

  /// `count` segments of 1,000 bytes, of which the receiver acknowledges each as soon as so many more have come.
  private func stream(_ count: Int, inFlight: Int) throws -> (work: UInt64, found: [UInt32]) {
    // A window of 8,192 units of 128 bytes.
    var wire = try StreamTests.Wire(
      Self.rule, settings: ["stream.reassembly.toserver-chunk-size": "1000", "stream.reassembly.depth": "0"],
      options: [1, 3, 3, 7])
    wire.acknowledge(0)
    let before = work(wire.engine)
    for index in 0..<count {
      let text = index % 100 == 99 ? Self.needle : ""
      wire.send(text + String(repeating: ".", count: 1000 - text.utf8.count), at: min(index, inFlight) * 1000)
      if index >= inFlight { wire.acknowledge(1000) }
    }
    wire.acknowledge(inFlight * 1000)
    let work = work(wire.engine) - before
    #expect(wire.engine.statistic("stream_segments_refused") == 0 && wire.engine.statistic("stream_gaps") == 0)
    return (work, wire.finish())
  }

  @Test("what waits is not moved for each part that is acknowledged before it; where it has to be, it is charged")
  func acknowledgedInParts() throws {
    let count: UInt64 = 3000
    var works: [UInt64] = []
    for inFlight in [10, 300, 880] {
      let (work, found) = try stream(Int(count), inFlight: inFlight)
      // What was acknowledged last is one window, with what was no chunk before it.
      let windows = (Int(count) - inFlight) / 100
      #expect(Set(found) == [1] && (windows...windows + 1).contains(found.count), "\(inFlight): \(found.count)")
      works.append(work)
    }
    // With each acknowledgement the segments that wait are looked at, and charged; where there is room, each byte is moved twice at the most.
    #expect(works[1] - works[0] <= count * (300 + 60) + 2 * count * 1000 / 64, "\(works)")
    // Of 896 KiB 880,000 bytes are taken: they are moved as often as those that are left have come, and not for each acknowledgement.
    #expect(works[2] - works[0] >= count * 880 / 4, "\(works)")
    #expect(works[2] - works[0] <= count * (880 + 60) + count * 880_000 / 64 / 10, "\(works)")
  }

  @Test("what they say is read as before: the first or the last of them says it", arguments: 1...3)
  func dearOverlaps(_ seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    let length = 6000
    var ranges = (0..<2500).map { 1 + 2 * $0..<2 + 2 * $0 }.shuffled(using: &random)
    for _ in 0..<1500 {
      let start = Int.random(in: 1..<length, using: &random)
      ranges.append(start..<min(length, start + Int.random(in: 1...40, using: &random)))
    }
    ranges += stride(from: 0, to: length, by: 60).map { $0..<$0 + 60 }.shuffled(using: &random)
    let pieces = ranges.map { range in (range, range.map { _ in UInt8.random(in: 0x61...0x7A, using: &random) }) }
    for (system, isFirst) in [("first", true), ("last", false)] {
      var whole = [UInt8](repeating: 0, count: length)
      for (range, bytes) in pieces {
        for (place, byte) in zip(range, bytes) where !isFirst || whole[place] == 0 { whole[place] = byte }
      }
      let rules = (0..<20).map {
        let part = String(decoding: whole[$0 * 300..<$0 * 300 + 200], as: UTF8.self)
        return "alert tcp any any -> any any (content:\"\(part)\"; sid:\($0 + 1);)"
      }
      var wire = try StreamTests.Wire(rules.joined(separator: "\n"), settings: ["host-os-policy.default": system])
      for (range, bytes) in pieces { wire.send(String(decoding: bytes, as: UTF8.self), at: range.lowerBound) }
      wire.acknowledge(length)
      #expect(Set(wire.finish()) == Set(1...20), "\(system)")
      let count = UInt64(pieces.count)
      #expect(work(wire.engine) <= count * (Self.segmentAllowance + 32) + Self.segmentDebt)
    }
  }

  @Test("fragments, however small and many, and be it that they come again and again", arguments: ["bsd", "linux"])
  func fragments(_ system: String) throws {
    let count = 1000
    let bytes = Array(
      Frame(destinationPort: 53).carrying(String(repeating: ".", count: count * 8 - 30) + Self.needle).udp[34...])
    var engine = try EngineUnderTest(
      "alert udp any any -> any 53 (content:\"\(Self.needle)\"; sid:1;)",
      settings: ["host-os-policy.default": system, "defrag.max-frags": "8192"])
    func piece(_ number: Int) -> [UInt8] {
      Frame().with { $0.payload = Array(bytes[number * 8..<number * 8 + 8]) }
        .piece(17, offset: number, more: number < count - 1, id: 9)
    }
    for number in 1..<count { #expect(engine.inspect(piece(number)) == []) }
    for number in 0..<3000 { #expect(engine.inspect(piece(1 + number * 7 % (count - 1))) == []) }
    #expect(engine.inspect(piece(0)) == [1])
    #expect(engine.statistic("datagrams_rebuilt") == 1)
    #expect(work(engine) <= 1 << 15 + 4000 * 40, "hardly more than their bytes, and some looks at others")
  }
}
