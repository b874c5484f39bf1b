internal import VMFenceCore

/// An ext2, ext3 or ext4 file system on a disk: finds and reads its blocks and inodes. It holds the geometry and the state
/// of the journal, and reads the disk each time. What the journal holds of committed transactions counts as if it were at
/// its place.
public struct ExtFileSystem: Sendable {
  public let reader: any DiskReader
  public internal(set) var superblock: ExtSuperblock
  /// What was found wrong with superblock, group descriptors or journal, and does not stop anybody from reading the rest.
  public internal(set) var damage = DamageLog(limit: 64)
  /// The journal; nil when there is none, or it cannot be used (then `damage` says why).
  var journal: Journal?
  var overlay = JournalOverlay()
  /// Changes that are not on the disk yet, seen as if they were.
  var patch: WritePatch?
  private(set) var groups: [ExtGroup]
  private(set) var checksums: ExtChecksums
  /// Superblock, descriptors, bitmaps and inode tables: sorted, apart from each other.
  private var systemBlocks: [Range<UInt64>] = []

  /// Reads and checks the superblock, the group descriptors and the journal.
  ///
  /// - Throws: `notAFileSystem`, `unsupported` (by the feature's name), `damaged`, `truncated`, `tooLarge`,
  ///   `inputOutput`.
  public init(_ reader: any DiskReader) throws(IntegrityError) {
    self.reader = reader
    superblock = try Self.readSuperblock(reader, patch: nil)
    checksums = ExtChecksums(superblock)
    groups = []
    try readGroups()
    openJournal()
    if !overlay.isEmpty {
      superblock = try readCommittedSuperblock()
      checksums = ExtChecksums(superblock)
      damage = DamageLog(limit: 64)
      try readGroups()
      journal?.reportDamage(to: &damage)
    }
    reportSuperblock()
  }

  static func readSuperblock(_ reader: any DiskReader, patch: WritePatch?) throws(IntegrityError) -> ExtSuperblock {
    var buffer = [UInt8](repeating: 0, count: ExtSuperblock.size)
    guard reader.byteCount >= ExtSuperblock.offset + UInt64(ExtSuperblock.size) else {
      throw IntegrityError(
        .notAFileSystem, "the disk has \(reader.byteCount) bytes: too short for any ext2 file system",
        remedy: "give the whole image")
    }
    try reader.read(at: ExtSuperblock.offset, into: &buffer)
    patch?.apply(to: &buffer, at: ExtSuperblock.offset)
    let diskSize = reader.byteCount
    return try buffer.withRawSpan { bytes throws(IntegrityError) in try ExtSuperblock(bytes, diskSize: diskSize) }
  }

  /// The superblock as the last committed transaction has it.
  func readCommittedSuperblock() throws(IntegrityError) -> ExtSuperblock {
    var buffer: [UInt8] = []
    try readBlock(superblock.ownBlock, into: &buffer)
    let start = blockSize == 1024 ? 0 : 1024
    let diskSize = reader.byteCount
    let new = try buffer.withRawSpan { bytes throws(IntegrityError) in
      try ExtSuperblock(bytes.extracting(start..<start + ExtSuperblock.size), diskSize: diskSize)
    }
    guard new.hasSameLayout(as: superblock) else {
      throw IntegrityError(
        .damaged, "the superblock in the journal describes another layout than the one on the disk",
        remedy: "check the file system with e2fsck on a copy")
    }
    return new
  }

  private mutating func readGroups() throws(IntegrityError) {
    groups.removeAll()
    let size = superblock.descriptorSize
    let perBlock = superblock.descriptorsPerBlock
    let isChecked = superblock.features.hasMetadataChecksums || superblock.features.hasGroupChecksums
    var buffer: [UInt8] = []
    groups.reserveCapacity(superblock.groupCount)
    for index in 0..<superblock.groupCount {
      if index % perBlock == 0 { try readBlock(superblock.descriptorBlock(index / perBlock), into: &buffer) }
      let at = index % perBlock * size
      let group = buffer.withRawSpan { ExtGroup($0, at: at, size: size) }
      try Self.check(group, index: index, of: superblock)
      groups.append(group)
      guard isChecked else { continue }
      let isRight = buffer.withRawSpan {
        checksums.isRight(descriptor: $0.extracting(at..<at + size), group: UInt32(index))
      }
      if !isRight { damage.report(inode: 0, "a wrong checksum of group descriptor \(index)") }
    }
    collectSystemBlocks()
  }

