import Foundation
import Testing
import VMFenceCore

@Suite("EVE file")
struct EVEFileSinkTests {
  private let encoder = EVEEncoder(node: "n", directory: DomainDirectory())

  private func event(_ count: UInt64) -> Event {
    .platform(PlatformAlert(time: .zero, incarnation: nil, kind: .probeGap, message: "gap", count: count))
  }

  @Test("lines are appended; when the file was renamed away the next line is in a new one, without a signal")
  func appendAndRotate() async throws {
    let directory = try TemporaryDirectory()
    let sink = try EVEFileSink(path: directory.file("eve.json"), encoder: encoder)
    sink.receive(event(1))
    sink.receive(event(2))
    try directory.rename("eve.json", to: "eve.json.1")
    sink.receive(event(3))
    let old = try directory.bytes("eve.json.1").split(separator: UInt8(ascii: "\n"))
    #expect(old.map { Array($0) } == [encoder.encode(event(1)), encoder.encode(event(2))])
    #expect(try directory.bytes("eve.json") == encoder.encode(event(3)) + [UInt8(ascii: "\n")])
    // As logrotate does it with `create`: somebody else made the new file.
    try directory.rename("eve.json", to: "eve.json.2")
    try directory.write([], to: "eve.json")
    sink.receive(event(4))
    #expect(try directory.bytes("eve.json") == encoder.encode(event(4)) + [UInt8(ascii: "\n")])
    #expect(sink.counters.linesWritten == 4)
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
    sink.receive(change(Self.domain(1)))
    #expect(sink.unwrittenByDomain == [nil: 2, Self.domain(1): 1] && sink.lostByDomain == sink.unwrittenByDomain)
    sink.forget(Self.domain(1))
    #expect(sink.unwrittenByDomain == [nil: 2])
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
    sink.receive(event(1))
    #expect(try !directory.bytes("moved/eve.json").isEmpty)
    #expect(sink.counters.linesWritten == 1 && sink.counters.linesLost == 0)
    #expect(sink.problem?.message.contains("cannot open \(inner)/eve.json") == true)
    try directory.makeDirectory("logs")
    sink.receive(event(2))
    #expect(try directory.bytes("logs/eve.json") == encoder.encode(event(2)) + [UInt8(ascii: "\n")])
    #expect(sink.problem == nil)
  }

  // MARK: The limit

  private static func domain(_ number: UInt32, domainID: UInt32? = nil) -> Incarnation {
    Incarnation(uuid: DomainUUID(high: 1, low: UInt64(number)), domainID: DomainID(domainID ?? number))
  }

  private func change(_ domain: Incarnation) -> Event {
    .file(
      FileEvent(
        time: .zero, incarnation: domain, disk: "xvda", sequence: 0, operation: .write, path: Array("/etc/x".utf8),
        inode: 1, verdict: .allow, severity: 1))
  }

  private func told(_ domain: Incarnation?) -> Event {
    .platform(PlatformAlert(time: .zero, incarnation: domain, kind: .probeGap, message: "gap"))
  }

  /// As many as make the file full of what one may have.
  private func flood(_ sink: EVEFileSink, _ event: Event) -> UInt64 {
    let before = sink.counters
    var count: UInt64 = 0
    while sink.counters.linesLost < before.linesLost + 100, count < 100_000 {
      sink.receive(event)
      count += 1
    }
    return sink.counters.linesWritten - before.linesWritten
  }

  private func size(_ directory: TemporaryDirectory) throws -> Int { try directory.bytes("eve.json").count }

