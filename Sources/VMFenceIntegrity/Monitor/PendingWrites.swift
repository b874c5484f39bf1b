internal import VMFenceCore

/// The last writes to blocks that no followed file owned when they came: where, which request, when, and (where the policy asks for
/// hashes) a hash; not the data. When a file claims such a block, this says which request brought its contents, and whether the disk
/// still has them. A ring of fixed size: the oldest is
/// overwritten.
struct PendingWrites: Sendable {
  struct Entry: Sendable {
    /// In bytes.
    var start: UInt64 = 0
    var end: UInt64 = 0
    var moment = IntegrityMonitor.Moment(sequence: 0, time: .zero)
    /// Of the data; nil when none was asked for, or there were none.
    var hash: UInt64?
  }

  /// A keyed hash of data: 64 bits, quick, and not one to show to anybody.
  static func hash(_ data: RawSpan, key: (UInt64, UInt64)) -> UInt64 {
    var state = key.0 ^ UInt64(data.byteCount)
    func mix(_ word: UInt64) {
      state = (state ^ word) &* (key.1 | 0x9E37_79B9_7F4A_7C15)
      state ^= state >> 29
    }
    var position = 0
    while position + 8 <= data.byteCount {
      mix(data.u64le(position))
      position += 8
    }
    while position < data.byteCount {
      mix(UInt64(data.u8(position)))
      position += 1
    }
    return state
  }

  private var entries: [Entry]
  private var next = 0

  init(capacity: Int) { entries = [Entry](repeating: Entry(), count: max(1, capacity)) }

  mutating func add(start: UInt64, end: UInt64, _ moment: IntegrityMonitor.Moment, hash: UInt64?) {
    entries[next] = Entry(start: start, end: end, moment: moment, hash: hash)
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

  /// The writes with a hash that lie in a range, whole, and that no later one has touched.
  func hashed(in range: Range<UInt64>) -> [Entry] {
    let inside = entries.filter { $0.start < range.upperBound && $0.end > range.lowerBound && $0.start < $0.end }
    return inside.filter { entry in
      entry.hash != nil && range.lowerBound <= entry.start && entry.end <= range.upperBound
        && !inside.contains {
          $0.moment.sequence > entry.moment.sequence && $0.start < entry.end && $0.end > entry.start
        }
    }
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

  var isEmpty: Bool { events.isEmpty }

  mutating func append(_ event: FileEvent) {
    if events.count < limit {
      events.append(event)
    } else {
      dropped += 1
      droppedSinceDrain += 1
    }
  }

  /// The files of which changes of contents wait.
  var changedInodes: Set<UInt64> {
    Set(events.lazy.filter { $0.verdict == .allow && Self.contents.contains($0.operation) }.map(\.inode))
  }

  private static let contents: Set<FileEvent.Operation> = [.create, .write, .append, .truncate, .replace]

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
