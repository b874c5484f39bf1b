import Foundation
import Testing
import VMFenceBlock
import VMFenceCore
import VMFenceIntegrity

/// Disks and policies that ask for too much.
@Suite struct BadDiskTests {
  private static let policy = ["/**"]

  @Test(arguments: [0, 1, 511, 1024, 2047]) func aDiskTooShortForAFileSystemIsSaidToBeNone(size: Int) throws {
    let disk = MemoryDisk([UInt8](repeating: 0, count: size))
    var monitor = DiskMonitor(
      disk,
      configuration: .init(
        incarnation: Incarnation(uuid: DomainUUID(high: 0, low: 1), domainID: DomainID(1)), disk: "xvda",
        policy: try ProtectionPolicy([.init("/**")])), at: .zero)
    let blindness = monitor.blindness
    #expect(blindness?.remedy.isEmpty == false)
    #expect(monitor.drainEvents().map(\.operation) == [.damage])
    for (sequence, length) in [UInt64(0), 1, 4096, .max].enumerated() {
      let request = BlockRequest(
        sequence: UInt64(sequence), timestamp: .zero, operation: .writeZeroes, offset: UInt64(size), length: length)
      #expect([].withRawSpan { monitor.observe(request, data: $0) } == .allow)
    }
    monitor.finish(at: Timestamp(seconds: 1))
  }

