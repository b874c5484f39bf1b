import Testing
import VMFenceCore
import VMFenceIntegrity

@Suite struct ExtFileSystemTests {
  /// What is changed in a sound disk, by 16- or 32-bit fields, and what must come of it.
  struct Case: Sendable, CustomTestStringConvertible {
    var testDescription: String
    var fields: [(offset: Int, value: UInt32, isWide: Bool)]
    var code: IntegrityError.Code?
    /// For disks that can be read: what the damage is about.
    var damage: String?

    init(_ what: String, _ offset: Int, _ value: UInt32, wide: Bool = true, _ code: IntegrityError.Code) {
      testDescription = what
      fields = [(offset, value, wide)]
      self.code = code
    }

    init(_ what: String, _ offset: Int, _ value: UInt32, wide: Bool = true, damage: String) {
      testDescription = what
      fields = [(offset, value, wide)]
      self.damage = damage
    }
  }

  static let superblocks: [Case] = [
    Case("no magic number", 1024 + 56, 0, wide: false, .notAFileSystem),
    Case("block size beyond 64 KiB", 1024 + 24, 7, .damaged),
    Case("block size with a shift that overflows", 1024 + 24, .max, .damaged),
    Case("inode size 0", 1024 + 88, 0, wide: false, .damaged),
    Case("inode size no power of two", 1024 + 88, 384, wide: false, .damaged),
    Case("inode size beyond a block", 1024 + 88, 2048, wide: false, .damaged),
    Case("no inodes per group", 1024 + 40, 0, .damaged),
    Case("inodes that do not fit the groups", 1024, 65, .damaged),
    Case("no blocks per group", 1024 + 32, 0, .damaged),
    Case("one block per group", 1024 + 32, 1, .damaged),
    Case("more blocks than the disk has", 1024 + 4, 513, .truncated),
    Case("no blocks", 1024 + 4, 0, .damaged),
    Case("first data block 0 with 1 KiB", 1024 + 20, 0, .damaged),
    Case("first data block at the end of numbers", 1024 + 20, .max, .damaged),
    Case("revision 2", 1024 + 76, 2, .unsupported),
    Case("compression", 1024 + 96, 0x3, .unsupported),
    Case("a journal device", 1024 + 96, 0xA, .unsupported),
    Case("64bit without room in the descriptors", 1024 + 96, 0x82, .damaged),
    Case("a first inode past the last", 1024 + 84, 65, .damaged),
    Case("a feature nobody knows", 1024 + 96, 0x8000_0002, .unsupported),
    Case("inode table at block 0", 2048 + 8, 0, .damaged),
    Case("inode table over the descriptors", 2048 + 8, 2, .damaged),
    Case("inode table past the end", 2048 + 8, 510, .damaged),
    Case("bitmap past the end", 2048, .max, .damaged),
    Case("the root is a file", 5 * 1024 + 128, 0o100644, wide: false, .damaged),
  ]

  static let damages: [Case] = [
    Case("record length 0", 14 * 1024 + 24 + 4, 0, wide: false, damage: "record length 0"),
    Case("record length 7", 14 * 1024 + 24 + 4, 7, wide: false, damage: "record length 7"),
    Case("record length past the block", 14 * 1024 + 24 + 4, 1004, wide: false, damage: "record length 1004"),
    Case("name longer than its record", 14 * 1024 + 24 + 6, 255, wide: false, damage: "name length 255"),
    Case("name with a slash", 14 * 1024 + 24 + 8, 0x732F_6170, damage: "slash"),
    Case("inode past the last", 14 * 1024 + 24, 65, damage: "inode 65 of 64"),
    Case("directory size", 5 * 1024 + 11 * 128 + 4, 7, damage: "not whole blocks"),
    Case("data in the superblock", 5 * 1024 + 12 * 128 + 40, 1, damage: "block number 1"),
    Case("data past the end", 5 * 1024 + 12 * 128 + 40, .max, damage: "block number 4294967295"),
    Case("size beyond all blocks", 5 * 1024 + 12 * 128 + 108, .max, damage: "more than a file can have"),
    Case("a triple indirect block that is in the inode table", 5 * 1024 + 12 * 128 + 96, 5, damage: "block number 5"),
    Case("a directory in itself", 14 * 1024 + 24, 12, damage: "second name"),
    Case("the root below itself", 14 * 1024 + 24, 2, damage: "second name"),
  ]

