import VMFenceCore

/// Guesses a file's dialect from what only one of them has.
enum DialectDetection {
  static func detect(_ text: [UInt8]) -> (dialect: RuleDialect, reason: String) {
    // The first part of a file tells; a dialect does not change within it.
    let sample = String(decoding: text.prefix(262_144), as: UTF8.self)
    let signs: [(RuleDialect, String)] = [
      (.suricata, "; http."), (.suricata, ";http."), (.suricata, "; dns."), (.suricata, ";dns."), (.suricata, "; tls."),
      (.suricata, "app-layer-"), (.suricata, "; startswith"), (.suricata, "; endswith"), (.suricata, "; bsize:"),
      (.suricata, "xbits:"), (.suricata, "flowint:"), (.suricata, "decode-event:"), (.suricata, "rejectboth "),
      (.snort3, "\",nocase"), (.snort3, "\", nocase"), (.snort3, "\",fast_pattern"), (.snort3, "\",offset "),
      (.snort3, "\",depth "), (.snort3, "\",distance "), (.snort3, "\",within "), (.snort3, "\", offset "),
      (.snort3, "\", depth "), (.snort3, "service:"), (.snort3, "bufferlen:"), (.snort3, "alert http ("),
      (.snort3, "alert ("), (.snort3, "alert file ("), (.snort3, "; raw_data;"),
      (.snort2, "activated_by:"), (.snort2, "uricontent:"), (.snort2, "; http_inspect"), (.snort2, "sdrop "),
    ]
    for (dialect, sign) in signs where sample.contains(sign) {
      return (dialect, "it has `\(sign.escapedForDisplay)`")
    }
    for (prefix, dialect) in [
      ("http", RuleDialect.suricata), ("dns", .suricata), ("tls", .suricata), ("smb", .suricata),
    ]
    where sample.contains("alert \(prefix) ") || sample.contains("drop \(prefix) ") {
      return (dialect, "it has rules for the protocol \(prefix)")
    }
    return (.snort2, "nothing in it belongs to another dialect")
  }
}
