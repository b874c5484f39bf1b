internal import VMFenceCore

extension IntegrityMonitor {
  /// Tells what changed since the last settling.
  ///
  /// `isFinal`: nothing is left for later.
  mutating func settle(at time: Timestamp, isFinal: Bool = false) {
    let moment = Moment(sequence: now?.sequence ?? 0, time: time)
    firstChange = nil
    lastChange = nil
    settlesNext = false
    if resyncReason != nil {
      let isTooSoon = lastResync.map { time - $0 < configuration.resyncInterval } ?? false
      if isFinal || !isTooSoon { return resync(at: moment) }
      noteChange(at: time)
    }
    guard view != nil else { return flushBatch() }
    let names = settleNames(at: time, isFinal: isFinal)
    if nameNews.isEmpty { rewritten.removeAll() }
    settleInodes(at: time, isFinal: isFinal, names)
    reportDamage(at: moment, isFinal: isFinal)
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

  // MARK: Inodes

  private mutating func settleInodes(at time: Timestamp, isFinal: Bool, _ names: NameOutcome) {
    for number in news.keys.sorted() {
      guard var item = news[number] else { continue }
      news[number] = nil
      guard let node = view?.nodes[number] else { continue }
      if !node.links.isEmpty, !names.created.contains(number) {
        // Deleted, with its name still there: the name will go, or (a damaged disk) it will not.
        if !node.inode.isInUse, node.settled.isInUse, !isExpired(&item.heldSince, at: time, isFinal: isFinal) {
          news[number] = item
          continue
        }
        takeTree(&item, node)
        let paths = node.links.map { view?.path(of: $0) ?? [] }
        for path in paths where !names.fresh.contains(path) {
          tell(number, path, node, item, isNamed: names.told.contains(number))
        }
        if node.settled.kind != node.inode.kind { requestResync("inode \(number) changed its type", at: time) }
      }
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

  /// Adds to the changed contents those places of a file that have another block now.
  private mutating func takeTree(_ item: inout News, _ node: FileSystemView.Node) {
    guard let before = item.treeBefore, let blockSize = view?.fileSystem.blockSize else { return }
    let size = UInt64(blockSize)
    var claims = ByteRanges()
    for (fileBlock, block) in node.tree.differences(from: before, blockSize: blockSize) {
      item.contents.insert(UInt64(fileBlock) * size..<(UInt64(fileBlock) + 1) * size)
      if block != 0 { claims.insert(UInt64(block) * size..<(UInt64(block) + 1) * size) }
    }
    // Each stretch costs a look at all kept writes: bounded.
    item.unseen = claims.ranges.prefix(256).reduce(0) { $0 + pendingWrites.bytesNotSeen(in: $1) }
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
    if old.attributeBlock != new.attributeBlock || old.inlineAttributes != new.inlineAttributes {
      report(.xattr, at: written, path: path, inode: number)
    } else if let moment = item.attributesRewritten {
      report(.xattr, at: moment, path: path, inode: number)
    }
    if old.linkCount != new.linkCount, !isNamed, new.kind != .directory {
      // Other names of the file came or went where no directory is followed.
      report(
        .link, at: written, path: path, inode: number,
        changes: [.init(attribute: "links", old: String(old.linkCount), new: String(new.linkCount))])
    }
    if batch.count == before, !isNamed, new.kind != .directory, old.modificationTime != new.modificationTime {
      report(
        .times, at: written, path: path, inode: number,
        changes: [
          .init(attribute: "mtime", old: Self.text(old.modificationTime), new: Self.text(new.modificationTime))
        ])
    }
  }

  private mutating func tellContents(
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
    var notes: [FileEvent.AttributeChange] = []
    if item.unseen > 0 {
      notes.append(
        .init(attribute: "data", old: "", new: "\(item.unseen) bytes of new blocks were not seen being written"))
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
