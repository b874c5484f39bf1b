import Testing
import VMFenceCore
import VMFenceIntegrity

/// A guest that writes its own disk past its kernel, so that a change is not seen: what the journal is used for.
@Suite struct JournalEvasionTests {
  static let hashed = FileAttributes.readOnly

  private static func rules(_ action: ProtectionPolicy.Action) -> [ProtectionPolicy.Rule] {
    [.init("/etc/**", action: action, attributes: hashed)]
  }

  /// A copy in the journal that changes nothing, other bytes at the block's place, and then the copy is revoked.
  @Test(arguments: [ProtectionPolicy.Action.alert, .denyData, .denyMetadata, .freeze])
  func aCopyInTheJournalHidesNoContents(action: ProtectionPolicy.Action) throws {
    var test = try JournalLiveTests.Journalled(Self.rules(action))
    #expect(test.commit([(20, test.guest.image.block(20))]) == .allow && test.guest.events() == [])
    let before = test.guest.image
    test.guest.image.putText(20, "EVIL")
    let verdict = test.guest.write(20)
    let told = test.guest.wait(.seconds(2))
    try #require(told.count == 1 && told[0].hasPrefix("4 write /etc/passwd ino 13 0+4"), "\(told)")
    guard action != .alert else {
      #expect(verdict == .allow && told[0].contains("sha256"))
      // From then on the place counts: the revocation says nothing new.
      #expect(test.commit([], revoking: [20]) == .allow && test.guest.wait(.seconds(5)) == [])
      return
    }
    #expect(verdict == (action == .freeze ? .hold : .deny))
    test.guest.image = before
    #expect(test.commit([], revoking: [20]) == .allow && test.guest.wait(.seconds(5)) == [])
  }

