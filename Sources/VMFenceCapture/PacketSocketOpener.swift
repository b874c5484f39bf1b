internal import Glibc
import Synchronization
import VMFenceCore

/// Packet sockets from a process of its own, which holds CAP_NET_RAW in the place of this one: the program `vmfence-capture`.
///
/// ```swift
/// let opener = try PacketSocketOpener { () throws(DetectorError) in try HelperProcess("vmfence-capture") }
/// var capture = try LiveCapture.open(interface: "vif1.0", port: port, through: opener)
/// ```
///
/// One socket is always there or asked for, so whoever opens a capture seldom waits, and never for long (50 ms, once for each socket that does not come; 10 s for the first of all). A process that has ended, that owes an
/// answer for 2 s, or that says what no sound one says is gone, and another is started, a second after the last at the earliest. What is captured already goes on without it.
///
/// The process is in the network namespace in which the first thread was that used `HelperProcess`, or a detector's process; captures are of that one. May be used by any thread.
public final class PacketSocketOpener: Sendable {
  public typealias Start = @Sendable () throws(DetectorError) -> any DescriptorProcess

  /// How long is waited for what.
  package struct Patience: Hashable, Sendable {
    /// The first answer of the first process.
    package var first: Duration = .seconds(10)
    /// An answer, by whoever wants a socket.
    package var answer: Duration = .milliseconds(50)
    /// An answer that is late, until the process is taken for stuck.
    package var late: Duration = .seconds(2)
    /// From one start of a process to the next.
    package var restart: Duration = .seconds(1)

    package init() {}
  }

  private let link: Mutex<PacketSocketLink>

  /// - `start`: starts the process. Called again after its end, from any thread.
  /// - Throws: `unavailable` when it cannot be started. Whether it works shows in the first capture.
  public convenience init(_ start: @escaping Start) throws(PacketSourceError) {
    try self.init(patience: Patience(), start)
  }

  package init(patience: Patience, _ start: @escaping Start) throws(PacketSourceError) {
    var link = PacketSocketLink(patience, start)
    link.begin(at: .now)
    if let problem = link.problem { throw PacketSocketLink.failure(problem) }
    self.link = Mutex(link)
  }

  deinit { link.withLock { $0.close() } }

  /// Takes what the process has sent, and starts another when it has ended or owes an answer for too long. Does not wait. To be called now and then, as often as such things are
  /// to be noticed.
  ///
  /// - Returns: whether there is a socket now that somebody has wanted in vain.
  public func tend() -> Bool { link.withLock { $0.tend() } }

  /// Why there are no more sockets to be had; nil when nothing is known to stand against it.
  public var problem: String? { link.withLock { $0.problem } }

  /// How often something came to stand against it since the start, and the last time what.
  public var troubles: (count: UInt64, last: String) { link.withLock { ($0.troubles, $0.lastTrouble) } }

  /// Whether an answer is awaited.
  package var isOwed: Bool { link.withLock { $0.owing != nil } }

  /// A socket that receives nothing yet.
  ///
  /// - `interface`: for which it is wanted, for the message of an error.
  func socket(for interface: String) throws(PacketSourceError) -> PacketSocket {
    try link.withLock { link throws(PacketSourceError) in try link.take(for: interface) }
  }
}

/// One process after the other, and the one question that waits for its answer.
private struct PacketSocketLink: ~Copyable {
  private let patience: PacketSocketOpener.Patience
  private let start: PacketSocketOpener.Start
  private var process: (any DescriptorProcess)?
  private var started: ContinuousClock.Instant?
  private var sequence: UInt64 = 0
  /// Since when an answer is awaited.
  private(set) var owing: ContinuousClock.Instant?
  /// Whether somebody has waited for that answer already: once is enough for all who want a socket.
  private var hasWaited = false
  /// Whether nothing has come of any process yet.
  private var isFirst = true
  /// What the last answer brought, and nobody has taken.
  private var spare: PacketSocket?
  private var refusal: Int32?
  /// Somebody wanted a socket when there was none.
  private var isWanted = false
  private(set) var problem: String?
  private(set) var troubles: UInt64 = 0
  private(set) var lastTrouble = ""

