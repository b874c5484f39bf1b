internal import VMFenceCore

/// A name in a directory.
struct ExtDirectoryEntry: Hashable, Sendable {
  /// As the disk has it: one to 255 bytes, neither `/` nor NUL in it, not `.` and not `..`.
  var name: [UInt8]
  /// 1 up to the number of inodes.
  var inode: UInt32
}

/// The names in one block of a directory, or in the part of a directory that lies in its inode. Blocks of a hashed
/// directory's index read as blocks without names.
struct ExtDirectoryBlock {
  private(set) var entries: [ExtDirectoryEntry] = []
  /// What is wrong with the block; nil when nothing is. Names before the damage are good.
  private(set) var damage: String?

  /// Reads entries until the end of the block or the first record that cannot be.
  ///
  /// - `bytes`: one block.
  /// - `isFirst`: the directory's first block, where `.` and `..` stand.
  /// - `isEncrypted`: names are ciphertext, in which any byte may be.
  init(_ bytes: RawSpan, superblock: ExtSuperblock, isFirst: Bool, isEncrypted: Bool = false) {
    parse(bytes, superblock: superblock, isFirst: isFirst, isEncrypted: isEncrypted)
  }

  mutating func reportChecksum() { report("a wrong checksum") }

  private mutating func parse(_ bytes: RawSpan, superblock: ExtSuperblock, isFirst: Bool, isEncrypted: Bool) {
    let blockSize = bytes.byteCount
    var offset = 0
    var record = 0
    while offset < blockSize {
      guard blockSize - offset >= 8 else { return report("a record of \(blockSize - offset) bytes at byte \(offset)") }
      let inode = bytes.u32le(offset)
      var length = Int(bytes.u16le(offset + 4))
      // A record of 65,536 bytes does not fit the field: 0 and 65,535 stand for it (ext4_rec_len_from_disk).
      if blockSize == 65_536, length == 0 || length == 65_535 { length = blockSize }
      let nameLength =
        superblock.features.hasFileTypes ? Int(bytes.u8(offset + 6)) : Int(bytes.u16le(offset + 6))
      guard length >= 12, length & 3 == 0, length <= blockSize - offset else {
        return report("record length \(length) at byte \(offset)")
      }
      guard nameLength <= 255, 8 + nameLength <= length else {
        return report("name length \(nameLength) in a record of \(length) bytes at byte \(offset)")
      }
      if inode != 0 {
        add(
          bytes.extracting(offset + 8..<offset + 8 + nameLength).copiedBytes(), inode: inode, at: offset,
          inodeCount: superblock.inodeCount, mayBeDot: isFirst && record < 2, isEncrypted: isEncrypted)
      }
      offset += length
      record += 1
    }
  }

  private mutating func add(
    _ name: [UInt8], inode: UInt32, at offset: Int, inodeCount: UInt32, mayBeDot: Bool, isEncrypted: Bool
  ) {
    if name == [0x2E] || name == [0x2E, 0x2E] {
      if !mayBeDot { report("a second . or .. at byte \(offset)") }
    } else if name.isEmpty {
      report("an empty name at byte \(offset)")
    } else if inode > inodeCount {
      report("inode \(inode) of \(inodeCount) at byte \(offset)")
    } else if isEncrypted {
      // Shown, and matched, in a form in which no byte can be taken for a part of a path.
      entries.append(ExtDirectoryEntry(name: Self.hexadecimal(name), inode: inode))
    } else if name.contains(0x2F) || name.contains(0) {
      report("a name with a slash or NUL in it at byte \(offset)")
    } else {
      entries.append(ExtDirectoryEntry(name: name, inode: inode))
    }
  }

  private static func hexadecimal(_ name: [UInt8]) -> [UInt8] {
    Array("encrypted:".utf8) + name.flatMap { Array($0.hexadecimal(width: 2).utf8) }
  }

  private mutating func report(_ what: String) {
    if damage == nil { damage = "damaged directory block: " + what }
  }
}
