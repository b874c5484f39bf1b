import VMFenceCore

/// How often rules matched within a window, by source, destination, both, flow or as a whole: the state of `threshold`,
/// `detection_filter` and `rate_filter`. Fixed capacity, placed by a secret key; when a bucket is full, the count whose window
/// began first gives way.
struct RateTable: ~Copyable {
  /// What a count is about.
  struct Name: Equatable, BitwiseCopyable {
    /// Generator (high) and signature.
    var rule: UInt64
    /// From the low bits up, 8 each: address family, `RuleThreshold.Track`, `RuleThreshold.Kind`.
    var kinds: UInt64
    /// Two addresses, or 0 and the identity of a flow.
    var firstHigh: UInt64
    var firstLow: UInt64
    var secondHigh: UInt64
    var secondLow: UInt64

    var isOfFlow: Bool { kinds >> 8 & 0xFF == UInt64(RuleThreshold.Track.byFlow.rawValue) }
  }

  struct Entry: BitwiseCopyable {
    var name: Name
    /// The name's keyed hash; 0: the place is free.
    var place: UInt64
    /// Nanoseconds, packet time. For a `rate_filter` in effect: when it began.
    var windowStart: Int64
    var count: UInt32
    /// Snort's detection_filter: the matches of the window before. backoff: the count that is let through next.
    var other: UInt32
    /// A `rate_filter` is in effect.
    var isActive: Bool
    /// Which set of distinct ports is this entry's, from 1; 0 for none.
    var ports: UInt16
  }

  /// What is counted.
  struct Subject {
    var gid: UInt32
    var sid: UInt32
    var source: IPAddress
    var destination: IPAddress
    var sourcePort: UInt16
    var destinationPort: UInt16
    /// 0: the packet belongs to no flow.
    var flow: UInt64
  }

  /// A `threshold`, `detection_filter` or `rate_filter`, read from an image.
  struct Limit {
    var kind: RuleThreshold.Kind
    var track: RuleThreshold.Track
    var unique: RuleThreshold.Unique
    var count: UInt32
    var seconds: UInt32
    /// backoff: what each step multiplies. rate_filter: seconds that the new action stays in effect.
    var extra: UInt32
    /// As Snort does it: the clock is read in whole seconds, so a window of 1 second ends with the second it began in; a
    /// `threshold` that fired begins a new window; detection_filter remembers the window before.
    var isSnort: Bool

    init?(_ image: RawSpan, _ record: Int) {
      guard let kind = RuleThreshold.Kind(rawValue: image.u8(record + RateRecord.kind)),
        let track = RuleThreshold.Track(rawValue: image.u8(record + RateRecord.track)),
        let unique = RuleThreshold.Unique(rawValue: image.u8(record + RateRecord.unique))
      else { return nil }
      self.kind = kind
      self.track = track
      self.unique = unique
      count = image.u32le(record + RateRecord.count)
      seconds = image.u32le(record + RateRecord.seconds)
      extra = image.u32le(record + RateRecord.extra)
      isSnort = image.u8(record + RateRecord.isSnort) != 0
    }
  }

  static let capacity = 16_384
  private static let bucketPlaces = 8

  private(set) var entries = ZeroedTable<Entry>(count: capacity)
  private var portSets = PortSets()
  private let placeHash: KeyedHash
  private(set) var evicted: UInt64 = 0

  /// `key`: secret.
  init(key: (UInt64, UInt64)) {
    placeHash = KeyedHash(key: (key.0 ^ 0x7261_7465_706C_6163, key.1))
  }

