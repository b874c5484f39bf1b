import Glibc
import Synchronization
import TestSupport
import Testing
import VMFenceConformance
import VMFenceCore
import VMFenceTestKit

@testable import VMFenceXen

/// The hypervisor's process, without one: its side answers at once, and does what a test wants besides.
final class ScriptedHypervisorProcess: MessageProcess {
  private struct State {
    var server = XenServer()
    var questions: [[UInt8]] = []
    /// Of them, those that came while it was stopped.
    var waiting: [[UInt8]] = []
    var answers: [[UInt8]] = []
    var isSilent = false
    var isGone = false
    var ends = 0
    var mangle: @Sendable ([UInt8]) -> [UInt8] = { $0 }
  }
  private let state = Mutex(State())
  private let xen: any XenHypervisor
  private let opening: XenOpeningFailure?

  init(_ xen: any XenHypervisor, opening: XenOpeningFailure? = nil) {
    self.xen = xen
    self.opening = opening
  }

  var ends: Int { state.withLock { $0.ends } }
  var questions: [XenQuestion] { state.withLock { $0.questions.compactMap { XenQuestion($0) } } }
  /// Stopped: it takes questions, and does nothing until it is let run.
  func stop() { state.withLock { $0.isSilent = true } }
  func die() { state.withLock { $0.isGone = true } }
  func mangle(_ body: @escaping @Sendable ([UInt8]) -> [UInt8]) { state.withLock { $0.mangle = body } }
  func run() {
    let waiting = state.withLock { state in
      state.isSilent = false
      defer { state.waiting = [] }
      return state.waiting
    }
    for question in waiting { answer(question) }
  }

  func send(_ message: [UInt8]) -> Bool {
    state.withLock { state in
      guard !state.isGone else { return false }
      state.questions.append(message)
      if state.isSilent { state.waiting.append(message) } else { answer(message, &state) }
      return true
    }
  }

  private func answer(_ message: [UInt8]) { state.withLock { answer(message, &$0) } }
  private func answer(_ message: [UInt8], _ state: inout State) {
    let answer = state.server.answer(message) { _ throws(XenOpeningFailure) in
      if let opening { throw opening }
      return xen
    } isolate: {
    }
    if let answer { state.answers.append(state.mangle(answer)) } else { state.isGone = true }
  }

  func receive(within patience: Duration) -> ReceivedMessage {
    state.withLock { state in
      if state.isGone { return .ended }
      return state.answers.isEmpty ? .nothing : .message(state.answers.removeFirst())
    }
  }

  func end(patience: Duration) {
    state.withLock { state in
      state.ends += 1
      state.isGone = true
      state.waiting = []
    }
  }

  var status: DetectorStatus { ends == 0 ? .running : .crashed(signal: SIGKILL) }
}

/// Numbers that look random and are the same each time (SplitMix64).
private struct SplitMix: RandomNumberGenerator {
  var state: UInt64
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var mixed = state
    mixed = (mixed ^ mixed >> 30) &* 0xBF58_476D_1CE4_E5B9
    mixed = (mixed ^ mixed >> 27) &* 0x94D0_49BB_1331_11EB
    return mixed ^ mixed >> 31
  }
  mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
}

/// Processes in the order in which they were started.
private final class Started: Sendable {
  private let processes = Mutex<[ScriptedHypervisorProcess]>([])
  let xen = FakeXen()
  var count: Int { processes.withLock { $0.count } }
  var last: ScriptedHypervisorProcess { processes.withLock { $0.last! } }

  func remote(_ patience: XenRemote.Patience = .init(), opening: XenOpeningFailure? = nil) throws(ProbeError)
    -> XenRemote
  {
    try XenRemote(on: XenHost(major: 4, minor: 17), patience: patience) { () throws(DetectorError) in
      let process = ScriptedHypervisorProcess(self.xen, opening: opening)
      self.processes.withLock { $0.append(process) }
      return process
    }
  }
}

extension XenRemote.Patience {
  fileprivate static func short(late: Duration = .seconds(60), restart: Duration = .zero) -> XenRemote.Patience {
    var patience = XenRemote.Patience()
    (patience.look, patience.act, patience.late, patience.restart) = (.zero, .zero, late, restart)
    return patience
  }
}

