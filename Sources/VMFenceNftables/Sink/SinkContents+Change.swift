import VMFenceCore

extension SinkContents {
  /// The kernel counts ends in its ticks; a longer time than this is none that anybody waits for, and would not fit.
  static let longestTimeout = Duration.seconds(10 * 365 * 86_400)

  /// More messages than the largest transaction has.
  static let sequenceNumbers: UInt32 = 1 << 16

  /// What a change does to one set.
  private struct SetChange {
    var removed: [(key: FirewallMeasure.Key, interfaces: [String])] = []
    var added: [Addition] = []
  }

  private struct Addition {
    var measure: FirewallMeasure
    var deadline: UInt64?
    var timeout: UInt64
    var slot: Int
  }

  /// Makes a change, if it is one of the generation in force.
  mutating func apply(_ change: FirewallChange) throws(FirewallError) -> UInt64 {
    guard change.from == generation else {
      throw FirewallError(
        .conflict, "a change from generation \(change.from), and the packet filter is at \(generation)",
        remedy: "read back what is in force, and decide again")
    }
    return try self.change(adding: change.add, removing: change.remove, at: change.time)
  }

  /// Makes a change in one transaction.
  ///
  /// - Returns: the generation after it.
  mutating func change(
    adding: [FirewallMeasure], removing: [FirewallMeasure.Key], at time: Timestamp, replacesAll: Bool = false
  ) throws(FirewallError) -> UInt64 {
    let now = Self.now
    var additions: [FirewallMeasure.Key: FirewallMeasure] = [:]
    additions.reserveCapacity(adding.count)
    for measure in adding {
      try check(measure)
      additions[measure.key] = measure
    }
    var removals: Set<FirewallMeasure.Key> = []
    var changes: [SetName: SetChange] = [:]
    if !replacesAll {
      for key in removing + additions.keys where standing[key] != nil && removals.insert(key).inserted {
        changes[set(of: key), default: SetChange()].removed.append((key, interfaces(of: key)))
      }
    }
    let left = replacesAll ? 0 : standing.count - removals.count
    if left + additions.count > configuration.capacity { purge(at: now) }
    guard (replacesAll ? 0 : standing.count - removals.count) + additions.count <= configuration.capacity else {
      throw FirewallError(
        .full, "\(left + additions.count) measures, and \(configuration.capacity) fit",
        remedy: "block networks instead of single addresses")
    }
    // Looked for only when it is needed: it goes through all that stands.
    let hasLimits = adding.contains { if case .rateLimit = $0.key.kind { true } else { false } }
    var slots = SlotChooser(standing: replacesAll || !hasLimits ? [:] : standing, without: removals)
    // In the order in which they were given, each key once: the last one counts.
    var placed: [Addition] = []
    for measure in adding {
      guard let last = additions.removeValue(forKey: measure.key) else { continue }
      guard let addition = try place(last, at: time, now: now, &slots) else { continue }
      changes[Self.set(of: measure.key, slot: addition.slot), default: SetChange()].added.append(addition)
      placed.append(addition)
    }
    try guardPorts(ofQuarantined: placed)
    try write(changes, flushes: replacesAll)
    if replacesAll { standing.removeAll() }
    for key in removals { standing[key] = nil }
    for addition in placed { stand(addition.measure, deadline: addition.deadline, slot: addition.slot) }
    rise(at: time)
    return generation
  }

  private mutating func guardPorts(ofQuarantined placed: [Addition]) throws(FirewallError) {
    var quarantined: Set<DomainUUID> = []
    for addition in placed {
      if case (.domain(let domain), .quarantine) = (addition.measure.key.scope, addition.measure.key.kind) {
        quarantined.insert(domain)
      }
    }
    guard !quarantined.isEmpty else { return }
    do throws(NetlinkError) { try guardPorts(alsoOf: quarantined) } catch {
      throw FirewallError(error, during: "guard the domains' ports", table: configuration.table)
    }
  }

