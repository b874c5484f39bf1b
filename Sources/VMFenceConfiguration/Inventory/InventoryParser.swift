#if Daemon
package import Foundation
package import VMFenceCore

/// Reads a static inventory: the domains of a host, as a person or another program wrote them down.
package struct InventoryParser {
  /// More domains are refused: the lifecycle follows as many.
  package static let domainLimit = 4096
  private static let states: [String: RunState] = [
    "running": .running, "blocked": .blocked, "paused": .paused, "suspended": .suspendedForMigration,
    "shut-down": .shutDown, "crashed": .crashed, "dying": .dying,
  ]
  private static let migrations: [String: MigrationRole] = ["incoming": .incoming, "migrated-away": .migratedAway]

  package let reader: YAMLReader

  package init(file: String) { reader = YAMLReader(file: file) }

  /// The domains in the order of the file; nil when something is wrong, which is in the reader's diagnostics.
  package func parse(_ data: Data) -> [DomainDescription]? {
    guard let root = reader.mapping(fromText: data) else { return nil }
    if root.integer("version", in: 1...1) == nil, !root.has("version") {
      reader.report(at: root.node, "version is missing", remedy: "begin the file with `version: 1`")
    }
    if !root.has("domains") {
      reader.report(at: root.node, "domains is missing", remedy: "write `domains: []` when there are none")
    }
    let domains = root.children("domains").compactMap { map in domain(map).map { ($0, reader.place(of: map.node)) } }
    root.finish()
    checkIdentities(domains)
    return reader.hasErrors ? nil : domains.map(\.0)
  }

  private func domain(_ map: YAMLMapping) -> DomainDescription? {
    let name = map.requiredString("name", example: "web")
    let uuid = map.requiredValue(
      "uuid", example: "5b1c9a52-0d7e-4a3c-9a86-2f7b3f6f0a01", expected: "a UUID", { DomainUUID($0) })
    let number = map.integer("domid", in: 1...0x7FEF)
    if !map.has("domid") {
      reader.report(at: map.node, "\(map.path).domid is missing", remedy: "for example `domid: 1`")
    }
    let state = map.value(
      "state", expected: "one of \(Self.states.keys.sorted().joined(separator: ", "))", { Self.states[$0] })
    let migration = map.value(
      "migration", expected: "one of \(Self.migrations.keys.sorted().joined(separator: ", "))", { Self.migrations[$0] })
    let ports = map.children("ports").compactMap { $0.networkPort() }
    let disks = map.children("disks").compactMap(disk)
    let tenant = map.label("tenant").map(TenantID.init)
    let service = map.label("service")
    map.finish()
    if name?.isEmpty == true { reader.report(at: map.node, "\(map.path).name is empty") }
    guard let name, let uuid, let number else { return nil }
    return DomainDescription(
      incarnation: Incarnation(uuid: uuid, domainID: DomainID(UInt32(number))), name: name, tenant: tenant,
      serviceType: service, ports: ports, disks: disks, runState: state ?? .running, migration: migration ?? .none)
  }

  private func disk(_ map: YAMLMapping) -> VirtualDisk? {
    let device = map.requiredString("device", example: "xvda")
    let source = map.requiredString("source", example: "/dev/vg/web")
    let isReadOnly = map.bool("read-only") ?? false
    map.finish()
    guard let device, let source else { return nil }
    return VirtualDisk(device: device, source: source, isReadOnly: isReadOnly)
  }

  /// No two domains share a number, an interface or a MAC address; a name or UUID only as the two ends of a migration.
  private func checkIdentities(_ domains: [(DomainDescription, SourcePlace)]) {
    if domains.count > Self.domainLimit {
      reader.report(at: nil, "\(domains.count) domains, and at most \(Self.domainLimit) are followed")
    }
    var seen: [String: (DomainDescription, SourcePlace)] = [:]
    func check(_ what: String, _ domain: DomainDescription, _ place: SourcePlace, mayMigrate: Bool = false) {
      guard let (other, there) = seen.updateValue((domain, place), forKey: what) else { return }
      // A port of an emulated card and its paravirtual twin share their address.
      if mayMigrate, other.incarnation == domain.incarnation { return }
      let isMigration =
        mayMigrate && other.incarnation.uuid == domain.incarnation.uuid
        && (domain.migration != .none || other.migration != .none)
      if isMigration { return }
      reader.report(
        Diagnostic(
          at: place, "two domains have the \(what.escapedForDisplay) (the other: \(there))",
          remedy: mayMigrate
            ? "if one VM is here twice, give one of the two `migration: incoming`" : "give each its own"
        ))
    }
    for (domain, place) in domains {
      check("name `\(domain.name)`", domain, place, mayMigrate: true)
      check("UUID \(domain.incarnation.uuid)", domain, place, mayMigrate: true)
      check("domid \(domain.incarnation.domainID)", domain, place)
      for port in domain.ports {
        check("interface `\(port.interface)`", domain, place)
        check("MAC address \(port.mac)", domain, place, mayMigrate: true)
      }
    }
  }
}

extension YAMLMapping {
  package static var interfaceName: String { "an interface's name (1 to 15 characters, no slash, colon or space)" }

  /// The name of a network interface, as Linux has them; nil when there can be none of that name.
  package static func interface(_ text: String) -> String? {
    let isPossible =
      (1...15).contains(text.utf8.count) && text != "." && text != ".."
      && !text.contains { $0 == "/" || $0 == ":" || $0.isWhitespace }
    return isPossible ? text : nil
  }

  /// Reads a port of a domain, as inventories and scenarios have it.
  package func networkPort() -> NetworkPort? {
    let interface = requiredValue(
      "interface", example: "vif1.0", expected: Self.interfaceName, Self.interface)
    let mac = requiredValue(
      "mac", example: "00:16:3e:00:00:01", expected: "a MAC address", { MACAddress($0) })
    let addresses = values("addresses", expected: "an IP address") { IPAddress($0) }
    let bridge = string("bridge")
    finish()
    guard let interface, let mac else { return nil }
    if mac.isMulticast { reader.report(at: node, "\(path).mac is a group address, not a guest's") }
    return NetworkPort(interface: interface, bridge: bridge, mac: mac, addresses: addresses)
  }
}
#endif
