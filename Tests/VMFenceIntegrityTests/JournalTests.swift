import Testing
import VMFenceCore
import VMFenceIntegrity

/// A disk's block as it would be after a change.
func changed(_ disk: TinyDisk, _ block: Int, _ change: (inout TinyDisk) -> Void) -> [UInt8] {
  var copy = disk
  change(&copy)
  return copy.block(block)
}

func withMode(_ disk: TinyDisk, _ mode: UInt16) -> [UInt8] {
  changed(disk, 6) { $0.putInode(13, .init(mode: mode, size: 100, blocks: [20])) }
}

private func mode(_ disk: TinyDisk) throws -> UInt16 {
  var buffer: [UInt8] = []
  return try ExtFileSystem(MemoryDisk(disk.bytes)).inode(13, buffer: &buffer).permissions
}

@Suite struct JournalAtStartTests {
  @Test func committedTransactionsCount() throws {
    var disk = TinyDisk()
    var journal = TinyJournal(on: &disk, isDirty: true)
    _ = journal.commit([(6, withMode(disk, 0o100600))], on: &disk)
    _ = journal.commit([(6, withMode(disk, 0o100666))], on: &disk)
    #expect(try mode(disk) == 0o666)
  }

  @Test func whatIsNotCommittedDoesNot() throws {
    var disk = TinyDisk()
    var journal = TinyJournal(on: &disk, isDirty: true)
    let blocks = journal.commit([(6, withMode(disk, 0o100666))], on: &disk)
    disk.put32(0, at: blocks[blocks.count - 1] * 1024)
    #expect(try mode(disk) == 0o644)
  }

  @Test func aJournalThatNeedsNoRecoveryIsForgotten() throws {
    var disk = TinyDisk()
    var journal = TinyJournal(on: &disk, isDirty: true)
    _ = journal.commit([(6, withMode(disk, 0o100666))], on: &disk)
    disk.put32(0x2, at: 1024 + 96)
    #expect(try mode(disk) == 0o644)
  }

  @Test func aRevokedCopyDoesNotCountAndALaterOneDoes() throws {
    var disk = TinyDisk()
    var journal = TinyJournal(on: &disk, isDirty: true)
    _ = journal.commit([(6, withMode(disk, 0o100666))], on: &disk)
    _ = journal.commit([], revoking: [6], on: &disk)
    #expect(try mode(disk) == 0o644)
    _ = journal.commit([(6, withMode(disk, 0o100640))], on: &disk)
    #expect(try mode(disk) == 0o640)
  }

  @Test func aLogThatIsWrappedIsReadToItsEnd() throws {
    var disk = TinyDisk()
    var journal = TinyJournal(on: &disk, isDirty: true)
    for round in 0..<9 { _ = journal.commit([(6, withMode(disk, 0o100600 + UInt16(round)))], on: &disk) }
    // Ten blocks of the log are left; the tenth transaction begins near its end, and the eleventh is over it.
    journal.putSuperblock(on: &disk, start: 25, sequence: 13)
    _ = journal.commit([(6, withMode(disk, 0o100611)), (20, disk.block(20))], on: &disk)
    _ = journal.commit([(6, withMode(disk, 0o100622))], on: &disk)
    #expect(try mode(disk) == 0o622)
  }

  @Test func aBlockThatLooksLikeTheJournalsIsEscaped() throws {
    var disk = TinyDisk()
    var journal = TinyJournal(on: &disk, isDirty: true)
    var contents = [UInt8](repeating: 0x41, count: 1024)
    contents.replaceSubrange(0..<4, with: [0xC0, 0x3B, 0x39, 0x98])
    _ = journal.commit([(20, contents)], on: &disk)
    let fileSystem = try ExtFileSystem(MemoryDisk(disk.bytes))
    var block: [UInt8] = []
    try fileSystem.readBlock(20, into: &block)
    #expect(block == contents)
  }

