import Testing
import VMFenceCore
import VMFenceDetection

/// Segments that change what a watcher believes, and not what the receiver reads: each is sent between the halves of a needle, which the receiver
/// then reads all the same.
@Suite("What receivers take") struct ReceiverTests {
  static let needle = "a needle to be found"
  static let rule = "alert tcp any any -> any any (content:\"\(needle)\"; flow:established,to_server; sid:9;)"

  /// A client outside, a server that is the guest, and what is seen at the guest's port; or the same, with nobody knowing which side is which.
  struct Port: ~Copyable {
    var engine: EngineUnderTest
    var connection: Connection
    let knowsSides: Bool
    /// Of the last alert of the rule.
    var isProven = false
    var found: [UInt32] = []

    init(
      knowsSides: Bool, settings: [String: String] = [:], client: Frame = Frame(), rule: String = ReceiverTests.rule
    ) throws {
      engine = try EngineUnderTest(rule, dialect: .suricata, settings: settings)
      connection = Connection(client)
      self.knowsSides = knowsSides
    }

    mutating func note(_ sids: [UInt32]) {
      found += sids
      for index in 0..<engine.output.count { isProven = engine.output[index].flags.contains(.established) }
    }

    /// From the client: to the guest, unless it is said that the guest sent it.
    mutating func client(_ frame: [UInt8], byGuest: Bool = false, after delay: Duration = .milliseconds(1)) {
      note(engine.inspect(frame, after: delay, knowsSides ? (byGuest ? .fromGuest : .toGuest) : .unknown))
    }

    mutating func server(_ frame: [UInt8], fromOutside: Bool = false) {
      note(engine.inspect(frame, knowsSides ? (fromOutside ? .toGuest : .fromGuest) : .unknown))
    }

    mutating func shakeHands(options: ([UInt8], [UInt8], [UInt8]) = ([], [], [])) {
      let frames = connection.handshake()
      client(frames[0].with(options: options.0))
      server(frames[1].with(options: options.1))
      client(frames[2].with(options: options.2))
    }

    func segment(_ text: String, at distance: Int = 0, flags: UInt8 = 0x18, acknowledging: Int = 0) -> Frame {
      connection.client.carrying(text).with {
        $0.flags = flags
        $0.sequence = connection.clientNext &+ UInt32(truncatingIfNeeded: distance)
        $0.acknowledgement = connection.serverNext &+ UInt32(truncatingIfNeeded: acknowledging)
      }
    }

    mutating func reset(at distance: Int) {
      client(segment("", at: distance, flags: Frame.rst).with { $0.acknowledgement = 0 }.tcp)
    }

    /// The guest acknowledges all that the client sent.
    mutating func acknowledge() { server(connection.fromServer("", flags: Frame.ack)) }

    /// The rest of a needle of which `count` characters were sent; then an answer.
    mutating func finish(from count: Int, after delay: Duration = .milliseconds(1)) -> [UInt32] {
      client(connection.fromClient(String(ReceiverTests.needle.dropFirst(count))), after: delay)
      server(connection.fromServer("an answer"))
      let left = engine.finish()
      note(left)
      return found
    }
  }

  private func port(_ knowsSides: Bool, _ settings: [String: String] = [:]) throws -> Port {
    var port = try Port(knowsSides: knowsSides, settings: settings)
    port.shakeHands()
    return port
  }

  private static let modern = ["bsd", "first", "linux", "windows", "vista", "macos"]

  // MARK: Sides

  @Test("what bears the guest's address and arrives at it changes nothing of the guest's connections")
  func forgedFromOutside() throws {
    let forgeries: [@Sendable (inout Port) -> Void] = [
      { $0.server($0.segment("", at: 77_777, flags: Frame.ack, acknowledging: 9_999).reply.tcp, fromOutside: true) },
      {
        let frame = $0.segment("z", acknowledging: 0).reply.with { $0.acknowledgement &+= 11 }
        $0.server(frame.tcp, fromOutside: true)
      },
      {
        $0.server($0.segment("").reply.with { $0.flags = Frame.rst | Frame.ack }.tcp, fromOutside: true)
        $0.client($0.segment("", at: 900_000, flags: Frame.syn).with { $0.acknowledgement = 0 }.tcp)
        let answer = $0.segment("", at: 900_001, flags: Frame.syn | Frame.ack, acknowledging: 7777).reply
        $0.server(answer.tcp, fromOutside: true)
      },
    ]
    for (index, forge) in forgeries.enumerated() {
      var port = try port(true)
      port.client(port.connection.fromClient(String(Self.needle.prefix(9))))
      forge(&port)
      #expect(port.finish(from: 9) == [9], "\(index)")
      let isProven = port.isProven
      #expect(isProven, "\(index)")
    }
  }

