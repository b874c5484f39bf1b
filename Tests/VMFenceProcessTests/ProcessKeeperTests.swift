import Foundation
import Glibc
import Synchronization
import TestSupport
import Testing
import VMFenceCore

@testable import VMFenceProcess

/// A helper that does as each question says. Started anew for each process that a keeper wants.
private final class Helpers: Sendable {
  private static let script = """
    #!/usr/bin/env python3
    import os, signal, socket
    owner = socket.socket(fileno=3)
    while True:
        question = owner.recv(100)
        if question == b"": os._exit(0)
        if question == b"end": os._exit(3)
        if question == b"crash": os.kill(os.getpid(), signal.SIGKILL)
        if question == b"hang up":
            owner.close()
            signal.pause()
        if question == b"hang": signal.pause()
        if question == b"flood":
            while True: owner.send(b"x" * 1000)
        owner.send(question)
    """

  private let path = FileManager.default.temporaryDirectory.appending(path: "vmfence-\(UUID().uuidString)").path
  private let started = Mutex<[HelperProcess]>([])

  init() throws { try writeProgram(Self.script, to: path) }

  deinit { try? FileManager.default.removeItem(atPath: path) }

  var all: [HelperProcess] { started.withLock { $0 } }

  /// - `failures`: so many starts fail, after the first.
  func keeper(restart: Duration = .seconds(1), failures: Int = 0) -> ProcessKeeper {
    let left = Mutex(failures)
    return ProcessKeeper("the helper", restart: restart) { () throws(DetectorError) in
      let isRefused = left.withLock { left in
        if !self.all.isEmpty { left -= 1 }
        return !self.all.isEmpty && left >= 0
      }
      if isRefused { throw DetectorError(.launchFailed, "there is none", remedy: "r") }
      let process = try HelperProcess(executable: self.path)
      self.started.withLock { $0.append(process) }
      return process
    }
  }
}

/// Hands a descriptor over at once.
private final class Handing: DescriptorProcess {
  private let descriptor: Int32

  init(_ descriptor: Int32) { self.descriptor = descriptor }
  func send(_ message: [UInt8]) -> Bool { true }
  func receive(within patience: Duration) -> ReceivedMessage { .nothing }
  func receive(within patience: Duration, descriptor: inout Int32?) -> ReceivedMessage {
    descriptor = self.descriptor
    return .message([1])
  }
  func end(patience: Duration) {}
  var status: DetectorStatus { .running }
}

@Suite("A helper process that is kept", .serialized)
struct ProcessKeeperTests {
  private let helpers: Helpers
  private let start = ContinuousClock.now
  private let long = Duration.seconds(60)

  init() throws { helpers = try Helpers() }

  private func begun() throws -> ProcessKeeper {
    var keeper = helpers.keeper()
    try keeper.begin(at: start)
    return keeper
  }

  /// What is read of a message: a sound answer to this question is its echo.
  private func answer(
    _ keeper: inout ProcessKeeper, to question: String, within patience: Duration = .seconds(60)
  ) -> String? {
    keeper.answer(within: patience) { bytes in bytes == Array(question.utf8) ? question : nil }
  }

  private func isGone(_ process: HelperProcess) -> Bool { kill(process.processID, 0) == -1 && errno == ESRCH }

  @Test("there is none before it is started; then it is asked and answers, again and again")
  func asked() throws {
    var keeper = helpers.keeper()
    #expect(keeper.absence == "it was not started yet" && keeper.mayBegin(at: start))
    keeper.ask(Array("nobody".utf8), at: start)
    #expect(!keeper.isOwing && answer(&keeper, to: "nobody") == nil)
    try keeper.begin(at: start)
    #expect(keeper.absence == nil && !keeper.mayBegin(at: start + long))
    for number in 0..<100 {
      keeper.ask(Array("question \(number)".utf8), at: start)
      #expect(keeper.isOwing)
      #expect(answer(&keeper, to: "question \(number)") == "question \(number)")
      #expect(!keeper.isOwing)
    }
    #expect(helpers.all.count == 1)
    keeper.end("it was ended")
    #expect(keeper.absence == "it was ended" && isGone(helpers.all[0]))
    keeper.end("it was ended again")
    #expect(keeper.absence == "it was ended", "what is not there is not ended")
  }

  @Test(
    "how it ended is told, and nobody waits for its answer",
    arguments: [
      ("end", "it ended with status 3"), ("crash", "it was killed by signal 9"), ("hang up", "it hung up"),
    ])
  func dies(question: String, ending: String) throws {
    var keeper = try begun()
    keeper.ask(Array(question.utf8), at: start)
    #expect(answer(&keeper, to: question) == nil)
    #expect(keeper.absence == ending && !keeper.isOwing)
    #expect(keeper.farewell == "the helper is gone (\(ending)) and is started again")
    #expect(isGone(helpers.all[0]))
    #expect(answer(&keeper, to: question) == nil && keeper.absence == ending)
  }

  @Test("one that died before it was asked is found at the question")
  func diedUnasked() throws {
    var keeper = try begun()
    kill(helpers.all[0].processID, SIGKILL)
    while case .nothing = helpers.all[0].receive(within: long) {}
    keeper.ask(Array("question".utf8), at: start)
    #expect(answer(&keeper, to: "question") == nil)
    #expect(keeper.absence == "it was killed by signal 9")
  }

