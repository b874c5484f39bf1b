internal import VMFenceCore

/// The superblock of an ext2, ext3 or ext4 file system, checked: every number that later code divides by, shifts by or
/// multiplies with lies in the range that the kernel accepts.
///
/// Source: `fs/ext2/ext2.h`, `fs/ext4/ext4.h` (`struct ext4_super_block`) and `ext4_fill_super` of Linux.
public struct ExtSuperblock: Hashable, Sendable {
  /// Where it lies on the disk, and how much of it there is, in bytes.
  public static let offset: UInt64 = 1024
  public static let size = 1024

  public let inodeCount: UInt32
  /// As the guest counts them, for showing progress only.
  public let freeInodeCount: UInt32
  public let blockCount: UInt64
  /// 1 with blocks of 1 KiB (0 when they are allocated in clusters), 0 with larger ones.
  public let firstDataBlock: UInt64
  /// In bytes: 1, 2, 4 … 64 KiB.
  public let blockSize: Int
  /// How many blocks are allocated together: 1 without `bigalloc`.
  public let blocksPerCluster: UInt32
  public let blocksPerGroup: UInt32
  public let inodesPerGroup: UInt32
  public let groupCount: Int
  public let revision: UInt32
  /// In bytes: 128 (always so in revision 0) or a larger power of two up to a block.
  public let inodeSize: Int
  /// Of a group descriptor, in bytes: 32, or 64 and more with `64bit`.
  public let descriptorSize: Int
  public let features: ExtFeatures
  public let uuidHigh: UInt64
  public let uuidLow: UInt64
  /// What checksums of metadata begin with.
  public let checksumSeed: UInt32
  /// False when the superblock's own checksum does not fit it.
  public let isChecksumRight: Bool
  /// The journal's inode; 0 when there is none, or it lies on a device of its own.
  public let journalInode: UInt32
  public let hasExternalJournal: Bool
  /// The first inode of those that were deleted while open; 0 for none.
  public let lastOrphan: UInt32
  public let orphanFileInode: UInt32
  /// Of users, groups and projects; 0 for those that there are not.
  public let quotaInodes: [UInt32]
  /// The path at which it was last mounted, as the disk has it.
  public let lastMounted: [UInt8]
  public let volumeName: [UInt8]
  private let firstMetaGroup: UInt32
  private let backupGroups: [UInt32]

  /// More groups than this (8 TiB in blocks of 1 KiB, 128 TiB in blocks of 4 KiB) are refused.
  static let groupCountLimit = 1 << 20

  /// - `bytes`: the 1,024 bytes from byte 1,024 of the disk on.
  /// - `diskSize`: in bytes; a file system larger than its disk is refused.
  public init(_ bytes: RawSpan, diskSize: UInt64) throws(IntegrityError) {
    guard bytes.byteCount >= Self.size else {
      throw IntegrityError(.truncated, "the disk ends inside the superblock", remedy: "give the whole image")
    }
    guard bytes.u16le(56) == 0xEF53 else {
      throw IntegrityError(
        .notAFileSystem, "no ext2, ext3 or ext4 file system: the magic number 0xEF53 is not at byte 1080",
        remedy: "name an image, or a partition of one, that holds an ext2, ext3 or ext4 file system")
    }
    revision = bytes.u32le(76)
    let mask: UInt32 = revision == 0 ? 0 : .max
    features = ExtFeatures(
      compatible: bytes.u32le(92) & mask, incompatible: bytes.u32le(96) & mask, readOnly: bytes.u32le(100) & mask)
    try Self.check(features, revision: revision)

    let logBlockSize = bytes.u32le(24)
    guard logBlockSize <= 6 else { throw Self.damaged("block size 2^(10 + \(logBlockSize)) is not 1 to 64 KiB") }
    blockSize = 1024 << Int(logBlockSize)
    inodeSize = revision == 0 ? 128 : Int(bytes.u16le(88))
    guard inodeSize >= 128, inodeSize <= blockSize, inodeSize & (inodeSize - 1) == 0 else {
      throw Self.damaged("inode size \(inodeSize) is not a power of two from 128 to the block size \(blockSize)")
    }
    descriptorSize = features.is64Bit ? Int(bytes.u16le(254)) : 32
    guard descriptorSize >= (features.is64Bit ? 64 : 32), descriptorSize <= min(1024, blockSize),
      descriptorSize & (descriptorSize - 1) == 0
    else { throw Self.damaged("group descriptors of \(descriptorSize) bytes") }
    let logClusterSize = features.hasClusters ? bytes.u32le(28) : logBlockSize
    guard logClusterSize >= logBlockSize, logClusterSize <= 20 else {
      throw Self.damaged("clusters of 2^(10 + \(logClusterSize)) bytes in blocks of \(blockSize)")
    }
    blocksPerCluster = 1 << (logClusterSize - logBlockSize)
    inodeCount = bytes.u32le(0)
    freeInodeCount = bytes.u32le(16)
    blockCount = UInt64(bytes.u32le(4)) | (features.is64Bit ? UInt64(bytes.u32le(336)) << 32 : 0)
    firstDataBlock = UInt64(bytes.u32le(20))
    blocksPerGroup = bytes.u32le(32)
    inodesPerGroup = bytes.u32le(40)
    uuidHigh = bytes.u64(104)
    uuidLow = bytes.u64(112)
    volumeName = Self.text(bytes, 120..<136)
    lastMounted = Self.text(bytes, 136..<200)
    (checksumSeed, isChecksumRight) = Self.checksums(bytes, features)

    let journal = revision == 0 || !features.hasJournal ? 0 : bytes.u32le(224)
    hasExternalJournal = features.hasJournal && journal == 0 && bytes.u32le(228) != 0
    journalInode = journal
    lastOrphan = revision == 0 ? 0 : bytes.u32le(232)
    orphanFileInode = features.hasOrphanFile ? bytes.u32le(640) : 0
    quotaInodes = features.hasQuota ? [bytes.u32le(576), bytes.u32le(580), bytes.u32le(620)] : []
    firstMetaGroup = features.hasMetaGroups ? bytes.u32le(260) : .max
    backupGroups = [bytes.u32le(588), bytes.u32le(592)]
    groupCount = try Self.groups(
      (blockCount, firstDataBlock, blocksPerGroup, inodesPerGroup, inodeCount),
      sizes: (blockSize, inodeSize, blocksPerCluster), diskSize)
    guard !features.hasFlexibleGroups || bytes.u8(372) < 32 else {
      throw Self.damaged("flexible groups of 2^\(bytes.u8(372)) groups")
    }
    guard revision == 0 || bytes.u32le(84) <= inodeCount else {
      throw Self.damaged("the first inode for files, \(bytes.u32le(84)), is not one of \(inodeCount)")
    }
    for inode in quotaInodes + [journalInode, lastOrphan, orphanFileInode] where inode > inodeCount {
      throw Self.damaged("it names inode \(inode) of \(inodeCount)")
    }
  }

