internal import Glibc
import VMFenceCore

extension SinkContents {
  /// What was found of one measure.
  private struct Found {
    var elements = 0
    /// When the first element ends on the kernel's clock, in nanoseconds; nil: never.
    var deadline: UInt64?
    var tag: ElementTag
    var count = TrafficCount()
  }

  private struct Reading {
    var measures: [FirewallMeasure.Key: Found] = [:]
    /// Elements that belong to nothing that stands.
    var strays: [ReadElement] = []
  }

  mutating func readBack(at time: Timestamp) throws(FirewallError) -> FirewallState {
    // That is `time` on the kernel's clock.
    let now = Self.now
    do throws(NetlinkError) {
      var broken: Set<FirewallMeasure.Key> = []
      if try !isModelCurrent() {
        guard let found = try readModel() else {
          try makeTable(keepsMeasures: false)
          rise(at: time)
          return FirewallState(generation: generation, measures: [])
        }
        broken = found
      }
      purge(at: Self.now)
      try dropIdleLimits()
      return FirewallState(generation: generation, measures: listed(without: broken, at: time, now))
    } catch {
      throw FirewallError(error, during: "read the packet filter back", table: configuration.table)
    }
  }

  /// Reads what stands, and takes out what does not belong there.
  ///
  /// - Returns: the measures of which only a part was found; nil when the table is not as it was made.
  private mutating func readModel() throws(NetlinkError) -> Set<FirewallMeasure.Key>? {
    knownGeneration = try socket.rulesetGeneration()
    guard let image = try readTable(), image.holds(skeleton) else { return nil }
    limits = image.limits
    let reading = read(try readElements(of: image))
    try remove(reading.strays)
    try mendGuards()
    try mendPortChains()
    let broken = take(reading)
    if !broken.isEmpty { knownGeneration = nil }
    return broken
  }

  mutating func readCounts(ofMeasures: Bool) throws(FirewallError) -> TrafficCounts {
    do throws(NetlinkError) {
      var counts = TrafficCounts()
      guard let image = try readTable() else { return counts }
      if ofMeasures { counts.measures = read(try readElements(of: image)).measures.mapValues(\.count) }
      counts.elements = try countElements(of: image)
      counts.spoofedAtPorts = try readPortCounts()
      for (chain, comment, count) in image.counts {
        switch chain {
        case "quarantine": counts.quarantined += count
        case "prerouting": counts.limited += count
        case "block4", "block6", BlockSet.arpChain: counts.blocked += count
        case _ where FlowRules.chains.contains { $0.name == chain }: counts.cut += count
        case _ where SpoofingRules.chains.contains { $0.name == chain }:
          guard let kind = SpoofingKind(rawValue: String(comment.prefix { $0 != ":" })) else { continue }
          counts.spoofed[kind, default: TrafficCount()] += count
        default: break
        }
      }
      try countAtPorts(&counts)
      return counts
    } catch {
      throw FirewallError(error, during: "read the packet filter's counters", table: configuration.table)
    }
  }

  /// See `TrafficCounts.elements`. Reads none of them.
  mutating func countElements(of image: TableImage) throws(NetlinkError) -> Int? {
    let counts = Self.measureSets(of: image).map { image.elementCounts[$0.description] }
    if !counts.contains(nil) { return counts.reduce(0) { $0 + ($1 ?? 0) } }
    guard try isModelCurrent() else { return nil }
    purge(at: Self.now)
    return standing.keys.reduce(0) { $0 + Self.elementCount(of: $1, in: interfaces(of: $1)) }
  }

  /// Sorts elements by the measures that they are parts of.
  private func read(_ elements: [ReadElement]) -> Reading {
    var reading = Reading()
    reading.measures.reserveCapacity(standing.count)
    for element in elements {
      guard let key = element.measureKey, let tag = element.tag, let entry = standing[key],
        element.set == Self.set(of: key, slot: entry.slot),
        element.interface.map({ interfaces(of: tag.domain).contains($0) }) ?? true
      else {
        reading.strays.append(element)
        continue
      }
      var found = reading.measures[key] ?? Found(deadline: element.deadline, tag: tag)
      found.elements += 1
      if let deadline = element.deadline { found.deadline = min(deadline, found.deadline ?? deadline) }
      if let count = element.count { found.count += count }
      reading.measures[key] = found
    }
    return reading
  }

