import Foundation
import Testing
import VMFenceBlock
import VMFenceCore
import VMFenceIntegrity

/// Journals that e2fsprogs writes, with checksums of every version, under the eyes of a monitor; e2fsck is the judge of what they
/// mean in `VMFenceDiskTests`.
@Suite(.enabled(if: E2fsprogs.isThere, "needs e2fsprogs"))
struct JournalFormatTests {
  struct Format: Sendable, CustomTestStringConvertible {
    var features: String
    var open: String
    /// What its journal's superblock says then: JBD2_FEATURE_COMPAT_CHECKSUM 0x1; incompatible: 64BIT 0x2, CSUM_V2 0x8, CSUM_V3 0x10.
    var compatible: UInt8
    var incompatible: UInt8
    var testDescription: String { "\(features) \(open)" }
  }

  static let formats = [
    Format(features: "^metadata_csum,^64bit", open: "jo", compatible: 0, incompatible: 0),
    Format(features: "^metadata_csum,^64bit", open: "jo -c", compatible: 1, incompatible: 0),
    Format(features: "^metadata_csum,64bit", open: "jo -c", compatible: 1, incompatible: 2),
    Format(features: "metadata_csum,^64bit", open: "jo -c -v 2", compatible: 0, incompatible: 8),
    Format(features: "metadata_csum,64bit", open: "jo -c -v 2", compatible: 0, incompatible: 10),
    Format(features: "metadata_csum,^64bit", open: "jo -c -v 3", compatible: 0, incompatible: 16),
    Format(features: "metadata_csum,64bit", open: "jo -c -v 3", compatible: 0, incompatible: 18),
  ]

  /// An image before and after debugfs has written a transaction into its journal: the inode of /f with mode 0666, and new contents
  /// of its first block.
  private struct Images {
    var before: [UInt8]
    var after: [UInt8]
    var place: Int

    init(_ format: Format) throws {
      let folder = FileManager.default.temporaryDirectory.appending(path: "vmfence-journal-\(UUID().uuidString)")
      defer { try? FileManager.default.removeItem(at: folder) }
      try FileManager.default.createDirectory(at: folder.appending(path: "seed"), withIntermediateDirectories: true)
      let file = folder.appending(path: "seed/f")
      try Data(repeating: 0x4B, count: 3000).write(to: file)
      try FileManager.default.setAttributes([.posixPermissions: 0o644], ofItemAtPath: file.path)
      let image = folder.appending(path: "image")
      try #require(
        try E2fsprogs.run(
          "mke2fs",
          [
            "-q", "-F", "-t", "ext4", "-b", "1024", "-O", format.features, "-J", "size=1", "-d",
            folder.appending(path: "seed").path, image.path, "8M",
          ]) == 0)
      let before = [UInt8](try Data(contentsOf: image))
      let fileSystem = try ExtFileSystem(MemoryDisk(before))
      var found: ExtListing?
      _ = fileSystem.walk { if $0.path == Array("/f".utf8) { found = $0 } }
      let listing = try #require(found)
      var (blocks, damage) = (Int.max, DamageLog())
      let place = Int(try #require(fileSystem.extents(of: listing, blocks: &blocks, damage: &damage).first).diskOffset)
      let changed = folder.appending(path: "changed")
      try FileManager.default.copyItem(at: image, to: changed)
      try #require(try E2fsprogs.run("debugfs", ["-w", "-R", "sif /f mode 0100666", changed.path]) == 0)
      let other = [UInt8](try Data(contentsOf: changed))
      let inode = try #require(
        stride(from: 2048, to: before.count, by: 1024).first { before[$0..<$0 + 1024] != other[$0..<$0 + 1024] })
      var block = Array(other[inode..<inode + 1024])
      // A block that begins as the journal's own do is escaped.
      block += [0xC0, 0x3B, 0x39, 0x98] + [UInt8](repeating: 0x41, count: 1020)
      try Data(block).write(to: folder.appending(path: "blocks"))
      let script =
        "\(format.open)\njw -b \(inode / 1024),\(place / 1024) \(folder.appending(path: "blocks").path)\njc\n"
      try #require(try E2fsprogs.run("debugfs", ["-w", "-f", "-", image.path], input: script) == 0)
      self.before = before
      self.place = place
      after = [UInt8](try Data(contentsOf: image))
    }

    /// The blocks that differ, as a guest writes them: the commit block is the last.
    var writes: [Int] {
      stride(from: 0, to: before.count, by: 1024).filter { before[$0..<$0 + 1024] != after[$0..<$0 + 1024] }
    }

    /// Where the journal's superblock is.
    var journal: Int? { writes.first { after[$0..<$0 + 4] == [0xC0, 0x3B, 0x39, 0x98] } }
  }

  private func follow(_ images: Images) throws -> [String] {
    let overlay = ImageOverlay(MemoryDisk(images.before))
    var disk = OverlaidDisk(try MonitorSupport.monitor(overlay, ["/**"]), overlay: overlay)
    for (index, place) in images.writes.enumerated() {
      let request = BlockRequest(
        sequence: UInt64(index), timestamp: Timestamp(nanoseconds: Int64(index) * 1_000_000), operation: .write,
        offset: UInt64(place), length: 1024)
      _ = Array(images.after[place..<place + 1024]).withRawSpan { disk.observe(request, data: $0) }
    }
    disk.observer.finish(at: Timestamp(seconds: 10))
    return disk.observer.drainEvents().map { "\($0.operation) \(String(decoding: $0.path, as: UTF8.self))" }
  }

  private func read(_ image: [UInt8]) throws -> (mode: UInt16, first: UInt8, damages: Int) {
    let fileSystem = try ExtFileSystem(MemoryDisk(image))
    var (mode, first, damage) = (UInt16(0), UInt8(0), DamageLog())
    let found = fileSystem.walk { listing in
      guard listing.path == Array("/f".utf8) else { return }
      mode = listing.inode.permissions
      _ = fileSystem.readContents(of: listing, limit: 1024, damage: &damage) { first = $0.u8(0) }
    }
    return (mode, first, found.count + damage.count)
  }

  @Test(arguments: formats) func aTransactionCountsAtTheStartAndLive(format: Format) throws {
    let images = try Images(format)
    let journal = try #require(images.journal)
    #expect(images.after[journal + 39] == format.compatible && images.after[journal + 43] == format.incompatible)
    let (mode, first, damages) = try read(images.after)
    #expect(mode == 0o666 && first == 0xC0 && damages == 0)
    // Contents and inode are in one transaction: as with data=journal.
    #expect(try follow(images) == ["write /f", "chmod /f"])
  }

  /// A byte of a copy that is not what was committed: with checksums, the transaction or the copy does not count.
  @Test(arguments: formats.filter { $0.open.contains("-c") }) func whatIsDamagedInIt(format: Format) throws {
    var images = try Images(format)
    let copy = try #require(images.writes.first { images.after[$0 + 1000] == 0x41 })
    images.after[copy + 1000] ^= 1
    let (mode, first, damages) = try read(images.after)
    #expect(first == 0x4B && damages > 0, "the contents are as they were")
    // Version 1 has one checksum for the transaction, the others one for each copy.
    #expect(mode == (format.compatible == 1 ? 0o644 : 0o666))
    #expect(try !follow(images).contains("write /f"))
  }
}