  init(_ patience: PacketSocketOpener.Patience, _ start: @escaping PacketSocketOpener.Start) {
    self.patience = patience
    self.start = start
  }

  mutating func close() {
    process?.end(patience: .zero)
    process = nil
  }

  mutating func tend() -> Bool {
    advance(within: .zero)
    guard isWanted, spare != nil || refusal != nil else { return false }
    isWanted = false
    return true
  }

  mutating func take(for interface: String) throws(PacketSourceError) -> PacketSocket {
    let isThere = spare != nil || refusal != nil
    advance(within: isThere || hasWaited ? .zero : isFirst ? patience.first : patience.answer)
    if let socket = spare.take() {
      ask(at: .now)
      return socket
    }
    if let number = refusal.take() {
      ask(at: .now)
      throw PacketSocket.openingFailure(number, interface)
    }
    (isWanted, hasWaited) = (true, owing != nil)
    if problem == nil { note("vmfence-capture does not answer") }
    throw Self.failure(problem ?? "")
  }

  static func failure(_ reason: String) -> PacketSourceError {
    PacketSourceError(
      .unavailable, "the process that opens packet sockets cannot be used: \(reason)",
      remedy: "install vmfence-capture from the same build as this program")
  }

  // MARK: The process

  mutating func begin(at now: ContinuousClock.Instant) {
    started = now
    do throws(DetectorError) { process = try start() } catch {
      note(error.message)
      return
    }
    ask(at: now)
  }

  private mutating func ask(at now: ContinuousClock.Instant) {
    guard process != nil, owing == nil else { return }
    sequence += 1
    (owing, hasWaited) = (now, false)
    // There is room for the one question that is under way; whether somebody takes it shows in the answer.
    _ = process?.send(PacketSocketMessage(sequence: sequence).encoded)
  }

  /// Has a process if it may, and takes one message of it.
  private mutating func advance(within patience: Duration) {
    let now = ContinuousClock.now
    if process == nil {
      guard started.map({ now >= $0 + self.patience.restart }) ?? true else { return }
      begin(at: now)
    }
    guard let process else { return }
    var descriptor: Int32?
    let message = process.receive(within: patience, descriptor: &descriptor)
    let socket = descriptor.flatMap { PacketSocket.adopt($0) }
    switch message {
    case .nothing:
      guard descriptor == nil else { return damaged() }
      let late = isFirst ? self.patience.first : self.patience.late
      if let owing, now >= owing + late { end("it did not answer within \(late)", after: .zero) }
    case .ended: end(nil, after: .milliseconds(100))
    case .message(let bytes):
      guard owing != nil, let answer = PacketSocketMessage(bytes), answer.sequence == sequence,
        (answer.error == 0) == (descriptor != nil), answer.error != 0 || socket != nil
      else { return damaged() }
      (owing, isFirst, problem) = (nil, false, nil)
      spare = socket
      refusal = answer.error == 0 ? nil : answer.error
    }
  }

  private mutating func damaged() { end("it gave an answer that no sound one gives", after: .zero) }

  /// - `reason`: nil: how it ended by itself says it.
  private mutating func end(_ reason: String?, after patience: Duration) {
    let process = process
    process?.end(patience: patience)
    self.process = nil
    (owing, isFirst) = (nil, false)
    let ending =
      switch process?.status {
      case .exited(let code): "it ended with status \(code)"
      case .crashed(let signal): "it was killed by signal \(signal)"
      default: "it hung up"
      }
    note("vmfence-capture is gone (\(reason ?? ending)) and is started again")
  }

  private mutating func note(_ trouble: String) {
    problem = trouble
    lastTrouble = trouble
    troubles += 1
  }
}
