internal import VMFenceCore

extension IntegrityMonitor {
  /// Tells what changed since the last settling.
  ///
  /// `isFinal`: nothing is left for later.
  mutating func settle(at time: Timestamp, isFinal: Bool = false) {
    let moment = Moment(sequence: now?.sequence ?? 0, time: time)
    if !isTrial {
      dropCheckpointed()
      processDiscarded()
    }
    firstChange = nil
    lastChange = nil
    settlesNext = false
    if resyncReason != nil {
      let isTooSoon = lastResync.map { time - $0 < configuration.resyncInterval } ?? false
      // What is only tried is not on the disk.
      if isFinal || !isTooSoon && !isTrial { return resync(at: moment) }
      noteChange(at: time)
    }
    guard let view else {
      settleBlind()
      return flushBatch()
    }
    // What a journal commits is consistent: nothing of it waits for the rest.
    let isWhole = isFinal || view.fileSystem.journal != nil
    let names = settleNames(at: time, isFinal: isWhole)
    settleInodes(at: time, isFinal: isFinal, isWhole: isWhole, names)
    if nameNews.isEmpty { forgetRewritten() }
    reportDamage(at: moment, isFinal: isWhole)
    flushBatch()
    if !nameNews.isEmpty || !suspects.isEmpty || news.values.contains(where: { $0.heldSince != nil }) {
      noteChange(at: time)
    }
  }

  /// Whether something that waits for its inode has waited long enough; notes when it began.
  func isExpired(_ heldSince: inout Timestamp?, at time: Timestamp, isFinal: Bool) -> Bool {
    if isFinal { return true }
    guard let since = heldSince else {
      heldSince = time
      return configuration.holdLimit <= .zero
    }
    return time - since >= configuration.holdLimit
  }

  /// Of inodes that wait for a name it is still true that they were written.
  mutating func forgetRewritten() {
    guard !rewritten.isEmpty else { return }
    rewritten = rewritten.filter { news[$0]?.heldSince != nil }
  }

  // MARK: Inodes

  private mutating func settleInodes(at time: Timestamp, isFinal: Bool, isWhole: Bool, _ names: NameOutcome) {
    for number in news.keys.sorted() {
      guard var item = news[number] else { continue }
      news[number] = nil
      guard let node = view?.nodes[number] else { continue }
      if !node.links.isEmpty, !names.created.contains(number) {
        if mustWait(item, node, isNamed: names.told.contains(number)),
          !isExpired(&item.heldSince, at: time, isFinal: isWhole)
        {
          news[number] = item
          continue
        }
        takeMap(&item, node)
        takeAttributes(&item, number, node)
        for name in toldNames(of: node, except: names.fresh) {
          let first = batch.count
          tell(number, name.path, node, item, isNamed: names.told.contains(number))
          add(name.notes, from: first)
        }
        if item.written != nil { awaitsTimes.remove(number) }
        if node.settled.kind != node.inode.kind { requestResync("inode \(number) changed its type", at: time) }
      }
      if giveUpObject(number, node, at: item.written) { continue }
      view?.nodes[number]?.settled = node.inode
      // Data beyond the end of the file wait for the inode that makes the file longer.
      let beyond = item.contents.clamped(to: node.inode.size..<UInt64.max)
      if item.written == nil, !beyond.isEmpty, beyond.count <= ByteRanges.limit, !isFinal {
        var rest = News()
        rest.changed = item.changed
        for range in beyond { rest.contents.insert(range) }
        news[number] = rest
      }
    }
  }

  /// Whether an inode came before the directory that explains it.
  private func mustWait(_ item: News, _ node: FileSystemView.Node, isNamed: Bool) -> Bool {
    let old = node.settled
    let new = node.inode
    guard old.isInUse else { return false }
    // Deleted, with its name still there: the name will go, or (a damaged disk) it will not.
    guard new.isInUse else { return true }
    guard !isNamed, new.kind == old.kind, new.kind != .directory, new.generation == old.generation else { return false }
    // A name came or went, unless that is where nothing is followed.
    if new.linkCount != old.linkCount { return true }
    // What a rename leaves in the inode. It is told with nothing else, so that waiting delays nothing.
    return new.changeTime != old.changeTime && new.isSameButForTimes(old) && item.changed == nil
      && item.attributesRewritten == nil
  }