  /// Fields of the journal's superblock, and of the first descriptor, that cannot be.
  @Test(
    arguments: [
      (0, 12, 0), (0, 16, UInt32.max), (0, 20, 0), (0, 20, 32), (0, 28, 40), (0, 40, 0x8000_0000), (1, 12, 0xFFFF_FFF0),
      (1, 12, 110), (1, 16, 0),
    ] as [(Int, Int, UInt32)])
  func damagedJournalsAreReportedAndNothingTraps(block: Int, offset: Int, value: UInt32) throws {
    var disk = TinyDisk()
    var journal = TinyJournal(on: &disk, isDirty: true)
    _ = journal.commit([(6, withMode(disk, 0o100666))], on: &disk)
    TinyJournal.put(value, at: (TinyJournal.first + block) * 1024 + offset, in: &disk)
    let fileSystem = try ExtFileSystem(MemoryDisk(disk.bytes))
    if block == 0 { #expect(fileSystem.damage.count > 0) }
    var buffer: [UInt8] = []
    _ = try fileSystem.inode(13, buffer: &buffer)
  }
}

@Suite struct JournalLiveTests {
  /// A guest on ext3 whose journal is empty at first.
  struct Journalled: ~Copyable {
    var guest: Guest
    var journal: TinyJournal

    init(_ rules: [ProtectionPolicy.Rule] = [.init("/etc/**")], freezeLimit: Duration = .seconds(600)) throws {
      var disk = TinyDisk()
      journal = TinyJournal(on: &disk, isDirty: false)
      guest = try Guest(disk, protecting: rules, freezeLimit: freezeLimit)
      journal.putSuperblock(on: &guest.image, start: 1, sequence: 5)
      guest.write(TinyJournal.first)
    }

    /// Writes a transaction, block by block.
    mutating func commit(_ copies: [(home: UInt32, bytes: [UInt8])], revoking: [UInt32] = []) -> BlockVerdict {
      var verdict = BlockVerdict.allow
      for block in journal.commit(copies, revoking: revoking, on: &guest.image) {
        verdict = max(verdict, guest.write(block))
      }
      return verdict
    }
  }

  @Test func aChangeIsToldWithItsCommitBlockAndNotAgainAtItsPlace() throws {
    var test = try Journalled()
    let block = withMode(test.guest.image, 0o100666)
    #expect(test.commit([(6, block)]) == .allow)
    #expect(test.guest.events() == ["3 chmod /etc/passwd ino 13 mode: 0644 -> 0666"])
    test.guest.image.putInode(13, .init(mode: 0o100666, size: 100, blocks: [20]))
    test.guest.write(6)
    #expect(test.guest.flush() == [] && test.guest.wait(.seconds(5)) == [])
    // The tail moves on: the place counts.
    test.journal.putSuperblock(on: &test.guest.image, start: 4, sequence: 6)
    test.guest.write(TinyJournal.first)
    #expect(test.guest.wait(.seconds(5)) == [])
    #expect(test.guest.disk.observer.protectedFiles.first?.inode.permissions == 0o666)
  }

  @Test func aWriteToThePlaceAloneIsNothingThatTheGuestWillKeep() throws {
    var test = try Journalled()
    _ = test.commit([(6, withMode(test.guest.image, 0o100600))])
    _ = test.guest.events()
    test.guest.image.putInode(13, .init(mode: 0o104777, size: 100, blocks: [20]))
    test.guest.write(6)
    #expect(test.guest.wait(.seconds(5)) == [])
    // It is, once the journal is emptied.
    test.journal.putSuperblock(on: &test.guest.image, start: 0, sequence: 6)
    test.guest.write(TinyJournal.first)
    #expect(test.guest.wait(.seconds(5)) == ["5 chmod /etc/passwd ino 13 mode: 0600 -> 4777"])
  }

  @Test func contentsThatCameBeforeTheirMetadataBelongToTheCommit() throws {
    var test = try Journalled()
    test.guest.write(21)
    test.guest.image.putText(30, "fresh")
    test.guest.write(30)
    #expect(test.guest.wait(.seconds(1)) == [])
    let names = changed(test.guest.image, 14) {
      $0.putNames(14, [(".", 12), ("..", 2), ("passwd", 13), ("shadow", 14), ("new", 17)])
    }
    let inodes = changed(test.guest.image, 7) { $0.putInode(17, .init(size: 5, generation: 7, blocks: [30])) }
    _ = test.commit([(14, names), (7, inodes)])
    #expect(
      test.guest.events() == ["6 create /etc/new ino 17 mode:  -> 0644 uid:  -> 0 gid:  -> 0 size:  -> 5"])
  }

  @Test func journalledContentsAreToldAtTheCommit() throws {
    var test = try Journalled()
    let block = changed(test.guest.image, 20) { $0.putText(20, "HACK") }
    _ = test.commit([(20, block)])
    #expect(test.guest.wait(.milliseconds(20)) == ["3 write /etc/passwd ino 13 0+4"])
  }

