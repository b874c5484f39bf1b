import Testing
import VMFenceCore
import VMFenceIntegrity

/// The verb `freeze`: a request waits until somebody decides.
@Suite struct FreezeTests {
  static let frozen: [ProtectionPolicy.Rule] = [.init("/etc/passwd", action: .freeze), .init("/etc/**")]

  @Test func anOverwriteWaitsAndIsToldOnce() throws {
    var guest = try Guest(protecting: Self.frozen)
    guest.image.putText(20, "HACK")
    #expect(guest.write(20) == .hold && guest.again(20) == .hold)
    #expect(guest.events() == ["0 write /etc/passwd ino 13 0+4 HELD"])
    let request = guest.disk.observer.heldRequest
    let held = try #require(request)
    #expect(held.sequence == 0 && held.paths == [Array("/etc/passwd".utf8)] && held.decision == nil)
    #expect(guest.disk.observer.statistics.held == 1 && guest.disk.observer.statistics.requests == 1)
    #expect(try block(guest, 20) == TinyDisk().block(20), "nothing has reached the disk")
  }

  @Test func whatIsDecidedCounts() throws {
    for verdict in [BlockVerdict.allow, .deny] {
      var guest = try Guest(protecting: Self.frozen)
      guest.image.putText(20, "HACK")
      _ = guest.write(20)
      _ = guest.events()
      #expect(guest.disk.observer.decide(verdict) && !guest.disk.observer.decide(.allow), "once")
      #expect(guest.again(20) == verdict && guest.disk.observer.heldRequest == nil)
      #expect(try block(guest, 20) == (verdict == .allow ? guest.image : TinyDisk()).block(20))
      let told = verdict == .allow ? "0 write /etc/passwd ino 13 0+4" : "0 write /etc/passwd ino 13 0+4 DENIED"
      #expect(guest.flush() == [told])
      // The next one waits again.
      guest.image.putText(20, "MORE")
      #expect(guest.write(20) == .hold)
    }
  }

  @Test func whenNobodyDecidesTheTimeDoes() throws {
    var guest = try Guest(protecting: Self.frozen, freezeLimit: .seconds(5))
    guest.image.putText(20, "HACK")
    _ = guest.write(20)
    _ = guest.wait(.seconds(4))
    #expect(guest.again(20) == .hold)
    _ = guest.wait(.seconds(1))
    #expect(guest.again(20) == .deny)
  }

  @Test func withoutATimeNothingWaits() throws {
    var guest = try Guest(protecting: Self.frozen, freezeLimit: .zero)
    guest.image.putText(20, "HACK")
    #expect(guest.write(20) == .deny)
  }

  @Test func aTransactionWaitsWithItsCommitBlock() throws {
    for verdict in [BlockVerdict.allow, .deny] {
      var test = try JournalLiveTests.Journalled(Self.frozen)
      #expect(test.commit([(6, withMode(test.guest.image, 0o100666))]) == .hold)
      #expect(test.guest.events() == ["3 chmod /etc/passwd ino 13 mode: 0644 -> 0666 HELD"])
      #expect(test.guest.disk.observer.protectedFiles.first?.inode.permissions == 0o644)
      test.guest.disk.observer.decide(verdict)
      // The commit block: superblock, descriptor and copy are before it.
      #expect(test.guest.again(TinyJournal.first + 3) == verdict)
      let told = "3 chmod /etc/passwd ino 13 mode: 0644 -> 0666" + (verdict == .deny ? " DENIED" : "")
      #expect(test.guest.events() == [told])
      #expect(
        test.guest.disk.observer.protectedFiles.first?.inode.permissions == (verdict == .deny ? 0o644 : 0o666))
    }
  }

  @Test func aRefusalIsStrongerThanADecision() throws {
    var guest = try Guest(protecting: [.init("/etc/passwd", action: .freeze), .init("/etc/shadow", action: .denyData)])
    guest.image.putText(20, "HACK")
    guest.image.putText(21, "HACK")
    let both = Array(guest.image.bytes[20 * 1024..<22 * 1024])
    #expect(guest.request(.write, at: 20 * 1024, both) == .deny)
    #expect(guest.disk.observer.heldRequest == nil)
  }

  @Test func aRequestThatIsNotShownAgainIsForgotten() throws {
    var guest = try Guest(protecting: Self.frozen)
    guest.image.putText(20, "HACK")
    _ = guest.write(20)
    _ = guest.events()
    #expect(guest.write(23) == .allow && guest.disk.observer.heldRequest == nil)
    #expect(guest.flush() == [] && !guest.disk.observer.decide(.allow))
  }

  private func block(_ guest: borrowing Guest, _ number: Int) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 1024)
    try guest.overlay.read(at: UInt64(number * 1024), into: &bytes)
    return bytes
  }
}

