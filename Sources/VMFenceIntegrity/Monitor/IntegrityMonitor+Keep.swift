internal import VMFenceCore

// What the verb `rollback` keeps.
extension IntegrityMonitor {
  /// What was kept since the last call, in the order of the changes.
  public mutating func drainKeptContents() -> [KeptContents] { kept.drain() }

  func keepsContents(of inode: UInt32) -> Bool {
    view?.nodes[inode]?.links.contains { $0.action.keepsContents } == true
  }

  /// Keeps what changes of contents in place take away.
  mutating func keep(_ changes: [ContentChange], _ moment: Moment) {
    for change in changes {
      guard let view, let node = view.nodes[change.inode],
        let link = node.links.first(where: { $0.action.keepsContents })
      else { continue }
      // Contents beyond the end of the file are none yet.
      let range = change.range.clamped(to: 0..<node.settled.size)
      guard !range.isEmpty else { continue }
      guard change.old.count == change.range.count else {
        kept.lose()
        continue
      }
      kept.append(
        contents(
          moment, view.path(of: link), change.inode, size: node.settled.size, offset: range.lowerBound,
          Array(change.old.prefix(range.count)), isWhole: false))
    }
  }

  /// Keeps what a transaction takes away from files besides: all contents of those that lose blocks or their name, and the length
  /// of those that grew. `before`: as it was without the transaction, whose blocks the disk still has.
  mutating func keep(_ events: [FileEvent], from before: FileSystemView, _ moment: Moment) {
    guard configuration.policy.keepsContents else { return }
    var done: Set<UInt32> = []
    for event in events {
      switch event.operation {
      case .write, .append, .truncate, .replace, .unlink: break
      default: continue
      }
      let replaced = event.changes.first { $0.attribute == "inode" }.flatMap { UInt32($0.old) }
      guard let number = replaced ?? UInt32(exactly: event.inode), let old = before.nodes[number],
        old.settled.kind == .regular,
        let link = old.links.first(where: { $0.action.keepsContents && before.path(of: $0) == event.path }),
        done.insert(number).inserted
      else { continue }
      let path = before.path(of: link)
      let now = replaced == nil && event.operation != .unlink ? view?.nodes[number] : nil
      if let now, now.inode.generation == old.inode.generation, !Self.losesBlocks(old, now),
        now.inode.size >= old.settled.size
      {
        guard now.inode.size > old.settled.size else { continue }
        kept.append(
          contents(moment, path, number, size: old.settled.size, offset: old.settled.size, [], isWhole: false))
      } else {
        keepWhole(number, path, old, before, moment)
      }
    }
  }

  private static func losesBlocks(_ old: FileSystemView.Node, _ new: FileSystemView.Node) -> Bool {
    if old.inode.hasInlineData, old.inode.blocks != new.inode.blocks { return true }
    return ExtBlockMap.differences(from: old.map, to: new.map).contains { $0.old.map { !$0.isUnwritten } ?? false }
  }

  private mutating func keepWhole(
    _ number: UInt32, _ path: [UInt8], _ node: FileSystemView.Node, _ before: FileSystemView, _ moment: Moment
  ) {
    let inode = node.inode
    guard inode.size <= UInt64(configuration.keepLimit / 2), !inode.isEncrypted else { return kept.lose() }
    var bytes: [UInt8] = []
    bytes.reserveCapacity(Int(inode.size))
    var damage = DamageLog(limit: 1)
    let listing = ExtListing(path: path, number: number, inode: inode)
    guard before.fileSystem.readContents(of: listing, damage: &damage, { bytes += $0.copiedBytes() }),
      bytes.count == Int(inode.size)
    else { return kept.lose() }
    kept.append(contents(moment, path, number, size: inode.size, offset: 0, bytes, isWhole: true))
  }

  private func contents(
    _ moment: Moment, _ path: [UInt8], _ inode: UInt32, size: UInt64, offset: UInt64, _ bytes: [UInt8], isWhole: Bool
  ) -> KeptContents {
    KeptContents(
      time: moment.time, sequence: moment.sequence, disk: configuration.disk, path: path, inode: UInt64(inode),
      size: size, offset: offset, bytes: bytes, isWhole: isWhole)
  }
}
