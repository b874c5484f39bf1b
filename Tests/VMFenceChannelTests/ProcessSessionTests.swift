import Foundation
import Synchronization
import TestSupport
import Testing
import VMFenceCore
import VMFenceProcess

@testable import VMFenceChannel

/// A process of a session that says what a test wants.
private final class ScriptedProcess: SessionProcess {
  private struct State {
    var sent: [SessionOrder] = []
    var waiting: [SessionMessage] = []
    var ends = 0
    var isFull = false
  }
  private let state = Mutex(State())
  let descriptor: Int32 = 7

  var sent: [SessionOrder] { state.withLock { $0.sent } }
  var ends: Int { state.withLock { $0.ends } }
  func fill(_ isFull: Bool) { state.withLock { $0.isFull = isFull } }
  func say(_ reports: SessionReport...) { for report in reports { say(report.encoded) } }
  func say(_ bytes: [UInt8]) { state.withLock { $0.waiting.append(.message(bytes)) } }
  func die() { state.withLock { $0.waiting.append(.ended) } }

  func send(_ bytes: [UInt8]) -> Bool {
    state.withLock { state in
      guard !state.isFull, let order = SessionOrder(bytes) else { return false }
      state.sent.append(order)
      return true
    }
  }
  func next() -> SessionMessage { state.withLock { $0.waiting.isEmpty ? .nothing : $0.waiting.removeFirst() } }
  func end(patience: Duration) { state.withLock { $0.ends += 1 } }
}

extension HelperProcess: SessionProcess {
  public func next() -> SessionMessage {
    switch receive(within: .zero) {
    case .message(let bytes): .message(bytes)
    case .nothing: .nothing
    case .ended: .ended
    }
  }
}

/// A guest that offers one page, whose session is that process's.
private struct ScriptedPages: GuestPages {
  let process: ScriptedProcess
  let descriptor: Int32 = -1
  func offer(of domain: Incarnation) -> Int? { 1 }
  func open(
    _ offer: Int, of domain: Incarnation, epoch: UInt64, at now: Timestamp
  ) -> GuestPage<ProcessSession<ScriptedProcess>> {
    GuestPage(
      session: ProcessSession(process, page: nil, epoch: epoch, looks: true, at: now, isRightGuest: { true }))
  }
  func close(_ page: GuestPage<ProcessSession<ScriptedProcess>>) {}
  func ring(_ page: GuestPage<ProcessSession<ScriptedProcess>>, of domain: Incarnation) {}
  func takeRings() -> [UInt32] { [] }
  func unmask(_ port: UInt32) {}
}

/// A policy channel's Dom0 side in a process of its own: what its owner believes of it, and the process itself.
@Suite("A session in a process of its own", .serialized)
struct ProcessSessionTests {
  private let process = ScriptedProcess()

  private func session(isRightGuest: Bool = true) -> ProcessSession<ScriptedProcess> {
    ProcessSession(
      process, page: .init(domain: 7, reference: 9), epoch: 0x55, looks: true, at: start,
      isRightGuest: { isRightGuest })
  }

  private func isClosed(_ events: [HostChannelEvent]) -> Bool {
    if case .closed? = events.last { events.count == 1 } else { false }
  }

