internal import VMFenceCore

extension IntegrityMonitor {
  /// How often a disk without a file system that can be followed is looked at anew while it is written to, after its superblock was.
  static var resyncAttemptLimit: Int { 16 }

  /// Reads the whole view anew and tells how what is protected differs from what was told last.
  mutating func resync(at moment: Moment) {
    statisticsStorage.resyncs += 1
    lastResync = moment.time
    resyncReason = nil
    resyncAttempts = view == nil ? max(0, resyncAttempts - 1) : Self.resyncAttemptLimit
    if let view {
      lastKnown = Self.settledFiles(view)
      lastObjects = view.nodes.compactMap { number, node in
        let former = node.links.filter(\.isFormer)
        return former.isEmpty ? nil : (number, node.settled, former)
      }
    }
    news.removeAll()
    nameNews.removeAll()
    suspects.removeAll()
    rewritten.removeAll()
    awaitsTimes.removeAll()
    checkpointed.removeAll()
    transactionAttempts = 0
    view = nil
    do throws(IntegrityError) {
      view = try Self.makeView(reader, configuration)
      journalSpan = view?.fileSystem.journalSpan ?? 0..<0
      blindness = nil
      resyncAttempts = 0
    } catch {
      if blindness != error {
        report(.damage, at: moment, path: [], inode: 0, changes: [Self.damageChange(error.message)])
      }
      blindness = error
      return flushBatch()
    }
    tellDifferences(at: moment)
    followObjects(at: moment)
    lastKnown.removeAll()
    lastObjects.removeAll()
    reportDamage(at: moment, isFinal: true)
    flushBatch()
    takeHashes()
  }

  private static func settledFiles(_ view: FileSystemView) -> [FileSystemView.ProtectedFile] {
    view.protectedFiles.map { file in
      var file = file
      file.inode = view.nodes[file.number]?.settled ?? file.inode
      return file
    }
  }

  private mutating func tellDifferences(at moment: Moment) {
    let files = protectedFiles
    var old: [[UInt8]: FileSystemView.ProtectedFile] = [:]
    for file in lastKnown { old[file.path] = file }
    let newPaths = Set(files.map(\.path))
    var gone: [UInt32: [FileSystemView.ProtectedFile]] = [:]
    for file in lastKnown.reversed() where !newPaths.contains(file.path) { gone[file.number, default: []].append(file) }
    for file in files {
      if let before = old[file.path] {
        if before.number == file.number {
          tellInode(before, file, at: moment)
        } else {
          report(
            .replace, at: moment, path: file.path, inode: file.number,
            changes: [.init(attribute: "inode", old: String(before.number), new: String(file.number))]
              + Self.differences(before.inode, file.inode))
        }
      } else if let before = gone[file.number]?.last, before.inode.generation == file.inode.generation {
        gone[file.number]?.removeLast()
        report(.rename, at: moment, path: file.path, oldPath: before.path, inode: file.number)
      } else {
        report(.create, at: moment, path: file.path, inode: file.number, changes: Self.description(file.inode))
      }
    }
    for file in gone.values.joined().sorted(by: { $0.path.lexicographicallyPrecedes($1.path) }) {
      report(file.inode.kind == .directory ? .rmdir : .unlink, at: moment, path: file.path, inode: file.number)
    }
  }

  /// Goes on following files that are protected as objects: those that had no protected name any more, and those that lost theirs
  /// meanwhile.
  private mutating func followObjects(at moment: Moment) {
    for (number, settled, links) in lastObjects where !follow(number, settled, links, at: moment) {
      report(
        .unlink, at: moment, path: view.map { view in links.first.map { view.path(of: $0) } ?? [] } ?? [],
        inode: number,
        changes: [.init(attribute: "object", old: "", new: "the file that had this name is gone")])
    }
    let names = Set(protectedFiles.map(\.number))
    for file in lastKnown
    where !names.contains(file.number) && configuration.policy.protection(forPath: file.path)?.followsObject == true {
      let link = FileSystemView.Link(
        directory: FileSystemView.Link.formerDirectory, name: Array(file.path.dropFirst()), action: file.action)
      // That its name is gone was told.
      _ = follow(file.number, file.inode, [link], at: moment)
    }
  }

  /// - Returns: false when the file is not the same any more.
  private mutating func follow(
    _ number: UInt32, _ known: ExtInode, _ links: [FileSystemView.Link], at moment: Moment
  ) -> Bool {
    guard view?.followObject(number, known, links) == true, let now = view?.nodes[number]?.inode, let link = links.first
    else { return false }
    var file = FileSystemView.ProtectedFile(
      path: view?.path(of: link) ?? [], number: number, inode: known, action: link.action)
    let before = file
    file.inode = now
    tellInode(before, file, at: moment)
    return true
  }

  /// Of contents it is known only that they changed when the blocks or the size did.
  private mutating func tellInode(
    _ before: FileSystemView.ProtectedFile, _ after: FileSystemView.ProtectedFile, at moment: Moment
  ) {
    guard before.inode != after.inode, let node = view?.nodes[after.number] else { return }
    var copy = node
    copy.settled = before.inode
    var item = News()
    item.written = moment
    if after.inode.kind == .regular, before.inode.blocks != after.inode.blocks {
      item.changed = moment
      report(
        .write, at: moment, path: after.path, inode: after.number,
        changes: [.init(attribute: "data", old: "", new: "other blocks; what changed was not seen")])
    }
    tell(after.number, after.path, copy, item, isNamed: false)
  }
}
