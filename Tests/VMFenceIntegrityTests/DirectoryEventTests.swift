import Testing
import VMFenceCore
import VMFenceIntegrity

/// Of directories that get other names, go, or take each other's places.
@Suite struct DirectoryEventTests {
  @Test func aDirectoryAboveThatIsRenamedTakesTheProtectedNamesWithIt() throws {
    var guest = try Guest(protecting: [.init("/etc/passwd")])
    guest.image.putNames(13, [(".", 2), ("..", 2), ("etc.old", 12), ("var", 15)])
    guest.write(13)
    #expect(
      guest.flush() == [
        "0 rename /etc.old ino 12 from /etc", "0 rename /etc.old/passwd ino 13 from /etc/passwd",
      ])
    #expect(guest.disk.observer.protectedFiles.isEmpty)
    guest.image.putNames(13, [(".", 2), ("..", 2), ("etc", 12), ("var", 15)])
    guest.write(13)
    let events = guest.flush()
    #expect(events.count == 1 && events[0].hasPrefix("2 create /etc/passwd ino 13"))
  }

  @Test func aRenamedDirectoryIsOneEventWhereThePolicyHoldsInBothPlaces() throws {
    var guest = try Guest(protecting: [.init("/**")])
    guest.image.putNames(13, [(".", 2), ("..", 2), ("etc.old", 12), ("var", 15)])
    guest.write(13)
    #expect(guest.flush() == ["0 rename /etc.old ino 12 from /etc"])
    guest.image.putText(20, "x")
    guest.write(20)
    #expect(guest.flush() == ["2 write /etc.old/passwd ino 13 0+1"])
  }

  /// From one directory to another: two blocks, with a settling between them.
  @Test(arguments: [[14, 15], [15, 14]]) func aDirectoryThatMovesIsOneEventInAnyOrderOfItsNames(order: [Int]) throws {
    var image = TinyDisk()
    image.putInode(17, .init(mode: 0o40755, size: 1024, links: 2, blocks: [40]))
    image.putInode(18, .init(size: 5, blocks: [41]))
    image.putNames(40, [(".", 17), ("..", 12), ("key", 18)])
    image.putNames(14, [(".", 12), ("..", 2), ("passwd", 13), ("ssh", 17)])
    var guest = try Guest(image, protecting: [.init("/**")])
    guest.image.putNames(14, [(".", 12), ("..", 2), ("passwd", 13)])
    guest.image.putNames(15, [(".", 15), ("..", 2), ("app.log", 16), ("ssh", 17)])
    guest.write(order[0])
    #expect(guest.flush() == [] && guest.wait(.milliseconds(500)) == [])
    guest.write(order[1])
    #expect(guest.flush().map { $0.dropFirst(2) } == ["rename /var/ssh ino 17 from /etc/ssh"])
    guest.image.putText(41, "x")
    guest.write(41)
    #expect(guest.flush().map { $0.dropFirst(2) } == ["write /var/ssh/key ino 18 0+1"])
  }

  @Test func aDirectoryIsRemovedOnceItsInodeIsAndOneThatLeavesIsToldAfterTheLimit() throws {
    var image = TinyDisk()
    image.putInode(17, .init(mode: 0o40755, size: 1024, links: 2, blocks: [40]))
    image.putNames(40, [(".", 17), ("..", 12)])
    image.putNames(14, [(".", 12), ("..", 2), ("passwd", 13), ("ssh", 17)])
    var guest = try Guest(image, protecting: [.init("/etc/**")])
    guest.image.putNames(14, [(".", 12), ("..", 2), ("passwd", 13)])
    guest.write(14)
    #expect(guest.flush() == [])
    guest.image.putInode(17, .init(mode: 0o40755, links: 0, dtime: 1_700_000_001))
    guest.write(7)
    #expect(guest.flush().map { $0.dropFirst(2) } == ["rmdir /etc/ssh ino 17"])

    guest = try Guest(image, protecting: [.init("/etc/**")])
    guest.image.putNames(14, [(".", 12), ("..", 2), ("passwd", 13)])
    guest.image.putNames(15, [(".", 15), ("..", 2), ("app.log", 16), ("ssh", 17)])
    guest.write(14, 15)
    #expect(guest.flush() == [] && guest.wait(.seconds(1)) == [])
    #expect(guest.wait(.seconds(1)).map { $0.dropFirst(2) } == ["rmdir /etc/ssh ino 17"])
  }

  /// Also where the policy says of the two places what is not the same, so that what is in it is looked at anew.
  @Test(arguments: [["/**"], ["/**", "/etc/**"]])
  func aNameIsToldWithThePathThatItHadBeforeItsDirectoryMoved(patterns: [String]) throws {
    var guest = try Guest(protecting: patterns.map { .init($0) })
    guest.image.putInode(17, .init(size: 5, blocks: [30]))
    guest.image.putNames(14, [(".", 12), ("..", 2), ("passwd", 13), ("shadow", 14), ("new", 17)])
    guest.write(30, 7, 14)
    guest.image.putNames(13, [(".", 2), ("..", 2), ("etc.old", 12), ("var", 15)])
    guest.write(13)
    let told = guest.flush()
    #expect(told.filter { $0.contains("create") }.count == 1, "once: \(told)")
    if patterns.count == 1 {
      #expect(told.map { $0.prefix(20) } == ["2 create /etc/new in", "3 rename /etc.old in"])
    }
  }

  @Test func aDirectoryPutInThePlaceOfAnotherReplacesWhatIsProtectedInIt() throws {
    var guest = try Guest(protecting: [.init("/etc/passwd")])
    guest.image.putInode(18, .init(mode: 0o40755, size: 1024, links: 2, blocks: [40]))
    guest.image.putInode(19, .init(size: 7, generation: 5, blocks: [41]))
    guest.image.putNames(40, [(".", 18), ("..", 2), ("passwd", 19)])
    guest.image.putNames(13, [(".", 2), ("..", 2), ("etc", 18), ("old", 12), ("var", 15)])
    guest.write(40, 41, 7, 13)
    #expect(
      guest.flush() == [
        "3 rename /old ino 12 from /etc",
        "3 create /etc/passwd ino 19 mode:  -> 0644 uid:  -> 0 gid:  -> 0 size:  -> 7",
        "3 rename /old/passwd ino 13 from /etc/passwd",
      ])
    #expect(guest.disk.observer.protectedFiles.map(\.number) == [19])
  }
}
