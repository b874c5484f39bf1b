/// One automaton: the life of the detector of one incarnation.
public struct LifecycleAutomaton: Sendable, Hashable {
  /// A transition that was taken.
  public struct Step: Hashable, Sendable {
    public var time: Timestamp
    public var from: LifecycleState
    public var event: LifecycleEvent
    public var to: LifecycleState
  }

  public private(set) var state: LifecycleState = .start
  /// When the state was entered; transitions from a state to itself do not count.
  public private(set) var since: Timestamp
  /// The last transitions, oldest first, at most `historyCapacity`.
  public private(set) var history: [Step] = []
  /// How many older ones were forgotten.
  public private(set) var historyDropped: UInt64 = 0
  /// Events that did not fit the state they came in.
  public private(set) var unexpectedCount: UInt64 = 0
  /// How often it began at Start: 1, and one more each time the domain was present after all.
  public private(set) var lives: UInt64 = 1
  public let historyCapacity: Int

  /// `time`: when the incarnation was first heard of.
  public init(at time: Timestamp, historyCapacity: Int = 64) {
    since = time
    self.historyCapacity = max(0, historyCapacity)
  }

  /// Takes the transition that the table has for `event`, and says which it was.
  public mutating func handle(_ event: LifecycleEvent, at time: Timestamp) -> LifecycleReport.Kind {
    let entry = LifecycleTable.entry(state, event)
    guard entry.origin != .unexpected else {
      unexpectedCount += 1
      return .unexpected(state: state, event: event)
    }
    let from = state
    state = entry.target
    if from != state { since = time }
    history.append(Step(time: time, from: from, event: event, to: state))
    if history.count > historyCapacity {
      history.removeFirst()
      historyDropped += 1
    }
    return .transition(from: from, event: event, to: state)
  }

  /// Begins at Start again: the domain of an ended incarnation is present after all (a failed migration). The history goes on.
  mutating func beginAnew(at time: Timestamp) {
    state = .start
    since = time
    lives += 1
  }
}
