/// The measures that are to be in force, with their timers.
struct MeasureRegister: Sendable {
  struct Entry: Sendable {
    var measure: FirewallMeasure
    var decision: Decision

    /// The domain on whose word it stands.
    var owner: DomainUUID? { decision.incarnation?.uuid }
  }

  private struct Timer: Sendable {
    var expires: Timestamp
    var decision: UInt64
    var key: FirewallMeasure.Key
  }

  private var entries: [FirewallMeasure.Key: Entry] = [:]
  /// Rises with each change.
  private(set) var revision: UInt64 = 0
  /// A binary heap, the earliest first. A timer whose decision is not the entry's any more is stale.
  private var timers: [Timer] = []
  /// How many blocks stand for each length of prefix, so that a look-up tries only lengths in use.
  private var v4Prefixes = PrefixCounts(width: 32)
  private var v6Prefixes = PrefixCounts(width: 128)

  /// How many stand where; without scopes that have none.
  private(set) var scopes: [FirewallScope: MeasureCounts.Scope] = [:]
  /// How many stand on whose word; nil: on that of no domain.
  private var owned: [DomainUUID?: Int] = [:]

  var count: Int { entries.count }
  /// Those on the word of one domain, or of none: the administrator's for the host.
  func count(of domain: DomainUUID?) -> Int { owned[domain] ?? 0 }

  subscript(key: FirewallMeasure.Key) -> Entry? { entries[key] }

  /// In the order of their decisions.
  var all: [Entry] { entries.values.sorted { $0.measure.decision < $1.measure.decision } }

  /// In no order.
  var unordered: some Collection<Entry> { entries.values }

  /// The measures alone, in the order of their decisions.
  var measures: [FirewallMeasure] { entries.values.map(\.measure).sorted { $0.decision < $1.decision } }

  /// Those that `isWanted` picks, in the order of their decisions.
  func all(where isWanted: (Entry) -> Bool) -> [Entry] {
    entries.values.filter(isWanted).sorted { $0.measure.decision < $1.measure.decision }
  }

  /// Those of one domain and those of the host, in no order.
  func all(concerning domain: DomainUUID) -> [FirewallMeasure] {
    entries.values.lazy.map(\.measure).filter { $0.key.scope == .host || $0.key.scope == .domain(domain) }
  }

  /// Makes room for so many more.
  mutating func reserve(_ more: Int) {
    entries.reserveCapacity(entries.count + more)
    timers.reserveCapacity(timers.count + more)
  }

  /// Adds a measure, or replaces the one with its key.
  mutating func insert(_ entry: Entry) {
    revision += 1
    let key = entry.measure.key
    owned[entry.owner, default: 0] += 1
    if let old = entries.updateValue(entry, forKey: key) { disown(old) } else { count(key, by: 1) }
    guard let expires = entry.measure.expires else { return }
    if timers.count > 2 * entries.count + 64 { dropStaleTimers() }
    timers.append(Timer(expires: expires, decision: entry.measure.decision, key: key))
    siftUp(timers.count - 1)
  }

  /// The same measure with another word about it: under its number, with its end.
  mutating func replaceDecision(of key: FirewallMeasure.Key, by decision: Decision) {
    guard entries[key] != nil else { return }
    revision += 1
    entries[key]?.decision = decision
  }

  mutating func remove(_ key: FirewallMeasure.Key) -> Entry? {
    guard let entry = entries.removeValue(forKey: key) else { return nil }
    revision += 1
    count(key, by: -1)
    disown(entry)
    return entry
  }

  private mutating func disown(_ entry: Entry) {
    if let left = owned[entry.owner] { owned[entry.owner] = left > 1 ? left - 1 : nil }
  }

  /// Takes out the measure that ends first, if it has ended at `time`.
  mutating func popExpired(at time: Timestamp) -> Entry? {
    while let first = timers.first, first.expires <= time {
      removeFirstTimer()
      if entries[first.key]?.measure.decision == first.decision { return remove(first.key) }
    }
    return nil
  }

  /// The block or quarantine that keeps `address` and the domain apart, if one does.
  func cutting(_ address: IPAddress, from domain: DomainUUID?) -> Entry? {
    var found: Entry?
    forEachCutting(address, from: domain) { entry in
      found = entry
      return false
    }
    return found
  }

  /// All of them: quarantine first, then the narrowest.
  func allCutting(_ address: IPAddress, from domain: DomainUUID?) -> [Entry] {
    var found: [Entry] = []
    forEachCutting(address, from: domain) { entry in
      found.append(entry)
      return true
    }
    return found
  }

  private func forEachCutting(_ address: IPAddress, from domain: DomainUUID?, _ body: (Entry) -> Bool) {
    if let domain, let entry = entries[.init(scope: .domain(domain), kind: .quarantine)], !body(entry) { return }
    let prefixes = address.family == .v4 ? v4Prefixes.inUse : v6Prefixes.inUse
    for prefix in prefixes {
      let kind = FirewallMeasureKind.block(IPNetwork(address, prefix: prefix))
      if let domain, let entry = entries[.init(scope: .domain(domain), kind: kind)], !body(entry) { return }
      if let entry = entries[.init(scope: .host, kind: kind)], !body(entry) { return }
    }
  }

  private mutating func count(_ key: FirewallMeasure.Key, by change: Int) {
    var scope = scopes[key.scope] ?? MeasureCounts.Scope()
    scope.all += change
    if case .block(let network) = key.kind {
      switch network.base.family {
      case .v4:
        scope.v4Blocks += change
        v4Prefixes.add(change, Int(network.prefix))
      case .v6:
        scope.v6Blocks += change
        v6Prefixes.add(change, Int(network.prefix))
      }
    }
    scopes[key.scope] = scope.all > 0 ? scope : nil
  }

  // MARK: The heap

  private mutating func dropStaleTimers() {
    timers.removeAll { entries[$0.key]?.measure.decision != $0.decision }
    timers.sort { ($0.expires, $0.decision) < ($1.expires, $1.decision) }
  }

  private func isBefore(_ a: Int, _ b: Int) -> Bool {
    (timers[a].expires, timers[a].decision) < (timers[b].expires, timers[b].decision)
  }

  private mutating func siftUp(_ start: Int) {
    var index = start
    while index > 0, isBefore(index, (index - 1) / 2) {
      timers.swapAt(index, (index - 1) / 2)
      index = (index - 1) / 2
    }
  }

  private mutating func removeFirstTimer() {
    timers.swapAt(0, timers.count - 1)
    timers.removeLast()
    var index = 0
    while true {
      var least = index
      for child in [2 * index + 1, 2 * index + 2] where child < timers.count && isBefore(child, least) { least = child }
      if least == index { return }
      timers.swapAt(index, least)
      index = least
    }
  }
}

/// Which prefix lengths are in use.
struct PrefixCounts: Sendable {
  private var counts: [Int]
  private(set) var inUse: [Int] = []

  init(width: Int) { counts = Array(repeating: 0, count: width + 1) }

  mutating func add(_ change: Int, _ prefix: Int) {
    counts[prefix] += change
    if counts[prefix] == Swift.max(change, 0) { inUse = counts.indices.filter { counts[$0] > 0 }.reversed() }
  }
}
