#if Daemon
import Foundation
import VMFenceConfiguration
import VMFenceCore
import VMFenceNftables

/// Reads a host's configuration. Everything that is wrong is in the reader's diagnostics; nil when something is.
struct HostConfigurationParser {
  let reader: YAMLReader
  private let sections: SharedSections

  init(file: String) {
    reader = YAMLReader(file: file)
    sections = SharedSections(reader: reader)
  }

  func parse() -> HostConfiguration? {
    guard let root = reader.loadMapping() else { return nil }
    if root.integer("version", in: 1...1) == nil, !root.has("version") {
      reader.report(at: root.node, "version is missing", remedy: "begin the file with `version: 1`")
    }
    if root.has("domains") {
      reader.report(
        at: root.raw("domains"), "domains stand in a file of their own, which is watched",
        remedy: "move them to a file and name it: `inventory: inventory.yaml`")
    }
    let domains = domains(root)
    let inspection = sections.inspection(root)
    var configuration = HostConfiguration(
      file: reader.file, node: root.string("node") ?? ProcessInfo.processInfo.hostName,
      usesProcesses: sections.usesProcesses(root), domains: domains,
      guests: guests(root, domains),
      rules: sections.rules(root), captures: root.children("captures").compactMap(capture),
      policy: sections.policy(root), firewall: firewall(root.child("firewall")),
      control: control(root.child("control")), disks: root.children("disks").compactMap(disk),
      inspector: inspection.inspector, packetNotes: inspection.notes,
      lifecycle: sections.lifecycle(root),
      stateDirectory: root.string("state-directory").map(sections.resolve),
      controlSocket: root.value("control-socket", expected: SharedSections.socketPath, sections.resolveSocket),
      notifications: NotificationsSection(reader: reader, sections: sections).read(root),
      metrics: metrics(root.child("metrics")),
      statisticsInterval: root.duration("statistics-every", atLeast: .milliseconds(100)) ?? .seconds(10),
      answerTimeout: root.duration("answer-timeout", atLeast: .milliseconds(100)) ?? .seconds(10))
    root.finish()
    check(configuration.captures)
    if configuration.inspector.isInline {
      reader.report(
        at: root.child("inspection")?.raw("inline"),
        "inspection.inline: `run` captures beside the path and cannot hold a packet",
        remedy: "leave it out: flows of rules that drop or reject are cut from the next packet on")
    }
    // One guest's own files are that guest's business: see RuleSelection.
    for file in configuration.rules.sharedFiles {
      guard let problem = WholeFile.problem(file.path) else { continue }
      reader.report(
        Diagnostic(
          at: file.place, "the file `\(file.path.escapedForDisplay)` cannot be read: \(problem.reason)",
          remedy: "paths are relative to the folder of this file"))
    }
    guard !reader.hasErrors else { return nil }
    configuration.namedPaths = namedPaths(root, configuration)
    if let exceptions = root.child("firewall")?.child("anti-spoofing-exceptions") {
      for (name, _) in exceptions.entries {
        configuration.spoofingExceptionPlaces[name] = reader.place(of: exceptions.keyNode(name))
      }
    }
    return configuration
  }

  /// Of a configuration without mistakes.
  private func namedPaths(_ root: YAMLMapping, _ configuration: HostConfiguration) -> [NamedPath] {
    var paths: [NamedPath] = []
    func add(_ use: NamedPath.Use, _ path: String?, _ map: YAMLMapping?, _ key: String) {
      guard let path, let map else { return }
      paths.append(NamedPath(use: use, path: path, key: map.name(key), place: reader.place(of: map.raw(key))))
    }
    add(.folder, configuration.stateDirectory, root, "state-directory")
    add(.socket, configuration.controlSocket, root, "control-socket")
    for act in CommandControl.Act.allCases {
      add(.program, configuration.control[act]?.first, root.child("control"), act.rawValue)
    }
    for (disk, map) in zip(configuration.disks, root.children("disks")) {
      add(.othersSocket, disk.control, map, "control")
    }
    for (place, map) in zip(configuration.notifications, root.children("notifications")) {
      switch place.kind {
      case .eveFile(let path): add(.file, path, map, "eve-file")
      case .fastFile(let path): add(.file, path, map, "fast-file")
      case .eveSocket(let path, _): add(.othersSocket, path, map, "eve-socket")
      case .syslog(.local(let path), _, _): add(.othersSocket, path, map, "syslog")
      case .syslog, .webhook: break
      }
    }
    return paths
  }

  private func domains(_ root: YAMLMapping) -> HostConfiguration.Domains {
    let inventory = root.string("inventory")
    let hypervisor = root.value("hypervisor", expected: "xen", { $0 == "xen" ? $0 : nil })
    if root.has("inventory") == root.has("hypervisor") {
      reader.report(
        at: root.node, "it must say where the domains come from: either inventory or hypervisor",
        remedy: "`hypervisor: xen` in Dom0, `inventory: inventory.yaml` for a list in a file")
    }
    guard hypervisor == nil else { return .xen }
    let path = sections.resolve(inventory ?? "")
    if inventory != nil { _ = reader.canRead(path, named: root.raw("inventory"), "the inventory") }
    return .inventory(path)
  }

  private func guests(_ root: YAMLMapping, _ domains: HostConfiguration.Domains) -> GuestSettings {
    if case .inventory = domains, root.has("guests") {
      reader.report(
        at: root.raw("guests"), "an inventory says itself what its domains are",
        remedy: "write tenant and service into the inventory")
    }
    var settings = GuestSettings()
    for map in root.children("guests") { settings.read(map, reader) }
    return settings
  }