  /// Checks the counts against each other.
  ///
  /// - Returns: how many groups there are.
  private static func groups(
    _ counts: (blocks: UInt64, first: UInt64, perGroup: UInt32, inodesPerGroup: UInt32, inodes: UInt32),
    sizes: (block: Int, inode: Int, blocksPerCluster: UInt32), _ diskSize: UInt64
  ) throws(IntegrityError) -> Int {
    let firsts: [UInt64] = sizes.block > 1024 ? [0] : sizes.blocksPerCluster > 1 ? [0, 1] : [1]
    guard firsts.contains(counts.first), counts.first < counts.blocks else {
      throw damaged("first data block \(counts.first) does not fit blocks of \(sizes.block) bytes")
    }
    guard counts.inodesPerGroup >= UInt32(sizes.block / sizes.inode), counts.inodesPerGroup <= UInt32(sizes.block * 8)
    else { throw damaged("\(counts.inodesPerGroup) inodes per group") }
    let tableBlocks =
      (UInt64(counts.inodesPerGroup) * UInt64(sizes.inode) + UInt64(sizes.block) - 1) / UInt64(sizes.block)
    guard UInt64(counts.perGroup) >= tableBlocks + 3, counts.perGroup % sizes.blocksPerCluster == 0,
      counts.perGroup / sizes.blocksPerCluster <= UInt32(sizes.block * 8)
    else {
      throw damaged("\(counts.perGroup) blocks per group cannot hold an inode table of \(tableBlocks) blocks")
    }
    let (bytes, overflow) = counts.blocks.multipliedReportingOverflow(by: UInt64(sizes.block))
    guard !overflow, bytes <= diskSize else {
      throw IntegrityError(
        .truncated,
        "the file system has \(counts.blocks) blocks of \(sizes.block) bytes, the disk only \(diskSize) bytes",
        remedy: "give the whole image; a copy that was cut short cannot be used")
    }
    let groups = (counts.blocks - counts.first + UInt64(counts.perGroup) - 1) / UInt64(counts.perGroup)
    guard groups <= UInt64(groupCountLimit) else {
      throw IntegrityError(
        .tooLarge, "\(groups) block groups; at most \(groupCountLimit) are read",
        remedy: "the file system is damaged, or larger than this version follows")
    }
    guard UInt64(counts.inodes) == groups * UInt64(counts.inodesPerGroup) else {
      throw damaged("\(counts.inodes) inodes are not \(groups) groups of \(counts.inodesPerGroup)")
    }
    return Int(groups)
  }

  /// How many blocks each group's inode table takes.
  public var inodeTableBlocks: UInt64 {
    (UInt64(inodesPerGroup) * UInt64(inodeSize) + UInt64(blockSize) - 1) / UInt64(blockSize)
  }

  /// The block in which the superblock lies.
  public var ownBlock: UInt64 { blockSize == 1024 ? 1 : 0 }

  public var descriptorsPerBlock: Int { blockSize / descriptorSize }

  /// How many blocks the group descriptors take.
  public var descriptorBlockCount: Int { (groupCount + descriptorsPerBlock - 1) / descriptorsPerBlock }

