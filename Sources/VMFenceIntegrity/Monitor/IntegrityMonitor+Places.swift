internal import VMFenceCore

// Blocks of which the journal has copies, and what lies at their places meanwhile.
extension IntegrityMonitor {
  /// Takes out of `hits` the blocks of which the journal has the last committed contents. Of metadata these count, whatever is written to the
  /// place: the guest's kernel has them too, and writes them there. The contents of a file are read from their place, so a write of other
  /// bytes to it is judged as any other.
  ///
  /// - Returns: what such writes change of the contents of followed files.
  mutating func leaveOutJournalled(_ write: WriteInFlight, _ data: RawSpan) -> [ContentChange] {
    guard let fileSystem = view?.fileSystem else { return [] }
    var changes: [ContentChange] = []
    var last: UInt64?
    for (index, hit) in hits.enumerated() where hit.block != last && fileSystem.overlay[hit.block] != nil {
      last = hit.block
      if bringsCopy(of: hit.block, write, data) {
        checkpointed.append(hit.block)
        continue
      }
      let uses = hits[index...].prefix { $0.block == hit.block }
      guard uses.contains(where: { $0.use.role == .data }) else { continue }
      if view?.fileSystem.patch == nil { view?.fileSystem.patch = write.patch(data) }
      changes += contentsAtPlace(of: hit.block)
      // From then on the place counts.
      if uses.allSatisfy({ $0.use.role == .data }) { checkpointed.append(hit.block) }
    }
    view?.fileSystem.patch = nil
    if last != nil { hits.removeAll { fileSystem.overlay[$0.block] != nil } }
    return changes
  }

  /// Whether a write puts the journal's copy of a block to its place.
  private mutating func bringsCopy(of block: UInt64, _ write: WriteInFlight, _ data: RawSpan) -> Bool {
    guard let fileSystem = view?.fileSystem else { return false }
    let size = UInt64(fileSystem.blockSize)
    let start = block * size
    guard write.operation == .write, write.offset <= start, write.end >= start + size,
      UInt64(data.byteCount) >= write.end - write.offset, (try? fileSystem.readBlock(block, into: &oldBlock)) != nil
    else { return false }
    let new = data.extracting(Int(start - write.offset)..<Int(start - write.offset + size))
    return (0..<Int(size)).allSatisfy { new.u8($0) == oldBlock[$0] }
  }

  /// The copies of blocks whose places have the same now, or count for another reason, once the request before is on the disk.
  mutating func dropCheckpointed() {
    guard !checkpointed.isEmpty else { return }
    for block in checkpointed { view?.fileSystem.overlay[block] = nil }
    checkpointed.removeAll(keepingCapacity: true)
  }

  /// Which contents of followed files would be others without the journal's copy of a block; none where there is no copy.
  mutating func contentsAtPlace(of block: UInt64) -> [ContentChange] {
    guard let fileSystem = view?.fileSystem, fileSystem.overlay[block] != nil else { return [] }
    var uses: [(block: UInt64, use: BlockUse)] = []
    view?.table.appendUses(of: block, to: &uses)
    uses.removeAll { $0.use.role != .data }
    guard !uses.isEmpty else { return [] }
    var place: [UInt8] = []
    let isRead =
      (try? fileSystem.readBlock(block, into: &oldBlock)) != nil
      && (try? fileSystem.readDiskBlock(block, into: &place)) != nil
    var low = 0
    var high = fileSystem.blockSize
    // What cannot be read counts as changed.
    if isRead {
      while low < high, oldBlock[low] == place[low] { low += 1 }
      while high > low, oldBlock[high - 1] == place[high - 1] { high -= 1 }
    }
    guard low < high else { return [] }
    return uses.map { _, use in
      let start = UInt64(use.index) * UInt64(fileSystem.blockSize)
      return ContentChange(
        inode: use.inode, range: start + UInt64(low)..<start + UInt64(high),
        old: isRead && keepsContents(of: use.inode) ? Array(oldBlock[low..<high]) : [])
    }
  }

  /// Judges what a transaction changes by revoking copies: contents of files that still have these blocks.
  ///
  /// - `bared`: found before the transaction was applied.
  mutating func takeBared(_ bared: [(block: UInt64, change: ContentChange)], _ moment: Moment) -> BlockVerdict {
    guard let size = view.map({ UInt64($0.fileSystem.blockSize) }) else { return .allow }
    let changes = bared.filter { block, change in
      let use = BlockUse(
        role: .data, inode: change.inode, index: UInt32(truncatingIfNeeded: change.range.lowerBound / size))
      return view?.table.contains(block, use) == true
    }.map(\.change)
    let verdict = refuse(changes, moment)
    guard verdict == .allow else { return verdict }
    keep(changes, moment)
    note(changes, moment)
    return .allow
  }

