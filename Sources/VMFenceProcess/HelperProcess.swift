internal import CLinux
internal import Glibc
public import VMFenceCore

/// A process that was started to hold one power, or to read what one guest writes, and nothing else: `vmfence-hypervisor`, `vmfence-firewall`, `vmfence-capture`, `vmfence-channel`. It gets a socket that
/// keeps messages apart, and gives up everything that it does not need before it handles the first byte (`Sandbox`). It ends with the process that started it.
///
/// Used by one thread at a time. It ends with its last reference.
public final class HelperProcess: DescriptorProcess, @unchecked Sendable {
  // Used by one thread, as is said.

  /// Bytes of a message to such a process: a guest's policy is the longest.
  package static let limitToProcess = 128 << 10
  /// Bytes of a message from it, where nothing else is said.
  package static let limitFromProcess = 64 << 10
  /// How long one that was killed is waited for.
  private static let reapPatience: Duration = .seconds(1)

  package let processID: Int32
  public private(set) var status = DetectorStatus.running
  private let socket: OwnedDescriptor
  private let pidfd: Int32
  private var isGone = false
  private var buffer: [UInt8]
  /// Readable when it has sent something, or has ended.
  public var descriptor: Int32 { socket.rawValue }

  /// Starts the program of this name that lies beside the running one. Whether it works shows in what it sends.
  ///
  /// - Throws: `launchFailed`.
  public convenience init(_ name: String) throws(DetectorError) {
    try self.init(executable: besideThisProgram(name))
  }

  /// Starts the program at this path.
  ///
  /// - Throws: `launchFailed`.
  public convenience init(executable: String) throws(DetectorError) {
    try self.init(executable: executable, messageLimit: Self.limitFromProcess)
  }

