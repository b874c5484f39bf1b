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

  func isUnderWay(_ decision: Decision) -> Bool { underWay[decision.id] != nil }

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
    // What is gone is down, but it was not paused.
    case .failure(let error):
      return error.code == .noSuchDomain && decision.measure == .shutDown ? .done : .failed(error)
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

  /// As the log has it before it is carried out: what is to be done with a domain is `desired` until it is. Where another does the same, this one is withheld.
  fileprivate func asIntended(beside others: [Decision]) -> Decision {
    guard isDestructive, status == .enforced else { return self }
    var decision = self
    decision.status = .desired
    guard let other = others.first(where: { $0.measure == measure && $0.incarnation == incarnation }) else {
      return decision
    }
    decision.status = .withheld
    decision.expires = nil
    decision.reason += "; withheld: decision \(other.id) does the same"
    return decision
  }
}

extension EnforcementCoordinator {
  /// Until it is seen that a domain stands still, what it did before may lead to the same decision again.
  private static var justDoneFor: Duration { .seconds(10) }

  /// What was decided, as it goes to the log. What is done with a domain is done once: while the same waits to be carried out, or has just been, deciding it again adds nothing, and pauses
  /// nest, so that whoever resumes the domain would have to do that as often.
  func intended(_ decisions: [Decision], at time: Timestamp) -> [Decision] {
    guard decisions.contains(where: { $0.isDestructive && $0.status == .enforced }) else { return decisions }
    justDone.removeAll { time - $0.time > Self.justDoneFor }
    var others = updater.desired.values.filter(\.isDestructive) + justDone
    return decisions.map { decision in
      let intended = decision.asIntended(beside: others)
      if intended.status == .desired { others.append(intended) }
      return intended
    }
  }
}
