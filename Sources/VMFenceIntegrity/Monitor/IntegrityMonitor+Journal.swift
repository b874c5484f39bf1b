internal import VMFenceCore

// The journal, followed live. What is in it counts from the moment when its commit block passes; what is then written to
// its place changes nothing any more.
extension IntegrityMonitor {
  /// With `journal_async_commit` a commit block may come before what it commits. After so many requests to the journal the
  /// rest has come, or never will: each look costs a reading of the transaction.
  private static let transactionAttemptLimit = 64

  /// Most requests lie outside of where the journal's blocks are: two comparisons tell.
  func touchesJournal(_ write: WriteInFlight) -> Bool {
    guard write.offset < journalSpan.upperBound, write.end > journalSpan.lowerBound,
      let size = view.map({ UInt64($0.fileSystem.blockSize) })
    else { return false }
    return view?.fileSystem.journal?.overlaps(write.offset / size...(write.end - 1) / size) == true
  }

  /// Looks for commit blocks and for the journal's superblock in a request, and takes over what was committed.
  mutating func followJournal(_ write: WriteInFlight, _ data: RawSpan, _ moment: Moment) -> BlockVerdict {
    if refusesFastCommits, write.operation == .write, touchesFastCommits(write) {
      statisticsStorage.refusedFastCommits += 1
      return .deny
    }
    let verdict = takeOverwrittenCopies(write, data, moment)
    if verdict != .allow { return verdict }
    var isDue = transactionAttempts > 0
    var commit: (logical: UInt32, sequence: UInt32)?
    if write.operation == .write, UInt64(data.byteCount) >= write.end - write.offset {
      if touchesJournalSuperblock(write) {
        let verdict = takeJournalSuperblock(write.patch(data), moment)
        if verdict != .allow { return verdict }
      }
      for (logical, start) in journalBlocks(in: write) where logical != 0 {
        let block = data.extracting(start..<data.byteCount)
        if let header = view?.fileSystem.journal?.header, header.hasFastCommits, logical >= header.end {
          noteFastCommit(moment)
        } else if block.byteCount >= 12, block.u32(0) == Journal.magic, block.u32(4) == 2 {
          isDue = true
          commit = (logical, block.u32(8))
          transactionAttempts = Self.transactionAttemptLimit
          let expected = view?.fileSystem.journal?.nextSequence ?? 0
          if Int32(bitPattern: block.u32(8) &- expected) > 64 {
            let reason = "the journal goes on with a transaction that was not expected"
            requestResync(reason, at: moment.time)
            tellDamage(reason, moment)
          }
        }
      }
    }
    guard isDue else { return .allow }
    view?.fileSystem.patch = write.patch(data)
    defer { view?.fileSystem.patch = nil }
    let limit = view?.fileSystem.journal?.header.length ?? 0
    transactionAttempts -= 1
    while true {
      let position = (view?.fileSystem.journal?.next, view?.fileSystem.journal?.nextSequence ?? 0)
      guard let transaction = view?.fileSystem.nextTransaction(limit: limit) else { break }
      transactionAttempts = 0
      if let known = commit, transaction.sequence == known.sequence,
        transaction.end == view?.fileSystem.journal?.following(known.logical)
      {
        commit = nil
      }
      let verdict = take(transaction, moment)
      if verdict != .allow {
        view?.fileSystem.journal?.next = position.0
        view?.fileSystem.journal?.nextSequence = position.1
        // The commit block may come again.
        transactionAttempts = 1
        return verdict
      }
    }
    return commit.map { refuseUnexplained($0.logical, moment) } ?? .allow
  }

  /// Where metadata are judged, a commit block that commits nothing that was judged is refused: somebody had the monitor look elsewhere. A
  /// kernel writes it when all that it commits is in the log, so it ends what the monitor has read just now, unless it says that it does not
  /// wait (`journal_async_commit`).
  ///
  /// - Precondition: the request is laid over the disk.
  private mutating func refuseUnexplained(_ logical: UInt32, _ moment: Moment) -> BlockVerdict {
    guard configuration.policy.judgesMetadata, let fileSystem = view?.fileSystem, let journal = fileSystem.journal,
      journal.header.incompatible & 0x4 == 0, let block = journal.diskBlock(logical)
    else { return .allow }
    // Sent again after a lost connection: it is on the disk, and was judged before.
    var new: [UInt8] = []
    guard (try? fileSystem.readDiskBlock(block, into: &new)) != nil else { return .allow }
    view?.fileSystem.patch = nil
    if (try? view?.fileSystem.readDiskBlock(block, into: &oldBlock)) != nil, oldBlock == new { return .allow }
    let verdict = strongestRefusal(isMetadata: true)
    guard verdict != .allow else { return .allow }
    transactionAttempts = 0
    tellDamage("a commit block in the journal that ends no transaction that is known", moment, verdict)
    if verdict == .hold { hold(moment) }
    return verdict
  }

  /// How often fast commits are told, when they go on.
  private static let fastCommitInterval = Duration.seconds(60)

