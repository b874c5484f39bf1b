public import VMFenceCore
internal import Synchronization

/// Keeps the events it is handed, the first `capacity` of them, and counts the rest. Safe to use from any thread.
public final class RecordingEventSink: EventSink {
  private struct Contents {
    var events: [Event] = []
    var dropped: UInt64 = 0
  }

  private let capacity: Int
  private let contents = Mutex(Contents())

  public init(capacity: Int = 1 << 20) { self.capacity = capacity }

  public func receive(_ event: Event) async { record(event) }

  /// The same without waiting, for callers that are not asynchronous.
  public func record(_ event: Event) {
    contents.withLock { contents in
      if contents.events.count < capacity {
        contents.events.append(event)
      } else {
        contents.dropped += 1
      }
    }
  }

  /// What was received, in order.
  public var events: [Event] { contents.withLock { $0.events } }
  /// How many events came after the sink was full.
  public var dropped: UInt64 { contents.withLock { $0.dropped } }

  /// Hands over what was received, and begins anew.
  public func take() -> [Event] {
    contents.withLock { contents in
      defer { contents = Contents() }
      return contents.events
    }
  }
}
