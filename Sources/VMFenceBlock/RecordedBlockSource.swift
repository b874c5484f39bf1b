public import VMFenceCore

/// The requests to one virtual disk, from a recording: `NAME.jsonl` has a line for each request, `NAME.bin` the data of
/// writes.
///
/// A line is a JSON object: `seq` (rises by one from line to line), `t_ns` (nanoseconds since the recording began),
/// `op` (`read`, `write`, `flush`, `trim`, `zero`), `off` and `len` (bytes), `fua`, and for a write `pos`, where its
/// data begins in the `.bin` file. Lines with `op` `mark` carry the author's notes and are passed over. A jump in
/// `seq` is a gap, and told to the observer.
///
/// Requests are numbered anew from 0, without the marks. Used by one thread at a time.
public struct RecordedBlockSource: BlockSource, ~Copyable {
  /// In bytes.
  public static let lineLimit = 64 << 10
  /// In bytes; what one write may carry.
  public static let writeLimit = 64 << 20

  private let trace: ReadOnlyFile
  private let data: ReadOnlyFile
  private let path: String
  private let start: Timestamp
  private var chunk = [UInt8](repeating: 0, count: 64 << 10)
  private var chunkRange = 0..<0
  private var chunkEnd: UInt64 = 0
  private var line = 0
  private var lastSequence: UInt64?
  private var delivered: UInt64 = 0
  @usableFromInline var buffer: [UInt8] = []
  @usableFromInline var upcoming: Step?

  /// What comes next in the recording.
  @usableFromInline
  struct Step {
    @usableFromInline var request: BlockRequest
    @usableFromInline var position: UInt64
    @usableFromInline var line: Int
    /// Lines that are missing before this one.
    @usableFromInline var missing: UInt64
  }

  /// - `path`: of the `.jsonl` file; the data are beside it, with `.bin` in its place.
  /// - `start`: what the recording's time 0 is.
  /// - Throws: `inputOutput` when one of the files cannot be opened, `notATrace` when the name does not end in
  ///   `.jsonl`.
  public static func open(path: String, startingAt start: Timestamp = .zero) throws(BlockSourceError) -> Self {
    guard path.hasSuffix(".jsonl") else {
      throw BlockSourceError(
        .notATrace, "a recording of block requests is a file NAME.jsonl with NAME.bin beside it",
        at: SourcePlace(file: path), remedy: "give the path of the .jsonl file")
    }
    let dataPath = String(path.dropLast(6)) + ".bin"
    return Self(path: path, trace: try openFile(path), data: try openFile(dataPath), start: start)
  }

  private init(path: String, trace: ReadOnlyFile, data: ReadOnlyFile, start: Timestamp) {
    self.path = path
    self.trace = trace
    self.data = data
    self.start = start
  }

  private static func openFile(_ path: String) throws(BlockSourceError) -> ReadOnlyFile {
    do {
      return try ReadOnlyFile(path: path)
    } catch {
      throw BlockSourceError(
        .inputOutput, "cannot open the recording: \(error.text)", at: SourcePlace(file: path),
        remedy: "check the path and who may read it")
    }
  }

  @inlinable
  public mutating func deliver<Observer: BlockObserver & ~Copyable>(
    limit: Int, until deadline: Timestamp?, to observer: inout Observer
  ) throws(BlockSourceError) -> BlockOutcome {
    var outcome = BlockOutcome(requests: 0, denied: 0, isAtEnd: false)
    while outcome.requests < limit {
      guard let step = try peek() else {
        outcome.isAtEnd = true
        return outcome
      }
      if let deadline, step.request.timestamp > deadline { return outcome }
      let count = try load(step)
      if step.missing > 0 {
        observer.observeGap(at: step.request.timestamp, reason: "\(step.missing) lines are missing in the recording")
        upcoming?.missing = 0
      }
      let verdict = buffer.withRawSpan { observer.observe(step.request, data: $0.extracting(0..<count)) }
      guard verdict != .hold else {
        outcome.isHeld = true
        return outcome
      }
      upcoming = nil
      outcome.requests += 1
      if verdict == .deny { outcome.denied += 1 }
    }
    return outcome
  }

