internal import VMFenceCore

/// How much of a file system one walk looks at, whatever the disk says. Reaching a limit is damage that is reported,
/// not an error.
public struct WalkLimits: Hashable, Sendable {
  /// Names in all directories together.
  public var entries: Int
  /// Directories below one another.
  public var depth: Int
  /// Blocks mapped, of all files together.
  public var blocks: Int
  /// Bytes of block numbers held in memory.
  public var blockMapBytes: Int
  /// Messages about damage that are kept; the rest is counted.
  public var damages: Int

  public init(
    entries: Int = 1_000_000, depth: Int = 128, blocks: Int = 1_000_000, blockMapBytes: Int = 16 << 20,
    damages: Int = 64
  ) {
    self.entries = entries
    self.depth = depth
    self.blocks = blocks
    self.blockMapBytes = blockMapBytes
    self.damages = damages
  }
}

/// Something on a disk that contradicts the format.
public struct Damage: Hashable, Sendable {
  /// The inode that it concerns; 0 when it concerns the file system.
  public var inode: UInt64
  /// The path by which it was found, if one is known.
  public var path: [UInt8]
  /// One sentence without a guest's text in it.
  public var message: String
  /// While a guest writes, it may be that the rest is just not written yet: looked at again before it is told.
  var mayMend = false
}

/// Damages found, the first few kept.
public struct DamageLog: Sendable {
  public private(set) var kept: [Damage] = []
  public private(set) var count = 0
  let limit: Int

  init(limit: Int) { self.limit = limit }

  mutating func report(inode: UInt32, path: [UInt8] = [], mayMend: Bool = false, _ message: String) {
    count += 1
    guard kept.count < limit else { return }
    kept.append(Damage(inode: UInt64(inode), path: path, message: message, mayMend: mayMend))
  }

  mutating func drain() -> (kept: [Damage], count: Int) {
    defer {
      kept.removeAll(keepingCapacity: true)
      count = 0
    }
    return (kept, count)
  }
}

/// A run of a file that lies in one piece on the disk. All in bytes.
public struct ExtExtent: Hashable, Sendable {
  public var fileOffset: UInt64
  public var diskOffset: UInt64
  public var length: UInt64
  /// Allocated, and reads as zeroes.
  public var isUnwritten = false
}

/// A file, directory or other object that a walk came by.
public struct ExtListing: Sendable {
  /// From the root, as the disk has it.
  public var path: [UInt8]
  public var number: UInt32
  public var inode: ExtInode
}

extension ExtFileSystem {
  /// Visits everything that has a name, directories before what is in them, names in the order of the disk. A file with
  /// several names is visited by each. Follows no cycle: a directory is entered once.
  ///
  /// - Returns: what contradicts the format.
  public func walk(limits: WalkLimits = WalkLimits(), _ visit: (ExtListing) -> Void) -> DamageLog {
    var damage = DamageLog(limit: limits.damages)
    damage.add(self.damage)
    var buffer: [UInt8] = []
    var entered: Set<UInt32> = [2]
    var entries = 0
    var blocks = limits.blocks
    var stack: [(listing: ExtListing, depth: Int)] = []
    do throws(IntegrityError) {
      let root = ExtListing(path: [0x2F], number: 2, inode: try inode(2, buffer: &buffer))
      check(root, &damage)
      visit(root)
      stack.append((root, 0))
    } catch {
      damage.report(inode: 2, path: [0x2F], error.message)
    }
    while let (directory, depth) = stack.popLast() {
      guard directory.inode.kind == .directory else {
        damage.report(inode: directory.number, path: directory.path, "the root is no directory")
        continue
      }
      var children: [(listing: ExtListing, depth: Int)] = []
      for entry in names(in: directory, blocks: &blocks, damage: &damage) {
        entries += 1
        guard entries <= limits.entries else {
          damage.report(inode: directory.number, path: directory.path, "more than \(limits.entries) names")
          return damage
        }
        let path = directory.path + (directory.path.count > 1 ? [0x2F] : []) + entry.name
        do throws(IntegrityError) {
          let child = ExtListing(path: path, number: entry.inode, inode: try inode(entry.inode, buffer: &buffer))
          check(child, &damage)
          visit(child)
          guard child.inode.kind == .directory else { continue }
          if depth + 1 > limits.depth {
            damage.report(inode: entry.inode, path: path, "more than \(limits.depth) directories below one another")
          } else if entered.insert(entry.inode).inserted {
            children.append((child, depth + 1))
          } else {
            damage.report(inode: entry.inode, path: path, "a directory with a second name; entered only by its first")
          }
        } catch {
          damage.report(inode: entry.inode, path: path, error.message)
        }
      }
      stack.append(contentsOf: children.reversed())
    }
    checkOrphans(&damage, buffer: &buffer)
    return damage
  }