  /// Counts one match, and says whether it comes through; for a `rate_filter`, whether its action is in effect.
  ///
  /// A window begins with the first match and is over after `seconds`; with 0 seconds it never ends.
  /// - limit: the first `count` of a window come through.
  /// - threshold: every `count`-th.
  /// - both: the `count`-th of a window only.
  /// - backoff: the `count`-th, then each whose number is `extra` times that of the one before.
  /// - filter: all after the first `count` of a window.
  /// - rate: all after the first `count` of a window, and then for `extra` seconds.
  ///
  /// Tracked by flow, what belongs to no flow does not come through.
  mutating func admits(_ limit: Limit, _ subject: Subject, at time: Timestamp) -> Bool {
    if limit.track == .byFlow, subject.flow == 0 { return false }
    let now = limit.isSnort ? time.nanoseconds / 1_000_000_000 * 1_000_000_000 : time.nanoseconds
    let place = entry(for: limit, subject, now)
    if limit.kind == .rate { return isInEffect(limit, place, now) }
    if isOver(limit, place, now) { roll(limit, place, now) }
    if limit.unique != .none {
      let port = limit.unique == .sourcePort ? subject.sourcePort : subject.destinationPort
      return admitsDistinct(limit, place, port)
    }
    if entries[place].count < .max { entries[place].count += 1 }
    let count = entries[place].count
    switch limit.kind {
    case .limit: return count <= limit.count
    case .both: return count == limit.count
    case .filter: return count > limit.count || entries[place].other > limit.count
    case .backoff: return backoff(limit, place)
    case .threshold:
      guard count >= limit.count else { return false }
      entries[place].count = 0
      if limit.isSnort { entries[place].windowStart = now }
      return true
    case .rate: return false
    }
  }

  private func isOver(_ limit: Limit, _ place: Int, _ now: Int64) -> Bool {
    guard limit.seconds > 0 else { return false }
    let (age, overflow) = now.subtractingReportingOverflow(entries[place].windowStart)
    let window = Int64(limit.seconds) * 1_000_000_000
    return overflow || (limit.isSnort ? age >= window : age > window)
  }

  /// Begins a new window.
  private mutating func roll(_ limit: Limit, _ place: Int, _ now: Int64) {
    if limit.isSnort, limit.kind == .filter {
      let (age, overflow) = now.subtractingReportingOverflow(entries[place].windowStart)
      let isNext = !overflow && age < 2 * Int64(limit.seconds) * 1_000_000_000
      entries[place].other = isNext ? entries[place].count : 0
    }
    entries[place].windowStart = now
    entries[place].count = 0
    if portSets.belongs(entries[place].ports, to: place) { portSets.clear(entries[place].ports) }
  }

  private mutating func backoff(_ limit: Limit, _ place: Int) -> Bool {
    if entries[place].other == 0 { entries[place].other = limit.count }
    guard entries[place].count == entries[place].other else { return false }
    let (next, overflow) = entries[place].other.multipliedReportingOverflow(by: limit.extra)
    entries[place].other = overflow ? .max : next
    return true
  }

  /// Counts ports that were not seen in this window.
  private mutating func admitsDistinct(_ limit: Limit, _ place: Int, _ port: UInt16) -> Bool {
    if !portSets.belongs(entries[place].ports, to: place) {
      entries[place].ports = portSets.take(for: place)
      // What a set that was taken away had counted stays counted.
    }
    if portSets.insert(port, into: entries[place].ports), entries[place].count < .max { entries[place].count += 1 }
    return entries[place].count > limit.count
  }

  private mutating func isInEffect(_ limit: Limit, _ place: Int, _ now: Int64) -> Bool {
    if entries[place].isActive {
      let (age, overflow) = now.subtractingReportingOverflow(entries[place].windowStart)
      // Snort: 0 seconds is for ever.
      if limit.isSnort, limit.extra == 0 { return true }
      if !overflow, age <= Int64(limit.extra) * 1_000_000_000 { return true }
      entries[place].isActive = false
      entries[place].windowStart = now
      entries[place].count = 0
      return false
    }
    if isOver(limit, place, now) { roll(limit, place, now) }
    if entries[place].count < .max { entries[place].count += 1 }
    guard entries[place].count > limit.count else { return false }
    entries[place].isActive = true
    entries[place].windowStart = now
    return true
  }

