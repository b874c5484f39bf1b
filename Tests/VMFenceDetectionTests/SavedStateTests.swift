import Testing
import VMFenceCore
import VMFenceDetection

/// What an engine remembers goes on elsewhere, or later.
@Suite("Saved states") struct SavedStateTests {
  private static let rules = """
    alert tcp any any -> any any (msg:"over segments"; content:"a needle in pieces"; flow:to_server,established; sid:1;)
    alert udp any any -> any 53 (msg:"over fragments"; content:"found in fragments"; sid:2;)
    alert tcp any any -> any any (msg:"bit"; content:"first word"; flowbits:set,greeted; flowbits:noalert; sid:3;)
    alert tcp any any -> any any (msg:"bit is set"; content:"second word"; flowbits:isset,greeted; sid:4;)
    alert icmp any any -> any any (msg:"rate"; itype:8; detection_filter:track by_src, count 3, seconds 60; sid:5;)
    alert icmp any any -> any any (msg:"limit"; itype:0; threshold:type limit, track by_src, count 1, seconds 60; sid:6;)
    """
  private static let suricata = """
    alert tcp any any -> any any (msg:"integer"; content:"count me"; flowint:seen,+,1; noalert; sid:11;)
    alert tcp any any -> any any (msg:"counted"; content:"how many"; flowint:seen,==,2; sid:12;)
    alert udp any any -> any 99 (msg:"host"; content:"mark"; xbits:set,marked,track ip_src,expire 30; noalert; sid:13;)
    alert udp any any -> any 99 (msg:"host is marked"; content:"look"; xbits:isset,marked,track ip_src; sid:14;)
    alert tcp any any -> any any (msg:"by flow"; content:"again"; threshold:type threshold, track by_flow, count 2, seconds 60; sid:15;)
    alert tcp any any -> any any (msg:"taken"; content:"second word"; pcre:"/count (me)/", flow:whom; sid:17;)
    alert tcp any any -> any any (msg:"who it was"; content:"how many"; flowvar:whom,"me"; sid:18;)
    alert udp any any -> any any (msg:"log the host"; content:"mark"; tag:host,4,packets,src; noalert; sid:19;)
    alert tcp any any -> any any (msg:"log the flow"; content:"an answer"; tag:session,9,seconds; noalert; sid:20;)
    drop tcp any any -> any any (msg:"end it"; content:"end it"; flow:established; sid:16;)
    """

  /// Two connections at once, one with segments out of order and over each other; fragments out of order; pings; UDP.
  private static var traffic: [[UInt8]] {
    var frames: [[UInt8]] = []
    var first = Connection()
    var second = Connection(Frame(source: "2001:db8::1", destination: "2001:db8::2", sourcePort: 1234))
    frames += first.handshake()
    frames += second.handshake()
    frames.append(first.fromClient("the first word, count me, a nee"))
    frames.append(second.fromClient("count me again"))
    let piece = first.client.carrying("dle in pieces, and again").with {
      $0.sequence = first.clientNext
      $0.acknowledgement = first.serverNext
    }
    frames.append(
      piece.with {
        $0.sequence += 9
        $0.payload = Array($0.payload[9...])
      }.tcp)
    let datagram = Array(Frame(destinationPort: 53).carrying("it is found in fragments, this time").udp[34...])
    let fragment = { (range: Range<Int>) in
      Frame().with { $0.payload = Array(datagram[range]) }.piece(
        17, offset: range.lowerBound / 8, more: range.upperBound < datagram.count, id: 77)
    }
    frames.append(fragment(16..<32))
    for _ in 0..<3 { frames.append(Frame().icmp(type: 8)) }
    frames.append(Frame(destinationPort: 99).carrying("mark").udp)
    frames.append(piece.with { $0.payload = Array($0.payload[..<12]) }.tcp)
    frames.append(fragment(0..<16))
    first.clientNext += UInt32(piece.payload.count)
    frames.append(first.fromServer("an answer"))
    frames.append(Frame().icmp(type: 0))
    frames.append(first.fromClient("the second word, count me, again"))
    frames.append(fragment(8..<24))
    frames.append(first.fromServer("another answer"))
    frames.append(second.fromServer("answer"))
    for _ in 0..<2 { frames.append(Frame().icmp(type: 8)) }
    frames.append(fragment(32..<datagram.count))
    frames.append(first.fromClient("how many? again"))
    frames.append(Frame().icmp(type: 0))
    frames.append(Frame(destinationPort: 99).carrying("look").udp)
    frames.append(second.fromClient("how many? end it again"))
    frames.append(first.fromServer("", flags: Frame.ack))
    frames.append(second.fromServer("", flags: Frame.ack))
    frames.append(first.fromClient("again, and again"))
    frames.append(second.fromClient("this is passed no more"))
    return frames
  }