  @Test(
    "one guest has its share of the file, also under another number; others, and what is decided, find room; then the next file takes it again"
  )
  func limit() async throws {
    let directory = try TemporaryDirectory()
    let limit = 1 << 21
    let sink = try EVEFileSink(path: directory.file("eve.json"), limit: UInt64(limit), encoder: encoder)
    let (noisy, quiet) = (Self.domain(1), Self.domain(2))
    let first = flood(sink, change(noisy))
    // An eighth is for file events, and half of that for one alone.
    #expect(try ((limit / 16 - 1000)...(limit / 16 + 1000)).contains(size(directory)))
    #expect(first > 100 && sink.lostByDomain == [noisy: 100])
    #expect(sink.problem?.code == .full && sink.problem?.message.contains("2 MiB") == true)
    let again = Self.domain(1, domainID: 7)
    for _ in 0..<50 { sink.receive(change(again)) }
    #expect(sink.lostByDomain == [noisy: 100, again: 50])
    for domain in [quiet, noisy, nil] {
      for _ in 0..<50 { sink.receive(told(domain)) }
      if let domain, domain != noisy { for _ in 0..<50 { sink.receive(change(domain)) } }
    }
    #expect(sink.lostByDomain == [noisy: 100, again: 50] && sink.counters.linesLost == 150)
    sink.forget(again)
    #expect(sink.lostByDomain == [noisy: 100] && sink.counters.linesLost == 150)
    // Whoever floods with everything, all of them together: never more than the limit.
    for number in 1...40 {
      for event in [change(Self.domain(UInt32(number))), told(Self.domain(UInt32(number)))] { _ = flood(sink, event) }
    }
    #expect(try size(directory) <= limit)
    let lost = sink.counters.linesLost
    try directory.rename("eve.json", to: "eve.json.1")
    sink.receive(change(noisy))
    #expect(try size(directory) == encoder.encode(change(noisy)).count + 1)
    #expect(sink.problem == nil && sink.counters.linesLost == lost)
    #expect(flood(sink, change(noisy)) == first - 1)
  }

  @Test("a file that was cut takes as much again, and begins with a whole line")
  func cut() async throws {
    let directory = try TemporaryDirectory()
    let sink = try EVEFileSink(path: directory.file("eve.json"), limit: 1 << 20, encoder: encoder)
    let first = flood(sink, change(Self.domain(1)))
    try FileHandle(forWritingTo: URL(filePath: directory.file("eve.json"))).truncate(atOffset: 0)
    #expect(flood(sink, change(Self.domain(1))) == first && sink.problem?.code == .full)
    try FileHandle(forWritingTo: URL(filePath: directory.file("eve.json"))).truncate(atOffset: 0)
    sink.receive(event(9))
    #expect(try directory.bytes("eve.json") == encoder.encode(event(9)) + [UInt8(ascii: "\n")] && sink.problem == nil)
  }

  @Test(
    "what a file held before counts, whoever it was: it is taken for statistics, and for alerts, as far as these have room"
  )
  func restart() async throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("eve.json")
    try directory.write([UInt8](repeating: UInt8(ascii: "\n"), count: 1 << 19), to: "eve.json")
    let half = try EVEFileSink(path: path, limit: 1 << 20, encoder: encoder)
    half.receive(change(Self.domain(1)))
    half.receive(event(1))
    #expect(half.counters.linesWritten == 2 && half.counters.linesLost == 0)
    try directory.write([UInt8](repeating: UInt8(ascii: "\n"), count: 1 << 20), to: "eve.json")
    let full = try EVEFileSink(path: path, limit: 1 << 20, encoder: encoder)
    full.receive(change(Self.domain(1)))
    full.receive(event(1))
    #expect(
      full.counters.linesWritten == 0 && full.counters.linesLost == 2
        && full.lostByDomain == [Self.domain(1): 1, nil: 1] && full.unwrittenByDomain.isEmpty)
    #expect(try size(directory) == 1 << 20)
  }

  @Test("statistics, which come however little a guest does, take no room from what is decided, nor that from them")
  func statistics() async throws {
    let directory = try TemporaryDirectory()
    let sink = try EVEFileSink(path: directory.file("eve.json"), limit: 1 << 18, encoder: encoder)
    let figures = EVEStatistics(
      time: .zero, uptime: .zero, incarnation: Self.domain(1), packets: 1, drops: 0, counters: [("inspected", 1)])
    for _ in 0..<10_000 where sink.counters.linesLost == 0 { sink.receive(figures) }
    #expect(try (60_000...67_000).contains(size(directory)), "half of what is for them, for one guest")
    let first = flood(sink, told(Self.domain(1)))
    #expect(first > 20)
    let written = sink.counters.linesWritten
    sink.receive(EVEStatistics(time: .zero, uptime: .zero, packets: 1, drops: 0, counters: []))
    #expect(sink.counters.linesWritten == written + 1)
  }

  @Test("what another writes to the same file counts against the limit")
  func twoWriters() async throws {
    let directory = try TemporaryDirectory()
    let sinks = try (0..<8).map { _ in
      try EVEFileSink(path: directory.file("eve.json"), limit: 1 << 16, encoder: encoder)
    }
    for number in 1...40 { for sink in sinks { _ = flood(sink, change(Self.domain(UInt32(number)))) } }
    for number in 1...40 { for sink in sinks { _ = flood(sink, told(Self.domain(UInt32(number)))) } }
    #expect(try size(directory) <= 1 << 16 && size(directory) > 63 << 10)
  }
}
