/// What a guest enforces itself: the measures of Dom0 that concern it, rendered for the guest's own packet filter.
///
/// It is the whole state, never a change of one: whoever takes it replaces what was in force before, or changes nothing. What is
/// enforced in Dom0 does not depend on it; a guest's own filter is defence in depth, and tells the tenant what stands.
///
/// A value of this type keeps all the bounds below, wherever it came from, and equal policies have equal bytes (`encoded`), so that
/// version and digest identify one.
public struct GuestPolicy: Hashable, Sendable {
  /// More measures than this are not sent to a guest; Dom0 enforces all of them.
  public static let measureLimit = 512
  public static let exceptionLimit = 64
  /// The longest comment, in bytes of printable ASCII without `"` and `\`.
  public static let commentLimit = 32

  /// One thing to enforce.
  public struct Measure: Hashable, Sendable {
    public var kind: FirewallMeasureKind
    /// On Dom0's clock; nil: until a later policy leaves it out.
    public var expires: Timestamp?
    /// The decision that it comes from.
    public var decision: UInt64
    /// Why, in a few words: `sid 1:1000001`.
    public var comment: String

    public init(_ kind: FirewallMeasureKind, expires: Timestamp?, decision: UInt64, comment: String = "") {
      self.kind = kind
      self.expires = expires
      self.decision = decision
      self.comment = comment
    }
  }

  /// The guest that it is for.
  public let domain: DomainUUID
  /// Rises with every policy for this guest.
  public let version: UInt64
  /// When it was made, on Dom0's clock.
  public let issued: Timestamp
  /// In canonical order, one for each network, at most one quarantine and one rate limit.
  public let measures: [Measure]
  /// Who the guest may speak with in quarantine; networks in canonical order.
  public let exceptions: QuarantineExceptions

  /// - Throws: `invalid` when the measures are too many, contradict each other, or say what no guest should enforce.
  public init(
    domain: DomainUUID, version: UInt64, issued: Timestamp, measures: [Measure],
    exceptions: QuarantineExceptions = QuarantineExceptions()
  ) throws(GuestPolicyError) {
    self.domain = domain
    self.version = version
    self.issued = issued
    self.measures = measures.sorted { MeasureOrder($0.kind) < MeasureOrder($1.kind) }
    self.exceptions = QuarantineExceptions(
      networks: exceptions.networks.sorted { NetworkOrder($0) < NetworkOrder($1) }, allowsDHCP: exceptions.allowsDHCP)
    try validate()
  }

  /// What is left of a measure's time at `now` on the guest's clock: nil when it has no end, zero or less when it is over. A clock
  /// that is slow counts from when the policy was made, so no measure lasts longer than it was meant to.
  public func remaining(of measure: Measure, at now: Timestamp) -> Duration? {
    measure.expires.map { $0 - max(now, issued) }
  }

  // MARK: Bounds

  private func validate() throws(GuestPolicyError) {
    guard version > 0 else { throw GuestPolicyError(.invalid, "version 0", remedy: "versions begin at 1") }
    guard issued.nanoseconds >= 0 else { throw GuestPolicyError(.invalid, "a policy made before 1970") }
    guard measures.count <= Self.measureLimit else {
      throw GuestPolicyError(
        .tooLarge, "\(measures.count) measures, and \(Self.measureLimit) are the most", remedy: "block networks instead"
      )
    }
    guard exceptions.networks.count <= Self.exceptionLimit else {
      throw GuestPolicyError(
        .tooLarge, "\(exceptions.networks.count) exceptions from quarantine, and \(Self.exceptionLimit) are the most")
    }
    for measure in measures { try validate(measure) }
    for (measure, next) in zip(measures, measures.dropFirst())
    where !(MeasureOrder(measure.kind) < MeasureOrder(next.kind)) {
      throw GuestPolicyError(.invalid, "two measures contradict each other: \(measure.kind) and \(next.kind)")
    }
    for (network, next) in zip(exceptions.networks, exceptions.networks.dropFirst()) where network == next {
      throw GuestPolicyError(.invalid, "\(network) is an exception from quarantine twice")
    }
  }

  private func validate(_ measure: Measure) throws(GuestPolicyError) {
    switch measure.kind {
    case .block(let network) where Int(network.prefix) < Self.widestBlock(network.base.family):
      throw GuestPolicyError(
        .invalid, "a block of \(network), which is nearly everybody", remedy: "quarantine the guest instead")
    case .rateLimit(packetsPerSecond: 0):
      throw GuestPolicyError(.invalid, "a limit of no packets a second", remedy: "quarantine the guest instead")
    case .block, .rateLimit, .quarantine: break
    }
    if let expires = measure.expires, expires <= issued {
      throw GuestPolicyError(.invalid, "\(measure.kind) was over before the policy was made")
    }
    guard Self.plain(measure.comment) == Array(measure.comment.utf8) else {
      throw GuestPolicyError(.invalid, "the comment '\(measure.comment.escapedForDisplay)' is not plain text")
    }
  }

  static func widestBlock(_ family: IPAddress.Family) -> Int {
    family == .v4 ? Policy.widestBlock.v4 : Policy.widestBlock.v6
  }

  /// A text as a comment may have it: cut off, and `?` for what would end it in a listing or act on a terminal.
  static func plain(_ text: String) -> [UInt8] {
    text.utf8.prefix(commentLimit).map { byte in
      let isPlain = (0x20..<0x7F).contains(byte) && byte != UInt8(ascii: "\"") && byte != UInt8(ascii: "\\")
      return isPlain ? byte : UInt8(ascii: "?")
    }
  }
}

/// The canonical order of networks: IPv4 first, wide ones first.
struct NetworkOrder: Comparable {
  var network: IPNetwork
  init(_ network: IPNetwork) { self.network = network }

  static func < (a: NetworkOrder, b: NetworkOrder) -> Bool {
    (a.network.base.family.rawValue, a.network.prefix, a.network.base)
      < (b.network.base.family.rawValue, b.network.prefix, b.network.base)
  }
}

/// The canonical order of measures: blocks by their networks, quarantine, rate limit. Two that are equal contradict each other.
package struct MeasureOrder: Comparable {
  package var rank: UInt8
  var network: NetworkOrder?

  package init(_ kind: FirewallMeasureKind) {
    switch kind {
    case .block(let network):
      rank = 1
      self.network = NetworkOrder(network)
    case .quarantine: rank = 2
    case .rateLimit: rank = 3
    }
  }

  package static func < (a: MeasureOrder, b: MeasureOrder) -> Bool {
    if a.rank != b.rank { return a.rank < b.rank }
    guard let first = a.network, let second = b.network else { return false }
    return first < second
  }
}

/// Why bytes or measures are no policy for a guest.
public struct GuestPolicyError: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    /// The bytes break off.
    public static let truncated = Code("truncated")
    /// The bytes are no policy, or not in the canonical form.
    public static let malformed = Code("malformed")
    /// The digest is another one.
    public static let damaged = Code("damaged")
    /// A later form than this program knows.
    public static let unsupported = Code("unsupported")
    public static let tooLarge = Code("too-large")
    /// What it says contradicts itself, or is nothing that a guest should enforce.
    public static let invalid = Code("invalid")
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
