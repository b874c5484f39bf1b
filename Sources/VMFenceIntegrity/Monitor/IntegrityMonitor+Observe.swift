public import VMFenceCore

extension IntegrityMonitor {
  public mutating func observe(_ request: BlockRequest, data: RawSpan) -> BlockVerdict {
    if let verdict = heldVerdict(request) { return verdict }
    let verdict = judge(request, data: data)
    noteVerdict(verdict, request)
    return verdict
  }

  private mutating func judge(_ request: BlockRequest, data: RawSpan) -> BlockVerdict {
    if held == nil { statisticsStorage.requests += 1 }
    if held == nil, let now, request.sequence != now.sequence &+ 1 {
      observeGap(at: request.timestamp, reason: "request \(request.sequence) came after \(now.sequence)")
    }
    dropCheckpointed()
    processDiscarded()
    advance(to: request.timestamp)
    let moment = Moment(sequence: request.sequence, time: request.timestamp)
    now = moment
    switch request.operation {
    case .read:
      if configuration.policy.tellsReads { tellReads(request, moment) }
      return .allow
    case .flush:
      // With a journal the commit block, which the guest writes after a flush, says when things belong together.
      if firstChange != nil, view?.fileSystem.journal == nil { settle(at: request.timestamp) }
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
    let write = WriteInFlight(offset: request.offset, end: stop, operation: request.operation)
    guard view != nil else { return judgeBlind(write, data, moment) }
    if touchesJournal(write) {
      let verdict = followJournal(write, data, moment)
      if verdict != .allow { return verdict }
    }
    findHits(from: request.offset, to: stop)
    var displaced: [ContentChange] = []
    if !hits.isEmpty, view?.fileSystem.overlay.isEmpty == false { displaced = leaveOutJournalled(write, data) }
    guard !hits.isEmpty || !displaced.isEmpty else {
      if request.operation != .discard {
        pendingWrites.add(start: request.offset, end: stop, moment, hash: hash(write, data))
      }
      return .allow
    }
    statisticsStorage.hits += 1
    return process(write, data, displaced, moment)
  }

  /// Collects what the blocks of a request are, into `hits`.
  mutating func findHits(from start: UInt64, to end: UInt64) {
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

    /// The disk as it will be.
    func patch(_ data: RawSpan) -> WritePatch {
      let isWrite = operation == .write && UInt64(data.byteCount) >= end - offset
      let bytes = isWrite ? data.extracting(0..<Int(end - offset)).copiedBytes() : []
      return WritePatch(offset: offset, length: end - offset, bytes: bytes)
    }
  }

  /// - `displaced`: what it changes of contents that the journal has copies of.
  private mutating func process(
    _ write: WriteInFlight, _ data: RawSpan, _ displaced: [ContentChange], _ moment: Moment
  ) -> BlockVerdict {
    let changed = changedContents(write, data) + displaced
    let verdict = max(refuse(changed, moment), refuseDisplacement(write, data, moment))
    if verdict != .allow {
      // It does not reach the disk.
      checkpointed.removeAll(keepingCapacity: true)
      return verdict
    }
    let hasMetadata = hits.contains { $0.use.role != .data }
    // Before what may be refused is noted: what is noted is told.
    let isJudged = hasMetadata && configuration.policy.judgesMetadata && view?.fileSystem.journal != nil
    if isJudged, let before = view {
      view?.fileSystem.patch = write.patch(data)
      let verdict = judgeMetadata(from: before, moment)
      view?.fileSystem.patch = nil
      guard verdict == .allow else {
        checkpointed.removeAll(keepingCapacity: true)
        return verdict
      }
    }
    keep(changed, moment)
    if write.operation != .discard {
      // Blocks beside the followed ones may be claimed later, too.
      pendingWrites.add(start: write.offset, end: write.end, moment, hash: hash(write, data))
    }
    note(changed, moment)
    if hasMetadata, !isJudged || write.operation == .discard { takeMetadata(write, data, moment) }
    if changed.contains(where: { news[$0.inode]?.contents.isFull == true }) { settlesNext = true }
    return .allow
  }

  private mutating func takeMetadata(_ write: WriteInFlight, _ data: RawSpan, _ moment: Moment) {
    hits.removeAll { $0.use.role == .data }
    if write.operation == .discard {
      discarded = (hits, moment)
      return noteChange(at: moment.time)
    }
    view?.fileSystem.patch = write.patch(data)
    processMetadata(moment)
    if view?.damage.count ?? 0 > 0 { noteChange(at: moment.time) }
    view?.fileSystem.patch = nil
  }

  func hash(_ write: WriteInFlight, _ data: RawSpan) -> UInt64? {
    guard hashesHeldWrites, write.operation == .write, UInt64(data.byteCount) == write.end - write.offset else {
      return nil
    }
    return PendingWrites.hash(data, key: (configuration.hashKeyLow, configuration.hashKeyHigh))
  }

  struct ContentChange {
    var inode: UInt32
    /// In bytes of the file.
    var range: Range<UInt64>
    /// What was there before; empty where the policy does not ask for it, or it cannot be read.
    var old: [UInt8] = []

    /// Adds a change; one that goes on where the last ended is the same change.
    func append(to changes: inout [ContentChange]) {
      guard let last = changes.last, last.inode == inode, last.range.upperBound == range.lowerBound,
        last.old.isEmpty == old.isEmpty
      else { return changes.append(self) }
      changes[changes.count - 1].range = last.range.lowerBound..<range.upperBound
      changes[changes.count - 1].old += old
    }
  }

  /// Which bytes of followed files a request changes, found by comparing with what the disk still has.
  mutating func changedContents(_ write: WriteInFlight, _ data: RawSpan) -> [ContentChange] {
    var result: [ContentChange] = []
    guard let size = view.map({ UInt64($0.fileSystem.blockSize) }) else { return [] }
    for (block, use) in hits where use.role == .data {
      let start = block * size
      let from = max(start, write.offset)
      let to = min(start + size, write.end)
      let fileStart = UInt64(use.index) * size
      let isKept = keepsContents(of: use.inode)
      var isRead = true
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
        isRead = false
      }
      if low < high {
        let old = isKept && isRead ? Array(oldBlock[Int(low)..<Int(high)]) : []
        ContentChange(inode: use.inode, range: fileStart + low..<fileStart + high, old: old).append(to: &result)
      } else {
        statisticsStorage.unchangedWrites += 1
      }
    }
    return result
  }
}
