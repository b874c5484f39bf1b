public import VMFenceCore

/// One inode, as the disk has it. Nothing in it is trusted: who uses a block number or a size checks it then.
///
/// Source: `struct ext2_inode` in `fs/ext2/ext2.h`, `struct ext4_inode` in `fs/ext4/ext4.h`.
public struct ExtInode: Hashable, Sendable {
  public enum Kind: UInt8, Hashable, Sendable {
    case fifo = 1
    case characterDevice = 2
    case directory = 4
    case blockDevice = 6
    case regular = 8
    case symbolicLink = 10
    case socket = 12
    /// A type that no file has.
    case unknown = 0
  }

  /// Type and permissions, as `st_mode`.
  public let mode: UInt16
  public let userID: UInt32
  public let groupID: UInt32
  /// 0 where the file system has no project quotas.
  public let projectID: UInt32
  /// In bytes.
  public let size: UInt64
  public let linkCount: UInt16
  /// Since the epoch.
  public let accessTime: Timestamp
  public let changeTime: Timestamp
  public let modificationTime: Timestamp
  /// Nil where the inode has no room for it.
  public let creationTime: Timestamp?
  /// Zero while the file lives; seconds, or the next orphan's number, when it was deleted.
  public let deletionTime: UInt32
  /// In units of 512 bytes, metadata blocks included.
  public let sectorCount: UInt64
  public let flags: UInt32
  /// Drawn anew each time the inode is used for another file.
  public let generation: UInt32
  /// The block with extended attributes; 0 when there is none.
  public let attributeBlock: UInt64
  /// `i_block`, 60 bytes as fifteen numbers: twelve direct block numbers and one of each level of indirection, the root
  /// of a tree of extents, or contents.
  public let blocks: [UInt32]
  /// The raw bytes of extended attributes inside the inode, from their magic number on; empty when there are none.
  public let inlineAttributes: [UInt8]
  /// The inode's checksum fits it; true where there are none.
  public let isChecksumRight: Bool
  /// The size said to be used past byte 128 does not fit the inode.
  let isExtraSizeWrong: Bool
  /// How short symbolic links are told from long ones.
  private let isShortByCount: Bool

  /// - `bytes`: one inode, `superblock.inodeSize` bytes.
  init(_ bytes: RawSpan, superblock: ExtSuperblock, isChecksumRight: Bool) {
    let inodeSize = bytes.byteCount
    mode = bytes.u16le(0)
    userID = UInt32(bytes.u16le(2)) | UInt32(bytes.u16le(120)) << 16
    groupID = UInt32(bytes.u16le(24)) | UInt32(bytes.u16le(122)) << 16
    let kind = mode >> 12
    let hasLargeSize = kind == 8 || kind == 4 && superblock.features.hasLargeDirectories
    size = UInt64(bytes.u32le(4)) | (hasLargeSize ? UInt64(bytes.u32le(108)) << 32 : 0)
    linkCount = bytes.u16le(26)
    deletionTime = bytes.u32le(20)
    flags = bytes.u32le(32)
    generation = bytes.u32le(100)
    let isHuge = superblock.features.hasHugeFiles
    let count = UInt64(bytes.u32le(28)) | (isHuge ? UInt64(bytes.u16le(116)) << 32 : 0)
    sectorCount = isHuge && flags & Flags.hugeFile != 0 ? count * UInt64(superblock.blockSize / 512) : count
    attributeBlock =
      UInt64(bytes.u32le(104)) | (superblock.features.is64Bit ? UInt64(bytes.u16le(118)) << 32 : 0)
    var blocks: [UInt32] = []
    blocks.reserveCapacity(15)
    for index in 0..<15 { blocks.append(bytes.u32le(40 + index * 4)) }
    self.blocks = blocks
    isShortByCount = !superblock.features.hasAttributeInodes
    self.isChecksumRight = isChecksumRight

    // What lies past byte 128 is there only as far as i_extra_isize says; a size that does not fit is none.
    var extra = inodeSize > 128 + 4 ? Int(bytes.u16le(128)) : 0
    isExtraSizeWrong = extra > inodeSize - 128 || extra & 3 != 0
    if isExtraSizeWrong { extra = 0 }
    func time(_ field: Int, _ extraField: Int) -> Timestamp {
      let seconds = Int64(Int32(bitPattern: bytes.u32le(field)))
      guard extraField + 4 <= 128 + extra else { return Timestamp(seconds: seconds) }
      let more = bytes.u32le(extraField)
      return Timestamp(seconds: seconds + Int64(more & 3) << 32, nanoseconds: Int64(more >> 2))
    }
    accessTime = time(8, 140)
    changeTime = time(12, 132)
    modificationTime = time(16, 136)
    creationTime = extra >= 24 ? time(144, 148) : nil
    projectID = superblock.features.hasProjects && extra >= 32 ? bytes.u32le(156) : 0
    let attributes = 128 + extra
    if extra > 0, attributes + 4 <= inodeSize, bytes.u32le(attributes) == 0xEA02_0000 {
      inlineAttributes = bytes.extracting(attributes..<inodeSize).copiedBytes()
    } else {
      inlineAttributes = []
    }
  }