  @Test("nor when it comes before the connection, from whichever side", arguments: [true, false])
  func forgedBefore(_ byGuest: Bool) throws {
    var port = try Port(knowsSides: true)
    var opening = port.segment("", at: 4_000_000, flags: Frame.syn)
    opening.acknowledgement = 0
    if !byGuest { opening = opening.reply }
    if byGuest { port.client(opening.tcp, byGuest: true) } else { port.server(opening.tcp, fromOutside: true) }
    port.shakeHands()
    port.client(port.connection.fromClient(String(Self.needle.prefix(9))))
    #expect(port.finish(from: 9) == [9])
    let isProven = port.isProven
    #expect(isProven == !byGuest, "who was heard to speak for the client may have sent all of it")
  }

  @Test("fragments of one datagram come from one side")
  func fragments() throws {
    let bytes = Array(Frame(destinationPort: 53).carrying("0123 found in pieces 4567").udp[34...])
    var engine = try EngineUnderTest(
      "alert udp any any -> any 53 (content:\"found in pieces\"; sid:1;)", settings: ["host-os-policy.default": "first"]
    )
    func piece(_ part: ArraySlice<UInt8>, _ offset: Int, _ more: Bool) -> [UInt8] {
      Frame().with { $0.payload = Array(part) }.piece(17, offset: offset, more: more, id: 9)
    }
    _ = engine.inspect(piece([UInt8](repeating: 0x58, count: 16)[...], 2, true), .fromGuest)
    _ = engine.inspect(piece(bytes[..<16], 0, true), .toGuest)
    #expect(engine.inspect(piece(bytes[16...], 2, false), .toGuest) == [1])
  }

  @Test("an ICMP error belongs to the flow of what the other side sent")
  func errors() throws {
    var engine = try EngineUnderTest("alert ip any any -> any any (sid:1;)")
    let question = Frame(destinationPort: 53).carrying("what is it").udp
    _ = engine.inspect(question, .fromGuest)
    let flow = engine.output[0].flowID
    let error = Frame().reply.with { $0.payload = Array(question[14...]) }.icmp(type: 3, code: 3)
    _ = engine.inspect(error, .toGuest)
    #expect(engine.output[0].flowID == flow)
    _ = engine.inspect(error, .fromGuest)
    #expect(engine.output[0].flowID != flow, "about something that came to the guest")
  }

  @Test("a connection in midstream: a guest's port of a service makes it the server, whatever port its peer chose")
  func midstream() throws {
    let settings = ["stream.midstream": "yes"]
    for (source, expected) in [(71, [9]), (40_000, [9])] as [(UInt16, [UInt32])] {
      var port = try Port(knowsSides: true, settings: settings, client: Frame(sourcePort: source))
      port.client(port.connection.fromClient(String(Self.needle.prefix(9))))
      #expect(port.finish(from: 9) == expected, "\(source)")
    }
    // Of a guest's other ports nobody knows: the lower of the two is the server's.
    var engine = try EngineUnderTest(Self.rule, settings: settings)
    #expect(engine.inspect(Frame(sourcePort: 50_000).carrying(Self.needle).tcp, .fromGuest) + engine.finish() == [9])
    #expect(engine.inspect(Frame(sourcePort: 50_001).carrying(Self.needle).reply.tcp, .toGuest) + engine.finish() == [])
  }

  // MARK: Resets

