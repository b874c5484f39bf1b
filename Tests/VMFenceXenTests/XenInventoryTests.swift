import Testing
import VMFenceCore

@testable import VMFenceXen

/// Looks at a scripted host, one after the other.
@Suite struct XenInventoryTests {
  let xen = FakeXen()

  /// A host's domains, looked at as the probe does with its two threads, one step after the other.
  struct Looker {
    let xen: FakeXen
    var inventory: XenInventory
    var follower: XenStoreFollower

    mutating func look(at now: Duration) throws(SystemFailure) -> XenInventory.News {
      let hints = follower.takeHints(at: now)
      inventory.look(at: now, finding: try xen.domains(), after: hints)
      inventory.note(follower.state)
      inventory.take(follower.read(inventory.due), at: now)
      inventory.note(follower.state)
      return inventory.takeNews()
    }

    /// Whether the hints that have come need no look.
    mutating func takesHintsAlone() -> Bool { inventory.take(follower.takeHints(at: .seconds(1))) }

    var domains: [DomainDescription] { inventory.domains }
    var problems: [Diagnostic] { inventory.problems }
  }

  private func inventory(
    refreshInterval: Duration = .seconds(1000), interfaces: Set<String> = []
  ) -> Looker {
    let xen = xen
    return Looker(
      xen: xen, inventory: XenInventory(refreshInterval: refreshInterval),
      follower: XenStoreFollower(
        connect: { () throws(ProbeError) in try xen.connect() }, interfaceExists: { interfaces.contains($0) }))
  }

  private func create(_ number: UInt32, name: String? = nil) {
    xen.put(XenDomain(.test(number)))
    xen.set("/local/domain/\(number)/name", name ?? "vm\(number)")
    xen.addInterface(DomainID(number), device: 0, mac: "00:16:3e:00:00:01")
  }

