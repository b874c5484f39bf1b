import Testing
import VMFenceCore
import VMFenceDetection

/// What reaches a receiver's port and is not handed to its connection: the stream goes on without.
@Suite("What stacks hand on") struct DeliveryTests {
  private typealias Port = ReceiverTests.Port

  /// Sends `XXXXX` where the needle begins, changed in some way; then the needle in two halves, whose first the policy `first` would have lose against it.
  private func insert(
    knowsSides: Bool = true, settings: [String: String] = [:],
    options: ([UInt8], [UInt8], [UInt8]) = ([], [], []), _ change: ([UInt8]) -> [UInt8]
  ) throws -> [UInt32] {
    var port = try Port(
      knowsSides: knowsSides, settings: settings.merging(["host-os-policy.default": "first"]) { given, _ in given })
    port.shakeHands(options: options)
    port.client(change(port.segment("XXXXX").tcp))
    port.client(port.connection.fromClient(String(ReceiverTests.needle.prefix(9))))
    return port.finish(from: 9)
  }

  /// The frame with other bytes between its addresses and its datagram.
  private static func behind(_ bytes: [UInt8]) -> ([UInt8]) -> [UInt8] {
    { Array($0[..<12]) + bytes + Array($0[14...]) }
  }

  @Test("datagrams in what the guest's stack does not open are other flows, where it is seen from the guest's port")
  func carriers() throws {
    let size = UInt8(Frame().carrying("XXXXX").tcp.count - 14)
    let carriers: [(String, [UInt8])] = [
      ("MPLS", [0x88, 0x47, 0, 1, 1, 64]), ("SNAP", [0, size + 8, 0xAA, 0xAA, 3, 0, 0, 0, 8, 0]),
      ("PPPoE", [0x88, 0x64, 0x11, 0, 0, 1, 0, size + 2, 0, 0x21]), ("VN-tag", [0x89, 0x26, 0, 0, 0, 0, 8, 0]),
      ("old Q-in-Q", [0x91, 0, 0, 0, 8, 0]), ("behind a tag", [0x81, 0, 0, 0, 0x88, 0x47, 0, 1, 1, 64]),
    ]
    for (name, bytes) in carriers {
      #expect(try insert(Self.behind(bytes)) == [9], "\(name)")
      #expect(try insert(knowsSides: false, Self.behind(bytes)) == [], "\(name), somewhere in a network")
    }
    // Tags of priority, without a network, are taken off.
    for tag in [[0x81, 0, 0, 0, 8, 0], [0x88, 0xA8, 0, 0, 0x81, 0, 0, 0, 8, 0]] as [[UInt8]] {
      #expect(try insert(Self.behind(tag)) == [], "the guest takes it: \(tag)")
    }
  }

  @Test("a connection in one of those is followed as any other", arguments: [true, false])
  func carried(_ knowsSides: Bool) throws {
    let label = Self.behind([0x88, 0x47, 0, 1, 1, 64])
    var port = try Port(knowsSides: knowsSides)
    let frames = port.connection.handshake()
    port.client(label(frames[0]))
    port.server(label(frames[1]))
    port.client(label(frames[2]))
    port.client(label(port.connection.fromClient(String(ReceiverTests.needle.prefix(9)))))
    port.client(label(port.connection.fromClient(String(ReceiverTests.needle.dropFirst(9)))))
    port.server(label(port.connection.fromServer("an answer")))
    port.note(port.engine.finish())
    let found = port.found
    #expect(found == [9])
    let isProven = port.isProven
    #expect(isProven)
  }

  private static func toGroup(_ frame: [UInt8]) -> [UInt8] { [0x01, 0, 0x5E, 0, 0, 1] + frame[6...] }

  @Test(
    "what goes to a group of stations is no part of a connection, unless all of its end does", arguments: [true, false])
  func groups(_ knowsSides: Bool) throws {
    #expect(try insert(knowsSides: knowsSides, Self.toGroup) == [9])
    #expect(try insert(knowsSides: knowsSides) { [255, 255, 255, 255, 255, 255] + $0[6...] } == [9])
    // A SYN to all, which nobody takes, does not make the rest so.
    var port = try Port(knowsSides: knowsSides, settings: ["host-os-policy.default": "first"])
    port.client(Self.toGroup(port.segment("", flags: Frame.syn).with { $0.acknowledgement = 0 }.tcp))
    port.shakeHands()
    port.client(Self.toGroup(port.segment("XXXXX").tcp))
    port.client(port.connection.fromClient(String(ReceiverTests.needle.prefix(9))))
    #expect(port.finish(from: 9) == [9])
    // A cluster of servers with one address.
    for settings in [[:], ["stream.midstream": "yes"]] as [[String: String]] {
      port = try Port(knowsSides: knowsSides, settings: settings)
      let frames = port.connection.handshake()
      if settings.isEmpty { port.client(Self.toGroup(frames[0])) }
      port.server(frames[1])
      port.client(Self.toGroup(frames[2]))
      port.client(Self.toGroup(port.connection.fromClient(String(ReceiverTests.needle.prefix(9)))))
      port.client(Self.toGroup(port.connection.fromClient(String(ReceiverTests.needle.dropFirst(9)))))
      port.server(port.connection.fromServer("an answer"))
      port.note(port.engine.finish())
      let found = port.found
      #expect(found == [9], "\(settings)")
    }
  }

