internal import Glibc
public import VMFenceCore

/// A guest's own packet filter: one policy of Dom0 in a table of its own, `inet vmfence_guest`, put in force and replaced as a whole.
/// It speaks with nf_tables of the network namespace in which it was opened, without a library. Nothing of anybody else's is touched.
/// Used by one thread at a time.
public struct GuestFirewall: ~Copyable {
  /// How often a change is tried again when others changed the ruleset meanwhile.
  private static let attempts = 16

  private var socket: NetlinkSocket

  public init() throws(GuestFirewallError) {
    do throws(NetlinkError) {
      socket = try NetlinkSocket.open()
    } catch {
      throw GuestFirewallError(error, during: "reach the packet filter")
    }
  }

  /// What is in force, as the kernel has it; nil when no policy is.
  ///
  /// - Throws: `foreign` when a table of our name is none of ours.
  public mutating func inForce() throws(GuestFirewallError) -> PolicyInForce? {
    do throws(NetlinkError) {
      return try retrying { (firewall) throws(NetlinkError) in
        switch try firewall.readTable() {
        case .none, .damaged: nil
        case .foreign: throw NetlinkError.held(0, .inet)
        case .ours(let table): table
        }
      }
    } catch {
      throw GuestFirewallError(error, during: "read the packet filter")
    }
  }

  /// Puts a policy in force in the place of the one before, whole or not at all.
  ///
  /// - `now`: on this machine's clock.
  /// - `hostTime`: what Dom0's clock says now, where that is known; otherwise both are taken to go alike. Measures that are over by
  ///   then are left out.
  /// - `allowsOlder`: takes a policy that is older than the one in force too, or another one with the same version.
  /// - Returns: how many measures are in force, and how many were over.
  /// - Throws: `stale` for an older policy, `foreign` when a table of our name is none of ours. Then nothing was changed.
  @discardableResult
  public mutating func apply(
    _ policy: GuestPolicy, at now: Timestamp, hostTime: Timestamp? = nil, allowsOlder: Bool = false
  ) throws(GuestFirewallError) -> (standing: Int, over: Int) {
    let table = GuestTable(policy, at: now, hostTime: hostTime ?? now)
    var stale: GuestFirewallError?
    do throws(NetlinkError) {
      try change { (found, writer) in
        if let found, !allowsOlder { stale = Self.staleness(of: table.record, found) }
        if stale == nil { table.write(to: &writer) }
        return stale == nil
      }
    } catch {
      throw GuestFirewallError(error, during: "put the policy in force")
    }
    if let stale { throw stale }
    return (table.measures.count, policy.measures.count - table.measures.count)
  }

  /// Takes the policy out of force.
  ///
  /// - Returns: whether there was one.
  public mutating func remove() throws(GuestFirewallError) -> Bool {
    var isThere = false
    do throws(NetlinkError) {
      try change { (found, writer) in
        isThere = found != nil
        if isThere { GuestTable.writeRemoval(to: &writer) }
        return isThere
      }
    } catch {
      throw GuestFirewallError(error, during: "take the policy out of force")
    }
    return isThere
  }

  private static func staleness(of policy: PolicyRecord, _ found: PolicyInForce) -> GuestFirewallError? {
    if policy.domain == found.domain {
      if policy.version > found.version { return nil }
      if policy.version == found.version, policy.digest == found.digest { return nil }
    }
    let relation =
      policy.domain != found.domain
      ? "another guest's policy (\(found.domain)) is in force"
      : policy.version == found.version
        ? "another policy with the same version \(found.version) is in force"
        : "version \(found.version) is in force, and this is \(policy.version)"
    return GuestFirewallError(
      .stale, relation,
      remedy: "take the newest policy, or say --allow-older (the channel: a policy with a higher version)")
  }

  // MARK: Transactions

  /// Reads what is in force and commits what `body` writes, if it says so. When others change the ruleset in between, it is done again: the
  /// transaction names the generation that was read.
  private mutating func change(
    _ body: (PolicyInForce?, inout NetlinkWriter) -> Bool
  ) throws(NetlinkError) {
    try retrying { (firewall) throws(NetlinkError) in
      let generation = try firewall.readGeneration()
      var found: PolicyInForce?
      switch try firewall.readTable() {
      case .none, .damaged: break
      case .foreign: throw NetlinkError.held(0, .inet)
      case .ours(let table): found = table
      }
      var writer = firewall.socket.writer()
      writer.begin(generation: generation)
      guard body(found, &writer) else { return }
      try firewall.socket.commit(writer)
    }
  }

  private mutating func retrying<Result>(
    _ body: (inout GuestFirewall) throws(NetlinkError) -> Result
  ) throws(NetlinkError) -> Result {
    for _ in 1..<Self.attempts {
      do throws(NetlinkError) {
        return try body(&self)
      } catch .interrupted {
        continue
      } catch .refused(ERESTART, _) {
        continue
      }
    }
    return try body(&self)
  }

  // MARK: Reading

  private mutating func readGeneration() throws(NetlinkError) -> UInt32 {
    var generation: UInt32 = 0
    try socket.ask(.getGeneration, isList: false) { _ in
    } _: { (message, bytes) throws(NetlinkError) in
      try NetlinkAttribute.forEach(in: bytes, try message.attributes(of: bytes).range) { (part) throws(NetlinkError) in
        if part.type == 1 { generation = try part.u32(bytes) }
      }
    }
    return generation
  }

