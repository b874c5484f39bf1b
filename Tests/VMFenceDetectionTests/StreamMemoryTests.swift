import Glibc
import Testing
import VMFenceCore
import VMFenceDetection

/// Streams that are made to take much memory, or much work.
@Suite("Streams short of room") struct StreamMemoryTests {
  private static let needle = "the needle to be found"
  private static let rule = "alert tcp any any -> any any (content:\"\(needle)\"; flow:to_server; sid:1;)"

  private static let filler = String(repeating: "A", count: 3000)

  /// An engine with a mebibyte for streams.
  private func engine(_ rules: String = rule, settings: [String: String] = [:]) throws -> EngineUnderTest {
    try EngineUnderTest(
      try compiled(rules), flowCapacity: 4096,
      settings: ["stream.memcap": "1mb"].merging(settings) { $1 })
  }

  /// A connection with the server's window open for 64 KiB.
  private func connect(_ port: UInt16, _ engine: inout EngineUnderTest) -> Connection {
    var connection = Connection(Frame(sourcePort: port))
    for frame in connection.handshake() { _ = engine.inspect(frame) }
    _ = engine.inspect(answer(connection))
    return connection
  }

  /// What was sent is acknowledged, and the window is 65,535 bytes.
  private func answer(_ connection: Connection) -> [UInt8] {
    var connection = connection
    var frame = connection.fromServer("", flags: Frame.ack)
    frame.replaceSubrange(48..<50, with: [0xFF, 0xFF])
    return frame
  }

  private func segment(_ connection: Connection, _ text: some StringProtocol, at distance: Int) -> [UInt8] {
    connection.client.carrying(String(text)).with {
      $0.flags = 0x18
      $0.sequence = connection.clientNext &+ UInt32(distance)
      $0.acknowledgement = connection.serverNext
    }.tcp
  }

  /// As many connections, each with one byte far behind a hole.
  private func flood(_ engine: inout EngineUnderTest, from port: UInt16, count: UInt16, at distance: Int = 60_000) {
    for port in port..<port + count {
      let connection = connect(port, &engine)
      _ = engine.inspect(segment(connection, "x", at: distance))
    }
  }

  @Test("bytes far behind holes give way to what others send in order, and nothing of them is lost unseen")
  func farBytes() throws {
    var engine = try engine()
    let first = connect(1000, &engine)
    #expect(engine.inspect(segment(first, Self.needle, at: 60_000)) == [])
    var found: [UInt32] = []
    for port in UInt16(1001)..<1040 {
      let connection = connect(port, &engine)
      found += engine.inspect(segment(connection, "x", at: 60_000))
    }
    #expect(found == [1], "inspected when it gave way")
    #expect((engine.statistic("stream_memory_evictions") ?? 0) >= 30)
    var other = connect(2000, &engine)
    _ = engine.inspect(other.fromClient(String(Self.needle.prefix(9))))
    _ = engine.inspect(answer(other))
    _ = engine.inspect(other.fromClient(String(Self.needle.dropFirst(9))))
    _ = engine.inspect(answer(other))
    #expect(engine.inspect(other.fromServer("an answer")) == [1])
    #expect(engine.statistic("stream_segments_refused") == 0)
    #expect(engine.statistic("stream_gaps") == 0, "nobody acknowledged what was missing")
  }

  @Test("of a stream that gives way, what lies near is kept for the bytes that are missing before it")
  func nearBytes() throws {
    var engine = try engine()
    let stream = connect(1000, &engine)
    _ = engine.inspect(segment(stream, Self.needle.dropFirst(9), at: 9))
    _ = engine.inspect(segment(stream, "x", at: 60_000))
    flood(&engine, from: 1001, count: 40)
    _ = engine.inspect(segment(stream, Self.needle.prefix(9), at: 0))
    var end = stream
    end.clientNext += UInt32(Self.needle.utf8.count)
    #expect(engine.inspect(end.fromServer("an answer")) == [1])
  }

  @Test("a hole that gets smaller is younger than one that does not")
  func progress() throws {
    var engine = try engine()
    var stream = connect(1000, &engine)
    let text = String(repeating: ".", count: 2000) + Self.needle
    _ = engine.inspect(segment(stream, text.suffix(9), at: text.utf8.count - 9))
    for (index, port) in stride(from: UInt16(1001), to: 1601, by: 6).enumerated() {
      flood(&engine, from: port, count: 6, at: 3000)
      _ = engine.inspect(segment(stream, text.dropFirst(index * 20).prefix(20), at: index * 20))
    }
    #expect((engine.statistic("stream_memory_evictions") ?? 0) > 300)
    _ = engine.inspect(segment(stream, text.dropFirst(1990), at: 1990))
    stream.clientNext += UInt32(text.utf8.count)
    #expect(engine.inspect(stream.fromServer("an answer")) == [1])
  }

