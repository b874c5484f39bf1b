import Testing
import VMFenceCore
import VMFenceDetection

/// Which packets belong together, which way they go, and what is believed of them.
@Suite struct FlowTests {
  static let rules = """
    alert tcp any any -> any any (content:"x"; flow:to_server,established; sid:1;)
    alert tcp any any -> any any (content:"x"; flow:to_client,established; sid:2;)
    alert tcp any any -> any any (content:"x"; flow:to_server; sid:3;)
    alert tcp any any -> any any (content:"x"; flow:not_established; sid:4;)
    alert tcp any any -> any any (content:"x"; flow:stateless; sid:5;)
    """

  @Test("after a handshake both directions are known, and the client is no forgery")
  func handshake() throws {
    var engine = try EngineUnderTest(Self.rules, settings: EngineUnderTest.immediate)
    var connection = Connection()
    for frame in connection.handshake() { #expect(engine.inspect(frame) == []) }
    #expect(engine.inspect(connection.fromClient("x")) == [1, 3, 5])
    #expect(engine.output[0].flags.subtracting(.stream) == [.toServer, .established])
    let name = engine.output[0].flowID
    #expect(engine.inspect(connection.fromServer("x")) == [2, 5])
    #expect(engine.output[0].flags.subtracting(.stream) == [.toClient, .established])
    #expect(engine.output[0].flowID == name)
  }

  @Test("who speaks for both ends of a connection proves nothing, however well it is made")
  func bothEnds() throws {
    /// The directions of the handshake's three packets, and of the data.
    func isEstablished(_ directions: [FrameDirection]) throws -> Bool {
      var engine = try EngineUnderTest(Self.rules, settings: EngineUnderTest.immediate)
      var connection = Connection()
      for (frame, direction) in zip(connection.handshake(), directions) { _ = engine.inspect(frame, direction) }
      #expect(engine.inspect(connection.fromClient("x"), directions[3]) == [1, 3, 5], "rules match all the same")
      return engine.output[0].flags.contains(.established)
    }
    #expect(try isEstablished([.toGuest, .fromGuest, .toGuest, .toGuest]))
    #expect(try isEstablished([.fromGuest, .toGuest, .fromGuest, .fromGuest]), "the guest is the client")
    #expect(try !isEstablished([.fromGuest, .fromGuest, .fromGuest, .fromGuest]), "the guest made it all up")
    #expect(try !isEstablished([.toGuest, .toGuest, .toGuest, .toGuest]), "somebody outside did")
    #expect(try !isEstablished([.toGuest, .fromGuest, .toGuest, .fromGuest]), "the guest added the data")
    #expect(try !isEstablished([.fromGuest, .fromGuest, .toGuest, .toGuest]), "the guest began it")
  }

  @Test("data before the handshake is over is not established")
  func early() throws {
    var engine = try EngineUnderTest(Self.rules, settings: EngineUnderTest.immediate)
    let syn = Frame(acknowledgement: 0, flags: Frame.syn).carrying("x").tcp
    #expect(engine.inspect(syn) == [3, 4, 5])
  }

  @Test("a connection picked up in midstream is established for rules, but proves nothing of its client")
  func midstream() throws {
    var engine = try EngineUnderTest(Self.rules, settings: EngineUnderTest.immediate)
    var connection = Connection()
    #expect(engine.inspect(connection.fromClient("x")) == [1, 3, 5])
    #expect(engine.output[0].flags.subtracting(.stream) == .toServer)
    #expect(engine.inspect(connection.fromServer("x")) == [2, 5])
    var other = Connection(Frame(sourcePort: 40_001))
    #expect(engine.inspect(other.fromServer("x")) == [2, 5], "the well-known port is the server's")
    var high = Connection(Frame(sourcePort: 50_000, destinationPort: 40_000))
    #expect(engine.inspect(high.fromServer("x")) == [2, 5], "of two others the lower one is")
    #expect(engine.inspect(high.fromClient("x")) == [1, 3, 5])
  }

  @Test("who does not know the server's sequence number is not established by acknowledging some number")
  func blindAcknowledgement() throws {
    for guess in [0, 5000, 5002, 6000, UInt32.max] {
      var engine = try EngineUnderTest(Self.rules, settings: EngineUnderTest.immediate)
      var connection = Connection()
      let handshake = connection.handshake()
      _ = engine.inspect(handshake[0])
      _ = engine.inspect(handshake[1])
      let forged = Frame(sequence: 1001, acknowledgement: guess, flags: 0x18).carrying("x").tcp
      _ = engine.inspect(forged)
      #expect(engine.output[0].flags.subtracting(.stream) == .toServer)
    }
  }

  @Test("an answer to another SYN does not count")
  func wrongAnswer() throws {
    var engine = try EngineUnderTest(Self.rules, settings: EngineUnderTest.immediate)
    let client = Frame(sequence: 1000, acknowledgement: 0, flags: Frame.syn)
    _ = engine.inspect(client.tcp)
    _ = engine.inspect(
      client.reply.with {
        $0.flags = Frame.syn | Frame.ack
        $0.sequence = 5000
        $0.acknowledgement = 4711
      }.tcp)
    _ = engine.inspect(Frame(sequence: 1001, acknowledgement: 5001).carrying("x").tcp)
    #expect(engine.output[0].flags.subtracting(.stream) == .toServer)
  }

  @Test("a forged SYN from the server's address does not turn the direction round")
  func forgedSYN() throws {
    var engine = try EngineUnderTest(Self.rules, settings: EngineUnderTest.immediate)
    var connection = Connection()
    _ = engine.inspect(connection.handshake())
    _ = engine.inspect(Frame(sequence: 77, acknowledgement: 0, flags: Frame.syn).reply.tcp)
    #expect(engine.inspect(connection.fromClient("x")) == [1, 3, 5])
    #expect(engine.output[0].flags.subtracting(.stream) == [.toServer, .established])
  }

  @Test("a new connection between the same ends is another flow, once it is answered")
  func reuse() throws {
    var engine = try EngineUnderTest(Self.rules, settings: EngineUnderTest.immediate)
    var first = Connection()
    _ = engine.inspect(first.handshake())
    _ = engine.inspect(first.fromClient("x"))
    let name = engine.output[0].flowID
    // The other end opens this time.
    var second = Connection(Frame().reply)
    second.clientNext = 90_000
    second.serverNext = 70_000
    _ = engine.inspect(second.handshake())
    #expect(engine.inspect(second.fromClient("x")) == [1, 3, 5])
    #expect(engine.output[0].source == IPAddress("198.51.100.2"))
    #expect(engine.output[0].flowID != name)
  }

  @Test("after a reset that fits, a SYN that is answered opens another flow; a blind reset changes nothing")
  func reset() throws {
    for (distance, isNew) in [(0 as UInt32, true), (0x8000_0000, false)] {
      var engine = try EngineUnderTest(Self.rules, settings: EngineUnderTest.immediate)
      var connection = Connection()
      _ = engine.inspect(connection.handshake())
      _ = engine.inspect(connection.fromClient("x"))
      let name = engine.output[0].flowID
      _ = engine.inspect(
        Frame(sequence: connection.clientNext &+ distance, acknowledgement: 0, flags: Frame.rst).tcp)
      // The answer tells whether the other end takes part.
      connection.clientNext = 400_000
      connection.serverNext = 900_000
      var frames = connection.handshake()
      if !isNew {
        frames.removeLast(2)
        (connection.clientNext, connection.serverNext) = (1002, 5001)
      }
      for frame in frames { _ = engine.inspect(frame) }
      _ = engine.inspect(connection.fromClient("x"))
      #expect(engine.output[0].flags.contains(.established))
      #expect((engine.output[0].flowID != name) == isNew)
    }
  }

  @Test("UDP: the first sender is the client; established when both have sent")
  func udp() throws {
    var engine = try EngineUnderTest(
      """
      alert udp any any -> any any (flow:to_server; sid:1;)
      alert udp any any -> any any (flow:to_client; sid:2;)
      alert udp any any -> any any (flow:established; sid:3;)
      """)
    let request = Frame(destinationPort: 53).carrying("q")
    #expect(engine.inspect(request.udp) == [1])
    #expect(engine.inspect(request.reply.udp) == [2, 3])
    #expect(engine.inspect(request.udp) == [1, 3])
    #expect(engine.output[0].flags.subtracting(.stream) == .toServer, "two datagrams do not prove an address")
  }

  @Test("a flow ends when nothing was heard of it for its time, by the packets' clock")
  func timeout() throws {
    var engine = try EngineUnderTest("alert udp any any -> any any (sid:1;)")
    let frame = Frame(destinationPort: 53).carrying("q").udp
    _ = engine.inspect(frame)
    let name = engine.output[0].flowID
    _ = engine.inspect(frame, after: .seconds(29))
    #expect(engine.output[0].flowID == name)
    _ = engine.inspect(frame, after: .seconds(31))
    #expect(engine.output[0].flowID != name)
    #expect(engine.statistic("flows_expired") == 1)
    #expect(engine.statistic("flows") == 2)
    // A clock that jumps back ends nothing.
    let later = engine.output[0].flowID
    _ = engine.inspect(frame, after: .seconds(-3600))
    #expect(engine.output[0].flowID == later)
  }

  @Test("the same input gives the same names; another key gives others")
  func names() throws {
    func name(_ key: (UInt64, UInt64)) throws -> UInt64 {
      var inspector = try SnortInspector.make(
        rules: try compiled("alert udp any any -> any any (sid:1;)"),
        configuration: InspectorConfiguration(hashKey: key))
      var output = InspectionOutput()
      let frame = FrameMetadata(timestamp: .zero, port: PortID(1), checksums: .valid, originalLength: 60)
      Frame().udp.withRawSpan { inspector.inspect(frame, $0, into: &output) }
      return output[0].flowID
    }
    #expect(try name((1, 2)) == name((1, 2)))
    #expect(try name((1, 2)) != name((1, 3)))
  }

  @Test("a flood of forged SYNs evicts itself, not the connections that stand")
  func flood() throws {
    var engine = try EngineUnderTest(
      try compiled(Self.rules), flowCapacity: 256, settings: EngineUnderTest.immediate)
    var standing: [Connection] = []
    for number in 0..<32 {
      var connection = Connection(Frame(sourcePort: UInt16(50_000 + number)))
      _ = engine.inspect(connection.handshake())
      standing.append(connection)
    }
    for number in 0..<20_000 {
      let source = "10.\(number >> 16 & 0xFF).\(number >> 8 & 0xFF).\(number & 0xFF)"
      let frame = Frame(source: source, acknowledgement: 0, flags: Frame.syn).tcp
      _ = engine.inspect(frame, after: .microseconds(10))
    }
    #expect(engine.statistic("flows_evicted").map { $0 > 19_000 } == true)
    #expect(engine.statistic("flows_evicted_established") == 0)
    #expect(engine.statistic("flows_now").map { $0 <= 256 } == true)
    for index in standing.indices {
      #expect(engine.inspect(standing[index].fromClient("x")) == [1, 3, 5])
      #expect(engine.output[0].flags.subtracting(.stream) == [.toServer, .established])
    }
  }

  @Test("rules are swapped without losing a flow, and a set that cannot be used changes nothing")
  func replaceRules() throws {
    var engine = try EngineUnderTest(Self.rules, settings: EngineUnderTest.immediate)
    var connection = Connection()
    _ = engine.inspect(connection.handshake())
    _ = engine.inspect(connection.fromClient("x"))
    let name = engine.output[0].flowID
    let next = try compiled("alert tcp any any -> any any (content:\"x\"; flow:to_server,established; sid:77;)")
    try engine.inspector.replaceRules(with: next)
    engine.rules = next
    #expect(engine.inspect(connection.fromClient("x")) == [77])
    #expect(engine.output[0].flags.subtracting(.stream) == [.toServer, .established])
    #expect(engine.output[0].flowID == name)
  }
}
