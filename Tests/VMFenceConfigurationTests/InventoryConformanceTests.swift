#if Daemon
import Foundation
import Testing
import VMFenceConfiguration
import VMFenceConformance
import VMFenceCore
import VMFenceTestKit

/// Drives an inventory as another program does that writes its file.
final class FileDriver: HypervisorDriver, @unchecked Sendable {
  let folder: URL
  let inventory: StaticInventory
  private var domains: [DomainDescription] = []
  private static let capacity = 16

  init() throws {
    folder = FileManager.default.temporaryDirectory.appending(path: "vmfence-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    let file = folder.appending(path: "inventory.yaml")
    try Self.text([]).write(to: file, atomically: true, encoding: .utf8)
    inventory = try StaticInventory.open(
      path: file.path, clock: VirtualClock(), subscriberCapacity: Self.capacity, pollInterval: .milliseconds(200))
  }

  deinit {
    inventory.close()
    try? FileManager.default.removeItem(at: folder)
  }

  var probe: any HypervisorProbe { inventory }
  var control: (any HypervisorControl)? { nil }

  func create(_ number: Int) async throws -> DomainDescription {
    let domain = DomainDescription(
      incarnation: Incarnation(uuid: DomainUUID(high: 7, low: UInt64(number)), domainID: DomainID(UInt32(number) + 1)),
      name: "vm\(number)", tenant: TenantID("tenant"), serviceType: "http",
      ports: [
        NetworkPort(
          interface: "vif\(number + 1).0", bridge: "br0", mac: MACAddress(rawValue: UInt64(number)),
          addresses: [IPAddress(v4: 0x0A00_0001 + UInt32(number)), IPAddress("fd00::\(number + 1)")!])
      ],
      disks: [VirtualDisk(device: "xvda", source: "/dev/vg/vm\(number)", isReadOnly: number == 1)])
    domains.append(domain)
    try write()
    return domain
  }

  func destroy(_ domain: Incarnation) async throws {
    domains.removeAll { $0.incarnation == domain }
    try write()
  }

  func bring(_ domain: Incarnation, to state: RunState) async throws -> Bool {
    guard let index = domains.firstIndex(where: { $0.incarnation == domain }) else { return false }
    domains[index].runState = state
    try write()
    return true
  }

  func overflow(_ domain: Incarnation) async throws -> Bool {
    for state in Array(repeating: [RunState.paused, .running], count: Self.capacity).flatMap(\.self) {
      _ = try await bring(domain, to: state)
      inventory.reload()
    }
    return true
  }

  func shutDownPlatform() async throws -> Bool { false }

  private func write() throws {
    try Self.text(domains).write(toFile: inventory.path, atomically: true, encoding: .utf8)
  }

  static func text(_ domains: [DomainDescription]) -> String {
    var text = "version: 1\ndomains:\(domains.isEmpty ? " []" : "")\n"
    for domain in domains {
      let port = domain.ports[0]
      let disk = domain.disks[0]
      let states: [RunState: String] = [
        .running: "running", .blocked: "blocked", .paused: "paused", .suspendedForMigration: "suspended",
        .shutDown: "shut-down", .crashed: "crashed", .dying: "dying",
      ]
      text += """
          - name: \(domain.name)
            uuid: \(domain.incarnation.uuid)
            domid: \(domain.incarnation.domainID)
            tenant: \(domain.tenant!)
            service: \(domain.serviceType!)
            state: \(states[domain.runState]!)
            ports:
              - {interface: \(port.interface), bridge: br0, mac: "\(port.mac)", addresses: [\(port.addresses.map { "\"\($0)\"" }.joined(separator: ", "))]}
            disks: [{device: xvda, source: \(disk.source), read-only: \(disk.isReadOnly)}]

        """
    }
    return text
  }
}

@Suite("The static inventory")
struct InventoryTests {
  @Test("is a HypervisorProbe: its conformance suite, over a real file")
  func conformance() async throws {
    // Its file is looked at by a thread: a busy machine may keep that waiting.
    try await HypervisorProbeConformance(patience: .seconds(60)).check { try FileDriver() }
  }

