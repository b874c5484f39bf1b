import VMFenceCore

/// The bits that rules keep with hosts and pairs of hosts (`hostbits`, `xbits`), until they expire.
///
/// Fixed capacity, placed by a secret key. When a bucket is full the bit that expires first gives way, and is counted. A bit is known
/// by its name's hash, not by a rule set's numbering: it outlives a change of rules.
struct HostBits: ~Copyable {
  /// What has a bit.
  struct Subject: Equatable, BitwiseCopyable {
    var first: IPAddress
    /// The other host of a pair; the unspecified address for a host alone.
    var second: IPAddress
    var isPair: Bool

    init(host: IPAddress) {
      (first, second, isPair) = (host, .anyV4, false)
    }

    /// The pair, whichever way the packet went.
    init(_ one: IPAddress, _ other: IPAddress) {
      (first, second, isPair) = (min(one, other), max(one, other), true)
    }
  }

  struct Entry: BitwiseCopyable {
    /// The hash of the bit's name; 0: the place is free.
    var name: UInt64
    /// Nanoseconds, packet time.
    var expires: Int64
    var subject: Subject
  }

  static let capacity = 32_768
  private static let bucketPlaces = 8

  private(set) var entries = ZeroedTable<Entry>(count: capacity)
  private let placeHash: KeyedHash
  private(set) var evicted: UInt64 = 0

  /// `key`: secret.
  init(key: (UInt64, UInt64)) {
    placeHash = KeyedHash(key: (key.0 ^ 0x686F_7374_6269_7473, key.1))
  }

  func isSet(_ name: UInt64, of subject: Subject, at time: Timestamp) -> Bool {
    guard let place = find(name, subject) else { return false }
    return entries[place].expires > time.nanoseconds
  }

  /// Sets the bit for `lifetime` nanoseconds from now on.
  mutating func set(_ name: UInt64, of subject: Subject, at time: Timestamp, lifetime: Int64) {
    let (sum, overflow) = time.nanoseconds.addingReportingOverflow(lifetime)
    adopt(Entry(name: name, expires: overflow ? Int64.max : sum, subject: subject), at: time)
  }

  /// Puts in a bit with the time that it has.
  mutating func adopt(_ entry: Entry, at time: Timestamp) {
    let place = find(entry.name, entry.subject) ?? free(entry.name, entry.subject, time.nanoseconds)
    entries[place] = entry
  }

  mutating func unset(_ name: UInt64, of subject: Subject) {
    if let place = find(name, subject) { entries[place].name = 0 }
  }

  private func bucket(_ name: UInt64, _ subject: Subject) -> Int {
    let hash = placeHash.hash(
      name, UInt64(subject.first.family.rawValue) << 1 | (subject.isPair ? 1 : 0), subject.first.high,
      subject.first.low,
      subject.second.high, subject.second.low)
    return Int(truncatingIfNeeded: hash >> 32) % (Self.capacity / Self.bucketPlaces) * Self.bucketPlaces
  }

  private func find(_ name: UInt64, _ subject: Subject) -> Int? {
    let start = bucket(name, subject)
    for place in start..<start + Self.bucketPlaces
    where entries[place].name == name && entries[place].subject == subject { return place }
    return nil
  }

  private mutating func free(_ name: UInt64, _ subject: Subject, _ now: Int64) -> Int {
    let start = bucket(name, subject)
    var victim = start
    for place in start..<start + Self.bucketPlaces {
      if entries[place].name == 0 || entries[place].expires <= now { return place }
      if entries[place].expires < entries[victim].expires { victim = place }
    }
    evicted += 1
    return victim
  }
}

/// The names of bits in images and tables.
enum BitName {
  /// FNV-1a, 64 bits; never 0.
  static func hash(_ name: String) -> UInt64 {
    let hash = name.utf8.reduce(0xCBF2_9CE4_8422_2325 as UInt64) { ($0 ^ UInt64($1)) &* 0x0000_0100_0000_01B3 }
    return hash == 0 ? 1 : hash
  }
}
