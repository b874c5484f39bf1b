/// What a policy sees of an event.
struct Observation {
  var event: Event
  var incarnation: Incarnation?
  var domain: DomainEntry?
  /// The address at the other end, as seen from the domain.
  var remote: IPAddress?
  /// What the event was aimed at, at the domain's end.
  var target: IPAddress?
  /// With the protocol above it, so that TCP and UDP are apart; nil for protocols without ports.
  var targetPort: UInt32?
  /// Whether nobody could have forged it.
  var isSolid: Bool
  /// Whether it was found in what a tunnel carries: its ends write any addresses into that, and hold whole conversations between them.
  var isTunnelled = false
  /// Whether more than the detector's word speaks for it: the packet that the detector was given has these ends.
  var isAttested = true
  /// Whether it was seen in traffic, which a block would have stopped.
  var isTraffic: Bool
  /// Whether the other end sent it of its own accord. What the domain sends, and the answers to that, are as the domain wants them: they speak for a
  /// measure between the two, and for nothing that other domains feel.
  var isUnprovoked: Bool

  /// nil for events that no policy counts.
  init?(_ event: Event, _ directory: DomainDirectory) {
    self.event = event
    incarnation = event.incarnation
    domain = event.incarnation.flatMap(directory.entry)
    switch event {
    case .alert(let alert):
      let (remote, isKnown) = alert.remoteEnd(own: domain?.description.ports ?? [])
      self.remote = remote
      let isFromRemote = remote == alert.source
      target = isFromRemote ? alert.destination : alert.source
      if alert.hasPorts {
        targetPort = UInt32(alert.ipProtocol) << 16 | UInt32(isFromRemote ? alert.destinationPort : alert.sourcePort)
      }
      isTunnelled = alert.isTunnelled
      // The guest can send what names another as its sender, and its neighbours what names the guest.
      let isOnWrongSide = isKnown && alert.way == (isFromRemote ? .fromGuest : .toGuest)
      isSolid = alert.ipProtocol == 6 && alert.isEstablished && !isTunnelled && !isOnWrongSide
      isAttested = alert.isAttested
      isTraffic = true
      isUnprovoked = isFromRemote && alert.direction == .toServer
    case .platform(let alert):
      remote = alert.source
      isSolid = alert.source == nil
      isTraffic = false
      isUnprovoked = true
    case .file:
      remote = nil
      isSolid = true
      isTraffic = false
      isUnprovoked = true
    case .decision, .lifecycle, .packet:
      return nil
    }
  }

  /// What is told apart when different values are counted; nil when the event has no such thing.
  func value(of what: Counting.What) -> Int? {
    switch what {
    case .events: nil
    case .targets: target?.hashValue
    case .ports: targetPort?.hashValue
    }
  }

  /// What was counted, in a few words. Text from outside in it is escaped.
  var trigger: String {
    switch event {
    case .alert(let alert): "\(alert.rule.gid):\(alert.rule.sid)"
    case .file(let event):
      "file \(event.operation.rawValue) \(String(decoding: event.path.prefix(256), as: UTF8.self).escapedForDisplay)"
    case .platform(let alert): alert.kind.name
    case .decision, .lifecycle, .packet: ""
    }
  }
}

extension Alert {
  /// The end that is not the domain, and whether its addresses tell so. When they do not, it is the client of the flow.
  fileprivate func remoteEnd(own ports: [NetworkPort]) -> (address: IPAddress, isKnown: Bool) {
    let ownsSource = ports.contains { $0.addresses.contains(source) }
    let ownsDestination = ports.contains { $0.addresses.contains(destination) }
    if ownsSource != ownsDestination { return (ownsSource ? destination : source, true) }
    return (direction == .toServer ? source : destination, false)
  }
}

/// Whom a counter belongs to.
struct Subject: Hashable, Sendable {
  /// The policy rule's name.
  var rule: String
  var domain: DomainUUID?
  var network: IPNetwork?

  /// The same source, whichever domain it was counted for.
  var onHost: Subject { Subject(rule: rule, network: network) }
}

extension IPNetwork {
  /// Whether the two have an address in common.
  func overlaps(_ other: IPNetwork) -> Bool {
    prefix <= other.prefix ? contains(other.base) : other.contains(base)
  }

  /// Addresses that are no sources, or that a network cannot do without: blocking them helps nobody (RFC 6890).
  static let unblockable: [IPNetwork] = [
    IPNetwork(IPAddress(v4: 0), prefix: 8),
    IPNetwork(IPAddress(v4: 0x7F00_0000), prefix: 8),
    IPNetwork(IPAddress(v4: 0xE000_0000), prefix: 3),
    IPNetwork(IPAddress(v6High: 0, low: 0), prefix: 127),
    IPNetwork(IPAddress(v6High: 0xFE80_0000_0000_0000, low: 0), prefix: 10),
    IPNetwork(IPAddress(v6High: 0xFF00_0000_0000_0000, low: 0), prefix: 8),
  ]
}