  private mutating func collectSystemBlocks() {
    var ranges: [Range<UInt64>] = [0..<superblock.ownBlock + 1]
    for index in 0..<superblock.descriptorBlockCount {
      let block = superblock.descriptorBlock(index)
      ranges.append(block..<block + 1)
    }
    for group in groups {
      ranges.append(group.blockBitmap..<group.blockBitmap + 1)
      ranges.append(group.inodeBitmap..<group.inodeBitmap + 1)
      ranges.append(group.inodeTable..<group.inodeTable + superblock.inodeTableBlocks)
    }
    ranges.sort { $0.lowerBound < $1.lowerBound }
    systemBlocks = []
    for range in ranges {
      if let last = systemBlocks.last, range.lowerBound <= last.upperBound {
        systemBlocks[systemBlocks.count - 1] = last.lowerBound..<max(last.upperBound, range.upperBound)
      } else {
        systemBlocks.append(range)
      }
    }
  }

  /// Without flex_bg a group's parts lie in the group itself, with it anywhere (`ext4_check_descriptors`).
  static func check(_ group: ExtGroup, index: Int, of superblock: ExtSuperblock) throws(IntegrityError) {
    let isAnywhere = superblock.features.hasFlexibleGroups
    let own = superblock.firstDataBlock + UInt64(index) * UInt64(superblock.blocksPerGroup)
    let first = isAnywhere ? superblock.firstDataBlock : own
    let end = isAnywhere ? superblock.blockCount : min(own + UInt64(superblock.blocksPerGroup), superblock.blockCount)
    let table = group.inodeTable
    let tableEnd = table.addingReportingOverflow(superblock.inodeTableBlocks)
    let isInPlace =
      first..<end ~= group.blockBitmap && first..<end ~= group.inodeBitmap && table >= first && !tableEnd.overflow
      && tableEnd.partialValue <= end
    // None of them lies where superblock and descriptors are.
    let head =
      superblock.features.hasMetaGroups
      ? superblock.ownBlock
      : superblock.descriptorBlock(
        superblock.descriptorBlockCount - 1)
    guard isInPlace, table > head, group.blockBitmap > head, group.inodeBitmap > head else {
      throw IntegrityError(
        .damaged, "damaged group descriptor \(index): a bitmap or the inode table lies where none can be",
        remedy: "check the file system with e2fsck on a copy")
    }
  }

  private mutating func reportSuperblock() {
    if !superblock.isChecksumRight { damage.report(inode: 0, "a wrong checksum of the superblock") }
    if !superblock.features.unknown.isEmpty {
      damage.report(
        inode: 0,
        "features that nobody here knows, and that leave reading as it is: \(superblock.features.unknown.joined(separator: ", "))"
      )
    }
    if superblock.lastMounted.contains(where: { $0 < 0x20 || $0 == 0x7F }) {
      damage.report(inode: 0, "control characters in the path of the last mount")
    }
  }

  public var blockSize: Int { superblock.blockSize }

  /// Fills `buffer` with block `block` as the last committed transaction has it.
  public func readBlock(_ block: UInt64, into buffer: inout [UInt8]) throws(IntegrityError) {
    let copy = overlay[block]
    try readDiskBlock(copy?.block ?? block, into: &buffer)
    if copy?.isEscaped == true { buffer.replaceSubrange(0..<4, with: Journal.magicBytes) }
  }

  /// Fills `buffer` with what the disk has at block `block`.
  func readDiskBlock(_ block: UInt64, into buffer: inout [UInt8]) throws(IntegrityError) {
    guard block < superblock.blockCount else {
      throw IntegrityError(
        .damaged, "block \(block) of \(superblock.blockCount)", remedy: "check the file system with e2fsck on a copy")
    }
    if buffer.count != blockSize { buffer = [UInt8](repeating: 0, count: blockSize) }
    let offset = block * UInt64(blockSize)
    try reader.read(at: offset, into: &buffer)
    patch?.apply(to: &buffer, at: offset)
  }