  /// Pieces of a block are judged, too, against all that is at its place then.
  @Test func aPieceOfABlockOfWhichTheJournalHasACopyIsJudged() throws {
    var test = try JournalLiveTests.Journalled(Self.rules(.denyData))
    #expect(test.commit([(20, test.guest.image.block(20))]) == .allow)
    #expect(test.guest.request(.write, at: 20 * 1024 + 3, Array("X".utf8)) == .deny)
    #expect(test.guest.request(.writeZeroes, at: 20 * 1024, length: 1024) == .deny)
    #expect(test.guest.request(.write, at: 20 * 1024 + 3, Array("p".utf8)) == .allow)
    #expect(
      test.guest.wait(.seconds(2)) == [
        "4 write /etc/passwd ino 13 3+1 DENIED", "5 write /etc/passwd ino 13 0+100 DENIED",
      ])
  }

  /// The inodes with the protected file in block 40.
  private static func moved(_ image: TinyDisk) -> [UInt8] {
    changed(image, 6) { $0.putInode(13, .init(size: 100, blocks: [40])) }
  }

  /// A place that had other bytes before its block became the file's: with the copy in the journal, they went from sight.
  private static func covered(_ action: ProtectionPolicy.Action) throws -> JournalLiveTests.Journalled {
    var test = try JournalLiveTests.Journalled(rules(action))
    test.guest.image.putText(40, "EVIL" + String(repeating: "p", count: 1020))
    test.guest.write(40)
    let good = test.guest.image.block(20)
    #expect(test.commit([(40, good), (6, moved(test.guest.image))]) == .allow)
    _ = test.guest.wait(.seconds(2))
    return test
  }

  /// A revocation brings them back.
  @Test(arguments: [ProtectionPolicy.Action.alert, .denyData]) func whatARevocationUncoversIsJudged(
    action: ProtectionPolicy.Action
  ) throws {
    var test = try Self.covered(action)
    #expect(test.commit([], revoking: [40]) == (action == .alert ? .allow : .deny))
    let told = test.guest.wait(.seconds(2))
    try #require(told.count == 1 && told[0].contains(" write /etc/passwd ino 13 0+4"), "\(told)")
    #expect(told[0].hasSuffix("DENIED") == (action == .denyData))
  }

  /// The same by a superblock of the journal that says it is empty.
  @Test(arguments: [ProtectionPolicy.Action.alert, .denyData]) func whatAnEmptiedJournalUncoversIsJudged(
    action: ProtectionPolicy.Action
  ) throws {
    var test = try Self.covered(action)
    test.guest.image.bytes.replaceSubrange(6 * 1024..<7 * 1024, with: Self.moved(test.guest.image))
    test.guest.write(6)
    test.journal.putSuperblock(on: &test.guest.image, start: 0, sequence: 6)
    #expect(test.guest.write(TinyJournal.first) == (action == .alert ? .allow : .deny))
    let told = test.guest.wait(.seconds(2))
    try #require(told.count == 1 && told[0].contains(" write /etc/passwd ino 13 0+4"), "\(told)")
  }

  /// A guest that journals contents, and deletes a file before they were at their place.
  @Test func deletingAFileWhoseContentsAreInTheJournalIsNoChangeOfContents() throws {
    var test = try JournalLiveTests.Journalled(Self.rules(.denyData))
    let grown = changed(test.guest.image, 20) { $0.bytes[20 * 1024 + 200] = 0x21 }
    #expect(test.commit([(20, grown)]) == .allow)
    let names = changed(test.guest.image, 14) { $0.putNames(14, [(".", 12), ("..", 2), ("shadow", 14)]) }
    let inode = changed(test.guest.image, 6) { $0.putInode(13, .init(size: 0, links: 0, dtime: 1_700_000_009)) }
    #expect(test.commit([(14, names), (6, inode)], revoking: [20]) == .allow)
    let told = test.guest.wait(.seconds(2))
    try #require(told.count == 1 && told[0].contains(" unlink /etc/passwd"), "\(told)")
  }

  /// A log said to be longer than the journal's file could be walked for ever.
  @Test func aJournalThatSaysItIsLongerThanItsFileIsNotBelieved() throws {
    var test = try JournalLiveTests.Journalled()
    let base = TinyJournal.first * 1024
    let before = test.guest.image.block(TinyJournal.first)
    // With fast commits the log ends at block 15, of 2^32 - 1.
    for (offset, value) in [(16, UInt32.max), (40, 1 | 0x20), (84, UInt32.max - 15)] as [(Int, UInt32)] {
      TinyJournal.put(value, at: base + offset, in: &test.guest.image)
    }
    test.guest.write(TinyJournal.first)
    let told = test.guest.wait(.milliseconds(1))
    try #require(told.count == 1 && told[0].contains("4294967295 blocks in a file of 32"), "\(told)")
    var block = [UInt8](repeating: 0, count: 1024)
    for (offset, value) in [3: UInt8(0x98), 2: 0x39, 1: 0x3B, 0: 0xC0, 7: 5, 11: 5, 14: 4] { block[offset] = value }
    for index in 1..<14 { test.guest.request(.write, at: UInt64((TinyJournal.first + index) * 1024), block) }
    (block[7], block[11]) = (2, 6)
    test.guest.request(.write, at: UInt64((TinyJournal.first + 14) * 1024), block)
    // The kernel goes on with what it has in memory, and so does the monitor.
    test.guest.image.bytes.replaceSubrange(base..<base + 1024, with: before)
    #expect(test.commit([(6, withMode(test.guest.image, 0o100666))]) == .allow)
    #expect(test.guest.events().last?.contains("chmod /etc/passwd ino 13 mode: 0644 -> 0666") == true)
  }

  /// Where metadata are judged, such a superblock is refused: the next start could not look into the journal.
  @Test func aSuperblockThatMakesTheJournalUnusableIsRefusedWhereMetadataAreJudged() throws {
    var test = try JournalLiveTests.Journalled(Self.rules(.denyMetadata))
    for (offset, value) in [(16, UInt32.max), (40, 0x8000_0000)] as [(Int, UInt32)] {
      let before = test.guest.image
      TinyJournal.put(value, at: TinyJournal.first * 1024 + offset, in: &test.guest.image)
      #expect(test.guest.write(TinyJournal.first) == .deny)
      #expect(test.guest.events().allSatisfy { $0.contains("cannot be used") && $0.hasSuffix("DENIED") })
      test.guest.image = before
    }
    #expect(test.commit([(6, withMode(test.guest.image, 0o100666))]) == .deny)
  }

  /// A log full of revocations, each of the same blocks.
  @Test func revocationsThatChangeNothingAreNotKept() throws {
    var disk = TinyDisk()
    var journal = TinyJournal(on: &disk, isDirty: true)
    _ = journal.commit([(6, withMode(disk, 0o100666))], on: &disk)
    _ = journal.commit([], revoking: (0..<252).map { UInt32(1000 + $0) }, on: &disk)
    // As many blocks of revocations as the log has, before the commit block.
    let revocations = disk.block(TinyJournal.first + 4)
    for position in 4..<30 {
      disk.bytes.replaceSubrange(
        (TinyJournal.first + position) * 1024..<(TinyJournal.first + position + 1) * 1024, with: revocations)
    }
    TinyJournal.put(6, at: (TinyJournal.first + 29) * 1024 + 16, in: &disk)
    for (offset, value) in [(0, 0xC03B_3998), (4, 2), (8, 6)] as [(Int, UInt32)] {
      TinyJournal.put(value, at: (TinyJournal.first + 30) * 1024 + offset, in: &disk)
    }
    var buffer: [UInt8] = []
    #expect(try ExtFileSystem(MemoryDisk(disk.bytes)).inode(13, buffer: &buffer).permissions == 0o644)
  }
}

