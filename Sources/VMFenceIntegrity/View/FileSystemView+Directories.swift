internal import VMFenceCore

extension FileSystemView {
  enum NameResult {
    /// A directory that was not followed before; its own names have not been looked at.
    case newDirectory
    case other
    /// No more names are taken.
    case overLimit
  }

  /// Makes a followed inode a followed directory and reads its names, which are not yet reported ones.
  mutating func attach(_ number: UInt32, _ directory: Directory) {
    guard let node = nodes[number] else { return }
    // Blocks claimed so far were those of a file with this number.
    _ = updateMap(of: number, nil)
    directories[number] = directory
    _ = updateMap(of: number, node.inode)
  }

  /// Ceases to follow a directory as one. Its names, and what is below, are the caller's business.
  mutating func detach(_ number: UInt32) {
    guard let directory = directories[number] else { return }
    _ = updateMap(of: number, nil)
    nameCount -= directory.names.count
    directories[number] = nil
    unfollowIfUnused(number)
  }

  /// Takes up a name in a followed directory: follows what it stands for if the policy asks for it.
  mutating func addName(_ name: [UInt8], inode number: UInt32, in directory: UInt32) -> NameResult {
    guard let parent = directories[directory] else { return .other }
    // Of a name that leads to nothing protected nothing is read.
    fileSystem.reader.attend()
    guard nameCount < limits.entries else {
      damage.report(inode: directory, path: path(of: [], in: directory), "more than \(limits.entries) names to follow")
      return .overLimit
    }
    nameCount += 1
    let frontier = policy.advance(parent.frontier, by: name)
    guard !frontier.isEmpty else { return .other }
    let action = policy.action(at: frontier)
    guard action != nil || policy.reachesBelow(frontier) else { return .other }
    guard follow(number), let inode = nodes[number]?.inode else { return .other }
    defer { unfollowIfUnused(number) }
    if let action {
      let isFirst = nodes[number]?.links.isEmpty == true
      // Nothing else may hold these names: each of them would be copied for each that comes.
      nodes[number]?.links.append(Link(directory: directory, name: name, action: action))
      if isFirst { beginContents(of: number) }
    }
    for message in fileSystem.faults(of: inode) {
      damage.report(inode: number, path: path(of: name, in: directory), mayMend: inode.kind != .unknown, message)
    }
    guard inode.kind == .directory, policy.reachesBelow(frontier) else { return .other }
    if directories[number] != nil {
      damage.report(
        inode: number, path: path(of: name, in: directory), "a directory with a second name; followed by its first")
      return .other
    }
    guard parent.depth < limits.depth else {
      damage.report(
        inode: number, path: path(of: name, in: directory), "more than \(limits.depth) directories below one another")
      return .other
    }
    attach(number, Directory(parent: directory, name: name, depth: parent.depth + 1, frontier: frontier))
    return .newDirectory
  }

  /// Gives up a name. A directory that is followed under it must have been detached or moved.
  mutating func removeName(_ name: [UInt8], inode number: UInt32, in directory: UInt32) {
    fileSystem.reader.attend()
    nameCount -= 1
    nodes[number]?.links.removeAll { $0.directory == directory && $0.name == name }
    unfollowIfUnused(number)
  }

  /// Follows a directory, with all that is below, to another place where the policy says the same of it.
  ///
  /// - Returns: false when the policy says something else there, or the place lies below the directory itself, or too
  ///   deep; nothing is changed then.
  mutating func move(_ number: UInt32, to name: [UInt8], in parent: UInt32) -> Bool {
    guard let directory = directories[number], let target = directories[parent],
      policy.advance(target.frontier, by: name) == directory.frontier
    else { return false }
    var ancestor = parent
    for _ in 0...limits.depth {
      guard ancestor != number, let current = directories[ancestor] else { return false }
      if current.parent == 0 { break }
      ancestor = current.parent
    }
    let below = subtree(of: number)
    let deeper = target.depth + 1 - directory.depth
    guard below.allSatisfy({ (directories[$0]?.depth ?? 0) + deeper <= limits.depth }) else { return false }
    for current in below { directories[current]?.depth += deeper }
    for index in nodes[number]?.links.indices ?? 0..<0 {
      guard let link = nodes[number]?.links[index], link.directory == directory.parent, link.name == directory.name
      else { continue }
      nodes[number]?.links[index].directory = parent
      nodes[number]?.links[index].name = name
    }
    directories[number]?.parent = parent
    directories[number]?.name = name
    return true
  }

