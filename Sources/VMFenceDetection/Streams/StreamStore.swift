import VMFenceCore

/// Memory for the segments of all streams: blocks of 4 KiB to 1 MiB, each twice the size of the next smaller kind, which are split and
/// joined in pairs (Knuth, The Art of Computer Programming 1, §2.5: the buddy system). The number of bytes is fixed.
///
/// A block holds what one end of one connection sent and what is not inspected yet (with a little of what was, for patterns that
/// begin there). Its first eighth has a record of each segment, sorted by sequence number; the rest has the
/// bytes, each at its distance from the first. What is forgotten leaves a place empty before the first: the others move there only when there is no room behind the last, so
/// that each byte does so seldom, however small the parts are that are forgotten.
///
/// Each block counts to a share of the memory: that of the host which the guest talks to (`Flow.peer`). There are 256 shares, and a secret hash
/// says whose is which. When memory is short, the largest gives way: so the streams of one host, however many, push out no other's.
///
/// Blocks in use are in lists of their share, the oldest first: those that hold segments behind a hole in one for each size (by when the bytes before the
/// hole last became more), all others in one. So those that have to give way are found without a search.
struct StreamStore: ~Copyable {
  static let page = 4096
  static let orderLimit = 8
  static let recordBytes = 8
  /// Segments of one stream that wait at once. Each new one that comes out of order is compared with all: tiny ones must not make that long, so
  /// those that touch become one when there are more.
  static let recordLimit = 4096
  /// Earlier segments that one with other bytes is compared with one by one; when it lies over more, those of them that touch become one first.
  static let overlapLimit = 32
  /// The list of blocks that hold nothing behind a hole; those before are of blocks that do, by order.
  static let plain = orderLimit + 1
  private static let lists = plain + 1
  static let shares = 256
  private static let end: Int32 = -1
  private static let nobody: Int32 = -1

  /// What is known of the block that begins at a page.
  struct Block: BitwiseCopyable {
    var order: UInt8
    var isFree: Bool
    /// Segments.
    var count: Int32
    /// How many bytes from the first are there without a gap.
    var ready: Int32
    /// Where the last byte's end is.
    var highest: Int32
    /// Of the list it is in; pages, or `end`.
    var previous: Int32
    var next: Int32
    /// In use: the list it is in, its share, and where the flow lies that has it.
    var list: UInt8 = 0
    var share: UInt8 = 0
    /// Bytes before the first that were forgotten.
    var head: Int32 = 0
    /// No two of its records touch each other, as far as that is known.
    var isJoined = false
    var owner: Int32 = nobody
  }

  private let inPlace = InPlace()
  var bytes: ByteStore
  var blocks: ZeroedTable<Block>
  /// A segment while it is decided which of its bytes count.
  var scratch = ByteStore(count: 65_536)
  private var free: InlineArray<9, Int32> = InlineArray(repeating: -1)
  /// The oldest and the youngest block of each list, plus one; 0 where it is empty. Those of a share lie together.
  private var oldest = ZeroedTable<Int32>(count: shares * lists)
  private var youngest = ZeroedTable<Int32>(count: shares * lists)
  /// In use, of each share.
  private var sharePages = ZeroedTable<Int32>(count: shares)
  /// What putting segments together took since somebody asked, in steps of about 8 bytes: each look at a record is one, too.
  private var work = 0
  /// The size of the last block that there was no room for.
  private var lacking = 0
  private let shareHash: KeyedHash
  private let pages: Int
  private(set) var usedPages = 0
  private(set) var mostPages = 0

  /// `memory`: in bytes, a mebibyte at least. `key`: secret.
  init(memory: Int, key: (UInt64, UInt64)) {
    shareHash = KeyedHash(key: (key.0 ^ 0x7374_7265_616D, key.1 ^ 0x7368_6172_6573))
    let large = 1 << Self.orderLimit
    pages = max(1, memory / Self.page / large) * large
    bytes = ByteStore(count: pages * Self.page)
    blocks = ZeroedTable(count: pages)
    for start in stride(from: pages - large, through: 0, by: -large) { putFree(start, Self.orderLimit) }
  }

  // MARK: Sizes

  static func recordCapacity(_ order: Int) -> Int { page << order / 8 / recordBytes }
  static func dataCapacity(_ order: Int) -> Int { page << order - page << order / 8 }