/// What is known when the disk must be read anew.
@Suite struct ResyncEvasionTests {
  /// A block that looks like a commit block of a transaction far ahead has the disk read anew.
  private func looksLikeACommit(_ test: inout JournalLiveTests.Journalled) {
    let last = TinyJournal.first + TinyJournal.length - 1
    for (offset, value) in [(0, 0xC03B_3998), (4, 2), (8, 500)] as [(Int, UInt32)] {
      TinyJournal.put(value, at: last * 1024 + offset, in: &test.guest.image)
    }
    test.guest.write(last)
  }

  @Test(arguments: [FileAttributes.standard, .readOnly]) func whatWasSeenAndNotToldIsTold(attributes: FileAttributes)
    throws
  {
    var test = try JournalLiveTests.Journalled([.init("/etc/**", attributes: attributes)])
    test.guest.image.putText(20, "EVIL")
    test.guest.write(20)
    looksLikeACommit(&test)
    let told = test.guest.wait(.seconds(2))
    #expect(test.guest.disk.observer.statistics.resyncs == 1)
    try #require(told.count == 2, "\(told)")
    #expect(told[0].contains("damage") && told[0].contains("was not expected"))
    #expect(told[1].hasPrefix("1 write /etc/passwd ino 13 0+4"))
    #expect(told[1].contains("sha256") == attributes.contains(.sha256))
    #expect(test.guest.wait(.seconds(10)) == [] && test.guest.finish() == [])
  }

