import Testing
import VMFenceBlock
import VMFenceCore
import VMFenceIntegrity

/// A guest that makes its file system one that cannot be followed, changes files, and takes it back.
@Suite struct BlindEvasionTests {
  enum Cause: CaseIterable {
    /// A feature that is not followed, in the superblock.
    case superblock
    /// The block with the inodes of the root and of the journal.
    case root
  }

  private func blind(_ guest: inout Guest, _ cause: Cause) -> (block: Int, verdict: BlockVerdict) {
    switch cause {
    case .superblock:
      guest.image.put32(0x3, at: 1024 + 96)
      return (1, guest.write(1))
    case .root:
      guest.image.bytes.replaceSubrange(5 * 1024..<6 * 1024, with: [UInt8](repeating: 0, count: 1024))
      return (5, guest.write(5))
    }
  }

  @Test(arguments: Cause.allCases, [FileAttributes.standard, .readOnly])
  func whatIsWrittenMeanwhileIsToldAndComparedAfterwards(cause: Cause, attributes: FileAttributes) throws {
    var test = try JournalLiveTests.Journalled([.init("/etc/**", attributes: attributes)])
    let good = test.guest.image
    let (block, verdict) = blind(&test.guest, cause)
    #expect(verdict == .allow)
    #expect(
      test.guest.wait(.seconds(2)).contains { $0.contains("damage") } && test.guest.disk.observer.blindness != nil)
    test.guest.image.putText(20, "EVIL")
    for _ in 0..<3 { #expect(test.guest.write(20) == .allow) }
    let told = test.guest.wait(.seconds(2))
    try #require(told.count == 1, "\(told)")
    #expect(told[0].contains(" write /etc/passwd ino 13 0+4 data:  -> where its contents"))
    // Much later, and nobody writes a superblock.
    for _ in 0..<40 {
      test.guest.image.bytes[400 * 1024] &+= 1
      test.guest.write(400)
      #expect(test.guest.wait(.seconds(2)) == [])
    }
    test.guest.image = good
    test.guest.write(block)
    let back = test.guest.wait(.seconds(2))
    #expect(test.guest.disk.observer.blindness == nil)
    try #require(back.count == (attributes.contains(.sha256) ? 2 : 1), "\(back)")
    #expect(back[0].contains("gap") && back[0].contains("could not be followed from 1002.000200000, request 1"))
    if attributes.contains(.sha256) { #expect(back[1].contains("write /etc/passwd ino 13 data:  -> other contents")) }
    test.guest.image.putText(20, "MORE")
    test.guest.write(20)
    #expect(test.guest.wait(.seconds(2)).count == 1)
  }

  @Test(arguments: Cause.allCases, [ProtectionPolicy.Action.denyData, .denyMetadata])
  func contentsStayRefused(cause: Cause, action: ProtectionPolicy.Action) throws {
    var test = try JournalLiveTests.Journalled([.init("/etc/passwd", action: action)])
    let good = test.guest.image
    let (_, verdict) = blind(&test.guest, cause)
    // A superblock that is none is refused at once, and so are metadata where they are judged.
    let isBlind = cause == .root && action == .denyData
    #expect(verdict == (isBlind ? .allow : .deny))
    let first = test.guest.wait(.seconds(2))
    #expect(first.contains { $0.hasSuffix("DENIED") } == !isBlind, "\(first)")
    #expect((test.guest.disk.observer.blindness != nil) == isBlind)
    test.guest.image = good
    test.guest.image.putText(20, "EVIL")
    #expect(test.guest.write(20) == .deny)
    let told = test.guest.wait(.seconds(2))
    try #require(told.count == 1, "\(told)")
    #expect(told[0].hasSuffix(" write /etc/passwd ino 13 0+4 DENIED"))
    // What is not protected is written on.
    test.guest.image.putText(21, "free")
    #expect(test.guest.write(21) == .allow && test.guest.write(400) == .allow)
  }

  /// The journal's copy of contents is written over while nothing is followed, so that it is as what is then written to its place.
  @Test func whatTheJournalHadVouchesForNothingMeanwhile() throws {
    var test = try JournalLiveTests.Journalled([.init("/etc/passwd", action: .denyData)])
    #expect(test.commit([(20, test.guest.image.block(20))]) == .allow)
    #expect(blind(&test.guest, .root).verdict == .allow)
    _ = test.guest.wait(.seconds(2))
    #expect(test.guest.disk.observer.blindness != nil)
    test.guest.image.putText(20, "EVIL")
    let copy = UInt64((TinyJournal.first + 2) * 1024)
    #expect(test.guest.request(.write, at: copy, test.guest.image.block(20)) == .allow)
    #expect(test.guest.write(20) == .deny)
  }

  /// Group descriptors and a superblock of another layout, or a shorter one, take files from view, too; another label or UUID do not.
  @Test func whatStaysTheSameFileSystemIsNotRefusedAndTheRestIs() throws {
    for (offset, value, verdict) in [
      (1024 + 24, 1, BlockVerdict.deny), (1024 + 4, 256, .deny), (1024 + 104, 77, .allow), (1024 + 120, 0x41, .allow),
      (2048 + 8, 300, .deny),
    ] as [(Int, UInt32, BlockVerdict)] {
      var guest = try Guest(protecting: [.init("/etc/passwd", action: .denyData)])
      guest.image.put32(value, at: offset)
      #expect(guest.write(offset / 1024) == verdict, "\(offset)")
      _ = guest.finish()
      #expect(guest.disk.observer.blindness == nil)
      // Where no rule refuses, all of it may be.
      var free = try Guest(protecting: [.init("/etc/passwd")])
      free.image.put32(value, at: offset)
      #expect(free.write(offset / 1024) == .allow)
    }
  }

  @Test func aWriteThatTakesFilesFromViewWaitsWhereARuleFreezes() throws {
    var guest = try Guest(protecting: [.init("/etc/passwd", action: .freeze)])
    guest.image.put32(0x3, at: 1024 + 96)
    #expect(guest.write(1) == .hold && guest.disk.observer.heldRequest != nil)
    #expect(guest.events().count == 1)
    guest.disk.observer.decide(.allow)
    #expect(guest.again(1) == .allow)
    #expect(guest.wait(.seconds(2)).contains { $0.contains("damage") } && guest.disk.observer.blindness != nil)
  }
}

/// The same by the partition table.
@Suite struct PartitionEvasionTests {
  private static let start = 64 * 512