  @Test func aRefusedTransactionChangesNothingAndSaysWhat() throws {
    var test = try Journalled([.init("/etc/passwd", action: .denyMetadata), .init("/etc/**")])
    #expect(test.commit([(6, withMode(test.guest.image, 0o100666))]) == .deny)
    #expect(test.guest.events() == ["3 chmod /etc/passwd ino 13 mode: 0644 -> 0666 DENIED"])
    #expect(test.guest.disk.observer.protectedFiles.first?.inode.permissions == 0o644)
    #expect(test.guest.disk.observer.statistics.denied == 1)
  }

  @Test func removingAProtectedNameIsRefusedAndOthersAreNot() throws {
    var test = try Journalled([.init("/etc/passwd", action: .denyMetadata), .init("/etc/**")])
    let without = changed(test.guest.image, 14) { $0.putNames(14, [(".", 12), ("..", 2), ("passwd", 13)]) }
    #expect(test.commit([(14, without)]) == .allow)
    _ = test.guest.events()
    let gone = changed(test.guest.image, 14) { $0.putNames(14, [(".", 12), ("..", 2)]) }
    #expect(test.commit([(14, gone)]) == .deny)
    #expect(test.guest.events().allSatisfy { $0.contains("unlink /etc/passwd") && $0.hasSuffix("DENIED") })
    #expect(test.guest.disk.observer.protectedFiles.count == 1)
  }

  /// Where inode 8, or a block with its block numbers, says that the journal is elsewhere: the old place is followed no more, the new one is.
  @Test(arguments: [true, false]) func aJournalThatIsMovedIsReadAnew(byItsInode: Bool) throws {
    var test = try Journalled()
    // As long as it is mounted, its superblock says that the journal counts.
    test.guest.image.put32(0x6, at: 1024 + 96)
    test.guest.write(1)
    // The journal's blocks from 112 on are at 132 to 151 now.
    let moved = byItsInode ? 98 : 99
    for index in 0..<TinyJournal.length - 12 {
      test.guest.image.put32(UInt32(132 + index), at: moved * 1024 + index * 4)
    }
    if byItsInode {
      test.guest.write(98)
      #expect(test.guest.wait(.seconds(5)) == [])
      test.guest.image.put32(98, at: 5 * 1024 + 7 * 128 + 40 + 12 * 4)
      test.guest.write(5)
    } else {
      test.guest.write(99)
    }
    let told = test.guest.wait(.seconds(5))
    #expect(told.count == 1 && told[0].contains("damage") && told[0].contains("puts the journal elsewhere"), "\(told)")
    #expect(test.guest.disk.observer.statistics.resyncs == 1)
    #expect(test.commit([(6, withMode(test.guest.image, 0o100666))]) == .allow)
    let next = test.guest.wait(.seconds(5))
    #expect(next.count == 1 && next[0].hasSuffix(" chmod /etc/passwd ino 13 mode: 0644 -> 0666"), "\(next)")
  }

  @Test func aWriteThatLeavesTheJournalWhereItIsIsNone() throws {
    var test = try Journalled()
    test.guest.write(5)
    test.guest.write(99)
    #expect(test.guest.wait(.seconds(5)) == [] && test.guest.disk.observer.statistics.resyncs == 0)
  }

  @Test func aJournalThatJumpsIsReadAnew() throws {
    var test = try Journalled()
    var other = test.guest.image
    _ = test.journal.commit([(6, withMode(other, 0o100600))], on: &other)
    test.journal.putSuperblock(on: &test.guest.image, start: 9, sequence: 40)
    test.guest.write(TinyJournal.first)
    _ = test.guest.wait(.seconds(3))
    #expect(test.guest.disk.observer.statistics.resyncs == 1)
  }
}

