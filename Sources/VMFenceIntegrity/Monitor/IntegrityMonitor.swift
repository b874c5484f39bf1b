public import VMFenceCore

/// Watches the requests to one virtual disk and tells what they do to protected files of the guest's file system.
///
/// It is shown requests before they are submitted (`BlockObserver`), keeps a `FileSystemView` up to date, and derives
/// events from what changed. Its owner takes the events with `drainEvents()`, calls `advance(to:)` now and then when
/// no requests come, and `finish(at:)` at the end. Used by one thread at a time. A request that touches nothing
/// protected costs one lookup for each of its blocks and allocates nothing.
///
/// **What is coalesced.** With a journal (ext3, ext4), metadata count when the commit block of their transaction passes, and
/// are told at once, with the contents that were written before. Without one, metadata reach the disk in any order, so
/// changes are collected and told together at the next *settling*: at a flush, or when nothing that concerns a protected
/// file has come for `settleDelay`, or `settleLimit` after the first change. Contents that are overwritten in place settle
/// by these times on either. Of each file, what is told is the difference between two settlings: one
/// event for its name (create, rename, replace, link, unlink, rmdir), one for each stretch of contents (write), one
/// for growth (append) or for a changed size without data (truncate), one each for mode, owner, attributes. A change
/// of times is told only when nothing else explains it: also not when the change of contents that it follows was told
/// before. Without a journal, a name that reaches the disk before its inode does, and a
/// name that goes while the inode still stands as it was, wait up to `holdLimit` for the inode; an inode that another
/// number of names is counted in waits as long for the name.
///
/// **What is true.** A write is told with the bytes that differ from what the disk had; when the disk had the same
/// bytes, there is no event. Blocks that a file newly claims are told as written whole. The disk is taken at its
/// word: on ext2 a block can reach the disk as another file's before the metadata do that took it from a protected
/// file; such a write is told only when the block is still the file's at the settling, but `denyData` refuses it.
public struct IntegrityMonitor: BlockObserver, ~Copyable {
  public struct Configuration: Sendable {
    public var incarnation: Incarnation
    /// The disk's device name in the guest.
    public var disk: String
    public var policy: ProtectionPolicy
    public var limits: WalkLimits
    public var settleDelay: Duration
    public var settleLimit: Duration
    public var holdLimit: Duration
    /// The least time between two readings of the whole view.
    public var resyncInterval: Duration
    /// How many events wait to be drained at the most; more are lost, counted and told.
    public var eventLimit: Int
    /// How many writes to blocks without an owner are remembered.
    public var pendingWriteLimit: Int
    /// Longer files are not hashed, in bytes.
    public var hashLimit: UInt64
    /// How long a request is held for a decision (`freeze`); zero: not at all, `freezeVerdict` counts at once, as in a replay.
    public var freezeLimit: Duration
    /// What is done with a held request when nobody decides.
    public var freezeVerdict: BlockVerdict
    /// Bytes of contents that are kept (`rollback`) and wait to be drained, at the most; of one file at the most half of them.
    public var keepLimit: Int
    /// Bytes of one file that are handed to rules at once, at the most.
    public var contentLimit: Int
    /// Keys the table of blocks. Fixed in a replay, random in the daemon.
    public var hashKeyLow: UInt64
    public var hashKeyHigh: UInt64

    public init(
      incarnation: Incarnation, disk: String, policy: ProtectionPolicy, limits: WalkLimits = WalkLimits(),
      settleDelay: Duration = .milliseconds(5), settleLimit: Duration = .seconds(1),
      holdLimit: Duration = .seconds(2), resyncInterval: Duration = .seconds(1), eventLimit: Int = 4096,
      pendingWriteLimit: Int = 1024, hashLimit: UInt64 = 256 << 20,
      freezeLimit: Duration = .seconds(600), freezeVerdict: BlockVerdict = .deny, keepLimit: Int = 16 << 20,
      contentLimit: Int = 1 << 20, hashKey: (UInt64, UInt64) = (0, 0)
    ) {
      self.incarnation = incarnation
      self.disk = disk
      self.policy = policy
      self.limits = limits
      self.settleDelay = settleDelay
      self.settleLimit = settleLimit
      self.holdLimit = holdLimit
      self.resyncInterval = resyncInterval
      self.eventLimit = eventLimit
      self.pendingWriteLimit = pendingWriteLimit
      self.hashLimit = hashLimit
      self.freezeLimit = freezeLimit
      self.freezeVerdict = freezeVerdict == .allow ? .allow : .deny
      self.keepLimit = keepLimit
      self.contentLimit = max(1, contentLimit)
      hashKeyLow = hashKey.0
      hashKeyHigh = hashKey.1
    }
  }

