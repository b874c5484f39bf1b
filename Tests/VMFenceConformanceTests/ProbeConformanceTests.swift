import Testing
import VMFenceConformance
import VMFenceCore
import VMFenceTestKit

/// Drives the mock as an integrator would drive a host.
struct MockDriver: HypervisorDriver {
  let mock: MockHypervisor
  let capacity = 16

  init() { mock = MockHypervisor(clock: VirtualClock(), subscriberCapacity: capacity) }

  var probe: any HypervisorProbe { mock }
  var control: (any HypervisorControl)? { mock }

  func create(_ number: Int) async throws -> DomainDescription {
    let domain = DomainDescription.example(number)
    try mock.perform(.create(domain))
    return domain
  }

  func destroy(_ domain: Incarnation) async throws { try mock.perform(.destroy(domain)) }

  func bring(_ domain: Incarnation, to state: RunState) async throws -> Bool {
    let step: MockHypervisor.Step =
      switch state {
      case .running: .resume(domain)
      case .blocked: .block(domain)
      case .paused: .pause(domain)
      case .suspendedForMigration: .suspend(domain)
      case .shutDown: .shutDown(domain)
      case .crashed: .crash(domain)
      case .dying: .die(domain)
      }
    try mock.perform(step)
    return true
  }

  func overflow(_ domain: Incarnation) async throws -> Bool {
    for _ in 0..<capacity {
      try mock.perform(.pause(domain))
      try mock.perform(.resume(domain))
    }
    return true
  }

  func shutDownPlatform() async throws -> Bool {
    try mock.perform(.platformShutdown)
    return true
  }
}

extension DomainDescription {
  static func example(_ number: Int) -> DomainDescription {
    DomainDescription(
      incarnation: Incarnation(
        uuid: DomainUUID(high: 7, low: UInt64(number)), domainID: DomainID(UInt32(number) + 1)),
      name: "vm\(number)", tenant: TenantID("tenant"), serviceType: "http",
      ports: [NetworkPort(interface: "vif\(number + 1).0", mac: MACAddress(rawValue: UInt64(number)))],
      disks: [VirtualDisk(device: "xvda", source: "/dev/vg/vm\(number)")])
  }
}

/// Passes everything on, and breaks one requirement.
struct FaultyProbe: HypervisorProbe {
  enum Fault: CaseIterable {
    case repeatsSequence, hidesDomains, losesSilently, gapWithoutSnapshot, endsWithoutSaying
  }
  let mock: MockHypervisor
  let fault: Fault

  func snapshot() async throws(ProbeError) -> InventorySnapshot {
    var snapshot = try await mock.snapshot()
    if fault == .repeatsSequence { snapshot.sequence = 1 }
    if fault == .hidesDomains { snapshot.domains = Array(snapshot.domains.prefix(1)) }
    return snapshot
  }

  func changes() async -> AsyncStream<InventoryChange> {
    let changes = await mock.changes()
    let fault = fault
    return AsyncStream { continuation in
      Task {
        for await change in changes {
          switch (fault, change) {
          case (.losesSilently, .removed), (.gapWithoutSnapshot, .snapshot), (.endsWithoutSaying, .platformShutdown):
            break
          default: continuation.yield(change)
          }
        }
        continuation.finish()
      }
    }
  }
}

struct FaultyDriver: HypervisorDriver {
  let driver = MockDriver()
  let fault: FaultyProbe.Fault
  var probe: any HypervisorProbe { FaultyProbe(mock: driver.mock, fault: fault) }
  var control: (any HypervisorControl)? { nil }
  func create(_ number: Int) async throws -> DomainDescription { try await driver.create(number) }
  func destroy(_ domain: Incarnation) async throws { try await driver.destroy(domain) }
  func bring(_ domain: Incarnation, to state: RunState) async throws -> Bool {
    try await driver.bring(domain, to: state)
  }
  func overflow(_ domain: Incarnation) async throws -> Bool { try await driver.overflow(domain) }
  func shutDownPlatform() async throws -> Bool { try await driver.shutDownPlatform() }
}

@Suite("The conformance suite of probes")
struct ProbeConformanceTests {
  @Test("is passed by the mock hypervisor")
  func mock() async throws {
    try await HypervisorProbeConformance().check { MockDriver() }
  }

  @Test("is failed by a probe that breaks a requirement", arguments: FaultyProbe.Fault.allCases)
  func faulty(fault: FaultyProbe.Fault) async {
    await withKnownIssue {
      try await HypervisorProbeConformance(patience: .milliseconds(200)).check { FaultyDriver(fault: fault) }
    }
  }
}

@Suite("The mock hypervisor")
struct MockHypervisorTests {
  let clock = VirtualClock()
  let domain = DomainDescription.example(0)

