public import VMFenceCore

/// A block path that does what a test wrote down: requests, gaps, and an error at a chosen place.
public struct ScriptedBlockSource: BlockSource, ~Copyable {
  public enum Step: Sendable {
    case request(BlockRequest, data: [UInt8] = [])
    case gap(at: Timestamp, reason: String)
    case failure(BlockSourceError)
  }

  private var steps: [Step]
  private var position = 0

  public init(_ steps: [Step]) { self.steps = steps }

  public mutating func deliver<Observer: BlockObserver & ~Copyable>(
    limit: Int, until deadline: Timestamp?, to observer: inout Observer
  ) throws(BlockSourceError) -> BlockOutcome {
    var outcome = BlockOutcome(requests: 0, denied: 0, isAtEnd: false)
    while outcome.requests < limit {
      guard position < steps.count else {
        outcome.isAtEnd = true
        return outcome
      }
      switch steps[position] {
      case .request(let request, let data):
        if let deadline, request.timestamp > deadline { return outcome }
        let verdict = data.withRawSpan { observer.observe(request, data: $0) }
        guard verdict != .hold else {
          outcome.isHeld = true
          return outcome
        }
        outcome.requests += 1
        if verdict == .deny { outcome.denied += 1 }
      case .gap(let time, let reason):
        if let deadline, time > deadline { return outcome }
        observer.observeGap(at: time, reason: reason)
      case .failure(let error):
        throw error
      }
      position += 1
    }
    return outcome
  }
}

/// An observer that writes down what it is shown.
public struct RecordingBlockObserver: BlockObserver, ~Copyable {
  public struct Entry: Hashable, Sendable {
    public var request: BlockRequest
    public var data: [UInt8]
  }

  public private(set) var entries: [Entry] = []
  public private(set) var gaps: [String] = []
  /// The sequence numbers of the requests it denies.
  public var denied: Set<UInt64>
  /// The sequence numbers of the requests it holds when it is shown them first; it passes them the second time.
  public var held: Set<UInt64>

  public init(denying denied: Set<UInt64> = [], holding held: Set<UInt64> = []) {
    self.denied = denied
    self.held = held
  }

  public mutating func observe(_ request: BlockRequest, data: RawSpan) -> BlockVerdict {
    entries.append(Entry(request: request, data: data.copiedBytes()))
    if held.remove(request.sequence) != nil { return .hold }
    return denied.contains(request.sequence) ? .deny : .allow
  }

  public mutating func observeGap(at time: Timestamp, reason: String) { gaps.append(reason) }
}
