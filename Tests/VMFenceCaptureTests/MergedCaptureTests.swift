import Testing
import VMFenceCapture
import VMFenceConformance
import VMFenceCore
import VMFenceTestKit

@Suite("Merged captures")
struct MergedCaptureTests {
  private static func capture(_ frames: [(seconds: UInt32, byte: UInt8)]) -> [UInt8] {
    var capture = CaptureBytes()
    capture.pcapHeader()
    for frame in frames { capture.pcapRecord([frame.byte], seconds: frame.seconds) }
    return capture.bytes
  }

  private static func merge(_ captures: [[UInt8]]) throws(PacketSourceError) -> MergedCapture {
    var merged = MergedCapture()
    for (index, bytes) in captures.enumerated() {
      merged.add(try CaptureFile.open(bytes: bytes, ports: .all(PortID(UInt32(index)))))
    }
    return merged
  }

  @Test("come in the order of time, equal times in the order of the files")
  func order() throws {
    let captures = [
      Self.capture([(1, 1), (5, 2), (5, 3), (9, 4)]), Self.capture([(5, 11), (6, 12)]), Self.capture([]),
      Self.capture([(0, 21), (5, 22), (10, 23)]), Self.capture([(5, 31)]), Self.capture([(7, 41)]),
    ]
    let expected: [(UInt8, Int64, UInt32)] = [
      (21, 0, 3), (1, 1, 0), (2, 5, 0), (3, 5, 0), (11, 5, 1), (22, 5, 3), (31, 5, 4), (12, 6, 1), (41, 7, 5),
      (4, 9, 0),
      (23, 10, 3),
    ]
    try PacketSourceConformance(
      expected: expected.map { delivery([$0.0], nanoseconds: $0.1 * 1_000_000_000, port: $0.2) }
    ).check { try Self.merge(captures) }
  }

  @Test("keep a file's own order where its times go backwards")
  func backwards() throws {
    let captures = [Self.capture([(8, 1), (2, 2)]), Self.capture([(4, 11), (9, 12)])]
    let run = try PacketSourceConformance().check { try Self.merge(captures) }
    #expect(run.frames.map { $0.bytes[0] } == [11, 1, 2, 12])
  }

  @Test("deliver the frames of the sound files when one is damaged, then its error")
  func damaged() throws {
    let captures = [Self.capture([(1, 1), (2, 2)]).dropLast(), Self.capture([(3, 3)])[...]].map { Array($0) }
    let run = try PacketSourceConformance(expectedFailure: .truncated).check { try Self.merge(captures) }
    #expect(run.frames.map { $0.bytes[0] } == [1, 3])
  }

  @Test("of no files are at their end")
  func none() {
    PacketSourceConformance(expected: []).check { MergedCapture() }
  }
}

@Suite("Scripted packet sources")
struct ScriptedPacketSourceTests {
  @Test("deliver what is written, with its faults")
  func script() {
    let error = PacketSourceError(.interfaceGone, "vif1.0 is gone", remedy: "none")
    let steps: [ScriptedPacketSource.Step] = [
      .frame(delivery([1], nanoseconds: 1).metadata, [1]), .kernelDrops(3), .pause, .skipped,
      .frame(delivery([2, 2], nanoseconds: 2, original: 9).metadata, [2, 2]), .interfaceDrops(2), .failure(error),
    ]
    let run = PacketSourceConformance(
      expected: [delivery([1], nanoseconds: 1), delivery([2, 2], nanoseconds: 2, original: 9)],
      expectedFailure: .interfaceGone
    ).check { ScriptedPacketSource(steps) }
    #expect(run.counters.droppedByKernel == 3)
    #expect(run.counters.droppedByInterface == 2)
    #expect(run.counters.skipped == 1)
    #expect(run.counters.truncated == 1)
  }
}
