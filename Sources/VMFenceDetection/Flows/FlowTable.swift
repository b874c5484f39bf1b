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

  private var tags: ZeroedTable<UInt32>
  private var flows: ZeroedTable<Flow>
  private let buckets: Int
  private let placeHash: KeyedHash
  private let nameHash: KeyedHash

  /// How many flows it has room for.
  var places: Int { buckets * Self.bucketPlaces }

  private(set) var current = 0
  private(set) var created: UInt64 = 0
  private(set) var expired: UInt64 = 0
  private(set) var evicted: UInt64 = 0
  private(set) var evictedEstablished: UInt64 = 0

  /// - `capacity`: flows at the most; rounded down to whole buckets, one at least.
  /// - `key`: secret.
  init(capacity: Int, key: (UInt64, UInt64)) {
    buckets = max(1, min(capacity, 1 << 26) / Self.bucketPlaces)
    tags = ZeroedTable(count: buckets * Self.bucketPlaces)
    flows = ZeroedTable(count: buckets * Self.bucketPlaces)
    placeHash = KeyedHash(key: key)
    // A name is shown, a place is not: so they have different keys.
    nameHash = KeyedHash(key: (key.1 ^ 0x6E61_6D65_6F66_666C, key.0 ^ 0x6F77_7300_0000_0001))
  }

  /// What a packet's flow is, after the packet.
  struct Sighting: BitwiseCopyable {
    /// For `flow(at:)`, until the next packet.
    var place: Int
    var toServer: Bool
    var isEstablished: Bool
    var handshakeSeen: Bool
  }

  /// Finds or makes the packet's flow and follows it.
  ///
  /// `packet`: IPv4 or IPv6, no fragment.
  mutating func see(_ packet: DecodedPacket, at time: Timestamp) -> Sighting {
    let (key, isForward) = FlowKey.make(packet)
    let hash = placeHash.hash(key)
    let now = time.nanoseconds
    let place: Int
    if let found = find(key, hash, now) {
      place = found
      flows[place].follow(packet, isForward: isForward, at: now)
    } else {
      place = makePlace(hash, now)
      created += 1
      current += 1
      tags[place] = Self.tag(hash)
      flows[place] = Flow(
        key: key, hash: hash, firstSeen: now, lastSeen: now, pendingAcknowledgement: 0, verdictRule: 0,
        verdictGeneration: 0, state: .opening, marks: [])
      flows[place].begin(packet, isForward: isForward)
    }
    flows[place].lastSeen = max(flows[place].lastSeen, now)
    let marks = flows[place].marks
    let state = flows[place].state
    return Sighting(
      place: place, toServer: isForward == marks.contains(.clientIsFirst),
      isEstablished: state == .established || state == .midstream,
      handshakeSeen: state == .established && packet.transport == .tcp)
  }

  subscript(place: Int) -> Flow {
    get { flows[place] }
    _modify { yield &flows[place] }
  }

  /// A name for the flow: equal for both directions, different for each new flow with the same ends. In 1 ..< 2⁵³, so that every
  /// reader of JSON can hold it.
  func name(of place: Int) -> UInt64 {
    let flow = flows[place]
    let name = nameHash.hash(flow.hash, UInt64(bitPattern: flow.firstSeen)) & (1 << 53 - 1)
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

  private mutating func find(_ key: FlowKey, _ hash: UInt64, _ now: Int64) -> Int? {
    let tag = Self.tag(hash)
    let (first, second) = bucketPair(hash)
    for half in 0..<2 {
      let start = half == 0 ? first : second
      for place in start..<start + Self.bucketPlaces where tags[place] == tag && flows[place].key == key {
        guard isOver(place, now) else { return place }
        expired += 1
        release(place)
        return nil
      }
    }
    return nil
  }

  private func isOver(_ place: Int, _ now: Int64) -> Bool {
    let (age, overflow) = now.subtractingReportingOverflow(flows[place].lastSeen)
    return overflow ? now > 0 : age > flows[place].timeout
  }

  private mutating func release(_ place: Int) {
    tags[place] = 0
    current -= 1
  }

  /// A free place for a flow with this hash; makes one free when there is none.
  private mutating func makePlace(_ hash: UInt64, _ now: Int64) -> Int {
    let (first, second) = bucketPair(hash)
    for half in 0..<2 {
      let start = half == 0 ? first : second
      for place in start..<start + Self.bucketPlaces where tags[place] == 0 { return place }
    }
    var victim = first
    var least = Int.max
    var oldest = Int64.max
    for half in 0..<2 {
      let start = half == 0 ? first : second
      for place in start..<start + Self.bucketPlaces {
        if isOver(place, now) {
          expired += 1
          release(place)
          return place
        }
        let worth = flows[place].worth
        if worth < least || worth == least && flows[place].lastSeen < oldest {
          (victim, least, oldest) = (place, worth, flows[place].lastSeen)
        }
      }
    }
    evicted += 1
    if flows[victim].isEstablished { evictedEstablished += 1 }
    release(victim)
    return victim
  }
}
