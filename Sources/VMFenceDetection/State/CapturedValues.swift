import VMFenceCore

/// What expressions captured (`pcre` with names of variables), kept with flows, or for as long as a packet is inspected.
///
/// Fixed capacity, placed by a secret key: the value that was set longest ago gives way, and is counted. Values are cut to
/// `valueLimit` bytes.
struct CapturedValues: ~Copyable {
  static let valueLimit = 128
  static let capacity = 2048
  private static let bucketPlaces = 8

  struct Entry: BitwiseCopyable {
    /// Of whom; 0: the place is free.
    var owner: UInt64
    var name: UInt64
    /// Counts up with each value that is set.
    var order: UInt64
    var length: UInt32
    var bytes: InlineArray<128, UInt8>
  }

  /// What the rule that is being compared captured; it counts once all of the rule matched.
  private struct Pending: BitwiseCopyable {
    var name: UInt64 = 0
    var scope = CaptureScope.flow
    var length: UInt32 = 0
    var bytes = InlineArray<128, UInt8>(repeating: 0)
  }

  private(set) var entries = ZeroedTable<Entry>(count: capacity)
  private let placeHash: KeyedHash
  private var order: UInt64 = 0
  private var pending: [Pending]
  private(set) var pendingCount = 0
  /// How many of those that are pending, or were kept last, are for the alert.
  private(set) var alertCount = 0
  private(set) var evicted: UInt64 = 0

  /// `key`: secret.
  init(key: (UInt64, UInt64)) {
    placeHash = KeyedHash(key: (key.0 ^ 0x6361_7074_7572_6573, key.1))
    pending = Array(repeating: Pending(), count: VariableCapture.limit)
  }

  mutating func forgetPending() {
    pendingCount = 0
    alertCount = 0
  }

  /// Notes a capture; a later one of the same name takes its place. Those over `VariableCapture.limit` are left out.
  mutating func note(_ name: UInt64, _ scope: CaptureScope, _ value: RawSpan) {
    var index = 0
    while index < pendingCount, pending[index].name != name || pending[index].scope != scope { index += 1 }
    guard index < pending.count else { return }
    pendingCount = max(pendingCount, index + 1)
    let length = min(value.byteCount, Self.valueLimit)
    pending[index].name = name
    pending[index].scope = scope
    pending[index].length = UInt32(length)
    for offset in 0..<length { pending[index].bytes[offset] = value.u8(offset) }
  }

  /// Adds what was captured for the alert to it, once the rule matched and what else was noted is kept.
  func tell(_ record: inout AlertRecord) {
    for index in 0..<alertCount {
      let value = (0..<Int(pending[index].length)).map { pending[index].bytes[$0] }
      record.addCapture(UInt8(truncatingIfNeeded: pending[index].name), value)
    }
  }

  /// Keeps what was noted. `flow`: nil when the packet is in none, and what is for the flow is lost.
  mutating func keepPending(flow: UInt64?, packet: UInt64) {
    alertCount = 0
    for index in 0..<pendingCount {
      if pending[index].scope == .alert {
        // To the front, where nothing is pending any more.
        pending.swapAt(alertCount, index)
        alertCount += 1
      } else if let owner = pending[index].scope == .flow ? flow : packet {
        set(pending[index], owner)
      }
    }
    pendingCount = 0
  }

  private mutating func set(_ value: Pending, _ owner: UInt64) {
    adopt(Entry(owner: owner, name: value.name, order: 0, length: value.length, bytes: value.bytes))
  }

  /// Puts in a value; its `order` becomes that of the newest.
  mutating func adopt(_ new: Entry) {
    let start = bucket(new.owner, new.name)
    var place = start
    for candidate in start..<start + Self.bucketPlaces {
      let entry = entries[candidate]
      if entry.owner == new.owner, entry.name == new.name {
        place = candidate
        break
      }
      if entries[place].owner != 0, entry.owner == 0 || entry.order < entries[place].order { place = candidate }
    }
    if entries[place].owner != 0, entries[place].owner != new.owner || entries[place].name != new.name { evicted += 1 }
    order += 1
    entries[place] = new
    entries[place].order = order
  }

  /// Whether the bytes at `pattern` of `image` stand in the value; nil when there is none.
  func holds(_ owner: UInt64, _ name: UInt64, pattern: Range<Int>, in image: RawSpan) -> Bool? {
    let start = bucket(owner, name)
    for place in start..<start + Self.bucketPlaces where entries[place].owner == owner && entries[place].name == name {
      let length = Int(entries[place].length)
      guard pattern.count <= length else { return false }
      for first in 0...length - pattern.count
      where pattern.indices.allSatisfy({
        entries[place].bytes[first + $0 - pattern.lowerBound] == image.u8($0)
      }) { return true }
      return false
    }
    return nil
  }

  private func bucket(_ owner: UInt64, _ name: UInt64) -> Int {
    Int(truncatingIfNeeded: placeHash.hash(owner, name) >> 32) % (Self.capacity / Self.bucketPlaces) * Self.bucketPlaces
  }
}
