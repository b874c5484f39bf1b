/// Discovers which domains exist on this host and follows them.
///
/// What a probe reports are *levels*: what is so now. Changes are hints to look again; nothing depends on having seen
/// each of them, but a probe that knows it missed some says so.
public protocol HypervisorProbe: Sendable {
  /// The domains that exist now, Dom0 excluded. Consistent: taken in one look, or taken again until it was.
  func snapshot() async throws(ProbeError) -> InventorySnapshot

  /// The changes from now on. Every subscriber gets all of them; one that is too slow gets a `gap`, and a `gap` is
  /// always followed by a `snapshot`. The stream ends when the probe is closed or the platform shuts down.
  func changes() async -> AsyncStream<InventoryChange>
}

/// All domains at one moment.
public struct InventorySnapshot: Hashable, Sendable {
  public var time: Timestamp
  /// Rises with each snapshot of one probe.
  public var sequence: UInt64
  public var domains: [DomainDescription]
  /// Whether the platform itself is going down (event e8 of the lifecycle).
  public var isPlatformShuttingDown: Bool

  public init(
    time: Timestamp, sequence: UInt64, domains: [DomainDescription], isPlatformShuttingDown: Bool = false
  ) {
    self.time = time
    self.sequence = sequence
    self.domains = domains
    self.isPlatformShuttingDown = isPlatformShuttingDown
  }
}

public enum InventoryChange: Hashable, Sendable {
  /// A domain appeared, or something about it changed.
  case changed(DomainDescription)
  case removed(Incarnation)
  /// Changes were lost: how many, if known, and why. A `snapshot` follows.
  case gap(count: Int?, reason: String)
  case snapshot(InventorySnapshot)
  case platformShutdown
}

/// Acts on domains. Apart from the probe, because whoever may look need not be able to act.
public protocol HypervisorControl: Sendable {
  func pause(_ domain: Incarnation) async throws(ProbeError)
  func resume(_ domain: Incarnation) async throws(ProbeError)
  func shutDown(_ domain: Incarnation) async throws(ProbeError)
}

public struct ProbeError: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    /// There is no hypervisor here, or its interface is of an unknown version.
    public static let unavailable = Code("unavailable")
    public static let permissionDenied = Code("permission-denied")
    public static let noSuchDomain = Code("no-such-domain")
    /// The operation does not fit the domain's present state.
    public static let wrongState = Code("wrong-state")
    /// What describes the domains contradicts itself (two domains with one UUID outside a migration, say).
    public static let inconsistent = Code("inconsistent")
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