  /// Copies in the journal that a write puts other bytes over, while they are still needed: no kernel does that. Nobody knows any more what a
  /// replay of the journal would bring, so their places count.
  mutating func takeOverwrittenCopies(_ write: WriteInFlight, _ data: RawSpan, _ moment: Moment) -> BlockVerdict {
    guard let fileSystem = view?.fileSystem, !fileSystem.overlay.isEmpty else { return .allow }
    let size = UInt64(fileSystem.blockSize)
    let blocks = write.offset / size...(write.end - 1) / size
    var lost: [UInt64] = []
    var new: [UInt8] = []
    for (home, block) in fileSystem.overlay.copies(in: blocks) {
      if view?.fileSystem.patch == nil { view?.fileSystem.patch = write.patch(data) }
      let isRead =
        (try? fileSystem.readDiskBlock(block, into: &oldBlock)) != nil
        && (try? view?.fileSystem.readDiskBlock(block, into: &new)) != nil
      if !isRead || oldBlock != new { lost.append(home) }
    }
    view?.fileSystem.patch = nil
    guard !lost.isEmpty else { return .allow }
    let verdict = forgetCopies(lost, moment)
    if verdict == .allow, lost.contains(where: { view?.table.contains($0) == true }) {
      tellDamage("a block in the journal was overwritten while it was needed", moment)
    }
    return verdict
  }

  /// From now on the places of blocks count. Where a followed block has other contents there than the journal had, somebody wrote
  /// past the journal, and that is judged and told as any other change.
  mutating func forgetCopies(_ blocks: [UInt64], _ moment: Moment) -> BlockVerdict {
    var changes: [ContentChange] = []
    var place: [UInt8] = []
    hits.removeAll(keepingCapacity: true)
    for block in blocks.filter({ view?.table.contains($0) == true }).sorted() {
      changes += contentsAtPlace(of: block)
      let isRead = (try? view?.fileSystem.readBlock(block, into: &oldBlock)) != nil
      let isPlaceRead = (try? view?.fileSystem.readDiskBlock(block, into: &place)) != nil
      if isRead, isPlaceRead, oldBlock != place { view?.table.appendUses(of: block, to: &hits) }
    }
    let verdict = refuse(changes, moment)
    if verdict != .allow { return verdict }
    let before = view
    for block in blocks { view?.fileSystem.overlay[block] = nil }
    if hits.contains(where: { $0.use.role != .data }) {
      if let before, configuration.policy.judgesMetadata {
        let verdict = judgeMetadata(from: before, moment)
        if verdict != .allow { return verdict }
      } else {
        processMetadata(moment)
      }
    }
    keep(changes, moment)
    note(changes, moment)
    return .allow
  }

  /// Tries what metadata in `hits` that are not in the journal change, and judges it as if a transaction had brought it. A guest's kernel never
  /// has others at their place than it committed; who writes past it does.
  ///
  /// - `before`: the view without the change, which is put back when it is refused.
  mutating func judgeMetadata(from before: FileSystemView, _ moment: Moment) -> BlockVerdict {
    let saved = Saved(self)
    journalIsDisplaced = false
    isTrial = true
    processMetadata(moment)
    settle(at: moment.time)
    isTrial = false
    var verdict = refuseMetadata(moment)
    if verdict == .allow, journalIsDisplaced {
      verdict = strongestRefusal(isMetadata: true)
      if verdict != .allow {
        batch.removeAll(keepingCapacity: true)
        tellDamage("the journal is put elsewhere past the guest's kernel", moment, verdict)
        if verdict == .hold { hold(moment) }
      }
    }
    guard verdict == .allow else {
      view = before
      saved.restore(&self)
      return verdict
    }
    keep(batch, from: before, moment)
    flushBatch()
    return .allow
  }

  /// Those of the blocks that are followed, each once.
  func uniqueInTable(_ blocks: [UInt64]) -> [UInt64] {
    var seen: Set<UInt64> = []
    return blocks.filter { view?.table.contains($0) == true && seen.insert($0).inserted }
  }

  /// Changed contents are told at the next settling.
  mutating func note(_ changes: [ContentChange], _ moment: Moment) {
    for change in changes {
      news[change.inode, default: News()].changed = news[change.inode]?.changed ?? moment
      news[change.inode]?.contents.insert(change.range)
      noteChange(at: moment.time)
    }
  }
}