  public struct Statistics: Hashable, Sendable {
    public var requests: UInt64 = 0
    /// Requests that touched something followed.
    public var hits: UInt64 = 0
    public var denied: UInt64 = 0
    /// Writes to protected contents that changed no byte.
    public var unchangedWrites: UInt64 = 0
    /// Requests that no disk would take: beyond its end, or with less data than they say.
    public var malformed: UInt64 = 0
    public var gaps: UInt64 = 0
    /// How often the whole view was read anew.
    public var resyncs: UInt64 = 0
    public var damages: UInt64 = 0
    public var lostEvents: UInt64 = 0
    /// Blocks of fast commits that were seen and not read.
    public var fastCommits: UInt64 = 0
    /// Requests that were refused because they write fast commits (`refusesFastCommits`).
    public var refusedFastCommits: UInt64 = 0
    /// Requests that waited for a decision.
    public var held: UInt64 = 0
    /// Contents that should have been kept, or handed to rules, and were not: no room, or they could not be read.
    public var lostContents: UInt64 = 0
  }

  /// A point in the stream of requests.
  struct Moment: Hashable, Sendable {
    var sequence: UInt64
    var time: Timestamp
  }

  /// What happened to a followed inode since the last settling.
  struct News: Sendable {
    /// When the inode itself was last written.
    var written: Moment?
    /// When contents were first changed.
    var changed: Moment?
    var contents = ByteRanges()
    /// Bytes of blocks that are new to it and that no request was seen to write.
    var unseen: UInt64 = 0
    /// Requests that wrote blocks that are new to it, and of which the disk has other bytes.
    var overwritten: [Moment] = []
    /// The blocks it had when the first of them changed.
    var mapBefore: ExtBlockMap?
    var attributesRewritten: Moment?
    /// How its extended attributes differ from those told last.
    var attributes: [FileEvent.AttributeChange] = []
    /// When it was first left for later.
    var heldSince: Timestamp?
  }

  /// What happened to the names in a directory since the last settling.
  struct NameNews: Sendable {
    var changed: Moment
    var heldSince: Timestamp?
  }

  let configuration: Configuration
  let reader: any DiskReader
  /// Some rule asks for hashes.
  let hashesHeldWrites: Bool
  /// Nil while the disk has no file system that can be followed; `blindness` says why.
  var view: FileSystemView?
  /// The bytes of the disk from the first to the last block of the journal; empty when there is none.
  var journalSpan: Range<UInt64> = 0..<0
  /// Why nothing is followed; nil when the monitor works.
  public internal(set) var blindness: IntegrityError?
  var statisticsStorage = Statistics()
  var queue: EventQueue
  var pendingWrites: PendingWrites
  var news: [UInt32: News] = [:]
  var nameNews: [UInt32: NameNews] = [:]
  /// Events of the settling that is going on.
  var batch: [FileEvent] = []
  var toldDamages: Set<Damage> = []
  /// Damage that may be only half-written metadata, and since when it is known.
  var suspects: [UInt64: (since: Timestamp, damages: [Damage])] = [:]
  /// Followed inodes whose blocks were written since the last settling that left nothing waiting. An inode may be
  /// written and be as before: the times of a file system have a granularity of some milliseconds.
  var rewritten: Set<UInt32> = []
  /// The view as it was when it was lost: what the next one is compared with. Until then it says what contents are refused and told.
  var former: FileSystemView?
  /// Since when nothing can be followed, and which files were told as written meanwhile.
  var blindSince: Moment?
  var toldWhileBlind: Set<UInt32> = []
  var resyncReason: String?
  var lastResync: Timestamp?
  /// How many more times a disk that cannot be followed is looked at because something was written to it.
  var resyncAttempts = 0
  var firstChange: Timestamp?
  var lastChange: Timestamp?
  /// So much is waiting that the next request or the next `advance` settles.
  var settlesNext = false
  var now: Moment?
  var hits: [(block: UInt64, use: BlockUse)] = []
  var oldBlock: [UInt8] = []
  /// Blocks whose place will have what the journal has once the request that was seen last is on the disk.
  var checkpointed: [UInt64] = []
  /// Metadata in blocks that the request that was seen last discards: a disk may keep what it had, so it is asked when that is done.
  var discarded: (uses: [(block: UInt64, use: BlockUse)], moment: Moment)?
  /// A commit block was seen, and not yet all that it commits: how many more requests to the journal are looked at for it.
  var transactionAttempts = 0
  /// Inodes whose contents were told as changed while their times had not changed yet: these follow.
  var awaitsTimes: Set<UInt32> = []
  /// Announced windows of changes.
  var windows: [Window] = []
  /// The SHA-256 of followed files of which the policy asks for it, as they were told last.
  var hashes: [UInt32: [UInt8]] = [:]
  /// What is told is only tried: nothing is handed over.
  var isTrial = false
  /// What was written last puts the journal elsewhere.
  var journalIsDisplaced = false
  /// When fast commits were told last.
  var fastCommitTold: Timestamp?
  /// The request that waits for a decision.
  var held: HeldRequest?
  var kept: KeptQueue
  /// Files whose contents are to be handed to rules.
  var changedFiles: [UInt32: ChangedFile] = [:]

