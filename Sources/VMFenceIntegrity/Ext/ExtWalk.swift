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

/// A run of blocks of a file that lie one after the other on the disk. All in bytes.
public struct ExtExtent: Hashable, Sendable {
  public var fileOffset: UInt64
  public var diskOffset: UInt64
  public var length: UInt64
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
    var buffer: [UInt8] = []
    var entered: Set<UInt32> = [2]
    var entries = 0
    var blocks = limits.blocks
    var stack: [(listing: ExtListing, depth: Int)] = []
    do throws(IntegrityError) {
      let root = ExtListing(path: [0x2F], number: 2, inode: try inode(2, buffer: &buffer))
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
    return damage
  }

  /// The names in a directory, of each name the first.
  func names(in directory: ExtListing, blocks: inout Int, damage: inout DamageLog) -> [ExtDirectoryEntry] {
    var result: [ExtDirectoryEntry] = []
    var seen: Set<[UInt8]> = []
    var buffer: [UInt8] = []
    for extent in extents(of: directory, blocks: &blocks, damage: &damage) {
      for index in 0..<extent.length / UInt64(blockSize) {
        do throws(IntegrityError) {
          try readBlock(extent.diskOffset / UInt64(blockSize) + index, into: &buffer)
        } catch {
          damage.report(inode: directory.number, path: directory.path, error.message)
          continue
        }
        let isFirst = extent.fileOffset == 0 && index == 0
        let block = buffer.withRawSpan { ExtDirectoryBlock($0, superblock: superblock, isFirst: isFirst) }
        if let message = block.damage { damage.report(inode: directory.number, path: directory.path, message) }
        for entry in block.entries {
          if seen.insert(entry.name).inserted {
            result.append(entry)
          } else {
            damage.report(inode: directory.number, path: directory.path, "the same name twice in a directory")
          }
        }
      }
    }
    return result
  }

  /// Where the contents of a file lie, in the order of the file; holes are left out.
  ///
  /// `blocks`: how many more blocks may be looked at; what was looked at is taken from it.
  public func extents(of file: ExtListing, blocks: inout Int, damage: inout DamageLog) -> [ExtExtent] {
    guard file.inode.hasBlocks(blockSize: blockSize) else { return [] }
    if file.inode.size > fileSizeLimit {
      damage.report(inode: file.number, path: file.path, "size \(file.inode.size) is more than a file can have")
    } else if file.inode.kind == .directory, file.inode.size % UInt64(blockSize) != 0 {
      damage.report(inode: file.number, path: file.path, "directory size \(file.inode.size) is not whole blocks")
    }
    // No file has more blocks than the file system.
    let budget = min(blocks, Int(clamping: superblock.blockCount))
    var work = TreeWork(budget: budget, cachedBytesLimit: 64 << 20)
    var tree = ExtBlockTree()
    tree.update(root: file.inode.blocks, in: self, work: &work)
    blocks -= budget - work.budget
    if let message = work.damage { damage.report(inode: file.number, path: file.path, message) }
    var result: [ExtExtent] = []
    let size = UInt64(blockSize)
    for change in work.changes where change.isClaim && change.level == 0 {
      let fileOffset = UInt64(change.fileBlock) * size
      let diskOffset = change.block * size
      if let last = result.last, last.fileOffset + last.length == fileOffset,
        last.diskOffset + last.length == diskOffset
      {
        result[result.count - 1].length += size
      } else {
        result.append(ExtExtent(fileOffset: fileOffset, diskOffset: diskOffset, length: size))
      }
    }
    return result
  }
}

extension DamageLog {
  /// An empty log, for callers that read single files.
  public init() { self.init(limit: 64) }
}
