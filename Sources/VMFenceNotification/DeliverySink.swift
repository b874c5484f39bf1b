internal import Foundation
internal import Synchronization
public import VMFenceCore

/// A place that events go to by way of a bounded queue and a thread of its own, so that a place that is slow or gone holds nobody up. Domains share the queue,
/// and alerts take no room from decisions. What does not fit is lost and counted: the youngest, so that what led to something is kept. With a spool, what
/// waits is in a file too, and the next process goes on with it. Safe to use from any thread.
public final class DeliverySink: EventSink {
  public struct Limits: Sendable, Hashable {
    /// Lines that wait of one domain's alerts (and what else is as much as there is traffic), of its file events, and of what is decided and noticed of it: so
    /// many of each. Of all domains together twice as many of each.
    public var lines: Int
    /// What these may take, in bytes.
    public var bytes: Int
    /// Lines that are handed over at once.
    public var batch: Int
    /// How long it waits after a failure, at first and at the most; twice as long each time.
    public var retryFirst: Duration
    public var retryMaximum: Duration

    public init(
      lines: Int = 10_000, bytes: Int = 8 << 20, batch: Int = 256, retryFirst: Duration = .milliseconds(200),
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

  private struct Line {
    var bytes: [UInt8]
    /// Of whose room it takes how much; nil: it came before there was any.
    var share: (kind: EventRoom.Kind, domain: Incarnation?, cost: Int)?

    var owned: DeliveryLine { DeliveryLine(bytes: bytes, kind: share?.kind ?? .traffic, domain: share?.domain) }
  }

  private struct State {
    var queue: [Line] = []
    var room: EventRoom
    /// How many of them, from the first, are in the spool.
    var spooled = 0
    var spoolProblem: String?
    /// The spool belongs to somebody else now.
    var isAbandoned = false
    var counters = Counters()
    var problem: String?
    /// The place has no room for some, or refuses them.
    var isRefusing = false
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
  private let state: Mutex<State>
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
    var room = EventRoom(
      traffic: 2 * limits.bytes, files: 2 * limits.bytes, others: 2 * limits.bytes,
      assured: min(16, limits.lines / 4) * limits.lineBytes)
    // It counts as everybody's.
    let queue = left.map { bytes in
      let cost = limits.cost(of: bytes)
      return Line(bytes: bytes, share: room.enter(.traffic, of: nil, cost) ? (.traffic, nil, cost) : nil)
    }
    state = Mutex(State(queue: queue, room: room, spooled: queue.count))
    let thread = Thread { [weak self] in
      while let sink = self, sink.turn() {}
    }
    thread.name = "vmfence-deliver"
    thread.start()
  }

  public func receive(_ event: Event) {
    guard filter.wants(event, directory) else { return }
    let lines = format(event)
    let (kind, domain) = (EventRoom.Kind(event), event.incarnation)
    state.withLock { state in
      for line in lines {
        let cost = limits.cost(of: line)
        if state.isClosing {
          state.room.lose(of: domain)
        } else if state.room.enter(kind, of: domain, cost) {
          state.queue.append(Line(bytes: line, share: (kind, domain, cost)))
        }
      }
    }
    news.ring()
  }

  public var counters: Counters {
    state.withLock { state in
      var result = state.counters
      result.overflowed = state.room.lostInAll
      (result.waiting, result.spooled) = (state.queue.count, state.spooled)
      return result
    }
  }

  /// What found no room, by domain, nil for the host; without domains that were forgotten.
  package var overflowedByDomain: [Incarnation?: UInt64] { state.withLock { $0.room.lost } }

  /// Keeps no figures of a domain that is gone.
  package func forget(_ domain: Incarnation) { state.withLock { $0.room.forget(domain) } }

  /// Whether what waits is in a file, too.
  public var keepsSpool: Bool { spool != nil }

  /// Why nothing is delivered, as long as that is so.
  public var problem: String? { state.withLock { $0.problem ?? $0.spoolProblem } }

  /// Whether the place answers, and has no room for some lines or refuses them, so that they are lost.
  package var isRefusing: Bool { state.withLock { $0.isRefusing } }

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
      (state.queue, state.spooled) = ([], 0)
    }
  }

  // MARK: The thread's side

  /// - Returns: whether to go on.
  private func turn() -> Bool {
    keep()
    let (batch, wantsReset, isClosing) = state.withLock { state in
      defer { state.wantsReset = false }
      return (state.queue.prefix(limits.batch).map(\.owned), state.wantsReset, state.isClosing)
    }
    if wantsReset { delivery.reset() }
    if batch.isEmpty {
      guard !isClosing else { return finish() }
      news.wait(upTo: .seconds(60))
      return true
    }
    var lost: [Incarnation?] = []
    do throws(DeliveryFailure) {
      take(try deliver(batch, &lost), problem: nil, lost)
    } catch {
      take(error.delivered, problem: error.message, lost)
      guard !isClosing else { return finish() }
      pause()
    }
    return true
  }

  /// Puts into the spool what is not there yet.
  private func keep() {
    guard let spool else { return }
    let new = state.withLock { $0.isAbandoned ? [] : $0.queue[$0.spooled...].map(\.bytes) }
    guard !new.isEmpty else { return }
    var problem: String?
    do throws(DeliveryFailure) { try spool.file.append(new[...]) } catch { problem = error.message }
    state.withLock { state in
      state.spoolProblem = problem
      if problem == nil, !state.isAbandoned { state.spooled += new.count }
    }
  }

  private func deliver(_ lines: [DeliveryLine], _ lost: inout [Incarnation?]) throws(DeliveryFailure) -> Int {
    guard let shared = delivery as? any SharedDelivery else { return try delivery.deliver(lines.map(\.bytes)) }
    return try shared.deliver(lines) { lost.append($0) }
  }

  /// - `lost`: whose lines of those delivered were not.
  private func take(_ delivered: Int, problem: String?, _ lost: [Incarnation?]) {
    let refused = delivery.refused
    let refusal = (delivery as? any RefusingDelivery)?.refusal
    let over = state.withLock { state in
      let count = min(max(0, delivered), state.queue.count)
      let over = state.queue.prefix(min(count, state.spooled)).map(\.bytes)
      state.spooled -= over.count
      for share in state.queue.prefix(count).compactMap(\.share) {
        state.room.leave(share.kind, of: share.domain, share.cost)
      }
      state.queue.removeFirst(count)
      let newlyRefused = refused &- state.counters.refused
      state.counters.refused = refused
      state.counters.delivered &+= UInt64(count) &- min(UInt64(count), newlyRefused &+ UInt64(lost.count))
      for domain in lost { state.room.lose(of: domain) }
      state.problem = problem ?? refusal
      state.isRefusing = problem == nil && refusal != nil
      if problem == nil || count > 0 { state.pause = nil }
      return over
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

extension DeliverySink.Limits {
  /// What a line takes of the room at the least, in bytes: so many lines take all of it.
  fileprivate var lineBytes: Int { max(1, bytes / max(1, lines)) }

  fileprivate func cost(of line: [UInt8]) -> Int { max(line.count, lineBytes) }
}
