// What a person asks: what stands between a domain and an address, and why.

/// What becomes of traffic between a domain and an address.
public struct PolicyExplanation: Sendable, Hashable {
  /// The decisions in force that keep them apart: quarantine first, then blocks, the narrowest first.
  public var decisions: [Decision]
  /// Why the address is never blocked for the domain; nil when it may be.
  public var obstacle: String?
  /// Where the address and the domain stand on the ladders.
  public var offences: [Offence]

  public struct Offence: Sendable, Hashable {
    /// The last of its rule.
    public var decision: Decision
    /// When the ladder begins anew.
    public var forgottenAt: Timestamp
  }
}

public struct MeasureCounts: Sendable, Hashable {
  /// Those of one scope.
  public struct Scope: Sendable, Hashable {
    public var all = 0
    public var v4Blocks = 0
    public var v6Blocks = 0
    public init() {}
  }

  public var all = 0
  /// By scope; without those that have none.
  public var scopes: [FirewallScope: Scope] = [:]
}

extension Decision {
  /// How long its measure lasts yet; nil when it has no end of its own. Never negative: between its end, which the firewall keeps by itself, and the
  /// next look at the timers it is zero.
  public func remaining(at time: Timestamp) -> Duration? { expires.map { Swift.max(.zero, $0 - time) } }
}

extension PolicyUpdater {
  /// Explains what becomes of traffic between `domain` and `address` at `time`.
  public mutating func explain(_ address: IPAddress, for domain: Incarnation, at time: Timestamp) -> PolicyExplanation {
    now = Swift.max(now, time)
    // What has just run out is not lifted yet, and the firewall has ended it already.
    let standing = register.allCutting(address, from: domain.uuid).map(\.decision)
      .filter { $0.remaining(at: now) != .zero }
    let offences = policy.rules.compactMap { rule -> PolicyExplanation.Offence? in
      let subject = subject(of: address, domain, rule)
      guard let offender = offenders[subject], now < offender.forgottenAt else { return nil }
      return .init(decision: offender.decision, forgottenAt: offender.forgottenAt)
    }
    return PolicyExplanation(
      decisions: policy.isDryRun ? [] : standing,
      obstacle: obstacle(to: IPNetwork(address), for: directory.entry(for: domain), onHost: false),
      offences: offences)
  }

  /// How many measures are to be in force, and how many of them are blocks of each family. Costs the same however many stand.
  public var measureCounts: MeasureCounts {
    policy.isDryRun ? MeasureCounts() : MeasureCounts(all: register.count, scopes: register.scopes)
  }

  /// The decisions behind the measures in force, in the order of their numbers.
  public var decisionsInForce: [Decision] { register.all.map(\.decision) }

  private func subject(of address: IPAddress, _ domain: Incarnation, _ rule: PolicyRule) -> Subject {
    var subject = Subject(rule: rule.name)
    if rule.counting.key.isPerDomain { subject.domain = domain.uuid }
    if rule.counting.key.needsSource { subject.network = network(of: address, rule.counting.key) }
    return subject
  }
}
