/// The policies of guests as they change: gives each its version, so that version and digest identify one.
///
/// A version rises when something changed but the time: measures that merely ran out leave a policy as it was, since a guest ends them
/// itself. Versions begin with the milliseconds since 1970, so those of a later run are higher than those of an earlier one, as long as the
/// host's clock was not set back in between; a guest that holds a higher one is answered with `outbid`. Keeps one policy for each guest
/// until it is forgotten: at most 38 KiB each. Used by one thread at a time.
public struct GuestPolicyBook: Sendable {
  /// A version that a guest claims to hold is not believed above this: the next would soon be the last.
  public static let highestClaim: UInt64 = 1 << 62

  private struct Page {
    var policy: GuestPolicy?
    /// The next policy's version is higher.
    var outbid: UInt64 = 0
  }

  private var pages: [DomainUUID: Page] = [:]

  public init() {}

  /// The policy of a guest as it is at `time`: the last one again if nothing changed but the time, otherwise a new one.
  ///
  /// - `measures`: those of the host, with times of the system's clock; what concerns other guests is left out.
  /// - Throws: as `GuestPolicy.render`.
  public mutating func policy(
    for domain: DomainUUID, measures: some Sequence<FirewallMeasure>,
    exceptions: QuarantineExceptions = QuarantineExceptions(), at time: Timestamp
  ) throws(GuestPolicyError) -> GuestPolicy.Rendering {
    let page = pages[domain] ?? Page()
    let version = Swift.max(
      page.outbid + 1, (page.policy?.version ?? 0) + 1, UInt64(Swift.max(1, time.nanoseconds / 1_000_000)))
    var rendering = try GuestPolicy.render(
      for: domain, version: version, measures: measures, exceptions: exceptions, at: time)
    if let last = page.policy, page.outbid < last.version, last.says(as: rendering.policy, at: time) {
      rendering.policy = last
    } else {
      pages[domain] = Page(policy: rendering.policy, outbid: page.outbid)
    }
    return rendering
  }

  /// A guest holds a policy of this version which is not the one that it should have: the next one's version is higher.
  public mutating func outbid(_ version: UInt64, for domain: DomainUUID) {
    guard version < Self.highestClaim else { return }
    pages[domain, default: Page()].outbid = Swift.max(version, pages[domain]?.outbid ?? 0)
  }

  /// For a guest that is gone. Should it come back, its versions go on with the clock.
  public mutating func forget(_ domain: DomainUUID) { pages[domain] = nil }
}

extension GuestPolicy {
  /// Whether the two have the same in force at `time`.
  fileprivate func says(as other: GuestPolicy, at time: Timestamp) -> Bool {
    exceptions == other.exceptions
      && measures.lazy.filter { $0.expires.map { time < $0 } ?? true }.elementsEqual(other.measures)
  }
}