  private mutating func entry(for limit: Limit, _ subject: Subject, _ now: Int64) -> Int {
    let none = IPAddress.anyV4
    var (first, second) = (none, none)
    switch limit.track {
    case .bySource: first = subject.source
    case .byDestination: first = subject.destination
    case .byRule: break
    case .byFlow: first = IPAddress(v6High: 0, low: subject.flow)
    case .byBoth:
      // The pair, whichever way the packet went.
      first = min(subject.source, subject.destination)
      second = max(subject.source, subject.destination)
    }
    let rule = UInt64(subject.gid) << 32 | UInt64(subject.sid)
    let kinds =
      UInt64(limit.kind.rawValue) << 16 | UInt64(limit.track.rawValue) << 8 | UInt64(first.family.rawValue)
    return entry(
      of: Name(
        rule: rule, kinds: kinds, firstHigh: first.high, firstLow: first.low, secondHigh: second.high,
        secondLow: second.low), now)
  }

  /// The entry with this name; made, if there is none.
  private mutating func entry(of name: Name, _ now: Int64) -> Int {
    let place =
      placeHash.hash(
        name.rule, name.kinds, name.firstHigh, name.firstLow, name.secondHigh, name.secondLow) | 1
    let start = Int(truncatingIfNeeded: place >> 32) % (Self.capacity / Self.bucketPlaces) * Self.bucketPlaces
    var victim = start
    for index in start..<start + Self.bucketPlaces {
      if entries[index].place == place, entries[index].name == name { return index }
      if entries[index].place == 0 {
        victim = index
        break
      }
      if entries[index].windowStart < entries[victim].windowStart { victim = index }
    }
    if entries[victim].place != 0 { evicted += 1 }
    entries[victim] = Entry(name: name, place: place, windowStart: now, count: 0, other: 0, isActive: false, ports: 0)
    return victim
  }

  // MARK: Saved states

  /// The distinct ports that an entry counted.
  func ports(of index: Int) -> [UInt16] {
    portSets.belongs(entries[index].ports, to: index) ? portSets.members(entries[index].ports) : []
  }

  /// Takes over a count of a saved state; false: there is no room for it, or its name is there already.
  mutating func adopt(_ entry: Entry, ports: [UInt16]) -> Bool {
    let before = evicted
    let index = self.entry(of: entry.name, entry.windowStart)
    guard evicted == before else { return false }
    let place = entries[index].place
    entries[index] = entry
    entries[index].place = place
    entries[index].ports = 0
    if !ports.isEmpty {
      entries[index].ports = portSets.take(for: index)
      for port in ports { _ = portSets.insert(port, into: entries[index].ports) }
    }
    return true
  }
}

/// Sets of ports, for the rates that count distinct ones. Few, since each takes 8 KiB; when all are taken, the one that was taken
/// first is taken away from its rate, which then counts ports that it saw before once more.
private struct PortSets: ~Copyable {
  static let capacity = 128
  private static let words = 65_536 / 64

  private var bits = ZeroedTable<UInt64>(count: capacity * words)
  /// The entry of the rate table whose set it is, plus 1.
  private var owners = ZeroedTable<UInt32>(count: capacity)
  private var next = 0

  func belongs(_ set: UInt16, to entry: Int) -> Bool { set > 0 && owners[Int(set) - 1] == UInt32(entry) + 1 }

  /// A set without ports.
  mutating func take(for entry: Int) -> UInt16 {
    let set = UInt16(next + 1)
    owners[next] = UInt32(entry) + 1
    next = (next + 1) % Self.capacity
    clear(set)
    return set
  }

  mutating func clear(_ set: UInt16) {
    guard set > 0 else { return }
    let start = (Int(set) - 1) * Self.words
    for word in start..<start + Self.words { bits[word] = 0 }
  }

  func members(_ set: UInt16) -> [UInt16] {
    let start = (Int(set) - 1) * Self.words
    return (0...UInt16.max).filter { bits[start + Int($0 >> 6)] >> UInt64($0 & 63) & 1 != 0 }
  }

  /// Whether the port was not there yet.
  mutating func insert(_ port: UInt16, into set: UInt16) -> Bool {
    let word = (Int(set) - 1) * Self.words + Int(port >> 6)
    let mask = (1 as UInt64) << UInt64(port & 63)
    guard bits[word] & mask == 0 else { return false }
    bits[word] |= mask
    return true
  }
}
