internal import VMFenceCore

extension IntegrityMonitor {
  /// A name that came or went.
  struct NameItem {
    var directory: UInt32
    var name: [UInt8]
    var inode: UInt32
    var moment: Moment
    /// What the policy says of the name; nil when it is not protected.
    var action: ProtectionPolicy.Action?
    /// Whether it is a directory that was followed under this name.
    var isDirectory = false
    /// Before directories were moved. Of a name that went also: the inode before and now.
    var path: [UInt8] = []
    var settled: ExtInode?
    var current: ExtInode?
    /// Of a name that went because a directory above it was renamed out of what is followed: the name that this
    /// directory has now, and what must be added to it.
    var movedWith: (item: Int, suffix: [UInt8])?
    /// Nothing more is to be done or told.
    var isDone = false
  }

  /// What a settling of names means for the settling of inodes.
  struct NameOutcome {
    /// Inodes that were not followed before.
    var created: Set<UInt32> = []
    /// Inodes of which a name was told.
    var told: Set<UInt32> = []
    /// Names that were told with all that is to be said of their inodes.
    var fresh: Set<[UInt8]> = []
  }

  struct NameChanges {
    var vanished: [NameItem] = []
    var appeared: [NameItem] = []
    /// The names of the changed directories as they are to be from now on.
    var names: [UInt32: [[UInt8]: UInt32]] = [:]
    /// When directories got another name or parent.
    var moves: [UInt32: Moment] = [:]
  }

  mutating func settleNames(at time: Timestamp, isFinal: Bool) -> NameOutcome {
    guard !nameNews.isEmpty else { return NameOutcome() }
    var changes = collectNames(at: time, isFinal: isFinal)
    var outcome = NameOutcome()
    moveDirectories(&changes, &outcome)
    addNames(&changes, &outcome, at: time)
    keepObjects(changes)
    for item in changes.vanished where !item.isDone {
      view?.removeName(item.name, inode: item.inode, in: item.directory)
    }
    for (directory, names) in changes.names where view?.directories[directory] != nil {
      view?.directories[directory]?.names = names
    }
    tellNames(&changes, &outcome)
    return outcome
  }

  // MARK: What changed

  /// Compares the names in the directories that were written with those told last. What must wait for its inode is
  /// left as it was.
  private mutating func collectNames(at time: Timestamp, isFinal: Bool) -> NameChanges {
    var changes = NameChanges()
    for directory in nameNews.keys.sorted() {
      guard let moment = nameNews[directory]?.changed, let old = view?.directories[directory]?.names,
        let current = view?.currentNames(of: directory)
      else {
        nameNews[directory] = nil
        continue
      }
      changes.names[directory] = current
      for name in reader.sorted(old.keys, by: { $0 }) where current[name] != old[name] {
        changes.vanished.append(vanishedItem(name, old[name] ?? 0, directory, moment))
      }
      for name in reader.sorted(current.keys, by: { $0 }) where current[name] != old[name] {
        changes.appeared.append(
          NameItem(
            directory: directory, name: name, inode: current[name] ?? 0, moment: moment,
            path: view?.path(of: name, in: directory) ?? []))
      }
    }
    holdNames(&changes, at: time, isFinal: isFinal)
    return changes
  }

  private func vanishedItem(_ name: [UInt8], _ inode: UInt32, _ directory: UInt32, _ moment: Moment) -> NameItem {
    var item = NameItem(directory: directory, name: name, inode: inode, moment: moment)
    guard let view else { return item }
    reader.attend()
    let node = view.nodes[inode]
    item.action = node?.links.first { $0.directory == directory && $0.name == name }?.action
    if let child = view.directories[inode] { item.isDirectory = child.parent == directory && child.name == name }
    item.path = view.path(of: name, in: directory)
    item.settled = node?.settled
    item.current = node?.inode
    return item
  }

