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
  /// In bytes.
  public let size: UInt64
  public let linkCount: UInt16
  /// Since the epoch.
  public let accessTime: Timestamp
  public let changeTime: Timestamp
  public let modificationTime: Timestamp
  /// Zero while the file lives; seconds, or the next orphan's number, when it was deleted.
  public let deletionTime: UInt32
  /// In units of 512 bytes, metadata blocks included.
  public let sectorCount: UInt32
  public let flags: UInt32
  /// Drawn anew each time the inode is used for another file.
  public let generation: UInt32
  /// The block with extended attributes; 0 when there is none.
  public let attributeBlock: UInt32
  /// `i_block`: twelve direct block numbers, one of each level of indirection; for short symbolic links and devices
  /// something else.
  public let blocks: [UInt32]
  /// The raw bytes of extended attributes inside the inode; empty when there are none.
  public let inlineAttributes: [UInt8]

  /// - Precondition: `inodeSize` (128 at least) bytes from `offset` on lie in `bytes`.
  init(_ bytes: RawSpan, at offset: Int, inodeSize: Int) {
    mode = bytes.u16le(offset)
    userID = UInt32(bytes.u16le(offset + 2)) | UInt32(bytes.u16le(offset + 120)) << 16
    groupID = UInt32(bytes.u16le(offset + 24)) | UInt32(bytes.u16le(offset + 122)) << 16
    let isRegular = mode >> 12 == 8
    size = UInt64(bytes.u32le(offset + 4)) | (isRegular ? UInt64(bytes.u32le(offset + 108)) << 32 : 0)
    linkCount = bytes.u16le(offset + 26)
    deletionTime = bytes.u32le(offset + 20)
    sectorCount = bytes.u32le(offset + 28)
    flags = bytes.u32le(offset + 32)
    generation = bytes.u32le(offset + 100)
    attributeBlock = bytes.u32le(offset + 104)
    var blocks: [UInt32] = []
    blocks.reserveCapacity(15)
    for index in 0..<15 { blocks.append(bytes.u32le(offset + 40 + index * 4)) }
    self.blocks = blocks

    // What lies past byte 128 is there only as far as i_extra_isize says; a size that does not fit is none.
    var extra = inodeSize > 128 + 4 ? Int(bytes.u16le(offset + 128)) : 0
    if extra > inodeSize - 128 || extra & 3 != 0 { extra = 0 }
    func time(_ field: Int, _ extraField: Int) -> Timestamp {
      let seconds = Int64(Int32(bitPattern: bytes.u32le(offset + field)))
      guard extraField + 4 <= 128 + extra else { return Timestamp(seconds: seconds) }
      let more = bytes.u32le(offset + extraField)
      return Timestamp(seconds: seconds + Int64(more & 3) << 32, nanoseconds: Int64(more >> 2))
    }
    accessTime = time(8, 140)
    changeTime = time(12, 132)
    modificationTime = time(16, 136)
    let attributes = 128 + extra
    if extra > 0, attributes + 4 <= inodeSize, bytes.u32le(offset + attributes) == 0xEA02_0000 {
      inlineAttributes = bytes.extracting(offset + attributes..<offset + inodeSize).copiedBytes()
    } else {
      inlineAttributes = []
    }
  }

  public var kind: Kind { Kind(rawValue: UInt8(mode >> 12)) ?? .unknown }

  /// The permission bits with set-user-ID, set-group-ID and sticky.
  public var permissions: UInt16 { mode & 0o7777 }

  /// Whether the disk has this inode as one that is in use. A name may reach the disk before the inode it means.
  public var isInUse: Bool { mode != 0 && linkCount != 0 }

  /// Whether `blocks` are block numbers: not so in devices and in symbolic links short enough to lie in the inode.
  public func hasBlocks(blockSize: Int) -> Bool {
    switch kind {
    case .regular, .directory: true
    case .symbolicLink: Int64(sectorCount) - (attributeBlock == 0 ? 0 : Int64(blockSize / 512)) > 0
    default: false
    }
  }

  /// The target of a symbolic link that lies in the inode; nil when it does not, or cannot.
  public func inlineTarget(blockSize: Int) -> [UInt8]? {
    guard kind == .symbolicLink, !hasBlocks(blockSize: blockSize), size > 0, size < 60 else { return nil }
    var target: [UInt8] = []
    for index in 0..<Int(size) { target.append(UInt8(truncatingIfNeeded: blocks[index / 4] >> UInt32(index % 4 * 8))) }
    return target
  }
}
