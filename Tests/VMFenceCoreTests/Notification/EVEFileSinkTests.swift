import Testing
import VMFenceCore

@Suite("EVE file")
struct EVEFileSinkTests {
  private let encoder = EVEEncoder(node: "n", directory: DomainDirectory())

  private func event(_ count: UInt64) -> Event {
    .platform(PlatformAlert(time: .zero, incarnation: nil, kind: .probeGap, message: "gap", count: count))
  }

  @Test("lines are appended, and after a rotation go to the new file")
  func appendAndReopen() async throws {
    let directory = try TemporaryDirectory()
    let sink = try EVEFileSink(path: directory.file("eve.json"), encoder: encoder)
    sink.receive(event(1))
    try directory.rename("eve.json", to: "eve.json.1")
    sink.receive(event(2))
    try sink.reopen()
    sink.receive(event(3))
    let old = try directory.bytes("eve.json.1").split(separator: UInt8(ascii: "\n"))
    #expect(old.map { Array($0) } == [encoder.encode(event(1)), encoder.encode(event(2))])
    #expect(try directory.bytes("eve.json") == encoder.encode(event(3)) + [UInt8(ascii: "\n")])
    #expect(sink.counters.linesWritten == 3)
    #expect(sink.problem == nil)
  }

  @Test("an existing file is continued")
  func existing() async throws {
    let directory = try TemporaryDirectory()
    try directory.write(Array("{}\n".utf8), to: "eve.json")
    let sink = try EVEFileSink(path: directory.file("eve.json"), encoder: encoder)
    sink.receive(event(1))
    #expect(try directory.bytes("eve.json").starts(with: "{}\n{".utf8))
  }

  @Test("a full disk loses lines, counts them and says so")
  func full() async throws {
    let sink = try EVEFileSink(path: "/dev/full", encoder: encoder)
    sink.receive(event(1))
    sink.receive(event(2))
    #expect(sink.counters.linesLost == 2)
    #expect(sink.counters.linesWritten == 0)
    #expect(sink.problem?.code == .full)
  }

  @Test("a place that cannot be opened is an error with its path")
  func noDirectory() {
    let error = #expect(throws: NotificationError.self) {
      try EVEFileSink(path: "/nowhere/at/all.json", encoder: encoder)
    }
    #expect(error?.message.contains("/nowhere/at/all.json") == true)
  }

  @Test("a rotation that fails leaves the old file in use")
  func failedReopen() async throws {
    let directory = try TemporaryDirectory()
    let inner = directory.file("logs")
    try directory.makeDirectory("logs")
    let sink = try EVEFileSink(path: inner + "/eve.json", encoder: encoder)
    try directory.rename("logs", to: "moved")
    #expect(throws: NotificationError.self) { try sink.reopen() }
    sink.receive(event(1))
    #expect(try !directory.bytes("moved/eve.json").isEmpty)
  }
}