  @Test("orders and reports come out as they went in, and what is cut, longer or unknown is none")
  func coding() throws {
    let orders: [SessionOrder] = [
      .begin(epoch: .max, page: .init(domain: 3, reference: .max), looks: true),
      .begin(epoch: 1, page: nil, looks: false), .look, .offer(try policy(3)), .close,
    ]
    for order in orders {
      #expect(SessionOrder(order.encoded) == order)
      #expect(SessionOrder(order.encoded.dropLast()) == nil && SessionOrder(order.encoded + [0]) == nil)
    }
    #expect(SessionOrder([]) == nil && SessionOrder([9]) == nil)
    let digest = [UInt8](repeating: 8, count: 32)
    let answer = PolicyAcknowledgement(version: 4, digest: digest, status: .failed, reason: "no")
    let reports: [SessionReport] = [
      .mapped, .failed("why"), .sent(12), .opened(version: 1), .acknowledged(answer, delay: .milliseconds(3)),
      .acknowledged(answer, delay: nil),
      .inForce(.init(policy: .init(version: 4, digest: digest), standing: 1, measures: 2, dropped: [1, 2, 3, 4])),
      .declared([1, 2, 3]), .silent(version: 4), .restarted, .closed(ChannelViolation(.index, "an index")),
    ]
    for report in reports { #expect(try SessionReport(report.encoded) == report) }
    let broken: [[UInt8]] = [
      [], [0], [11], [1, 0], [3, 1], [4, 1], [5, 0], [6, 1], [8], [9, 9], [10, 1], [10, 99, 0],
      [2] + Array("\u{1B}[2J".utf8), [10, 1, 0, 0xFF], [2] + [UInt8](repeating: 0x61, count: 401),
    ]
    for bytes in broken { #expect(throws: ChannelViolation.self, "\(bytes)") { try SessionReport(bytes) } }
  }

  @Test("nothing of a page is read before it is known whose it is")
  func rightGuest() {
    var session = session()
    #expect(process.sent == [.begin(epoch: 0x55, page: .init(domain: 7, reference: 9), looks: true)])
    #expect(session.step(at: start, rang: false) == [] && process.sent.count == 1)
    process.say(.mapped)
    #expect(session.step(at: start, rang: false) == [] && process.sent.last == .look)

    let other = ScriptedProcess()
    var wrong = ProcessSession(
      other, page: nil, epoch: 1, looks: true, at: start, isRightGuest: { false })
    other.say(.mapped)
    #expect(wrong.step(at: start, rang: false) == [.closed(ChannelViolation(.page, "the guest is gone"))])
    #expect(other.ends == 1 && other.sent.count == 1 && wrong.descriptor == -1)
    #expect(wrong.step(at: start, rang: true) == [])
  }

  @Test("what it reports comes out, a policy that finds no room is sent later, and a ring is passed on")
  func events() throws {
    var session = session()
    let answer = PolicyAcknowledgement(version: 4, digest: Array(repeating: 8, count: 32), status: .applied)
    process.say(.mapped, .opened(version: 1), .sent(3), .acknowledged(answer, delay: .milliseconds(5)))
    #expect(session.step(at: start, rang: false) == [.opened(version: 1), .acknowledged(answer)])
    #expect(session.messagesSent == 3 && session.answerDelay == .milliseconds(5))
    process.fill(true)
    session.offer(try policy(4))
    #expect(session.step(at: start, rang: true) == [] && process.sent.last == .look && process.sent.count == 2)
    process.fill(false)
    _ = session.step(at: start, rang: true)
    #expect(process.sent.suffix(2) == [.look, .offer(try policy(4))])
    session.close()
    #expect(process.sent.last == .close && process.ends == 1)
  }

  @Test(
    "one that says what no sound one says is ended, as a guest that breaks the protocol",
    arguments: [
      [[]], [[99]], [SessionReport.mapped.encoded, SessionReport.mapped.encoded],
      [SessionReport.opened(version: 99).encoded],
      [SessionReport.declared([1]).encoded], [[UInt8](repeating: 5, count: 200_000)],
      Array(repeating: SessionReport.sent(1).encoded, count: 1100),
    ] as [[[UInt8]]])
  func hostile(says: [[UInt8]]) {
    var session = session()
    for bytes in says { process.say(bytes) }
    var events: [HostChannelEvent] = []
    for _ in 0..<10 { events += session.step(at: start, rang: false) }
    #expect(isClosed(events) && process.ends == 1, "\(events)")
  }

  @Test("so is one that opens its session twice")
  func openedTwice() {
    var session = session()
    process.say(.mapped, .opened(version: 1), .opened(version: 1))
    let events = session.step(at: start, rang: false)
    #expect(events.first == .opened(version: 1) && isClosed(Array(events.dropFirst())) && process.ends == 1)
  }

  @Test("one that says again and again that its guest does not answer causes a bounded number of alerts")
  func silent() {
    let domain = Incarnation(uuid: guestUUID, domainID: DomainID(7))
    var keeper = ChannelKeeper(ScriptedPages(process: process)) { 1 }
    keeper.update([domain], at: start)
    _ = keeper.work(at: start, system: start)
    process.say(.mapped, .opened(version: 1))
    var alerts = 0
    for second in 1...100 {
      for _ in 0..<50 { process.say(.silent(version: 1)) }
      let now = start + .seconds(second)
      for case .alert(domain, .policyNotInForce, _) in keeper.work(at: now, system: now) { alerts += 1 }
    }
    #expect(keeper.statuses[domain]?.state == .open)
    #expect(alerts > 1 && alerts <= 4 + 100 / 10)
  }

  @Test("one that dies, or never maps the page, is the end of the session")
  func gone() {
    var first = session()
    #expect(first.step(at: start + .seconds(29), rang: false) == [])
    #expect(isClosed(first.step(at: start + .seconds(30), rang: false)), "it waits for ever")
    let other = ScriptedProcess()
    var second = ProcessSession(other, page: nil, epoch: 1, looks: true, at: start, isRightGuest: { true })
    other.die()
    #expect(isClosed(second.step(at: start, rang: false)), "a dead process is not noticed")
    #expect(other.ends == 1)
  }

  // MARK: The real process

  private struct Real {
    var session: ProcessSession<HelperProcess>
    var guest: GuestChannel
    var page: SharedPage
    var seen: [HostChannelEvent] = []

    init() throws {
      let region = try MemoryFile.makeRegion(byteCount: SharedPage.byteCount, writers: .anyone)
      page = SharedPage(region)
      guest = GuestChannel(preparing: page, session: 77)
      let process = try HelperProcess(
        executable: besideThisProgram("vmfence-channel"), descriptor: region.descriptor, messageLimit: 2048)
      session = ProcessSession(process, page: nil, epoch: 0x77, looks: true, at: now(), isRightGuest: { true })
    }

    /// Turns both sides until something was seen.
    mutating func turn(_ what: String, until condition: (HostChannelEvent) -> Bool) {
      let isSeen = comesTrue {
        for case .policy(let policy, _) in guest.step() {
          guest.acknowledge(PolicyAcknowledgement(version: policy.version, digest: policy.digest, status: .applied))
        }
        let events = session.step(at: now(), rang: true)
        seen += events
        return events.contains(where: condition)
      }
      #expect(isSeen, "\(what) was not seen, but \(seen)")
    }
  }

  @Test("the real one takes up a session, delivers policies, reports what the guest declares, and ends when told")
  func real() throws {
    var real = try Real()
    real.turn("the session") { $0 == .opened(version: 1) }
    real.session.offer(try policy(4, measures: GuestPolicy.measureLimit))
    real.turn("the acknowledgement") { if case .acknowledged(let answer) = $0 { answer.version == 4 } else { false } }
    #expect(real.session.answerDelay != nil && real.session.messagesSent > 0)
    let wishes = TenantDeclaration(serviceType: "http", protectedPaths: ["/etc/passwd", "/srv/**"])
    try real.guest.declare(wishes)
    real.turn("the declaration") { $0 == .declared(wishes) }
    try real.guest.declare(TenantDeclaration())
    real.turn("an empty one") { $0 == .declared(TenantDeclaration()) }
    real.session.close()
    #expect(real.page.acquire(ChannelLayout.Host.epoch) == 0, "the guest is told that the session is over")
  }

  @Test("the real one closes the channel of a guest that breaks the protocol, and of one that prepared no page")
  func realViolation() throws {
    var real = try Real()
    real.turn("the session") { $0 == .opened(version: 1) }
    for word in stride(from: 0, to: SharedPage.byteCount / 2, by: 8) { real.page.store(.max, at: word) }
    real.turn("the violation or a new session") { event in
      switch event {
      case .closed, .restarted: true
      default: false
      }
    }
    #expect(real.session.descriptor == -1 && real.session.step(at: now(), rang: true) == [])
    var blank = try Real()
    blank.page.store(0, at: ChannelLayout.Guest.magic)
    blank.turn("the violation") { if case .closed(let violation) = $0 { violation.code == .page } else { false } }
  }

  @Test("the real one holds nothing when it reads the page", .enabled(if: getuid() == 0, "needs root, to give it up"))
  func realIsSandboxed() throws {
    var real = try Real()
    real.turn("the session") { $0 == .opened(version: 1) }
    let folder = "/proc/\(real.session.process.processID)"
    let status = try String(contentsOfFile: folder + "/status", encoding: .utf8)
    for line in ["Uid:\t65534\t65534\t65534\t65534", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
      #expect(status.contains(line), "\(status)")
    }
    let files = try FileManager.default.contentsOfDirectory(atPath: folder + "/fd")
    #expect(Set(files).isSubset(of: ["0", "1", "2", "3", "4"]), "\(files)")
    real.session.close()
  }
}

/// The system's clock.
private func now() -> Timestamp { Timestamp(nanoseconds: Int64(Date().timeIntervalSince1970 * 1e9)) }
