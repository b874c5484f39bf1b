import Testing
import VMFenceCore

/// As many enter as there is room for.
///
/// - Returns: how many did.
private func fill(_ count: Int, _ enter: () -> Bool) -> Int { (0..<count).count { _ in enter() } }

@Suite("The room of a queue is shared")
struct FairRoomTests {
  @Test("one alone gets half, and what comes then of others gets in")
  func alone() {
    var room = FairRoom(capacity: 1000)
    var (noisy, quiet) = (0, 0)
    #expect(fill(100_000) { room.enter(&noisy) } == 500)
    #expect(fill(1000) { room.enter(&quiet) } == 250 && room.used == 750)
    // With as much as the noisy one gives up, the other's share grows.
    for _ in 0..<100 { room.leave(&noisy) }
    #expect(fill(1000) { room.enter(&quiet) } == 50)
  }

  @Test("many who bring too much come to equal parts while what they brought is taken out")
  func equalParts() {
    var room = FairRoom(capacity: 1100)
    var held = [Int](repeating: 0, count: 10)
    var queue: [Int] = []
    for turn in 0..<20_000 {
      for sender in held.indices where room.enter(&held[sender]) { queue.append(sender) }
      guard turn % 2 == 0, !queue.isEmpty else { continue }
      room.leave(&held[queue.removeFirst()])
    }
    #expect(held.allSatisfy { (90...110).contains($0) }, "\(held)")
  }

  @Test("who comes last when all is full gets a little all the same, and the whole stays bounded")
  func assured() {
    var room = FairRoom(capacity: 1000)
    var held = [Int](repeating: 0, count: 100)
    for sender in held.indices { for _ in 0..<1000 { _ = room.enter(&held[sender]) } }
    #expect(held.allSatisfy { $0 >= room.assured } && held.last == room.assured)
    #expect(room.used == held.reduce(0, +) && room.used <= 1000 + 100 * room.assured)
  }

  @Test("what takes more than others is weighed")
  func amounts() {
    var room = FairRoom(capacity: 1000, assured: 10)
    var (large, small) = (0, 0)
    let entered = [400, 400, 100].map { room.enter(&large, $0) }
    #expect(entered == [true, false, true])
    #expect(fill(1) { room.enter(&small, 200) } == 1 && room.used == 700)
  }
}

@Suite("Events in a queue that domains share")
struct EventRoomTests {
  private static func domain(_ number: UInt32) -> Incarnation {
    Incarnation(uuid: DomainUUID(high: 1, low: UInt64(number)), domainID: DomainID(number))
  }
  private let noisy = Self.domain(1)
  private let quiet = Self.domain(2)

  @Test(
    "a flood of one guest's alerts costs no alert of another, no file event and no decision; what is lost is counted as the guest's own"
  )
  func flood() {
    var room = EventRoom(traffic: 8192, files: 8192, others: 8192)
    #expect(fill(100_000) { room.enter(.traffic, of: noisy) } == 4096)
    #expect(fill(1000) { room.enter(.traffic, of: quiet) } == 1000)
    for kind in [EventRoom.Kind.files, .others] {
      #expect(fill(4000) { room.enter(kind, of: noisy) } == 4000)
    }
    #expect(fill(1000) { room.enter(.others, of: nil) } == 1000)
    #expect(room.lost == [noisy: 100_000 - 4096] && room.lostInAll == 100_000 - 4096)
    #expect(room.used(.traffic) == 5096 && room.used(.files) == 4000 && room.used(.others) == 5000)
  }

  @Test("room comes back with what is written, and with all that is taken at once")
  func leaving() {
    var room = EventRoom(traffic: 100, files: 0, others: 0)
    #expect(fill(51) { room.enter(.traffic, of: noisy) } == 50)
    room.leave(.traffic, of: noisy)
    #expect(fill(1) { room.enter(.traffic, of: noisy) } == 1 && room.used(.traffic) == 50)
    room.leaveAll(.traffic)
    #expect(room.used(.traffic) == 0)
    #expect(fill(50) { room.enter(.traffic, of: noisy) } == 50)
    // Whoever holds nothing gives nothing back.
    room.leave(.traffic, of: quiet)
    #expect(room.used(.traffic) == 50 && room.lost == [noisy: 1])
    room.forget(noisy)
    #expect(room.lost.isEmpty && room.lostInAll == 1)
  }

  @Test("a domain that is started anew has no other share; what it lost is counted as this start's")
  func anew() {
    var room = EventRoom(traffic: 100, files: 0, others: 0, assured: 0)
    let again = Incarnation(uuid: noisy.uuid, domainID: DomainID(7))
    #expect(fill(51) { room.enter(.traffic, of: noisy) } == 50)
    #expect(fill(1) { room.enter(.traffic, of: again) } == 0 && room.lost == [noisy: 1, again: 1])
    room.leave(.traffic, of: noisy)
    #expect(fill(1) { room.enter(.traffic, of: again) } == 1)
  }

  @Test("what is taken by nobody who is known takes the room of what comes anyway first, and no more than there is")
  func occupied() {
    var room = EventRoom(statistics: 30, traffic: 100, files: 50, others: 50, assured: 0)
    room.occupy(150)
    #expect(room.used(.statistics) == 30)
    #expect(room.used(.traffic) == 100 && room.used(.files) == 20 && room.used(.others) == 0)
    #expect(fill(1) { room.enter(.traffic, of: quiet) } == 0 && fill(50) { room.enter(.others, of: nil) } == 25)
    room.occupy(1000)
    #expect(room.used(.files) == 50 && room.used(.others) == 50)
    for kind in EventRoom.Kind.allCases { room.leaveAll(kind) }
    #expect(fill(100) { room.enter(.traffic, of: quiet) } == 50)
  }

  @Test("a kind is that of whoever can make as many of it as they like")
  func kinds() {
    let platform = PlatformAlert(time: .zero, incarnation: noisy, kind: .probeGap, message: "")
    let file = FileEvent(
      time: .zero, incarnation: noisy, disk: "", sequence: 0, operation: .write, path: [], inode: 1, verdict: .allow,
      severity: 1)
    #expect(EventRoom.Kind(.platform(platform)) == .others && EventRoom.Kind(.file(file)) == .files)
  }
}
