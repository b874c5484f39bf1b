extension GuestPolicy {
  /// What became of Dom0's measures when they were rendered for a guest.
  public struct Rendering: Sendable {
    public var policy: GuestPolicy
    /// Measures and exceptions that concern the guest and did not fit. Dom0 enforces them.
    public var omitted: Int
  }

  /// The policy of one guest: of the measures that stand on the host, those that concern it, as they are at `time`.
  ///
  /// Where measures of guest and host meet, the stricter stands: of two blocks of a network the one that ends later, of rate limits
  /// the lowest. When there are more than `measureLimit`, the guest's own come first, then those of the latest decisions. Takes time
  /// in proportion to the measures, and memory in proportion to the limit.
  ///
  /// - Throws: `invalid` when `version` is 0 or `time` before 1970.
  public static func render(
    for domain: DomainUUID, version: UInt64, measures: some Sequence<FirewallMeasure>,
    exceptions: QuarantineExceptions = QuarantineExceptions(), at time: Timestamp
  ) throws(GuestPolicyError) -> Rendering {
    var selection = Selection(room: measureLimit)
    for measure in measures {
      if let expires = measure.expires, expires <= time { continue }
      switch measure.key.scope {
      case .host: selection.add(measure, isOwn: false)
      case .domain(domain): selection.add(measure, isOwn: true)
      case .domain: continue
      }
    }
    let chosen = selection.finish()
    let networks = Array(Set(exceptions.networks)).sorted { NetworkOrder($0) < NetworkOrder($1) }
    let policy = try GuestPolicy(
      domain: domain, version: version, issued: time, measures: chosen,
      exceptions: QuarantineExceptions(
        networks: Array(networks.prefix(exceptionLimit)), allowsDHCP: exceptions.allowsDHCP))
    return Rendering(policy: policy, omitted: selection.omitted + max(0, networks.count - exceptionLimit))
  }

  /// The measures that are kept: blocks up to a number, and the strictest of what there can be one of.
  private struct Selection {
    struct Candidate {
      var measure: Measure
      var isOwn: Bool
    }

    var room: Int
    var omitted = 0
    private var blocks: [Candidate] = []
    private var quarantine: Measure?
    private var limit: (rate: UInt32, measure: Measure)?

    init(room: Int) { self.room = room }

    mutating func add(_ measure: FirewallMeasure, isOwn: Bool) {
      let comment = String(decoding: GuestPolicy.plain(measure.comment), as: UTF8.self)
      let rendered = Measure(
        measure.key.kind, expires: measure.expires, decision: measure.decision, comment: comment)
      switch measure.key.kind {
      case .block(let network):
        guard Int(network.prefix) >= GuestPolicy.widestBlock(network.base.family) else {
          omitted += 1
          return
        }
        blocks.append(Candidate(measure: rendered, isOwn: isOwn))
        if blocks.count >= 4 * room { shrink() }
      case .quarantine: quarantine = quarantine.map { Selection.later($0, rendered) } ?? rendered
      case .rateLimit(let rate):
        guard rate > 0 else {
          omitted += 1
          return
        }
        if let limit, limit.rate < rate || (limit.rate == rate && Selection.later(limit.measure, rendered) != rendered)
        {
          return
        }
        limit = (rate, rendered)
      }
    }

    mutating func finish() -> [Measure] {
      room -= (quarantine == nil ? 0 : 1) + (limit == nil ? 0 : 1)
      shrink()
      return blocks.map(\.measure) + [quarantine, limit?.measure].compactMap { $0 }
    }

    /// One for each network, and not more than there is room for.
    private mutating func shrink() {
      var byKind: [FirewallMeasureKind: Candidate] = [:]
      byKind.reserveCapacity(blocks.count)
      for block in blocks {
        guard let other = byKind[block.measure.kind] else {
          byKind[block.measure.kind] = block
          continue
        }
        byKind[block.measure.kind] = Candidate(
          measure: Selection.later(other.measure, block.measure), isOwn: other.isOwn || block.isOwn)
      }
      blocks = byKind.values.sorted { a, b in
        if a.isOwn != b.isOwn { return a.isOwn }
        if a.measure.decision != b.measure.decision { return a.measure.decision > b.measure.decision }
        return MeasureOrder(a.measure.kind) < MeasureOrder(b.measure.kind)
      }
      guard blocks.count > room else { return }
      omitted += blocks.count - room
      blocks.removeLast(blocks.count - room)
    }

    /// The one that ends later; of equal ones, the later decision.
    private static func later(_ a: Measure, _ b: Measure) -> Measure {
      let (endA, endB) = (a.expires?.nanoseconds ?? .max, b.expires?.nanoseconds ?? .max)
      return (endA, a.decision) >= (endB, b.decision) ? a : b
    }
  }
}