  /// Fast commits lie behind the log, in a form of their own that is not read. Nothing of them is lost: the next full commit has
  /// what they changed, and so have the places, once the guest has replayed them.
  private mutating func noteFastCommit(_ moment: Moment) {
    statisticsStorage.fastCommits += 1
    if let told = fastCommitTold, moment.time - told < Self.fastCommitInterval { return }
    fastCommitTold = moment.time
    report(
      .gap, at: moment, path: [], inode: 0,
      changes: [
        .init(
          attribute: "reason", old: "",
          new:
            "the guest's journal has fast commits, which are not read: what they change is told with the next full commit"
        )
      ])
    flushBatch()
  }

  /// Whether any byte of a request lies where fast commits do.
  private func touchesFastCommits(_ write: WriteInFlight) -> Bool {
    guard let fileSystem = view?.fileSystem, let journal = fileSystem.journal else { return false }
    let size = UInt64(fileSystem.blockSize)
    return (write.offset / size...(write.end - 1) / size).contains { block in
      journal.logicalBlock(block).map { $0 >= journal.header.end } ?? false
    }
  }

  /// Whether a superblock of the journal has the guest's kernel replay fast commits that were written before it was told that there are
  /// any: then nobody judged them. Fast commits that were there when the monitor began are not meant.
  private func bringsFastCommits(_ new: Journal.Header) -> Bool {
    guard configuration.policy.judgesMetadata, new.hasFastCommits, let fileSystem = view?.fileSystem,
      let old = fileSystem.journal?.header
    else { return false }
    guard !old.hasFastCommits || new.end != old.end || Int32(bitPattern: new.sequence &- old.sequence) < 0 else {
      return false
    }
    // Those of transactions that are over are never looked at.
    return fileSystem.fastCommits(at: new.end).map { Int32(bitPattern: $0 &- new.sequence) >= 0 } ?? false
  }

  private func touchesJournalSuperblock(_ write: WriteInFlight) -> Bool {
    guard let fileSystem = view?.fileSystem, let block = fileSystem.journal?.diskBlock(0) else { return false }
    let start = block * UInt64(fileSystem.blockSize)
    return write.offset < start + UInt64(fileSystem.blockSize) && write.end > start
  }

  /// The blocks of the journal that begin in a request: their numbers in the journal, and where in the request.
  private func journalBlocks(in write: WriteInFlight) -> [(logical: UInt32, start: Int)] {
    guard let fileSystem = view?.fileSystem, let journal = fileSystem.journal else { return [] }
    let size = UInt64(fileSystem.blockSize)
    var result: [(UInt32, Int)] = []
    for block in (write.offset + size - 1) / size..<max(write.end / size, (write.offset + size - 1) / size) {
      if let logical = journal.logicalBlock(block) { result.append((logical, Int(block * size - write.offset))) }
    }
    return result
  }

  // MARK: The tail

  /// - `patch`: what is written, which may be a part of it only.
  private mutating func takeJournalSuperblock(_ patch: WritePatch, _ moment: Moment) -> BlockVerdict {
    view?.fileSystem.patch = patch
    defer { view?.fileSystem.patch = nil }
    do throws(IntegrityError) {
      guard let fileSystem = view?.fileSystem, let journal = fileSystem.journal, let block = journal.diskBlock(0)
      else { return .allow }
      var bytes: [UInt8] = []
      try fileSystem.readDiskBlock(block, into: &bytes)
      let header = try journal.readHeader(bytes, blockSize: fileSystem.blockSize)
      if bringsFastCommits(header) {
        statisticsStorage.refusedFastCommits += 1
        return .deny
      }
      return follow(header, moment)
    } catch {
      return takeUnusableSuperblock(error, moment)
    }
  }

  /// A superblock of the journal that no kernel would go on with. One that has the file system mounted goes on with what it has in memory,
  /// and so does the monitor; where metadata are judged, who writes it is refused.
  private mutating func takeUnusableSuperblock(_ error: IntegrityError, _ moment: Moment) -> BlockVerdict {
    let verdict: BlockVerdict = configuration.policy.judgesMetadata ? .deny : .allow
    tellDamage("the journal's superblock was written and cannot be used: " + error.message, moment, verdict)
    if verdict == .allow, error.code == .unsupported { requestResync(error.message, at: moment.time) }
    return verdict
  }

  private mutating func follow(_ header: Journal.Header, _ moment: Moment) -> BlockVerdict {
    let before = view?.fileSystem.journal
    view?.fileSystem.journal?.update(header)
    var forgotten: [UInt64] = []
    if header.start == 0 {
      // Everything is at its place.
      view?.fileSystem.journal?.next = nil
      view?.fileSystem.journal?.nextSequence = header.sequence
      forgotten = view?.fileSystem.overlay.copies.map(\.key) ?? []
    } else {
      let next = view?.fileSystem.journal?.nextSequence ?? 0
      let isBehind = Int32(bitPattern: header.sequence &- next) > 0
      if view?.fileSystem.journal?.next != nil, isBehind {
        requestResync("the journal begins behind what was seen of it", at: moment.time)
      }
      if view?.fileSystem.journal?.next == nil || isBehind {
        view?.fileSystem.journal?.next = header.start
        view?.fileSystem.journal?.nextSequence = header.sequence
      }
      forgotten = view?.fileSystem.overlay.blocks(before: header.sequence) ?? []
    }
    let verdict = forgetCopies(forgotten, moment)
    if verdict != .allow { view?.fileSystem.journal = before }
    return verdict
  }

