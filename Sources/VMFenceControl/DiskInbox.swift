internal import Synchronization
internal import VMFenceCore

/// What the processes of disks said and the daemon's loop has not taken yet. Bounded, whatever they say: of how each stands only the newest is kept, and of
/// what they tell of files so much, shared between them; for the rest they wait. Safe to use from any thread.
package final class DiskInbox: Sendable {
  /// Of events of all disks together, in bytes; one gets half of it.
  package static let capacity = 16 << 20
  /// An event counts for so much at the least.
  private static let eventBytes = 2048

  /// What there is of one process.
  package struct News: Sendable {
    /// How it stands, nil when nobody is there; nil when nothing was said of that.
    package var status: DiskControlStatus??
    package var events: [DiskFileEvent] = []
    /// What they take of the room.
    fileprivate var held = 0
    /// An event waits with the process, since it found no room.
    package var isWaiting = false
    /// Events that were lost before they came here.
    package var lost: UInt64 = 0
    /// What it said of how it stands that something newer took the place of.
    package var outdated: UInt64 = 0
  }

  private struct Contents {
    var news: [String: News] = [:]
    var room = FairRoom(capacity: capacity, assured: 16 * eventBytes)
  }

  private let contents = Mutex(Contents())

  package init() {}

  /// - `path`: the process's control socket: one of those that are followed.
  /// - Returns: whether there was room, and whether it was empty before.
  package func add(_ news: DiskFollower.News, of path: String) -> (isTaken: Bool, isFirst: Bool) {
    contents.withLock { contents in
      let isFirst = contents.news.isEmpty
      var mine = contents.news.removeValue(forKey: path) ?? News()
      var isTaken = true
      switch news {
      case .status(let status): mine.replace(with: status)
      case .absent: mine.replace(with: nil)
      case .event(let event):
        isTaken = contents.room.enter(&mine.held, Self.cost(of: event))
        if isTaken { mine.events.append(event) } else { mine.isWaiting = true }
      case .lost(let count): mine.lost.addUpToMaximum(count)
      }
      contents.news[path] = mine
      return (isTaken, isFirst)
    }
  }

  /// What an event takes of the room.
  package static func cost(of event: DiskFileEvent) -> Int { max(eventBytes, event.textBytes) }

  /// All of it, by the processes' control sockets in order.
  package func take() -> [(path: String, news: News)] {
    let news = contents.withLock { contents in
      defer { contents = Contents() }
      return contents.news
    }
    return news.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
  }
}

extension DiskInbox.News {
  fileprivate mutating func replace(with newer: DiskControlStatus?) {
    if status != nil { outdated &+= 1 }
    status = .some(newer)
  }
}

extension UInt64 {
  /// What a disk's process says it lost can be any number.
  package mutating func addUpToMaximum(_ count: UInt64) {
    let (sum, isOver) = addingReportingOverflow(count)
    self = isOver ? .max : sum
  }
}
