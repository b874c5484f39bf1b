internal import VMFenceCore

// What changed metadata mean for the view, and what is noted for the next settling.
extension IntegrityMonitor {
  /// Upper structures first: what they release is no longer looked at.
  mutating func processMetadata(_ moment: Moment) {
    let order: [BlockRole] = [
      .superblock, .descriptors, .inodeTable, .map, .directory, .attributes,
    ]
    let found = hits
    for role in order {
      for (block, use) in found where use.role == role && view?.table.contains(block, use) == true {
        switch role {
        case .superblock, .descriptors: processSystemBlock(Int(use.index), role, moment)
        case .inodeTable: processInodes(from: use.inode, moment)
        case .map:
          if view?.fileSystem.superblock.journalInode == use.inode { processJournalMap(nodes: true, moment) }
          remap(use.inode, moment)
        case .directory:
          view?.readNames(of: use.inode, fileBlock: use.index, block: block)
          noteNames(of: use.inode, moment)
        case .attributes:
          news[use.inode, default: News()].attributesRewritten = moment
          noteChange(at: moment.time)
        case .data: break
        }
      }
    }
  }

  /// Takes over what the last request left of metadata that it discarded.
  mutating func processDiscarded() {
    guard let (uses, moment) = discarded else { return }
    discarded = nil
    hits = uses
    processMetadata(moment)
    if view?.damage.count ?? 0 > 0 { noteChange(at: moment.time) }
  }

  private mutating func processSystemBlock(_ index: Int, _ role: BlockRole, _ moment: Moment) {
    guard let fileSystem = view?.fileSystem else { return }
    do throws(IntegrityError) {
      if role == .superblock {
        let isCopy = fileSystem.overlay[fileSystem.superblock.ownBlock] != nil
        let new =
          try isCopy
          ? fileSystem.readCommittedSuperblock()
          : ExtFileSystem.readSuperblock(reader, patch: fileSystem.patch)
        guard !new.hasSameLayout(as: fileSystem.superblock) else {
          view?.fileSystem.superblock = new
          return
        }
        requestResync("the superblock describes another file system, or another layout", at: moment.time)
      } else {
        guard try !fileSystem.descriptorsAreUnchanged(inBlock: index, buffer: &oldBlock) else { return }
        requestResync("a group descriptor moved an inode table or bitmap", at: moment.time)
      }
    } catch {
      requestResync("the superblock cannot be used: \(error.message)", at: moment.time)
    }
    tellDisplacement(moment)
  }

  /// Where a write puts the journal elsewhere, what was read of it says nothing any more.
  ///
  /// - `nodes`: as `Journal.isInPlace` has it.
  private mutating func processJournalMap(nodes: Bool, _ moment: Moment) {
    guard let fileSystem = view?.fileSystem, let journal = fileSystem.journal else { return }
    do throws(IntegrityError) {
      if try journal.isInPlace(fileSystem, nodes: nodes) { return }
      journalIsDisplaced = true
      requestResync(
        "the journal's inode puts the journal elsewhere: what the guest goes on to commit in the old place is seen once it is written "
          + "to its own", at: moment.time)
    } catch {
      journalIsDisplaced = true
      requestResync("the journal's inode was written and cannot be used: \(error.message)", at: moment.time)
    }
    tellDisplacement(moment)
  }

  /// Tells as damage why the disk is to be read anew.
  private mutating func tellDisplacement(_ moment: Moment) {
    guard let reason = resyncReason else { return }
    tellDamage(reason, moment)
  }

  /// Tells damage of the file system, each once.
  ///
  /// - `verdict`: of the request that brings it.
  mutating func tellDamage(_ message: String, _ moment: Moment, _ verdict: BlockVerdict = .allow) {
    if toldDamages.count > 1024 { toldDamages.removeAll() }
    guard toldDamages.insert(Damage(inode: 0, path: [], message: message)).inserted else { return }
    statisticsStorage.damages += 1
    var event = event(.damage, at: moment, path: [], inode: 0, changes: [Self.damageChange(message)])
    event.verdict = verdict
    batch.append(event)
    flushBatch()
  }

  private mutating func processInodes(from first: UInt32, _ moment: Moment) {
    guard let fileSystem = view?.fileSystem else { return }
    // There may be as many inodes as numbers for them.
    let end = UInt64(first) + UInt64(fileSystem.blockSize / fileSystem.superblock.inodeSize)
    for number in UInt64(first)..<min(end, UInt64(fileSystem.superblock.inodeCount) + 1) {
      let number = UInt32(truncatingIfNeeded: number)
      if number == fileSystem.superblock.journalInode { processJournalMap(nodes: false, moment) }
      guard let old = view?.nodes[number]?.inode else { continue }
      do throws(IntegrityError) {
        let new = try fileSystem.inode(number, buffer: &oldBlock)
        rewritten.insert(number)
        guard new != old else { continue }
        change(number, from: old, to: new, moment)
      } catch {
        requestResync("inode \(number) cannot be read: \(error.message)", at: moment.time)
      }
    }
  }

  private mutating func change(_ number: UInt32, from old: ExtInode, to new: ExtInode, _ moment: Moment) {
    view?.nodes[number]?.inode = new
    news[number, default: News()].written = moment
    noteChange(at: moment.time)
    if view?.nodes[number]?.links.isEmpty == false {
      if old.attributeBlock != new.attributeBlock {
        view?.insertAttributeBlock(of: number, old: old.attributeBlock, new: new.attributeBlock)
      }
      if new.isInUse { view?.reportFaults(of: number) }
    }
    remap(number, moment)
  }

  /// Reads anew which blocks an inode has.
  private mutating func remap(_ number: UInt32, _ moment: Moment) {
    guard let node = view?.nodes[number] else { return }
    if let directory = view?.directories[number] {
      let changes = view?.updateMap(of: number, node.inode.kind == .directory ? node.inode : nil) ?? []
      if !changes.isEmpty || directory.isInline || node.inode.hasInlineData { noteNames(of: number, moment) }
    } else if !node.links.isEmpty {
      // The map before the first change since the last settling: the difference tells which places have other contents.
      if news[number]?.mapBefore == nil { news[number, default: News()].mapBefore = node.map }
      let changes = view?.updateMap(of: number, node.inode.kind == .directory ? nil : node.inode) ?? []
      guard !changes.isEmpty else { return }
      let changed = news[number]?.changed ?? moment
      news[number]?.changed = changed
      noteChange(at: moment.time)
    }
  }

  private mutating func noteNames(of directory: UInt32, _ moment: Moment) {
    if nameNews[directory] == nil { nameNews[directory] = NameNews(changed: moment) }
    noteChange(at: moment.time)
  }
}
