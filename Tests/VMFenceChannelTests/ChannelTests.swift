import Foundation
import Synchronization
import TestSupport
import Testing
import VMFenceCore
import VMFenceIntegrity

@testable import VMFenceChannel

@Suite("The policy channel")
struct ChannelTests {
  @Test("a session opens, a policy of many parts arrives whole, and its answer comes back")
  func policyArrives() throws {
    var pair = try Pair()
    #expect(pair.host.step(at: start) == [] && pair.host.state == .offered, "without a frontend nothing happens")
    let whole = try policy(7, measures: GuestPolicy.measureLimit)
    pair.host.offer(whole)
    let seen = pair.settle()
    #expect(seen.guest == [.opened(version: 1), .policy(whole, sentAt: start)])
    let answer = PolicyAcknowledgement(version: 7, digest: whole.digest, status: .applied, standing: 512)
    #expect(seen.host == [.opened(version: 1), .acknowledged(answer)])
    // Lanes go round many times.
    for version in UInt64(8)...80 {
      pair.host.offer(try policy(version, measures: Int(version)))
      pair.now = pair.now + .seconds(1)
      #expect(pair.settle().host.count == 1)
    }
  }

  @Test("a newer policy takes the place of one that was not sent whole; answers may come late")
  func supersede() throws {
    var pair = try Pair.open()
    pair.host.offer(try policy(1, measures: 500))
    #expect(pair.host.step(at: start) == [])
    let second = try policy(2)
    pair.host.offer(second)
    let seen = pair.settle()
    #expect(seen.guest == [.policy(second, sentAt: start)])
    #expect(seen.host.count == 1)
    // An answer to the one before is an answer still.
    pair.host.offer(try policy(3))
    _ = pair.host.step(at: start)
    pair.guest.acknowledge(PolicyAcknowledgement(version: 2, digest: second.digest, status: .applied))
    #expect(pair.settle().host.count == 2)
  }

  @Test("a policy that arrived damaged is sent again, three times at the most")
  func resend() throws {
    var pair = try Pair.open()
    let policy = try policy(1)
    pair.host.offer(policy)
    var count = 0
    let seen = pair.settle { _ in
      count += 1
      return .damaged
    }
    #expect(count == HostChannel.attemptLimit && seen.host.count == HostChannel.attemptLimit)
    pair.host.offer(policy)
    #expect(pair.settle { _ in count == 3 ? .failed : .applied }.host.count == 1, "a failure is not tried again")
  }

  @Test("a guest that does not answer is told of once")
  func silence() throws {
    var pair = try Pair.open()
    pair.host.offer(try policy(4))
    #expect(pair.settle { _ in nil }.host == [])
    pair.now = start + HostChannel.answerTime
    #expect(pair.settle { _ in nil }.host == [.silent(version: 4)])
    pair.now = pair.now + .seconds(1_000)
    #expect(pair.settle().host == [])
  }

  @Test("a guest that reads nothing is silent, with or without room in the page, however often its policy changes")
  func readsNothing() throws {
    for measures in [3, GuestPolicy.measureLimit] {
      var pair = try Pair.open()
      pair.host.offer(try policy(1, measures: measures))
      _ = pair.host.step(at: start)
      for second in 1..<30 {
        pair.host.offer(try policy(UInt64(second) + 1, measures: measures))
        #expect(pair.host.step(at: start + .seconds(second)) == [])
      }
      pair.now = start + HostChannel.answerTime
      #expect(pair.host.step(at: pair.now) == [.silent(version: 30)])
      #expect(pair.host.step(at: pair.now + .seconds(1_000)) == [])
      // It is not forgotten: whoever reads again gets it.
      let seen = pair.settle()
      guard case .policy(let got, _)? = seen.guest.last, case .acknowledged(let answer)? = seen.host.last else {
        Issue.record("\(seen)")
        continue
      }
      #expect(got.version == 30 && answer.version == 30)
      // The next one is waited for anew.
      pair.host.offer(try policy(31, measures: measures))
      #expect(pair.host.step(at: pair.now + .seconds(2_000)) == [])
      #expect(pair.host.step(at: pair.now + .seconds(2_030)) == [.silent(version: 31)])
    }
  }

  @Test("a guest that answers to each policy only when it has the next is slow, and not silent")
  func slow() throws {
    var pair = try Pair.open()
    for version in UInt64(1)...10 {
      let policy = try policy(version)
      pair.host.offer(policy)
      pair.now = pair.now + .seconds(20)
      _ = pair.host.step(at: pair.now)
      if version > 1 {
        let before = try VMFenceChannelTests.policy(version - 1)
        pair.guest.acknowledge(PolicyAcknowledgement(version: version - 1, digest: before.digest, status: .applied))
      }
      let seen = pair.settle { _ in nil }.host
      #expect(seen.count == (version > 1 ? 1 : 0) && !seen.contains(.silent(version: version)))
    }
  }

