internal import VMFenceCore

/// An ext2 (or a clean ext3) file system on a disk: finds and reads its blocks and inodes. It holds the geometry only
/// and reads the disk each time.
public struct ExtFileSystem: Sendable {
  public let reader: any DiskReader
  public let superblock: ExtSuperblock
  private(set) var groups: [ExtGroup]
  /// A request that is not on the disk yet, seen as if it were.
  var patch: WritePatch?

  /// Reads and checks the superblock and the group descriptors.
  ///
  /// - Throws: `notAFileSystem`, `unsupported` (by the feature's name), `damaged`, `truncated`, `tooLarge`,
  ///   `inputOutput`.
  public init(_ reader: any DiskReader) throws(IntegrityError) {
    self.reader = reader
    superblock = try Self.readSuperblock(reader, patch: nil)
    groups = []
    let descriptorsPerBlock = superblock.blockSize / 32
    var buffer: [UInt8] = []
    groups.reserveCapacity(superblock.groupCount)
    for index in 0..<superblock.groupCount {
      if index % descriptorsPerBlock == 0 {
        try readBlock(superblock.descriptorBlocks.lowerBound + UInt64(index / descriptorsPerBlock), into: &buffer)
      }
      let group = buffer.withRawSpan { ExtGroup($0, at: index % descriptorsPerBlock * 32) }
      try Self.check(group, index: index, of: superblock)
      groups.append(group)
    }
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

  /// Without flex_bg a group's parts lie in the group itself (`ext2_check_descriptors`).
  static func check(_ group: ExtGroup, index: Int, of superblock: ExtSuperblock) throws(IntegrityError) {
    let first = superblock.firstDataBlock + UInt64(index) * UInt64(superblock.blocksPerGroup)
    let end = min(first + UInt64(superblock.blocksPerGroup), superblock.blockCount)
    let table = UInt64(group.inodeTable)
    guard first..<end ~= UInt64(group.blockBitmap), first..<end ~= UInt64(group.inodeBitmap), table >= first,
      table + superblock.inodeTableBlocks <= end,
      index > 0 || table >= superblock.descriptorBlocks.upperBound
    else {
      throw IntegrityError(
        .damaged, "damaged group descriptor \(index): a bitmap or the inode table lies outside its group",
        remedy: "check the file system with e2fsck on a copy")
    }
  }

  public var blockSize: Int { superblock.blockSize }

  /// Fills `buffer` with block `block`.
  public func readBlock(_ block: UInt64, into buffer: inout [UInt8]) throws(IntegrityError) {
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
    let block = UInt64(groups[group].inodeTable) + UInt64(inGroup / perBlock)
    return (block, inGroup % perBlock * superblock.inodeSize, number - UInt32(inGroup % perBlock))
  }

  public func inode(_ number: UInt32, buffer: inout [UInt8]) throws(IntegrityError) -> ExtInode {
    guard let place = location(ofInode: number) else {
      throw IntegrityError(.damaged, "inode \(number) of \(superblock.inodeCount)")
    }
    try readBlock(place.block, into: &buffer)
    let inodeSize = superblock.inodeSize
    return buffer.withRawSpan { ExtInode($0, at: place.offset, inodeSize: inodeSize) }
  }

  /// Whether a file may own this block: inside the file system, and no superblock, descriptor, bitmap or inode table.
  func isOwnable(_ block: UInt64) -> Bool {
    guard block > superblock.firstDataBlock, block < superblock.blockCount,
      !superblock.descriptorBlocks.contains(block)
    else { return false }
    let group = groups[Int((block - superblock.firstDataBlock) / UInt64(superblock.blocksPerGroup))]
    let table = UInt64(group.inodeTable)
    return block != UInt64(group.blockBitmap) && block != UInt64(group.inodeBitmap)
      && !(table..<table + superblock.inodeTableBlocks ~= block)
  }

  /// The largest size that a file's block map can describe, in bytes.
  var fileSizeLimit: UInt64 {
    let pointers = UInt64(blockSize / 4)
    return min(12 + pointers + pointers * pointers + pointers * pointers * pointers, 1 << 32) * UInt64(blockSize)
  }

  /// Whether the descriptors in block `block` of the table still put every inode table where it was.
  func descriptorsAreUnchanged(inBlock block: UInt64, buffer: inout [UInt8]) throws(IntegrityError) -> Bool {
    try readBlock(block, into: &buffer)
    let perBlock = blockSize / 32
    let first = Int(block - superblock.descriptorBlocks.lowerBound) * perBlock
    let count = min(perBlock, superblock.groupCount - first)
    let groups = groups
    return buffer.withRawSpan { bytes in
      (0..<count).allSatisfy { ExtGroup(bytes, at: $0 * 32) == groups[first + $0] }
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
