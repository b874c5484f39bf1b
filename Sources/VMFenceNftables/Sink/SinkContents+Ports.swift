import VMFenceCore

extension SinkContents {
  /// Each interface belongs to one domain.
  static func assign(_ ports: [DomainUUID: [NetworkPort]]) -> [DomainUUID: [NetworkPort]] {
    var taken: Set<String> = []
    var assigned: [DomainUUID: [NetworkPort]] = [:]
    for (domain, list) in ports.sorted(by: { $0.key < $1.key }) {
      let kept = list.filter { NetworkPort.isInterfaceName($0.interface) && taken.insert($0.interface).inserted }
      if !kept.isEmpty { assigned[domain] = kept }
    }
    return assigned
  }

  mutating func update(
    _ described: [DomainUUID: [NetworkPort]], _ antiSpoofing: AntiSpoofing
  ) throws(FirewallError) {
    let assigned = Self.assign(described)
    let new = assigned.mapValues { $0.map(\.interface) }
    self.described = assigned
    self.antiSpoofing = antiSpoofing
    let newGuards = SpoofingRules.elements(assigned, antiSpoofing)
    if new != ports || newGuards != guards { try move(to: new, newGuards) }
    do throws(NetlinkError) { try guardPorts() } catch {
      throw FirewallError(error, during: "guard the domains' ports", table: configuration.table)
    }
  }

  /// Moves measures along with their domains, and writes what belongs into the sets against spoofing.
  private mutating func move(
    to new: [DomainUUID: [String]], _ newGuards: [String: Set<[UInt8]>]
  ) throws(FirewallError) {
    let now = Self.now
    purge(at: now)
    var moved: [SetName: [FirewallMeasure.Key]] = [:]
    for (key, entry) in standing {
      guard case .domain(let domain) = key.scope, new[domain] != ports[domain] else { continue }
      moved[Self.set(of: key, slot: entry.slot), default: []].append(key)
    }
    let old = ports
    batch.begin(.bridge, table: configuration.table, sequence: socket.takeSequence(Self.sequenceNumbers))
    // First all go, then all come: one domain may have got the port that another one had.
    for (set, keys) in moved { writeRemoval(of: keys.map { ($0, interfaces(of: $0)) }, from: set) }
    ports = new
    for keys in moved.values { writeLimits(of: keys) }
    for (set, keys) in moved {
      batch.beginElements(of: set.description)
      for key in keys {
        guard let entry = standing[key] else { continue }
        writeAddition(entry.measure(key, expires: nil), timeout: entry.timeout(at: now), in: interfaces(of: key))
      }
      batch.endElements()
    }
    if let guards, newGuards != guards {
      write(changesOf: guards, to: newGuards)
    } else if guards == nil {
      write(guards: newGuards, flushes: true)
    }
    do throws(NetlinkError) {
      if !batch.isEmpty { try commit() }
      guards = newGuards
    } catch {
      ports = old
      throw failed(error, during: "move measures to other ports")
    }
  }

  /// Writes what belongs into the sets against spoofing.
  mutating func write(guards: [String: Set<[UInt8]>], flushes: Bool) {
    if flushes { writeTick() }
    for (set, keys) in guards {
      if flushes { batch.flush(set: set) }
      batch.beginElements(of: set)
      for key in keys { batch.element(ElementKey(key)) }
      batch.endElements()
    }
  }

  /// Writes what changes in the sets against spoofing. What stays keeps its counters.
  private mutating func write(changesOf old: [String: Set<[UInt8]>], to new: [String: Set<[UInt8]>]) {
    writeTick()
    for (set, keys) in new {
      let gone = old[set, default: []].subtracting(keys)
      // Deleting what somebody else has deleted would fail, so what goes is added first.
      for (keys, deletes) in [(keys.subtracting(old[set, default: []]).union(gone), false), (gone, true)] {
        batch.beginElements(of: set, deletes: deletes)
        for key in keys { batch.element(ElementKey(key)) }
        batch.endElements()
      }
    }
  }

  /// Puts the sets against spoofing right, if somebody changed them: with a port missing in one of them, its honest traffic would be stopped.
  mutating func mendGuards() throws(NetlinkError) {
    guard let guards else { return }
    for (set, keys) in guards where try readKeys(of: set) != keys {
      batch.begin(.bridge, table: configuration.table, sequence: socket.takeSequence(Self.sequenceNumbers))
      write(guards: guards, flushes: true)
      return try commit()
    }
  }

  private mutating func readKeys(of set: String) throws(NetlinkError) -> Set<[UInt8]> {
    for _ in 0..<Self.readAttempts {
      do throws(NetlinkError) {
        var keys: Set<[UInt8]> = []
        try socket.ask(.elements, family: .bridge, table: configuration.table, set: set) {
          (message, bytes) throws(NetlinkError) in
          try ReadElement.forEachKey(in: message, bytes) { keys.insert($0.copiedBytes(bytes)) }
        }
        return keys
      } catch .interrupted {
        continue
      }
    }
    throw .interrupted
  }
}
