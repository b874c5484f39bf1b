// A domain's counts in parts, each of them bounded: what comes when there are as many as that is counted as one more part, `other`.

/// What was captured of a domain at one port.
public struct PortTraffic: Hashable, Sendable {
  /// nil: at all the ports that came when there were 64 already.
  public var port: PortID?
  /// In frames and bytes.
  public var packets: UInt64 = 0
  public var bytes: UInt64 = 0
}

/// A domain's traffic by ports. Allocates when a port comes that it has not had before, and never otherwise.
package struct TrafficByPort {
  package static var limit: Int { 64 }

  package private(set) var ports: [PortTraffic] = []
  /// Frames mostly come from the port of the one before.
  private var last = 0

  package init(_ ports: [PortTraffic] = []) { self.ports = ports }

  package mutating func add(_ port: PortID, bytes: Int) {
    if last >= ports.count || ports[last].port != port { last = place(of: port) }
    ports[last].packets &+= 1
    ports[last].bytes &+= UInt64(bytes)
  }

  private mutating func place(of port: PortID) -> Int {
    if let known = ports.firstIndex(where: { $0.port == port }) { return known }
    let isNamed = ports.count < Self.limit
    // The last one, if there is one.
    if !isNamed, ports.count > Self.limit { return Self.limit }
    ports.append(PortTraffic(port: isNamed ? port : nil))
    return ports.count - 1
  }
}

/// A domain's alerts by the classes of their rules (`classtype`).
package struct AlertsByClass {
  package static var limit: Int { 64 }
  /// Bytes of the longest name that is counted as itself.
  package static var nameLimit: Int { 128 }
  /// Alerts of rules without a class; those beyond the limits.
  package static var none: String { "none" }
  package static var other: String { "other" }

  package private(set) var counts: [String: UInt64]

  package init(_ counts: [String: UInt64] = [:]) { self.counts = counts }

  package mutating func add(_ classification: String) {
    var name = classification.isEmpty ? Self.none : classification
    if counts[name] == nil, counts.count >= Self.limit || name.utf8.count > Self.nameLimit { name = Self.other }
    counts[name, default: 0] &+= 1
  }
}
