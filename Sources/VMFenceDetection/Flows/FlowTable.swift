import VMFenceCore
import VMFencePackets

/// The flows of one domain. Fixed capacity; a secret key decides where a flow lies, so nobody can aim at a place.
///
/// Each flow has two buckets of eight entries, one of which names the place where it lies. When all sixteen are taken, the least worth of them gives way: one whose time is
/// over, else one that is closing, unanswered, picked up in midstream, answered, established over TCP, in this order, and of
/// equals the one that was silent longest. So a flood of forged packets evicts what it made itself.
///
/// Places are given out from the first on, the one that became free last first: so few flows need few pages, near the processor.
///
/// Time is the packets' own. It may jump back; a flow is then as old as its last packet.
struct FlowTable: ~Copyable {
  static let bucketEntries = 8

  private let inPlace = InPlace()
  /// By entry: a part of the hash, 0 for none, and the place.
  private var tags: ZeroedTable<UInt32>
  private var placeOf: ZeroedTable<UInt32>
  private var flows: ZeroedTable<Flow>
  /// Places below `usedEnd` without a flow: the first `freeCount`.
  private var free: ZeroedTable<UInt32>
  private var freeCount = 0
  private let buckets: Int
  private let placeHash: KeyedHash
  private let nameHash: KeyedHash
  private let timeouts: FlowTimeouts
  private var hand = 0

  /// How many flows it has room for.
  var places: Int { buckets * Self.bucketEntries }

  /// There is no flow at this place or behind.
  private(set) var usedEnd = 0
  private(set) var current = 0
  private(set) var created: UInt64 = 0
  private(set) var expired: UInt64 = 0
  private(set) var evicted: UInt64 = 0
  private(set) var evictedEstablished: UInt64 = 0

  /// - `capacity`: flows at the most; rounded down to whole buckets, one at least.
  /// - `key`: secret.
  init(capacity: Int, key: (UInt64, UInt64), timeouts: FlowTimeouts = FlowTimeouts()) {
    buckets = max(1, min(capacity, 1 << 26) / Self.bucketEntries)
    tags = ZeroedTable(count: buckets * Self.bucketEntries)
    placeOf = ZeroedTable(count: buckets * Self.bucketEntries)
    flows = ZeroedTable(count: buckets * Self.bucketEntries)
    free = ZeroedTable(count: buckets * Self.bucketEntries)
    placeHash = KeyedHash(key: key)
    // A name is shown, a place is not: so they have different keys.
    nameHash = KeyedHash(key: (key.1 ^ 0x6E61_6D65_6F66_666C, key.0 ^ 0x6F77_7300_0000_0001))
    self.timeouts = timeouts
  }

  /// What a packet's flow is, after the packet.
  struct Sighting: BitwiseCopyable {
    /// For `flows[place]`, until the next packet.
    var place: Int
    var toServer: Bool
    var isEstablished: Bool
    /// The handshake of a connection that is established was seen, each end's part from its own side (`FlowKey.place`).
    var handshakeSeen: Bool
  }

  /// Where a packet's flow is.
  enum Location {
    case found(Int, isForward: Bool)
    /// Made for this packet, its sender being the client. An established flow gave way to it, or not.
    case made(Int, isForward: Bool, evictedEstablished: Bool)
    /// A flow that is over, or has to give way, has data that was not inspected yet: see to that, `release` it, and look again.
    case isToEnd(Int)
  }

  /// Where a key's flow may be.
  struct Hint: BitwiseCopyable {
    fileprivate var hash: UInt64
    /// Only its tag was compared. Negative: no tag fits.
    fileprivate var place: Int
  }

  /// Looks at the tags, which are few and near, and has the flow that fits brought near, too, while the caller does something else.
  @inline(__always)
  func seek(_ key: FlowKey) -> Hint {
    let hash = placeHash.hash(key)
    let tag = Self.tag(hash)
    let (first, second) = bucketPair(hash)
    for half in 0..<2 {
      let start = half == 0 ? first : second
      for entry in start..<start + Self.bucketEntries where tags[entry] == tag {
        let place = Int(placeOf[entry])
        flows.bringNear(place)
        return Hint(hash: hash, place: place)
      }
    }
    return Hint(hash: hash, place: -1)
  }

  /// Finds or makes the flow of a packet with this key, whose source is the first end of the key (`isForward`) or the second.
  ///
  /// `hint`: what `seek` gave for the key, with whatever done to the table meanwhile.
  mutating func locate(_ key: FlowKey, _ hint: Hint, isForward: Bool, at time: Timestamp) -> Location {
    let hash = hint.hash
    let now = time.nanoseconds
    if let place = find(key, hint) {
      guard isOver(place, now) else {
        flows[place].lastSeen = max(flows[place].lastSeen, now)
        return .found(place, isForward: isForward)
      }
      if flows[place].hasBuffers { return .isToEnd(place) }
      expire(place)
    }
    let (entry, evictsEstablished) = makeEntry(hash, now)
    if tags[entry] != 0 {
      let old = Int(placeOf[entry])
      if flows[old].hasBuffers { return .isToEnd(old) }
      release(old)
    }
    if evictsEstablished { evictedEstablished += 1 }
    created += 1
    let place = put(
      Flow(
        key: key, hash: hash, firstSeen: now, lastSeen: now, verdictRule: 0, verdictGeneration: 0,
        marks: isForward ? .clientIsFirst : []), at: entry)
    return .made(place, isForward: isForward, evictedEstablished: evictsEstablished)
  }