  private enum Found {
    case none, foreign
    /// Ours, and somebody emptied it: `nft flush table` leaves the sets.
    case damaged
    case ours(PolicyInForce)
  }

  private mutating func readTable() throws(NetlinkError) -> Found {
    do throws(NetlinkError) {
      try socket.ask(.getTable, isList: false) {
        $0.attribute(1, GuestTable.name)
      } _: { _, _ in
      }
    } catch .refused(ENOENT, _) {
      return .none
    }
    var reading = TableReading()
    try socket.ask(.getRule, isList: true) {
      $0.attribute(1, GuestTable.name)
    } _: {
      (message, bytes) throws(NetlinkError) in
      try reading.addRule(message, bytes)
    }
    try socket.ask(.getSet, isList: true) {
      $0.attribute(1, GuestTable.name)
    } _: {
      (message, bytes) throws(NetlinkError) in
      try reading.addSet(message, bytes)
    }
    guard let record = reading.record else {
      return GuestTable.fixedSets.allSatisfy(reading.sets.contains) ? .damaged : .foreign
    }
    for set in reading.sets {
      try socket.ask(.getElements, isList: true) { writer in
        writer.attribute(1, GuestTable.name)
        writer.attribute(2, set)
      } _: { (message, bytes) throws(NetlinkError) in
        try reading.addElements(message, bytes, of: set)
      }
    }
    return .ours(PolicyInForce(record, reading))
  }
}

/// A policy as it is in force.
public struct PolicyInForce: Hashable, Sendable {
  public struct Measure: Hashable, Sendable {
    public var kind: FirewallMeasureKind
    /// nil: no end.
    public var left: Duration?
    public var decision: UInt64
    public var comment: String
  }

  public var domain: DomainUUID
  public var version: UInt64
  /// SHA-256 of the policy.
  public var digest: [UInt8]
  /// On Dom0's clock.
  public var issued: Timestamp
  /// On the guest's clock.
  public var applied: Timestamp
  /// How many measures the policy had. Those that are over are in `measures` no more.
  public var measureCount: Int
  /// What stands now.
  public var measures: [Measure]
  /// What was dropped since the policy was applied: because of where it came from and where it went, in quarantine, above the limit.
  public var droppedFrom: TrafficCount
  public var droppedTo: TrafficCount
  public var droppedInQuarantine: TrafficCount
  public var droppedByLimit: TrafficCount

  init(_ record: PolicyRecord, _ reading: TableReading) {
    domain = record.domain
    version = record.version
    digest = record.digest
    issued = record.issued
    applied = record.applied
    measureCount = Int(record.measures)
    measures = reading.measures.sorted { MeasureOrder($0.kind) < MeasureOrder($1.kind) }
    droppedFrom = reading.counts["from"] ?? TrafficCount()
    droppedTo = reading.counts["to"] ?? TrafficCount()
    droppedInQuarantine = reading.counts["isolated"] ?? TrafficCount()
    droppedByLimit = reading.counts["output"] ?? TrafficCount()
    droppedByLimit += reading.counts["forward"] ?? TrafficCount()
  }
}

/// Why a policy cannot be put in force or read.
public struct GuestFirewallError: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    public static let permissionDenied = Code("permission-denied")
    /// The kernel cannot do it.
    public static let unsupported = Code("unsupported")
    /// A newer policy is in force.
    public static let stale = Code("stale")
    /// Somebody else's table has our name.
    public static let foreign = Code("foreign")
    public static let failed = Code("failed")
  }

  public var code: Code
  public var message: String
  public var place: SourcePlace?
  public var remedy: String

  public init(_ code: Code, _ message: String, at place: SourcePlace? = nil, remedy: String = "") {
    self.code = code
    self.message = message
    self.place = place
    self.remedy = remedy
  }

  init(_ error: NetlinkError, during action: String) {
    let table = "table inet \(GuestTable.name)"
    switch error {
    case .refused(EPERM, _):
      self.init(
        .permissionDenied, "cannot \(action): this process lacks CAP_NET_ADMIN",
        remedy: "run it as root, or give it the capability")
    case .held:
      self.init(
        .foreign, "cannot \(action): \(table) is there, and VMFence did not make it",
        remedy: "look at it with: nft list \(table); rename or delete it")
    case .refused(EOPNOTSUPP, _), .refused(EPROTONOSUPPORT, _), .refused(EAFNOSUPPORT, _), .refused(EINVAL, ""),
      .socket(EPROTONOSUPPORT, _), .socket(EAFNOSUPPORT, _):
      self.init(
        .unsupported, "cannot \(action): this kernel lacks nftables, or a part of it",
        remedy: "use a kernel from 4.1 on with CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET")
    case .interrupted, .refused(ERESTART, _):
      self.init(
        .failed, "cannot \(action): others keep changing the packet filter meanwhile", remedy: "try again")
    case .refused(let number, let words):
      let more = words.isEmpty ? "" : ": \(words.escapedForDisplay)"
      self.init(
        .failed, "cannot \(action): \(describeError(number))\(more)", remedy: "look at it with: nft list \(table)")
    case .socket(let number, let what):
      self.init(.failed, "cannot \(action): \(what): \(describeError(number))")
    case .malformed(let what):
      self.init(.failed, "cannot \(action): the kernel's answer has \(what)")
    }
  }
}
