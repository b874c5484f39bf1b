import Testing
import VMFenceCore
import VMFenceIntegrity

/// Metadata that are brought to the disk past the journal, or past what the monitor knows of it, where metadata are judged.
@Suite struct RawMetadataTests {
  private static func rules(_ action: ProtectionPolicy.Action) -> [ProtectionPolicy.Rule] {
    [.init("/etc/passwd", action: action), .init("/etc/**")]
  }

  /// An empty transaction of the guest's own, with the number of the kernel's next; then the kernel's.
  @Test(arguments: [ProtectionPolicy.Action.denyMetadata, .freeze]) func aCommitBlockThatWasForgedHidesNoTransaction(
    action: ProtectionPolicy.Action
  ) throws {
    var test = try JournalLiveTests.Journalled(Self.rules(action))
    var forged = test.journal
    for block in forged.commit([], on: &test.guest.image) { #expect(test.guest.write(block) == .allow) }
    let verdict = test.commit([(6, withMode(test.guest.image, 0o104777))])
    #expect(verdict == (action == .freeze ? .hold : .deny))
    let told = test.guest.events()
    try #require(
      told.count == 1 && told[0].contains("a commit block in the journal that ends no transaction"), "\(told)")
    #expect(test.guest.disk.observer.protectedFiles.first?.inode.permissions == 0o644)
  }

  /// A superblock that says that the journal is empty, past the kernel.
  @Test func aJournalThatIsSaidToBeEmptyHidesNoTransaction() throws {
    var test = try JournalLiveTests.Journalled(Self.rules(.denyMetadata))
    #expect(test.commit([(7, test.guest.image.block(7))]) == .allow)
    let before = test.guest.image
    test.journal.putSuperblock(on: &test.guest.image, start: 0, sequence: 90)
    #expect(test.guest.write(TinyJournal.first) == .allow)
    test.guest.image = before
    #expect(test.commit([(6, withMode(test.guest.image, 0o104777))]) == .deny)
  }

  /// As after a crash of the guest: it begins its journal anew with a number that leaves one out.
  @Test func aJournalThatIsBegunAnewIsFollowedAtOnce() throws {
    var test = try JournalLiveTests.Journalled(Self.rules(.denyMetadata))
    #expect(test.commit([(7, test.guest.image.block(7))]) == .allow)
    var anew = TinyJournal(on: &test.guest.image, isDirty: false)
    _ = anew.commit([], on: &test.guest.image)
    _ = anew.commit([], on: &test.guest.image)
    // Number 7, at the beginning.
    let disk = test.guest.image
    anew.putSuperblock(on: &test.guest.image, start: 3, sequence: 7)
    test.guest.write(TinyJournal.first)
    #expect(disk.bytes != test.guest.image.bytes)
    test.journal = anew
    #expect(test.commit([(7, test.guest.image.block(7))]) == .allow)
    #expect(test.commit([(6, withMode(test.guest.image, 0o104777))]) == .deny)
  }

  /// A commit block that is sent again, as after a lost connection, was judged before.
  @Test func whatIsSentAgainIsNotRefused() throws {
    var test = try JournalLiveTests.Journalled(Self.rules(.denyMetadata))
    #expect(test.commit([(7, test.guest.image.block(7))]) == .allow)
    for block in 1...3 { #expect(test.guest.write(TinyJournal.first + block) == .allow) }
    #expect(test.commit([(7, test.guest.image.block(7))]) == .allow)
    #expect(test.guest.wait(.seconds(2)) == [])
  }

  @Test(arguments: [ProtectionPolicy.Action.denyMetadata, .freeze]) func anInodeWrittenAtItsPlaceIsJudged(
    action: ProtectionPolicy.Action
  ) throws {
    var test = try JournalLiveTests.Journalled(Self.rules(action))
    let good = test.guest.image
    let refused: BlockVerdict = action == .freeze ? .hold : .deny
    test.guest.image.putInode(13, .init(mode: 0o104777, size: 100, blocks: [20]))
    #expect(test.guest.write(6) == refused)
    let told = test.guest.events()
    try #require(told.count == 1 && told[0].contains("chmod /etc/passwd ino 13 mode: 0644 -> 4777"), "\(told)")
    #expect(test.guest.disk.observer.protectedFiles.first?.inode.permissions == 0o644)
    // Neither the names above it, nor by a discard.
    test.guest.image = good
    test.guest.image.putNames(14, [(".", 12), ("..", 2), ("shadow", 14)])
    #expect(test.guest.write(14) == refused)
    #expect(test.guest.request(.discard, at: 5 * 1024, length: 1024) == refused)
    #expect(test.guest.disk.observer.protectedFiles.count == 2)
    _ = test.guest.events()
    // What concerns other files only is told.
    test.guest.image = good
    test.guest.image.putInode(14, .init(mode: 0o100666, size: 1500, blocks: [21, 22]))
    #expect(test.guest.write(6) == .allow)
    #expect(
      test.guest.wait(.seconds(1)).map { $0.split(separator: " ")[1...2].joined(separator: " ") } == [
        "chmod /etc/shadow"
      ])
    // And what the journal committed may come to its place.
    let block = changed(test.guest.image, 6) { $0.putInode(14, .init(mode: 0o100600, size: 1500, blocks: [21, 22])) }
    #expect(test.commit([(6, block)]) == .allow)
    test.guest.image.bytes.replaceSubrange(6 * 1024..<7 * 1024, with: block)
    #expect(test.guest.write(6) == .allow)
  }

