internal import Glibc

/// Ends a poll(2) in another thread: readable after `ring`, until `drain`. Safe to use from any thread.
package final class WakeUp: Sendable {
  /// To poll for input.
  package let descriptor: Int32
  private let far: Int32

  /// - Throws: when there are no descriptors left.
  package init() throws(SystemFailure) {
    var pair: [Int32] = [-1, -1]
    let flags = Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
    // SAFETY: socketpair(2) writes two descriptors.
    guard unsafe socketpair(AF_UNIX, flags, 0, &pair) == 0 else {
      throw SystemFailure(call: "make a pair of sockets", number: errno)
    }
    (descriptor, far) = (pair[0], pair[1])
  }

  deinit {
    close(descriptor)
    close(far)
  }

  package func ring() {
    var byte: UInt8 = 1
    // SAFETY: one byte, which is only read. When there is no room, enough bells were rung.
    _ = unsafe send(far, &byte, 1, Int32(MSG_NOSIGNAL))
  }

  package func drain() {
    var byte: UInt8 = 0
    // SAFETY: one byte, as is said. As many rounds as bells fit into the socket's buffer.
    while unsafe recv(descriptor, &byte, 1, 0) > 0 {}
  }
}
