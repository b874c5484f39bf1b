import VMFenceCore

/// How often rules matched within a window, by source, destination, both or as a whole: the state of `threshold` and
/// `detection_filter`. Fixed capacity, placed by a secret key; when a bucket is full, the count whose window began first gives way.
struct RateTable: ~Copyable {
  struct Entry: BitwiseCopyable {
    /// 128 bits of keyed hash stand for rule and addresses; both 0 is "free".
    var name: UInt64
    var place: UInt64
    /// Nanoseconds, packet time.
    var windowStart: Int64
    var count: UInt32
  }

  /// What is counted.
  struct Subject {
    var gid: UInt32
    var sid: UInt32
    var source: IPAddress
    var destination: IPAddress
  }

  /// A `threshold` or `detection_filter`, read from an image.
  struct Limit {
    var kind: RuleThreshold.Kind
    var track: RuleThreshold.Track
    var count: UInt32
    var seconds: UInt32
    /// The clock is read in whole seconds (Snort), so a window of 1 second ends with the second it began in.
    var wholeSeconds: Bool

    init?(_ image: RawSpan, _ record: Int) {
      guard let kind = RuleThreshold.Kind(rawValue: image.u8(record + RateRecord.kind)),
        let track = RuleThreshold.Track(rawValue: image.u8(record + RateRecord.track))
      else { return nil }
      self.kind = kind
      self.track = track
      count = image.u32le(record + RateRecord.count)
      seconds = image.u32le(record + RateRecord.seconds)
      wholeSeconds = image.u8(record + RateRecord.wholeSeconds) != 0
    }
  }

  static let capacity = 16_384
  private static let bucketPlaces = 8

  private var entries = ZeroedTable<Entry>(count: capacity)
  private let placeHash: KeyedHash
  private let nameHash: KeyedHash
  private(set) var evicted: UInt64 = 0

  /// `key`: secret.
  init(key: (UInt64, UInt64)) {
    placeHash = KeyedHash(key: (key.0 ^ 0x7261_7465_706C_6163, key.1))
    nameHash = KeyedHash(key: (key.1 ^ 0x7261_7465_6E61_6D65, key.0))
  }

  /// Counts one match, and says whether it comes through.
  ///
  /// A window begins with the first match and is over after `seconds`; with 0 seconds it never ends.
  /// - limit: the first `count` of a window come through.
  /// - threshold: every `count`-th; a new window begins behind it.
  /// - both: the `count`-th of a window only.
  /// - filter: all after the first `count` of a window.
  mutating func admits(_ limit: Limit, _ subject: Subject, at time: Timestamp) -> Bool {
    let now = limit.wholeSeconds ? time.nanoseconds / 1_000_000_000 * 1_000_000_000 : time.nanoseconds
    let place = entry(for: limit, subject, now)
    let (age, overflow) = now.subtractingReportingOverflow(entries[place].windowStart)
    let window = Int64(limit.seconds) * 1_000_000_000
    if limit.seconds > 0, overflow || age >= window {
      entries[place].windowStart = now
      entries[place].count = 0
    }
    if entries[place].count < .max { entries[place].count += 1 }
    let count = entries[place].count
    switch limit.kind {
    case .limit: return count <= limit.count
    case .both: return count == limit.count
    case .filter: return count > limit.count
    case .threshold:
      guard count >= limit.count else { return false }
      entries[place].count = 0
      entries[place].windowStart = now
      return true
    }
  }

  private mutating func entry(for limit: Limit, _ subject: Subject, _ now: Int64) -> Int {
    let none = IPAddress.anyV4
    var (first, second) = (none, none)
    switch limit.track {
    case .bySource: first = subject.source
    case .byDestination: first = subject.destination
    case .byRule: break
    case .byBoth:
      // The pair, whichever way the packet went.
      first = min(subject.source, subject.destination)
      second = max(subject.source, subject.destination)
    }
    let rule = UInt64(subject.gid) << 32 | UInt64(subject.sid)
    let kinds =
      UInt64(limit.kind.rawValue) << 16 | UInt64(limit.track.rawValue) << 8 | UInt64(first.family.rawValue)
    let place = placeHash.hash(rule, kinds, first.high, first.low, second.high, second.low) | 1
    let name = nameHash.hash(rule, kinds, first.high, first.low, second.high, second.low)

    let start = Int(truncatingIfNeeded: place >> 32) % (Self.capacity / Self.bucketPlaces) * Self.bucketPlaces
    var victim = start
    for index in start..<start + Self.bucketPlaces {
      let entry = entries[index]
      if entry.place == place, entry.name == name { return index }
      if entry.place == 0 {
        victim = index
        break
      }
      if entry.windowStart < entries[victim].windowStart { victim = index }
    }
    if entries[victim].place != 0 { evicted += 1 }
    entries[victim] = Entry(name: name, place: place, windowStart: now, count: 0)
    return victim
  }
}
