import TestSupport
import Testing
import VMFenceConformance
import VMFenceCore
import VMFenceTestKit

@testable import VMFenceXen

/// Drives a host with Xen, for the suite that every probe must pass.
final class FakeXenDriver: HypervisorDriver {
  private static let capacity = 16
  let xen: FakeXen
  let xenProbe: XenProbe
  let xenControl: XenControl

  /// - `through`: what stands between the probe and the hypervisor.
  init(
    _ xen: FakeXen = FakeXen(), storePatience: Duration = .seconds(60),
    through: (FakeXen) throws -> any XenHypervisor = { $0 }
  ) throws {
    self.xen = xen
    let hypervisor = try through(xen)
    xenProbe = try XenProbe.open(
      clock: VirtualClock(),
      configuration: .init(
        pollInterval: .milliseconds(2), refreshInterval: .seconds(1), storePatience: storePatience,
        subscriberCapacity: Self.capacity),
      hypervisor: hypervisor, connect: { () throws(ProbeError) in try xen.connect() }, interfaceExists: { _ in false })
    xenControl = XenControl(
      hypervisor: hypervisor, connect: { () throws(ProbeError) in try xen.connect() }, patience: .milliseconds(200))
  }

  deinit { xenProbe.close() }

  var probe: any HypervisorProbe { xenProbe }
  var control: (any HypervisorControl)? { xenControl }

  func create(_ number: Int) async throws -> DomainDescription {
    let incarnation = Incarnation.test(UInt32(number) + 1)
    let domain = incarnation.domainID
    xen.put(XenDomain(incarnation))
    xen.set("/local/domain/\(domain)/name", "vm\(number)")
    xen.set("/vm/\(incarnation.uuid)/name", "vm\(number)")
    xen.addInterface(
      domain, device: 0, mac: "00:16:3e:00:00:0\(number + 1)", ["ip": "10.0.0.\(number + 1) fd00::\(number + 1)"])
    let disk = "/local/domain/0/backend/vbd/\(domain)/51712"
    for (key, value) in [("dev", "xvda"), ("params", "/dev/vg/vm\(number)"), ("mode", "r"), ("state", "4")] {
      xen.set("\(disk)/\(key)", value)
    }
    return DomainDescription(
      incarnation: incarnation, name: "vm\(number)",
      ports: [
        NetworkPort(
          interface: "vif\(domain).0", bridge: "xenbr0", mac: MACAddress("00:16:3e:00:00:0\(number + 1)")!,
          addresses: [IPAddress("10.0.0.\(number + 1)")!, IPAddress("fd00::\(number + 1)")!])
      ],
      disks: [
        VirtualDisk(device: "xvda", source: "/dev/vg/vm\(number)", isReadOnly: true, backend: "vbd", isConnected: true)
      ])
  }

  func destroy(_ domain: Incarnation) async throws { xen.remove(domain.domainID) }

  func bring(_ domain: Incarnation, to state: RunState) async throws -> Bool {
    xen.change(domain.domainID) { domain in
      domain.reason = .none
      switch state {
      case .running: domain.flags = .running
      case .blocked: domain.flags = .blocked
      case .paused: domain.flags = .paused
      case .suspendedForMigration: (domain.flags, domain.reason) = (.shutdown, .suspend)
      case .shutDown: (domain.flags, domain.reason) = (.shutdown, .reboot)
      case .crashed: (domain.flags, domain.reason) = (.shutdown, .crash)
      case .dying: domain.flags = .dying
      }
    }
    return true
  }

  func overflow(_ domain: Incarnation) async throws -> Bool {
    for state in Array(repeating: [RunState.paused, .running], count: Self.capacity).flatMap(\.self) {
      _ = try await bring(domain, to: state)
      _ = try await xenProbe.snapshot()
    }
    return true
  }

  func shutDownPlatform() async throws -> Bool {
    xenProbe.platformShutsDown()
    return true
  }
}

@Suite struct XenProbeTests {
  @Test func isAProbe() async throws {
    try await HypervisorProbeConformance(patience: .seconds(60)).check { try FakeXenDriver() }
  }

