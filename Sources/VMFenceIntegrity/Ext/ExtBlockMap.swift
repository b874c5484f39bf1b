internal import VMFenceCore

/// Where the contents of a file lie: its runs of blocks, in the order of the file, and the blocks that say so.
struct ExtBlockMap: Hashable, Sendable {
  /// Blocks of a file that lie one after the other on the disk.
  struct Run: Hashable, Sendable {
    /// In blocks, from the beginning of the file.
    var fileBlock: UInt32
    var count: UInt32
    var block: UInt64
    /// Allocated, and reads as zeroes: no data was written there yet.
    var isUnwritten = false

    var end: UInt64 { UInt64(fileBlock) + UInt64(count) }
  }

  /// A block with block numbers or extents.
  struct Node: Hashable, Sendable {
    var block: UInt64
    /// The first block of the file that it leads to.
    var fileBlock: UInt32
  }

  /// In the order of the file, apart from each other.
  private(set) var runs: [Run] = []
  private(set) var nodes: [Node] = []

  /// Bytes of memory in use.
  var memory: Int { runs.count * MemoryLayout<Run>.stride + nodes.count * MemoryLayout<Node>.stride }

  init() {}

  /// Reads the map of an inode, as far as the budget and the disk allow; what is wrong is told to `work`.
  init(_ inode: ExtInode, number: UInt32, in fileSystem: ExtFileSystem, work: inout MapWork) {
    guard inode.hasBlocks(blockSize: fileSystem.blockSize) else { return }
    if inode.hasExtents {
      let seed = fileSystem.checksums.seed(ofInode: number, generation: inode.generation)
      inode.blockBytes(0..<60).withRawSpan {
        addExtents($0, ExtentLevel(depth: nil, bounds: 0..<1 << 32, seed: seed), in: fileSystem, &work)
      }
    } else {
      let pointers = UInt64(fileSystem.blockSize / 4)
      let bases: [UInt64] = [12, 12 + pointers, 12 + pointers + pointers * pointers]
      for index in 0..<15 where inode.blocks[index] != 0 {
        let level = max(0, index - 11)
        addIndirect(
          inode.blocks[index], level: level, base: index < 12 ? UInt64(index) : bases[index - 12], parents: [],
          in: fileSystem,
          &work)
      }
    }
  }

  // MARK: Indirect blocks

  /// Calls itself at most three deep: `level` falls with each call, whatever the disk says.
  private mutating func addIndirect(
    _ block: UInt32, level: Int, base: UInt64, parents: [UInt32], in fileSystem: ExtFileSystem,
    _ work: inout MapWork
  ) {
    guard base <= UInt64(UInt32.max), work.take(1) else { return }
    guard !parents.contains(block) else { return work.report("block \(block) of its map leads to itself") }
    guard fileSystem.isOwnable(UInt64(block)) else {
      return work.report("block number \(block) is not one a file can have")
    }
    guard level > 0 else {
      return add(Run(fileBlock: UInt32(base), count: 1, block: UInt64(block)), &work)
    }
    guard let bytes = node(UInt64(block), UInt32(base), in: fileSystem, &work) else { return }
    let pointers = UInt64(fileSystem.blockSize / 4)
    let step = level == 1 ? 1 : level == 2 ? pointers : pointers * pointers
    let below = parents + [block]
    bytes.withRawSpan { span in
      for index in 0..<span.byteCount / 4 where !work.isSpent {
        let pointer = span.u32le(index * 4)
        if pointer != 0 {
          addIndirect(
            pointer, level: level - 1, base: base + UInt64(index) * step, parents: below, in: fileSystem, &work)
        }
      }
    }
  }

  // MARK: Extents

  private struct ExtentLevel {
    /// What the parent says of the depth; nil for the root.
    var depth: UInt16?
    /// The blocks of the file that may be in it.
    var bounds: Range<UInt64>
    var seed: UInt32
  }

  /// The deepest tree that the kernel makes (`EXT4_MAX_EXTENT_DEPTH`).
  private static let depthLimit: UInt16 = 5