  @Test("a guest that calls a policy damaged before it was sent whole is sent it three times at the most")
  func damagedPart() throws {
    var pair = try Pair.open()
    let policy = try policy(1, measures: GuestPolicy.measureLimit)
    pair.host.offer(policy)
    _ = pair.host.step(at: start)
    for _ in 0..<200 {
      pair.guest.acknowledge(PolicyAcknowledgement(version: 1, digest: policy.digest, status: .damaged))
      _ = pair.guest.step()
      pair.now = pair.now + .milliseconds(100)
      #expect(pair.host.step(at: pair.now).count == 1)
    }
    #expect(pair.host.messagesSent <= UInt64(HostChannel.attemptLimit * PolicyChunk.count(of: policy.encoded.count)))
    #expect(pair.host.step(at: start + HostChannel.answerTime) == [], "its answer is final")
  }

  @Test("reports and declarations come up")
  func upward() throws {
    var pair = try Pair.open()
    pair.host.query()
    #expect(pair.settle().guest == [.query])
    let report = InForceReport(
      policy: .init(version: 3, digest: [UInt8](repeating: 9, count: 32)), standing: 2, measures: 5,
      dropped: [1, 2, 3, .max])
    pair.guest.report(InForceReport(policy: nil))
    pair.guest.report(report)
    #expect(pair.settle().host == [.inForce(report)], "the newest counts")
    let most = TenantDeclaration(
      serviceType: "web", protectedPaths: (1..<ChannelLayout.declarationLimit).map { "/srv/\($0)/ünïcode" })
    for declaration in [most, TenantDeclaration(), TenantDeclaration(protectedPaths: ["/etc/**"])] {
      try pair.guest.declare(declaration)
      pair.now = pair.now + .seconds(10)
      #expect(pair.settle().host == [.declared(declaration)])
    }
  }

  @Test(
    "a declaration that Dom0 would refuse is not sent",
    arguments: [
      TenantDeclaration(protectedPaths: ["etc"]), .init(protectedPaths: ["/a/../b"]),
      .init(protectedPaths: ["/etc/"]), .init(protectedPaths: ["/a//b"]), .init(protectedPaths: ["//"]),
      .init(protectedPaths: ["/a", "/a"]),
      .init(protectedPaths: ["/a\u{1B}[31m"]), .init(protectedPaths: ["/" + String(repeating: "x", count: 255)]),
      .init(serviceType: ""), .init(serviceType: "Web Server"), .init(protectedPaths: (0...64).map { "/\($0)" }),
    ])
  func badDeclaration(declaration: TenantDeclaration) throws {
    var pair = try Pair.open()
    #expect(throws: ChannelViolation.self) { try pair.guest.declare(declaration) }
    #expect(pair.settle().host == [])
  }

  @Test("a disk's monitor takes every path that a guest may declare")
  func watchable() {
    func canBeDeclared(_ path: String) -> Bool {
      (try? TenantDeclaration(protectedPaths: [path]).validate()) != nil
    }
    func canBeWatched(_ path: String) -> Bool { (try? ProtectionPolicy([.init(path)])) != nil }
    let parts = "/ / / . .. a ** * ? ! \u{301} \u{FFFE} \" \\ $x %i é".split(separator: " ").map(String.init) + [" "]
    var random = SystemRandomNumberGenerator()
    var taken = 0
    for _ in 0..<20_000 {
      let count = Int.random(in: 1...9, using: &random)
      let path = (0..<count).map { _ in parts.randomElement(using: &random) ?? "" }.joined()
      let isTaken = canBeDeclared(path)
      taken += isTaken ? 1 : 0
      #expect(!isTaken || canBeWatched(path) && path.utf8.first == 0x2F, "\(Array(path.utf8))")
    }
    #expect(taken > 100)
    for path in ["/", "/etc", "/etc/**", "/a b/\"c\"", String(repeating: "/a", count: 127)] {
      #expect(canBeDeclared(path) && canBeWatched(path))
    }
  }

