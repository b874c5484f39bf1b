import VMFenceBlock
import VMFenceCore
import VMFenceIntegrity

/// An ext2 file system of 512 KiB laid out by hand, small enough to say in a test what every block is: blocks of 1
/// KiB, one group, 64 inodes of 128 bytes.
///
/// Block 1 superblock, 2 descriptors, 3 and 4 bitmaps, 5 to 12 inodes, 13 root, 14 /etc, 15 /var, from 20 on contents.
struct TinyDisk {
  static let blockSize = 1024
  static let blockCount = 512
  var bytes = [UInt8](repeating: 0, count: blockSize * blockCount)

  struct Inode {
    var mode: UInt16 = 0o100644
    var size: UInt32 = 0
    var links: UInt16 = 1
    var uid: UInt16 = 0
    var mtime: UInt32 = 1_700_000_000
    var ctime: UInt32 = 1_700_000_000
    var dtime: UInt32 = 0
    var generation: UInt32 = 1
    var blocks: [UInt32] = []
    var attributeBlock: UInt32 = 0
  }

  mutating func put16(_ value: UInt16, at offset: Int) {
    bytes[offset] = UInt8(truncatingIfNeeded: value)
    bytes[offset + 1] = UInt8(truncatingIfNeeded: value >> 8)
  }

  mutating func put32(_ value: UInt32, at offset: Int) {
    put16(UInt16(truncatingIfNeeded: value), at: offset)
    put16(UInt16(truncatingIfNeeded: value >> 16), at: offset + 2)
  }

  mutating func putInode(_ number: UInt32, _ inode: Inode) {
    let base = 5 * Self.blockSize + Int(number - 1) * 128
    for index in base..<base + 128 { bytes[index] = 0 }
    put16(inode.mode, at: base)
    put16(inode.uid, at: base + 2)
    put32(inode.size, at: base + 4)
    put32(inode.ctime, at: base + 12)
    put32(inode.mtime, at: base + 16)
    put32(inode.dtime, at: base + 20)
    put16(inode.links, at: base + 26)
    put32(UInt32(inode.blocks.count) * 2, at: base + 28)
    for (index, block) in inode.blocks.enumerated() { put32(block, at: base + 40 + index * 4) }
    put32(inode.generation, at: base + 100)
    put32(inode.attributeBlock, at: base + 104)
  }

  /// Fills a block with directory entries; the last takes the rest.
  mutating func putNames(_ block: Int, _ names: [(String, UInt32)]) {
    let base = block * Self.blockSize
    for index in base..<base + Self.blockSize { bytes[index] = 0 }
    var offset = base
    for (index, (name, inode)) in names.enumerated() {
      let bytesOfName = Array(name.utf8)
      let isLast = index == names.count - 1
      let length = isLast ? base + Self.blockSize - offset : (8 + bytesOfName.count + 3) & ~3
      put32(inode, at: offset)
      put16(UInt16(length), at: offset + 4)
      bytes[offset + 6] = UInt8(bytesOfName.count)
      bytes.replaceSubrange(offset + 8..<offset + 8 + bytesOfName.count, with: bytesOfName)
      offset += length
    }
  }

  /// Makes a block one of extended attributes, with one attribute `user.NAME`.
  mutating func putAttribute(_ block: Int, _ name: String, _ value: String) {
    let base = block * Self.blockSize
    for index in base..<base + Self.blockSize { bytes[index] = 0 }
    put32(0xEA02_0000, at: base)
    put32(1, at: base + 4)
    put32(1, at: base + 8)
    bytes[base + 32] = UInt8(name.utf8.count)
    bytes[base + 33] = 1
    put16(UInt16(Self.blockSize - 64), at: base + 34)
    put32(UInt32(value.utf8.count), at: base + 40)
    bytes.replaceSubrange(base + 48..<base + 48 + name.utf8.count, with: Array(name.utf8))
    bytes.replaceSubrange(
      base + Self.blockSize - 64..<base + Self.blockSize - 64 + value.utf8.count, with: Array(value.utf8))
  }

  mutating func putText(_ block: Int, _ text: String) {
    bytes.replaceSubrange(block * Self.blockSize..<block * Self.blockSize + text.utf8.count, with: Array(text.utf8))
  }

  func block(_ number: Int) -> [UInt8] {
    Array(bytes[number * Self.blockSize..<(number + 1) * Self.blockSize])
  }

