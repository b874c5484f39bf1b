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
  public let blockCount: UInt64
  /// 1 with blocks of 1 KiB, 0 with larger ones.
  public let firstDataBlock: UInt64
  /// In bytes: 1, 2, 4 … 64 KiB.
  public let blockSize: Int
  public let blocksPerGroup: UInt32
  public let inodesPerGroup: UInt32
  public let groupCount: Int
  public let revision: UInt32
  /// In bytes: 128 (always so in revision 0) or a larger power of two up to a block.
  public let inodeSize: Int
  public let compatibleFeatures: UInt32
  public let incompatibleFeatures: UInt32
  public let readOnlyFeatures: UInt32
  public let uuidHigh: UInt64
  public let uuidLow: UInt64

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
        remedy: "name an image that is a file system by itself; partition tables are not read")
    }
    revision = bytes.u32le(76)
    compatibleFeatures = bytes.u32le(92) & (revision == 0 ? 0 : .max)
    incompatibleFeatures = bytes.u32le(96) & (revision == 0 ? 0 : .max)
    readOnlyFeatures = bytes.u32le(100) & (revision == 0 ? 0 : .max)
    try Self.checkFeatures(revision: revision, incompatible: incompatibleFeatures)

    let logBlockSize = bytes.u32le(24)
    guard logBlockSize <= 6 else { throw Self.damaged("block size 2^(10 + \(logBlockSize)) is not 1 to 64 KiB") }
    blockSize = 1024 << Int(logBlockSize)
    inodeSize = revision == 0 ? 128 : Int(bytes.u16le(88))
    guard inodeSize >= 128, inodeSize <= blockSize, inodeSize & (inodeSize - 1) == 0 else {
      throw Self.damaged("inode size \(inodeSize) is not a power of two from 128 to the block size \(blockSize)")
    }
    inodeCount = bytes.u32le(0)
    blockCount = UInt64(bytes.u32le(4))
    firstDataBlock = UInt64(bytes.u32le(20))
    blocksPerGroup = bytes.u32le(32)
    inodesPerGroup = bytes.u32le(40)
    uuidHigh = bytes.u64(104)
    uuidLow = bytes.u64(112)

    guard firstDataBlock == (blockSize == 1024 ? 1 : 0), firstDataBlock < blockCount else {
      throw Self.damaged("first data block \(firstDataBlock) does not fit blocks of \(blockSize) bytes")
    }
    guard inodesPerGroup >= UInt32(blockSize / inodeSize), inodesPerGroup <= UInt32(blockSize * 8) else {
      throw Self.damaged("\(inodesPerGroup) inodes per group")
    }
    let tableBlocks = (UInt64(inodesPerGroup) * UInt64(inodeSize) + UInt64(blockSize) - 1) / UInt64(blockSize)
    guard UInt64(blocksPerGroup) >= tableBlocks + 3, blocksPerGroup <= UInt32(blockSize * 8) else {
      throw Self.damaged("\(blocksPerGroup) blocks per group cannot hold an inode table of \(tableBlocks) blocks")
    }
    let groups = (blockCount - firstDataBlock + UInt64(blocksPerGroup) - 1) / UInt64(blocksPerGroup)
    guard groups <= UInt64(Self.groupCountLimit) else {
      throw IntegrityError(
        .tooLarge, "\(groups) block groups; at most \(Self.groupCountLimit) are read",
        remedy: "the file system is damaged, or larger than this version follows")
    }
    groupCount = Int(groups)
    guard UInt64(inodeCount) == groups * UInt64(inodesPerGroup) else {
      throw Self.damaged("\(inodeCount) inodes are not \(groups) groups of \(inodesPerGroup)")
    }
    guard blockCount * UInt64(blockSize) <= diskSize else {
      throw IntegrityError(
        .truncated, "the file system has \(blockCount) blocks of \(blockSize) bytes, the disk only \(diskSize) bytes",
        remedy: "give the whole image; a copy that was cut short cannot be used")
    }
  }

  /// How many blocks each group's inode table takes.
  public var inodeTableBlocks: UInt64 {
    (UInt64(inodesPerGroup) * UInt64(inodeSize) + UInt64(blockSize) - 1) / UInt64(blockSize)
  }

  /// The first block of the group descriptor table, and how many blocks it takes (32 bytes a group).
  public var descriptorBlocks: Range<UInt64> {
    let first = firstDataBlock + 1
    return first..<first + (UInt64(groupCount) * 32 + UInt64(blockSize) - 1) / UInt64(blockSize)
  }

  /// Directory entries carry the type of the file in a byte of their own.
  public var hasFileTypes: Bool { incompatibleFeatures & 0x2 != 0 }

  /// There is a journal: metadata reaches its place later than the disk shows it.
  public var hasJournal: Bool { compatibleFeatures & 0x4 != 0 }

  /// Whether `other` describes the same file system in the same layout. Counters, labels and times may differ, and so may
  /// the features that change no layout: kernels set some when they are first used (large files, attributes).
  public func hasSameLayout(as other: ExtSuperblock) -> Bool {
    inodeCount == other.inodeCount && blockCount == other.blockCount && blockSize == other.blockSize
      && firstDataBlock == other.firstDataBlock && blocksPerGroup == other.blocksPerGroup
      && inodesPerGroup == other.inodesPerGroup && inodeSize == other.inodeSize
      && incompatibleFeatures == other.incompatibleFeatures && hasJournal == other.hasJournal
      && uuidHigh == other.uuidHigh && uuidLow == other.uuidLow
  }

  private static func damaged(_ what: String) -> IntegrityError {
    IntegrityError(.damaged, "damaged superblock: \(what)", remedy: "check the file system with e2fsck on a copy")
  }
}

