#if Daemon
import Foundation
import Synchronization
import VMFenceChannel
import VMFenceCore
import VMFenceXen

/// The policy channels of this host's guests, in a thread of their own: what a guest does on its page keeps nobody else waiting. Safe to use from any thread.
final class GuestChannels: Sendable {
  /// How often pages are looked at for which nobody rings.
  private static let interval = Duration.milliseconds(100)
  /// How long the thread has to end.
  private static let endPatience = 2.0
  /// News that wait to be taken; more are lost, and the next says so.
  private static let newsLimit = 4096

  /// What the thread is to take over; only the last of each counts.
  private struct Wishes {
    var domains: [Incarnation]?
    var policies: [DomainUUID: GuestPolicy] = [:]
    var refusals: [DomainUUID: DeclarationRefusal] = [:]
    var isClosed = false
  }

  private struct Told {
    var statuses: [Incarnation: ChannelStatus] = [:]
    var news: [ChannelNews] = []
  }

  private let clock: SteadyClock
  private let wishes = Mutex(Wishes())
  private let told = Mutex(Told())
  private let wakeUp: WakeUp
  private let post: @Sendable () -> Void
  private let ended = DispatchSemaphore(value: 0)

  /// Begins to look.
  ///
  /// - `declarations`: what guests declared before.
  /// - `post`: called when there is news to be taken, once until it is.
  init(
    _ pages: some GuestPages, _ declarations: Declarations, clock: SteadyClock,
    post: @escaping @Sendable () -> Void
  ) throws(SystemFailure) {
    self.clock = clock
    self.post = post
    wakeUp = try WakeUp()
    let keeper = ChannelKeeper(pages, standing: declarations.byUUID, refusals: declarations.refusals) {
      UInt64.random(in: 1...UInt64.max)
    }
    let thread = Thread { [self] in run(keeper) }
    thread.name = "vmfence-channel"
    thread.start()
  }

  /// The guests that are there.
  func update(_ domains: [Incarnation]) {
    wishes.withLock { $0.domains = domains }
    wakeUp.ring()
  }

  /// Has a guest get a policy.
  func offer(_ policy: GuestPolicy) {
    wishes.withLock { $0.policies[policy.domain] = policy }
    wakeUp.ring()
  }

  /// Takes this of a guest no more, and takes back what stands of it.
  func refuse(_ refusal: DeclarationRefusal, of uuid: DomainUUID) {
    wishes.withLock { $0.refusals[uuid] = refusal }
    wakeUp.ring()
  }

  func takeNews() -> [ChannelNews] {
    told.withLock { told in
      defer { told.news = [] }
      return told.news
    }
  }

  var statuses: [Incarnation: ChannelStatus] { told.withLock { $0.statuses } }

  /// The guests that can be sent a policy.
  var openGuests: Set<DomainUUID> {
    told.withLock { told in Set(told.statuses.lazy.filter { $0.value.state == .open }.map(\.key.uuid)) }
  }

  /// Ends all sessions, and returns when no page is mapped any more, or a while later: what holds the thread up then is xenstored, and the kernel takes the
  /// pages with the process.
  func close() {
    wishes.withLock { $0.isClosed = true }
    wakeUp.ring()
    if ended.wait(timeout: .now() + Self.endPatience) == .success { ended.signal() }
  }

  private func run<Pages: GuestPages>(_ keeper: ChannelKeeper<Pages>) {
    var keeper = keeper
    var shown: [Incarnation: ChannelStatus] = [:]
    while true {
      let wishes = wishes.withLock { wishes in
        defer { (wishes.domains, wishes.policies, wishes.refusals) = (nil, [:], [:]) }
        return wishes
      }
      if wishes.isClosed { break }
      let now = clock.now
      if let domains = wishes.domains { keeper.update(domains, at: now) }
      for policy in wishes.policies.values { keeper.offer(policy) }
      for (uuid, refusal) in wishes.refusals { keeper.refuse(refusal, of: uuid) }
      let news = keeper.work(at: now, system: now + clock.offset)
      let statuses = keeper.statuses
      if statuses != shown || !news.isEmpty {
        shown = statuses
        let isFirst = told.withLock { told in
          let wasEmpty = told.news.isEmpty
          told.statuses = statuses
          told.news += news.prefix(Self.newsLimit - told.news.count)
          return wasEmpty && !told.news.isEmpty
        }
        if isFirst { post() }
      }
      wait(keeper, from: now)
    }
    keeper.close()
    told.withLock { $0.statuses = [:] }
    ended.signal()
  }

  private func wait<Pages: GuestPages>(_ keeper: ChannelKeeper<Pages>, from now: Timestamp) {
    var time = keeper.nextLook.map { $0 - now } ?? .seconds(3600)
    if keeper.mustLook { time = min(time, Self.interval) }
    var waiting = ([wakeUp.descriptor] + keeper.descriptors).map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
    // SAFETY: as many structures as are said.
    _ = unsafe poll(&waiting, nfds_t(waiting.count), Int32(clamping: max(1, time.wholeNanoseconds / 1_000_000)))
    wakeUp.drain()
  }
}
#endif