  /// Reads the disk and begins to watch. A disk that cannot be followed is no reason to stop the guest: the monitor
  /// then lets every request pass, says in `blindness` and by a damage event why, and looks again when a superblock
  /// is written. One that could be followed before is guarded on as it was seen last: contents of its protected files are refused as
  /// before, and told once for each file. When it can be followed again, what is different then is told.
  ///
  /// - `reader`: must show, at each request, what the requests allowed before have written.
  /// - `time`: for the events about what is damaged at the start.
  public init(_ reader: any DiskReader, configuration: Configuration, at time: Timestamp) {
    self.configuration = configuration
    self.reader = reader
    hashesHeldWrites = configuration.policy.tellsHashes
    queue = EventQueue(limit: configuration.eventLimit)
    pendingWrites = PendingWrites(capacity: configuration.pendingWriteLimit)
    kept = KeptQueue(limit: configuration.keepLimit)
    hits.reserveCapacity(256)
    do throws(IntegrityError) {
      view = try Self.makeView(reader, configuration)
      journalSpan = view?.fileSystem.journalSpan ?? 0..<0
    } catch {
      blindness = error
      report(
        .damage, at: Moment(sequence: 0, time: time), path: [], inode: 0, changes: [Self.damageChange(error.message)])
    }
    reportDamage(at: Moment(sequence: 0, time: time), isFinal: true)
    flushBatch()
    takeHashes()
  }

  static func makeView(
    _ reader: any DiskReader, _ configuration: Configuration
  ) throws(IntegrityError) -> FileSystemView {
    try FileSystemView(
      reader, policy: configuration.policy, limits: configuration.limits,
      hashKey: (configuration.hashKeyLow, configuration.hashKeyHigh))
  }

  /// What was told since the last call, in order.
  ///
  /// Where the policy asks for hashes, this reads the files that changed: call it off the path of requests.
  public mutating func drainEvents() -> [FileEvent] {
    var events = queue.drain()
    if configuration.policy.tellsHashes { addHashes(&events) }
    if configuration.policy.tellsContents { noteContents(events) }
    return events
  }

  /// Whether there is a file system that is followed, or that was and is guarded on.
  var isFollowing: Bool { view != nil || former != nil }

  /// Whether `drainEvents` has something to give.
  public var hasEvents: Bool { !queue.isEmpty }

  /// When `advance` will tell something if no request comes before; nil: nothing waits for that.
  public var nextSettling: Timestamp? {
    guard let firstChange, let lastChange else { return nil }
    return settlesNext
      ? lastChange : min(lastChange + configuration.settleDelay, firstChange + configuration.settleLimit)
  }

  public var statistics: Statistics {
    var result = statisticsStorage
    result.lostEvents = queue.dropped
    result.lostContents += kept.lost
    return result
  }

  /// Everything protected that is there, sorted by path.
  public var protectedFiles: [FileSystemView.ProtectedFile] { view?.protectedFiles ?? [] }

  /// Time has passed without a request: tells what has waited long enough.
  public mutating func advance(to time: Timestamp) {
    expireHeld(at: time)
    if let nextSettling, time >= nextSettling { settle(at: time) }
  }

