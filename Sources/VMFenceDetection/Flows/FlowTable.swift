import VMFenceCore
import VMFencePackets

/// The flows of one domain. Fixed capacity; a secret key decides where a flow lies, so nobody can aim at a place.
///
/// Each flow has two buckets of eight places. When all sixteen are taken, the least worth of them gives way: one whose time is
/// over, else one that is closing, unanswered, picked up in midstream, answered, established over TCP, in this order, and of
/// equals the one that was silent longest. So a flood of forged packets evicts what it made itself.
///
/// Time is the packets' own. It may jump back; a flow is then as old as its last packet.
struct FlowTable: ~Copyable {
  static let bucketPlaces = 8

  private let inPlace = InPlace()
  private var tags: ZeroedTable<UInt32>
  private var flows: ZeroedTable<Flow>
  private let buckets: Int
  private let placeHash: KeyedHash
  private let nameHash: KeyedHash
  private let timeouts: FlowTimeouts
  private var hand = 0

  /// How many flows it has room for.
  var places: Int { buckets * Self.bucketPlaces }

  private(set) var current = 0
  private(set) var created: UInt64 = 0
  private(set) var expired: UInt64 = 0
  private(set) var evicted: UInt64 = 0
  private(set) var evictedEstablished: UInt64 = 0

  /// - `capacity`: flows at the most; rounded down to whole buckets, one at least.
  /// - `key`: secret.
  init(capacity: Int, key: (UInt64, UInt64), timeouts: FlowTimeouts = FlowTimeouts()) {
    buckets = max(1, min(capacity, 1 << 26) / Self.bucketPlaces)
    tags = ZeroedTable(count: buckets * Self.bucketPlaces)
    flows = ZeroedTable(count: buckets * Self.bucketPlaces)
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

  /// Finds or makes the flow of a packet with this key, whose source is the first end of the key (`isForward`) or the second.
  mutating func locate(_ key: FlowKey, isForward: Bool, at time: Timestamp) -> Location {
    let hash = placeHash.hash(key)
    let now = time.nanoseconds
    if let place = find(key, hash) {
      guard isOver(place, now) else {
        flows[place].lastSeen = max(flows[place].lastSeen, now)
        return .found(place, isForward: isForward)
      }
      if flows[place].hasBuffers { return .isToEnd(place) }
      expire(place)
    }
    let (place, evictsEstablished) = makePlace(hash, now)
    if tags[place] != 0 {
      if flows[place].hasBuffers { return .isToEnd(place) }
      release(place)
    }
    if evictsEstablished { evictedEstablished += 1 }
    created += 1
    current += 1
    tags[place] = Self.tag(hash)
    flows[place] = Flow(
      key: key, hash: hash, firstSeen: now, lastSeen: now, verdictRule: 0, verdictGeneration: 0,
      marks: isForward ? .clientIsFirst : [])
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
    hand = hand + 1 < places ? hand + 1 : 0
    guard tags[hand] != 0, isOver(hand, time.nanoseconds) else { return nil }
    if flows[hand].hasBuffers { return hand }
    expire(hand)
    return nil
  }

  /// A flow with data that was not inspected, from place `start` on, whatever its age.
  func nextWithBuffers(from start: Int) -> Int? {
    for place in start..<places where tags[place] != 0 && flows[place].hasBuffers { return place }
    return nil
  }

  /// Whether there is a flow at a place.
  func isUsed(_ place: Int) -> Bool { !isFree(place) }

  /// Puts in a flow of a saved state, under this table's own key. nil: a flow with its key is there, or no place is free.
  mutating func adopt(_ flow: Flow) -> Int? {
    var flow = flow
    flow.hash = placeHash.hash(flow.key)
    guard find(flow.key, flow.hash) == nil else { return nil }
    let (first, second) = bucketPair(flow.hash)
    for start in [first, second] {
      for place in start..<start + Self.bucketPlaces where isFree(place) {
        tags[place] = Self.tag(flow.hash)
        flows[place] = flow
        current += 1
        return place
      }
    }
    return nil
  }

  mutating func release(_ place: Int) {
    if isFree(place) { return }
    tags[place] = 0
    current -= 1
  }

  /// Takes out a flow whose time is over.
  mutating func expire(_ place: Int) {
    expired += 1
    release(place)
  }

  private func isFree(_ place: Int) -> Bool { tags[place] == 0 }

  /// A name for the flow: equal for both directions, different for each new flow with the same ends. In 1 ..< 2⁵³, so that every
  /// reader of JSON can hold it.
  func name(of place: Int) -> UInt64 {
    let name = nameHash.hash(flows[place].hash, UInt64(bitPattern: flows[place].firstSeen)) & (1 << 53 - 1)
    return name == 0 ? 1 : name
  }

  /// 0 is for places that are free.
  private static func tag(_ hash: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: hash) | 1 }

  private func firstPlace(_ half: UInt32) -> Int {
    Int((UInt64(half) * UInt64(buckets)) >> 32) * Self.bucketPlaces
  }

  private func bucketPair(_ hash: UInt64) -> (Int, Int) {
    let mixed = hash &* 0x9E37_79B9_7F4A_7C15
    return (firstPlace(UInt32(truncatingIfNeeded: hash >> 32)), firstPlace(UInt32(truncatingIfNeeded: mixed >> 32)))
  }

  private func find(_ key: FlowKey, _ hash: UInt64) -> Int? {
    let tag = Self.tag(hash)
    let (first, second) = bucketPair(hash)
    for half in 0..<2 {
      let start = half == 0 ? first : second
      for place in start..<start + Self.bucketPlaces where tags[place] == tag && flows[place].key == key {
        return place
      }
    }
    return nil
  }

  /// Whether the time of the flow at a place is over.
  func isOver(_ place: Int, _ now: Int64) -> Bool {
    let (age, overflow) = now.subtractingReportingOverflow(flows[place].lastSeen)
    return overflow ? now > 0 : age > flows[place].timeout(timeouts)
  }

  /// A place for a flow with this hash: a free one, or that of the flow that gives way.
  private mutating func makePlace(_ hash: UInt64, _ now: Int64) -> (place: Int, evictsEstablished: Bool) {
    let (first, second) = bucketPair(hash)
    for half in 0..<2 {
      let start = half == 0 ? first : second
      for place in start..<start + Self.bucketPlaces where tags[place] == 0 { return (place, false) }
    }
    var victim = first
    var least = Int.max
    var oldest = Int64.max
    for half in 0..<2 {
      let start = half == 0 ? first : second
      for place in start..<start + Self.bucketPlaces {
        if isOver(place, now) {
          expired += 1
          return (place, false)
        }
        let worth = flows[place].worth
        if worth < least || worth == least && flows[place].lastSeen < oldest {
          (victim, least, oldest) = (place, worth, flows[place].lastSeen)
        }
      }
    }
    evicted += 1
    return (victim, flows[victim].isEstablished)
  }
}