  /// Calls itself at most five deep: the depth falls with each call, whatever the disk says.
  private mutating func addExtents(
    _ bytes: RawSpan, _ level: ExtentLevel, in fileSystem: ExtFileSystem, _ work: inout MapWork
  ) {
    let depth = bytes.u16le(6)
    let count = Int(bytes.u16le(2))
    let limit = Int(bytes.u16le(4))
    guard bytes.u16le(0) == 0xF30A else { return work.report("no magic number in its extents") }
    guard depth == level.depth ?? depth, depth <= Self.depthLimit else {
      return work.report("extents at depth \(depth)")
    }
    guard count <= limit, 12 + limit * 12 <= bytes.byteCount else {
      return work.report("\(count) of \(limit) extents in \(bytes.byteCount) bytes")
    }
    if level.depth != nil, 12 + limit * 12 + 4 <= bytes.byteCount,
      !fileSystem.checksums.isRight(extentBlock: bytes, tail: 12 + limit * 12, inodeSeed: level.seed)
    {
      work.report("a wrong checksum of extents")
    }
    var position = level.bounds.lowerBound
    for index in 0..<count where !work.isSpent {
      let entry = bytes.extracting(12 + index * 12..<24 + index * 12)
      let first = UInt64(entry.u32le(0))
      guard first >= position, first < level.bounds.upperBound else {
        return work.report("extents out of order at block \(first) of the file")
      }
      if depth == 0 {
        guard let end = addExtent(entry, bound: level.bounds.upperBound, in: fileSystem, &work) else { return }
        position = end
      } else {
        let next = index + 1 < count ? UInt64(bytes.u32le(24 + index * 12)) : level.bounds.upperBound
        let block = UInt64(entry.u32le(4)) | UInt64(entry.u16le(8)) << 32
        guard next > first else { return work.report("extents out of order at block \(first) of the file") }
        guard fileSystem.isOwnable(block) else {
          work.report("block number \(block) is not one a file can have")
          continue
        }
        guard work.take(1), let child = node(block, UInt32(first), in: fileSystem, &work) else { return }
        let below = ExtentLevel(
          depth: depth - 1, bounds: first..<min(next, level.bounds.upperBound), seed: level.seed)
        child.withRawSpan { addExtents($0, below, in: fileSystem, &work) }
        position = next
      }
    }
  }

  /// - Returns: the block of the file behind it; nil when nothing more can be read.
  private mutating func addExtent(
    _ entry: RawSpan, bound: UInt64, in fileSystem: ExtFileSystem, _ work: inout MapWork
  ) -> UInt64? {
    let first = UInt64(entry.u32le(0))
    let raw = entry.u16le(4)
    // Above 32,768 the length is that of an unwritten extent.
    let isUnwritten = raw > 0x8000
    let length = UInt64(isUnwritten ? raw - 0x8000 : raw)
    let start = UInt64(entry.u16le(6)) << 32 | UInt64(entry.u32le(8))
    guard length > 0, first + length <= bound else {
      work.report("an extent of \(length) blocks at block \(first) of the file")
      return nil
    }
    guard fileSystem.areOwnable(start, length) else {
      work.report("blocks \(start) + \(length) are not ones a file can have")
      return first + length
    }
    guard work.take(Int(length)) else { return nil }
    add(Run(fileBlock: UInt32(first), count: UInt32(length), block: start, isUnwritten: isUnwritten), &work)
    return first + length
  }

  // MARK: Parts

  private mutating func add(_ run: Run, _ work: inout MapWork) {
    if let last = runs.last, last.end == UInt64(run.fileBlock), last.block + UInt64(last.count) == run.block,
      last.isUnwritten == run.isUnwritten, UInt64(last.count) + UInt64(run.count) <= UInt64(UInt32.max)
    {
      runs[runs.count - 1].count += run.count
    } else if work.hold(MemoryLayout<Run>.stride) {
      runs.append(run)
    }
  }

  private mutating func node(
    _ block: UInt64, _ fileBlock: UInt32, in fileSystem: ExtFileSystem, _ work: inout MapWork
  ) -> [UInt8]? {
    guard work.hold(MemoryLayout<Node>.stride) else { return nil }
    var buffer: [UInt8] = []
    do throws(IntegrityError) {
      try fileSystem.readBlock(block, into: &buffer)
    } catch {
      work.report("its block map cannot be read: \(error.message)")
      return nil
    }
    nodes.append(Node(block: block, fileBlock: fileBlock))
    return buffer
  }

