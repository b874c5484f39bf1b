public import VMFenceCore

/// What a protected file contained before a change, as the verb `rollback` keeps it. Taken back one after the other, the last
/// first, these give the contents that a file had (`KeptContents.undo`).
public struct KeptContents: Hashable, Sendable {
  public var time: Timestamp
  /// The number of the block request that brought the change.
  public var sequence: UInt64
  /// The disk, as events name it.
  public var disk: String
  public var path: [UInt8]
  public var inode: UInt64
  /// How long the file was, in bytes.
  public var size: UInt64
  /// Where in the file `bytes` were.
  public var offset: UInt64
  public var bytes: [UInt8]
  /// `bytes` are all that the file contained; otherwise only what the change took away.
  public var isWhole: Bool

  public init(
    time: Timestamp, sequence: UInt64, disk: String, path: [UInt8], inode: UInt64, size: UInt64, offset: UInt64,
    bytes: [UInt8], isWhole: Bool
  ) {
    self.time = time
    self.sequence = sequence
    self.disk = disk
    self.path = path
    self.inode = inode
    self.size = size
    self.offset = offset
    self.bytes = bytes
    self.isWhole = isWhole
  }

  /// Longer contents are not put together again, in bytes.
  public static let undoLimit: UInt64 = 1 << 30

  /// Takes a change back: makes contents that were there after it those that were there before.
  ///
  /// - Throws: `tooLarge`.
  public func undo(_ contents: inout [UInt8]) throws(IntegrityError) {
    let (end, overflow) = offset.addingReportingOverflow(UInt64(bytes.count))
    guard !overflow, max(size, end) <= Self.undoLimit else {
      throw IntegrityError(.tooLarge, "contents of \(max(size, end)) bytes are not put together", remedy: "")
    }
    if isWhole { contents.removeAll() }
    let length = Int(max(size, end))
    if contents.count < length { contents += [UInt8](repeating: 0, count: length - contents.count) }
    contents.replaceSubrange(Int(offset)..<Int(end), with: bytes)
    contents.removeLast(contents.count - Int(size))
  }

  // MARK: Records

  private static let magic: UInt32 = 0x564D_464B  // "VMFK"
  /// Magic, length of what follows, checksum of what follows.
  public static let headerSize = 12
  private static let fixedSize = 50
  /// The longest record, in bytes.
  public static let recordLimit = 64 << 20

  /// A record of a file of kept contents: the header, then big-endian numbers, the texts and the bytes.
  public var encoded: [UInt8] {
    let name = Array(disk.utf8.prefix(255))
    let shortPath = path.prefix(65_535)
    var body: [UInt8] = []
    body.reserveCapacity(Self.fixedSize + name.count + shortPath.count + bytes.count)
    for value in [UInt64(bitPattern: time.nanoseconds), sequence, inode, size, offset] {
      body += StateKey.number(value)
    }
    body += [isWhole ? 1 : 0, UInt8(name.count)]
    body += StateKey.number(UInt64(shortPath.count)).suffix(4)
    body += StateKey.number(UInt64(bytes.count)).suffix(4)
    body += name + shortPath + bytes
    var crc = CRC32C()
    body.withRawSpan { crc.update($0) }
    let header = [UInt64(Self.magic), UInt64(body.count), UInt64(crc.state)].flatMap { StateKey.number($0).suffix(4) }
    return header + body
  }

  /// How many bytes follow a header; nil when it is none.
  public static func bodySize(_ header: RawSpan) -> (count: Int, checksum: UInt32)? {
    guard header.byteCount >= headerSize, header.u32(0) == magic, header.u32(4) <= UInt32(recordLimit) else {
      return nil
    }
    return (Int(header.u32(4)), header.u32(8))
  }

  /// Nil when the bytes are not such a record, or not with this checksum.
  public init?(body: [UInt8], checksum: UInt32) {
    guard body.count >= Self.fixedSize else { return nil }
    var crc = CRC32C()
    body.withRawSpan { crc.update($0) }
    guard crc.state == checksum else { return nil }
    let numbers = body.withRawSpan { span in
      (span.u64(0), span.u64(8), span.u64(16), span.u64(24), span.u64(32), span.u32(42), span.u32(46))
    }
    let nameEnd = Self.fixedSize + Int(body[41])
    let pathEnd = nameEnd + Int(numbers.5)
    guard body[40] <= 1, numbers.5 <= 65_535, body.count == pathEnd + Int(numbers.6) else { return nil }
    time = Timestamp(nanoseconds: Int64(bitPattern: numbers.0))
    (sequence, inode, size, offset) = (numbers.1, numbers.2, numbers.3, numbers.4)
    isWhole = body[40] == 1
    disk = String(decoding: body[Self.fixedSize..<nameEnd], as: UTF8.self)
    path = Array(body[nameEnd..<pathEnd])
    bytes = Array(body[pathEnd...])
  }
}

/// Kept contents on their way to whoever drains them: bounded, the overflow counted.
struct KeptQueue: Sendable {
  private(set) var waiting: [KeptContents] = []
  private var heldBytes = 0
  let limit: Int
  private(set) var lost: UInt64 = 0

  init(limit: Int) { self.limit = max(0, limit) }

  mutating func append(_ contents: KeptContents) {
    let cost = contents.bytes.count + contents.path.count + 128
    guard heldBytes + cost <= limit else { return lose() }
    heldBytes += cost
    waiting.append(contents)
  }

  mutating func lose() { lost += 1 }

  mutating func drain() -> [KeptContents] {
    defer {
      waiting.removeAll()
      heldBytes = 0
    }
    return waiting
  }
}
