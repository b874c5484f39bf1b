internal import Glibc
internal import Synchronization
package import VMFenceCore

/// The hypervisor through a process of its own, which holds the handle in the place of this one.
///
/// Nobody waits for that process for long: a look that is not answered in time fails, and until its answer has come every other one fails at once. A process that
/// has ended, that has owed an answer for too long, or says what no sound one says is gone, and another is started by whoever asks next, after a pause.
package final class XenRemote: XenHypervisor {
  package typealias Start = @Sendable () throws(DetectorError) -> any MessageProcess

  /// How long is waited for what.
  package struct Patience: Hashable, Sendable {
    /// The first start.
    package var open: Duration = .seconds(10)
    /// The answer to one look, and to the opening of a process that was started again.
    package var look: Duration = .milliseconds(500)
    /// An answer that is late, until the process is taken for stuck.
    package var late: Duration = .seconds(5)
    /// A verb. One that is not answered within this is not carried out later: the process is ended.
    package var act: Duration = .seconds(2)
    /// A domain's end: the hypervisor takes all its memory back.
    package var destroy: Duration = .seconds(300)
    /// From one start of a process to the next.
    package var restart: Duration = .seconds(1)

    package init() {}
  }

  private let start: Start
  private let host: XenHost
  private let patience: Patience
  private let link: Mutex<XenLink>

  /// Starts the process, and returns when it has the handle and nothing else.
  ///
  /// - Throws: `unavailable` and `permissionDenied`, with what is missing.
  package init(on host: XenHost, patience: Patience = Patience(), _ start: @escaping Start) throws(ProbeError) {
    self.start = start
    self.host = host
    self.patience = patience
    var link = XenLink(host, patience, start)
    try link.open()
    self.link = Mutex(link)
  }

  deinit { link.withLock { $0.close() } }

  package func domains(from first: DomainID, limit: Int) throws(SystemFailure) -> [XenDomain] {
    let limit = min(max(limit, 0), XenDomain.listLimit)
    let question = XenQuestion(.list, number: first.rawValue, limit: UInt32(limit))
    return try ask(question, "list the domains", within: patience.look)
  }

  package func pause(_ domain: Incarnation) throws(SystemFailure) { try act(.pause, domain, "pause a domain") }
  package func unpause(_ domain: Incarnation) throws(SystemFailure) { try act(.unpause, domain, "resume a domain") }
  package func powerOff(_ domain: Incarnation) throws(SystemFailure) {
    try act(.powerOff, domain, "power a domain off")
  }

  /// In a process of its own, since it may take long, and looks are not to wait for it.
  package func destroy(_ domain: Incarnation) throws(SystemFailure) {
    let call = "destroy a domain"
    var link = XenLink(host, patience, start)
    defer { link.close() }
    do throws(ProbeError) { try link.open() } catch {
      throw SystemFailure(call: "\(call): \(error.message)", number: EPIPE)
    }
    _ = try link.ask(XenQuestion(.destroy, domain), call, within: patience.destroy, waitsNoLonger: true)
  }

  private func act(_ verb: XenVerb, _ domain: Incarnation, _ call: String) throws(SystemFailure) {
    _ = try ask(XenQuestion(verb, domain), call, within: patience.act)
  }

  private func ask(
    _ question: XenQuestion, _ call: String, within patience: Duration
  ) throws(SystemFailure) -> [XenDomain] {
    try link.withLock { link throws(SystemFailure) in
      let isVerb = question.verb != .list
      try link.prepare(call, isVerb: isVerb)
      return try link.ask(question, call, within: patience, waitsNoLonger: isVerb)
    }
  }
}

/// One process after the other, and the one question that waits for its answer.
private struct XenLink {
  private enum State {
    /// There is no process, and the reason.
    case none(String)
    /// An answer is awaited, since then.
    case owing(XenQuestion, ContinuousClock.Instant)
    case idle
  }

  private let host: XenHost
  private let patience: XenRemote.Patience
  private let start: XenRemote.Start
  private var process: (any MessageProcess)?
  private var state = State.none("it was not started yet")
  private var sequence: UInt64 = 0
  private var started: ContinuousClock.Instant?

  init(_ host: XenHost, _ patience: XenRemote.Patience, _ start: @escaping XenRemote.Start) {
    self.host = host
    self.patience = patience
    self.start = start
  }

  mutating func close() {
    process?.end(patience: .zero)
    process = nil
    state = .none("it was ended")
  }

  // MARK: Opening

  /// Starts a process, and returns when it has the handle and nothing else.
  mutating func open() throws(ProbeError) {
    let question = try begin()
    guard let answer = receive(question, within: patience.open) else {
      if case .none(let reason) = state { throw Self.unavailable(reason) }
      close()
      throw Self.unavailable("it did not answer within \(patience.open)")
    }
    try finish(answer)
  }

