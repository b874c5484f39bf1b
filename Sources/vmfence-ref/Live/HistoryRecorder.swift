#if Daemon
import Foundation
import Logging
import Synchronization
import VMFenceCore
import VMFenceStore

/// Keeps alerts and decisions in the history, by a bounded queue and a thread of its own, so that a slow or full disk holds nobody up. What does not fit
/// into the queue, which domains share as `EventRoom` has it, is skipped and counted: the history is for looking things up, other places get every event.
/// Safe to use from any thread.
final class HistoryRecorder: PromptEventSink {
  struct Limits: Sendable {
    /// Alerts and decisions that wait, of all domains together; one gets half of it.
    var alerts = 16_384
    var decisions = 131_072
    /// What is written in one transaction, and how long nothing more is written then: the rate that a flood is kept at.
    var batch = 1_024
    var pace = Duration.milliseconds(200)
    /// After a failure.
    var retry = Duration.seconds(1)
  }

  struct Counters: Sendable, Hashable {
    var recorded: UInt64 = 0
    var skipped: UInt64 = 0
    var waiting = 0
  }

  private struct Waiting {
    var alerts: ArraySlice<Event> = []
    var decisions: ArraySlice<Decision> = []

    var count: Int { alerts.count + decisions.count }
  }

  private struct State {
    /// What came since the thread took what is in hand: it takes more when that is written, so both are bounded.
    var fresh = Waiting()
    /// What `fresh` takes.
    var room: EventRoom
    /// How much the thread has in hand.
    var inHand = 0
    var counters = Counters()
    var problem: String?
    var figures = HistoryStore.Figures()
    var questions: [@Sendable (HistoryStore) -> Void] = []
    /// Batches that were written since there are questions.
    var rounds = 0
    var isClosing = false
  }

  private let store: HistoryStore
  private let encoder: EVEEncoder
  private let limits: Limits
  private let state: Mutex<State>
  private let news = Bell()
  private let end = Bell()

  init(_ store: HistoryStore, encoder: EVEEncoder, limits: Limits = Limits()) {
    self.store = store
    self.encoder = encoder
    self.limits = limits
    state = Mutex(State(room: EventRoom(traffic: limits.alerts, files: 0, others: limits.decisions)))
    let thread = Thread { [self] in
      ThreadPriority.stepBack()
      var waiting = Waiting()
      while turn(&waiting) {}
    }
    thread.name = "vmfence-history"
    thread.start()
  }

  /// Opens the history in the state directory; in memory when there is none, or when it cannot be opened.
  static func open(stateDirectory: String?, encoder: EVEEncoder, logger: Logger) throws -> HistoryRecorder {
    do throws(StateStoreError) {
      let (store, begunAnew) = try HistoryStore.open(path: stateDirectory.map { $0 + "/" + fileName })
      if let begunAnew { logger.warning("the history was begun anew: \(begunAnew)") }
      return HistoryRecorder(store, encoder: encoder)
    } catch {
      logger.error("\(error.message); alerts are remembered in memory only")
      return HistoryRecorder(try HistoryStore.open(path: nil).store, encoder: encoder)
    }
  }

  static let fileName = "history.db"

  func receive(_ event: Event) {
    let isFirst = state.withLock { state in
      let isFirst = state.fresh.count == 0
      switch event {
      case .alert: if state.room.enter(.traffic, of: event.incarnation) { state.fresh.alerts.append(event) }
      case .decision(let decision):
        if state.room.enter(.others, of: event.incarnation) { state.fresh.decisions.append(decision) }
      case .file, .lifecycle, .platform, .packet: return false
      }
      return isFirst
    }
    if isFirst { news.ring() }
  }

  /// What the decision log held at the start: the projection of it is made again.
  func project(_ decisions: [Decision]) {
    state.withLock { $0.fresh.decisions = decisions + $0.fresh.decisions }
    news.ring()
  }

  /// Answers from the store, with all that was received before.
  func ask<Result: Sendable>(
    _ body: @escaping @Sendable (HistoryStore) throws(StateStoreError) -> Result
  ) async throws(StateStoreError) -> Result {
    let result: Swift.Result<Result, StateStoreError> = await withCheckedContinuation { continuation in
      let isOpen = state.withLock { state in
        if !state.isClosing {
          state.questions.append { store in
            do throws(StateStoreError) {
              let answer = try body(store)
              continuation.resume(returning: .success(answer))
            } catch { continuation.resume(returning: .failure(error)) }
          }
        }
        return !state.isClosing
      }
      if isOpen {
        news.ring()
      } else {
        continuation.resume(returning: .failure(StateStoreError(.busy, "the daemon stops")))
      }
    }
    return try result.get()
  }