/// The verb `rollback`: what was there before is kept.
@Suite struct RollbackTests {
  static let kept: [ProtectionPolicy.Rule] = [.init("/etc/**", action: .rollback)]

  /// Takes all changes of a file back.
  private func undone(_ contents: [UInt8], _ kept: [KeptContents]) throws -> [UInt8] {
    var contents = contents
    for item in kept.reversed() { try item.undo(&contents) }
    return contents
  }

  @Test func anOverwriteCanBeTakenBack() throws {
    var guest = try Guest(protecting: Self.kept)
    let before = Array(guest.image.block(20)[..<100])
    guest.image.putText(20, "HACK")
    guest.write(20)
    guest.image.putText(20, "HACKED AGAIN")
    guest.write(20, 23)
    _ = guest.flush()
    let kept = guest.disk.observer.drainKeptContents()
    #expect(
      kept.map(\.sequence) == [0, 1] && kept.allSatisfy { $0.path == Array("/etc/passwd".utf8) && $0.size == 100 })
    #expect(try undone(Array(guest.image.block(20)[..<100]), kept) == before)
    #expect(guest.disk.observer.drainKeptContents().isEmpty)
  }

  @Test func growthAndTruncationInAJournalCanBeTakenBack() throws {
    var test = try JournalLiveTests.Journalled(Self.kept)
    let before = Array(test.guest.image.block(20)[..<100])
    // It grows by five bytes.
    test.guest.image.bytes.replaceSubrange(20 * 1024 + 100..<20 * 1024 + 105, with: Array("evil\n".utf8))
    test.guest.write(20)
    _ = test.commit([(6, changed(test.guest.image, 6) { $0.putInode(13, .init(size: 105, blocks: [20])) })])
    // It gets other blocks, as editors and shells do it, and is shorter.
    test.guest.image.putText(40, "gone")
    test.guest.write(40)
    _ = test.commit([(6, changed(test.guest.image, 6) { $0.putInode(13, .init(size: 4, blocks: [40])) })])
    // And is deleted.
    _ = test.commit([
      (14, changed(test.guest.image, 14) { $0.putNames(14, [(".", 12), ("..", 2), ("shadow", 14)]) }),
      (6, changed(test.guest.image, 6) { $0.putInode(13, .init(size: 0, links: 0, dtime: 1_700_000_009)) }),
    ])
    let kept = test.guest.disk.observer.drainKeptContents()
    #expect(kept.map(\.size) == [100, 105, 4] && kept.map(\.isWhole) == [false, true, true])
    #expect(try undone([], Array(kept[2...])) == Array("gone".utf8))
    #expect(try undone([], kept) == before)
  }

  @Test func aReplacedFileIsKeptWhole() throws {
    var test = try JournalLiveTests.Journalled(Self.kept)
    test.guest.image.putText(40, "new")
    test.guest.write(40)
    _ = test.commit([
      (14, changed(test.guest.image, 14) { $0.putNames(14, [(".", 12), ("..", 2), ("passwd", 17), ("shadow", 14)]) }),
      (7, changed(test.guest.image, 7) { $0.putInode(17, .init(size: 3, generation: 5, blocks: [40])) }),
      (6, changed(test.guest.image, 6) { $0.putInode(13, .init(size: 0, links: 0, dtime: 1_700_000_009)) }),
    ])
    let kept = test.guest.disk.observer.drainKeptContents()
    #expect(kept.count == 1 && kept[0].isWhole && kept[0].inode == 13)
    #expect(try undone(Array("new".utf8), kept) == Array(test.guest.image.block(20)[..<100]))
  }

  @Test func whatDoesNotFitIsCounted() throws {
    var guest = try Guest(protecting: Self.kept, keepLimit: 200)
    for text in ["A", "B", "C"] {
      guest.image.putText(20, text)
      guest.write(20)
    }
    #expect(guest.disk.observer.drainKeptContents().count == 1 && guest.disk.observer.statistics.lostContents == 2)
    guest.image.putText(20, "D")
    guest.write(20)
    #expect(guest.disk.observer.drainKeptContents().count == 1, "there is room again")
  }

  @Test func recordsAreReadAsTheyWereWritten() throws {
    let contents = KeptContents(
      time: Timestamp(seconds: 5), sequence: 9, disk: "xvda2", path: [0x2F, 0xFF, 0x0A], inode: 7, size: 10, offset: 3,
      bytes: [1, 2, 3], isWhole: false)
    let bytes = contents.encoded
    let header = try #require(bytes.withRawSpan { KeptContents.bodySize($0) })
    let body = Array(bytes[KeptContents.headerSize...])
    #expect(header.count == body.count && KeptContents(body: body, checksum: header.checksum) == contents)
    for index in bytes.indices {
      var damaged = bytes
      damaged[index] ^= 0x40
      let size = damaged.withRawSpan { KeptContents.bodySize($0) }
      let read = size.flatMap { KeptContents(body: Array(damaged[KeptContents.headerSize...]), checksum: $0.checksum) }
      #expect(read == nil || size?.count != body.count, "byte \(index)")
    }
    for count in 0..<bytes.count {
      let size = Array(bytes[..<count]).withRawSpan { KeptContents.bodySize($0) }
      #expect(size.map { $0.count <= count - KeptContents.headerSize } != true, "\(count) bytes are none")
    }
  }

  @Test func whatCannotBeIsNotUndone() {
    for (size, offset) in [(UInt64.max, 0), (0, UInt64.max), (1 << 40, 0)] as [(UInt64, UInt64)] {
      let item = KeptContents(
        time: .zero, sequence: 0, disk: "", path: [], inode: 0, size: size, offset: offset, bytes: [1], isWhole: false)
      var contents: [UInt8] = []
      #expect(throws: IntegrityError.self) { try item.undo(&contents) }
    }
  }
}