  @Test func failureOfTheHypervisorIsSaidAndMended() async throws {
    let driver = try FakeXenDriver()
    _ = try await driver.create(0)
    driver.xen.isHypervisorDown = true
    await #expect(throws: ProbeError.self) { try await driver.xenProbe.snapshot() }
    #expect(driver.xenProbe.problems.contains { $0.message.contains("list the domains") })
    driver.xen.isHypervisorDown = false
    #expect(try await driver.xenProbe.snapshot().domains.count == 1)
    #expect(driver.xenProbe.problems.isEmpty)
  }

  @Test func aXenstoredThatBeganAnewTakesNothingAway() async throws {
    let driver = try FakeXenDriver()
    let domain = try await driver.create(0)
    #expect(try await driver.xenProbe.snapshot().domains.map(\.ports) == [domain.ports])
    driver.xen.isStoreDown = true
    driver.xen.removeEntries(below: "/local/domain")
    _ = try? await driver.xenProbe.snapshot()
    driver.xen.isStoreDown = false
    // It is connected to within a second; then everything is read.
    #expect(
      await comesTrueSuspending { driver.xenProbe.problems.contains { $0.message.contains("nothing about it") } })
    let seen = try await driver.xenProbe.snapshot().domains
    #expect(seen.map(\.name) == [domain.name] && seen.map(\.ports) == [domain.ports])
    #expect(driver.xenProbe.problems.contains { $0.message.contains("nothing about it") })
  }

  @Test func aXenstoredThatSaysNothingKeepsNobodyWaiting() async throws {
    let driver = try FakeXenDriver(storePatience: .milliseconds(1))
    let (xen, probe) = (driver.xen, driver.xenProbe)
    let domain = try await driver.create(0)
    #expect(try await comesTrueSuspending { try await probe.snapshot().domains.map(\.name) == [domain.name] })
    let changes = await probe.changes()
    let gap = Task {
      for await change in changes { if case .gap(_, let reason) = change { return reason } }
      return ""
    }
    xen.isStoreSilent = true
    // The hypervisor's list goes on, and so does everything that is not xenstored's.
    _ = try await driver.bring(domain.incarnation, to: .paused)
    #expect(try await probe.snapshot().domains.map(\.runState) == [.paused])
    #expect(await comesTrueSuspending { probe.problems.contains { $0.message.contains("does not answer") } })
    #expect(await gap.value == "xenstored does not answer")
    xen.put(XenDomain(.test(7)))
    #expect(
      try await comesTrueSuspending { try await probe.snapshot().domains.map(\.name) == [domain.name, "domain-7"] })
    xen.isStoreSilent = false
    xen.set("/local/domain/7/name", "late")
    #expect(try await comesTrueSuspending { try await probe.snapshot().domains.map(\.name) == [domain.name, "late"] })
    // It is taken in a moment before the end of the round of questions, which is when xenstored counts as one that answers.
    #expect(await comesTrueSuspending { probe.problems.isEmpty })
  }

  @Test func whoMayNotWaitGetsWhatIsKnownHoweverSlowTheHypervisorAndXenstoredAre() async throws {
    let driver = try FakeXenDriver(storePatience: .milliseconds(250))
    let (xen, probe) = (driver.xen, driver.xenProbe)
    let domain = try await driver.create(0)
    #expect(try await comesTrueSuspending { try await probe.snapshot().domains.map(\.name) == [domain.name] })
    let changes = await probe.changes()
    let news = Task {
      // Told in a snapshot, too, to one who had no time to read what came before.
      for await change in changes {
        switch change {
        case .changed(let domain) where domain.runState == .paused: return true
        case .snapshot(let snapshot) where snapshot.domains.map(\.runState) == [.paused]: return true
        default: break
        }
      }
      return false
    }
    // Below what is taken for silence; and a guest's frontend has its backend write on and on.
    xen.delay = .milliseconds(100)
    let path = "/local/domain/0/backend/vif/\(domain.incarnation.domainID)/0/state"
    var slow = 0
    for turn in 0..<400 {
      xen.set(path, "\(turn % 6)")
      probe.lookSoon()
      let began = ContinuousClock.now
      #expect(try probe.latestSnapshot().domains.map(\.name) == [domain.name])
      if ContinuousClock.now - began >= .milliseconds(50) { slow += 1 }
    }
    // One that waited would have taken 100 ms each time. The machine may stand still now and then.
    #expect(slow < 200)
    _ = try await driver.bring(domain.incarnation, to: .paused)
    #expect(await news.value, "what is found later is told")
    #expect(try probe.latestSnapshot().domains.map(\.runState) == [.paused])
    xen.delay = .zero
    xen.isHypervisorDown = true
    #expect(await comesTrueSuspending { (try? probe.latestSnapshot()) == nil })
  }

  @Test func aHostWithoutXenIsToldSo() {
    do throws(ProbeError) {
      _ = try XenProbe.open(clock: VirtualClock())
      Issue.record("this host has Xen, and the test means one without")
    } catch {
      #expect(error.code == .unavailable)
      #expect(error.message.contains("no Xen"))
      #expect(!error.remedy.isEmpty)
    }
  }
}

