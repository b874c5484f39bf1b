internal import VMFenceCore

/// What is known of a guest's file system: for protected files, the directories that lead to them and the metadata that
/// describes both, which block is what. Memory grows with what is protected, not with the disk.
public struct FileSystemView: Sendable {
  public internal(set) var fileSystem: ExtFileSystem
  public let policy: ProtectionPolicy
  public let limits: WalkLimits
  /// What was found to contradict the format. The monitor drains it.
  public internal(set) var damage: DamageLog
  var table: BlockTable
  var nodes: [UInt32: Node] = [:]
  var directories: [UInt32: Directory] = [:]
  /// How many followed inodes lie in a block of an inode table.
  private var inodeBlocks: [UInt64: Int] = [:]
  private var cachedBytes = 0
  var nameCount = 0
  /// Names held in `Directory.blocks`.
  var entryCount = 0
  var buffer: [UInt8] = []

  /// An inode that is followed: one with a protected name, or a directory in which protected names can be.
  struct Node: Sendable {
    /// As the disk has it now.
    var inode: ExtInode
    /// As it was last reported.
    var settled: ExtInode
    var tree = ExtBlockTree()
    /// Its protected names.
    var links: [Link] = []
  }

  /// A name in a followed directory. The root's has directory 0 and no name.
  struct Link: Hashable, Sendable {
    var directory: UInt32
    var name: [UInt8]
    var action: ProtectionPolicy.Action
  }

  struct Directory: Sendable {
    /// 0 for the root.
    var parent: UInt32
    var name: [UInt8]
    var depth: Int
    var frontier: ProtectionPolicy.Frontier
    /// The names in each of its blocks, as the disk has them now.
    var blocks: [UInt32: [ExtDirectoryEntry]] = [:]
    /// The names as they were last reported.
    var names: [[UInt8]: UInt32] = [:]
  }

  /// A protected name and what it stands for.
  public struct ProtectedFile: Hashable, Sendable {
    public var path: [UInt8]
    public var number: UInt32
    public var inode: ExtInode
    public var action: ProtectionPolicy.Action
  }

  /// Reads the file system and finds what the policy protects.
  ///
  /// `hashKey`: keys the table of blocks; drawn at random where a live guest chooses them.
  /// - Throws: when there is no file system that can be followed. Damage inside of one is reported in `damage`.
  public init(
    _ reader: any DiskReader, policy: ProtectionPolicy, limits: WalkLimits = WalkLimits(),
    hashKey: (UInt64, UInt64) = (0, 0)
  ) throws(IntegrityError) {
    fileSystem = try ExtFileSystem(reader)
    self.policy = policy
    self.limits = limits
    damage = DamageLog(limit: limits.damages)
    table = BlockTable(limit: limits.blocks, hashKey: hashKey)
    insertSystemBlocks()
    let frontier = policy.rootFrontier
    guard try fileSystem.inode(2, buffer: &buffer).kind == .directory else {
      throw IntegrityError(
        .damaged, "the root, inode 2, is not a directory", remedy: "check the file system with e2fsck on a copy")
    }
    guard follow(2) else {
      throw IntegrityError(.damaged, "the root, inode 2, cannot be read", remedy: "check the file system with e2fsck")
    }
    if let action = policy.action(at: frontier) { nodes[2]?.links = [Link(directory: 0, name: [], action: action)] }
    attach(2, Directory(parent: 0, name: [], depth: 0, frontier: frontier))
    var queue: [UInt32] = [2]
    while let number = queue.popLast() {
      var names = currentNames(of: number)
      for name in names.keys.sorted(by: { $0.lexicographicallyPrecedes($1) }) {
        guard let inode = names[name] else { continue }
        switch addName(name, inode: inode, in: number) {
        case .newDirectory: queue.append(inode)
        case .overLimit: names[name] = nil
        case .other: break
        }
      }
      directories[number]?.names = names
    }
  }

  /// Everything protected that is there, sorted by path.
  public var protectedFiles: [ProtectedFile] {
    var result: [ProtectedFile] = []
    for (number, node) in nodes {
      for link in node.links {
        result.append(ProtectedFile(path: path(of: link), number: number, inode: node.inode, action: link.action))
      }
    }
    return result.sorted { $0.path.lexicographicallyPrecedes($1.path) }
  }

  /// How many (block, use) pairs the table holds, and the bytes of memory it takes.
  public var tableSize: (entries: Int, bytes: Int) { (table.count, table.memory) }

  // MARK: Paths

  func path(of link: Link) -> [UInt8] { path(of: link.name, in: link.directory) }

  func path(of name: [UInt8], in directory: UInt32) -> [UInt8] {
    var parts: [[UInt8]] = name.isEmpty ? [] : [name]
    var number = directory
    // A directory is never moved below itself, so this ends; the bound is for a mistake of ours.
    for _ in 0...limits.depth {
      guard let current = directories[number], current.parent != 0 else { break }
      parts.append(current.name)
      number = current.parent
    }
    return parts.isEmpty ? [0x2F] : parts.reversed().flatMap { [0x2F] + $0 }
  }

  // MARK: Following inodes

  /// Reads an inode and watches the block that it lies in; true also when it is followed already.
  mutating func follow(_ number: UInt32) -> Bool {
    if nodes[number] != nil { return true }
    guard let place = fileSystem.location(ofInode: number) else { return false }
    do throws(IntegrityError) {
      let inode = try fileSystem.inode(number, buffer: &buffer)
      nodes[number] = Node(inode: inode, settled: inode)
    } catch {
      damage.report(inode: number, error.message)
      return false
    }
    if inodeBlocks[place.block] == nil {
      insert(place.block, BlockUse(role: .inodeTable, inode: place.first, index: 0), of: number)
    }
    inodeBlocks[place.block, default: 0] += 1
    return true
  }