  @Test("a reset beside the number that the receiver expects ends nothing", arguments: modern, [true, false])
  func resets(_ system: String, _ knowsSides: Bool) throws {
    let settings = ["host-os-policy.default": system]
    // At what was acknowledged, while more came.
    var port = try port(knowsSides, settings)
    port.client(port.connection.fromClient(String(Self.needle.prefix(9))))
    port.reset(at: -9)
    #expect(port.finish(from: 9) == [9], "\(system): in flight")
    // Anywhere in the window.
    port = try self.port(knowsSides, settings)
    port.client(port.connection.fromClient(String(Self.needle.prefix(9))))
    port.acknowledge()
    port.reset(at: 500)
    port.acknowledge()
    #expect(port.finish(from: 9) == [9], "\(system): in the window")
    // Behind a hole; then even another SYN; then the first byte.
    for hasSYN in [false, true] {
      for pieces in [[1..<20], [1..<5, 9..<20, 5..<9]] {
        port = try self.port(knowsSides, settings)
        let text = Array(Self.needle)
        for piece in pieces { port.client(port.segment(String(text[piece]), at: piece.lowerBound).tcp) }
        port.reset(at: 20)
        if hasSYN { port.client(port.segment("", at: 900_000, flags: Frame.syn).with { $0.acknowledgement = 0 }.tcp) }
        port.client(port.segment("a").tcp, after: .seconds(31))
        port.connection.clientNext += 20
        #expect(port.finish(from: 20) == [9], "\(system): behind a hole, \(hasSYN), \(pieces)")
      }
    }
  }

  @Test("while pieces came ahead of which the order is not known, no reset is taken for the right one")
  func vagueReset() throws {
    var port = try port(true)
    let text = Array(Self.needle)
    // 12 ..< 19 and 4 ..< 8 came ahead; when the rest did, the receiver expects 19.
    for piece in [12..<19, 4..<8, 0..<4, 8..<12] {
      port.client(port.segment(String(text[piece]), at: piece.lowerBound).tcp)
    }
    port.reset(at: 12)
    port.reset(at: 8)
    port.connection.clientNext += 19
    #expect(port.finish(from: 19) == [9])
  }

  @Test("older systems take a reset anywhere in the window", arguments: ["old-linux", "solaris"])
  func oldResets(_ system: String) throws {
    var port = try port(false, ["host-os-policy.default": system])
    port.client(port.connection.fromClient(String(Self.needle.prefix(9))))
    port.acknowledge()
    port.reset(at: 500)
    port.client(port.segment("", at: 900_000, flags: Frame.syn).with { $0.acknowledgement = 0 }.tcp)
    port.server(port.segment("", at: 900_001, flags: Frame.syn | Frame.ack, acknowledging: 70_000).reply.tcp)
    #expect(port.finish(from: 9) == [], "another connection began")
  }

  @Test("Linux takes a reset behind what it says that it has behind a hole", arguments: ["linux", "bsd"])
  func selectiveResets(_ system: String) throws {
    /// Options of an acknowledgement: two fillers, and blocks of the client's numbers, as distances.
    func blocks(_ port: borrowing Port, _ ranges: [Range<Int>]) -> [UInt8] {
      let numbers = ranges.flatMap { [$0.lowerBound, $0.upperBound] }
      let bytes = numbers.flatMap { number in
        (0..<4).map {
          UInt8(
            truncatingIfNeeded: (port.connection.clientNext &+ UInt32(truncatingIfNeeded: number))
              >> UInt32(24 - 8 * $0))
        }
      }
      return [1, 1, 5, UInt8(2 + bytes.count)] + bytes
    }
    /// Whether a reset is taken, after the guest acknowledged these blocks, one acknowledgement after the other.
    func isTaken(_ acknowledged: [[Range<Int>]], at distance: Int) throws -> Bool {
      var port = try Port(
        knowsSides: true, settings: ["host-os-policy.default": system],
        rule: "alert tcp any any -> any any (stream-event:rst_invalid_ack; sid:9;)")
      port.shakeHands()
      for range in [200..<300, 100..<120, 400..<500] {
        port.client(port.segment(String(repeating: ".", count: range.count), at: range.lowerBound).tcp)
      }
      for ranges in acknowledged { port.server(port.segment("").reply.tcp.with(options: blocks(port, ranges))) }
      port.reset(at: distance)
      return port.found == []
    }
    let isLinux = system == "linux"
    let all = [400..<500, 100..<120, 200..<300]
    #expect(try isTaken([all], at: 500) == isLinux)
    #expect(try isTaken([all], at: 300) == false, "not the highest")
    #expect(try isTaken([all], at: 499) == false)
    #expect(try isTaken([], at: 500) == false, "nothing is known of what the guest has")
    #expect(try isTaken([[100..<120], all], at: 500) == isLinux, "the last word counts")
    #expect(try isTaken([all, [100..<120]], at: 500) == false)
    #expect(try isTaken([all, []], at: 500) == false, "it has nothing behind a hole any more")
    #expect(try isTaken([[-9 ..< -2]], at: -2) == false, "what came twice is not behind a hole")
  }