  /// Source: `EXT4_*_FL` in `fs/ext4/ext4.h`.
  enum Flags {
    static let encrypted: UInt32 = 0x800
    static let index: UInt32 = 0x1000
    static let hugeFile: UInt32 = 0x4_0000
    static let extents: UInt32 = 0x8_0000
    static let verity: UInt32 = 0x10_0000
    static let attributeInode: UInt32 = 0x20_0000
    static let inlineData: UInt32 = 0x1000_0000
    static let casefolded: UInt32 = 0x4000_0000
  }

  public var kind: Kind { Kind(rawValue: UInt8(mode >> 12)) ?? .unknown }

  /// The permission bits with set-user-ID, set-group-ID and sticky.
  public var permissions: UInt16 { mode & 0o7777 }

  /// Whether the disk has this inode as one that is in use. A name may reach the disk before the inode it means.
  public var isInUse: Bool { mode != 0 && linkCount != 0 }

  /// Whether only the access and change times differ, as after a rename of one of its names.
  func isSameButForTimes(_ other: ExtInode) -> Bool {
    mode == other.mode && userID == other.userID && groupID == other.groupID && size == other.size
      && linkCount == other.linkCount && modificationTime == other.modificationTime && flags == other.flags
      && generation == other.generation && attributeBlock == other.attributeBlock && blocks == other.blocks
      && inlineAttributes == other.inlineAttributes
  }

  /// Contents, names or a link's target are encrypted by the guest: what is read here is ciphertext.
  public var isEncrypted: Bool { flags & Flags.encrypted != 0 }
  /// Names in this directory are compared without regard to case.
  public var isCasefolded: Bool { flags & Flags.casefolded != 0 }
  public var isVerity: Bool { flags & Flags.verity != 0 }
  public var hasExtents: Bool { flags & Flags.extents != 0 }
  /// Contents, or names, lie in the inode itself.
  public var hasInlineData: Bool { flags & Flags.inlineData != 0 }

  /// Whether `blocks` lead to blocks: not so in devices, inodes with inline data and in symbolic links short enough to lie
  /// in the inode.
  public func hasBlocks(blockSize: Int) -> Bool {
    if hasInlineData { return false }
    switch kind {
    case .regular, .directory: return true
    case .symbolicLink:
      if hasExtents { return true }
      if !isShortByCount { return size >= 60 }
      return Int64(clamping: sectorCount) - (attributeBlock == 0 ? 0 : Int64(blockSize / 512)) > 0
    default: return false
    }
  }

  /// The target of a symbolic link that lies in the block numbers of the inode; nil when it does not, or cannot.
  public func inlineTarget(blockSize: Int) -> [UInt8]? {
    guard kind == .symbolicLink, !hasInlineData, !hasBlocks(blockSize: blockSize), size > 0, size < 60 else {
      return nil
    }
    return blockBytes(0..<Int(size))
  }

  /// Bytes of `i_block`.
  ///
  /// - Precondition: the range lies in 0..<60.
  func blockBytes(_ range: Range<Int>) -> [UInt8] {
    range.map { UInt8(truncatingIfNeeded: blocks[$0 / 4] >> UInt32($0 % 4 * 8)) }
  }

  /// The number of a device, as major and minor; nil for other kinds (`new_decode_dev`).
  public var device: (major: UInt32, minor: UInt32)? {
    guard kind == .characterDevice || kind == .blockDevice else { return nil }
    if blocks[0] != 0 { return (blocks[0] >> 8 & 0xFF, blocks[0] & 0xFF) }
    return (blocks[1] >> 8 & 0xFFF, blocks[1] & 0xFF | blocks[1] >> 12 & 0xFFF00)
  }
}