  private func set(of key: FirewallMeasure.Key) -> SetName { Self.set(of: key, slot: standing[key]?.slot ?? 0) }

  private func check(_ measure: FirewallMeasure) throws(FirewallError) {
    if case .block = measure.key.kind { return }
    guard measure.key.scope == .host else { return }
    throw FirewallError(
      .unsupported, "only blocks can stand for the whole host", remedy: "name the domain that is meant")
  }

  /// Where and how long a measure will stand; nil when its time is over.
  private func place(
    _ measure: FirewallMeasure, at time: Timestamp, now: UInt64, _ slots: inout SlotChooser
  ) throws(FirewallError) -> Addition? {
    var addition = Addition(measure: measure, deadline: nil, timeout: 0, slot: 0)
    if let expires = measure.expires {
      let left = min(expires - time, Self.longestTimeout)
      guard left > .zero else { return nil }
      let nanoseconds = UInt64(left.wholeNanoseconds)
      addition.timeout = max(1, (nanoseconds + 999_999) / 1_000_000)
      addition.deadline = now + nanoseconds
    }
    if case .rateLimit = measure.key.kind {
      guard let slot = slots.take(for: measure.key.scope) else {
        throw FirewallError(
          .full, "a domain can have \(SetName.limitSlots) different rate limits at a time",
          remedy: "lift one of them first")
      }
      addition.slot = slot
    }
    return addition
  }

  private mutating func write(_ changes: [SetName: SetChange], flushes: Bool) throws(FirewallError) {
    do throws(NetlinkError) {
      batch.begin(.bridge, table: configuration.table, sequence: socket.takeSequence(Self.sequenceNumbers))
      if flushes {
        for set in groups.compactMap(\.blockSet) { batch.flush(set: set.name) }
        batch.flush(set: SetName.quarantine.description)
        for slot in 0..<SetName.limitSlots { batch.flush(set: SetName.limit(slot).description) }
        writeTick()
      }
      let newGroups = write(
        missing: changes.filter { !$0.value.added.isEmpty }.keys.flatMap { RuleGroup.needed(by: $0) })
      for change in changes.values { writeLimits(of: change.added.lazy.map(\.measure.key)) }
      for (set, change) in changes {
        writeRemoval(of: change.removed, from: set)
        batch.beginElements(of: set.description)
        for addition in change.added {
          writeAddition(addition.measure, timeout: addition.timeout, in: interfaces(of: addition.measure.key))
        }
        batch.endElements()
      }
      if batch.isEmpty { return }
      try commit()
      groups += newGroups
    } catch {
      throw failed(error, during: "change the packet filter")
    }
  }

  /// What a failed transaction means. When the table is gone or was changed, it is made anew: what stood is lost, and the next reading
  /// back tells.
  mutating func failed(_ error: NetlinkError, during action: String) -> FirewallError {
    guard case .refused(2, _) = error else {
      return FirewallError(error, during: action, table: configuration.table)
    }
    do throws(NetlinkError) {
      try makeTable(keepsMeasures: false)
      generation += 1
    } catch {
      return FirewallError(error, during: "make the table anew", table: configuration.table)
    }
    return FirewallError(
      .conflict, "the table bridge \(configuration.table) was gone, and was made anew",
      remedy: "read back what is in force, and decide again")
  }
}

/// Finds a rate limit of a domain a set in which the domain has none.
private struct SlotChooser {
  private var taken: [FirewallScope: Set<Int>] = [:]

  init(standing: [FirewallMeasure.Key: SinkContents.Standing], without removed: Set<FirewallMeasure.Key>) {
    for (key, entry) in standing {
      guard case .rateLimit = key.kind, !removed.contains(key) else { continue }
      taken[key.scope, default: []].insert(entry.slot)
    }
  }

  mutating func take(for scope: FirewallScope) -> Int? {
    let used = taken[scope, default: []]
    guard let free = (0..<SetName.limitSlots).first(where: { !used.contains($0) }) else { return nil }
    taken[scope, default: []].insert(free)
    return free
  }
}