  // MARK: Transactions

  /// Takes over a committed transaction, and tells at once what it changed: a transaction is consistent in itself.
  private mutating func take(_ transaction: JournalTransaction, _ moment: Moment) -> BlockVerdict {
    let changed = changedContents(transaction)
    let verdict = refuse(changed, moment)
    if verdict != .allow { return verdict }
    // A revoked block is read from its place again.
    let revoked = uniqueInTable(transaction.revoked)
    var bared: [(block: UInt64, change: ContentChange)] = []
    for block in revoked { bared += contentsAtPlace(of: block).map { (block, $0) } }
    let policy = configuration.policy
    let before = policy.judgesMetadata || policy.keepsContents || !bared.isEmpty ? view : nil
    let saved = Saved(self)
    keep(changed, moment)
    note(changed, moment)
    view?.fileSystem.apply(transaction)
    hits.removeAll(keepingCapacity: true)
    for copy in transaction.copies where view?.table.contains(copy.home) == true {
      view?.table.appendUses(of: copy.home, to: &hits)
    }
    for block in revoked { view?.table.appendUses(of: block, to: &hits) }
    guard !hits.isEmpty || !news.isEmpty else { return .allow }
    if !hits.isEmpty { statisticsStorage.hits += 1 }
    processMetadata(moment)
    if let before, !bared.isEmpty {
      let verdict = takeBared(bared, moment)
      if verdict != .allow {
        view = before
        saved.restore(&self)
        return verdict
      }
    }
    guard let before else {
      settle(at: moment.time)
      return .allow
    }
    isTrial = true
    settle(at: moment.time)
    isTrial = false
    if policy.judgesMetadata {
      let verdict = refuseMetadata(moment)
      if verdict != .allow {
        view = before
        saved.restore(&self)
        return verdict
      }
    }
    keep(batch, from: before, moment)
    flushBatch()
    return .allow
  }

  /// What a refused transaction must leave as it was.
  struct Saved {
    let news: [UInt32: News]
    let nameNews: [UInt32: NameNews]
    let awaitsTimes: Set<UInt32>
    let pendingWrites: PendingWrites
    let suspects: [UInt64: (since: Timestamp, damages: [Damage])]
    let toldDamages: Set<Damage>
    let statistics: Statistics
    let kept: KeptQueue
    let rewritten: Set<UInt32>
    let resyncReason: String?

    init(_ monitor: borrowing IntegrityMonitor) {
      news = monitor.news
      nameNews = monitor.nameNews
      awaitsTimes = monitor.awaitsTimes
      pendingWrites = monitor.pendingWrites
      suspects = monitor.suspects
      toldDamages = monitor.toldDamages
      statistics = monitor.statisticsStorage
      kept = monitor.kept
      rewritten = monitor.rewritten
      resyncReason = monitor.resyncReason
    }

    func restore(_ monitor: inout IntegrityMonitor) {
      monitor.news = news
      monitor.nameNews = nameNews
      monitor.awaitsTimes = awaitsTimes
      monitor.pendingWrites = pendingWrites
      monitor.suspects = suspects
      monitor.toldDamages = toldDamages
      monitor.statisticsStorage = statistics
      monitor.kept = kept
      monitor.rewritten = rewritten
      monitor.resyncReason = resyncReason
    }
  }

  /// Which bytes of followed files a transaction changes: only where the guest journals data, too.
  private mutating func changedContents(_ transaction: JournalTransaction) -> [ContentChange] {
    var result: [ContentChange] = []
    var uses: [(block: UInt64, use: BlockUse)] = []
    var new: [UInt8] = []
    for copy in transaction.copies where view?.table.contains(copy.home) == true {
      uses.removeAll(keepingCapacity: true)
      view?.table.appendUses(of: copy.home, to: &uses)
      guard uses.contains(where: { $0.use.role == .data }),
        (try? view?.fileSystem.readBlock(copy.home, into: &oldBlock)) != nil,
        (try? view?.fileSystem.readDiskBlock(copy.block, into: &new)) != nil,
        // One with a wrong checksum is not taken over.
        view?.fileSystem.journal?.isRight(copy, sequence: transaction.sequence, contents: new) == true
      else { continue }
      if copy.isEscaped { new.replaceSubrange(0..<4, with: Journal.magicBytes) }
      var low = 0
      var high = new.count
      while low < high, oldBlock[low] == new[low] { low += 1 }
      while high > low, oldBlock[high - 1] == new[high - 1] { high -= 1 }
      guard low < high else { continue }
      for (_, use) in uses where use.role == .data {
        let start = UInt64(use.index) * UInt64(new.count)
        let old = keepsContents(of: use.inode) ? Array(oldBlock[low..<high]) : []
        ContentChange(inode: use.inode, range: start + UInt64(low)..<start + UInt64(high), old: old).append(to: &result)
      }
    }
    return result
  }
}
