// How domains share what is bounded, so that one of them cannot use it up for its neighbours.

/// How much of something bounded one domain may have: in proportion to what is left of it, as switches share their buffers
/// among ports (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998). Whoever is alone gets
/// much, nobody gets the rest, and what one domain gives up needs no bookkeeping.
struct FairShare: Sendable {
  /// A domain may have this many times what is left, as a fraction.
  let numerator: Int
  let denominator: Int

  /// Half of what is left: a third of all for one domain, two ninths for the next …
  static let half = FairShare(numerator: 1, denominator: 2)
  /// Eight times what is left: eight ninths of all for one domain, eight ninths of the rest for the next …
  static let eightfold = FairShare(numerator: 8, denominator: 1)

  /// Whether a domain that has `own` may have one more while `free` are left. The first is everybody's as long as there is one.
  func admits(own: Int, free: Int) -> Bool {
    free > 0 && own < Swift.max(1, free * numerator / denominator)
  }
}

/// At most so many within any minute, shared among domains.
struct MinuteCap: Sendable {
  enum Outcome: Hashable, Sendable {
    case taken
    /// There were so many on the host.
    case full
    /// There were so many of the domain.
    case ownShareFull
  }

  let limit: Int
  private let share = FairShare.half
  /// A ring of those taken within the last minute, oldest first.
  private var ring: [(time: Timestamp, owner: DomainUUID?)] = []
  private var oldest = 0
  private var count = 0
  /// How many of them are whose; nil: no domain's.
  private var owned: [DomainUUID?: Int] = [:]

  init(limit: Int) { self.limit = Swift.max(1, limit) }

  /// - `time`: never before that of an earlier call.
  mutating func take(for owner: DomainUUID?, at time: Timestamp) -> Outcome {
    forget(before: time)
    guard count < limit else { return .full }
    guard share.admits(own: owned[owner] ?? 0, free: limit - count) else { return .ownShareFull }
    let position = (oldest + count) % limit
    if position < ring.count { ring[position] = (time, owner) } else { ring.append((time, owner)) }
    count += 1
    owned[owner, default: 0] += 1
    return .taken
  }

  private mutating func forget(before time: Timestamp) {
    while count > 0, time - ring[oldest].time >= .seconds(60) {
      let owner = ring[oldest].owner
      if let left = owned[owner] { owned[owner] = left > 1 ? left - 1 : nil }
      oldest = (oldest + 1) % limit
      count -= 1
    }
  }
}

/// The tenants whose guests bear witness against one source, each until its word is out of date.
struct Witnesses: Sendable {
  private var words: [(tenant: TenantID?, until: Timestamp)] = []

  /// Takes the word of one of `tenant`'s guests; nil: of a guest that no tenant has. All of these count as one tenant's.
  ///
  /// - `limit`: how many tenants are remembered; who would be forgotten first makes room.
  mutating func add(_ tenant: TenantID?, until: Timestamp, limit: Int) {
    if let index = words.firstIndex(where: { $0.tenant == tenant }) {
      words[index].until = Swift.max(words[index].until, until)
    } else if words.count < limit {
      words.append((tenant, until))
    } else if let first = words.indices.min(by: { words[$0].until < words[$1].until }) {
      words[first] = (tenant, until)
    }
  }

  /// How many tenants' words hold at `time`.
  func count(at time: Timestamp) -> Int { words.count { time < $0.until } }
}
