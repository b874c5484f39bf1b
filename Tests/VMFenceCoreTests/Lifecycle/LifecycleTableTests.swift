import Foundation
import Testing
import VMFenceCore

@Suite("The lifecycle table")
struct LifecycleTableTests {
  /// Architecture §4, written down once more by hand: upper case is the paper's, lower case ours, a dot unexpected.
  /// Rows Start, q1 … q5, End; columns e1 … e8; S 1 2 3 4 5 E are the states.
  static let expected: [[Character]] = [
    "A b . . . . . E",
    ". B a a e e . E",
    ". b C b D d a E",
    ". c c B d D a E",
    ". . . b . . F E",
    ". . . . . . . E",
    ". . . . . . . E",
  ].map { $0.filter { $0 != " " }.map { $0 } }

  static func decode(_ cell: Character, in state: LifecycleState) -> (LifecycleState, LifecycleTable.Origin) {
    switch cell {
    case "A": (.unguarded, .paper)
    case "B": (.inspecting, .paper)
    case "C": (.suspended, .paper)
    case "D": (.orphaned, .paper)
    case "F": (.ended, .paper)
    case "E": (.end, .paper)
    case "a": (.unguarded, .completed)
    case "b": (.inspecting, .completed)
    case "c": (.suspended, .completed)
    case "d": (.orphaned, .completed)
    case "e": (.ended, .completed)
    default: (state, .unexpected)
    }
  }

  @Test("has an entry for every pair, as the architecture says")
  func everyPair() {
    #expect(LifecycleState.allCases.count == 7 && LifecycleEvent.allCases.count == 8)
    for (state, row) in zip(LifecycleState.allCases, Self.expected) {
      #expect(row.count == 8)
      for (event, cell) in zip(LifecycleEvent.allCases, row) {
        let (target, origin) = Self.decode(cell, in: state)
        let entry = LifecycleTable.entry(state, event)
        #expect(entry.target == target && entry.origin == origin, "\(state) × \(event)")
      }
    }
  }

  @Test("drives the automaton for every pair, and counts what was unexpected")
  func automatonWalksAllPairs() {
    /// The shortest way to each state.
    let ways: [LifecycleState: [LifecycleEvent]] = [
      .start: [], .unguarded: [.created], .inspecting: [.configured], .suspended: [.configured, .halted],
      .orphaned: [.configured, .goneWhileInspecting], .ended: [.created, .goneWhileInspecting],
      .end: [.platformShutdown],
    ]
    for state in LifecycleState.allCases {
      for event in LifecycleEvent.allCases {
        var automaton = LifecycleAutomaton(at: .zero)
        for step in ways[state] ?? [] { _ = automaton.handle(step, at: .zero) }
        #expect(automaton.state == state)
        let steps = automaton.history.count
        let entry = LifecycleTable.entry(state, event)
        let kind = automaton.handle(event, at: Timestamp(seconds: 1))
        #expect(automaton.state == entry.target)
        if entry.origin == .unexpected {
          #expect(kind == .unexpected(state: state, event: event))
          #expect(automaton.unexpectedCount == 1 && automaton.history.count == steps)
        } else {
          #expect(kind == .transition(from: state, event: event, to: entry.target))
          #expect(automaton.unexpectedCount == 0 && automaton.history.count == steps + 1)
        }
        #expect(automaton.since == (entry.target == state ? .zero : Timestamp(seconds: 1)))
      }
    }
  }

  @Test("remembers the last transitions and counts those it forgot")
  func boundedHistory() {
    var automaton = LifecycleAutomaton(at: .zero, historyCapacity: 3)
    _ = automaton.handle(.configured, at: .zero)
    for second in 1...10 as ClosedRange<Int64> {
      _ = automaton.handle(second % 2 == 1 ? .halted : .running, at: Timestamp(seconds: second))
    }
    #expect(automaton.history.map(\.time) == [8, 9, 10].map { Timestamp(seconds: $0) })
    #expect(automaton.history.last?.event == .running)
    #expect(automaton.historyDropped == 8)
  }

  @Test("is drawn in the documentation as it is in the code", arguments: LifecycleTable.Format.allCases)
  func documentation(format: LifecycleTable.Format) throws {
    let root = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../..")
    let text = try String(contentsOf: root.appending(path: "Docs/Lifecycle.md"), encoding: .utf8)
    let fenced = "<!-- begin \(format.rawValue) -->\n"
    let begin = try #require(text.range(of: fenced)?.upperBound)
    let end = try #require(text.range(of: "<!-- end \(format.rawValue) -->")?.lowerBound)
    var drawn = String(text[begin..<end])
    if format != .table {
      drawn = String(drawn.dropFirst("```\(format.rawValue)\n".count).dropLast("```\n".count))
    }
    #expect(
      drawn == LifecycleTable.rendered(as: format),
      "put the output of `vmfence-ref dfa --format \(format.rawValue)` into Docs/Lifecycle.md")
  }
}