  /// Adds to the changed contents those places of a file that have another block now.
  mutating func takeMap(_ item: inout News, _ node: FileSystemView.Node) {
    guard let before = item.mapBefore, let blockSize = view?.fileSystem.blockSize else { return }
    let size = UInt64(blockSize)
    var claims = ByteRanges()
    for difference in ExtBlockMap.differences(from: before, to: node.map) {
      let first = UInt64(difference.fileBlock)
      let places = first * size..<(first + UInt64(difference.count)) * size
      // A hole and a stretch that was never written read alike.
      let isZero = (difference.old?.isUnwritten ?? true, difference.new?.isUnwritten ?? true)
      if isZero != (true, true) { item.contents.insert(places) }
      if let new = difference.new, !new.isUnwritten {
        claims.insert(new.block * size..<(new.block + UInt64(difference.count)) * size)
      }
    }
    // Each stretch costs a look at all kept writes: bounded.
    item.unseen = claims.ranges.prefix(256).reduce(0) { $0 + pendingWrites.bytesNotSeen(in: $1) }
    if hashesHeldWrites { item.overwritten = overwritten(in: claims) }
  }

  /// In bytes; what is read of new blocks at one settling to compare them with what was written.
  private static let comparedLimit: UInt64 = 1 << 20

  /// Of which writes to blocks that a file has now the disk has other bytes.
  private func overwritten(in claims: ByteRanges) -> [Moment] {
    var left = Self.comparedLimit
    var result: [Moment] = []
    var buffer: [UInt8] = []
    for range in claims.ranges.prefix(16) {
      for entry in pendingWrites.hashed(in: range) where entry.end - entry.start <= left {
        left -= entry.end - entry.start
        buffer = [UInt8](repeating: 0, count: Int(entry.end - entry.start))
        guard (try? reader.read(at: entry.start, into: &buffer)) != nil else { continue }
        let key = (configuration.hashKeyLow, configuration.hashKeyHigh)
        if buffer.withRawSpan({ PendingWrites.hash($0, key: key) }) != entry.hash { result.append(entry.moment) }
      }
    }
    return result
  }

  /// Compares extended attributes with those told last.
  mutating func takeAttributes(_ item: inout News, _ number: UInt32, _ node: FileSystemView.Node) {
    guard
      item.attributesRewritten != nil || node.settled.attributeBlock != node.inode.attributeBlock
        || node.settled.inlineAttributes != node.inode.inlineAttributes
    else { return }
    let new = view?.currentAttributes(of: number) ?? [:]
    for name in Set(new.keys).union(node.attributes.keys).sorted(by: { $0.lexicographicallyPrecedes($1) })
    where new[name] != node.attributes[name] {
      item.attributes.append(
        .init(
          attribute: "xattr " + Self.text(name), old: node.attributes[name] ?? "", new: new[name] ?? ""))
    }
    view?.nodes[number]?.attributes = new
  }

