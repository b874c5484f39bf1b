#if Daemon
import Foundation
import VMFenceConfiguration
import VMFenceCore
import VMFenceDetection

/// The sections that scenarios and the configurations of hosts share.
struct SharedSections {
  let reader: YAMLReader

  /// Paths are relative to the folder of the file.
  func resolve(_ path: String) -> String {
    let folder = (reader.file as NSString).deletingLastPathComponent
    return path.hasPrefix("/") || folder.isEmpty ? path : folder + "/" + path
  }

  static let socketPath = "a socket's path, of \(LocalSocket.pathLimit) bytes at the most with the folder of this file"

  /// A socket's path, or its name behind `@`; nil for one that no socket can have.
  func resolveSocket(_ path: String) -> String? {
    let path = path.hasPrefix("@") ? path : resolve(path)
    return (1...LocalSocket.pathLimit).contains(path.utf8.count) ? path : nil
  }

  func usesProcesses(_ root: YAMLMapping) -> Bool {
    root.value("detectors", expected: "process or thread") { ["process": true, "thread": false][$0] } ?? true
  }

  func rules(_ root: YAMLMapping) -> ScenarioRules {
    var rules = ScenarioRules()
    guard let map = root.child("rules") else { return rules }
    RulesSection(reader: reader, resolve: resolve).read(map, into: &rules)
    map.finish()
    return rules
  }

  func policy(_ root: YAMLMapping) -> Policy {
    guard let node = root.raw("policy") else { return Policy(rules: []) }
    if case .scalar = node {
      guard let file = root.string("policy") else { return Policy(rules: []) }
      let path = resolve(file)
      guard reader.canRead(path, named: node, "the policy") else { return Policy(rules: []) }
      let read = PolicyFile.read(path: path)
      read.diagnostics.forEach(reader.report)
      return read.policy ?? Policy(rules: [])
    }
    guard let map = reader.mapping(of: node, path: "policy") else { return Policy(rules: []) }
    return PolicyParser(reader: reader).parse(map)
  }

  /// A daemon begins beside guests that run, and with every restart of a detector: connections that stand already are taken up, unless the
  /// file says otherwise.
  private static let engineDefaults = ["stream.midstream": "yes"]

  /// What of packets without alerts is told, unless the file says otherwise: what its rules ask for.
  private static let notesDefault = PacketNoteConfiguration(notes: .tagged)

  func inspection(_ root: YAMLMapping) -> (inspector: InspectorConfiguration, notes: PacketNoteConfiguration) {
    guard let map = root.child("inspection") else {
      return (InspectorConfiguration(settings: Self.engineDefaults), Self.notesDefault)
    }
    var notes = Self.notesDefault
    if map.bool("anomalies") == true { notes.notes.insert(.anomalies) }
    if map.bool("tagged-packets") == false { notes.notes.remove(.tagged) }
    notes.perSecond = map.integer("packet-events-per-second", in: 1...100_000) ?? notes.perSecond
    var result = InspectorConfiguration(
      verifiesChecksums: map.bool("verify-checksums") ?? true, isInline: map.bool("inline") ?? false,
      flowCapacity: map.integer("flow-capacity", in: 64...4_194_304) ?? 65_536, settings: Self.engineDefaults)
    for (text, node) in map.strings("settings") {
      if let mistake = add(text, to: &result) { reader.report(at: node, mistake.message, remedy: mistake.remedy) }
    }
    map.finish()
    return (result, notes)
  }

  /// Adds one `NAME=VALUE` of the engine's own settings; what is wrong with it, if anything is.
  private func add(_ text: String, to configuration: inout InspectorConfiguration) -> RuleCompilationError? {
    guard let equals = text.firstIndex(of: "=") else {
      return RuleCompilationError(
        .badSetting, "settings: `\(text.escapedForDisplay)` has no value", remedy: "write NAME=VALUE")
    }
    var changed = configuration
    changed.settings[String(text[..<equals])] = String(text[text.index(after: equals)...])
    do throws(RuleCompilationError) { _ = try EngineSettings(changed) } catch { return error }
    configuration = changed
    return nil
  }

  func lifecycle(_ root: YAMLMapping) -> LifecycleConfiguration {
    guard let map = root.child("lifecycle") else { return LifecycleConfiguration() }
    var result = LifecycleConfiguration()
    if let value = map.duration("blocked-after") { result.blockedAfter = value }
    if let value = map.duration("stuck-after") { result.stuckAfter = value }
    map.finish()
    return result
  }
}
#endif