@Suite struct XenControlTests {
  let xen = FakeXen()
  let domain = Incarnation.test(5)

  private func control(patience: Duration) -> XenControl {
    let xen = xen
    return XenControl(
      hypervisor: xen, connect: { () throws(ProbeError) in try xen.connect() }, patience: patience)
  }

  /// A domain as the toolstack makes one.
  private func create() {
    xen.put(XenDomain(domain))
    xen.set("/local/domain/\(domain.domainID)/name", "vm")
  }

  @Test func aDomainThatObeysShutsItselfDown() async throws {
    create()
    xen.obey(domain.domainID)
    try await control(patience: .seconds(60)).shutDown(domain)
    #expect(xen.entry("/local/domain/5/control/shutdown") == "poweroff")
    #expect(try xen.domain(domain.domainID)?.runState == .shutDown)
  }

  @Test func aDomainThatDoesNotIsStopped() async throws {
    create()
    try await control(patience: .milliseconds(100)).shutDown(domain)
    #expect(try xen.domain(domain.domainID)?.runState == .shutDown)
    // It is asked by a thread of its own, which may have its turn only now.
    #expect(await comesTrueSuspending { xen.entry("/local/domain/5/control/shutdown") == "poweroff" })
  }

  @Test func nothingIsWrittenForADomainWhoseEntriesAreGone() async throws {
    xen.put(XenDomain(domain))
    try await control(patience: .seconds(60)).shutDown(domain)
    #expect(xen.entry("/local/domain/5/control/shutdown") == nil)
    #expect(try xen.domain(domain.domainID)?.runState == .shutDown)
    #expect(try !xen.tell(domain.domainID, "vmfence/ring", "1") && xen.list("/local/domain/5").isEmpty)
  }

  @Test func aPausedDomainIsStoppedWithoutBeingAsked() async throws {
    xen.put(XenDomain(domain, flags: .paused))
    try await control(patience: .seconds(60)).shutDown(domain)
    #expect(xen.entry("/local/domain/5/control/shutdown") == nil)
    #expect(try xen.domain(domain.domainID)?.runState == .shutDown)
  }

  @Test func withoutXenstoreADomainIsStopped() async throws {
    xen.put(XenDomain(domain))
    xen.isStoreDown = true
    try await control(patience: .seconds(60)).shutDown(domain)
    #expect(try xen.domain(domain.domainID)?.runState == .shutDown)
  }

  @Test func aDomainIsStoppedWhenXenstoredSaysNothing() async throws {
    xen.put(XenDomain(domain))
    xen.isStoreSilent = true
    try await control(patience: .milliseconds(100)).shutDown(domain)
    #expect(try xen.domain(domain.domainID)?.runState == .shutDown)
    xen.isStoreSilent = false
  }

  @Test func nobodyElseIsHitWhenANumberIsGivenAgain() async throws {
    xen.put(XenDomain(.test(5, uuid: 77)))
    let control = control(patience: .milliseconds(100))
    for act in [control.pause, control.shutDown, control.destroy] {
      await #expect(throws: ProbeError.self) { try await act(domain) }
    }
    #expect(try xen.domain(domain.domainID) == XenDomain(.test(5, uuid: 77)))
  }

  @Test func whatIsNotPausedCannotBeResumed() async throws {
    xen.put(XenDomain(domain))
    do throws(ProbeError) {
      try await control(patience: .zero).resume(domain)
      Issue.record("it was resumed")
    } catch { #expect(error.code == .wrongState) }
  }

  @Test func destroyTakesItAway() async throws {
    xen.put(XenDomain(domain))
    try await control(patience: .zero).destroy(domain)
    #expect(try xen.domain(domain.domainID) == nil)
  }
}