  @Test("of a declaration that was kept, what cannot be declared any more is left out, and the rest stands")
  func validated() {
    let kept = TenantDeclaration(
      serviceType: "Web", protectedPaths: ["/etc/", "/srv/**", "/a//b", "/srv/**"] + (0..<80).map { "/\($0)" })
    #expect(
      kept.validated == TenantDeclaration(protectedPaths: ["/srv/**"] + (0..<63).map { "/\($0)" }))
  }

  @Test("a new session on the same page, as after Dom0's daemon was restarted, begins from nothing")
  func newEpoch() throws {
    var pair = try Pair.open()
    pair.host.offer(try policy(1, measures: 300))
    _ = pair.host.step(at: start)
    _ = pair.guest.step()
    // The old daemon is gone in the middle of it.
    pair.host = try HostChannel(pair.page, epoch: 0x9999, at: start)
    let second = try policy(2, measures: 10)
    pair.host.offer(second)
    let seen = pair.settle()
    #expect(seen.guest == [.opened(version: 1), .policy(second, sentAt: start)])
    #expect(seen.host.first == .opened(version: 1) && seen.host.count == 2)
  }

  @Test("nor does what the guest has read of the old one wait for an answer in the new one, which was not sent it")
  func newEpochMeanwhile() throws {
    let page = try SharedPage.anonymous()
    var guest = GuestChannel(preparing: page, session: 77)
    // One message.
    let whole = try policy(1, measures: 10)
    let isDone = Atomic(false)
    let daemons = Thread {
      let deadline = ContinuousClock.now + waitLimit
      for epoch in 1...100 as ClosedRange<UInt64> {
        guard var host = try? HostChannel(page, epoch: epoch, at: start) else { break }
        host.offer(whole)
        // The policy is sent as soon as the session is taken up; the next one begins while the guest looks at what it has just taken.
        while host.state == .offered || page.acquire(Lane.down.head) == 0, ContinuousClock.now < deadline {
          if host.state == .offered { _ = host.step(at: start) }
        }
      }
      isDone.store(true, ordering: .relaxed)
    }
    daemons.start()
    var late = 0
    while !isDone.load(ordering: .relaxed) {
      let events = guest.step()
      let beforeOpening = events.prefix(upTo: events.lastIndex(of: .opened(version: 1)) ?? 0)
      for case .policy in beforeOpening { late += 1 }
    }
    #expect(late == 0)
  }

  @Test("a frontend that begins anew on the same page is no breach, and is attached again")
  func restartedGuest() throws {
    var pair = try Pair.open()
    pair.host.offer(try policy(1, measures: 300))
    _ = pair.host.step(at: start)
    pair.guest = GuestChannel(preparing: pair.page, session: 78)
    #expect(pair.host.step(at: start) == [.restarted] && pair.host.state == .closed)
    pair.host = try HostChannel(pair.page, epoch: 0x777, at: start)
    pair.host.offer(try policy(2))
    #expect(pair.settle().host.count == 2)
  }

  @Test("after save and restore, on another page, everything goes on")
  func otherPage() throws {
    var pair = try Pair.open()
    pair.host.offer(try policy(1))
    _ = pair.settle()
    var restored = try Pair(epoch: 0xABCD)
    restored.host.offer(try policy(1))
    #expect(restored.settle().host.count == 2)
  }

  @Test("when Dom0 ends the session, the guest hears of it and keeps what it has")
  func closed() throws {
    var pair = try Pair.open()
    pair.host.close()
    #expect(pair.settle().guest == [.ended(reason: 0)])
    #expect(pair.host.step(at: start) == [] && !pair.guest.isOpen)
  }

  @Test("messages above the rate wait in the page, at the guest's cost")
  func rate() throws {
    var pair = try Pair.open()
    var reports = 0
    for _ in 0..<1_000 {
      pair.guest.report(InForceReport(policy: nil))
      _ = pair.guest.step()
      reports += pair.host.step(at: start).count
    }
    #expect(reports == HostChannel.messageBurst && pair.host.state == .open)
    #expect(pair.host.step(at: start + .seconds(1)).count > 0, "later they are read")
  }

  @Test("no version in common, or a page that was not prepared, is refused")
  func versions() throws {
    let page = try SharedPage.anonymous()
    #expect("nothing there") { try HostChannel(page, epoch: 1, at: start) } throws: {
      ($0 as? ChannelViolation)?.code == .page
    }
    _ = GuestChannel(preparing: page, session: 1)
    for versions: UInt64 in [0, 0x0002_0002, 0x0000_0001, 0x1_0001_0001, .max] {
      page.store(versions, at: ChannelLayout.Guest.versions)
      #expect("\(versions)") { try HostChannel(page, epoch: 1, at: start) } throws: {
        ($0 as? ChannelViolation)?.code == .version
      }
    }
    page.store(0x0009_0001, at: ChannelLayout.Guest.versions)
    #expect(try HostChannel(page, epoch: 1, at: start).version == 1)
  }

  @Test("a declaration only adds protection")
  func adding() {
    let standing = TenantDeclaration(serviceType: "web", protectedPaths: ["/etc/**", "/boot/**"])
    let effect = standing.adding(TenantDeclaration(serviceType: "none", protectedPaths: ["/srv", "/etc/**"]))
    #expect(effect.standing == TenantDeclaration(serviceType: "web", protectedPaths: ["/etc/**", "/boot/**", "/srv"]))
    #expect(effect.added == ["/srv"] && effect.missing == ["/boot/**"] && effect.refusedServiceType == "none")
    #expect(effect.isShrinking)
    let first = TenantDeclaration().adding(standing)
    #expect(first.standing == standing && !first.isShrinking && first.refused == [])
    let many = standing.adding(TenantDeclaration(protectedPaths: standing.protectedPaths + (0..<80).map { "/\($0)" }))
    #expect(many.standing.protectedPaths.count == ChannelLayout.declarationLimit && many.refused.count == 18)
  }
}