  private func disk(_ test: Case) -> MemoryDisk {
    var disk = TinyDisk()
    for field in test.fields {
      if field.isWide {
        disk.put32(field.value, at: field.offset)
      } else {
        disk.put16(UInt16(field.value), at: field.offset)
      }
    }
    return MemoryDisk(disk.bytes)
  }

  @Test(arguments: superblocks) func aDiskThatCannotBeFollowedIsRefused(test: Case) throws {
    let policy = try ProtectionPolicy([.init("/**")])
    do throws(IntegrityError) {
      _ = try FileSystemView(disk(test), policy: policy)
      Issue.record("it was taken")
    } catch {
      #expect(error.code == test.code && !error.remedy.isEmpty, "\(error)")
    }
  }

  @Test func featuresAreRefusedByName() throws {
    var disk = TinyDisk()
    disk.put32(0x2 | 0x1 | 0x1000 | 0x4000_0000, at: 1024 + 96)
    do throws(IntegrityError) {
      _ = try ExtFileSystem(MemoryDisk(disk.bytes))
      Issue.record("it was taken")
    } catch {
      #expect(error.message.contains("compression, dirdata, 0x40000000"))
    }
  }

  @Test func aJournalThatCannotBeReadIsDamageAndTheRestIsFollowed() throws {
    var disk = TinyDisk()
    disk.put32(0x4, at: 1024 + 92)
    disk.put32(13, at: 1024 + 224)
    let fileSystem = try ExtFileSystem(MemoryDisk(disk.bytes))
    #expect(fileSystem.superblock.features.hasJournal)
    #expect(fileSystem.damage.kept.map(\.message) == ["damaged journal: no journal superblock"])
    var monitor = try MonitorSupport.monitor(MemoryDisk(disk.bytes), ["/**"])
    #expect(monitor.blindness == nil && monitor.drainEvents().map(\.operation) == [.damage])
  }

  @Test func anExternalJournalIsNamed() throws {
    var disk = TinyDisk()
    disk.put32(0x4, at: 1024 + 92)
    disk.put32(0x801, at: 1024 + 228)
    let fileSystem = try ExtFileSystem(MemoryDisk(disk.bytes))
    #expect(fileSystem.damage.kept.contains { $0.message.contains("external journal") })
  }

  @Test(arguments: damages) func damageIsReportedAndTheRestIsFollowed(test: Case) throws {
    let view = try FileSystemView(disk(test), policy: try ProtectionPolicy([.init("/**")]))
    #expect(view.damage.kept.contains { $0.message.contains(test.damage ?? "-") }, "\(view.damage.kept)")
    #expect(view.protectedFiles.contains { String(decoding: $0.path, as: UTF8.self) == "/var/app.log" })
  }

  @Test func indirectBlocksThatPointAtThemselvesEnd() throws {
    var disk = TinyDisk()
    for offset in stride(from: 40 * 1024, to: 41 * 1024, by: 4) { disk.put32(40, at: offset) }
    for index in 12..<15 { disk.put32(40, at: 5 * 1024 + 12 * 128 + 40 + index * 4) }
    let view = try FileSystemView(MemoryDisk(disk.bytes), policy: try ProtectionPolicy([.init("/**")]))
    #expect(view.damage.count > 0 && view.tableSize.entries < 100)
  }

