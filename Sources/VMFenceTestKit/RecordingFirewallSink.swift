public import VMFenceCore
internal import Synchronization

/// A firewall that enforces nothing and remembers everything: for replay, dry runs and tests. It keeps the contract of
/// `FirewallSink` as a kernel's filter does, and can be told to fail as one. Safe to use from any thread.
public final class RecordingFirewallSink: FirewallSink {
  /// One call that changed the firewall.
  public enum Call: Hashable, Sendable {
    case applied(FirewallChange, generation: UInt64)
    case replaced([FirewallMeasure], at: Timestamp, generation: UInt64)
  }

  fileprivate struct Contents {
    var generation: UInt64 = 0
    var measures: [FirewallMeasure.Key: Entry] = [:]
    /// The number of the next entry: measures are listed in the order in which their keys came.
    var nextOrder: UInt64 = 0
    var calls: [Call] = []
    var droppedCalls: UInt64 = 0
    var failures: [FirewallError] = []
    var acknowledged: FirewallAcknowledgement?
    var lastChange = FirewallAcknowledgement(generation: 0, time: .zero)
    var listeners: [UInt64: AsyncStream<FirewallAcknowledgement>.Continuation] = [:]
    var nextListener: UInt64 = 0
  }

  fileprivate struct Entry {
    var order: UInt64
    var measure: FirewallMeasure
  }

  /// How many measures fit. More are refused with `full`.
  public let capacity: Int
  /// How many calls are remembered. More are counted.
  public let callCapacity: Int
  /// Whether a change is acknowledged when it is made, or only by `acknowledge(at:)`.
  public let acknowledgesAtOnce: Bool
  private let contents = Mutex(Contents())

  public init(capacity: Int = 65_536, callCapacity: Int = 65_536, acknowledgesAtOnce: Bool = true) {
    self.capacity = capacity
    self.callCapacity = callCapacity
    self.acknowledgesAtOnce = acknowledgesAtOnce
  }

  // MARK: FirewallSink

  /// What is removed goes first, then what is added comes: a key in both stands afterwards.
  public func apply(_ change: FirewallChange) async throws(FirewallError) -> UInt64 {
    try locked { contents throws(FirewallError) in
      try contents.failIfTold()
      guard change.from == contents.generation else {
        throw FirewallError(
          .conflict, "a change from generation \(change.from), and the firewall is at \(contents.generation)",
          remedy: "read back what is in force, and decide again")
      }
      var measures = contents.measures
      for key in change.remove { measures[key] = nil }
      try contents.commit(&measures, adding: change.add, at: change.time, capacity: capacity)
      contents.remember(.applied(change, generation: contents.generation), capacity: callCapacity)
      if acknowledgesAtOnce { contents.acknowledge(contents.lastChange) }
      return contents.generation
    }
  }

  public func replace(with measures: [FirewallMeasure], at time: Timestamp) async throws(FirewallError) -> UInt64 {
    try locked { contents throws(FirewallError) in
      try contents.failIfTold()
      var none: [FirewallMeasure.Key: Entry] = [:]
      try contents.commit(&none, adding: measures, at: time, capacity: capacity)
      contents.remember(.replaced(measures, at: time, generation: contents.generation), capacity: callCapacity)
      if acknowledgesAtOnce { contents.acknowledge(contents.lastChange) }
      return contents.generation
    }
  }

  /// The measures in force at `time`, in the order in which their keys came. What has expired by then is not among them;
  /// expiry does not raise the generation.
  public func readBack(at time: Timestamp) async throws(FirewallError) -> FirewallState {
    try locked { contents throws(FirewallError) in
      try contents.failIfTold()
      let standing = contents.measures.values.filter { !$0.measure.isExpired(at: time) }
      return FirewallState(
        generation: contents.generation,
        measures: standing.sorted { $0.order < $1.order }.map(\.measure))
    }
  }

