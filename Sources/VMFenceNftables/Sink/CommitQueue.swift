internal import Synchronization

/// Lets whoever comes while a transaction is under way share the next one. Who comes alone does not wait: the first caller does the work of those
/// who came until it began, and then hands over to one of those who came later.
final class CommitQueue<Request: Sendable, Outcome: Sendable>: Sendable {
  /// How many requests one transaction takes.
  static var batchLimit: Int { 1_024 }

  private enum Turn {
    case done(Outcome)
    case lead
  }

  private struct Waiting {
    var request: Request
    var continuation: CheckedContinuation<Turn, Never>
  }

  private struct State {
    var isLed = false
    /// As many as the callers who wait.
    var line: [Waiting] = []
  }

  private let state = Mutex(State())

  /// How many callers wait for a transaction that somebody else makes.
  var waitingCount: Int { state.withLock { $0.line.count } }

  /// - Parameter commit: does what is asked for, in one go where it can. It takes what there is to do with its argument once it can begin, and gives
  ///   an outcome for each request, in their order. Called on the caller's thread, one at a time.
  func perform(_ request: Request, _ commit: (_ gather: () -> [Request]) -> [Outcome]) async -> Outcome {
    let turn = await withCheckedContinuation { (continuation: CheckedContinuation<Turn, Never>) in
      let leads = state.withLock { state in
        if state.isLed {
          state.line.append(Waiting(request: request, continuation: continuation))
          return false
        }
        state.isLed = true
        return true
      }
      if leads { continuation.resume(returning: .lead) }
    }
    switch turn {
    case .done(let outcome): return outcome
    case .lead: return lead(request, commit)
    }
  }

  private func lead(_ request: Request, _ commit: (_ gather: () -> [Request]) -> [Outcome]) -> Outcome {
    var others: [Waiting] = []
    let outcomes = commit {
      others = state.withLock { state in
        let taken = Array(state.line.prefix(Self.batchLimit - 1))
        state.line.removeFirst(taken.count)
        return taken
      }
      return [request] + others.map(\.request)
    }
    precondition(outcomes.count == others.count + 1, "an outcome for each request")
    for (waiting, outcome) in zip(others, outcomes.dropFirst()) {
      waiting.continuation.resume(returning: .done(outcome))
    }
    let next = state.withLock { state -> CheckedContinuation<Turn, Never>? in
      guard state.line.isEmpty else { return state.line.removeFirst().continuation }
      state.isLed = false
      return nil
    }
    next?.resume(returning: .lead)
    return outcomes[0]
  }
}