  private mutating func holdNames(_ changes: inout NameChanges, at time: Timestamp, isFinal: Bool) {
    let appearing = Set(changes.appeared.map(\.inode))
    let appearingNames = Set(changes.appeared.map { NameKey(directory: $0.directory, name: $0.name) })
    var held: Set<NameKey> = []
    var expired: [UInt32: Bool] = [:]
    for directory in changes.names.keys {
      var since = nameNews[directory]?.heldSince
      expired[directory] = isExpired(&since, at: time, isFinal: isFinal)
      nameNews[directory]?.heldSince = since
    }
    let vanishing = Set(changes.vanished.map(\.inode))
    var replacing: Set<UInt32> = []
    for item in changes.appeared where replacesWhatLostIt(item) { replacing.insert(item.inode) }
    for item in changes.appeared where expired[item.directory] == false {
      guard
        mustWait(item) || isSecondNameOfDirectory(item) && !vanishing.contains(item.inode)
          || !replacing.contains(item.inode) && isUnexplained(item, isPaired: vanishing.contains(item.inode))
      else { continue }
      held.insert(NameKey(directory: item.directory, name: item.name))
    }
    for item in changes.vanished
    where expired[item.directory] == false && (item.action != nil || item.isDirectory) {
      let key = NameKey(directory: item.directory, name: item.name)
      // A name that another file took is told at once.
      guard !appearingNames.contains(key), let old = item.settled, let new = item.current, new.isInUse
      else { continue }
      let isPaired = appearing.contains(item.inode)
      // A directory has one name: its next one will come, or the inode will go, too.
      guard new.kind != .directory else {
        if !isPaired { held.insert(key) }
        continue
      }
      // A name that goes takes a link with it, or moves; the inode will tell which.
      if !isPaired, new.linkCount < old.linkCount { continue }
      if isPaired, rewritten.contains(item.inode) || replacing.contains(item.inode) { continue }
      held.insert(key)
    }
    changes.appeared.removeAll { held.contains(NameKey(directory: $0.directory, name: $0.name)) }
    changes.vanished.removeAll { held.contains(NameKey(directory: $0.directory, name: $0.name)) }
    for key in held { changes.names[key.directory]?[key.name] = view?.directories[key.directory]?.names[key.name] }
    let holding = Set(held.map(\.directory))
    for directory in changes.names.keys where !holding.contains(directory) { nameNews[directory] = nil }
    if held.isEmpty { forgetRewritten() }
  }

  private struct NameKey: Hashable {
    var directory: UInt32
    var name: [UInt8]
  }

  /// Whether a directory that is followed has this name besides the one it is known by: that one will go.
  private func isSecondNameOfDirectory(_ item: NameItem) -> Bool { view?.directories[item.inode] != nil }

  /// Whether a name stands for another file than before, and the file that it stood for is known to have lost a name:
  /// the new one's own inode need not show that (a rename changes only a time there, or not even that).
  private func replacesWhatLostIt(_ item: NameItem) -> Bool {
    guard let over = view?.directories[item.directory]?.names[item.name], over != item.inode,
      let node = view?.nodes[over]
    else { return false }
    return node.inode.linkCount < node.settled.linkCount
  }

  /// Whether a new name of a followed file is neither a new link (the inode would count it) nor another name for one
  /// that went.
  private func isUnexplained(_ item: NameItem, isPaired: Bool) -> Bool {
    guard let node = view?.nodes[item.inode], !node.links.isEmpty, node.inode.kind != .directory else { return false }
    guard rewritten.contains(item.inode) else { return true }
    return !isPaired && node.inode.linkCount <= node.settled.linkCount
      && node.inode.generation == node.settled.generation
  }

  /// Whether a new name stands for an inode that the disk does not have yet.
  private func mustWait(_ item: NameItem) -> Bool {
    guard let view, let frontier = view.directories[item.directory]?.frontier,
      !view.policy.advance(frontier, by: item.name).isEmpty
    else { return false }
    var buffer: [UInt8] = []
    let inode = try? view.fileSystem.inode(item.inode, buffer: &buffer)
    return inode?.isInUse == false
  }

  // MARK: Taking it over