  /// Tells under one name how an inode differs from what was told of it last.
  mutating func tell(_ number: UInt32, _ path: [UInt8], _ node: FileSystemView.Node, _ item: News, isNamed: Bool) {
    let old = node.settled
    let new = node.inode
    let written = item.written ?? item.changed ?? item.attributesRewritten ?? Moment(sequence: 0, time: .zero)
    let before = batch.count
    if old.isInUse, old.generation != new.generation || old.kind != new.kind {
      // The same number stands for another file now.
      report(
        .replace, at: written, path: path, inode: number,
        changes: [.init(attribute: "generation", old: String(old.generation), new: String(new.generation))]
          + Self.differences(old, new))
      return
    }
    tellContents(number, path, old, new, item)
    if old.permissions != new.permissions {
      report(.chmod, at: written, path: path, inode: number, changes: [Self.modeChange(old, new)])
    } else if old.flags & Self.userFlags != new.flags & Self.userFlags {
      let flags = (Self.hexadecimal(old.flags & Self.userFlags), Self.hexadecimal(new.flags & Self.userFlags))
      report(
        .chmod, at: written, path: path, inode: number,
        changes: [.init(attribute: "flags", old: flags.0, new: flags.1)])
    }
    if old.userID != new.userID || old.groupID != new.groupID {
      report(.chown, at: written, path: path, inode: number, changes: Self.ownerChanges(old, new))
    }
    if !item.attributes.isEmpty {
      report(
        .xattr, at: item.attributesRewritten ?? written, path: path, inode: number, changes: item.attributes)
    }
    if old.linkCount != new.linkCount, !isNamed, new.kind != .directory {
      // Other names of the file came or went where no directory is followed.
      report(
        .link, at: written, path: path, inode: number,
        changes: [.init(attribute: "links", old: String(old.linkCount), new: String(new.linkCount))])
    }
    let isExplained = batch.count > before || isNamed || awaitsTimes.contains(number)
    if batch.count > before, item.written == nil { awaitsTimes.insert(number) }
    if old.modificationTime != new.modificationTime, !isExplained, new.kind != .directory {
      report(
        .times, at: written, path: path, inode: number,
        changes: [
          .init(attribute: "mtime", old: Self.text(old.modificationTime), new: Self.text(new.modificationTime))
        ])
    }
  }

  /// Of contents that lie, or lay, in the inode: which bytes differ. They are small.
  private func compareInline(_ item: inout News, _ number: UInt32, _ old: ExtInode, _ new: ExtInode) {
    guard old.hasInlineData || new.hasInlineData, item.written != nil, let fileSystem = view?.fileSystem else { return }
    guard let before = fileSystem.inlineContents(of: old)?.prefix(Int(clamping: old.size)) else {
      // The file shrank into its inode: what is left was told when it was written.
      return
    }
    var damage = DamageLog()
    var after: [UInt8] = []
    let listing = ExtListing(path: [], number: number, inode: new)
    _ = fileSystem.readContents(of: listing, limit: UInt64(before.count), damage: &damage) { after += $0.copiedBytes() }
    let same = zip(before, after).prefix { $0 == $1 }.count
    var rest = ByteRanges()
    for range in item.contents.clamped(to: UInt64(before.count)..<UInt64.max) { rest.insert(range) }
    item.contents = rest
    if same < min(before.count, after.count) {
      var end = min(before.count, after.count)
      while end > same, before[end - 1] == after[end - 1] { end -= 1 }
      item.contents.insert(UInt64(same)..<UInt64(end))
    }
    if new.hasInlineData, new.size > old.size { item.contents.insert(old.size..<new.size) }
  }

