#if Daemon
import Foundation
import Logging
import Synchronization
import VMFenceCore
import VMFenceNotification

/// Keeps events until they are fetched: what the coordinator tells while it is asked something.
final class EventQueue: EventSink {
  private let events = Mutex<[Event]>([])

  func receive(_ event: Event) { events.withLock { $0.append(event) } }

  func take() -> [Event] {
    events.withLock { events in
      defer { events = [] }
      return events
    }
  }
}

/// A sink that keeps nobody waiting but the thread that it is called on.
protocol PromptEventSink: EventSink {
  func receive(_ event: Event)
}

/// Everywhere that events go, by way of a bounded queue and a thread of its own: whoever decides waits for no encoding and for no file. The thread
/// steps back when processors are scarce, so in a flood it is lines that are lost and not packets or decisions; they are counted, by domain. The room of the
/// queue is shared as `EventRoom` has it, so that a flood of one guest's alerts costs neither another guest's nor the line of a decision.
final class EventOutputs: Sendable {
  struct Loss {
    /// Whose events they were; nil: of several.
    var domain: Incarnation?
    var message: String
    var count: UInt64
  }

  /// Events of all domains together; one gets half of it.
  struct Limits: Sendable {
    var traffic = 16_384
    var files = 131_072
    var others = 131_072
  }

  /// So many events are written before their room is given back.
  private static let batch = 256
  /// Domains that a look names, those that lost most.
  private static let named = 16
  /// How often it is told what the event file, or another one, does not take: of one that is full that would be at every look, for as long as it is.
  private static let fileLossInterval = Duration.seconds(60)

  private struct Place {
    var wanted: NotificationPlace
    var sink: DeliverySink
  }

  private enum Item {
    case event(Event)
    case statistics(EVEStatistics)

    /// Whose room it takes.
    var share: (kind: EventRoom.Kind, domain: Incarnation?) {
      switch self {
      case .event(let event): (EventRoom.Kind(event), event.incarnation)
      case .statistics(let statistics): (.others, statistics.incarnation)
      }
    }
  }

  private struct State {
    var queue: [Item] = []
    /// Of what waits and of what is being written.
    var room: EventRoom
    var isClosing = false
    var places: [Place] = []
    /// Places that are not used any more, and may still be losing what waited.
    var former: [DeliverySink] = []
    var toldLost: [String: UInt64] = [:]
    /// Of places that have no room for some.
    var toldFullAt: [String: Timestamp] = [:]
    var toldLostOf: [Incarnation?: UInt64] = [:]
    var toldLostInFileOf: [Incarnation?: UInt64] = [:]
    var toldLostInFileAt: Timestamp?
    var toldProblems: Set<String> = []

    /// Puts it into the queue if there is room, and counts it otherwise.
    mutating func add(_ item: Item) {
      let (kind, domain) = item.share
      if isClosing {
        room.lose(of: domain)
      } else if room.enter(kind, of: domain) {
        queue.append(item)
      }
    }
  }

  private let file: EVEFileSink?
  private let encoder: EVEEncoder
  /// The history, the log, and the control socket.
  private let others: [any PromptEventSink]
  private let stateDirectory: String?
  private let logger: Logger
  private let state: Mutex<State>
  private let news = Bell()
  private let end = Bell()

  init(
    file: EVEFileSink?, encoder: EVEEncoder, others: [any PromptEventSink], stateDirectory: String?, logger: Logger,
    limits: Limits = Limits()
  ) {
    self.stateDirectory = stateDirectory
    self.logger = logger
    self.file = file
    self.encoder = encoder
    self.others = others
    state = Mutex(State(room: EventRoom(traffic: limits.traffic, files: limits.files, others: limits.others)))
    let thread = Thread { [self] in
      ThreadPriority.stepBack()
      var items: [Item] = []
      while turn(&items) {}
    }
    thread.name = "vmfence-tell"
    thread.start()
  }

