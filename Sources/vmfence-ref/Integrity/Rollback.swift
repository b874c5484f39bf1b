#if Daemon
import VMFenceBlock
import VMFenceCore
import VMFenceIntegrity

/// Takes back the changes of one file's contents.
struct Rollback {
  /// A file as a disk has it now.
  struct CurrentFile {
    var contents: [UInt8]
    var extents: [ExtExtent]
    /// Where the partition begins, in bytes.
    var start: UInt64
    var isClean: Bool
  }

  let path: [UInt8]
  /// From the oldest on.
  let changes: [KeptContents]

  /// - `before`: the number of the first change to take back, counted over the whole file; nil for the first of this path.
  init(_ file: String, path: String, before: Int?) throws(BlockSourceError) {
    let bytes = Array(path.utf8)
    var changes: [KeptContents] = []
    var number = 0
    let problem = try KeptFile.read(file) { item in
      number += 1
      if item.path == bytes, number >= before ?? 0 { changes.append(item) }
      return true
    }
    if let problem { throw problem }
    guard !changes.isEmpty else {
      throw BlockSourceError(
        .corrupt, "nothing was kept of `\(path.escapedForDisplay)`" + (before.map { " from number \($0) on" } ?? ""),
        at: SourcePlace(file: file), remedy: "without --path everything that was kept is listed")
    }
    self.path = bytes
    self.changes = changes
  }

  /// The partition that the changes were of, or the whole disk, and where it begins in bytes.
  private func place(on disk: any DiskReader) throws(IntegrityError) -> (reader: any DiskReader, start: UInt64) {
    // The number of the partition is the end of the name that its events have.
    let digits = changes.last?.disk.reversed().prefix { $0.isNumber }.reversed() ?? []
    let number = Int(String(digits))
    for part in try DiskLayout(disk).parts {
      guard let partition = part.partition else { return (part.reader, 0) }
      if partition.number == number { return (part.reader, partition.start) }
    }
    throw IntegrityError(
      .notAFileSystem, "the disk has no partition \(String(digits))", remedy: "give the disk that was watched")
  }

  /// Nil when the file is not there any more.
  func current(on disk: any DiskReader) throws(IntegrityError) -> CurrentFile? {
    let (reader, start) = try place(on: disk)
    let fileSystem = try ExtFileSystem(reader)
    var found: ExtListing?
    _ = fileSystem.walk { if $0.path == path, $0.inode.kind == .regular { found = $0 } }
    guard let listing = found else { return nil }
    guard listing.inode.size <= KeptContents.undoLimit else {
      throw IntegrityError(.tooLarge, "a file of \(listing.inode.size) bytes is not put together", remedy: "")
    }
    var damage = DamageLog()
    var contents: [UInt8] = []
    var blocks = Int.max
    let isRead = fileSystem.readContents(of: listing, damage: &damage) { contents += $0.copiedBytes() }
    guard isRead else {
      throw IntegrityError(.damaged, damage.kept.first?.message ?? "the file cannot be read", remedy: "run e2fsck")
    }
    return CurrentFile(
      contents: contents,
      extents: listing.inode.hasInlineData ? [] : fileSystem.extents(of: listing, blocks: &blocks, damage: &damage),
      start: start, isClean: !fileSystem.superblock.features.needsRecovery)
  }

  func undo(_ contents: [UInt8]) throws(IntegrityError) -> [UInt8] {
    var contents = contents
    for change in changes.reversed() { try change.undo(&contents) }
    return contents
  }

  /// Where on the disk the contents go back to: what of them differs.
  func placed(
    _ contents: [UInt8], on file: CurrentFile?
  ) throws(IntegrityError) -> [(offset: UInt64, bytes: [UInt8])] {
    func refuse(_ why: String) -> IntegrityError {
      IntegrityError(.damaged, "cannot go back in place: \(why)", remedy: "take the contents out with --out")
    }
    guard let file else { throw refuse("the file is gone") }
    guard file.isClean else { throw refuse("the file system was not shut down cleanly, its journal is to be replayed") }
    guard file.contents.count == contents.count else {
      throw refuse("the file has \(file.contents.count) bytes now, and had \(contents.count)")
    }
    var parts: [(offset: UInt64, bytes: [UInt8])] = []
    var covered = 0
    for extent in file.extents where !extent.isUnwritten {
      let from = Int(clamping: extent.fileOffset)
      let to = min(contents.count, Int(clamping: extent.fileOffset + extent.length))
      guard from < to else { continue }
      guard contents[covered..<from].elementsEqual(file.contents[covered..<from]) else {
        throw refuse("some of it lies where the file has no blocks")
      }
      covered = to
      if !contents[from..<to].elementsEqual(file.contents[from..<to]) {
        parts.append((file.start + extent.diskOffset, Array(contents[from..<to])))
      }
    }
    guard contents[covered...].elementsEqual(file.contents[covered...]) else {
      throw refuse("some of it lies where the file has no blocks")
    }
    return parts
  }
}
#endif
