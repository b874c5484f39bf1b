import Synchronization
import Testing
import VMFenceCore

@testable import VMFenceChannel

/// Guests whose pages lie in this process.
private final class FakePages: GuestPages, @unchecked Sendable {
  // Used by one test, in one thread.
  let descriptor: Int32 = -1
  var offers: [Incarnation: Int] = [:]
  var pages: [Int: SharedPage] = [:]
  var maps = 0
  var mapped: Set<UInt32> = []
  var rung: [Incarnation: Int] = [:]
  var ringing: [UInt32] = []
  var unmasked = 0
  var isUnreachable = false

  func offer(of domain: Incarnation) throws(ProbeError) -> Int? {
    if isUnreachable { throw ProbeError(.failed, "it cannot be asked", remedy: "wait") }
    return offers[domain]
  }
  func open(
    _ offer: Int, of domain: Incarnation, epoch: UInt64, at now: Timestamp
  ) throws(ChannelViolation) -> GuestPage<HostChannel> {
    maps += 1
    guard let page = pages[offer] else { throw ChannelViolation(.page, "no such page") }
    let session = try HostChannel(page, epoch: epoch, at: now)
    mapped.insert(UInt32(offer))
    return GuestPage(session: session, port: UInt32(offer))
  }
  func close(_ page: GuestPage<HostChannel>) { mapped.remove(page.port ?? 0) }
  func ring(_ page: GuestPage<HostChannel>, of domain: Incarnation) { rung[domain, default: 0] += 1 }
  func takeRings() -> [UInt32] {
    defer { ringing = [] }
    return ringing
  }
  func unmask(_ port: UInt32) { unmasked += 1 }
}

/// Dom0's side of many channels: who is looked at when, what a guest costs, and what is told.
@Suite("The keeper of channels")
struct ChannelKeeperTests {
  private let pages = FakePages()
  private let domain = Incarnation(uuid: guestUUID, domainID: DomainID(7))
  private var keeper: ChannelKeeper<FakePages>
  private var now = start

  init() {
    let epoch = Atomic<UInt64>(0)
    keeper = ChannelKeeper(pages) { epoch.wrappingAdd(1, ordering: .relaxed).newValue }
    keeper.update([domain], at: start)
  }

  /// A frontend that prepared a page and offers it.
  private func frontend(_ offer: Int, session: UInt64 = 1) throws -> GuestChannel {
    let page = try SharedPage.anonymous()
    pages.pages[offer] = page
    let guest = GuestChannel(preparing: page, session: session)
    pages.offers[domain] = offer
    return guest
  }

  private mutating func work(after time: Duration = .seconds(6)) -> [ChannelNews] {
    now = now + time
    return keeper.work(at: now, system: now)
  }

  private var status: ChannelStatus? { keeper.statuses[domain] }

  @Test("a guest without a frontend is a normal state; one that comes gets the policy that it is to have, and answers")
  mutating func delivery() throws {
    #expect(work() == [] && status?.state == ChannelStatus.State.none && pages.maps == 0)
    let wanted = try policy(3)
    keeper.offer(wanted)
    var guest = try frontend(1)
    #expect(work() == [] && status?.state == .offered && pages.rung[domain] == 1)
    #expect(guest.step() == [.opened(version: 1)])
    #expect(work(after: .milliseconds(10)) == [.opened(domain)] && status?.state == .open && status?.sent == 3)
    #expect(pages.rung[domain] == 2, "the guest is rung for what was sent")
    guard case .policy(let got, _)? = guest.step().last else {
      Issue.record("no policy")
      return
    }
    #expect(got == wanted)
    guest.acknowledge(
      PolicyAcknowledgement(version: 3, digest: got.digest, status: .failed, reason: "no \u{202e}nftables"))
    _ = guest.step()
    let news = work(after: .milliseconds(10))
    #expect(status?.answerDelay == .milliseconds(10))
    guard case .alert(domain, .policyNotInForce, let message)? = news.first else {
      Issue.record("\(news)")
      return
    }
    #expect(!message.contains("\u{202e}") && status?.answer?.status == .failed)
    // The same policy again is not sent again; another one is.
    keeper.offer(wanted)
    #expect(work(after: .milliseconds(10)) == [] && guest.step() == [])
    keeper.offer(try policy(4))
    _ = work(after: .milliseconds(10))
    #expect(guest.step().count == 1)
  }