  @Test func watchesOnlyWhatDom0Writes() throws {
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    #expect(
      xen.watches == [
        "@introduceDomain", "@releaseDomain", "/vm", "/local/domain/0/backend/vif", "/local/domain/0/backend/vbd",
        "/local/domain/0/backend/qdisk",
      ])
  }

  @Test func plugsAreFollowedByHints() throws {
    create(1)
    var inventory = inventory()
    #expect(try inventory.look(at: .zero).changes.count == 1)
    xen.addInterface(DomainID(1), device: 1, mac: "00:16:3e:00:00:02", ["vifname": "web0"])
    let news = try inventory.look(at: .seconds(1))
    #expect(news.changes.count == 1)
    #expect(inventory.domains[0].ports.map(\.interface) == ["vif1.0", "web0"])
    xen.removeEntries(below: "/local/domain/0/backend/vif/1/0")
    _ = try inventory.look(at: .seconds(2))
    #expect(inventory.domains[0].ports.map(\.interface) == ["web0"])
    #expect(try inventory.look(at: .seconds(3)).changes.isEmpty)
  }

  @Test func aLostHintIsMadeUpFor() throws {
    create(1)
    var inventory = inventory(refreshInterval: .seconds(10))
    _ = try inventory.look(at: .zero)
    xen.losesHints = true
    xen.set("/local/domain/1/name", "renamed")
    #expect(try inventory.look(at: .seconds(1)).changes.isEmpty)
    let news = try inventory.look(at: .seconds(12))
    #expect(news.changes.count == 1)
    #expect(inventory.domains.map(\.name) == ["renamed"])
  }

  @Test func renamesAreSeenByTheHintOfTheUUID() throws {
    create(1)
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    xen.set("/local/domain/1/name", "renamed")
    xen.set("/vm/\(Incarnation.test(1).uuid)/name", "renamed")
    _ = try inventory.look(at: .seconds(1))
    #expect(inventory.domains.map(\.name) == ["renamed"])
  }

  @Test func onlyHintsOfDomainsThatComeOrGoNeedALook() throws {
    create(1)
    create(2)
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    xen.set("/vm/\(Incarnation.test(2).uuid)/name", "renamed")
    let (rename, nothing) = (inventory.takesHintsAlone(), inventory.takesHintsAlone())
    #expect(rename && nothing)
    #expect(inventory.inventory.due.map(\.incarnation) == [.test(2)])
    // Each of these may be the first or the last that is heard of a domain.
    let paths = ["@releaseDomain", "/vm/\(Incarnation.test(3).uuid)/name", "/local/domain/0/backend/vif/1/0/state"]
    for path in paths {
      xen.set("/vm/\(Incarnation.test(1).uuid)/name", "renamed")
      xen.set(path, "")
      let others = inventory.takesHintsAlone()
      #expect(!others, "\(path)")
    }
  }

  @Test func aDomainIsToldOfWhenItHasItsName() throws {
    xen.put(XenDomain(.test(1)))
    var inventory = inventory()
    #expect(try inventory.look(at: .zero) == .init())
    #expect(inventory.domains.isEmpty)
    // Nothing that is watched changes.
    xen.set("/local/domain/1/name", "late")
    #expect(try inventory.look(at: .milliseconds(50)).changes.count == 1)
    #expect(inventory.domains.map(\.name) == ["late"])
  }

  @Test func aDomainThatNobodyNamesGoesByItsNumber() throws {
    xen.put(XenDomain(.test(1)))
    xen.put(XenDomain(.test(2)))
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    xen.remove(DomainID(2))
    #expect(try inventory.look(at: .seconds(1)).gaps == ["domain 2 came and went before it had a name"])
    #expect(try inventory.look(at: XenInventory.namePatience).changes.count == 1)
    #expect(inventory.domains.map(\.name) == ["domain-1"])
    xen.set("/local/domain/1/name", "late")
    _ = try inventory.look(at: .seconds(4))
    #expect(inventory.domains.map(\.name) == ["late"])
  }

  @Test func whatHasNotRunYetIsWaitedForLonger() throws {
    create(3, name: "web")
    // The toolstack of a busy host creates what is to take the first one's place, and names it a while later.
    let target = Incarnation(uuid: Incarnation.test(3).uuid, domainID: DomainID(4))
    xen.put(XenDomain(target, flags: .paused))
    xen.put(XenDomain(.test(5), flags: .paused))
    xen.put(XenDomain(.test(6), flags: .paused, cpuTime: .milliseconds(1)))
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    _ = try inventory.look(at: XenInventory.namePatience)
    #expect(inventory.domains.map(\.name) == ["web", "domain-6"])
    xen.set("/local/domain/4/name", "web--incoming")
    _ = try inventory.look(at: .seconds(50))
    #expect(inventory.domains.map(\.name) == ["web", "web", "domain-6"])
    #expect(inventory.domains.map(\.migration) == [.none, .incoming, .none])
    // Once it runs, it is not waited for any more.
    xen.change(DomainID(5)) { $0.flags = .running }
    _ = try inventory.look(at: .seconds(51))
    #expect(inventory.domains.map(\.name) == ["web", "web", "domain-5", "domain-6"])
    // And not for ever.
    xen.put(XenDomain(.test(7), flags: .paused))
    _ = try inventory.look(at: .seconds(52))
    _ = try inventory.look(at: .seconds(52) + XenInventory.constructionPatience)
    #expect(inventory.domains.last?.name == "domain-7")
  }

  @Test func whatLivesShorterThanALookIsOwnedUpTo() throws {
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    create(7)
    xen.remove(DomainID(7))
    let news = try inventory.look(at: .seconds(1))
    #expect(news.gaps == ["domain 7 came and went between two looks"])
    #expect(try inventory.look(at: .seconds(2)).gaps.isEmpty)
  }

  @Test(arguments: [true, false])
  func aShortLifeUnderANumberThatSomebodyHadBeforeIsOwnedUpTo(wasSeen: Bool) throws {
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    create(7)
    if wasSeen { _ = try inventory.look(at: .milliseconds(500)) }
    xen.remove(DomainID(7))
    let gone = Duration.seconds(1)
    _ = try inventory.look(at: gone)
    // Its devices go.
    xen.set("/local/domain/0/backend/vif/7/0/state", "6")
    #expect(try inventory.look(at: gone + .seconds(10)).gaps.isEmpty)
    create(7)
    xen.remove(DomainID(7))
    let news = try inventory.look(at: gone + XenInventory.goneTime)
    #expect(news.gaps == ["domain 7 came and went between two looks"])
    #expect(try inventory.look(at: gone + XenInventory.goneTime + .seconds(1)).gaps.isEmpty)
  }

  @Test func theEndOfKnownDevicesIsNoGap() throws {
    create(7)
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    xen.remove(DomainID(7))
    let news = try inventory.look(at: .seconds(1))
    #expect(news == .init(changes: [.removed(.test(7))]))
    // The toolstack takes the devices away after the domain.
    xen.set("/local/domain/0/backend/vif/7/0/state", "6")
    #expect(try inventory.look(at: .seconds(2)) == .init())
  }

  @Test func aNumberThatIsGivenAgainIsAnotherIncarnation() throws {
    create(3)
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    xen.put(XenDomain(.test(3, uuid: 99)))
    xen.set("/local/domain/3/name", "other")
    let news = try inventory.look(at: .seconds(1))
    #expect(news.changes.first == .removed(.test(3)))
    #expect(inventory.domains.map(\.incarnation) == [.test(3, uuid: 99)])
    #expect(inventory.domains.map(\.name) == ["other"])
  }

  @Test func bothEndsOfAMigrationAreListed() throws {
    xen.put(XenDomain(.test(3, uuid: 1), flags: .shutdown, reason: .suspend))
    xen.set("/local/domain/3/name", "web--migratedaway")
    xen.put(XenDomain(.test(4, uuid: 1), flags: .paused))
    xen.set("/local/domain/4/name", "web--incoming")
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    #expect(inventory.domains.map(\.name) == ["web", "web"])
    #expect(inventory.domains.map(\.migration) == [.migratedAway, .incoming])
    #expect(inventory.domains.map(\.runState) == [.suspendedForMigration, .paused])
  }

  @Test func xenstoredMayRestart() throws {
    create(1)
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    xen.isStoreDown = true
    xen.put(XenDomain(.test(2)))
    // The hypervisor's list goes on.
    let gaps = try inventory.look(at: .seconds(1)).gaps
    #expect(gaps.count == 1 && gaps[0].contains("the connection to xenstored was lost ("))
    _ = try inventory.look(at: .seconds(2))
    #expect(inventory.domains.map(\.name) == ["vm1", "domain-2"])
    #expect(!inventory.problems.isEmpty)
    _ = try inventory.look(at: .seconds(3))
    xen.isStoreDown = false
    xen.set("/local/domain/2/name", "vm2")
    let news = try inventory.look(at: .seconds(5))
    #expect(news.gaps == ["the connection to xenstored was lost, and made anew"])
    #expect(inventory.domains.map(\.name) == ["vm1", "vm2"])
    #expect(inventory.problems.isEmpty)
    #expect(xen.watches.count == XenStoreFollower.watchedPaths.count)
  }

  // MARK: Run states

  @Test func idlingIsNotNews() throws {
    create(1)
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    // Caught blocked, but it ran in between: neither is told.
    for step in 1...20 {
      xen.change(DomainID(1)) {
        $0.flags = step % 2 == 0 ? .running : .blocked
        $0.cpuTime += .milliseconds(1)
      }
      #expect(try inventory.look(at: .milliseconds(50 * step)).changes.isEmpty)
    }
    xen.change(DomainID(1)) { $0.flags = .blocked }
    _ = try inventory.look(at: .seconds(2))
    let news = try inventory.look(at: .seconds(3))
    #expect(news.changes.map(\.runState) == [.blocked])
    xen.change(DomainID(1)) {
      $0.flags = .running
      $0.cpuTime += .milliseconds(1)
    }
    #expect(try inventory.look(at: .seconds(4)).changes.map(\.runState) == [.running])
  }

  @Test func pausesAndEndsAreNewsAtOnce() throws {
    create(1)
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    let steps: [(XenStateTable.Flags, XenStateTable.ShutdownReason, RunState)] = [
      (.paused, .none, .paused), (.blocked, .none, .blocked), (.paused, .none, .paused), (.running, .none, .running),
      (.shutdown, .suspend, .suspendedForMigration), (.running, .none, .running), (.shutdown, .crash, .crashed),
      (.dying, .none, .dying),
    ]
    for (index, step) in steps.enumerated() {
      xen.change(DomainID(1)) { ($0.flags, $0.reason) = (step.0, step.1) }
      #expect(try inventory.look(at: .seconds(index + 1)).changes.map(\.runState) == [step.2])
    }
  }

  @Test func devicesAreKeptWhileADomainIsTakenDown() throws {
    create(1)
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    xen.change(DomainID(1)) { $0.flags = .dying }
    xen.removeEntries(below: "/local/domain/0/backend/vif/1")
    _ = try inventory.look(at: .seconds(1))
    #expect(inventory.domains[0].ports.count == 1)
  }

  // MARK: What is written about a domain

  @Test func anEmulatedCardIsAnotherPort() throws {
    xen.put(XenDomain(.test(4), isHardwareVirtualised: true))
    xen.set("/local/domain/4/name", "vm4")
    xen.addInterface(DomainID(4), device: 0, mac: "00:16:3e:00:00:01")
    xen.addInterface(DomainID(4), device: 1, mac: "00:16:3e:00:00:02", ["vifname": "lan"])
    // As Xen's script takes it.
    xen.addInterface(DomainID(4), device: 2, mac: "00:16:3e:00:00:03", ["vifname": ""])
    var inventory = inventory(interfaces: ["vif4.0-emu", "lan-emu"])
    _ = try inventory.look(at: .zero)
    #expect(inventory.domains[0].ports.map(\.interface) == ["vif4.0", "vif4.0-emu", "lan", "lan-emu", "vif4.2"])
  }

  @Test func disksOfBothBackendsAreListed() throws {
    create(1)
    let entries = [
      "vbd/1/51712/dev": "xvda", "vbd/1/51712/params": "/dev/loop0", "vbd/1/51712/mode": "w", "vbd/1/51712/state": "4",
      "qdisk/1/51728/dev": "xvdb", "qdisk/1/51728/params": "aio:/var/a:b.img", "qdisk/1/51728/mode": "r",
      "qdisk/1/51728/state": "2",
      // Empty drives.
      "qdisk/1/51744/dev": "xvdc", "qdisk/1/51744/params": "", "qdisk/1/51760/dev": "xvdd",
      "qdisk/1/51760/params": "aio:",
    ]
    for (path, value) in entries { xen.set("/local/domain/0/backend/\(path)", value) }
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    #expect(
      inventory.domains[0].disks == [
        VirtualDisk(device: "xvda", source: "/dev/loop0", backend: "vbd", isConnected: true),
        VirtualDisk(device: "xvdb", source: "/var/a:b.img", isReadOnly: true, backend: "qdisk", isConnected: false),
      ])
  }

  @Test(arguments: [
    (["mac": "nonsense"], "has no MAC address"), (["mac": "01:00:00:00:00:01"], "has no MAC address"),
    (["vifname": "a/b"], "has a name that no interface can have"),
    (["vifname": "a name of more than fifteen bytes"], "has a name that no interface can have"),
    (["vifname": "web:0"], "has a name that no interface can have"),
    (["vifname": "web\u{1B}[2J"], "has a name that no interface can have"),
    (["vifname": "xenbr0\0a"], "has a name that no interface can have"),
    (["bridge": "xen/br"], "has a name that none can have: it counts as plugged into any"),
    (["bridge": ""], "is plugged into no bridge"), (["ip": "10.0.0.0/24"], "has what is no address"),
  ])
  func mistakesOfTheOperatorAreSaid(_ entries: [String: String], _ message: String) throws {
    xen.put(XenDomain(.test(1)))
    xen.set("/local/domain/1/name", "vm1")
    xen.addInterface(DomainID(1), device: 0, mac: "00:16:3e:00:00:01", entries)
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    #expect(inventory.problems.count == 1)
    #expect(inventory.problems.first?.message.contains(message) == true)
    #expect(inventory.domains[0].ports.allSatisfy { $0.addresses.isEmpty && $0.bridge.map { $0 == "xenbr0" } ?? true })
  }

  @Test func tooManyDevicesAreNotFollowed() throws {
    xen.put(XenDomain(.test(1)))
    xen.set("/local/domain/1/name", "vm1")
    for device in 0...DomainDetails.portLimit {
      xen.addInterface(DomainID(1), device: device, mac: "00:16:3e:00:00:01")
    }
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    #expect(inventory.domains[0].ports.count == DomainDetails.portLimit)
    #expect(inventory.problems.first?.message.contains("65 devices") == true)
  }

  @Test func ofManyDomainsOnlyThoseThatChangedAreAskedAbout() throws {
    for number in 1...200 { create(UInt32(number)) }
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    let all = xen.questions
    _ = try inventory.look(at: .milliseconds(50))
    #expect(xen.questions == all, "nothing happened")
    for number: UInt32 in [3, 100, 200] {
      xen.set("/local/domain/0/backend/vif/\(number)/0/ip", "192.0.2.1")
      xen.set("/local/domain/0/backend/vif/\(number)/0/state", "5")
    }
    let news = try inventory.look(at: .milliseconds(100))
    #expect(news.changes.count == 3)
    #expect(xen.questions - all == 3 * all / 200, "three of two hundred, each once")
  }

  @Test func aStormOfHintsMakesEverythingStale() throws {
    create(1)
    create(2)
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    for number in 0..<5000 { xen.set("/local/domain/0/backend/vif/1/0/x\(number)", "") }
    xen.set("/local/domain/0/backend/vif/2/0/bridge", "other")
    _ = try inventory.look(at: .seconds(1))
    #expect(inventory.domains[1].ports.map(\.bridge) == ["other"])
  }

  @Test func aDomainWithoutUUIDIsListed() throws {
    let nameless = Incarnation(uuid: DomainUUID(high: 0, low: 0), domainID: DomainID(8))
    xen.put(XenDomain(nameless))
    xen.set("/local/domain/8/name", "vm8")
    var inventory = inventory()
    _ = try inventory.look(at: .zero)
    #expect(inventory.domains.map(\.incarnation) == [nameless])
  }
}

extension InventoryChange {
  fileprivate var runState: RunState? {
    if case .changed(let domain) = self { domain.runState } else { nil }
  }
}
