import VMFenceCore
import VMFencePackets

/// IPv4 and IPv6 fragments (RFC 791 §3.2, RFC 8200 §4.5) that wait for the rest of their datagram.
///
/// Everything has a fixed capacity: datagrams, fragments of one datagram, bytes. What is full makes room by giving up other datagrams
/// in an order that nobody outside can foresee. Fragments are kept as they arrived and overlaps are resolved when the
/// datagram is complete, by the policy of the host that receives it.
///
/// What waits is remembered by addresses, identification, protocol (IPv4), VLANs and tunnel layer.
struct FragmentStore: ~Copyable {
  /// Bytes that are handed out at once. The bitmap of a datagram's 8,192 units of 8 bytes has two of them.
  static let chunk = 512
  static let none: Int32 = -1
  private static let bucketPlaces = 8
  /// A datagram of more fragments has a bitmap, so that what the next costs does not depend on how many there are.
  static let bitmapThreshold: UInt16 = 32
  /// So many fragments of one datagram are looked at for what lies over them, all looks together. After that the bitmap alone decides: it does not know
  /// which of them came behind each other.
  static let lookLimit: UInt32 = 1 << 15
  /// Of datagrams that are being looked at while another is: tunnels in fragments in tunnels.
  static let depthLimit = 4
  /// A header that precedes the fragmented part, link header included, has to fit into one chunk.
  static let rebuiltCapacity = chunk + 65_535

  var datagrams: ZeroedTable<Datagram>
  var fragments: ZeroedTable<Fragment>
  /// The next chunk of a list, or of the free list; as index plus one, so that zeros are an end.
  var nextChunk: ZeroedTable<Int32>
  var bytes: ByteStore
  /// Rebuilt datagrams, one for each depth.
  var rebuilt: ByteStore
  /// The fragment that each byte of a datagram came from, plus one.
  var owners: ZeroedTable<UInt16>
  /// Which fragments those are.
  var arrivals: ZeroedTable<Int32>

  private let buckets: Int
  private let hash: KeyedHash
  private var freeChunk: Int32 = 0
  private var unusedChunks: Int
  private(set) var freeChunks: Int
  private var hand: UInt64
  let fragmentLimit: Int
  private let timeout: Int64

  /// What putting datagrams together took since somebody asked, in steps of about 8 bytes: each look at a fragment is one, too.
  private var work = 0
  private(set) var waiting = 0
  private(set) var counters = Counters()

  struct Counters {
    var rebuilt: UInt64 = 0
    var expired: UInt64 = 0
    var evicted: UInt64 = 0
    var ignored: UInt64 = 0
    var overlaps: UInt64 = 0
  }

  struct Datagram: BitwiseCopyable {
    var key: FlowKey
    /// Packet time of the last fragment.
    var lastSeen: Int64
    /// In order of arrival.
    var first: Int32
    var last: Int32
    /// The chunk with all that precedes the fragmented part; 0 (none yet) or index plus one.
    var header: Int32
    /// The first of two chunks with a bit for every unit that arrived; made at the first overlap, or when there are many. 0 or index plus one.
    var bitmap: Int32
    var count: UInt16
    var headerLength: UInt16
    var linkLength: UInt16
    /// Where in the header the number of the next one stands (IPv6), and what it becomes.
    var nextHeaderOffset: UInt16
    var nextHeader: UInt8
    var isUsed: Bool
    var hasOverlap: Bool
    /// Units of 8 bytes that arrived, overlaps counted once.
    var units: Int32
    /// Where the highest fragment so far ends.
    var highest: Int32
    /// Where the datagram ends by its last fragment; 0: not known.
    var end: Int32
    /// Fragments that were looked at to see what others lie over (`FragmentStore.lookLimit`).
    var looks: UInt32 = 0
  }

  struct Fragment: BitwiseCopyable {
    /// As index; `none` at the end.
    var next: Int32
    var offset: UInt16
    var length: UInt16
    var range: Range<Int> { Int(offset)..<Int(offset) + Int(length) }
  }

  init(_ settings: EngineSettings, key: (UInt64, UInt64)) {
    let chunks = settings.fragmentMemory / Self.chunk
    buckets = max(1, settings.datagramCapacity / Self.bucketPlaces)
    datagrams = ZeroedTable(count: buckets * Self.bucketPlaces)
    // A fragment is named by its first chunk.
    fragments = ZeroedTable(count: chunks)
    nextChunk = ZeroedTable(count: chunks)
    bytes = ByteStore(count: chunks * Self.chunk)
    rebuilt = ByteStore(count: Self.depthLimit * Self.rebuiltCapacity)
    owners = ZeroedTable(count: 65_536)
    fragmentLimit = settings.fragmentLimit
    arrivals = ZeroedTable(count: fragmentLimit)
    timeout = Int64(settings.fragmentTimeout) * FlowTimeouts.second
    hash = KeyedHash(key: (key.0 ^ 0x6672_6167_6D65_6E74, key.1 ^ 0x7321))
    unusedChunks = chunks
    freeChunks = chunks
    hand = key.0 ^ key.1
  }