  /// Events go to these places from now on. Those that stay keep what waits for them.
  func use(_ wanted: [NotificationPlace]) {
    let (gone, kept) = state.withLock { state in
      let gone = state.places.filter { !wanted.contains($0.wanted) }.map(\.sink)
      state.former += gone
      state.places.removeAll { !wanted.contains($0.wanted) }
      return (gone, state.places)
    }
    for sink in gone {
      // With a spool nothing is lost, and whoever goes on with it waits for this.
      if sink.keepsSpool { sink.close(patience: .milliseconds(200)) } else { Thread.detachNewThread { sink.close() } }
    }
    let places = wanted.map { place in
      let sink = kept.first { $0.wanted == place }?.sink
      return Place(
        wanted: place,
        sink: sink ?? place.open(encoder: encoder, stateDirectory: stateDirectory, logger: logger))
    }
    state.withLock { $0.places = places }
  }

  /// Has these told, with times moved by `offset`, after what was received before. What finds no room is lost, and counted.
  func receive(_ events: [Event], shiftedBy offset: Duration) {
    guard !events.isEmpty else { return }
    state.withLock { state in
      for event in events { state.add(.event(event.shifted(by: offset))) }
    }
    news.ring()
  }

  func receive(_ statistics: EVEStatistics) {
    state.withLock { $0.add(.statistics(statistics)) }
    news.ring()
  }

  /// Opens the places of `notifications` anew, and tries those at once that wait after a failure. The event file looks for itself.
  func reopen() { for sink in sinks { sink.reopen() } }

  private var sinks: [DeliverySink] { state.withLock { $0.places.map(\.sink) } }

  /// Events that did not reach where they should have gone.
  var lost: UInt64 {
    let (sinks, unwritten) = state.withLock { state in
      (state.places.map(\.sink) + state.former, state.room.lostInAll)
    }
    return sinks.reduce(unwritten &+ (file?.counters.linesLost ?? 0)) { $0 &+ $1.counters.lost }
  }

  /// Those of them that found no room in the queue or that the event file did not take, by domain, nil for the host; without domains that were forgotten.
  var lostByDomain: [Incarnation?: UInt64] {
    let lost = state.withLock { $0.room.lost }
    return file.map { lost.merging($0.lostByDomain, uniquingKeysWith: &+) } ?? lost
  }

  /// Of these, those that the event file did not take although they had room in it.
  var unwrittenByDomain: [Incarnation?: UInt64] { file?.unwrittenByDomain ?? [:] }

  /// Those that found no room in the queues of the places that are used now.
  var lostAtPlacesByDomain: [Incarnation?: UInt64] {
    sinks.reduce(into: [:]) { $0.merge($1.overflowedByDomain, uniquingKeysWith: &+) }
  }

  /// Keeps no figures of a domain that is gone.
  func forget(_ domain: Incarnation) {
    for sink in sinks { sink.forget(domain) }
    file?.forget(domain)
    state.withLock { state in
      state.room.forget(domain)
      state.toldLostOf[domain] = nil
      state.toldLostInFileOf[domain] = nil
    }
  }

  /// What was lost since the last call, by place; of the event file once a minute.
  func newLosses(at now: Timestamp) -> [Loss] {
    var losses: [Loss] = []
    func note(_ name: String, _ lost: UInt64, _ message: @autoclosure () -> String) {
      let before = state.withLock { $0.toldLost.updateValue(lost, forKey: name) ?? 0 }
      guard lost > before else { return }
      losses.append(Loss(domain: nil, message: message(), count: lost - before))
    }
    func describe(_ name: String, _ problem: String?) -> String {
      "events did not get to \(name.escapedForDisplay)" + (problem.map { ": \($0)" } ?? "")
    }
    let (lost, told, toldAt) = state.withLock { state in
      defer { state.toldLostOf = state.room.lost }
      return (state.room.lost, state.toldLostOf, state.toldLostInFileAt)
    }
    losses += Self.newLosses(
      lost, told, "events came faster than they can be told; what the policy counts was counted all the same")
    if let file, toldAt.map({ now - $0 >= Self.fileLossInterval }) ?? true {
      let lost = file.lostByDomain
      let told = state.withLock { state in
        defer { state.toldLostInFileOf = lost }
        return state.toldLostInFileOf
      }
      let new = Self.newLosses(lost, told, describe(file.path, file.problem?.message))
      if !new.isEmpty { state.withLock { $0.toldLostInFileAt = now } }
      losses += new
    }
    for sink in sinks where isDue(sink, at: now) {
      note(sink.name, sink.counters.lost, describe(sink.name, sink.problem))
    }
    return losses
  }

