#if Daemon
import Foundation
import VMFenceConfiguration
import VMFenceCore

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
    let inventory = root.requiredString("inventory", example: "inventory.yaml")
    let configuration = HostConfiguration(
      file: reader.file, node: root.string("node") ?? ProcessInfo.processInfo.hostName,
      usesProcesses: sections.usesProcesses(root), inventory: sections.resolve(inventory ?? ""),
      rules: sections.rules(root), captures: root.children("captures").compactMap(capture),
      policy: sections.policy(root), firewall: firewall(root.child("firewall")), inspector: sections.inspector(root),
      lifecycle: sections.lifecycle(root),
      stateDirectory: root.string("state-directory").map(sections.resolve),
      controlSocket: root.string("control-socket").map { $0.hasPrefix("@") ? $0 : sections.resolve($0) },
      statisticsInterval: root.duration("statistics-every") ?? .seconds(10),
      answerTimeout: root.duration("answer-timeout") ?? .seconds(10))
    root.finish()
    for file in configuration.rules.allFiles where !FileManager.default.isReadableFile(atPath: file.path) {
      reader.report(
        Diagnostic(
          at: file.place, "the file `\(file.path.escapedForDisplay)` cannot be read",
          remedy: "paths are relative to the folder of this file"))
    }
    return reader.hasErrors ? nil : configuration
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
    if let value = map.bool("protects-host") { result.protectsHost = value }
    result.quarantineExceptions = map.values("quarantine-exceptions", expected: "an address or network") {
      IPNetwork($0)
    }
    if let value = map.bool("quarantine-allows-dhcp") { result.quarantineAllowsDHCP = value }
    map.finish()
    return result
  }

  private func capture(_ map: YAMLMapping) -> HostConfiguration.Capture? {
    let interface = map.string("interface")
    let bridge = map.string("bridge")
    map.finish()
    guard (interface == nil) != (bridge == nil) else {
      reader.report(
        at: map.node, "\(map.path) must say either interface or bridge",
        remedy: "`interface: vif1.0` for one guest's port, `bridge: xenbr0` for all of a bridge")
      return nil
    }
    return .init(
      interface: interface ?? bridge ?? "", isBridge: bridge != nil, place: reader.place(of: map.node))
  }
}
#endif
