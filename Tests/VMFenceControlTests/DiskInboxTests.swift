import Testing
import VMFenceControl
import VMFenceCore

@Suite("What disks' processes say waits within bounds")
struct DiskInboxTests {
  private static func status(_ requests: UInt64) -> DiskControlStatus {
    DiskControlStatus(expected: [], held: nil, requests: requests, denied: 0)
  }

  private static func event(path bytes: Int) -> DiskFileEvent {
    DiskFileEvent(
      FileEvent(
        time: .zero, incarnation: Incarnation(uuid: DomainUUID(high: 1, low: 2), domainID: DomainID(3)), disk: "xvda",
        sequence: 1, operation: .write, path: [UInt8](repeating: 0x61, count: bytes), inode: 1), shiftedBy: .zero)
  }

  @Test("of how each stands only the newest is kept, and what it took the place of is counted")
  func newest() {
    let inbox = DiskInbox()
    #expect(inbox.add(.status(Self.status(0)), of: "/a").isFirst, "the loop is to be woken")
    for number in 1...100_000 as ClosedRange<UInt64> {
      let (isTaken, isFirst) = inbox.add(.status(Self.status(number)), of: "/a")
      #expect(isTaken && !isFirst)
    }
    _ = inbox.add(.status(Self.status(7)), of: "/b")
    _ = inbox.add(.absent, of: "/b")
    let taken = inbox.take()
    #expect(taken.map(\.path) == ["/a", "/b"])
    #expect(taken[0].news.status == .some(Self.status(100_000)) && taken[0].news.outdated == 100_000)
    #expect(taken[1].news.status == .some(nil) && taken[1].news.outdated == 1)
    #expect(inbox.take().isEmpty && inbox.add(.absent, of: "/a").isFirst)
  }

  @Test("a flood of one process's events leaves room to another's, in order, and waits with it")
  func flood() {
    let inbox = DiskInbox()
    let event = Self.event(path: 10)
    for number in 0..<10_000 { #expect(inbox.add(.event(event), of: "/a").isTaken == (number < 4096)) }
    for _ in 0..<1000 { #expect(inbox.add(.event(event), of: "/b").isTaken) }
    _ = inbox.add(.lost(.max), of: "/a")
    let taken = inbox.take()
    #expect(taken.map(\.news.events.count) == [4096, 1000])
    #expect(taken.map(\.news.lost) == [.max, 0], "a process can say any number")
    #expect(taken.allSatisfy { $0.news.status == nil } && taken.map(\.news.isWaiting) == [true, false])
    #expect(inbox.add(.event(event), of: "/a").isTaken, "there is room again")
  }

  @Test("long names take their length of the room")
  func bytes() {
    let inbox = DiskInbox()
    let event = Self.event(path: 150_000)
    for _ in 0..<1000 { _ = inbox.add(.event(event), of: "/a") }
    let news = inbox.take()[0].news
    #expect((30...50).contains(news.events.count) && news.lost == 0 && news.isWaiting)
  }
}
