internal import Glibc
internal import Synchronization

/// Appends events to a file as EVE JSON, each line with one write(2) in append mode, so that a line is never torn by a
/// rotation or by another writer. Safe to use from any thread.
public final class EVEFileSink: EventSink {
  public struct Counters: Sendable, Hashable {
    public var linesWritten: UInt64 = 0
    /// Lines that did not get into the file, whole or in part.
    public var linesLost: UInt64 = 0
  }

  private struct State {
    var descriptor: CInt
    /// The last write was cut short: the next line begins with a line feed, so that only one line is lost.
    var isInsideLine = false
  }

  /// Apart from the file, so that whoever asks waits for no disk.
  private struct Tally {
    var counters = Counters()
    var problem: NotificationError?
  }

  public let path: String
  public let encoder: EVEEncoder
  private let state: Mutex<State>
  private let tally = Mutex(Tally())

  /// Opens `path` for appending; makes it if it is not there (mode 0640).
  public init(path: String, encoder: EVEEncoder) throws(NotificationError) {
    self.path = path
    self.encoder = encoder
    state = Mutex(State(descriptor: try Self.open(path)))
  }

  deinit {
    _ = state.withLock { close($0.descriptor) }
  }

  public func receive(_ event: Event) {
    write(encoder.encode(event))
    if case .alert(let alert) = event, let drop = encoder.encodeDrop(alert) { write(drop) }
  }

  /// Writes a `stats` event.
  public func receive(_ statistics: EVEStatistics) { write(encoder.encode(statistics)) }

  public var counters: Counters { tally.withLock { $0.counters } }

  /// Why lines were lost, as long as the last write failed.
  public var problem: NotificationError? { tally.withLock { $0.problem } }

  /// Goes on in a new file under the same path, after a rotation moved the old one away. Lines before it are in the old file,
  /// lines after it in the new one.
  ///
  /// - Throws: when the new file cannot be opened; then the old one is written on.
  public func reopen() throws(NotificationError) {
    let descriptor = try Self.open(path)
    state.withLock { state in
      close(state.descriptor)
      state.descriptor = descriptor
      state.isInsideLine = false
    }
  }

  private func write(_ line: [UInt8]) {
    let (isWhole, error) = state.withLock { state in
      var bytes = state.isInsideLine ? [UInt8(ascii: "\n")] : []
      bytes += line
      bytes.append(UInt8(ascii: "\n"))
      let (written, error) = Self.write(bytes, to: state.descriptor)
      if written > 0 { state.isInsideLine = written < bytes.count && !(state.isInsideLine && written == 1) }
      return (written == bytes.count, error)
    }
    tally.withLock { tally in
      if isWhole {
        tally.counters.linesWritten += 1
        tally.problem = nil
      } else {
        tally.counters.linesLost += 1
        tally.problem = NotificationError(
          error == ENOSPC || error == EDQUOT ? .full : .inputOutput,
          "cannot write to \(path.escapedForDisplay): \(describeError(error))",
          remedy: "free space or choose another file; events since then are missing from it")
      }
    }
  }

  /// One write(2) for the whole line; again only for what was cut short.
  private static func write(_ bytes: [UInt8], to descriptor: CInt) -> (written: Int, error: CInt) {
    var written = 0
    while written < bytes.count {
      // SAFETY: the buffer is valid for its count during the call, and write(2) only reads it.
      let result = unsafe bytes[written...].withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress, $0.count) }
      if result < 0, errno == EINTR { continue }
      if result <= 0 { return (written, result < 0 ? errno : ENOSPC) }
      written += result
    }
    return (written, 0)
  }

  private static func open(_ path: String) throws(NotificationError) -> CInt {
    // SAFETY: the path is handed over as a string that ends in zero and lives during the call.
    let descriptor = unsafe Glibc.open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0o640)
    guard descriptor >= 0 else {
      let error = errno
      throw NotificationError(
        error == EACCES || error == EPERM || error == EROFS ? .permissionDenied : .inputOutput,
        "cannot open \(path.escapedForDisplay) for appending: \(describeError(error))",
        remedy: "make the directory, or choose another file")
    }
    return descriptor
  }
}

/// Something is wrong with a place that notifications go to.
public struct NotificationError: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    public static let permissionDenied = Code("permission-denied")
    public static let full = Code("full")
    public static let inputOutput = Code("input-output")
  }

  public var code: Code
  public var message: String
  public var place: SourcePlace?
  public var remedy: String

  public init(_ code: Code, _ message: String, at place: SourcePlace? = nil, remedy: String = "") {
    self.code = code
    self.message = message
    self.place = place
    self.remedy = remedy
  }
}
