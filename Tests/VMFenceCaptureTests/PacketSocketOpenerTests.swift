import Glibc
import NetworkTestSupport
import Synchronization
import TestSupport
import Testing
import VMFenceCapture
import VMFenceCore

/// The process that opens packet sockets, without one: its side answers at once, and does what a test wants besides.
private final class ScriptedOpener: DescriptorProcess {
  private struct State {
    var server = PacketSocketServer()
    var answers: [([UInt8], Int32?)] = []
    var isGone = false
    var ends = 0
  }
  private let state = Mutex(State())
  private let mangle: @Sendable ([UInt8], Int32?) -> ([UInt8], Int32?)

  init(_ mangle: @escaping @Sendable ([UInt8], Int32?) -> ([UInt8], Int32?)) { self.mangle = mangle }

  var ends: Int { state.withLock { $0.ends } }

  /// Something that nobody has asked for.
  func blurt(_ bytes: [UInt8]) { state.withLock { $0.answers.append((bytes, nil)) } }

  func send(_ message: [UInt8]) -> Bool {
    state.withLock { state in
      guard !state.isGone, let (answer, descriptor) = state.server.answer(message) else { return false }
      state.answers.append(mangle(answer, descriptor))
      return true
    }
  }

  func receive(within patience: Duration) -> ReceivedMessage {
    var descriptor: Int32?
    return receive(within: patience, descriptor: &descriptor)
  }

  func receive(within patience: Duration, descriptor: inout Int32?) -> ReceivedMessage {
    state.withLock { state in
      descriptor = nil
      if state.isGone { return .ended }
      guard !state.answers.isEmpty else { return .nothing }
      let (bytes, handed) = state.answers.removeFirst()
      descriptor = handed
      return .message(bytes)
    }
  }

  func end(patience: Duration) {
    state.withLock { state in
      state.ends += 1
      state.isGone = true
      for (_, descriptor) in state.answers { if let descriptor { close(descriptor) } }
      state.answers = []
    }
  }

  var status: DetectorStatus { ends == 0 ? .running : .crashed(signal: SIGKILL) }
}

/// Answers that no sound process gives.
enum WrongAnswer: CaseIterable, Sendable {
  case short, long, empty, otherVersion, otherSequence, noErrno, errorWithSocket, noSocket
  case file, localSocket, internetSocket, cookedSocket, boundSocket, socketOfAllInterfaces

  func made(of answer: [UInt8], _ descriptor: Int32?) -> ([UInt8], Int32?) {
    func instead(_ other: Int32) -> ([UInt8], Int32?) {
      if let descriptor { close(descriptor) }
      return (answer, other)
    }
    var bytes = answer
    switch self {
    case .short: bytes.removeLast()
    case .long: bytes.append(0)
    case .empty: bytes = []
    case .otherVersion: bytes[1] ^= 0x80
    case .otherSequence: bytes[8] &+= 1
    case .noErrno: bytes[5] = 0x10
    case .errorWithSocket: bytes[4] = 1
    case .noSocket:
      if let descriptor { close(descriptor) }
      return (answer, nil)
    // SAFETY: a terminated path.
    case .file: return instead(unsafe open("/dev/null", O_RDONLY | O_CLOEXEC))
    case .localSocket: return instead(socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0))
    case .internetSocket: return instead(socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0))
    case .cookedSocket: return instead(socket(AF_PACKET, Int32(SOCK_DGRAM.rawValue), 0))
    case .boundSocket:
      // SAFETY: a terminated name.
      bind(descriptor ?? -1, protocol: 0, index: unsafe if_nametoindex("lo"))
    case .socketOfAllInterfaces: bind(descriptor ?? -1, protocol: 3, index: 0)
    }
    return (bytes, descriptor)
  }

  private func bind(_ descriptor: Int32, protocol number: UInt8, index: UInt32) {
    // struct sockaddr_ll: family, protocol in network order, index.
    var address = [UInt8](repeating: 0, count: 20)
    (address[0], address[3], address[4]) = (UInt8(AF_PACKET), number, UInt8(truncatingIfNeeded: index))
    // SAFETY: `bind` reads as many bytes as said, which the array has.
    let result = unsafe address.withUnsafeBytes { bytes in
      unsafe Glibc.bind(descriptor, bytes.baseAddress!.assumingMemoryBound(to: sockaddr.self), 20)
    }
    precondition(result == 0)
  }
}

/// Packet sockets from a process of its own: what their owner believes of it.
@Suite("Packet sockets from a process of its own", .enabled(if: getuid() == 0, "needs root, to open packet sockets"))
struct PacketSocketOpenerTests {
  private final class Started: Sendable {
    let processes = Mutex<[ScriptedOpener]>([])
    var count: Int { processes.withLock { $0.count } }
    func opener(
      restart: Duration = .zero, _ mangle: @escaping @Sendable (Int, [UInt8], Int32?) -> ([UInt8], Int32?)
    ) throws -> PacketSocketOpener {
      var patience = PacketSocketOpener.Patience()
      (patience.first, patience.answer, patience.restart) = (.zero, .zero, restart)
      return try PacketSocketOpener(patience: patience) { () throws(DetectorError) in
        let number = self.count
        let process = ScriptedOpener { mangle(number, $0, $1) }
        self.processes.withLock { $0.append(process) }
        return process
      }
    }
  }

  private let started = Started()

  private func open(_ opener: PacketSocketOpener) throws(PacketSourceError) {
    _ = try LiveCapture.open(interface: "lo", port: PortID(1), through: opener)
  }