/// Policies as people write them.
@Suite struct PolicyTextTests {
  @Test func everyVerbAndWordIsRead() throws {
    let text = """
      # of the web server
      /etc/**            deny-data attributes=R severity=1
      /var/log/auth.log\talert attributes=>
      /usr/bin/*  freeze object # until somebody looks
      !/etc/mtab

      /boot/** deny-metadata
      /home/** rollback
      """
    let rules = try ProtectionPolicy.rules(text: Array(text.utf8), file: "web.policy")
    #expect(rules.map(\.action) == [.denyData, .alert, .freeze, .alert, .denyMetadata, .rollback])
    #expect(rules[0].attributes == .readOnly && rules[0].severity == 1 && rules[1].attributes == .growingLog)
    #expect(rules[2].followsObject && rules[3].pattern == "!/etc/mtab")
  }

  @Test(
    arguments: [
      ("/etc/**\netc", 2, 1), ("/a deny", 1, 4), ("/a  severity=9", 1, 5), ("/a alert alert", 1, 10),
      ("/a attributes=q", 1, 4), ("/a//b", 1, 1), ("  /a object x", 1, 13),
    ]) func whatIsWrongIsSaidWithItsPlace(text: String, line: Int, column: Int) throws
  {
    do throws(IntegrityError) {
      _ = try ProtectionPolicy.rules(text: Array(text.utf8), file: "p")
      Issue.record("\(text) was taken")
    } catch {
      #expect(error.place == SourcePlace(file: "p", line: line, column: column), "\(error)")
      #expect(!error.remedy.isEmpty)
    }
  }

  @Test func theStrongestVerbCounts() throws {
    let rules = ProtectionPolicy.Action.allCases.map { ProtectionPolicy.Rule("/a", action: $0) }
    for count in 1...rules.count {
      #expect(
        try ProtectionPolicy(Array(rules[..<count].reversed())).action(forPath: [0x2F, 0x61]) == rules[count - 1].action
      )
    }
  }
}
