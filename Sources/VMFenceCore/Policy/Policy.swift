/// Which events lead to which measures. Plain values: the daemon fills them from its configuration, an embedder from code.
/// What is wrong with one is told by `validate`.
public struct Policy: Sendable, Hashable {
  public enum DestructiveMeasures: String, Sendable, Hashable, CaseIterable {
    /// Pausing and shutting down wait for the administrator.
    case pending
    case allowed
  }

  public var rules: [PolicyRule]
  /// Networks that are never blocked: gateways, name servers, monitoring, storage, Dom0. A network of which one of these is a part
  /// is not blocked either.
  public var neverBlock: [IPNetwork]
  /// Decides as always, and changes nothing.
  public var isDryRun: Bool
  public var destructiveMeasures: DestructiveMeasures
  /// Of how many different tenants guests must have evidence against a source before it is blocked for all guests of the host; with fewer,
  /// it is blocked for the domain alone. 1: any guest's evidence is enough, where all guests are one owner's. What a detector says is no better
  /// than the guest that may own it, and one tenant's must not cut the others off from an address.
  public var hostBlockTenants: Int
  /// How many measures are taken on the whole host within any minute. One domain gets no more than half of what is left of them.
  public var measuresPerMinute: Int
  /// How many notices and withheld measures are reported within any minute; more are counted only. One domain gets no more than half of what
  /// is left of them.
  public var reportsPerMinute: Int
  /// The leading bits by which IPv6 sources are counted and blocked. A source in a network where guests of this host or
  /// never-blocked addresses live is counted and blocked by its whole address instead.
  public var ipv6SourcePrefix: Int
  public var capacities: Capacities

  /// Bounds of what is kept in memory, whatever the network sends.
  public struct Capacities: Sendable, Hashable {
    /// Sources, domains … counted at the same time, for each rule. The one not seen for longest makes room.
    public var countersPerRule: Int
    /// Sources, domains … whose step on the ladder is remembered.
    public var offenders: Int
    /// Measures in force. One domain gets no more than eight times what is left of the room.
    public var measures: Int
    /// Measures that wait for the administrator. One domain gets no more than half of what is left of the room.
    public var pending: Int

    public init(
      countersPerRule: Int = 16_384, offenders: Int = 131_072, measures: Int = 131_072, pending: Int = 256
    ) {
      self.countersPerRule = countersPerRule
      self.offenders = offenders
      self.measures = measures
      self.pending = pending
    }
  }

  public init(
    rules: [PolicyRule], neverBlock: [IPNetwork] = [], isDryRun: Bool = false,
    destructiveMeasures: DestructiveMeasures = .pending, hostBlockTenants: Int = 2, measuresPerMinute: Int = 120,
    reportsPerMinute: Int = 120, ipv6SourcePrefix: Int = 64, capacities: Capacities = Capacities()
  ) {
    self.rules = rules
    self.neverBlock = neverBlock
    self.isDryRun = isDryRun
    self.destructiveMeasures = destructiveMeasures
    self.hostBlockTenants = hostBlockTenants
    self.measuresPerMinute = measuresPerMinute
    self.reportsPerMinute = reportsPerMinute
    self.ipv6SourcePrefix = ipv6SourcePrefix
    self.capacities = capacities
  }
}

/// One rule of a policy: so many of these events within that time lead to the next step of this ladder. Every rule that
/// selects an event counts it.
public struct PolicyRule: Sendable, Hashable {
  public var name: String
  /// An event is selected when one of these selects it.
  public var selectors: [EventSelector]
  /// The service types of the domains it is for; empty: all.
  public var services: Set<String>
  public var counting: Counting
  public var evidence: Evidence
  public var ladder: [LadderStep]
  public var escalation: Escalation
  /// Where it was written.
  public var place: SourcePlace?

  public init(
    name: String, selectors: [EventSelector], services: Set<String> = [], counting: Counting,
    evidence: Evidence = .established, ladder: [LadderStep], escalation: Escalation = Escalation(),
    place: SourcePlace? = nil
  ) {
    self.name = name
    self.selectors = selectors
    self.services = services
    self.counting = counting
    self.evidence = evidence
    self.ladder = ladder
    self.escalation = escalation
    self.place = place
  }
}

public enum EventSelector: Sendable, Hashable {
  /// Alerts of these signatures.
  case signatures(gid: UInt32, sids: ClosedRange<UInt32>)
  /// Alerts of this class (`classtype`).
  case classification(String)
  /// Alerts of this priority or a more severe one; 1 is the most severe.
  case priority(atMost: Int)
  case allAlerts
  case platform(PlatformAlert.Kind)
  /// Changes to protected files; empty: every operation.
  case files(Set<FileEvent.Operation>)
}