  /// Directories that only have another name or parent stay followed; others that lost their name are given up, with
  /// what is below.
  private mutating func moveDirectories(_ changes: inout NameChanges, _ outcome: inout NameOutcome) {
    for index in changes.vanished.indices where changes.vanished[index].isDirectory {
      let item = changes.vanished[index]
      let target = changes.appeared.firstIndex { $0.inode == item.inode && !$0.isDone }
      if let target,
        view?.move(item.inode, to: changes.appeared[target].name, in: changes.appeared[target].directory) == true
      {
        changes.vanished[index].isDone = true
        changes.appeared[target].isDone = true
        changes.moves[item.inode] = changes.appeared[target].moment
        outcome.told.insert(item.inode)
        report(
          .rename, at: item.moment,
          path: view?.path(of: changes.appeared[target].name, in: changes.appeared[target].directory) ?? [],
          oldPath: item.path, inode: item.inode)
      } else {
        giveUp(item, target: target, &changes)
      }
    }
  }

  private mutating func giveUp(_ top: NameItem, target: Int?, _ changes: inout NameChanges) {
    guard let below = view?.subtree(of: top.inode) else { return }
    var known: Set<NameKey> = []
    for item in changes.vanished { known.insert(NameKey(directory: item.directory, name: item.name)) }
    for directory in below {
      for name in reader.sorted(view?.directories[directory]?.names.keys ?? [:].keys, by: { $0 })
      where !known.contains(NameKey(directory: directory, name: name)) {
        var item = vanishedItem(name, view?.directories[directory]?.names[name] ?? 0, directory, top.moment)
        if let target { item.movedWith = (target, Array(item.path.dropFirst(top.path.count))) }
        changes.vanished.append(item)
      }
    }
    for directory in below.reversed() {
      nameNews[directory] = nil
      view?.detach(directory)
    }
  }

  private mutating func addNames(_ changes: inout NameChanges, _ outcome: inout NameOutcome, at time: Timestamp) {
    var awaited = Set(changes.appeared.filter { !$0.isDone }.map { NameKey(directory: $0.directory, name: $0.name) })
    var index = 0
    while index < changes.appeared.count {
      defer { index += 1 }
      let item = changes.appeared[index]
      if item.isDone { continue }
      guard view?.directories[item.directory] != nil else {
        changes.appeared[index].isDone = true
        awaited.remove(NameKey(directory: item.directory, name: item.name))
        continue
      }
      let isNew = view?.nodes[item.inode] == nil
      let result = view?.addName(item.name, inode: item.inode, in: item.directory)
      if isNew, view?.nodes[item.inode] != nil { outcome.created.insert(item.inode) }
      changes.appeared[index].action =
        view?.nodes[item.inode]?.links.last { $0.directory == item.directory && $0.name == item.name }?.action
      switch result {
      case .overLimit:
        changes.names[item.directory]?[item.name] = nil
        changes.appeared[index].isDone = true
        awaited.remove(NameKey(directory: item.directory, name: item.name))
      case .newDirectory: takeNames(of: item, &changes, &awaited, at: time)
      case .other, nil: break
      }
    }
  }

  /// The names in a directory that is followed from now on.
  ///
  /// - `awaited`: those that are known to have appeared.
  private mutating func takeNames(
    of directory: NameItem, _ changes: inout NameChanges, _ awaited: inout Set<NameKey>, at time: Timestamp
  ) {
    guard var names = view?.currentNames(of: directory.inode) else { return }
    for name in reader.sorted(names.keys, by: { $0 }) {
      let item = NameItem(
        directory: directory.inode, name: name, inode: names[name] ?? 0, moment: directory.moment)
      let key = NameKey(directory: item.directory, name: name)
      // Its turn comes.
      if awaited.contains(key) { continue }
      if mustWait(item) {
        names[name] = nil
        nameNews[directory.inode] = NameNews(changed: directory.moment, heldSince: time)
      } else {
        changes.appeared.append(item)
        awaited.insert(key)
      }
    }
    changes.names[directory.inode] = names
  }

  // MARK: Telling it

