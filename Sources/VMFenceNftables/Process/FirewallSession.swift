import VMFenceCore

/// Why there is no process any more.
struct FirewallSessionEnd: Error {
  var reason: String
}

/// One process that holds the packet filter, as its owner has it. A process that does not answer in time, hangs up, or says what no sound one says is ended: what of it
/// was not done will not be.
struct FirewallSession {
  private let process: any MessageProcess
  private var sequence: UInt64 = 0

  init(_ process: any MessageProcess) { self.process = process }

  /// - `limit`: records that a sound answer has at the most.
  /// - `patience`: for the whole answer.
  mutating func ask(
    _ question: FirewallQuestion, limit: Int, within patience: Duration
  ) throws(FirewallSessionEnd) -> FirewallAnswer {
    let deadline = ContinuousClock.now + patience
    var next = 0
    while true {
      sequence += 1
      let part = question.part(from: next, sequence: sequence)
      let answer = try exchange(part.bytes, question.verb, deadline, patience)
      next = part.next
      guard next < question.records.count else { return try finish(answer, limit, deadline, patience) }
      guard answer.failure == nil, answer.records.isEmpty else { throw unsound() }
    }
  }

  /// Asks for the rest of an answer.
  private mutating func finish(
    _ first: FirewallAnswer, _ limit: Int, _ deadline: ContinuousClock.Instant, _ patience: Duration
  ) throws(FirewallSessionEnd) -> FirewallAnswer {
    var answer = first
    while answer.hasMore, answer.records.count <= limit {
      sequence += 1
      let bytes = FirewallQuestion(.more).part(from: 0, sequence: sequence).bytes
      let part = try exchange(bytes, first.verb, deadline, patience)
      guard part.failure == nil, !part.records.isEmpty else { throw unsound() }
      answer.records += part.records
      answer.hasMore = part.hasMore
    }
    guard answer.failure != nil || answer.records.count <= limit else { throw unsound() }
    return answer
  }

  private mutating func exchange(
    _ message: [UInt8], _ verb: FirewallVerb, _ deadline: ContinuousClock.Instant, _ patience: Duration
  ) throws(FirewallSessionEnd) -> FirewallAnswer {
    // There is room for the one message that is under way: what takes none has ended.
    guard process.send(message) else { throw end("") }
    while true {
      let left = deadline - .now
      guard left > .zero else { throw end("it did not answer within \(patience)") }
      switch process.receive(within: left) {
      case .message(let bytes):
        guard let answer = FirewallAnswer(bytes, to: verb, sequence) else { throw unsound() }
        return answer
      case .nothing: continue
      case .ended: throw end("")
      }
    }
  }

  func close() { process.end(patience: .zero) }

  private func unsound() -> FirewallSessionEnd { end("it gave an answer that no sound one gives") }

  /// - `reason`: empty: how it ended by itself says it.
  private func end(_ reason: String) -> FirewallSessionEnd {
    process.end(patience: reason.isEmpty ? .milliseconds(100) : .zero)
    guard reason.isEmpty else { return FirewallSessionEnd(reason: reason) }
    switch process.status {
    case .exited(let code): return FirewallSessionEnd(reason: "it ended with status \(code)")
    case .crashed(let signal): return FirewallSessionEnd(reason: "it was killed by signal \(signal)")
    default: return FirewallSessionEnd(reason: "it hung up")
    }
  }
}