  @Test(arguments: [0, 1, 1023, 1024, 2047, 2048, 2100, 512 * 1024 - 1])
  func aDiskThatIsCutOffIsRefused(count: Int) throws {
    let reader = MemoryDisk(Array(TinyDisk().bytes[..<count]))
    #expect(throws: IntegrityError.self) { try ExtFileSystem(reader) }
  }

  @Test func aWalkVisitsEverything() throws {
    var paths: [String] = []
    let log = try ExtFileSystem(MemoryDisk(TinyDisk().bytes)).walk {
      paths.append("\(String(decoding: $0.path, as: UTF8.self)) \($0.number) \($0.inode.size)")
    }
    #expect(log.count == 0)
    #expect(
      paths == [
        "/ 2 1024", "/etc 12 1024", "/var 15 1024", "/etc/passwd 13 100", "/etc/shadow 14 1500", "/var/app.log 16 500",
      ])
  }

  @Test func limitsAreKept() throws {
    var limits = WalkLimits(entries: 3)
    let reader = MemoryDisk(TinyDisk().bytes)
    var visits = 0
    #expect(try ExtFileSystem(reader).walk(limits: limits) { _ in visits += 1 }.count == 1 && visits == 4)
    limits = WalkLimits(depth: 0)
    #expect(try FileSystemView(reader, policy: try ProtectionPolicy([.init("/**")]), limits: limits).damage.count == 2)
    limits = WalkLimits(blocks: 4)
    #expect(try FileSystemView(reader, policy: try ProtectionPolicy([.init("/**")]), limits: limits).damage.count > 0)
  }

  /// No byte of a disk, and no write to it, makes the reader or the monitor trap. The seeds are fixed: a failure can
  /// be repeated.
  @Test(arguments: 0..<60) func anyBytesAreSurvived(seed: UInt64) throws {
    var random = Random(state: seed &* 0x9E37_79B9_7F4A_7C15 | 1)
    var disk = TinyDisk()
    for _ in 0..<Int(random.next() % 24) {
      // Mostly in the metadata.
      let offset = random.next() % 8 == 0 ? 1024 + 4 * Int(random.next() % 64) : 5 * 1024 + Int(random.next() % 11_000)
      disk.bytes[offset] = UInt8(truncatingIfNeeded: random.next())
    }
    var guest = try Guest(disk, protecting: [.init("/**", action: seed % 3 == 0 ? .denyData : .alert), .init("/")])
    for _ in 0..<150 {
      let block = Int(random.next() % 60)
      for _ in 0..<Int(random.next() % 4) {
        guest.image.bytes[block * 1024 + Int(random.next() % 1024)] = UInt8(truncatingIfNeeded: random.next() % 64)
      }
      switch random.next() % 12 {
      case 0: guest.request(.flush)
      case 1: guest.disk.observeGap(at: guest.time, reason: "gap")
      case 2: guest.request(.discard, at: UInt64(block) * 512, length: random.next() % 5000)
      case 3: _ = guest.wait(.milliseconds(Int64(random.next() % 3000)))
      case 4: guest.request(.write, at: random.next() % 60_000, Array(guest.image.block(block).prefix(700)))
      default: guest.write(block)
      }
    }
    _ = guest.finish()
    // What the monitor believes is what a fresh look at the disk says.
    if guest.disk.observer.blindness == nil, guest.disk.observer.statistics.damages == 0 {
      let fresh = try FileSystemView(guest.overlay, policy: try ProtectionPolicy([.init("/**"), .init("/")]))
      if fresh.damage.count == 0 {
        #expect(fresh.protectedFiles.map(\.path) == guest.disk.observer.protectedFiles.map(\.path))
        #expect(fresh.protectedFiles.map(\.inode) == guest.disk.observer.protectedFiles.map(\.inode))
      }
    }
  }
}

/// xorshift64*: the same numbers for the same seed.
struct Random {
  var state: UInt64
  mutating func next() -> UInt64 {
    state ^= state >> 12
    state ^= state << 25
    state ^= state >> 27
    return (state &* 0x2545_F491_4F6C_DD1D) >> 16
  }
}
