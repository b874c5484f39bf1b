import Testing
import VMFenceBlock
import VMFenceConformance
import VMFenceCore
import VMFenceIntegrity
import VMFenceTestKit

/// A recording in a folder of its own that goes with it.
final class TemporaryTrace {
  let folder: TemporaryFolder
  var path: String { folder.path + "/disk.jsonl" }

  init(_ lines: [String], data: [UInt8] = []) throws {
    folder = try TemporaryFolder()
    try folder.write(Array((lines.joined(separator: "\n") + "\n").utf8), to: "disk.jsonl")
    try folder.write(data, to: "disk.bin")
  }
}

@Suite struct RecordedBlockSourceTests {
  static let lines = [
    #"{"seq": 3, "t_ns": 0, "op": "flush"}"#,
    #"{"seq": 4, "t_ns": 10, "op": "mark", "ev": "start"}"#,
    #"{"seq": 5, "t_ns": 20, "op": "write", "off": 4096, "len": 4, "fua": true, "pos": 2}"#,
    #"{"seq": 6, "t_ns": 30, "op": "read", "off": 0, "len": 512}"#,
    #"{"seq": 7, "t_ns": 40, "op": "trim", "off": 512, "len": 1024}"#,
    #"{"seq": 8, "t_ns": 50, "op": "zero", "off": 0, "len": 512, "fua": false}"#,
  ]