/// What is counted apart, how many of it, and within what time.
public struct Counting: Sendable, Hashable {
  public enum Key: Sendable, Hashable {
    /// The address at the other end (for IPv6 by `ipv6SourcePrefix`), for each domain.
    case source
    /// The same for all domains of the host together.
    case sourceOnHost
    /// The network at the other end, by its leading bits, for each domain.
    case sourceNetwork(v4Prefix: Int, v6Prefix: Int)
    case domain
    case host
  }

  public enum What: String, Sendable, Hashable, CaseIterable {
    case events
    /// Different addresses of guests.
    case targets
    /// Different ports of guests, TCP and UDP apart.
    case ports
  }

  public var key: Key
  /// What so many are needed of.
  public var what: What
  /// From 1 to 65,536, of targets and ports to 256. Above 64, times are kept in granules: the count may then be reached late by one granule (count / 64).
  public var count: Int
  /// So many events no further apart than this, the first from the last.
  public var window: Duration

  public init(per key: Key, count: Int, of what: What = .events, within window: Duration) {
    self.key = key
    self.what = what
    self.count = count
    self.window = window
  }
}

/// Which alerts count.
public enum Evidence: String, Sendable, Hashable, CaseIterable {
  /// Those whose sender proved to own its address: found in a TCP connection whose handshake was seen, outside any tunnel. Changes to files and what
  /// VMFence noticed itself count too, unless an address was forged in it.
  case established
  /// All; but no address is blocked on evidence that anybody can forge.
  case any
}

/// A rung: what is done, for how long, how many times before the next.
public struct LadderStep: Sendable, Hashable {
  public enum Action: Sendable, Hashable {
    case notify
    /// The counted source, for the domain that it attacked.
    case block
    /// The counted source, for all domains of the host; for the one domain while guests of too few tenants have evidence (`Policy.hostBlockTenants`).
    case blockOnHost
    case rateLimit(packetsPerSecond: UInt32)
    case quarantine
    case pause
    case shutDown
  }

  public var action: Action
  /// For how long, the first time. Needed by everything that expires: blocks, rate limits and quarantine.
  public var duration: Duration?
  /// How many times this step is taken before the next one. The last step is taken as often as needed.
  public var times: Int

  public init(_ action: Action, for duration: Duration? = nil, times: Int = 1) {
    self.action = action
    self.duration = duration
    self.times = times
  }
}

/// How measures grow when somebody does not stop.
public struct Escalation: Sendable, Hashable {
  /// Each repetition of one step lasts so many times as long as the one before; 1 or more.
  public var factor: Double
  /// No measure lasts longer.
  public var maximum: Duration
  /// After so long without a measure, the ladder begins at its first step again.
  public var decay: Duration

  public init(factor: Double = 2, maximum: Duration = .seconds(7 * 86_400), decay: Duration = .seconds(86_400)) {
    self.factor = factor
    self.maximum = maximum
    self.decay = decay
  }
}

extension PolicyRule {
  /// Whether the rule is for this event.
  func selects(_ event: Event, service: String?) -> Bool {
    guard services.isEmpty || service.map(services.contains) == true else { return false }
    return selectors.contains { selector in
      switch (selector, event) {
      case (.signatures(let gid, let sids), .alert(let alert)): alert.rule.gid == gid && sids.contains(alert.rule.sid)
      case (.classification(let name), .alert(let alert)): alert.rule.classification == name
      case (.priority(let limit), .alert(let alert)): alert.rule.priority <= limit
      case (.allAlerts, .alert): true
      case (.platform(let kind), .platform(let alert)): alert.kind == kind
      case (.files(let operations), .file(let event)):
        !event.isAnnounced && (operations.isEmpty || operations.contains(event.operation))
      default: false
      }
    }
  }
}

extension LadderStep {
  /// How long the measure lasts when the step is taken for the time after `repetition` times; nil when it has no end.
  func duration(repetition: Int, _ escalation: Escalation) -> Duration? {
    guard let duration, action.expires else { return nil }
    var result = duration
    for _ in 0..<Swift.min(repetition, 64) {
      guard result < escalation.maximum else { break }
      result = result * escalation.factor
    }
    return Swift.min(result, escalation.maximum)
  }
}

extension LadderStep.Action {
  var expires: Bool {
    switch self {
    case .block, .blockOnHost, .rateLimit, .quarantine: true
    case .notify, .pause, .shutDown: false
    }
  }

  var isAddressBlock: Bool { self == .block || self == .blockOnHost }
  var isDestructive: Bool { self == .pause || self == .shutDown }

  /// The order of the ladder.
  var severity: Int {
    switch self {
    case .notify: 0
    case .block: 1
    case .blockOnHost: 2
    case .rateLimit: 3
    case .quarantine: 4
    case .pause: 5
    case .shutDown: 6
    }
  }
}