  @Test("a signature that the handshake did not agree on has its segment thrown away", arguments: [true, false])
  func signatures(_ knowsSides: Bool) throws {
    let digest = [19, 18] + [UInt8](repeating: 7, count: 16) + [1, 1]
    let authentication = [29, 16] + [UInt8](repeating: 7, count: 14)
    for option in [digest, authentication] {
      #expect(try insert(knowsSides: knowsSides) { $0.with(options: option) } == [9])
      let agreed = (option, option, option)
      #expect(try insert(knowsSides: knowsSides, options: agreed) { $0.with(options: option) } == [], "it is taken")
    }
  }

  /// Options in the frame's IPv4 header (a multiple of 4 bytes).
  private static func withIPv4(_ options: [UInt8]) -> ([UInt8]) -> [UInt8] {
    {
      var frame = $0
      frame.insert(contentsOf: options, at: 34)
      frame[14] = 0x40 | UInt8((20 + options.count) / 4)
      frame[17] = UInt8(frame.count - 14)
      return frame
    }
  }

  @Test("source routes and malformed IPv4 options are refused, others not", arguments: [true, false])
  func options(_ knowsSides: Bool) throws {
    let refused: [[UInt8]] = [
      [0x83, 7, 4, 1, 2, 3, 4, 0], [0x83, 7, 8, 1, 2, 3, 4, 0], [0x89, 7, 4, 1, 2, 3, 4, 0], [0x44, 3, 5, 0],
      [0x44, 1, 5, 0], [7, 2, 1, 1], [7, 40, 4, 0], [0x94, 1, 0, 0], [7, 7, 4, 0, 0, 0, 0, 1, 7, 7, 4, 0, 0, 0, 0, 1],
      [7, 7, 3, 0, 0, 0, 0, 1], [7, 7, 6, 0, 0, 0, 0, 1], [1, 1, 1, 7],
    ]
    for bytes in refused { #expect(try insert(knowsSides: knowsSides, Self.withIPv4(bytes)) == [9], "\(bytes)") }
    let taken: [[UInt8]] = [
      [1, 1, 1, 0], [0x94, 4, 0, 0], [7, 7, 4, 0, 0, 0, 0, 1], [7, 7, 8, 0, 0, 0, 0, 1], [0x44, 8, 5, 0, 0, 0, 0, 0],
      [0x44, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0], [0x88, 4, 0, 1], [0x94, 4, 0, 0, 0x94, 4, 0, 0], [0, 7, 1, 9],
      [99, 4, 0, 0],
    ]
    for bytes in taken { #expect(try insert(knowsSides: knowsSides, Self.withIPv4(bytes)) == [], "\(bytes)") }
  }

  @Test("Linux throws a fragment away that lies in others, and a datagram of which two overlap otherwise")
  func fragments() throws {
    let bytes = Array(Frame(destinationPort: 53).carrying("0123 found in pieces 4567 and on").udp[34...])
    let other = [UInt8](repeating: 0x58, count: bytes.count)
    let rule = "alert udp any any -> any 53 (content:\"found in pieces\"; sid:1;)"
    /// Whether each piece, as units of 8 bytes, is the datagram's or made of other bytes.
    func found(_ pieces: [(Range<Int>, Bool)]) throws -> [UInt32] {
      var engine = try EngineUnderTest(rule, settings: ["host-os-policy.default": "linux"])
      var sids: [UInt32] = []
      for (units, isRight) in pieces {
        let range = units.lowerBound * 8..<min(bytes.count, units.upperBound * 8)
        sids += engine.inspect(
          Frame().with { $0.payload = Array((isRight ? bytes : other)[range]) }.piece(
            17, offset: units.lowerBound, more: range.upperBound < bytes.count, id: 9))
      }
      return sids
    }
    #expect(
      try found([(0..<2, true), (1..<2, false), (2..<3, true), (0..<2, false), (3..<5, true)]) == [1], "in others")
    #expect(try found([(0..<1, true), (1..<3, true), (0..<3, false), (3..<5, true)]) == [1], "in a run of two")
    #expect(try found([(3..<5, true), (0..<3, true)]) == [1], "none")
    // What overlaps takes all with it; what comes later is another datagram.
    let overlap = [(0..<2, false), (1..<3, false)]
    #expect(try found(overlap + [(2..<5, false)]) == [])
    #expect(try found(overlap + [(0..<2, true), (2..<5, true)]) == [1])
    // Two runs that meet are not one.
    #expect(try found([(2..<3, true), (0..<2, true), (1..<3, true), (3..<5, true)]) == [])
  }

  // MARK: Urgent bytes

  /// A segment that says that the byte before `pointer`, counted from its first, is urgent.
  private static func urgent(_ frame: Frame, _ pointer: UInt16) -> [UInt8] {
    var bytes = frame.with { $0.flags |= 0x20 }.tcp
    bytes.replaceSubrange(52..<54, with: [UInt8(pointer >> 8), UInt8(pointer & 0xFF)])
    return bytes
  }

  @Test("an urgent byte is left out when it comes, in whichever segment", arguments: [true, false])
  func urgentLater(_ knowsSides: Bool) throws {
    let (first, second) = (String(ReceiverTests.needle.prefix(9)), String(ReceiverTests.needle.dropFirst(9)))
    /// What is sent, and with which pointer, 0 for none; each behind the one before unless it says otherwise.
    func found(_ segments: [(text: String, pointer: UInt16, back: Int)]) throws -> [UInt32] {
      var port = try Port(knowsSides: knowsSides)
      port.shakeHands()
      var sent = 0
      for (text, pointer, back) in segments {
        let frame = port.segment(text, at: sent - back)
        port.client(pointer == 0 ? frame.tcp : Self.urgent(frame, pointer))
        sent += text.utf8.count - back
      }
      port.connection.clientNext += UInt32(sent)
      port.server(port.connection.fromServer("an answer"))
      port.note(port.engine.finish())
      return port.found
    }
    #expect(try found([(first, 10, 0), ("!" + second, 0, 0)]) == [9], "the next segment's first")
    #expect(try found([("", 10, 0), (first, 0, 0), ("!" + second, 0, 0)]) == [9], "announced without any data")
    #expect(try found([(first, 11, 0), (String(second.prefix(1)), 0, 0), ("!" + second.dropFirst(), 0, 0)]) == [9])
    #expect(
      try found([(first, 10, 0), ("!" + second, 0, 0), ("!" + second, 0, 1 + second.utf8.count)]) == [9], "again")
    #expect(try found([(first, 40, 0), ("", 1, 0), (second, 0, 0)]) == [9], "to come yet")
    #expect(try found([(first, 12, 0), ("", 20, 0), (second, 0, 0)]) == [9], "another takes its place")
    #expect(try found([(first, 0, 0), ("", 65_530, 0), (second, 0, 0)]) == [9])
    // What follows it came before anything told of it: behind the hole, and with the byte; then the byte comes alone, or again.
    let rest: (String, UInt16, Int) = ("", 0, -second.utf8.count)
    #expect(try found([(second, 0, -10), (first + "!", 10, 21), rest]) == [9], "behind a hole")
    #expect(try found([("!" + second, 0, -9), (first, 10, 21), ("!", 0, 0), rest]) == [9], "with the byte")
    #expect(try found([(second, 0, -10), (first, 10, 21), ("!", 0, 0), rest]) == [9], "the byte alone")
    #expect(try found([("!", 0, -9), (second, 0, 0), (first, 10, 21), ("", 0, -12)]) == [9], "in a segment of its own")
    let pieces: [(String, UInt16, Int)] = [
      (String(second.dropFirst(5)), 0, -16), (first + "!", 10, 22), (second.prefix(5) + "?", 6, 0), ("", 0, -6),
    ]
    #expect(try found(pieces) == [9], "two of them")
    // One that is announced for a byte before it was known to be another's, with what follows it there, touching what is before it or not.
    let needle = Array(ReceiverTests.needle).map { String($0) }
    func part(_ range: Range<Int>) -> String { needle[range].joined() }
    let (end, left): (String, (String, UInt16, Int)) = (part(16..<20), ("", 0, -8))
    #expect(
      try found([
        (first, 12, 0), (part(13..<16) + "!" + end, 0, -4), ("", 8, 12), (part(9..<13), 0, 0), left,
      ]) == [9])
    #expect(
      try found([
        (first, 12, 0), (part(13..<16), 0, -4), ("", 8, 7), (part(9..<13), 0, 0), ("!" + end, 0, -3),
      ]) == [9])
    #expect(
      try found([
        (first, 12, 0), (part(9..<11), 0, 0), (part(12..<16) + "!" + end, 0, -1), ("", 6, 10), (part(11..<12), 0, 0),
        ("", 0, -9),
      ]) == [9])
    // It came, and could not be read yet.
    #expect(
      try found([
        (part(5..<9), 3, -5), (part(9..<12) + "!", 4, 0), (part(12..<20), 0, 0), (part(0..<5), 0, 21), ("", 0, -16),
      ]) == [9])
    // A pointer into what was read already does nothing.
    #expect(try found([(first, 0, 0), (first, 4, 9), (second, 0, 0)]) == [9])
  }
}