  @Test func blocksThatAFileTookAndGrowthAreToldOnce() throws {
    var test = try JournalLiveTests.Journalled([.init("/etc/**")])
    test.guest.image.putText(40, "EVIL")
    test.guest.image.putText(41, "more")
    test.guest.write(40, 41)
    test.guest.image.putInode(13, .init(size: 2000, blocks: [40, 41]))
    test.guest.write(6)
    looksLikeACommit(&test)
    let told = test.guest.wait(.seconds(2)).filter { !$0.contains("damage") }
    #expect(
      told.count == 2 && told[0].contains("write /etc/passwd ino 13 0+100")
        && told[1].contains("append /etc/passwd ino 13 100+1900"), "\(told)")
  }

  @Test func attributesThatChangedInTheirBlockAreTold() throws {
    var disk = TinyDisk()
    disk.putAttribute(60, "a", "one")
    disk.putInode(13, .init(size: 100, blocks: [20], attributeBlock: 60))
    var guest = try Guest(disk, protecting: [.init("/etc/**")])
    guest.image.putAttribute(60, "a", "two!")
    guest.write(60)
    guest.disk.observeGap(at: guest.time, reason: "a test")
    #expect(guest.wait(.seconds(2)).contains { $0.hasSuffix("xattr /etc/passwd ino 13 xattr user.a: one -> two!") })
  }

  /// What nobody saw shows in the hash.
  @Test func contentsThatChangedUnseenAreToldByTheirHash() throws {
    var guest = try Guest(protecting: [.init("/etc/**", attributes: .readOnly)])
    let request = BlockRequest(sequence: 0, timestamp: .zero, operation: .write, offset: 20 * 1024, length: 4)
    try Array("EVIL".utf8).withRawSpan { span throws(IntegrityError) in try guest.overlay.apply(request, data: span) }
    guest.disk.observeGap(at: guest.time, reason: "a test")
    let told = guest.wait(.seconds(2))
    try #require(told.count == 2 && told[1].contains("write /etc/passwd ino 13 data:  -> other contents"), "\(told)")
    #expect(told[1].contains("sha256: ") && guest.finish() == [])
  }
}

/// Names that the guest's kernel sees, or does not.
@Suite struct DirectoryEvasionTests {
  /// The root, /etc and /var with extents; /etc has its block and one more.
  private func disk(etc size: UInt32, isUnwritten: Bool) -> TinyDisk {
    var disk = TinyDisk()
    let length: UInt32 = isUnwritten ? 0x8000 : 0
    disk.put32(0x42, at: 1024 + 96)
    // Two extents: block 14, and block 30.
    disk.putInode(
      12, .init(mode: 0o40755, size: size, links: 2, blocks: [0x0002_F30A, 4, 0, 0, 1 + length, 14, 1, 1, 30]))
    disk.put32(0x8_0000, at: 5 * 1024 + 11 * 128 + 32)
    disk.putNames(30, [("evil", 16)])
    return disk
  }

  private func names(_ disk: TinyDisk) throws -> (listed: [String], damages: Int) {
    var listed: [String] = []
    let damage = try ExtFileSystem(MemoryDisk(disk.bytes)).walk {
      listed.append(String(decoding: $0.path, as: UTF8.self))
    }
    return (listed.filter { $0.hasPrefix("/etc/") }, damage.count)
  }

  @Test func namesInBlocksThatAreSaidToBeUnwrittenCount() throws {
    let disk = disk(etc: 2048, isUnwritten: true)
    let listed = try names(disk)
    #expect(listed.listed == ["/etc/passwd", "/etc/shadow", "/etc/evil"] && listed.damages == 1)
    var guest = try Guest(disk, protecting: [.init("/etc/**")])
    #expect(guest.disk.observer.protectedFiles.count == 3)
    #expect(guest.events().contains { $0.contains("said to be unwritten") })
    guest.image.putText(20, "EVIL")
    guest.write(20)
    #expect(guest.flush() == ["0 write /etc/passwd ino 13 0+4"])
  }

  @Test func namesBehindTheEndOfADirectoryDoNotCountUntilItGrows() throws {
    var disk = disk(etc: 1024, isUnwritten: false)
    let listed = try names(disk)
    #expect(listed.listed == ["/etc/passwd", "/etc/shadow"] && listed.damages == 1)
    var guest = try Guest(disk, protecting: [.init("/etc/**")])
    #expect(guest.disk.observer.protectedFiles.count == 2)
    #expect(guest.events().contains { $0.contains("behind its end") })
    for (size, told) in [(2048, "link /etc/evil"), (1024, "unlink /etc/evil")] as [(UInt32, String)] {
      disk.put32(size, at: 5 * 1024 + 11 * 128 + 4)
      guest.image = disk
      guest.write(6)
      let events = guest.finish()
      #expect(events.contains { $0.contains(told) || $0.contains("create /etc/evil") }, "\(events)")
    }
  }
}

