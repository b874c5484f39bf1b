public import Testing
public import VMFenceCore
internal import VMFenceTestKit

/// What every `BlockSource` must do, checked from outside. Call it inside a `@Test`:
///
///     @Test func isABlockSource() throws {
///       try BlockSourceConformance(expectedRequests: 5).check { try MySource.open(…) }
///     }
///
/// The source must be one that ends and gives the same requests each time it is made: `make` is called several times.
public struct BlockSourceConformance: Sendable {
  /// How many requests the source must deliver; nil to check only what holds for every source.
  public var expectedRequests: Int?
  /// How many gaps it must tell of.
  public var expectedGaps: Int

  public init(expectedRequests: Int? = nil, expectedGaps: Int = 0) {
    self.expectedRequests = expectedRequests
    self.expectedGaps = expectedGaps
  }

  /// A source that never ends is given up after this many calls that bring nothing.
  static let emptyCallsAtMost = 1_000

  /// Checks: that numbers rise by one except at a gap that was told; that a write carries exactly its data and
  /// nothing else does; that the limit and the deadline are kept and change nothing about what is delivered; that
  /// denied requests are counted; that one which is held is shown again; that an end stays.
  public func check<Source: BlockSource & ~Copyable>(
    sourceLocation: SourceLocation = #_sourceLocation, _ make: () throws -> Source
  ) throws {
    let whole = try drain(try make(), limit: .max, sourceLocation)
    if let expectedRequests {
      #expect(whole.entries.count == expectedRequests, "requests delivered", sourceLocation: sourceLocation)
    }
    #expect(whole.gaps.count == expectedGaps, "gaps told", sourceLocation: sourceLocation)
    checkRequests(whole.entries, gaps: whole.gaps.count, sourceLocation)
    for limit in [1, 3] {
      let parts = try drain(try make(), limit: limit, sourceLocation)
      #expect(
        parts.entries == whole.entries && parts.gaps == whole.gaps, "a limit of \(limit) changes what is delivered",
        sourceLocation: sourceLocation)
    }
    try checkDeadline(try make(), whole.entries, sourceLocation)
    try checkDenials(try make(), whole.entries, sourceLocation)
    try checkHolding(try make(), whole.entries, sourceLocation)
  }

  private struct Run {
    var entries: [RecordingBlockObserver.Entry] = []
    var gaps: [String] = []
  }

  private func drain<Source: BlockSource & ~Copyable>(
    _ source: consuming Source, limit: Int, _ sourceLocation: SourceLocation
  ) throws -> Run {
    var observer = RecordingBlockObserver()
    let none = try source.deliver(limit: 0, until: nil, to: &observer)
    #expect(
      none.requests == 0 && observer.entries.isEmpty, "a limit of 0 delivers nothing", sourceLocation: sourceLocation)
    var empty = 0
    while empty < Self.emptyCallsAtMost {
      let before = observer.entries.count
      let outcome = try source.deliver(limit: limit, until: nil, to: &observer)
      #expect(
        outcome.requests == observer.entries.count - before && outcome.requests <= limit && outcome.denied == 0,
        "the outcome tells what was delivered", sourceLocation: sourceLocation)
      if outcome.isAtEnd { break }
      empty = outcome.requests == 0 ? empty + 1 : 0
    }
    #expect(empty < Self.emptyCallsAtMost, "the source does not end", sourceLocation: sourceLocation)
    let count = observer.entries.count
    let after = try source.deliver(limit: limit, until: nil, to: &observer)
    #expect(
      after.isAtEnd && after.requests == 0 && observer.entries.count == count, "the end stays the end",
      sourceLocation: sourceLocation)
    return Run(entries: observer.entries, gaps: observer.gaps)
  }

  private func checkRequests(
    _ entries: [RecordingBlockObserver.Entry], gaps: Int, _ sourceLocation: SourceLocation
  ) {
    var jumps = 0
    for (index, entry) in entries.enumerated() {
      let request = entry.request
      let expected = request.operation == .write ? request.length : 0
      #expect(
        UInt64(entry.data.count) == expected, "request \(request.sequence) carries other data than it says",
        sourceLocation: sourceLocation)
      guard index > 0 else { continue }
      let before = entries[index - 1].request.sequence
      #expect(request.sequence > before, "numbers rise", sourceLocation: sourceLocation)
      if request.sequence != before &+ 1 { jumps += 1 }
    }
    #expect(jumps <= gaps, "numbers jump without a gap being told", sourceLocation: sourceLocation)
  }

  private func checkDeadline<Source: BlockSource & ~Copyable>(
    _ source: consuming Source, _ whole: [RecordingBlockObserver.Entry], _ sourceLocation: SourceLocation
  ) throws {
    guard let middle = whole.dropFirst(whole.count / 2).first?.request.timestamp else { return }
    // Requests are in the order of the disk; what comes after the first that is too late waits with it.
    let expected = whole.prefix { $0.request.timestamp <= middle }
    var observer = RecordingBlockObserver()
    for _ in 0..<3 { _ = try source.deliver(limit: .max, until: middle, to: &observer) }
    #expect(observer.entries == Array(expected), "the deadline is not kept", sourceLocation: sourceLocation)
    _ = try source.deliver(limit: .max, until: nil, to: &observer)
    #expect(observer.entries == whole, "a deadline loses or repeats requests", sourceLocation: sourceLocation)
  }

  private func checkDenials<Source: BlockSource & ~Copyable>(
    _ source: consuming Source, _ whole: [RecordingBlockObserver.Entry], _ sourceLocation: SourceLocation
  ) throws {
    let denied = Set(whole.map(\.request.sequence).filter { $0 % 2 == 1 })
    var observer = RecordingBlockObserver(denying: denied)
    let outcome = try source.deliver(limit: .max, until: nil, to: &observer)
    #expect(
      outcome.denied == denied.count && observer.entries.count == whole.count, "denied requests are counted",
      sourceLocation: sourceLocation)
  }

  private func checkHolding<Source: BlockSource & ~Copyable>(
    _ source: consuming Source, _ whole: [RecordingBlockObserver.Entry], _ sourceLocation: SourceLocation
  ) throws {
    let held = Set(whole.map(\.request.sequence).filter { $0 % 3 == 1 })
    var observer = RecordingBlockObserver(holding: held)
    var (holds, calls, isAtEnd) = (0, 0, false)
    while !isAtEnd, calls < held.count + Self.emptyCallsAtMost {
      let outcome = try source.deliver(limit: .max, until: nil, to: &observer)
      if outcome.isHeld { holds += 1 }
      isAtEnd = outcome.isAtEnd
      calls += 1
    }
    let expected = whole.flatMap { held.contains($0.request.sequence) ? [$0, $0] : [$0] }
    #expect(
      isAtEnd && holds == held.count && observer.entries == expected,
      "a held request is shown again, and nothing before",
      sourceLocation: sourceLocation)
  }
}