  /// Begins with the generation that was acknowledged last, if one was. Who reads too slowly gets the newest ones.
  public func acknowledgements() async -> AsyncStream<FirewallAcknowledgement> {
    let (stream, continuation) = AsyncStream.makeStream(
      of: FirewallAcknowledgement.self, bufferingPolicy: .bufferingNewest(64))
    let number = contents.withLock { contents in
      contents.nextListener += 1
      contents.listeners[contents.nextListener] = continuation
      if let acknowledged = contents.acknowledged { continuation.yield(acknowledged) }
      return contents.nextListener
    }
    continuation.onTermination = { [weak self] _ in
      self?.contents.withLock { $0.listeners[number] = nil }
    }
    return stream
  }

  // MARK: What a test does and sees

  /// Makes the next `count` calls fail with `error`.
  public func fail(next count: Int = 1, with error: FirewallError) {
    contents.withLock { $0.failures += Array(repeating: error, count: max(0, count)) }
  }

  /// Acknowledges the generation in force, for a sink that does not do so by itself.
  public func acknowledge(at time: Timestamp) {
    contents.withLock { contents in
      contents.acknowledge(FirewallAcknowledgement(generation: contents.generation, time: time))
    }
  }

  /// Takes a measure away behind everybody's back, as an administrator at the console would. No generation tells of it.
  public func tamper(removing key: FirewallMeasure.Key) {
    contents.withLock { $0.measures[key] = nil }
  }

  /// Puts a measure in behind everybody's back.
  public func tamper(adding measure: FirewallMeasure) {
    contents.withLock { contents in
      contents.nextOrder += 1
      contents.measures[measure.key] = Entry(order: contents.nextOrder, measure: measure)
    }
  }

  /// The successful calls that changed the firewall, in order.
  public var calls: [Call] { contents.withLock { $0.calls } }
  public var droppedCalls: UInt64 { contents.withLock { $0.droppedCalls } }
  public var generation: UInt64 { contents.withLock { $0.generation } }

  /// Ends all streams of acknowledgements, as when the place of enforcement is gone.
  public func close() {
    let listeners = contents.withLock { contents in
      defer { contents.listeners = [:] }
      return Array(contents.listeners.values)
    }
    for listener in listeners { listener.finish() }
  }

  deinit { close() }

  private func locked<Result: Sendable>(
    _ body: (inout Contents) throws(FirewallError) -> sending Result
  ) throws(FirewallError) -> Result {
    try contents.withLock { contents throws(FirewallError) in try body(&contents) }
  }
}

extension RecordingFirewallSink.Contents {
  fileprivate mutating func failIfTold() throws(FirewallError) {
    if !failures.isEmpty { throw failures.removeFirst() }
  }

  /// Makes `measures` with `added` what stands, or throws and changes nothing.
  fileprivate mutating func commit(
    _ measures: inout [FirewallMeasure.Key: RecordingFirewallSink.Entry], adding added: [FirewallMeasure],
    at time: Timestamp, capacity: Int
  ) throws(FirewallError) {
    var order = nextOrder
    for measure in added {
      if measures[measure.key] == nil { order += 1 }
      measures[measure.key] = RecordingFirewallSink.Entry(
        order: measures[measure.key]?.order ?? order, measure: measure)
    }
    if measures.count > capacity { measures = measures.filter { !$0.value.measure.isExpired(at: time) } }
    guard measures.count <= capacity else {
      throw FirewallError(
        .full, "\(measures.count) measures, and \(capacity) fit", remedy: "block networks instead of single addresses")
    }
    self.measures = measures
    nextOrder = order
    generation += 1
    lastChange = FirewallAcknowledgement(generation: generation, time: time)
  }

  fileprivate mutating func remember(_ call: RecordingFirewallSink.Call, capacity: Int) {
    if calls.count < capacity {
      calls.append(call)
    } else {
      droppedCalls += 1
    }
  }

  fileprivate mutating func acknowledge(_ acknowledgement: FirewallAcknowledgement) {
    acknowledged = acknowledgement
    for listener in listeners.values { listener.yield(acknowledgement) }
  }
}

extension FirewallMeasure {
  /// Whether it has run out at `time`. A measure holds up to its end, and not at it.
  fileprivate func isExpired(at time: Timestamp) -> Bool { expires.map { $0 <= time } ?? false }
}
