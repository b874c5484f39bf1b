// How long a policy takes over the policy channel, between two threads over one page: from the moment at which Dom0's side is given it to the guest's
// answer that it got all of it, each side looking again and again. What puts it in force in the guest comes besides.
//
//   channel [ROUNDS]

import Synchronization
import VMFenceChannel
import VMFenceCore

#if canImport(Glibc)
import Glibc
#endif

let rounds = CommandLine.arguments.dropFirst().first.flatMap { Int($0) } ?? 2_000
let guestUUID = DomainUUID(high: 1, low: 1)
let page = try SharedPage.anonymous()
let isOver = Atomic(false)

/// The guest's thread: takes policies and answers.
func answer(_ prepared: GuestChannel) {
  var guest = prepared
  while !isOver.load(ordering: .relaxed) {
    for case .policy(let policy, _) in guest.step() {
      guest.acknowledge(PolicyAcknowledgement(version: policy.version, digest: policy.digest, status: .applied))
    }
    sched_yield()
  }
}

let prepared = GuestChannel(preparing: page, session: 1)
let thread = Task.detached(priority: .high) { answer(prepared) }
var host = try HostChannel(page, epoch: 1, at: SystemClock().now)
var version: UInt64 = 0

for measures in [1, 64, GuestPolicy.measureLimit] {
  var times: [Duration] = []
  var bytes = 0
  for _ in 0..<rounds {
    version += 1
    let policy = try GuestPolicy(
      domain: guestUUID, version: version, issued: SystemClock().now,
      measures: (0..<measures).map {
        .init(
          .block(IPNetwork(IPAddress(v4: 0x0A00_0000 + UInt32($0)))), expires: nil, decision: UInt64($0),
          comment: "sid 1:1000001")
      })
    bytes = policy.encoded.count
    let began = ContinuousClock.now
    host.offer(policy)
    var isAnswered = false
    while !isAnswered {
      // A guest may send so many messages a second; a round does not wait for that, so time goes faster for the budget.
      for event in host.step(at: SystemClock().now + .seconds(Int64(version))) {
        switch event {
        case .acknowledged(let answer): isAnswered = answer.version == version
        case .closed(let violation): fatalError("\(violation)")
        default: break
        }
      }
      sched_yield()
    }
    times.append(ContinuousClock.now - began)
  }
  times.sort()
  func percentile(_ share: Double) -> String {
    let time = times[min(times.count - 1, Int(Double(times.count) * share))] / .microseconds(1)
    return "\(time.rounded())"
  }
  print(
    "\(measures) measures, \(bytes) bytes: p50 \(percentile(0.5)), p99 \(percentile(0.99)), most \(percentile(1)) us, of \(times.count)"
  )
}
isOver.store(true, ordering: .relaxed)
await thread.value