  /// The flow of a packet that some other packet carries (the one that an ICMP error is about); none is made.
  func lookUp(_ key: FlowKey, at time: Timestamp) -> Int? {
    guard let place = find(key, placeHash.hash(key)), !isOver(place, time.nanoseconds) else { return nil }
    return place
  }

  subscript(place: Int) -> Flow {
    @inline(__always) _read { yield flows[place] }
    @inline(__always) _modify { yield &flows[place] }
  }

  /// Looks at the next place in turn: one whose flow is over though it has data that was not inspected.
  mutating func nextToEnd(at time: Timestamp) -> Int? {
    guard usedEnd > 0 else { return nil }
    hand = hand + 1 < usedEnd ? hand + 1 : 0
    guard isUsed(hand), isOver(hand, time.nanoseconds) else { return nil }
    if flows[hand].hasBuffers { return hand }
    expire(hand)
    return nil
  }

  /// A flow with data that was not inspected, from place `start` on, whatever its age.
  func nextWithBuffers(from start: Int) -> Int? {
    for place in start..<max(start, usedEnd) where isUsed(place) && flows[place].hasBuffers { return place }
    return nil
  }

  /// Whether there is a flow at a place.
  @inline(__always)
  func isUsed(_ place: Int) -> Bool { flows[place].entry != 0 }

  /// Puts in a flow of a saved state, under this table's own key. nil: a flow with its key is there, or no place is free.
  mutating func adopt(_ flow: Flow) -> Int? {
    var flow = flow
    flow.hash = placeHash.hash(flow.key)
    guard find(flow.key, flow.hash) == nil else { return nil }
    let (first, second) = bucketPair(flow.hash)
    for start in [first, second] {
      for entry in start..<start + Self.bucketEntries where tags[entry] == 0 { return put(flow, at: entry) }
    }
    return nil
  }

  mutating func release(_ place: Int) {
    guard isUsed(place) else { return }
    tags[Int(flows[place].entry) - 1] = 0
    flows[place].entry = 0
    free[freeCount] = UInt32(place)
    freeCount += 1
    current -= 1
  }

  /// Gives a flow a place, and names that in a free entry. There are as many of the one as of the other.
  private mutating func put(_ flow: Flow, at entry: Int) -> Int {
    let place: Int
    if freeCount > 0 {
      freeCount -= 1
      place = Int(free[freeCount])
    } else {
      place = usedEnd
      usedEnd += 1
    }
    tags[entry] = Self.tag(flow.hash)
    placeOf[entry] = UInt32(place)
    flows[place] = flow
    flows[place].entry = UInt32(entry) + 1
    current += 1
    return place
  }

  /// Takes out a flow whose time is over.
  mutating func expire(_ place: Int) {
    expired += 1
    release(place)
  }

  /// A name for the flow: equal for both directions, different for each new flow with the same ends. In 1 ..< 2⁵³, so that every
  /// reader of JSON can hold it.
  func name(of place: Int) -> UInt64 {
    let name = nameHash.hash(flows[place].hash, UInt64(bitPattern: flows[place].firstSeen)) & (1 << 53 - 1)
    return name == 0 ? 1 : name
  }

  /// 0 is for places that are free.
  private static func tag(_ hash: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: hash) | 1 }

  private func firstEntry(_ half: UInt32) -> Int {
    Int((UInt64(half) * UInt64(buckets)) >> 32) * Self.bucketEntries
  }

  private func bucketPair(_ hash: UInt64) -> (Int, Int) {
    let mixed = hash &* 0x9E37_79B9_7F4A_7C15
    return (firstEntry(UInt32(truncatingIfNeeded: hash >> 32)), firstEntry(UInt32(truncatingIfNeeded: mixed >> 32)))
  }

  @inline(__always)
  private func find(_ key: FlowKey, _ hint: Hint) -> Int? {
    if hint.place >= 0, isUsed(hint.place), flows[hint.place].key == key { return hint.place }
    return find(key, hint.hash)
  }

  private func find(_ key: FlowKey, _ hash: UInt64) -> Int? {
    let tag = Self.tag(hash)
    let (first, second) = bucketPair(hash)
    for half in 0..<2 {
      let start = half == 0 ? first : second
      for entry in start..<start + Self.bucketEntries where tags[entry] == tag {
        let place = Int(placeOf[entry])
        if flows[place].key == key { return place }
      }
    }
    return nil
  }

  /// Whether the time of the flow at a place is over.
  func isOver(_ place: Int, _ now: Int64) -> Bool {
    let (age, overflow) = now.subtractingReportingOverflow(flows[place].lastSeen)
    return overflow ? now > 0 : age > flows[place].timeout(timeouts)
  }

  /// An entry for a flow with this hash: a free one, or that of the flow that gives way.
  private mutating func makeEntry(_ hash: UInt64, _ now: Int64) -> (entry: Int, evictsEstablished: Bool) {
    let (first, second) = bucketPair(hash)
    for half in 0..<2 {
      let start = half == 0 ? first : second
      for entry in start..<start + Self.bucketEntries where tags[entry] == 0 { return (entry, false) }
    }
    var victim = first
    var least = Int.max
    var oldest = Int64.max
    for half in 0..<2 {
      let start = half == 0 ? first : second
      for entry in start..<start + Self.bucketEntries {
        let place = Int(placeOf[entry])
        if isOver(place, now) {
          expired += 1
          return (entry, false)
        }
        let worth = flows[place].worth
        if worth < least || worth == least && flows[place].lastSeen < oldest {
          (victim, least, oldest) = (entry, worth, flows[place].lastSeen)
        }
      }
    }
    evicted += 1
    return (victim, flows[Int(placeOf[victim])].isEstablished)
  }
}
