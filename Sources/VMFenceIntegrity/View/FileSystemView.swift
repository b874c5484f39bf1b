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
  /// Bytes of memory that the block maps take.
  private var mapBytes = 0
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
    var map = ExtBlockMap()
    /// Its extended attributes as they were last reported, by name, shortened for people.
    var attributes: [[UInt8]: String] = [:]
    /// Its protected names.
    var links: [Link] = []
  }

  /// A name in a followed directory. The root's has directory 0 and no name.
  struct Link: Hashable, Sendable {
    var directory: UInt32
    var name: [UInt8]
    var action: ProtectionPolicy.Action

    /// The path that a file had which is followed as an object; stands for the number of a directory.
    static let formerDirectory = UInt32.max
    var isFormer: Bool { directory == Self.formerDirectory }
  }

  struct Directory: Sendable {
    /// 0 for the root.
    var parent: UInt32
    var name: [UInt8]
    var depth: Int
    var frontier: ProtectionPolicy.Frontier
    /// Its names lie in its inode.
    var isInline = false
    /// The names in each of its blocks, as the disk has them now; of a directory that lies in its inode, in each part.
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
    damage.add(fileSystem.damage)
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
      for name in reader.sorted(names.keys, by: { $0 }) {
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
      for link in node.links where !link.isFormer {
        result.append(ProtectedFile(path: path(of: link), number: number, inode: node.inode, action: link.action))
      }
    }
    return fileSystem.reader.sorted(result, by: \.path)
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

  /// A directory and those above it, up to the root.
  func ancestors(of directory: UInt32) -> [UInt32] {
    var result: [UInt32] = []
    var number = directory
    for _ in 0...limits.depth {
      guard let current = directories[number] else { break }
      result.append(number)
      if current.parent == 0 { break }
      number = current.parent
    }
    return result
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
    _ = updateMap(of: number, nil)
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

  /// Reads the block map of a followed inode anew, or (with `inode` nil) gives up its blocks.
  ///
  /// - Returns: where it has other blocks than before.
  mutating func updateMap(of number: UInt32, _ inode: ExtInode?) -> [ExtBlockMap.Difference] {
    guard let old = nodes[number]?.map else { return [] }
    var new = ExtBlockMap()
    if let inode {
      // No file has more blocks than the file system.
      var work = MapWork(
        budget: min(limits.blocks, Int(clamping: fileSystem.superblock.blockCount)),
        memory: max(0, limits.blockMapBytes - mapBytes + old.memory))
      new = ExtBlockMap(inode, number: number, in: fileSystem, work: &work)
      if let message = work.damage { damage.report(inode: number, mayMend: true, message) }
    }
    let isDirectory = directories[number] != nil
    if isDirectory, let inode {
      for message in new.takeNameBlocks(size: inode.size, blockSize: fileSystem.blockSize) {
        damage.report(inode: number, path: path(of: [], in: number), mayMend: true, message)
      }
    }
    if isDirectory { readInlineNames(of: number, inode) }
    guard new != old else { return [] }
    mapBytes += new.memory - old.memory
    nodes[number]?.map = new
    if old.nodes != new.nodes {
      for node in old.nodes { table.remove(node.block, BlockUse(role: .map, inode: number, index: node.fileBlock)) }
      for node in new.nodes {
        insert(node.block, BlockUse(role: .map, inode: number, index: node.fileBlock), of: number)
      }
    }
    let differences = ExtBlockMap.differences(from: old, to: new)
    for difference in differences { apply(difference, to: number, isDirectory ? .directory : .data) }
    return differences
  }

  /// Blocks that were allocated and not written yet are nobody's contents: what is written there is seen when the map says
  /// so.
  private mutating func apply(_ difference: ExtBlockMap.Difference, to number: UInt32, _ role: BlockRole) {
    for index in 0..<difference.count {
      let use = BlockUse(role: role, inode: number, index: difference.fileBlock + index)
      if let old = difference.old, !old.isUnwritten {
        table.remove(old.block + UInt64(index), use)
        if role == .directory { forgetNames(of: number, fileBlock: use.index) }
      }
      if let new = difference.new, !new.isUnwritten {
        let isIn = insert(new.block + UInt64(index), use, of: number)
        if isIn, role == .directory { readNames(of: number, fileBlock: use.index, block: new.block + UInt64(index)) }
      }
    }
  }

  /// Tells what of a followed inode contradicts the format by itself.
  mutating func reportFaults(of number: UInt32) {
    guard let node = nodes[number] else { return }
    for message in fileSystem.faults(of: node.inode) {
      damage.report(inode: number, path: node.links.first.map { path(of: $0) } ?? [], mayMend: true, message)
    }
  }

  /// Looks anew at what may have been only half written.
  mutating func isStillDamaged(_ number: UInt32) -> Bool {
    guard let node = nodes[number] else { return false }
    let isDirectory = directories[number] != nil
    guard isDirectory || !node.links.isEmpty else { return false }
    if !fileSystem.faults(of: node.inode).isEmpty { return true }
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

  mutating func insertAttributeBlock(of number: UInt32, old: UInt64, new: UInt64) {
    let use = BlockUse(role: .attributes, inode: number, index: 0)
    if old != 0 { table.remove(old, use) }
    if new != 0, fileSystem.isOwnable(new) { insert(new, use, of: number) }
  }

  /// The extended attributes of a followed inode as the disk has them now, by name, shortened for people.
  mutating func currentAttributes(of number: UInt32) -> [[UInt8]: String] {
    guard let inode = nodes[number]?.inode, inode.attributeBlock != 0 || !inode.inlineAttributes.isEmpty else {
      return [:]
    }
    let listing = ExtListing(path: [], number: number, inode: inode)
    var result: [[UInt8]: String] = [:]
    for attribute in fileSystem.attributes(of: listing, damage: &damage) { result[attribute.name] = attribute.summary }
    return result
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
    let superblock = fileSystem.superblock
    insert(superblock.ownBlock, BlockUse(role: .superblock, inode: 0, index: 0), of: 0)
    for index in 0..<superblock.descriptorBlockCount {
      insert(superblock.descriptorBlock(index), BlockUse(role: .descriptors, inode: 0, index: UInt32(index)), of: 0)
    }
    // Who moves the journal writes one of these.
    let number = superblock.journalInode
    guard let journal = fileSystem.journal, let place = fileSystem.location(ofInode: number) else { return }
    insert(place.block, BlockUse(role: .inodeTable, inode: place.first, index: 0), of: number)
    inodeBlocks[place.block, default: 0] += 1
    for node in journal.map.nodes {
      insert(node.block, BlockUse(role: .map, inode: number, index: node.fileBlock), of: number)
    }
  }
}