  @Test("that a policy is not in force is told once, of one that arrives damaged when it is sent no more")
  mutating func notInForce() throws {
    var guest = try frontend(1)
    _ = work()
    _ = guest.step()
    for (version, status, count) in [
      (UInt64(1), PolicyAcknowledgement.Status.stale, 1), (2, .damaged, 3), (3, .refused, 1), (4, .applied, 0),
    ] {
      let wanted = try policy(version)
      keeper.offer(wanted)
      var alerts: [Int] = []
      for answers in 1...3 {
        _ = work(after: .seconds(6))
        _ = guest.step()
        guest.acknowledge(PolicyAcknowledgement(version: version, digest: wanted.digest, status: status))
        _ = guest.step()
        for case .alert(domain, .policyNotInForce, _) in work(after: .seconds(6)) { alerts.append(answers) }
      }
      #expect(alerts == (count == 0 ? [] : [count]), "\(status)")
    }
  }

  @Test("a domain that is gone keeps no page mapped")
  mutating func gone() throws {
    _ = try frontend(1)
    _ = work()
    #expect(pages.mapped == [1])
    keeper.update([], at: now)
    #expect(pages.mapped == [] && keeper.statuses.isEmpty)
  }

  @Test("a frontend that begins anew, on the same page or another, or takes its offer back, is followed")
  mutating func anew() throws {
    var guest = try frontend(1)
    _ = work()
    _ = guest.step()
    #expect(work(after: .milliseconds(10)) == [.opened(domain)])
    // The same page, another session.
    let page = try #require(pages.pages[1])
    guest = GuestChannel(preparing: page, session: 2)
    _ = work(after: .milliseconds(10))
    #expect(work(after: .milliseconds(10)) == [] && status?.state == .offered)
    _ = guest.step()
    #expect(work(after: .milliseconds(10)) == [.opened(domain)])
    // Another page, as after a crash.
    guest = try frontend(2)
    _ = work()
    #expect(pages.mapped == [2])
    _ = guest.step()
    #expect(work(after: .milliseconds(10)) == [.opened(domain)])
    pages.offers[domain] = nil
    #expect(work() == [] && status?.state == ChannelStatus.State.none && pages.mapped == [])
  }

  @Test("a guest that breaks the protocol again and again costs a bounded number of sessions and alerts")
  mutating func violations() throws {
    let page = try SharedPage.anonymous()
    pages.pages[1] = page
    pages.offers[domain] = 1
    var alerts = 0
    // An hour of looks, and of steps in between.
    for _ in 0..<3600 {
      _ = GuestChannel(preparing: page, session: 9)
      for case .alert(_, .channelViolation, _) in work(after: .milliseconds(500)) { alerts += 1 }
      page.release(page.acquire(ChannelLayout.Host.epoch), at: ChannelLayout.Guest.epoch)
      page.release(.max, at: Lane.up.tail)
      for case .alert(_, .channelViolation, _) in work(after: .milliseconds(500)) { alerts += 1 }
    }
    #expect(alerts > 10 && alerts <= 4 + 3600 / 15 && pages.maps <= 4 + 3600 / 15)
    // And the channel comes back when the guest behaves.
    var guest = try frontend(2)
    now = now + .seconds(3600)
    _ = work()
    _ = guest.step()
    #expect(work(after: .milliseconds(10)).last == .opened(domain) && status?.state == .open && status?.problem == "")
  }

  @Test("an offer of what is no page is an error of that guest, and ends with the offer")
  mutating func noPage() throws {
    pages.offers[domain] = 99
    let news = work()
    guard case .alert(domain, .channelViolation, _)? = news.first, news.count == 1 else {
      Issue.record("\(news)")
      return
    }
    #expect(status?.state == .error && status?.errors == [.page: 1])
    pages.offers[domain] = nil
    #expect(work() == [] && status?.state == ChannelStatus.State.none)
    pages.isUnreachable = true
    #expect(work() == [] && status?.errors == [.page: 1, .unreadable: 1])
  }

  @Test("what goes wrong is counted by guest and by what it is, as long as the guest is there")
  mutating func errors() throws {
    var guest = try frontend(1)
    let neighbour = Incarnation(uuid: DomainUUID(high: 5, low: 5), domainID: DomainID(8))
    keeper.update([domain, neighbour], at: now)
    keeper.offer(try policy(3))
    _ = work()
    _ = guest.step()
    _ = work(after: .milliseconds(10))
    _ = guest.step()
    let digest = try policy(3).digest
    for (status, count) in [(PolicyAcknowledgement.Status.failed, UInt64(1)), (.damaged, 2), (.applied, 2)] {
      guest.acknowledge(PolicyAcknowledgement(version: 3, digest: digest, status: status))
      _ = guest.step()
      _ = work(after: .seconds(1))
      #expect(self.status?.errors == [.notApplied: count], "\(status)")
    }
    keeper.offer(try policy(4))
    _ = work(after: .seconds(1))
    _ = work(after: HostChannel.answerTime)
    #expect(status?.errors == [.notApplied: 2, .unanswered: 1])
    // An answer to what nobody sent.
    guest.acknowledge(PolicyAcknowledgement(version: 77, digest: digest, status: .applied))
    _ = guest.step()
    _ = work(after: .seconds(1))
    #expect(status?.errors == [.notApplied: 2, .unanswered: 1, .unexpected: 1] && status?.state == .error)
    #expect(keeper.statuses[neighbour]?.errors == [:])
    keeper.update([neighbour], at: now)
    keeper.update([domain, neighbour], at: now)
    #expect(status?.errors == [:])
  }

