#if Daemon
import Synchronization
import VMFenceCore

/// Hands messages to the daemon's loop from other threads, and wakes it. Whoever sends bounds what waits: an answer is awaited before the next
/// question, there is one reload at a time, and what disks say waits elsewhere.
final class Mailbox<Message: Sendable>: Sendable {
  private let messages = Mutex<[Message]>([])
  private let wakeUp: WakeUp

  init() throws(SystemFailure) { wakeUp = try WakeUp() }

  /// Readable when there are messages.
  var descriptor: Int32 { wakeUp.descriptor }

  func post(_ message: Message) {
    messages.withLock { $0.append(message) }
    wakeUp.ring()
  }

  func take() -> [Message] {
    wakeUp.drain()
    return messages.withLock { messages in
      defer { messages = [] }
      return messages
    }
  }
}
#endif