  /// What of an inode contradicts the format by itself.
  func check(_ listing: ExtListing, _ damage: inout DamageLog) {
    for message in faults(of: listing.inode) { damage.report(inode: listing.number, path: listing.path, message) }
  }

  func faults(of inode: ExtInode) -> [String] {
    var faults: [String] = []
    if !inode.isChecksumRight { faults.append("a wrong checksum of the inode") }
    if inode.kind == .unknown { faults.append("no file has the type of mode 0\(String(inode.mode, radix: 8))") }
    if inode.isExtraSizeWrong { faults.append("an inode that says it uses more bytes than it has") }
    if inode.linkCount == 0, inode.kind != .unknown {
      faults.append("a name for an inode without links; the name counts")
    }
    if inode.size > fileSizeLimit(of: inode) { faults.append("size \(inode.size) is more than a file can have") }
    if inode.kind == .symbolicLink {
      if inode.size == 0 || inode.size > UInt64(blockSize) {
        faults.append("a symbolic link of \(inode.size) bytes")
      } else if !inode.hasInlineData, !inode.hasBlocks(blockSize: blockSize), inode.size >= 60 {
        faults.append("a symbolic link of \(inode.size) bytes that lies in its inode")
      }
    }
    if inode.kind == .directory, !inode.hasInlineData, inode.size % UInt64(blockSize) != 0 {
      faults.append("directory size \(inode.size) is not whole blocks")
    }
    if inode.attributeBlock != 0, !isOwnable(inode.attributeBlock) {
      faults.append("extended attributes in block \(inode.attributeBlock), where none can be")
    }
    return faults
  }

  /// The list of inodes that were deleted while open runs through their deletion times, and ends.
  private func checkOrphans(_ damage: inout DamageLog, buffer: inout [UInt8]) {
    var seen: Set<UInt32> = []
    var number = superblock.lastOrphan
    while number != 0, seen.count < 65_536 {
      guard number <= superblock.inodeCount, let inode = try? inode(number, buffer: &buffer) else {
        return damage.report(inode: number, "the list of orphans leads to inode \(number), which is none")
      }
      guard seen.insert(number).inserted else {
        return damage.report(inode: number, "the list of orphans runs in a circle")
      }
      number = inode.deletionTime
    }
  }

  /// The names in a directory, of each name the first.
  func names(in directory: ExtListing, blocks: inout Int, damage: inout DamageLog) -> [ExtDirectoryEntry] {
    var result: [ExtDirectoryEntry] = []
    var seen: Set<[UInt8]> = []
    for block in nameBlocks(of: directory, blocks: &blocks, damage: &damage) {
      if let message = block.damage { damage.report(inode: directory.number, path: directory.path, message) }
      for entry in block.entries {
        if seen.insert(entry.name).inserted {
          result.append(entry)
        } else {
          damage.report(inode: directory.number, path: directory.path, "the same name twice in a directory")
        }
      }
    }
    return result
  }

