internal import Foundation
internal import Synchronization
public import VMFenceCore

/// A place that events go to by way of a bounded queue and a thread of its own, so that a place that is slow or gone holds nobody up. What does not fit into the
/// queue is lost and counted: the youngest, so that what led to something is kept. With a spool, what waits is in a file too, and the next process goes on
/// with it. Safe to use from any thread.
public final class DeliverySink: EventSink {
  public struct Limits: Sendable, Hashable {
    /// Lines that wait.
    public var lines: Int
    /// What they may take, in bytes.
    public var bytes: Int
    /// Lines that are handed over at once.
    public var batch: Int
    /// How long it waits after a failure, at first and at the most; twice as long each time.
    public var retryFirst: Duration
    public var retryMaximum: Duration

    public init(
      lines: Int = 10_000, bytes: Int = 16 << 20, batch: Int = 256, retryFirst: Duration = .milliseconds(200),
      retryMaximum: Duration = .seconds(30)
    ) {
      self.lines = lines
      self.bytes = bytes
      self.batch = batch
      self.retryFirst = retryFirst
      self.retryMaximum = retryMaximum
    }
  }

  public struct Counters: Sendable, Hashable {
    public var delivered: UInt64 = 0
    /// For which there was no room in the queue.
    public var overflowed: UInt64 = 0
    /// That the other side refused, or that were left at the end.
    public var refused: UInt64 = 0
    public var waiting: Int = 0
    /// Of these, those that are in the spool.
    public var spooled: Int = 0

    public var lost: UInt64 { overflowed &+ refused }
  }

  /// Turns an event into the lines that stand for it, without their ends.
  public typealias Format = @Sendable (Event) -> [[UInt8]]

  private struct State {
    var queue: [[UInt8]] = []
    var bytes = 0
    /// How many of them, from the first, are in the spool.
    var spooled = 0
    var spoolProblem: String?
    /// The spool belongs to somebody else now.
    var isAbandoned = false
    var counters = Counters()
    var problem: String?
    var isClosing = false
    var wantsReset = false
    /// How long nothing is tried, whatever comes.
    var pause: Duration?
  }

  /// What people call it: `syslog udp://192.0.2.1:514`.
  public let name: String
  private let filter: EventFilter
  private let format: Format
  private let directory: DomainDirectory
  private let delivery: any Delivery
  private let limits: Limits
  private let spool: Spool?
  private let state = Mutex(State())
  private let news = Bell()
  private let end = Bell()

  // SAFETY: after the initialiser only the sink's thread uses it.
  private struct Spool: @unchecked Sendable { let file: SpoolFile }

  /// - `spool`: where what waits is kept besides, and the lines that an earlier process left in it, which go first.
  public init(
    name: String, filter: EventFilter, directory: DomainDirectory, limits: Limits = Limits(),
    spool: sending (file: SpoolFile, lines: [[UInt8]])? = nil, delivery: any Delivery, format: @escaping Format
  ) {
    self.name = name
    self.filter = filter
    self.directory = directory
    self.limits = limits
    self.delivery = delivery
    self.format = format
    let left = spool?.lines ?? []
    self.spool = spool.map { Spool(file: $0.file) }
    state.withLock { state in
      (state.queue, state.spooled) = (left, left.count)
      state.bytes = left.reduce(0) { $0 + $1.count }
    }
    let thread = Thread { [weak self] in
      while let sink = self, sink.turn() {}
    }
    thread.name = "vmfence-deliver"
    thread.start()
  }

  public func receive(_ event: Event) {
    guard filter.wants(event, directory) else { return }
    let lines = format(event)
    state.withLock { state in
      for line in lines {
        guard state.queue.count < limits.lines, state.bytes + line.count <= limits.bytes, !state.isClosing else {
          state.counters.overflowed &+= 1
          continue
        }
        state.queue.append(line)
        state.bytes += line.count
      }
    }
    news.ring()
  }