  /// Where an inode lies: the block, the byte in it, and the number of the first inode in that block. Nil for numbers
  /// that no inode has.
  func location(ofInode number: UInt32) -> (block: UInt64, offset: Int, first: UInt32)? {
    guard number >= 1, number <= superblock.inodeCount else { return nil }
    let index = number - 1
    let group = Int(index / superblock.inodesPerGroup)
    let inGroup = Int(index % superblock.inodesPerGroup)
    let perBlock = blockSize / superblock.inodeSize
    let block = groups[group].inodeTable + UInt64(inGroup / perBlock)
    return (block, inGroup % perBlock * superblock.inodeSize, number - UInt32(inGroup % perBlock))
  }

  public func inode(_ number: UInt32, buffer: inout [UInt8]) throws(IntegrityError) -> ExtInode {
    guard let place = location(ofInode: number) else {
      throw IntegrityError(.damaged, "inode \(number) of \(superblock.inodeCount)")
    }
    try readBlock(place.block, into: &buffer)
    return buffer.withRawSpan { bytes in
      let own = bytes.extracting(place.offset..<place.offset + superblock.inodeSize)
      return ExtInode(
        own, superblock: superblock, isChecksumRight: checksums.isRight(inode: own, number: number))
    }
  }

  /// Whether a file may own this block: inside the file system, and no superblock, descriptor, bitmap or inode table.
  func isOwnable(_ block: UInt64) -> Bool { areOwnable(block, 1) }

  /// Whether a file may own all of `count` blocks from `block` on.
  func areOwnable(_ block: UInt64, _ count: UInt64) -> Bool {
    guard block < superblock.blockCount, count <= superblock.blockCount - block else { return false }
    // The first range that ends behind the block.
    var low = 0
    var high = systemBlocks.count
    while low < high {
      let middle = (low + high) / 2
      if systemBlocks[middle].upperBound <= block { low = middle + 1 } else { high = middle }
    }
    return low == systemBlocks.count || systemBlocks[low].lowerBound >= block + count
  }

  /// The largest size that a file's block map can describe, in bytes. Of a file in its inode all behind the inode reads as
  /// zeroes, and more than 1 GiB of them nobody made.
  func fileSizeLimit(of inode: ExtInode) -> UInt64 {
    if inode.hasInlineData { return 1 << 30 }
    if inode.hasExtents { return (1 << 32) * UInt64(blockSize) }
    let pointers = UInt64(blockSize / 4)
    return min(12 + pointers + pointers * pointers + pointers * pointers * pointers, 1 << 32) * UInt64(blockSize)
  }

  /// Whether the descriptors in block `index` of the table still put every inode table where it was.
  func descriptorsAreUnchanged(inBlock index: Int, buffer: inout [UInt8]) throws(IntegrityError) -> Bool {
    try readBlock(superblock.descriptorBlock(index), into: &buffer)
    let perBlock = superblock.descriptorsPerBlock
    let size = superblock.descriptorSize
    let first = index * perBlock
    let count = min(perBlock, superblock.groupCount - first)
    let groups = groups
    return buffer.withRawSpan { bytes in
      (0..<count).allSatisfy { ExtGroup(bytes, at: $0 * size, size: size) == groups[first + $0] }
    }
  }
}

/// Bytes that are about to be written, laid over what the disk still has.
struct WritePatch: Sendable {
  var offset: UInt64
  var length: UInt64
  /// Empty: zeroes.
  var bytes: [UInt8]

  func apply(to buffer: inout [UInt8], at start: UInt64) {
    let end = start + UInt64(buffer.count)
    let from = max(start, offset)
    let to = min(end, offset + length)
    guard from < to else { return }
    let count = Int(to - from)
    let target = Int(from - start)
    if bytes.isEmpty {
      for index in target..<target + count { buffer[index] = 0 }
    } else {
      let source = Int(from - offset)
      buffer.replaceSubrange(target..<target + count, with: bytes[source..<source + count])
    }
  }
}