/// The hypervisor through a process of its own: what its owner believes of it.
@Suite("The hypervisor through a process of its own")
struct XenRemoteTests {
  private let started = Started()
  private var xen: FakeXen { started.xen }
  private let domain = Incarnation.test(5)

  private func failure(_ body: () throws(SystemFailure) -> Void) -> SystemFailure? {
    do throws(SystemFailure) {
      try body()
      return nil
    } catch { return error }
  }

  @Test("a probe over it is a probe, and its control acts")
  func isAProbe() async throws {
    try await HypervisorProbeConformance(patience: .seconds(60)).check {
      try FakeXenDriver { xen in
        try XenRemote(on: XenHost(major: 4, minor: 17)) { () throws(DetectorError) in ScriptedHypervisorProcess(xen) }
      }
    }
  }

  @Test("questions and answers come out as they went in")
  func coding() throws {
    for verb in XenVerb.allCases {
      var question = XenQuestion(verb, domain)
      (question.sequence, question.limit) = (.max, 7)
      #expect(XenQuestion(question.encoded) == question)
      #expect(XenQuestion(question.encoded.dropLast()) == nil && XenQuestion(question.encoded + [0]) == nil)
      var other = question.encoded
      other[0] = 99
      #expect(XenQuestion(other) == nil, "an unknown verb")
      other = question.encoded
      other[36] ^= 1
      #expect(XenQuestion(other) == nil, "another build")
      let answer = XenAnswer(error: EBUSY)
      #expect(XenAnswer(answer.encoded(to: question), to: question) == answer)
    }
    var seen: [XenDomain] = []
    for (index, flags) in [XenStateTable.Flags.running, .blocked, .paused, .shutdown, .dying, [.paused, .blocked]]
      .enumerated()
    {
      let reason: XenStateTable.ShutdownReason = flags.contains(.shutdown) ? .suspend : .none
      seen.append(
        XenDomain(
          .test(UInt32(index * 3 + 1)), flags: flags, reason: reason, isHardwareVirtualised: index % 2 == 0,
          cpuTime: .nanoseconds(index * 1_000_000_007)))
    }
    let question = XenQuestion(.list, sequence: 9, number: 1, limit: 6)
    let answer = XenAnswer(domains: seen)
    #expect(XenAnswer(answer.encoded(to: question), to: question) == answer)
  }

  /// Which byte of a sound answer is what instead.
  private static let malformations: [(Int, UInt8)] = [
    (0, 9), (4, 3), (4, 0xFF), (7, 0x80), (7, 0x7F), (8, 1), (15, 1), (56, 9), (88, 1), (89, 0x80), (90, 1),
  ]

  @Test(
    "an answer that no sound process gives is none",
    arguments: malformations)
  func malformed(at: Int, byte: UInt8) throws {
    let question = XenQuestion(.list, sequence: 4, number: 2, limit: 2)
    let sound = XenAnswer(domains: [XenDomain(.test(2)), XenDomain(.test(7))]).encoded(to: question)
    #expect(XenAnswer(sound, to: question)?.domains.count == 2)
    var broken = sound
    broken[at] = byte
    #expect(XenAnswer(broken, to: question) == nil)
    for count in [0, 1, 31, 32, 64, 95] { #expect(XenAnswer(Array(sound.prefix(count)), to: question) == nil) }
    #expect(XenAnswer(sound + [0], to: question) == nil)
    let pause = XenQuestion(.pause, domain)
    #expect(XenAnswer(XenAnswer(domains: [XenDomain(.test(2))]).encoded(to: pause), to: pause) == nil)
    var first = question
    first.number = 3
    #expect(XenAnswer(sound, to: first) == nil, "a domain before the first")
    first = question
    first.limit = 1
    #expect(XenAnswer(sound, to: first) == nil, "more than were asked for")
  }

  @Test("whatever comes, it is a list that keeps its bounds or none, and never a trap")
  func mutations() {
    var random = SplitMix(state: 1)
    let question = XenQuestion(.list, sequence: 4, number: 2, limit: 16)
    let sound = XenAnswer(domains: (0..<16).map { XenDomain(.test(2 + 3 * $0)) }).encoded(to: question)
    var lists = 0
    for _ in 0..<50_000 {
      var bytes = sound
      if random.below(4) == 0 { bytes = Array(bytes.prefix(random.below(bytes.count + 1))) }
      for _ in 0..<random.below(4) where !bytes.isEmpty {
        bytes[random.below(bytes.count)] = UInt8(truncatingIfNeeded: random.next())
      }
      _ = XenQuestion(Array(bytes.prefix(XenQuestion.byteCount)))
      guard let answer = XenAnswer(bytes, to: question) else { continue }
      lists += 1
      let numbers = answer.domains.map(\.incarnation.domainID.rawValue)
      #expect(
        numbers.count <= 16 && numbers == Set(numbers).sorted() && numbers.allSatisfy { (2..<0x7FF0).contains($0) })
    }
    #expect(lists > 1000)
  }