  /// Tables whose checksums are right, with partitions whose length no number can say.
  @Test func aPartitionAsLongAsNumbersGoDoesNotLieOnTheDisk() throws {
    var bytes = [UInt8](repeating: 0, count: 64 * 512)
    func put(_ value: UInt64, _ count: Int, at offset: Int) {
      for index in 0..<count { bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index)) }
    }
    func checksum(_ range: Range<Int>) -> UInt64 {
      var crc = CRC32()
      Array(bytes[range]).withRawSpan { crc.update($0) }
      return UInt64(crc.value)
    }
    put(0xEE, 1, at: 450)
    put(63, 4, at: 458)
    put(0xAA55, 2, at: 510)
    let ranges: [(UInt64, UInt64)] = [(0, .max), (1, .max), (.max, .max), (10, 19)]
    for (index, (first, last)) in ranges.enumerated() {
      let entry = 1024 + 128 * index
      put(1, 8, at: entry)
      put(first, 8, at: entry + 32)
      put(last, 8, at: entry + 40)
    }
    bytes.replaceSubrange(512..<520, with: Array("EFI PART".utf8))
    for (offset, value) in [(12, UInt64(92)), (24, 1), (72, 2), (80, 4), (84, 128)] {
      put(value, offset == 24 || offset == 72 ? 8 : 4, at: 512 + offset)
    }
    put(checksum(1024..<1024 + 4 * 128), 4, at: 512 + 88)
    put(checksum(512..<512 + 92), 4, at: 512 + 16)
    let layout = try DiskLayout(MemoryDisk(bytes))
    #expect(layout.kind == .gpt && layout.partitions.map(\.number) == [4] && layout.damage.count == 3)
    #expect(layout.partitions.first?.start == 5120 && layout.partitions.first?.byteCount == 5120)
  }

  /// An extent that ends with the last block that a file can have.
  @Test func theLastBlockOfAllIsNotTooFar() throws {
    var guest = try Guest(protecting: [.init("/**", attributes: [.standard, .content])])
    // A header of extents, and one extent: one block, block 20 of the disk.
    guest.image.putInode(13, .init(size: 100, blocks: [0x0001_F30A, 4, 0, .max, 1, 20]))
    guest.image.put32(0x8_0000, at: 5 * 1024 + 12 * 128 + 32)
    guest.write(inodeBlock(13))
    #expect(!guest.flush().isEmpty)
    guest.image.putText(20, "changed")
    guest.write(20)
    _ = guest.finish()
    guest.image.putInode(13, .init(size: 100, blocks: [20]))
    guest.write(inodeBlock(13))
    #expect(!guest.finish().isEmpty)
  }

  /// A file that says to be as long as numbers go, and longer.
  @Test func contentsAtTheEndOfAllNumbersAreNotTooFar() throws {
    var guest = try Guest(protecting: [.init("/**", action: .rollback, attributes: [.standard, .content])])
    for size in [UInt64.max - 20, .max, 100, .max] {
      guest.image.putInode(13, .init(size: UInt32(truncatingIfNeeded: size), blocks: [20]))
      guest.image.put32(UInt32(size >> 32), at: 5 * 1024 + 12 * 128 + 108)
      guest.image.putText(20, String(size))
      guest.write(20, inodeBlock(13))
      #expect(!guest.flush().isEmpty)
      while let contents = guest.disk.observer.nextContents() { #expect(contents.bytes.count <= 1 << 20) }
      _ = guest.disk.observer.drainKeptContents()
    }
  }

  /// 17 TiB in a sparse file: more than 32 bits of blocks of 4 KiB.
  @Test(.enabled(if: E2fsprogs.isThere && FileManager.default.isWritableFile(atPath: "/dev/shm"), "needs e2fsprogs"))
  func aDiskBeyond16TiBIsFollowed() throws {
    let folder = URL(filePath: "/dev/shm/vmfence-large-\(UUID().uuidString)")
    defer { try? FileManager.default.removeItem(at: folder) }
    try FileManager.default.createDirectory(at: folder.appending(path: "seed/etc"), withIntermediateDirectories: true)
    try Data("root".utf8).write(to: folder.appending(path: "seed/etc/passwd"))
    let image = folder.appending(path: "image").path
    let made = try E2fsprogs.run(
      "mke2fs",
      [
        "-q", "-F", "-t", "ext4", "-b", "65536", "-O",
        "64bit,^has_journal,^resize_inode,^metadata_csum,bigalloc", "-C", "16777216", "-N", "4096", "-E",
        "lazy_itable_init=1,nodiscard", "-d", folder.appending(path: "seed").path, image, "17T",
      ])
    try #require(made == 0)
    let overlay = ImageOverlay(try FileDiskReader(path: image))
    #expect(overlay.byteCount == 17 << 40)
    var disk = OverlaidDisk(try MonitorSupport.monitor(overlay, Self.policy), overlay: overlay)
    let fileSystem = try ExtFileSystem(overlay)
    var found: ExtListing?
    #expect(fileSystem.walk { if $0.path == Array("/etc/passwd".utf8) { found = $0 } }.count == 0)
    var (blocks, damage) = (Int.max, DamageLog())
    let listing = try #require(found)
    let extents = fileSystem.extents(of: listing, blocks: &blocks, damage: &damage)
    let place = try #require(extents.first).diskOffset
    let offsets: [UInt64] = [(17 << 40) - 4, place, 16 << 40, UInt64(UInt32.max) << 12]
    for (sequence, offset) in offsets.enumerated() {
      let request = BlockRequest(
        sequence: UInt64(sequence), timestamp: Timestamp(seconds: 1), operation: .write, offset: offset, length: 4)
      #expect(Array("toor".utf8).withRawSpan { disk.observe(request, data: $0) } == .allow)
    }
    disk.observer.finish(at: Timestamp(seconds: 9))
    #expect(disk.observer.drainEvents().map(MonitorSupport.text) == ["1 write /etc/passwd ino \(listing.number) 0+4"])
  }

  @Test func aPolicyThatMatchesEverythingStaysWithinItsLimits() throws {
    let overlay = ImageOverlay(MemoryDisk(TinyDisk().bytes))
    var monitor = IntegrityMonitor(
      overlay,
      configuration: .init(
        incarnation: Incarnation(uuid: DomainUUID(high: 0, low: 1), domainID: DomainID(1)), disk: "xvda",
        policy: try ProtectionPolicy([.init("/"), .init("/**")]), limits: WalkLimits(entries: 8, depth: 4, blocks: 8)),
      at: .zero)
    let told = monitor.drainEvents()
    #expect(!told.isEmpty && told.allSatisfy { $0.operation == .damage }, "what is not followed is said")
    #expect(monitor.viewTableEntries <= 8)
  }

  /// The superblock comes last, as mke2fs writes it, or first, as a kernel writes its cache back.
  @Test(arguments: [true, false]) func aGuestThatFormatsItsDiskIsFollowedOnTheNewOne(isSuperblockFirst: Bool) throws {
    var guest = try Guest(protecting: [.init("/etc/**")])
    for block in 0..<20 { guest.request(.write, at: UInt64(block * 1024), [UInt8](repeating: 0, count: 1024)) }
    #expect(guest.wait(.seconds(2)).contains { $0.contains("damage") } && guest.disk.observer.blindness != nil)
    var fresh = TinyDisk()
    fresh.putInode(13, .init(mode: 0o100600, size: 100, generation: 77, blocks: [30]))
    fresh.putText(30, "fresh")
    guest.image = fresh
    if isSuperblockFirst {
      guest.write(1)
      _ = guest.wait(.seconds(2))
    }
    guest.write(2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 30)
    if !isSuperblockFirst { guest.write(1) }
    let told = guest.wait(.seconds(2))
    #expect(told.contains { $0.contains("/etc/passwd") } && guest.disk.observer.blindness == nil, "\(told)")
    guest.image.putText(30, "Fresh")
    guest.write(30)
    #expect(
      guest.wait(.seconds(2)).map { $0.split(separator: " ").dropFirst().joined(separator: " ") }
        == ["write /etc/passwd ino 13 0+1"])
  }
}