  /// A followed directory and those below it, upper ones first.
  func subtree(of number: UInt32) -> [UInt32] {
    var result: [UInt32] = [number]
    var position = 0
    while position < result.count {
      let current = result[position]
      position += 1
      for (name, inode) in (directories[current]?.names ?? [:]).sorted(by: { $0.value < $1.value }) {
        if let child = directories[inode], child.parent == current, child.name == name { result.append(inode) }
      }
    }
    return result
  }

  /// Follows a file without a protected name, if it is still the same.
  ///
  /// - Returns: false when it is not.
  mutating func followObject(_ number: UInt32, _ known: ExtInode, _ links: [Link]) -> Bool {
    let isFollowed = nodes[number] != nil
    guard follow(number), let inode = nodes[number]?.inode, inode.isInUse, inode.generation == known.generation,
      inode.kind == known.kind
    else {
      if !isFollowed { unfollowIfUnused(number) }
      return false
    }
    let isNew = nodes[number]?.links.isEmpty == true
    for link in links where nodes[number]?.links.contains(link) == false { nodes[number]?.links.append(link) }
    if isNew { beginContents(of: number) }
    return true
  }

  /// Maps the blocks of an inode that has become protected.
  private mutating func beginContents(of number: UInt32) {
    guard let inode = nodes[number]?.inode else { return }
    if inode.kind != .directory { _ = updateMap(of: number, inode) }
    insertAttributeBlock(of: number, old: 0, new: inode.attributeBlock)
    let attributes = currentAttributes(of: number)
    nodes[number]?.attributes = attributes
  }

  // MARK: Names

  /// The names in a directory as the disk has them now, of each name the first.
  mutating func currentNames(of number: UInt32) -> [[UInt8]: UInt32] {
    guard let directory = directories[number] else { return [:] }
    var names: [[UInt8]: UInt32] = [:]
    for index in directory.blocks.keys.sorted() {
      for entry in directory.blocks[index] ?? [] {
        if names[entry.name] == nil {
          names[entry.name] = entry.inode
        } else {
          damage.report(
            inode: number, path: path(of: [], in: number), mayMend: true, "the same name twice in a directory")
        }
      }
    }
    return names
  }

  /// Reads the names in one block of a followed directory.
  mutating func readNames(of number: UInt32, fileBlock: UInt32, block: UInt64) {
    do throws(IntegrityError) {
      try fileSystem.readBlock(block, into: &buffer)
    } catch {
      return damage.report(inode: number, path: path(of: [], in: number), error.message)
    }
    guard let inode = nodes[number]?.inode else { return }
    take(fileSystem.nameBlock(buffer, of: number, inode, isFirst: fileBlock == 0), of: number, part: fileBlock)
  }

  /// Reads the names of a followed directory that lies in its inode; forgets those of one that does no longer.
  mutating func readInlineNames(of number: UInt32, _ inode: ExtInode?) {
    guard let directory = directories[number], directory.isInline || inode?.hasInlineData == true else { return }
    for part in directory.blocks.keys { forgetNames(of: number, fileBlock: part) }
    directories[number]?.isInline = inode?.hasInlineData == true
    guard let inode, inode.hasInlineData, inode.kind == .directory else { return }
    for (part, block) in fileSystem.inlineNameBlocks(of: inode).enumerated() {
      take(block, of: number, part: UInt32(part))
    }
  }

  private mutating func take(_ parsed: ExtDirectoryBlock, of number: UInt32, part fileBlock: UInt32) {
    if let message = parsed.damage {
      damage.report(inode: number, path: path(of: [], in: number), mayMend: true, message)
    }
    forgetNames(of: number, fileBlock: fileBlock)
    guard entryCount + parsed.entries.count <= limits.entries else {
      return damage.report(inode: number, path: path(of: [], in: number), "more than \(limits.entries) names to follow")
    }
    entryCount += parsed.entries.count
    directories[number]?.blocks[fileBlock] = parsed.entries
  }

  mutating func forgetNames(of number: UInt32, fileBlock: UInt32) {
    entryCount -= directories[number]?.blocks[fileBlock]?.count ?? 0
    directories[number]?.blocks[fileBlock] = nil
  }
}
