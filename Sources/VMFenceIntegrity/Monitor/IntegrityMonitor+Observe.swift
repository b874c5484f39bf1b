public import VMFenceCore

extension IntegrityMonitor {
  public mutating func observe(_ request: BlockRequest, data: RawSpan) -> BlockVerdict {
    statisticsStorage.requests += 1
    if let now, request.sequence != now.sequence &+ 1 {
      observeGap(at: request.timestamp, reason: "request \(request.sequence) came after \(now.sequence)")
    }
    advance(to: request.timestamp)
    let moment = Moment(sequence: request.sequence, time: request.timestamp)
    now = moment
    switch request.operation {
    case .read: return .allow
    case .flush:
      if firstChange != nil { settle(at: request.timestamp) }
      return .allow
    case .write, .discard, .writeZeroes: break
    }

    let (end, overflow) = request.offset.addingReportingOverflow(request.length)
    if overflow || end > reader.byteCount || (request.operation == .write && UInt64(data.byteCount) != request.length) {
      statisticsStorage.malformed += 1
    }
    // What is written without data given, or beyond the end, is taken as zeroes and nothing: the disk decides.
    let stop = min(overflow ? .max : end, reader.byteCount)
    guard request.offset < stop else { return .allow }
    guard view != nil else {
      if request.offset < ExtSuperblock.offset + UInt64(ExtSuperblock.size), stop > ExtSuperblock.offset {
        requestResync("a superblock was written", at: request.timestamp)
      }
      return .allow
    }
    findHits(from: request.offset, to: stop)
    guard !hits.isEmpty else {
      if request.operation == .write {
        pendingWrites.add(start: request.offset, end: stop, sequence: request.sequence)
      }
      return .allow
    }
    statisticsStorage.hits += 1
    return process(WriteInFlight(offset: request.offset, end: stop, operation: request.operation), data, moment)
  }

  /// Collects what the blocks of a request are, into `hits`.
  private mutating func findHits(from start: UInt64, to end: UInt64) {
    hits.removeAll(keepingCapacity: true)
    guard let size = view.map({ UInt64($0.fileSystem.blockSize) }) else { return }
    let first = start / size
    let last = (end - 1) / size
    if last - first < 65_536 {
      for block in first...last where view?.table.contains(block) == true {
        view?.table.appendUses(of: block, to: &hits)
      }
    } else {
      view?.table.appendUses(in: first..<last + 1, to: &hits)
    }
  }

  struct WriteInFlight {
    var offset: UInt64
    /// One past its last byte.
    var end: UInt64
    var operation: BlockRequest.Operation
  }

  private mutating func process(_ write: WriteInFlight, _ data: RawSpan, _ moment: Moment) -> BlockVerdict {
    let changed = changedContents(write, data)
    if let verdict = deny(changed, moment) { return verdict }
    if write.operation == .write {
      // Blocks beside the followed ones may be claimed later, too.
      pendingWrites.add(start: write.offset, end: write.end, sequence: moment.sequence)
    }
    for change in changed {
      news[change.inode, default: News()].changed = news[change.inode]?.changed ?? moment
      news[change.inode]?.contents.insert(change.range)
      noteChange(at: moment.time)
    }
    if hits.contains(where: { $0.use.role != .data }) {
      let isWrite = write.operation == .write && UInt64(data.byteCount) >= write.end - write.offset
      let bytes = isWrite ? data.extracting(0..<Int(write.end - write.offset)).copiedBytes() : []
      view?.fileSystem.patch = WritePatch(offset: write.offset, length: write.end - write.offset, bytes: bytes)
      processMetadata(moment)
      if view?.damage.count ?? 0 > 0 { noteChange(at: moment.time) }
      view?.fileSystem.patch = nil
    }
    if changed.contains(where: { news[$0.inode]?.contents.isFull == true }) { settlesNext = true }
    return .allow
  }

  struct ContentChange {
    var inode: UInt32
    /// In bytes of the file.
    var range: Range<UInt64>
  }

  /// Which bytes of followed files a request changes, found by comparing with what the disk still has.
  private mutating func changedContents(_ write: WriteInFlight, _ data: RawSpan) -> [ContentChange] {
    var result: [ContentChange] = []
    guard let size = view.map({ UInt64($0.fileSystem.blockSize) }) else { return [] }
    for (block, use) in hits where use.role == .data {
      let start = block * size
      let from = max(start, write.offset)
      let to = min(start + size, write.end)
      let fileStart = UInt64(use.index) * size
      var low = from - start
      var high = to - start
      do throws(IntegrityError) {
        try view?.fileSystem.readBlock(block, into: &oldBlock)
        func isSame(_ index: UInt64) -> Bool {
          let position = start + index - write.offset
          let new = write.operation == .write && position < data.byteCount ? data.u8(Int(position)) : 0
          return oldBlock[Int(index)] == new
        }
        while low < high, isSame(low) { low += 1 }
        while high > low, isSame(high - 1) { high -= 1 }
      } catch {
        // What the disk had cannot be read: the whole of it counts as changed.
      }
      if low < high {
        result.append(ContentChange(inode: use.inode, range: fileStart + low..<fileStart + high))
      } else {
        statisticsStorage.unchangedWrites += 1
      }
    }
    return result
  }