  private static func engine(isInline: Bool = false, hashKey: (UInt64, UInt64) = (1, 2)) throws -> EngineUnderTest {
    let rules = try SnortRules(compiling: try parsed(rules) + parsed(suricata, dialect: .suricata))
    return try EngineUnderTest(rules, isInline: isInline, flowCapacity: 256, hashKey: hashKey)
  }

  /// The sids that fire, sorted by packet, with 9999 for one that is dropped and 8888 for one that is logged; what waits at the end last.
  private static func run(
    _ engine: inout EngineUnderTest, _ frames: ArraySlice<[UInt8]>, finishes: Bool, delay: Int64 = 0
  ) -> [[UInt32]] {
    var result: [[UInt32]] = []
    for index in frames.indices {
      engine.now = Timestamp(seconds: 1_700_000_000 + Int64(index) + delay)
      let sids = engine.inspect(frames[index], after: .zero)
      let isTagged = engine.output.isTagged
      result.append((sids + (engine.output.verdict == .pass ? [] : [9999]) + (isTagged ? [8888] : [])).sorted())
    }
    return result + [finishes ? engine.finish().sorted() : []]
  }

  private static func time(after count: Int) -> Timestamp { Timestamp(seconds: 1_700_000_000 + Int64(count) - 1) }

  @Test(
    "cut anywhere, with the state saved and restored between, the traffic gives the alerts that it gives in one go",
    arguments: [false, true], [(1, 2), (77, 78)] as [(UInt64, UInt64)])
  func cuts(_ isInline: Bool, _ key: (UInt64, UInt64)) throws {
    let frames = Self.traffic
    var whole = try Self.engine(isInline: isInline)
    let expected = Self.run(&whole, frames[...], finishes: true)
    #expect(Set(expected.joined()).isSuperset(of: [1, 2, 4, 5, 6, 12, 14, 15, 16, 17, 18, 8888]), "\(expected)")
    for cut in 1..<frames.count {
      var first = try Self.engine(isInline: isInline)
      var got = Self.run(&first, frames[..<cut], finishes: false)
      got.removeLast()
      let state = first.inspector.saveState(at: Self.time(after: cut), limit: 1 << 20)
      #expect(state.report.items.allSatisfy { $0.dropped == 0 }, "\(cut): \(state.report)")
      // Another key: everything lies elsewhere, and is found all the same.
      var second = try Self.engine(isInline: isInline, hashKey: key)
      let report = try second.inspector.restoreState(state.bytes, at: nil)
      #expect(report.items.allSatisfy { $0.dropped == 0 }, "\(cut): \(report)")
      got += Self.run(&second, frames[cut...], finishes: true)
      #expect(got == expected, "cut after \(cut)")
      // What was restored is what was saved.
      if key == (1, 2) {
        var third = try Self.engine(isInline: isInline)
        _ = try third.inspector.restoreState(state.bytes, at: nil)
        #expect(third.inspector.saveState(at: Self.time(after: cut), limit: 1 << 20).bytes.count == state.bytes.count)
      }
    }
  }

  @Test("with another clock, what remained of times remains")
  func otherClock() throws {
    let frames = [Frame(destinationPort: 99).carrying("mark").udp, Frame(destinationPort: 99).carrying("look").udp]
    for (wait, expected) in [(20, [[14, 8888], []]), (40, [[8888], []])] as [(Int64, [[UInt32]])] {
      var first = try Self.engine()
      _ = Self.run(&first, frames[..<1], finishes: false)
      let state = first.inspector.saveState(at: Timestamp(seconds: 1_700_000_000), limit: 1 << 20)
      var second = try Self.engine()
      _ = try second.inspector.restoreState(state.bytes, at: Timestamp(seconds: 1_800_000_000))
      let got = Self.run(&second, frames[1...], finishes: true, delay: 100_000_000 + wait - 1)
      #expect(got == expected)
    }
  }

