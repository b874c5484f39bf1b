internal import Glibc
internal import Synchronization

/// One side's announcement that it sleeps, in shared memory, and the other side's memory of having rung.
///
/// The sleeper makes the word odd, looks once more whether there is work, and only then waits on its socket; the
/// other side publishes work, looks at the word, and rings when it is odd. Both put a full fence between their store and
/// their load, so at least one of them sees the other (Dekker). A word that stays odd is rung for once only. Its second bit says that
/// the sleeper is not to be woken for work as such, but for news only: what that is, the two agree on.
struct SleepWord: ~Copyable {
  private let region: SharedRegion
  private let word: SharedWord
  private var value: UInt64 = 0
  private var rung: UInt64 = 0

  init(_ region: SharedRegion, _ offset: Int) {
    self.region = region
    word = region.word(offset)
  }

  /// The sleeper's side: announces sleep. Look for work after this, then wait.
  mutating func announce(onlyForNews: Bool = false) {
    if value & 1 == 0 { value &+= 4 }
    value = value & ~3 | (onlyForNews ? 3 : 1)
    word.storeReleasing(value)
    atomicMemoryFence(ordering: .sequentiallyConsistent)
  }

  /// The sleeper's side: it is awake.
  mutating func withdraw() {
    guard value & 1 == 1 else { return }
    value &= ~3
    word.storeReleasing(value)
  }

  /// The other side: whether the sleeper must be woken now. Call after publishing.
  mutating func mustRing(withNews: Bool = true) -> Bool {
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    return shouldRing(withNews: withNews)
  }

  /// The other side, between two calls of `mustRing()`: the same without a fence. It may overlook a sleeper that has only just
  /// announced itself.
  @inline(__always)
  mutating func shouldRing(withNews: Bool = true) -> Bool {
    let seen = word.loadAcquiring()
    guard seen & 1 == 1, withNews || seen & 2 == 0, seen != rung else { return false }
    rung = seen
    return true
  }

  /// The other side: a new sleeper starts from zero.
  mutating func reset() {
    rung = 0
    word.storeReleasing(0)
  }
}

/// One end of the socket pair between the supervisor and a detector (AF_UNIX, SOCK_SEQPACKET): bells both ways, control
/// messages down. Its end of file is the other side's death.
package struct DetectorSocket: ~Copyable {
  package let descriptor: Int32

  /// Takes over an open socket.
  package init(adopting descriptor: Int32) { self.descriptor = descriptor }

  deinit { _ = close(descriptor) }

  /// Gives the descriptor away, open.
  package consuming func releaseDescriptor() -> Int32 {
    let result = descriptor
    discard self
    return result
  }

  /// The C function is `socketpair`; both ends are closed on exec.
  package static func pair() throws(DetectorError) -> DetectorSocketPair {
    var ends: (Int32, Int32) = (-1, -1)
    let kind = Int32(SOCK_SEQPACKET.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
    // SAFETY: `ends` has room for the two descriptors that are written.
    let result = unsafe withUnsafeMutableBytes(of: &ends) { buffer in
      unsafe socketpair(AF_UNIX, kind, 0, buffer.baseAddress?.assumingMemoryBound(to: Int32.self))
    }
    guard result == 0 else {
      throw DetectorError(
        .launchFailed, "cannot make a socket pair: error \(errno)", remedy: "raise the limit of open files")
    }
    return DetectorSocketPair(supervisor: DetectorSocket(adopting: ends.0), detector: DetectorSocket(adopting: ends.1))
  }

  /// Wakes the other side. A full socket means that bells are waiting there already.
  package func ring() {
    var byte = DetectorMessage.bell
    // SAFETY: one byte is read.
    unsafe _ = send(descriptor, &byte, 1, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
  }

  package enum WaitResult: Hashable, Sendable {
    case ready
    case timedOut
    case gone
  }

  /// Waits until something arrives, the other side is gone, or `milliseconds` (negative: for ever) have passed. A signal
  /// ends it early.
  package func wait(milliseconds: Int32) -> WaitResult {
    var request = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    // SAFETY: one element.
    let count = unsafe poll(&request, 1, milliseconds)
    if count <= 0 { return .timedOut }
    if request.revents & Int16(POLLIN) != 0 { return .ready }
    return .gone
  }

  /// Takes waiting messages, at most 64, without looking at them; descriptors in them are discarded by the kernel.
  /// Returns false when the other side is gone.
  package func drain() -> Bool {
    var message: UInt64 = 0
    for _ in 0..<64 {
      // SAFETY: eight bytes at the most are written.
      let count = unsafe recv(descriptor, &message, 8, Int32(MSG_DONTWAIT))
      if count > 0 { continue }
      if count == 0 { return false }
      return errno == EAGAIN || errno == EINTR
    }
    return true
  }
}

package struct DetectorSocketPair: ~Copyable {
  package var supervisor: DetectorSocket
  package var detector: DetectorSocket

  /// Attaches the supervisor's end to `channel`, and gives the detector's end away.
  package consuming func attach(
    to channel: DetectorChannel, ruleCount: Int
  ) throws(DetectorError) -> DetectorSocket {
    try channel.attach(ruleCount: ruleCount, socket: supervisor)
    return detector
  }
}

/// The first byte of a message on a `DetectorSocket`.
package enum DetectorMessage {
  package static let bell: UInt8 = 0
  package static let rules: UInt8 = 1
}

/// The clock that real waits are measured with, and nothing else.
enum MonotonicTime {
  /// Nanoseconds since some moment.
  static func now() -> Int64 {
    var time = timespec()
    // SAFETY: `time` is written.
    unsafe _ = clock_gettime(CLOCK_MONOTONIC, &time)
    return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
  }
}
