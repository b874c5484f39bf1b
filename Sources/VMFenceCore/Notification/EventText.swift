// The words for parts of an event that the text formats share.

extension Alert {
  var protocolName: String { ipProtocol.eveProtocolName }

  /// Whether the protocol has ports.
  var hasPorts: Bool { EVEFlow(self).hasPorts }
}

extension UInt8 {
  /// An IP protocol's name as EVE and Snort write it; its number where there is no common name.
  var eveProtocolName: String {
    switch self {
    case 1: "ICMP"
    case 2: "IGMP"
    case 4: "IP-in-IP"
    case 6: "TCP"
    case 17: "UDP"
    case 41: "IPv6"
    case 47: "GRE"
    case 50: "ESP"
    case 51: "AH"
    case 58: "IPv6-ICMP"
    case 132: "SCTP"
    default: String(self)
    }
  }
}

extension UInt64 {
  /// A flow's identifier as a number that every JSON reader keeps exactly (RFC 8259 §6: integers up to 2^53 - 1).
  var eveFlowID: UInt64 { (self ^ self >> 53) & 0x1F_FFFF_FFFF_FFFF }
}

extension [UInt8] {
  /// Printable ASCII and line ends as they are, a dot for everything else, as EVE's `payload_printable` has it.
  var printableText: String {
    String(
      decoding: map { (0x20..<0x7F).contains($0) || $0 == 0x0A || $0 == 0x0D ? $0 : UInt8(ascii: ".") },
      as: UTF8.self)
  }
}

extension JSONLine {
  /// A path of a guest. One that is not UTF-8 comes with replacement characters, and a second member `KEY_hex` that has its bytes.
  package mutating func path(_ key: String, _ bytes: [UInt8]) {
    member(key, String(decoding: bytes, as: UTF8.self))
    guard String(validating: bytes, as: UTF8.self) == nil else { return }
    member(key + "_hex", bytes.prefix(Self.textLimit / 2).map { $0.hexadecimal(width: 2) }.joined())
  }

  mutating func scope(_ scope: FirewallScope) {
    switch scope {
    case .host: member("scope", "host")
    case .domain(let uuid): member("scope", uuid.description)
    }
  }
}

extension Decision.Measure {
  /// The measure's name in logs and policies.
  public var name: String {
    switch self {
    case .notify: "notify"
    case .block: "block"
    case .blockOnHost: "block_on_host"
    case .quarantine: "quarantine"
    case .rateLimit: "rate_limit"
    case .pause: "pause"
    case .shutDown: "shut_down"
    case .lift: "lift"
    }
  }

  /// Whom it blocks, or blocked until it was lifted.
  public var network: IPNetwork? {
    switch self {
    case .block(let network), .blockOnHost(let network): return network
    case .lift(let key): if case .block(let network) = key.kind { return network } else { return nil }
    case .notify, .quarantine, .rateLimit, .pause, .shutDown: return nil
    }
  }

  func encodeDetails(_ json: inout JSONLine) {
    switch self {
    case .notify, .quarantine, .pause, .shutDown: break
    case .block(let network), .blockOnHost(let network): json.member("network", network.description)
    case .rateLimit(let packetsPerSecond): json.member("packets_per_second", packetsPerSecond)
    case .lift(let key):
      json.object("lifted") { json in
        json.scope(key.scope)
        switch key.kind {
        case .block(let network):
          json.member("measure", "block")
          json.member("network", network.description)
        case .quarantine: json.member("measure", "quarantine")
        case .rateLimit(let packetsPerSecond):
          json.member("measure", "rate_limit")
          json.member("packets_per_second", packetsPerSecond)
        }
      }
    }
  }
}