/// As many inodes as there are numbers for them, on a disk that nobody has as large: what is not given is zero.
@Suite struct LargestFileSystemTests {
  private final class SparseDisk: DiskReader {
    let byteCount: UInt64
    let blocks: [UInt64: [UInt8]]
    /// Every one of these blocks is full of the same group descriptor.
    let descriptors: Range<UInt64>
    let descriptorBlock: [UInt8]

    init(_ byteCount: UInt64, _ blocks: [UInt64: [UInt8]], descriptors: Range<UInt64>, _ descriptorBlock: [UInt8]) {
      self.byteCount = byteCount
      self.blocks = blocks
      self.descriptors = descriptors
      self.descriptorBlock = descriptorBlock
    }

    func read(at offset: UInt64, into buffer: inout [UInt8]) throws(IntegrityError) {
      try checkBounds(at: offset, count: buffer.count)
      let block = offset / 1024
      let own = blocks[block] ?? (descriptors.contains(block) ? descriptorBlock : nil)
      let start = Int(offset % 1024)
      buffer = own.map { Array($0[start..<start + buffer.count]) } ?? [UInt8](repeating: 0, count: buffer.count)
    }
  }

  private static func put(_ value: UInt32, _ count: Int = 4, at offset: Int, in block: inout [UInt8]) {
    for index in 0..<count { block[offset + index] = UInt8(truncatingIfNeeded: value >> UInt32(8 * index)) }
  }

  /// 983,055 groups of 4,369 inodes: 2^32 - 1 of them.
  private static func disk() -> SparseDisk {
    let groups: UInt64 = 983_055
    let blockCount = groups * 552 + 1
    var superblock = [UInt8](repeating: 0, count: 1024)
    for (offset, value) in [
      (0, UInt32.max), (4, UInt32(blockCount)), (20, 1), (32, 552), (36, 552), (40, 4369), (56, 0xEF53), (76, 1),
      (84, 11), (88, 128), (96, 0x202),
    ] { put(value, at: offset, in: &superblock) }
    var descriptor = [UInt8](repeating: 0, count: 32)
    for (offset, value) in [(0, UInt32(40_000)), (4, 40_001), (8, 40_002)] { put(value, at: offset, in: &descriptor) }
    var inodes = [UInt8](repeating: 0, count: 1024)
    for (offset, value) in [(128, UInt32(0o40755)), (132, 1024), (154, 3), (168, 50_000), (228, 1)] {
      put(value, at: offset, in: &inodes)
    }
    var names = [UInt8](repeating: 0, count: 1024)
    for (offset, value) in [(0, UInt32(2)), (4, 12), (6, 1), (8, 0x2E), (12, 2), (16, 1012), (18, 2), (20, 0x2E2E)] {
      put(value, offset % 12 == 0 ? 4 : 2, at: offset, in: &names)
    }
    return SparseDisk(
      blockCount * 1024, [1: superblock, 40_002: inodes, 50_000: names], descriptors: 2..<2 + groups / 32 + 1,
      [[UInt8]](repeating: descriptor, count: 32).flatMap { $0 })
  }

  @Test func aWriteToItsInodesIsFollowed() throws {
    let disk = Self.disk()
    var monitor = try MonitorSupport.monitor(disk, ["/**", "/"])
    #expect(monitor.blindness == nil && monitor.protectedFiles.count == 1)
    var inodes = disk.blocks[40_002] ?? []
    inodes[128] = 0xFF
    let request = BlockRequest(
      sequence: 0, timestamp: Timestamp(seconds: 1), operation: .write, offset: 40_002 * 1024, length: 1024)
    #expect(inodes.withRawSpan { monitor.observe(request, data: $0) } == .allow)
    monitor.finish(at: Timestamp(seconds: 2))
    #expect(monitor.drainEvents().map(MonitorSupport.text).contains { $0.contains("chmod / ino 2") })
  }
}
