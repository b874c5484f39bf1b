internal import VMFenceCore

/// What a block is to the inode that has it.
package enum BlockRole: UInt8, Hashable, Sendable {
  /// Contents of a file or of a long symbolic link.
  case data = 1
  /// Names of a directory.
  case directory = 2
  /// Block numbers; the level says how many steps above the contents.
  case indirect1 = 3
  case indirect2 = 4
  case indirect3 = 5
  /// Extended attributes.
  case attributes = 6
  /// Inodes; the number is that of the first.
  case inodeTable = 7
  case superblock = 8
  case descriptors = 9

  static func indirect(level: Int) -> BlockRole {
    switch level {
    case 1: .indirect1
    case 2: .indirect2
    default: .indirect3
    }
  }
}

/// The blocks of one file, and what its indirect blocks say, so that a change of one block number costs no more than
/// what hangs from it.
struct ExtBlockTree: Sendable {
  /// One block that came to belong, or ceased to belong, to the file.
  struct Change {
    var isClaim: Bool
    /// 0 for contents, 1 to 3 for indirect blocks.
    var level: Int
    /// The block's place in the file; for an indirect block, that of the first block it leads to.
    var fileBlock: UInt32
    var block: UInt64
  }

  struct IndirectKey: Hashable {
    var level: UInt8
    var base: UInt32
  }

  private(set) var root = [UInt32](repeating: 0, count: 15)
  /// The numbers in each indirect block, up to the last that is not zero.
  private(set) var indirect: [IndirectKey: [UInt32]] = [:]

  /// Takes over other numbers from the inode; what changed is added to `changes`.
  mutating func update(root new: [UInt32], in fileSystem: ExtFileSystem, work: inout TreeWork) {
    let pointers = UInt64(fileSystem.blockSize / 4)
    let bases: [UInt64] = [12, 12 + pointers, 12 + pointers + pointers * pointers]
    for index in 0..<15 where new[index] != root[index] {
      let level = max(0, index - 11)
      let base = index < 12 ? UInt64(index) : bases[index - 12]
      release(UInt64(root[index]), level: level, base: base, in: fileSystem, work: &work)
      claim(UInt64(new[index]), level: level, base: base, in: fileSystem, work: &work)
      root[index] = new[index]
    }
  }

  /// Takes over other contents of an indirect block of this file.
  mutating func updateIndirect(
    level: Int, base: UInt32, bytes: [UInt8], in fileSystem: ExtFileSystem, work: inout TreeWork
  ) {
    let key = IndirectKey(level: UInt8(level), base: base)
    guard let old = indirect[key] else { return }
    let new = Self.pointers(bytes)
    work.cachedBytes += (new.count - old.count) * 4
    indirect[key] = new
    let step = Self.span(level: level - 1, blockSize: fileSystem.blockSize)
    for index in 0..<max(old.count, new.count) {
      let before = index < old.count ? old[index] : 0
      let after = index < new.count ? new[index] : 0
      guard before != after else { continue }
      let child = UInt64(base) + UInt64(index) * step
      release(UInt64(before), level: level - 1, base: child, in: fileSystem, work: &work)
      claim(UInt64(after), level: level - 1, base: child, in: fileSystem, work: &work)
    }
  }

  /// Gives up all blocks.
  mutating func releaseAll(in fileSystem: ExtFileSystem, work: inout TreeWork) {
    update(root: [UInt32](repeating: 0, count: 15), in: fileSystem, work: &work)
  }

  /// The places in the file whose block is another one than in `old`, with the block that is there now (0 for none),
  /// in the order of the file.
  func differences(from old: ExtBlockTree, blockSize: Int) -> [(fileBlock: UInt32, block: UInt32)] {
    var result: [(fileBlock: UInt32, block: UInt32)] = []
    let pointers = UInt64(blockSize / 4)
    let bases: [UInt64] = [12, 12 + pointers, 12 + pointers + pointers * pointers]
    for index in 0..<15 {
      let level = max(0, index - 11)
      let base = index < 12 ? UInt64(index) : bases[index - 12]
      compare(old, (old.root[index], root[index]), level: level, base: base, blockSize: blockSize, &result)
    }
    return result
  }

