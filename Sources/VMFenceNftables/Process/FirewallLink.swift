import VMFenceCore

/// One process after the other, and what is kept over them. All of it under the sink's lock.
struct FirewallLink: Sendable {
  private let table: String
  private let patience: ProcessFirewallSink.Patience
  var session: FirewallSession
  /// Why there was no process, when it was told last.
  private var toldAbsence: String?
  /// Why resets cannot be sent.
  private(set) var resetProblem: String?
  /// What is not stopped at ports on this kernel, and what helps.
  private(set) var portProblem: String?
  /// What was said of ports last.
  var ports: FirewallQuestion?
  /// The process does not know them yet.
  private(set) var hasUnsaidPorts = false
  /// How many measures stand, as far as is known: how long is waited goes by it.
  var standing = 0
  /// The generation in force, and what of it is of earlier processes: each counts from 1.
  private(set) var generation: UInt64 = 0
  private(set) var base: UInt64 = 0
  private var acknowledged = FirewallAcknowledgement(generation: 1, time: .zero)
  var listeners: [UInt64: AsyncStream<FirewallAcknowledgement>.Continuation] = [:]
  private var nextListener: UInt64 = 0

  init(table: String, patience: ProcessFirewallSink.Patience, _ keeper: ProcessKeeper) {
    self.table = table
    self.patience = patience
    session = FirewallSession(keeper)
  }

  /// Why there is no process; nil when there is one.
  var absence: String? { session.keeper.absence }

  /// The same, once.
  mutating func takeAbsence() -> String? {
    guard absence != toldAbsence else { return nil }
    toldAbsence = absence
    return absence
  }

  /// Goes on with a process that has opened the packet filter.
  mutating func install(_ session: FirewallSession, _ answer: FirewallAnswer) {
    self.session = session
    toldAbsence = nil
    base = generation
    generation = base &+ answer.generation
    standing = Int(clamping: min(answer.number, UInt64(FirewallMessage.recordLimit)))
    let problems = answer.records.map { record in
      if case .text(let text) = record, !text.isEmpty { text.escapedForDisplay } else { String?.none }
    }
    resetProblem = problems.first ?? nil
    portProblem = problems.dropFirst().first ?? nil
    hasUnsaidPorts = ports != nil
  }

  mutating func close() {
    session.close()
    for listener in listeners.values { listener.finish() }
    listeners = [:]
  }

  /// - `limit`: records that the answer has at the most.
  /// - Throws: what the process says, or `failed` when there is none, or none any more.
  mutating func ask(
    _ question: FirewallQuestion, _ action: String, limit: Int
  ) throws(FirewallError) -> FirewallAnswer {
    guard let answer = session.ask(question, limit: limit, within: patience(for: question)) else {
      throw FirewallError(
        .failed, "cannot \(action): \(session.keeper.farewell)",
        remedy: "what stands in the kernel stays in force meanwhile")
    }
    // After a failure, too: the table may have been made anew.
    generation = max(generation, base &+ answer.generation)
    if let error = answer.error(during: action, table: table) { throw error }
    return answer
  }

  /// What goes through all that stands takes longer the more that is.
  private func patience(for question: FirewallQuestion) -> Duration {
    var measures = question.records.count
    if [.read, .replace, .ports].contains(question.verb) { measures += standing }
    return patience.call + min(patience.measure * measures, patience.measuresMost)
  }

  mutating func sayPorts() throws(FirewallError) {
    guard let ports else { return }
    _ = try ask(ports, "move measures to other ports", limit: 0)
    hasUnsaidPorts = false
  }

  mutating func addListener(_ continuation: AsyncStream<FirewallAcknowledgement>.Continuation) -> UInt64 {
    nextListener += 1
    listeners[nextListener] = continuation
    continuation.yield(acknowledged)
    return nextListener
  }

  /// Tells those who listen, if the generation has risen.
  mutating func acknowledge(at time: Timestamp) {
    guard generation > acknowledged.generation else { return }
    acknowledged = FirewallAcknowledgement(generation: generation, time: time)
    for listener in listeners.values { listener.yield(acknowledged) }
  }
}
