public import Testing
public import VMFenceCore

/// What every `PacketSource` must do, checked from outside. Call it inside a `@Test`:
///
///     @Test func isAPacketSource() throws {
///       try PacketSourceConformance(expected: frames).check { try MySource.open(…) }
///     }
///
/// The source must be one that ends (a file, a script, a live capture of traffic that is over) and gives the same frames each time it
/// is made: `make` is called several times.
public struct PacketSourceConformance: Sendable {
  /// One frame as it was delivered, copied.
  public struct Delivery: Hashable, Sendable {
    public var metadata: FrameMetadata
    public var bytes: [UInt8]
    public init(_ metadata: FrameMetadata, _ bytes: [UInt8]) {
      self.metadata = metadata
      self.bytes = bytes
    }
  }

  /// All that one source delivered, and how it ended.
  public struct Run: Hashable, Sendable {
    public var frames: [Delivery] = []
    /// nil when the source ended well.
    public var failure: PacketSourceError?
    public var counters = CaptureCounters()
  }

  /// What the source must deliver; nil to check only what holds for every source.
  public var expected: [Delivery]?
  /// The code of the error with which the source must end; nil when it must end well.
  public var expectedFailure: PacketSourceError.Code?

  /// False for a live source, whose frames have other times in each run.
  public var comparesTimestamps: Bool

  public init(
    expected: [Delivery]? = nil, expectedFailure: PacketSourceError.Code? = nil, comparesTimestamps: Bool = true
  ) {
    self.expected = expected
    self.expectedFailure = expectedFailure
    self.comparesTimestamps = comparesTimestamps
  }

  /// A source that never ends is given up after this many batches that bring nothing.
  static let emptyBatchesAtMost = 1_000

  /// Checks: the frames and their order; that the limit of a batch is kept, whatever it is, and changes nothing about what is
  /// delivered; that the number of calls is the number reported; the counters; that an end, and an error, stay.
  ///
  /// - Returns: what was delivered, for further expectations of the caller's own.
  @discardableResult
  public func check<Source: PacketSource & ~Copyable>(
    sourceLocation: SourceLocation = #_sourceLocation, _ make: () throws -> Source
  ) rethrows -> Run {
    let whole = drain(try make(), limit: 1_024, sourceLocation)
    checkFrames(whole, sourceLocation)
    for limit in [1, 3, 64] {
      let again = drain(try make(), limit: limit, sourceLocation)
      #expect(
        again.frames == whole.frames, "batches of \(limit) deliver other frames than batches of 1,024",
        sourceLocation: sourceLocation)
      #expect(
        again.failure == whole.failure, "batches of \(limit) end otherwise", sourceLocation: sourceLocation)
      #expect(
        again.counters == whole.counters, "batches of \(limit) count otherwise", sourceLocation: sourceLocation)
    }
    checkNothingAskedNothingGiven(try make(), sourceLocation)
    return whole
  }

  // MARK: One run

  private func drain<Source: PacketSource & ~Copyable>(
    _ source: consuming Source, limit: Int, _ location: SourceLocation
  ) -> Run {
    var run = Run()
    var isAtEnd = false
    var emptyBatches = 0
    while !isAtEnd && run.failure == nil && emptyBatches < Self.emptyBatchesAtMost {
      let before = run.frames.count
      do throws(PacketSourceError) {
        let outcome = try source.nextBatch(limit: limit, patience: .milliseconds(50)) { metadata, bytes in
          run.frames.append(Delivery(metadata, bytes.copiedBytes()))
          if !comparesTimestamps { run.frames[run.frames.count - 1].metadata.timestamp = .zero }
        }
        let calls = run.frames.count - before
        #expect(outcome.frames == calls, "the batch reports another number than it delivered", sourceLocation: location)
        #expect(calls <= limit, "a batch exceeds its limit of \(limit)", sourceLocation: location)
        isAtEnd = outcome.isAtEnd
        emptyBatches = calls == 0 ? emptyBatches + 1 : 0
      } catch {
        #expect(run.frames.count - before <= limit, "a batch exceeds its limit", sourceLocation: location)
        run.failure = error
      }
    }
    #expect(
      isAtEnd || run.failure != nil, "the source never ended: \(emptyBatches) empty batches", sourceLocation: location)
    run.counters = source.counters
    checkItStays(&source, run, location)
    return run
  }

  /// After the end comes nothing, and the end is said again; after an error comes the same error.
  private func checkItStays<Source: PacketSource & ~Copyable>(
    _ source: inout Source, _ run: Run, _ location: SourceLocation
  ) {
    for _ in 0..<2 {
      do throws(PacketSourceError) {
        let outcome = try source.nextBatch(limit: 8, patience: .zero) { _, _ in
          Issue.record("a frame after the end", sourceLocation: location)
        }
        #expect(outcome == BatchOutcome(frames: 0, isAtEnd: true), "the end does not stay", sourceLocation: location)
        #expect(run.failure == nil, "the error does not stay", sourceLocation: location)
      } catch {
        #expect(error == run.failure, "another error than the first", sourceLocation: location)
      }
    }
    #expect(source.counters == run.counters, "the counters move after the end", sourceLocation: location)
  }

  private func checkNothingAskedNothingGiven<Source: PacketSource & ~Copyable>(
    _ source: consuming Source, _ location: SourceLocation
  ) {
    do throws(PacketSourceError) {
      let outcome = try source.nextBatch(limit: 0, patience: .zero) { _, _ in
        Issue.record("a frame although none was asked for", sourceLocation: location)
      }
      #expect(outcome.frames == 0, sourceLocation: location)
    } catch {
      Issue.record("a batch of none fails: \(error)", sourceLocation: location)
    }
    #expect(source.counters.received == 0, "frames counted that were not delivered", sourceLocation: location)
  }

  // MARK: What was delivered

  private func checkFrames(_ run: Run, _ location: SourceLocation) {
    if let expected {
      #expect(run.frames.count == expected.count, "another number of frames", sourceLocation: location)
      for (index, (got, wanted)) in zip(run.frames, expected).enumerated() where got != wanted {
        #expect(got == wanted, "frame \(index) differs", sourceLocation: location)
        break
      }
    }
    #expect(run.failure?.code == expectedFailure, "another end", sourceLocation: location)
    if let failure = run.failure {
      #expect(!failure.message.isEmpty && !failure.remedy.isEmpty, "an error without remedy", sourceLocation: location)
    }
    let bytes = run.frames.reduce(0) { $0 + $1.bytes.count }
    let cut = run.frames.count { Int($0.metadata.originalLength) > $0.bytes.count }
    #expect(run.counters.received == UInt64(run.frames.count), "received frames miscounted", sourceLocation: location)
    #expect(run.counters.receivedBytes == UInt64(bytes), "received bytes miscounted", sourceLocation: location)
    #expect(run.counters.truncated == UInt64(cut), "truncated frames miscounted", sourceLocation: location)
    for (index, frame) in run.frames.enumerated() where Int(frame.metadata.originalLength) < frame.bytes.count {
      Issue.record("frame \(index) has more bytes than were on the wire", sourceLocation: location)
    }
  }
}