  /// Whether what a place lost is to be told now, if it lost anything.
  private func isDue(_ sink: DeliverySink, at now: Timestamp) -> Bool {
    let (isRefusing, lost) = (sink.isRefusing, sink.counters.lost)
    return state.withLock { state in
      guard isRefusing else {
        state.toldFullAt[sink.name] = nil
        return true
      }
      guard lost > state.toldLost[sink.name] ?? 0 else { return false }
      if let told = state.toldFullAt[sink.name], now - told < Self.fileLossInterval { return false }
      state.toldFullAt[sink.name] = now
      return true
    }
  }

  /// What is lost and not told yet: of those domains by themselves that lost most.
  private static func newLosses(
    _ lost: [Incarnation?: UInt64], _ told: [Incarnation?: UInt64], _ message: String
  ) -> [Loss] {
    let new = lost.compactMap { domain, count in
      let new = count - min(count, told[domain] ?? 0)
      return new > 0 ? Loss(domain: domain, message: message, count: new) : nil
    }.sorted { $0.count > $1.count }
    let rest = new.dropFirst(named)
    guard !rest.isEmpty else { return new }
    return new.prefix(named) + [
      Loss(
        domain: nil, message: "\(message): of \(rest.count) more domains", count: rest.reduce(0) { $0 &+ $1.count })
    ]
  }

  /// What is wrong with outputs now.
  var problems: [String] {
    (file?.problem.map { [$0.message] } ?? [])
      + sinks.compactMap { sink in sink.problem.map { "\(sink.name): \($0) (\(sink.counters.waiting) events wait)" } }
  }

  /// Tells the log what is wrong with a place, once, and when it is right again.
  func logProblems() {
    for sink in sinks {
      let problem = sink.problem
      let isTold = state.withLock { state in
        let isTold = state.toldProblems.contains(sink.name)
        if problem != nil { state.toldProblems.insert(sink.name) } else { state.toldProblems.remove(sink.name) }
        return isTold
      }
      if let problem, !isTold {
        logger.error("events do not get to \(sink.name): \(problem)\(sink.isRefusing ? "" : "; they wait")")
      } else if problem == nil, isTold {
        logger.notice("events get to \(sink.name) again")
      }
    }
  }

  /// Tells what waits, within `patience`; what is left then is lost.
  func close(patience: Duration = .seconds(5)) {
    state.withLock { $0.isClosing = true }
    news.ring()
    if !end.wait(upTo: patience) {
      let left = state.withLock { state in EventRoom.Kind.allCases.reduce(0) { $0 + state.room.used($1) } }
      logger.warning("\(left) events were not told before the end")
    }
    for sink in sinks { sink.close() }
  }

  // MARK: The thread's side

  /// - `items`: empty, and so afterwards; its room and that of the queue are used in turns.
  /// - Returns: whether to go on.
  private func turn(_ items: inout [Item]) -> Bool {
    let (places, isClosing) = state.withLock { state in
      swap(&items, &state.queue)
      return (state.places.map(\.sink), state.isClosing)
    }
    if items.isEmpty {
      guard !isClosing else {
        end.ring()
        return false
      }
      news.wait(upTo: .seconds(60))
      return true
    }
    for start in stride(from: 0, to: items.count, by: Self.batch) {
      let batch = start..<min(start + Self.batch, items.count)
      for index in batch { tell(items[index], places) }
      state.withLock { state in
        for index in batch { state.room.leave(items[index].share.kind, of: items[index].share.domain) }
      }
    }
    items.removeAll(keepingCapacity: true)
    return true
  }

  private func tell(_ item: Item, _ places: [DeliverySink]) {
    switch item {
    case .statistics(let statistics): file?.receive(statistics)
    case .event(let event):
      file?.receive(event)
      for sink in others { sink.receive(event) }
      for sink in places { sink.receive(event) }
    }
  }
}

enum ThreadPriority {
  /// Lets the calling thread have what others leave of the processors, and a tenth besides: nice(1) 10. Without effect where that is not allowed.
  static func stepBack() {
    // On Linux each thread has a priority of its own, and 0 names the one that calls (setpriority(2)).
    _ = setpriority(Int32(PRIO_PROCESS.rawValue), 0, 10)
  }
}
#endif
