import VMFenceCore

/// Memory for the segments of all streams: blocks of 4 KiB to 1 MiB, each twice the size of the next smaller kind, which are split and
/// joined in pairs (Knuth, The Art of Computer Programming 1, §2.5: the buddy system). The number of bytes is fixed.
///
/// A block holds what one end of one connection sent and what is not inspected yet (with a little of what was, for patterns that
/// begin there). Its first eighth has a record of each segment, sorted by sequence number; the rest has the
/// bytes, each at its distance from the first.
///
/// Blocks in use are in lists, the oldest first: those that hold segments behind a hole in one for each size (by when the bytes before the hole last
/// became more), all others in one. So those that have to give way when memory is short are found without a search.
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
  private static let end: Int32 = -1

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
    /// In use: the list it is in, and where the flow lies that has it.
    var list: UInt8 = 0
    var owner: Int32 = 0
  }

  private let inPlace = InPlace()
  var bytes: ByteStore
  var blocks: ZeroedTable<Block>
  /// A segment while it is decided which of its bytes count.
  var scratch = ByteStore(count: 65_536)
  private var free: InlineArray<9, Int32> = InlineArray(repeating: -1)
  /// The oldest and the youngest block of each list.
  private var oldest: InlineArray<10, Int32> = InlineArray(repeating: -1)
  private var youngest: InlineArray<10, Int32> = InlineArray(repeating: -1)
  /// The size of the last block that there was no room for.
  private var lacking = 0
  private let pages: Int
  private(set) var usedPages = 0
  private(set) var mostPages = 0

  /// `memory`: in bytes, a mebibyte at least.
  init(memory: Int) {
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
  func dataStart(_ block: Int) -> Int { block * Self.page + Self.page << Int(blocks[block].order) / 8 }

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
    usedPages += 1 << order
    mostPages = max(mostPages, usedPages)
    append(block, to: Self.plain)
    return block
  }

  mutating func release(_ block: Int) {
    unlink(block)
    var (block, order) = (block, Int(blocks[block].order))
    usedPages -= 1 << order
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

  // MARK: Lists

  private mutating func append(_ block: Int, to list: Int) {
    let last = youngest[list]
    blocks[block].previous = last
    blocks[block].next = Self.end
    blocks[block].list = UInt8(list)
    if last == Self.end { oldest[list] = Int32(block) } else { blocks[Int(last)].next = Int32(block) }
    youngest[list] = Int32(block)
  }

  private mutating func unlink(_ block: Int) {
    let (previous, next, list) = (blocks[block].previous, blocks[block].next, Int(blocks[block].list))
    if previous == Self.end { oldest[list] = next } else { blocks[Int(previous)].next = next }
    if next == Self.end { youngest[list] = previous } else { blocks[Int(next)].previous = previous }
  }

  /// Puts a block into the list it belongs to now, if it is in another.
  mutating func file(_ block: Int) {
    let list = blocks[block].ready < blocks[block].highest ? Int(blocks[block].order) : Self.plain
    if list == Int(blocks[block].list) { return }
    unlink(block)
    append(block, to: list)
  }

  /// Makes a block the youngest of its list.
  mutating func refresh(_ block: Int) {
    unlink(block)
    append(block, to: Int(blocks[block].list))
  }

  /// Whether there is still no room for the block that was asked for last and not had.
  var lacksRoom: Bool { !(lacking...Self.orderLimit).contains { free[$0] != Self.end } }

  /// The oldest of the blocks that hold nothing behind a hole.
  var oldestPlain: Int? { oldest[Self.plain] == Self.end ? nil : Int(oldest[Self.plain]) }

  /// Of the blocks that hold segments behind a hole the oldest of the largest: who takes most gives way first.
  var oldestWithHole: Int? {
    for order in (0...Self.orderLimit).reversed() where oldest[order] != Self.end { return Int(oldest[order]) }
    return nil
  }

  /// Gives back the part of a block that its segments do not need.
  mutating func fit(_ block: Int) {
    let (old, count, highest) = (Int(blocks[block].order), Int(blocks[block].count), Int(blocks[block].highest))
    var order = 0
    while highest > Self.dataCapacity(order) || count > Self.recordCapacity(order) { order += 1 }
    guard order < old else { return }
    let data = dataStart(block)
    unlink(block)
    blocks[block].order = UInt8(order)
    bytes.move(highest, from: data, to: dataStart(block))
    usedPages -= 1 << old - 1 << order
    for part in (order..<old).reversed() { putFree(block + 1 << part, part) }
    append(block, to: blocks[block].ready < blocks[block].highest ? order : Self.plain)
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