  @Test("its side answers sound questions only, and opens once")
  func server() throws {
    var server = XenServer()
    var isolations = 0
    func ask(_ message: [UInt8]) -> [UInt8]? {
      server.answer(message) { _ throws(XenOpeningFailure) in
        xen
      } isolate: {
        isolations += 1
      }
    }
    let list = XenQuestion(.list, sequence: 2, number: 1, limit: 5)
    #expect(ask(list.encoded) == nil, "it is not open")
    #expect(ask([]) == nil && ask([UInt8](repeating: 0xFF, count: 4000)) == nil)
    let open = XenQuestion(.open, sequence: 1, number: 4, limit: 17)
    #expect(ask(open.encoded).flatMap { XenAnswer($0, to: open) } == XenAnswer() && isolations == 1)
    var again = open
    again.sequence = 2
    #expect(ask(again.encoded) == nil && isolations == 1, "it is opened twice")
    #expect(ask(list.encoded) != nil)
    #expect(ask(list.encoded) == nil, "a question that was answered")
  }

  @Test("a list of more than a thousand comes in parts")
  func many() throws {
    let remote = try started.remote()
    for number in 1...2500 as ClosedRange<UInt32> { xen.put(XenDomain(.test(number))) }
    #expect(try remote.domains().map(\.incarnation.domainID.rawValue) == Array(1...2500))
    #expect(started.last.questions.count == 4)
    #expect(try remote.domain(DomainID(2500))?.incarnation == .test(2500))
    #expect(try remote.domain(DomainID(2501)) == nil)
  }

  @Test("a verb names number and UUID, and another that has the number by now is not hit")
  func reusedNumber() throws {
    let remote = try started.remote()
    xen.put(XenDomain(.test(5, uuid: 77)))
    for act in [remote.pause, remote.unpause, remote.powerOff, remote.destroy] {
      #expect(failure { () throws(SystemFailure) in try act(domain) }?.number == ESRCH)
    }
    #expect(try remote.domain(DomainID(5)) == XenDomain(.test(5, uuid: 77)))
    try remote.pause(.test(5, uuid: 77))
    #expect(try remote.domain(DomainID(5))?.runState == .paused)
  }