  @Test(
    "and be it that the answer to the new SYN was not seen, where connections are taken up without",
    arguments: [true, false])
  func reuseUnanswered(_ knowsSides: Bool) throws {
    for (settings, expected) in [(["stream.midstream": "yes"], [9]), ([:], [])] as [([String: String], [UInt32])] {
      var port = try port(knowsSides, settings)
      port.client(port.connection.fromClient("the first connection"))
      port.acknowledge()
      port.reset(at: 0)
      (port.connection.clientNext, port.connection.serverNext) = (7_000_000, 9_000_000)
      let opening = port.connection.handshake()
      port.client(opening[0])
      port.client(opening[2])
      port.client(port.connection.fromClient(String(Self.needle.prefix(9))))
      port.acknowledge()
      #expect(port.finish(from: 9) == expected)
    }
    // The reset did not come: the other end goes on, and so what the client says of another connection is nothing.
    var port = try port(knowsSides, ["stream.midstream": "yes"])
    port.client(port.connection.fromClient(String(Self.needle.prefix(9))))
    port.acknowledge()
    port.reset(at: 0)
    port.client(port.segment("", at: 900_000, flags: Frame.syn).with { $0.acknowledgement = 0 }.tcp)
    port.acknowledge()
    port.client(port.segment("XXXX", at: 900_001, acknowledging: 70_000).tcp)
    #expect(port.finish(from: 9) == [9])
  }

  @Test("after a reset the same ports may be used again, and be it with scaled windows", arguments: [true, false])
  func reuse(_ knowsSides: Bool) throws {
    var port = try port(knowsSides)
    port.client(port.connection.fromClient("the first connection"))
    port.acknowledge()
    port.reset(at: 0)
    port.connection.clientNext = 7_000_000
    port.connection.serverNext = 9_000_000
    let opening = port.connection.handshake()
    let scale: [UInt8] = [1, 3, 3, 7]
    port.client(opening[0].with(options: scale))
    port.server(opening[1].with(options: scale))
    port.client(opening[2])
    // A window of 8192 units of 128 bytes.
    port.acknowledge()
    for _ in 0..<8 { port.client(port.connection.fromClient(String(repeating: ".", count: 1400))) }
    port.server(port.connection.fromServer("", flags: Frame.ack))
    port.client(port.connection.fromClient(String(Self.needle.prefix(9))))
    #expect(port.finish(from: 9) == [9])
    let isProven = port.isProven
    #expect(isProven)
    // One whose SYN is refused has not begun.
    port = try self.port(knowsSides)
    port.client(port.connection.fromClient(String(Self.needle.prefix(9))))
    port.client(port.segment("", at: 900_000, flags: Frame.syn).with { $0.acknowledgement = 0 }.tcp)
    port.server(
      port.segment("", at: 900_001, flags: Frame.rst | Frame.ack).reply.with { $0.sequence = 0 }.tcp)
    #expect(port.finish(from: 9) == [9])
  }

  // MARK: Timestamps

  private static func stamp(_ value: UInt32) -> [UInt8] {
    [1, 1, 8, 10] + (0..<4).map { UInt8(truncatingIfNeeded: value >> UInt32(24 - 8 * $0)) } + [0, 0, 0, 0]
  }

  /// Sends the needle in two halves with timestamps, and something before each.
  private func stamped(
    _ first: UInt32, _ second: UInt32, _ settings: [String: String] = [:], syn: UInt32 = 100,
    before insertion: (inout Port) -> Void = { _ in }
  ) throws -> [UInt32] {
    var port = try Port(knowsSides: true, settings: settings)
    port.shakeHands(options: (Self.stamp(syn), Self.stamp(7), Self.stamp(syn)))
    insertion(&port)
    port.client(port.connection.fromClient(String(Self.needle.prefix(9))).with(options: Self.stamp(first)))
    port.acknowledge()
    port.client(port.connection.fromClient(String(Self.needle.dropFirst(9))).with(options: Self.stamp(second)))
    port.server(port.connection.fromServer("an answer"))
    return port.found + port.engine.finish()
  }

