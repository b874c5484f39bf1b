public import VMFenceCore

/// What a person or a program asks of a daemon that runs, over its control socket: one JSON object a line, answered by one line.
///
/// ```
/// {"verb":"why","domain":"web","address":"192.0.2.7"}
/// {"ok":true,"result":{…}}
/// {"ok":false,"error":{"message":"there is no domain `wbe`","remedy":"…"}}
/// ```
public struct ControlRequest: Codable, Sendable, Hashable {
  public enum Verb: String, Codable, Sendable, CaseIterable {
    case status, domains, alerts, bans, why, pending, approve, deny
    /// Alerts from now on (with `all`, every event), as EVE JSON, one a line, after a first line that says `ok`.
    case follow
    case rulesShow = "rules-show"
    case rulesSet = "rules-set"
    case guestPolicy = "guest-policy"
    case banAdd = "ban-add"
    case banDelete = "ban-delete"
    /// What a guest declared over the policy channel.
    case declared
    /// Takes `files` back, or (with `all`) all of it; the guest's next declarations do not bring it again.
    case declaredForget = "declared-forget"
    /// Takes again what the guest declares from now on.
    case declaredAllow = "declared-allow"
    /// Answered when the guest at `port` is guarded there, or `duration` is over (10 s when not given, 60 s at the most).
    case barrier
  }

  public var verb: Verb
  /// A domain's name or UUID.
  public var domain: String?
  public var address: String?
  /// An address or network: `192.0.2.7`, `2001:db8::/48`.
  public var network: String?
  /// A network interface: `vif3.0`.
  public var port: String?
  /// In seconds.
  public var duration: Double?
  /// A decision's number.
  public var id: UInt64?
  /// Paths of rule files, as the daemon sees them; none: back to what the configuration says. `declared-forget`: what the guest declared.
  public var files: [String]?
  /// How many entries at the most.
  public var limit: Int?
  /// `follow`: every event; `bans`: those that are over, too; `declared-forget`: everything.
  public var all: Bool?

  public init(
    _ verb: Verb, domain: String? = nil, address: String? = nil, network: String? = nil, duration: Double? = nil,
    id: UInt64? = nil, files: [String]? = nil, limit: Int? = nil, all: Bool? = nil, port: String? = nil
  ) {
    self.verb = verb
    self.domain = domain
    self.address = address
    self.network = network
    self.port = port
    self.duration = duration
    self.id = id
    self.files = files
    self.limit = limit
    self.all = all
  }
}

/// Why something was not done.
public struct ControlFailure: Codable, Error, Sendable, Hashable, CustomStringConvertible {
  public enum Cause: String, Codable, Sendable, Hashable {
    /// Nobody is at the socket, or does not answer, or not any more.
    case unreachable
    /// The socket is not for this user.
    case permission
    /// There is no room now, or the daemon stops: the same may be answered a moment later.
    case busy
  }

  public var message: String
  public var remedy: String
  /// All that is wrong, when it is more.
  public var diagnostics: [String]?
  /// nil: who was asked says so itself.
  public var cause: Cause?

  public init(_ message: String, remedy: String = "", diagnostics: [String]? = nil, cause: Cause? = nil) {
    self.message = message
    self.remedy = remedy
    self.diagnostics = diagnostics
    self.cause = cause
  }

  public init(_ error: some DescribedError) { self.init(error.message, remedy: error.remedy) }

  public var description: String { remedy.isEmpty ? message : "\(message) (\(remedy))" }
}

/// A domain as the daemon knows it. Rates are for whoever asks twice to compute.
public struct DomainStatus: Codable, Sendable, Hashable {
  public var name: String
  public var uuid: String
  public var domid: UInt32
  public var tenant: String?
  public var service: String?
  /// Of its detector: `inspecting`, `suspended`, `unguarded` …
  public var state: String
  public var ports: [String]
  public var packets: UInt64
  public var bytes: UInt64
  public var inspected: UInt64
  public var alerts: UInt64
  /// Not inspected, for whatever reason.
  public var drops: UInt64
  /// Events, and alerts and decisions of the history, that found no room in their queue because too many of its own were there.
  public var eventsLost: UInt64
  public var historySkipped: UInt64
  /// Packets that rules refused and that came too fast to act on.
  public var refusalsLost: UInt64
  /// Packets that wait in its ring.
  public var waiting: UInt64
  public var restarts: UInt64
  /// What its detectors counted by themselves, by name.
  public var inspector: [String: UInt64]
  /// How often a bound made the inspection less than it should be; which, is in `inspector`.
  public var limitHits: UInt64
  /// Measures in force for it alone.
  public var measures: Int
  /// Rules that inspect it; 0 when it has none.
  public var rules: Int
  /// Its policy channel: `none`, `offered`, `open`, `error`; nil when guests of this host have none.
  public var channel: String?
  /// The version of the policy that the guest says is in force.
  public var policy: UInt64?
  /// How long the guest took to answer to the policy that it was sent last, in seconds.
  public var answerSeconds: Double?
  /// Paths that its owner declared over the channel.
  public var declared: [String]?