  /// Where the data of a block begins.
  func dataStart(_ block: Int) -> Int {
    block * Self.page + Self.page << Int(blocks[block].order) / 8 + Int(blocks[block].head)
  }

  /// Sees to it that a block's data may reach `end`, which its capacity allows.
  mutating func clear(_ block: Int, to end: Int) {
    guard Int(blocks[block].head) + end > Self.dataCapacity(Int(blocks[block].order)) else { return }
    let data = dataStart(block)
    blocks[block].head = 0
    moveData(Int(blocks[block].highest), from: data, to: dataStart(block))
  }

  /// Moves and charges for it.
  mutating func moveData(_ count: Int, from source: Int, to target: Int) {
    charge(count / 64)
    bytes.move(count, from: source, to: target)
  }

  // MARK: Blocks

  /// The first page of a block, or nil when there is none left.
  mutating func take(_ order: Int) -> Int? {
    var from = order
    while from <= Self.orderLimit, free[from] == Self.end { from += 1 }
    guard from <= Self.orderLimit else {
      lacking = order
      return nil
    }
    let block = Int(free[from])
    removeFree(block)
    while from > order {
      from -= 1
      putFree(block + 1 << from, from)
    }
    blocks[block] = Block(
      order: UInt8(order), isFree: false, count: 0, ready: 0, highest: 0, previous: Self.end, next: Self.end)
    use(1 << order, share: 0)
    mostPages = max(mostPages, usedPages)
    append(block, to: Self.plain)
    return block
  }

  mutating func release(_ block: Int) {
    unlink(block)
    var (block, order) = (block, Int(blocks[block].order))
    use(-1 << order, share: Int(blocks[block].share))
    while order < Self.orderLimit {
      let buddy = block ^ 1 << order
      guard blocks[buddy].isFree, Int(blocks[buddy].order) == order else { break }
      removeFree(buddy)
      blocks[buddy].isFree = false
      block = min(block, buddy)
      order += 1
    }
    putFree(block, order)
  }

  private mutating func putFree(_ block: Int, _ order: Int) {
    let next = free[order]
    blocks[block] = Block(
      order: UInt8(order), isFree: true, count: 0, ready: 0, highest: 0, previous: Self.end, next: next)
    if next != Self.end { blocks[Int(next)].previous = Int32(block) }
    free[order] = Int32(block)
  }

  private mutating func removeFree(_ block: Int) {
    let (previous, next, order) = (blocks[block].previous, blocks[block].next, Int(blocks[block].order))
    if previous == Self.end { free[order] = next } else { blocks[Int(previous)].next = next }
    if next != Self.end { blocks[Int(next)].previous = previous }
    blocks[block].isFree = false
  }

  private mutating func use(_ pages: Int, share: Int) {
    usedPages += pages
    sharePages[share] += Int32(truncatingIfNeeded: pages)
  }

  // MARK: Lists

  private func place(_ block: Int) -> Int { Int(blocks[block].share) * Self.lists + Int(blocks[block].list) }

  private mutating func append(_ block: Int, to list: Int) {
    blocks[block].list = UInt8(list)
    let place = place(block)
    let last = youngest[place] - 1
    blocks[block].previous = last
    blocks[block].next = Self.end
    if last == Self.end { oldest[place] = Int32(block) + 1 } else { blocks[Int(last)].next = Int32(block) }
    youngest[place] = Int32(block) + 1
  }

  private mutating func unlink(_ block: Int) {
    let (previous, next, place) = (blocks[block].previous, blocks[block].next, place(block))
    if previous == Self.end { oldest[place] = next + 1 } else { blocks[Int(previous)].next = next }
    if next == Self.end { youngest[place] = previous + 1 } else { blocks[Int(next)].previous = previous }
  }

  /// The list that a block belongs to now.
  private func list(of block: Int) -> Int {
    blocks[block].ready < blocks[block].highest ? Int(blocks[block].order) : Self.plain
  }

  /// Puts a block into the list it belongs to now, if it is in another.
  mutating func file(_ block: Int) {
    let list = list(of: block)
    if list == Int(blocks[block].list) { return }
    unlink(block)
    append(block, to: list)
  }

