#if Daemon
import Foundation
import VMFenceCore
import VMFenceIntegrity

/// Lists the files of a disk, as JSON lines or as a table, file by file: memory does not grow with their number.
final class ImageListing {
  private let hashes: Bool
  /// Where JSON goes; nil for a table on the terminal.
  private let output: LineFile?
  private var progress = ProgressLine()
  private(set) var files = 0
  private(set) var damages = 0
  /// Bytes of contents that are still read for hashes.
  private var hashBudget: UInt64 = 0

  init(hashes: Bool, output: LineFile?) {
    self.hashes = hashes
    self.output = output
  }

  /// - Returns: why there is nothing to list.
  func list(_ reader: any DiskReader, partition: DiskPartition?) -> IntegrityError? {
    let fileSystem: ExtFileSystem
    do throws(IntegrityError) { fileSystem = try ExtFileSystem(reader) } catch { return error }
    describe(fileSystem, partition)
    hashBudget = fileSystem.contentsLimit
    let total = Int64(fileSystem.superblock.inodeCount) - Int64(fileSystem.superblock.freeInodeCount)
    var done: Int64 = 0
    var log = DamageLog()
    let found = fileSystem.walk { listing in
      self.progress.show("reading", done: done, of: total)
      done += 1
      self.tell(listing, fileSystem, partition, &log)
    }
    progress.clear()
    fileSystem.checkBitmaps(damage: &log)
    damage(found, partition: partition)
    damage(log, partition: partition)
    return nil
  }

  private func tell(
    _ listing: ExtListing, _ fileSystem: ExtFileSystem, _ partition: DiskPartition?, _ log: inout DamageLog
  ) {
    files += 1
    var blocks = WalkLimits().blocks
    let file = ListedFile(
      listing, hashes: hashes,
      sha256: hashes ? fileSystem.contentHash(of: listing, limit: &hashBudget, damage: &log) : nil,
      extents: fileSystem.extents(of: listing, blocks: &blocks, damage: &log),
      attributes: fileSystem.attributes(of: listing, damage: &log),
      target: listing.inode.kind == .symbolicLink ? fileSystem.target(of: listing, damage: &log) : nil)
    if let output { output.write(file.json(partition)) } else { Terminal.output.print(file.row) }
  }

  private func describe(_ fileSystem: ExtFileSystem, _ partition: DiskPartition?) {
    let superblock = fileSystem.superblock
    let kind = superblock.features.incompatible & 0x2C0 != 0 ? "ext4" : superblock.features.hasJournal ? "ext3" : "ext2"
    let size = superblock.blockCount * UInt64(superblock.blockSize)
    guard let output else {
      let place = partition.map { "partition \($0.number), " } ?? ""
      let name = String(decoding: superblock.volumeName, as: UTF8.self).escapedForDisplay
      Terminal.output.print(
        "\(place)\(kind)\(name.isEmpty ? "" : " \"\(name)\""), \(size) bytes in blocks of \(superblock.blockSize): "
          + superblock.features.names.joined(separator: " "))
      return
    }
    var line = JSONLine()
    line.object { json in
      json.member("record", "filesystem")
      json.member("partition", partition?.number)
      json.member("type", kind)
      json.member("size", size)
      json.member("block_size", superblock.blockSize)
      json.member("inodes", superblock.inodeCount)
      json.member("uuid", superblock.uuidHigh.hexadecimal(width: 16) + superblock.uuidLow.hexadecimal(width: 16))
      json.array("features", superblock.features.names) { $0.element($1) }
    }
    output.write(line.bytes)
  }

  // MARK: Damage

  func damage(_ log: DamageLog, partition: DiskPartition? = nil) {
    damages += log.count
    for damage in log.kept {
      tellDamage(damage.message, inode: damage.inode, path: damage.path, partition)
    }
    if log.count > log.kept.count {
      tellDamage("and \(log.count - log.kept.count) more", inode: 0, path: [], partition)
    }
  }

  func damage(_ error: IntegrityError, partition: DiskPartition? = nil) {
    damages += 1
    tellDamage(error.message, inode: 0, path: [], partition, code: error.code.name)
  }

  private func tellDamage(
    _ message: String, inode: UInt64, path: [UInt8], _ partition: DiskPartition?, code: String = "damaged"
  ) {
    guard let output else {
      let place = path.isEmpty ? "" : String(decoding: path, as: UTF8.self).escapedForDisplay + ": "
      Terminal.error.print([Diagnostic(.warning, at: nil, place + message.escapedForDisplay, remedy: "")])
      return
    }
    var line = JSONLine()
    line.object { json in
      json.member("record", "damage")
      json.member("partition", partition?.number)
      json.member("code", code)
      if !path.isEmpty { json.path("path", path) }
      if inode != 0 { json.member("inode", inode) }
      json.member("message", message)
    }
    output.write(line.bytes)
  }

  func finish() throws {
    if let output {
      var line = JSONLine()
      line.object { json in
        json.member("record", "summary")
        json.member("files", files)
        json.member("damages", damages)
      }
      output.write(line.bytes)
      try output.close()
    } else {
      Terminal.output.print("\(files) files, \(damages) damages")
    }
  }
}
#endif