  public init(
    name: String, uuid: String, domid: UInt32, tenant: String?, service: String?, state: String, ports: [String],
    packets: UInt64, bytes: UInt64, inspected: UInt64, alerts: UInt64, drops: UInt64, eventsLost: UInt64 = 0,
    historySkipped: UInt64 = 0, refusalsLost: UInt64 = 0, waiting: UInt64, restarts: UInt64,
    inspector: [String: UInt64], limitHits: UInt64, measures: Int, rules: Int, channel: String? = nil,
    policy: UInt64? = nil, answerSeconds: Double? = nil,
    declared: [String]? = nil
  ) {
    self.name = name
    self.uuid = uuid
    self.domid = domid
    self.tenant = tenant
    self.service = service
    self.state = state
    self.ports = ports
    self.packets = packets
    self.bytes = bytes
    self.inspected = inspected
    self.alerts = alerts
    self.drops = drops
    self.eventsLost = eventsLost
    self.historySkipped = historySkipped
    self.refusalsLost = refusalsLost
    self.waiting = waiting
    self.restarts = restarts
    self.inspector = inspector
    self.limitHits = limitHits
    self.measures = measures
    self.rules = rules
    self.channel = channel
    self.policy = policy
    self.answerSeconds = answerSeconds
    self.declared = declared
  }
}

/// The daemon as a whole.
public struct DaemonStatus: Codable, Sendable, Hashable {
  public var version: String
  public var node: String
  /// In seconds.
  public var uptime: Double
  public var firewall: String
  public var isDryRun: Bool
  public var measures: Int
  public var pending: Int
  /// Decided, and not taken by the firewall yet.
  public var desired: Int
  /// Of packets that rules refused: flows that were `cut` and `not_cut`, connections `reset` and `not_reset`.
  public var flows: [String: UInt64]
  /// Frames that the packet filter stopped since its table was made, by why: `block`, `flow`, `quarantine`, `rate_limit`, `spoofed_KIND`. Read
  /// every ten seconds; empty where measures are recorded only.
  public var stopped: [String: UInt64]
  public var captureDrops: UInt64
  public var eventsLost: UInt64
  /// Of these, by domain, those that found no room because too many of its own waited; without domains that lost none.
  public var eventsLostByDomain: [String: UInt64]
  /// Of `eventsLost`, those that the event file did not take although they had room in it, on a disk that is full for one: `problems` says why, as long as that is so. Without
  /// those of domains that are gone.
  public var eventsUnwritten: UInt64
  /// Of all domains: bounds that made the inspection less than it should be, by name, and how often each was reached; those that were not are left out.
  public var limitHits: [String: UInt64]
  /// Of the history: `alerts` and `decisions` that it holds, alerts that were `forgotten` to make room, what was `skipped`, `bytes`.
  public var history: [String: UInt64]
  /// How far the system's clock was set since the start, in seconds.
  public var clockOffset: Double
  /// What is wrong now: the inventory, outputs.
  public var problems: [String]
  /// Domains without rules: they are not guarded.
  public var needRules: [String]
  /// Domains that are paused because a request to one of their disks is held.
  public var frozen: [String]
  public var policy: [String: UInt64]

  public init(
    version: String, node: String, uptime: Double, firewall: String, isDryRun: Bool, measures: Int, pending: Int,
    desired: Int, flows: [String: UInt64], stopped: [String: UInt64], captureDrops: UInt64, eventsLost: UInt64,
    eventsLostByDomain: [String: UInt64] = [:], eventsUnwritten: UInt64 = 0, limitHits: [String: UInt64],
    history: [String: UInt64],
    clockOffset: Double, problems: [String],
    needRules: [String], frozen: [String], policy: [String: UInt64]
  ) {
    self.version = version
    self.node = node
    self.uptime = uptime
    self.firewall = firewall
    self.isDryRun = isDryRun
    self.measures = measures
    self.pending = pending
    self.desired = desired
    self.flows = flows
    self.stopped = stopped
    self.captureDrops = captureDrops
    self.eventsLost = eventsLost
    self.eventsLostByDomain = eventsLostByDomain
    self.eventsUnwritten = eventsUnwritten
    self.limitHits = limitHits
    self.history = history
    self.clockOffset = clockOffset
    self.problems = problems
    self.needRules = needRules
    self.frozen = frozen
    self.policy = policy
  }
}

/// A decision, as lists show it.
public struct DecisionStatus: Codable, Sendable, Hashable {
  public var id: UInt64
  public var measure: String
  public var network: String?
  /// A domain's name; nil for the whole host.
  public var domain: String?
  /// As events have it; `over` for what was in force once.
  public var status: String
  public var policy: String
  public var reason: String
  public var trigger: String
  /// How far up the ladder, from 0.
  public var step: Int
  /// RFC 3339, in UTC.
  public var since: String
  public var expires: String?
  /// In seconds.
  public var remaining: Double?

