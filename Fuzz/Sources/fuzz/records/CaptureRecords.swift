import Glibc
import Synchronization

@testable import VMFenceCapture
@testable import VMFenceCore

/// Descriptors that a process may hand over. Of packet sockets each is a copy of one: to close the last one of a packet socket takes milliseconds.
private enum Handed {
  /// -1 where packet sockets may not be opened.
  static let packet = socket(AF_PACKET, CInt(SOCK_RAW.rawValue | SOCK_CLOEXEC.rawValue), 0)
  static let cooked = socket(AF_PACKET, CInt(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
  static let local = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
  static let internet = socket(AF_INET, CInt(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
  // SAFETY: a terminated path.
  static let file = unsafe open("/dev/null", O_RDONLY | O_CLOEXEC)

  static func copy(of original: CInt) -> CInt? {
    let copy = fcntl(original, F_DUPFD_CLOEXEC, 3)
    return copy >= 0 ? copy : nil
  }

  static func packetCopy() throws(SystemFailure) -> CInt {
    guard let copy = copy(of: packet) else { throw SystemFailure(call: "socket", number: EPERM) }
    return copy
  }

  /// By the input: none, a sound one, or what is none.
  static func choose(_ operands: Operands) -> CInt? {
    switch operands.byte() % 6 {
    case 0: nil
    case 1: copy(of: packet)
    case 2: copy(of: cooked)
    case 3: copy(of: local)
    case 4: copy(of: internet)
    default: copy(of: file)
    }
  }

  /// The lowest number that is free: it rises when something is not closed.
  static func lowestFree() -> CInt {
    // Those that are made at their first use stay open.
    _ = (packet, cooked, local, internet)
    let descriptor = fcntl(file, F_DUPFD_CLOEXEC, 3)
    precondition(descriptor >= 0, "no descriptors left")
    close(descriptor)
    return descriptor
  }
}

/// `vmfence-capture`, sound or lying by the input.
private final class LyingOpener: DescriptorProcess {
  private struct State {
    var server = PacketSocketServer()
    var process = LyingProcess()
    var descriptors: [CInt?] = []
    var lastSequence: UInt64 = 0
  }
  private let state = Mutex(State())
  private let operands: Operands
  private let isSound: Bool

  init(_ operands: Operands, isSound: Bool) { (self.operands, self.isSound) = (operands, isSound) }

  var receptions: Int { state.withLock { $0.process.receptions } }

  func send(_ message: [UInt8]) -> Bool {
    state.withLock { state in
      guard !state.process.isGone else { return false }
      guard let question = PacketSocketMessage(message), question.sequence > state.lastSequence else {
        fatalError("a daemon asks what no sound one asks")
      }
      state.lastSequence = question.sequence
      guard let (answer, descriptor) = state.server.answer(message, open: Handed.packetCopy) else {
        fatalError("a sound question is not answered")
      }
      var handed = descriptor
      if !isSound, operands.byte() % 2 == 1 {
        if let descriptor { close(descriptor) }
        handed = Handed.choose(operands)
      }
      state.process.put(answer, isSound ? .none : Lie.next(operands), operands)
      state.descriptors.append(handed)
      return true
    }
  }

  func receive(within patience: Duration) -> ReceivedMessage { fatalError("a descriptor would be lost") }

  func receive(within patience: Duration, descriptor: inout CInt?) -> ReceivedMessage {
    state.withLock { state in
      let received = state.process.receive(within: patience)
      // With a message, or without one: nothing but a descriptor may come, too.
      descriptor = state.descriptors.isEmpty || received == .ended ? nil : state.descriptors.removeFirst()
      return received
    }
  }

  func end(patience: Duration) {
    state.withLock { state in
      state.process.end()
      for case .some(let descriptor) in state.descriptors { close(descriptor) }
      state.descriptors = []
    }
  }

  var status: DetectorStatus { state.withLock { $0.process.isGone } ? .exited(code: 7) : .running }
}

enum CaptureRecords {
  /// Messages to the process one after the other, each after its length.
  static func read(_ operands: Operands) {
    var server = PacketSocketServer()
    var last: UInt64?
    let free = Handed.lowestFree()
    while !operands.isAtEnd {
      let message = operands.bytes(Int(operands.byte()) % 24)
      let refuses = operands.byte() % 2 == 1
      let read = PacketSocketMessage(message)
      if let read {
        precondition(read.encoded == message, "a message is written otherwise than it was read")
        precondition((0...4095).contains(read.error), "no errno value")
      }
      var opened = 0
      let answer = server.answer(message) { () throws(SystemFailure) in
        opened += 1
        if refuses { throw SystemFailure(call: "socket", number: CInt(bitPattern: operands.number(UInt32.self))) }
        return try Handed.packetCopy()
      }
      guard let (bytes, descriptor) = answer else {
        precondition(opened == 0, "it opened a socket for what it took for no question")
        break
      }
      guard let read, let said = PacketSocketMessage(bytes) else { fatalError("an answer that is none") }
      precondition(read.error == 0 && last.map { read.sequence > $0 } ?? true, "an answer to what is no question")
      last = read.sequence
      precondition(opened == 1 && said.sequence == read.sequence, "another answer")
      precondition((said.error == 0) == (descriptor != nil), "a socket beside an error, or neither")
      if let descriptor { close(descriptor) }
    }
    precondition(Handed.lowestFree() == free, "a descriptor stays open")
  }

  /// Whoever wants packet sockets, and a process that lies.
  static func believe(_ operands: Operands) {
    let free = Handed.lowestFree()
    session(operands)
    precondition(Handed.lowestFree() == free, "a descriptor stays open")
  }

  private static func session(_ operands: Operands) {
    let isSound = operands.byte() % 8 == 0
    let processes = Mutex<[LyingOpener]>([])
    var patience = PacketSocketOpener.Patience()
    (patience.restart, patience.late) = (.zero, operands.byte() % 2 == 0 ? .zero : .seconds(60))
    let opener: PacketSocketOpener
    do throws(PacketSourceError) {
      opener = try PacketSocketOpener(patience: patience) { () throws(DetectorError) in
        let process = LyingOpener(operands, isSound: isSound)
        processes.withLock { $0.append(process) }
        return process
      }
    } catch { fatalError(error.message) }
    var step = 0
    while step < 24, !operands.isAtEnd {
      step += 1
      if operands.byte() % 2 == 0 {
        _ = opener.tend()
      } else {
        do throws(PacketSourceError) {
          let socket = try opener.socket(for: "vif1.0")
          let (index, _, packetProtocol) = socket.boundAddress()
          precondition(index == 0 && packetProtocol == 0, "a socket that receives already")
        } catch {
          precondition(!isSound || Handed.packet < 0, "a sound process gives no socket")
          checkText(error.message)
        }
      }
      checkText(opener.problem ?? "")
      let all = processes.withLock { $0 }
      precondition(all.count <= 1 + step, "processes without end")
      // Once to see whether a late answer has come, and twice for one that does not come: the second time the process has ended.
      precondition(all.reduce(0) { $0 + $1.receptions } <= 3 * step, "it waits without end")
    }
    if isSound { precondition(opener.problem == nil && opener.troubles.count == 0, "a sound process is not believed") }
  }
}
