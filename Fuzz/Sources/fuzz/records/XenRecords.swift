import Glibc
import Synchronization

@testable import VMFenceCore
@testable import VMFenceXen

/// The hypervisor, without one: so many domains, and what was done to them.
private final class DoubleXen: XenHypervisor {
  struct Deed: Hashable {
    var verb: XenVerb
    var domain: Incarnation
  }
  let all: [XenDomain]
  private let done = Mutex<[Deed]>([])

  init() {
    all = (0..<40).map { number in
      let number = UInt32(number)
      return XenDomain(
        Incarnation(uuid: DomainUUID(high: 7, low: UInt64(number)), domainID: DomainID(1 + number * number)),
        xenFlags: number % 64 | number << 16, cpuTime: UInt64(number) << 32)
    }
  }

  var deeds: [Deed] { done.withLock { $0 } }

  func domains(from first: DomainID, limit: Int) throws(SystemFailure) -> [XenDomain] {
    precondition((0...XenDomain.listLimit).contains(limit), "a list without a limit")
    return Array(all.filter { $0.incarnation.domainID.rawValue >= first.rawValue }.prefix(limit))
  }
  func pause(_ domain: Incarnation) throws(SystemFailure) { try act(.pause, domain) }
  func unpause(_ domain: Incarnation) throws(SystemFailure) { try act(.unpause, domain) }
  func powerOff(_ domain: Incarnation) throws(SystemFailure) { try act(.powerOff, domain) }
  func destroy(_ domain: Incarnation) throws(SystemFailure) { try act(.destroy, domain) }

  private func act(_ verb: XenVerb, _ domain: Incarnation) throws(SystemFailure) {
    done.withLock { $0.append(Deed(verb: verb, domain: domain)) }
    guard all.contains(where: { $0.incarnation == domain }) else {
      throw SystemFailure(call: verb == .pause ? "none" : "no such domain", number: verb == .destroy ? -5 : ESRCH)
    }
  }
}

/// `vmfence-hypervisor`, sound or lying by the input.
private final class LyingHypervisor: MessageProcess {
  private struct State {
    var server = XenServer()
    var process = LyingProcess()
    var lastSequence: UInt64 = 0
  }
  private let state = Mutex(State())
  private let xen: DoubleXen
  private let operands: Operands
  /// Whether it says what is.
  private let isSound: Bool

  init(_ xen: DoubleXen, _ operands: Operands, isSound: Bool) {
    (self.xen, self.operands, self.isSound) = (xen, operands, isSound)
  }

  var receptions: Int { state.withLock { $0.process.receptions } }

  func send(_ message: [UInt8]) -> Bool {
    state.withLock { state in
      guard let question = XenQuestion(message), question.sequence > state.lastSequence, !state.process.isGone else {
        precondition(state.process.isGone, "a daemon asks what no sound one asks")
        return false
      }
      state.lastSequence = question.sequence
      let lie = isSound ? .none : Lie.next(operands)
      let answer = state.server.answer(message) { _ throws(XenOpeningFailure) in
        xen
      } isolate: {
      }
      guard let answer else { fatalError("a sound question is not answered") }
      state.process.put(answer, lie, operands)
      return true
    }
  }

  func receive(within patience: Duration) -> ReceivedMessage { state.withLock { $0.process.receive(within: patience) } }
  func end(patience: Duration) { state.withLock { $0.process.end() } }
  var status: DetectorStatus { state.withLock { $0.process.isGone } ? .exited(code: 7) : .running }
}

enum XenRecords {
  // MARK: Messages

  /// A question; or an answer to one, which comes first.
  static func read(_ operands: Operands) {
    guard operands.byte() % 2 == 0 else { return readAnswer(operands) }
    let bytes = operands.rest()
    guard let question = XenQuestion(bytes) else { return }
    precondition(question.encoded == bytes, "a question is written otherwise than it was read")
    precondition(XenQuestion(bytes + [0]) == nil && XenQuestion(bytes.dropLast()) == nil, "no length is checked")
    _ = question.incarnation
  }

  private static func readAnswer(_ operands: Operands) {
    guard let question = XenQuestion(operands.bytes(XenQuestion.byteCount)) else { return }
    let cut = Int(operands.number(UInt16.self))
    let bytes = operands.rest()
    guard let answer = XenAnswer(bytes, to: question) else { return }
    precondition(bytes.count <= XenAnswer.byteLimit, "longer than any")
    precondition((0...4095).contains(answer.error), "no errno value")
    check(answer.domains, from: question.number, limit: question.limit)
    precondition(question.verb == .list || answer.domains.isEmpty, "domains that nobody asked for")
    precondition(question.verb == .open || answer.opening == XenAnswer().opening, "an opening that nobody asked for")
    let again = answer.encoded(to: question)
    precondition(again.count == bytes.count, "an answer of another length")
    precondition(XenAnswer(again, to: question) == answer, "an answer is read otherwise than it was written")
    precondition(XenAnswer(Array(bytes.prefix(cut % bytes.count)), to: question) == nil, "an answer without its end")
    precondition(XenAnswer(bytes + [0], to: question) == nil, "an answer with more behind it")
    checkText(answer.opening.probeError.message)
  }

