internal import CLinux
internal import Glibc
package import VMFenceCore

/// A process that serves one guest's policy channel, as its owner has it: a socket that keeps messages apart, and the process's end. The process gives up
/// everything once the guest's page is mapped (`ChannelSandbox`), so what it sends is as hostile as the guest.
///
/// Used by one thread at a time. It ends with its last reference.
package final class ChannelProcess: @unchecked Sendable {
  // Used by one thread, as is said.
  package enum Received {
    case message([UInt8])
    /// Nothing has come.
    case nothing
    /// It has ended, or hung up.
    case ended
  }

  /// Bytes of a message from the process; of a longer one, one byte more than this is taken.
  package static let limitFromProcess = 2048
  /// Bytes of a message to it: a guest's policy is the longest.
  package static let limitToProcess = 128 << 10

  package let processID: Int32
  private let socket: OwnedDescriptor
  private let pidfd: OwnedDescriptor
  private var isGone = false
  private var buffer = [UInt8](repeating: 0, count: ChannelProcess.limitFromProcess + 1)
  /// Readable when it has sent something, or has ended.
  package var descriptor: Int32 { socket.rawValue }

  /// Starts the program. Whether it works shows in what it sends.
  ///
  /// - `page`: a memory file with the page; nil: it maps a page that the guest granted.
  /// - Throws: `launchFailed`.
  package init(executable: String, page: Int32? = nil) throws(DetectorError) {
    var ends: [Int32] = [-1, -1]
    // SAFETY: two numbers are written.
    guard unsafe vmfence_message_pair(&ends) == 0 else { throw Self.failed(executable, ErrorText.last()) }
    let mine = OwnedDescriptor(adopting: ends[0])
    let theirs = OwnedDescriptor(adopting: ends[1])
    let descriptors = [theirs.rawValue] + (page.map { [$0] } ?? [])
    let started = SpawnThread.spawn { pid in
      // SAFETY: a terminated path, as many descriptors as are named, and room for a number.
      unsafe vmfence_spawn_channel(executable, descriptors, Int32(descriptors.count), &pid)
    }
    guard started.error == 0 else { throw Self.failed(executable, ErrorText.text(started.error)) }
    let pidfd = vmfence_pidfd_open(started.pid)
    guard pidfd >= 0 else {
      let reason = ErrorText.last()
      // Its socket closes, and it ends by itself.
      _ = consume mine
      _ = consume theirs
      var status: Int32 = 0
      // SAFETY: the process was started above, and nobody else waits for it.
      unsafe _ = waitpid(started.pid, &status, 0)
      throw Self.failed(executable, reason)
    }
    processID = started.pid
    socket = mine
    self.pidfd = OwnedDescriptor(adopting: pidfd)
  }

  deinit { end(patience: .zero) }

  /// - Returns: false when there is no room for it now, or nobody to take it.
  package func send(_ bytes: [UInt8]) -> Bool {
    // SAFETY: the array's bytes are read.
    unsafe bytes.withUnsafeBytes { unsafe vmfence_send(socket.rawValue, $0.baseAddress, $0.count, 0) } == bytes.count
  }

  /// Takes one message, without waiting.
  package func receive() -> Received {
    if isGone { return .ended }
    // SAFETY: at most as many bytes as there is room for are written.
    let count = unsafe buffer.withUnsafeMutableBytes { bytes in
      unsafe vmfence_receive(socket.rawValue, bytes.baseAddress, bytes.count, 0)
    }
    if count > 0 { return .message(Array(buffer[..<count])) }
    return count < 0 && (errno == EAGAIN || errno == EINTR) ? .nothing : .ended
  }

  /// Returns when it is gone: by itself within `patience`, or killed.
  package func end(patience: Duration) {
    guard !isGone else { return }
    isGone = true
    var waiting = pollfd(fd: pidfd.rawValue, events: Int16(POLLIN), revents: 0)
    // SAFETY: one structure, as is said.
    if unsafe poll(&waiting, 1, Int32(clamping: patience.wholeNanoseconds / 1_000_000)) != 1 {
      _ = vmfence_pidfd_send_signal(pidfd.rawValue, SIGKILL)
    }
    var code: Int32 = 0
    // SAFETY: `code` is written.
    unsafe _ = vmfence_pidfd_wait(pidfd.rawValue, 1, 0, &code)
  }

  private static func failed(_ executable: String, _ reason: String) -> DetectorError {
    DetectorError(
      .launchFailed, "cannot start \(executable.escapedForDisplay): \(reason)",
      remedy: "install vmfence-channel beside this program, and check the limits of processes and open files")
  }
}