  /// Makes a block the youngest of its list.
  mutating func refresh(_ block: Int) {
    unlink(block)
    append(block, to: Int(blocks[block].list))
  }

  /// The share of a host or a network with this number (`Flow.peer`).
  func share(of number: UInt64) -> Int { Int(shareHash.hash(number) >> 56) }

  /// Whether a stream has a block that is not known to be its own.
  func isNobodys(_ track: StreamTrack) -> Bool {
    track.block != 0 && owner(Int(track.block) - 1) == nil
  }

  /// Where the flow lies that has a block; nil: nobody knows yet.
  func owner(_ block: Int) -> Int? { blocks[block].owner == Self.nobody ? nil : Int(blocks[block].owner) }

  /// Says where the flow lies that has a stream, and to whose share it counts.
  mutating func setOwner(_ track: StreamTrack, _ place: Int, share: Int) {
    guard track.block != 0 else { return }
    let block = Int(track.block) - 1
    blocks[block].owner = Int32(truncatingIfNeeded: place)
    if share == Int(blocks[block].share) { return }
    let pages = 1 << Int(blocks[block].order)
    unlink(block)
    use(-pages, share: Int(blocks[block].share))
    blocks[block].share = UInt8(truncatingIfNeeded: share)
    use(pages, share: share)
    append(block, to: Int(blocks[block].list))
  }

  /// Whether there is still no room for the block that was asked for last and not had.
  var lacksRoom: Bool { !(lacking...Self.orderLimit).contains { free[$0] != Self.end } }

  /// The largest share: `own`, if no other is larger.
  func largestShare(own: Int) -> Int {
    var largest = own
    for share in 0..<Self.shares where sharePages[share] > sharePages[largest] { largest = share }
    return largest
  }

  /// The oldest of the blocks of a share that hold nothing behind a hole.
  func oldestPlain(_ share: Int) -> Int? { first(share * Self.lists + Self.plain) }

  /// Of the blocks of a share that hold segments behind a hole the oldest of the largest: what takes most gives way first.
  func oldestWithHole(_ share: Int) -> Int? {
    for order in (0...Self.orderLimit).reversed() {
      if let block = first(share * Self.lists + order) { return block }
    }
    return nil
  }

  private func first(_ place: Int) -> Int? { oldest[place] == 0 ? nil : Int(oldest[place]) - 1 }

  // MARK: Work

  mutating func charge(_ steps: Int) { work += steps }

  /// What it took since this was asked last.
  mutating func takeWork() -> Int {
    defer { work = 0 }
    return work
  }

  /// Gives back the part of a block that its segments do not need.
  mutating func fit(_ block: Int) {
    let (old, count, highest) = (Int(blocks[block].order), Int(blocks[block].count), Int(blocks[block].highest))
    var order = 0
    while highest > Self.dataCapacity(order) || count > Self.recordCapacity(order) { order += 1 }
    guard order < old else { return }
    let data = dataStart(block)
    unlink(block)
    (blocks[block].order, blocks[block].head) = (UInt8(order), 0)
    moveData(highest, from: data, to: dataStart(block))
    use(1 << order - 1 << old, share: Int(blocks[block].share))
    for part in (order..<old).reversed() { putFree(block + 1 << part, part) }
    append(block, to: list(of: block))
  }

  // MARK: Records

  /// One segment: where it began, and how long it was.
  struct Record: BitwiseCopyable {
    var start: UInt32
    var length: UInt32
    var end: UInt32 { start &+ length }
  }

  func record(_ block: Int, _ index: Int) -> Record {
    let at = block * Self.page + index * Self.recordBytes
    // SAFETY: records lie inside of their block; the span ends with the statement.
    let span = unsafe bytes.bytes(at..<at + Self.recordBytes).bytes
    return Record(start: span.u32(0), length: span.u32(4))
  }

  mutating func setRecord(_ block: Int, _ index: Int, _ record: Record) {
    let at = block * Self.page + index * Self.recordBytes
    bytes.writeU32(record.start, at: at)
    bytes.writeU32(record.length, at: at + 4)
  }

  mutating func moveRecords(_ block: Int, from source: Int, to target: Int) {
    let start = block * Self.page
    let count = (Int(blocks[block].count) - source) * Self.recordBytes
    bytes.move(count, from: start + source * Self.recordBytes, to: start + target * Self.recordBytes)
  }
}
