import VMFenceCore

/// Flows and hosts whose packets are logged because a rule with `tag` matched one of them.
///
/// Fixed capacity, placed by a secret key. When a bucket is full the entry that ends first gives way, and is counted.
struct TagTable: ~Copyable {
  /// Whose packets: a flow's, or a host's.
  struct Subject: Equatable, BitwiseCopyable {
    /// `Flow.identity`; 0 for a host.
    var flow: UInt64 = 0
    var host = IPAddress.anyV4
  }

  struct Entry: BitwiseCopyable {
    /// Generator and signature of the rule; 0: the place is free.
    var rule: UInt64
    var subject: Subject
    /// What is left.
    var packets: UInt64
    var bytes: UInt64
    /// Nanoseconds, packet time.
    var expires: Int64
  }

  static let capacity = 4096
  private static let bucketPlaces = 8
  /// Nothing is logged for longer than this without another match.
  static let lifetime: Int64 = 3600 * 1_000_000_000

  private(set) var entries = ZeroedTable<Entry>(count: capacity)
  private let placeHash: KeyedHash
  private var used = 0
  /// Where the next look for entries that are over begins.
  private var hand = 0
  private(set) var evicted: UInt64 = 0

  /// `key`: secret.
  init(key: (UInt64, UInt64)) {
    placeHash = KeyedHash(key: (key.0 ^ 0x7461_6773_7461_6773, key.1))
  }

  var isEmpty: Bool { used == 0 }

  /// Begins to log, or begins anew.
  ///
  /// - `packets`, `bytes`, `seconds`: how many, from the next packet on; 0: as many as there are.
  mutating func add(
    _ subject: Subject, rule: UInt64, packets: UInt32, bytes: UInt32, seconds: UInt32, at now: Int64
  ) {
    let span = seconds == 0 ? Self.lifetime : min(Int64(seconds) * 1_000_000_000, Self.lifetime)
    let (expires, overflow) = now.addingReportingOverflow(span)
    adopt(
      Entry(
        rule: rule, subject: subject, packets: packets == 0 ? .max : UInt64(packets),
        bytes: bytes == 0 ? .max : UInt64(bytes), expires: overflow ? .max : expires))
  }

  /// Puts in an entry with what is left of it.
  mutating func adopt(_ new: Entry) {
    let start = bucket(new.subject)
    var place = start
    for candidate in start..<start + Self.bucketPlaces {
      let entry = entries[candidate]
      if entry.rule == new.rule, entry.subject == new.subject {
        place = candidate
        break
      }
      if entries[place].rule != 0, entry.rule == 0 || entry.expires < entries[place].expires { place = candidate }
    }
    if entries[place].rule == 0 {
      used += 1
    } else if entries[place].rule != new.rule || entries[place].subject != new.subject {
      evicted += 1
    }
    entries[place] = new
  }

  /// Counts a packet of `count` bytes; true: it is to be logged.
  mutating func take(_ subject: Subject, bytes count: Int, at now: Int64) -> Bool {
    var isLogged = false
    let start = bucket(subject)
    for place in start..<start + Self.bucketPlaces where entries[place].rule != 0 && entries[place].subject == subject {
      let entry = entries[place]
      guard entry.expires >= now, entry.packets > 0, entry.bytes > 0 else {
        free(place)
        continue
      }
      isLogged = true
      if entry.packets != .max { entries[place].packets -= 1 }
      if entry.bytes != .max { entries[place].bytes -= min(entry.bytes, UInt64(count)) }
    }
    return isLogged
  }

  /// Looks at one entry in turn, so that those of which nothing more is seen go.
  mutating func sweep(at now: Int64) {
    hand = (hand + 1) % Self.capacity
    if entries[hand].rule != 0, entries[hand].expires < now { free(hand) }
  }

  private mutating func free(_ place: Int) {
    entries[place].rule = 0
    used -= 1
  }

  private func bucket(_ subject: Subject) -> Int {
    let hash = placeHash.hash(
      subject.flow, UInt64(subject.host.family.rawValue), subject.host.high, subject.host.low)
    return Int(truncatingIfNeeded: hash >> 32) % (Self.capacity / Self.bucketPlaces) * Self.bucketPlaces
  }
}
