internal import VMFenceCore

/// Checks the checksums of metadata (`metadata_csum`, and `uninit_bg` for group descriptors). Without those features
/// everything is right.
///
/// Source: `ext4_group_desc_csum`, `ext4_inode_csum`, `ext4_extent_block_csum`, `ext4_dirblock_csum`, `ext4_dx_csum`,
/// `ext4_xattr_block_csum` and `ext4_block_bitmap_csum_verify` in `fs/ext4` of Linux.
struct ExtChecksums: Hashable, Sendable {
  private let isOn: Bool
  private let hasGroupChecksums: Bool
  private let seed: UInt32
  private let uuid: (UInt64, UInt64)

  static func == (a: ExtChecksums, b: ExtChecksums) -> Bool {
    a.isOn == b.isOn && a.hasGroupChecksums == b.hasGroupChecksums && a.seed == b.seed && a.uuid == b.uuid
  }

  func hash(into hasher: inout Hasher) { hasher.combine(seed) }

  init(_ superblock: ExtSuperblock) {
    isOn = superblock.features.hasMetadataChecksums
    hasGroupChecksums = superblock.features.hasGroupChecksums
    seed = superblock.checksumSeed
    uuid = (superblock.uuidHigh, superblock.uuidLow)
  }

  /// What the checksums of an inode's own blocks begin with.
  func seed(ofInode number: UInt32, generation: UInt32) -> UInt32 {
    guard isOn else { return 0 }
    var crc = CRC32C(state: seed)
    crc.update(littleEndian: number)
    crc.update(littleEndian: generation)
    return crc.state
  }

  /// - Precondition: `descriptor` is one group descriptor, 32 bytes or more.
  func isRight(descriptor: RawSpan, group: UInt32) -> Bool {
    let size = descriptor.byteCount
    if isOn {
      var crc = CRC32C(state: seed)
      crc.update(littleEndian: group)
      crc.update(descriptor.extracting(0..<30))
      crc.update(zeroes: 2)
      crc.update(descriptor.extracting(32..<size))
      return UInt16(truncatingIfNeeded: crc.state) == descriptor.u16le(30)
    }
    guard hasGroupChecksums else { return true }
    var crc = CRC16()
    var head: [UInt8] = []
    for half in [uuid.0, uuid.1] {
      for shift in stride(from: 56, through: 0, by: -8) {
        head.append(UInt8(truncatingIfNeeded: half >> UInt64(shift)))
      }
    }
    for shift in [0, 8, 16, 24] as [UInt32] { head.append(UInt8(truncatingIfNeeded: group >> shift)) }
    head.withRawSpan { crc.update($0) }
    crc.update(descriptor.extracting(0..<30))
    if size > 32 { crc.update(descriptor.extracting(32..<size)) }
    return crc.state == descriptor.u16le(30)
  }

  /// - Precondition: `inode` is one whole inode, 128 bytes or more.
  func isRight(inode: RawSpan, number: UInt32) -> Bool {
    guard isOn else { return true }
    var crc = CRC32C(state: seed(ofInode: number, generation: inode.u32le(100)))
    crc.update(inode.extracting(0..<124))
    crc.update(zeroes: 2)
    crc.update(inode.extracting(126..<128))
    var stored = UInt32(inode.u16le(124))
    guard inode.byteCount > 128 else { return UInt16(truncatingIfNeeded: crc.state) == UInt16(stored) }
    crc.update(inode.extracting(128..<130))
    let hasHigh = inode.u16le(128) >= 4
    if hasHigh {
      crc.update(zeroes: 2)
      stored |= UInt32(inode.u16le(130)) << 16
    } else {
      crc.update(inode.extracting(130..<132))
    }
    crc.update(inode.extracting(132..<inode.byteCount))
    return hasHigh ? crc.state == stored : UInt16(truncatingIfNeeded: crc.state) == UInt16(stored)
  }

  /// - Precondition: `tail`, where the checksum lies, is at most the size of the block less 4.
  func isRight(extentBlock: RawSpan, tail: Int, inodeSeed: UInt32) -> Bool {
    guard isOn else { return true }
    var crc = CRC32C(state: inodeSeed)
    crc.update(extentBlock.extracting(0..<tail))
    return crc.state == extentBlock.u32le(tail)
  }

  /// A block of names, or of a hashed directory's index.
  func isRight(directoryBlock block: RawSpan, inodeSeed: UInt32, isIndexRoot: Bool) -> Bool {
    guard isOn, block.byteCount >= 64 else { return true }
    let size = block.byteCount
    // Not an index: the last twelve bytes look like an unused entry of type 0xDE.
    if block.u32le(size - 12) == 0, block.u32le(size - 8) == 0xDE00_000C {
      var crc = CRC32C(state: inodeSeed)
      crc.update(block.extracting(0..<size - 12))
      return crc.state == block.u32le(size - 4)
    }
    let length = Int(block.u16le(4))
    let isNode = block.u32le(0) == 0 && (length == size || size == 65_536 && (length == 0 || length == 65_535))
    guard isIndexRoot || isNode else { return false }
    let countOffset = isIndexRoot ? 32 : 8
    let limit = Int(block.u16le(countOffset))
    let count = Int(block.u16le(countOffset + 2))
    let tail = countOffset + limit * 8
    guard count <= limit, tail + 8 <= size else { return false }
    var crc = CRC32C(state: inodeSeed)
    crc.update(block.extracting(0..<countOffset + count * 8))
    crc.update(block.extracting(tail..<tail + 4))
    crc.update(zeroes: 4)
    return crc.state == block.u32le(tail + 4)
  }

  func isRight(attributeBlock: RawSpan, number: UInt64) -> Bool {
    guard isOn else { return true }
    var crc = CRC32C(state: seed)
    crc.update(littleEndian: UInt32(truncatingIfNeeded: number))
    crc.update(littleEndian: UInt32(truncatingIfNeeded: number >> 32))
    crc.update(attributeBlock.extracting(0..<16))
    crc.update(zeroes: 4)
    crc.update(attributeBlock.extracting(20..<attributeBlock.byteCount))
    return crc.state == attributeBlock.u32le(16)
  }

  /// `stored`: the checksum from the group's descriptor, of which only the low half is there when `isWide` is false.
  func isRight(bitmap: RawSpan, stored: UInt32, isWide: Bool) -> Bool {
    guard isOn else { return true }
    var crc = CRC32C(state: seed)
    crc.update(bitmap)
    return isWide ? crc.state == stored : UInt16(truncatingIfNeeded: crc.state) == UInt16(truncatingIfNeeded: stored)
  }
}