  // MARK: Directories

  /// Makes the map of a directory that of the blocks in which Linux looks for names: not those behind its end, but those that are said to be
  /// unwritten (`ext4_bread` does not ask).
  ///
  /// - Returns: what no directory has.
  mutating func takeNameBlocks(size: UInt64, blockSize: Int) -> [String] {
    let end = (size + UInt64(blockSize) - 1) / UInt64(blockSize)
    var damages: [String] = []
    if runs.contains(where: \.isUnwritten) {
      damages.append("a directory with blocks that are said to be unwritten; their names count")
    }
    if let last = runs.last, last.end > end {
      damages.append("a directory with blocks behind its end, which is at \(size) bytes; names in them do not count")
    }
    guard !damages.isEmpty else { return [] }
    var result = ExtBlockMap()
    var work = MapWork(budget: .max)
    for var run in runs where UInt64(run.fileBlock) < end {
      run.count = UInt32(min(run.end, end) - UInt64(run.fileBlock))
      run.isUnwritten = false
      result.add(run, &work)
    }
    runs = result.runs
    return damages
  }

  // MARK: Comparing

  /// A stretch of a file that has other blocks than before.
  struct Difference {
    var fileBlock: UInt32
    var count: UInt32
    /// The first of the blocks; nil for a hole.
    var old: (block: UInt64, isUnwritten: Bool)?
    var new: (block: UInt64, isUnwritten: Bool)?
  }

  /// The stretches where two maps differ, in the order of the file.
  static func differences(from old: ExtBlockMap, to new: ExtBlockMap) -> [Difference] {
    guard old.runs != new.runs else { return [] }
    var result: [Difference] = []
    var (i, j) = (0, 0)
    var position: UInt64 = 0
    while i < old.runs.count || j < new.runs.count {
      let a = i < old.runs.count ? old.runs[i] : nil
      let b = j < new.runs.count ? new.runs[j] : nil
      if let a, a == b {
        (i, j, position) = (i + 1, j + 1, a.end)
        continue
      }
      let starts = [a, b].compactMap { $0 }.map { max(UInt64($0.fileBlock), position) }
      position = starts.min() ?? position
      var end = UInt64.max
      for run in [a, b].compactMap({ $0 }) {
        end = min(end, UInt64(run.fileBlock) > position ? UInt64(run.fileBlock) : run.end)
      }
      let before = a.flatMap { $0.place(at: position) }
      let after = b.flatMap { $0.place(at: position) }
      if before?.block != after?.block || before?.isUnwritten != after?.isUnwritten {
        result.append(
          Difference(fileBlock: UInt32(position), count: UInt32(end - position), old: before, new: after))
      }
      position = end
      if let a, a.end <= position { i += 1 }
      if let b, b.end <= position { j += 1 }
    }
    return result
  }
}

extension ExtBlockMap.Run {
  fileprivate func place(at position: UInt64) -> (block: UInt64, isUnwritten: Bool)? {
    guard UInt64(fileBlock) <= position, position < end else { return nil }
    return (block + position - UInt64(fileBlock), isUnwritten)
  }
}

/// What reading one map may cost, and what was found wrong.
struct MapWork {
  /// How many more blocks may be mapped.
  private(set) var budget: Int
  /// How many more bytes of memory the map may take.
  private var memory: Int
  private(set) var damage: String?

  init(budget: Int, memory: Int = .max) {
    self.budget = budget
    self.memory = memory
  }

  var isSpent: Bool { budget <= 0 || memory <= 0 }

  mutating func take(_ count: Int) -> Bool {
    guard count <= budget else {
      budget = 0
      report("it maps more blocks than there are, or than are looked at")
      return false
    }
    budget -= count
    return true
  }

  mutating func hold(_ bytes: Int) -> Bool {
    guard bytes <= memory else {
      memory = 0
      report("its block map is larger than the limit")
      return false
    }
    memory -= bytes
    return true
  }

  mutating func report(_ what: String) {
    if damage == nil { damage = what }
  }
}
