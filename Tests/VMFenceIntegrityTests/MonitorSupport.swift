import VMFenceBlock
import VMFenceCore
import VMFenceIntegrity

enum MonitorSupport {
  static func monitor(_ reader: any DiskReader, _ patterns: [String], action: ProtectionPolicy.Action = .alert) throws
    -> IntegrityMonitor
  {
    IntegrityMonitor(
      reader,
      configuration: .init(
        incarnation: Incarnation(uuid: DomainUUID(high: 0, low: 1), domainID: DomainID(1)), disk: "xvda",
        policy: try ProtectionPolicy(patterns.map { .init($0, action: action) })), at: .zero)
  }

  static func text(_ event: FileEvent) -> String {
    var text = "\(event.sequence) \(event.operation) \(String(decoding: event.path, as: UTF8.self)) ino \(event.inode)"
    if let old = event.oldPath { text += " from \(String(decoding: old, as: UTF8.self))" }
    if let offset = event.offset, let length = event.length { text += " \(offset)+\(length)" }
    for change in event.changes { text += " \(change.attribute): \(change.old) -> \(change.new)" }
    return text + (event.verdict == .allow ? "" : event.verdict == .deny ? " DENIED" : " HELD")
  }
}
