import VMFenceCore
import VMFenceGuest

/// Policies for people and for programs.
enum Listing {
  // MARK: For people

  static func text(_ policy: GuestPolicy, at now: Timestamp) -> String {
    var lines = [
      heading(policy.version, policy.domain, policy.digest), "made at \(policy.issued.rfc5424)",
      "\(policy.measures.count) measures",
    ]
    for measure in policy.measures {
      let left = policy.remaining(of: measure, at: now)
      lines.append(line(measure.kind, left: left, measure.decision, measure.comment))
    }
    for network in policy.exceptions.networks { lines.append("  in quarantine, \(network) is let through") }
    if policy.exceptions.allowsDHCP { lines.append("  in quarantine, DHCP is let through") }
    return lines.joined(separator: "\n") + "\n"
  }

  static func text(_ policy: PolicyInForce?) -> String {
    guard let policy else { return "no policy is in force\n" }
    var lines = [
      heading(policy.version, policy.domain, policy.digest),
      "made at \(policy.issued.rfc5424), in force since \(policy.applied.rfc5424)",
      "\(policy.measures.count) of \(policy.measureCount) measures stand",
    ]
    for measure in policy.measures {
      lines.append(line(measure.kind, left: measure.left, measure.decision, measure.comment))
    }
    lines.append(
      "dropped packets: \(policy.droppedFrom.packets) from blocked sources, "
        + "\(policy.droppedTo.packets) to blocked destinations, \(policy.droppedInQuarantine.packets) in quarantine, "
        + "\(policy.droppedByLimit.packets) above the limit")
    return lines.joined(separator: "\n") + "\n"
  }

  private static func heading(_ version: UInt64, _ domain: DomainUUID, _ digest: [UInt8]) -> String {
    "policy \(version) for guest \(domain), sha256 \(hexadecimal(digest))"
  }

  private static func line(
    _ kind: FirewallMeasureKind, left: Duration?, _ decision: UInt64, _ comment: String
  ) -> String {
    let end =
      switch left {
      case nil: "until it is taken back"
      case .some(let left) where left <= .zero: "over"
      case .some(let left): "\((left.wholeNanoseconds - 1) / 1_000_000_000 + 1) s left"
      }
    let words = comment.isEmpty ? "" : " (\(comment.escapedForDisplay))"
    return "  \(name(kind)), \(end), decision \(decision)\(words)"
  }

  private static func name(_ kind: FirewallMeasureKind) -> String {
    switch kind {
    case .block(let network): "block \(network)"
    case .quarantine: "quarantine"
    case .rateLimit(let rate): "limit of \(rate) packets a second"
    }
  }

  private static func hexadecimal(_ bytes: [UInt8]) -> String {
    bytes.map { $0.hexadecimal(width: 2) }.joined()
  }

  // MARK: For programs

  static func json(_ policy: PolicyInForce?) -> String {
    var json = JSONLine()
    json.object { json in
      json.member("in_force", policy != nil)
      if let policy { members(policy, &json) }
    }
    return String(decoding: json.bytes, as: UTF8.self) + "\n"
  }

  private static func members(_ policy: PolicyInForce, _ json: inout JSONLine) {
    json.member("version", policy.version)
    json.member("domain", policy.domain.description)
    json.member("sha256", hexadecimal(policy.digest))
    json.member("issued", policy.issued.rfc5424)
    json.member("applied", policy.applied.rfc5424)
    json.member("measures_sent", policy.measureCount)
    json.array("measures", policy.measures) { json, measure in
      json.object { json in
        switch measure.kind {
        case .block(let network):
          json.member("kind", "block")
          json.member("network", network.description)
        case .quarantine: json.member("kind", "quarantine")
        case .rateLimit(let rate):
          json.member("kind", "rate_limit")
          json.member("packets_per_second", rate)
        }
        json.member("left_ms", measure.left.map { $0.wholeNanoseconds / 1_000_000 })
        json.member("decision", measure.decision)
        json.member("comment", measure.comment)
      }
    }
    json.object("dropped") { json in
      for (name, count) in [
        ("from", policy.droppedFrom), ("to", policy.droppedTo), ("quarantine", policy.droppedInQuarantine),
        ("limit", policy.droppedByLimit),
      ] {
        json.object(name) { json in
          json.member("packets", count.packets)
          json.member("bytes", count.bytes)
        }
      }
    }
  }
}
