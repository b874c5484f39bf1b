internal import Synchronization

/// One subscriber's view of a probe's changes, for whoever writes a probe: a bounded queue that, when it overflows, forgets what it
/// has, and owes its reader a `gap` and a fresh snapshot instead. Safe to use from any thread; one task reads.
///
/// Give the reader `AsyncStream { await feed.next() }`, and keep the feed itself in `ChangeFeeds`, so that it goes with its reader.
public final class ChangeFeed: Sendable {
  private struct Contents {
    var queue: [InventoryChange] = []
    /// Changes lost since the last gap that was reported.
    var lost = 0
    var reason = ""
    /// The gap was reported, the snapshot is still owed.
    var owesSnapshot = false
    var isClosed = false
    var reader: CheckedContinuation<Void, Never>?

    mutating func wakeReader() -> CheckedContinuation<Void, Never>? {
      defer { reader = nil }
      return reader
    }
  }

  private let capacity: Int
  private let takeSnapshot: @Sendable () -> InventorySnapshot
  private let contents = Mutex(Contents())

  /// `takeSnapshot`: called by the reader, outside this feed's lock.
  public init(capacity: Int, takeSnapshot: @escaping @Sendable () -> InventorySnapshot) {
    self.capacity = max(1, capacity)
    self.takeSnapshot = takeSnapshot
  }

  public func send(_ change: InventoryChange) {
    contents.withLock { contents in
      guard !contents.isClosed else { return nil as CheckedContinuation<Void, Never>? }
      if contents.queue.count < capacity {
        contents.queue.append(change)
      } else {
        contents.lost += contents.queue.count + 1
        contents.reason = "the subscriber was too slow"
        contents.queue.removeAll(keepingCapacity: true)
      }
      return contents.wakeReader()
    }?.resume()
  }

  /// Loses one change, and owns up to it.
  public func lose(reason: String) {
    contents.withLock { contents in
      guard !contents.isClosed else { return nil as CheckedContinuation<Void, Never>? }
      contents.lost += 1 + contents.queue.count
      contents.reason = reason
      contents.queue.removeAll(keepingCapacity: true)
      return contents.wakeReader()
    }?.resume()
  }

  /// Ends the stream after what is queued.
  public func close() {
    contents.withLock { contents in
      contents.isClosed = true
      return contents.wakeReader()
    }?.resume()
  }

  /// The next change; waits for it. nil at the end, and when the reader's task is cancelled.
  public func next() async -> InventoryChange? {
    while !Task.isCancelled {
      switch take() {
      case .change(let change): return change
      case .snapshot: return .snapshot(takeSnapshot())
      case .end: return nil
      case .nothing: await waitForNews()
      }
    }
    return nil
  }

  private enum Taken {
    case change(InventoryChange)
    case snapshot
    case end
    case nothing
  }

  private func take() -> Taken {
    contents.withLock { contents in
      if contents.owesSnapshot {
        contents.owesSnapshot = false
        return .snapshot
      }
      if contents.lost > 0 {
        defer { contents.lost = 0 }
        contents.owesSnapshot = true
        return .change(.gap(count: contents.lost, reason: contents.reason))
      }
      if !contents.queue.isEmpty { return .change(contents.queue.removeFirst()) }
      return contents.isClosed ? .end : .nothing
    }
  }

  private func waitForNews() async {
    await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        let hasNews = contents.withLock { contents in
          if Task.isCancelled || contents.isClosed || contents.lost > 0 || !contents.queue.isEmpty { return true }
          contents.reader = continuation
          return false
        }
        if hasNews { continuation.resume() }
      }
    } onCancel: {
      contents.withLock { $0.wakeReader() }?.resume()
    }
  }
}

/// The subscribers of a probe, for whoever writes one. A feed is held weakly: it goes with its reader. Used by one thread at a time; under
/// the probe's lock all subscribers get the changes in the same order.
public struct ChangeFeeds: Sendable {
  private struct Entry {
    weak var feed: ChangeFeed?
  }

  private var entries: [Entry] = []

  public init() {}

  /// Adds a subscriber, and forgets those whose readers are gone.
  public mutating func add(_ feed: ChangeFeed) {
    entries.removeAll { $0.feed == nil }
    entries.append(Entry(feed: feed))
  }

  public func send(_ change: InventoryChange) { for entry in entries { entry.feed?.send(change) } }

  /// Has each lose one change, and own up to it.
  public func lose(reason: String) { for entry in entries { entry.feed?.lose(reason: reason) } }

  /// Ends all streams after what is queued.
  public func close() { for entry in entries { entry.feed?.close() } }
}