  @Test("each violation is counted under its own name")
  func violationNames() {
    #expect(
      ChannelViolation.Code.allCases.map { ChannelError($0) } == [
        .page, .version, .index, .header, .checksum, .order, .message, .unexpected,
      ])
    // What was told in a page's state word stays what it was.
    #expect(ChannelViolation.Code.allCases.map(\.rawValue) == Array(1...8))
    #expect(ChannelViolation.Code.allCases.map(\.name) == ChannelError.allCases.prefix(8).map(\.rawValue))
  }

  @Test("a storm of rings is masked, and what a guest may cause is bounded")
  mutating func storm() throws {
    _ = try frontend(1)
    _ = work()
    for _ in 0..<1000 {
      pages.ringing = [1]
      _ = work(after: .microseconds(100))
    }
    // 64 at once, and 50 a second of the 100 ms that this took.
    #expect((64...70).contains(pages.unmasked))
    #expect(keeper.mustLook, "it is unmasked later")
    _ = work()
    #expect(!keeper.mustLook)
  }

  @Test("a declaration adds; one that takes back is told and changes nothing, in another session too")
  mutating func declarations() throws {
    var guest = try frontend(1)
    _ = work()
    _ = guest.step()
    _ = work(after: .milliseconds(10))
    let wishes = TenantDeclaration(serviceType: "web", protectedPaths: ["/etc/**"])
    try guest.declare(wishes)
    _ = guest.step()
    #expect(work(after: .milliseconds(10)) == [.declared(guestUUID, wishes)])
    guest = try frontend(2)
    _ = work()
    _ = guest.step()
    _ = work(after: .milliseconds(10))
    try guest.declare(TenantDeclaration(serviceType: "none-at-all"))
    _ = guest.step()
    let news = work(after: .milliseconds(10))
    guard case .alert(domain, .declarationShrinks, _)? = news.first, news.count == 1 else {
      Issue.record("\(news)")
      return
    }
    #expect(status?.standing == wishes)
  }

  @Test("what the operator took back does not come again with the next declaration, until it is allowed")
  mutating func refusals() throws {
    var guest = try frontend(1)
    _ = work()
    _ = guest.step()
    _ = work(after: .milliseconds(10))
    let wishes = TenantDeclaration(serviceType: "web", protectedPaths: ["/etc/**", "/tmp/**"])
    let left = TenantDeclaration(serviceType: "web", protectedPaths: ["/etc/**"])
    try guest.declare(wishes)
    _ = guest.step()
    var news = work()
    #expect(news == [.declared(guestUUID, wishes)])
    for (refusal, standing) in [
      (DeclarationRefusal(paths: ["/tmp/**"]), left),
      (DeclarationRefusal(isWhole: true, paths: ["/tmp/**"]), TenantDeclaration()),
    ] {
      keeper.refuse(refusal, of: guestUUID)
      #expect(status?.standing == standing)
      try guest.declare(wishes)
      _ = guest.step()
      news = work()
      #expect(news == [] && status?.standing == standing, "no alert either: somebody wanted it so")
    }
    keeper.refuse(DeclarationRefusal(), of: guestUUID)
    #expect(status?.standing == TenantDeclaration())
    try guest.declare(wishes)
    _ = guest.step()
    news = work()
    #expect(news == [.declared(guestUUID, wishes)] && status?.standing == wishes)
    // One that comes with what was kept.
    let epoch = Atomic<UInt64>(100)
    var next = ChannelKeeper(
      pages, standing: [guestUUID: left], refusals: [guestUUID: DeclarationRefusal(paths: ["/tmp/**"])]
    ) { epoch.wrappingAdd(1, ordering: .relaxed).newValue }
    next.update([domain], at: now)
    #expect(next.statuses[domain]?.standing == left)
  }

  @Test("a guest that holds another policy with a higher version is told of, so that its next one is higher still")
  mutating func outbid() throws {
    var guest = try frontend(1)
    keeper.offer(try policy(3))
    _ = work()
    _ = guest.step()
    guest.report(InForceReport(policy: .init(version: 50, digest: [UInt8](repeating: 1, count: 32))))
    _ = guest.step()
    #expect(work(after: .milliseconds(10)).contains(.holds(guestUUID, version: 50)))
  }
}
