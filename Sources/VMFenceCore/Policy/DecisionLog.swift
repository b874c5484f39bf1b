internal import Synchronization

/// The memory of what was decided: written before anything is enforced, read after a restart. Append-only. Safe to use from
/// any thread; never blocks on anything but the disk.
public protocol DecisionLog: Sendable {
  /// Appends all of them or none. When it returns they survive the death of this process.
  func append(_ decisions: [Decision]) throws(DecisionLogError)

  /// Makes what was appended survive a power cut. Called about once a second, for all that came since.
  func sync() throws(DecisionLogError)

  /// Forgets everything but `decisions`: whole, or not at all.
  func compact(to decisions: [Decision]) throws(DecisionLogError)

  /// Begins to forget everything but `decisions`, which are all that matters now, without waiting for a disk. What is appended from here on is kept, too, and none of it
  /// may be lost if the process dies before the end of it. One at a time.
  ///
  /// - Returns: what does the rest and takes its time, to be called once, in any thread.
  func beginCompaction(
    to decisions: [Decision]
  ) throws(DecisionLogError) -> @Sendable () throws(DecisionLogError) -> Void

  /// Whether so much was appended that forgetting what is over is worth its while.
  var isCompactionDue: Bool { get }
}

extension DecisionLog {
  /// For a log that only grows: the decisions come once more, and replace themselves when it is read.
  public func compact(to decisions: [Decision]) throws(DecisionLogError) { try append(decisions) }

  /// For a log that does not wait for a disk, or cannot do better: all of it is done at once.
  public func beginCompaction(
    to decisions: [Decision]
  ) throws(DecisionLogError) -> @Sendable () throws(DecisionLogError) -> Void {
    try compact(to: decisions)
    return {}
  }

  public var isCompactionDue: Bool { false }
}

/// A log that keeps the system's time, for a program whose own time is a steady clock's: what is read after a restart is right, whatever was done to
/// the system's clock. After a jump of it, compact the log, so that what it held before moves along.
public struct SystemTimeDecisionLog: DecisionLog {
  private let log: any DecisionLog
  private let clock: SteadyClock

  public init(_ log: any DecisionLog, clock: SteadyClock) {
    self.log = log
    self.clock = clock
  }

  public func append(_ decisions: [Decision]) throws(DecisionLogError) {
    let offset = clock.offset
    try log.append(decisions.map { $0.shifted(by: offset) })
  }

  public func sync() throws(DecisionLogError) { try log.sync() }

  public func compact(to decisions: [Decision]) throws(DecisionLogError) {
    let offset = clock.offset
    try log.compact(to: decisions.map { $0.shifted(by: offset) })
  }

  public func beginCompaction(
    to decisions: [Decision]
  ) throws(DecisionLogError) -> @Sendable () throws(DecisionLogError) -> Void {
    let offset = clock.offset
    return try log.beginCompaction(to: decisions.map { $0.shifted(by: offset) })
  }

  public var isCompactionDue: Bool { log.isCompactionDue }
}

/// What a log held when it was opened.
public struct DecisionLogRecovery: Sendable, Hashable {
  /// From the oldest. A decision may occur several times, with the status that it had at each.
  public var decisions: [Decision]
  /// Where and why reading stopped before the end of what was written; nil when all of it was sound. What follows that place is
  /// overwritten.
  public var damage: Diagnostic?

  public init(decisions: [Decision], damage: Diagnostic? = nil) {
    self.decisions = decisions
    self.damage = damage
  }
}

/// A log that is gone with the process, for replays and tests. It keeps the last `capacity` decisions.
public final class MemoryDecisionLog: DecisionLog {
  private let contents = Mutex<[Decision]>([])

  public static let capacity = 65_536

  public init() {}

  public var decisions: [Decision] { contents.withLock { $0 } }

  public func append(_ decisions: [Decision]) throws(DecisionLogError) {
    contents.withLock {
      $0 += decisions
      // In one go from time to time, so that each append costs little.
      if $0.count >= 2 * Self.capacity { $0.removeFirst($0.count - Self.capacity) }
    }
  }

  public func sync() throws(DecisionLogError) {}

  public func compact(to decisions: [Decision]) throws(DecisionLogError) { contents.withLock { $0 = decisions } }
}

public struct DecisionLogError: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    /// The file is not a decision log, or of another version.
    public static let notALog = Code("not-a-log")
    /// Another process holds it.
    public static let inUse = Code("in-use")
    public static let permissionDenied = Code("permission-denied")
    /// The disk is full, or the log has reached its limit.
    public static let full = Code("full")
    public static let inputOutput = Code("input-output")
    /// A decision does not fit into a record.
    public static let tooLarge = Code("too-large")
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
