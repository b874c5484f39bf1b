#if Daemon
import VMFenceCore

/// Paces what the dispatcher noticed about senders: a guest that forges addresses without pause gets its first alert at once
/// and then one a second for each address, with a count, instead of as many as the loop has turns.
struct SourceAlertPace {
  private static let interval: Duration = .seconds(1)
  private var last: Timestamp?

  mutating func drain(_ dispatcher: inout Dispatcher, at time: Timestamp) -> [Event] {
    if let last, time >= last, time - last < Self.interval { return [] }
    let alerts = dispatcher.drainAlerts(at: time)
    if !alerts.isEmpty { last = time }
    return alerts.map { Event.platform($0) }
  }
}
#endif