  var counters: Counters {
    state.withLock { state in
      var result = state.counters
      result.skipped &+= state.room.lostInAll
      result.waiting = state.fresh.count + state.inHand
      return result
    }
  }

  /// Alerts and decisions that found no room, by domain, nil for the host; without domains that were forgotten.
  var skippedByDomain: [Incarnation?: UInt64] { state.withLock { $0.room.lost } }

  /// Keeps no figures of a domain that is gone.
  func forget(_ domain: Incarnation) { state.withLock { $0.room.forget(domain) } }

  /// What the store held when there was nothing more to write last.
  var figures: HistoryStore.Figures { state.withLock { $0.figures } }

  /// Why nothing is written, as long as that is so.
  var problem: String? { state.withLock { $0.problem } }

  /// Writes what waits, within `patience`; what is left then is counted as skipped.
  func close(patience: Duration = .seconds(2)) {
    state.withLock { $0.isClosing = true }
    news.ring()
    end.wait(upTo: patience)
  }

  // MARK: The thread's side

  /// - `waiting`: what the thread has in hand.
  /// - Returns: whether to go on.
  private func turn(_ waiting: inout Waiting) -> Bool {
    let isClosing = state.withLock { state in
      if waiting.alerts.isEmpty {
        swap(&waiting.alerts, &state.fresh.alerts)
        state.room.leaveAll(.traffic)
      }
      if waiting.decisions.isEmpty {
        swap(&waiting.decisions, &state.fresh.decisions)
        state.room.leaveAll(.others)
      }
      state.inHand = waiting.count
      return state.isClosing
    }
    let isStuck = waiting.count > 0 && !writeBatch(of: &waiting)
    // In a flood what was there when somebody asked is written first, and no more.
    let (isBehind, isAnswerDue) = state.withLock { state in
      state.rounds = state.questions.isEmpty ? 0 : state.rounds + 1
      let isBehind = waiting.count + state.fresh.count > 0
      return (isBehind, !isBehind || isStuck || state.rounds > 2 * limits.alerts / limits.batch)
    }
    if isAnswerDue { answer() }
    if isClosing, !isBehind || isStuck {
      finish(without: waiting.count)
      return false
    }
    wait(isStuck ? limits.retry : limits.pace) { !$0.questions.isEmpty || $0.isClosing }
    if !isBehind {
      look()
      wait(.seconds(60)) {
        $0.fresh.count > 0 || !$0.questions.isEmpty || $0.isClosing
      }
    }
    return true
  }

  private func writeBatch(of waiting: inout Waiting) -> Bool {
    let (alerts, decisions) = (waiting.alerts.prefix(limits.batch), waiting.decisions.prefix(4 * limits.batch))
    let rows = alerts.compactMap { event in
      if case .alert(let alert) = event { HistoryAlert(alert, eve: encoder.encode(event)) } else { nil }
    }
    let names = decisions.map { decision in
      HistoryDecision(
        decision, name: decision.incarnation.flatMap(encoder.directory.entry)?.description.name)
    }
    do throws(StateStoreError) {
      try store.append(rows, names)
      waiting.alerts.removeFirst(alerts.count)
      waiting.decisions.removeFirst(decisions.count)
      state.withLock { state in
        state.inHand = waiting.count
        state.counters.recorded &+= UInt64(alerts.count + decisions.count)
        state.problem = nil
      }
      return true
    } catch {
      state.withLock { $0.problem = error.message }
      return false
    }
  }

  private func look() {
    guard let figures = try? store.figures() else { return }
    state.withLock { $0.figures = figures }
  }

  private func answer() {
    let questions = state.withLock { state in
      defer { (state.questions, state.rounds) = ([], 0) }
      return state.questions
    }
    for question in questions { question(store) }
  }

  private func wait(_ time: Duration, until condition: (borrowing State) -> Bool) {
    let deadline = ContinuousClock.now + time
    while !state.withLock({ condition($0) }) {
      let left = ContinuousClock.now.duration(to: deadline)
      guard left > .zero else { return }
      news.wait(upTo: left)
    }
  }

  private func finish(without left: Int) {
    answer()
    state.withLock { state in
      state.counters.skipped &+= UInt64(left + state.fresh.count)
      (state.fresh, state.inHand) = (Waiting(), 0)
    }
    end.ring()
  }
}
#endif