  /// Written to its place while the journal has a copy, which is then dropped by a superblock past the kernel.
  @Test func metadataUnderACopyAreJudgedWhenItIsDropped() throws {
    var test = try JournalLiveTests.Journalled(Self.rules(.denyMetadata))
    #expect(test.commit([(6, test.guest.image.block(6))]) == .allow)
    test.guest.image.putInode(13, .init(mode: 0o104777, size: 100, blocks: [20]))
    #expect(test.guest.write(6) == .allow)
    test.journal.putSuperblock(on: &test.guest.image, start: 0, sequence: 6)
    #expect(test.guest.write(TinyJournal.first) == .deny)
    #expect(test.guest.events().contains { $0.contains("chmod /etc/passwd") && $0.hasSuffix("DENIED") })
    #expect(test.guest.disk.observer.protectedFiles.first?.inode.permissions == 0o644)
  }

  @Test func aJournalThatIsPutElsewherePastTheKernelIsRefused() throws {
    var test = try JournalLiveTests.Journalled(Self.rules(.denyMetadata))
    test.guest.image.put32(132, at: 99 * 1024)
    #expect(test.guest.write(99) == .deny)
    let told = test.guest.wait(.seconds(2))
    try #require(
      told.count == 1 && told[0].contains("the journal is put elsewhere") && told[0].hasSuffix("DENIED"), "\(told)")
    #expect(test.guest.disk.observer.statistics.resyncs == 0)
  }

  /// The journal's own copy of contents, written over, would make the same bytes at the place look as if they were committed.
  @Test(arguments: [ProtectionPolicy.Action.alert, .denyData]) func aCopyThatIsWrittenOverVouchesForNothing(
    action: ProtectionPolicy.Action
  ) throws {
    var test = try JournalLiveTests.Journalled([.init("/etc/passwd", action: action)])
    #expect(test.commit([(20, test.guest.image.block(20))]) == .allow && test.guest.events() == [])
    test.guest.image.putText(20, "EVIL")
    // The copy: behind the superblock and the descriptor.
    #expect(
      test.guest.request(.write, at: UInt64((TinyJournal.first + 2) * 1024), test.guest.image.block(20)) == .allow)
    #expect(test.guest.write(20) == (action == .alert ? .allow : .deny))
    let told = test.guest.wait(.seconds(2))
    try #require(told.count == 2 && told[0].contains("was overwritten while it was needed"), "\(told)")
    #expect(told[1].contains("write /etc/passwd ino 13 0+4"))
  }
}

/// A disk may take a discard and keep what it has.
@Suite struct DiscardTests {
  private final class KeepingDisk: DiskReader {
    let memory: MemoryDisk
    let forgets: Bool
    var byteCount: UInt64 { memory.byteCount }

    init(_ bytes: [UInt8], forgets: Bool) {
      memory = MemoryDisk(bytes)
      self.forgets = forgets
    }

    func read(at offset: UInt64, into buffer: inout [UInt8]) throws(IntegrityError) {
      try memory.read(at: offset, into: &buffer)
    }
  }

  @Test(arguments: [false, true]) func metadataThatADiskKeepsAreBelieved(forgets: Bool) throws {
    let disk = KeepingDisk(TinyDisk().bytes, forgets: forgets)
    var monitor = try MonitorSupport.monitor(disk, ["/etc/**"], action: .denyData)
    func request(
      _ operation: BlockRequest.Operation, _ sequence: UInt64, _ monitor: inout IntegrityMonitor, at block: UInt64,
      _ data: [UInt8]
    ) -> BlockVerdict {
      let request = BlockRequest(
        sequence: sequence, timestamp: Timestamp(seconds: Int64(1 + sequence)), operation: operation,
        offset: block * 1024, length: operation == .discard ? 1024 : UInt64(data.count))
      return data.withRawSpan { monitor.observe(request, data: $0) }
    }
    // The block with the inodes of the root and the rest up to 8.
    #expect(request(.discard, 0, &monitor, at: 5, []) == .allow)
    if forgets { disk.memory.write([UInt8](repeating: 0, count: 1024), at: 5 * 1024) }
    let verdict = request(.write, 1, &monitor, at: 20, Array("EVIL".utf8))
    monitor.finish(at: Timestamp(seconds: 9))
    let told = monitor.drainEvents().map(MonitorSupport.text)
    if forgets {
      #expect(told.contains { $0.contains("unlink /etc/passwd") } || monitor.blindness != nil, "\(told)")
    } else {
      #expect(verdict == .deny && told == ["1 write /etc/passwd ino 13 0+4 DENIED"], "\(told)")
      #expect(monitor.protectedFiles.count == 2)
    }
  }
}