  @Test("an answer that no sound process gives ends it, and the next one is asked", arguments: WrongAnswer.allCases)
  func wrong(answer: WrongAnswer) throws {
    let opener = try started.opener { number, bytes, descriptor in
      number == 0 ? answer.made(of: bytes, descriptor) : (bytes, descriptor)
    }
    do throws(PacketSourceError) {
      try open(opener)
      Issue.record("it was believed")
    } catch {
      #expect(error.code == .unavailable && error.message.contains("no sound one gives"), "\(error)")
    }
    let first = started.processes.withLock { $0[0] }
    #expect(first.ends == 1 && opener.troubles.count == 1)
    #expect(opener.tend(), "who wanted a socket can have one")
    #expect(opener.problem == nil && started.count == 2)
    try open(opener)
    try open(opener)
    #expect(started.count == 2 && opener.troubles.count == 1)
  }

  @Test("an answer with any bit changed ends it")
  func bits() throws {
    for bit in 0..<PacketSocketMessage.byteCount * 8 {
      let opener = try Started().opener(restart: .seconds(60)) { _, bytes, descriptor in
        var bytes = bytes
        bytes[bit / 8] ^= 1 << (bit % 8)
        return (bytes, descriptor)
      }
      #expect(throws: PacketSourceError.self, "bit \(bit)") { try open(opener) }
      #expect(opener.problem?.contains("no sound one gives") == true, "bit \(bit)")
    }
  }

  @Test("a question with any bit changed is none, but for a number that was not asked before")
  func questions() throws {
    for bit in 0..<PacketSocketMessage.byteCount * 8 {
      var server = PacketSocketServer()
      let first = server.answer(PacketSocketMessage(sequence: 1000).encoded)
      close(try #require(first?.descriptor))
      var bytes = PacketSocketMessage(sequence: 1001).encoded
      bytes[bit / 8] ^= 1 << (bit % 8)
      let answer = server.answer(bytes)
      if let descriptor = answer?.descriptor { close(descriptor) }
      let number: UInt64 = bit < 64 ? 0 : 1001 ^ 1 << UInt64(bit - 64)
      #expect((answer != nil) == (number > 1000), "bit \(bit)")
      if let answer { #expect(answer.answer == bytes && answer.descriptor != nil) }
    }
  }

  @Test("a descriptor that is not what was asked for is closed")
  func closed() throws {
    var ends: [Int32] = [-1, -1]
    // SAFETY: two numbers are written.
    let result = unsafe socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends)
    #expect(result == 0)
    let (mine, theirs) = (ends[0], ends[1])
    defer { close(mine) }
    let opener = try started.opener(restart: .seconds(60)) { _, bytes, descriptor in
      if let descriptor { close(descriptor) }
      return (bytes, theirs)
    }
    #expect(throws: PacketSourceError.self) { try open(opener) }
    var byte: UInt8 = 0
    // SAFETY: one byte at the most is written.
    let count = unsafe recv(mine, &byte, 1, Int32(MSG_DONTWAIT))
    #expect(count == 0, "the other end is closed")
  }

  @Test("what nobody has asked for ends it, and what it has handed over before stays good")
  func unasked() throws {
    let opener = try started.opener(restart: .seconds(60)) { ($1, $2) }
    try open(opener)
    #expect(!opener.tend() && opener.problem == nil)
    started.processes.withLock { $0[0].blurt(PacketSocketMessage(sequence: 2).encoded) }
    #expect(!opener.tend())
    #expect(opener.problem?.contains("no sound one gives") == true)
    try open(opener)
    // There was one in advance; another process may not be started yet.
    do throws(PacketSourceError) {
      try open(opener)
      Issue.record("there was a socket")
    } catch { #expect(error.code == .unavailable) }
    #expect(started.count == 1)
  }

  @Test("an error number is that of the call")
  func errors() throws {
    let opener = try started.opener { _, bytes, descriptor in
      if let descriptor { close(descriptor) }
      let question = PacketSocketMessage(bytes)
      return (PacketSocketMessage(sequence: question?.sequence ?? 0, error: ENFILE).encoded, nil)
    }
    for _ in 0..<3 {
      do throws(PacketSourceError) {
        try open(opener)
        Issue.record("it was opened")
      } catch {
        #expect(error.code == .inputOutput && error.message.contains("cannot open a packet socket"), "\(error)")
      }
    }
    #expect(started.count == 1 && opener.troubles.count == 0)
  }

  @Test("a program that cannot be started is an error at once, and later is tried again, not too often")
  func notStarted() throws {
    #expect(throws: PacketSourceError.self) {
      _ = try PacketSocketOpener { () throws(DetectorError) in throw DetectorError(.launchFailed, "there is none") }
    }
    let attempts = Mutex(0)
    var patience = PacketSocketOpener.Patience()
    (patience.first, patience.answer, patience.restart) = (.zero, .zero, .milliseconds(100))
    let begun = ContinuousClock.now
    let opener = try PacketSocketOpener(patience: patience) { () throws(DetectorError) in
      let number = attempts.withLock { attempts in
        attempts += 1
        return attempts
      }
      // The first is gone at once; then there is none.
      guard number == 1 else { throw DetectorError(.launchFailed, "there is none") }
      let process = ScriptedOpener { ($0, $1) }
      process.end(patience: .zero)
      return process
    }
    let isTried = comesTrue {
      #expect(!opener.tend())
      return attempts.withLock { $0 } >= 4
    }
    #expect(isTried)
    #expect(opener.problem == "there is none")
    // From the first to the fourth.
    #expect(
      attempts.withLock { $0 } == 4 && ContinuousClock.now - begun >= .milliseconds(300), "one in 100 ms at the most")
  }
}
