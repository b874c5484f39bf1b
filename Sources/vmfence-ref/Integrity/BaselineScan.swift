#if Daemon
import Foundation
import VMFenceCore
import VMFenceIntegrity
import VMFenceStore

/// Reads what is protected on a disk, as a baseline has it.
final class BaselineScan {
  private let policy: ProtectionPolicy
  private var progress = ProgressLine()
  private(set) var entries: [BaselineEntry] = []
  private(set) var damages: [Damage] = []
  private(set) var damageCount = 0
  private var fileSystems = 0
  private var hashBudget: UInt64 = 0

  init(_ policy: ProtectionPolicy) { self.policy = policy }

  /// Partitions with another file system are passed over; a disk with none of ours is an error.
  func read(_ disk: any DiskReader) throws(IntegrityError) {
    let layout = try DiskLayout(disk)
    note(layout.damage)
    for part in layout.parts {
      do throws(IntegrityError) {
        try read(part)
        fileSystems += 1
      } catch {
        guard error.code == .notAFileSystem, part.partition != nil else { throw error }
      }
    }
    guard fileSystems > 0 else {
      throw IntegrityError(
        .notAFileSystem, "no partition has a file system that can be read", remedy: "ext2, ext3 and ext4 can be")
    }
    entries.sort { $0.precedes($1) }
  }

  private func read(_ part: DiskLayout.Part) throws(IntegrityError) {
    let fileSystem = try ExtFileSystem(part.reader)
    let number = UInt32(part.partition?.number ?? 0)
    let total = Int64(fileSystem.superblock.inodeCount) - Int64(fileSystem.superblock.freeInodeCount)
    hashBudget = fileSystem.contentsLimit
    var done: Int64 = 0
    var log = DamageLog()
    let found = fileSystem.walk { listing in
      self.progress.show("reading", done: done, of: total)
      done += 1
      guard self.policy.action(forPath: listing.path) != nil else { return }
      self.entries.append(self.entry(listing, fileSystem, partition: number, &log))
    }
    progress.clear()
    note(found)
    note(log)
  }

  private func entry(
    _ listing: ExtListing, _ fileSystem: ExtFileSystem, partition: UInt32, _ log: inout DamageLog
  ) -> BaselineEntry {
    let inode = listing.inode
    let attributes = fileSystem.attributes(of: listing, damage: &log).sorted {
      $0.name.lexicographicallyPrecedes($1.name)
    }
    var names: [UInt8] = []
    for attribute in attributes {
      names += StateKey.number(UInt64(attribute.name.count)) + attribute.name
      names += StateKey.number(UInt64(attribute.value.count)) + attribute.value
    }
    var contents: [UInt8] = []
    switch inode.kind {
    case .regular: contents = fileSystem.contentHash(of: listing, limit: &hashBudget, damage: &log) ?? []
    case .symbolicLink: contents = SHA256.digest(of: fileSystem.target(of: listing, damage: &log))
    default: break
    }
    return BaselineEntry(
      partition: partition, path: listing.path, inode: UInt64(listing.number), mode: UInt32(inode.mode),
      userID: inode.userID, groupID: inode.groupID, size: inode.size, links: UInt32(inode.linkCount),
      modificationTime: inode.modificationTime.nanoseconds, attributes: names.isEmpty ? [] : SHA256.digest(of: names),
      sha256: contents)
  }

  private func note(_ log: DamageLog) {
    damageCount += log.count
    damages += log.kept
  }
}
#endif
