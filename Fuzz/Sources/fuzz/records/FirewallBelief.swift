import Dispatch
import Synchronization

@testable import VMFenceCore
@testable import VMFenceNftables

/// `vmfence-firewall`, sound or lying by the input.
private final class LyingFirewall: MessageProcess {
  private struct State {
    var server: FirewallServer
    var process = LyingProcess()
    var lastSequence: UInt64 = 0
  }
  private let state: Mutex<State>
  private let operands: Operands
  private let isSound: Bool

  init(_ firewalls: DoubleFirewalls, _ operands: Operands, isSound: Bool) {
    state = Mutex(State(server: firewalls.server(refuses: !isSound && operands.byte() % 8 == 7)))
    (self.operands, self.isSound) = (operands, isSound)
  }

  var sends: Int { state.withLock { $0.process.sends } }
  var receptions: Int { state.withLock { $0.process.receptions } }

  func send(_ message: [UInt8]) -> Bool {
    state.withLock { state in
      guard !state.process.isGone else { return false }
      guard let question = FirewallQuestion(message), question.sequence > state.lastSequence else {
        fatalError("a daemon asks what no sound one asks")
      }
      state.lastSequence = question.sequence
      guard !isSound else {
        guard let answer = state.server.answer(message, isolate: {}) else { fatalError("no answer to a question") }
        state.process.put(answer, .none, operands)
        return true
      }
      let answer = operands.byte() % 2 == 0 ? forged(question) : state.server.answer(message, isolate: {})
      // One whose opening was refused or forged may not know what it is asked: it has lied before.
      state.process.put(answer ?? forged(question), Lie.next(operands), operands)
      return true
    }
  }

  /// An answer that is well made, and says what the input says.
  private func forged(_ question: FirewallQuestion) -> [UInt8] {
    let verbs = FirewallVerb.allCases
    var answer = FirewallAnswer(question.verb == .more ? verbs[Int(operands.byte()) % verbs.count] : question.verb)
    answer.generation = operands.byte() % 4 == 0 ? operands.number() : UInt64(operands.byte())
    answer.number = operands.byte() % 4 == 0 ? operands.number() : UInt64(operands.byte())
    let failures = FirewallAnswer.Failure.allCases
    if operands.byte() % 4 == 3 { answer.failure = failures[Int(operands.byte()) % failures.count] }
    answer.records = FirewallRecords.records(operands) { record in
      if case .text = record, answer.failure != nil { true } else { answer.verb.answers(with: record) }
    }
    var (bytes, _) = answer.part(from: 0, sequence: question.sequence)
    if operands.byte() % 2 == 1, !answer.records.isEmpty { bytes[16] = 1 }
    return bytes
  }

  func receive(within patience: Duration) -> ReceivedMessage { state.withLock { $0.process.receive(within: patience) } }
  func end(patience: Duration) { state.withLock { $0.process.end() } }
  var status: DetectorStatus { state.withLock { $0.process.isGone } ? .exited(code: 7) : .running }
}

/// Waits for what is asynchronous only by its signature.
private func wait<Outcome: Sendable>(
  _ body: @escaping @Sendable () async throws(FirewallError) -> Outcome
) throws(FirewallError) -> Outcome {
  let outcome = Outcomes<Outcome>()
  let isDone = DispatchSemaphore(value: 0)
  Task {
    let result: Result<Outcome, FirewallError>
    do throws(FirewallError) { result = .success(try await body()) } catch { result = .failure(error) }
    outcome.value.withLock { $0 = result }
    isDone.signal()
  }
  isDone.wait()
  guard let result = outcome.value.withLock({ $0 }) else { fatalError("no outcome") }
  return try result.get()
}

private final class Outcomes<Outcome: Sendable>: Sendable {
  let value = Mutex<Result<Outcome, FirewallError>?>(nil)
}

/// What a daemon asks, and what it sees.
private struct FirewallBelief {
  let sink: ProcessFirewallSink
  let isSound: Bool
  let capacity: Int
  private var generation: UInt64 = 0

  init(sink: ProcessFirewallSink, isSound: Bool, capacity: Int) {
    (self.sink, self.isSound, self.capacity) = (sink, isSound, capacity)
  }

  mutating func act(_ operands: Operands, _ firewalls: DoubleFirewalls) {
    do throws(FirewallError) {
      switch operands.byte() % 8 {
      case 0: try apply(operands, firewalls)
      case 1: try replace(operands, firewalls)
      case 2: try readBack(firewalls)
      case 3: try update(operands, firewalls)
      case 4: try counts(firewalls)
      case 5: try cut(operands, firewalls)
      case 6: try reset(operands, firewalls)
      default: sink.look()
      }
    } catch {
      precondition(!isSound || error.code == .full || error.code == .conflict, "a sound process fails")
      FirewallRecords.check(error)
    }
  }

  private mutating func rise(to new: UInt64) {
    precondition(new >= generation, "a generation that falls")
    generation = new
  }

  private mutating func apply(_ operands: Operands, _ firewalls: DoubleFirewalls) throws(FirewallError) {
    let records = FirewallRecords.records(operands) { FirewallVerb.apply.asks(with: $0) }
    let change = FirewallChange(
      from: operands.byte() % 4 == 0 ? operands.number() : max(generation, 1), time: .zero,
      add: records.compactMap(\.measure), remove: records.compactMap(\.removed))
    let sink = sink
    rise(to: try wait { () async throws(FirewallError) in try await sink.apply(change) })
    guard isSound else { return }
    precondition(change.from == generation - 1 && firewalls.last?.generation == generation, "it was not applied")
  }

