package import VMFenceCore

/// What the toolstack wrote about a domain in xenstore: all of it below paths that only Dom0 writes.
package struct DomainDetails: Hashable, Sendable {
  package var name: String?
  package var migration = MigrationRole.none
  package var ports: [NetworkPort] = []
  package var disks: [VirtualDisk] = []
  package var problems: [Diagnostic] = []

  private static let nameLimit = 256
  private static let valueLimit = 1024
  /// More are not followed, and a problem says so.
  package static let portLimit = 64
  package static let diskLimit = 256
  /// The backends of disks whose entries have one form (docs/misc/xenstore-paths of Xen).
  package static let diskBackends = ["vbd", "qdisk"]

  /// Reads them.
  ///
  /// - `interfaceExists`: whether this host has a network interface of that name.
  package static func read(
    _ domain: XenDomain, from store: any XenStoreAccess, interfaceExists: (String) -> Bool
  ) throws(SystemFailure) -> DomainDetails {
    var reader = Reader(store: store, number: domain.incarnation.domainID)
    if let name = try reader.text("/local/domain/\(reader.number)/name", limit: nameLimit), !name.isEmpty {
      let (own, role) = XenStateTable.migrationRole(toolstackName: name)
      reader.details.name = own
      reader.details.migration = role
    }
    // Everything that is kept for a guest is kept by it.
    if domain.incarnation.uuid == DomainUUID(high: 0, low: 0) {
      reader.note(
        "it has no UUID: rules, bans, what it declared and what its detector remembers are one with those of every other domain without one",
        "give it a `uuid=` and start it anew")
    }
    try reader.readPorts(isHardwareVirtualised: domain.isHardwareVirtualised, interfaceExists)
    try reader.readDisks()
    return reader.details
  }

  fileprivate struct Reader {
    /// XenbusStateConnected of xen/include/public/io/xenbus.h.
    private static let connected = "4"

    let store: any XenStoreAccess
    let number: DomainID
    var details = DomainDetails()

    func text(_ path: String, limit: Int = DomainDetails.valueLimit) throws(SystemFailure) -> String? {
      guard let bytes = try store.read(path, limit: limit) else { return nil }
      return String(decoding: bytes, as: UTF8.self)
    }

    /// The devices of one kind, by rising numbers, with their paths.
    mutating func devices(_ kind: String, limit: Int) throws(SystemFailure) -> [(number: UInt32, path: String)] {
      let folder = "/local/domain/0/backend/\(kind)/\(number)"
      let numbers = try store.list(folder).compactMap { UInt32($0) }.sorted()
      if numbers.count > limit {
        note("it has \(numbers.count) devices of the kind \(kind), and \(limit) are followed", "give it fewer")
      }
      return numbers.prefix(limit).map { ($0, "\(folder)/\($0)") }
    }

    mutating func note(_ message: String, _ remedy: String) {
      details.problems.append(
        Diagnostic(.warning, "domain \(number): \(message.escapedForDisplay)", remedy: remedy))
    }

    mutating func readPorts(
      isHardwareVirtualised: Bool, _ interfaceExists: (String) -> Bool
    ) throws(SystemFailure) {
      for (device, path) in try devices("vif", limit: DomainDetails.portLimit) {
        guard let text = try text("\(path)/mac"), let mac = MACAddress(text), !mac.isMulticast else {
          note("vif \(device) has no MAC address that a guest can have: it is not captured", "give it a `mac=`")
          continue
        }
        let interface = try self.text("\(path)/vifname").flatMap { $0.isEmpty ? nil : $0 } ?? "vif\(number).\(device)"
        guard NetworkPort.isInterfaceName(interface) else {
          note("vif \(device) has a name that no interface can have", "mend its `vifname=`")
          continue
        }
        var bridge = try self.text("\(path)/bridge").flatMap { $0.isEmpty ? nil : $0 }
        if bridge == nil {
          note("vif \(device) is plugged into no bridge", "give it a `bridge=`")
        } else if bridge.map(NetworkPort.isInterfaceName) == false {
          note(
            "the bridge of vif \(device) has a name that none can have: it counts as plugged into any",
            "write the name alone into its `bridge=`")
          bridge = nil
        }
        let addresses = try addresses(path, device)
        // An emulated card, until the guest's driver takes over: another interface with the same address.
        let emulated = interface + "-emu"
        for name in [interface] + (isHardwareVirtualised && interfaceExists(emulated) ? [emulated] : []) {
          details.ports.append(NetworkPort(interface: name, bridge: bridge, mac: mac, addresses: addresses))
        }
      }
    }

    /// What the toolstack's `ip=` allows. All of it or nothing: who has half of a guest's addresses calls honest packets forged.
    private mutating func addresses(_ path: String, _ device: UInt32) throws(SystemFailure) -> [IPAddress] {
      let words = try text("\(path)/ip")?.split(separator: " ") ?? []
      let addresses = words.compactMap { IPAddress($0) }
      guard addresses.count == words.count else {
        note(
          "`ip=` of vif \(device) has what is no address: it may use any", "write addresses, with spaces between them")
        return []
      }
      return addresses
    }

    mutating func readDisks() throws(SystemFailure) {
      for backend in DomainDetails.diskBackends {
        for (device, path) in try devices(backend, limit: DomainDetails.diskLimit) {
          guard let name = try text("\(path)/dev"), let parameters = try text("\(path)/params") else { continue }
          let source = Self.withoutFormat(parameters)
          // An empty drive has none, though perhaps a format.
          if source.isEmpty { continue }
          let isReadOnly = try text("\(path)/mode").map { !$0.contains("w") } ?? true
          let state = try text("\(path)/state")
          if name.isEmpty { note("disk \(device) of the backend \(backend) has no name", "give it one") }
          details.disks.append(
            VirtualDisk(
              device: name, source: source, isReadOnly: isReadOnly, backend: backend,
              isConnected: state.map { $0 == Self.connected }))
        }
      }
    }

    /// QEMU's backend is told `FORMAT:PATH`.
    private static func withoutFormat(_ source: String) -> String {
      guard let colon = source.firstIndex(of: ":"), !source[..<colon].contains("/") else { return source }
      return String(source[source.index(after: colon)...])
    }
  }
}
