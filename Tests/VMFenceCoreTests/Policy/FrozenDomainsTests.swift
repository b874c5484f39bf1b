import Synchronization
import Testing
import VMFenceCore
import VMFenceTestKit

@Suite("Frozen domains")
struct FrozenDomainsTests {
  private let hypervisor = MockHypervisor(clock: VirtualClock(.zero))
  private let events = RecordingEventSink()
  private let remembered = Remembered()
  private let web = Incarnation(uuid: DomainUUID(high: 0, low: 1), domainID: DomainID(1))
  private let other = Incarnation(uuid: DomainUUID(high: 0, low: 2), domainID: DomainID(2))
  private let held = FrozenDomains.State.holding(request: 7, paths: ["/boot/kernel"])

  private final class Remembered: Sendable {
    let domains = Mutex<[Set<Incarnation>]>([])
  }

  init() throws {
    for domain in [web, other] {
      try hypervisor.perform(.create(DomainDescription(incarnation: domain, name: "vm\(domain.domainID)")))
    }
  }

  private func frozen(_ paused: Set<Incarnation> = []) -> FrozenDomains {
    FrozenDomains(control: hypervisor, paused: paused, events: events) { [remembered] paused in
      remembered.domains.withLock { $0.append(paused) }
    }
  }

  private func disk(_ state: FrozenDomains.State, _ name: String = "web") -> FrozenDomains.Disk {
    .init(domain: web, name: name, state: state)
  }

  private func settle(_ frozen: FrozenDomains, _ disks: FrozenDomains.Disk...) async {
    await frozen.settle(hypervisor.takeSnapshot().domains, disks, at: .zero)
  }

  private func state(_ domain: Incarnation) -> RunState? {
    hypervisor.takeSnapshot().domains.first { $0.incarnation == domain }?.runState
  }

  private var told: [String] {
    events.events.compactMap { event in
      if case .platform(let alert) = event { alert.kind.name } else { nil }
    }
  }

  @Test func theDomainStandsStillUntilItsLastHeldRequestIsDecided() async {
    let frozen = frozen()
    await settle(frozen, disk(.passing), disk(.passing, "data"))
    #expect(state(web) == .running && told == [])
    await settle(frozen, disk(held), disk(.passing, "data"))
    #expect(state(web) == .paused && state(other) == .running && told == ["domain-frozen"])
    await settle(frozen, disk(held), disk(held, "data"))
    await settle(frozen, disk(.passing), disk(held, "data"))
    #expect(state(web) == .paused)
    // A process that cannot be asked decides nothing.
    await settle(frozen, disk(.passing), disk(.unknown, "data"))
    #expect(state(web) == .paused)
    await settle(frozen, disk(.passing), disk(.passing, "data"))
    #expect(state(web) == .running && told == ["domain-frozen", "domain-thawed"])
    #expect(remembered.domains.withLock { $0 } == [[web], []])
  }

  @Test func aDomainThatSomebodyElsePausedIsLeftAsItIs() async throws {
    let frozen = frozen()
    try hypervisor.perform(.pause(web))
    await settle(frozen, disk(held))
    await settle(frozen, disk(.passing))
    #expect(state(web) == .paused && told == [])
    // And one that somebody let run meanwhile is not paused for the same again.
    try hypervisor.perform(.resume(web))
    await settle(frozen, disk(held))
    try hypervisor.perform(.resume(web))
    await settle(frozen, disk(held))
    #expect(state(web) == .running)
    await settle(frozen, disk(.passing))
    #expect(state(web) == .running && told == ["domain-frozen", "domain-thawed"])
  }

  @Test func whatDoesNotWorkIsToldOnceAndTriedAgain() async {
    let frozen = frozen()
    hypervisor.fail(next: 2, with: ProbeError(.failed, "no"))
    for _ in 0..<2 { await settle(frozen, disk(held)) }
    #expect(state(web) == .running && told == ["enforcement-failed"])
    await settle(frozen, disk(held))
    #expect(state(web) == .paused)
    hypervisor.fail(next: 2, with: ProbeError(.failed, "no"))
    for _ in 0..<2 { await settle(frozen, disk(.passing)) }
    #expect(state(web) == .paused)
    await settle(frozen, disk(.passing))
    #expect(state(web) == .running)
    #expect(told == ["enforcement-failed", "domain-frozen", "enforcement-failed", "domain-thawed"])
  }

  @Test func aRestartLetsRunWhatWasPausedBefore() async throws {
    try hypervisor.perform(.pause(web))
    let frozen = frozen([web])
    await settle(frozen, disk(.unknown))
    await settle(frozen, disk(held))
    #expect(state(web) == .paused && told == [])
    await settle(frozen, disk(.passing))
    #expect(state(web) == .running)
    // Whoever is gone is forgotten.
    let gone = self.frozen([other])
    try hypervisor.perform(.destroy(other))
    await settle(gone)
    #expect(await gone.paused == [])
    #expect(remembered.domains.withLock { $0.last } == [])
  }
}
