import VMFenceCore

/// One process after the other that holds the packet filter, as its owner has it. A process that does not answer in time, hangs up, or says what no sound one says is ended: what of it
/// was not done will not be.
struct FirewallSession: Sendable {
  private(set) var keeper: ProcessKeeper
  private var sequence: UInt64 = 0

  init(_ keeper: ProcessKeeper) { self.keeper = keeper }

  /// Starts a process, and has it open the packet filter.
  ///
  /// - Returns: what it found there.
  /// - Throws: what it says, or why there is no process.
  mutating func open(
    _ configuration: NftablesSink.Configuration, within patience: Duration
  ) throws(FirewallError) -> FirewallAnswer {
    do throws(DetectorError) { try keeper.begin(at: .now) } catch {
      throw FirewallError(.failed, error.message, remedy: error.remedy)
    }
    guard let answer = ask(FirewallQuestion(opening: configuration), limit: 2, within: patience) else {
      let message = "the process that holds the packet filter cannot be used: \(keeper.absence ?? "")"
      keeper.end(message)
      throw FirewallError(.failed, message, remedy: keeper.remedy)
    }
    if let error = answer.error(during: NftablesSink.openingAction, table: configuration.table) {
      keeper.end(error.message)
      throw error
    }
    return answer
  }

  mutating func close() { keeper.end("it was ended") }

  /// - `limit`: records that a sound answer has at the most.
  /// - `patience`: for the whole answer.
  /// - Returns: nil when there is no process, or none any more.
  mutating func ask(_ question: FirewallQuestion, limit: Int, within patience: Duration) -> FirewallAnswer? {
    guard keeper.absence == nil else { return nil }
    let deadline = ContinuousClock.now + patience
    var next = 0
    while true {
      sequence += 1
      let part = question.part(from: next, sequence: sequence)
      next = part.next
      let isLast = next >= question.records.count
      let answer = exchange(part.bytes, question.verb, deadline, patience) { answer in
        isLast
          ? answer.failure != nil || answer.records.count <= limit : answer.failure == nil && answer.records.isEmpty
      }
      guard let answer else { return nil }
      if isLast { return finish(answer, limit, deadline, patience) }
    }
  }

  /// Asks for the rest of an answer.
  private mutating func finish(
    _ first: FirewallAnswer, _ limit: Int, _ deadline: ContinuousClock.Instant, _ patience: Duration
  ) -> FirewallAnswer? {
    var answer = first
    while answer.hasMore {
      sequence += 1
      let bytes = FirewallQuestion(.more).part(from: 0, sequence: sequence).bytes
      let room = limit - answer.records.count
      let part = exchange(bytes, first.verb, deadline, patience) { part in
        part.failure == nil && !part.records.isEmpty && part.records.count <= room
      }
      guard let part else { return nil }
      answer.records += part.records
      answer.hasMore = part.hasMore
    }
    return answer
  }

  private mutating func exchange(
    _ message: [UInt8], _ verb: FirewallVerb, _ deadline: ContinuousClock.Instant, _ patience: Duration,
    isSound: (FirewallAnswer) -> Bool
  ) -> FirewallAnswer? {
    keeper.ask(message, at: .now)
    let (sequence, left) = (sequence, deadline - .now)
    let answer =
      left <= .zero
      ? nil
      : keeper.answer(within: left) { bytes in
        FirewallAnswer(bytes, to: verb, sequence).flatMap { isSound($0) ? $0 : nil }
      }
    if answer == nil { keeper.endAsLate(patience) }
    return answer
  }
}

extension FirewallQuestion {
  /// The first one: how the packet filter is to be.
  fileprivate init(opening configuration: NftablesSink.Configuration) {
    self.init(.open, time: Int64(configuration.capacity))
    let exceptions = configuration.quarantineExceptions
    if configuration.protectsHost { number |= Option.protectsHost }
    if configuration.holdsTable { number |= Option.holdsTable }
    if exceptions.allowsDHCP { number |= Option.allowsDHCP }
    records = [.text(configuration.table)] + exceptions.networks.map { .network($0) }
  }
}