  /// Calls itself at most three deep.
  private func compare(
    _ old: ExtBlockTree, _ blocks: (old: UInt32, new: UInt32), level: Int, base: UInt64, blockSize: Int,
    _ result: inout [(fileBlock: UInt32, block: UInt32)]
  ) {
    guard base <= UInt64(UInt32.max) else { return }
    guard level > 0 else {
      if blocks.old != blocks.new { result.append((UInt32(base), blocks.new)) }
      return
    }
    let key = IndirectKey(level: UInt8(level), base: UInt32(base))
    let before = old.indirect[key] ?? []
    let after = indirect[key] ?? []
    if level == 1, before == after { return }
    let step = Self.span(level: level - 1, blockSize: blockSize)
    for index in 0..<max(before.count, after.count) {
      let pair = (index < before.count ? before[index] : 0, index < after.count ? after[index] : 0)
      if pair == (0, 0) { continue }
      compare(old, pair, level: level - 1, base: base + UInt64(index) * step, blockSize: blockSize, &result)
    }
  }

  /// Calls itself at most three deep: `level` falls with each call, whatever the disk says.
  private mutating func claim(
    _ block: UInt64, level: Int, base: UInt64, in fileSystem: ExtFileSystem, work: inout TreeWork
  ) {
    guard block != 0, base <= UInt64(UInt32.max) else { return }
    guard fileSystem.isOwnable(block) else { return work.report("block number \(block) is not one a file can have") }
    guard work.budget > 0 else { return work.report("it maps more blocks than the file system has") }
    work.budget -= 1
    work.changes.append(Change(isClaim: true, level: level, fileBlock: UInt32(base), block: block))
    guard level > 0 else { return }
    do {
      try fileSystem.readBlock(block, into: &work.buffer)
    } catch {
      return work.report("its indirect block \(block) cannot be read: \(error.message)")
    }
    let pointers = Self.pointers(work.buffer)
    guard work.cachedBytes + pointers.count * 4 <= work.cachedBytesLimit else {
      return work.report("its block map is larger than the limit of \(work.cachedBytesLimit) bytes")
    }
    work.cachedBytes += pointers.count * 4
    indirect[IndirectKey(level: UInt8(level), base: UInt32(base))] = pointers
    let step = Self.span(level: level - 1, blockSize: fileSystem.blockSize)
    for (index, pointer) in pointers.enumerated() where pointer != 0 {
      claim(UInt64(pointer), level: level - 1, base: base + UInt64(index) * step, in: fileSystem, work: &work)
      if work.budget == 0 { break }
    }
  }

  private mutating func release(
    _ block: UInt64, level: Int, base: UInt64, in fileSystem: ExtFileSystem, work: inout TreeWork
  ) {
    guard block != 0, base <= UInt64(UInt32.max), fileSystem.isOwnable(block) else { return }
    work.changes.append(Change(isClaim: false, level: level, fileBlock: UInt32(base), block: block))
    guard level > 0,
      let pointers = indirect.removeValue(forKey: IndirectKey(level: UInt8(level), base: UInt32(base)))
    else { return }
    work.cachedBytes -= pointers.count * 4
    let step = Self.span(level: level - 1, blockSize: fileSystem.blockSize)
    for (index, pointer) in pointers.enumerated() where pointer != 0 {
      release(UInt64(pointer), level: level - 1, base: base + UInt64(index) * step, in: fileSystem, work: &work)
    }
  }

  /// How many file blocks one number at `level` leads to.
  private static func span(level: Int, blockSize: Int) -> UInt64 {
    let pointers = UInt64(blockSize / 4)
    return switch level {
    case 0: 1
    case 1: pointers
    default: pointers * pointers
    }
  }

  private static func pointers(_ bytes: [UInt8]) -> [UInt32] {
    bytes.withRawSpan { span in
      var count = span.byteCount / 4
      while count > 0, span.u32le(count * 4 - 4) == 0 { count -= 1 }
      var result: [UInt32] = []
      result.reserveCapacity(count)
      for index in 0..<count { result.append(span.u32le(index * 4)) }
      return result
    }
  }
}

/// What one update of a tree may cost, what it changed, and what it found wrong.
struct TreeWork {
  /// How many more blocks may be claimed.
  var budget: Int
  /// Bytes of block numbers held, over all trees of the view.
  var cachedBytes: Int
  var cachedBytesLimit: Int
  var changes: [ExtBlockTree.Change] = []
  var damage: String?
  var buffer: [UInt8] = []

  init(budget: Int, cachedBytes: Int = 0, cachedBytesLimit: Int = .max) {
    self.budget = budget
    self.cachedBytes = cachedBytes
    self.cachedBytesLimit = cachedBytesLimit
  }

  mutating func report(_ what: String) {
    if damage == nil { damage = what }
  }
}
