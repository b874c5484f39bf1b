package import VMFenceCore

/// A session's process, as its owner has it. Used by one thread.
package protocol SessionProcess: AnyObject, Sendable {
  /// - Returns: false when there is no room for it now, or nobody to take it.
  func send(_ bytes: [UInt8]) -> Bool
  /// Takes one message, without waiting.
  func next() -> SessionMessage
  /// Returns when it is gone: by itself within `patience`, or killed.
  func end(patience: Duration)
  /// Readable when it has sent something, or has ended.
  var descriptor: Int32 { get }
}

package enum SessionMessage {
  case message([UInt8])
  /// Nothing has come.
  case nothing
  /// It has ended, or hung up.
  case ended
}

/// A guest's session in a process of its own (`vmfence-channel`), which reads the guest's page and holds nothing else. What it reports is checked as the
/// guest's own messages are. Never waits, but for the process's end.
package struct ProcessSession<Process: SessionProcess>: GuestSession {
  /// From its start until the page is mapped.
  private static var startPatience: Duration { .seconds(30) }
  /// How long it has to tell the guest that the session is over, before it is killed.
  private static var endPatience: Duration { .milliseconds(100) }
  /// Reports that one step takes.
  private static var stepLimit: Int { 256 }

  let process: Process
  private let isRightGuest: @Sendable () -> Bool
  private let started: Timestamp
  private var reader: SessionReader
  private var isMapped = false
  private var isOver = false
  /// A policy for which there was no room yet.
  private var unsent: GuestPolicy?

  /// - `page`: which grant; nil: the memory file that the process was started with.
  /// - `looks`: whether nobody rings for the page.
  /// - `isRightGuest`: asked when the page is mapped, and nothing was read of it yet: numbers of domains are given again.
  package init(
    _ process: Process, page: SessionOrder.Grant?, epoch: UInt64, looks: Bool, at now: Timestamp,
    isRightGuest: @escaping @Sendable () -> Bool
  ) {
    self.process = process
    self.isRightGuest = isRightGuest
    started = now
    reader = SessionReader(at: now)
    // The first message finds room.
    _ = process.send(SessionOrder.begin(epoch: epoch, page: page, looks: looks).encoded)
  }

  package var messagesSent: UInt64 { reader.messagesSent }
  package var answerDelay: Duration? { reader.answerDelay }
  package var descriptor: Int32 { isOver ? -1 : process.descriptor }

  package mutating func offer(_ policy: GuestPolicy) {
    unsent = process.send(SessionOrder.offer(policy).encoded) ? nil : policy
  }

  package mutating func close() {
    let isTold = !isOver && process.send(SessionOrder.close.encoded)
    isOver = true
    process.end(patience: isTold ? Self.endPatience : .zero)
  }

  package mutating func step(at now: Timestamp, rang: Bool) -> [HostChannelEvent] {
    guard !isOver else { return [] }
    var events: [HostChannelEvent] = []
    do throws(ChannelViolation) {
      reports: for _ in 0..<Self.stepLimit {
        switch process.next() {
        case .nothing: break reports
        case .ended: throw ChannelViolation(.page, "the process of its channel has ended")
        case .message(let bytes):
          let report = try SessionReport(bytes)
          if report == .mapped { try begin() }
          guard let event = try reader.take(report, at: now) else { continue }
          events.append(event)
          if event.isLast {
            end()
            return events
          }
        }
      }
      if !isMapped, now - started >= Self.startPatience {
        throw ChannelViolation(.page, "the process of its channel did not map its page in \(Self.startPatience)")
      }
    } catch {
      end()
      return events + [.closed(error)]
    }
    if rang { _ = process.send(SessionOrder.look.encoded) }
    if let unsent { offer(unsent) }
    return events
  }

  private mutating func begin() throws(ChannelViolation) {
    guard !isMapped else { throw ChannelViolation(.order, "its process mapped a page twice") }
    guard isRightGuest() else { throw ChannelViolation(.page, "the guest is gone") }
    isMapped = true
    _ = process.send(SessionOrder.look.encoded)
  }

  private mutating func end() {
    isOver = true
    process.end(patience: .zero)
  }
}

extension HostChannelEvent {
  /// Whether nothing comes after it.
  fileprivate var isLast: Bool {
    switch self {
    case .closed, .restarted: true
    default: false
    }
  }
}
