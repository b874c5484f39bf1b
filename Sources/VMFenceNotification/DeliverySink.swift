internal import Foundation
internal import Synchronization
public import VMFenceCore

/// A place that events go to by way of a bounded queue and a thread of its own, so that a place that is slow or gone holds nobody up. What does not fit into the
/// queue is lost and counted: the youngest, so that what led to something is kept. Safe to use from any thread.
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
    /// For which there was no room.
    public var overflowed: UInt64 = 0
    /// That the other side refused, or that were left at the end.
    public var refused: UInt64 = 0
    public var waiting: Int = 0

    public var lost: UInt64 { overflowed &+ refused }
  }

  /// Turns an event into the lines that stand for it, without their ends.
  public typealias Format = @Sendable (Event) -> [[UInt8]]

  private struct State {
    var queue: [[UInt8]] = []
    var bytes = 0
    var counters = Counters()
    var problem: String?
    var isClosing = false
    var hasEnded = false
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
  private let state = Mutex(State())
  private let news = NSCondition()

  public init(
    name: String, filter: EventFilter, directory: DomainDirectory, limits: Limits = Limits(), delivery: any Delivery,
    format: @escaping Format
  ) {
    self.name = name
    self.filter = filter
    self.directory = directory
    self.limits = limits
    self.delivery = delivery
    self.format = format
    let thread = Thread { [weak self] in
      while let sink = self, sink.turn() {}
    }
    thread.name = "vmfence-deliver"
    thread.start()
  }

  public func receive(_ event: Event) async {
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
    signal()
  }

  public var counters: Counters {
    state.withLock { state in
      var result = state.counters
      result.waiting = state.queue.count
      return result
    }
  }

  /// Why nothing is delivered, as long as that is so.
  public var problem: String? { state.withLock { $0.problem } }

  /// Opens what is open anew: after a rotation.
  public func reopen() {
    state.withLock { $0.wantsReset = true }
    signal()
  }

  /// Delivers what waits, within `patience`; what is left then is lost and counted.
  public func close(patience: Duration = .seconds(2)) {
    state.withLock { $0.isClosing = true }
    signal()
    let deadline = Date(timeIntervalSinceNow: Double(patience.wholeNanoseconds) / 1e9)
    news.lock()
    while !state.withLock({ $0.hasEnded }), news.wait(until: deadline) {}
    news.unlock()
    state.withLock { state in
      state.counters.refused &+= UInt64(state.queue.count)
      state.queue = []
      state.bytes = 0
    }
  }

  private func signal() {
    news.lock()
    news.broadcast()
    news.unlock()
  }

  // MARK: The thread's side

  /// - Returns: whether to go on.
  private func turn() -> Bool {
    let (batch, wantsReset, isClosing) = state.withLock { state in
      defer { state.wantsReset = false }
      return (Array(state.queue.prefix(limits.batch)), state.wantsReset, state.isClosing)
    }
    if wantsReset { delivery.reset() }
    if batch.isEmpty {
      if isClosing {
        end()
        return false
      }
      wait(.seconds(1))
      return true
    }
    do throws(DeliveryFailure) {
      take(try delivery.deliver(batch), problem: nil)
    } catch {
      take(error.delivered, problem: error.message)
      if isClosing {
        end()
        return false
      }
      pause()
    }
    return true
  }

  private func take(_ delivered: Int, problem: String?) {
    let refused = delivery.refused
    state.withLock { state in
      let count = min(max(0, delivered), state.queue.count)
      state.bytes -= state.queue.prefix(count).reduce(0) { $0 + $1.count }
      state.queue.removeFirst(count)
      let newlyRefused = refused &- state.counters.refused
      state.counters.refused = refused
      state.counters.delivered &+= UInt64(count) &- min(UInt64(count), newlyRefused)
      state.problem = problem
      if problem == nil || count > 0 { state.pause = nil }
    }
  }

  /// Waits longer each time, whatever comes meanwhile, unless it is to end or to open anew.
  private func pause() {
    let time = state.withLock { state in
      let time = state.pause ?? limits.retryFirst
      state.pause = min(time * 2, limits.retryMaximum)
      return time
    }
    let deadline = Date(timeIntervalSinceNow: Double(time.wholeNanoseconds) / 1e9)
    news.lock()
    while !state.withLock({ $0.isClosing || $0.wantsReset }), news.wait(until: deadline) {}
    news.unlock()
  }

  private func wait(_ time: Duration) {
    news.lock()
    let hasNews = state.withLock { !$0.queue.isEmpty || $0.isClosing || $0.wantsReset }
    if !hasNews { _ = news.wait(until: Date(timeIntervalSinceNow: Double(time.wholeNanoseconds) / 1e9)) }
    news.unlock()
  }

  private func end() {
    delivery.reset()
    state.withLock { $0.hasEnded = true }
    signal()
  }
}
