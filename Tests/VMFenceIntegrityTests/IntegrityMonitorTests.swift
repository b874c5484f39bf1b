import Testing
import VMFenceCore
import VMFenceIntegrity

/// What is told: `SEQUENCE OPERATION PATH ino INODE …`.
@Suite struct IntegrityMonitorTests {
  static let etc: [ProtectionPolicy.Rule] = [.init("/etc/**")]

  @Test func anOverwriteIsToldWithTheBytesThatDiffer() throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.putText(20, "ppppHACKpp")
    #expect(guest.write(20) == .allow)
    #expect(guest.flush() == ["0 write /etc/passwd ino 13 4+4"])
  }

  @Test func aWriteThatChangesNothingIsNotTold() throws {
    var guest = try Guest(protecting: Self.etc)
    guest.write(20, 5, 6, 14)
    #expect(guest.flush() == [] && guest.disk.observer.statistics.unchangedWrites == 1)
  }

  @Test func writesPastTheEndOfAFileAreNoContents() throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.bytes[20 * 1024 + 500] = 0x21
    guest.write(20)
    #expect(guest.flush() == [])
  }

  @Test(arguments: [[20, 6], [6, 20]]) func anAppendIsToldWhateverComesFirst(order: [Int]) throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.bytes.replaceSubrange(20 * 1024 + 100..<20 * 1024 + 105, with: Array("toor\n".utf8))
    guest.image.putInode(13, .init(size: 105, mtime: 1_700_000_001, blocks: [20]))
    for block in order { guest.write(block) }
    #expect(guest.flush() == ["\(order[0] == 6 ? 0 : 1) append /etc/passwd ino 13 100+5 size: 100 -> 105"])
  }

  @Test func dataWaitForTheInodeThatMakesTheFileLonger() throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.bytes[20 * 1024 + 100] = 0x0A
    guest.write(20)
    #expect(guest.flush() == [])
    guest.image.putInode(13, .init(size: 101, blocks: [20]))
    guest.write(6)
    #expect(guest.flush() == ["2 append /etc/passwd ino 13 100+1 size: 100 -> 101"])
  }

  @Test func newBlocksWhoseDataWereNotSeenAreSaidToBeSo() throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.putInode(13, .init(size: 1024 + 10, blocks: [20, 30]))
    guest.write(6)
    #expect(
      guest.flush() == [
        "0 append /etc/passwd ino 13 100+934 size: 100 -> 1034 "
          + "data:  -> 1024 bytes of new blocks were not seen being written"
      ])
    guest.image.putInode(13, .init(size: 2048 + 10, blocks: [20, 30, 31]))
    guest.write(31, 6)
    #expect(guest.flush() == ["3 append /etc/passwd ino 13 1034+1024 size: 1034 -> 2058"])
  }

  @Test func aFileGrowsThroughItsIndirectBlocks() throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.putInode(13, .init(size: 13 * 1024, blocks: [20] + (30..<41).map { UInt32($0) } + [50]))
    guest.image.put32(51, at: 50 * 1024)
    guest.write(30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 51, 6, 50)
    #expect(guest.flush() == ["12 append /etc/passwd ino 13 100+13212 size: 100 -> 13312"])
    guest.image.putText(51, "late")
    guest.write(51)
    #expect(guest.flush() == ["15 write /etc/passwd ino 13 12288+4"])
    // Other contents by another block number, in the indirect block alone.
    guest.image.put32(52, at: 50 * 1024)
    guest.write(52, 50)
    #expect(guest.flush() == ["18 write /etc/passwd ino 13 12288+1024"])
  }

  @Test func aSizeThatChangesWithoutDataIsATruncation() throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.putInode(14, .init(mode: 0o100640, size: 10, blocks: [21]))
    guest.write(6)
    #expect(guest.flush() == ["0 truncate /etc/shadow ino 14 10+1490 size: 1500 -> 10"])
    guest.image.putInode(14, .init(mode: 0o100640, size: 5000, blocks: [21]))
    guest.write(6)
    #expect(guest.flush() == ["2 truncate /etc/shadow ino 14 10+4990 size: 10 -> 5000"])
  }

  @Test func modeOwnerAndTimesAreTold() throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.putInode(14, .init(mode: 0o100666, size: 1500, uid: 1000, blocks: [21, 22]))
    guest.image.putInode(13, .init(size: 100, mtime: 1_600_000_000, blocks: [20]))
    guest.write(6)
    #expect(
      guest.flush() == [
        "0 times /etc/passwd ino 13 mtime: 1700000000.000000000 -> 1600000000.000000000",
        "0 chmod /etc/shadow ino 14 mode: 0640 -> 0666", "0 chown /etc/shadow ino 14 uid: 0 -> 1000",
      ])
  }

  @Test func changesOfExtendedAttributesAreTold() throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.putAttribute(60, "a", "one")
    guest.write(60)
    guest.image.putInode(13, .init(size: 100, blocks: [20], attributeBlock: 60))
    guest.write(6)
    #expect(guest.flush() == ["1 xattr /etc/passwd ino 13 xattr user.a:  -> one"])
    guest.image.putAttribute(60, "a", "two!")
    guest.write(60)
    #expect(guest.flush() == ["3 xattr /etc/passwd ino 13 xattr user.a: one -> two!"])
    guest.write(60)
    #expect(guest.flush() == [])
  }

  // MARK: Names

  static let created = "create /etc/new ino 17 mode:  -> 0644 uid:  -> 0 gid:  -> 0 size:  -> 5"

  @Test(arguments: [[14, 7], [7, 14]]) func aNewFileIsToldOnceItsInodeIsThere(order: [Int]) throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.putInode(17, .init(size: 5, generation: 7, blocks: [30]))
    guest.image.putNames(14, [(".", 12), ("..", 2), ("passwd", 13), ("shadow", 14), ("new", 17)])
    guest.write(order[0])
    #expect(guest.flush() == [])
    guest.write(order[1])
    let sequence = order[0] == 14 ? 0 : 2
    #expect(guest.flush() == ["\(sequence) \(Self.created)"])
    // From now on it is watched.
    guest.image.putText(30, "x")
    guest.write(30)
    #expect(guest.flush() == ["4 write /etc/new ino 17 0+1"])
  }

  @Test func aNameWithoutAnInodeIsToldAfterTheLimit() throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.putNames(14, [(".", 12), ("..", 2), ("passwd", 13), ("shadow", 14), ("ghost", 18)])
    guest.write(14)
    #expect(guest.wait(.milliseconds(20)) == [] && guest.wait(.seconds(1)) == [])
    #expect(
      guest.wait(.seconds(2)) == [
        "0 create /etc/ghost ino 18 mode:  -> 0000 uid:  -> 0 gid:  -> 0 size:  -> 0",
        "0 damage /etc/ghost ino 18 damage:  -> no file has the type of mode 00",
      ])
  }

  @Test func unlinkIsToldWhenNameAndInodeAreGone() throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.putNames(14, [(".", 12), ("..", 2), ("shadow", 14)])
    guest.image.putInode(13, .init(size: 0, links: 0, dtime: 1_700_000_009))
    guest.write(6)
    #expect(guest.flush() == [])
    guest.write(14)
    #expect(guest.flush() == ["2 unlink /etc/passwd ino 13 links: 1 -> 0"])
    // Its block is another's now.
    guest.image.putText(20, "other")
    guest.write(20)
    #expect(guest.flush() == [] && guest.disk.observer.protectedFiles.count == 1)
  }

  @Test func aRenameIsOneEvent() throws {
    var guest = try Guest(protecting: [.init("/etc/**"), .init("/var/**")])
    guest.image.putNames(14, [(".", 12), ("..", 2), ("shadow", 14)])
    guest.image.putNames(15, [(".", 15), ("..", 2), ("app.log", 16), ("stolen", 13)])
    guest.write(15)
    #expect(guest.flush() == [])
    guest.write(14, 6)
    #expect(guest.flush() == ["0 rename /var/stolen ino 13 from /etc/passwd"])
    guest.image.putText(20, "x")
    guest.write(20)
    #expect(guest.flush() == ["5 write /var/stolen ino 13 0+1"])
  }

  @Test func aFileThatLeavesWhatIsFollowedIsToldAsAnUnlinkOfItsName() throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.putNames(14, [(".", 12), ("..", 2), ("shadow", 14)])
    guest.image.putNames(15, [(".", 15), ("..", 2), ("app.log", 16), ("stolen", 13)])
    guest.write(14, 15, 6)
    #expect(guest.flush() == [])
    #expect(
      guest.wait(.seconds(3)) == [
        "0 unlink /etc/passwd ino 13 inode:  -> in use; it may have a name where nothing is followed"
      ])
  }

  @Test func aReplacementByRenameIsOneEventAndTheNameStaysProtected() throws {
    var guest = try Guest(protecting: [.init("/etc/passwd")])
    guest.image.putInode(17, .init(mode: 0o100600, size: 50, generation: 9, blocks: [30]))
    guest.image.putNames(14, [(".", 12), ("..", 2), ("passwd", 13), ("shadow", 14), ("passwd+", 17)])
    guest.write(30, 7, 14)
    #expect(guest.flush() == [])
    guest.image.putNames(14, [(".", 12), ("..", 2), ("passwd", 17), ("shadow", 14)])
    guest.image.putInode(13, .init(size: 0, links: 0, dtime: 1_700_000_009))
    guest.write(14, 6)
    #expect(
      guest.flush() == [
        "4 replace /etc/passwd ino 17 from /etc/passwd+ inode: 13 -> 17 mode: 0644 -> 0600 size: 100 -> 50"
      ])
    guest.image.putText(30, "x")
    guest.write(30, 20)
    #expect(guest.flush() == ["7 write /etc/passwd ino 17 0+1"])
  }

  /// Made and renamed within one tick of the guest's clock: the inode does not show the renaming.
  @Test(arguments: [[6, 7, 14], [14, 6, 7]])
  func aReplacementIsToldAtOnceWhereTheInodeOfTheReplacedShowsIt(order: [Int]) throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.putInode(17, .init(size: 50, generation: 9, blocks: [30]))
    guest.image.putNames(14, [(".", 12), ("..", 2), ("passwd", 13), ("shadow", 14), ("passwd+", 17)])
    guest.write(30, 7, 14)
    #expect(guest.flush().count == 1)
    guest.image.putNames(14, [(".", 12), ("..", 2), ("passwd", 17), ("shadow", 14)])
    guest.image.putInode(13, .init(size: 0, links: 0, dtime: 1_700_000_009))
    var told: [String] = []
    for block in order {
      guest.write(block)
      told += guest.flush()
    }
    let number = order[0] == 14 ? 4 : 8
    #expect(
      told == ["\(number) replace /etc/passwd ino 17 from /etc/passwd+ inode: 13 -> 17 size: 100 -> 50"])
  }

  @Test func aFileMadeAnewUnderTheSameNameAndNumberIsAReplacement() throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.putInode(13, .init(size: 3, generation: 99, blocks: [33]))
    guest.write(33, 6, 14)
    #expect(guest.flush() == ["1 replace /etc/passwd ino 13 generation: 1 -> 99 size: 100 -> 3"])
  }

  @Test func aSecondNameIsALink() throws {
    var guest = try Guest(protecting: [.init("/etc/**"), .init("/var/**")])
    guest.image.putNames(15, [(".", 15), ("..", 2), ("app.log", 16), ("pw", 13)])
    guest.image.putInode(13, .init(size: 100, links: 2, blocks: [20]))
    guest.write(15, 6)
    #expect(guest.flush() == ["0 link /var/pw ino 13"])
    guest.image.putText(20, "x")
    guest.write(20)
    #expect(guest.flush() == ["3 write /etc/passwd ino 13 0+1", "3 write /var/pw ino 13 0+1"])
  }

  /// A guest can give a file as many names as it likes. What is said of them differs: a severity, an announced window.
  @Test func ofManyNamesOfAFileSomeAreToldOfEachKind() throws {
    var guest = try Guest(protecting: [.init("/etc/**"), .init("/var/**", severity: 1)])
    let names = (0..<40).map { ("n\($0)", UInt32(13)) }
    guest.image.putNames(14, [(".", 12), ("..", 2), ("passwd", 13), ("shadow", 14)] + names)
    guest.image.putNames(15, [(".", 15), ("..", 2), ("app.log", 16), ("pw", 13)])
    guest.image.putInode(13, .init(size: 100, links: 42, blocks: [20]))
    guest.write(14, 15, 6)
    #expect(guest.flush().count == 41)
    try guest.disk.observer.expect(["/etc/n1*"], from: .zero, until: Timestamp(seconds: 60))
    guest.image.putText(20, "x")
    guest.write(20)
    let told = guest.flush().map { $0.split(separator: " ").dropFirst().joined(separator: " ") }
    #expect(told.count == 16 + 11 + 1)
    let noted = told.filter { $0.contains("names:") }
    #expect(noted == ["write /etc/passwd ino 13 0+1 names: -> 30, of which 16 are told"])
    #expect(told.contains("write /etc/n19 ino 13 0+1") && told.contains("write /var/pw ino 13 0+1"))
    guest.image.putInode(13, .init(mode: 0o100666, size: 100, links: 42, blocks: [20]))
    guest.write(6)
    #expect(guest.flush().count == 16 + 11 + 1)
    // So it is when all is read anew, with what waited then, and while nothing can be followed.
    guest.image.putInode(13, .init(mode: 0o100600, size: 100, links: 43, blocks: [20]))
    guest.image.putNames(15, [(".", 15), ("..", 2), ("app.log", 16), ("pw", 13), ("new", 13)])
    guest.image.putText(20, "y")
    guest.write(6, 15, 20)
    guest.disk.observeGap(at: guest.time, reason: "a test")
    let anew = guest.flush()
    for (operation, count) in [
      (" gap ", 1), (" write ", 28), (" chmod ", 28), (" link ", 28), (" create /var/new ", 1),
    ] {
      #expect(anew.count { $0.contains(operation) } == count, "\(operation): \(anew)")
    }
    // The names that a file has had for long are those that are told.
    #expect(
      anew.count { $0.contains("/etc/passwd") && $0.contains("names:  -> 30, of which 16 are told") } == 3, "\(anew)")
    #expect(anew.count == 86 && !anew.contains { $0.contains("/etc/n32 ") }, "\(anew)")
    guest.image.put32(0x3, at: 1024 + 96)
    guest.write(1)
    _ = guest.wait(.seconds(2))
    guest.image.putText(20, "z")
    guest.write(20)
    let blind = guest.wait(.seconds(2))
    #expect(guest.disk.observer.blindness != nil && blind.count == 16 + 11 + 2, "\(blind)")
  }

  @Test func aLinkWhereNothingIsFollowedShowsInTheCount() throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.putInode(13, .init(size: 100, links: 2, blocks: [20]))
    guest.write(6)
    #expect(guest.flush() == [] && guest.wait(.seconds(1)) == [])
    #expect(guest.wait(.seconds(1)) == ["0 link /etc/passwd ino 13 links: 1 -> 2"])
  }

  /// Whichever of inode and directory comes first, and however many settlings lie between them.
  @Test(arguments: [[6, 14], [14, 6]]) func linksAndRenamesAreToldAlikeInAnyOrder(order: [Int]) throws {
    var guest = try Guest(protecting: Self.etc)
    func told(_ inode: TinyDisk.Inode, _ names: [(String, UInt32)], _ guest: inout Guest) -> [String] {
      guest.image.putInode(13, inode)
      guest.image.putNames(14, [(".", 12), ("..", 2), ("shadow", 14)] + names)
      guest.write(order[0])
      var events = guest.flush() + guest.wait(.milliseconds(100))
      guest.write(order[1])
      events += guest.flush()
      return events.map { $0.split(separator: " ").dropFirst().joined(separator: " ") }
    }
    var inode = TinyDisk.Inode(size: 100, links: 2, ctime: 1_700_000_001, blocks: [20])
    #expect(told(inode, [("passwd", 13), ("second", 13)], &guest) == ["link /etc/second ino 13"])
    inode.ctime += 1
    #expect(
      told(inode, [("passwd", 13), ("third", 13)], &guest) == ["rename /etc/third ino 13 from /etc/second"])
    inode.ctime += 1
    inode.links = 1
    #expect(told(inode, [("passwd", 13)], &guest) == ["unlink /etc/third ino 13 links: 2 -> 1"])
    // Nothing waits any more: what comes next is told at once.
    guest.image.putText(20, "x")
    guest.write(20)
    #expect(guest.flush().count == 1 && guest.wait(.seconds(3)) == [])
  }

  // MARK: Denying

  @Test func anOverwriteIsRefusedAndAnAppendIsNot() throws {
    var guest = try Guest(protecting: [.init("/etc/passwd", action: .denyData)])
    guest.image.putText(20, "HACK")
    #expect(guest.write(20) == .deny)
    #expect(guest.events() == ["0 write /etc/passwd ino 13 0+4 DENIED"])
    guest.image.putText(20, "pppp")
    guest.image.bytes[20 * 1024 + 100] = 0x0A
    guest.image.putInode(13, .init(size: 101, blocks: [20]))
    #expect(guest.write(20, 6, 21) == .allow)
    #expect(guest.flush() == ["2 append /etc/passwd ino 13 100+1 size: 100 -> 101"])
    #expect(guest.request(.discard, at: 20 * 1024, length: 1024) == .deny)
    #expect(guest.request(.writeZeroes, at: 0, length: 512 * 1024) == .deny)
    #expect(guest.disk.observer.statistics.denied == 3)
  }

  // MARK: Gaps and damage

  @Test func afterAGapWhatWasMissedIsTold() throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.putInode(14, .init(mode: 0o100666, size: 1500, blocks: [21, 22]))
    guest.image.putInode(17, .init(size: 5, blocks: [30]))
    guest.image.putNames(14, [(".", 12), ("..", 2), ("shadow", 14), ("new", 17)])
    for block in [6, 7, 14] {
      let request = BlockRequest(
        sequence: 0, timestamp: .zero, operation: .write, offset: UInt64(block * 1024), length: 1024)
      let data = guest.image.block(block)
      try data.withRawSpan { span throws(IntegrityError) in try guest.overlay.apply(request, data: span) }
    }
    guest.disk.observeGap(at: guest.time, reason: "lost\u{1B}[2J")
    #expect(guest.events() == ["0 gap  ino 0 reason:  -> lost\\u{1b}[2J"])
    #expect(
      guest.flush() == [
        "0 create /etc/new ino 17 mode:  -> 0644 uid:  -> 0 gid:  -> 0 size:  -> 5",
        "0 chmod /etc/shadow ino 14 mode: 0640 -> 0666", "0 unlink /etc/passwd ino 13",
      ])
    #expect(guest.disk.observer.statistics.resyncs == 1)
  }

  @Test func aJumpInTheNumbersOfRequestsIsAGap() throws {
    var guest = try Guest(protecting: Self.etc)
    guest.write(23)
    guest.sequence += 5
    guest.write(23)
    #expect(guest.flush() == ["0 gap  ino 0 reason:  -> request 6 came after 0"])
    #expect(guest.disk.observer.statistics.gaps == 1)
  }

  @Test func garbageOverTheSuperblockIsDamageAndTheMonitorSeesAgainWhenItIsMended() throws {
    var guest = try Guest(protecting: Self.etc)
    let good = guest.image
    guest.image.bytes.replaceSubrange(1024..<2048, with: [UInt8](repeating: 0xA5, count: 1024))
    #expect(guest.write(1) == .allow)
    let events = guest.flush()
    #expect(events.count == 2 && events.allSatisfy { $0.contains("damage") } && guest.disk.observer.blindness != nil)
    guest.image.putText(20, "x")
    #expect(guest.write(20) == .allow)
    guest.image = good
    guest.image.putInode(13, .init(mode: 0o100777, size: 100, blocks: [20]))
    guest.write(1, 6)
    let told = guest.wait(.seconds(2))
    try #require(told.count == 3, "\(told)")
    #expect(told[0].hasPrefix("2 write /etc/passwd ino 13 0+1 data:  -> where its contents were when"))
    #expect(told[1].hasPrefix("4 gap ") && told[1].contains("from 1000.000200000, request 1, to 1002.000500000"))
    #expect(told[2] == "4 chmod /etc/passwd ino 13 mode: 0644 -> 0777" && guest.disk.observer.blindness == nil)
  }

  @Test func aGuestThatFormatsItsDiskIsToldAsDamageAndLoss() throws {
    var guest = try Guest(protecting: Self.etc)
    var fresh = TinyDisk()
    fresh.put32(0xDEAD_BEEF, at: 1024 + 104)
    fresh.putNames(13, [(".", 2), ("..", 2)])
    guest.image = fresh
    guest.write(13, 1)
    let events = guest.flush()
    #expect(events.count == 3)
    #expect(
      events.filter { $0.contains("damage") }.count == 1 && events.filter { $0.contains("unlink /etc/") }.count == 2)
    #expect(guest.disk.observer.protectedFiles.isEmpty)
  }

  @Test func countersAndFeaturesWithoutLayoutMayChange() throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.put32(77, at: 1024 + 12)
    guest.image.put32(0x8, at: 1024 + 92)
    guest.image.put32(0x3, at: 1024 + 100)
    guest.write(1, 2)
    #expect(guest.flush() == [])
  }

  @Test func halfWrittenMetadataAreNoDamage() throws {
    var guest = try Guest(protecting: Self.etc)
    // The inode claims an indirect block that still holds something else.
    guest.image.putText(50, String(repeating: "\u{7F}", count: 1024))
    guest.write(50)
    guest.image.putInode(13, .init(size: 13 * 1024, blocks: [20] + (30..<41).map { UInt32($0) } + [50]))
    guest.write(6)
    #expect(guest.wait(.milliseconds(20)).filter { $0.contains("damage") }.isEmpty)
    guest.image.bytes.replaceSubrange(50 * 1024..<51 * 1024, with: [UInt8](repeating: 0, count: 1024))
    guest.write(50)
    #expect(guest.wait(.seconds(5)).filter { $0.contains("damage") }.isEmpty)
    guest.image.putText(50, String(repeating: "\u{7F}", count: 1024))
    guest.write(50)
    #expect(guest.wait(.milliseconds(20)).filter { $0.contains("damage") }.isEmpty)
    let later = guest.wait(.seconds(3))
    #expect(later.filter { $0.contains("damage /etc/passwd") }.count == 1, "\(later)")
  }

  // MARK: Bounds

  @Test func whatIsNotProtectedIsNotLookedAt() throws {
    var guest = try Guest(protecting: Self.etc)
    for round in 0..<100 {
      guest.image.putText(23, "line \(round)")
      guest.write(23, 100 + round, 15, 12)
    }
    #expect(guest.flush() == [])
    // The inode table's block 12 and /var's block 15 describe nothing protected.
    #expect(guest.disk.observer.statistics.hits == 0)
  }

  @Test func eventsThatDoNotFitAreCountedAndTold() throws {
    var guest = try Guest(protecting: Self.etc, eventLimit: 2)
    for letter in ["a", "b", "c", "d"] {
      guest.image.putText(20, letter)
      guest.write(20)
      guest.request(.flush)
    }
    #expect(
      guest.events() == [
        "0 write /etc/passwd ino 13 0+1", "2 write /etc/passwd ino 13 0+1",
        "2 gap  ino 0 events:  -> 2 events did not fit and were lost",
      ])
    #expect(guest.disk.observer.statistics.lostEvents == 2)
  }

  @Test func settlingComesAfterAQuietTimeToo() throws {
    var guest = try Guest(protecting: Self.etc)
    guest.image.putText(20, "x")
    guest.write(20)
    #expect(guest.wait(.milliseconds(4)) == [])
    #expect(guest.wait(.milliseconds(2)) == ["0 write /etc/passwd ino 13 0+1"])
  }
}
