import Glibc
import NetworkTestSupport
import Synchronization
import TestSupport
import Testing
import VMFenceCore

@testable import VMFenceNftables

/// The process, without one: it keeps measures as a packet filter would, and does what a test wants besides.
final class ScriptedFirewall: MessageProcess {
  private struct State {
    var generation: UInt64 = 1
    var measures: [FirewallMeasure] = []
    var parts: [FirewallRecord] = []
    var left: [FirewallRecord] = []
    var questions: [FirewallQuestion] = []
    var longest = 0
    var answers: [[UInt8]] = []
    var isSilent = false
    var isGone = false
    var ends = 0
    var mangle: @Sendable (FirewallVerb, [UInt8]) -> [UInt8] = { $1 }
    var answer: @Sendable (FirewallQuestion) -> FirewallAnswer? = { _ in nil }
  }
  private let state = Mutex(State())

  init(measures: [FirewallMeasure] = []) { state.withLock { $0.measures = measures } }

  var ends: Int { state.withLock { $0.ends } }
  var questions: [FirewallQuestion] { state.withLock { $0.questions } }
  var verbs: [FirewallVerb] { questions.map(\.verb) }
  var measures: [FirewallMeasure] { state.withLock { $0.measures } }
  var longest: Int { state.withLock { $0.longest } }
  func stop() { state.withLock { $0.isSilent = true } }
  func die() { state.withLock { $0.isGone = true } }
  func mangle(_ body: @escaping @Sendable (FirewallVerb, [UInt8]) -> [UInt8]) { state.withLock { $0.mangle = body } }
  func answers(_ body: @escaping @Sendable (FirewallQuestion) -> FirewallAnswer?) {
    state.withLock { $0.answer = body }
  }

  func send(_ message: [UInt8]) -> Bool {
    state.withLock { state in
      guard !state.isGone, let question = FirewallQuestion(message) else { return false }
      state.longest = max(state.longest, message.count)
      if !question.hasMore, question.verb != .look, question.verb != .more {
        var whole = question
        whole.records = state.parts + question.records
        state.questions.append(whole)
      }
      if state.isSilent { return true }
      state.answers.append(state.mangle(question.verb, Self.answer(question, &state)))
      return true
    }
  }

  private static func answer(_ question: FirewallQuestion, _ state: inout State) -> [UInt8] {
    var answer = FirewallAnswer(question.verb == .more ? .read : question.verb)
    state.parts += question.records
    if !question.hasMore, let special = state.answer(question) {
      answer = special
    } else if !question.hasMore {
      switch question.verb {
      case .apply:
        let gone = Set(state.parts.compactMap(\.removed))
        state.measures.removeAll { gone.contains($0.key) }
        state.measures += state.parts.compactMap(\.measure)
        state.generation += 1
      case .replace:
        state.measures = state.parts.compactMap(\.measure)
        state.generation += 1
      case .read: answer.records = state.measures.map { .measure($0) }
      case .more: answer.records = state.left
      case .reset: answer.records = state.parts.map { _ in .isSent(true) }
      default: break
      }
    }
    if !question.hasMore { state.parts = [] }
    if answer.failure == nil { answer.generation = state.generation }
    let part = answer.part(from: 0, sequence: question.sequence)
    state.left = Array(answer.records.dropFirst(part.next))
    return part.bytes
  }

  func receive(within patience: Duration) -> ReceivedMessage {
    let received: ReceivedMessage = state.withLock { state in
      if state.isGone { return .ended }
      return state.answers.isEmpty ? .nothing : .message(state.answers.removeFirst())
    }
    if received == .nothing { usleep(1_000) }
    return received
  }

  func end(patience: Duration) {
    state.withLock { state in
      state.ends += 1
      state.isGone = true
    }
  }

  var status: DetectorStatus { ends == 0 ? .running : .crashed(signal: SIGKILL) }
}

/// Processes in the order in which they were started.
private final class Started: Sendable {
  private let processes = Mutex<[ScriptedFirewall]>([])
  private let kept = Mutex<[FirewallMeasure]>([])
  private let refusals = Mutex(0)

