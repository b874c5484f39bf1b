internal import VMFenceCore

// Contents for rules: which files were written, and what.
extension IntegrityMonitor {
  /// More files than this do not wait for their contents to be taken; the rest is counted.
  private static let changedFileLimit = 1024

  /// A file that was written since its contents were taken.
  struct ChangedFile: Sendable {
    var event: FileEvent
    /// In bytes of the file; nil for all of it.
    var range: Range<UInt64>?
  }

  /// Notes which files an event says were written, where the policy asks for contents.
  mutating func noteContents(_ events: [FileEvent]) {
    for event in events where event.verdict == .allow {
      var range: Range<UInt64>?
      switch event.operation {
      case .create, .replace, .rename: break
      case .write, .append:
        if let offset = event.offset, let length = event.length {
          range = offset..<(offset &+ length < offset ? .max : offset + length)
        }
      default: continue
      }
      guard let number = UInt32(exactly: event.inode),
        configuration.policy.protection(forPath: event.path)?.attributes.contains(.content) == true
      else { continue }
      guard let known = changedFiles[number] else {
        guard changedFiles.count < Self.changedFileLimit else {
          statisticsStorage.lostContents += 1
          continue
        }
        changedFiles[number] = ChangedFile(event: event, range: range)
        continue
      }
      guard let old = known.range else { continue }
      changedFiles[number]?.range = range.map {
        min(old.lowerBound, $0.lowerBound)..<max(old.upperBound, $0.upperBound)
      }
    }
  }

  /// What was written to one of the files whose rule asks for it (`FileAttributes.content`), as the disk has it now; nil when
  /// there is none left. At most `contentLimit` bytes; reads the file, so call it off the path of requests, after `drainEvents`.
  public mutating func nextContents() -> FileContents? {
    while let (number, file) = changedFiles.min(by: {
      ($0.value.event.sequence, $0.key) < ($1.value.event.sequence, $1.key)
    }) {
      changedFiles[number] = nil
      guard let node = view?.nodes[number], node.inode.kind == .regular, !node.inode.isEncrypted else { continue }
      let wanted = file.range ?? 0..<node.inode.size
      let start = wanted.lowerBound - min(wanted.lowerBound, FileContents.lead)
      let end = min(wanted.upperBound, node.inode.size)
      guard start < end else { continue }
      let stop = start + min(end - start, UInt64(configuration.contentLimit))
      guard let bytes = view?.fileSystem.readContents(of: node.inode, node.map, in: start..<stop) else {
        statisticsStorage.lostContents += 1
        continue
      }
      return FileContents(
        time: file.event.time, incarnation: configuration.incarnation, disk: configuration.disk,
        sequence: file.event.sequence, path: file.event.path, inode: UInt64(number), offset: start, bytes: bytes,
        isCut: stop < end)
    }
    return nil
  }
}
