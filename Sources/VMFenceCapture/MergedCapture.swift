import VMFenceCore

/// Several capture files as one source, in the order of time: what a replay of several ports reads.
///
/// Of the frames that come next in each file, the one with the smallest timestamp is delivered; of frames with equal times, the one
/// whose file was added first. So the same files in the same order always give the same sequence. Within a file the order
/// is the file's own, even where its times go backwards.
///
/// A file that turns out to be damaged ends there; the frames of the others are still delivered, and then the error is thrown
/// (that of the file added first, if there are several). Looks at every file for each frame: meant for tens of files. Used by
/// one thread at a time.
public struct MergedCapture: ~Copyable, Sendable, PacketSource {
  private var files = CaptureFileList()
  /// Of each file, the time of its next frame; nil when none is left.
  private var next: [Timestamp?] = []
  private var failures: [PacketSourceError?] = []
  private var delivered = CaptureCounters()

  public init() {}

  /// Adds a file. All files are added before the first frame is asked for.
  public mutating func add(_ file: consuming CaptureFile) {
    files.append(file)
    next.append(nil)
    failures.append(nil)
    advance(files.count - 1)
  }

  /// What was handed over, and the losses and skipped records of all files.
  public var counters: CaptureCounters {
    var sum = delivered
    for index in 0..<files.count {
      let file = files.with(index) { $0.counters }
      sum.droppedByKernel &+= file.droppedByKernel
      sum.droppedByInterface &+= file.droppedByInterface
      sum.skipped &+= file.skipped
    }
    return sum
  }

  public mutating func nextBatch(
    limit: Int, patience: Duration = .zero, _ body: (FrameMetadata, RawSpan) -> Void
  ) throws(PacketSourceError) -> BatchOutcome {
    var frames = 0
    while frames < limit {
      guard let chosen = earliest() else {
        for case let failure? in failures { throw failure }
        return BatchOutcome(frames: frames, isAtEnd: true)
      }
      files.with(chosen) { file in
        let captured = UInt64(file.frameEnd - file.frameStart)
        delivered.received &+= 1
        delivered.receivedBytes &+= captured
        if UInt64(file.frame.originalLength) > captured { delivered.truncated &+= 1 }
        // SAFETY: UInt8 has no padding, so every byte of the buffer is initialised.
        body(file.frame, unsafe file.buffer.span.bytes.extracting(file.frameStart..<file.frameEnd))
      }
      frames += 1
      advance(chosen)
    }
    return BatchOutcome(frames: frames, isAtEnd: false)
  }

  private func earliest() -> Int? {
    var best: (index: Int, time: Timestamp)?
    for index in 0..<next.count {
      guard let time = next[index] else { continue }
      if best.map({ time < $0.time }) ?? true { best = (index, time) }
    }
    return best?.index
  }

  private mutating func advance(_ index: Int) {
    do throws(PacketSourceError) {
      next[index] = try files.with(index) { file throws(PacketSourceError) in
        try file.advance() ? file.frame.timestamp : nil
      }
    } catch {
      next[index] = nil
      failures[index] = error
    }
  }
}

/// A growing list of capture files, which an array cannot hold because they are not copyable. (A class around each would cost
/// reference counts for every frame.)
@safe
struct CaptureFileList: ~Copyable, @unchecked Sendable {
  private var storage: UnsafeMutableBufferPointer<CaptureFile>
  private(set) var count = 0

  // SAFETY: a fresh allocation, nothing of which is initialised, as `count` says.
  init() { unsafe storage = .allocate(capacity: 4) }

  deinit {
    // SAFETY: the first `count` elements are initialised, and nobody else has the storage.
    unsafe storage.extracting(0..<count).deinitialize()
    unsafe storage.deallocate()
  }

  mutating func append(_ file: consuming CaptureFile) {
    // SAFETY: the count of a buffer is a number beside it.
    if unsafe count == storage.count {
      // SAFETY: the initialised elements move; the old storage holds none afterwards.
      let larger = UnsafeMutableBufferPointer<CaptureFile>.allocate(capacity: 2 * count)
      _ = unsafe larger.moveInitialize(fromContentsOf: storage.extracting(0..<count))
      unsafe storage.deallocate()
      unsafe storage = larger
    }
    // SAFETY: element `count` lies inside the storage and is not initialised.
    unsafe storage.initializeElement(at: count, to: file)
    count += 1
  }

  /// Calls `body` with file `index`.
  func with<Result, Failure: Error>(
    _ index: Int, _ body: (inout CaptureFile) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    precondition(index >= 0 && index < count, "a file that is not there")
    // SAFETY: the element is initialised (checked above), and the list is used by one thread at a time.
    return try unsafe body(&storage[index])
  }
}
