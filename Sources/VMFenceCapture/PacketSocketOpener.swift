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
    if let problem = link.problem { throw link.failure(problem) }
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
  package var isOwed: Bool { link.withLock { $0.isOwed } }

  /// A socket that receives nothing yet.
  ///
  /// - `interface`: for which it is wanted, for the message of an error.
  func socket(for interface: String) throws(PacketSourceError) -> PacketSocket {
    try link.withLock { link throws(PacketSourceError) in try link.take(for: interface) }
  }
}

/// What the process has handed over, or why it could not.
private enum PacketSocketAnswer: ~Copyable {
  case socket(PacketSocket)
  /// An errno value.
  case refusal(Int32)

  /// nil when no sound process says that to the question of this number.
  init?(_ bytes: [UInt8], _ descriptor: Int32?, to sequence: UInt64) {
    let socket = descriptor.flatMap { PacketSocket.adopt($0) }
    guard let answer = PacketSocketMessage(bytes), answer.sequence == sequence,
      (answer.error == 0) == (descriptor != nil)
    else { return nil }
    if answer.error != 0 {
      self = .refusal(answer.error)
    } else if let socket {
      self = .socket(socket)
    } else {
      return nil
    }
  }
}

/// One process after the other, and the one socket that is there or asked for.
private struct PacketSocketLink: ~Copyable {
  private let patience: PacketSocketOpener.Patience
  private var keeper: ProcessKeeper
  private var sequence: UInt64 = 0
  /// Whether somebody has waited for the answer already: once is enough for all who want a socket.
  private var hasWaited = false
  /// Whether nothing has come of any process yet.
  private var isFirst = true
  /// What the last answer brought, and nobody has taken.
  private var spare: PacketSocketAnswer?
  /// Somebody wanted a socket when there was none.
  private var isWanted = false
  private(set) var problem: String?
  private(set) var troubles: UInt64 = 0
  private(set) var lastTrouble = ""

  init(_ patience: PacketSocketOpener.Patience, _ start: @escaping PacketSocketOpener.Start) {
    self.patience = patience
    keeper = ProcessKeeper("vmfence-capture", restart: patience.restart) { () throws(DetectorError) in try start() }
  }

  var isOwed: Bool { keeper.isOwing }

  mutating func close() { keeper.end("it was ended") }

  mutating func tend() -> Bool {
    advance(within: .zero)
    guard isWanted, spare != nil else { return false }
    isWanted = false
    return true
  }

  mutating func take(for interface: String) throws(PacketSourceError) -> PacketSocket {
    advance(within: spare != nil || hasWaited ? .zero : isFirst ? patience.first : patience.answer)
    guard let answer = spare.take() else {
      (isWanted, hasWaited) = (true, isOwed)
      if problem == nil { note("vmfence-capture does not answer") }
      throw failure(problem ?? "")
    }
    ask(at: .now)
    switch consume answer {
    case .socket(let socket): return socket
    case .refusal(let number): throw PacketSocket.openingFailure(number, interface)
    }
  }

  func failure(_ reason: String) -> PacketSourceError {
    PacketSourceError(
      .unavailable, "the process that opens packet sockets cannot be used: \(reason)", remedy: keeper.remedy)
  }

  // MARK: The process

  mutating func begin(at now: ContinuousClock.Instant) {
    do throws(DetectorError) { try keeper.begin(at: now) } catch { return note(error.message) }
    ask(at: now)
  }

  private mutating func ask(at now: ContinuousClock.Instant) {
    guard keeper.absence == nil, !isOwed else { return }
    sequence += 1
    hasWaited = false
    keeper.ask(PacketSocketMessage(sequence: sequence).encoded, at: now)
  }

  /// Has a process if it may, and takes one message of it.
  private mutating func advance(within patience: Duration) {
    let now = ContinuousClock.now
    if keeper.mayBegin(at: now) { begin(at: now) }
    guard keeper.absence == nil else { return }
    let sequence = sequence
    if let answer = keeper.answer(within: patience, withDescriptor: { PacketSocketAnswer($0, $1, to: sequence) }) {
      spare = consume answer
      (isFirst, problem) = (false, nil)
      return
    }
    keeper.endIfOwing(for: isFirst ? self.patience.first : self.patience.late, at: now)
    guard keeper.absence != nil else { return }
    isFirst = false
    note(keeper.farewell)
  }

  private mutating func note(_ trouble: String) {
    problem = trouble
    lastTrouble = trouble
    troubles += 1
  }
}
