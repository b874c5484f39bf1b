import Testing
import VMFenceCore
import VMFenceDetection
import VMFencePackets

/// What a receiver makes of fragments.
@Suite("Fragments") struct FragmentTests {
  /// The example of J. Novak, "Target-Based Fragmentation Reassembly" (2005): letter, offset and length in units of 8 bytes, in the order
  /// of arrival.
  private static let example: [(letter: Character, offset: Int, length: Int)] = [
    ("A", 0, 3), ("B", 4, 2), ("C", 6, 3), ("D", 10, 1), ("E", 13, 2), ("F", 15, 3), ("G", 18, 2), ("H", 20, 2),
    ("I", 22, 1), ("J", 1, 4), ("K", 6, 3), ("L", 9, 3), ("M", 12, 3), ("N", 16, 1), ("O", 19, 1), ("P", 20, 1),
    ("Q", 22, 2),
  ]

  @Test(
    "the published example gives each system's bytes",
    arguments: [
      ("bsd", "AAAJJBCCCLLLMMMFFFGGHHIQ"), ("old-linux", "AAAJJBKKKLLLMMMFFFGGPHQQ"),
      ("bsd-right", "AJJJBBKKKLDLMEEFNFGOPHQQ"), ("first", "AAAJBBCCCLDLMEEFFFGGHHIQ"),
      ("last", "AJJJJBKKKLLLMMMFNFGOPHQQ"), ("windows", "AAAJBBCCCLLLMEEFFFGGHHIQ"),
      ("solaris", "AAAJBBCCCLLLMMMFFFGGHHIQ"),
    ], [false, true])
  func policies(_ test: (system: String, units: String), _ isV6: Bool) throws {
    let whole = test.units.map { String(repeating: $0, count: 8) }.joined()
    var engine = try EngineUnderTest(
      "alert udp any any -> any any (content:\"\(whole.dropFirst(8))\"; dsize:184; sid:1;)",
      settings: ["host-os-policy.\(test.system)": isV6 ? "2001:db8::/32" : "198.51.100.0/24"])
    let base = isV6 ? Frame(source: "2001:db8::1", destination: "2001:db8::2") : Frame()
    var found: [UInt32] = []
    for (index, piece) in Self.example.enumerated() {
      var bytes = Array(String(repeating: piece.letter, count: piece.length * 8).utf8)
      // The first unit is the UDP header.
      if piece.offset == 0 { bytes.replaceSubrange(0..<8, with: [0x9C, 0x40, 0, 53, 0, 192, 0, 0]) }
      let fragment = base.with { $0.payload = bytes }.piece(
        17, offset: piece.offset, more: index < Self.example.count - 1, id: 7)
      found += engine.inspect(fragment)
    }
    #expect(found == [1])
    #expect(engine.statistic("datagrams_rebuilt") == 1)
    #expect((engine.statistic("fragment_overlaps") ?? 0) > 0)
  }

  private let rule = "alert udp any any -> any 53 (content:\"found in pieces\"; sid:1;)"
  private var datagram: [UInt8] { Array(Frame(destinationPort: 53).carrying("0123 found in pieces 4567").udp[34...]) }

  @Test("pieces in every order make the datagram, cut at every unit")
  func orders() throws {
    let bytes = datagram
    for cuts in [[8], [16], [24], [8, 16], [8, 24], [16, 24], [8, 16, 24]] {
      let edges = [0] + cuts + [bytes.count]
      let pieces = (1..<edges.count).map { (edges[$0 - 1], Array(bytes[edges[$0 - 1]..<edges[$0]])) }
      for order in permutations(pieces.count) {
        var engine = try EngineUnderTest(rule, isInline: false)
        var found: [UInt32] = []
        for index in order {
          let (offset, part) = pieces[index]
          found += engine.inspect(
            Frame().with { $0.payload = part }.piece(
              17, offset: offset / 8, more: offset + part.count < bytes.count, id: 9))
        }
        #expect(found == [1], "cut at \(cuts), order \(order)")
      }
    }
  }

  @Test("pieces with different identifications, protocols or VLANs do not meet")
  func apart() throws {
    let bytes = datagram
    func two(_ change: (inout [UInt8]) -> Void) throws -> [UInt32] {
      var engine = try EngineUnderTest(rule)
      let first = Frame().with { $0.payload = Array(bytes[..<16]) }.piece(17, offset: 0, more: true, id: 9)
      var second = Frame().with { $0.payload = Array(bytes[16...]) }.piece(17, offset: 2, more: false, id: 9)
      change(&second)
      return engine.inspect(first) + engine.inspect(second)
    }
    #expect(try two { _ in } == [1])
    #expect(try two { $0[19] ^= 1 } == [])
    #expect(try two { $0[23] = 6 } == [])
    #expect(try two { $0.insert(contentsOf: [0x81, 0, 0, 5], at: 12) } == [])
  }