  private mutating func tellNames(_ changes: inout NameChanges, _ outcome: inout NameOutcome) {
    var goneByInode: [UInt32: [Int]] = [:]
    var goneByName: [NameKey: Int] = [:]
    for (index, item) in changes.vanished.enumerated().reversed() where !item.isDone {
      goneByInode[item.inode, default: []].append(index)
      goneByName[NameKey(directory: item.directory, name: item.name)] = index
    }
    var origin: [Int: Int] = [:]
    for (index, item) in changes.appeared.enumerated() where !item.isDone {
      // The same number with another generation is another file.
      let generation = view?.nodes[item.inode]?.inode.generation
      guard let gone = goneByInode[item.inode]?.last,
        changes.vanished[gone].settled.map({ $0.generation == generation ?? $0.generation }) ?? true
      else { continue }
      goneByInode[item.inode]?.removeLast()
      origin[index] = gone
      changes.vanished[gone].isDone = true
    }
    for (index, item) in changes.appeared.enumerated() where !item.isDone {
      let from = origin[index].map { changes.vanished[$0] }
      let over = goneByName[NameKey(directory: item.directory, name: item.name)].flatMap {
        changes.vanished[$0].isDone ? nil : $0
      }
      let path = pathThen(item, changes)
      if let over, item.action != nil || changes.vanished[over].action != nil || changes.vanished[over].isDirectory {
        changes.vanished[over].isDone = true
        tellReplace(item, path, from: from, over: changes.vanished[over])
        if from == nil { outcome.fresh.insert(view?.path(of: item.name, in: item.directory) ?? []) }
      } else if let from {
        guard item.action != nil || from.action != nil || from.isDirectory else { continue }
        report(.rename, at: item.moment, path: path, oldPath: from.path, inode: item.inode)
      } else if item.action != nil {
        let node = view?.nodes[item.inode]
        let inode = node?.inode
        let isNew = outcome.created.contains(item.inode) || node?.settled.generation != inode?.generation
        outcome.fresh.insert(view?.path(of: item.name, in: item.directory) ?? [])
        report(
          isNew ? .create : .link, at: item.moment, path: path, inode: item.inode,
          changes: inode.map { isNew ? Self.description($0) : [] } ?? [])
      } else {
        continue
      }
      outcome.told.insert(item.inode)
    }
    // What was in a directory before the directory.
    let gone = changes.vanished.filter { !$0.isDone && ($0.action != nil || $0.isDirectory) }
    for item in reader.sorted(gone, by: \.path).reversed() {
      outcome.told.insert(item.inode)
      tellGone(item, changes)
    }
  }

  /// The path that a new name had when it came: a directory above it may have been moved after that.
  private func pathThen(_ item: NameItem, _ changes: NameChanges) -> [UInt8] {
    guard let view else { return item.path }
    if !changes.moves.isEmpty, !item.path.isEmpty,
      let move = view.ancestors(of: item.directory).compactMap({ changes.moves[$0] }).min(by: {
        $0.sequence < $1.sequence
      }),
      item.moment.sequence < move.sequence
    {
      return item.path
    }
    return view.path(of: item.name, in: item.directory)
  }

  private mutating func tellReplace(_ item: NameItem, _ path: [UInt8], from: NameItem?, over: NameItem) {
    var notes: [FileEvent.AttributeChange] = [
      .init(attribute: "inode", old: String(over.inode), new: String(item.inode))
    ]
    if let old = over.settled, let new = view?.nodes[item.inode]?.inode { notes += Self.differences(old, new) }
    report(.replace, at: item.moment, path: path, oldPath: from?.path, inode: item.inode, changes: notes)
  }

  private mutating func tellGone(_ item: NameItem, _ changes: NameChanges) {
    if let (target, suffix) = item.movedWith {
      let top = changes.appeared[target]
      let path = (view?.path(of: top.name, in: top.directory) ?? []) + suffix
      report(.rename, at: item.moment, path: path, oldPath: item.path, inode: item.inode)
      return
    }
    var notes: [FileEvent.AttributeChange] = []
    if let old = item.settled, let new = item.current, new.kind != .directory {
      if old.linkCount != new.linkCount {
        notes.append(.init(attribute: "links", old: String(old.linkCount), new: String(new.linkCount)))
      } else if new.isInUse, new.generation == old.generation {
        notes.append(.init(attribute: "inode", old: "", new: "in use; it may have a name where nothing is followed"))
      }
    }
    let isDirectory = item.isDirectory || item.settled?.kind == .directory
    report(isDirectory ? .rmdir : .unlink, at: item.moment, path: item.path, inode: item.inode, changes: notes)
  }
}
