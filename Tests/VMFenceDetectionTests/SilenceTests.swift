import Testing
import VMFenceCore
import VMFenceDetection

/// What is found when no packet comes.
@Suite("Silence") struct SilenceTests {
  private static let rule = "drop tcp any any -> any any (content:\"the needle\"; flow:to_server; sid:1;)"

  @Test("what a receiver has read is inspected after half a second, once, and no verdict comes of it")
  func read() throws {
    var wire = try StreamTests.Wire(Self.rule)
    wire.send("the needle")
    #expect(wire.engine.advance(by: .seconds(1)) == [], "not read yet")
    wire.acknowledge(10)
    #expect(wire.engine.advance(by: .milliseconds(400)) == [], "the answer may still come")
    let read = wire.engine.now + .milliseconds(-400)
    #expect(wire.engine.advance(by: .milliseconds(200)) == [1])
    let alert = wire.engine.output[0]
    #expect(alert.timestamp == read && alert.origin == .flowTimeout)
    #expect(alert.flags == [.toServer, .established, .stream, .drops])
    #expect(wire.engine.output.verdict == .pass && wire.engine.output.verdictRule == .max)
    #expect(wire.engine.advance(by: .seconds(10)) == [])
    // The stream goes on, and its beginning is still there for a pattern that straddles.
    wire.send("s")
    wire.acknowledge(1)
    #expect(wire.finish() == [])
    #expect(wire.engine.statistic("alerts") == 1)
  }

  @Test("a pattern is found across a silence")
  func across() throws {
    var wire = try StreamTests.Wire(Self.rule)
    wire.send("the ne")
    wire.acknowledge(6)
    #expect(wire.engine.advance(by: .seconds(5)) == [])
    wire.send("edle")
    wire.acknowledge(4)
    #expect(wire.engine.advance(by: .seconds(5)) == [1])
  }

  @Test("flows end when their time is over, and what waited in them is inspected then; each flow in a turn of its own")
  func flows() throws {
    var engine = try EngineUnderTest(Self.rule, settings: ["flow-timeouts.tcp.established": "100"])
    for port in 1...3 as ClosedRange<UInt16> {
      var connection = Connection(Frame(sourcePort: 1000 + port))
      for frame in connection.handshake() { #expect(engine.inspect(frame) == []) }
      // Never acknowledged.
      #expect(engine.inspect(connection.fromClient("the needle")) == [])
    }
    #expect(engine.inspect(Frame(destinationPort: 53).carrying("a question").udp) == [])
    #expect(engine.advance(by: .seconds(20)) == [])
    #expect(engine.statistic("flows_now") == 4)
    #expect(engine.advance(by: .seconds(20)) == [])
    #expect(engine.statistic("flows_now") == 3, "30 s for a datagram without an answer")
    #expect(engine.advance(by: .seconds(61)) == [1, 1, 1])
    #expect(engine.statistic("flows_now") == 0 && engine.statistic("flows_expired") == 4)
    #expect(engine.statistic("stream_bytes_now") == 0)
  }

  @Test("one flow a call, so that its alerts fit")
  func turns() throws {
    var engine = try EngineUnderTest(Self.rule)
    for port in 1...3 as ClosedRange<UInt16> {
      var connection = Connection(Frame(sourcePort: 1000 + port))
      for frame in connection.handshake() + [connection.fromClient("the needle")] { _ = engine.inspect(frame) }
      _ = engine.inspect(connection.fromServer("", flags: Frame.ack))
    }
    let later = engine.now + .seconds(1)
    for turn in 1...3 {
      engine.output.reset()
      #expect(engine.inspector.advance(to: later, into: &engine.output))
      #expect(engine.output.count == 1, "turn \(turn)")
    }
    engine.output.reset()
    #expect(!engine.inspector.advance(to: later, into: &engine.output))
    #expect(engine.output.count == 0)
  }

  @Test("fragments give up waiting for the rest of their datagram")
  func fragments() throws {
    var engine = try EngineUnderTest("alert udp any any -> any any (content:\"whole\"; sid:1;)")
    let piece = Frame(payload: Array(repeating: 0x61, count: 64)).piece(17, offset: 0, more: true, id: 7)
    #expect(engine.inspect(piece) == [])
    #expect(engine.advance(by: .seconds(59)) == [])
    #expect(engine.statistic("datagrams_expired") == 0)
    #expect(engine.advance(by: .seconds(2)) == [])
    #expect(engine.statistic("datagrams_expired") == 1)
  }

  @Test("time that goes back, or jumps far ahead, does no harm", arguments: [-3_600, 1 << 33])
  func jumps(_ seconds: Int) throws {
    var wire = try StreamTests.Wire(Self.rule)
    wire.send("the needle")
    wire.acknowledge(10)
    let found = wire.engine.advance(by: .seconds(seconds))
    #expect(found == (seconds > 0 ? [1] : []))
    #expect(wire.finish() == (seconds > 0 ? [] : [1]))
  }
}
