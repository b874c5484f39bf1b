#if Daemon
import Foundation
import VMFenceConfiguration
import VMFenceCore

/// Reads a scenario file. Everything that is wrong is in the reader's diagnostics; nil when something is.
struct ScenarioParser {
  let reader: YAMLReader
  private let sections: SharedSections

  init(file: String) {
    reader = YAMLReader(file: file)
    sections = SharedSections(reader: reader)
  }

  func parse() -> Scenario? {
    guard let root = reader.loadMapping() else { return nil }
    let version = root.integer("version", in: 1...1)
    if !root.has("version") {
      reader.report(at: root.node, "version is missing", remedy: "begin the file with `version: 1`")
    }
    let start = root.value("start", expected: "a time such as 2026-11-20T10:00:00Z") { text -> Timestamp? in
      ISO8601DateFormatter().date(from: text).map { Timestamp(seconds: Int64($0.timeIntervalSince1970)) }
    }
    let domains = root.children("domains").compactMap(domain)
    if domains.isEmpty, root.has("domains") || version != nil {
      reader.report(at: root.raw("domains") ?? root.node, "domains: at least one domain must be named")
    }
    let inspection = sections.inspection(root)
    let scenario = Scenario(
      file: reader.file, name: root.string("name") ?? (reader.file as NSString).lastPathComponent, start: start,
      settle: root.duration("settle") ?? .seconds(5), node: root.string("node") ?? "replay",
      usesProcesses: sections.usesProcesses(root), rules: sections.rules(root), domains: domains,
      captures: root.children("captures").compactMap(capture), policy: sections.policy(root),
      inspector: inspection.inspector, packetNotes: inspection.notes, lifecycle: sections.lifecycle(root))
    root.finish()
    checkIdentities(scenario)
    checkCaptures(scenario)
    checkFiles(scenario)
    return reader.hasErrors ? nil : scenario
  }

  private func capture(_ map: YAMLMapping) -> ScenarioCapture? {
    let file = map.requiredString("file", example: "captures/vif1.0.pcap")
    let interface = map.string("interface")
    let bridge = map.string("bridge")
    map.finish()
    guard let file else { return nil }
    guard (interface == nil) != (bridge == nil) else {
      reader.report(
        at: map.node, "\(map.path) must say either interface or bridge",
        remedy: "`interface: vif1.0` for one guest's port, `bridge: xenbr0` for all of a bridge")
      return nil
    }
    return ScenarioCapture(
      path: sections.resolve(file), interface: interface ?? bridge ?? "", isBridge: bridge != nil,
      place: reader.place(of: map.node))
  }

  private func domain(_ map: YAMLMapping) -> ScenarioDomain? {
    let name = map.requiredString("name", example: "web")
    let uuid = map.requiredValue(
      "uuid", example: "5b1c9a52-0d7e-4a3c-9a86-2f7b3f6f0a01", expected: "a UUID", { DomainUUID($0) })
    let domid = map.integer("domid", in: 1...0x7FEF)
    if !map.has("domid") {
      reader.report(at: map.node, "\(map.path).domid is missing", remedy: "for example `domid: 1`")
    }
    let steps = map.children("lifecycle").compactMap(step)
    let ports = map.children("ports").compactMap { $0.networkPort() }
    let result = ScenarioDomain(
      name: name ?? "", uuid: uuid ?? DomainUUID(high: 0, low: 0), domainID: DomainID(UInt32(domid ?? 0)),
      tenant: map.label("tenant").map(TenantID.init), serviceType: map.label("service"), ports: ports,
      disk: map.child("disk").flatMap(disk), protected: protectedPaths(map), deniesData: map.bool("deny-data") ?? false,
      lifecycle: steps.isEmpty
        ? [ScenarioStep(at: .zero, event: .created, place: reader.place(of: map.node))] : steps,
      place: reader.place(of: map.node))
    map.finish()
    if !result.protected.isEmpty, result.disk == nil {
      reader.report(
        at: map.node, "\(map.path).protect names files but the domain has no disk",
        remedy: "add `disk: {device: xvda, image: FILE}`")
    }
    checkOrder(steps, in: map)
    return name == nil || uuid == nil || domid == nil ? nil : result
  }

  private func protectedPaths(_ map: YAMLMapping) -> [String] {
    map.values("protect", expected: "an absolute path or glob such as /etc/** ") { $0.hasPrefix("/") ? $0 : nil }
  }

  private func disk(_ map: YAMLMapping) -> ScenarioDisk? {
    let image = map.requiredString("image", example: "disk/web.img")
    let result = ScenarioDisk(
      device: map.string("device") ?? "xvda", image: sections.resolve(image ?? ""),
      writes: map.string("writes").map(sections.resolve),
      startsAt: map.duration("starts-at") ?? .zero, place: reader.place(of: map.node))
    map.finish()
    return image == nil ? nil : result
  }

  private func step(_ map: YAMLMapping) -> ScenarioStep? {
    let at = map.requiredValue(
      "at", example: "10s", expected: "a duration with its unit, such as 500ms or 10s", Duration.init(configuration:))
    let event = map.choice("event", ScenarioStep.Event.self)
    if !map.has("event") {
      reader.report(at: map.node, "\(map.path).event is missing", remedy: "for example `event: created`")
    }
    let domid = map.integer("domid", in: 1...0x7FEF)
    let ports = map.has("ports") ? map.children("ports").compactMap { $0.networkPort() } : nil
    map.finish()
    guard let at, let event else { return nil }
    if event != .migratedIn, domid != nil || ports != nil {
      reader.report(at: map.node, "\(map.path): domid and ports belong to `migrated-in` only")
    }
    if event == .migratedIn, domid == nil {
      reader.report(
        at: map.node, "\(map.path): `migrated-in` needs the new domid", remedy: "for example `domid: 4`")
    }
    return ScenarioStep(
      at: at, event: event, domainID: domid.map { DomainID(UInt32($0)) }, ports: ports,
      place: reader.place(of: map.node))
  }
}
#endif
