internal import VMFenceCore

extension IntegrityMonitor {
  /// How often a disk without a file system that can be followed is looked at anew while it is written to, after its superblock was.
  static var resyncAttemptLimit: Int { 16 }

  /// Reads the whole view anew and tells how what is protected differs from what was told last. Changes of contents that were seen and not told
  /// yet are told first.
  mutating func resync(at moment: Moment) {
    statisticsStorage.resyncs += 1
    lastResync = moment.time
    resyncReason = nil
    resyncAttempts = view == nil ? max(0, resyncAttempts - 1) : Self.resyncAttemptLimit
    let grown = view == nil ? [:] : tellWaiting()
    if view == nil { settleBlind() }
    if view != nil { former = view }
    news.removeAll()
    nameNews.removeAll()
    suspects.removeAll()
    rewritten.removeAll()
    awaitsTimes.removeAll()
    checkpointed.removeAll()
    discarded = nil
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
      if blindSince == nil, former != nil { blindSince = moment }
      // The journal is not followed meanwhile: its copies vouch for nothing.
      former?.fileSystem.overlay = JournalOverlay()
      return flushBatch()
    }
    keepOrderOfNames()
    tellSight(at: moment)
    let known = former.map(Self.settledFiles) ?? []
    tellDifferences(from: known, grown, at: moment)
    followObjects(from: known, at: moment)
    reportDamage(at: moment, isFinal: true)
    flushBatch()
    retakeHashes(at: moment)
    former = nil
  }

  /// Tells the changes of contents that wait for a settling. The rest of what waits shows in the inodes and names themselves.
  ///
  /// - Returns: of files that may have grown, what was written behind their ends.
  private mutating func tellWaiting() -> [UInt32: ByteRanges] {
    var grown: [UInt32: ByteRanges] = [:]
    for number in news.keys.sorted() {
      guard var item = news[number], let node = view?.nodes[number], !node.links.isEmpty else { continue }
      takeMap(&item, node)
      for range in item.contents.clamped(to: node.settled.size..<UInt64.max) {
        grown[number, default: ByteRanges()].insert(range)
      }
      // The inode as it is now is compared with the one that the disk turns out to have.
      item.written = nil
      for name in toldNames(of: node) {
        let first = batch.count
        tellContents(number, name.path, node.settled, node.settled, item)
        add(name.notes, from: first)
      }
    }
    return grown
  }

  private static func settledFiles(_ view: FileSystemView) -> [FileSystemView.ProtectedFile] {
    view.protectedFiles.map { file in
      var file = file
      file.inode = view.nodes[file.number]?.settled ?? file.inode
      return file
    }
  }

  private mutating func tellDifferences(
    from known: [FileSystemView.ProtectedFile], _ grown: [UInt32: ByteRanges], at moment: Moment
  ) {
    let files = protectedFiles
    var old: [[UInt8]: FileSystemView.ProtectedFile] = [:]
    for file in known { old[file.path] = file }
    let newPaths = Set(files.map(\.path))
    var gone: [UInt32: [FileSystemView.ProtectedFile]] = [:]
    for file in known.reversed() where !newPaths.contains(file.path) { gone[file.number, default: []].append(file) }
    let some = someNames(old)
    for file in files {
      if let before = old[file.path] {
        if before.number == file.number {
          guard let notes = some[file.number, default: [file.path: []]][file.path] else { continue }
          let first = batch.count
          tellInode(before, file, grown[file.number], at: moment)
          add(notes, from: first)
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
    for file in reader.sorted(gone.values.joined(), by: \.path) {
      report(file.inode.kind == .directory ? .rmdir : .unlink, at: moment, path: file.path, inode: file.number)
    }
  }

  /// Puts the names that a file had before first, as they were: of many, the oldest ones are told.
  private mutating func keepOrderOfNames() {
    for (number, node) in view?.nodes ?? [:] where node.links.count > Self.toldNames {
      guard let before = former?.nodes[number] else { continue }
      let known = before.links.enumerated().map { (former?.path(of: $0.element) ?? [], $0.offset) }
      let age = Dictionary(known) { first, _ in first }
      let links = node.links.map { ($0, age[view?.path(of: $0) ?? []] ?? .max) }.enumerated()
      view?.nodes[number]?.links = links.sorted { ($0.element.1, $0.offset) < ($1.element.1, $1.offset) }
        .map(\.element.0)
    }
  }

  /// Of files that have more names than changes are told under: those under which they are, with their notes. A name that is new to the file
  /// is told as such.
  private func someNames(
    _ old: [[UInt8]: FileSystemView.ProtectedFile]
  ) -> [UInt32: [[UInt8]: [FileEvent.AttributeChange]]] {
    var result: [UInt32: [[UInt8]: [FileEvent.AttributeChange]]] = [:]
    for (number, node) in view?.nodes ?? [:] where node.links.count > Self.toldNames {
      let paths = node.links.map { view?.path(of: $0) ?? [] }
      let told = toldNames(of: node, except: Set(paths.filter { old[$0]?.number != number }))
      result[number] = Dictionary(told.map { ($0.path, $0.notes) }) { first, _ in first }
    }
    return result
  }

  /// Goes on following files that are protected as objects: those that had no protected name any more, and those that lost theirs
  /// meanwhile.
  private mutating func followObjects(from known: [FileSystemView.ProtectedFile], at moment: Moment) {
    for (number, node) in (former?.nodes ?? [:]).sorted(by: { $0.key < $1.key }) {
      let links = node.links.filter(\.isFormer)
      if links.isEmpty || follow(number, node.settled, links, at: moment) { continue }
      report(
        .unlink, at: moment, path: view.map { view in links.first.map { view.path(of: $0) } ?? [] } ?? [],
        inode: number,
        changes: [.init(attribute: "object", old: "", new: "the file that had this name is gone")])
    }
    let names = Set(protectedFiles.map(\.number))
    for file in known
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
    tellInode(before, file, nil, at: moment)
    return true
  }

  /// Of contents that nobody saw being written it is known only that they changed when the blocks or the size did, or (`retakeHashes`) the
  /// hash.
  ///
  /// - `grown`: what was seen being written behind the end of the file.
  private mutating func tellInode(
    _ before: FileSystemView.ProtectedFile, _ after: FileSystemView.ProtectedFile, _ grown: ByteRanges?,
    at moment: Moment
  ) {
    guard let node = view?.nodes[after.number], let last = former?.nodes[after.number] else { return }
    // What the map, and the numbers of blocks in the inode, were when they were seen last: the difference to what was told is told.
    let hasOtherBlocks = last.map != node.map || last.inode.blocks != after.inode.blocks
    guard before.inode != after.inode || hasOtherBlocks || last.attributes != node.attributes else { return }
    var copy = node
    copy.settled = before.inode
    copy.attributes = last.attributes
    var item = News()
    item.written = moment
    item.attributesRewritten = moment
    for range in grown?.clamped(to: before.inode.size..<UInt64.max) ?? [] { item.contents.insert(range) }
    if after.inode.kind == .regular, hasOtherBlocks {
      item.changed = moment
      report(
        .write, at: moment, path: after.path, inode: after.number,
        changes: [.init(attribute: "data", old: "", new: "other blocks; what changed was not seen")])
    }
    takeAttributes(&item, after.number, copy)
    tell(after.number, after.path, copy, item, isNamed: false)
  }

  /// Hashes anew what the policy wants hashed. Of a file that is the same as before and has another hash, of which nothing else was told, that is
  /// told.
  private mutating func retakeHashes(at moment: Moment) {
    let before = hashes
    takeHashes()
    // Of these, `drainEvents` adds the hashes to what is told.
    let told = queue.changedInodes
    for (number, hash) in before.sorted(by: { $0.key < $1.key }) where hashes[number] != hash {
      guard let node = view?.nodes[number], !node.links.isEmpty,
        former?.nodes[number]?.settled.generation == node.inode.generation
      else { continue }
      guard !told.contains(UInt64(number)) else {
        hashes[number] = hash
        continue
      }
      let lost = node.links.filter(\.isFormer).map { view?.path(of: $0) ?? [] }
      for name in toldNames(of: node, except: Set(lost)) {
        report(
          .write, at: moment, path: name.path, inode: number,
          changes: [
            .init(attribute: "data", old: "", new: "other contents; what changed was not seen"),
            .init(attribute: "sha256", old: Self.hexadecimal(hash), new: Self.hexadecimal(hashes[number])),
          ] + name.notes)
      }
    }
    flushBatch()
  }
}