  @Test("a file that becomes wrong, or goes, leaves what was read, says why, and is taken again when it is right")
  func lastGood() async throws {
    let driver = try FileDriver()
    let domain = try await driver.create(0)
    let good = try String(contentsOfFile: driver.inventory.path, encoding: .utf8)
    #expect(try await driver.inventory.snapshot().domains == [domain])

    try good.replacingOccurrences(of: "domid: 1", with: "domid: one").write(
      toFile: driver.inventory.path, atomically: true, encoding: .utf8)
    #expect(try await driver.inventory.snapshot().domains == [domain])
    let problem = try #require(driver.inventory.problems.first)
    #expect(problem.place?.line == 5 && problem.message.contains("`one` is not a whole number from 1 to 32751"))

    try FileManager.default.removeItem(atPath: driver.inventory.path)
    #expect(try await driver.inventory.snapshot().domains == [domain])
    #expect(driver.inventory.problems.first?.message == "the inventory cannot be read: No such file or directory")

    try good.replacingOccurrences(of: "running", with: "paused").write(
      toFile: driver.inventory.path, atomically: true, encoding: .utf8)
    #expect(try await driver.inventory.snapshot().domains.first?.runState == .paused)
    #expect(driver.inventory.problems.isEmpty)
  }

  @Test(
    "what is wrong is said with its place",
    arguments: [
      ("version: 1", "version: 2", ":1:", "`2` is not 1"),
      ("domains:", "domain:", ":2:", "did you mean `domains`?"),
      ("uuid: 00000000", "uuid: 0000000", ":4:", "is not a UUID"),
      ("state: running", "state: runing", ":8:", "`runing` is not one of blocked, crashed"),
      ("fd00::1", "fd00::1::", ":10:", "is not an IP address"),
      ("interface: vif1.0", "interface: a/b", ":10:", "is not an interface's name"),
      ("00:00:00:00:00:00", "01:00:00:00:00:00", ":10:", "is a group address"),
      ("vif2.0", "vif1.0", ":12:", "two domains have the interface `vif1.0`"),
      ("00:00:00:00:00:01", "00:00:00:00:00:00", ":12:", "two domains have the MAC address"),
      ("domid: 2", "domid: 1", ":12:", "two domains have the domid 1"),
      ("name: vm1", "name: vm0", ":12:", "two domains have the name `vm0`"),
    ])
  func wrong(text: String, replacement: String, place: String, message: String) async throws {
    let driver = try FileDriver()
    _ = try await driver.create(0)
    _ = try await driver.create(1)
    #expect(driver.inventory.reload().isEmpty)
    let good = try String(contentsOfFile: driver.inventory.path, encoding: .utf8)
    let range = try #require(good.range(of: text))
    try good.replacingCharacters(in: range, with: replacement).write(
      toFile: driver.inventory.path, atomically: true, encoding: .utf8)
    let problems = driver.inventory.reload().map(\.description)
    #expect(problems.contains { $0.contains(place) && $0.contains(message) }, "\(problems)")
    #expect(try await driver.inventory.snapshot().domains.count == 2)
  }

  @Test("one VM may be here twice while it migrates, and not otherwise")
  func migration() throws {
    func read(_ role: String) throws -> [String] {
      let path = NSTemporaryDirectory() + "vmfence-inventory-\(UUID().uuidString).yaml"
      defer { try? FileManager.default.removeItem(atPath: path) }
      try """
      version: 1
      domains:
        - {name: a, uuid: 6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0001, domid: 1}
        - {name: a, uuid: 6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0001, domid: 2\(role)}
      """.write(toFile: path, atomically: true, encoding: .utf8)
      return StaticInventory.read(path: path).problems.map(\.message)
    }
    #expect(try read(", migration: incoming").isEmpty)
    #expect(try read("").count == 2)
  }

  @Test("a program that runs for long is told of a change without asking")
  func watched() async throws {
    let driver = try FileDriver()
    var changes = await driver.inventory.changes().makeAsyncIterator()
    let domain = try await driver.create(0)
    #expect(await changes.next() == .changed(domain))
    try await driver.destroy(domain.incarnation)
    #expect(await changes.next() == .removed(domain.incarnation))
  }
}
#endif