  @Test("single bytes that touch are one segment, however many there are", arguments: [false, true])
  func singleBytes(_ isBackwards: Bool) throws {
    var engine = try engine()
    var stream = connect(1000, &engine)
    let text = Self.needle + String(repeating: ".", count: 5000)
    let bytes = text.map { String($0) }
    let order = Array(1..<bytes.count)
    for index in isBackwards ? order.reversed() : order { _ = engine.inspect(segment(stream, bytes[index], at: index)) }
    _ = engine.inspect(segment(stream, bytes[0], at: 0))
    stream.clientNext += UInt32(bytes.count)
    #expect(engine.inspect(stream.fromServer("an answer")) == [1])
    #expect(engine.statistic("stream_segments_refused") == 0)
    #expect(engine.statistic("stream_gaps") == 0)
  }

  @Test("more segments between holes than there may be are looked at by themselves; no hole is passed for them")
  func manyHoles() throws {
    var engine = try engine()
    var stream = connect(1000, &engine)
    for index in 0..<4096 { _ = engine.inspect(segment(stream, "x", at: 101 + index * 2)) }
    #expect(engine.statistic("stream_segments_refused") == 0)
    #expect(engine.inspect(segment(stream, Self.needle, at: 20_000)) == [1])
    #expect(engine.statistic("stream_segments_refused") == 1)
    #expect(engine.statistic("stream_gaps") == 0)
    #expect(engine.inspect(segment(stream, Self.needle.prefix(9), at: 0)) == [], "what lies farther gives way")
    #expect(engine.inspect(segment(stream, Self.needle.dropFirst(9), at: 9)) == [])
    stream.clientNext += UInt32(Self.needle.utf8.count)
    #expect(engine.inspect(stream.fromServer("an answer")) == [1])
    #expect(engine.statistic("stream_segments_refused") == 1)
    #expect(engine.statistic("stream_gaps") == 0)
  }

  @Test("segments over each other are compared byte by byte once, however many there are", arguments: [1, -1])
  func overlaps(_ step: Int) throws {
    let one = try timeOfSegments(step: 0)
    let many = try timeOfSegments(step: step)
    #expect(many < one * 10, "1,000 segments, each over nearly all others: \(many), over the same bytes: \(one)")
  }

  /// Processor time for 1,000 segments of 3,000 bytes, each so many bytes farther than the one before.
  private func timeOfSegments(step: Int) throws -> Double {
    var engine = try engine()
    var stream = connect(1000, &engine)
    let frames = (0..<1000).map { segment(stream, Self.filler, at: 2000 + $0 * step) }
    let start = clock()
    for frame in frames { _ = engine.inspect(frame) }
    let time = clock() - start
    _ = engine.inspect(segment(stream, Self.needle + Self.filler, at: 0))
    stream.clientNext += UInt32(Self.needle.utf8.count)
    #expect(engine.inspect(stream.fromServer("an answer")) == [1])
    #expect(engine.statistic("stream_overlaps_different") == 0)
    return time / .seconds(1)
  }