  mutating func charge(_ steps: Int) { work += steps }

  /// What it took since this was asked last.
  mutating func takeWork() -> Int {
    defer { work = 0 }
    return work
  }

  mutating func count(_ counter: WritableKeyPath<Counters, UInt64>) { counters[keyPath: counter] += 1 }

  // MARK: Datagrams

  static func key(_ packet: DecodedPacket, layer: Int) -> FlowKey {
    // Not symmetric: the two directions count their identifications for themselves.
    var key = FlowKey.make(packet).key
    key.firstHigh = packet.source.high
    key.firstLow = packet.source.low
    key.secondHigh = packet.destination.high
    key.secondLow = packet.destination.low
    key.portsAndVLANs = UInt64(packet.fragmentID) << 32 | key.portsAndVLANs & 0xFFFF_FFFF
    key.protocolAndFamily &= ~0xFF_FFFF
    key.protocolAndFamily |= UInt64(layer) << 16 | UInt64(packet.source.family.rawValue) << 8
    if packet.network == .ipv4 { key.protocolAndFamily |= UInt64(packet.ipProtocol) }
    return key
  }

  /// The place of the datagram with this key, new or not.
  mutating func place(for key: FlowKey, at now: Int64) -> Int {
    let start = Int(((hash.hash(key) >> 32) * UInt64(buckets)) >> 32) * Self.bucketPlaces
    var free: Int?
    var oldest = start
    for place in start..<start + Self.bucketPlaces {
      guard datagrams[place].isUsed else {
        free = free ?? place
        continue
      }
      if isOver(place, now) {
        counters.expired += 1
        release(place)
        free = free ?? place
      } else if datagrams[place].key == key {
        return place
      } else if datagrams[place].lastSeen < datagrams[oldest].lastSeen {
        oldest = place
      }
    }
    if free == nil {
      counters.evicted += 1
      release(oldest)
    }
    let place = free ?? oldest
    datagrams[place] = Datagram(
      key: key, lastSeen: now, first: Self.none, last: Self.none, header: 0, bitmap: 0, count: 0, headerLength: 0,
      linkLength: 0, nextHeaderOffset: 0, nextHeader: 0, isUsed: true, hasOverlap: false, units: 0, highest: 0, end: 0)
    waiting += 1
    return place
  }

  /// Gives up the datagrams whose time is over.
  mutating func expire(at now: Int64) {
    guard waiting > 0 else { return }
    for place in 0..<datagrams.count where datagrams[place].isUsed && isOver(place, now) {
      counters.expired += 1
      release(place)
    }
  }

  private func isOver(_ place: Int, _ now: Int64) -> Bool {
    let (age, overflow) = now.subtractingReportingOverflow(datagrams[place].lastSeen)
    return overflow ? now > 0 : age > timeout
  }

  mutating func release(_ place: Int) {
    var fragment = datagrams[place].first
    while fragment != Self.none {
      let next = fragments[Int(fragment)].next
      freeChunks(from: fragment + 1)
      fragment = next
    }
    freeChunks(from: datagrams[place].header)
    freeChunks(from: datagrams[place].bitmap)
    datagrams[place].isUsed = false
    waiting -= 1
  }

  // MARK: Chunks

  /// A list of so many chunks, as index plus one; nil when they are not there even after other datagrams were given up.
  mutating func takeChunks(_ count: Int, sparing place: Int) -> Int32? {
    var looks = 0
    while freeChunks < count {
      guard looks < datagrams.count else { return nil }
      looks += 1
      // An order that depends on the secret key.
      hand = hand &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      let victim = Int(((hand >> 33) * UInt64(datagrams.count)) >> 31)
      guard victim != place, datagrams[victim].isUsed else { continue }
      counters.evicted += 1
      release(victim)
    }
    var list: Int32 = 0
    for _ in 0..<count {
      let chunk: Int32
      if freeChunk != 0 {
        chunk = freeChunk
        freeChunk = nextChunk[Int(chunk) - 1]
      } else {
        unusedChunks -= 1
        chunk = Int32(truncatingIfNeeded: unusedChunks) + 1
      }
      nextChunk[Int(chunk) - 1] = list
      list = chunk
    }
    freeChunks -= count
    return list
  }

  private mutating func freeChunks(from list: Int32) {
    var chunk = list
    while chunk != 0 {
      let next = nextChunk[Int(chunk) - 1]
      nextChunk[Int(chunk) - 1] = freeChunk
      freeChunk = chunk
      freeChunks += 1
      chunk = next
    }
  }
}
