#if Daemon
import Foundation
import Logging
import Synchronization
import VMFenceCore
import VMFenceNotification

/// Keeps events until they are fetched: what the coordinator tells while it is asked something.
final class EventQueue: EventSink {
  private let events = Mutex<[Event]>([])

  func receive(_ event: Event) async { events.withLock { $0.append(event) } }

  func take() -> [Event] {
    events.withLock { events in
      defer { events = [] }
      return events
    }
  }
}

/// Everywhere that events go.
final class EventOutputs {
  struct Loss {
    var message: String
    var count: UInt64
  }

  private let file: EVEFileSink?
  private let encoder: EVEEncoder
  /// The log, and the control socket.
  private let others: [any EventSink]
  private let stateDirectory: String?
  private let logger: Logger
  private var places: [(place: NotificationPlace, sink: DeliverySink)] = []
  private var toldLost: [String: UInt64] = [:]
  private var toldProblems: Set<String> = []
  /// Places that are not used any more, and may still be losing what waited.
  private var former: [DeliverySink] = []

  init(
    file: EVEFileSink?, encoder: EVEEncoder, others: [any EventSink], stateDirectory: String?, logger: Logger
  ) {
    self.stateDirectory = stateDirectory
    self.logger = logger
    self.file = file
    self.encoder = encoder
    self.others = others
  }

  /// Events go to these places from now on. Those that stay keep what waits for them.
  func use(_ wanted: [NotificationPlace]) {
    for (place, sink) in places where !wanted.contains(place) {
      former.append(sink)
      // With a spool nothing is lost, and whoever goes on with it waits for this.
      if sink.keepsSpool { sink.close(patience: .milliseconds(200)) } else { Thread.detachNewThread { sink.close() } }
    }
    let kept = places.filter { wanted.contains($0.place) }
    places = wanted.map { place in
      let sink = kept.first { $0.place == place }?.sink
      return (place, sink ?? place.open(encoder: encoder, stateDirectory: stateDirectory, logger: logger))
    }
  }

  func receive(_ event: Event) async {
    await file?.receive(event)
    for sink in others { await sink.receive(event) }
    for (_, sink) in places { await sink.receive(event) }
  }

  func receive(_ statistics: EVEStatistics) { file?.receive(statistics) }

  /// After a rotation.
  func reopen() {
    do throws(NotificationError) { try file?.reopen() } catch { logger.log([error.diagnostic]) }
    for (_, sink) in places { sink.reopen() }
  }

  /// Events that did not reach where they should have gone.
  var lost: UInt64 {
    (places.map(\.sink) + former).reduce(file?.counters.linesLost ?? 0) { $0 &+ $1.counters.lost }
  }

  /// What was lost since the last call, by place.
  func newLosses() -> [Loss] {
    var losses: [Loss] = []
    func note(_ name: String, _ lost: UInt64, _ problem: String?) {
      let before = toldLost.updateValue(lost, forKey: name) ?? 0
      guard lost > before else { return }
      losses.append(
        Loss(
          message: "events did not get to \(name.escapedForDisplay)" + (problem.map { ": \($0)" } ?? ""),
          count: lost - before))
    }
    if let file { note(file.path, file.counters.linesLost, file.problem?.message) }
    for (_, sink) in places { note(sink.name, sink.counters.lost, sink.problem) }
    return losses
  }

  /// What is wrong with outputs now.
  var problems: [String] {
    (file?.problem.map { [$0.message] } ?? [])
      + places.compactMap { _, sink in sink.problem.map { "\(sink.name): \($0) (\(sink.counters.waiting) events wait)" }
      }
  }

  /// Tells the log what is wrong with a place, once, and when it is right again.
  func logProblems() {
    for (_, sink) in places {
      let isTold = toldProblems.contains(sink.name)
      if let problem = sink.problem, !isTold {
        toldProblems.insert(sink.name)
        logger.error("events do not get to \(sink.name): \(problem); they wait")
      } else if sink.problem == nil, isTold {
        toldProblems.remove(sink.name)
        logger.notice("events get to \(sink.name) again")
      }
    }
  }

  func close() async { for (_, sink) in places { sink.close() } }
}
#endif
