internal import VMFenceCore

extension ExtFileSystem {
  /// The bytes of the disk from the first to the last block of the journal; empty when there is none.
  var journalSpan: Range<UInt64> {
    guard let span = journal?.span else { return 0..<0 }
    return span.lowerBound * UInt64(blockSize)..<span.upperBound * UInt64(blockSize)
  }

  /// Finds the journal and applies what is committed in it.
  mutating func openJournal() {
    guard superblock.features.hasJournal else { return }
    do throws(IntegrityError) {
      journal = try Journal(self)
    } catch {
      return damage.report(inode: superblock.journalInode, error.message)
    }
    guard superblock.features.needsRecovery else {
      // The guest would forget what is in it (`jbd2_journal_wipe`), and so do we.
      journal?.next = nil
      return
    }
    var left = journal?.header.logLength ?? 0
    // The whole log is gone through once at the most.
    while left > 0, let transaction = nextTransaction(limit: left) {
      left -= min(left, transaction.length)
      apply(transaction)
    }
    noteFastCommits()
    journal?.reportDamage(to: &damage)
  }

  /// The next committed transaction of the log, after which the following one is the next.
  ///
  /// - `limit`: of how many blocks of the log it may be; never more than the log has.
  mutating func nextTransaction(limit: UInt32) -> JournalTransaction? {
    guard var journal else { return nil }
    self.journal = nil
    defer { self.journal = journal }
    switch journal.scan(self, limit: limit) {
    case .transaction(let transaction):
      journal.next = transaction.end
      journal.nextSequence &+= 1
      return transaction
    case .end: return nil
    case .damaged(let what):
      journal.note("damaged journal: " + what)
      return nil
    }
  }

  /// Makes a transaction's copies the contents of their blocks.
  mutating func apply(_ transaction: JournalTransaction) {
    var buffer: [UInt8] = []
    for copy in transaction.copies {
      guard copy.home < superblock.blockCount, journal?.logicalBlock(copy.home) == nil else {
        journal?.note("damaged journal: a copy of block \(copy.home), which is none that a journal can hold")
        continue
      }
      if journal?.header.hasChecksums == true {
        guard (try? readDiskBlock(copy.block, into: &buffer)) != nil,
          journal?.isRight(copy, sequence: transaction.sequence, contents: buffer) == true
        else {
          journal?.note("damaged journal: a wrong checksum of the copy of block \(copy.home)")
          continue
        }
      }
      overlay[copy.home] = JournalOverlay.Copy(
        block: copy.block, sequence: transaction.sequence, isEscaped: copy.isEscaped)
    }
    for block in transaction.revoked { overlay[block] = nil }
  }

  /// Fast commits are changes in a form of their own behind the log. They are recognised and not read: what they say is
  /// seen with the next full commit.
  private mutating func noteFastCommits() {
    guard let header = journal?.header, header.hasFastCommits, superblock.features.needsRecovery else { return }
    if fastCommits(at: header.end) == journal?.nextSequence {
      journal?.note(
        "the journal holds fast commits, which are not read: some changes are not seen before the next commit")
    }
  }

  /// The transaction after which the guest's kernel would replay the fast commits that lie there; nil when there are none.
  ///
  /// `struct ext4_fc_tl` with tag EXT4_FC_TAG_HEAD, then features and the transaction; without it, `ext4_fc_replay_scan` does not go on.
  ///
  /// - `logical`: the block of the journal where they begin.
  func fastCommits(at logical: UInt32) -> UInt32? {
    var buffer: [UInt8] = []
    guard let block = journal?.diskBlock(logical), (try? readDiskBlock(block, into: &buffer)) != nil else { return nil }
    return buffer.withRawSpan { $0.u16le(0) == 9 ? $0.u32le(8) : nil }
  }
}