  mutating func tellContents(
    _ number: UInt32, _ path: [UInt8], _ old: ExtInode, _ new: ExtInode, _ item: News
  ) {
    guard new.kind == .regular || new.kind == .symbolicLink, let blockSize = view?.fileSystem.blockSize else { return }
    let moment = item.changed ?? item.written ?? Moment(sequence: 0, time: .zero)
    let targets = (old.inlineTarget(blockSize: blockSize), new.inlineTarget(blockSize: blockSize))
    if new.kind == .symbolicLink, targets.0 != targets.1 {
      let text = (Self.text(targets.0), Self.text(targets.1))
      report(
        .write, at: moment, path: path, inode: number, changes: [.init(attribute: "target", old: text.0, new: text.1)])
      return
    }
    var item = item
    compareInline(&item, number, old, new)
    var notes: [FileEvent.AttributeChange] = []
    if item.unseen > 0 {
      notes.append(
        .init(attribute: "data", old: "", new: "\(item.unseen) bytes of new blocks were not seen being written"))
    }
    for moment in item.overwritten.prefix(4) {
      notes.append(
        .init(
          attribute: "data", old: "",
          new: "what request \(moment.sequence) wrote at \(Self.text(moment.time)) is not on the disk"))
    }
    var parts = item.contents.clamped(to: 0..<min(old.size, new.size))
    if parts.count > ByteRanges.limit {
      notes.append(.init(attribute: "parts", old: "", new: "\(parts.count) separate parts of this range"))
      parts = [parts[0].lowerBound..<parts[parts.count - 1].upperBound]
    }
    for part in parts {
      report(
        .write, at: moment, path: path, inode: number, offset: part.lowerBound, length: UInt64(part.count),
        changes: notes)
      notes = []
    }
    guard old.size != new.size else { return }
    let size = FileEvent.AttributeChange(attribute: "size", old: String(old.size), new: String(new.size))
    let written = item.written ?? moment
    if new.size > old.size {
      let hasData = !item.contents.clamped(to: old.size..<new.size).isEmpty
      report(
        hasData ? .append : .truncate, at: written, path: path, inode: number, offset: old.size,
        length: new.size - old.size, changes: [size] + notes)
    } else {
      report(
        .truncate, at: written, path: path, inode: number, offset: new.size, length: old.size - new.size,
        changes: [size])
    }
  }
}

// MARK: Values as text

extension IntegrityMonitor {
  /// The flags that `chattr` sets (FS_FL_USER_MODIFIABLE in `linux/fs.h`).
  static var userFlags: UInt32 { 0x0003_80FF }

  static func modeChange(_ old: ExtInode, _ new: ExtInode) -> FileEvent.AttributeChange {
    .init(attribute: "mode", old: octal(old.permissions), new: octal(new.permissions))
  }

  static func ownerChanges(_ old: ExtInode, _ new: ExtInode) -> [FileEvent.AttributeChange] {
    var changes: [FileEvent.AttributeChange] = []
    if old.userID != new.userID {
      changes.append(.init(attribute: "uid", old: String(old.userID), new: String(new.userID)))
    }
    if old.groupID != new.groupID {
      changes.append(.init(attribute: "gid", old: String(old.groupID), new: String(new.groupID)))
    }
    return changes
  }

  /// Mode, owner and size, as far as they differ.
  static func differences(_ old: ExtInode, _ new: ExtInode) -> [FileEvent.AttributeChange] {
    var changes: [FileEvent.AttributeChange] = []
    if old.permissions != new.permissions { changes.append(modeChange(old, new)) }
    changes += ownerChanges(old, new)
    if old.size != new.size { changes.append(.init(attribute: "size", old: String(old.size), new: String(new.size))) }
    return changes
  }

  /// What is told of a file that was not there before.
  static func description(_ inode: ExtInode) -> [FileEvent.AttributeChange] {
    [
      .init(attribute: "mode", old: "", new: octal(inode.permissions)),
      .init(attribute: "uid", old: "", new: String(inode.userID)),
      .init(attribute: "gid", old: "", new: String(inode.groupID)),
      .init(attribute: "size", old: "", new: String(inode.size)),
    ]
  }

  static func octal(_ mode: UInt16) -> String {
    let digits = String(mode, radix: 8)
    return String(repeating: "0", count: max(0, 4 - digits.count)) + digits
  }

  static func hexadecimal(_ value: UInt32) -> String { "0x" + String(value, radix: 16) }

  /// Seconds since the epoch with nine decimals.
  static func text(_ time: Timestamp) -> String {
    let (seconds, rest) = time.nanoseconds.quotientAndRemainder(dividingBy: 1_000_000_000)
    let digits = String(rest.magnitude)
    let sign = time.nanoseconds < 0 ? "-" : ""
    return "\(sign)\(seconds.magnitude).\(String(repeating: "0", count: 9 - digits.count))\(digits)"
  }

  static func text(_ bytes: [UInt8]?) -> String { String(decoding: bytes ?? [], as: UTF8.self).escapedForDisplay }
}
