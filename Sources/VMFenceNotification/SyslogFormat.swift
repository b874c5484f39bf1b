public import VMFenceCore

/// Events as syslog messages (RFC 5424): the words of an alert as Snort's fast format has them, what machines need in structured data.
public struct SyslogFormat: Sendable {
  public enum Facility: String, Sendable, CaseIterable {
    case kern, user, mail, daemon, auth, syslog, lpr, news, uucp, cron, authpriv, ftp
    case local0, local1, local2, local3, local4, local5, local6, local7

    /// RFC 5424 §6.2.1.
    var number: Int {
      let position = Self.allCases.firstIndex(of: self) ?? 0
      return position < 12 ? position : position + 4
    }
  }

  /// The one that is reserved for documentation (RFC 5612): nobody's, and so what everybody uses who has none.
  public static let exampleEnterpriseNumber: UInt32 = 32_473

  private let facility: Facility
  private let enterpriseNumber: UInt32
  private let host: String
  private let process: Int32
  private let directory: DomainDirectory
  private let fast: FastAlertEncoder

  /// - `enterpriseNumber`: whose the names in the structured data are, as `vmfence@NUMBER` (RFC 5424 §7.2.2): a private enterprise number that IANA has given, not 0.
  public init(
    facility: Facility, enterpriseNumber: UInt32 = exampleEnterpriseNumber, host: String, process: Int32,
    directory: DomainDirectory, isInline: Bool = false
  ) {
    self.facility = facility
    self.enterpriseNumber = enterpriseNumber
    self.host = String(host.unicodeScalars.filter { (0x21...0x7E).contains($0.value) }.prefix(255).map(Character.init))
    self.process = process
    self.directory = directory
    fast = FastAlertEncoder(isInline: isInline)
  }

  public func encode(_ event: Event) -> [UInt8] {
    let entry = event.incarnation.flatMap(directory.entry)
    var data: [(String, String)] = []
    if let incarnation = event.incarnation { data.append(("vm", incarnation.uuid.description)) }
    if let name = entry?.description.name { data.append(("name", name)) }
    let (severity, kind, text) = words(event, &data)
    let priority = facility.number * 8 + severity
    let structured = data.map { " \($0.0)=\"\(Self.escaped($0.1))\"" }.joined()
    let header = "<\(priority)>1 \(event.time.rfc5424) \(host.isEmpty ? "-" : host) vmfence \(process) \(kind)"
    return Array("\(header) [vmfence@\(enterpriseNumber)\(structured)] \u{FEFF}\(text)".utf8)
  }

  private func words(_ event: Event, _ data: inout [(String, String)]) -> (severity: Int, kind: String, text: String) {
    switch event {
    case .alert(let alert):
      data.append(("sid", "\(alert.rule.gid):\(alert.rule.sid):\(alert.rule.revision)"))
      data += [("src", alert.source.description), ("dst", alert.destination.description)]
      return (Self.severity(alert.rule.priority), "alert", String(decoding: fast.encode(alert), as: UTF8.self))
    case .file(let event):
      let path = String(decoding: event.path.prefix(1024), as: UTF8.self)
      data.append(("path", path))
      return (3, "file", "\(event.operation.rawValue) \(path.escapedForDisplay)")
    case .decision(let decision):
      data += [
        ("decision", "\(decision.id)"), ("measure", decision.measure.name), ("status", decision.status.rawValue),
      ]
      if let source = decision.source { data.append(("src", source.description)) }
      return (
        4, "decision", "\(decision.measure.name) \(decision.status.rawValue): \(decision.reason.escapedForDisplay)"
      )
    case .lifecycle(let report):
      switch report.kind {
      case .transition(let from, let event, let to):
        return (6, "lifecycle", "\(from.rawValue) -> \(to.rawValue) (\(event.rawValue))")
      case .unexpected(let state, let event):
        return (4, "lifecycle", "unexpected \(event.rawValue) in \(state.rawValue)")
      case .configurationNeeded: return (4, "lifecycle", "no rules are configured: the domain is not guarded")
      case .stuck(let state, _): return (3, "lifecycle", "stuck in \(state.rawValue)")
      }
    case .platform(let alert):
      data.append(("kind", alert.kind.name))
      return (Self.severity(alert.severity), "platform", alert.message)
    case .packet(let notice):
      let packet = notice.packet
      data += [("src", packet.source.description), ("dst", packet.destination.description)]
      let ends = "\(packet.source) -> \(packet.destination)"
      switch notice.kind {
      case .anomaly(let anomaly, let event):
        data.append(("event", event))
        return (6, "anomaly", "\(anomaly.kind.rawValue) \(event.escapedForDisplay): \(ends)")
      case .tagged: return (6, "packet", "tagged: \(ends)")
      }
    }
  }

  /// From a rule's priority, 1 the most severe, to RFC 5424's severities: critical, error, warning, notice, informational.
  private static func severity(_ priority: Int) -> Int { min(max(priority, 1) + 1, 6) }

  /// RFC 5424 §6.3.3; and nothing that acts on a terminal.
  private static func escaped(_ text: String) -> String {
    var result = ""
    for character in text.escapedForDisplay.replacing("\\\\", with: "\\").unicodeScalars {
      if character == "\"" || character == "\\" || character == "]" { result += "\\" }
      result.unicodeScalars.append(character)
    }
    return result
  }
}
