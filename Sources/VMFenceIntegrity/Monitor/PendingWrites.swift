internal import VMFenceCore

/// The last writes to blocks that no followed file owned when they came: where, which request, when; not the data.
/// When a file claims such a block, this says which request brought its contents. A ring of fixed size: the oldest is
/// overwritten.
struct PendingWrites: Sendable {
  struct Entry: Sendable {
    /// In bytes.
    var start: UInt64 = 0
    var end: UInt64 = 0
    var sequence: UInt64 = 0
  }

  private var entries: [Entry]
  private var next = 0

  init(capacity: Int) { entries = [Entry](repeating: Entry(), count: max(1, capacity)) }

  mutating func add(start: UInt64, end: UInt64, sequence: UInt64) {
    entries[next] = Entry(start: start, end: end, sequence: sequence)
    next = next + 1 == entries.count ? 0 : next + 1
  }

  /// How many bytes of a range no kept write covers.
  func bytesNotSeen(in range: Range<UInt64>) -> UInt64 {
    var position = range.lowerBound
    var missing: UInt64 = 0
    while position < range.upperBound {
      var covered = position
      var nextStart = range.upperBound
      for entry in entries {
        if entry.start <= position, position < entry.end {
          covered = max(covered, entry.end)
        } else if entry.start > position {
          nextStart = min(nextStart, entry.start)
        }
      }
      if covered > position {
        position = covered
      } else {
        missing += nextStart - position
        position = nextStart
      }
    }
    return missing
  }

  mutating func removeAll() { entries = [Entry](repeating: Entry(), count: entries.count) }
}

/// Stretches of bytes, sorted and apart from each other.
package struct ByteRanges: Sendable {
  /// With more stretches than this the owner settles at the next request, and tells them as one.
  package static let limit = 64
  package private(set) var ranges: [Range<UInt64>] = []

  package init() {}

  package var isEmpty: Bool { ranges.isEmpty }
  package var isFull: Bool { ranges.count > Self.limit }

  package mutating func insert(_ range: Range<UInt64>) {
    guard !range.isEmpty else { return }
    // The first stretch that ends at or after the beginning of the new one.
    var low = 0
    var high = ranges.count
    while low < high {
      let middle = (low + high) / 2
      if ranges[middle].upperBound < range.lowerBound { low = middle + 1 } else { high = middle }
    }
    var merged = range
    var end = low
    while end < ranges.count, ranges[end].lowerBound <= merged.upperBound {
      merged = min(merged.lowerBound, ranges[end].lowerBound)..<max(merged.upperBound, ranges[end].upperBound)
      end += 1
    }
    ranges.replaceSubrange(low..<end, with: CollectionOfOne(merged))
  }

  /// The parts inside `bounds`.
  package func clamped(to bounds: Range<UInt64>) -> [Range<UInt64>] {
    ranges.map { $0.clamped(to: bounds) }.filter { !$0.isEmpty }
  }
}

/// Events on their way to whoever drains them: bounded, the overflow counted and told.
struct EventQueue: Sendable {
  private var events: [FileEvent] = []
  private let limit: Int
  private(set) var dropped: UInt64 = 0
  private var droppedSinceDrain: UInt64 = 0

  init(limit: Int) { self.limit = max(1, limit) }

  mutating func append(_ event: FileEvent) {
    if events.count < limit {
      events.append(event)
    } else {
      dropped += 1
      droppedSinceDrain += 1
    }
  }

  /// All events; after them, when some did not fit, a gap that says how many.
  mutating func drain() -> [FileEvent] {
    var result = events
    events.removeAll(keepingCapacity: true)
    if droppedSinceDrain > 0, let last = result.last {
      result.append(
        FileEvent(
          time: last.time, incarnation: last.incarnation, disk: last.disk, sequence: last.sequence, operation: .gap,
          path: [], inode: 0,
          changes: [.init(attribute: "events", old: "", new: "\(droppedSinceDrain) events did not fit and were lost")]))
      droppedSinceDrain = 0
    }
    return result
  }
}
