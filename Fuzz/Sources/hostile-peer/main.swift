internal import Foundation
import FuzzSupport
import Synchronization
import VMFenceChannel
import VMFenceCore

// Dom0's side of the policy channel beside a guest that never stops rewriting the page in another thread: every word, forged messages with right
// checksums, indices that are nearly right, and honest work in between. Built with the address sanitizer, and run by `scripts/hostile-peer`.
//
//   hostile-peer SECONDS

let seconds = CommandLine.arguments.dropFirst().first.flatMap { Double($0) } ?? 10
let view = PageView()
let isDone = Atomic(false)

/// What the guest does, until it is over.
@Sendable func rewrite() {
  var random = SystemRandomNumberGenerator()
  while !isDone.load(ordering: .relaxed) {
    switch UInt8.random(in: 0..<8, using: &random) {
    case 0: view.store(UInt64.random(in: 0...(.max), using: &random), at: Int.random(in: 0..<512, using: &random))
    case 1:
      // Indices and epochs, by little.
      let index = [2, 3, 4, 5, 8, 10, 11].randomElement(using: &random) ?? 4
      view.store(view.load(index) &+ UInt64.random(in: 0..<5, using: &random) * 8, at: index)
    case 2:
      view.forge(
        fromGuest: true, behind: UInt64.random(in: 0..<32, using: &random) * 8,
        type: UInt8.random(in: 0..<20, using: &random),
        sequence: UInt64.random(in: 0..<4, using: &random),
        payload: (0..<Int.random(in: 0..<256, using: &random)).map { _ in UInt8.random(in: 0...255, using: &random) })
    case 3:
      // As if it took up the session that stands in the page.
      view.store(view.load(8), at: 3)
    default:
      // Every bit of the lane up, one after the other.
      let index = 272 + Int.random(in: 0..<240, using: &random)
      view.store(view.load(index) ^ 1 << UInt64.random(in: 0..<64, using: &random), at: index)
    }
  }
}

func policy(_ version: UInt64) throws(GuestPolicyError) -> GuestPolicy {
  try GuestPolicy(
    domain: DomainUUID(high: 1, low: 2), version: version, issued: Timestamp(seconds: 1000),
    measures: (0..<100).map {
      .init(.block(IPNetwork(IPAddress(v4: 0x0A00_0000 + UInt32($0)))), expires: nil, decision: UInt64($0))
    })
}

let page = try SharedPage.mapping(descriptor: view.descriptor)
Thread.detachNewThread(rewrite)
var (sessions, steps, endings) = (0 as UInt64, 0, [String: Int]())
let end = Date(timeIntervalSinceNow: seconds)
while Date() < end {
  sessions += 1
  // The guest's own preparation, which the other thread rewrites as it is made.
  var guest = GuestChannel(preparing: page, session: sessions)
  let now = Timestamp(seconds: Int64(sessions))
  do throws(ChannelViolation) {
    var host = try HostChannel(page, epoch: sessions, at: now)
    host.offer(try! policy(sessions))
    host.query()
    var ending = "still open"
    for step in 0..<50 {
      steps += 1
      if step % 3 == 0 { for case .policy(let policy, _) in guest.step() { precondition(policy.version <= sessions) } }
      let events = host.step(at: now + .milliseconds(Int64(step)))
      precondition(events.count <= 130, "\(events.count) events in one step")
      if case .closed(let violation)? = events.last { ending = violation.code.name }
      if case .restarted? = events.last { ending = "restarted" }
      if host.state == .closed { break }
    }
    endings[ending, default: 0] += 1
  } catch { endings["refused: \(error.code.name)", default: 0] += 1 }
}
isDone.store(true, ordering: .relaxed)
print("\(sessions) sessions, \(steps) steps; they ended:")
for (ending, count) in endings.sorted(by: { $0.key < $1.key }) { print("  \(ending): \(count)") }