  public init(
    id: UInt64, measure: String, network: String?, domain: String?, status: String, policy: String, reason: String,
    trigger: String, step: Int, since: String, expires: String?, remaining: Double?
  ) {
    self.id = id
    self.measure = measure
    self.network = network
    self.domain = domain
    self.status = status
    self.policy = policy
    self.reason = reason
    self.trigger = trigger
    self.step = step
    self.since = since
    self.expires = expires
    self.remaining = remaining
  }
}

/// What becomes of traffic between a domain and an address, and why.
public struct Explanation: Codable, Sendable, Hashable {
  public var domain: String
  public var address: String
  public var isBlocked: Bool
  /// What stands between them, the narrowest first.
  public var decisions: [DecisionStatus]
  /// Why the address is never blocked for this domain, if it is not.
  public var neverBlocked: String?
  /// Where it stands on the ladders of the policy: `rule: next step …`.
  public var ladders: [String]
  /// What stood between them before, or was withheld, as far as the history goes; the youngest last.
  public var past: [DecisionStatus]
  /// The last alerts between them, a line each.
  public var alerts: [String]

  public init(
    domain: String, address: String, isBlocked: Bool, decisions: [DecisionStatus], neverBlocked: String?,
    ladders: [String], past: [DecisionStatus], alerts: [String]
  ) {
    self.domain = domain
    self.address = address
    self.isBlocked = isBlocked
    self.decisions = decisions
    self.neverBlocked = neverBlocked
    self.ladders = ladders
    self.past = past
    self.alerts = alerts
  }
}

/// What stands of what a guest declared, and what is not taken of it.
public struct DeclaredStatus: Codable, Sendable, Hashable {
  public var domain: String
  public var uuid: String
  public var service: String?
  public var paths: [String]
  /// Paths that were taken back.
  public var refused: [String]
  /// Whatever it declares.
  public var takesNothing: Bool

  public init(
    domain: String, uuid: String, service: String?, paths: [String], refused: [String], takesNothing: Bool
  ) {
    self.domain = domain
    self.uuid = uuid
    self.service = service
    self.paths = paths
    self.refused = refused
    self.takesNothing = takesNothing
  }
}

/// The rules of a domain.
public struct RulesStatus: Codable, Sendable, Hashable {
  public var domain: String
  public var state: String
  public var files: [String]
  public var rules: Int
  /// They were set at run time, and go before those of the configuration.
  public var isAssigned: Bool
  /// Of its rules those that stay in force as they were although their texts are wrong now: a sentence for each of the first 20, and one for all others.
  public var kept: [String]?

  public init(
    domain: String, state: String, files: [String], rules: Int, isAssigned: Bool, kept: [String]? = nil
  ) {
    self.domain = domain
    self.state = state
    self.files = files
    self.rules = rules
    self.isAssigned = isAssigned
    self.kept = kept
  }
}

/// The policy that a guest is to enforce itself, from the decisions in force.
public struct GuestPolicyStatus: Codable, Sendable, Hashable {
  public struct Measure: Codable, Sendable, Hashable {
    /// `block`, `quarantine` or `rate_limit`.
    public var kind: String
    public var network: String?
    public var packetsPerSecond: UInt32?
    public var decision: UInt64
    /// RFC 3339, in UTC.
    public var expires: String?
    /// In seconds.
    public var remaining: Double?
    public var comment: String

    public init(
      kind: String, network: String?, packetsPerSecond: UInt32?, decision: UInt64, expires: String?, remaining: Double?,
      comment: String
    ) {
      self.kind = kind
      self.network = network
      self.packetsPerSecond = packetsPerSecond
      self.decision = decision
      self.expires = expires
      self.remaining = remaining
      self.comment = comment
    }
  }

  public var domain: String
  public var uuid: String
  /// Rises with each change; with the digest it names one policy.
  public var version: UInt64
  public var sha256: String
  /// RFC 3339, in UTC.
  public var issued: String
  public var measures: [Measure]
  /// Whom the guest may speak with in quarantine.
  public var exceptions: [String]
  public var allowsDHCP: Bool
  /// Measures and exceptions that found no room in it; the host enforces them.
  public var omitted: Int
  /// The policy as `vmfence-guest apply` and the policy channel take it, in base64.
  public var encoded: String

  public init(
    domain: String, uuid: String, version: UInt64, sha256: String, issued: String, measures: [Measure],
    exceptions: [String], allowsDHCP: Bool, omitted: Int, encoded: String
  ) {
    self.domain = domain
    self.uuid = uuid
    self.version = version
    self.sha256 = sha256
    self.issued = issued
    self.measures = measures
    self.exceptions = exceptions
    self.allowsDHCP = allowsDHCP
    self.omitted = omitted
    self.encoded = encoded
  }
}

/// A guest is guarded at a port.
public struct BarrierStatus: Codable, Sendable, Hashable {
  public var port: String
  public var domain: String
  /// Whether there are rules for it; without, the packet filter alone stands there.
  public var isInspected: Bool

  public init(port: String, domain: String, isInspected: Bool) {
    self.port = port
    self.domain = domain
    self.isInspected = isInspected
  }
}