  /// /etc (12) with passwd (13, block 20) and shadow (14, blocks 21, 22), /var (15) with app.log (16, block 23).
  init() {
    let base = 1024
    put32(64, at: base)
    put32(UInt32(Self.blockCount), at: base + 4)
    put32(1, at: base + 20)
    put32(8192, at: base + 32)
    put32(8192, at: base + 36)
    put32(64, at: base + 40)
    put16(0xEF53, at: base + 56)
    put32(1, at: base + 76)
    put32(11, at: base + 84)
    put16(128, at: base + 88)
    put32(0x2, at: base + 96)
    put32(3, at: 2048)
    put32(4, at: 2048 + 4)
    put32(5, at: 2048 + 8)
    putInode(2, Inode(mode: 0o40755, size: 1024, links: 4, blocks: [13]))
    putInode(12, Inode(mode: 0o40755, size: 1024, links: 2, blocks: [14]))
    putInode(15, Inode(mode: 0o40755, size: 1024, links: 2, blocks: [15]))
    putInode(13, Inode(size: 100, blocks: [20]))
    putInode(14, Inode(mode: 0o100640, size: 1500, blocks: [21, 22]))
    putInode(16, Inode(size: 500, blocks: [23]))
    putNames(13, [(".", 2), ("..", 2), ("etc", 12), ("var", 15)])
    putNames(14, [(".", 12), ("..", 2), ("passwd", 13), ("shadow", 14)])
    putNames(15, [(".", 15), ("..", 2), ("app.log", 16)])
    for (block, letter) in [(20, "p"), (21, "s"), (22, "s"), (23, "l")] {
      putText(block, String(repeating: letter, count: Self.blockSize))
    }
  }
}

/// A guest that writes to a tiny disk under the eyes of a monitor: change `image`, then `sync` or `write` the blocks
/// in any order.
struct Guest: ~Copyable {
  var image = TinyDisk()
  let overlay: ImageOverlay
  var disk: OverlaidDisk<IntegrityMonitor>
  var sequence: UInt64 = 0
  var time = Timestamp(seconds: 1000)

  init(
    _ image: TinyDisk = TinyDisk(), protecting rules: [ProtectionPolicy.Rule], eventLimit: Int = 4096,
    freezeLimit: Duration = .seconds(600),
    keepLimit: Int = 16 << 20, contentLimit: Int = 1 << 20
  ) throws {
    self.image = image
    overlay = ImageOverlay(MemoryDisk(image.bytes))
    let configuration = IntegrityMonitor.Configuration(
      incarnation: Incarnation(uuid: DomainUUID(high: 0, low: 1), domainID: DomainID(1)), disk: "xvda",
      policy: try ProtectionPolicy(rules), eventLimit: eventLimit, freezeLimit: freezeLimit, keepLimit: keepLimit,
      contentLimit: contentLimit)
    disk = OverlaidDisk(IntegrityMonitor(overlay, configuration: configuration, at: time), overlay: overlay)
  }

  @discardableResult
  mutating func request(
    _ operation: BlockRequest.Operation, at offset: UInt64 = 0, _ data: [UInt8] = [], length: UInt64? = nil
  )
    -> BlockVerdict
  {
    time = time + .microseconds(100)
    let request = BlockRequest(
      sequence: sequence, timestamp: time, operation: operation, offset: offset, length: length ?? UInt64(data.count))
    sequence += 1
    return data.withRawSpan { disk.observe(request, data: $0) }
  }

  /// Shows the last request again, as a block path does with one that is held.
  mutating func again(_ block: Int) -> BlockVerdict {
    let request = BlockRequest(
      sequence: sequence - 1, timestamp: time, operation: .write, offset: UInt64(block * TinyDisk.blockSize),
      length: UInt64(TinyDisk.blockSize))
    return image.block(block).withRawSpan { disk.observe(request, data: $0) }
  }

  /// Writes blocks of the image to the disk.
  @discardableResult
  mutating func write(_ blocks: Int...) -> BlockVerdict {
    var verdict = BlockVerdict.allow
    for block in blocks {
      verdict = max(verdict, request(.write, at: UInt64(block * TinyDisk.blockSize), image.block(block)))
    }
    return verdict
  }

  mutating func flush() -> [String] {
    request(.flush)
    return events()
  }

  mutating func wait(_ duration: Duration) -> [String] {
    time = time + duration
    disk.observer.advance(to: time)
    return events()
  }

  mutating func finish() -> [String] {
    disk.observer.finish(at: time)
    return events()
  }

  mutating func events() -> [String] { disk.observer.drainEvents().map(MonitorSupport.text) }
}

/// The block of the inode table that holds an inode.
func inodeBlock(_ number: Int) -> Int { 5 + (number - 1) / 8 }