  public var counters: Counters {
    state.withLock { state in
      var result = state.counters
      (result.waiting, result.spooled) = (state.queue.count, state.spooled)
      return result
    }
  }

  /// Whether what waits is in a file, too.
  public var keepsSpool: Bool { spool != nil }

  /// Why nothing is delivered, as long as that is so.
  public var problem: String? { state.withLock { $0.problem ?? $0.spoolProblem } }

  /// Opens what is open anew: after a rotation.
  public func reopen() {
    state.withLock { $0.wantsReset = true }
    news.ring()
  }

  /// Delivers what waits, within `patience`; what is left then, and not in the spool, is lost and counted.
  public func close(patience: Duration = .seconds(2)) {
    state.withLock { $0.isClosing = true }
    news.ring()
    end.wait(upTo: patience)
    state.withLock { state in
      state.isAbandoned = true
      state.counters.refused &+= UInt64(state.queue.count - state.spooled)
      (state.queue, state.bytes, state.spooled) = ([], 0, 0)
    }
  }

  // MARK: The thread's side

  /// - Returns: whether to go on.
  private func turn() -> Bool {
    keep()
    let (batch, wantsReset, isClosing) = state.withLock { state in
      defer { state.wantsReset = false }
      return (Array(state.queue.prefix(limits.batch)), state.wantsReset, state.isClosing)
    }
    if wantsReset { delivery.reset() }
    if batch.isEmpty {
      guard !isClosing else { return finish() }
      news.wait(upTo: .seconds(60))
      return true
    }
    do throws(DeliveryFailure) {
      take(try delivery.deliver(batch), problem: nil)
    } catch {
      take(error.delivered, problem: error.message)
      guard !isClosing else { return finish() }
      pause()
    }
    return true
  }

  /// Puts into the spool what is not there yet.
  private func keep() {
    guard let spool else { return }
    let new = state.withLock { $0.isAbandoned ? [] : Array($0.queue[$0.spooled...]) }
    guard !new.isEmpty else { return }
    var problem: String?
    do throws(DeliveryFailure) { try spool.file.append(new[...]) } catch { problem = error.message }
    state.withLock { state in
      state.spoolProblem = problem
      if problem == nil, !state.isAbandoned { state.spooled += new.count }
    }
  }

  private func take(_ delivered: Int, problem: String?) {
    let refused = delivery.refused
    let over = state.withLock { state in
      let count = min(max(0, delivered), state.queue.count)
      let over = state.queue.prefix(min(count, state.spooled))
      state.spooled -= over.count
      state.bytes -= state.queue.prefix(count).reduce(0) { $0 + $1.count }
      state.queue.removeFirst(count)
      let newlyRefused = refused &- state.counters.refused
      state.counters.refused = refused
      state.counters.delivered &+= UInt64(count) &- min(UInt64(count), newlyRefused)
      state.problem = problem
      if problem == nil || count > 0 { state.pause = nil }
      return Array(over)
    }
    guard let spool, !over.isEmpty else { return }
    // What cannot be noted comes once more after a restart.
    do throws(DeliveryFailure) { try spool.file.drop(over[...]) } catch {
      state.withLock { $0.spoolProblem = error.message }
    }
  }

  /// Waits longer each time, whatever comes meanwhile, unless it is to end or to open anew. What comes goes into the spool.
  private func pause() {
    let time = state.withLock { state in
      let time = state.pause ?? limits.retryFirst
      state.pause = min(time * 2, limits.retryMaximum)
      return time
    }
    let deadline = ContinuousClock.now + time
    while !state.withLock({ $0.isClosing || $0.wantsReset }) {
      if state.withLock({ $0.spoolProblem == nil }) { keep() }
      let left = ContinuousClock.now.duration(to: deadline)
      guard left > .zero else { return }
      news.wait(upTo: left)
    }
  }

  /// - Returns: false.
  private func finish() -> Bool {
    delivery.reset()
    end.ring()
    return false
  }
}