  /// Gives up an inode without protected names that is no followed directory.
  mutating func unfollowIfUnused(_ number: UInt32) {
    guard let node = nodes[number], node.links.isEmpty, directories[number] == nil else { return }
    _ = updateTree(of: number, root: nil)
    insertAttributeBlock(of: number, old: node.inode.attributeBlock, new: 0)
    nodes[number] = nil
    guard let place = fileSystem.location(ofInode: number), let count = inodeBlocks[place.block] else { return }
    if count > 1 {
      inodeBlocks[place.block] = count - 1
    } else {
      inodeBlocks[place.block] = nil
      table.remove(place.block, BlockUse(role: .inodeTable, inode: place.first, index: 0))
    }
  }

  /// Makes the block map of a followed inode say what the inode (or, with `root` nil, nothing) says.
  ///
  /// - Returns: the blocks of contents that were claimed and released.
  mutating func updateTree(of number: UInt32, root: [UInt32]?) -> [ExtBlockTree.Change] {
    guard var node = nodes[number] else { return [] }
    var work = treeWork()
    nodes[number]?.tree = ExtBlockTree()
    node.tree.update(root: root ?? [UInt32](repeating: 0, count: 15), in: fileSystem, work: &work)
    nodes[number]?.tree = node.tree
    return apply(work, to: number)
  }

  /// Takes over what is now in an indirect block of a followed inode.
  mutating func updateIndirect(of number: UInt32, block: UInt64, level: Int, base: UInt32) -> [ExtBlockTree.Change] {
    guard var node = nodes[number] else { return [] }
    do throws(IntegrityError) {
      try fileSystem.readBlock(block, into: &buffer)
    } catch {
      damage.report(inode: number, error.message)
      return []
    }
    var work = treeWork()
    nodes[number]?.tree = ExtBlockTree()
    node.tree.updateIndirect(level: level, base: base, bytes: buffer, in: fileSystem, work: &work)
    nodes[number]?.tree = node.tree
    return apply(work, to: number)
  }

  private func treeWork() -> TreeWork {
    // No file has more blocks than the file system.
    TreeWork(
      budget: min(limits.blocks, Int(clamping: fileSystem.superblock.blockCount)), cachedBytes: cachedBytes,
      cachedBytesLimit: limits.blockMapBytes)
  }

  private mutating func apply(_ work: TreeWork, to number: UInt32) -> [ExtBlockTree.Change] {
    cachedBytes = work.cachedBytes
    if let message = work.damage { damage.report(inode: number, mayMend: true, message) }
    let isDirectory = directories[number] != nil
    for change in work.changes {
      let role = change.level > 0 ? BlockRole.indirect(level: change.level) : isDirectory ? .directory : .data
      let use = BlockUse(role: role, inode: number, index: change.fileBlock)
      if change.isClaim {
        let isIn = insert(change.block, use, of: number)
        if isIn, role == .directory { readNames(of: number, fileBlock: change.fileBlock, block: change.block) }
      } else {
        table.remove(change.block, use)
        if role == .directory { forgetNames(of: number, fileBlock: change.fileBlock) }
      }
    }
    return work.changes.filter { $0.level == 0 }
  }

  /// Looks anew at what may have been only half written.
  mutating func isStillDamaged(_ number: UInt32) -> Bool {
    guard let node = nodes[number] else { return false }
    let isDirectory = directories[number] != nil
    guard isDirectory || !node.links.isEmpty, node.inode.hasBlocks(blockSize: fileSystem.blockSize) else {
      return false
    }
    var log = DamageLog(limit: 1)
    var budget = limits.blocks
    let listing = ExtListing(path: [], number: number, inode: node.inode)
    if isDirectory {
      _ = fileSystem.names(in: listing, blocks: &budget, damage: &log)
    } else if node.inode.kind != .directory {
      _ = fileSystem.extents(of: listing, blocks: &budget, damage: &log)
    }
    return log.count > 0
  }

  mutating func insertAttributeBlock(of number: UInt32, old: UInt32, new: UInt32) {
    let use = BlockUse(role: .attributes, inode: number, index: 0)
    if old != 0 { table.remove(UInt64(old), use) }
    guard new != 0 else { return }
    if fileSystem.isOwnable(UInt64(new)) {
      insert(UInt64(new), use, of: number)
    } else {
      damage.report(inode: number, "extended attributes in block \(new), where none can be")
    }
  }

  @discardableResult
  private mutating func insert(_ block: UInt64, _ use: BlockUse, of number: UInt32) -> Bool {
    switch table.insert(block, use) {
    case .inserted, .present: return true
    case .full:
      damage.report(inode: number, "more than \(limits.blocks) blocks are protected; the rest is not followed")
    case .crowded: damage.report(inode: number, "block \(block) is used more often than blocks can be")
    }
    return false
  }

  private mutating func insertSystemBlocks() {
    let block = ExtSuperblock.offset / UInt64(fileSystem.blockSize)
    insert(block, BlockUse(role: .superblock, inode: 0, index: 0), of: 0)
    for (index, block) in fileSystem.superblock.descriptorBlocks.enumerated() {
      insert(block, BlockUse(role: .descriptors, inode: 0, index: UInt32(index)), of: 0)
    }
  }
}