  private func nameBlocks(
    of directory: ExtListing, blocks: inout Int, damage: inout DamageLog
  ) -> [ExtDirectoryBlock] {
    if directory.inode.hasInlineData { return inlineNameBlocks(of: directory.inode) }
    var result: [ExtDirectoryBlock] = []
    var buffer: [UInt8] = []
    var map = map(of: directory, blocks: &blocks, damage: &damage)
    for message in map.takeNameBlocks(size: directory.inode.size, blockSize: blockSize) {
      damage.report(inode: directory.number, path: directory.path, message)
    }
    for run in map.runs {
      for index in 0..<run.count {
        do throws(IntegrityError) {
          try readBlock(run.block + UInt64(index), into: &buffer)
        } catch {
          damage.report(inode: directory.number, path: directory.path, error.message)
          continue
        }
        result.append(
          nameBlock(buffer, of: directory.number, directory.inode, isFirst: run.fileBlock == 0 && index == 0))
      }
    }
    return result
  }

  /// The names in one block of a directory.
  func nameBlock(_ bytes: [UInt8], of number: UInt32, _ inode: ExtInode, isFirst: Bool) -> ExtDirectoryBlock {
    bytes.withRawSpan {
      var block = ExtDirectoryBlock($0, superblock: superblock, isFirst: isFirst, isEncrypted: inode.isEncrypted)
      let seed = checksums.seed(ofInode: number, generation: inode.generation)
      let isRoot = isFirst && inode.flags & ExtInode.Flags.index != 0
      if !checksums.isRight(directoryBlock: $0, inodeSeed: seed, isIndexRoot: isRoot) { block.reportChecksum() }
      return block
    }
  }

  /// The names in a directory that lies in its inode: behind the parent's number, and in an attribute.
  func inlineNameBlocks(of inode: ExtInode) -> [ExtDirectoryBlock] {
    let parts = [inode.blockBytes(4..<60), ExtAttributeList(of: inode).inlineData ?? []]
    return parts.filter { !$0.isEmpty }.map { part in
      part.withRawSpan {
        ExtDirectoryBlock($0, superblock: superblock, isFirst: false, isEncrypted: inode.isEncrypted)
      }
    }
  }

  /// Which blocks a file has. `blocks`: how many more may be looked at; what was looked at is taken from it.
  func map(of file: ExtListing, blocks: inout Int, damage: inout DamageLog) -> ExtBlockMap {
    // No file has more blocks than the file system.
    let budget = min(blocks, Int(clamping: superblock.blockCount))
    var work = MapWork(budget: budget, memory: 64 << 20)
    let map = ExtBlockMap(file.inode, number: file.number, in: self, work: &work)
    blocks -= budget - work.budget
    if let message = work.damage { damage.report(inode: file.number, path: file.path, message) }
    return map
  }

  /// Where the contents of a file lie, in the order of the file; holes are left out.
  ///
  /// `blocks`: how many more blocks may be looked at; what was looked at is taken from it.
  public func extents(of file: ExtListing, blocks: inout Int, damage: inout DamageLog) -> [ExtExtent] {
    if file.inode.hasInlineData, file.inode.kind != .directory { return inlineExtents(of: file) }
    let size = UInt64(blockSize)
    return map(of: file, blocks: &blocks, damage: &damage).runs.map {
      ExtExtent(
        fileOffset: UInt64($0.fileBlock) * size, diskOffset: $0.block * size, length: UInt64($0.count) * size,
        isUnwritten: $0.isUnwritten)
    }
  }

  private func inlineExtents(of file: ExtListing) -> [ExtExtent] {
    guard file.inode.kind == .regular, let place = location(ofInode: file.number) else { return [] }
    let room = 60 + (ExtAttributeList(of: file.inode).inlineData?.count ?? 0)
    guard file.inode.size > 0 else { return [] }
    return [
      ExtExtent(
        fileOffset: 0, diskOffset: place.block * UInt64(blockSize) + UInt64(place.offset) + 40,
        length: min(file.inode.size, UInt64(room)))
    ]
  }
}

extension DamageLog {
  /// An empty log, for callers that read single files.
  public init() { self.init(limit: 64) }

  mutating func add(_ other: DamageLog) {
    for damage in other.kept where kept.count < limit { kept.append(damage) }
    count += other.count
  }
}
