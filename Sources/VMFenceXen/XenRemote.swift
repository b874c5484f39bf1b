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
  private let host: XenHost
  private let patience: XenRemote.Patience
  private var keeper: ProcessKeeper
  private var sequence: UInt64 = 0
  /// What was asked last.
  private var question = XenQuestion(.open, number: 0)

  init(_ host: XenHost, _ patience: XenRemote.Patience, _ start: @escaping XenRemote.Start) {
    self.host = host
    self.patience = patience
    keeper = ProcessKeeper("vmfence-hypervisor", restart: patience.restart, start)
  }

  mutating func close() { keeper.end("it was ended") }

  // MARK: Opening

  /// Starts a process, and returns when it has the handle and nothing else.
  mutating func open() throws(ProbeError) {
    try begin()
    guard let answer = receive(within: patience.open) else {
      keeper.endAsLate(patience.open)
      throw ProbeError(
        .unavailable, "the process that holds the hypervisor's handle cannot be used: \(keeper.absence ?? "")",
        remedy: keeper.remedy)
    }
    try finish(answer)
  }

  private mutating func begin() throws(ProbeError) {
    do throws(DetectorError) { try keeper.begin(at: .now) } catch {
      throw ProbeError(.unavailable, error.message, remedy: error.remedy)
    }
    send(XenQuestion(.open, number: host.major, limit: host.minor))
  }

  private mutating func finish(_ answer: XenAnswer) throws(ProbeError) {
    guard answer.opening.problem != 0 || answer.error != 0 else { return }
    let error = answer.opening.probeError
    keeper.end(error.message)
    throw error
  }

  // MARK: Asking

  /// Has a process that can be asked.
  ///
  /// - `isVerb`: whether it is worth a start at once, and a longer wait for what another look has not been answered.
  mutating func prepare(_ call: String, isVerb: Bool) throws(SystemFailure) {
    // Somebody has waited already for what a look is not answered.
    var waits = isVerb ? patience.act : .zero
    if keeper.absence != nil {
      guard isVerb || keeper.mayBegin(at: .now) else { throw gone(call) }
      do throws(ProbeError) { try begin() } catch { throw gone(call) }
      waits = max(waits, patience.look)
    }
    guard keeper.isOwing else { return }
    guard let answer = receive(within: waits) else {
      keeper.endIfOwing(for: question.verb == .open ? patience.open : patience.late, at: .now)
      throw keeper.absence == nil ? Self.silent(call) : gone(call)
    }
    guard question.verb == .open else { return }
    do throws(ProbeError) { try finish(answer) } catch { throw gone(call) }
  }

  /// Asks an idle process.
  ///
  /// - `waitsNoLonger`: whether the process is ended when the answer is late, so that what was not done will not be.
  mutating func ask(
    _ question: XenQuestion, _ call: String, within patience: Duration, waitsNoLonger: Bool
  ) throws(SystemFailure) -> [XenDomain] {
    send(question)
    guard let answer = receive(within: patience) else {
      if keeper.absence != nil { throw gone(call) }
      if waitsNoLonger { keeper.endAsLate(patience) }
      throw Self.silent(call)
    }
    if answer.error != 0 { throw SystemFailure(call: call, number: answer.error) }
    return answer.domains
  }

  private mutating func send(_ question: XenQuestion) {
    sequence += 1
    self.question = question
    self.question.sequence = sequence
    keeper.ask(self.question.encoded, at: .now)
  }

  /// The answer to the question that was asked; nil when it has not come, or there is no process any more.
  private mutating func receive(within patience: Duration) -> XenAnswer? {
    let question = question
    return keeper.answer(within: patience) { XenAnswer($0, to: question) }
  }

  private func gone(_ call: String) -> SystemFailure {
    SystemFailure(call: "\(call): \(keeper.farewell)", number: EPIPE)
  }

  private static func silent(_ call: String) -> SystemFailure {
    SystemFailure(call: "\(call): vmfence-hypervisor does not answer", number: ETIMEDOUT)
  }
}
