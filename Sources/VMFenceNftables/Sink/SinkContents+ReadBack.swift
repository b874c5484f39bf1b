import VMFenceCore

extension SinkContents {
  /// What was found of one measure.
  private struct Found {
    var elements = 0
    /// The shortest that is left of an element's time, in milliseconds; nil: no end.
    var left: UInt64?
    var tag: ElementTag
    var count = TrafficCount()
  }

  private struct Reading {
    var measures: [FirewallMeasure.Key: Found] = [:]
    /// Elements that belong to nothing that stands.
    var strays: [ReadElement] = []
  }

  mutating func readBack(at time: Timestamp) throws(FirewallError) -> FirewallState {
    do throws(NetlinkError) {
      guard let image = try readTable(), image.holds(skeleton) else {
        try makeTable(keepsMeasures: false)
        rise(at: time)
        return FirewallState(generation: generation, measures: [])
      }
      let reading = read(try readElements(of: image.sets))
      try remove(reading.strays)
      try mendGuards()
      purge(at: Self.now)
      return FirewallState(generation: generation, measures: whole(reading, at: time))
    } catch {
      throw FirewallError(error, during: "read the packet filter back", table: configuration.table)
    }
  }

  mutating func readCounts() throws(FirewallError) -> TrafficCounts {
    do throws(NetlinkError) {
      var counts = TrafficCounts()
      guard let image = try readTable() else { return counts }
      counts.measures = read(try readElements(of: image.sets)).measures.mapValues(\.count)
      for (chain, comment, count) in image.counts {
        switch chain {
        case "quarantine": counts.quarantined += count
        case "prerouting": counts.limited += count
        case SpoofingRules.chain:
          guard let kind = SpoofingKind(rawValue: String(comment.prefix { $0 != ":" })) else { continue }
          counts.spoofed[kind, default: TrafficCount()] += count
        default: break
        }
      }
      return counts
    } catch {
      throw FirewallError(error, during: "read the packet filter's counters", table: configuration.table)
    }
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
      var found = reading.measures[key] ?? Found(left: element.left, tag: tag)
      found.elements += 1
      if let left = element.left { found.left = min(left, found.left ?? left) }
      if let count = element.count { found.count += count }
      reading.measures[key] = found
    }
    return reading
  }

  /// The measures of which all elements were found. What is gone altogether is forgotten.
  private mutating func whole(_ reading: Reading, at time: Timestamp) -> [FirewallMeasure] {
    var measures: [(order: UInt64, measure: FirewallMeasure)] = []
    var gone: [FirewallMeasure.Key] = []
    for (key, entry) in standing {
      guard let found = reading.measures[key] else {
        gone.append(key)
        continue
      }
      guard found.elements == Self.elements(of: key, in: interfaces(of: key)).count else { continue }
      let expires = found.left.map { time + .milliseconds(Int64(clamping: $0)) }
      measures.append(
        (
          entry.order,
          FirewallMeasure(
            scope: key.scope, kind: key.kind, expires: expires, decision: found.tag.decision, comment: found.tag.comment
          )
        ))
    }
    for key in gone { standing[key] = nil }
    return measures.sorted { $0.order < $1.order }.map(\.measure)
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
          batch.element(ElementKey(element.key), chain: set == .quarantine ? "quarantine" : nil)
        }
        batch.endElements()
      }
    }
    try socket.send(batch)
  }

  /// Takes over what an earlier run left in the kernel, and which ports its domains had.
  mutating func adopt(_ elements: [ReadElement]) {
    let now = Self.now
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
      stand(measure, deadline: element.left.map { now + min($0, .max / 4_000_000) * 1_000_000 }, slot: slot)
    }
  }
}
