import VMFenceCore

/// A journal on a tiny disk, laid out by hand: inode 8, blocks 100 to 131 of the disk, block 0 of the journal its
/// superblock, without checksums.
struct TinyJournal {
  static let first = 100
  static let length = 32
  private(set) var position = 1
  private(set) var sequence: UInt32 = 5

  /// Makes a disk an ext3 one.
  init(on disk: inout TinyDisk, isDirty: Bool) {
    disk.put32(0x4, at: 1024 + 92)
    disk.put32(0x2 | (isDirty ? 0x4 : 0), at: 1024 + 96)
    disk.put32(8, at: 1024 + 224)
    disk.putInode(
      8,
      .init(mode: 0o100600, size: UInt32(Self.length * 1024), blocks: (0..<12).map { UInt32(Self.first + $0) } + [99]))
    for index in 0..<Self.length - 12 { disk.put32(UInt32(Self.first + 12 + index), at: 99 * 1024 + index * 4) }
    putSuperblock(on: &disk, start: isDirty ? 1 : 0, sequence: 5)
  }

  static func put(_ value: UInt32, at offset: Int, in disk: inout TinyDisk) {
    disk.put32(value.byteSwapped, at: offset)
  }

  func putSuperblock(on disk: inout TinyDisk, start: UInt32, sequence: UInt32) {
    let base = Self.first * 1024
    for (offset, value) in [
      (0, 0xC03B_3998), (4, 4), (8, 0), (12, 1024), (16, UInt32(Self.length)), (20, 1), (24, sequence), (28, start),
      (36, 0), (40, 1), (64, 1),
    ] as [(Int, UInt32)] {
      Self.put(value, at: base + offset, in: &disk)
    }
  }

  /// Writes a transaction into the log.
  ///
  /// - Returns: the blocks of the disk that it lies in, the commit block last.
  mutating func commit(
    _ copies: [(home: UInt32, bytes: [UInt8])], revoking revoked: [UInt32] = [], on disk: inout TinyDisk
  ) -> [Int] {
    var used: [Int] = []
    func next(_ type: UInt32?, _ position: inout Int) -> Int {
      let block = Self.first + position
      used.append(block)
      position = position + 1 == Self.length ? 1 : position + 1
      for index in block * 1024..<(block + 1) * 1024 { disk.bytes[index] = 0 }
      guard let type else { return block * 1024 }
      for (offset, value) in [(0, magic), (4, type), (8, sequence)] {
        Self.put(value, at: block * 1024 + offset, in: &disk)
      }
      return block * 1024
    }
    if !revoked.isEmpty {
      let base = next(5, &position)
      Self.put(UInt32(16 + revoked.count * 4), at: base + 12, in: &disk)
      for (index, block) in revoked.enumerated() { Self.put(block, at: base + 16 + index * 4, in: &disk) }
    }
    if !copies.isEmpty {
      let base = next(1, &position)
      for (index, copy) in copies.enumerated() {
        let isEscaped = copy.bytes.starts(with: [0xC0, 0x3B, 0x39, 0x98])
        let flags: UInt32 = (isEscaped ? 1 : 0) | 2 | (index == copies.count - 1 ? 8 : 0)
        Self.put(copy.home, at: base + 12 + index * 8, in: &disk)
        Self.put(flags, at: base + 16 + index * 8, in: &disk)
        let place = next(nil, &position)
        disk.bytes.replaceSubrange(place..<place + 1024, with: copy.bytes)
        if isEscaped { disk.put32(0, at: place) }
      }
    }
    _ = next(2, &position)
    sequence += 1
    return used
  }
}

private let magic: UInt32 = 0xC03B_3998