  @Test("a timestamp counts once its segment is the next")
  func timestamps() throws {
    #expect(try stamped(110, 111) == [9])
    let ahead: (inout Port) -> Void = {
      $0.client($0.segment("d", at: 19).tcp.with(options: Self.stamp(100 + 1 << 30)))
    }
    #expect(try stamped(110, 111, before: ahead) == [9], "one byte ahead, out of a far future")
    #expect(try stamped(110, 90) == [], "older than what was acknowledged")
    #expect(try stamped(110, 109) == [])
    #expect(try stamped(110, 109, ["host-os-policy.default": "linux"]) == [9])
    #expect(try stamped(110, 108, ["host-os-policy.default": "linux"]) == [])
    let zero: UInt32 = 0
    #expect(try stamped(zero &- 5, zero &- 4, ["host-os-policy.default": "linux"], syn: 0) == [9], "after 0, any")
  }

  // MARK: Acknowledgements

  @Test("what acknowledges something from long before is thrown away, and a FIN with it", arguments: modern)
  func staleAcknowledgements(_ system: String) throws {
    for knowsSides in [true, false] {
      for back in [1 << 30, 2, 70_000] {
        let settings = ["host-os-policy.default": system]
        var port = try port(knowsSides, settings)
        port.client(port.segment("XXXXX", acknowledging: -back).tcp)
        port.client(port.connection.fromClient(String(Self.needle.prefix(9))))
        #expect(port.finish(from: 9) == [9], "\(system), \(knowsSides), \(back)")
        port = try self.port(knowsSides, settings)
        port.client(port.segment("", flags: Frame.fin | Frame.ack, acknowledging: -back).tcp)
        port.client(port.connection.fromClient(String(Self.needle.prefix(9))))
        #expect(port.finish(from: 9) == [9], "\(system), \(knowsSides), \(back): FIN")
      }
    }
  }

  @Test("what overtook others, and so acknowledges less, is taken", arguments: [true, false])
  func reordered(_ knowsSides: Bool) throws {
    var port = try port(knowsSides)
    port.server(port.connection.fromServer("some words of greeting"))
    let early = port.segment(String(Self.needle.prefix(9)), acknowledging: -22).tcp
    port.client(port.segment(String(Self.needle.dropFirst(9)), at: 9).tcp)
    port.client(early)
    port.connection.clientNext += 20
    #expect(port.finish(from: 20) == [9])
  }

  @Test("what the guest did not send cannot be acknowledged; what was lost here can")
  func earlyAcknowledgements() throws {
    for (knowsSides, expected) in [(true, [9]), (false, [])] as [(Bool, [UInt32])] {
      var port = try port(knowsSides, ["host-os-policy.default": "first"])
      port.client(port.segment("XXXXX", acknowledging: 1000).tcp)
      port.client(port.connection.fromClient(String(Self.needle.prefix(9))))
      #expect(port.finish(from: 9) == expected, "\(knowsSides)")
    }
    // 200 bytes of the guest's were lost; its next packet of any kind tells.
    var port = try port(true)
    port.connection.serverNext += 200
    port.client(port.connection.fromClient("thanks"))
    port.acknowledge()
    port.client(port.connection.fromClient(String(Self.needle.prefix(9))))
    #expect(port.finish(from: 9) == [9])
  }
}

extension [UInt8] {
  /// A frame of Ethernet, IPv4 and TCP, with options (a multiple of 4 bytes) behind its TCP header.
  func with(options: [UInt8]) -> [UInt8] {
    guard !options.isEmpty else { return self }
    var frame = self
    frame.insert(contentsOf: options, at: 54)
    frame[46] = UInt8((20 + options.count) / 4 * 16)
    let length = frame.count - 14
    frame.replaceSubrange(16..<18, with: [UInt8(length >> 8), UInt8(length & 0xFF)])
    frame.replaceSubrange(24..<26, with: [0, 0])
    frame.replaceSubrange(24..<26, with: Self.sum(Array(frame[14..<34])))
    frame.replaceSubrange(50..<52, with: [0, 0])
    let segment = frame[34...]
    let pseudo = frame[26..<34] + [0, 6, UInt8(segment.count >> 8), UInt8(segment.count & 0xFF)]
    frame.replaceSubrange(50..<52, with: Self.sum(Array(pseudo + segment)))
    return frame
  }

  private static func sum(_ bytes: [UInt8]) -> [UInt8] {
    let sum = internetChecksum(bytes)
    return [UInt8(sum >> 8), UInt8(sum & 0xFF)]
  }
}