  /// Where block `index` of the group descriptors lies (`descriptor_loc` in `fs/ext4/super.c`).
  ///
  /// - Precondition: `index` is below `descriptorBlockCount`.
  public func descriptorBlock(_ index: Int) -> UInt64 {
    guard features.hasMetaGroups, UInt32(index) >= firstMetaGroup else { return ownBlock + 1 + UInt64(index) }
    let group = index * descriptorsPerBlock
    let first = firstDataBlock + UInt64(group) * UInt64(blocksPerGroup)
    let shift: UInt64 = blockSize == 1024 && firstDataBlock == 0 && group == 0 ? 1 : 0
    return first + (hasBackup(group) ? 1 : 0) + shift
  }

  /// Whether a group begins with a copy of the superblock (`ext4_bg_has_super`).
  func hasBackup(_ group: Int) -> Bool {
    if group == 0 { return true }
    if features.hasSparseSuper2 { return backupGroups.contains(UInt32(group)) }
    if !features.hasSparseSuper || group == 1 { return true }
    guard group % 2 == 1 else { return false }
    for base in [3, 5, 7] {
      var power = base
      while power < group { power *= base }
      if power == group { return true }
    }
    return false
  }

  /// Whether `other` describes the same file system in the same layout. Counters, labels and times may differ, and so may
  /// the features that change no layout: kernels set some when they are first used, and `needs_recovery` with each mount.
  public func hasSameLayout(as other: ExtSuperblock) -> Bool {
    let layout: UInt32 = 0x2 | 0x10 | 0x80 | 0x200 | 0x2000
    return inodeCount == other.inodeCount && blockCount == other.blockCount && blockSize == other.blockSize
      && firstDataBlock == other.firstDataBlock && blocksPerGroup == other.blocksPerGroup
      && inodesPerGroup == other.inodesPerGroup && inodeSize == other.inodeSize
      && descriptorSize == other.descriptorSize && blocksPerCluster == other.blocksPerCluster
      && features.incompatible & layout == other.features.incompatible & layout
      && features.hasJournal == other.features.hasJournal && journalInode == other.journalInode
      && features.hasMetadataChecksums == other.features.hasMetadataChecksums
      && checksumSeed == other.checksumSeed && uuidHigh == other.uuidHigh && uuidLow == other.uuidLow
  }

  /// Whether this may be the superblock of the same file system later, grown or not: what lies where in a group is the same, and no block is
  /// left out.
  func isSameOrGrown(from other: ExtSuperblock) -> Bool {
    blockSize == other.blockSize && firstDataBlock == other.firstDataBlock && blocksPerGroup == other.blocksPerGroup
      && inodesPerGroup == other.inodesPerGroup && inodeSize == other.inodeSize
      && blocksPerCluster == other.blocksPerCluster && descriptorSize == other.descriptorSize
      && blockCount >= other.blockCount
  }

  private static func text(_ bytes: RawSpan, _ range: Range<Int>) -> [UInt8] {
    Array(bytes.extracting(range).copiedBytes().prefix { $0 != 0 })
  }

  /// The seed of all checksums, and whether the superblock's own is right.
  private static func checksums(_ bytes: RawSpan, _ features: ExtFeatures) -> (seed: UInt32, isRight: Bool) {
    guard features.hasMetadataChecksums else { return (0, true) }
    var own = CRC32C()
    own.update(bytes.extracting(0..<1020))
    var seed = CRC32C()
    seed.update(bytes.extracting(104..<120))
    return (features.hasChecksumSeed ? bytes.u32le(624) : seed.state, own.state == bytes.u32le(1020))
  }

  private static func check(_ features: ExtFeatures, revision: UInt32) throws(IntegrityError) {
    guard revision <= 1 else {
      throw IntegrityError(
        .unsupported, "file system revision \(revision); 0 and 1 are known", remedy: "this is not an ext2 file system")
    }
    guard features.notFollowed.isEmpty else {
      throw IntegrityError(
        .unsupported,
        "the file system uses features that are not followed: \(features.notFollowed.joined(separator: ", "))",
        remedy: "these features change what the disk means, and nothing is guessed; use a file system without them")
    }
  }

  private static func damaged(_ what: String) -> IntegrityError {
    IntegrityError(.damaged, "damaged superblock: \(what)", remedy: "check the file system with e2fsck on a copy")
  }
}

/// Where the parts of one block group lie.
struct ExtGroup: Hashable, Sendable {
  var blockBitmap: UInt64
  var inodeBitmap: UInt64
  var inodeTable: UInt64

  /// - Precondition: a descriptor of `size` bytes lies in `bytes` from `offset` on.
  init(_ bytes: RawSpan, at offset: Int, size: Int) {
    let isWide = size >= 64
    blockBitmap = UInt64(bytes.u32le(offset)) | (isWide ? UInt64(bytes.u32le(offset + 32)) << 32 : 0)
    inodeBitmap = UInt64(bytes.u32le(offset + 4)) | (isWide ? UInt64(bytes.u32le(offset + 36)) << 32 : 0)
    inodeTable = UInt64(bytes.u32le(offset + 8)) | (isWide ? UInt64(bytes.u32le(offset + 40)) << 32 : 0)
  }
}