  /// A disk with an MBR and one partition, the tiny file system.
  private static func disk() -> [UInt8] {
    let files = TinyDisk().bytes
    var disk = [UInt8](repeating: 0, count: start) + files
    disk.replaceSubrange(510..<512, with: [0x55, 0xAA])
    disk[450] = 0x83
    disk[454] = 64
    let count = files.count / 512
    for index in 0..<4 { disk[458 + index] = UInt8(truncatingIfNeeded: count >> (8 * index)) }
    return disk
  }

  private struct Divided: ~Copyable {
    let overlay: ImageOverlay
    var disk: OverlaidDisk<DiskMonitor>
    var sequence: UInt64 = 0
    var time = Timestamp(seconds: 1000)

    /// Zeroes the root's inode behind the monitor.
    func hide() throws {
      let request = BlockRequest(
        sequence: 0, timestamp: .zero, operation: .writeZeroes, offset: UInt64(PartitionEvasionTests.start + 5 * 1024),
        length: 1024)
      try [UInt8]().withRawSpan { span throws(IntegrityError) in try overlay.apply(request, data: span) }
    }

    init(_ rules: [ProtectionPolicy.Rule]) throws {
      overlay = ImageOverlay(MemoryDisk(PartitionEvasionTests.disk()))
      let configuration = IntegrityMonitor.Configuration(
        incarnation: Incarnation(uuid: DomainUUID(high: 0, low: 1), domainID: DomainID(1)), disk: "xvda",
        policy: try ProtectionPolicy(rules))
      disk = OverlaidDisk(DiskMonitor(overlay, configuration: configuration, at: time), overlay: overlay)
    }

    mutating func write(_ bytes: [UInt8], at offset: Int) -> BlockVerdict {
      time = time + .milliseconds(10)
      let request = BlockRequest(
        sequence: sequence, timestamp: time, operation: .write, offset: UInt64(offset), length: UInt64(bytes.count))
      sequence += 1
      return bytes.withRawSpan { disk.observe(request, data: $0) }
    }

