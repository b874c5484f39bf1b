/// δ: where each event leads from each state. Total over Q × Σ, and the only place that says so: the automaton runs on it, and
/// the documentation is drawn from it.
public enum LifecycleTable {
  /// Whose idea an entry is.
  public enum Origin: String, Hashable, Sendable, CaseIterable {
    /// The VMFence paper's.
    case paper
    /// Ours: real hosts do it, and the paper does not say.
    case completed
    /// Nobody's: the event changes nothing in this state, and is counted and reported.
    case unexpected
  }

  public struct Entry: Hashable, Sendable {
    public var target: LifecycleState
    public var origin: Origin
  }

  /// The transitions that are expected. Every other pair leaves the state as it is.
  private static let expected: [(LifecycleState, LifecycleEvent, LifecycleState, Origin)] = [
    (.start, .created, .unguarded, .paper),
    // Created with rules already configured.
    (.start, .configured, .inspecting, .completed),

    (.unguarded, .configured, .inspecting, .paper),
    // Nothing to stop or resume yet; the run state is remembered as a level.
    (.unguarded, .halted, .unguarded, .completed),
    (.unguarded, .running, .unguarded, .completed),
    // Gone before any detector.
    (.unguarded, .goneWhileInspecting, .ended, .completed),
    (.unguarded, .goneWhileSuspended, .ended, .completed),

    (.inspecting, .halted, .suspended, .paper),
    (.inspecting, .goneWhileInspecting, .orphaned, .paper),
    // Rules swapped without a restart.
    (.inspecting, .configured, .inspecting, .completed),
    (.inspecting, .running, .inspecting, .completed),
    // A resumption crossed with the end.
    (.inspecting, .goneWhileSuspended, .orphaned, .completed),
    // The detector died: unguarded until it is restarted.
    (.inspecting, .detectorKilled, .unguarded, .completed),

    (.suspended, .running, .inspecting, .paper),
    (.suspended, .goneWhileSuspended, .orphaned, .paper),
    (.suspended, .configured, .suspended, .completed),
    (.suspended, .halted, .suspended, .completed),
    // A packet or a pause crossed with the end.
    (.suspended, .goneWhileInspecting, .orphaned, .completed),
    (.suspended, .detectorKilled, .unguarded, .completed),

    (.orphaned, .detectorKilled, .ended, .paper),
    // A failed migration resumed at the source before the detector was killed.
    (.orphaned, .running, .inspecting, .completed),
  ]

  private static let grid: [Entry] = {
    var grid = LifecycleState.allCases.flatMap { state in
      LifecycleEvent.allCases.map { event in
        // Any × e8 → End; else, until something better is said below, the state stays.
        event == .platformShutdown ? Entry(target: .end, origin: .paper) : Entry(target: state, origin: .unexpected)
      }
    }
    for (state, event, target, origin) in expected { grid[index(state, event)] = Entry(target: target, origin: origin) }
    return grid
  }()

  /// What `event` does in `state`.
  public static func entry(_ state: LifecycleState, _ event: LifecycleEvent) -> Entry { grid[index(state, event)] }

  private static func index(_ state: LifecycleState, _ event: LifecycleEvent) -> Int {
    state.position * LifecycleEvent.allCases.count + event.position
  }
}

extension LifecycleState {
  /// The paper's name: Start, q1 … q5, End.
  public var paperName: String {
    switch self {
    case .start: "Start"
    case .unguarded: "q1"
    case .inspecting: "q2"
    case .suspended: "q3"
    case .orphaned: "q4"
    case .ended: "q5"
    case .end: "End"
    }
  }

  /// A state that the main process has to leave by itself.
  public var isUnstable: Bool { self == .unguarded || self == .orphaned }

  /// The place in `allCases`.
  var position: Int {
    switch self {
    case .start: 0
    case .unguarded: 1
    case .inspecting: 2
    case .suspended: 3
    case .orphaned: 4
    case .ended: 5
    case .end: 6
    }
  }
}

extension LifecycleEvent {
  /// The paper's name: e1 … e8.
  public var paperName: String { "e\(position + 1)" }

  /// The place in `allCases`.
  var position: Int {
    switch self {
    case .created: 0
    case .configured: 1
    case .halted: 2
    case .running: 3
    case .goneWhileInspecting: 4
    case .goneWhileSuspended: 5
    case .detectorKilled: 6
    case .platformShutdown: 7
    }
  }
}