  func collect(_ stream: AsyncStream<InventoryChange>, _ count: Int) async -> [InventoryChange] {
    var changes: [InventoryChange] = []
    for await change in stream {
      changes.append(change)
      if changes.count == count { break }
    }
    return changes
  }

  @Test("loses, doubles and delays notifications as it is told")
  func faults() async throws {
    let mock = MockHypervisor(clock: clock)
    let stream = await mock.changes()
    try mock.perform(.create(domain))
    mock.inject(.loseSilently)
    mock.inject(.double)
    mock.inject(.delay, next: 2)
    try mock.perform(.pause(domain.incarnation))
    let running = try mock.perform(.resume(domain.incarnation))
    let blocked = try mock.perform(.block(domain.incarnation))
    let awake = try mock.perform(.wake(domain.incarnation))
    let gone = try mock.perform(.destroy(domain.incarnation))
    mock.releaseDelayed(reversed: true)
    let changes = await collect(stream, 6)
    #expect(changes == [.changed(domain), running, running, gone, awake, blocked])
  }

  @Test("owns up to a loss with a gap and a snapshot")
  func gap() async throws {
    let mock = MockHypervisor(clock: clock)
    let stream = await mock.changes()
    clock.advance(by: .seconds(3))
    mock.inject(.lose)
    try mock.perform(.create(domain))
    let changes = await collect(stream, 2)
    #expect(
      changes == [
        .gap(count: 1, reason: "a notification was lost"),
        .snapshot(InventorySnapshot(time: Timestamp(seconds: 3), sequence: 1, domains: [domain])),
      ])
  }

  @Test("runs both ends of a migration to the same host")
  func migration() throws {
    let mock = MockHypervisor(clock: clock)
    var target = domain
    target.incarnation.domainID = DomainID(9)
    try mock.perform(.create(domain))
    #expect(throws: ProbeError.self) { try mock.perform(.create(target)) }
    try mock.perform(.migrateIn(target))
    try mock.perform(.migrateAway(domain.incarnation))
    let during = mock.takeSnapshot().domains
    #expect(during.map(\.migration) == [.migratedAway, .incoming])
    #expect(during.map(\.runState) == [.suspendedForMigration, .paused])
    try mock.perform(.completeMigration(target.incarnation))
    try mock.perform(.destroy(domain.incarnation))
    #expect(mock.takeSnapshot().domains == [target])
  }

  @Test("refuses what cannot be, and changes nothing")
  func impossible() throws {
    let mock = MockHypervisor(clock: clock)
    func code(_ step: MockHypervisor.Step) -> ProbeError.Code? {
      do throws(ProbeError) { try mock.perform(step) } catch { return error.code }
      return nil
    }
    #expect(code(.pause(domain.incarnation)) == .noSuchDomain)
    #expect(code(.create(domain)) == nil)
    #expect(code(.create(domain)) == .inconsistent)
    var dom0 = DomainDescription.example(5)
    dom0.incarnation.domainID = .dom0
    #expect(code(.create(dom0)) == .inconsistent)
    #expect(code(.crash(domain.incarnation)) == nil)
    #expect(code(.resume(domain.incarnation)) == .wrongState)
    #expect(code(.consume(domain.incarnation, .seconds(1))) == .wrongState)
    #expect(code(.die(domain.incarnation)) == nil)
    #expect(code(.destroy(domain.incarnation)) == nil)
    #expect(code(.destroy(domain.incarnation)) == .noSuchDomain)
    #expect(code(.platformShutdown) == nil)
    #expect(code(.create(domain)) == .unavailable)
  }

  @Test("counts CPU time without telling anybody")
  func cpuTime() async throws {
    let mock = MockHypervisor(clock: clock)
    try mock.perform(.create(domain))
    let stream = await mock.changes()
    #expect(try mock.perform(.consume(domain.incarnation, .seconds(2))) == nil)
    #expect(mock.takeSnapshot().domains[0].cpuTime == .seconds(2))
    mock.close()
    #expect(await collect(stream, 1).isEmpty)
  }

  @Test("fails as it is told, as a hypervisor whose interface is gone")
  func failures() async throws {
    let mock = MockHypervisor(clock: clock)
    mock.fail(next: 2, with: ProbeError(.unavailable, "no hypervisor", remedy: "start one"))
    await #expect(throws: ProbeError.self) { try await mock.snapshot() }
    await #expect(throws: ProbeError.self) { try await mock.pause(domain.incarnation) }
    _ = try await mock.snapshot()
  }

  @Test("ends a stream whose reader is cancelled")
  func cancellation() async {
    let mock = MockHypervisor(clock: clock)
    let stream = await mock.changes()
    let reader = Task { for await _ in stream {} }
    reader.cancel()
    await reader.value
  }
}
