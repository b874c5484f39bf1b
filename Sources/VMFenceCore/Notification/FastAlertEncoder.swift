/// Encodes alerts in Snort's fast format, one line each (without its line feed), in UTC:
/// `11/29-06:52:28.161148 [**] [1:254:16] "MESSAGE" [**] [Classification: TEXT] [Priority: 2] {UDP} 192.0.2.1:53 -> …`.
public struct FastAlertEncoder: Sendable {
  /// Whether verdicts act on the packets themselves: then dropped packets are marked `[drop]`.
  public var isInline: Bool

  public init(isInline: Bool = false) { self.isInline = isInline }

  public func encode(_ alert: Alert) -> [UInt8] {
    let civil = CivilTime(alert.time)
    let rule = alert.rule
    var line = "\(civil.month.padded(2))/\(civil.day.padded(2))-"
    line += "\(civil.hour.padded(2)):\(civil.minute.padded(2)):\(civil.second.padded(2)).\(civil.microsecond.padded(6))"
    if isInline, alert.verdict != .pass { line += " [drop]" }
    line += " [**] [\(rule.gid):\(rule.sid):\(rule.revision)] \"\(rule.message.escapedForDisplay)\" [**]"
    let classification = rule.classificationText.isEmpty ? rule.classification : rule.classificationText
    if !classification.isEmpty { line += " [Classification: \(classification.escapedForDisplay)]" }
    line += " [Priority: \(rule.priority)] {\(alert.protocolName)} "
    line += endpoint(alert.source, alert.hasPorts ? alert.sourcePort : nil)
    line += " -> "
    line += endpoint(alert.destination, alert.hasPorts ? alert.destinationPort : nil)
    return Array(line.utf8)
  }

  private func endpoint(_ address: IPAddress, _ port: UInt16?) -> String {
    port.map { "\(address):\($0)" } ?? address.description
  }
}