  /// Refuses a request that changes contents which the policy says may not be changed, and tells so at once.
  private mutating func deny(_ changes: [ContentChange], _ moment: Moment) -> BlockVerdict? {
    var isDenied = false
    for change in changes {
      guard let node = view?.nodes[change.inode], node.links.contains(where: { $0.action == .denyData }) else {
        continue
      }
      let range = change.range.clamped(to: 0..<node.inode.size)
      guard !range.isEmpty else { continue }
      isDenied = true
      for link in node.links {
        report(
          .write, at: moment, path: view?.path(of: link) ?? [], inode: change.inode, offset: range.lowerBound,
          length: UInt64(range.count), verdict: .deny)
      }
    }
    guard isDenied else { return nil }
    statisticsStorage.denied += 1
    flushBatch()
    return .deny
  }

  // MARK: Metadata

  /// Upper structures first: what they release is no longer looked at.
  private mutating func processMetadata(_ moment: Moment) {
    let order: [BlockRole] = [
      .superblock, .descriptors, .inodeTable, .indirect3, .indirect2, .indirect1, .directory, .attributes,
    ]
    let found = hits
    for role in order {
      for (block, use) in found where use.role == role && view?.table.contains(block, use) == true {
        switch role {
        case .superblock, .descriptors: processSystemBlock(block, role, moment)
        case .inodeTable: processInodes(from: use.inode, moment)
        case .indirect1: processIndirect(block, use, level: 1, moment)
        case .indirect2: processIndirect(block, use, level: 2, moment)
        case .indirect3: processIndirect(block, use, level: 3, moment)
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

  private mutating func processSystemBlock(_ block: UInt64, _ role: BlockRole, _ moment: Moment) {
    guard let fileSystem = view?.fileSystem else { return }
    do throws(IntegrityError) {
      if role == .superblock {
        let new = try ExtFileSystem.readSuperblock(reader, patch: fileSystem.patch)
        guard !new.hasSameLayout(as: fileSystem.superblock) else { return }
        requestResync("the superblock describes another file system, or another layout", at: moment.time)
      } else {
        guard try !fileSystem.descriptorsAreUnchanged(inBlock: block, buffer: &oldBlock) else { return }
        requestResync("a group descriptor moved an inode table or bitmap", at: moment.time)
      }
    } catch {
      requestResync("the superblock cannot be used: \(error.message)", at: moment.time)
    }
    guard let reason = resyncReason else { return }
    let damage = Damage(inode: 0, path: [], message: reason)
    guard toldDamages.insert(damage).inserted else { return }
    statisticsStorage.damages += 1
    report(.damage, at: moment, path: [], inode: 0, changes: [Self.damageChange(reason)])
    flushBatch()
  }

  private mutating func processInodes(from first: UInt32, _ moment: Moment) {
    guard let fileSystem = view?.fileSystem else { return }
    let perBlock = UInt32(fileSystem.blockSize / fileSystem.superblock.inodeSize)
    for number in first..<min(first &+ perBlock, fileSystem.superblock.inodeCount &+ 1) {
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
    guard let size = view?.fileSystem.blockSize else { return }
    if view?.nodes[number]?.links.isEmpty == false, old.attributeBlock != new.attributeBlock {
      view?.insertAttributeBlock(of: number, old: old.attributeBlock, new: new.attributeBlock)
    }
    if view?.directories[number] != nil {
      let root = new.kind == .directory && new.hasBlocks(blockSize: size) ? new.blocks : nil
      if let changes = view?.updateTree(of: number, root: root), !changes.isEmpty { noteNames(of: number, moment) }
    } else if view?.nodes[number]?.links.isEmpty == false {
      let root = view?.contentsRoot(new, number: number)
      keepTree(of: number)
      _ = view?.updateTree(of: number, root: root)
    }
  }

  private mutating func processIndirect(_ block: UInt64, _ use: BlockUse, level: Int, _ moment: Moment) {
    let isDirectory = view?.directories[use.inode] != nil
    if !isDirectory { keepTree(of: use.inode) }
    guard let changes = view?.updateIndirect(of: use.inode, block: block, level: level, base: use.index),
      !changes.isEmpty
    else { return }
    if isDirectory {
      noteNames(of: use.inode, moment)
    } else {
      news[use.inode, default: News()].changed = news[use.inode]?.changed ?? moment
      noteChange(at: moment.time)
    }
  }

  /// Keeps the blocks that a file has before the first change since the last settling: the difference tells which of
  /// its places have other contents.
  private mutating func keepTree(of number: UInt32) {
    if news[number]?.treeBefore == nil { news[number, default: News()].treeBefore = view?.nodes[number]?.tree }
  }

  private mutating func noteNames(of directory: UInt32, _ moment: Moment) {
    if nameNews[directory] == nil { nameNews[directory] = NameNews(changed: moment) }
    noteChange(at: moment.time)
  }
}