@Suite struct PolicyEventTests {
  @Test func onlyTheAttributesOfInterestAreTold() throws {
    var guest = try Guest(protecting: [.init("/etc/**", attributes: try FileAttributes("p+u"))])
    guest.image.putInode(14, .init(mode: 0o100666, size: 1200, uid: 7, blocks: [21, 22]))
    guest.image.putInode(13, .init(size: 100, mtime: 1_600_000_000, blocks: [20]))
    guest.write(6)
    #expect(
      guest.flush() == ["0 chmod /etc/shadow ino 14 mode: 0640 -> 0666", "0 chown /etc/shadow ino 14 uid: 0 -> 7"])
  }

  @Test func aLogMayGrowAndNotShrink() throws {
    var guest = try Guest(protecting: [.init("/var/app.log", attributes: .growingLog)])
    guest.image.putInode(16, .init(size: 600, blocks: [23]))
    guest.image.putText(23, String(repeating: "l", count: 500) + String(repeating: "n", count: 100))
    guest.write(23, 6)
    #expect(guest.flush() == [])
    guest.image.putInode(16, .init(size: 10, blocks: [23]))
    guest.write(6)
    #expect(guest.flush() == ["3 truncate /var/app.log ino 16 10+590 size: 600 -> 10"])
  }

  @Test func changesOfContentsAreToldWithHashesWhereAsked() throws {
    var guest = try Guest(protecting: [.init("/etc/passwd", attributes: .readOnly)])
    let old = SHA256.digest(of: Array(guest.image.block(20)[..<100])).map { $0.hexadecimal(width: 2) }.joined()
    guest.image.putText(20, "HACK")
    let new = SHA256.digest(of: Array(guest.image.block(20)[..<100])).map { $0.hexadecimal(width: 2) }.joined()
    guest.write(20)
    #expect(guest.flush() == ["0 write /etc/passwd ino 13 0+4 sha256: \(old) -> \(new)"])
  }

  @Test func whatIsExcludedIsNotFollowed() throws {
    var guest = try Guest(protecting: [.init("/**"), .init("!/var")])
    #expect(
      guest.disk.observer.protectedFiles.map { String(decoding: $0.path, as: UTF8.self) } == [
        "/etc", "/etc/passwd", "/etc/shadow",
      ])
    guest.image.putText(23, "x")
    guest.write(23)
    #expect(guest.flush() == [])
  }

  @Test func announcedChangesAreMarked() throws {
    var guest = try Guest(protecting: [.init("/etc/**", severity: 1)])
    try guest.disk.observer.expect(["/etc/passwd"], from: .zero, until: guest.time + .seconds(10))
    guest.image.putText(20, "x")
    guest.image.putText(21, "x")
    guest.write(20, 21)
    guest.request(.flush)
    let events = guest.disk.observer.drainEvents()
    #expect(events.map(\.isAnnounced) == [true, false] && events.allSatisfy { $0.severity == 1 })
    guest.time = guest.time + .seconds(20)
    guest.image.putText(20, "y")
    guest.write(20)
    guest.request(.flush)
    #expect(guest.disk.observer.drainEvents().map(\.isAnnounced) == [false])
  }

  @Test func readsAreToldWhereAsked() throws {
    var guest = try Guest(protecting: [.init("/etc/shadow", attributes: [.reads])])
    guest.request(.read, at: 21 * 1024, length: 2048)
    guest.request(.read, at: 20 * 1024, length: 1024)
    #expect(guest.events() == ["0 read /etc/shadow ino 14 0+1500"])
  }

  @Test func anObjectIsFollowedWithoutItsName() throws {
    var guest = try Guest(protecting: [.init("/etc/passwd", followsObject: true)])
    guest.image.putNames(14, [(".", 12), ("..", 2), ("shadow", 14)])
    guest.image.putNames(15, [(".", 15), ("..", 2), ("app.log", 16), ("stolen", 13)])
    guest.write(14, 15, 6)
    _ = guest.flush()
    #expect(guest.wait(.seconds(3)).count == 1 && guest.disk.observer.protectedFiles.isEmpty)
    guest.image.putText(20, "x")
    guest.write(20)
    #expect(guest.flush() == ["4 write /etc/passwd ino 13 0+1"])
    guest.image.putInode(13, .init(size: 0, links: 0, dtime: 1_700_000_009))
    guest.write(6)
    #expect(guest.wait(.milliseconds(20)) == [])
    #expect(guest.wait(.seconds(5)).contains { $0.contains("unlink /etc/passwd ino 13 object") })
  }

  @Test(arguments: ["", "q", "p+", "p++u", "sha1"]) func attributesThatAreNoneAreRefused(text: String) {
    #expect(throws: IntegrityError.self) { try FileAttributes(text) }
  }

  @Test func groupsAreJoinedFromTheLeft() throws {
    #expect(try FileAttributes("R-m+read") == FileAttributes.readOnly.subtracting(.modificationTime).union(.reads))
    #expect(try FileAttributes(">") == .growingLog && FileAttributes("E") == [])
  }
}
