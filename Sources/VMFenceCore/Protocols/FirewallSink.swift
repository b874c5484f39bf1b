/// Enforces measures at one place: Dom0's packet filter, a guest's own, or a recorder.
///
/// A sink has a *state* (the measures in force) with a generation that rises with every change. A change is applied
/// from a known generation, whole or not at all, so that a caller who is out of date finds out instead of undoing
/// somebody's work, and so that one block costs the same however many stand.
public protocol FirewallSink: Sendable {
  /// Applies a change atomically.
  ///
  /// - Returns: the generation after it.
  /// - Throws: `conflict` when the sink is not at `change.from` any more; then nothing was changed.
  func apply(_ change: FirewallChange) async throws(FirewallError) -> UInt64

  /// Replaces everything atomically.
  func replace(with measures: [FirewallMeasure], at time: Timestamp) async throws(FirewallError) -> UInt64

  /// What is in force at `time`, read back from the place itself, not from memory.
  func readBack(at time: Timestamp) async throws(FirewallError) -> FirewallState

  /// The generations that are known to be in force, as they become so. For a local filter that is at once; a guest may never answer.
  func acknowledgements() async -> AsyncStream<FirewallAcknowledgement>
}

/// One thing that is enforced.
public struct FirewallMeasure: Hashable, Sendable {
  /// What identifies it: adding a measure with an equal key replaces the one that stands.
  public struct Key: Hashable, Sendable {
    public var scope: FirewallScope
    public var kind: FirewallMeasureKind
    public init(scope: FirewallScope, kind: FirewallMeasureKind) {
      self.scope = scope
      self.kind = kind
    }
  }

  public var key: Key
  /// nil: until it is taken back.
  public var expires: Timestamp?
  /// The decision that it comes from.
  public var decision: UInt64
  /// A few words for whoever lists the measures: `sid 1:1000001`.
  public var comment: String

  public init(
    scope: FirewallScope, kind: FirewallMeasureKind, expires: Timestamp?, decision: UInt64, comment: String = ""
  ) {
    key = Key(scope: scope, kind: kind)
    self.expires = expires
    self.decision = decision
    self.comment = comment
  }
}

public enum FirewallScope: Hashable, Sendable {
  /// Traffic of one domain's ports.
  case domain(DomainUUID)
  /// Traffic of all guests of this host.
  case host
}

public enum FirewallMeasureKind: Hashable, Sendable {
  /// Nothing from this network reaches the scope, and nothing from the scope reaches it.
  case block(IPNetwork)
  /// The domain speaks to nobody but what the provider excepted.
  case quarantine
  /// At most so many packets a second from the domain.
  case rateLimit(packetsPerSecond: UInt32)
}

public struct FirewallChange: Hashable, Sendable {
  /// The generation that the caller has seen.
  public var from: UInt64
  public var time: Timestamp
  public var add: [FirewallMeasure]
  /// Removing what is not there is no error: it may have expired.
  public var remove: [FirewallMeasure.Key]

  public init(
    from: UInt64, time: Timestamp, add: [FirewallMeasure] = [], remove: [FirewallMeasure.Key] = []
  ) {
    self.from = from
    self.time = time
    self.add = add
    self.remove = remove
  }
}

public struct FirewallState: Hashable, Sendable {
  public var generation: UInt64
  /// In a stable order.
  public var measures: [FirewallMeasure]
  public init(generation: UInt64, measures: [FirewallMeasure]) {
    self.generation = generation
    self.measures = measures
  }
}

public struct FirewallAcknowledgement: Hashable, Sendable {
  public var generation: UInt64
  public var time: Timestamp
  public init(generation: UInt64, time: Timestamp) {
    self.generation = generation
    self.time = time
  }
}

public struct FirewallError: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    /// The change was made for another generation.
    public static let conflict = Code("conflict")
    /// The place cannot express this measure.
    public static let unsupported = Code("unsupported")
    public static let permissionDenied = Code("permission-denied")
    /// Another process holds the place.
    public static let inUse = Code("in-use")
    public static let full = Code("full")
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
}