  /// - `executable`: the program's path.
  /// - `descriptor`: one that it gets besides its socket.
  /// - `messageLimit`: bytes of a message from it; of a longer one, one byte more than this is taken.
  package init(
    executable: String, descriptor: Int32? = nil, messageLimit: Int
  ) throws(DetectorError) {
    var ends: [Int32] = [-1, -1]
    // SAFETY: two numbers are written.
    guard unsafe vmfence_message_pair(&ends) == 0 else { throw Self.failed(executable, ErrorText.last()) }
    let mine = OwnedDescriptor(adopting: ends[0])
    let theirs = OwnedDescriptor(adopting: ends[1])
    let descriptors = [theirs.rawValue] + (descriptor.map { [$0] } ?? [])
    let started = SpawnThread.spawn { pid in
      // SAFETY: a terminated path, as many descriptors as are named, and room for a number.
      unsafe vmfence_spawn(executable, descriptors, Int32(descriptors.count), &pid)
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
    self.pidfd = pidfd
    buffer = [UInt8](repeating: 0, count: messageLimit + 1)
  }

  deinit { end(patience: .zero) }

  public func send(_ message: [UInt8]) -> Bool {
    // SAFETY: the array's bytes are read.
    unsafe message.withUnsafeBytes { unsafe vmfence_send(socket.rawValue, $0.baseAddress, $0.count, 0) }
      == message.count
  }

  public func receive(within patience: Duration) -> ReceivedMessage {
    // SAFETY: at most as many bytes as there is room for are written. A descriptor that comes along is not taken.
    unsafe receive(within: patience) { unsafe vmfence_receive(socket.rawValue, $0.baseAddress, $0.count, 0) }
  }

  public func receive(within patience: Duration, descriptor: inout Int32?) -> ReceivedMessage {
    var received: Int32 = -1
    // SAFETY: as above, and one number.
    let message = unsafe receive(within: patience) {
      unsafe vmfence_receive_descriptor(socket.rawValue, $0.baseAddress, $0.count, &received, 0)
    }
    descriptor = received < 0 ? nil : received
    return message
  }

  private func receive(within patience: Duration, _ take: (UnsafeMutableRawBufferPointer) -> Int) -> ReceivedMessage {
    if isGone { return .ended }
    if patience > .zero { _ = Self.isReadable(socket.rawValue, within: patience) }
    // SAFETY: valid during the call.
    let count = unsafe buffer.withUnsafeMutableBytes { unsafe take($0) }
    if count > 0 { return .message(Array(buffer[..<count])) }
    return count < 0 && (errno == EAGAIN || errno == EINTR) ? .nothing : .ended
  }

  public func end(patience: Duration) {
    guard !isGone else { return }
    isGone = true
    if !Self.isReadable(pidfd, within: patience) {
      _ = vmfence_pidfd_send_signal(pidfd, SIGKILL)
      status = .killed
      guard Self.isReadable(pidfd, within: Self.reapPatience) else {
        // The kernel holds it in a call. Somebody has to wait for its end, but not whoever asked for it.
        let pidfd = pidfd
        if DetachedThread.start(stackSize: 256 << 10, { Self.reap(pidfd) }) != 0 { _ = close(pidfd) }
        return
      }
    }
    let ending = Self.reap(pidfd)
    if status == .running { status = ending }
  }

  /// Waits for the end of the process, and closes its descriptor.
  @discardableResult
  private static func reap(_ pidfd: Int32) -> DetectorStatus {
    defer { _ = close(pidfd) }
    var code: Int32 = 0
    // SAFETY: `code` is written.
    switch unsafe UInt32(bitPattern: vmfence_pidfd_wait(pidfd, 1, 0, &code)) {
    case VMFENCE_WAIT_EXITED.rawValue: return .exited(code: code)
    case VMFENCE_WAIT_KILLED.rawValue: return .crashed(signal: code)
    // Somebody else has waited for our child; how it ended is lost.
    default: return .exited(code: -1)
    }
  }

  private static func isReadable(_ descriptor: Int32, within patience: Duration) -> Bool {
    var waiting = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    // SAFETY: one structure, as is said.
    return unsafe poll(&waiting, 1, Int32(clamping: patience.wholeNanoseconds / 1_000_000)) == 1
  }

  private static func failed(_ executable: String, _ reason: String) -> DetectorError {
    DetectorError(
      .launchFailed, "cannot start \(executable.escapedForDisplay): \(reason)",
      remedy: "install it beside this program, from the same build, and check the limits of processes and open files")
  }
}

/// The other end, in the process itself. Used by one thread.
package struct HelperProcessEnd {
  /// The descriptors that a `HelperProcess` passes.
  static let socket: Int32 = 3
  package static let descriptor: Int32 = 4

  /// Whether there is an owner at all.
  package static var isThere: Bool { fcntl(socket, F_GETFD) >= 0 }

  private let messageLimit: Int

  /// - `messageLimit`: bytes of a message from the owner; of a longer one so many are taken.
  package init(messageLimit: Int = HelperProcess.limitToProcess) { self.messageLimit = messageLimit }

  /// Waits for a message, so long at the most; nil: for ever.
  ///
  /// - Returns: nothing when none came, nil when the owner has gone.
  package func receive(within patience: Duration?) -> [UInt8]?? {
    var waiting = pollfd(fd: Self.socket, events: Int16(POLLIN), revents: 0)
    let milliseconds = patience.map { Int32(clamping: $0.wholeNanoseconds / 1_000_000) } ?? -1
    // SAFETY: one structure, as is said.
    guard unsafe poll(&waiting, 1, milliseconds) == 1 else { return .some(nil) }
    var buffer = [UInt8](repeating: 0, count: messageLimit)
    // SAFETY: at most as many bytes as there is room for are written.
    let count = unsafe buffer.withUnsafeMutableBytes {
      unsafe vmfence_receive(Self.socket, $0.baseAddress, $0.count, 0)
    }
    guard count > 0 else { return count < 0 && (errno == EAGAIN || errno == EINTR) ? .some(nil) : .none }
    return .some(Array(buffer[..<count]))
  }

  /// Waits until there is room for it.
  ///
  /// - Returns: false when the owner has gone.
  package func send(_ bytes: [UInt8]) -> Bool {
    // SAFETY: the array's bytes are read.
    unsafe bytes.withUnsafeBytes { unsafe vmfence_send(Self.socket, $0.baseAddress, $0.count, 1) } == bytes.count
  }

  /// The same, and a descriptor with it if there is one. Does not wait: the owner has room for the answer to the one question that it has asked.
  package func send(_ bytes: [UInt8], descriptor: Int32?) -> Bool {
    // SAFETY: the array's bytes are read.
    unsafe bytes.withUnsafeBytes {
      unsafe vmfence_send_descriptor(Self.socket, $0.baseAddress, $0.count, descriptor ?? -1)
    } == bytes.count
  }

  /// To be called first: such a process takes no words. Ends it when it was given some, as people do who want to know what it is.
  ///
  /// - `purpose`: what it does, as a sentence.
  package static func takeNoWords(_ name: String, _ purpose: String) {
    let words = CommandLine.arguments.dropFirst()
    switch words.first {
    case nil: return
    case "--help" where words.count == 1, "-h" where words.count == 1:
      print("USAGE: \(name)\n\n\(purpose) It takes no options, and is of no use by hand.")
      exit(0)
    case "--version" where words.count == 1:
      print(VMFenceVersion.text)
      exit(0)
    case let word?:
      let guess = ["--help", "--version"].nearest(to: word, within: 2).map { "did you mean '\($0)'? " } ?? ""
      end("\(name): it takes no '\(word)' (\(guess)see \(name) --help)", code: DetectorExitCode.usage)
    }
  }

  /// The process's end, with a line for people. Before it has entered its sandbox.
  package static func end(_ message: String, code: Int32) -> Never {
    let line = Array("\(message.escapedForDisplay)\n".utf8)
    // SAFETY: the array's bytes are read.
    unsafe line.withUnsafeBytes { bytes in unsafe _ = Glibc.write(2, bytes.baseAddress, bytes.count) }
    _exit(code)
  }
}
