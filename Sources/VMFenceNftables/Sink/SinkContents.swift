internal import Glibc
import VMFenceCore

/// What a sink knows and holds. All of it under the sink's lock.
struct SinkContents: ~Copyable, Sendable {
  /// A measure that stands, as far as is known.
  struct Standing: Sendable {
    var decision: UInt64
    var comment: String
    /// On the kernel's clock, in nanoseconds; nil: no end.
    var deadline: UInt64?
    /// Measures are listed in the order in which their keys came.
    var order: UInt64
    /// For a rate limit: which of the sets it lies in.
    var slot = 0

    func measure(_ key: FirewallMeasure.Key, expires: Timestamp?) -> FirewallMeasure {
      FirewallMeasure(scope: key.scope, kind: key.kind, expires: expires, decision: decision, comment: comment)
    }
  }

  let configuration: NftablesSink.Configuration
  let isOwned: Bool
  /// Whether there can be chains at ports.
  let hasIngressHook: Bool
  var socket: NetlinkSocket
  var batch: Batch
  var generation: UInt64 = 1
  /// Transactions that the kernel took.
  var transactions: UInt64 = 0
  /// The ruleset's generation in which the kernel has exactly what is kept here; nil: it has to be read.
  var knownGeneration: UInt32?
  /// Hears of changes by others; nil until the sink is open.
  var listener: ChangeListener?
  /// The limits that the table has, by their names; some may be of measures that have ended.
  var limits: Set<String> = []
  var standing: [FirewallMeasure.Key: Standing] = [:]
  private var nextOrder: UInt64 = 0
  /// How many measures stood when those that ran out were dropped last.
  private var lastPurge = 0
  /// The interfaces of each domain that has any.
  var ports: [DomainUUID: [String]] = [:]
  /// What was said of each domain's ports.
  var described: [DomainUUID: [NetworkPort]] = [:]
  /// What belongs into the sets against spoofing; nil before it was said, when those of an earlier run stay.
  var guards: [String: Set<[UInt8]>]?
  /// What was said of pretences last.
  var antiSpoofing = AntiSpoofing.off
  /// The chains at ports that are there.
  var portChains: Set<String> = []
  var cutFlows = CutFlows()
  /// The rules that came when they were needed, in the order in which they came.
  var groups: [RuleGroup] = []
  var listeners: [UInt64: AsyncStream<FirewallAcknowledgement>.Continuation] = [:]
  private var nextListener: UInt64 = 0
  private var acknowledged = FirewallAcknowledgement(generation: 1, time: .zero)
  private var scratch: [UInt8] = []

  init(
    _ configuration: NftablesSink.Configuration, socket: consuming NetlinkSocket, batch: consuming Batch,
    _ features: KernelFeatures
  ) {
    self.configuration = configuration
    self.socket = socket
    self.batch = batch
    isOwned = features.canOwnTables && configuration.holdsTable
    hasIngressHook = features.hasIngressHook
  }

  /// Nanoseconds of the clock by which the kernel ends elements: it stands still while the host sleeps, and does not jump.
  static var now: UInt64 {
    var time = timespec()
    // SAFETY: clock_gettime(2) writes the structure.
    _ = unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }

  mutating func addListener(_ continuation: AsyncStream<FirewallAcknowledgement>.Continuation) -> UInt64 {
    nextListener += 1
    listeners[nextListener] = continuation
    continuation.yield(acknowledged)
    return nextListener
  }

  mutating func rise(at time: Timestamp) {
    generation += 1
    acknowledged = FirewallAcknowledgement(generation: generation, time: time)
    for listener in listeners.values { listener.yield(acknowledged) }
  }

  // MARK: Where a measure lies

  /// The names under which the domain's elements lie.
  func interfaces(of domain: DomainUUID) -> [String] { ports[domain] ?? [PlaceholderPort.name(of: domain)] }

  static func set(of key: FirewallMeasure.Key, slot: Int) -> SetName {
    switch key.kind {
    case .block(let network): .blocks(BlockSet(network, isHost: key.scope == .host))
    case .quarantine: .quarantine
    case .rateLimit: .limit(slot)
    }
  }

  /// How many elements a measure has.
  static func elementCount(of key: FirewallMeasure.Key, in interfaces: [String]) -> Int {
    if case .domain = key.scope { interfaces.count } else { 1 }
  }

  /// Calls `body` with the key of each of the measure's elements.
  @inline(__always)
  static func forEachElement(of key: FirewallMeasure.Key, in interfaces: [String], _ body: (ElementKey) -> Void) {
    var network: IPNetwork?
    if case .block(let blocked) = key.kind { network = blocked }
    guard case .domain = key.scope else {
      var element = ElementKey()
      if let network { element.append(network.base) }
      return body(element)
    }
    for interface in interfaces {
      var element = ElementKey()
      element.append(interface: interface)
      if let network { element.append(network.base) }
      body(element)
    }
  }

  func interfaces(of key: FirewallMeasure.Key) -> [String] {
    if case .domain(let uuid) = key.scope { interfaces(of: uuid) } else { [] }
  }

  // MARK: Writing

  /// Takes a measure's elements out, whether they are still there or not: deleting what is absent would fail, so they are added first.
  mutating func writeRemoval(of keys: [(key: FirewallMeasure.Key, interfaces: [String])], from set: SetName) {
    guard !keys.isEmpty else { return }
    for deletes in [false, true] {
      batch.beginElements(of: set.description, deletes: deletes)
      for (key, interfaces) in keys {
        let reference = deletes ? nil : ElementReference(key)
        Self.forEachElement(of: key, in: interfaces) { batch.element($0, refersTo: reference) }
      }
      batch.endElements()
    }
  }

  /// Writes the elements of a measure of the set that was begun.
  ///
  /// - `timeout`: in milliseconds, 0 for none.
  mutating func writeAddition(_ measure: FirewallMeasure, timeout: UInt64, in interfaces: [String]) {
    ElementTag(measure).write(to: &scratch)
    let reference = ElementReference(measure.key)
    Self.forEachElement(of: measure.key, in: interfaces) {
      batch.element($0, timeout: timeout, userData: scratch, refersTo: reference)
    }
  }

  /// Writes the limits that these measures name. To be written before their elements.
  mutating func writeLimits(of keys: some Sequence<FirewallMeasure.Key>) {
    for limit in keys.lazy.compactMap(LimitName.init) {
      batch.add(limit)
      limits.insert(limit.description)
    }
  }

  // MARK: The model

  mutating func stand(_ measure: FirewallMeasure, deadline: UInt64?, slot: Int) {
    nextOrder += 1
    let order = standing[measure.key]?.order ?? nextOrder
    standing[measure.key] = Standing(
      decision: measure.decision, comment: measure.comment, deadline: deadline, order: order, slot: slot)
    if standing.count > 2 * lastPurge + 1_024 { purge(at: Self.now) }
  }

  /// Forgets what the kernel has ended.
  mutating func purge(at now: UInt64) {
    standing = standing.filter { $0.value.deadline.map { now < $0 } ?? true }
    lastPurge = standing.count
  }
}