  private static func check(_ domains: [XenDomain], from first: UInt32, limit: UInt32) {
    precondition(domains.count <= min(Int(limit), XenDomain.listLimit), "a longer list than was asked for")
    var next = first
    for domain in domains {
      let number = domain.incarnation.domainID.rawValue
      precondition(number >= next && number < XenDomain.numberLimit, "numbers out of their order")
      precondition(domain.cpuTime >= .zero, "a time that runs backwards")
      next = number + 1
    }
  }

  // MARK: The process, and a daemon that lies

  /// Messages, each after its length.
  static func serve(_ operands: Operands) {
    let xen = DoubleXen()
    var server = XenServer()
    var (isOpen, isolations, last) = (false, 0, UInt64?.none)
    while !operands.isAtEnd {
      let message = operands.bytes(Int(operands.byte()) % 64)
      let refusesToOpen = operands.byte() % 4 == 3
      let deeds = xen.deeds.count
      let answer = server.answer(message) { _ throws(XenOpeningFailure) in
        precondition(!isOpen, "opened twice")
        if refusesToOpen { throw XenOpeningFailure(problem: 1, number: 2, major: 3, minor: 4) }
        return xen
      } isolate: {
        isolations += 1
      }
      guard let answer else {
        precondition(xen.deeds.count == deeds, "it did what it took for no question")
        return
      }
      guard let question = XenQuestion(message) else { fatalError("an answer to what is none") }
      precondition(last.map { question.sequence > $0 } ?? true, "an answer to what was asked before")
      last = question.sequence
      precondition(answer.count <= XenAnswer.byteLimit, "a long answer")
      guard let read = XenAnswer(answer, to: question) else { fatalError("an answer that its owner does not take") }
      switch question.verb {
      case .open: isOpen = read.opening == XenAnswer().opening
      case .list: precondition(isOpen && xen.deeds.count == deeds, "a list does something")
      default:
        precondition(isOpen && xen.deeds.count == deeds + 1, "one verb, one deed")
        precondition(xen.deeds.last == .init(verb: question.verb, domain: question.incarnation), "another deed")
      }
      precondition(isolations == (isOpen ? 1 : 0), "it keeps what it ought to give up")
    }
  }

  // MARK: The daemon, and a process that lies

  static func believe(_ operands: Operands) {
    let isSound = operands.byte() % 8 == 0
    let xen = DoubleXen()
    let processes = Mutex<[LyingHypervisor]>([])
    var patience = XenRemote.Patience()
    (patience.restart, patience.late) = (.zero, operands.byte() % 2 == 0 ? .zero : .seconds(60))
    let remote: XenRemote
    do throws(ProbeError) {
      remote = try XenRemote(on: XenHost(major: 4, minor: 17), patience: patience) { () throws(DetectorError) in
        let process = LyingHypervisor(xen, operands, isSound: isSound)
        processes.withLock { $0.append(process) }
        return process
      }
    } catch {
      precondition(!isSound, "a sound process cannot be used")
      return checkText(error.message)
    }
    var asked: Set<DoubleXen.Deed> = []
    for step in 1...24 where !operands.isAtEnd {
      let known = xen.all[Int(operands.byte()) % xen.all.count].incarnation
      let domain = operands.byte() % 8 == 0 ? Incarnation(uuid: known.uuid, domainID: DomainID(3)) : known
      let verb = [XenVerb.list, .list, .pause, .unpause, .powerOff, .destroy][Int(operands.byte()) % 6]
      if verb != .list { asked.insert(.init(verb: verb, domain: domain)) }
      do throws(SystemFailure) {
        switch verb {
        case .open, .list:
          let (first, limit) = (DomainID(UInt32(operands.number(UInt16.self)) % 2_000), Int(operands.byte()) % 64)
          let list = try remote.domains(from: first, limit: limit)
          check(list, from: first.rawValue, limit: UInt32(limit))
          let sound = try xen.domains(from: first, limit: limit)
          precondition(!isSound || list == sound, "another list")
        case .pause: try remote.pause(domain)
        case .unpause: try remote.unpause(domain)
        case .powerOff: try remote.powerOff(domain)
        case .destroy: try remote.destroy(domain)
        }
        guard isSound, verb != .list else { continue }
        precondition(domain == known && xen.deeds.last == .init(verb: verb, domain: domain), "it was not done")
      } catch {
        precondition((1...4095).contains(error.number), "no errno value")
        precondition(!isSound || verb != .list && domain != known, "a sound process fails")
        checkText(error.call)
      }
      let all = processes.withLock { $0 }
      precondition(all.count <= 1 + 2 * step, "processes without end")
      precondition(all.reduce(0) { $0 + $1.receptions } <= 2 + 4 * step, "it waits without end")
    }
    precondition(asked.isSuperset(of: xen.deeds), "a deed that nobody asked for")
  }
}
