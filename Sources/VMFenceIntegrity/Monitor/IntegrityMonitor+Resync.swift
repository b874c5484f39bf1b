internal import VMFenceCore

extension IntegrityMonitor {
  /// Reads the whole view anew and tells how what is protected differs from what was told last.
  mutating func resync(at moment: Moment) {
    statisticsStorage.resyncs += 1
    lastResync = moment.time
    resyncReason = nil
    if let view { lastKnown = Self.settledFiles(view) }
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
    } catch {
      if blindness != error {
        report(.damage, at: moment, path: [], inode: 0, changes: [Self.damageChange(error.message)])
      }
      blindness = error
      return flushBatch()
    }
    tellDifferences(at: moment)
    lastKnown.removeAll()
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