  /// This thread's processor time, so that it does not matter what else runs.
  private func clock() -> Timestamp {
    var time = timespec()
    // SAFETY: clock_gettime(2) writes one timespec.
    unsafe clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
    return Timestamp(nanoseconds: Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec))
  }

  // MARK: Shares

  /// What is known of the two ends of a connection.
  enum Sides: CaseIterable { case guestIsServer, guestIsClient, unknown }

  /// What a host leaves in memory with each of its connections: a segment behind a hole that is near or far, or one that nobody acknowledges.
  enum Rest: CaseIterable { case near, far, waiting }

  /// A host and the guest that it talks to, and what is seen of them at the guest's port.
  private struct Peer {
    var address: String
    var guest = "198.51.100.2"
    var sides: Sides

    func connect(_ port: UInt16, _ engine: inout EngineUnderTest) -> Connection {
      let isClient = sides != .guestIsClient
      var connection = Connection(
        Frame(source: isClient ? address : guest, destination: isClient ? guest : address, sourcePort: port))
      for (index, frame) in connection.handshake().enumerated() {
        _ = engine.inspect(frame, direction(fromPeer: (index != 1) == isClient))
      }
      return connection
    }

    private func direction(fromPeer: Bool) -> FrameDirection {
      sides == .unknown ? .unknown : fromPeer ? .toGuest : .fromGuest
    }

    func send(
      _ text: some StringProtocol, at distance: Int, _ connection: Connection, _ engine: inout EngineUnderTest
    ) -> [UInt32] {
      var connection = connection
      if sides == .guestIsClient {
        connection.serverNext += UInt32(distance)
        return engine.inspect(connection.fromServer(String(text)), direction(fromPeer: true))
      }
      connection.clientNext += UInt32(distance)
      return engine.inspect(connection.fromClient(String(text)), direction(fromPeer: true))
    }

    /// The guest acknowledges so many bytes, and says something.
    func answer(_ count: Int, _ connection: Connection, _ engine: inout EngineUnderTest) -> [UInt32] {
      var connection = connection
      if sides == .guestIsClient {
        connection.serverNext += UInt32(count)
        return engine.inspect(connection.fromClient("an answer"), direction(fromPeer: false))
      }
      connection.clientNext += UInt32(count)
      return engine.inspect(connection.fromServer("an answer"), direction(fromPeer: false))
    }
  }

  @Test(
    "whoever fills the memory pushes out what is its own, before or after another's segments come",
    arguments: Sides.allCases, Rest.allCases)
  func shares(_ sides: Sides, _ rest: Rest) throws {
    for (peer, guest, flooders) in [
      ("192.0.2.1", "198.51.100.2", (1...3).map { "203.0.113.\($0)" }),
      ("2001:db8:1::1", "2001:db8::2", (1...700).map { "2001:db8:2::\($0)" }),
    ] {
      var engine = try engine("alert tcp any any -> any any (content:\"\(Self.needle)\"; sid:1;)")
      func flood(from port: UInt16, _ engine: inout EngineUnderTest) {
        for port in port..<port + 700 {
          // Three hosts have a third of the memory each; those of one IPv6 network count as one.
          let flooder = Peer(address: flooders[Int(port) % flooders.count], guest: guest, sides: sides)
          let connection = flooder.connect(port, &engine)
          let text = String(repeating: "x", count: 100)
          _ = flooder.send(
            text, at: rest == .near ? 3000 : rest == .far ? 6000 : 0, connection, &engine)
        }
      }
      let honest = Peer(address: peer, guest: guest, sides: sides)
      let first = honest.connect(1, &engine)
      _ = honest.send(Self.needle.dropFirst(9), at: 9, first, &engine)
      flood(from: 1000, &engine)
      #expect((engine.statistic("stream_memory_hits") ?? 0) > 0)
      _ = honest.send(Self.needle.prefix(9), at: 0, first, &engine)
      #expect(honest.answer(Self.needle.utf8.count, first, &engine) == [1], "\(peer): what was there before")
      let second = honest.connect(2, &engine)
      _ = honest.send(Self.needle.prefix(9), at: 0, second, &engine)
      flood(from: 2000, &engine)
      _ = honest.send(Self.needle.dropFirst(9), at: 9, second, &engine)
      #expect(honest.answer(Self.needle.utf8.count, second, &engine) == [1], "\(peer): what came when it was full")
    }
  }

  @Test("what a share gives up that nobody acknowledged yet is inspected first")
  func waitingShare() throws {
    var engine = try engine()
    let flooder = Peer(address: "203.0.113.1", sides: .unknown)
    for port in UInt16(1000)..<1256 {
      let connection = flooder.connect(port, &engine)
      #expect(flooder.send(Self.needle, at: 0, connection, &engine) == [])
    }
    #expect(engine.statistic("stream_memory_hits") == 0, "it is just full")
    let honest = Peer(address: "192.0.2.1", sides: .unknown)
    let connection = honest.connect(1, &engine)
    #expect(honest.send("x", at: 0, connection, &engine) == [1], "one of them gives way")
    #expect(engine.statistic("stream_inspected_early") == 1)
    #expect(engine.statistic("stream_segments_refused") == 0)
  }

  @Test("other bytes over many segments count, or do not, as over one", arguments: [("first", false), ("last", true)])
  func manyOthers(_ test: (policy: String, isNew: Bool)) throws {
    var engine = try engine(
      "alert tcp any any -> any any (content:\"\(String(repeating: "N", count: 60))\"; sid:1;)",
      settings: ["host-os-policy.\(test.policy)": "198.51.100.2"])
    var stream = connect(1000, &engine)
    for index in 1..<100 { _ = engine.inspect(segment(stream, "O", at: index)) }
    _ = engine.inspect(segment(stream, String(repeating: "N", count: 80), at: 10))
    #expect(engine.statistic("stream_overlaps_different") == 1)
    _ = engine.inspect(segment(stream, "O", at: 0))
    stream.clientNext += 100
    #expect(engine.inspect(stream.fromServer("an answer")) == (test.isNew ? [1] : []))
  }
}