extension ExtSuperblock {
  private static let knownIncompatible: UInt32 = 0x2
  private static let incompatibleNames: [(UInt32, String)] = [
    (0x1, "compression"), (0x4, "needs_recovery (a journal that must be replayed)"), (0x8, "journal_dev"),
    (0x10, "meta_bg"), (0x40, "extent"), (0x80, "64bit"), (0x100, "mmp"), (0x200, "flex_bg"), (0x400, "ea_inode"),
    (0x1000, "dirdata"), (0x2000, "metadata_csum_seed"), (0x4000, "large_dir"), (0x8000, "inline_data"),
    (0x10000, "encrypt"), (0x20000, "casefold"),
  ]

  private static func checkFeatures(revision: UInt32, incompatible: UInt32) throws(IntegrityError) {
    guard revision <= 1 else {
      throw IntegrityError(
        .unsupported, "file system revision \(revision); 0 and 1 are known", remedy: "this is not an ext2 file system")
    }
    var unknown = incompatible & ~knownIncompatible
    guard unknown != 0 else { return }
    var names: [String] = []
    for (bit, name) in incompatibleNames where unknown & bit != 0 {
      names.append(name)
      unknown &= ~bit
    }
    if unknown != 0 { names.append("0x" + String(unknown, radix: 16)) }
    throw IntegrityError(
      .unsupported, "the file system uses features that are not followed yet: \(names.joined(separator: ", "))",
      remedy: "only plain ext2 is followed; ext3 and ext4 are not supported yet")
  }
}

/// Where the parts of one block group lie.
struct ExtGroup: Hashable, Sendable {
  var blockBitmap: UInt32
  var inodeBitmap: UInt32
  var inodeTable: UInt32

  /// - Precondition: 32 bytes from `offset` on lie in `bytes`.
  init(_ bytes: RawSpan, at offset: Int) {
    blockBitmap = bytes.u32le(offset)
    inodeBitmap = bytes.u32le(offset + 4)
    inodeTable = bytes.u32le(offset + 8)
  }
}