  /// Tells all that is still waiting, for whatever it waits.
  public mutating func finish(at time: Timestamp) {
    settle(at: time, isFinal: true)
  }

  public mutating func observeGap(at time: Timestamp, reason: String) {
    statisticsStorage.gaps += 1
    report(
      .gap, at: Moment(sequence: now?.sequence ?? 0, time: time), path: [], inode: 0,
      changes: [.init(attribute: "reason", old: "", new: reason.escapedForDisplay)])
    flushBatch()
    pendingWrites.removeAll()
    requestResync("requests were lost", at: time)
  }

  // MARK: Reporting

  mutating func report(
    _ operation: FileEvent.Operation, at moment: Moment, path: [UInt8], oldPath: [UInt8]? = nil, inode: UInt32,
    offset: UInt64? = nil, length: UInt64? = nil, changes: [FileEvent.AttributeChange] = []
  ) {
    batch.append(
      event(
        operation, at: moment, path: path, oldPath: oldPath, inode: inode, offset: offset, length: length,
        changes: changes))
  }

  func event(
    _ operation: FileEvent.Operation, at moment: Moment, path: [UInt8], oldPath: [UInt8]? = nil, inode: UInt32,
    offset: UInt64? = nil, length: UInt64? = nil, changes: [FileEvent.AttributeChange] = []
  ) -> FileEvent {
    FileEvent(
      time: moment.time, incarnation: configuration.incarnation, disk: configuration.disk, sequence: moment.sequence,
      operation: operation, path: path, oldPath: oldPath, inode: UInt64(inode), offset: offset, length: length,
      changes: changes)
  }

  /// Hands the batch over in the order of the requests.
  mutating func flushBatch() {
    if isTrial { return }
    let told = batch.compactMap { event in
      reader.attend()
      return judged(event)
    }
    let ordered = told.enumerated().sorted { ($0.element.sequence, $0.offset) < ($1.element.sequence, $1.offset) }
    for (_, event) in ordered { queue.append(event) }
    batch.removeAll(keepingCapacity: true)
  }

  /// One event for each inode with damage that was not told before.
  ///
  /// `isFinal`: what may still mend is told too.
  mutating func reportDamage(at moment: Moment, isFinal: Bool) {
    guard let found = view?.damage.drain(), found.count > 0 || !suspects.isEmpty else { return }
    var certain: [Damage] = []
    for damage in found.kept {
      if damage.mayMend, !isFinal, configuration.holdLimit > .zero {
        suspects[damage.inode, default: (moment.time, [])].damages.append(damage)
      } else {
        certain.append(damage)
      }
    }
    for (inode, suspect) in suspects {
      if view?.isStillDamaged(UInt32(inode)) != true {
        suspects[inode] = nil
      } else if isFinal || moment.time - suspect.since >= configuration.holdLimit {
        certain += suspect.damages.prefix(4)
        suspects[inode] = nil
      } else if suspect.damages.count > 4 {
        suspects[inode]?.damages.removeLast(suspect.damages.count - 4)
      }
    }
    statisticsStorage.damages += UInt64(certain.count + found.count - found.kept.count)
    if toldDamages.count > 1024 { toldDamages.removeAll() }
    var fresh: [UInt64: [Damage]] = [:]
    for damage in certain where toldDamages.insert(damage).inserted {
      fresh[damage.inode, default: []].append(damage)
    }
    for (inode, damages) in fresh.sorted(by: { $0.key < $1.key }) {
      let link = view?.nodes[UInt32(inode)]?.links.first
      let path = damages.first { !$0.path.isEmpty }?.path ?? link.flatMap { view?.path(of: $0) } ?? []
      report(
        .damage, at: moment, path: path, inode: UInt32(inode),
        changes: damages.prefix(4).map { Self.damageChange($0.message) })
    }
  }

  static func damageChange(_ message: String) -> FileEvent.AttributeChange {
    .init(attribute: "damage", old: "", new: message.escapedForDisplay)
  }

  mutating func requestResync(_ reason: String, at time: Timestamp) {
    if resyncReason == nil { resyncReason = reason }
    noteChange(at: time)
  }

  mutating func noteChange(at time: Timestamp) {
    if firstChange == nil { firstChange = time }
    lastChange = time
  }
}

extension IntegrityMonitor {
  /// For tests: how many block uses the view's table holds.
  package var viewTableEntries: Int { view?.tableSize.entries ?? 0 }
}