  @Test func aRecordingIsABlockSource() throws {
    let trace = try TemporaryTrace(Self.lines, data: [0, 0, 1, 2, 3, 4])
    try BlockSourceConformance(expectedRequests: 5).check { try RecordedBlockSource.open(path: trace.path) }
    let broken = try TemporaryTrace(
      Self.lines + [#"{"seq": 12, "t_ns": 60, "op": "flush"}"#], data: [0, 0, 1, 2, 3, 4])
    try BlockSourceConformance(expectedRequests: 6, expectedGaps: 1).check {
      try RecordedBlockSource.open(path: broken.path)
    }
  }

  @Test func aScriptIsABlockSource() throws {
    let steps: [ScriptedBlockSource.Step] = (0..<6).map { index in
      .request(
        BlockRequest(
          sequence: UInt64(index), timestamp: Timestamp(nanoseconds: Int64(index)), operation: .write, length: 3),
        data: [1, 2, 3])
    }
    try BlockSourceConformance(expectedRequests: 6).check { ScriptedBlockSource(steps) }
  }

  @Test func requestsAreNumberedAnewAndTimesBeginWhereTheCallerSays() throws {
    let trace = try TemporaryTrace(Self.lines, data: [0, 0, 1, 2, 3, 4])
    var source = try RecordedBlockSource.open(path: trace.path, startingAt: Timestamp(seconds: 100))
    var observer = RecordingBlockObserver()
    _ = try source.deliver(limit: .max, until: nil, to: &observer)
    #expect(observer.entries.map(\.request.sequence) == [0, 1, 2, 3, 4])
    #expect(observer.entries.map(\.request.operation) == [.flush, .write, .read, .discard, .writeZeroes])
    #expect(observer.entries[1].data == [1, 2, 3, 4] && observer.entries[1].request.isForcedUnitAccess)
    #expect(observer.entries[1].request.timestamp == Timestamp(seconds: 100, nanoseconds: 20))
  }

  @Test(arguments: [
    (["{"], BlockSourceError.Code.corrupt, 1),
    ([lines[0], lines[0]], .corrupt, 2),
    ([lines[2]], .truncated, 1),
    ([#"{"seq":0,"t_ns":0,"op":"write","off":0,"len":99999999999,"pos":0}"#], .corrupt, 1),
    ([String(repeating: " ", count: 70_000)], .notATrace, 1),
  ]) func damageIsNamedWithItsLine(lines: [String], code: BlockSourceError.Code, line: Int) throws {
    let trace = try TemporaryTrace(lines)
    var source = try RecordedBlockSource.open(path: trace.path)
    var observer = RecordingBlockObserver()
    do throws(BlockSourceError) {
      _ = try source.deliver(limit: .max, until: nil, to: &observer)
      Issue.record("no error")
    } catch {
      #expect(error.code == code && error.place?.line == line && !error.remedy.isEmpty, "\(error)")
    }
  }

  @Test func aLineThatWasCutOffIsCalledTruncated() throws {
    let folder = try TemporaryFolder()
    try folder.write(Array((Self.lines[0] + "\n" + Self.lines[1].dropLast(3)).utf8), to: "disk.jsonl")
    try folder.write([], to: "disk.bin")
    var source = try RecordedBlockSource.open(path: folder.path + "/disk.jsonl")
    var observer = RecordingBlockObserver()
    do throws(BlockSourceError) {
      _ = try source.deliver(limit: .max, until: nil, to: &observer)
      Issue.record("no error")
    } catch {
      #expect(error.code == .truncated && error.place?.line == 2)
    }
    #expect(observer.entries.count == 1)
  }

  @Test func filesThatAreNotThereAreNamed() {
    #expect(throws: BlockSourceError.self) {
      _ = try RecordedBlockSource.open(path: "/nowhere/x.jsonl").deliverNothing()
    }
    #expect(throws: BlockSourceError.self) {
      _ = try RecordedBlockSource.open(path: "/nowhere/x.pcap").deliverNothing()
    }
    #expect(throws: IntegrityError.self) { try FileDiskReader(path: "/nowhere/x.img") }
  }
}

extension RecordedBlockSource {
  /// Uses up a source, which cannot be copied into an expectation.
  consuming func deliverNothing() -> Bool { true }
}

@Suite struct ImageOverlayTests {
  @Test func readsShowTheBaseUnderWhatWasWritten() throws {
    let overlay = ImageOverlay(MemoryDisk([UInt8](repeating: 7, count: 10_000)))
    func apply(_ operation: BlockRequest.Operation, _ offset: UInt64, _ length: UInt64, _ data: [UInt8] = []) throws {
      let request = BlockRequest(
        sequence: 0, timestamp: .zero, operation: operation, offset: offset, length: length)
      try data.withRawSpan { span throws(IntegrityError) in try overlay.apply(request, data: span) }
    }
    try apply(.write, 4094, 4, [1, 2, 3, 4])
    try apply(.writeZeroes, 9_990, 100)
    try apply(.discard, 0, 2)
    try apply(.write, 20_000, 4, [1, 2, 3, 4])
    var buffer = [UInt8](repeating: 0, count: 10_000)
    try overlay.read(at: 0, into: &buffer)
    var expected = [UInt8](repeating: 7, count: 10_000)
    expected.replaceSubrange(4094..<4098, with: [1, 2, 3, 4])
    expected.replaceSubrange(9_990..<10_000, with: [UInt8](repeating: 0, count: 10))
    expected.replaceSubrange(0..<2, with: [0, 0])
    #expect(buffer == expected)
    #expect(throws: IntegrityError.self) { try overlay.read(at: 1, into: &buffer) }
  }

  @Test func memoryIsBoundedAndTheObserverIsTold() throws {
    let overlay = ImageOverlay(MemoryDisk([UInt8](repeating: 0, count: 100_000)), memoryLimit: 8192)
    var disk = OverlaidDisk(RecordingBlockObserver(denying: [1]), overlay: overlay)
    for sequence in UInt64(0)..<5 {
      let request = BlockRequest(
        sequence: sequence, timestamp: .zero, operation: .write, offset: sequence * 4096, length: 1)
      _ = [9].withRawSpan { disk.observe(request, data: $0) }
    }
    #expect(disk.failure?.code == .tooLarge && disk.observer.gaps.count == 1 && disk.observer.entries.count == 5)
    var buffer = [UInt8](repeating: 0, count: 1)
    try overlay.read(at: 4096, into: &buffer)
    #expect(buffer == [0], "a denied write does not reach the disk")
  }
}