  @Test("another rule set keeps what it has a name for, and says what it dropped")
  func otherRules() throws {
    let frames = Self.traffic
    var first = try Self.engine()
    _ = Self.run(&first, frames[..<17], finishes: false)
    let state = first.inspector.saveState(at: Self.time(after: 17), limit: 1 << 20)
    let other = try compiled(
      """
      alert tcp any any -> any any (content:"unused"; flowbits:set,new; sid:20;)
      alert tcp any any -> any any (content:"second word"; flowbits:isset,greeted; sid:4;)
      """)
    var second = try EngineUnderTest(other, flowCapacity: 256, hashKey: (3, 4))
    let report = try second.inspector.restoreState(state.bytes, at: nil)
    #expect(report.items.first { $0.name == "flows" }?.dropped == 0)
    #expect((report.items.first { $0.name == "rates" }?.dropped ?? 0) > 0)
    #expect(report.items.first { $0.name == "rates" }?.kept == 0)
    #expect(report.items.first { $0.name == "host bits" }?.dropped == 1)
    #expect((report.items.first { $0.name == "flow variables" }?.dropped ?? 0) > 0)
    #expect(Set(Self.run(&second, frames[17...], finishes: true).joined()) == [4])
  }

  @Test("a state that was cut or changed is refused whole, and changes nothing")
  func damaged() throws {
    let frames = Self.traffic
    var first = try Self.engine()
    _ = Self.run(&first, frames[..<16], finishes: false)
    let state = first.inspector.saveState(at: Self.time(after: 16), limit: 1 << 20)
    var whole = try Self.engine()
    let expected = Array(Self.run(&whole, frames[...], finishes: true)[16...])
    for cut in [0, 1, 23, 24, 32, state.bytes.count / 2, state.bytes.count - 1] {
      #expect(throws: EngineStateError.self) { try first.inspector.restoreState(Array(state.bytes[..<cut]), at: nil) }
    }
    for place in stride(from: 0, to: state.bytes.count, by: 37) {
      var bytes = state.bytes
      bytes[place] ^= 0x10
      #expect(throws: EngineStateError.self) { try first.inspector.restoreState(bytes, at: nil) }
    }
    #expect(throws: EngineStateError.self) { try first.inspector.restoreState(state.bytes + [0], at: nil) }
    var newer = state.bytes
    newer[8] += 1
    let error = #expect(throws: EngineStateError.self) { try first.inspector.restoreState(newer, at: nil) }
    #expect(error?.code == .unknownFormat)
    #expect(Self.run(&first, frames[16...], finishes: true) == expected)
  }

  @Test("a state of version 1, which had no tags and captured values, is taken over")
  func olderVersion() throws {
    let frames = Self.traffic
    var first = try Self.engine()
    _ = Self.run(&first, frames[..<8], finishes: false)
    let state = first.inspector.saveState(at: Self.time(after: 8), limit: 1 << 20)
    // Nothing was tagged or captured yet, and there are no data sets: these lists are a 0 each.
    #expect(state.bytes.suffix(3) == [0, 0, 0])
    var older = Array(state.bytes.dropLast(3))
    older[8] = 1
    var sum: UInt64 = 0xCBF2_9CE4_8422_2325
    for byte in older[24...] { sum = (sum ^ UInt64(byte)) &* 0x0000_0100_0000_01B3 }
    for index in 0..<8 { older[16 + index] = UInt8(truncatingIfNeeded: sum >> UInt64(8 * index)) }
    var second = try Self.engine()
    _ = try second.inspector.restoreState(older, at: nil)
    var third = try Self.engine()
    _ = try third.inspector.restoreState(state.bytes, at: nil)
    let rest = frames[8...]
    #expect(Self.run(&second, rest, finishes: true) == Self.run(&third, rest, finishes: true))
  }

  @Test("a limit leaves out what matters least, and the rest is whole")
  func limits() throws {
    var first = try Self.engine()
    _ = Self.run(&first, Self.traffic[..<16], finishes: false)
    let full = first.inspector.saveState(at: Self.time(after: 16), limit: 1 << 20)
    for limit in stride(from: 0, through: full.bytes.count, by: 200) {
      let state = first.inspector.saveState(at: Self.time(after: 16), limit: limit)
      #expect(state.bytes.count <= max(limit, 300), "\(limit)")
      var second = try Self.engine()
      let report = try second.inspector.restoreState(state.bytes, at: nil)
      for (saved, restored) in zip(state.report.items, report.items) where saved.name != "flow variables" {
        #expect(saved.kept == restored.kept && restored.dropped == 0, "\(limit): \(state.report); \(report)")
      }
    }
  }
}