  /// The next request, without passing over it; nil at the end.
  @usableFromInline
  mutating func peek() throws(BlockSourceError) -> Step? {
    while upcoming == nil {
      guard let (text, isComplete) = try nextLine() else { return nil }
      if text.isEmpty { continue }
      let parsed: TraceLine
      do {
        parsed = try TraceLineParser.parse(text)
      } catch {
        throw failure(
          isComplete ? .corrupt : .truncated,
          (isComplete ? "" : "the recording ends within a line: ") + error.message, column: error.column + 1)
      }
      upcoming = try accept(parsed)
    }
    return upcoming
  }

  private mutating func accept(_ parsed: TraceLine) throws(BlockSourceError) -> Step? {
    var missing: UInt64 = 0
    if let last = lastSequence {
      guard parsed.sequence > last else {
        throw failure(.corrupt, "\"seq\" is \(parsed.sequence) after \(last): it must rise")
      }
      missing = parsed.sequence - last - 1
    }
    pendingMissing = pendingMissing &+ missing
    lastSequence = parsed.sequence
    guard case .request(let request) = parsed else { return nil }
    defer {
      delivered += 1
      pendingMissing = 0
    }
    let operation: BlockRequest.Operation =
      switch request.operation {
      case .read: .read
      case .write: .write
      case .flush: .flush
      case .trim: .discard
      case .zero: .writeZeroes
      }
    return Step(
      request: BlockRequest(
        sequence: delivered, timestamp: start + .nanoseconds(request.time), operation: operation,
        offset: request.offset, length: request.length, isForcedUnitAccess: request.isForcedUnitAccess),
      position: request.position, line: line, missing: pendingMissing)
  }

  /// Lines missed before a mark, to be told before the next request.
  private var pendingMissing: UInt64 = 0

  /// Reads the data of a write to the beginning of `buffer`.
  ///
  /// - Returns: how many bytes; 0 for everything but a write.
  @usableFromInline
  mutating func load(_ step: Step) throws(BlockSourceError) -> Int {
    guard step.request.operation == .write else { return 0 }
    guard step.request.length <= UInt64(Self.writeLimit) else {
      throw failure(
        .corrupt, "a write of \(step.request.length) bytes; at most \(Self.writeLimit) are taken", at: step.line)
    }
    let count = Int(step.request.length)
    guard step.position <= data.byteCount, UInt64(count) <= data.byteCount - step.position else {
      throw failure(
        .truncated,
        "its data, \(count) bytes from \(step.position) on, are not in the .bin file of \(data.byteCount) bytes",
        at: step.line)
    }
    if buffer.count < count { buffer = [UInt8](repeating: 0, count: count) }
    do throws(SystemFailure) {
      guard try data.read(at: step.position, count: count, into: &buffer) == count else {
        throw SystemFailure(text: "the file became shorter")
      }
    } catch {
      throw failure(.inputOutput, "cannot read its data: \(error.text)", at: step.line)
    }
    return count
  }

  /// The next line without its end, and whether it had one; nil at the end of the file.
  private mutating func nextLine() throws(BlockSourceError) -> (text: [UInt8], isComplete: Bool)? {
    var text: [UInt8] = []
    line += 1
    while true {
      if chunkRange.isEmpty {
        let count: Int
        do {
          count = try trace.read(at: chunkEnd, count: chunk.count, into: &chunk)
        } catch {
          throw failure(.inputOutput, "cannot read the recording: \(error.text)")
        }
        guard count > 0 else { return text.isEmpty ? nil : (text, false) }
        chunkEnd += UInt64(count)
        chunkRange = 0..<count
      }
      let end = chunk[chunkRange].firstIndex(of: 0x0A) ?? chunkRange.upperBound
      guard text.count + end - chunkRange.lowerBound <= Self.lineLimit else {
        throw failure(.notATrace, "a line of more than \(Self.lineLimit) bytes")
      }
      text.append(contentsOf: chunk[chunkRange.lowerBound..<end])
      if end < chunkRange.upperBound {
        chunkRange = end + 1..<chunkRange.upperBound
        return (text, true)
      }
      chunkRange = 0..<0
    }
  }

  private func failure(
    _ code: BlockSourceError.Code, _ message: String, at line: Int? = nil, column: Int = 0
  ) -> BlockSourceError {
    BlockSourceError(
      code, message, at: SourcePlace(file: path, line: line ?? self.line, column: column),
      remedy: "record the stream again; requests before this line were delivered")
  }
}
