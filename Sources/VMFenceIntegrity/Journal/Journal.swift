internal import VMFenceCore

/// The journal of an ext3 or ext4 file system (JBD2), read and never written: finds committed transactions one after the
/// other, at start from where the guest would recover, and live as their commit blocks come by.
///
/// Source: `include/linux/jbd2.h`, `fs/jbd2/recovery.c` of Linux.
struct Journal: Sendable {
  static let magic: UInt32 = 0xC03B_3998
  static let magicBytes: [UInt8] = [0xC0, 0x3B, 0x39, 0x98]

  /// The parts of the journal's superblock that matter here.
  struct Header: Hashable, Sendable {
    /// In blocks of the journal, its superblock included.
    var length: UInt32
    /// The first block of the log.
    var first: UInt32
    /// The transaction that is expected first in the log.
    var sequence: UInt32
    /// Where the log begins; 0 when it is empty.
    var start: UInt32
    var compatible: UInt32
    var incompatible: UInt32
    var fastCommitBlocks: UInt32
    var seed: UInt32

    var hasOldChecksums: Bool { compatible & 0x1 != 0 }
    var is64Bit: Bool { incompatible & 0x2 != 0 }
    var hasChecksums2: Bool { incompatible & 0x8 != 0 }
    var hasChecksums3: Bool { incompatible & 0x10 != 0 }
    var hasChecksums: Bool { hasChecksums2 || hasChecksums3 }
    var hasFastCommits: Bool { incompatible & 0x20 != 0 }
    /// One past the last block of the log; behind it lie the fast commits.
    var end: UInt32 { hasFastCommits ? length - fastCommitBlocks : length }
    /// Of the log, in blocks.
    var logLength: UInt32 { end - first }
    /// Of a tag in a descriptor block, in bytes (`journal_tag_bytes`).
    var tagSize: Int { hasChecksums3 ? 16 : (hasChecksums2 ? 14 : 12) - (is64Bit ? 0 : 4) }
  }

  private(set) var header: Header
  /// The journal's inode, and where it says that the journal's blocks are on the disk.
  let inode: ExtInode
  let map: ExtBlockMap
  /// The same, in the order of the disk.
  private let runsByBlock: [ExtBlockMap.Run]
  /// Where the next transaction will begin; nil while the log is empty.
  var next: UInt32?
  /// The number of the next transaction.
  var nextSequence: UInt32
  private(set) var notes: [String] = []
  /// How many blocks of its inode lie one after the other from the first on: no log is longer.
  private let mapped: UInt64

  /// Longer journals are not read, in blocks: what is committed in one is held in memory, block by block. Those that mke2fs makes by itself
  /// have 1 GiB at the most.
  static let lengthLimit: UInt32 = 1 << 20

  /// Reads the journal's superblock.
  ///
  /// - `fileSystem`: with nothing of the journal applied.
  /// - Throws: `unsupported`, `damaged`, `inputOutput`.
  init(_ fileSystem: ExtFileSystem) throws(IntegrityError) {
    guard !fileSystem.superblock.hasExternalJournal else {
      throw IntegrityError(
        .unsupported, "the journal lies on a device of its own (external journal), which is not read",
        remedy: "what is committed there is seen only once it is written to this disk")
    }
    inode = try Self.readInode(fileSystem)
    map = try Self.readMap(inode, fileSystem)
    runsByBlock = map.runs.sorted { $0.block < $1.block }
    var buffer: [UInt8] = []
    guard let first = map.runs.first, first.fileBlock == 0 else { throw Self.damaged("it has no first block") }
    try fileSystem.readDiskBlock(first.block, into: &buffer)
    var mapped: UInt64 = 0
    for run in map.runs where UInt64(run.fileBlock) == mapped { mapped = run.end }
    self.mapped = mapped
    header = try Self.readHeader(buffer, blockSize: fileSystem.blockSize, mapped: mapped)
    nextSequence = header.sequence
    next = header.start == 0 ? nil : header.start
  }

  private static func readInode(_ fileSystem: ExtFileSystem) throws(IntegrityError) -> ExtInode {
    var buffer: [UInt8] = []
    let number = fileSystem.superblock.journalInode
    let inode = try fileSystem.inode(number, buffer: &buffer)
    guard inode.kind == .regular, inode.hasBlocks(blockSize: fileSystem.blockSize) else {
      throw damaged("inode \(number) is not a file")
    }
    return inode
  }

  private static func readMap(_ inode: ExtInode, _ fileSystem: ExtFileSystem) throws(IntegrityError) -> ExtBlockMap {
    var work = MapWork(budget: Int(clamping: fileSystem.superblock.blockCount), memory: 4 << 20)
    let map = ExtBlockMap(inode, number: fileSystem.superblock.journalInode, in: fileSystem, work: &work)
    if let damage = work.damage { throw damaged(damage) }
    return map
  }

  /// Whether its inode puts the journal where it was read.
  ///
  /// - `nodes`: blocks with its block numbers may have changed, not the inode alone.
  /// - Throws: when the inode, or one of them, cannot be used any more.
  func isInPlace(_ fileSystem: ExtFileSystem, nodes: Bool) throws(IntegrityError) -> Bool {
    let now = try Self.readInode(fileSystem)
    if !nodes, now == inode { return true }
    return try Self.readMap(now, fileSystem) == map
  }

