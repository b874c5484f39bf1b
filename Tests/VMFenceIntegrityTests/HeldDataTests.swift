import Testing
import VMFenceBlock
import VMFenceCore
import VMFenceIntegrity

/// Data that come before the metadata that make them a file's.
@Suite struct HeldDataTests {
  private func overwrite(_ guest: borrowing Guest, _ block: Int) throws {
    let request = BlockRequest(
      sequence: 0, timestamp: .zero, operation: .write, offset: UInt64(block * 1024), length: 1024)
    try [UInt8](repeating: 0x58, count: 1024).withRawSpan { span throws(IntegrityError) in
      try guest.overlay.apply(request, data: span)
    }
  }

  @Test func whatWasWrittenOverBehindTheMonitorIsNamedWhereHashesAreAskedFor() throws {
    for (attributes, isNamed) in [(FileAttributes.readOnly, true), (.standard, false)] {
      for isOverwritten in [false, true] {
        var guest = try Guest(protecting: [.init("/etc/passwd", attributes: attributes)])
        guest.image.putText(40, "held")
        guest.write(40)
        if isOverwritten { try overwrite(guest, 40) }
        guest.image.putInode(13, .init(size: 2000, blocks: [20, 40]))
        guest.write(inodeBlock(13))
        let told = guest.flush()
        #expect(told.count == 1 && told[0].hasPrefix("1 append /etc/passwd ino 13 100+1900"), "\(told)")
        let note = "what request 0 wrote at 1000.000100000 is not on the disk"
        #expect(told[0].contains(note) == (isNamed && isOverwritten), "\(told)")
      }
    }
  }

  @Test func aLaterWriteToTheSamePlaceCounts() throws {
    var guest = try Guest(protecting: [.init("/etc/passwd", attributes: .readOnly)])
    for text in ["first", "second"] {
      guest.image.putText(40, text)
      guest.write(40)
    }
    guest.image.putInode(13, .init(size: 2000, blocks: [20, 40]))
    guest.write(inodeBlock(13))
    #expect(guest.flush().allSatisfy { !$0.contains("is not on the disk") })
  }
}

/// Files that are followed without a name, when the whole view is read anew.
@Suite struct ObjectAcrossResyncTests {
  /// /etc/passwd is followed as an object, and has lost its name to /var/stolen.
  private func stolen(seen: Bool) throws -> Guest {
    var guest = try Guest(protecting: [.init("/etc/passwd", followsObject: true)])
    guest.image.putNames(14, [(".", 12), ("..", 2), ("shadow", 14)])
    guest.image.putNames(15, [(".", 15), ("..", 2), ("app.log", 16), ("stolen", 13)])
    if seen {
      guest.write(14, 15, 6)
      _ = guest.flush()
      _ = guest.wait(.seconds(3))
    } else {
      for block in [14, 15, 6] {
        let request = BlockRequest(
          sequence: 0, timestamp: .zero, operation: .write, offset: UInt64(block * 1024), length: 1024)
        try guest.image.block(block).withRawSpan { span throws(IntegrityError) in
          try guest.overlay.apply(request, data: span)
        }
      }
    }
    return guest
  }

  @Test(arguments: [true, false]) func itStaysFollowed(seen: Bool) throws {
    var guest = try stolen(seen: seen)
    guest.disk.observeGap(at: guest.time, reason: "a test")
    let told = guest.wait(.seconds(2))
    #expect(guest.disk.observer.statistics.resyncs == 1 && told.contains { $0.contains("unlink /etc/passwd") } == !seen)
    guest.image.putText(20, "x")
    guest.write(20)
    #expect(guest.wait(.seconds(2)).contains { $0.contains("write /etc/passwd ino 13 0+1") })
  }

  @Test func itsEndIsToldWhenItCameMeanwhile() throws {
    var guest = try stolen(seen: true)
    guest.image.putInode(13, .init(size: 0, links: 0, dtime: 1_700_000_009))
    let request = BlockRequest(sequence: 0, timestamp: .zero, operation: .write, offset: 6 * 1024, length: 1024)
    try guest.image.block(6).withRawSpan { span throws(IntegrityError) in try guest.overlay.apply(request, data: span) }
    guest.disk.observeGap(at: guest.time, reason: "a test")
    #expect(guest.wait(.seconds(2)).contains { $0.contains("unlink /etc/passwd ino 13 object") })
  }
}