  private func firewall(_ map: YAMLMapping?) -> HostConfiguration.Firewall {
    var result = HostConfiguration.Firewall()
    guard let map else { return result }
    if let kind = map.choice("kind", HostConfiguration.Firewall.Kind.self) { result.kind = kind }
    if let table = map.value(
      "table", expected: "a name of 1 to 31 letters, digits, `_`, `-`, beginning with a letter",
      { name in
        name.utf8.count <= 31 && name.first?.isLetter == true
          && name.allSatisfy { $0.isASCII && ($0.isLetter || $0.isNumber || $0 == "_" || $0 == "-") } ? name : nil
      })
    {
      result.table = table
    }
    if let value = map.bool("own-table") { result.ownsTable = value }
    if let value = map.bool("protects-host") { result.protectsHost = value }
    result.quarantineExceptions = map.values("quarantine-exceptions", expected: "an address or network") {
      IPNetwork($0)
    }
    if let value = map.bool("quarantine-allows-dhcp") { result.quarantineAllowsDHCP = value }
    if map.has("anti-spoofing") { result.antiSpoofing = spoofing(map, "anti-spoofing") }
    if let exceptions = map.child("anti-spoofing-exceptions") {
      for (name, _) in exceptions.entries { result.antiSpoofingExceptions[name] = spoofing(exceptions, name) }
    }
    result.routers = map.values("routers", expected: "an IPv6 link-local address such as fe80::1") { text in
      IPAddress(text).flatMap { $0.isV6LinkLocal ? $0 : nil }
    }
    map.finish()
    return result
  }

  private func spoofing(_ map: YAMLMapping, _ key: String) -> Set<SpoofingKind> {
    let names = SpoofingKind.allCases.map(\.rawValue).joined(separator: ", ")
    let found = map.values(key, expected: "all, none, or some of \(names)") { text -> Set<SpoofingKind>? in
      switch text {
      case "all": Set(SpoofingKind.allCases)
      case "none": []
      default: SpoofingKind(rawValue: text).map { [$0] }
      }
    }
    return found.reduce([]) { $0.union($1) }
  }

  private func control(_ map: YAMLMapping?) -> [CommandControl.Act: [String]] {
    var result: [CommandControl.Act: [String]] = [:]
    guard let map else { return result }
    for act in CommandControl.Act.allCases where map.has(act.rawValue) {
      let words = map.strings(act.rawValue).map(\.text)
      if words.first?.hasPrefix("/") != true {
        reader.report(
          at: map.raw(act.rawValue), "\(map.name(act.rawValue)) must begin with the absolute path of a program",
          remedy: "for example [/usr/bin/virsh, suspend, \"{name}\"]")
      }
      result[act] = words
    }
    CommandControl.Act.allCases.forEach { _ = map.raw($0.rawValue) }
    map.finish()
    return result
  }

  private func disk(_ map: YAMLMapping) -> HostConfiguration.Disk? {
    let uuid = map.value("uuid", expected: "a UUID", { DomainUUID($0) })
    let name = map.string("name")
    let control = map.value("control", expected: SharedSections.socketPath, sections.resolveSocket)
    map.finish()
    guard map.has("uuid") != map.has("name"), map.has("control") else {
      reader.report(
        at: map.node, "\(map.path) must say whose disk it is, by uuid or name, and where its process listens",
        remedy: "for example {name: web, control: /run/vmfence-disk/web.control}")
      return nil
    }
    guard let control, let guest = uuid.map(HostConfiguration.Disk.Guest.uuid) ?? name.map({ .name($0) }) else {
      return nil
    }
    return .init(guest: guest, control: control)
  }

  private func metrics(_ map: YAMLMapping?) -> HostConfiguration.Endpoint? {
    guard let map else { return nil }
    let address = map.value("address", expected: "an IP address of this host, such as 127.0.0.1") {
      IPAddress($0) == nil ? nil : $0
    }
    let port = map.integer("port", in: 1...65_535)
    map.finish()
    return .init(address: address ?? "127.0.0.1", port: UInt16(port ?? 9477))
  }

  private func capture(_ map: YAMLMapping) -> HostConfiguration.Capture? {
    let interface = map.value("interface", expected: YAMLMapping.interfaceName, YAMLMapping.interface)
    let bridge = map.value("bridge", expected: YAMLMapping.interfaceName, YAMLMapping.interface)
    map.finish()
    guard map.has("interface") != map.has("bridge") else {
      reader.report(
        at: map.node, "\(map.path) must say either interface or bridge",
        remedy: "`interface: vif1.0` for one guest's port, `bridge: xenbr0` for all of a bridge")
      return nil
    }
    guard let name = interface ?? bridge else { return nil }
    return .init(interface: name, isBridge: bridge != nil, place: reader.place(of: map.node))
  }

  /// Says which captures are there twice. What passes a bridge and a port of it is inspected twice where both are captured.
  private func check(_ captures: [HostConfiguration.Capture]) {
    var names: Set<String> = []
    for capture in captures where !names.insert(capture.interface).inserted {
      reader.report(
        Diagnostic(
          at: capture.place, "\(capture.interface.escapedForDisplay) is captured twice", remedy: "name it once"))
    }
    if let bridge = captures.first(where: \.isBridge), captures.contains(where: { !$0.isBridge }) {
      reader.report(
        Diagnostic(
          .warning, at: bridge.place,
          "a bridge and ports are captured: a frame that passes both is inspected, and counted by the policy, twice",
          remedy: "leave out the bridge, or those of its ports"))
    }
  }
}
#endif
