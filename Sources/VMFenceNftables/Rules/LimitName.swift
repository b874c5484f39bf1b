import VMFenceCore

/// A rate limit in the table: one object for all ports of a domain, so that together they send no more than that.
struct LimitName: Hashable, Sendable, CustomStringConvertible {
  var domain: DomainUUID
  /// At least 1: the kernel knows no limit of 0, which a quarantine is.
  var packetsPerSecond: UInt32

  /// nil when the measure is no rate limit.
  init?(_ key: FirewallMeasure.Key) {
    guard case .domain(let domain) = key.scope, case .rateLimit(let rate) = key.kind else { return nil }
    self.domain = domain
    packetsPerSecond = max(1, rate)
  }

  /// A name that nft(8) can read back: it begins with a letter.
  var description: String { "limit-\(domain)-\(packetsPerSecond)" }
}

/// What an element refers to, besides its key.
enum ElementReference: Hashable, Sendable {
  /// The chain to jump to.
  case chain(String)
  case limit(String)

  static let quarantine = ElementReference.chain("quarantine")

  var name: String {
    switch self {
    case .chain(let name), .limit(let name): name
    }
  }

  /// What elements of a measure refer to; nil: nothing.
  init?(_ key: FirewallMeasure.Key) {
    if key.kind == .quarantine {
      self = .quarantine
    } else if let limit = LimitName(key) {
      self = .limit(limit.description)
    } else {
      return nil
    }
  }
}
