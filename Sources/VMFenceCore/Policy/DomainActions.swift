internal import Synchronization

/// What is being done with domains (pausing, shutting down), each in a task of its own: a guest that is asked to shut down may take its time, and nobody
/// else is to wait for it. Used by one caller at a time.
struct DomainActions {
  enum Outcome {
    case done
    /// To be asked for again.
    case goesOn
    case failed(ProbeError)
  }

  /// More are begun when some of these have ended.
  private static let limit = 64

  private let control: any HypervisorControl
  private let patience: Duration
  private var underWay: [UInt64: Action] = [:]

  /// - `patience`: how long the caller waits for an action that it begins, in real time. Most are done by then.
  init(_ control: any HypervisorControl, patience: Duration) {
    self.control = control
    self.patience = patience
  }

  /// Begins what the decision says, or looks how far that is.
  mutating func perform(_ decision: Decision, on domain: Incarnation) async -> Outcome {
    let action: Action
    if let known = underWay[decision.id] {
      action = known
    } else {
      guard underWay.count < Self.limit else { return .goesOn }
      action = Action(decision.measure, on: domain, control)
      await action.wait(upTo: patience)
    }
    guard let result = action.result else {
      underWay[decision.id] = action
      return .goesOn
    }
    underWay[decision.id] = nil
    switch result {
    case .success: return .done
    // What is gone needs no pausing.
    case .failure(let error): return error.code == .noSuchDomain ? .done : .failed(error)
    }
  }
}

private final class Action: Sendable {
  private struct State {
    var result: Result<Void, ProbeError>?
    /// Nobody waits any more, or is to begin to.
    var isReleased = false
    var waiter: CheckedContinuation<Void, Never>?
  }

  private let state = Mutex(State())

  init(_ measure: Decision.Measure, on domain: Incarnation, _ control: any HypervisorControl) {
    Task {
      do throws(ProbeError) {
        if measure == .pause { try await control.pause(domain) } else { try await control.shutDown(domain) }
        finish(.success(()))
      } catch { finish(.failure(error)) }
    }
  }

  var result: Result<Void, ProbeError>? { state.withLock { $0.result } }

  private func finish(_ result: Result<Void, ProbeError>) {
    state.withLock { $0.result = result }
    release()
  }

  /// Returns when it has ended, or after that time. To be called once.
  func wait(upTo patience: Duration) async {
    let timer = Task {
      try? await Task.sleep(for: patience)
      release()
    }
    await withCheckedContinuation { continuation in
      let isReleased = state.withLock { state in
        if !state.isReleased { state.waiter = continuation }
        return state.isReleased
      }
      if isReleased { continuation.resume() }
    }
    timer.cancel()
  }

  private func release() {
    let waiter = state.withLock { state in
      defer { state.waiter = nil }
      state.isReleased = true
      return state.waiter
    }
    waiter?.resume()
  }
}

extension Decision {
  /// Whether it is the domain itself that something is done with.
  var isDestructive: Bool { measure == .pause || measure == .shutDown }

  /// What is done with a domain is done once: while that waits to be carried out, deciding the same again adds nothing, and is withheld.
  func unlessWaiting(among others: some Sequence<Decision>) -> Decision {
    guard isDestructive, status == .enforced,
      let other = others.first(where: { $0.measure == measure && $0.incarnation == incarnation })
    else { return self }
    var decision = self
    decision.status = .withheld
    decision.expires = nil
    decision.reason += "; withheld: decision \(other.id) to do the same waits to be carried out"
    return decision
  }
}