  private mutating func begin() throws(ProbeError) -> XenQuestion {
    let now = ContinuousClock.now
    started = now
    do throws(DetectorError) { process = try start() } catch {
      state = .none(error.message)
      throw ProbeError(.unavailable, error.message, remedy: error.remedy)
    }
    let question = next(XenQuestion(.open, number: host.major, limit: host.minor))
    // The first message finds room; whether somebody takes it shows in the answer.
    _ = process?.send(question.encoded)
    state = .owing(question, now)
    return question
  }

  private mutating func finish(_ answer: XenAnswer) throws(ProbeError) {
    guard answer.opening.problem != 0 || answer.error != 0 else { return }
    let error = answer.opening.probeError
    close()
    state = .none(error.message)
    throw error
  }

  private static func unavailable(_ reason: String) -> ProbeError {
    ProbeError(
      .unavailable, "the process that holds the hypervisor's handle cannot be used: \(reason)",
      remedy: "install vmfence-hypervisor from the same build as this program")
  }

  // MARK: Asking

  /// Has a process that can be asked.
  ///
  /// - `isVerb`: whether it is worth a start at once, and a longer wait for what another look has not been answered.
  mutating func prepare(_ call: String, isVerb: Bool) throws(SystemFailure) {
    let now = ContinuousClock.now
    // Somebody has waited already for what a look is not answered.
    var waits = isVerb ? patience.act : .zero
    if case .none(let reason) = state {
      if !isVerb, let started, now < started + patience.restart { throw Self.failure(call, reason) }
      do throws(ProbeError) { _ = try begin() } catch { throw Self.failure(call, error.message) }
      waits = max(waits, patience.look)
    }
    guard case .owing(let question, let since) = state else { return }
    guard let answer = receive(question, within: waits) else {
      if case .none(let reason) = state { throw Self.failure(call, reason) }
      let late = question.verb == .open ? patience.open : patience.late
      if now >= since + late {
        end("it did not answer within \(late)")
        throw Self.failure(call, "it did not answer within \(late)")
      }
      throw SystemFailure(call: "\(call): vmfence-hypervisor does not answer", number: ETIMEDOUT)
    }
    guard question.verb == .open else { return }
    do throws(ProbeError) { try finish(answer) } catch { throw Self.failure(call, error.message) }
  }

  /// Asks an idle process.
  ///
  /// - `waitsNoLonger`: whether the process is ended when the answer is late, so that what was not done will not be.
  mutating func ask(
    _ question: XenQuestion, _ call: String, within patience: Duration, waitsNoLonger: Bool
  ) throws(SystemFailure) -> [XenDomain] {
    let question = next(question)
    state = .owing(question, .now)
    // There is room for the one question that is under way: what takes none has ended.
    if process?.send(question.encoded) != true { end("") }
    guard let answer = receive(question, within: patience) else {
      if case .none(let reason) = state { throw Self.failure(call, reason) }
      if waitsNoLonger { end("it did not answer within \(patience)") }
      throw SystemFailure(call: "\(call): vmfence-hypervisor does not answer", number: ETIMEDOUT)
    }
    if answer.error != 0 { throw SystemFailure(call: call, number: answer.error) }
    return answer.domains
  }

  private mutating func next(_ question: XenQuestion) -> XenQuestion {
    sequence += 1
    var question = question
    question.sequence = sequence
    return question
  }

  /// The answer to the question that was asked; nil when it has not come, or there is no process any more.
  private mutating func receive(_ question: XenQuestion, within patience: Duration) -> XenAnswer? {
    guard let process else { return nil }
    switch process.receive(within: patience) {
    case .message(let bytes):
      guard let answer = XenAnswer(bytes, to: question) else {
        end("it gave an answer that no sound one gives")
        return nil
      }
      state = .idle
      return answer
    case .nothing: return nil
    case .ended:
      end("")
      return nil
    }
  }

  /// - `reason`: empty: how it ended by itself says it.
  private mutating func end(_ reason: String) {
    let process = process
    process?.end(patience: reason.isEmpty ? .milliseconds(100) : .zero)
    self.process = nil
    let ending =
      switch process?.status {
      case .exited(let code): "it ended with status \(code)"
      case .crashed(let signal): "it was killed by signal \(signal)"
      default: "it hung up"
      }
    state = .none(reason.isEmpty ? ending : reason)
  }

  private static func failure(_ call: String, _ reason: String) -> SystemFailure {
    SystemFailure(call: "\(call): vmfence-hypervisor is gone (\(reason)) and is started again", number: EPIPE)
  }
}
