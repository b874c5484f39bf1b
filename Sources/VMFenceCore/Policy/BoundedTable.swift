/// A dictionary of fixed capacity. When it is full, the entry not touched for longest makes room, and that is counted.
/// Its hash is keyed (the standard library's, seeded per process), so that nobody outside can choose keys that collide.
struct BoundedTable<Key: Hashable & Sendable, Value: Sendable>: Sendable {
  private struct Slot {
    var key: Key
    var value: Value
    /// The neighbours in the order of use; -1 at the ends.
    var older: Int
    var newer: Int
  }

  let capacity: Int
  private var indices: [Key: Int] = [:]
  private var slots: [Slot] = []
  private var oldest = -1
  private var newest = -1
  /// Entries that made room for others.
  private(set) var evicted: UInt64 = 0

  init(capacity: Int) { self.capacity = Swift.max(1, capacity) }

  var count: Int { slots.count }

  /// The value, without touching it.
  subscript(key: Key) -> Value? { indices[key].map { slots[$0].value } }

  /// Changes the value of `key`, made by `initial` if there is none, and touches it.
  mutating func update<Result>(
    _ key: Key, initial: @autoclosure () -> Value, _ body: (inout Value) -> Result
  ) -> Result {
    let index: Int
    if let known = indices[key] {
      index = known
      unlink(index)
    } else if slots.count < capacity {
      index = slots.count
      slots.append(Slot(key: key, value: initial(), older: -1, newer: -1))
      indices[key] = index
    } else {
      index = oldest
      unlink(index)
      indices[slots[index].key] = nil
      slots[index].key = key
      slots[index].value = initial()
      indices[key] = index
      evicted += 1
    }
    linkAsNewest(index)
    return body(&slots[index].value)
  }

  /// All values, from the one not touched for longest.
  var values: [Value] {
    var result: [Value] = []
    result.reserveCapacity(slots.count)
    var index = oldest
    while index >= 0 {
      result.append(slots[index].value)
      index = slots[index].newer
    }
    return result
  }

  private mutating func unlink(_ index: Int) {
    let (older, newer) = (slots[index].older, slots[index].newer)
    if older >= 0 { slots[older].newer = newer } else { oldest = newer }
    if newer >= 0 { slots[newer].older = older } else { newest = older }
  }

  private mutating func linkAsNewest(_ index: Int) {
    slots[index].older = newest
    slots[index].newer = -1
    if newest >= 0 { slots[newest].newer = index } else { oldest = index }
    newest = index
  }
}

/// Tells when so many events lie within a window: a ring of the last times.
struct WindowCounter: Sendable {
  static let resolution = 64

  private var times: [Timestamp] = []
  private var next = 0
  /// The events of the granule that is being filled, and when its first was.
  private var partial = 0
  private var granuleStart = Timestamp.zero

  /// Counts an event.
  ///
  /// - Returns: whether `count` events, this one included, lie within `window`.
  mutating func add(at time: Timestamp, count: Int, window: Duration) -> Bool {
    let granule = (count + Self.resolution - 1) / Self.resolution
    if partial == 0 { granuleStart = time }
    partial += 1
    guard partial >= granule else { return false }
    partial = 0
    let ring = (count + granule - 1) / granule
    if times.count < ring {
      times.append(granuleStart)
      next = times.count % ring
    } else {
      times[next] = granuleStart
      next = (next + 1) % ring
    }
    return times.count == ring && time - times[next] <= window
  }

  /// Begins at nothing again.
  mutating func clear() {
    times.removeAll(keepingCapacity: true)
    next = 0
    partial = 0
  }
}

/// Tells when so many different values lie within a window: each with the last time it was seen. By their hash values, which are keyed:
/// nobody outside can choose values that are taken for one.
struct DistinctCounter: Sendable {
  private var seen: [(value: Int, time: Timestamp)] = []

  /// - Returns: whether `count` different values, this one included, lie within `window`.
  mutating func add(_ value: Int, at time: Timestamp, count: Int, window: Duration) -> Bool {
    if let index = seen.firstIndex(where: { $0.value == value }) {
      seen[index].time = time
    } else if seen.count < count {
      seen.append((value, time))
    } else if let oldest = seen.indices.min(by: { seen[$0].time < seen[$1].time }) {
      seen[oldest] = (value, time)
    }
    return seen.count == count && seen.allSatisfy { time - $0.time <= window }
  }

  /// Begins at nothing again.
  mutating func clear() { seen.removeAll(keepingCapacity: true) }
}

/// What is kept of one subject of a policy rule.
struct SubjectCounter: Sendable {
  private var events = WindowCounter()
  private var values = DistinctCounter()

  /// - Parameter value: what tells the event apart when different values are counted.
  /// - Returns: whether the count is full.
  mutating func add(_ value: Int?, at time: Timestamp, _ counting: Counting) -> Bool {
    guard let value else { return events.add(at: time, count: counting.count, window: counting.window) }
    return values.add(value, at: time, count: counting.count, window: counting.window)
  }

  mutating func clear() {
    events.clear()
    values.clear()
  }
}
