import Testing
import VMFenceBlock

@Suite struct WriteStreamsTests {
  private static let stretch = WriteStreams.stretch

  @Test func whatAStreamLeavesBehindIsHandedOverInStretches() {
    var streams = WriteStreams()
    let size: UInt64 = 128 << 10
    var handed: [Range<UInt64>] = []
    for index in 0..<(2 * Self.stretch / size) + 3 {
      if let range = streams.note(1 << 30 + index * size, size) { handed.append(range) }
    }
    let start: UInt64 = 1 << 30
    #expect(handed == [start..<start + Self.stretch, start + Self.stretch..<start + 2 * Self.stretch])
  }

  @Test func streamsThatAreInterleavedAreToldApart() {
    var streams = WriteStreams()
    let size: UInt64 = 1 << 20
    var handed: [Range<UInt64>] = []
    for index in 0..<Self.stretch / size {
      for stream in 0..<UInt64(WriteStreams.limit) {
        if let range = streams.note(stream << 32 + index * size, size) { handed.append(range) }
      }
    }
    #expect(handed == (0..<UInt64(WriteStreams.limit)).map { $0 << 32..<($0 << 32) + Self.stretch })
  }

  @Test func ofMoreStreamsThanAreFollowedTheOneThatWaitedLongestIsForgotten() {
    var streams = WriteStreams()
    let half = Self.stretch / 2
    #expect(streams.note(0, half) == nil)
    for other in 1..<UInt64(WriteStreams.limit) { #expect(streams.note(other << 32, half) == nil) }
    #expect(streams.note(half, 1) == nil, "it goes on, so another has waited longest")
    #expect(streams.note(1 << 40, half) == nil)
    #expect(streams.note(1 << 32 + half, half) == nil, "forgotten: a new one")
    #expect(streams.note(half + 1, half) == 0..<2 * half + 1)
  }

  @Test func writesHereAndThereOrAlwaysInOnePlaceStayInTheCache() {
    var streams = WriteStreams()
    for index in 0..<10_000 as Range<UInt64> {
      #expect(streams.note((index &* 2_654_435_761) % (1 << 30) / 4096 * 8192, 4096) == nil)
      #expect(streams.note(1 << 40, 1 << 20) == nil)
    }
  }

  @Test func aServerBeginsToWriteBackWhatComesInOneStream() throws {
    let disk = try ServedDisk(byteCount: 32 << 20)
    let client = try RawClient(disk.socketPath)
    try client.enter()
    let data = [UInt8](repeating: 7, count: 1 << 20)
    for index in 0..<9 { #expect(try client.ask(1, UInt64(index) << 20, 1 << 20, data: data).error == 0) }
    for _ in 0..<9 { #expect(try client.ask(1, 20 << 20, 1 << 20, data: data).error == 0) }
    #expect(try client.ask(3).error == 0)
    let statistics = try disk.stop()
    #expect(statistics.bytesWrittenBehind == 2 * Self.stretch && statistics.bytesWritten == 18 << 20)
    #expect(try disk.image()[..<(9 << 20)].allSatisfy { $0 == 7 })
  }
}