  @Test("a datagram whose pieces are too old is forgotten; a flood of first pieces gives way in bounded memory")
  func bounds() throws {
    let bytes = datagram
    var engine = try EngineUnderTest(rule, settings: ["defrag.timeout": "10", "defrag.memcap": "128kb"])
    let first = Frame().with { $0.payload = Array(bytes[..<16]) }.piece(17, offset: 0, more: true, id: 9)
    let second = Frame().with { $0.payload = Array(bytes[16...]) }.piece(17, offset: 2, more: false, id: 9)
    #expect(engine.inspect(first) == [])
    #expect(engine.inspect(second, after: .seconds(11)) == [])
    #expect(engine.statistic("datagrams_expired") == 1)
    for id in 0..<2000 {
      _ = engine.inspect(
        Frame().with { $0.payload = Array(repeating: 1, count: 64) }.piece(17, offset: 0, more: true, id: UInt16(id)))
    }
    #expect((engine.statistic("datagrams_evicted") ?? 0) > 0)
    #expect(engine.inspect(first) == [])
    #expect(engine.inspect(second) == [1])
  }

  @Test("as many datagrams wait at the same time as there is room for, wherever the secret key puts them")
  func manyWaiting() throws {
    let bytes = datagram
    var engine = try EngineUnderTest(rule, settings: ["defrag.trackers": "4096"])
    let ids = (1...500).map { UInt16($0) }
    for id in ids {
      _ = engine.inspect(Frame().with { $0.payload = Array(bytes[..<16]) }.piece(17, offset: 0, more: true, id: id))
    }
    var found = 0
    for id in ids.reversed() {
      found +=
        engine.inspect(
          Frame().with { $0.payload = Array(bytes[16...]) }.piece(17, offset: 2, more: false, id: id)
        ).count
    }
    #expect(found == 500)
    #expect(engine.statistic("datagrams_evicted") == 0)
  }

  @Test("long pieces over each other, in any order, are read as the first or the last of them says", arguments: 1...12)
  func longOverlaps(_ seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    let length = 8 * Int.random(in: 100...400, using: &random)
    // Enough to cover everything, and some more, each with other bytes.
    var ranges: [Range<Int>] = []
    var end = 0
    while end < length {
      let next = min(length, end + 8 * Int.random(in: 20...180, using: &random))
      ranges.append(8 * Int.random(in: 0...end / 8, using: &random)..<next)
      end = next
    }
    for _ in 0..<6 {
      let start = 8 * Int.random(in: 0..<length / 8, using: &random)
      ranges.append(start..<min(length, start + 8 * Int.random(in: 1...150, using: &random)))
    }
    // What is whole is no fragment.
    ranges = ranges.flatMap { $0 == 0..<length ? [0..<400, 400..<length] : [$0] }
    ranges.shuffle(using: &random)
    let pieces = ranges.map { range in (range, range.map { _ in UInt8.random(in: 0x30...0x7A, using: &random) }) }
    for (system, isFirst) in [("first", true), ("last", false)] {
      var whole = [UInt8](repeating: 0, count: length)
      var isThere = [Bool](repeating: false, count: length)
      // The datagram is whole, and put together, as soon as nothing is missing: what comes later is another one's.
      var arrived = 0
      for (range, bytes) in pieces {
        for (place, byte) in zip(range, bytes) where !isFirst || !isThere[place] {
          (whole[place], isThere[place]) = (byte, true)
        }
        arrived += 1
        if isThere.allSatisfy(\.self) { break }
      }
      let text = whole.map { String($0, radix: 16) }.joined(separator: " ")
      var engine = try EngineUnderTest(
        "alert ip any any -> any any (content:\"|\(text)|\"; dsize:\(length); sid:1;)",
        settings: ["host-os-policy.default": system])
      var found: [UInt32] = []
      for (range, bytes) in pieces.prefix(arrived) {
        found += engine.inspect(
          Frame().with { $0.payload = bytes }.piece(
            253, offset: range.lowerBound / 8, more: range.upperBound < length, id: 5))
      }
      #expect(found == [1], "\(system): \(ranges)")
    }
  }

  @Test("when bytes run out, other datagrams give way, not the newest")
  func bytesRunOut() throws {
    let bytes = datagram
    var engine = try EngineUnderTest(rule, settings: ["defrag.trackers": "4096", "defrag.memcap": "128kb"])
    for id in 1...400 {
      _ = engine.inspect(
        Frame().with { $0.payload = Array(repeating: 1, count: 512) }.piece(17, offset: 0, more: true, id: UInt16(id)))
    }
    #expect((engine.statistic("datagrams_evicted") ?? 0) >= 200)
    #expect(engine.statistic("fragments_ignored") == 0)
    _ = engine.inspect(Frame().with { $0.payload = Array(bytes[..<16]) }.piece(17, offset: 0, more: true, id: 999))
    #expect(
      engine.inspect(Frame().with { $0.payload = Array(bytes[16...]) }.piece(17, offset: 2, more: false, id: 999)) == [
        1
      ])
  }

  @Test("pieces that reach beyond the largest datagram are told of, and never put together")
  func tooLarge() throws {
    var engine = try EngineUnderTest("alert udp any any -> any any (sid:1;)")
    let frame = Frame().with { $0.payload = Array(repeating: 1, count: 64) }
    #expect(engine.inspect(frame.piece(17, offset: 8191, more: false, id: 1)) == [])
    #expect(engine.inspect(frame.piece(17, offset: 0, more: true, id: 1)) == [])
    #expect(engine.statistic("datagrams_rebuilt") == 0)
  }
}

/// All orders of `count` things.
func permutations(_ count: Int) -> [[Int]] {
  guard count > 1 else { return [Array(0..<count)] }
  return permutations(count - 1).flatMap { shorter in
    (0..<count).map { place in
      var order = shorter
      order.insert(count - 1, at: place)
      return order
    }
  }
}
