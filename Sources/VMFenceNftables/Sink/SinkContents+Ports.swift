import VMFenceCore

extension SinkContents {
  /// An interface's name has 1 to 15 bytes (IFNAMSIZ), no slash and no white space (dev_valid_name of the kernel).
  static func isInterfaceName(_ name: String) -> Bool {
    let bytes = name.utf8
    return (1...15).contains(bytes.count) && name != "." && name != ".."
      && bytes.allSatisfy { $0 > 0x20 && $0 != 0x7F && $0 != UInt8(ascii: "/") && $0 != UInt8(ascii: ":") }
  }

  /// Each interface belongs to one domain.
  static func assign(_ ports: [DomainUUID: [NetworkPort]]) -> [DomainUUID: [String]] {
    var taken: Set<String> = []
    var assigned: [DomainUUID: [String]] = [:]
    for (domain, list) in ports.sorted(by: { $0.key < $1.key }) {
      let names = list.map(\.interface).filter { isInterfaceName($0) && taken.insert($0).inserted }
      if !names.isEmpty { assigned[domain] = names }
    }
    return assigned
  }

  mutating func update(_ described: [DomainUUID: [NetworkPort]]) throws(FirewallError) {
    let new = Self.assign(described)
    guard new != ports else { return }
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
    for (set, keys) in moved {
      batch.beginElements(of: set.description)
      for key in keys {
        guard let entry = standing[key] else { continue }
        writeAddition(entry.measure(key, expires: nil), timeout: entry.timeout(at: now), in: interfaces(of: key))
      }
      batch.endElements()
    }
    if batch.isEmpty { return }
    do throws(NetlinkError) {
      try socket.send(batch)
    } catch {
      ports = old
      throw failed(error, during: "move measures to other ports")
    }
  }
}
