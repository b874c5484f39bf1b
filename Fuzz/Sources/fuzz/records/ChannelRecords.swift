import Synchronization

@testable import VMFenceChannel
@testable import VMFenceCore

/// `vmfence-channel`, which says what the input says.
private final class LyingSession: SessionProcess {
  private struct State {
    var receptions = 0
    var orders: [SessionOrder] = []
    var isEnded = false
  }
  private let state = Mutex(State())
  private let operands: Operands
  let descriptor: CInt = 7

  init(_ operands: Operands) { self.operands = operands }

  var receptions: Int { state.withLock { $0.receptions } }
  var isEnded: Bool { state.withLock { $0.isEnded } }
  var orders: [SessionOrder] { state.withLock { $0.orders } }

  func send(_ bytes: [UInt8]) -> Bool {
    guard let order = SessionOrder(bytes) else { fatalError("a daemon orders what no sound one orders") }
    return state.withLock { state in
      precondition(!state.isEnded, "an order to a process that has ended")
      state.orders.append(order)
      return order == .close || operands.byte() % 8 != 7
    }
  }

  func next() -> SessionMessage {
    state.withLock { state in
      precondition(!state.isEnded, "a process that has ended is listened to")
      state.receptions += 1
      guard !operands.isAtEnd else { return .nothing }
      switch operands.byte() % 16 {
      case 0: return .nothing
      case 1: return operands.byte() % 8 == 0 ? .ended : .nothing
      // A part of a declaration, well made: they come to something only in their order.
      case 2, 3, 4: return .message(SessionReport.declared(part()).encoded)
      default: return .message(operands.bytes(Int(operands.byte())))
      }
    }
  }

  private func part() -> [UInt8] {
    let count = 1 + Int(operands.byte()) % 4
    let text = Array("/srv/".utf8) + operands.bytes(Int(operands.byte()) % 16)
    let item = DeclarationItem(
      kind: .init(rawValue: operands.byte() % 3) ?? .path, text: String(decoding: text, as: UTF8.self))
    return DeclarationPart(
      generation: UInt32(operands.byte()) % 4, index: Int(operands.byte()) % count, count: count, item: item
    ).encoded
  }

  func end(patience: Duration) { state.withLock { $0.isEnded = true } }
}

enum ChannelRecords {
  /// What a session's owner reads, or what its process does; of a policy without its digest, which is made.
  static func read(_ operands: Operands) {
    let choice = operands.byte() % 4
    var bytes = operands.rest()
    guard choice % 2 == 0 else {
      if choice == 3, bytes.count >= 16 {
        let length = UInt32(bytes.count + GuestPolicy.Form.digestBytes)
        for index in 12..<16 { bytes[index] = UInt8(truncatingIfNeeded: length >> UInt32(8 * (15 - index))) }
        bytes = [3] + bytes + SHA256.digest(of: bytes)
      }
      return readOrder(bytes)
    }
    let report: SessionReport
    do throws(ChannelViolation) { report = try SessionReport(bytes) } catch { return checkText(error.message) }
    // Whatever time runs backwards is none.
    if case .acknowledged(_, delay: nil) = report { bytes[1..<9] = Array(repeating: 0xFF, count: 8)[...] }
    precondition(report.encoded == bytes, "a report is written otherwise than it was read")
    var reader = SessionReader(at: .zero)
    do throws(ChannelViolation) {
      if let event = try reader.take(report, at: .zero) { check(event) }
    } catch { checkText(error.message) }
  }

  private static func readOrder(_ bytes: [UInt8]) {
    guard let order = SessionOrder(bytes) else { return }
    precondition(SessionOrder(order.encoded) == order, "an order is read otherwise than it was written")
    guard case .offer(let policy) = order else { return }
    precondition(order.encoded == bytes && bytes.count <= 1 + GuestPolicy.byteLimit, "a policy is written otherwise")
    precondition(policy.digest.count == 32, "no digest")
  }

  /// A session's owner, and a process that lies.
  static func believe(_ operands: Operands) {
    let process = LyingSession(operands)
    var now = Timestamp(seconds: 1_000)
    let isRight = operands.byte() % 8 != 0
    var session = ProcessSession(process, page: nil, epoch: 7, looks: false, at: now) { isRight }
    var isOver = false
    for step in 1...64 where !operands.isAtEnd {
      now = now + .milliseconds(Int(operands.byte()))
      if operands.byte() % 16 == 0 { now = Timestamp(nanoseconds: Int64(bitPattern: operands.number())) }
      let events = session.step(at: now, rang: operands.byte() % 2 == 0)
      precondition(events.count <= 257 && !(isOver && !events.isEmpty), "too many events")
      precondition(process.receptions <= 257 * step, "it listens without end")
      for (index, event) in events.enumerated() {
        check(event)
        switch event {
        case .closed, .restarted:
          precondition(index == events.count - 1 && process.isEnded, "something comes after the end")
          isOver = true
        default: break
        }
      }
      precondition(session.descriptor == (isOver ? -1 : process.descriptor), "somebody waits for what has ended")
    }
    session.close()
    precondition(process.isEnded, "a process that nobody wants")
  }

  private static func check(_ event: HostChannelEvent) {
    switch event {
    case .opened(let version): precondition(ChannelLayout.versions.contains(version), "a version that nobody speaks")
    case .acknowledged(let answer):
      precondition(answer.digest.count == 32 && answer.reason.utf8.count <= ChannelLayout.reasonLimit, "no answer")
      checkText(answer.reason)
    case .inForce(let report): precondition(report.dropped.count == 4 && report.standing <= report.measures)
    case .declared(let declaration):
      do throws(ChannelViolation) { try declaration.validate() } catch { fatalError(error.message) }
    case .silent, .restarted: break
    case .closed(let violation):
      checkText(violation.message)
      precondition(violation.message.utf8.count <= 2_048, "a long text")
    }
  }
}