  var all: [ScriptedFirewall] { processes.withLock { $0 } }
  var last: ScriptedFirewall { all.last! }
  /// What the next ones find in the kernel.
  func keep(_ measures: [FirewallMeasure]) { kept.withLock { $0 = measures } }
  /// So many starts fail.
  func refuse(_ count: Int) { refusals.withLock { $0 = count } }

  func open(
    call: Duration = .seconds(60), restart: Duration = .zero, look: Duration = .milliseconds(5),
    _ configuration: NftablesSink.Configuration = .init()
  ) throws(FirewallError) -> ProcessFirewallSink {
    var patience = ProcessFirewallSink.Patience()
    (patience.call, patience.measure, patience.restart, patience.look) = (call, .zero, restart, look)
    return try ProcessFirewallSink.open(configuration, patience: patience) { () throws(DetectorError) in
      let isRefused = self.refusals.withLock { count in
        defer { count = max(0, count - 1) }
        return count > 0
      }
      if isRefused { throw DetectorError(.launchFailed, "cannot start it", remedy: "r") }
      let process = ScriptedFirewall(measures: self.kept.withLock { $0 })
      self.processes.withLock { $0.append(process) }
      return process
    }
  }
}

private final class Once: Sendable {
  private let isTaken = Mutex(false)

  func take() -> Bool {
    isTaken.withLock { isTaken in
      defer { isTaken = true }
      return !isTaken
    }
  }
}

/// The packet filter through a process: what its owner believes of it.
@Suite("The packet filter through a process")
struct ProcessFirewallSinkTests {
  private let started = Started()

  private func change(_ from: UInt64, _ add: [FirewallMeasure]) -> FirewallChange {
    FirewallChange(from: from, time: start, add: add)
  }

  /// The failure of a change, which one without a process gives.
  private func failure(_ sink: ProcessFirewallSink, from: UInt64 = 1) async -> FirewallError? {
    do throws(FirewallError) {
      _ = try await sink.apply(change(from, [block("10.0.0.1")]))
      return nil
    } catch { return error }
  }

  @Test("it is told how the table is to be, what is to change in one message, and a long list in several")
  func asks() async throws {
    let exceptions = QuarantineExceptions(networks: [IPNetwork("10.0.0.0/8")!], allowsDHCP: true)
    let sink = try started.open(
      .init(table: "t", quarantineExceptions: exceptions, protectsHost: true, holdsTable: false, capacity: 60_000))
    let opening = try #require(started.last.questions.first)
    #expect(opening.number == 5 && opening.time == 60_000)
    #expect(opening.records == [.text("t"), .network(IPNetwork("10.0.0.0/8")!)])
    #expect(try await sink.apply(change(1, [block("10.0.0.1")])) == 2)
    #expect(started.last.longest < 200, "one block is one short message")
    let many = (0..<20_000).map { block("10.\($0 >> 8).\($0 & 255).0/24", for: vm1, decision: UInt64($0)) }
    #expect(try await sink.replace(with: many, at: start) == 3)
    #expect(started.last.measures == many && started.last.longest <= FirewallMessage.byteLimit)
    #expect(try await sink.readBack(at: start) == FirewallState(generation: 3, measures: many))
    #expect(started.all.count == 1 && sink.problem == nil)
  }

  @Test(
    "how many elements there are is what the process says; one that does not know, or says what cannot be, leaves it open"
  )
  func elements() async throws {
    let sink = try started.open()
    for (said, count) in [(UInt64(0), Int?.some(0)), (7, 7), (.max, nil), (1 << 63, nil)] {
      started.last.answers { question in
        guard question.verb == .counts else { return nil }
        var answer = FirewallAnswer(.counts)
        answer.number = said
        return answer
      }
      #expect(try await sink.trafficCounts().elements == count)
    }
  }

