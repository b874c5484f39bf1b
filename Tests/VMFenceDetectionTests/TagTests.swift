import Testing
import VMFenceCore
import VMFenceDetection

/// `tag`: what comes after a match is logged.
@Suite("Tags") struct TagTests {
  /// Which of the frames are logged.
  private func logged(
    _ tag: String, _ dialect: RuleDialect, _ frames: [[UInt8]], after delay: Duration = .milliseconds(1)
  ) throws -> [Bool] {
    var engine = try EngineUnderTest(
      "alert udp any any -> any any (msg:\"t\"; content:\"begin\"; tag:\(tag); sid:1;)", dialect: dialect)
    return frames.map { frame in
      _ = engine.inspect(frame, after: delay)
      return engine.output.isTagged
    }
  }

  private static let begin = Frame().carrying("begin").udp
  private static let next = Frame().carrying("next").udp
  private static let answer = Frame().reply.carrying("answer").udp
  /// Other flows: from the same host, to the same host, and between others.
  private static let fromSource = Frame(destination: "203.0.113.9").carrying("x").udp
  private static let toDestination = Frame(source: "203.0.113.9").carrying("x").udp
  private static let other = Frame(source: "203.0.113.9", destination: "203.0.113.8").carrying("x").udp

  @Test("a session's packets, both ways, as many as the rule says; Suricata counts the one that matched")
  func session() throws {
    let frames = [Self.next, Self.begin, Self.next, Self.answer, Self.fromSource, Self.next, Self.next]
    #expect(
      try logged("session,3,packets", .suricata, frames) == [false, false, true, true, false, false, false])
    #expect(try logged("session,3,packets", .snort2, frames) == [false, false, true, true, false, true, false])
    #expect(try logged("session,packets 1", .snort3, frames) == [false, false, true, false, false, false, false])
    #expect(try logged("session", .suricata, frames) == [false, false, true, true, false, true, true])
    #expect(try logged("session,1,packets", .suricata, frames).allSatisfy { !$0 })
  }

  @Test("a host's packets, whatever their flow")
  func host() throws {
    let frames = [Self.begin, Self.fromSource, Self.toDestination, Self.other, Self.answer]
    #expect(try logged("host,100,packets,src", .suricata, frames) == [false, true, false, false, true])
    #expect(try logged("host,100,packets,dst", .suricata, frames) == [false, false, true, false, true])
    #expect(try logged("host_dst,packets 1", .snort3, frames) == [false, false, true, false, false])
  }

  @Test("for a time, or for a number of bytes")
  func otherMeasures() throws {
    let frames = [Self.begin] + Array(repeating: Self.next, count: 6)
    let second = Duration.milliseconds(1000)
    #expect(
      try logged("session,3,seconds", .suricata, frames, after: second)
        == [false, true, true, true, false, false, false])
    // Each of 46 bytes with its headers.
    #expect(try logged("session,bytes 100", .snort3, frames) == [false, true, true, true, false, false, false])
    // Whichever ends first.
    #expect(
      try logged("session,packets 2,seconds 60", .snort3, frames) == [false, true, true, false, false, false, false])
  }

  @Test("another match begins anew")
  func renewed() throws {
    let frames = [Self.begin, Self.next, Self.begin, Self.next, Self.next, Self.next]
    #expect(try logged("session,packets 2", .snort3, frames) == [false, true, true, true, true, false])
  }

  @Test("a flood of matches takes no more room than there is, and is counted")
  func flood() throws {
    var engine = try EngineUnderTest(
      "alert udp any any -> any any (msg:\"t\"; content:\"begin\"; tag:host,9,packets,src; sid:1;)",
      dialect: .suricata)
    for number in 0..<20_000 {
      let address = "10.\(number >> 16 & 0xFF).\(number >> 8 & 0xFF).\(number & 0xFF)"
      _ = engine.inspect(Frame(source: address).carrying("begin").udp)
    }
    #expect((engine.statistic("tags_evicted") ?? 0) > 10_000)
    _ = engine.inspect(Frame(source: "10.0.78.31").carrying("x").udp)
    let isTagged = engine.output.isTagged
    #expect(isTagged, "the last one is still known")
  }
}