@Suite struct FastCommitTests {
  @Test func fastCommitsAreToldOnceAMinuteAndWhatTheyChangedWithTheNextCommit() throws {
    var test = try JournalLiveTests.Journalled()
    // Four blocks behind the log are for fast commits.
    TinyJournal.put(0x21, at: TinyJournal.first * 1024 + 40, in: &test.guest.image)
    TinyJournal.put(4, at: TinyJournal.first * 1024 + 84, in: &test.guest.image)
    test.guest.write(TinyJournal.first)
    for _ in 0..<3 { test.guest.write(TinyJournal.first + 29) }
    let told = test.guest.events()
    #expect(told.count == 1 && told[0].contains("fast commits"), "\(told)")
    #expect(test.guest.disk.observer.statistics.fastCommits == 3)
    _ = test.commit([(6, withMode(test.guest.image, 0o100666))])
    #expect(test.guest.events().map { $0.dropFirst(2) } == ["chmod /etc/passwd ino 13 mode: 0644 -> 0666"])
    test.guest.time = test.guest.time + .seconds(60)
    test.guest.write(TinyJournal.first + 30)
    #expect(test.guest.events().count == 1)
  }

  @Test(arguments: [ProtectionPolicy.Action.denyMetadata, .freeze])
  func whereMetadataAreJudgedFastCommitsAreRefused(action: ProtectionPolicy.Action) throws {
    var test = try JournalLiveTests.Journalled([.init("/etc/passwd", action: action)])
    var refuses = test.guest.disk.observer.refusesFastCommits
    #expect(!refuses)
    // The guest turns them on.
    TinyJournal.put(0x21, at: TinyJournal.first * 1024 + 40, in: &test.guest.image)
    TinyJournal.put(4, at: TinyJournal.first * 1024 + 84, in: &test.guest.image)
    test.guest.write(TinyJournal.first)
    refuses = test.guest.disk.observer.refusesFastCommits
    #expect(refuses)
    #expect(test.guest.write(TinyJournal.first + 29) == .deny)
    // The log before them is not concerned, nor is what lies behind the journal.
    #expect(test.guest.write(TinyJournal.first + 27) == .allow && test.guest.write(TinyJournal.first + 32) == .allow)
    #expect(test.guest.events().isEmpty)
    let statistics = test.guest.disk.observer.statistics
    #expect(statistics.refusedFastCommits == 1 && statistics.denied == 1 && statistics.fastCommits == 0)
  }

  /// Fast commits that lie there before the journal's superblock says that there are any were judged by nobody: the superblock that would
  /// have them replayed is refused, however it is written.
  @Test(
    arguments: [
      // What is written of the superblock's block: all of it, its first sector, the sector and what lies behind; what is written there
      // before; whether the guest's kernel would replay it.
      (0..<1024, [9, 0, 8, 0, 0, 0, 0, 0, 5, 0, 0, 0], true), (0..<512, [9, 0, 8, 0, 0, 0, 0, 0, 5, 0, 0, 0], true),
      (40..<88, [9, 0, 0, 0, 0, 0, 0, 0, 200, 0, 0, 0], true), (0..<1024, [9, 0, 8, 0, 0, 0, 0, 0, 4, 0, 0, 0], false),
      (0..<1024, [8, 0, 8, 0, 0, 0, 0, 0, 5, 0, 0, 0], false), (0..<1024, [], false),
    ] as [(Range<Int>, [UInt8], Bool)])
  func fastCommitsFromBeforeTheirFeatureAreNotBroughtIn(
    part: Range<Int>, head: [UInt8], isReplayed: Bool
  ) throws {
    var test = try JournalLiveTests.Journalled([.init("/etc/passwd", action: .denyMetadata)])
    let block = TinyJournal.first + 28
    test.guest.image.bytes.replaceSubrange(block * 1024..<block * 1024 + head.count, with: head)
    #expect(test.guest.write(block) == .allow)
    TinyJournal.put(0x21, at: TinyJournal.first * 1024 + 40, in: &test.guest.image)
    TinyJournal.put(4, at: TinyJournal.first * 1024 + 84, in: &test.guest.image)
    let start = TinyJournal.first * 1024
    let bytes = Array(test.guest.image.bytes[start + part.lowerBound..<start + part.upperBound])
    #expect(
      test.guest.request(.write, at: UInt64(start + part.lowerBound), bytes) == (isReplayed ? .deny : .allow))
    let refuses = test.guest.disk.observer.refusesFastCommits
    #expect(refuses == !isReplayed)
    // Where they are on, the number of the first transaction does not go back to that of old ones either.
    if !isReplayed, head.first == 9 {
      TinyJournal.put(4, at: start + 24, in: &test.guest.image)
      #expect(test.guest.write(TinyJournal.first) == .deny)
    }
  }
}