  @Test("ports that no interface can have are left out, and more addresses than fit into a record are told")
  func ports() async throws {
    let sink = try started.open()
    let addresses = (0..<600).map { IPAddress(v4: UInt32($0)) }
    let good = NetworkPort(interface: "vif1.0", bridge: "no such/bridge", mac: .init(rawValue: 1), addresses: addresses)
    try await sink.update(
      ports: [vm1: [good, NetworkPort(interface: "much-too-long-a-name", mac: .init(rawValue: 2))]],
      antiSpoofing: AntiSpoofing(
        [.mac, .router], exceptions: [vm2: [.mac]], reserved: [IPAddress("fe80::1")!, IPAddress("10.0.0.1")!]))
    let question = try #require(started.last.questions.last)
    #expect(question.number == UInt64(SpoofingKind.mask(of: [.mac, .router])))
    var told: [IPAddress] = []
    for case .port(vm1, let port) in question.records {
      #expect(port.interface == "vif1.0" && port.bridge == nil)
      told += port.addresses
    }
    #expect(
      told == addresses && question.records.suffix(2) == [.exception(vm2, [.mac]), .network(IPNetwork("fe80::1")!)])
  }

  @Test(
    "a process that says what no sound one says is ended, and what it was asked fails",
    arguments: [0, 1, 2, 3, 4, 5])
  func garbage(kind: Int) async throws {
    let sink = try started.open()
    let first = started.last
    first.mangle { verb, bytes in
      guard verb == .apply || verb == .read else { return bytes }
      var bytes = bytes
      switch kind {
      case 0: return []
      case 1: return [UInt8](repeating: 0xFF, count: 60_000)
      case 2: bytes[8] ^= 1
      case 3: bytes[30] = 1
      case 4: bytes[20] = 9
      default: return bytes + [0]
      }
      return bytes
    }
    let error = await failure(sink)
    #expect(error?.code == .failed && error?.message.contains("vmfence-firewall is gone") == true, "\(error!)")
    #expect(error?.message.contains("no sound one gives") == true && first.ends == 1)
    #expect(await comesTrueSuspending { started.all.count == 2 && sink.problem == nil })
    #expect(try await sink.readBack(at: start).measures.isEmpty)
  }

  @Test("a list that does not end, and one that is longer than what can stand, end the process")
  func endless() async throws {
    let sink = try started.open(.init(capacity: 2))
    started.last.answers { question in
      guard question.verb == .read else { return nil }
      var answer = FirewallAnswer(.read)
      answer.records = (0..<3).map { .measure(block("10.0.0.\($0)")) }
      return answer
    }
    await #expect(throws: FirewallError.self) { try await sink.readBack(at: start) }
    #expect(started.all[0].ends == 1)
    let other = Started()
    let again = try other.open()
    other.last.answers { question in
      guard question.verb == .read || question.verb == .more else { return nil }
      var answer = FirewallAnswer(.read)
      answer.records = (0..<2_000).map { _ in .measure(block("10.0.0.1")) }
      return answer
    }
    other.last.mangle { verb, bytes in
      var bytes = bytes
      if verb == .read || verb == .more { bytes[16] = 1 }
      return bytes
    }
    await #expect(throws: FirewallError.self) { try await again.readBack(at: start) }
    #expect(other.all[0].ends == 1)
  }

  @Test("what the process refuses is told as it was, and the process goes on")
  func refusals() async throws {
    let sink = try started.open()
    started.last.answers { question in
      question.verb == .apply ? FirewallAnswer(.apply, FirewallError(.full, "no room", remedy: "r")) : nil
    }
    let error = await failure(sink)
    #expect(error == FirewallError(.full, "no room", remedy: "r"))
    #expect(started.all.count == 1 && started.last.ends == 0)
  }

  @Test("one that does not answer is waited for so long, and then ended: what it did not do it will not do")
  func silent() async throws {
    let sink = try started.open(call: .seconds(5), restart: .seconds(3_600), look: .seconds(3_600))
    started.last.stop()
    let begun = ContinuousClock.now
    let error = await failure(sink)
    #expect(error?.message.contains("did not answer within 5.0 seconds") == true, "\(error!)")
    #expect(ContinuousClock.now - begun < .seconds(50) && started.last.ends == 1)
    // One of some calls, for the machine may stand still in others: if it were waited for, all of them would take as long.
    let comesBack = await comesTrueSuspending(within: .seconds(30)) {
      let again = ContinuousClock.now
      #expect(await failure(sink)?.code == .failed)
      return ContinuousClock.now - again < .seconds(4)
    }
    #expect(comesBack, "it is waited for more than once")
    #expect(sink.problem?.contains("did not answer") == true)
  }

  @Test("after its end another goes on: told, with the ports, and with generations that only rise")
  func restarts() async throws {
    let sink = try started.open()
    var news = sink.news().makeAsyncIterator()
    try await sink.update(ports: bridgePorts, antiSpoofing: AntiSpoofing([.mac]))
    let before = try await sink.apply(change(1, [block("10.0.0.1")]))
    _ = try await sink.apply(change(before, [block("10.0.0.2")]))
    started.keep(started.last.measures)
    started.last.die()
    guard case .gone(let reason) = await news.next() else {
      Issue.record("its end is not told")
      return
    }
    #expect(reason.contains("signal 9"))
    #expect(await news.next() == .back)
    let second = started.last
    #expect(started.all.count == 2 && second.verbs.prefix(2) == [.open, .ports])
    #expect(second.questions[1].records == started.all[0].questions[1].records)
    let state = try await sink.readBack(at: start)
    #expect(state.generation > before + 1 && state.measures.count == 2)
    // What was decided for a generation of before conflicts, although the new process counts anew.
    for stale in [before, before + 1] {
      started.last.answers { question in
        question.verb == .apply && question.number == 0
          ? FirewallAnswer(.apply, FirewallError(.conflict, "stale")) : nil
      }
      #expect(await failure(sink, from: stale)?.code == .conflict)
    }
    #expect(try await sink.apply(change(state.generation, [block("10.0.0.3")])) == state.generation + 1)
    var acknowledged = await sink.acknowledgements().makeAsyncIterator()
    #expect(await acknowledged.next()?.generation == state.generation + 1)
  }

  @Test("one that dies unasked is missed within a look, and of what cannot be started the reason is told once")
  func startsFail() async throws {
    let sink = try started.open()
    var news = sink.news().makeAsyncIterator()
    started.refuse(3)
    started.last.die()
    guard case .gone = await news.next() else {
      Issue.record("its end is not told")
      return
    }
    #expect(await news.next() == .gone("cannot start it"))
    #expect(await news.next() == .back)
    #expect(started.all.count == 2)
  }

  @Test("one is started in a while at the most")
  func pace() async throws {
    let sink = try started.open(restart: .milliseconds(300))
    let begun = ContinuousClock.now
    for count in 1...3 {
      started.last.die()
      #expect(await comesTrueSuspending { started.all.count == count + 1 && sink.problem == nil })
    }
    #expect(ContinuousClock.now - begun > .milliseconds(600))
  }

  @Test("changes by others are told with who did it")
  func changes() async throws {
    let sink = try started.open()
    var news = sink.news().makeAsyncIterator()
    let change = ForeignChange(kind: .changed, process: "nft\u{1b}", processID: 7)
    let once = Once()
    started.last.answers { question in
      guard question.verb == .look, once.take() else { return nil }
      var answer = FirewallAnswer(.look)
      answer.records = [.change(change)]
      return answer
    }
    guard case .changedByOthers(let seen) = await news.next() else {
      Issue.record("it is not told")
      return
    }
    #expect(seen.processID == 7 && seen.kind == .changed && !seen.process.contains("\u{1b}"))
  }

  @Test("of flows and resets no more comes back than was asked")
  func flows() async throws {
    let sink = try started.open()
    let flow = FlowCut(
      domain: vm1, source: IPAddress("10.0.0.1")!, destination: IPAddress("10.0.0.2")!, sourcePort: 1,
      destinationPort: 2, ipProtocol: 6)
    started.last.answers { question in
      guard question.verb == .cut else { return nil }
      var answer = FirewallAnswer(.cut)
      (answer.number, answer.records) = (.max, [.flow(flow)])
      return answer
    }
    let outcome = try await sink.cut([flow])
    #expect(outcome.cut == 1 && outcome.left == [flow])
    started.last.answers { question in
      guard question.verb == .reset else { return nil }
      var answer = FirewallAnswer(.reset)
      answer.records = question.records.map { _ in .isSent(true) } + [.isSent(true)]
      return answer
    }
    let station = TCPReset.Station(mac: .init(rawValue: 1), address: IPAddress("10.0.0.1")!, port: 1)
    let reset = AddressedReset(
      domain: vm1, direction: .toGuest,
      reset: TCPReset(source: station, destination: station, vlan: nil, next: 1, acknowledged: nil))
    #expect(await sink.send([reset]) == [false])
    #expect(started.all[0].ends == 1)
  }
}