  @Test("what it cannot open is told as it is without it")
  func opening() throws {
    let cases: [(UInt32, Int32, ProbeError.Code, String)] = [
      (1, 0, .unavailable, "Xen 4.99"), (2, 0, .unavailable, "libxenctrl.so.4.99"),
      (3, EACCES, .permissionDenied, "privcmd"), (3, ENOENT, .unavailable, "cannot be reached"),
      (99, 0, .unavailable, "cannot be reached"),
    ]
    for (problem, number, code, text) in cases {
      do throws(ProbeError) {
        _ = try started.remote(opening: .init(problem: problem, number: number, major: 4, minor: 99))
        Issue.record("it opened")
      } catch { #expect(error.code == code && error.message.contains(text), "\(error)") }
      #expect(started.last.ends == 1)
    }
  }

  @Test("one that cannot be started, or is of another build, is told")
  func start() throws {
    do throws(ProbeError) {
      _ = try XenRemote(on: XenHost(major: 4, minor: 17)) { () throws(DetectorError) in
        throw DetectorError(.launchFailed, "cannot start it", remedy: "install it")
      }
      Issue.record("it started")
    } catch { #expect(error == ProbeError(.unavailable, "cannot start it", remedy: "install it")) }
    let dead = ScriptedHypervisorProcess(xen)
    dead.die()
    do throws(ProbeError) {
      _ = try XenRemote(on: XenHost(major: 4, minor: 17)) { () throws(DetectorError) in dead }
      Issue.record("it opened")
    } catch { #expect(error.message.contains("killed by signal 9") && error.remedy.contains("same build"), "\(error)") }
  }

  @Test("one that dies is told, and after a pause another is started")
  func death() throws {
    let remote = try started.remote(.short(restart: .milliseconds(50)))
    xen.put(XenDomain(domain))
    started.last.die()
    let first = try #require(failure { () throws(SystemFailure) in _ = try remote.domains() })
    #expect(first.number == EPIPE && first.call.contains("killed by signal 9"), "\(first)")
    let isOtherStarted = comesTrue {
      let next = failure { () throws(SystemFailure) in _ = try remote.domains() }
      if started.count == 1 { #expect(next?.call.contains("is gone") == true) }
      return started.count > 1
    }
    #expect(isOtherStarted)
    #expect(try remote.domains().map(\.incarnation) == [domain])
    #expect(started.count == 2)
  }

  @Test("one that says what no sound one says is ended", arguments: [0, 1, 31, 33, 40_000])
  func hostile(bytes: Int) throws {
    let remote = try started.remote(.short())
    let process = started.last
    process.mangle { _ in [UInt8](repeating: 0x5A, count: bytes) }
    let said = failure { () throws(SystemFailure) in _ = try remote.domains() }
    #expect(said?.call.contains("no sound one") == true && process.ends == 1)
    #expect(try remote.domains().isEmpty && started.count == 2)
  }

  @Test("a look that is not answered fails, others at once until it is; the late answer is not taken for another's")
  func late() throws {
    let remote = try started.remote(.short())
    let process = started.last
    xen.put(XenDomain(domain))
    process.stop()
    for _ in 0..<3 {
      #expect(failure { () throws(SystemFailure) in _ = try remote.domains() }?.number == ETIMEDOUT)
    }
    #expect(process.questions.count == 2, "one that owes an answer is asked nothing")
    process.run()
    xen.put(XenDomain(.test(6)))
    #expect(try remote.domains().map(\.incarnation) == [domain, .test(6)])
    #expect(process.ends == 0 && started.count == 1)
  }

  @Test("one that stays silent is taken for stuck, and another is started")
  func stuck() throws {
    let remote = try started.remote(.short(late: .zero))
    let process = started.last
    process.stop()
    #expect(failure { () throws(SystemFailure) in _ = try remote.domains() }?.number == ETIMEDOUT)
    #expect(failure { () throws(SystemFailure) in _ = try remote.domains() }?.call.contains("did not answer") == true)
    #expect(process.ends == 1)
    #expect(try remote.domains().isEmpty && started.count == 2)
  }

  @Test("a verb that is not answered is not carried out later")
  func lateVerb() throws {
    let remote = try started.remote(.short())
    let process = started.last
    xen.put(XenDomain(domain))
    process.stop()
    #expect(failure { () throws(SystemFailure) in try remote.pause(domain) }?.number == ETIMEDOUT)
    #expect(process.ends == 1)
    process.run()
    #expect(try remote.domain(domain.domainID)?.runState == .running)
  }

  @Test("a domain is destroyed through a process of its own, so that looks need not wait for it")
  func destroy() throws {
    let remote = try started.remote()
    let looks = started.last
    xen.put(XenDomain(domain))
    try remote.destroy(domain)
    #expect(started.count == 2 && started.last.ends == 1 && looks.ends == 0)
    #expect(try remote.domains().isEmpty && started.count == 2)
  }

  @Test("a probe tells of the process's death and goes on")
  func probe() async throws {
    let started = started
    let driver = try FakeXenDriver(xen) { _ in try started.remote(.short()) }
    let domain = try await driver.create(0)
    #expect(try await driver.xenProbe.snapshot().domains.map(\.name) == [domain.name])
    let changes = await driver.xenProbe.changes()
    let gap = Task {
      for await change in changes { if case .gap(_, let reason) = change { return reason } }
      return ""
    }
    started.last.die()
    #expect(await gap.value.contains("vmfence-hypervisor is gone"))
    #expect(await comesTrueSuspending { driver.xenProbe.problems.isEmpty })
    #expect(try await driver.xenProbe.snapshot().domains.map(\.name) == [domain.name])
    #expect(driver.xenProbe.problems.isEmpty && started.count == 2)
  }
}
