internal import VMFenceCore

// What becomes of the protection when the file system cannot be followed any more: the guest can bring that about by a few bytes.
extension IntegrityMonitor {
  /// Judges a write while nothing can be followed: contents of protected files by where they were seen last.
  mutating func judgeBlind(_ write: WriteInFlight, _ data: RawSpan, _ moment: Moment) -> BlockVerdict {
    if write.offset < ExtSuperblock.offset + UInt64(ExtSuperblock.size), write.end > ExtSuperblock.offset {
      resyncAttempts = Self.resyncAttemptLimit
    }
    if former != nil {
      swap(&view, &former)
      let verdict = judgeFormer(write, data, moment)
      swap(&view, &former)
      if verdict != .allow { return verdict }
    }
    // What is written elsewhere may be the rest of a file system that is being made.
    if resyncAttempts > 0 { requestResync("a file system is being made", at: moment.time) }
    return .allow
  }

  /// - Precondition: `view` is the one that was lost.
  private mutating func judgeFormer(_ write: WriteInFlight, _ data: RawSpan, _ moment: Moment) -> BlockVerdict {
    findHits(from: write.offset, to: write.end)
    guard !hits.isEmpty else { return .allow }
    // What made it blind may be taken back.
    if hits.contains(where: { $0.use.role != .data }) { resyncAttempts = Self.resyncAttemptLimit }
    hits.removeAll { $0.use.role != .data }
    let changed = changedContents(write, data)
    let verdict = refuse(changed, moment)
    guard verdict == .allow else { return verdict }
    keep(changed, moment)
    note(changed, moment)
    return .allow
  }

  /// Tells which protected files were written while nothing can be followed, each once. Whether these blocks still were theirs nobody
  /// knows.
  mutating func settleBlind() {
    guard former != nil else { return news.removeAll() }
    for number in news.keys.sorted() {
      guard let node = former?.nodes[number], let item = news[number], toldWhileBlind.insert(number).inserted else {
        continue
      }
      let parts = item.contents.clamped(to: 0..<node.inode.size)
      guard let first = parts.first, let last = parts.last else { continue }
      for name in toldNames(of: node, in: former) {
        report(
          .write, at: item.changed ?? Moment(sequence: 0, time: .zero), path: name.path, inode: number,
          offset: first.lowerBound, length: last.upperBound - first.lowerBound,
          changes: [
            .init(
              attribute: "data", old: "",
              new: "where its contents were when the file system could be followed; told once until it can be again")
          ] + name.notes)
      }
    }
    news.removeAll()
  }

  /// Tells that nothing was followed for a while.
  mutating func tellSight(at moment: Moment) {
    guard let since = blindSince else { return }
    blindSince = nil
    toldWhileBlind.removeAll()
    report(
      .gap, at: moment, path: [], inode: 0,
      changes: [
        .init(
          attribute: "reason", old: "",
          new: "the file system could not be followed from \(Self.text(since.time)), request \(since.sequence), to "
            + "\(Self.text(moment.time)), request \(moment.sequence): changes of names and attributes meanwhile were not refused, and "
            + "what is different now is told")
      ])
  }

  /// Judges writes that would take protected contents from view at once: a superblock, or group descriptors, with which the file
  /// system cannot be followed, or is another. Counters, labels, features and its growth are none of these.
  mutating func refuseDisplacement(_ write: WriteInFlight, _ data: RawSpan, _ moment: Moment) -> BlockVerdict {
    guard hits.contains(where: { $0.use.role == .superblock || $0.use.role == .descriptors }),
      configuration.policy.refusesContents
    else { return .allow }
    let verdict = strongestRefusal()
    guard verdict != .allow, let old = view?.fileSystem else { return .allow }
    view?.fileSystem.patch = write.patch(data)
    defer { view?.fileSystem.patch = nil }
    guard let new = view?.fileSystem, let problem = Self.displacement(from: old, to: new, hits) else {
      return .allow
    }
    tellDamage(problem, moment, verdict)
    if verdict == .hold { hold(moment) }
    return verdict
  }

  private static func displacement(
    from old: ExtFileSystem, to new: ExtFileSystem, _ hits: [(block: UInt64, use: BlockUse)]
  ) -> String? {
    var buffer: [UInt8] = []
    do throws(IntegrityError) {
      for (_, use) in hits {
        if use.role == .superblock {
          let superblock = try ExtFileSystem.readSuperblock(new.reader, patch: new.patch)
          guard superblock.isSameOrGrown(from: old.superblock) else {
            return "the superblock describes another file system, or another layout"
          }
        } else if use.role == .descriptors,
          try !new.descriptorsAreUnchanged(inBlock: Int(use.index), buffer: &buffer)
        {
          return "a group descriptor moved an inode table or bitmap"
        }
      }
      return nil
    } catch {
      return "the superblock cannot be used: \(error.message)"
    }
  }
}