  /// The superblock as the guest writes it anew.
  ///
  /// - `block`: the first of the journal.
  /// - Throws: as `init` does; then nothing of it may be taken over.
  func readHeader(_ block: [UInt8], blockSize: Int) throws(IntegrityError) -> Header {
    try Self.readHeader(block, blockSize: blockSize, mapped: mapped)
  }

  private static func readHeader(
    _ block: [UInt8], blockSize: Int, mapped: UInt64
  ) throws(IntegrityError) -> Header {
    try block.withRawSpan { bytes throws(IntegrityError) in
      guard bytes.byteCount >= 1024, bytes.u32(0) == magic, bytes.u32(4) == 4 || bytes.u32(4) == 3 else {
        throw damaged("no journal superblock")
      }
      let isOld = bytes.u32(4) == 3
      var seed = CRC32C()
      seed.update(bytes.extracting(48..<64))
      let fastCommits = bytes.u32(84)
      let header = Header(
        length: bytes.u32(16), first: bytes.u32(20), sequence: bytes.u32(24), start: bytes.u32(28),
        compatible: isOld ? 0 : bytes.u32(36), incompatible: isOld ? 0 : bytes.u32(40),
        fastCommitBlocks: fastCommits == 0 ? 256 : fastCommits, seed: seed.state)
      guard bytes.u32(12) == UInt32(blockSize) else {
        throw damaged("its blocks are said to have \(bytes.u32(12)) bytes")
      }
      guard header.incompatible & ~0x3F == 0 else {
        throw IntegrityError(
          .unsupported,
          "the journal uses features that are not followed: 0x\(String(header.incompatible & ~0x3F, radix: 16))",
          remedy: "what is committed in the journal is seen only once it is written to its place")
      }
      if header.hasChecksums {
        var crc = CRC32C()
        crc.update(bytes.extracting(0..<252))
        crc.update(zeroes: 4)
        crc.update(bytes.extracting(256..<1024))
        guard crc.state == bytes.u32(252) else { throw damaged("a wrong checksum of its superblock") }
      }
      guard UInt64(header.length) <= mapped else { throw damaged("\(header.length) blocks in a file of \(mapped)") }
      guard header.length <= lengthLimit else {
        throw IntegrityError(
          .unsupported, "the journal has \(header.length) blocks; at most \(lengthLimit) are followed",
          remedy: "what is committed in the journal is seen only once it is written to its place")
      }
      guard !header.hasFastCommits || header.fastCommitBlocks < header.length else {
        throw damaged("\(header.fastCommitBlocks) blocks of fast commits in \(header.length)")
      }
      guard header.first >= 1, header.first < header.end, header.start < header.end,
        header.start == 0 || header.start >= header.first
      else {
        throw damaged("a log from block \(header.first) to \(header.end) that begins at \(header.start)")
      }
      return header
    }
  }

  /// Takes over a superblock that the guest wrote.
  mutating func update(_ new: Header) { header = new }

  mutating func note(_ text: String) {
    if notes.count < 16, !notes.contains(text) { notes.append(text) }
  }

  func reportDamage(to log: inout DamageLog) {
    for note in notes { log.report(inode: 8, note) }
  }

  static func damaged(_ what: String) -> IntegrityError {
    IntegrityError(
      .damaged, "damaged journal: \(what)", remedy: "check the file system with e2fsck on a copy")
  }

  // MARK: Places

  /// The block of the disk for a block of the journal.
  func diskBlock(_ logical: UInt32) -> UInt64? {
    let runs = map.runs
    var low = 0
    var high = runs.count
    while low < high {
      let middle = (low + high) / 2
      if runs[middle].end <= UInt64(logical) { low = middle + 1 } else { high = middle }
    }
    guard low < runs.count, runs[low].fileBlock <= logical else { return nil }
    return runs[low].block + UInt64(logical - runs[low].fileBlock)
  }

  /// The block of the journal that a block of the disk is; nil for all others.
  func logicalBlock(_ block: UInt64) -> UInt32? {
    let low = firstRun(endingAfter: block)
    guard low < runsByBlock.count, runsByBlock[low].block <= block else { return nil }
    return runsByBlock[low].fileBlock + UInt32(block - runsByBlock[low].block)
  }

  /// From its first block on the disk to its last.
  var span: Range<UInt64> {
    guard let first = runsByBlock.first, let last = runsByBlock.last else { return 0..<0 }
    return first.block..<last.block + UInt64(last.count)
  }

  /// Whether some block of a range is one of the journal.
  func overlaps(_ range: ClosedRange<UInt64>) -> Bool {
    let low = firstRun(endingAfter: range.lowerBound)
    return low < runsByBlock.count && runsByBlock[low].block <= range.upperBound
  }

  /// The first run, in the order of the disk, that ends behind a block.
  private func firstRun(endingAfter block: UInt64) -> Int {
    var low = 0
    var high = runsByBlock.count
    while low < high {
      let middle = (low + high) / 2
      let run = runsByBlock[middle]
      if run.block + UInt64(run.count) <= block { low = middle + 1 } else { high = middle }
    }
    return low
  }

  /// The block of the log after another; the last is followed by the first.
  func following(_ logical: UInt32) -> UInt32 { logical + 1 >= header.end ? header.first : logical + 1 }
}