    mutating func wait() -> [String] {
      time = time + .seconds(3)
      disk.observer.advance(to: time)
      return disk.observer.drainEvents().map(MonitorSupport.text)
    }
  }

  /// What is written over the table, or into the gap behind it.
  static let evasions: [(offset: Int, bytes: [UInt8])] = [
    // The magic number of a file system, where that of one on the whole disk would be.
    (1080, [0x53, 0xEF]),
    // A whole superblock.
    (1024, TinyDisk().block(1)),
    // No table.
    (0, [UInt8](repeating: 0, count: 512)),
    // A partition that ends in the middle of the file system, and one that begins elsewhere.
    (458, [8, 0, 0, 0]), (454, [80, 0, 0, 0]),
  ]

  @Test(arguments: evasions.indices, [ProtectionPolicy.Action.alert, .denyData])
  func aTableThatLeavesAFileSystemOutHidesNothing(index: Int, action: ProtectionPolicy.Action) throws {
    let (offset, bytes) = Self.evasions[index]
    var test = try Divided([.init("/etc/**", action: action)])
    #expect(test.write(bytes, at: offset) == .allow)
    _ = test.wait()
    #expect(test.write([1], at: Self.start + 400 * 1024) == .allow)
    _ = test.wait()
    #expect(test.write(Array("EVIL".utf8), at: Self.start + 20 * 1024) == (action == .alert ? .allow : .deny))
    let told = test.wait()
    try #require(told.count == 1 && told[0].contains(" write /etc/passwd ino 13 0+4"), "\(told)")
    // Back again, and nothing was missed.
    let good = Array(Self.disk()[offset..<offset + bytes.count])
    #expect(test.write(good, at: offset) == .allow)
    #expect(test.wait().allSatisfy { $0.contains("the partition table puts") })
    #expect(test.write(Array("MORE".utf8), at: Self.start + 20 * 1024) == (action == .alert ? .allow : .deny))
    #expect(test.wait().count == 1)
    #expect(test.disk.observer.watched.count == 1)
  }

  /// Both at once: the superblock away, then the table.
  @Test func aFileSystemThatIsBlindIsGuardedOnWithoutATable() throws {
    var test = try Divided([.init("/etc/passwd", action: .denyData), .init("/etc/**")])
    // A read anew finds nothing that can be followed.
    try test.hide()
    test.disk.observeGap(at: test.time, reason: "a test")
    _ = test.wait()
    #expect(test.disk.observer.blindness != nil)
    #expect(test.write([UInt8](repeating: 0, count: 512), at: 0) == .allow)
    _ = test.wait()
    #expect(test.write(Array("EVIL".utf8), at: Self.start + 20 * 1024) == .deny)
    #expect(test.write(Array("EVIL".utf8), at: Self.start + 21 * 1024) == .allow)
    let told = test.wait()
    #expect(told.filter { $0.hasSuffix("DENIED") }.count == 1, "\(told)")
    #expect(told.contains { $0.contains("write /etc/shadow") }, "\(told)")
  }

  @Test func aPartitionThatGrowsIsFollowedOn() throws {
    var test = try Divided([.init("/etc/**")])
    let count = TinyDisk().bytes.count / 512 - 100
    #expect(test.write([UInt8(count & 0xFF), UInt8(count >> 8)], at: 458) == .allow)
    _ = test.wait()
    #expect(test.write([0, 4], at: 458) == .allow)
    _ = test.wait()
    #expect(test.disk.observer.watched.map(\.files.count) == [2])
    #expect(test.write(Array("EVIL".utf8), at: Self.start + 20 * 1024) == .allow)
    #expect(test.wait().count == 1)
  }

  /// Each look can cost a crawl, and a guest can write tables as quickly as it likes.
  @Test func theTableIsLookedAtOnceASecond() throws {
    var test = try Divided([.init("/etc/**")])
    var told = 0
    for index in 0..<100 {
      #expect(test.write([UInt8(index % 2 == 0 ? 80 : 64)], at: 454) == .allow)
      told += test.disk.observer.drainEvents().count { $0.changes.contains { $0.new.contains("puts partitions") } }
    }
    #expect(told == 1)
  }
}