  @Test("one that hangs owes its answer, is asked nothing meanwhile, and is ended when it is late")
  func hangs() throws {
    var keeper = try begun()
    keeper.ask(Array("hang".utf8), at: start)
    #expect(answer(&keeper, to: "hang", within: .milliseconds(20)) == nil)
    #expect(keeper.absence == nil && keeper.isOwing)
    keeper.ask(Array("another".utf8), at: start + .seconds(4))
    keeper.endIfOwing(for: .seconds(5), at: start + .seconds(5) - .nanoseconds(1))
    #expect(keeper.absence == nil)
    keeper.endIfOwing(for: .seconds(5), at: start + .seconds(5))
    #expect(keeper.absence == "it did not answer within 5.0 seconds" && isGone(helpers.all[0]))
  }

  @Test("an answer that comes late is that of its question, and one that owes nothing is not ended")
  func late() throws {
    var keeper = try begun()
    let process = helpers.all[0]
    keeper.ask(Array("first".utf8), at: start)
    #expect(answer(&keeper, to: "first") == "first", "it runs")
    kill(process.processID, SIGSTOP)
    keeper.ask(Array("second".utf8), at: start)
    #expect(answer(&keeper, to: "second", within: .milliseconds(20)) == nil && keeper.isOwing)
    keeper.ask(Array("third".utf8), at: start)
    kill(process.processID, SIGCONT)
    #expect(answer(&keeper, to: "second") == "second")
    keeper.endIfOwing(for: .zero, at: start + long)
    #expect(keeper.absence == nil)
    keeper.ask(Array("fourth".utf8), at: start)
    #expect(answer(&keeper, to: "fourth") == "fourth", "the third was not asked")
    #expect(helpers.all.count == 1)
  }

  @Test("one that says what no sound one says is ended at once")
  func nonsense() throws {
    var keeper = try begun()
    keeper.ask(Array("something".utf8), at: start)
    #expect(answer(&keeper, to: "something else") == nil)
    #expect(keeper.absence == "it gave an answer that no sound one gives" && isGone(helpers.all[0]))
  }

  @Test("one that floods is ended at what nobody has asked for, and what it says besides is not taken")
  func floods() throws {
    var keeper = try begun()
    keeper.ask(Array("flood".utf8), at: start)
    var messages = 0
    let first = keeper.answer(within: long) { (bytes: [UInt8]) -> Int? in
      messages += 1
      return bytes.count
    }
    #expect(first == 1000 && keeper.absence == nil)
    // The next one waits already, or comes.
    let isGiven = comesTrue {
      let unasked = keeper.answer(within: long) { (_: [UInt8]) -> Bool? in
        messages += 1
        return true
      }
      #expect(unasked == nil)
      return keeper.absence != nil
    }
    #expect(isGiven)
    #expect(keeper.absence == "it gave an answer that no sound one gives" && messages == 1)
    #expect(isGone(helpers.all[0]))
  }

  @Test("a descriptor goes to whoever reads the answer; one that nobody asked for is closed", arguments: [true, false])
  func descriptors(isAsked: Bool) throws {
    var ends: [Int32] = [-1, -1]
    // SAFETY: two numbers are written.
    let result = unsafe socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends)
    #expect(result == 0)
    let (mine, theirs) = (ends[0], ends[1])
    defer { close(mine) }
    func isClosed() -> Bool {
      var byte: UInt8 = 0
      // SAFETY: one byte at the most is written.
      return unsafe recv(mine, &byte, 1, Int32(MSG_DONTWAIT)) == 0
    }
    let process = Handing(theirs)
    var keeper = ProcessKeeper("the helper", restart: .zero) { () throws(DetectorError) in process }
    try keeper.begin(at: start)
    if isAsked { keeper.ask([1], at: start) }
    let read = keeper.answer(within: .zero) { (_: [UInt8], descriptor: Int32?) -> Int32? in descriptor }
    // What was closed, a process that another test is starting has for an instant.
    #expect(read == (isAsked ? theirs : nil) && (isAsked ? !isClosed() : comesTrue(isClosed)))
    #expect(keeper.absence == (isAsked ? nil : "it gave an answer that no sound one gives"))
    if let read { close(read) }
  }

  @Test("another is started after a while at the earliest, and why none could be is told")
  func pace() throws {
    var keeper = helpers.keeper(restart: .seconds(1), failures: 1)
    try keeper.begin(at: start)
    keeper.end("it was ended")
    #expect(!keeper.mayBegin(at: start + .milliseconds(999)) && keeper.mayBegin(at: start + .seconds(1)))
    let error = #expect(throws: DetectorError.self) { try keeper.begin(at: start + .seconds(1)) }
    #expect(error?.message == "there is none" && keeper.absence == "there is none")
    #expect(!keeper.mayBegin(at: start + .milliseconds(1_999)) && keeper.mayBegin(at: start + .seconds(2)))
    try keeper.begin(at: start + .seconds(2))
    keeper.ask(Array("question".utf8), at: start)
    #expect(answer(&keeper, to: "question") == "question" && helpers.all.count == 2)
    // At once where somebody has to.
    try keeper.begin(at: start + .seconds(2))
    #expect(helpers.all.count == 3 && isGone(helpers.all[1]) && keeper.absence == nil && !keeper.isOwing)
  }
}