  /// Keeps what was found of the measures, and forgets those that are gone altogether.
  ///
  /// - Returns: the measures of which only a part was found.
  private mutating func take(_ reading: Reading) -> Set<FirewallMeasure.Key> {
    var broken: Set<FirewallMeasure.Key> = []
    var kept: [FirewallMeasure.Key: Standing] = [:]
    kept.reserveCapacity(standing.count)
    for (key, entry) in standing {
      guard let found = reading.measures[key] else { continue }
      var entry = entry
      entry.decision = found.tag.decision
      entry.comment = found.tag.comment
      entry.deadline = found.deadline
      kept[key] = entry
      if found.elements != Self.elementCount(of: key, in: interfaces(of: key)) { broken.insert(key) }
    }
    standing = kept
    return broken
  }

  /// What stands, in the order in which it came.
  private func listed(
    without broken: Set<FirewallMeasure.Key>, at time: Timestamp, _ now: UInt64
  ) -> [FirewallMeasure] {
    var places: [(order: UInt64, index: Int)] = []
    var measures: [FirewallMeasure] = []
    places.reserveCapacity(standing.count)
    measures.reserveCapacity(standing.count)
    for (key, entry) in standing where broken.isEmpty || !broken.contains(key) {
      places.append((entry.order, measures.count))
      let expires = entry.deadline.map { time + .nanoseconds(Int64(clamping: $0 - min(now, $0))) }
      measures.append(entry.measure(key, expires: expires))
    }
    places.sort { $0.order < $1.order }
    return places.map { measures[$0.index] }
  }

  /// `milliseconds` after `now`, on the kernel's clock.
  static func deadline(in milliseconds: UInt64, from now: UInt64) -> UInt64 {
    now + min(milliseconds, .max / 4_000_000) * 1_000_000
  }

  /// Takes limits out that no measure names any more. One that an ended element still names stays until the kernel has collected that.
  private mutating func dropIdleLimits() throws(NetlinkError) {
    guard !limits.isEmpty else { return }
    let idle = limits.subtracting(standing.keys.lazy.compactMap { LimitName($0)?.description })
    for name in idle.prefix(64) {
      batch.begin(.bridge, table: configuration.table, sequence: socket.takeSequence(16))
      batch.deleteLimit(named: name)
      do throws(NetlinkError) {
        try commit()
      } catch .refused(EBUSY, _) {
        continue
      } catch .refused(ENOENT, _) {}
      limits.remove(name)
    }
  }

  /// Takes out what others put into our sets.
  private mutating func remove(_ strays: [ReadElement]) throws(NetlinkError) {
    guard !strays.isEmpty else { return }
    batch.begin(.bridge, table: configuration.table, sequence: socket.takeSequence(Self.sequenceNumbers))
    for (set, elements) in Dictionary(grouping: strays, by: \.set) {
      // Added first, as one may have ended meanwhile.
      for deletes in [false, true] {
        batch.beginElements(of: set.description, deletes: deletes)
        for element in elements {
          let reference = set == .quarantine ? ElementReference.quarantine : element.limit.map { .limit($0) }
          batch.element(ElementKey(element.key), refersTo: deletes ? nil : reference)
        }
        batch.endElements()
      }
    }
    try commit()
  }

  /// Takes over what an earlier run left in the kernel, and which ports its domains had.
  ///
  /// - Returns: whether every element is part of a measure that is whole.
  mutating func adopt(_ elements: [ReadElement]) -> Bool {
    var adopted = 0
    standing.reserveCapacity(elements.count)
    for element in elements.sorted(by: { $0.tag?.decision ?? 0 < $1.tag?.decision ?? 0 }) {
      guard let tag = element.tag, let key = element.measureKey else { continue }
      if let interface = element.interface, !PlaceholderPort.isOne(interface),
        ports[tag.domain]?.contains(interface) != true
      {
        ports[tag.domain, default: []].append(interface)
      }
      var slot = 0
      if case .limit(let number) = element.set { slot = number }
      let measure = FirewallMeasure(
        scope: key.scope, kind: key.kind, expires: nil, decision: tag.decision, comment: tag.comment)
      stand(measure, deadline: element.deadline, slot: slot)
      adopted += 1
    }
    // Each element is in one of the domain's ports, so the measures are whole when there are as many as they should have.
    let expected = standing.keys.reduce(0) { $0 + Self.elementCount(of: $1, in: interfaces(of: $1)) }
    return adopted == elements.count && adopted == expected
  }
}