  private mutating func replace(_ operands: Operands, _ firewalls: DoubleFirewalls) throws(FirewallError) {
    let measures = FirewallRecords.records(operands) { FirewallVerb.replace.asks(with: $0) }.compactMap(\.measure)
    let sink = sink
    rise(to: try wait { () async throws(FirewallError) in try await sink.replace(with: measures, at: .zero) })
    guard isSound else { return }
    precondition(firewalls.last?.contents.measures.count == Set(measures.map(\.key)).count, "it was not replaced")
  }

  private mutating func readBack(_ firewalls: DoubleFirewalls) throws(FirewallError) {
    let sink = sink
    let state = try wait { () async throws(FirewallError) in try await sink.readBack(at: .zero) }
    rise(to: state.generation)
    precondition(state.measures.count <= capacity, "more measures than fit")
    for measure in state.measures { checkRecord(.measure(measure)) }
    guard isSound else { return }
    let standing = firewalls.last?.contents.measures ?? [:]
    precondition(state.measures.count == standing.count, "more or fewer than stand")
    precondition(Set(state.measures.map(\.key)) == Set(standing.keys), "others than stand")
  }

  private func update(_ operands: Operands, _ firewalls: DoubleFirewalls) throws(FirewallError) {
    var ports: [DomainUUID: [NetworkPort]] = [:]
    var antiSpoofing = AntiSpoofing(SpoofingKind.set(of: operands.byte() & 1) ?? [])
    for record in FirewallRecords.records(operands, { FirewallVerb.ports.asks(with: $0) }) {
      if case .port(let domain, let port) = record { ports[domain, default: []].append(port) }
      if case .exception(let domain, let kinds) = record { antiSpoofing.exceptions[domain] = kinds }
    }
    let (sink, given, kinds) = (sink, ports, antiSpoofing)
    try wait { () async throws(FirewallError) in try await sink.update(ports: given, antiSpoofing: kinds) }
    guard isSound, let contents = firewalls.last?.contents else { return }
    precondition(contents.ports == SinkContents.assign(given) && contents.antiSpoofing == kinds, "other ports")
  }

  private func counts(_ firewalls: DoubleFirewalls) throws(FirewallError) {
    let sink = sink
    let counts = try wait { () async throws(FirewallError) in try await sink.trafficCounts() }
    precondition(counts.measures.isEmpty && counts.spoofedAtPorts.keys.allSatisfy(NetworkPort.isInterfaceName))
    if isSound { precondition(counts.blocked.packets == firewalls.last?.generation, "other counts") }
  }

  private func cut(_ operands: Operands, _ firewalls: DoubleFirewalls) throws(FirewallError) {
    let flows = FirewallRecords.records(operands) { FirewallVerb.cut.asks(with: $0) }.compactMap(\.flow)
    let sink = sink
    let outcome = try wait { () async throws(FirewallError) in try await sink.cut(flows) }
    precondition((0...flows.count).contains(outcome.cut) && outcome.left.count <= flows.count, "more than were asked")
    if isSound { precondition(outcome.cut + outcome.left.count == flows.count, "flows are lost") }
  }

  private func reset(_ operands: Operands, _ firewalls: DoubleFirewalls) throws(FirewallError) {
    let resets = FirewallRecords.records(operands) { FirewallVerb.reset.asks(with: $0) }.compactMap(\.reset)
    let sink = sink
    guard let sent = try wait({ () async throws(FirewallError) in await sink.send(resets) }) else {
      precondition(!isSound, "a sound process cannot send")
      return
    }
    precondition(sent.count == resets.count, "for each of them one")
    if isSound { precondition(sent == resets.map { $0.reset.next % 2 == 0 }, "others were sent") }
  }
}

extension FirewallRecords {
  // MARK: The daemon, and a process that lies

  static func believe(_ operands: Operands) {
    let isSound = operands.byte() % 8 == 0
    let firewalls = DoubleFirewalls()
    let processes = Mutex<[LyingFirewall]>([])
    var patience = ProcessFirewallSink.Patience()
    (patience.restart, patience.measure) = (.zero, .zero)
    let configuration = NftablesSink.Configuration(capacity: Int(operands.byte()) % 64)
    let sink: ProcessFirewallSink
    do throws(FirewallError) {
      sink = try ProcessFirewallSink.opening(configuration, patience: patience) { () throws(DetectorError) in
        let process = LyingFirewall(firewalls, operands, isSound: isSound)
        processes.withLock { $0.append(process) }
        return process
      }
    } catch {
      precondition(!isSound, "a sound process cannot be used")
      return check(error)
    }
    var belief = FirewallBelief(sink: sink, isSound: isSound, capacity: configuration.capacity)
    for step in 1...24 where !operands.isAtEnd {
      belief.act(operands, firewalls)
      for problem in [sink.problem, sink.resetProblem, sink.portProblem] { checkText(problem ?? "") }
      let all = processes.withLock { $0 }
      precondition(all.count <= 1 + step, "processes without end")
      // What it asks goes in some parts; for each part of an answer, a lie takes bytes of the input.
      let sends = all.reduce(0) { $0 + $1.sends }
      precondition(sends <= 64 * (step + 1) + operands.count, "it asks without end")
      precondition(all.reduce(0) { $0 + $1.receptions } <= 2 * sends + step + 1, "it waits without end")
    }
  }

  static func check(_ error: FirewallError) {
    for text in [error.message, error.remedy] {
      checkText(text)
      precondition(text.utf8.count <= 8 * 3 * FirewallRecord.textLimit, "a long text")
    }
  }
}
