internal import VMFenceCore

extension ExtFileSystem {
  /// Checks the checksums of the bitmaps of blocks and inodes. Nothing here is read from the bitmaps; a wrong one says that
  /// the guest's kernel would not trust the group either.
  public func checkBitmaps(damage: inout DamageLog) {
    guard superblock.features.hasMetadataChecksums else { return }
    let size = superblock.descriptorSize
    let perBlock = superblock.descriptorsPerBlock
    var descriptors: [UInt8] = []
    for (index, group) in groups.enumerated() {
      if index % perBlock == 0 || descriptors.isEmpty {
        guard (try? readBlock(superblock.descriptorBlock(index / perBlock), into: &descriptors)) != nil else { return }
      }
      let at = index % perBlock * size
      let isWide = size >= 64
      let (flags, blocks, inodes) = descriptors.withRawSpan { bytes in
        (
          bytes.u16le(at + 18),
          UInt32(bytes.u16le(at + 24)) | (isWide ? UInt32(bytes.u16le(at + 56)) << 16 : 0),
          UInt32(bytes.u16le(at + 26)) | (isWide ? UInt32(bytes.u16le(at + 58)) << 16 : 0)
        )
      }
      let parts = [
        (group.blockBitmap, blocks, Int(superblock.blocksPerGroup / superblock.blocksPerCluster) / 8, 0x2, "blocks"),
        (group.inodeBitmap, inodes, Int(superblock.inodesPerGroup) / 8, 0x1, "inodes"),
      ]
      for (block, stored, count, uninitialised, name) in parts where flags & UInt16(uninitialised) == 0 {
        if !isRight(bitmap: block, stored, count, isWide) {
          damage.report(inode: 0, "a wrong checksum of the bitmap of \(name) of group \(index)")
        }
      }
    }
  }

  private func isRight(bitmap block: UInt64, _ stored: UInt32, _ count: Int, _ isWide: Bool) -> Bool {
    var buffer: [UInt8] = []
    guard (try? readBlock(block, into: &buffer)) != nil, count <= buffer.count else { return false }
    return buffer.withRawSpan { checksums.isRight(bitmap: $0.extracting(0..<count), stored: stored, isWide: isWide) }
  }
}
