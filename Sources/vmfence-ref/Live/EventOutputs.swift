#if Daemon
import Logging
import Synchronization
import VMFenceCore

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
  private let others: [any EventSink]
  private var fileHasProblem = false
  private var toldLost: UInt64 = 0

  init(file: EVEFileSink?, others: [any EventSink]) {
    self.file = file
    self.others = others
  }

  func receive(_ event: Event) async {
    await file?.receive(event)
    for sink in others { await sink.receive(event) }
  }

  func receive(_ statistics: EVEStatistics) { file?.receive(statistics) }

  /// After a rotation.
  func reopen(_ logger: Logger) {
    do throws(NotificationError) { try file?.reopen() } catch { logger.error("\(error.description)") }
  }

  /// Events that did not reach where they should have gone.
  var lost: UInt64 { file?.counters.linesLost ?? 0 }

  /// What was lost since the last call.
  func newLosses() -> [Loss] {
    let lost = file?.counters.linesLost ?? 0
    guard lost > toldLost else { return [] }
    defer { toldLost = lost }
    return [
      Loss(message: file?.problem?.message ?? "the event file could not be written for a while", count: lost - toldLost)
    ]
  }

  /// What is wrong with outputs now.
  var problems: [String] { file?.problem.map { [$0.message] } ?? [] }

  func close() async {}
}
#endif