/// The other end, in the process itself.
package struct ChannelProcessEnd {
  /// The descriptors that a `ChannelProcess` passes.
  private static let socket: Int32 = 3
  package static let page: Int32 = 4

  package init() {}

  /// Waits for a message, so long at the most; nil: for ever.
  ///
  /// - Returns: nothing when none came, nil when the owner has gone.
  package func receive(within patience: Duration?) -> [UInt8]?? {
    var waiting = pollfd(fd: Self.socket, events: Int16(POLLIN), revents: 0)
    let milliseconds = patience.map { Int32(clamping: $0.wholeNanoseconds / 1_000_000) } ?? -1
    // SAFETY: one structure, as is said.
    guard unsafe poll(&waiting, 1, milliseconds) == 1 else { return .some(nil) }
    var bytes = [UInt8](repeating: 0, count: ChannelProcess.limitToProcess)
    // SAFETY: at most as many bytes as there is room for are written.
    let count = unsafe bytes.withUnsafeMutableBytes { unsafe vmfence_receive(Self.socket, $0.baseAddress, $0.count, 0) }
    guard count > 0 else { return count < 0 && (errno == EAGAIN || errno == EINTR) ? .some(nil) : .none }
    return .some(Array(bytes[..<count]))
  }

  /// Waits until there is room for it.
  ///
  /// - Returns: false when the owner has gone.
  package func send(_ bytes: [UInt8]) -> Bool {
    // SAFETY: the array's bytes are read.
    unsafe bytes.withUnsafeBytes { unsafe vmfence_send(Self.socket, $0.baseAddress, $0.count, 1) } == bytes.count
  }
}

/// What a channel's process gives up when the page is mapped, before it looks at its first word: as a detector does (`DetectorSandbox`). What is left are its
/// memory, its owner's socket, and time. Irrevocable; the process has one thread.
package enum ChannelSandbox {
  private static let nobody: UInt32 = 65534
  private static let memoryLimit: UInt64 = 64 << 20

  /// - Throws: `failed`: without these nothing must be served.
  package static func enter() throws(DetectorError) {
    if geteuid() == 0 { try need("give up root", vmfence_become(nobody, nobody)) }
    // A change of user clears this, so it comes after.
    try need("end with its parent", vmfence_die_with_parent())
    try need("forbid tracing", vmfence_not_dumpable())
    try need("forbid core dumps", vmfence_limit(VMFENCE_LIMIT_CORE, 0))
    try need("bound its open files", vmfence_limit(VMFENCE_LIMIT_OPEN_FILES, 16))
    try need("bound its memory", vmfence_limit(VMFENCE_LIMIT_DATA, memoryLimit))
    try need("renounce new privileges", vmfence_no_new_privileges())
    // Where the kernel has none, the filter forbids opening files all the same.
    _ = vmfence_landlock_nothing()
    try need("filter system calls", vmfence_seccomp_channel())
  }

  private static func need(_ what: String, _ result: Int32) throws(DetectorError) {
    guard result < 0 else { return }
    throw DetectorError(
      .failed, "cannot \(what): \(ErrorText.last())", remedy: "a kernel with seccomp filters is needed")
  }
}
